//! A fixed table from label values to measurements: the owner adds entries, a scrape reads them.

use std::sync::OnceLock;

/// What everything beyond the table's room is counted as.
const OTHER: &str = "other";

/// At most `N` labels, the last of which is `other`.
pub(super) struct LabelTable<T, const N: usize> {
    slots: Box<[(OnceLock<&'static str>, T)]>,
}

impl<T: Default, const N: usize> LabelTable<T, N> {
    pub(super) fn new() -> Self {
        LabelTable { slots: (0..N).map(|_| (OnceLock::new(), T::default())).collect() }
    }

    /// The measurements of `name`, entered when new. Labels come from tables in the code, so there are few and the
    /// frequent ones are entered early: a scan that mostly compares addresses finds them at once.
    pub(super) fn get(&self, name: &'static str) -> &T {
        for (label, value) in self.slots.iter().take(N - 1) {
            let label = label.get_or_init(|| name);
            if std::ptr::eq(*label, name) || *label == name {
                return value;
            }
        }
        let (label, value) = &self.slots[N - 1];
        label.get_or_init(|| OTHER);
        value
    }

    pub(super) fn find(&self, name: &str) -> Option<&T> {
        self.slots
            .iter()
            .find(|(label, _)| label.get().is_some_and(|label| *label == name))
            .map(|(_, value)| value)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.slots.iter().filter_map(|(label, _)| label.get().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_full_table_counts_the_rest_as_other() {
        let table: LabelTable<Cell<u32>, 3> = LabelTable::new();
        for name in ["a", "b", "a", "c", "d"] {
            let count = table.get(name);
            count.set(count.get() + 1);
        }
        let counts: Vec<_> =
            table.names().map(|name| (name, table.find(name).expect("listed").get())).collect();
        assert_eq!(counts, [("a", 2), ("b", 1), (OTHER, 2)]);
        assert!(table.find("c").is_none());
    }
}
