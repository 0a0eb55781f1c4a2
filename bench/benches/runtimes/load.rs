//! The client: keep-alive connections, one request at a time on each, on one thread.
//!
//! Small enough that it is rarely the limit: a request is one write, an answer is read in place. How busy the server was
//! is measured beside it, so a result that the client or the disk limited shows.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::content;
use crate::report::Figures;

const WARM_UP: Duration = Duration::from_millis(500);

/// Longest head of an answer, bytes.
const HEAD_LEN_MAX: usize = 4096;

/// Longest wait for any answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) addr: SocketAddr,
    pub(crate) run_len: usize,
    pub(crate) file_len: u64,
    pub(crate) connections: usize,
}

impl Load {
    /// Asks for random runs for `window`, and compares the server's CPU time at its ends.
    pub(crate) fn measure(
        self,
        window: Duration,
        server_cpu: impl Fn() -> io::Result<Duration>,
    ) -> Result<Figures, Box<dyn Error>> {
        block_on(async {
            let (answered, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
            let mut connections = JoinSet::new();
            for number in 0..self.connections {
                let (answered, done) = (Arc::clone(&answered), Arc::clone(&done));
                connections.spawn(self.ask_at_random(number as u64, answered, done));
            }
            tokio::time::sleep(WARM_UP).await;
            let before = (Instant::now(), server_cpu()?, answered.load(Ordering::Relaxed));
            tokio::time::sleep(window).await;
            let after = (Instant::now(), server_cpu()?, answered.load(Ordering::Relaxed));
            done.store(true, Ordering::Relaxed);
            // A connection that failed within the window makes the whole of it worthless.
            while let Some(ended) = connections.join_next().await {
                ended??;
            }
            Ok(Figures::new(after.0 - before.0, after.1 - before.1, after.2 - before.2))
        })
    }

    async fn ask_at_random(
        self,
        number: u64,
        answered: Arc<AtomicU64>,
        done: Arc<AtomicBool>,
    ) -> io::Result<()> {
        let run_count = self.file_len / self.run_len as u64;
        // Xorshift; odd, so never zero.
        let mut random = number * 2 + 0x9e37_79b9;
        let mut connection = Connection::new(self).await?;
        while !done.load(Ordering::Relaxed) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let index = random % run_count;
            if !content::begins_right(index * self.run_len as u64, connection.get(index).await?) {
                return Err(io::Error::other(format!("run {index} of {} bytes is wrong", self.run_len)));
            }
            answered.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Asks for every run of the file once and compares every byte, then for the one behind the end.
    pub(crate) fn check(self) -> Result<(), Box<dyn Error>> {
        block_on(async {
            let run_count = self.file_len / self.run_len as u64;
            let mut connections = JoinSet::new();
            for number in 0..self.connections as u64 {
                connections.spawn(async move {
                    let mut connection = Connection::new(self).await?;
                    for index in (number..run_count).step_by(self.connections) {
                        if !content::is_right(index * self.run_len as u64, connection.get(index).await?) {
                            return Err(io::Error::other(format!(
                                "run {index} of {} bytes is wrong",
                                self.run_len
                            )));
                        }
                    }
                    match connection.get(run_count).await {
                        Err(error) if error.to_string().contains(" 404 ") => Ok(()),
                        other => {
                            Err(io::Error::other(format!("behind the end: {:?}", other.map(<[u8]>::len))))
                        }
                    }
                });
            }
            while let Some(ended) = connections.join_next().await {
                ended??;
            }
            Ok(())
        })
    }
}

fn block_on<T>(future: impl Future<Output = Result<T, Box<dyn Error>>>) -> Result<T, Box<dyn Error>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

struct Connection {
    stream: TcpStream,
    run_len: usize,
    buf: Vec<u8>,
}

impl Connection {
    async fn new(load: Load) -> io::Result<Connection> {
        let stream = TcpStream::connect(load.addr).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, run_len: load.run_len, buf: vec![0; HEAD_LEN_MAX + load.run_len] })
    }

    /// The body of the answer to `GET /LEN/INDEX`.
    ///
    /// # Errors
    /// Everything but a 200 with a body of that length; another status is named.
    async fn get(&mut self, index: u64) -> io::Result<&[u8]> {
        let answer = tokio::time::timeout(ANSWER_TIME_MAX, self.exchange(index));
        let body_start = answer.await.map_err(|_| io::ErrorKind::TimedOut)??;
        Ok(&self.buf[body_start..body_start + self.run_len])
    }

    async fn exchange(&mut self, index: u64) -> io::Result<usize> {
        let request = format!("GET /{}/{index} HTTP/1.1\r\nhost: localhost\r\n\r\n", self.run_len);
        self.stream.writable().await?;
        // A request is far shorter than the socket's buffer, which is empty.
        if self.stream.try_write(request.as_bytes())? != request.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut filled = 0;
        let mut body_start = None;
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(&mut self.buf[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            }
            if body_start.is_none() {
                body_start = self.parse_head(filled)?;
            }
            if let Some(start) = body_start.filter(|start| filled >= start + self.run_len) {
                return Ok(start);
            }
        }
    }

    /// Where the body begins, once the head is whole.
    fn parse_head(&self, filled: usize) -> io::Result<Option<usize>> {
        let head = &self.buf[..filled.min(HEAD_LEN_MAX)];
        let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
        let head = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
        let status = head.lines().next().unwrap_or_default();
        let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if !status.starts_with("http/1.1 200 ") || len != Some(self.run_len) {
            return Err(io::Error::other(format!("answered {status} with {len:?} bytes")));
        }
        Ok(Some(end + 4))
    }
}
