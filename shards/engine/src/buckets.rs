//! The buckets, as every core knows them.
//!
//! A bucket's record lives in the shard its name hashes to; each core keeps a copy of all, changed on every core before
//! the change is answered, so that a request finds its bucket without asking anybody.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::value::Bucket;

/// Buckets one deployment may have; all are held in memory by every core.
pub const BUCKET_COUNT_MAX: usize = 100_000;

/// One core's copy of the bucket records.
#[derive(Default)]
pub struct Buckets {
    by_name: RefCell<BTreeMap<String, Rc<Bucket>>>,
    by_id: RefCell<BTreeMap<u64, Rc<Bucket>>>,
}

impl Buckets {
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Rc<Bucket>> {
        self.by_name.borrow().get(name).cloned()
    }

    #[must_use]
    pub fn by_id(&self, id: u64) -> Option<Rc<Bucket>> {
        self.by_id.borrow().get(&id).cloned()
    }

    /// All buckets in order of their names.
    #[must_use]
    pub fn all(&self) -> Vec<Rc<Bucket>> {
        self.by_name.borrow().values().cloned().collect()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.borrow().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Enters a bucket, or its changed record.
    pub(crate) fn insert(&self, bucket: Bucket) {
        let bucket = Rc::new(bucket);
        self.by_id.borrow_mut().insert(bucket.id, Rc::clone(&bucket));
        self.by_name.borrow_mut().insert(bucket.name.clone(), bucket);
    }

    pub(crate) fn remove(&self, id: u64) {
        let Some(bucket) = self.by_id.borrow_mut().remove(&id) else { return };
        let mut by_name = self.by_name.borrow_mut();
        if by_name.get(&bucket.name).is_some_and(|current| current.id == id) {
            by_name.remove(&bucket.name);
        }
    }
}
