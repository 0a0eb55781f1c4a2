//! A ring on a thread of its own, to which measurements are sent.
//!
//! A benchmark's harness is synchronous and calls many times, while what it measures (an open index, a running engine)
//! lives on one ring and is expensive to make. So it is made once, on a thread that takes one measurement after the other.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use basalt_reactor::{Core, CoreId, ring};

type Job<S> = Box<dyn FnOnce(Rc<S>) -> Pin<Box<dyn Future<Output = Duration>>> + Send>;

pub(crate) struct RingThread<S> {
    jobs: Option<Sender<Job<S>>>,
    times: Receiver<Duration>,
    thread: Option<JoinHandle<()>>,
}

impl<S: 'static> RingThread<S> {
    /// Starts the ring and waits for what `make` makes on it.
    ///
    /// # Panics
    /// As [`RingThread::measure`].
    pub(crate) fn start<F: Future<Output = S> + 'static>(
        make: impl FnOnce(Core) -> F + Send + 'static,
    ) -> RingThread<S> {
        let (jobs, inbox) = channel::<Job<S>>();
        let (outbox, times) = channel();
        let config = ring::Config { id: CoreId(0), cpu: None, arena_len: 64 << 20, entries: 1024 };
        let thread = std::thread::spawn(move || {
            let serve = |core| async move {
                let state = Rc::new(make(core).await);
                // Nothing else runs here, so the thread may wait for its next job.
                while let Ok(job) = inbox.recv() {
                    let time = job(Rc::clone(&state)).await;
                    if outbox.send(time).is_err() {
                        return;
                    }
                }
            };
            ring::run(&config, serve).unwrap_or_else(|error| panic!("no ring: {error}"));
        });
        let thread = RingThread { jobs: Some(jobs), times, thread: Some(thread) };
        thread.measure(async |_| Duration::ZERO);
        thread
    }

    /// Runs one measurement and gives the time it says it took.
    ///
    /// # Panics
    /// If it panicked; its own message says why.
    pub(crate) fn measure<F: Future<Output = Duration> + 'static>(
        &self,
        job: impl FnOnce(Rc<S>) -> F + Send + 'static,
    ) -> Duration {
        let jobs = self.jobs.as_ref().expect("they end with the thread");
        let sent = jobs.send(Box::new(|state| Box::pin(job(state))));
        sent.ok().and_then(|()| self.times.recv().ok()).expect("the ring's thread lives")
    }
}

impl<S> Drop for RingThread<S> {
    fn drop(&mut self) {
        self.jobs = None;
        // What it holds removes its files, so the process waits for that. A panic has been printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
