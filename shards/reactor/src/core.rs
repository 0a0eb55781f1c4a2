//! A core's handle on its world: spawn, sleep, clocks, randomness, buffers.
//!
//! Handed down explicitly and cloned freely; there is no thread-local "current" core.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use crate::arena::Arena;
use crate::clock::{Monotonic, WallTime};
use crate::task::{self, JoinHandle};
use crate::{ring, sim};

/// Index of a core in its deployment, dense from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u16);

/// One column of the server: a thread pinned to a CPU with its ring, or a simulated one. Cloning shares it.
#[derive(Clone)]
pub struct Core {
    pub(crate) world: World,
}

#[derive(Clone)]
pub(crate) enum World {
    Ring(Rc<ring::RingCore>),
    Sim(sim::SimCore),
}

impl Core {
    #[must_use]
    pub fn id(&self) -> CoreId {
        match &self.world {
            World::Ring(ring) => ring.id(),
            World::Sim(sim) => sim.id(),
        }
    }

    /// The pool that every buffer touching a disk or a socket comes from.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        match &self.world {
            World::Ring(ring) => ring.arena(),
            World::Sim(sim) => sim.arena(),
        }
    }

    #[must_use]
    pub fn now(&self) -> Monotonic {
        match &self.world {
            World::Ring(ring) => ring.now(),
            World::Sim(sim) => sim.now(),
        }
    }

    #[must_use]
    pub fn wall(&self) -> WallTime {
        match &self.world {
            World::Ring(ring) => ring.wall(),
            World::Sim(sim) => sim.wall(),
        }
    }

    /// Fills `out` with randomness: the kernel's on a ring, the seed's in a simulation.
    pub fn fill_random(&self, out: &mut [u8]) {
        match &self.world {
            World::Ring(ring) => ring.fill_random(out),
            World::Sim(sim) => sim.fill_random(out),
        }
    }

    #[must_use]
    pub fn random_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_random(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Starts a task on this core. Dropping the handle detaches it; [`JoinHandle::cancel`] drops the future.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        let (task, handle) = task::joinable(future);
        match &self.world {
            World::Ring(ring) => ring.spawn(task),
            World::Sim(sim) => sim.spawn(task),
        }
        handle
    }

    /// Completes once `duration` has passed on this core's clock. Dropping it cancels the timer.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now() + duration).await;
    }

    /// Completes once the clock reads `deadline` or later.
    pub async fn sleep_until(&self, deadline: Monotonic) {
        match &self.world {
            World::Ring(ring) => ring.sleep_until(deadline).await,
            World::Sim(sim) => sim.sleep_until(deadline).await,
        }
    }

    /// Lets every other ready task of this core run once before this one goes on.
    pub async fn yield_now(&self) {
        task::yield_now().await;
    }
}
