//! The measured window: all slots connect, then warm-up, measurement, drain.
//!
//! An operation counts when it ends within the window; those in flight when it begins and those in flight
//! when it ends balance each other. With `--rate` requests are due at fixed times, whether or not earlier ones
//! were answered, and latency counts from when a request was due: a stall is charged to every request that it
//! delayed (no coordinated omission).

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::client::Failure;
use crate::error::Error;
use crate::fleet::Fleet;
use crate::keyspace::Keyspace;
use crate::observe::{Sample, Usage, Watch, rss_bytes};
use crate::plan::{Operation, Plan};
use crate::progress::Progress;
use crate::slot::{Done, Slot};
use crate::tally::{Row, Tally};

const CONNECTING: u8 = 0;
const WARMING: u8 = 1;
const MEASURING: u8 = 2;
const DRAINING: u8 = 3;

/// How often memory is looked at and progress shown.
const TICK: Duration = Duration::from_millis(50);
/// How often a connected slot looks whether all others are, too.
const START_POLL: Duration = Duration::from_millis(1);
/// Before a slot that could not connect tries again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(10);
/// A slot that found nothing to do so often in a row has nothing left to do.
const IDLE_TURNS_MAX: u32 = 64;

/// What the window gave.
#[derive(Debug)]
pub struct Measured {
    pub tally: Tally,
    pub usage: Usage,
    /// The highest resident memory seen in the window.
    pub server_rss_bytes_max: Option<u64>,
    /// The load ended before its time, for lack of objects.
    pub exhausted: bool,
}

struct Shared {
    phase: AtomicU8,
    /// When the load began: from then on requests are due.
    started: OnceLock<Instant>,
    /// Slots that have connected, or failed to.
    connected: AtomicUsize,
    /// Operations begun in the window.
    op_tickets: AtomicU64,
    op_count: u64,
    ops_done: AtomicU64,
    bytes_done: AtomicU64,
}

/// Loads the endpoint as planned.
pub(crate) fn run(plan: &Arc<Plan>, keyspace: &Arc<Keyspace>) -> Result<Measured, Error> {
    let watch = Watch { server_pid: plan.server_pid, disk_devices: plan.disk_devices.clone() };
    // What cannot be observed is said before the load begins.
    watch.sample()?;
    let shared = Arc::new(Shared {
        phase: AtomicU8::new(CONNECTING),
        started: OnceLock::new(),
        connected: AtomicUsize::new(0),
        op_tickets: AtomicU64::new(0),
        op_count: plan.bounds.op_count.unwrap_or(u64::MAX),
        ops_done: AtomicU64::new(0),
        bytes_done: AtomicU64::new(0),
    });
    let of_slots = Arc::clone(&shared);
    let fleet = Fleet::start(plan, keyspace, move |slot| run_slot(slot, Arc::clone(&of_slots)))?;
    let mut exhausted = false;
    // Bounded: a thread that could not start has slots that never connect.
    let connected_by = Instant::now() + plan.target.timeout;
    while shared.connected.load(Ordering::Relaxed) < plan.slot_count
        && !exhausted
        && Instant::now() < connected_by
    {
        exhausted = fleet.ended_within(START_POLL);
    }
    shared.started.get_or_init(Instant::now);
    if !plan.bounds.warmup.is_zero() {
        shared.phase.store(WARMING, Ordering::Relaxed);
        exhausted = fleet.ended_within(plan.bounds.warmup);
    }
    let before = open_window(&watch, &shared)?;

    let progress = Progress::new(plan, "measuring", plan.bounds.duration, plan.bounds.op_count);
    let opened = Instant::now();
    let mut rss_max = None;
    loop {
        let left = match plan.bounds.duration {
            Some(duration) => duration.saturating_sub(opened.elapsed()),
            None => TICK,
        };
        if left.is_zero() {
            break;
        }
        if fleet.ended_within(left.min(TICK)) {
            let tickets = shared.op_tickets.load(Ordering::Relaxed);
            exhausted = exhausted || tickets < shared.op_count;
            break;
        }
        rss_max = rss_max.max(plan.server_pid.and_then(rss_bytes));
        let (ops, bytes) =
            (shared.ops_done.load(Ordering::Relaxed), shared.bytes_done.load(Ordering::Relaxed));
        progress.show(opened.elapsed(), ops, bytes);
    }
    let after = watch.sample();
    shared.phase.store(DRAINING, Ordering::Relaxed);
    rss_max = rss_max.max(plan.server_pid.and_then(rss_bytes));
    let tally = fleet.join()?;
    progress.finish();
    Ok(Measured { tally, usage: Usage::between(&before, &after?), server_rss_bytes_max: rss_max, exhausted })
}

fn open_window(watch: &Watch, shared: &Shared) -> Result<Sample, Error> {
    let before = watch.sample();
    // Also when the sample failed: the slots must come to an end.
    let phase = if before.is_ok() { MEASURING } else { DRAINING };
    shared.phase.store(phase, Ordering::Relaxed);
    before
}

async fn run_slot(mut slot: Slot, shared: Arc<Shared>) {
    let plan = Arc::clone(&slot.plan);
    slot.connect_ahead().await;
    shared.connected.fetch_add(1, Ordering::Relaxed);
    while shared.phase.load(Ordering::Relaxed) == CONNECTING {
        tokio::time::sleep(START_POLL).await;
    }
    let started = *shared.started.get_or_init(Instant::now);
    let mut schedule = plan.rate.map(|rate| Schedule::new(rate, slot.number, plan.slot_count, started));
    let mut idle_turns = 0;
    let mut has_ticket = false;
    loop {
        let due = match &mut schedule {
            None => None,
            Some(schedule) => schedule.next(&shared).await,
        };
        match shared.phase.load(Ordering::Relaxed) {
            DRAINING => return,
            // The ticket of a turn that found nothing to do is still good.
            MEASURING if idle_turns == 0 || !has_ticket => {
                if shared.op_tickets.fetch_add(1, Ordering::Relaxed) >= shared.op_count {
                    return;
                }
                has_ticket = true;
            }
            _ => {}
        }
        let operation = plan.mix.draw(slot.random.next());
        let (operation, began) = (substitute(&plan, operation, idle_turns), due.unwrap_or_else(Instant::now));
        let outcome = slot.perform(operation).await;
        let latency = began.elapsed();
        if matches!(outcome, Ok(Done::Nothing)) {
            idle_turns += 1;
            if idle_turns > IDLE_TURNS_MAX {
                return;
            }
            continue;
        }
        idle_turns = 0;
        if matches!(outcome, Err(Failure::Connect(_))) {
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
        if shared.phase.load(Ordering::Relaxed) != MEASURING {
            continue;
        }
        let mut tally = slot.tally.borrow_mut();
        match outcome {
            Ok(Done::Bytes(bytes)) => {
                tally.success(Row::Whole(operation), latency, bytes);
                shared.bytes_done.fetch_add(bytes, Ordering::Relaxed);
            }
            Ok(Done::Nothing) => {}
            Err(failure) => tally.failure(Row::Whole(operation), &failure),
        }
        shared.ops_done.fetch_add(1, Ordering::Relaxed);
    }
}

/// After finding nothing to read or delete, a mix that writes makes something first.
fn substitute(plan: &Plan, operation: Operation, idle_turns: u32) -> Operation {
    let writer = [Operation::Put, Operation::Multipart].into_iter().find(|writer| plan.mix.has(*writer));
    match writer {
        Some(writer) if idle_turns > 0 => writer,
        _ => operation,
    }
}

/// When the requests of one slot are due.
struct Schedule {
    next: Instant,
    interval: Duration,
}

impl Schedule {
    /// Slots take turns, evenly spaced.
    fn new(rate: f64, slot: usize, slot_count: usize, started: Instant) -> Self {
        let seconds =
            |turns: usize| Duration::try_from_secs_f64(turns as f64 / rate).unwrap_or(Duration::MAX);
        Self { next: started + seconds(slot).min(MAX_WAIT), interval: seconds(slot_count).min(MAX_WAIT) }
    }

    /// Waits until the next request is due. The answer is when it was due, if it is late because the request
    /// before it took too long; a timer that woke late is no delay of the server's.
    async fn next(&mut self, shared: &Shared) -> Option<Instant> {
        let due = self.next;
        self.next += self.interval;
        if due <= Instant::now() {
            return Some(due);
        }
        while Instant::now() < due {
            let wake = due.min(Instant::now() + TICK);
            tokio::time::sleep_until(wake.into()).await;
            if shared.phase.load(Ordering::Relaxed) == DRAINING {
                break;
            }
        }
        None
    }
}

/// A request that is due later than that is not due in any run.
const MAX_WAIT: Duration = Duration::from_secs(86_400 * 2);

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        Shared {
            phase: AtomicU8::new(MEASURING),
            started: OnceLock::new(),
            connected: AtomicUsize::new(0),
            op_tickets: AtomicU64::new(0),
            op_count: 1,
            ops_done: AtomicU64::new(0),
            bytes_done: AtomicU64::new(0),
        }
    }

    #[test]
    fn a_late_request_counts_from_when_it_was_due() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let started = Instant::now() - Duration::from_secs(10);
            let shared = shared();
            let mut schedule = Schedule::new(4.0, 1, 2, started);
            let due = [schedule.next(&shared).await, schedule.next(&shared).await];
            let expected = [Duration::from_millis(250), Duration::from_millis(750)];
            assert_eq!(due, expected.map(|after| Some(started + after)));
            let mut ahead = Schedule::new(100.0, 0, 1, Instant::now() + Duration::from_millis(5));
            assert_eq!(ahead.next(&shared).await, None, "waited for, so not late");
            assert!(Instant::now() >= ahead.next - Duration::from_millis(10));
        });
    }
}
