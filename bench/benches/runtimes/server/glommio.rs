//! glommio 0.9: three rings per executor, `DmaFile` for the disk, sockets by readiness.
//!
//! There is no adapter to hyper 1, so there is one here. Its sockets write one slice at a time, and hyper is told so: it
//! then sends head and body as one.

use std::error::Error;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use futures_lite::{AsyncRead as _, AsyncWrite as _};
use glommio::io::{DmaFile, ReadResult};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement};
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use hyper::service::service_fn;

use super::buffers::Sending;
use super::{ANY_PORT, MEMORY_LEN, RING_ENTRIES, Run, announce, answer};

pub(super) fn serve(path: &Path) -> Result<(), Box<dyn Error>> {
    // The process is pinned already.
    let builder =
        LocalExecutorBuilder::new(Placement::Unbound).io_memory(MEMORY_LEN).ring_depth(RING_ENTRIES as usize);
    let executor = builder.make().map_err(|error| error.to_string())?;
    Ok(executor.run(listen(path))?)
}

async fn listen(path: &Path) -> io::Result<()> {
    let file = Rc::new(DmaFile::open(path).await?);
    let file_len = file.file_size().await?;
    let listener = TcpListener::bind(ANY_PORT)?;
    announce(listener.local_addr()?);
    loop {
        let stream = listener.accept().await?;
        stream.set_nodelay(true)?;
        let file = Rc::clone(&file);
        let connection = async move {
            let service = service_fn(|request| answer(request, file_len, async |run| read(&file, run).await));
            let _ = http1::Builder::new().serve_connection(Socket(stream), service).await;
        };
        glommio::spawn_local(connection).detach();
    }
}

async fn read(file: &DmaFile, run: Run) -> io::Result<Sending<ReadResult>> {
    Ok(Sending::new(file.read_at_aligned(run.offset, run.len).await?))
}

struct Socket(TcpStream);

/// What one read of a socket takes at most, bytes: requests are far shorter.
const RECEIVE_LEN: usize = 1024;

impl hyper::rt::Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut out: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; RECEIVE_LEN];
        let len = RECEIVE_LEN.min(out.remaining());
        let count = ready!(Pin::new(&mut self.0).poll_read(cx, &mut bytes[..len]))?;
        out.put_slice(&bytes[..count]);
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}
