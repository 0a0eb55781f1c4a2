//! The loop of a core: run what is ready, hand over and fetch in one system call, sleep when there is nothing to do.
//!
//! Waking a sleeping core costs far more than anything else between cores, so a core that was just woken by another
//! looks out for a few microseconds before it sleeps again. Looking out in vain soon stops it.

use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::Duration;

use io_uring::{opcode, types};

use super::RingCore;
use super::op::{Completion, Sink};

/// Tasks polled before the ring is looked at again.
const TASKS_PER_TURN_MAX: usize = 256;

/// How long a core looks out before it sleeps, in nanoseconds.
const LOOKOUT_NS: u64 = 25_000;

/// Times a core looks out in vain after a wake from another core.
const LOOKOUTS_PER_WAKE: u32 = 2;

/// Longest sleep. Nothing depends on it; it bounds what a lost wake could cost.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// Runs `main` to its end and takes the core down.
pub(super) fn run<T: 'static>(core: &Rc<RingCore>, main: impl Future<Output = T> + 'static) -> T {
    let result = Rc::new(Cell::new(None));
    let slot = Rc::clone(&result);
    core.executor.spawn(Box::pin(async move { slot.set(Some(main.await)) }));
    // Caught so that the kernel is done with the core's memory before anything unwinds further.
    let outcome = catch_unwind(AssertUnwindSafe(|| turns(core, &result)));
    shut_down(core);
    match outcome {
        Ok(value) => value,
        Err(panic) => resume_unwind(panic),
    }
}

fn turns<T>(core: &Rc<RingCore>, result: &Cell<Option<T>>) -> T {
    let doorbell = Rc::new(Doorbell { rung: Cell::new(0), armed: Cell::new(false) });
    let mut lookouts = 0;
    loop {
        if core.executor.take_remote() {
            lookouts = LOOKOUTS_PER_WAKE;
        }
        if let Some(deadline) = core.timers.next_deadline() {
            let now = core.now();
            if deadline <= now {
                core.timers.fire(now);
            }
        }
        core.executor.run(TASKS_PER_TURN_MAX);
        if let Some(value) = result.take() {
            return value;
        }
        let turned = if core.executor.is_idle() {
            rest(core, &doorbell, &mut lookouts)
        } else {
            core.driver.turn(None)
        };
        if let Err(error) = turned {
            panic!("io_uring_enter failed on core {}: {error}", core.id.0);
        }
    }
}

/// A turn with no task ready: looks out for a while if that is promising, then sleeps.
fn rest(core: &Rc<RingCore>, doorbell: &Rc<Doorbell>, lookouts: &mut u32) -> std::io::Result<()> {
    if *lookouts > 0 {
        core.driver.submit_queued()?;
        let until = core.now().0 + LOOKOUT_NS;
        while core.now().0 < until {
            if core.executor.has_remote() || core.driver.has_completions() {
                return core.driver.turn(None);
            }
            if !core.executor.is_idle() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        *lookouts -= 1;
    }
    doorbell.arm(core);
    let wait =
        core.timers.next_deadline().map_or(SLEEP_MAX, |deadline| deadline.since(core.now()).min(SLEEP_MAX));
    if core.executor.fall_asleep() {
        let turned = core.driver.turn(Some(wait));
        core.executor.wake_up();
        turned
    } else {
        core.driver.turn(None)
    }
}

/// Takes the core down; its memory may go when this returns.
fn shut_down(core: &Rc<RingCore>) {
    // A panic in some future's drop must not keep us from waiting for the kernel.
    let closed = catch_unwind(AssertUnwindSafe(|| {
        core.executor.close();
        core.timers.clear();
    }));
    let done = core.driver.shutdown();
    if let Some(buffers) = core.receive_buffers.get() {
        buffers.clear();
    }
    if !done {
        // The device holds on to operations; their memory must then never be given back.
        tracing::error!(core = core.id.0, "operations in flight did not end; their buffers are left behind");
        std::mem::forget(Rc::clone(core));
    }
    if let Err(panic) = closed {
        resume_unwind(panic);
    }
}

/// The pending read of the executor's eventfd.
struct Doorbell {
    /// Where the kernel puts the count.
    rung: Cell<u64>,
    armed: Cell<bool>,
}

impl Doorbell {
    fn arm(self: &Rc<Self>, core: &RingCore) {
        if self.armed.replace(true) {
            return;
        }
        let target = types::Fd(core.executor.doorbell());
        let entry = opcode::Read::new(target, self.rung.as_ptr().cast(), size_of::<u64>() as u32).build();
        // SAFETY: the count lives in the sink, behind an Rc that the operation keeps; the eventfd lives as long as the
        // core, which outlasts its operations.
        unsafe { core.driver.submit_to(entry, Rc::clone(self) as Rc<dyn Sink>, 0) };
    }
}

impl Sink for Doorbell {
    fn complete(self: Rc<Self>, _tag: u32, _completion: Completion) {
        // What was rung for lies in the executor's list; the next turn takes it.
        self.armed.set(false);
    }
}
