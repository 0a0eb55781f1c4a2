//! Pages of ListObjectsV2: reading them, and proving them right.
//!
//! [`faults_of_page`] is a pure function of a page and of what the run knows: order, limits, keys that must
//! be there, keys that must not, sizes and ETags.

use quick_xml::Reader;
use quick_xml::events::Event;

use crate::keyspace::{Etag, Keyspace, Presence};

/// A page of 1,000 keys of 1,024 bytes and their attributes stays below it.
pub(crate) const PAGE_BYTES_MAX: usize = 8 << 20;
/// Faults of one page that are worth telling apart.
const FAULTS_MAX: usize = 8;

/// One key of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListedKey {
    pub key: String,
    pub size: u64,
    pub etag: String,
}

/// A page as the server sent it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    pub keys: Vec<ListedKey>,
    pub common_prefixes: Vec<String>,
    pub truncated: bool,
    pub next_token: Option<String>,
    pub key_count: Option<u64>,
}

impl Page {
    /// Keys and common prefixes.
    pub(crate) fn entry_count(&self) -> usize {
        self.keys.len() + self.common_prefixes.len()
    }

    /// Reads a ListBucketResult. The error is a sentence.
    pub(crate) fn parse(xml: &str) -> Result<Self, String> {
        let mut reader = Reader::from_str(xml);
        let mut page = Self::default();
        let mut depth = 0;
        let mut section = Section::Other;
        let mut text = String::new();
        // One pass without allocations per element: the load generator shares CPUs with the server.
        loop {
            match reader.read_event().map_err(|error| error.to_string())? {
                Event::Start(start) => {
                    depth += 1;
                    text.clear();
                    match (depth, start.local_name().as_ref()) {
                        (1, "ListBucketResult") => {}
                        (1, _) => return Err("no ListBucketResult".to_owned()),
                        (2, "Contents") => {
                            section = Section::Contents;
                            page.keys.push(ListedKey::default());
                        }
                        (2, "CommonPrefixes") => section = Section::CommonPrefixes,
                        (2, _) => section = Section::Other,
                        _ => {}
                    }
                }
                Event::Text(part) => text.push_str(&part),
                Event::CData(part) => text.push_str(&part),
                Event::GeneralRef(reference) => {
                    text.push(
                        resolve(&reference).ok_or_else(|| format!("unknown entity &{};", &*reference))?,
                    );
                }
                Event::End(end) => {
                    page.take(section, depth, end.local_name().as_ref(), &text)?;
                    text.clear();
                    depth -= 1;
                    if depth == 0 {
                        return Ok(page);
                    }
                }
                Event::Eof => return Err("the document ends early".to_owned()),
                _ => {}
            }
        }
    }

    fn take(&mut self, section: Section, depth: usize, name: &str, text: &str) -> Result<(), String> {
        let number = || text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
        match (section, depth, name) {
            (Section::Other, 2, "IsTruncated") => self.truncated = text == "true",
            (Section::Other, 2, "NextContinuationToken") => self.next_token = Some(text.to_owned()),
            (Section::Other, 2, "KeyCount") => self.key_count = Some(number()?),
            (Section::CommonPrefixes, 3, "Prefix") => self.common_prefixes.push(text.to_owned()),
            (Section::Contents, 3, field) => {
                let Some(listed) = self.keys.last_mut() else { return Ok(()) };
                match field {
                    "Key" => text.clone_into(&mut listed.key),
                    "Size" => listed.size = number()?,
                    "ETag" => text.clone_into(&mut listed.etag),
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The child of ListBucketResult that is being read.
#[derive(Clone, Copy)]
enum Section {
    Contents,
    CommonPrefixes,
    Other,
}

fn resolve(reference: &quick_xml::events::BytesRef<'_>) -> Option<char> {
    match &**reference {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => reference.resolve_char_ref().ok().flatten(),
    }
}

/// Objects of which a reader knows the exact state: `first`, `first + stride` and so on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub first: u64,
    pub stride: u64,
}

impl Known {
    /// All of them: nobody writes.
    pub(crate) const ALL: Self = Self { first: 0, stride: 1 };

    fn has(self, index: u64) -> bool {
        index % self.stride == self.first
    }

    /// The known objects from `start` up to, not including, `end`.
    fn within(self, start: u64, end: u64) -> impl Iterator<Item = u64> {
        let skipped = start.saturating_sub(self.first).div_ceil(self.stride);
        (self.first + skipped * self.stride..end).step_by(self.stride as usize)
    }
}

/// What a page was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// The first object that the page may show.
    pub start: u64,
    pub max_keys: u32,
    pub delimited: bool,
}

/// The first object that may follow a page; None after the last page.
pub(crate) fn next_start(keyspace: &Keyspace, page: &Page) -> Option<u64> {
    if !page.truncated {
        return None;
    }
    let after_key =
        page.keys.last().and_then(|listed| keyspace.parse_key(&listed.key)).map(|index| index + 1);
    let after_folder = page
        .common_prefixes
        .last()
        .and_then(|prefix| keyspace.parse_folder_prefix(prefix))
        .map(|folder| keyspace.folder_start(folder + 1));
    after_key.max(after_folder)
}

/// Everything that is wrong with a page, in sentences; at most [`FAULTS_MAX`].
pub(crate) fn faults_of_page(keyspace: &Keyspace, page: &Page, asked: Asked, known: Known) -> Vec<String> {
    let mut faults = Vec::new();
    if page.entry_count() > asked.max_keys as usize {
        faults.push(format!("{} entries on a page of {}", page.entry_count(), asked.max_keys));
    }
    if page.key_count.is_some_and(|count| count != page.entry_count() as u64) {
        faults.push(format!("KeyCount {:?} for {} entries", page.key_count, page.entry_count()));
    }
    if page.truncated && (page.next_token.is_none() || page.entry_count() == 0) {
        faults.push("truncated, and no way to continue".to_owned());
    }
    if asked.delimited {
        faults_of_folders(keyspace, page, asked, known, &mut faults);
    } else {
        faults_of_keys(keyspace, page, asked, known, &mut faults);
    }
    faults.truncate(FAULTS_MAX);
    faults
}

fn faults_of_keys(keyspace: &Keyspace, page: &Page, asked: Asked, known: Known, faults: &mut Vec<String>) {
    if let Some(prefix) = page.common_prefixes.first() {
        faults.push(format!("common prefix {prefix:?} without a delimiter"));
    }
    // The position up to which everything known must have been shown.
    let mut position = asked.start;
    for listed in &page.keys {
        if faults.len() >= FAULTS_MAX {
            return;
        }
        let Some(index) = keyspace.parse_key(&listed.key) else {
            faults.push(format!("{:?} was never written", listed.key));
            continue;
        };
        if index < position {
            faults.push(format!("{:?} is out of order or repeated", listed.key));
            continue;
        }
        missing_keys(keyspace, known, position, index, faults);
        position = index + 1;
        if known.has(index) {
            faults.extend(fault_of_listed(keyspace, index, listed));
        }
    }
    if !page.truncated {
        missing_keys(keyspace, known, position, keyspace.object_count(), faults);
    }
}

fn missing_keys(keyspace: &Keyspace, known: Known, start: u64, end: u64, faults: &mut Vec<String>) {
    for index in known.within(start, end) {
        if faults.len() >= FAULTS_MAX {
            return;
        }
        if matches!(keyspace.presence(index), Presence::Present { .. }) {
            faults.push(format!("{:?} exists and is not listed", keyspace.key(index)));
        }
    }
}

fn fault_of_listed(keyspace: &Keyspace, index: u64, listed: &ListedKey) -> Option<String> {
    match keyspace.presence(index) {
        Presence::Unknown => None,
        Presence::Absent => Some(format!("{:?} was deleted and is listed", listed.key)),
        Presence::Present { generation, etag } => {
            let size = keyspace.size(index, generation);
            if size != listed.size {
                return Some(format!("{:?} is listed with {} bytes and has {size}", listed.key, listed.size));
            }
            let etag = etag?;
            (Etag::parse(&listed.etag) != Some(etag))
                .then(|| format!("{:?} is listed with ETag {} and has {etag}", listed.key, listed.etag))
        }
    }
}

fn faults_of_folders(keyspace: &Keyspace, page: &Page, asked: Asked, known: Known, faults: &mut Vec<String>) {
    if let Some(listed) = page.keys.first() {
        faults.push(format!("{:?} is listed and not rolled up", listed.key));
    }
    let folder_end = |folder| keyspace.folder_start(folder + 1).min(keyspace.object_count());
    let has_present = |folder| {
        known
            .within(keyspace.folder_start(folder), folder_end(folder))
            .any(|index| matches!(keyspace.presence(index), Presence::Present { .. }))
    };
    let must_be_empty = |folder| {
        known.stride == 1
            && (keyspace.folder_start(folder)..folder_end(folder))
                .all(|index| keyspace.presence(index) == Presence::Absent)
    };
    let folder_count = keyspace.folder_of(keyspace.object_count() - 1) + 1;
    let mut position = keyspace.folder_of(asked.start);
    let missing = |start: u64, end: u64, faults: &mut Vec<String>| {
        let missing = (start..end).filter(|folder| has_present(*folder)).take(FAULTS_MAX);
        faults.extend(
            missing
                .map(|folder| format!("{:?} has objects and is not listed", keyspace.folder_prefix(folder))),
        );
    };
    for prefix in &page.common_prefixes {
        if faults.len() >= FAULTS_MAX {
            return;
        }
        match keyspace.parse_folder_prefix(prefix) {
            None => faults.push(format!("{prefix:?} is no prefix of ours")),
            Some(folder) if folder < position => {
                faults.push(format!("{prefix:?} is out of order or repeated"));
            }
            Some(folder) => {
                missing(position, folder, faults);
                position = folder + 1;
                if must_be_empty(folder) {
                    faults.push(format!("{prefix:?} is empty and is listed"));
                }
            }
        }
    }
    if !page.truncated {
        missing(position, folder_count, faults);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const ETAG: Etag = Etag { md5: [0xab; 16], part_count: 0 };

    /// Ten objects in folders of four; 3 and 7 do not exist.
    fn keyspace() -> Keyspace {
        let keyspace = Keyspace::new("p/", 1, "10".parse().unwrap(), 10, 4);
        for index in (0..10).filter(|index| ![3, 7].contains(index)) {
            let generation = keyspace.begin_write(index);
            keyspace.commit_write(index, generation, Some(ETAG));
        }
        keyspace
    }

    fn page_of(keyspace: &Keyspace, indexes: &[u64], truncated: bool) -> Page {
        let keys = indexes
            .iter()
            .map(|index| ListedKey { key: keyspace.key(*index), size: 10, etag: ETAG.to_string() })
            .collect();
        let next_token = truncated.then(|| "token".to_owned());
        Page { keys, truncated, next_token, ..Page::default() }
    }

    const FROM_START: Asked = Asked { start: 0, max_keys: 100, delimited: false };

    #[test]
    fn right_pages_have_no_faults() {
        let keyspace = keyspace();
        let all = page_of(&keyspace, &[0, 1, 2, 4, 5, 6, 8, 9], false);
        assert_eq!(faults_of_page(&keyspace, &all, FROM_START, Known::ALL), [""; 0]);
        let first = page_of(&keyspace, &[0, 1, 2], true);
        assert_eq!(faults_of_page(&keyspace, &first, FROM_START, Known::ALL), [""; 0]);
        assert_eq!(next_start(&keyspace, &first), Some(3));
        let rest = page_of(&keyspace, &[4, 5, 6, 8, 9], false);
        assert_eq!(faults_of_page(&keyspace, &rest, Asked { start: 3, ..FROM_START }, Known::ALL), [""; 0]);
        assert_eq!(next_start(&keyspace, &rest), None);
    }

    #[test]
    fn wrong_pages_have() {
        let keyspace = keyspace();
        let fault = |page: &Page, asked, expected: &str| {
            let faults = faults_of_page(&keyspace, page, asked, Known::ALL);
            assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}: {faults:?}");
        };
        fault(
            &page_of(&keyspace, &[0, 1, 4, 5, 6, 8, 9], false),
            FROM_START,
            "000000002\" exists and is not",
        );
        fault(&page_of(&keyspace, &[0, 2], true), FROM_START, "000000001\" exists and is not listed");
        fault(&page_of(&keyspace, &[0, 1, 2, 4, 5, 6, 8], false), FROM_START, "exists and is not listed");
        fault(&page_of(&keyspace, &[0, 1, 2, 3], true), FROM_START, "was deleted and is listed");
        fault(&page_of(&keyspace, &[1, 0], true), FROM_START, "out of order");
        fault(&page_of(&keyspace, &[0, 0], true), FROM_START, "repeated");
        fault(&page_of(&keyspace, &[0, 1], true), Asked { start: 1, ..FROM_START }, "out of order");
        fault(&page_of(&keyspace, &[0, 1], true), Asked { max_keys: 1, ..FROM_START }, "2 entries");
        let change = |edit: fn(&mut Page)| {
            let mut page = page_of(&keyspace, &[0, 1], true);
            edit(&mut page);
            page
        };
        fault(&change(|page| page.next_token = None), FROM_START, "no way to continue");
        fault(&change(|page| page.keys[1].size = 9), FROM_START, "is listed with 9 bytes");
        fault(&change(|page| page.keys[1].etag.clear()), FROM_START, "is listed with ETag");
        fault(&change(|page| page.keys[1].key.push('x')), FROM_START, "was never written");
        fault(&change(|page| page.key_count = Some(3)), FROM_START, "KeyCount");
    }

    #[test]
    fn only_known_objects_are_judged() {
        let keyspace = keyspace();
        let odd = Known { first: 1, stride: 2 };
        let page = page_of(&keyspace, &[1, 5, 9], false);
        assert_eq!(faults_of_page(&keyspace, &page, FROM_START, odd), [""; 0]);
        let even = Known { first: 0, stride: 2 };
        assert!(!faults_of_page(&keyspace, &page, FROM_START, even).is_empty());
        keyspace.begin_delete(5);
        let page = page_of(&keyspace, &[1, 9], false);
        assert_eq!(faults_of_page(&keyspace, &page, FROM_START, odd), [""; 0], "5 may be gone or not");
    }

    #[test]
    fn folders() {
        let keyspace = keyspace();
        let asked = Asked { delimited: true, ..FROM_START };
        let page = |folders: &[u64], truncated| Page {
            common_prefixes: folders.iter().map(|folder| keyspace.folder_prefix(*folder)).collect(),
            truncated,
            next_token: truncated.then(|| "token".to_owned()),
            ..Page::default()
        };
        assert_eq!(faults_of_page(&keyspace, &page(&[0, 1, 2], false), asked, Known::ALL), [""; 0]);
        assert_eq!(next_start(&keyspace, &page(&[0, 1], true)), Some(8));
        assert!(
            faults_of_page(&keyspace, &page(&[0, 2], false), asked, Known::ALL)[0].contains("not listed")
        );
        assert!(faults_of_page(&keyspace, &page(&[1, 0], true), asked, Known::ALL)[0].contains("not listed"));
        for index in 8..10 {
            keyspace.begin_delete(index);
            keyspace.commit_delete(index);
        }
        assert!(
            faults_of_page(&keyspace, &page(&[0, 1, 2], false), asked, Known::ALL)[0].contains("is empty")
        );
        let keys = page_of(&keyspace, &[0], true);
        assert!(faults_of_page(&keyspace, &keys, asked, Known::ALL)[0].contains("not rolled up"));
    }

    #[test]
    fn documents() {
        let xml = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>p/</Prefix>
<KeyCount>2</KeyCount><IsTruncated>true</IsTruncated><NextContinuationToken>a&amp;b</NextContinuationToken>
<Contents><Key>p/a</Key><ETag>&quot;x&#34;</ETag><Size>7</Size><Owner><ID>Key</ID></Owner></Contents>
<CommonPrefixes><Prefix>p/c/</Prefix></CommonPrefixes></ListBucketResult>"#;
        let listed = ListedKey { key: "p/a".to_owned(), size: 7, etag: "\"x\"".to_owned() };
        let expected = Page {
            keys: vec![listed],
            common_prefixes: vec!["p/c/".to_owned()],
            truncated: true,
            next_token: Some("a&b".to_owned()),
            key_count: Some(2),
        };
        assert_eq!(Page::parse(xml), Ok(expected));
        for xml in [
            "",
            "<Error><Code>X</Code></Error>",
            "<ListBucketResult>",
            "<ListBucketResult><Contents><Size>x</Size>",
        ] {
            assert!(Page::parse(xml).is_err(), "{xml}");
        }
    }
}
