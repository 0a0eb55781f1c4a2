//! Write preconditions as the engine evaluates them: under the key's lock, on the core that owns it.
//!
//! What a guard decides crosses cores as a number; the numbers mean something only here.

use basalt_engine::value::Object;
use basalt_engine::{Guard, Refused};

use super::stored;
use crate::s3::conditions::{WriteConditions, failed};
use crate::s3::error::{ErrorCode, S3Error};

const MISSING: Refused = Refused(1);
const IF_MATCH: Refused = Refused(2);
const IF_NONE_MATCH: Refused = Refused(3);

/// The guard for these conditions; `None` where there are none.
pub(super) fn guard(conditions: WriteConditions) -> Option<Guard> {
    if conditions.is_empty() {
        return None;
    }
    Some(Box::new(move |current: Option<&Object>| {
        let error = match conditions.evaluate(current.map(stored::etag)) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        Err(match (error.code(), error.field("Condition")) {
            (ErrorCode::NoSuchKey, _) => MISSING,
            (_, Some("If-None-Match")) => IF_NONE_MATCH,
            _ => IF_MATCH,
        })
    }))
}

/// The error a guard refused with.
pub(super) fn refusal(refused: Refused) -> S3Error {
    match refused {
        MISSING => ErrorCode::NoSuchKey.into(),
        IF_NONE_MATCH => failed("If-None-Match"),
        _ => failed("If-Match"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::conditions::EntityTags;

    #[test]
    fn a_refusal_says_the_same_on_both_sides_of_the_mesh() {
        let any = || Some(EntityTags::Any);
        let missing = guard(WriteConditions { if_match: any(), if_none_match: None }).expect("a condition");
        let refused = missing(None).expect_err("nothing is there");
        assert_eq!(refusal(refused).code(), ErrorCode::NoSuchKey);
        let create = guard(WriteConditions { if_match: None, if_none_match: any() }).expect("a condition");
        let object = stored::tests::object();
        let refused = create(Some(&object)).expect_err("something is there");
        assert_eq!(refusal(refused).field("Condition"), Some("If-None-Match"));
        let other = EntityTags::parse("\"00000000000000000000000000000000\"").expect("valid");
        let exact = WriteConditions { if_match: Some(other), if_none_match: None };
        let refused = guard(exact).expect("a condition")(Some(&object)).expect_err("another tag");
        assert_eq!(refusal(refused).field("Condition"), Some("If-Match"));
        assert!(guard(WriteConditions::default()).is_none());
    }
}
