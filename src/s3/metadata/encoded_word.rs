//! RFC 2047 encoded words, the way S3 carries text beyond ASCII in `x-amz-meta-*` headers.
//!
//! Only UTF-8, US-ASCII and ISO-8859-1 words are decoded; anything else, and any word that is not
//! well-formed, stays as it was written. Encoding is used only when a value needs it.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The longest payload of one encoded word, in bytes before Base64: RFC 2047 limits a word to 75
/// characters, of which `=?UTF-8?B?` and `?=` take 12.
const WORD_LEN_MAX: usize = 45;

/// Encodes `text` for a header: as it is when printable ASCII, else as Base64 words of UTF-8.
pub(super) fn encode(text: &str) -> Cow<'_, str> {
    let printable = text.bytes().all(|b| matches!(b, b' '..=b'~'));
    // Blanks at the ends would be trimmed in transit, and a literal `=?` would be decoded when read.
    if printable && text.trim() == text && !text.contains("=?") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() * 2 + 16);
    let mut rest = text;
    while !rest.is_empty() {
        let cut = rest.floor_char_boundary(WORD_LEN_MAX);
        let (word, tail) = rest.split_at(cut);
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str("=?UTF-8?B?");
        STANDARD.encode_string(word, &mut out);
        out.push_str("?=");
        rest = tail;
    }
    Cow::Owned(out)
}

/// Decodes every encoded word in `text`. Blanks between two adjacent words belong to the encoding.
pub(super) fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains("=?") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut after_word = false;
    while let Some(start) = rest.find("=?") {
        let (literal, candidate) = rest.split_at(start);
        let between_words = after_word && literal.bytes().all(|b| b == b' ' || b == b'\t');
        match decode_word(candidate) {
            Some((word, len)) => {
                if !between_words {
                    out.push_str(literal);
                }
                out.push_str(&word);
                rest = &candidate[len..];
                after_word = true;
            }
            None => {
                out.push_str(literal);
                out.push_str("=?");
                rest = &candidate[2..];
                after_word = false;
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Decodes the word at the start of `text` (which begins with `=?`); its text and its length in bytes.
fn decode_word(text: &str) -> Option<(String, usize)> {
    let (charset, rest) = text.get(2..)?.split_once('?')?;
    let (encoding, rest) = rest.split_once('?')?;
    let (payload, _) = rest.split_once("?=")?;
    let len = 2 + charset.len() + 1 + encoding.len() + 1 + payload.len() + 2;
    let bytes = match encoding {
        "B" | "b" => STANDARD.decode(payload).ok()?,
        "Q" | "q" => decode_q(payload)?,
        _ => return None,
    };
    // RFC 2231 lets a language follow the character set.
    let charset = charset.split('*').next()?;
    let word = if charset.eq_ignore_ascii_case("utf-8") || charset.eq_ignore_ascii_case("us-ascii") {
        String::from_utf8(bytes).ok()?
    } else if charset.eq_ignore_ascii_case("iso-8859-1") {
        bytes.into_iter().map(char::from).collect()
    } else {
        return None;
    };
    Some((word, len))
}

/// The Q encoding: `_` is a space, `=XX` a byte.
fn decode_q(payload: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(payload.len());
    let mut bytes = payload.bytes();
    let digit = |b: Option<u8>| Some(char::from(b?).to_digit(16)? as u8);
    while let Some(b) = bytes.next() {
        match b {
            b'_' => out.push(b' '),
            b'=' => out.push(digit(bytes.next())? << 4 | digit(bytes.next())?),
            b'!'..=b'~' if b != b'?' => out.push(b),
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_of_both_encodings_are_decoded() {
        assert_eq!(decode("=?UTF-8?Q?caf=C3=A9_cr=C3=A8me?="), "café crème");
        assert_eq!(decode("=?utf-8?B?Y2Fmw6k=?="), "café");
        assert_eq!(decode("=?ISO-8859-1?Q?a?= =?ISO-8859-1?Q?=E9?= b"), "aé b");
        assert_eq!(decode("x =?UTF-8*fr?Q?=C3=A9?= y"), "x é y");
    }

    #[test]
    fn what_is_no_word_stays() {
        for text in
            ["a =? b", "=?UTF-8?B?***?=", "=?KOI8-R?Q?a?=", "=?UTF-8?Q?=zz?=", "=?UTF-8?B?/w==?=", "=?="]
        {
            assert_eq!(decode(text), text);
        }
    }

    #[test]
    fn printable_ascii_is_not_encoded() {
        assert_eq!(encode("plain, old=text?"), "plain, old=text?");
        assert_eq!(encode("é"), "=?UTF-8?B?w6k=?=");
        assert!(encode(&"é".repeat(100)).split(' ').all(|word| word.len() <= 75));
    }

    proptest! {
        #[test]
        fn every_text_survives_a_header(text in "\\PC{0,120}|[\\x00-\\x7f]{0,40}|[=?UTF8BQ-]{0,30}") {
            let encoded = encode(&text);
            prop_assert!(encoded.bytes().all(|b| matches!(b, b' '..=b'~')));
            prop_assert_eq!(decode(&encoded), text.as_str());
        }

        #[test]
        fn hostile_words_never_panic(text in "(=\\?)?(UTF-8|x)?[?BQ=_a-f0-9]{0,60}(\\?=)?|.{0,60}") {
            let _ = decode(&text);
        }
    }
}
