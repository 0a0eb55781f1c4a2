//! The server's own endpoints, answered before S3: `/-/metrics`, `/-/live`, `/-/ready`, `/-/disks`, and the names that
//! deployments moving here already probe.
//!
//! `-` is not a valid bucket name, so `/-/` takes nothing from S3. `/minio/health/…` is answered only while there is no
//! bucket called `minio`. Where the host names the bucket, the whole path is a key, and none of it is ours.

use std::net::SocketAddr;
use std::rc::Rc;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};

use super::{Handler, Request, Response, ResponseBody};
use crate::s3::addressing::Addressing;

/// Whether the server can serve, and the details as a JSON object.
#[derive(Clone, Debug)]
pub struct Readiness {
    pub ready: bool,
    /// A JSON object.
    pub json: String,
}

/// What the endpoints ask of the rest of the server.
#[derive(Clone)]
pub struct Probes {
    pub readiness: Rc<dyn Fn() -> Readiness>,
    /// Whether a bucket called `minio` exists.
    pub minio_bucket_exists: Rc<dyn Fn() -> bool>,
    /// The Prometheus text.
    pub metrics: Rc<dyn Fn() -> String>,
    /// Whether peers other than loopback may read the metrics.
    pub metrics_public: bool,
    /// Answers what is below `/-/disks`.
    pub disks: Handler,
    /// Tells hosts that name a bucket from those that name this server.
    pub addressing: Addressing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Metrics,
    Live,
    Ready,
    /// Under `/-/`, but none of ours.
    Unknown,
}

impl Probes {
    /// Who answers a request that [`Probes::answer`] had no answer to, if it is one about disks.
    pub(super) fn handler_of(&self, request: &Request) -> Option<&Handler> {
        let path = request.head.uri.path();
        let is_ours = path == "/-/disks" || path.starts_with("/-/disks/");
        (is_ours && !self.is_of_bucket(&request.head)).then_some(&self.disks)
    }

    /// Whether the host names a bucket, so that the whole path is a key.
    fn is_of_bucket(&self, head: &Parts) -> bool {
        let host = match head.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => head.headers.get(HOST).and_then(|host| host.to_str().ok()),
        };
        host.is_some_and(|host| self.addressing.names_bucket(host))
    }

    /// The answer, if the request is for one of the server's own endpoints that are answered at once.
    pub(super) fn answer(&self, head: &Parts, peer: SocketAddr) -> Option<Response> {
        let path = head.uri.path();
        // Nearly every request ends here.
        if !path.starts_with("/-/") && !path.starts_with("/minio/health/") {
            return None;
        }
        if self.is_of_bucket(head) {
            return None;
        }
        let (endpoint, alias) = endpoint(path)?;
        if alias && (self.minio_bucket_exists)() {
            return None;
        }
        let mut response = self.serve(endpoint, &head.method, peer);
        response.note.operation = match endpoint {
            Endpoint::Metrics => "-metrics",
            Endpoint::Live => "-live",
            Endpoint::Ready => "-ready",
            Endpoint::Unknown => "-unknown",
        };
        response.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Some(response)
    }

    fn serve(&self, endpoint: Endpoint, method: &Method, peer: SocketAddr) -> Response {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut response = Response::new(StatusCode::METHOD_NOT_ALLOWED);
            response.headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let (status, kind, body) = match endpoint {
            Endpoint::Unknown => return Response::new(StatusCode::NOT_FOUND),
            Endpoint::Metrics if !self.metrics_public && !is_loopback(peer) => {
                return Response::new(StatusCode::FORBIDDEN);
            }
            Endpoint::Metrics => (StatusCode::OK, "text/plain; version=0.0.4", (self.metrics)()),
            Endpoint::Live => (StatusCode::OK, "application/json", "{\"live\":true}".to_owned()),
            Endpoint::Ready => {
                let readiness = (self.readiness)();
                let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                (status, "application/json", readiness.json)
            }
        };
        let mut response = Response::new(status).with_body(ResponseBody::from(body));
        response.headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}

/// The endpoint of a path, and whether it is one of the aliases.
fn endpoint(path: &str) -> Option<(Endpoint, bool)> {
    Some(match path {
        "/-/metrics" => (Endpoint::Metrics, false),
        "/-/live" => (Endpoint::Live, false),
        "/-/ready" => (Endpoint::Ready, false),
        "/minio/health/live" => (Endpoint::Live, true),
        "/minio/health/ready" | "/minio/health/cluster" => (Endpoint::Ready, true),
        _ if path == "/-/disks" || path.starts_with("/-/disks/") => return None,
        _ if path.starts_with("/-/") => (Endpoint::Unknown, false),
        _ => return None,
    })
}

pub(crate) fn is_loopback(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probes(bucket: bool, public: bool, ready: bool) -> Probes {
        Probes {
            readiness: Rc::new(move || Readiness { ready, json: "{}".to_owned() }),
            minio_bucket_exists: Rc::new(move || bucket),
            metrics: Rc::new(|| "m 1\n".to_owned()),
            metrics_public: public,
            disks: Rc::new(|_| Box::pin(async { Response::new(StatusCode::OK) })),
            addressing: Addressing::new(["s3.example.com"]),
        }
    }

    fn status(probes: &Probes, path: &'static str, peer: &str) -> Option<u16> {
        status_at(probes, "10.0.0.9:9000", path, peer)
    }

    fn status_at(probes: &Probes, host: &str, path: &str, peer: &str) -> Option<u16> {
        let peer = SocketAddr::new(peer.parse().expect("an address"), 1);
        let (head, ()) =
            http::Request::get(path).header(HOST, host).body(()).expect("a valid request").into_parts();
        probes.answer(&head, peer).map(|response| response.status.as_u16())
    }

    #[test]
    fn metrics_are_for_this_machine_unless_made_public() {
        let private = probes(false, false, true);
        assert_eq!(status(&private, "/-/metrics", "127.0.0.1"), Some(200));
        assert_eq!(status(&private, "/-/metrics", "::1"), Some(200));
        assert_eq!(status(&private, "/-/metrics", "::ffff:127.0.0.1"), Some(200));
        assert_eq!(status(&private, "/-/metrics", "10.0.0.1"), Some(403));
        assert_eq!(status(&probes(false, true, true), "/-/metrics", "10.0.0.1"), Some(200));
    }

    #[test]
    fn readiness_decides_the_status_and_liveness_does_not_ask() {
        let broken = probes(false, false, false);
        assert_eq!(status(&broken, "/-/ready", "10.0.0.1"), Some(503));
        assert_eq!(status(&broken, "/-/live", "10.0.0.1"), Some(200));
    }

    #[test]
    fn a_bucket_named_by_the_host_has_keys_like_our_endpoints() {
        let probes = probes(false, true, true);
        for path in ["/-/live", "/-/metrics", "/-/other", "/minio/health/live"] {
            assert_eq!(status_at(&probes, "bucket.s3.example.com:9000", path, "127.0.0.1"), None, "{path}");
            let absolute = format!("http://bucket.s3.example.com{path}");
            assert_eq!(status_at(&probes, "10.0.0.9", &absolute, "127.0.0.1"), None, "{path}");
            for host in ["s3.example.com", "10.0.0.9:9000", "elsewhere.example.com"] {
                assert!(status_at(&probes, host, path, "127.0.0.1").is_some(), "{host}{path}");
            }
        }
    }

    #[test]
    fn a_bucket_called_minio_gets_its_own_keys() {
        assert_eq!(status(&probes(false, false, true), "/minio/health/live", "10.0.0.1"), Some(200));
        assert_eq!(status(&probes(true, false, true), "/minio/health/live", "10.0.0.1"), None);
        assert_eq!(status(&probes(false, false, true), "/minio/other", "10.0.0.1"), None);
        assert_eq!(status(&probes(false, false, true), "/bucket/-/live", "10.0.0.1"), None);
        assert_eq!(status(&probes(false, false, true), "/-/other", "10.0.0.1"), Some(404));
    }
}
