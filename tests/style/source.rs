//! A Rust source file split into code, comments and string literals, line by line.
//!
//! The rules of the house speak about one of the three: `unsafe` in a comment is no unsafe code, a metric's name is
//! a string, an unfinished thought is a comment. A full parser would be a dependency; telling the three apart is all
//! that is needed, and newlines stay where they are, so that a finding names its line.

use std::fs;
use std::path::Path;

/// One source file. `code`, `comments` and `strings` have the same length in lines as the file.
#[derive(Debug)]
pub(crate) struct Source {
    /// The path relative to the workspace root, with `/` between its parts.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) code: String,
    pub(crate) comments: String,
    pub(crate) strings: String,
}

impl Source {
    pub(crate) fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let mut split = Split::default();
        split.run(&text);
        Self { path: path.into(), text, code: split.code, comments: split.comments, strings: split.strings }
    }

    /// The code above the file's test module, and whether the file is tests from its first line on.
    pub(crate) fn shipped_code(&self) -> &str {
        if self.is_test_file() {
            return "";
        }
        let end = test_module_offset(&self.code).unwrap_or(self.code.len());
        &self.code[..end]
    }

    /// How many lines the file has before its test module.
    pub(crate) fn shipped_line_count(&self) -> usize {
        self.shipped_code().lines().count()
    }

    pub(crate) fn is_test_file(&self) -> bool {
        let parts: Vec<&str> = self.path.split('/').collect();
        parts.iter().any(|part| matches!(*part, "tests" | "tests.rs"))
    }
}

/// Where the first `#[cfg(test)] mod name {` begins. A declaration (`mod name;`) keeps its code elsewhere.
fn test_module_offset(code: &str) -> Option<usize> {
    const MARK: &str = "#[cfg(test)]";
    code.match_indices(MARK).map(|(at, _)| at).find(|at| {
        let mut rest = code[at + MARK.len()..].trim_start();
        while rest.starts_with("#[") {
            rest = rest.split_once(']').map_or("", |(_, after)| after).trim_start();
        }
        let name_and_body = rest.strip_prefix("mod ").unwrap_or_default();
        let body = name_and_body.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
        body.trim_start().starts_with('{')
    })
}

/// Every `.rs` file of the workspace below `root`.
pub(crate) fn load(root: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    for folder in ["src", "shards", "bench", "tuning", "tests"] {
        walk(root, &root.join(folder), &mut sources);
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

fn walk(root: &Path, folder: &Path, sources: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != "target" && name != "corpus" && name != ".venv" {
                walk(root, &path, sources);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file is readable UTF-8");
            let relative = path.strip_prefix(root).expect("the walk stays below the root");
            sources.push(Source::new(relative.to_string_lossy().replace('\\', "/"), text));
        }
    }
}

#[derive(Default)]
struct Split {
    code: String,
    comments: String,
    strings: String,
}

/// Which of the three a character belongs to.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Code,
    Comment,
    Text,
}

impl Split {
    fn push(&mut self, character: char, kind: Kind) {
        let blank = if character == '\n' { '\n' } else { ' ' };
        self.code.push(if kind == Kind::Code { character } else { blank });
        self.comments.push(if kind == Kind::Comment { character } else { blank });
        self.strings.push(if kind == Kind::Text { character } else { blank });
    }

    fn run(&mut self, text: &str) {
        let chars: Vec<char> = text.chars().collect();
        let mut at = 0;
        while at < chars.len() {
            at = match (chars[at], chars.get(at + 1)) {
                ('/', Some('/')) => self.line_comment(&chars, at),
                ('/', Some('*')) => self.block_comment(&chars, at),
                ('"', _) => self.string(&chars, at),
                ('r' | 'b' | 'c', _) if !continues_word(&chars, at) => match raw_string_hashes(&chars, at) {
                    Some((open, hashes)) => self.raw_string(&chars, at, open, hashes),
                    None => self.one(&chars, at, Kind::Code),
                },
                ('\'', _) => self.char_or_lifetime(&chars, at),
                _ => self.one(&chars, at, Kind::Code),
            };
        }
    }

    fn one(&mut self, chars: &[char], at: usize, kind: Kind) -> usize {
        self.push(chars[at], kind);
        at + 1
    }

    fn line_comment(&mut self, chars: &[char], mut at: usize) -> usize {
        while at < chars.len() && chars[at] != '\n' {
            at = self.one(chars, at, Kind::Comment);
        }
        at
    }

    fn block_comment(&mut self, chars: &[char], mut at: usize) -> usize {
        let mut depth = 0;
        while at < chars.len() {
            let pair = (chars[at], chars.get(at + 1));
            if pair == ('/', Some(&'*')) || pair == ('*', Some(&'/')) {
                depth += if pair.0 == '/' { 1 } else { -1 };
                at = self.one(chars, at, Kind::Comment);
            }
            at = self.one(chars, at, Kind::Comment);
            if depth == 0 {
                break;
            }
        }
        at
    }

    fn string(&mut self, chars: &[char], at: usize) -> usize {
        let mut at = self.one(chars, at, Kind::Code);
        while at < chars.len() {
            match chars[at] {
                '"' => return self.one(chars, at, Kind::Code),
                '\\' if at + 1 < chars.len() => {
                    at = self.one(chars, at, Kind::Text);
                    at = self.one(chars, at, Kind::Text);
                }
                _ => at = self.one(chars, at, Kind::Text),
            }
        }
        at
    }

    fn raw_string(&mut self, chars: &[char], mut at: usize, open: usize, hashes: usize) -> usize {
        while at <= open {
            at = self.one(chars, at, Kind::Code);
        }
        while at < chars.len() {
            let closes = chars[at] == '"' && (1..=hashes).all(|n| chars.get(at + n) == Some(&'#'));
            if closes {
                for _ in 0..=hashes {
                    at = self.one(chars, at, Kind::Code);
                }
                return at;
            }
            at = self.one(chars, at, Kind::Text);
        }
        at
    }

    /// `'x'` and `'\n'` are literals; `'a` in `&'a str` is not.
    fn char_or_lifetime(&mut self, chars: &[char], at: usize) -> usize {
        let close = match chars.get(at + 1) {
            Some('\\') => (at + 3..chars.len().min(at + 12)).find(|&n| chars[n] == '\''),
            Some(_) if chars.get(at + 2) == Some(&'\'') => Some(at + 2),
            _ => None,
        };
        let Some(close) = close else { return self.one(chars, at, Kind::Code) };
        let mut at = self.one(chars, at, Kind::Code);
        while at < close {
            at = self.one(chars, at, Kind::Text);
        }
        self.one(chars, at, Kind::Code)
    }
}

fn continues_word(chars: &[char], at: usize) -> bool {
    at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_')
}

/// For `r"`, `r#"`, `br##"` at `at`: where the quote stands and how many hashes close it.
fn raw_string_hashes(chars: &[char], at: usize) -> Option<(usize, usize)> {
    let mut next = at;
    if matches!(chars[next], 'b' | 'c') {
        next += 1;
    }
    if chars.get(next) != Some(&'r') {
        return None;
    }
    next += 1;
    let hashes = chars[next..].iter().take_while(|character| **character == '#').count();
    (chars.get(next + hashes) == Some(&'"')).then_some((next + hashes, hashes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_comments_and_strings_are_told_apart() {
        let source = Source::new(
            "a.rs",
            "let a = \"x // y\"; // z \"w\"\nlet b = 'c'; /* p /* q */ r */ fn f<'a>() {}\n",
        );
        assert_eq!(source.strings.split_whitespace().collect::<Vec<_>>(), ["x", "//", "y", "c"]);
        assert_eq!(source.comments.split_whitespace().collect::<String>(), "//z\"w\"/*p/*q*/r*/");
        assert!(source.code.contains("fn f<'a>() {}"));
        assert_eq!(source.code.lines().count(), 2);
    }

    #[test]
    fn raw_strings_end_at_their_own_hashes() {
        let source =
            Source::new("a.rs", "f(r#\"unsafe \"quoted\" \"#, br\"dbg!\", '\\'', '\\u{7f}'); real()");
        assert!(!source.code.contains("unsafe") && !source.code.contains("dbg!"));
        assert!(source.code.contains("real()"));
        assert!(source.strings.contains("unsafe \"quoted\""));
    }

    #[test]
    fn shipped_code_ends_at_the_test_module() {
        let source = Source::new(
            "src/a.rs",
            "//! A.\nfn a() {}\n#[cfg(test)]\nfn probe() {}\n#[cfg(test)]\nmod tests {\n}\n",
        );
        assert_eq!(source.shipped_line_count(), 4);
        let declared = Source::new("src/b.rs", "//! B.\n#[cfg(test)]\nmod tests;\nfn b() {}\n");
        assert_eq!(declared.shipped_line_count(), 4, "a declared test file does not end the code");
        assert_eq!(Source::new("src/b/tests.rs", "fn t() {}\n").shipped_line_count(), 0);
    }
}
