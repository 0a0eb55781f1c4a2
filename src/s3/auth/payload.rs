//! How a request's body is protected: the meaning of `x-amz-content-sha256`.

use super::RequestHead;
use super::presented::{Place, unique_parameter};
use crate::s3::error::{ErrorCode, Result, S3Error};

const HEADER: &str = "x-amz-content-sha256";
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// What the signature says about the body, and how the body is framed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PayloadMode {
    /// The body is not covered by the signature.
    Unsigned,
    /// The body's SHA-256 must be this.
    Signed([u8; 32]),
    /// `aws-chunked`, each chunk signed; with `trailer`, signed trailing headers follow.
    StreamingSigned { trailer: bool },
    /// `aws-chunked` without signatures, with trailing headers.
    StreamingUnsignedTrailer,
}

impl PayloadMode {
    /// Whether the body is in `aws-chunked` framing.
    pub fn is_chunked(self) -> bool {
        matches!(self, Self::StreamingSigned { .. } | Self::StreamingUnsignedTrailer)
    }

    /// # Errors
    /// `NotImplemented` for the SigV4A modes, `InvalidArgument` for what is no mode and no SHA-256.
    fn parse(text: &str) -> Result<Self> {
        match text {
            UNSIGNED => Ok(Self::Unsigned),
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => Ok(Self::StreamingSigned { trailer: false }),
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => Ok(Self::StreamingSigned { trailer: true }),
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Ok(Self::StreamingUnsignedTrailer),
            "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"
            | "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER" => {
                Err(S3Error::new(ErrorCode::NotImplemented).with("Header", HEADER))
            }
            _ => {
                let mut digest = [0; 32];
                hex::decode_to_slice(text, &mut digest).map_err(|_| invalid_value(text))?;
                Ok(Self::Signed(digest))
            }
        }
    }

    /// The mode and the text that takes its place in the canonical request.
    ///
    /// # Errors
    /// `InvalidRequest` if a request signed by header does not say; those of parsing otherwise.
    pub(super) fn of_signed<'a>(head: &RequestHead<'a>, place: Place) -> Result<(Self, &'a str)> {
        let stated = match (place, stated_in_header(head)?) {
            (Place::Header, None) => {
                return Err(S3Error::invalid_request(
                    "Missing required header for this request: x-amz-content-sha256",
                ));
            }
            (Place::Query, None) => unique_parameter(head, "X-Amz-Content-Sha256")?.unwrap_or(UNSIGNED),
            (_, Some(stated)) => stated,
        };
        Ok((Self::parse(stated)?, stated))
    }

    /// The mode of a request without credentials. Chunks cannot be signed by nobody.
    ///
    /// # Errors
    /// `AccessDenied` for a signed streaming mode; those of parsing otherwise.
    pub(super) fn of_anonymous(head: &RequestHead<'_>) -> Result<Self> {
        match stated_in_header(head)?.map_or(Ok(Self::Unsigned), Self::parse)? {
            Self::StreamingSigned { .. } => Err(ErrorCode::AccessDenied.into()),
            mode => Ok(mode),
        }
    }
}

fn stated_in_header<'a>(head: &RequestHead<'a>) -> Result<Option<&'a str>> {
    let mut values = head.headers.get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match (value.to_str(), values.next()) {
        (Ok(text), None) => Ok(Some(text)),
        _ => Err(invalid_value(&String::from_utf8_lossy(value.as_bytes()))),
    }
}

fn invalid_value(text: &str) -> S3Error {
    S3Error::invalid_argument(
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, \
         STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER, \
         STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD, STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER \
         or a valid sha256 value.",
        HEADER,
        text,
    )
}
