//! The list of disk directories as it is written: plain paths, or one path with a range such as `/mnt/disk{1...12}`.

use std::fmt;
use std::path::PathBuf;

/// Most disks one deployment may have on one machine.
pub const DISKS_MAX: usize = 512;

/// Why a list of disks was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DisksError {
    None,
    Empty,
    /// A range that is not `{FIRST...LAST}` with FIRST ≤ LAST.
    BadRange(String),
    TooMany(usize),
    Duplicate(PathBuf),
}

impl fmt::Display for DisksError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(f, "no disks: name at least one directory, for example ./data"),
            Self::Empty => write!(f, "the name of a disk directory is empty"),
            Self::BadRange(text) => {
                write!(f, "{text:?} has a range that is not {{FIRST...LAST}}, for example /mnt/disk{{1...4}}")
            }
            Self::TooMany(count) => write!(f, "{count} disks are more than {DISKS_MAX}"),
            Self::Duplicate(path) => write!(f, "{} is named twice", path.display()),
        }
    }
}

/// Expands ranges and checks that every disk is named once, in the order given.
pub fn expand(names: &[String]) -> Result<Vec<PathBuf>, DisksError> {
    let mut disks = Vec::new();
    for name in names {
        for expanded in expand_one(name)? {
            if expanded.is_empty() {
                return Err(DisksError::Empty);
            }
            let path = PathBuf::from(expanded);
            if disks.contains(&path) {
                return Err(DisksError::Duplicate(path));
            }
            disks.push(path);
            if disks.len() > DISKS_MAX {
                return Err(DisksError::TooMany(disks.len()));
            }
        }
    }
    if disks.is_empty() { Err(DisksError::None) } else { Ok(disks) }
}

fn expand_one(name: &str) -> Result<Vec<String>, DisksError> {
    let wrong = || DisksError::BadRange(name.to_owned());
    let Some((before, rest)) = name.split_once('{') else { return Ok(vec![name.to_owned()]) };
    let (range, after) = rest.split_once('}').ok_or_else(wrong)?;
    let (first_text, last_text) = range.split_once("...").ok_or_else(wrong)?;
    let first: u32 = first_text.parse().map_err(|_| wrong())?;
    let last: u32 = last_text.parse().map_err(|_| wrong())?;
    if first > last || after.contains('{') {
        return Err(wrong());
    }
    let count = (last - first) as usize + 1;
    if count > DISKS_MAX {
        return Err(DisksError::TooMany(count));
    }
    // Leading zeros of the first number set the width: {01...12}.
    let width = if first_text.starts_with('0') { first_text.len() } else { 0 };
    Ok((first..=last).map(|number| format!("{before}{number:0width$}{after}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(names: &[&str]) -> Result<Vec<String>, DisksError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Ok(expand(&names)?.into_iter().map(|path| path.display().to_string()).collect())
    }

    #[test]
    fn ranges_and_plain_paths_mix() {
        assert_eq!(
            expanded(&["/a", "/mnt/d{09...11}/x"]).expect("valid"),
            ["/a", "/mnt/d09/x", "/mnt/d10/x", "/mnt/d11/x"]
        );
        assert_eq!(expanded(&["./data"]).expect("valid"), ["./data"]);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(expanded(&[]), Err(DisksError::None));
        assert_eq!(expanded(&[""]), Err(DisksError::Empty));
        assert_eq!(expanded(&["/a", "/a"]), Err(DisksError::Duplicate("/a".into())));
        for wrong in ["/d{1..4}", "/d{4...1}", "/d{1...4", "/d{a...b}", "/d{1...2}{1...2}"] {
            assert_eq!(expanded(&[wrong]), Err(DisksError::BadRange(wrong.to_owned())));
        }
        assert_eq!(expanded(&["/d{0...4294967295}"]), Err(DisksError::TooMany(4_294_967_296)));
    }
}
