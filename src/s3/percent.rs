//! Percent-encoding: decoding what arrives, exactly once, and encoding what a listing shows.
//!
//! Decoding is strict, because a lenient decoder maps two spellings to one key: a `%` that is not
//! followed by two hex digits, or bytes that are not UTF-8, make the URI unreadable. The two
//! encodings differ: in a path `+` is a plus sign, in a query string it is a space.

use std::borrow::Cow;

use super::error::{ErrorCode, Result, S3Error};

/// Decodes a path (`+` is itself). Errors: `InvalidURI`.
pub fn decode_path(raw: &str) -> Result<Cow<'_, str>> {
    decode(raw, false)
}

/// Decodes a name or value of a query string (`+` is a space). Errors: `InvalidURI`.
pub fn decode_query(raw: &str) -> Result<Cow<'_, str>> {
    decode(raw, true)
}

fn decode(raw: &str, plus_is_space: bool) -> Result<Cow<'_, str>> {
    if !raw.bytes().any(|b| b == b'%' || (plus_is_space && b == b'+')) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let high = bytes.next().and_then(hex_digit).ok_or_else(|| invalid(raw))?;
                let low = bytes.next().and_then(hex_digit).ok_or_else(|| invalid(raw))?;
                out.push(high << 4 | low);
            }
            b'+' if plus_is_space => out.push(b' '),
            _ => out.push(b),
        }
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|_| invalid(raw))
}

fn hex_digit(b: u8) -> Option<u8> {
    char::from(b).to_digit(16).map(|d| d as u8)
}

fn invalid(raw: &str) -> S3Error {
    S3Error::new(ErrorCode::InvalidURI).with("URI", raw)
}

/// Appends `text` as a listing with `encoding-type=url` shows it: letters, digits and `-_.*/` stay,
/// a space becomes `+`, every other byte of the UTF-8 form becomes `%XX`.
pub fn push_list_encoded(out: &mut String, text: &str) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    // Runs that stay as they are, all of them ASCII, are copied whole.
    let mut copied = 0;
    for (index, b) in text.bytes().enumerate() {
        if LIST_UNRESERVED[usize::from(b)] {
            continue;
        }
        // Between two bytes of one character there is nothing to copy, and no boundary to cut at.
        if copied < index {
            out.push_str(&text[copied..index]);
        }
        copied = index + 1;
        if b == b' ' {
            out.push('+');
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(b >> 4)]));
            out.push(char::from(DIGITS[usize::from(b & 15)]));
        }
    }
    out.push_str(&text[copied..]);
}

/// The bytes that `encoding-type=url` leaves alone.
pub(super) const LIST_UNRESERVED: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0;
    while b < 128 {
        let c = b as u8;
        table[b] = c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b'*' | b'/');
        b += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decoding_happens_exactly_once() {
        assert_eq!(decode_path("a%2520b").expect("valid"), "a%20b");
        assert_eq!(decode_path("a+b%2Bc%20d").expect("valid"), "a+b+c d");
        assert_eq!(decode_query("a+b%2Bc%20d").expect("valid"), "a b+c d");
        assert_eq!(decode_path("%F0%9F%A6%80%0a").expect("valid"), "🦀\n");
    }

    #[test]
    fn unreadable_escapes_are_invalid_uri() {
        for raw in ["%", "%2", "%zz", "a%2", "%ff", "%c3", "%+1", "%ed%a0%80"] {
            let error = decode_path(raw).expect_err(raw);
            assert_eq!(error.code(), ErrorCode::InvalidURI, "{raw}");
        }
    }

    #[test]
    fn behaviour_03_space_becomes_plus_and_plus_becomes_2b() {
        let mut out = String::new();
        push_list_encoded(&mut out, "a b+c/d~é\n*");
        assert_eq!(out, "a+b%2Bc/d%7E%C3%A9%0A*");
    }

    proptest! {
        #[test]
        fn listed_keys_decode_to_themselves(key in "\\PC{0,64}|[\\x00-\\x20+%/~]{0,64}") {
            let mut out = String::new();
            push_list_encoded(&mut out, &key);
            prop_assert_eq!(decode_query(&out).expect("our own encoding"), key);
        }

        #[test]
        fn hostile_escapes_never_panic(raw in "[%0-9a-fg+\\x00-\\x7f]{0,64}|.{0,64}") {
            let _ = decode_path(&raw);
            let _ = decode_query(&raw);
        }
    }
}
