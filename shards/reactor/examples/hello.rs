//! HTTP from one ring: what the runtime itself costs per request.
//!
//! `hello [PORT] [FILE]` serves `/` (5 bytes), `/4k` and `/1m` (arena memory), and with FILE `/disk` (a random block of
//! 4 KiB) and `/disk1m` (a random MiB), read with O_DIRECT. Pin a load generator to another CPU, and compare
//! the CPU time of the process with the number of requests.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use basalt_reactor::net::Listener;
use basalt_reactor::ring::{self, Config};
use basalt_reactor::{Core, CoreId, Disk, File, Slice};
use http_body::{Body, Frame, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let port = args.next().map_or(Ok(8080), |port| port.parse())?;
    let file = args.next();
    let config = Config { id: CoreId(0), cpu: Some(0), arena_len: 64 << 20, entries: 1024 };
    ring::run(&config, |core| serve(core, port, file))??;
    Ok(())
}

async fn serve(core: Core, port: u16, file: Option<String>) -> io::Result<()> {
    let file = file.map(|path| open(&core, Path::new(&path))).transpose()?;
    let small = filled(&core, 4096).await;
    let large = filled(&core, 1 << 20).await;
    let listener = Listener::bind(&core, SocketAddr::from(([127, 0, 0, 1], port)))?;
    report(&core);
    loop {
        let (stream, _) = listener.accept().await?;
        let (core, small, large, file) = (core.clone(), small.clone(), large.clone(), file.clone());
        core.clone().spawn(async move {
            let service = service_fn(|request: Request<hyper::body::Incoming>| {
                let (core, small, large, file) = (&core, &small, &large, &file);
                async move {
                    let body = match (request.uri().path(), file) {
                        ("/", _) => Some(small.slice(0..5)),
                        ("/4k", _) => Some(small.clone()),
                        ("/1m", _) => Some(large.clone()),
                        ("/disk", Some(file)) => read(core, file, 4096).await,
                        ("/disk1m", Some(file)) => read(core, file, 1 << 20).await,
                        _ => None,
                    };
                    let status = if body.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
                    let mut response = Response::new(Whole(body));
                    *response.status_mut() = status;
                    Ok::<_, Infallible>(response)
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            // A client that hangs up is no news here.
            let _ = http.serve_connection(stream, service).await;
        });
    }
}

fn open(core: &Core, path: &Path) -> io::Result<File> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    Disk::open(core, directory)?.open_file(name)
}

async fn filled(core: &Core, len: usize) -> Slice {
    let mut buf = core.arena().alloc(len).await;
    buf.fill(b'x');
    buf.freeze()
}

async fn read(core: &Core, file: &File, len: usize) -> Option<Slice> {
    let count = (file.len().ok()? / len as u64).max(1);
    let offset = core.random_u64() % count * len as u64;
    let (read, buf) = file.read_at(core.arena().alloc(len).await, offset).await;
    (read.ok()? == len).then(|| buf.freeze())
}

/// Prints, every few seconds, what the ring did.
fn report(core: &Core) {
    let reporter = core.clone();
    core.spawn(async move {
        loop {
            reporter.sleep(Duration::from_secs(5)).await;
            println!("{:?}", ring::stats(&reporter));
        }
    });
}

/// A body of one slice, or of nothing.
struct Whole(Option<Slice>);

impl Body for Whole {
    type Data = Slice;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Slice>, Infallible>>> {
        Poll::Ready(self.0.take().map(|slice| Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |slice| slice.len() as u64))
    }
}
