//! The threads of the load generator: each runs its slots on a runtime of its own, pinned if asked.
//!
//! Threads share nothing but counters; each keeps its own tally, and tallies are added up at the end.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::plan::Plan;
use crate::slot::Slot;
use crate::tally::Tally;

/// Threads at work.
pub(crate) struct Fleet {
    threads: Vec<JoinHandle<Result<Tally, Error>>>,
    /// Disconnected when the last thread has ended.
    ended: Receiver<()>,
}

impl Fleet {
    /// Starts all slots of the plan; each does `work` once.
    pub(crate) fn start<F, W>(plan: &Arc<Plan>, keyspace: &Arc<Keyspace>, work: F) -> Result<Self, Error>
    where
        F: Fn(Slot) -> W + Clone + Send + 'static,
        W: Future<Output = ()> + 'static,
    {
        let (alive, ended) = channel();
        let mut threads = Vec::with_capacity(plan.thread_count);
        for number in 0..plan.thread_count {
            let (plan, keyspace, work) = (Arc::clone(plan), Arc::clone(keyspace), work.clone());
            let alive: Sender<()> = alive.clone();
            let thread = std::thread::Builder::new()
                .name(format!("bench-{number}"))
                .spawn(move || {
                    let outcome = run_thread(number, &plan, &keyspace, work);
                    drop(alive);
                    outcome
                })
                .map_err(|source| Error::System { what: "cannot start a thread".to_owned(), source })?;
            threads.push(thread);
        }
        Ok(Self { threads, ended })
    }

    /// Waits until all threads have ended, or for `time`. True: they have ended.
    pub(crate) fn ended_within(&self, time: Duration) -> bool {
        matches!(self.ended.recv_timeout(time), Err(RecvTimeoutError::Disconnected))
    }

    /// Waits for all threads and adds their tallies up.
    pub(crate) fn join(self) -> Result<Tally, Error> {
        let mut sum = Tally::default();
        for thread in self.threads {
            match thread.join() {
                Ok(tally) => sum.merge(tally?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(sum)
    }
}

fn run_thread<F, W>(
    number: usize,
    plan: &Arc<Plan>,
    keyspace: &Arc<Keyspace>,
    work: F,
) -> Result<Tally, Error>
where
    F: Fn(Slot) -> W,
    W: Future<Output = ()> + 'static,
{
    if !plan.client_cpus.is_empty() {
        pin(&[plan.client_cpus[number % plan.client_cpus.len()]])?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|source| Error::System { what: "cannot start a runtime".to_owned(), source })?;
    let tally = Rc::new(RefCell::new(Tally::default()));
    let slots = tokio::task::LocalSet::new();
    for slot in (number..plan.slot_count).step_by(plan.thread_count) {
        slots.spawn_local(work(Slot::new(slot, plan, keyspace, &tally)));
    }
    runtime.block_on(slots);
    Ok(tally.take())
}

/// Keeps the calling thread, and threads that it starts, to these CPUs.
pub(crate) fn pin(cpus: &[usize]) -> Result<(), Error> {
    let refused = |source| Error::System { what: format!("cannot run on CPUs {cpus:?}"), source };
    let mut set = CpuSet::new();
    for cpu in cpus {
        if *cpu >= CpuSet::MAX_CPU {
            return Err(refused(std::io::ErrorKind::InvalidInput.into()));
        }
        set.set(*cpu);
    }
    sched_setaffinity(None, &set).map_err(|error| refused(error.into()))
}
