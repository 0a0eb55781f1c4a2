//! What a request claims about its signer, parsed once into a type that cannot be malformed.
//!
//! A claim comes in the `Authorization` header or in the query of a presigned URL, never in both.
//! Each malformed piece gets the error AWS gives it, because client authors debug by that text.
//! Nothing here is verified yet: that is [`super::authenticate`]'s work.

use http::HeaderName;

use super::RequestHead;
use super::signing::{SCOPE_TERMINATOR, Scope};
use super::timestamp::{AmzDate, is_date};
use crate::s3::error::{ErrorCode, Result, S3Error};

pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// The longest a presigned URL may be good for: seven days.
pub const PRESIGNED_SECS_MAX: i64 = 604_800;

/// Where the claim was written, which decides the code of every error about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    Header,
    Query,
}

/// A well-formed claim.
#[derive(Debug)]
pub struct Presented<'a> {
    pub place: Place,
    pub access_key: &'a str,
    pub scope: Scope<'a>,
    /// Sorted, lower-case, without duplicates; always a valid header name each.
    pub signed_headers: Vec<&'a str>,
    /// As sent; compared as text.
    pub signature: &'a str,
    pub timestamp: AmzDate,
    /// Validity from `timestamp` on, in seconds, 1 to [`PRESIGNED_SECS_MAX`]; presigned only.
    pub expires_secs: Option<i64>,
    pub session_token: Option<&'a str>,
}

impl<'a> Presented<'a> {
    /// The request's claim, or `None` for an anonymous request.
    ///
    /// # Errors
    /// The code AWS documents for the first malformed, missing, doubled or contradictory piece.
    pub fn parse(head: &RequestHead<'a>) -> Result<Option<Self>> {
        let mut headers = head.headers.get_all(http::header::AUTHORIZATION).iter();
        let header = match headers.next() {
            None => None,
            Some(value) => {
                let argument = |message| {
                    let text = String::from_utf8_lossy(value.as_bytes());
                    S3Error::invalid_argument(message, "Authorization", text)
                };
                if headers.next().is_some() {
                    return Err(argument("Only one Authorization header is allowed"));
                }
                if has_query_claim(head) || head.query.has("Signature") {
                    return Err(argument(
                        "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, \
                         Signature query string parameter or the Authorization header should be specified",
                    ));
                }
                Some(value.to_str().map_err(|_| argument("Unsupported Authorization Type"))?)
            }
        };
        match header {
            Some(header) => Self::from_header(head, header).map(Some),
            None if has_query_claim(head) => Self::from_query(head).map(Some),
            None if head.query.has("AWSAccessKeyId") => Err(unsupported_version()),
            None => Ok(None),
        }
    }

    fn from_header(head: &RequestHead<'a>, header: &'a str) -> Result<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        match scheme {
            ALGORITHM => {}
            "AWS" => return Err(unsupported_version()),
            other if other.starts_with("AWS4-") => return Err(unsupported_version()),
            _ => {
                return Err(S3Error::invalid_argument(
                    "Unsupported Authorization Type",
                    "Authorization",
                    header,
                ));
            }
        }
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for component in rest.split(',') {
            let (name, value) = component.trim().split_once('=').unwrap_or((component, ""));
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => return Err(three_components()),
            };
            if value.is_empty() || slot.replace(value).is_some() {
                return Err(three_components());
            }
        }
        let (Some(credential), Some(signed_headers), Some(signature)) =
            (credential, signed_headers, signature)
        else {
            return Err(three_components());
        };
        let timestamp = header_timestamp(head)?;
        let (access_key, scope) = parse_credential(Place::Header, credential, &timestamp)?;
        Ok(Self {
            place: Place::Header,
            access_key,
            scope,
            signed_headers: parse_signed_headers(Place::Header, signed_headers)?,
            signature,
            timestamp,
            expires_secs: None,
            session_token: header_session_token(head)?,
        })
    }

    fn from_query(head: &RequestHead<'a>) -> Result<Self> {
        let required = |name| unique_parameter(head, name)?.ok_or_else(missing_parameter);
        let algorithm = required("X-Amz-Algorithm")?;
        let credential = required("X-Amz-Credential")?;
        let signature = required("X-Amz-Signature")?;
        let date = required("X-Amz-Date")?;
        let signed_headers = required("X-Amz-SignedHeaders")?;
        let expires = required("X-Amz-Expires")?;
        if algorithm.starts_with("AWS4-ECDSA") {
            return Err(unsupported_version());
        }
        if algorithm != ALGORITHM {
            return Err(parameters_error("X-Amz-Algorithm only supports \"AWS4-HMAC-SHA256\""));
        }
        let timestamp = AmzDate::parse(date).ok_or_else(|| {
            parameters_error("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
        })?;
        let (access_key, scope) = parse_credential(Place::Query, credential, &timestamp)?;
        let in_header = header_session_token(head)?;
        let in_query = unique_parameter(head, "X-Amz-Security-Token")?;
        if in_header.is_some() && in_query.is_some() {
            return Err(ErrorCode::InvalidToken.into());
        }
        Ok(Self {
            place: Place::Query,
            access_key,
            scope,
            signed_headers: parse_signed_headers(Place::Query, signed_headers)?,
            signature,
            timestamp,
            expires_secs: Some(parse_expires(expires)?),
            session_token: in_query.or(in_header),
        })
    }
}

fn has_query_claim(head: &RequestHead<'_>) -> bool {
    ["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature"].iter().any(|name| head.query.has(name))
}

/// An authentication parameter that is given at most once.
pub(super) fn unique_parameter<'a>(head: &RequestHead<'a>, name: &'a str) -> Result<Option<&'a str>> {
    let mut values = head.query.all(name);
    let value = values.next();
    if values.next().is_some() {
        return Err(parameters_error(format!("The {name} parameter must be given only once")));
    }
    Ok(value)
}

fn header_session_token<'a>(head: &RequestHead<'a>) -> Result<Option<&'a str>> {
    let mut tokens = head.headers.get_all("x-amz-security-token").iter();
    let token = tokens.next().map(|token| token.to_str()).transpose();
    match (token, tokens.next()) {
        (Ok(token), None) => Ok(token),
        _ => Err(ErrorCode::InvalidToken.into()),
    }
}

/// `x-amz-date` if it is sent, `Date` otherwise.
fn header_timestamp(head: &RequestHead<'_>) -> Result<AmzDate> {
    let unique = |name: HeaderName| {
        let mut values = head.headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    };
    let name = HeaderName::from_static("x-amz-date");
    let timestamp = if head.headers.contains_key(&name) {
        unique(name).and_then(AmzDate::parse)
    } else {
        unique(http::header::DATE).and_then(AmzDate::parse_http)
    };
    timestamp.ok_or_else(|| {
        S3Error::new(ErrorCode::AccessDenied)
            .message("AWS authentication requires a valid Date or x-amz-date header")
    })
}

/// Splits `KEY/YYYYMMDD/REGION/SERVICE/aws4_request`. The key is whatever stands before the last four
/// components.
fn parse_credential<'a>(place: Place, text: &'a str, timestamp: &AmzDate) -> Result<(&'a str, Scope<'a>)> {
    let mut parts = text.rsplitn(5, '/');
    let mut next =
        || parts.next().filter(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic()));
    let (Some(terminator), Some(service), Some(region), Some(date), Some(access_key)) =
        (next(), next(), next(), next(), next())
    else {
        let expected = "the Credential is mal-formed; \
                        expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\".";
        return Err(malformed(place, expected));
    };
    // The timestamp's date exists, so only another one needs to be looked at.
    if date != timestamp.date() && !is_date(date) {
        let detail = format!(
            "incorrect date format \"{date}\". This date in the credential must be in the format \"yyyyMMdd\"."
        );
        return Err(malformed(place, &detail));
    }
    if terminator != SCOPE_TERMINATOR {
        let detail = format!("incorrect terminal \"{terminator}\". This endpoint uses \"aws4_request\".");
        return Err(malformed(place, &detail));
    }
    if date != timestamp.date() {
        let detail = format!(
            "Invalid credential date \"{date}\". This date is not the same as X-Amz-Date: \"{}\".",
            timestamp.date()
        );
        return Err(malformed(place, &detail));
    }
    Ok((access_key, Scope { date, region, service }))
}

/// Header names become part of the canonical request, so each must be a header name and nothing else.
fn parse_signed_headers(place: Place, text: &str) -> Result<Vec<&str>> {
    let mut names: Vec<&str> = text.split(';').collect();
    names.sort_unstable();
    let doubled = names.windows(2).any(|pair| pair[0] == pair[1]);
    let invalid = names.iter().any(|name| !is_lowercase_header_name(name.as_bytes()));
    if doubled || invalid {
        let detail = "the SignedHeaders are mal-formed; \
                      expecting lower-case header names, each once, separated by semicolons.";
        return Err(match place {
            Place::Header => malformed(place, detail),
            Place::Query => parameters_error(format!("Error parsing X-Amz-SignedHeaders; {detail}")),
        });
    }
    Ok(names)
}

/// A token of RFC 9110 without upper-case letters.
fn is_lowercase_header_name(name: &[u8]) -> bool {
    let is_allowed = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9') || b"!#$%&'*+-.^_`|~".contains(b);
    !name.is_empty() && name.iter().all(is_allowed)
}

fn parse_expires(text: &str) -> Result<i64> {
    let secs: i64 = text.parse().map_err(|_| parameters_error("X-Amz-Expires should be a number"))?;
    match secs {
        ..0 => Err(parameters_error("X-Amz-Expires must be non-negative")),
        0 => Err(parameters_error("X-Amz-Expires must be at least 1 second")),
        1..=PRESIGNED_SECS_MAX => Ok(secs),
        _ => Err(parameters_error(
            "X-Amz-Expires must be less than a week (in seconds); \
             that is, the given X-Amz-Expires must be less than 604800 seconds",
        )),
    }
}

/// The error of a malformed credential, in the words of the place it stands in.
pub(super) fn malformed(place: Place, detail: &str) -> S3Error {
    match place {
        Place::Header => S3Error::new(ErrorCode::AuthorizationHeaderMalformed)
            .message(format!("The authorization header is malformed; {detail}")),
        Place::Query => parameters_error(format!("Error parsing the X-Amz-Credential parameter; {detail}")),
    }
}

fn parameters_error(message: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    S3Error::new(ErrorCode::AuthorizationQueryParametersError).message(message)
}

fn missing_parameter() -> S3Error {
    parameters_error(
        "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, \
         X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.",
    )
}

fn three_components() -> S3Error {
    let detail =
        "the authorization header requires three components: Credential, SignedHeaders, and Signature.";
    malformed(Place::Header, detail)
}

fn unsupported_version() -> S3Error {
    S3Error::invalid_request(
        "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.",
    )
}
