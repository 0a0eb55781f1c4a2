//! Points in time as S3 shows and reads them: IMF-fixdate in headers, `….000Z` in XML.
//!
//! S3 answers with whole seconds everywhere, and date conditions compare whole seconds, so the
//! protocol's time is a count of seconds and nothing finer: two instants that print alike compare
//! alike. No clock is read here; the caller brings the time.

use http::HeaderValue;

/// The last second of the year 9999, the largest that every date format of the protocol can print.
pub const TIMESTAMP_SECS_MAX: u64 = 253_402_300_799;

const DAY_NAMES: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const DAY_NAMES_LONG: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTH_NAMES: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

const SECS_PER_DAY: u64 = 86_400;

/// Whole seconds since 1970-01-01T00:00:00Z, at most [`TIMESTAMP_SECS_MAX`].
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(u64);

/// A calendar date and time of day, UTC, proleptic Gregorian.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Civil {
    year: u64,
    /// 1–12.
    month: u64,
    /// 1–31.
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    /// 0 is Monday.
    weekday: usize,
}

impl Timestamp {
    /// Seconds past the year 9999 become its last second: a date must always be printable.
    pub const fn from_secs(secs: u64) -> Self {
        Self(if secs < TIMESTAMP_SECS_MAX { secs } else { TIMESTAMP_SECS_MAX })
    }

    /// Drops what is finer than a second, as AWS does.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self::from_secs(nanos / 1_000_000_000)
    }

    pub fn secs(self) -> u64 {
        self.0
    }

    /// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7).
    pub fn imf_fixdate(self) -> String {
        let c = civil(self.0);
        let mut out = String::with_capacity(29);
        out.push_str(DAY_NAMES[c.weekday]);
        out.push_str(", ");
        push_digits(&mut out, c.day, 2);
        out.push(' ');
        out.push_str(MONTH_NAMES[c.month as usize - 1]);
        out.push(' ');
        push_digits(&mut out, c.year, 4);
        out.push(' ');
        push_time_of_day(&mut out, &c);
        out.push_str(" GMT");
        out
    }

    pub fn header_value(self) -> HeaderValue {
        HeaderValue::from_str(&self.imf_fixdate()).expect("a date is printable ASCII")
    }

    /// Appends `1994-11-06T08:49:37.000Z`, the form of every date in S3's XML.
    pub fn push_iso8601(self, out: &mut String) {
        let c = civil(self.0);
        push_digits(out, c.year, 4);
        out.push('-');
        push_digits(out, c.month, 2);
        out.push('-');
        push_digits(out, c.day, 2);
        out.push('T');
        push_time_of_day(out, &c);
        out.push_str(".000Z");
    }

    pub fn iso8601(self) -> String {
        let mut out = String::with_capacity(24);
        self.push_iso8601(&mut out);
        out
    }

    /// Reads any of the three HTTP date forms: IMF-fixdate, RFC 850, asctime. Dates before 1970 read
    /// as 1970, because no object is older. `None` when it is no date.
    pub fn parse_http(text: &str) -> Option<Self> {
        let text = text.trim();
        let comma = text.find(',');
        match comma {
            Some(3) => parse_imf_fixdate(text),
            Some(_) => parse_rfc850(text),
            None => parse_asctime(text),
        }
    }
}

/// Appends the last `width` digits of `value`; `width` is 2 or 4.
fn push_digits(out: &mut String, value: u64, width: usize) {
    let digit = |place: u64| b'0' + (value / place % 10) as u8;
    let digits = [digit(1000), digit(100), digit(10), digit(1)];
    out.push_str(std::str::from_utf8(&digits[4 - width..]).expect("digits are ASCII"));
}

fn push_time_of_day(out: &mut String, c: &Civil) {
    push_digits(out, c.hour, 2);
    out.push(':');
    push_digits(out, c.minute, 2);
    out.push(':');
    push_digits(out, c.second, 2);
}

/// Days are counted from 0000-03-01 in eras of 400 years, so that the leap day ends a year.
fn civil(secs: u64) -> Civil {
    let days = secs / SECS_PER_DAY;
    let rest = secs % SECS_PER_DAY;
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    Civil {
        year: era * 400 + year_of_era + u64::from(month <= 2),
        month,
        day: day_of_year - (153 * shifted_month + 2) / 5 + 1,
        hour: rest / 3_600,
        minute: rest / 60 % 60,
        second: rest % 60,
        // 1970-01-01 was a Thursday.
        weekday: ((days + 3) % 7) as usize,
    }
}

/// The inverse of [`civil`]; `None` when a field is out of range. A leap second reads as the second
/// before it, which is what a POSIX clock shows.
fn from_civil(year: u64, month: u64, day: u64, hour: u64, minute: u64, second: u64) -> Option<Timestamp> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let month_len = match month {
        2 => 28 + u64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if day == 0 || day > month_len || hour > 23 || minute > 59 || second > 60 || year > 9_999 {
        return None;
    }
    if year < 1970 {
        return Some(Timestamp(0));
    }
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let era = shifted_year / 400;
    let year_of_era = shifted_year % 400;
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some(Timestamp::from_secs(days * SECS_PER_DAY + hour * 3_600 + minute * 60 + second.min(59)))
}

fn number(text: &str, len: usize) -> Option<u64> {
    (text.len() == len && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

fn month_number(name: &str) -> Option<u64> {
    MONTH_NAMES.iter().position(|m| *m == name).map(|i| i as u64 + 1)
}

fn time_of_day(text: &str) -> Option<(u64, u64, u64)> {
    let mut fields = text.split(':');
    let hour = number(fields.next()?, 2)?;
    let minute = number(fields.next()?, 2)?;
    let second = number(fields.next()?, 2)?;
    fields.next().is_none().then_some((hour, minute, second))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
fn parse_imf_fixdate(text: &str) -> Option<Timestamp> {
    let mut fields = text.split(' ');
    let day_name = fields.next()?.strip_suffix(',')?;
    let day = number(fields.next()?, 2)?;
    let month = month_number(fields.next()?)?;
    let year = number(fields.next()?, 4)?;
    let (hour, minute, second) = time_of_day(fields.next()?)?;
    let zone = fields.next()?;
    if !DAY_NAMES.contains(&day_name) || !matches!(zone, "GMT" | "UTC" | "+0000") || fields.next().is_some() {
        return None;
    }
    from_civil(year, month, day, hour, minute, second)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`. Two digits of a year mean 1970–2069, as POSIX reads them.
fn parse_rfc850(text: &str) -> Option<Timestamp> {
    let mut fields = text.split(' ');
    let day_name = fields.next()?.strip_suffix(',')?;
    let mut date = fields.next()?.split('-');
    let day = number(date.next()?, 2)?;
    let month = month_number(date.next()?)?;
    let short_year = number(date.next()?, 2)?;
    let (hour, minute, second) = time_of_day(fields.next()?)?;
    let zone = fields.next()?;
    if !DAY_NAMES_LONG.contains(&day_name)
        || zone != "GMT"
        || fields.next().is_some()
        || date.next().is_some()
    {
        return None;
    }
    let year = if short_year < 70 { 2000 + short_year } else { 1900 + short_year };
    from_civil(year, month, day, hour, minute, second)
}

/// `Sun Nov  6 08:49:37 1994`.
fn parse_asctime(text: &str) -> Option<Timestamp> {
    let mut fields = text.split(' ').filter(|f| !f.is_empty());
    let day_name = fields.next()?;
    let month = month_number(fields.next()?)?;
    let day_text = fields.next()?;
    let day = number(day_text, 1).or_else(|| number(day_text, 2))?;
    let (hour, minute, second) = time_of_day(fields.next()?)?;
    let year = number(fields.next()?, 4)?;
    if !DAY_NAMES.contains(&day_name) || fields.next().is_some() {
        return None;
    }
    from_civil(year, month, day, hour, minute, second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn behaviour_07_xml_dates_end_in_000z_and_header_dates_are_imf_fixdate() {
        let t = Timestamp::from_nanos(784_111_777_999_999_999);
        assert_eq!(t.iso8601(), "1994-11-06T08:49:37.000Z");
        assert_eq!(t.imf_fixdate(), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(Timestamp::from_secs(0).imf_fixdate(), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(Timestamp::from_secs(951_782_400).iso8601(), "2000-02-29T00:00:00.000Z");
        assert_eq!(Timestamp::from_secs(u64::MAX).iso8601(), "9999-12-31T23:59:59.000Z");
    }

    #[test]
    fn the_three_http_forms_name_the_same_instant() {
        // The example of RFC 9110 section 5.6.7.
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "  Sun, 06 Nov 1994 08:49:37 GMT ",
        ] {
            assert_eq!(Timestamp::parse_http(text), Some(Timestamp(784_111_777)), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "yesterday",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:49:37 PST",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT extra",
            "Sunday, 06-Nov-1994 08:49:37 GMT",
            "1994-11-06T08:49:37Z",
        ] {
            assert_eq!(Timestamp::parse_http(text), None, "{text}");
        }
        assert_eq!(Timestamp::parse_http("Mon, 06 Nov 1950 08:49:37 GMT"), Some(Timestamp(0)));
    }

    proptest! {
        #[test]
        fn header_dates_survive_a_round_trip(secs in 0..=TIMESTAMP_SECS_MAX) {
            let t = Timestamp::from_secs(secs);
            prop_assert_eq!(Timestamp::parse_http(&t.imf_fixdate()), Some(t));
        }

        #[test]
        fn hostile_dates_never_panic(text in ".{0,64}") {
            let _ = Timestamp::parse_http(&text);
        }
    }
}
