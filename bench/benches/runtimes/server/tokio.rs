//! tokio 1 on one thread: sockets by epoll, disk reads on its pool of blocking threads, as tokio's own files do.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::fs::OFlags;
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::buffers::{Lent, Pool, Sending};
use super::{ANY_PORT, Run, announce, answer};

pub(super) fn serve(path: &Path) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(LocalSet::new().block_on(&runtime, listen(path))?)
}

async fn listen(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path)?;
    let file_len = file.metadata()?.len();
    let file = Arc::new(file);
    let pool = Pool::default();
    let listener = TcpListener::bind(ANY_PORT).await?;
    announce(listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (file, pool) = (Arc::clone(&file), pool.clone());
        tokio::task::spawn_local(async move {
            let service =
                service_fn(|request| answer(request, file_len, async |run| read(&file, &pool, run).await));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn read(file: &Arc<File>, pool: &Pool, run: Run) -> io::Result<Sending<Lent>> {
    let (file, mut bytes) = (Arc::clone(file), pool.take());
    let range = Pool::start(&bytes)..Pool::start(&bytes) + run.len;
    let target = range.clone();
    let read = tokio::task::spawn_blocking(move || {
        file.read_exact_at(&mut bytes[target], run.offset).map(|()| bytes)
    });
    Ok(pool.lend(read.await.map_err(io::Error::other)??, range))
}
