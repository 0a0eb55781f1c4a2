//! Refusals: an S3 error as an answer, through the service's path or straight to the socket.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};

use super::{RequestId, Response};
use crate::s3::error::S3Error;

/// What `Server` says.
pub(super) const SERVER: HeaderValue = HeaderValue::from_static("Basalt");
const XML: HeaderValue = HeaderValue::from_static("application/xml");

/// The answer to a request that is refused with `error`: status, headers and XML, or no body for HEAD and for
/// statuses that have none.
pub fn refuse(error: &S3Error, method: &Method, path: &str, id: RequestId, host_id: &str) -> Response {
    let mut response = Response::new(error.status());
    response.note.code = Some(error.code().name());
    for (name, value) in error.headers() {
        response.headers.append(name.clone(), value.clone());
    }
    let bodiless = error.status().is_informational() || matches!(error.status().as_u16(), 204 | 304);
    if *method != Method::HEAD && !bodiless {
        response.headers.insert(CONTENT_TYPE, XML);
        response.body = error.to_xml(path, id.as_str(), host_id).into();
    }
    response
}

/// The bytes of a whole answer that closes the connection, for when there is no request to answer through hyper.
pub(super) fn refusal_bytes(error: &S3Error, id: RequestId, host_id: &str, date: &str) -> Bytes {
    let xml = error.to_xml("/", id.as_str(), host_id);
    let status = error.status();
    Bytes::from(format!(
        "HTTP/1.1 {} {}\r\nconnection: close\r\ncontent-length: {}\r\ncontent-type: application/xml\r\n\
         date: {date}\r\nserver: Basalt\r\nx-amz-id-2: {host_id}\r\nx-amz-request-id: {id}\r\n\r\n{xml}",
        status.as_u16(),
        status.canonical_reason().unwrap_or(""),
        xml.len(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::error::ErrorCode;

    #[test]
    fn a_refusal_on_the_wire_is_one_complete_answer() {
        let error = S3Error::new(ErrorCode::SlowDown);
        let bytes = refusal_bytes(&error, RequestId::from_u64(1), "H", "Sun, 06 Nov 1994 08:49:37 GMT");
        let text = std::str::from_utf8(&bytes).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        assert!(
            head.contains("connection: close\r\n") && head.ends_with("x-amz-request-id: 0000000000000001")
        );
        assert!(body.contains("<Code>SlowDown</Code>"));
    }

    #[test]
    fn head_and_not_modified_have_no_body() {
        let id = RequestId::from_u64(1);
        let missing = S3Error::new(ErrorCode::NoSuchKey);
        assert!(refuse(&missing, &Method::HEAD, "/b/k", id, "H").body.is_empty());
        assert!(!refuse(&missing, &Method::GET, "/b/k", id, "H").body.is_empty());
        assert!(refuse(&S3Error::new(ErrorCode::NotModified), &Method::GET, "/b/k", id, "H").body.is_empty());
    }
}
