//! The model: each key is a register, and every answer about it must fit some order of the writes.
//!
//! Clients overlap on the same keys, so a key has no single expected state. A write has a begin and, once acknowledged,
//! an end; an answer fits if it names a write that had begun by then and was not certainly overwritten before the
//! question was asked. Whoever sees a write proves that it had happened by then, which counts like its
//! acknowledgement: so no two reads go back in time.

use std::cell::Cell;
use std::collections::BTreeMap;

/// Content of an object: its length and the number all its bytes are made from. Tags are unique per write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Content {
    pub(crate) len: usize,
    pub(crate) tag: u64,
}

impl Content {
    /// The byte at each offset is a function of tag and offset, so any range can be checked without the rest.
    pub(crate) fn bytes(self, range: std::ops::Range<usize>) -> Vec<u8> {
        let mut out = Vec::with_capacity(range.len() + 16);
        let first = range.start / 8;
        for word in first..range.end.div_ceil(8) {
            let mixed = (self.tag ^ word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            out.extend_from_slice(&mixed.to_le_bytes());
        }
        out.truncate(range.end - first * 8);
        out.drain(..range.start - first * 8);
        out
    }

    pub(crate) fn etag(self) -> [u8; 16] {
        let mut etag = [0; 16];
        etag[..8].copy_from_slice(&self.tag.to_le_bytes());
        etag[8..].copy_from_slice(&(self.len as u64).to_le_bytes());
        etag
    }

    /// What an object says it is.
    pub(crate) fn of(etag: [u8; 16], len: u64) -> Content {
        let tag = u64::from_le_bytes(etag[..8].try_into().expect("8 bytes"));
        let content = Content { len: usize::try_from(len).expect("small"), tag };
        assert_eq!(content.etag(), etag, "length and tag are of different writes");
        content
    }
}

/// A moment in the order of all calls on the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

const NEVER: Moment = Moment(u64::MAX);

#[derive(Clone, Debug)]
struct Write {
    content: Option<Content>,
    begin: Moment,
    /// By when it had certainly happened.
    end: Moment,
}

/// Names a write that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WriteId(Moment);

#[derive(Debug, Default)]
pub(crate) struct Model {
    keys: BTreeMap<String, Vec<Write>>,
    clock: Cell<u64>,
}

impl Model {
    pub(crate) fn now(&self) -> Moment {
        self.clock.set(self.clock.get() + 1);
        Moment(self.clock.get())
    }

    /// A write that may happen from here on.
    pub(crate) fn begin(&mut self, key: &str, content: Option<Content>) -> WriteId {
        let begin = self.now();
        self.writes(key).push(Write { content, begin, end: NEVER });
        WriteId(begin)
    }

    /// It was acknowledged.
    pub(crate) fn acknowledge(&mut self, key: &str, id: WriteId) {
        let now = self.now();
        let write = self.writes(key).iter_mut().find(|write| write.begin == id.0);
        if let Some(write) = write {
            write.end = write.end.min(now);
        }
    }

    /// It was refused: it never happens.
    pub(crate) fn refuse(&mut self, key: &str, id: WriteId) {
        let writes = self.writes(key);
        let seen = writes.iter().any(|write| write.begin == id.0 && write.end != NEVER);
        assert!(!seen, "key {key}: a refused write was seen");
        writes.retain(|write| write.begin != id.0);
    }

    /// The key was seen in this state by somebody who asked at `asked`.
    pub(crate) fn observe(&mut self, key: &str, seen: Option<Content>, asked: Moment) {
        let now = self.now();
        let writes = self.writes(key);
        let fitting = fitting(writes, asked, |write| write.content == seen);
        assert!(!fitting.is_empty(), "key {key} holds {seen:?}, asked at {asked:?}: {writes:?}");
        if let [one] = fitting.as_slice() {
            writes[*one].end = writes[*one].end.min(now);
        }
    }

    /// Whether the key may have existed, or not, for somebody who asked at `asked`; the write `own` aside.
    pub(crate) fn may_exist(&mut self, key: &str, exists: bool, asked: Moment, own: Option<WriteId>) -> bool {
        let fits =
            |write: &Write| write.content.is_some() == exists && own.is_none_or(|own| own.0 != write.begin);
        !fitting(self.writes(key), asked, fits).is_empty()
    }

    /// The key was seen in this state while nobody else was at it: it is this, and no earlier write comes back.
    pub(crate) fn settle(&mut self, key: &str, seen: Option<Content>) {
        let asked = self.now();
        self.observe(key, seen, asked);
        let end = self.now();
        *self.writes(key) = vec![Write { content: seen, begin: end, end }];
    }

    /// The only state the key can be in now, if there is only one.
    pub(crate) fn certain(&mut self, key: &str) -> Option<Option<Content>> {
        let asked = self.now();
        let writes = self.writes(key);
        match fitting(writes, asked, |_| true).as_slice() {
            [one] => Some(writes[*one].content),
            _ => None,
        }
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.keys.keys().cloned().collect()
    }

    fn writes(&mut self, key: &str) -> &mut Vec<Write> {
        let start = Write { content: None, begin: Moment(0), end: Moment(0) };
        self.keys.entry(key.to_owned()).or_insert_with(|| vec![start])
    }
}

/// Indices of the writes that an answer to a question of `asked` may name.
fn fitting(writes: &[Write], asked: Moment, fits: impl Fn(&Write) -> bool) -> Vec<usize> {
    let overwritten = |write: &Write| writes.iter().any(|later| write.end < later.begin && later.end < asked);
    (0..writes.len()).filter(|&index| fits(&writes[index]) && !overwritten(&writes[index])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Option<Content> = Some(Content { len: 1, tag: 1 });
    const B: Option<Content> = Some(Content { len: 1, tag: 2 });

    fn fails(act: impl FnOnce() + std::panic::UnwindSafe) -> bool {
        std::panic::catch_unwind(act).is_err()
    }

    #[test]
    fn an_acknowledged_write_may_not_be_missed() {
        let mut model = Model::default();
        let a = model.begin("k", A);
        let early = model.now();
        model.acknowledge("k", a);
        model.observe("k", None, early);
        let late = model.now();
        assert!(fails(move || model.observe("k", None, late)));
    }

    #[test]
    fn reads_do_not_go_back_in_time() {
        let mut model = Model::default();
        model.begin("k", A);
        let asked = model.now();
        model.observe("k", A, asked);
        let late = model.now();
        assert!(fails(move || model.observe("k", None, late)));
    }

    #[test]
    fn overlapping_writes_may_end_in_either_order() {
        for last in [A, B] {
            let mut model = Model::default();
            let (a, b) = (model.begin("k", A), model.begin("k", B));
            model.acknowledge("k", a);
            model.acknowledge("k", b);
            assert_eq!(model.certain("k"), None);
            model.settle("k", last);
            assert_eq!(model.certain("k"), Some(last));
        }
    }

    #[test]
    fn what_was_unsettled_at_a_restart_does_not_come_back() {
        let mut model = Model::default();
        model.begin("k", A);
        model.settle("k", None);
        let asked = model.now();
        assert!(fails(move || model.observe("k", A, asked)));
    }
}
