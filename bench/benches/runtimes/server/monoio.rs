//! monoio 0.2: one ring, owned buffers for the disk, and for hyper the adapter its project publishes (`monoio-compat`),
//! which drives sockets by readiness.

use std::error::Error;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::rc::Rc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use monoio::buf::IoBufMut as _;
use monoio::fs::File;
use monoio::io::IntoPollIo as _;
use monoio::net::TcpListener;
use monoio::{IoUringDriver, RuntimeBuilder};
use monoio_compat::hyper::MonoioIo;
use rustix::fs::OFlags;

use super::buffers::{Lent, Pool, Sending};
use super::{ANY_PORT, RING_ENTRIES, Run, announce, answer};

pub(super) fn serve(path: &Path) -> Result<(), Box<dyn Error>> {
    let mut runtime = RuntimeBuilder::<IoUringDriver>::new().with_entries(RING_ENTRIES).build()?;
    Ok(runtime.block_on(listen(path))?)
}

async fn listen(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path)?;
    let file_len = file.metadata()?.len();
    let file = Rc::new(File::from_std(file)?);
    let pool = Pool::default();
    let listener = TcpListener::bind(ANY_PORT)?;
    announce(listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let stream = MonoioIo::new(stream.into_poll_io()?);
        let (file, pool) = (Rc::clone(&file), pool.clone());
        monoio::spawn(async move {
            let service =
                service_fn(|request| answer(request, file_len, async |run| read(&file, &pool, run).await));
            let _ = http1::Builder::new().serve_connection(stream, service).await;
        });
    }
}

async fn read(file: &File, pool: &Pool, run: Run) -> io::Result<Sending<Lent>> {
    let bytes = pool.take();
    let range = Pool::start(&bytes)..Pool::start(&bytes) + run.len;
    let (read, slice) = file.read_exact_at(bytes.slice_mut(range.clone()), run.offset).await;
    read?;
    Ok(pool.lend(slice.into_inner(), range))
}
