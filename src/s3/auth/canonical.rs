//! The canonical request: the one byte string that client and server both derive from a request.
//!
//! Every component is either validated or percent-encoded before it is written, so no component can
//! contain a newline and two different requests cannot share a canonical form. S3 differs from the
//! other services: the path is encoded once and never normalized. Source: Amazon S3 API Reference,
//! "Signature Calculations for the Authorization Header: Transferring Payload in a Single Chunk".

use http::HeaderMap;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::RequestHead;
use crate::s3::error::Result;
use crate::s3::percent::decode_path;
use crate::s3::query::Query;

/// Everything but RFC 3986's unreserved characters.
const QUERY_ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// As in a query, but the slash separates.
const PATH_ENCODED: &AsciiSet = &QUERY_ENCODED.remove(b'/');

/// How the path stands in a canonical request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PathForm {
    /// Decoded and encoded again, as S3 documents.
    Encoded,
    /// As on the request line: what clients sign that escape more or less than the documentation says.
    AsSent,
}

/// Builds the canonical request. `signed_headers` are sorted, lower-case header names without
/// duplicates; a name that the request does not carry counts as an empty value.
///
/// # Errors
/// `InvalidURI` for a path whose escapes cannot be decoded.
pub fn canonical_request(
    head: &RequestHead<'_>,
    signed_headers: &[&str],
    payload_hash: &str,
    path_form: PathForm,
) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b'\n');
    match path_form {
        PathForm::Encoded => push_path(&mut out, head.path)?,
        PathForm::AsSent => out.extend_from_slice(head.path.as_bytes()),
    }
    out.push(b'\n');
    push_query(&mut out, head.query);
    out.push(b'\n');
    for name in signed_headers {
        push_header(&mut out, head.headers, name);
    }
    out.push(b'\n');
    for (i, name) in signed_headers.iter().enumerate() {
        if i > 0 {
            out.push(b';');
        }
        out.extend_from_slice(name.as_bytes());
    }
    out.push(b'\n');
    out.extend_from_slice(payload_hash.as_bytes());
    Ok(out)
}

fn push_path(out: &mut Vec<u8>, raw: &str) -> Result<()> {
    let decoded = decode_path(raw)?;
    if decoded.is_empty() {
        out.push(b'/');
    }
    for piece in utf8_percent_encode(&decoded, PATH_ENCODED) {
        out.extend_from_slice(piece.as_bytes());
    }
    Ok(())
}

/// Appends the sorted, encoded query without the signature itself.
fn push_query(out: &mut Vec<u8>, query: &Query<'_>) {
    let encode = |text| -> String { utf8_percent_encode(text, QUERY_ENCODED).collect() };
    let mut encoded: Vec<(String, String)> = query
        .iter()
        .filter(|(name, _)| *name != "X-Amz-Signature")
        .map(|(name, value)| (encode(name), encode(value)))
        .collect();
    encoded.sort_unstable();
    for (i, (name, value)) in encoded.iter().enumerate() {
        if i > 0 {
            out.push(b'&');
        }
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        out.extend_from_slice(value.as_bytes());
    }
}

fn push_header(out: &mut Vec<u8>, headers: &HeaderMap, name: &str) {
    out.extend_from_slice(name.as_bytes());
    out.push(b':');
    for (i, value) in headers.get_all(name).iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        push_folded(out, value.as_bytes());
    }
    out.push(b'\n');
}

/// Appends a header value without outer whitespace and with each inner run of it as one space.
pub(super) fn push_folded(out: &mut Vec<u8>, value: &[u8]) {
    let words = value.split(|b| matches!(b, b' ' | b'\t')).filter(|word| !word.is_empty());
    for (i, word) in words.enumerate() {
        if i > 0 {
            out.push(b' ');
        }
        out.extend_from_slice(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(raw: &str) -> String {
        let mut out = Vec::new();
        push_path(&mut out, raw).expect("valid escapes");
        String::from_utf8(out).expect("ASCII")
    }

    fn query(raw: &str) -> String {
        let mut out = Vec::new();
        push_query(&mut out, &Query::parse(raw).expect("valid escapes"));
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn path_is_decoded_once_encoded_once_and_not_normalized() {
        assert_eq!(path("/b//a/../x/./"), "/b//a/../x/./");
        assert_eq!(path("/b/test%24file.text"), "/b/test%24file.text");
        assert_eq!(path("/b/test$file+1 ~é"), "/b/test%24file%2B1%20~%C3%A9");
        assert_eq!(path("/b/%2541%2f%0a"), "/b/%2541/%0A");
        assert_eq!(path(""), "/");
        assert!(push_path(&mut Vec::new(), "/b/%4").is_err());
        assert!(push_path(&mut Vec::new(), "/b/%zz").is_err());
    }

    #[test]
    fn query_is_sorted_by_encoded_name_then_value() {
        assert_eq!(query("prefix=somePrefix&marker=someMarker&max-keys=20"), {
            "marker=someMarker&max-keys=20&prefix=somePrefix"
        });
        assert_eq!(query("acl"), "acl=");
        assert_eq!(query("a=2&a=1&a-=0&&A=x=y"), "A=x%3Dy&a=1&a=2&a-=0");
        assert_eq!(query("b=a+c%2Bd&%61=%2F"), "a=%2F&b=a%20c%2Bd");
        // `%7E` is unreserved and must come out decoded; a name that sorts differently once encoded.
        assert_eq!(query("%7E=1&%C3%A9=2&Z=3"), "%C3%A9=2&Z=3&~=1");
    }

    #[test]
    fn header_values_are_trimmed_folded_and_joined() {
        let mut headers = HeaderMap::new();
        for value in ["  a   b\t c ", "d", ""] {
            headers.append("x-amz-meta-n", value.parse().expect("a header value"));
        }
        let mut out = Vec::new();
        push_header(&mut out, &headers, "x-amz-meta-n");
        push_header(&mut out, &headers, "x-amz-absent");
        assert_eq!(out, b"x-amz-meta-n:a b c,d,\nx-amz-absent:\n");
    }
}
