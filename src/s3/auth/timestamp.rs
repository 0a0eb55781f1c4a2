//! Request timestamps: ISO 8601 basic form (`20130524T000000Z`), the one SigV4 signs.
//!
//! The text and its value in seconds travel together, because the text is part of the string to sign
//! and the value decides about skew and expiry; keeping both makes it impossible to check one
//! instant and sign another.

use time::{Date, Month, OffsetDateTime};

use crate::s3::time::Timestamp;

const TEXT_LEN: usize = 16;

/// An instant at second precision, with its basic-form text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AmzDate {
    text: [u8; TEXT_LEN],
    unix: i64,
}

impl AmzDate {
    /// Reads exactly `YYYYMMDDTHHMMSSZ`; anything else, including dates that do not exist, is `None`.
    pub fn parse(text: &str) -> Option<Self> {
        let text: [u8; TEXT_LEN] = text.as_bytes().try_into().ok()?;
        if text[8] != b'T' || text[15] != b'Z' {
            return None;
        }
        let date = calendar_date(&text[..8])?;
        let clock = |at: usize| -> Option<u8> { digits(&text[at..at + 2])?.try_into().ok() };
        let instant = date.with_hms(clock(9)?, clock(11)?, clock(13)?).ok()?.assume_utc();
        Some(Self { text, unix: instant.unix_timestamp() })
    }

    /// The value of an HTTP `Date` header: IMF-fixdate and its obsolete forms, or the basic form.
    pub fn parse_http(text: &str) -> Option<Self> {
        if let Some(date) = Self::parse(text) {
            return Some(date);
        }
        Self::from_unix(Timestamp::parse_http(text)?.secs().try_into().ok()?)
    }

    /// `None` for instants outside the years 0 to 9999.
    pub fn from_unix(unix: i64) -> Option<Self> {
        let t = OffsetDateTime::from_unix_timestamp(unix).ok().filter(|t| t.year() >= 0)?;
        let (month, day) = (u8::from(t.month()), t.day());
        let text =
            format!("{:04}{month:02}{day:02}T{:02}{:02}{:02}Z", t.year(), t.hour(), t.minute(), t.second());
        Some(Self { text: text.into_bytes().try_into().ok()?, unix })
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text).expect("only ASCII digits, T and Z get here")
    }

    /// The `YYYYMMDD` that a credential scope must carry.
    pub fn date(&self) -> &str {
        &self.as_str()[..8]
    }

    /// Seconds since the Unix epoch.
    pub fn unix(&self) -> i64 {
        self.unix
    }
}

/// Whether `text` is a `YYYYMMDD` that exists.
pub fn is_date(text: &str) -> bool {
    calendar_date(text.as_bytes()).is_some()
}

/// `2013-05-24T00:00:00Z`, the form of times inside error documents.
pub fn iso8601(unix: i64) -> String {
    match AmzDate::from_unix(unix) {
        Some(date) => {
            let t = date.as_str();
            format!("{}-{}-{}T{}:{}:{}Z", &t[..4], &t[4..6], &t[6..8], &t[9..11], &t[11..13], &t[13..15])
        }
        None => unix.to_string(),
    }
}

fn calendar_date(text: &[u8]) -> Option<Date> {
    if text.len() != 8 {
        return None;
    }
    let year = digits(&text[..4])?;
    let month = Month::try_from(u8::try_from(digits(&text[4..6])?).ok()?).ok()?;
    Date::from_calendar_date(year.into(), month, digits(&text[6..])?.try_into().ok()?).ok()
}

/// At most four ASCII digits as a number.
fn digits(text: &[u8]) -> Option<u16> {
    text.iter().try_fold(0u16, |n, b| b.is_ascii_digit().then(|| n * 10 + u16::from(b - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_form_and_http_dates_name_the_same_instant() {
        let date = AmzDate::parse("20130524T000000Z").expect("the documented example");
        assert_eq!((date.unix(), date.date()), (1_369_353_600, "20130524"));
        assert_eq!(AmzDate::parse_http("Fri, 24 May 2013 00:00:00 GMT"), Some(date));
        assert_eq!(AmzDate::from_unix(1_369_353_600), Some(date));
        assert_eq!(iso8601(1_369_353_600), "2013-05-24T00:00:00Z");
    }

    #[test]
    fn what_is_not_a_date_is_refused() {
        for text in [
            "",
            "20130524T000000",
            "20130524 000000Z",
            "20131324T000000Z",
            "20130230T000000Z",
            "20130524T240000Z",
            "2013052+T000000Z",
            "２0130524T00000Z",
            "20130524T000000ZZ",
        ] {
            assert_eq!(AmzDate::parse(text), None, "{text}");
        }
        assert!(is_date("20240229") && !is_date("20230229") && !is_date("2013-5-4"));
        assert_eq!(AmzDate::from_unix(i64::MAX), None);
    }
}
