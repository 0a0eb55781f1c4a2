//! A client that signs by AWS's documentation and shows every byte, written apart from the server's own signing code.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

pub(crate) const ACCESS_KEY: &str = "basalt-test-access";
pub(crate) const SECRET_KEY: &str = "basalt-test-secret-0123456789";
const REGION: &str = "us-east-1";
/// No step of these tests takes longer when it works.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Client {
    address: SocketAddr,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The S3 error code.
    pub(crate) fn code(&self) -> String {
        self.element("Code")
    }

    /// The text of the first element of this name.
    pub(crate) fn element(&self, name: &str) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let inner = text.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once("</"));
        inner.map(|(value, _)| value.to_owned()).unwrap_or_default()
    }
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Client {
        Client { address }
    }

    /// `target` is path and query as they go on the wire; query parameters must be sorted and escaped.
    pub(crate) fn call(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let head = self.head(method, target, headers, body.len() as u64, &hex::encode(Sha256::digest(body)));
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).unwrap();
        // A server that refuses early may close before it has read everything.
        let _refused_early = stream.write_all(body).is_err();
        read_answer(stream, method)
    }

    /// Sends a signed head that announces `announced` bytes, then `sent`, and closes its side.
    pub(crate) fn truncated(&self, target: &str, announced: u64, sent: &[u8]) {
        let head = self.head("PUT", target, &[], announced, "UNSIGNED-PAYLOAD");
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(sent).unwrap();
    }

    /// Begins a request: sends its head, which announces `announced` bytes of a body that is not signed.
    pub(crate) fn begin(&self, method: &str, target: &str, announced: u64) -> TcpStream {
        let head = self.head(method, target, &[], announced, "UNSIGNED-PAYLOAD");
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }

    /// Announces an upload with `Expect: 100-continue` and gives the first answer, having sent no byte of it.
    pub(crate) fn expecting(&self, target: &str, announced: u64) -> Answer {
        let head = self.head("PUT", target, &[("expect", "100-continue")], announced, "UNSIGNED-PAYLOAD");
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).unwrap();
        read_answer(stream, "PUT")
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn head(&self, method: &str, target: &str, headers: &[(&str, &str)], len: u64, payload: &str) -> String {
        let now = time::OffsetDateTime::now_utc();
        let form = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
        let date = now.format(&form).unwrap();
        let mut signed: BTreeMap<&str, String> = BTreeMap::new();
        for (name, value) in headers {
            signed.insert(name, (*value).to_owned());
        }
        signed.insert("host", self.address.to_string());
        signed.insert("x-amz-date", date.clone());
        signed.insert("x-amz-content-sha256", payload.to_owned());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let names = signed.keys().copied().collect::<Vec<_>>().join(";");
        let lines: String = signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{payload}");
        let scope = format!("{}/{REGION}/s3/aws4_request", &date[..8]);
        let digest = hex::encode(Sha256::digest(canonical.as_bytes()));
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}");
        let mut key = format!("AWS4{SECRET_KEY}").into_bytes();
        for part in [&date[..8], REGION, "s3", "aws4_request"] {
            key = mac(&key, part.as_bytes());
        }
        let signature = hex::encode(mac(&key, text.as_bytes()));
        let mut head =
            format!("{method} {target} HTTP/1.1\r\ncontent-length: {len}\r\nconnection: close\r\n");
        for (name, value) in &signed {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!(
            "authorization: AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, \
             Signature={signature}\r\n\r\n"
        ));
        head
    }
}

fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

pub(crate) fn read_answer(stream: TcpStream, method: &str) -> Answer {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = Vec::new();
    if status >= 200 && method != "HEAD" {
        match headers.get("content-length") {
            Some(len) => {
                body.resize(len.parse().unwrap(), 0);
                reader.read_exact(&mut body).unwrap();
            }
            None => {
                reader.read_to_end(&mut body).unwrap();
            }
        }
    }
    Answer { status, headers, body }
}
