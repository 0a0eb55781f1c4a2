//! Resource limits of this process: raised as far as the operator allows, never silently too low.
//!
//! A server holds one descriptor per connection and registers its buffer arena with the kernel, which counts
//! against the locked-memory limit. Distributions ship soft limits (1,024 files, 8 MiB locked) far below what
//! their hard limits permit.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A limit after it was raised; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open file descriptors.
    pub nofile: Option<u64>,
    /// Locked (registered) memory in bytes.
    pub memlock: Option<u64>,
}

/// The limits as they stand.
#[must_use]
pub fn current() -> Limits {
    Limits { nofile: getrlimit(Resource::Nofile).current, memlock: getrlimit(Resource::Memlock).current }
}

/// Raises both soft limits to their hard limits, and the hard limit of locked memory too where privileges allow.
/// What cannot be raised stays; the caller compares the result with what it needs.
#[must_use]
pub fn raise() -> Limits {
    raise_one(Resource::Nofile);
    if setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).is_err() {
        raise_one(Resource::Memlock);
    }
    current()
}

fn raise_one(resource: Resource) {
    let limit = getrlimit(resource);
    // Refusal leaves the old limit in place, and the caller looks at what is in place.
    let _refused = setrlimit(resource, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raising_never_lowers_a_limit() {
        let before = current();
        let after = raise();
        assert!(at_least(after.nofile, before.nofile), "{before:?} became {after:?}");
        assert!(at_least(after.memlock, before.memlock), "{before:?} became {after:?}");
    }

    fn at_least(after: Option<u64>, before: Option<u64>) -> bool {
        match (after, before) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(after), Some(before)) => after >= before,
        }
    }
}
