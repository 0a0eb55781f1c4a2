//! Reading request XML: a pull parser that refuses everything S3 bodies never need.
//!
//! No document type, so no entities and nothing to expand; a bounded depth; names compared without
//! their prefix, because clients write the namespace, another prefix, or nothing. Text between
//! elements must be white space. Every violation is `MalformedXML`.

use quick_xml::Reader;
use quick_xml::events::Event;

use crate::s3::error::{ErrorCode, Result, S3Error};

/// The deepest nesting of any S3 request body, with room to spare.
pub const DEPTH_MAX: usize = 16;

/// A request body being read. The walk is: [`Document::root`], then [`Document::child`] until `None`
/// at every level, and [`Document::text`] for elements that hold a value.
pub struct Document<'b> {
    reader: Reader<&'b [u8]>,
    depth: usize,
}

impl<'b> Document<'b> {
    /// Starts reading `body`. Errors: `MalformedXML` when it is longer than `len_max` bytes or no UTF-8.
    pub fn new(body: &'b [u8], len_max: usize) -> Result<Self> {
        if body.len() > len_max {
            return Err(malformed());
        }
        let text = std::str::from_utf8(body).map_err(|_| malformed())?;
        let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
        let config = reader.config_mut();
        config.expand_empty_elements = true;
        config.check_end_names = true;
        config.check_comments = true;
        Ok(Self { reader, depth: 0 })
    }

    /// Enters the root element, which must be `name`.
    pub fn root(&mut self, name: &str) -> Result<()> {
        match self.child()? {
            Some(found) if found == name => Ok(()),
            _ => Err(malformed()),
        }
    }

    /// Enters the next child of the current element and returns its local name; `None` leaves the
    /// current element because it has no more children.
    pub fn child(&mut self) -> Result<Option<String>> {
        loop {
            match self.next()? {
                Event::Start(start) => {
                    self.depth += 1;
                    if self.depth > DEPTH_MAX {
                        return Err(malformed());
                    }
                    return Ok(Some(start.local_name().as_ref().to_owned()));
                }
                Event::End(_) => {
                    self.depth = self.depth.checked_sub(1).ok_or_else(malformed)?;
                    return Ok(None);
                }
                Event::Text(text) if is_blank(&text.xml10_content()) => {}
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
                _ => return Err(malformed()),
            }
        }
    }

    /// The text of the current element, which must have no children, and leaves it.
    pub fn text(&mut self) -> Result<String> {
        let mut out = String::new();
        loop {
            match self.next()? {
                Event::Text(text) => out.push_str(&text.xml10_content()),
                Event::CData(data) => out.push_str(&data.xml10_content()),
                Event::GeneralRef(reference) => out.push(resolve(&reference)?),
                Event::Comment(_) | Event::PI(_) => {}
                Event::End(_) => {
                    self.depth = self.depth.checked_sub(1).ok_or_else(malformed)?;
                    return Ok(out);
                }
                _ => return Err(malformed()),
            }
        }
    }

    /// Demands that nothing but white space and comments follows the root.
    pub fn finish(&mut self) -> Result<()> {
        if self.depth != 0 {
            return Err(malformed());
        }
        loop {
            match self.reader.read_event().map_err(|_| malformed())? {
                Event::Eof => return Ok(()),
                Event::Text(text) if is_blank(&text.xml10_content()) => {}
                Event::Comment(_) | Event::PI(_) => {}
                _ => return Err(malformed()),
            }
        }
    }

    fn next(&mut self) -> Result<Event<'b>> {
        match self.reader.read_event().map_err(|_| malformed())? {
            Event::Eof | Event::DocType(_) => Err(malformed()),
            event => Ok(event),
        }
    }
}

/// The refusal of a body.
pub fn malformed() -> S3Error {
    S3Error::new(ErrorCode::MalformedXML)
}

fn is_blank(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n'))
}

/// The five predefined entities and numeric references; there are no others without a document type.
/// Control characters are let through, because that is how S3 itself shows such keys; NUL is not, since no version of
/// XML has a way to write it.
fn resolve(reference: &str) -> Result<char> {
    let number = match reference {
        "amp" => return Ok('&'),
        "lt" => return Ok('<'),
        "gt" => return Ok('>'),
        "quot" => return Ok('"'),
        "apos" => return Ok('\''),
        _ => reference.strip_prefix('#').ok_or_else(malformed)?,
    };
    let (digits, radix) = match number.strip_prefix('x') {
        Some(hex) => (hex, 16),
        None => (number, 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(malformed());
    }
    let character = u32::from_str_radix(digits, radix).ok().and_then(char::from_u32);
    character.filter(|c| *c != '\0').ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::s3::xml::writer::push_escaped;

    /// Reads `<A><B>text</B>…</A>`.
    fn values(body: &[u8]) -> Result<Vec<String>> {
        let mut document = Document::new(body, 10_000)?;
        document.root("A")?;
        let mut out = Vec::new();
        while let Some(name) = document.child()? {
            if name != "B" {
                return Err(malformed());
            }
            out.push(document.text()?);
        }
        document.finish()?;
        Ok(out)
    }

    #[test]
    fn behaviour_06_request_xml_is_read_with_or_without_the_namespace() {
        for body in [
            "<A><B>x</B><B/></A>",
            "\u{feff}<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<A xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             \n <B>x</B>\r\n <B></B> </A>\n",
            "<s3:A xmlns:s3=\"urn:x\"><s3:B>x</s3:B><!-- c --><s3:B/></s3:A><!-- end -->",
        ] {
            assert_eq!(values(body.as_bytes()), Ok(vec!["x".to_owned(), String::new()]), "{body}");
        }
    }

    #[test]
    fn text_may_hold_references_and_cdata() {
        let body = b"<A><B> a&amp;b&#13;&#x1F980;<![CDATA[<&>]]>&#1; </B></A>";
        assert_eq!(values(body), Ok(vec![" a&b\r🦀<&>\u{1} ".to_owned()]));
    }

    #[test]
    fn everything_else_is_malformed() {
        let deep = format!("{}{}", "<A>".repeat(40), "</A>".repeat(40));
        for body in [
            "",
            "<",
            "<A>",
            "<A><B>",
            "<A></B>",
            "<A>x</A>",
            "<A><B>x<C/></B></A>",
            "<C/>",
            "<A/><A/>",
            "<A/>x",
            "<!DOCTYPE A [<!ENTITY e \"x\">]><A><B>&e;</B></A>",
            "<A><B>&e;</B></A>",
            "<A><B>&#xd800;</B></A>",
            "<A><B>&#;</B></A>",
            "<A><B>&#+65;</B></A>",
            "<A><B>&</B></A>",
            "</A>",
            "{}",
            &deep,
        ] {
            assert_eq!(values(body.as_bytes()), Err(malformed()), "{body}");
        }
        assert_eq!(values(b"<A><B>\xff</B></A>"), Err(malformed()));
        assert!(Document::new(b"12345", 4).is_err());
    }

    proptest! {
        #[test]
        fn every_text_survives_a_document(text in "\\PC{0,80}|[\\x01-\\x7f]{0,80}|[\u{fff0}-\u{ffff}]{0,20}") {
            let mut body = String::from("<A><B>");
            push_escaped(&mut body, &text);
            body.push_str("</B></A>");
            prop_assert_eq!(values(body.as_bytes()), Ok(vec![text]));
        }

        #[test]
        fn hostile_xml_never_panics(body in "[<>/AB&;#x! \\[\\]CDT?-]{0,80}|.{0,80}") {
            let _ = values(body.as_bytes());
        }
    }
}
