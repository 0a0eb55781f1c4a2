//! Reads of configuration that was never set: what a fresh bucket of AWS answers.
//!
//! Tools such as Terraform read every configuration of a bucket, so an honest "not implemented" on a
//! read would lock them out of buckets that use none of it. Writes of these stay unimplemented, which
//! is why the answers here are constants: nothing can have been set.

use super::error::{ErrorCode, Result, S3Error};
use super::xml::writer::Writer;

/// A configuration that can be read but not yet set.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum UnsetConfig {
    Accelerate,
    BucketAcl,
    Analytics,
    Cors,
    Encryption,
    IntelligentTiering,
    Inventory,
    Lifecycle,
    Logging,
    Metrics,
    Notification,
    ObjectLock,
    OwnershipControls,
    Policy,
    PolicyStatus,
    PublicAccessBlock,
    Replication,
    RequestPayment,
    BucketTagging,
    Versioning,
    Website,
    ObjectAcl,
    ObjectTagging,
    ObjectLegalHold,
    ObjectRetention,
}

/// Who owns a bucket or object, as ACLs and listings show it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Owner {
    /// AWS's canonical user id: 64 hex digits.
    pub id: String,
    pub display_name: String,
}

impl UnsetConfig {
    /// The name of the read in the S3 API.
    pub fn operation_name(self) -> &'static str {
        match self {
            Self::Accelerate => "GetBucketAccelerateConfiguration",
            Self::BucketAcl => "GetBucketAcl",
            Self::Analytics => "ListBucketAnalyticsConfigurations",
            Self::Cors => "GetBucketCors",
            Self::Encryption => "GetBucketEncryption",
            Self::IntelligentTiering => "ListBucketIntelligentTieringConfigurations",
            Self::Inventory => "ListBucketInventoryConfigurations",
            Self::Lifecycle => "GetBucketLifecycleConfiguration",
            Self::Logging => "GetBucketLogging",
            Self::Metrics => "ListBucketMetricsConfigurations",
            Self::Notification => "GetBucketNotificationConfiguration",
            Self::ObjectLock => "GetObjectLockConfiguration",
            Self::OwnershipControls => "GetBucketOwnershipControls",
            Self::Policy => "GetBucketPolicy",
            Self::PolicyStatus => "GetBucketPolicyStatus",
            Self::PublicAccessBlock => "GetPublicAccessBlock",
            Self::Replication => "GetBucketReplication",
            Self::RequestPayment => "GetBucketRequestPayment",
            Self::BucketTagging => "GetBucketTagging",
            Self::Versioning => "GetBucketVersioning",
            Self::Website => "GetBucketWebsite",
            Self::ObjectAcl => "GetObjectAcl",
            Self::ObjectTagging => "GetObjectTagging",
            Self::ObjectLegalHold => "GetObjectLegalHold",
            Self::ObjectRetention => "GetObjectRetention",
        }
    }

    /// The answer, once bucket and object are known to exist and belong to `owner`: the document of a
    /// 200, or the documented error. `by_id` asks for one entry of a list.
    pub fn answer(self, bucket: &str, by_id: bool, owner: &Owner) -> Result<String> {
        let absent = |code| Err(S3Error::new(code).with("BucketName", bucket));
        match self {
            Self::Accelerate => Ok(document("AccelerateConfiguration", "")),
            Self::Versioning => Ok(document("VersioningConfiguration", "")),
            Self::Logging => Ok(document("BucketLoggingStatus", "")),
            Self::Notification => Ok(document("NotificationConfiguration", "")),
            Self::RequestPayment => Ok(document("RequestPaymentConfiguration", "<Payer>BucketOwner</Payer>")),
            Self::BucketAcl | Self::ObjectAcl => Ok(acl(owner)),
            Self::ObjectTagging => Ok(document("Tagging", "<TagSet></TagSet>")),
            Self::Analytics => list("ListBucketAnalyticsConfigurationResult", by_id),
            Self::IntelligentTiering => list("ListBucketIntelligentTieringConfigurationsOutput", by_id),
            Self::Inventory => list("ListInventoryConfigurationsResult", by_id),
            Self::Metrics => list("ListMetricsConfigurationsResult", by_id),
            Self::Cors => absent(ErrorCode::NoSuchCORSConfiguration),
            Self::Encryption => absent(ErrorCode::ServerSideEncryptionConfigurationNotFoundError),
            Self::Lifecycle => absent(ErrorCode::NoSuchLifecycleConfiguration),
            Self::ObjectLock => absent(ErrorCode::ObjectLockConfigurationNotFoundError),
            Self::OwnershipControls => absent(ErrorCode::OwnershipControlsNotFoundError),
            Self::Policy | Self::PolicyStatus => absent(ErrorCode::NoSuchBucketPolicy),
            Self::PublicAccessBlock => absent(ErrorCode::NoSuchPublicAccessBlockConfiguration),
            Self::Replication => absent(ErrorCode::ReplicationConfigurationNotFoundError),
            Self::BucketTagging => absent(ErrorCode::NoSuchTagSet),
            Self::Website => absent(ErrorCode::NoSuchWebsiteConfiguration),
            Self::ObjectLegalHold | Self::ObjectRetention => {
                Err(S3Error::invalid_request("Bucket is missing Object Lock Configuration"))
            }
        }
    }
}

fn list(root: &str, by_id: bool) -> Result<String> {
    match by_id {
        true => Err(ErrorCode::NoSuchConfiguration.into()),
        false => Ok(document(root, "<IsTruncated>false</IsTruncated>")),
    }
}

fn document(root: &str, content: &'static str) -> String {
    let mut out = String::new();
    let mut w = Writer::document(&mut out, root);
    w.raw(content);
    w.close(root);
    out
}

/// The ACL of everything that never had one set: full control for its owner.
fn acl(owner: &Owner) -> String {
    let mut out = String::new();
    let mut w = Writer::document(&mut out, "AccessControlPolicy");
    w.open("Owner");
    w.text("ID", &owner.id);
    w.text("DisplayName", &owner.display_name);
    w.close("Owner");
    w.raw("<AccessControlList><Grant>");
    w.raw("<Grantee xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"CanonicalUser\">");
    w.text("ID", &owner.id);
    w.text("DisplayName", &owner.display_name);
    w.raw("</Grantee><Permission>FULL_CONTROL</Permission></Grant></AccessControlList>");
    w.close("AccessControlPolicy");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(config: UnsetConfig) -> Result<String> {
        let owner = Owner { id: "0af".to_owned(), display_name: "o<k".to_owned() };
        config.answer("bucket", false, &owner)
    }

    fn code(config: UnsetConfig) -> &'static str {
        answer(config).expect_err("not set").code().name()
    }

    #[test]
    fn what_is_empty_by_default_answers_200() {
        assert_eq!(
            answer(UnsetConfig::Versioning).expect("200"),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<VersioningConfiguration \
             xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"></VersioningConfiguration>"
        );
        for config in [
            UnsetConfig::Accelerate,
            UnsetConfig::Logging,
            UnsetConfig::Notification,
            UnsetConfig::RequestPayment,
            UnsetConfig::ObjectTagging,
            UnsetConfig::Analytics,
            UnsetConfig::IntelligentTiering,
            UnsetConfig::Inventory,
            UnsetConfig::Metrics,
        ] {
            assert!(answer(config).is_ok(), "{config:?}");
        }
        let acl = answer(UnsetConfig::BucketAcl).expect("200");
        assert!(acl.contains("<Owner><ID>0af</ID><DisplayName>o&lt;k</DisplayName></Owner>"));
        assert!(acl.contains("<Permission>FULL_CONTROL</Permission>"));
    }

    #[test]
    fn what_has_no_default_answers_its_documented_404() {
        for (config, expected) in [
            (UnsetConfig::Policy, "NoSuchBucketPolicy"),
            (UnsetConfig::PolicyStatus, "NoSuchBucketPolicy"),
            (UnsetConfig::Cors, "NoSuchCORSConfiguration"),
            (UnsetConfig::Lifecycle, "NoSuchLifecycleConfiguration"),
            (UnsetConfig::BucketTagging, "NoSuchTagSet"),
            (UnsetConfig::Website, "NoSuchWebsiteConfiguration"),
            (UnsetConfig::Replication, "ReplicationConfigurationNotFoundError"),
            (UnsetConfig::ObjectLock, "ObjectLockConfigurationNotFoundError"),
            (UnsetConfig::Encryption, "ServerSideEncryptionConfigurationNotFoundError"),
            (UnsetConfig::PublicAccessBlock, "NoSuchPublicAccessBlockConfiguration"),
            (UnsetConfig::OwnershipControls, "OwnershipControlsNotFoundError"),
        ] {
            assert_eq!(code(config), expected);
            assert_eq!(answer(config).expect_err("not set").status(), 404);
        }
        let one = UnsetConfig::Inventory.answer("bucket", true, &Owner::default());
        assert_eq!(one.expect_err("no entry").code(), ErrorCode::NoSuchConfiguration);
    }
}
