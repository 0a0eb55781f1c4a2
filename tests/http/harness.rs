//! A server with a stand-in handler on a thread of its own, and a client that shows every byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use basalt::config::TlsFiles;
use basalt::http::limits::Limits;
use basalt::http::tls::Certificate;
use basalt::http::{
    BodyAborted, Front, FrontParts, Handler, Probes, Readiness, Request, Response, ResponseBody,
};
use basalt::logging::access::AccessLog;
use basalt::logging::{LogFormat, LogWriter};
use basalt::metrics::Metrics;
use basalt::s3::addressing::Addressing;
use basalt_reactor::net::Listener;
use basalt_reactor::{Core, CoreId, ring};
use bytes::Bytes;
use http::StatusCode;

/// No step of these tests takes longer when it works.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn limits() -> Limits {
    Limits { connections_max: 64, ..Limits::default() }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(limits: Limits) -> Server {
        Server::start_with(limits, None)
    }

    /// Serves TLS with the certificate of that name in tests/fixtures/tls.
    pub(crate) fn start_with(limits: Limits, certificate: Option<&str>) -> Server {
        let certificate = certificate.map(|name| {
            let file = |end| format!("{}/tests/fixtures/tls/{name}.{end}", env!("CARGO_MANIFEST_DIR")).into();
            let files = TlsFiles { cert: file("pem"), key: file("key") };
            Arc::new(Certificate::load(files).unwrap())
        });
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, address) = mpsc::channel();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let config = ring::Config { id: CoreId(0), cpu: None, arena_len: 32 << 20, entries: 256 };
            ring::run(&config, move |core| serve(core, limits, certificate, stopped, tell)).unwrap();
        });
        Server { address: address.recv().unwrap(), stop, thread: Some(thread) }
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
    }
}

async fn serve(
    core: Core,
    limits: Limits,
    certificate: Option<Arc<Certificate>>,
    stop: Arc<AtomicBool>,
    tell: mpsc::Sender<SocketAddr>,
) {
    let listener = Listener::bind(&core, "127.0.0.1:0".parse().unwrap()).unwrap();
    tell.send(listener.local_addr()).unwrap();
    let metrics = Metrics::new(1);
    let shown = metrics.clone();
    let log = LogWriter::start(std::io::sink());
    let front = Front::new(FrontParts {
        core: core.clone(),
        handler: handler(&core),
        probes: Probes {
            readiness: Rc::new(|| Readiness { ready: true, json: "{\"ready\":true}".to_owned() }),
            minio_bucket_exists: Rc::new(|| false),
            metrics: Rc::new(move || shown.render(0)),
            metrics_public: false,
            disks: handler(&core),
            addressing: Addressing::default(),
        },
        access: AccessLog::new(log.queue(), LogFormat::Json, true),
        limits,
        metrics,
        certificate,
        host_id: "test-host".to_owned(),
    });
    let accepting = core.spawn(Rc::clone(&front).accept_all(listener));
    let watching = core.spawn(Rc::clone(&front).watch_all());
    while !stop.load(Ordering::Relaxed) {
        core.sleep(Duration::from_millis(20)).await;
    }
    accepting.cancel();
    accepting.await;
    // A test that failed may have left a connection that never ends.
    let draining = core.spawn(async move { front.drain().await });
    let deadline = core.now() + PATIENCE;
    while !draining.is_finished() && core.now() < deadline {
        core.sleep(Duration::from_millis(20)).await;
    }
    watching.cancel();
}

fn handler(core: &Core) -> Handler {
    let core = core.clone();
    Rc::new(move |request| Box::pin(answer(core.clone(), request)))
}

/// One path per behaviour the tests need.
async fn answer(core: Core, mut request: Request) -> Response {
    let path = request.head.uri.path().to_owned();
    let mut parts = path.split('/').skip(1);
    let (name, number) = (parts.next().unwrap_or(""), parts.next().and_then(|text| text.parse::<u64>().ok()));
    let bytes = |text: &'static str| ResponseBody::Whole(Bytes::from_static(text.as_bytes()).into());
    let (status, body) = match (name, number) {
        ("hello", _) => (StatusCode::OK, bytes("hello")),
        ("refuse", _) => (StatusCode::FORBIDDEN, bytes("no")),
        ("echo", _) => echo(&mut request).await,
        ("sleep", Some(ms)) => {
            core.sleep(Duration::from_millis(ms)).await;
            (StatusCode::OK, bytes("slept"))
        }
        ("slices", Some(len)) => (StatusCode::OK, slices(core, len)),
        ("whitespace", _) => (StatusCode::OK, whitespace(core)),
        ("abort", _) => (StatusCode::OK, abort(core)),
        _ => (StatusCode::NOT_FOUND, ResponseBody::Empty),
    };
    Response::new(status).with_body(body)
}

async fn echo(request: &mut Request) -> (StatusCode, ResponseBody) {
    let mut all = Vec::new();
    while let Some(chunk) = request.body.next().await {
        match chunk {
            Ok(bytes) => all.extend_from_slice(&bytes),
            Err(error) => return (StatusCode::BAD_REQUEST, format!("{error:?}").into()),
        }
    }
    (StatusCode::OK, ResponseBody::Whole(Bytes::from(all).into()))
}

/// 64 KiB slices of the arena, each filled with its number.
fn slices(core: Core, len: u64) -> ResponseBody {
    ResponseBody::produce(Some(len), async move |mut writer| {
        let mut left = usize::try_from(len).map_err(|_| BodyAborted)?;
        let mut number = 0u8;
        while left > 0 {
            let mut buf = core.arena().alloc(left.min(65_536)).await;
            buf.set_len(left.min(65_536));
            buf.fill(number);
            left -= buf.len();
            number = number.wrapping_add(1);
            writer.send(buf.freeze()).await;
        }
        Ok(())
    })
}

fn abort(core: Core) -> ResponseBody {
    ResponseBody::produce(Some(100), async move |mut writer| {
        writer.send(Bytes::from_static(b"part")).await;
        core.sleep(Duration::from_millis(50)).await;
        Err(BodyAborted)
    })
}

fn whitespace(core: Core) -> ResponseBody {
    ResponseBody::produce(None, async move |mut writer| {
        for _ in 0..3 {
            writer.send(Bytes::from_static(b" ")).await;
            core.sleep(Duration::from_millis(20)).await;
        }
        writer.send(Bytes::from_static(b"done")).await;
        Ok(())
    })
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    reader: BufReader<TcpStream>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

impl Client {
    pub(crate) fn connect(server: &Server) -> Client {
        let stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Client { stream, reader }
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes());
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next answer, whole.
    pub(crate) fn answer(&mut self) -> Answer {
        let mut answer = self.answer_to_head();
        if answer.header("transfer-encoding") == Some("chunked") {
            self.read_chunks(&mut answer.body);
        } else {
            let len = answer.header("content-length").map_or(0, |len| len.parse().unwrap());
            answer.body = vec![0; len];
            self.reader.read_exact(&mut answer.body).unwrap();
        }
        answer
    }

    /// The next answer's head; for answers that have no body.
    pub(crate) fn answer_to_head(&mut self) -> Answer {
        let first = self.line();
        let status = first.split(' ').nth(1).and_then(|digits| digits.parse().ok());
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap();
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Answer {
            status: status.unwrap_or_else(|| panic!("not a status line: {first:?}")),
            headers,
            body: Vec::new(),
        }
    }

    fn read_chunks(&mut self, body: &mut Vec<u8>) {
        loop {
            let len = usize::from_str_radix(&self.line(), 16).unwrap();
            let mut chunk = vec![0; len + 2];
            self.reader.read_exact(&mut chunk).unwrap();
            if len == 0 {
                return;
            }
            body.extend_from_slice(&chunk[..len]);
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        assert!(line.ends_with("\r\n"), "the connection ended in {line:?}");
        line.truncate(line.len() - 2);
        line
    }

    /// Everything until the server closes; a reset fails the test.
    pub(crate) fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).unwrap();
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Whether the server keeps the connection.
    pub(crate) fn is_open(&mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let open = self.reader.fill_buf().is_err();
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        open
    }
}
