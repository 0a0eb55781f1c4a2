//! S3 errors: what a refused request answers.
//!
//! Protocol code returns [`S3Error`] and nothing else, so that code, status, XML and extra headers of
//! a refusal are decided where the reason is known, and the HTTP layer only prints them. Evidence
//! (the canonical request, the server's time, the offending argument) travels as extra elements,
//! because that is how AWS lets a client author find the mistake without reading server logs.

mod code;

pub use code::ErrorCode;

use std::borrow::Cow;
use std::fmt;

use http::{HeaderName, HeaderValue, StatusCode};

/// The longest value of an extra element, in bytes. Much of it is an echo of the request, some several times over, and a refusal
/// is the one answer that anybody can ask for: it must not take more memory than the request did.
const FIELD_LEN_MAX: usize = 4 << 10;

/// A refusal with everything its answer shows. Built as
/// `S3Error::new(ErrorCode::NoSuchKey).with("Key", key)`.
#[derive(Clone, Debug, PartialEq)]
pub struct S3Error {
    code: ErrorCode,
    message: Cow<'static, str>,
    /// Extra XML elements in the order they were added.
    fields: Vec<(&'static str, String)>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

pub type Result<T> = std::result::Result<T, S3Error>;

impl S3Error {
    /// An error with the code's documented message.
    pub fn new(code: ErrorCode) -> Self {
        Self { code, message: Cow::Borrowed(code.message()), fields: Vec::new(), headers: Vec::new() }
    }

    /// `InvalidArgument` in the shape AWS gives it: what was wrong, and the argument that carried it.
    pub fn invalid_argument(
        message: impl Into<Cow<'static, str>>,
        argument_name: impl Into<String>,
        argument_value: impl Into<String>,
    ) -> Self {
        Self::new(ErrorCode::InvalidArgument)
            .message(message)
            .with("ArgumentName", argument_name)
            .with("ArgumentValue", argument_value)
    }

    /// `InvalidRequest` with the sentence that says why.
    pub fn invalid_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::InvalidRequest).message(message)
    }

    /// Replaces the documented message.
    #[must_use]
    pub fn message(mut self, message: impl Into<Cow<'static, str>>) -> Self {
        self.message = message.into();
        self
    }

    /// Adds an XML element beside `Code` and `Message`. `name` must be a valid XML name; of a long value only the beginning is
    /// shown.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        debug_assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
        let mut value = value.into();
        value.truncate(value.floor_char_boundary(FIELD_LEN_MAX));
        self.fields.push((name, value));
        self
    }

    /// Adds a response header, for example `Allow` or `Content-Range`.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub fn code(&self) -> ErrorCode {
        self.code
    }

    pub fn status(&self) -> StatusCode {
        self.code.status()
    }

    pub fn text(&self) -> &str {
        &self.message
    }

    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// The value of an extra element, if the error carries it.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str())
    }

    /// The `<Error>` document: declaration, no namespace, `Code`, `Message`, the extra elements,
    /// `Resource`, `RequestId`, `HostId`. Whatever the values hold, the document is well-formed.
    pub fn to_xml(&self, resource: &str, request_id: &str, host_id: &str) -> String {
        let mut xml = String::with_capacity(256 + self.message.len());
        xml.push_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>");
        push_element(&mut xml, "Code", self.code.name());
        push_element(&mut xml, "Message", &self.message);
        for (name, value) in &self.fields {
            push_element(&mut xml, name, value);
        }
        push_element(&mut xml, "Resource", resource);
        push_element(&mut xml, "RequestId", request_id);
        push_element(&mut xml, "HostId", host_id);
        xml.push_str("</Error>");
        xml
    }
}

impl fmt::Display for S3Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}

impl std::error::Error for S3Error {}

impl From<ErrorCode> for S3Error {
    fn from(code: ErrorCode) -> Self {
        Self::new(code)
    }
}

fn push_element(xml: &mut String, name: &str, text: &str) {
    xml.push('<');
    xml.push_str(name);
    xml.push('>');
    push_escaped(xml, text);
    xml.push_str("</");
    xml.push_str(name);
    xml.push('>');
}

/// Escapes markup, keeps CR as a reference (parsers would fold it), and puts U+FFFD where XML 1.0 has
/// no way to write the character at all.
fn push_escaped(xml: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => xml.push_str("&amp;"),
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            '"' => xml.push_str("&quot;"),
            '\r' => xml.push_str("&#13;"),
            '\t' | '\n' => xml.push(c),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => xml.push('\u{fffd}'),
            _ => xml.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_has_the_documented_order_and_no_namespace() {
        let error = S3Error::new(ErrorCode::NoSuchKey).with("Key", "a<b>&\"c");
        assert_eq!(
            error.to_xml("/bucket/a<b>", "R1", "H1"),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>NoSuchKey</Code>\
             <Message>The specified key does not exist.</Message><Key>a&lt;b&gt;&amp;&quot;c</Key>\
             <Resource>/bucket/a&lt;b&gt;</Resource><RequestId>R1</RequestId><HostId>H1</HostId></Error>"
        );
    }

    #[test]
    fn characters_that_xml_cannot_hold_do_not_break_the_document() {
        let hostile: String = (0..0x20u8).map(char::from).chain(['\u{fffe}', '\u{ffff}', 'é']).collect();
        let xml = S3Error::new(ErrorCode::InvalidArgument).with("ArgumentValue", hostile).to_xml("/", "", "");
        assert!(xml.chars().all(|c| matches!(c, '\t' | '\n' | ' '..='\u{fffd}')));
        assert!(xml.contains("&#13;") && xml.contains('é'));
        let mut reader = quick_xml::Reader::from_str(&xml);
        loop {
            match reader.read_event().expect("the document is well-formed") {
                quick_xml::events::Event::Eof => break,
                _ => continue,
            }
        }
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let error = S3Error::new(ErrorCode::InvalidArgument).with("ArgumentValue", "é".repeat(100_000));
        let shown = error.field("ArgumentValue").expect("it was added");
        assert!(shown.len() <= FIELD_LEN_MAX && shown.chars().all(|c| c == 'é'));
        assert!(error.to_xml("/", "", "").len() < 2 * FIELD_LEN_MAX);
    }

    #[test]
    fn status_and_names_follow_the_table() {
        assert_eq!(ErrorCode::KmsNotFoundException.name(), "KMS.NotFoundException");
        assert_eq!(S3Error::new(ErrorCode::SlowDown).status(), 503);
        assert_eq!(S3Error::new(ErrorCode::NotModified).status(), 304);
        let error = S3Error::invalid_argument("bad", "max-keys", "x");
        assert_eq!(error.field("ArgumentName"), Some("max-keys"));
        assert_eq!(error.to_string(), "InvalidArgument: bad");
    }
}
