//! Object metadata: what a client says about an object and gets back with it.
//!
//! System metadata are a fixed set of standard headers, kept as they were written (Expires is not even
//! read as a date). User metadata are the `x-amz-meta-*` headers: names in lower case, values as text,
//! since a value beyond ASCII travels in headers only as RFC 2047 encoded words.

mod encoded_word;

use std::borrow::Cow;

use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, EXPIRES,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::error::{ErrorCode, Result, S3Error};
use super::query::Query;

/// The most user metadata of one object: bytes of UTF-8 of all names (without prefix) and values.
pub const USER_METADATA_LEN_MAX: usize = 2048;
/// The longest system metadata of one object, all values together, in bytes.
pub const SYSTEM_METADATA_LEN_MAX: usize = 8192;
/// What an object is when nobody said.
pub const CONTENT_TYPE_DEFAULT: &str = "binary/octet-stream";

const USER_PREFIX: &str = "x-amz-meta-";
const WEBSITE_REDIRECT: HeaderName = HeaderName::from_static("x-amz-website-redirect-location");
const MISSING_META: HeaderName = HeaderName::from_static("x-amz-missing-meta");

/// The metadata stored with an object.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ObjectMetadata {
    /// `None` means [`CONTENT_TYPE_DEFAULT`].
    pub content_type: Option<String>,
    /// Without `aws-chunked`, which described the transfer and not the object.
    pub content_encoding: Option<String>,
    pub content_disposition: Option<String>,
    pub content_language: Option<String>,
    pub cache_control: Option<String>,
    pub expires: Option<String>,
    pub website_redirect_location: Option<String>,
    /// Names in lower case without `x-amz-meta-`, sorted; values decoded.
    pub user: Vec<(String, String)>,
}

impl ObjectMetadata {
    /// The metadata of a PutObject, CreateMultipartUpload, or CopyObject that replaces them.
    /// Errors: `MetadataTooLarge`, `InvalidArgument`.
    pub fn of_request(headers: &HeaderMap) -> Result<Self> {
        let metadata = Self {
            content_type: text(headers, &CONTENT_TYPE).filter(|value| !value.is_empty()),
            content_encoding: text(headers, &CONTENT_ENCODING).and_then(|v| without_aws_chunked(&v)),
            content_disposition: text(headers, &CONTENT_DISPOSITION),
            content_language: text(headers, &CONTENT_LANGUAGE),
            cache_control: text(headers, &CACHE_CONTROL),
            expires: text(headers, &EXPIRES),
            website_redirect_location: website_redirect(headers)?,
            user: user_metadata(headers)?,
        };
        let system_len: usize =
            metadata.system().iter().map(|(_, value)| value.as_ref().map_or(0, String::len)).sum();
        if system_len > SYSTEM_METADATA_LEN_MAX {
            return Err(too_large(system_len, SYSTEM_METADATA_LEN_MAX));
        }
        Ok(metadata)
    }

    /// Every entry as (lower-case header name, text): the form in which metadata are stored.
    pub fn to_pairs(&self) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
        let system = self
            .system()
            .into_iter()
            .filter_map(|(name, value)| Some((Cow::Owned(name.as_str().to_owned()), value.as_deref()?)));
        let user = self
            .user
            .iter()
            .map(|(name, value)| (Cow::Owned(format!("{USER_PREFIX}{name}")), value.as_str()));
        system.chain(user)
    }

    /// The inverse of [`Self::to_pairs`]. A name that is not metadata is left out.
    pub fn from_pairs<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>) -> Self {
        let mut metadata = Self::default();
        for (name, value) in pairs {
            if let Some(name) = name.strip_prefix(USER_PREFIX) {
                metadata.user.push((name.to_owned(), value.to_owned()));
            } else if let Some(slot) = metadata.slot(name) {
                *slot = Some(value.to_owned());
            }
        }
        metadata
    }

    /// Appends the headers of a GET or HEAD. User metadata that no header can carry are counted in
    /// `x-amz-missing-meta`, as AWS does.
    pub fn write_headers(&self, overrides: &ResponseOverrides, out: &mut HeaderMap) {
        for (name, stored) in self.system() {
            let value = match (overrides.get(&name), stored) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(stored)) => HeaderValue::from_bytes(stored.as_bytes()).ok(),
                (None, None) if name == CONTENT_TYPE => Some(HeaderValue::from_static(CONTENT_TYPE_DEFAULT)),
                (None, None) => None,
            };
            if let Some(value) = value {
                out.insert(name, value);
            }
        }
        let mut missing = 0u32;
        for (name, value) in &self.user {
            let name = HeaderName::try_from(format!("{USER_PREFIX}{name}"));
            let value = HeaderValue::from_str(&encoded_word::encode(value));
            match (name, value) {
                (Ok(name), Ok(value)) => {
                    out.insert(name, value);
                }
                _ => missing += 1,
            }
        }
        if missing > 0 {
            out.insert(MISSING_META, HeaderValue::from(missing));
        }
    }

    fn system(&self) -> [(HeaderName, &Option<String>); 7] {
        [
            (CONTENT_TYPE, &self.content_type),
            (CONTENT_ENCODING, &self.content_encoding),
            (CONTENT_DISPOSITION, &self.content_disposition),
            (CONTENT_LANGUAGE, &self.content_language),
            (CACHE_CONTROL, &self.cache_control),
            (EXPIRES, &self.expires),
            (WEBSITE_REDIRECT, &self.website_redirect_location),
        ]
    }

    fn slot(&mut self, name: &str) -> Option<&mut Option<String>> {
        match name {
            "content-type" => Some(&mut self.content_type),
            "content-encoding" => Some(&mut self.content_encoding),
            "content-disposition" => Some(&mut self.content_disposition),
            "content-language" => Some(&mut self.content_language),
            "cache-control" => Some(&mut self.cache_control),
            "expires" => Some(&mut self.expires),
            "x-amz-website-redirect-location" => Some(&mut self.website_redirect_location),
            _ => None,
        }
    }
}

/// The `response-*` parameters of a read: header values that replace the stored ones in this answer.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ResponseOverrides {
    values: Vec<(HeaderName, HeaderValue)>,
}

impl ResponseOverrides {
    /// Errors: `InvalidArgument` when a value cannot stand in a header.
    pub fn of_query(query: &Query<'_>) -> Result<Self> {
        let parameters: [(&'static str, HeaderName); 6] = [
            ("response-content-type", CONTENT_TYPE),
            ("response-content-language", CONTENT_LANGUAGE),
            ("response-expires", EXPIRES),
            ("response-cache-control", CACHE_CONTROL),
            ("response-content-disposition", CONTENT_DISPOSITION),
            ("response-content-encoding", CONTENT_ENCODING),
        ];
        let mut values = Vec::new();
        for (parameter, header) in parameters {
            if let Some(text) = query.first(parameter) {
                let value = HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
                    S3Error::invalid_argument("The value cannot be sent in a header.", parameter, text)
                })?;
                values.push((header, value));
            }
        }
        Ok(Self { values })
    }

    /// Whether any was asked for; an anonymous request must not.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.values.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }
}

/// Removes the coding that only described the upload; `None` when nothing is left.
fn without_aws_chunked(value: &str) -> Option<String> {
    let is_chunked = |coding: &&str| coding.trim().eq_ignore_ascii_case("aws-chunked");
    if value.split(',').any(|coding| is_chunked(&coding)) {
        let kept: Vec<&str> =
            value.split(',').filter(|c| !is_chunked(c)).map(str::trim).filter(|c| !c.is_empty()).collect();
        return (!kept.is_empty()).then(|| kept.join(","));
    }
    (!value.trim().is_empty()).then(|| value.to_owned())
}

fn website_redirect(headers: &HeaderMap) -> Result<Option<String>> {
    let Some(location) = text(headers, &WEBSITE_REDIRECT) else { return Ok(None) };
    if ["/", "http://", "https://"].iter().any(|prefix| location.starts_with(prefix)) {
        return Ok(Some(location));
    }
    Err(S3Error::invalid_argument(
        "The website redirect location must have a prefix of 'http://' or 'https://' or '/'.",
        WEBSITE_REDIRECT.as_str(),
        location,
    ))
}

fn user_metadata(headers: &HeaderMap) -> Result<Vec<(String, String)>> {
    let mut user = Vec::new();
    let mut len = 0;
    for header in headers.keys() {
        let Some(name) = header.as_str().strip_prefix(USER_PREFIX) else { continue };
        if name.is_empty() {
            return Err(S3Error::invalid_argument("A metadata name cannot be empty.", USER_PREFIX, ""));
        }
        let value = text(headers, header).unwrap_or_default();
        let value = encoded_word::decode(&value).into_owned();
        len += name.len() + value.len();
        user.push((name.to_owned(), value));
    }
    if len > USER_METADATA_LEN_MAX {
        return Err(too_large(len, USER_METADATA_LEN_MAX));
    }
    user.sort();
    Ok(user)
}

fn too_large(len: usize, len_max: usize) -> S3Error {
    S3Error::new(ErrorCode::MetadataTooLarge)
        .with("Size", len.to_string())
        .with("MaxSizeAllowed", len_max.to_string())
}

/// All values of a header, joined by commas. Bytes are UTF-8 where they can be, else ISO 8859-1.
fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut values = headers.get_all(name).iter().map(|value| match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => value.as_bytes().iter().map(|&b| char::from(b)).collect(),
    });
    let mut joined = values.next()?;
    for value in values {
        joined.push(',');
        joined.push_str(&value);
    }
    Some(joined)
}

#[cfg(test)]
mod tests;
