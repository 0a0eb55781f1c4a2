//! Every promise in docs/SEMANTICS.md names a test that exists, and their numbers have no gap and no double.
//!
//! A promise is a numbered line (`3. …`, with the lines that continue it); it ends in one or more
//! ``(test: `path::name`)``. The path is a module or a file; the last part is the function that holds the promise.

use super::source::Source;

/// What is wrong with the promises: one without a test, or one whose test nobody wrote.
pub(crate) fn broken_promises(semantics: &str, rust: &[Source], python: &[(String, String)]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut count = 0;
    for promise in numbered_paragraphs(semantics) {
        count += 1;
        let named = named_tests(&promise);
        let title: String = promise.chars().take(60).collect();
        if !promise.starts_with(&format!("{count}. ")) {
            broken.push(format!("is number {count}: {title}"));
        }
        if named.is_empty() {
            broken.push(format!("names no test: {title}"));
        }
        for test in named {
            if !exists(&test, rust, python) {
                broken.push(format!("names a test that does not exist, `{test}`: {title}"));
            }
        }
    }
    if count == 0 {
        broken.push("docs/SEMANTICS.md promises nothing".to_owned());
    }
    broken
}

fn numbered_paragraphs(text: &str) -> Vec<String> {
    let mut paragraphs: Vec<String> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        let digits = line.chars().take_while(char::is_ascii_digit).count();
        if digits > 0 && line[digits..].starts_with(". ") {
            paragraphs.push(line.to_owned());
            open = true;
        } else if line.trim().is_empty() || line.starts_with('#') {
            // A blank line inside an indented list item does not end it; a heading does.
            open = open && !line.starts_with('#');
        } else if open && line.starts_with(' ') {
            let paragraph = paragraphs.last_mut().expect("an open paragraph was pushed");
            paragraph.push(' ');
            paragraph.push_str(line.trim());
        } else {
            open = false;
        }
    }
    paragraphs
}

/// The names in every `(test: …)` or `(tests: …)`, which may hold several in backquotes.
fn named_tests(promise: &str) -> Vec<String> {
    let mut names = Vec::new();
    for opening in ["(test: ", "(tests: "] {
        for (at, _) in promise.match_indices(opening) {
            let inside = promise[at + opening.len()..].split(')').next().unwrap_or_default();
            names.extend(inside.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    names
}

fn exists(test: &str, rust: &[Source], python: &[(String, String)]) -> bool {
    let name = test.rsplit("::").next().unwrap_or(test);
    if let Some((file, _)) = test.split_once(".py::") {
        let path = format!("{file}.py");
        return python.iter().any(|(found, text)| *found == path && text.contains(&format!("def {name}(")));
    }
    rust.iter().any(|source| source.code.contains(&format!("fn {name}(")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(semantics: &str) -> usize {
        let rust = [Source::new("shards/engine/src/log.rs", "//! L.\nfn acks_are_durable() {}\n")];
        let python = [("tests/protocol/test_list.py".to_owned(), "def test_order(s3):\n".to_owned())];
        broken_promises(semantics, &rust, &python).len()
    }

    #[test]
    fn a_promise_without_a_test_is_found() {
        assert_eq!(broken("# S\n1. Durable.\n"), 1);
        assert_eq!(broken("# S\n1. Durable. (test: `log::nobody_wrote_it`)\n"), 1);
        assert_eq!(broken("# S\n1. Order. (test: `tests/protocol/test_list.py::test_other`)\n"), 1);
        assert_eq!(broken("# S\nProse.\n"), 1);
        assert_eq!(broken("# S\n2. Durable. (test: `log::acks_are_durable`)\n"), 1);
    }

    #[test]
    fn promises_with_their_tests_pass() {
        let text = "# S\n1. Durable\n   on all disks. (test: `log::acks_are_durable`)\n\n2. Order. (tests: `log::acks_are_durable`, `tests/protocol/test_list.py::test_order`)\n";
        assert_eq!(broken(text), 0);
    }
}
