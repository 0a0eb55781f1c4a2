//! The mechanical rules of the house, each a function from sources to findings.
//!
//! They are pure, so that each is shown to fail on a small bad sample: a rule that cannot fail holds nothing.

use super::source::Source;

/// A broken rule and where.
#[derive(Debug, PartialEq)]
pub(crate) struct Finding {
    pub(crate) path: String,
    /// Counted from 1; 0 speaks of the whole file.
    pub(crate) line: usize,
    pub(crate) what: String,
}

impl Finding {
    pub(crate) fn new(source: &Source, line: usize, what: impl Into<String>) -> Self {
        Self { path: source.path.clone(), line, what: what.into() }
    }
}

/// Lines of code that a file may have before its tests; past about 600 it is usually two things.
pub(crate) const LINES_MAX: usize = 700;

/// Names that say nothing about what lives there.
const EMPTY_NAMES: [&str; 8] = ["common", "util", "utils", "helper", "helpers", "misc", "types", "stuff"];

/// Lines on which `word` stands alone, as an identifier does.
pub(crate) fn lines_with_word<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.lines().enumerate().filter(move |(_, line)| has_word(line, word)).map(|(index, _)| index + 1)
}

/// Whether `word` (which may hold punctuation inside, as `Instant::now`) stands in `line` with no identifier character around it.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let opens_with_word = word.starts_with(is_word);
    let closes_with_word = word.ends_with(is_word);
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let continues = (opens_with_word && before.is_some_and(is_word))
            || (closes_with_word && after.is_some_and(is_word));
        !continues
    })
}

pub(crate) fn opens_with_module_doc(source: &Source) -> Vec<Finding> {
    if source.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![Finding::new(source, 1, "a module opens with `//!`: what it is, then why")]
}

pub(crate) fn names_mean_something(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for part in source.path.split('/') {
        let stem = part.strip_suffix(".rs").unwrap_or(part);
        if EMPTY_NAMES.contains(&stem) {
            findings.push(Finding::new(
                source,
                0,
                format!("`{stem}` names nothing: put it with its concept"),
            ));
        }
        if part == "mod.rs" {
            findings.push(Finding::new(source, 0, "a module `foo` is `foo.rs` beside `foo/`, not `mod.rs`"));
        }
    }
    for name in EMPTY_NAMES {
        let declaration = format!("mod {name}");
        for line in lines_with_word(&source.code, &declaration) {
            findings.push(Finding::new(source, line, format!("`{declaration}` names nothing")));
        }
    }
    findings
}

pub(crate) fn files_are_short(source: &Source) -> Vec<Finding> {
    let count = source.shipped_line_count();
    if count <= LINES_MAX {
        return Vec::new();
    }
    vec![Finding::new(
        source,
        0,
        format!("{count} lines before its tests, {LINES_MAX} at most: it is two things"),
    )]
}

pub(crate) fn nothing_is_unfinished(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for marker in ["todo!", "unimplemented!", "dbg!"] {
        let lines = lines_with_word(&source.code, marker);
        findings
            .extend(lines.map(|line| Finding::new(source, line, format!("`{marker}` is unfinished code"))));
    }
    for marker in ["TODO", "FIXME", "XXX", "HACK"] {
        let lines = lines_with_word(&source.comments, marker);
        findings.extend(
            lines.map(|line| Finding::new(source, line, format!("`{marker}`: nothing is for later"))),
        );
    }
    findings
}

/// `expect` says why and complains when it is no longer needed; `allow` does neither.
pub(crate) fn lints_are_expected_with_reason(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let code = &source.code;
    for (start, _) in code.match_indices('#') {
        let after = code[start + 1..].strip_prefix('!').unwrap_or(&code[start + 1..]);
        if !after.starts_with('[') {
            continue;
        }
        let attribute = &code[start..attribute_end(code, start)];
        let line = code[..start].matches('\n').count() + 1;
        if has_word(attribute, "allow(") {
            findings.push(Finding::new(source, line, "use `#[expect(lint, reason = \"…\")]`, not `allow`"));
        }
        if has_word(attribute, "expect(") && !has_word(attribute, "reason") {
            findings.push(Finding::new(source, line, "an expected lint gives its reason"));
        }
    }
    findings
}

/// One past the `]` that closes the attribute that opens at `start`.
fn attribute_end(code: &str, start: usize) -> usize {
    let mut depth = 0;
    for (offset, character) in code[start..].char_indices() {
        match character {
            '[' => depth += 1,
            ']' => {
                depth -= 1;
                if depth == 0 {
                    return start + offset + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

/// Where unsafe code may live: the reactor, vector kernels, and nothing else.
const UNSAFE_HOMES: [&str; 2] = ["shards/reactor/", "shards/md5/src/kernel"];

pub(crate) fn unsafe_stays_at_home(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let lines: Vec<&str> = source.text.lines().collect();
    for line in lines_with_word(&source.code, "unsafe") {
        if !UNSAFE_HOMES.iter().any(|home| source.path.starts_with(home)) {
            let homes = UNSAFE_HOMES.join(" and ");
            findings.push(Finding::new(source, line, format!("unsafe code lives in {homes} only")));
        } else if !declares_contract(source.code.lines().nth(line - 1).unwrap_or_default())
            && !has_safety_comment(&lines, line - 1)
        {
            findings.push(Finding::new(source, line, "no `// SAFETY:` before it"));
        }
    }
    findings
}

/// `unsafe fn` states an obligation of its callers (`# Safety` in its docs), it makes no claim itself.
fn declares_contract(code: &str) -> bool {
    ["unsafe fn", "unsafe extern", "unsafe trait", "#[unsafe", "#![", "(unsafe_code"]
        .iter()
        .any(|form| code.contains(form))
}

/// Looks upwards over attributes, comments and the lines of the statement that the block stands in.
fn has_safety_comment(lines: &[&str], index: usize) -> bool {
    const STATEMENT_LINES_MAX: usize = 6;
    if lines[index].contains("SAFETY:") {
        return true;
    }
    let mut code_lines = 0;
    for line in lines[..index].iter().rev().map(|line| line.trim()) {
        if line.starts_with("//") {
            if line.contains("SAFETY:") {
                return true;
            }
        } else if line.is_empty()
            || line.ends_with(';')
            || line.ends_with('}')
            || code_lines == STATEMENT_LINES_MAX
        {
            return false;
        } else {
            code_lines += 1;
        }
    }
    false
}

/// What would make a run of the engine differ from its replay. Clock, randomness and tasks come from the reactor.
const UNREPEATABLE: [&str; 10] = [
    "Instant::now",
    "SystemTime::now",
    "rand::",
    "getrandom",
    "thread::sleep",
    "thread::spawn",
    "thread_local!",
    "RandomState",
    "HashMap::new",
    "HashSet::new",
];

pub(crate) fn engine_is_repeatable(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("shards/engine/src/") {
        return Vec::new();
    }
    let code = source.shipped_code();
    let mut findings = Vec::new();
    for word in UNREPEATABLE {
        let lines = lines_with_word(code, word);
        findings.extend(
            lines.map(|line| Finding::new(source, line, format!("`{word}`: a seed could not replay it"))),
        );
    }
    for (map, arguments) in [("HashMap", 3), ("HashSet", 2)] {
        for (line, given) in generic_argument_counts(code, map) {
            if given < arguments {
                findings.push(Finding::new(
                    source,
                    line,
                    format!("`{map}` without a fixed hasher iterates in random order"),
                ));
            }
        }
    }
    findings
}

/// For each `name<…>` in `code`: its line, and how many arguments stand between its own angle brackets.
fn generic_argument_counts(code: &str, name: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let opening = format!("{name}<");
    for (at, _) in code.match_indices(&opening) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let (mut depth, mut count) = (0, 1);
        let mut previous = ' ';
        for character in code[at + name.len()..].chars() {
            match character {
                '<' | '(' | '[' => depth += 1,
                '>' if previous == '-' => {}
                '>' | ')' | ']' => depth -= 1,
                ',' if depth == 1 => count += 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            previous = character;
        }
        found.push((code[..at].matches('\n').count() + 1, count));
    }
    found
}

/// One file defines every metric with its unit, so that two places never disagree about a name.
pub(crate) fn metrics_are_named_once(source: &Source) -> Vec<Finding> {
    let home = source.path == "src/metrics.rs" || source.path.starts_with("src/metrics/");
    let ships = source.path.starts_with("src/") || source.path.starts_with("shards/");
    if home || !ships || source.is_test_file() {
        return Vec::new();
    }
    let end = source.shipped_line_count();
    let names = source.strings.lines().take(end).enumerate().filter(|(_, line)| {
        let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        words.any(|word| {
            word.starts_with("basalt_") && METRIC_ENDINGS.iter().any(|ending| word.ends_with(ending))
        })
    });
    names
        .map(|(index, _)| Finding::new(source, index + 1, "a metric is named in src/metrics.rs only"))
        .collect()
}

/// The units and kinds that end a metric's name.
const METRIC_ENDINGS: [&str; 8] =
    ["_total", "_bytes", "_seconds", "_count", "_ratio", "_info", "_objects", "_connections"];

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rule: fn(&Source) -> Vec<Finding>, path: &str, text: &str) -> Vec<usize> {
        rule(&Source::new(path, text)).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_module_without_doc_is_found() {
        assert_eq!(lines(opens_with_module_doc, "src/a.rs", "use std::fs;\n"), [1]);
        assert_eq!(lines(opens_with_module_doc, "src/a.rs", "//! A.\n"), []);
    }

    #[test]
    fn empty_names_are_found() {
        assert_eq!(lines(names_mean_something, "src/util.rs", "//! U.\n"), [0]);
        assert_eq!(lines(names_mean_something, "src/helpers/a.rs", "//! U.\n"), [0]);
        assert_eq!(lines(names_mean_something, "src/a/mod.rs", "//! U.\n"), [0]);
        assert_eq!(lines(names_mean_something, "src/a.rs", "//! U.\nmod types;\nmod typeset;\n"), [2]);
    }

    #[test]
    fn long_files_are_found_and_their_tests_do_not_count() {
        let code = "//! A.\n".to_owned() + &"fn a() {}\n".repeat(LINES_MAX);
        assert_eq!(lines(files_are_short, "src/a.rs", &code), [0]);
        let tests = format!("//! A.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "fn a() {}\n".repeat(LINES_MAX));
        assert_eq!(lines(files_are_short, "src/a.rs", &tests), []);
    }

    #[test]
    fn unfinished_code_is_found() {
        let text = "//! A.\nfn a() { todo!() }\n// TODO: later\nfn b() { dbg!(1); unimplemented!() }\nlet s = \"TODO dbg!\";\n";
        assert_eq!(lines(nothing_is_unfinished, "src/a.rs", text), [2, 4, 4, 3]);
    }

    #[test]
    fn allowed_lints_are_found() {
        let bad = "#![allow(dead_code)]\n#[cfg_attr(test, allow(unused))]\nfn a() {}\n#[expect(dead_code)]\nfn b() {}\n";
        assert_eq!(lines(lints_are_expected_with_reason, "src/a.rs", bad), [1, 2, 4]);
        let good =
            "#[expect(dead_code, reason = \"wired later\")]\nfn allow(x: u8) { allow(x) }\n// #[allow(x)]\n";
        assert_eq!(lines(lints_are_expected_with_reason, "src/a.rs", good), []);
    }

    #[test]
    fn unsafe_outside_its_home_or_without_a_reason_is_found() {
        let block =
            "fn a() { unsafe { b() } }\n// unsafe in words\n#![expect(unsafe_code, reason = \"r\")]\n";
        assert_eq!(lines(unsafe_stays_at_home, "src/a.rs", block), [1]);
        assert_eq!(lines(unsafe_stays_at_home, "shards/md5/src/shared.rs", block), [1]);
        assert_eq!(lines(unsafe_stays_at_home, "shards/reactor/src/a.rs", block), [1]);
        let explained =
            "// SAFETY: b has no precondition.\nlet c =\n    unsafe { b() };\npub unsafe fn d() {}\n";
        assert_eq!(lines(unsafe_stays_at_home, "shards/reactor/src/a.rs", explained), []);
        let stale = "// SAFETY: about c.\nunsafe { c() };\nunsafe { d() };\n";
        assert_eq!(lines(unsafe_stays_at_home, "shards/reactor/src/a.rs", stale), [3]);
    }

    #[test]
    fn unrepeatable_code_in_the_engine_is_found() {
        let text = "fn a() { Instant::now(); }\nlet m: HashMap<u8, (u8, u8)> = x;\nlet f: HashMap<u8, Vec<u8>, Fixed> = x;\nlet s = HashSet::new();\n";
        assert_eq!(lines(engine_is_repeatable, "shards/engine/src/a.rs", text), [1, 4, 2]);
        assert_eq!(lines(engine_is_repeatable, "bench/src/a.rs", text), []);
        let test_only = "//! A.\n#[cfg(test)]\nmod tests {\nfn a() { Instant::now(); }\n}\n";
        assert_eq!(lines(engine_is_repeatable, "shards/engine/src/a.rs", test_only), []);
    }

    #[test]
    fn metrics_named_elsewhere_are_found() {
        let text = "//! A.\nlet n = \"basalt_requests_total\";\nuse basalt_reactor::Disk;\nlet f = \"basalt_engine\";\n";
        assert_eq!(lines(metrics_are_named_once, "src/service/put.rs", text), [2]);
        assert_eq!(lines(metrics_are_named_once, "src/metrics.rs", text), []);
    }
}
