//! A structure for a human: the same fields as in JSON, one to a line, nested ones indented.

use serde_json::Value;

/// Longest list of plain values that is shown on one line.
const INLINE_LEN_MAX: usize = 24;

/// The lines of one structure, its name first.
pub(super) fn of(value: &Value) -> String {
    let mut out = String::new();
    if let Value::Object(fields) = value {
        let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
        out.push_str(text("structure"));
        let place =
            [text("path"), text("file")].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>();
        if !place.is_empty() {
            out.push_str(&format!("  {}", place.join("/")));
        }
        if let Some(offset) = fields.get("offset") {
            out.push_str(&format!(" at {offset}"));
        }
        out.push('\n');
        let shown = ["structure", "path", "file", "offset"];
        for (name, value) in fields.iter().filter(|(name, _)| !shown.contains(&name.as_str())) {
            field(&mut out, 1, name, value);
        }
    }
    out
}

fn field(out: &mut String, depth: usize, name: &str, value: &Value) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            out.push_str(&format!("{indent}{name}:\n"));
            fields.iter().for_each(|(name, value)| field(out, depth + 1, name, value));
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            out.push_str(&format!("{indent}{name}:\n"));
            for (index, item) in items.iter().enumerate() {
                field(out, depth + 1, &format!("[{index}]"), item);
            }
        }
        Value::Array(items) => {
            let shown = items.iter().take(INLINE_LEN_MAX).map(plain).collect::<Vec<_>>().join(" ");
            let more = items.len().saturating_sub(INLINE_LEN_MAX);
            let more = if more > 0 { format!(" … {more} more") } else { String::new() };
            out.push_str(&format!("{indent}{name}: [{shown}{more}]\n"));
        }
        _ => out.push_str(&format!("{indent}{name}: {}\n", plain(value))),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn fields_are_lines_and_nesting_is_indentation() {
        let value = json!({
            "structure": "root", "path": "/d", "file": "shard-0000.root", "offset": 4096,
            "log": { "extent": 3 }, "manifest": [{ "extent": 9 }], "numbers": [1, 2],
        });
        let expected = "root  /d/shard-0000.root at 4096\n  log:\n    extent: 3\n  manifest:\n    [0]:\n      extent: 9\n  \
                        numbers: [1 2]\n";
        assert_eq!(super::of(&value), expected);
    }
}
