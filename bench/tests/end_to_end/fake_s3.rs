//! A minimal S3 in memory, right by default, that can be told to lie: a verifier that has never seen a lie
//! proves nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use md5::{Digest as _, Md5};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    None,
    /// One bit of the last byte of every body is wrong.
    FlipBit,
    /// The bytes of the previous version of an object.
    ServeStale,
    /// The bytes of another object.
    ServeOther,
    /// PUT answers with the ETag of something else.
    WrongEtag,
    /// HEAD tells one byte too many.
    WrongLength,
    /// A range begins one byte later than it was asked for.
    ShiftRange,
    /// A listing leaves its second key out.
    OmitListed,
    /// DELETE is acknowledged and not done.
    KeepDeleted,
    /// A third of the PUTs are acknowledged and not done.
    ForgetPuts,
    /// Complete of an upload joins the parts in reverse.
    ReverseParts,
    /// Each connection is closed after one answer: honest, and no error.
    HangUp,
    /// Every fifth request is refused: honest, and an error.
    Refuse,
}

#[derive(Clone)]
struct Object {
    bytes: Bytes,
    etag: String,
}

#[derive(Default)]
struct State {
    buckets: BTreeMap<String, BTreeMap<String, Object>>,
    previous: BTreeMap<String, Bytes>,
    uploads: BTreeMap<String, BTreeMap<u32, Bytes>>,
    request_count: u64,
}

/// A running server; it ends with the test process.
#[derive(Clone)]
pub(crate) struct FakeS3 {
    lie: Lie,
    state: Arc<Mutex<State>>,
}

type Answer = Response<Full<Bytes>>;

impl FakeS3 {
    pub(crate) fn start(lie: Lie) -> (Self, SocketAddr) {
        Self::start_with(lie, None)
    }

    /// Speaks TLS with a certificate that nobody trusts.
    pub(crate) fn start_tls() -> (Self, SocketAddr) {
        let certificate = CertificateDer::from(&include_bytes!("certificate.der")[..]);
        let key = PrivatePkcs8KeyDer::from(&include_bytes!("key.der")[..]);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions that ring knows")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key.into())
            .expect("a key that belongs to its certificate");
        Self::start_with(Lie::None, Some(TlsAcceptor::from(Arc::new(config))))
    }

    fn start_with(lie: Lie, tls: Option<TlsAcceptor>) -> (Self, SocketAddr) {
        let fake = Self { lie, state: Arc::default() };
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("a bound socket");
        let served = fake.clone();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
            runtime.block_on(served.accept(listener, tls));
        });
        (fake, address)
    }

    /// Bucket names and their keys.
    pub(crate) fn contents(&self) -> BTreeMap<String, Vec<String>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = |objects: &BTreeMap<String, Object>| objects.keys().cloned().collect();
        state.buckets.iter().map(|(bucket, objects)| (bucket.clone(), keys(objects))).collect()
    }

    /// Puts an object that no benchmark wrote.
    pub(crate) fn plant(&self, bucket: &str, key: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let object = Object { bytes: Bytes::new(), etag: etag_of(b"") };
        state.buckets.entry(bucket.to_owned()).or_default().insert(key.to_owned(), object);
    }

    async fn accept(self, listener: std::net::TcpListener, tls: Option<TlsAcceptor>) {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        let connections = tokio::task::LocalSet::new();
        let accept = async {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                stream.set_nodelay(true).expect("a socket");
                let fake = self.clone();
                let service = service_fn(move |request| {
                    let fake = fake.clone();
                    async move { Ok::<_, Infallible>(fake.answer(request).await) }
                });
                let mut server = http1::Builder::new();
                server.keep_alive(self.lie != Lie::HangUp);
                let tls = tls.clone();
                tokio::task::spawn_local(async move {
                    // How a connection ends is the client's to judge.
                    let _ = match tls {
                        None => server.serve_connection(TokioIo::new(stream), service).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => server.serve_connection(TokioIo::new(stream), service).await,
                            Err(_refused) => Ok(()),
                        },
                    };
                });
            }
        };
        connections.run_until(accept).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        let body = match decode_body(&head.headers, body) {
            Ok(body) => body,
            Err(code) => return refuse(StatusCode::BAD_REQUEST, code),
        };
        if !is_signed(&head.headers) {
            return refuse(StatusCode::FORBIDDEN, "AccessDenied");
        }
        let path = head.uri.path().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let query = parse_query(head.uri.query().unwrap_or(""));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.request_count += 1;
        if self.lie == Lie::Refuse && !key.is_empty() && state.request_count.is_multiple_of(5) {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "SlowDown");
        }
        if key.is_empty() {
            return self.answer_bucket(&mut state, &head.method, bucket, &query);
        }
        if !state.buckets.contains_key(bucket) {
            return refuse(StatusCode::NOT_FOUND, "NoSuchBucket");
        }
        if query.contains_key("uploads") || query.contains_key("uploadId") {
            return self.answer_upload(&mut state, &head.method, bucket, key, &query, body);
        }
        self.answer_object(&mut state, &head.method, &head.headers, bucket, key, body)
    }

    fn answer_bucket(
        &self,
        state: &mut State,
        method: &Method,
        bucket: &str,
        query: &BTreeMap<String, String>,
    ) -> Answer {
        match *method {
            Method::HEAD if state.buckets.contains_key(bucket) => ok(""),
            Method::HEAD => empty(StatusCode::NOT_FOUND),
            Method::PUT => {
                state.buckets.entry(bucket.to_owned()).or_default();
                ok("")
            }
            Method::DELETE => match state.buckets.get(bucket) {
                Some(objects) if objects.is_empty() => {
                    state.buckets.remove(bucket);
                    empty(StatusCode::NO_CONTENT)
                }
                Some(_) => refuse(StatusCode::CONFLICT, "BucketNotEmpty"),
                None => refuse(StatusCode::NOT_FOUND, "NoSuchBucket"),
            },
            _ => match state.buckets.get(bucket) {
                Some(objects) => ok(self.list(objects, query)),
                None => refuse(StatusCode::NOT_FOUND, "NoSuchBucket"),
            },
        }
    }

    fn answer_object(
        &self,
        state: &mut State,
        method: &Method,
        headers: &HeaderMap,
        bucket: &str,
        key: &str,
        body: Bytes,
    ) -> Answer {
        let request_count = state.request_count;
        let objects = state.buckets.get_mut(bucket).expect("checked by the caller");
        match *method {
            Method::PUT => {
                let etag = if self.lie == Lie::WrongEtag { etag_of(b"else") } else { etag_of(&body) };
                let object = Object { bytes: body, etag: etag.clone() };
                let forget = self.lie == Lie::ForgetPuts && request_count.is_multiple_of(3);
                if !forget && let Some(previous) = objects.insert(key.to_owned(), object) {
                    state.previous.insert(key.to_owned(), previous.bytes);
                }
                let mut answer = ok("");
                answer.headers_mut().insert("etag", etag.parse().expect("a header value"));
                answer
            }
            Method::DELETE => {
                if self.lie != Lie::KeepDeleted {
                    objects.remove(key);
                }
                empty(StatusCode::NO_CONTENT)
            }
            Method::HEAD => match objects.get(key) {
                None => empty(StatusCode::NOT_FOUND),
                Some(object) => {
                    let len = object.bytes.len() + usize::from(self.lie == Lie::WrongLength);
                    let mut answer = ok("");
                    answer.headers_mut().insert("content-length", len.into());
                    answer.headers_mut().insert("etag", object.etag.parse().expect("a header value"));
                    answer
                }
            },
            _ => match objects.get(key) {
                None => refuse(StatusCode::NOT_FOUND, "NoSuchKey"),
                Some(object) => {
                    let other = objects.values().find(|other| other.etag != object.etag);
                    let bytes = match self.lie {
                        Lie::ServeStale => state.previous.get(key).unwrap_or(&object.bytes),
                        Lie::ServeOther => other.map_or(&object.bytes, |other| &other.bytes),
                        _ => &object.bytes,
                    };
                    self.send(bytes, &object.etag, headers)
                }
            },
        }
    }

    fn send(&self, bytes: &Bytes, etag: &str, headers: &HeaderMap) -> Answer {
        let range = headers.get("range").map(|range| {
            let range = range.to_str().expect("text").strip_prefix("bytes=").expect("a byte range");
            let (first, last) = range.split_once('-').expect("two ends");
            (first.parse::<usize>().expect("a number"), last.parse::<usize>().expect("a number"))
        });
        let (start, end) = range.map_or((0, bytes.len()), |(first, last)| (first, last + 1));
        let mut body = bytes[start..end].to_vec();
        if self.lie == Lie::ShiftRange && range.is_some() {
            body.rotate_left(1);
        }
        if self.lie == Lie::FlipBit
            && let Some(last) = body.last_mut()
        {
            *last ^= 1;
        }
        let mut answer = ok(body);
        answer.headers_mut().insert("etag", etag.parse().expect("a header value"));
        if range.is_some() {
            let content_range = format!("bytes {start}-{}/{}", end - 1, bytes.len());
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
            answer.headers_mut().insert("content-range", content_range.parse().expect("a header value"));
        }
        answer
    }

    fn answer_upload(
        &self,
        state: &mut State,
        method: &Method,
        bucket: &str,
        key: &str,
        query: &BTreeMap<String, String>,
        body: Bytes,
    ) -> Answer {
        let Some(upload_id) = query.get("uploadId") else {
            let upload_id = format!("upload-{}", state.request_count);
            state.uploads.insert(upload_id.clone(), BTreeMap::new());
            return ok(format!(
                "<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>"
            ));
        };
        let Some(parts) = state.uploads.get_mut(upload_id) else {
            return refuse(StatusCode::NOT_FOUND, "NoSuchUpload");
        };
        match *method {
            Method::PUT => {
                let number = query["partNumber"].parse().expect("a part number");
                let mut answer = ok("");
                answer.headers_mut().insert("etag", etag_of(&body).parse().expect("a header value"));
                parts.insert(number, body);
                answer
            }
            Method::DELETE => {
                state.uploads.remove(upload_id);
                empty(StatusCode::NO_CONTENT)
            }
            _ => {
                let document = String::from_utf8_lossy(&body);
                let complete =
                    parts.values().all(|part| document.contains(&format!("<ETag>{}</ETag>", etag_of(part))));
                if !complete || document.matches("<Part>").count() != parts.len() {
                    return ok("<Error><Code>InvalidPart</Code><Message>no such part</Message></Error>");
                }
                let mut parts: Vec<Bytes> = parts.values().cloned().collect();
                if self.lie == Lie::ReverseParts {
                    parts.reverse();
                }
                let md5s: Vec<u8> = parts.iter().flat_map(|part| Md5::digest(part).to_vec()).collect();
                let etag = format!("\"{}-{}\"", hex::encode(Md5::digest(md5s)), parts.len());
                let object = Object { bytes: parts.concat().into(), etag: etag.clone() };
                state.uploads.remove(upload_id);
                let objects = state.buckets.get_mut(bucket).expect("checked by the caller");
                objects.insert(key.to_owned(), object);
                let etag = etag.replace('"', "&quot;");
                ok(format!(
                    "<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>"
                ))
            }
        }
    }

    fn list(&self, objects: &BTreeMap<String, Object>, query: &BTreeMap<String, String>) -> String {
        let get = |name: &str| query.get(name).map(String::as_str);
        let prefix = get("prefix").unwrap_or("");
        let max_keys: usize = get("max-keys").map_or(1_000, |text| text.parse().expect("a number"));
        let after = get("continuation-token").or(get("start-after")).unwrap_or("");
        // Entries in order, each with the text of its element.
        let mut entries: BTreeMap<String, String> = BTreeMap::new();
        for (key, object) in objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
            let folder = get("delimiter").and_then(|delimiter| {
                let rest = &key[prefix.len()..];
                rest.find(delimiter).map(|at| format!("{prefix}{}", &rest[..at + delimiter.len()]))
            });
            // A folder is behind us when its token or one of the keys after it says so.
            if folder.as_deref().is_some_and(|folder| after.starts_with(folder)) || key.as_str() <= after {
                continue;
            }
            let element = match &folder {
                Some(folder) => format!("<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"),
                None => format!(
                    "<Contents><Key>{key}</Key><ETag>{}</ETag><Size>{}</Size></Contents>",
                    object.etag.replace('"', "&quot;"),
                    object.bytes.len()
                ),
            };
            entries.insert(folder.unwrap_or_else(|| key.clone()), element);
        }
        let truncated = entries.len() > max_keys;
        let mut page: Vec<(String, String)> = entries.into_iter().take(max_keys).collect();
        let token = page.last().filter(|_| truncated).map(|(name, _)| name.clone());
        if self.lie == Lie::OmitListed && page.len() > 2 {
            page.remove(1);
        }
        let mut xml = String::from("<?xml version=\"1.0\"?><ListBucketResult>");
        xml.push_str(&format!("<KeyCount>{}</KeyCount><IsTruncated>{truncated}</IsTruncated>", page.len()));
        if let Some(token) = token {
            xml.push_str(&format!("<NextContinuationToken>{token}</NextContinuationToken>"));
        }
        xml.extend(page.into_iter().map(|(_, element)| element));
        xml.push_str("</ListBucketResult>");
        xml
    }
}

fn etag_of(bytes: &[u8]) -> String {
    format!("\"{}\"", hex::encode(Md5::digest(bytes)))
}

/// Undoes `aws-chunked`, and holds every promise that the headers make about the body.
fn decode_body(headers: &HeaderMap, body: Bytes) -> Result<Bytes, &'static str> {
    use base64::Engine as _;
    use sha2::Sha256;

    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let sha256 = header("x-amz-content-sha256").ok_or("MissingSecurityHeader")?;
    let crc32 = |bytes: &[u8]| {
        base64::engine::general_purpose::STANDARD.encode(crc_fast::crc32_iso_hdlc(bytes).to_be_bytes())
    };
    if sha256 == "STREAMING-UNSIGNED-PAYLOAD-TRAILER" {
        let mut decoded = Vec::new();
        let mut rest = &body[..];
        loop {
            let line_len = rest.windows(2).position(|pair| pair == b"\r\n").ok_or("IncompleteBody")?;
            let line = std::str::from_utf8(&rest[..line_len]).map_err(|_| "InvalidRequest")?;
            let len = usize::from_str_radix(line, 16).map_err(|_| "InvalidRequest")?;
            rest = &rest[line_len + 2..];
            if len == 0 {
                break;
            }
            decoded.extend_from_slice(&rest[..len]);
            rest = rest[len..].strip_prefix(b"\r\n").ok_or("InvalidRequest")?;
        }
        let trailer = format!("x-amz-checksum-crc32:{}\r\n\r\n", crc32(&decoded));
        if rest != trailer.as_bytes() || header("x-amz-trailer") != Some("x-amz-checksum-crc32") {
            return Err("BadDigest");
        }
        let decoded_len = decoded.len().to_string();
        if header("x-amz-decoded-content-length") != Some(&decoded_len) {
            return Err("IncompleteBody");
        }
        return Ok(decoded.into());
    }
    if sha256 != "UNSIGNED-PAYLOAD" && sha256 != hex::encode(Sha256::digest(&body)) {
        return Err("XAmzContentSHA256Mismatch");
    }
    if header("x-amz-checksum-crc32").is_some_and(|checksum| checksum != crc32(&body)) {
        return Err("BadDigest");
    }
    Ok(body)
}

fn is_signed(headers: &HeaderMap) -> bool {
    let authorization = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or("");
    authorization.starts_with("AWS4-HMAC-SHA256 Credential=test/") && headers.contains_key("x-amz-date")
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(n, v)| (decode(n), decode(v)))
        .collect()
}

fn ok(body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    answer.headers_mut().insert("server", http::HeaderValue::from_static("FakeS3"));
    answer
}

fn empty(status: StatusCode) -> Answer {
    let mut answer = ok("");
    *answer.status_mut() = status;
    answer
}

fn refuse(status: StatusCode, code: &str) -> Answer {
    let mut answer = ok(format!("<Error><Code>{code}</Code><Message>as told</Message></Error>"));
    *answer.status_mut() = status;
    answer
}
