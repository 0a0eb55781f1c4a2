//! Appending XML: elements, escaped text, and the few value types that S3 prints.
//!
//! Escaping keeps every character: what XML 1.0 cannot hold (most control characters) is written as a
//! numeric reference, as AWS does, so that a key is never shown as another key. Strict parsers refuse
//! such a document; `encoding-type=url` exists for that.

use super::NAMESPACE;
use crate::s3::etag::ETag;
use crate::s3::percent::{LIST_UNRESERVED, push_list_encoded};
use crate::s3::time::Timestamp;

pub const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

/// Appends XML to a string. Elements are closed by the caller, in order.
#[derive(Debug)]
pub struct Writer<'o> {
    out: &'o mut String,
}

impl<'o> Writer<'o> {
    /// Continues a document whose declaration was already written or sent.
    pub fn continuing(out: &'o mut String) -> Self {
        Self { out }
    }

    /// Starts a document: declaration and the root element with the S3 namespace.
    pub fn document(out: &'o mut String, root: &str) -> Self {
        out.push_str(DECLARATION);
        let mut writer = Self { out };
        writer.open_root(root);
        writer
    }

    /// Opens a root element, with the S3 namespace.
    pub fn open_root(&mut self, root: &str) {
        self.out.push('<');
        self.out.push_str(root);
        self.out.push_str(" xmlns=\"");
        self.out.push_str(NAMESPACE);
        self.out.push_str("\">");
    }

    pub fn open(&mut self, name: &str) {
        self.out.push('<');
        self.out.push_str(name);
        self.out.push('>');
    }

    pub fn close(&mut self, name: &str) {
        self.out.push_str("</");
        self.out.push_str(name);
        self.out.push('>');
    }

    /// `<name>text</name>` with the text escaped.
    pub fn text(&mut self, name: &str, text: &str) {
        self.open(name);
        push_escaped(self.out, text);
        self.close(name);
    }

    pub fn text_if(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(name, text);
        }
    }

    /// Text that a listing encodes when it was asked to.
    pub fn listed(&mut self, name: &str, text: &str, url_encoded: bool) {
        self.open(name);
        if url_encoded {
            // The encoding leaves nothing that XML would have to escape.
            push_list_encoded(self.out, text);
        } else {
            push_escaped(self.out, text);
        }
        self.close(name);
    }

    pub fn number(&mut self, name: &str, value: u64) {
        self.open(name);
        push_number(self.out, value);
        self.close(name);
    }

    pub fn boolean(&mut self, name: &str, value: bool) {
        self.open(name);
        self.out.push_str(if value { "true" } else { "false" });
        self.close(name);
    }

    pub fn date(&mut self, name: &str, value: Timestamp) {
        self.open(name);
        value.push_iso8601(self.out);
        self.close(name);
    }

    /// The tag in (escaped) quotes.
    pub fn etag(&mut self, name: &str, value: ETag) {
        self.open(name);
        self.out.push_str("&quot;");
        value.push_bare(self.out);
        self.out.push_str("&quot;");
        self.close(name);
    }

    /// Escaped text inside the open element.
    pub fn characters(&mut self, text: &str) {
        push_escaped(self.out, text);
    }

    /// Markup that is known to be well-formed.
    pub fn raw(&mut self, markup: &'static str) {
        self.out.push_str(markup);
    }
}

fn push_number(out: &mut String, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.push_str(std::str::from_utf8(&digits[start..]).expect("digits are ASCII"));
}

/// Appends `text` as character data. Runs that need no escaping are copied whole.
pub fn push_escaped(out: &mut String, text: &str) {
    let mut copied = 0;
    for (index, b) in text.bytes().enumerate() {
        if !MAY_NEED_ESCAPING[usize::from(b)] {
            continue;
        }
        let width = match b {
            // U+FFFE and U+FFFF are EF BF BE and EF BF BF.
            0xef if matches!(text.as_bytes().get(index + 1..index + 3), Some([0xbf, 0xbe | 0xbf])) => 3,
            0xef => continue,
            _ => 1,
        };
        out.push_str(&text[copied..index]);
        copied = index + width;
        match b {
            b'&' => out.push_str("&amp;"),
            b'<' => out.push_str("&lt;"),
            b'>' => out.push_str("&gt;"),
            b'"' => out.push_str("&quot;"),
            0xef if text.as_bytes()[index + 2] == 0xbe => out.push_str("&#xfffe;"),
            0xef => out.push_str("&#xffff;"),
            _ => {
                out.push_str("&#");
                push_number(out, u64::from(b));
                out.push(';');
            }
        }
    }
    out.push_str(&text[copied..]);
}

/// The most bytes that a listing shows for one byte of a name.
pub const SHOWN_PER_BYTE_MAX: usize = "&quot;".len();

/// How long a name is at most where a listing shows it, in bytes.
pub fn shown_len_max(name: &[u8], url_encoded: bool) -> usize {
    let (table, stays, longest) = if url_encoded {
        (&LIST_UNRESERVED, true, "%XX".len())
    } else {
        (&MAY_NEED_ESCAPING, false, SHOWN_PER_BYTE_MAX)
    };
    let longer = name.iter().filter(|b| table[usize::from(**b)] != stays).count();
    name.len() + longer * (longest - 1)
}

/// Markup, control characters, and the first byte of the two characters that XML excludes.
const MAY_NEED_ESCAPING: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0;
    while b < 256 {
        table[b] = matches!(b as u8, b'&' | b'<' | b'>' | b'"' | 0..=0x1f | 0x7f | 0xef);
        b += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(text: &str) -> String {
        let mut out = String::new();
        push_escaped(&mut out, text);
        out
    }

    #[test]
    fn text_is_escaped_and_no_character_is_lost() {
        assert_eq!(escaped("plain é 🦀"), "plain é 🦀");
        assert_eq!(escaped("a<b>&\"c'"), "a&lt;b&gt;&amp;&quot;c'");
        assert_eq!(escaped("\r\n\t\u{1}\0\u{7f}"), "&#13;&#10;&#9;&#1;&#0;&#127;");
        assert_eq!(escaped("a\u{fffe}b\u{ffff}\u{fffd}"), "a&#xfffe;b&#xffff;\u{fffd}");
    }

    #[test]
    fn no_name_is_shown_longer_than_foretold() {
        let all: String = (0..=0x7fu8).map(char::from).chain("é🦀\u{fffd}\u{fffe}\u{ffff}".chars()).collect();
        for name in [all.as_str(), "plain/name-1.txt", "\"\"\"", "\u{fffe}\u{ffff}", ""] {
            for encoded in [false, true] {
                let mut out = String::new();
                Writer::continuing(&mut out).listed("K", name, encoded);
                let shown = out.len() - "<K></K>".len();
                let foretold = shown_len_max(name.as_bytes(), encoded);
                assert!(shown <= foretold, "{name:?} {encoded}");
                assert!(foretold <= name.len() * SHOWN_PER_BYTE_MAX);
            }
        }
        assert_eq!(shown_len_max(b"plain/name-1.txt", false), 16);
        assert_eq!(shown_len_max(b"a\"b", true), 5);
    }

    #[test]
    fn values_print_as_s3_prints_them() {
        let mut out = String::new();
        let mut w = Writer::document(&mut out, "R");
        w.number("N", 0);
        w.number("N", u64::MAX);
        w.boolean("B", true);
        w.date("D", Timestamp::from_secs(0));
        w.etag("ETag", ETag::of_md5([0; 16]));
        w.listed("K", "a b", true);
        w.listed("K", "a b", false);
        w.text_if("X", None);
        w.close("R");
        assert_eq!(
            out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <R xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><N>0</N><N>18446744073709551615</N>\
             <B>true</B><D>1970-01-01T00:00:00.000Z</D>\
             <ETag>&quot;00000000000000000000000000000000&quot;</ETag><K>a+b</K><K>a b</K></R>"
        );
    }
}
