//! The bounded queue of log lines and the thread that writes them.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Chunks of lines that may wait for the writer.
const QUEUE_LEN_MAX: usize = 4096;
/// Chunks written between two flushes while more are waiting.
const BATCH_LEN_MAX: usize = 256;
/// How long the end of the process waits for a stuck terminal.
const FINISH_TIME_MAX: Duration = Duration::from_secs(2);

/// The sending end: takes whole lines and never blocks. Cloning shares it.
#[derive(Clone)]
pub struct LogQueue {
    lines: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

enum Message {
    Lines(Vec<u8>),
    /// Everything before this has been written once the sender of the reply is dropped.
    Finish(SyncSender<()>),
}

/// The writer thread; dropping it writes out what is queued.
pub struct LogWriter {
    queue: LogQueue,
    thread: Option<JoinHandle<()>>,
}

impl LogWriter {
    /// Starts the thread that writes to `out`.
    ///
    /// # Panics
    /// If the system refuses a thread.
    pub fn start(out: impl Write + Send + 'static) -> LogWriter {
        let (lines, receiver) = sync_channel(QUEUE_LEN_MAX);
        let queue = LogQueue { lines, dropped: Arc::new(AtomicU64::new(0)) };
        let thread = std::thread::Builder::new()
            .name("basalt-log".to_owned())
            .spawn(move || write_all(&receiver, out))
            .expect("a thread for the log");
        LogWriter { queue, thread: Some(thread) }
    }

    pub fn queue(&self) -> LogQueue {
        self.queue.clone()
    }

    /// Writes out what is queued, but does not wait forever for a terminal that takes nothing.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.queue.lines.try_send(Message::Finish(done)).is_ok() {
            let _stuck = wait.recv_timeout(FINISH_TIME_MAX) == Err(RecvTimeoutError::Timeout);
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.flush();
        // Other clones of the queue may live on in the global subscriber, so the thread is left to the process's end.
        drop(self.thread.take());
    }
}

impl LogQueue {
    /// Queues whole lines, or counts them as dropped.
    pub fn send(&self, lines: Vec<u8>) {
        match self.lines.try_send(Message::Lines(lines)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Chunks of lines dropped so far because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Write for LogQueue {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(receiver: &Receiver<Message>, out: impl Write) {
    let mut out = io::BufWriter::new(out);
    while let Ok(first) = receiver.recv() {
        write_one(&mut out, first);
        // Flushing once for a burst keeps the number of writes to the terminal low.
        for message in receiver.try_iter().take(BATCH_LEN_MAX) {
            write_one(&mut out, message);
        }
        drop(out.flush());
    }
}

/// Errors are dropped: when stderr is closed there is nobody left to tell.
fn write_one(out: &mut impl Write, message: Message) {
    match message {
        Message::Lines(lines) => drop(out.write_all(&lines)),
        Message::Finish(done) => {
            drop(out.flush());
            drop(done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A terminal that takes nothing until it is let go, then remembers what it got.
    #[derive(Clone, Default)]
    struct Terminal {
        stopped: Arc<Mutex<()>>,
        seen: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Terminal {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _wait = self.stopped.lock().expect("no test panics while holding it");
            self.seen.lock().expect("as above").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_arrive_in_order_and_the_end_writes_them_out() {
        let terminal = Terminal::default();
        let writer = LogWriter::start(terminal.clone());
        for index in 0..1000 {
            writer.queue().send(format!("{index}\n").into_bytes());
        }
        drop(writer);
        let seen = terminal.seen.lock().expect("no panic").clone();
        let wanted: String = (0..1000).map(|index| format!("{index}\n")).collect();
        assert_eq!(String::from_utf8(seen).expect("text"), wanted);
    }

    #[test]
    fn a_stuck_terminal_costs_lines_and_not_time() {
        let terminal = Terminal::default();
        let stop = terminal.stopped.lock().expect("first holder");
        let writer = LogWriter::start(terminal.clone());
        let started = std::time::Instant::now();
        for _ in 0..3 * QUEUE_LEN_MAX {
            writer.queue().send(vec![b'x'; 64]);
        }
        assert!(started.elapsed() < Duration::from_secs(2));
        assert!(writer.queue().dropped() >= QUEUE_LEN_MAX as u64);
        drop(stop);
    }
}
