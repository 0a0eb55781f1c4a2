//! Every metric that is shown is also measured: some code sets it.
//!
//! A gauge that nobody sets reads 0, which an operator takes for a fact.

use super::source::Source;

/// The variants of the table in `src/metrics.rs` that no shipped code adds to or sets.
pub(crate) fn never_set(sources: &[Source]) -> Vec<String> {
    let table = sources.iter().find(|source| source.path == "src/metrics.rs").map(variants);
    let table = table.unwrap_or_default();
    if table.is_empty() {
        return vec!["src/metrics.rs has no table of metrics".to_owned()];
    }
    let is_set = |name: &str| {
        let named = format!("Scalar::{name}");
        sources.iter().any(|source| {
            let code = source.shipped_code();
            code.match_indices(&named).any(|(at, _)| {
                let before = code[..at].trim_end();
                let whole = code[at + named.len()..].starts_with(|c: char| !c.is_alphanumeric());
                whole && (before.ends_with(".set(") || before.ends_with(".add("))
            })
        })
    };
    table.into_iter().filter(|name| !is_set(name)).collect()
}

/// The names in front of `: Counter` and `: Gauge` in the table.
fn variants(source: &Source) -> Vec<String> {
    let code = source.shipped_code();
    let table = code.split_once("\nscalars! {").and_then(|(_, rest)| rest.split_once("\n}"));
    let lines = table.map_or("", |(table, _)| table).lines();
    let names = lines.filter_map(|line| {
        let (name, rest) = line.trim().split_once(": ")?;
        (rest.starts_with("Counter") || rest.starts_with("Gauge")).then(|| name.to_owned())
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "//! M.\nscalars! {\n    Put: Counter \"a_total\" \"A.\";\n    Puts: Gauge\n        \"b\" \"B.\";\n}\n";

    fn found(code: &str) -> Vec<String> {
        never_set(&[Source::new("src/metrics.rs", TABLE), Source::new("src/a.rs", code)])
    }

    #[test]
    fn metrics_that_nobody_sets_are_found() {
        assert_eq!(found("//! A.\nfn a() { m.add(Scalar::Put, 1); m.get(Scalar::Puts); }\n"), ["Puts"]);
        assert_eq!(found("//! A.\nfn a() { m.set(\n        Scalar::Puts,\n 1); }\n"), ["Put"]);
        assert_eq!(found("//! A.\n// m.set(Scalar::Put, m.set(Scalar::Puts\n"), ["Put", "Puts"]);
        assert_eq!(never_set(&[]).len(), 1);
    }

    #[test]
    fn metrics_that_are_set_pass() {
        let code = "//! A.\nfn a() { m.add(Scalar::Put, 1); m.set(Scalar::Puts, 2); }\n";
        assert_eq!(found(code), Vec::<String>::new());
    }
}
