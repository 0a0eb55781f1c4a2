//! The sub-resources of S3: every one that AWS documents, and what is done about it here.
//!
//! One table holds them all, built or not. A name in the table never reaches the plain operations: it
//! is either built, or answered as never set, or 501; a method that the sub-resource does not have,
//! and a sub-resource of the other kind of target, are 405.

use http::Method;
use http::header::{ALLOW, HeaderValue};

use crate::s3::error::{ErrorCode, Result, S3Error};
use crate::s3::query::Query;
use crate::s3::unset::UnsetConfig;

/// The methods of S3.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verb {
    Get,
    Head,
    Put,
    Post,
    Delete,
}

/// What a sub-resource belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scope {
    /// Has no sub-resources: every name of the table is refused there.
    Service,
    Bucket,
    Object,
}

/// The sub-resources that are built.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SubResource {
    Delete,
    Location,
    UploadId,
    Uploads,
    Versions,
}

/// A sub-resource that can be answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Found {
    Built(SubResource),
    Unset(UnsetConfig),
}

#[derive(Clone, Copy)]
enum Plan {
    Answer(Found),
    Unbuilt,
}

struct Row {
    name: &'static str,
    scope: Scope,
    methods: &'static [(Verb, Plan)],
}

impl Verb {
    pub(super) fn of(method: &Method) -> Option<Self> {
        match *method {
            Method::GET => Some(Self::Get),
            Method::HEAD => Some(Self::Head),
            Method::PUT => Some(Self::Put),
            Method::POST => Some(Self::Post),
            Method::DELETE => Some(Self::Delete),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

/// The sub-resource of `scope` that the query names, if any.
///
/// Errors: `InvalidArgument` when it names several, `MethodNotAllowed`, `NotImplemented`.
pub(super) fn find(query: &Query<'_>, scope: Scope, verb: Verb) -> Result<Option<Found>> {
    let mut named: Option<&str> = None;
    for (name, _) in query.iter() {
        if !TABLE.iter().any(|row| row.name == name) {
            continue;
        }
        match named {
            Some(first) if first != name => {
                return Err(S3Error::invalid_argument(
                    format!("Conflicting query string parameters: {first}, {name}"),
                    "ResourceType",
                    name,
                ));
            }
            _ => named = Some(name),
        }
    }
    let Some(name) = named else { return Ok(None) };
    let methods =
        TABLE.iter().find(|row| row.name == name && row.scope == scope).map_or(&[][..], |row| row.methods);
    match methods.iter().find(|(v, _)| *v == verb) {
        Some((_, Plan::Answer(found))) => Ok(Some(*found)),
        Some((_, Plan::Unbuilt)) => Err(S3Error::new(ErrorCode::NotImplemented)
            .message("The requested sub-resource is not implemented.")
            .with("ResourceType", name)),
        None => {
            let allowed: Vec<Verb> = methods.iter().map(|(verb, _)| *verb).collect();
            Err(method_not_allowed(verb.name(), &name.to_ascii_uppercase(), &allowed))
        }
    }
}

/// The 405, with `Allow` where some method would do.
pub(super) fn method_not_allowed(method: &str, resource_type: &str, allowed: &[Verb]) -> S3Error {
    let error =
        S3Error::new(ErrorCode::MethodNotAllowed).with("Method", method).with("ResourceType", resource_type);
    if allowed.is_empty() {
        return error;
    }
    let names: Vec<&str> = allowed.iter().map(|verb| verb.name()).collect();
    error.header(ALLOW, HeaderValue::from_str(&names.join(", ")).expect("method names are ASCII"))
}

const fn built(sub: SubResource) -> Plan {
    Plan::Answer(Found::Built(sub))
}

const fn unset(config: UnsetConfig) -> Plan {
    Plan::Answer(Found::Unset(config))
}

const NO: Plan = Plan::Unbuilt;

#[rustfmt::skip] // A table: one sub-resource per line reads better than the wrapped form.
const TABLE: &[Row] = {
    use Scope::{Bucket as B, Object as O};
    use SubResource as S;
    use UnsetConfig as U;
    use Verb::{Delete, Get, Post, Put};
    &[
        Row { name: "abac", scope: B, methods: &[(Get, NO), (Put, NO)] },
        Row { name: "accelerate", scope: B, methods: &[(Get, unset(U::Accelerate)), (Put, NO)] },
        Row { name: "acl", scope: B, methods: &[(Get, unset(U::BucketAcl)), (Put, NO)] },
        Row { name: "acl", scope: O, methods: &[(Get, unset(U::ObjectAcl)), (Put, NO)] },
        Row { name: "analytics", scope: B, methods: &[(Get, unset(U::Analytics)), (Put, NO), (Delete, NO)] },
        Row { name: "append", scope: O, methods: &[(Put, NO), (Post, NO)] },
        Row { name: "attributes", scope: O, methods: &[(Get, NO)] },
        Row { name: "cors", scope: B, methods: &[(Get, unset(U::Cors)), (Put, NO), (Delete, NO)] },
        Row { name: "delete", scope: B, methods: &[(Post, built(S::Delete))] },
        Row { name: "encryption", scope: B, methods: &[(Get, unset(U::Encryption)), (Put, NO), (Delete, NO)] },
        Row { name: "encryption", scope: O, methods: &[(Put, NO)] },
        Row { name: "intelligent-tiering", scope: B, methods: &[(Get, unset(U::IntelligentTiering)), (Put, NO), (Delete, NO)] },
        Row { name: "inventory", scope: B, methods: &[(Get, unset(U::Inventory)), (Put, NO), (Delete, NO)] },
        Row { name: "legal-hold", scope: O, methods: &[(Get, unset(U::ObjectLegalHold)), (Put, NO)] },
        Row { name: "lifecycle", scope: B, methods: &[(Get, unset(U::Lifecycle)), (Put, NO), (Delete, NO)] },
        Row { name: "location", scope: B, methods: &[(Get, built(S::Location))] },
        Row { name: "logging", scope: B, methods: &[(Get, unset(U::Logging)), (Put, NO)] },
        Row { name: "metadataConfiguration", scope: B, methods: &[(Get, NO), (Post, NO), (Delete, NO)] },
        Row { name: "metadataInventoryTable", scope: B, methods: &[(Put, NO)] },
        Row { name: "metadataJournalTable", scope: B, methods: &[(Put, NO)] },
        Row { name: "metadataTable", scope: B, methods: &[(Get, NO), (Post, NO), (Delete, NO)] },
        Row { name: "metrics", scope: B, methods: &[(Get, unset(U::Metrics)), (Put, NO), (Delete, NO)] },
        Row { name: "notification", scope: B, methods: &[(Get, unset(U::Notification)), (Put, NO)] },
        Row { name: "object-lock", scope: B, methods: &[(Get, unset(U::ObjectLock)), (Put, NO)] },
        Row { name: "ownershipControls", scope: B, methods: &[(Get, unset(U::OwnershipControls)), (Put, NO), (Delete, NO)] },
        Row { name: "policy", scope: B, methods: &[(Get, unset(U::Policy)), (Put, NO), (Delete, NO)] },
        Row { name: "policyStatus", scope: B, methods: &[(Get, unset(U::PolicyStatus))] },
        Row { name: "publicAccessBlock", scope: B, methods: &[(Get, unset(U::PublicAccessBlock)), (Put, NO), (Delete, NO)] },
        Row { name: "renameObject", scope: O, methods: &[(Put, NO)] },
        Row { name: "replication", scope: B, methods: &[(Get, unset(U::Replication)), (Put, NO), (Delete, NO)] },
        Row { name: "requestPayment", scope: B, methods: &[(Get, unset(U::RequestPayment)), (Put, NO)] },
        Row { name: "restore", scope: O, methods: &[(Post, NO)] },
        Row { name: "retention", scope: O, methods: &[(Get, unset(U::ObjectRetention)), (Put, NO)] },
        Row { name: "select", scope: O, methods: &[(Post, NO)] },
        Row { name: "session", scope: B, methods: &[(Get, NO)] },
        Row { name: "tagging", scope: B, methods: &[(Get, unset(U::BucketTagging)), (Put, NO), (Delete, NO)] },
        Row { name: "tagging", scope: O, methods: &[(Get, unset(U::ObjectTagging)), (Put, NO), (Delete, NO)] },
        Row { name: "torrent", scope: O, methods: &[(Get, NO)] },
        Row { name: "uploadId", scope: O, methods: &[
            (Get, built(S::UploadId)), (Put, built(S::UploadId)), (Post, built(S::UploadId)), (Delete, built(S::UploadId)),
        ] },
        Row { name: "uploads", scope: B, methods: &[(Get, built(S::Uploads))] },
        Row { name: "uploads", scope: O, methods: &[(Post, built(S::Uploads))] },
        Row { name: "versioning", scope: B, methods: &[(Get, unset(U::Versioning)), (Put, NO)] },
        Row { name: "versions", scope: B, methods: &[(Get, built(S::Versions))] },
        Row { name: "website", scope: B, methods: &[(Get, unset(U::Website)), (Put, NO), (Delete, NO)] },
    ]
};

/// Every name of the table, for tests that send all of them.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|row| row.name)
}
