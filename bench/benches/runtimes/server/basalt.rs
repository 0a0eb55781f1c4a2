//! Basalt's reactor: one ring for sockets and disk, reads into registered memory that is sent as it is.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use basalt_reactor::net::Listener;
use basalt_reactor::ring::{self, Config};
use basalt_reactor::{Core, CoreId, Disk, File, Slice};
use hyper::server::conn::http1;
use hyper::service::service_fn;

use super::{ANY_PORT, MEMORY_LEN, RING_ENTRIES, Run, announce, answer};

pub(super) fn serve(path: &Path) -> Result<(), Box<dyn Error>> {
    let config = Config { id: CoreId(0), cpu: None, arena_len: MEMORY_LEN, entries: RING_ENTRIES };
    Ok(ring::run(&config, |core| listen(core, path.to_owned()))??)
}

async fn listen(core: Core, path: PathBuf) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let file = Disk::open(&core, directory)?.open_file(name)?;
    let file_len = file.len()?;
    let listener = Listener::bind(&core, ANY_PORT)?;
    for warning in ring::warnings(&core) {
        println!("note {warning}");
    }
    announce(listener.local_addr());
    loop {
        let (stream, _) = listener.accept().await?;
        let (file, reader) = (file.clone(), core.clone());
        core.spawn(async move {
            let service =
                service_fn(|request| answer(request, file_len, async |run| read(&reader, &file, run).await));
            // A client that hangs up is no news here.
            let _ = http1::Builder::new().serve_connection(stream, service).await;
        });
    }
}

async fn read(core: &Core, file: &File, run: Run) -> io::Result<Slice> {
    let (read, buf) = file.read_at(core.arena().alloc(run.len).await, run.offset).await;
    read?;
    Ok(buf.freeze())
}
