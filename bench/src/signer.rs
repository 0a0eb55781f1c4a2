//! AWS Signature Version 4 for the requests of one slot.
//!
//! The load side shares the machine with the server, so it signs cheaply: the signing key is derived once per
//! day and its HMAC state is kept keyed; the time stamp is formatted once per second.
//! Source: Amazon S3 API Reference, "Authenticating Requests: Using the Authorization Header".

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

type HmacSha256 = Hmac<Sha256>;

/// What a request states as its payload hash when the payload itself is not signed.
pub(crate) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
/// The payload is `aws-chunked`, unsigned, and a trailer follows it.
pub(crate) const UNSIGNED_TRAILER: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";

/// Who signs.
#[derive(Clone)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
    pub session_token: Option<String>,
}

// By hand: a secret never reaches a log.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// A request as the signature sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Canonical<'a> {
    pub method: &'a str,
    /// Percent-encoded once.
    pub path: &'a str,
    /// Percent-encoded, names sorted, `name=` where there is no value.
    pub query: &'a str,
    /// Lower-case names, sorted, values trimmed.
    pub headers: &'a [(&'a str, &'a str)],
    /// The value of `x-amz-content-sha256`.
    pub payload_hash: &'a str,
}

/// Signs requests for one region.
#[derive(Clone, Debug)]
pub(crate) struct Signer {
    credentials: Credentials,
    region: String,
    /// `20130524`: the day for which `key` holds; empty before the first signature.
    day: String,
    key: HmacSha256,
    stamp: Stamp,
}

/// A time in the form of `x-amz-date`, kept while the second lasts.
#[derive(Clone, Debug)]
struct Stamp {
    unix_seconds: i64,
    text: String,
}

impl Signer {
    pub(crate) fn new(credentials: Credentials, region: &str) -> Self {
        Self {
            credentials,
            region: region.to_owned(),
            day: String::new(),
            key: keyed(b""),
            stamp: Stamp { unix_seconds: i64::MIN, text: String::new() },
        }
    }

    /// The session token, to be sent (and signed) as `x-amz-security-token`.
    pub(crate) fn session_token(&self) -> Option<&str> {
        self.credentials.session_token.as_deref()
    }

    /// The time in the form of `x-amz-date`.
    pub(crate) fn date(&mut self, now: time::UtcDateTime) -> &str {
        let unix_seconds = now.unix_timestamp();
        if self.stamp.unix_seconds != unix_seconds {
            let (date, clock) = (now.date(), now.time());
            self.stamp.unix_seconds = unix_seconds;
            self.stamp.text = format!(
                "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
                date.year(),
                u8::from(date.month()),
                date.day(),
                clock.hour(),
                clock.minute(),
                clock.second()
            );
        }
        &self.stamp.text
    }

    /// The value of the `Authorization` header. `amz_date` is the request's own `x-amz-date`.
    pub(crate) fn authorization(&mut self, request: &Canonical<'_>, amz_date: &str) -> String {
        let day = &amz_date[..8];
        if self.day != day {
            self.key = signing_key(&self.credentials.secret_key, day, &self.region);
            day.clone_into(&mut self.day);
        }
        let mut signed_names = String::with_capacity(128);
        let mut canonical = String::with_capacity(512);
        for part in [request.method, "\n", request.path, "\n", request.query, "\n"] {
            canonical.push_str(part);
        }
        for (n, (name, value)) in request.headers.iter().enumerate() {
            for part in [name, ":", value, "\n"] {
                canonical.push_str(part);
            }
            if n > 0 {
                signed_names.push(';');
            }
            signed_names.push_str(name);
        }
        for part in ["\n", &signed_names, "\n", request.payload_hash] {
            canonical.push_str(part);
        }

        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let mut mac = self.key.clone();
        for part in ["AWS4-HMAC-SHA256\n", amz_date, "\n", &scope, "\n"] {
            mac.update(part.as_bytes());
        }
        mac.update(hex::encode(Sha256::digest(canonical.as_bytes())).as_bytes());
        let signature = hex::encode(mac.finalize().into_bytes());
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={signed_names},Signature={signature}",
            self.credentials.access_key
        )
    }
}

fn signing_key(secret_key: &str, day: &str, region: &str) -> HmacSha256 {
    let mut key = keyed(format!("AWS4{secret_key}").as_bytes());
    for part in [day, region, "s3", "aws4_request"] {
        key.update(part.as_bytes());
        key = keyed(&key.finalize().into_bytes());
    }
    key
}

fn keyed(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key).expect("HMAC takes keys of any length")
}

#[cfg(test)]
mod tests {
    //! The examples of the Amazon S3 API Reference, "Signature Calculations for the Authorization Header:
    //! Transferring Payload in a Single Chunk".

    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const HOST: (&str, &str) = ("host", "examplebucket.s3.amazonaws.com");
    const DATE: &str = "20130524T000000Z";

    fn signature(request: &Canonical<'_>) -> String {
        let credentials = Credentials {
            access_key: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            session_token: None,
        };
        let mut signer = Signer::new(credentials, "us-east-1");
        let authorization = signer.authorization(request, DATE);
        assert_eq!(signer.authorization(request, DATE), authorization, "the kept key signs the same");
        let (head, signature) = authorization.split_once(",Signature=").expect("a signature at the end");
        let names: Vec<&str> = request.headers.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            head,
            format!(
                "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders={}",
                names.join(";")
            )
        );
        signature.to_owned()
    }

    #[test]
    fn get_object_with_a_range() {
        let request = Canonical {
            method: "GET",
            path: "/test.txt",
            query: "",
            headers: &[HOST, ("range", "bytes=0-9"), ("x-amz-content-sha256", EMPTY), ("x-amz-date", DATE)],
            payload_hash: EMPTY,
        };
        assert_eq!(signature(&request), "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
    }

    #[test]
    fn put_object() {
        let hash = hex::encode(Sha256::digest(b"Welcome to Amazon S3."));
        let request = Canonical {
            method: "PUT",
            path: "/test%24file.text",
            query: "",
            headers: &[
                ("date", "Fri, 24 May 2013 00:00:00 GMT"),
                HOST,
                ("x-amz-content-sha256", &hash),
                ("x-amz-date", DATE),
                ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ],
            payload_hash: &hash,
        };
        assert_eq!(signature(&request), "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
    }

    #[test]
    fn a_query_without_a_value() {
        let request = Canonical {
            method: "GET",
            path: "/",
            query: "lifecycle=",
            headers: &[HOST, ("x-amz-content-sha256", EMPTY), ("x-amz-date", DATE)],
            payload_hash: EMPTY,
        };
        assert_eq!(signature(&request), "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
    }

    #[test]
    fn list_objects() {
        let request = Canonical {
            method: "GET",
            path: "/",
            query: "max-keys=2&prefix=J",
            headers: &[HOST, ("x-amz-content-sha256", EMPTY), ("x-amz-date", DATE)],
            payload_hash: EMPTY,
        };
        assert_eq!(signature(&request), "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
    }

    #[test]
    fn dates() {
        let credentials =
            Credentials { access_key: String::new(), secret_key: String::new(), session_token: None };
        let mut signer = Signer::new(credentials, "us-east-1");
        for (unix_seconds, text) in [(1_369_353_600, DATE), (1_369_353_601, "20130524T000001Z")] {
            let now = time::UtcDateTime::from_unix_timestamp(unix_seconds).expect("in range");
            assert_eq!(signer.date(now), text);
        }
    }
}
