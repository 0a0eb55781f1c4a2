//! JSON strings without a document model: an access line is written field by field.

/// Appends `text` as a JSON string. Control characters and quotes are escaped, so a line stays one line.
pub(super) fn push_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\u{1f}' | '\u{7f}' => {
                use std::fmt::Write;
                write!(out, "\\u{:04x}", u32::from(c)).expect("a String takes everything");
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_goes_in_a_json_parser_gets_it_back() {
        let hostile: String = (0..0x80u8).map(char::from).chain("é😀\u{2028}\"}".chars()).collect();
        let mut out = String::new();
        push_string(&mut out, &hostile);
        assert!(!out.contains('\n'));
        assert_eq!(serde_json::from_str::<String>(&out).expect("valid JSON"), hostile);
    }
}
