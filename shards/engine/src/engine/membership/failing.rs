//! Members that fail and cannot be taken out, because too few would be left.
//!
//! Such a disk stays a member: it holds what others do not have, and nothing is acknowledged without it. While it is away or
//! says nothing, writes are refused at once rather than tried. No epoch is begun as long as it fails, so that all members
//! still agree when it is back (docs/decisions/0017).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use basalt_reactor::{CoreId, Monotonic, WallTime};

use super::super::Engine;
use super::{Absence, EPOCH_TURN, in_time};
use crate::extent::DiskIndex;
use crate::extent::groups::Groups;
use crate::extent::members::{Failing, MemberState};
use crate::request::{Reply, Request};

/// How often the log says again that a disk still fails.
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// What the first core knows of them, by place.
#[derive(Default)]
pub(super) struct Failures {
    known: RefCell<BTreeMap<usize, Failure>>,
    /// Some shard takes no writes any more.
    shards_fail: Cell<bool>,
}

struct Failure {
    reason: String,
    since: WallTime,
    away: bool,
    silent: bool,
    logged: Monotonic,
}

impl Failures {
    pub(super) fn reasons(&self) -> BTreeMap<usize, String> {
        self.known.borrow().iter().map(|(&place, failure)| (place, failure.reason.clone())).collect()
    }

    /// Why and since when a disk fails, for people.
    pub(super) fn of(&self, place: usize) -> Option<Absence> {
        let known = self.known.borrow();
        known.get(&place).map(|failure| Absence { reason: failure.reason.clone(), since: failure.since })
    }

    fn is_known(&self, place: usize) -> bool {
        self.known.borrow().contains_key(&place)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.borrow().is_empty()
    }
}

/// Whether disks that are out in `next` might be opened under `attempt`, which some of them may have been told of, by
/// somebody who cannot see that the others went on without them.
pub(super) fn could_go_on_alone(groups: &Groups, attempt: &[MemberState], next: &[MemberState]) -> bool {
    let of = |is_out: bool| -> Vec<MemberState> {
        let place = |(place, &state): (usize, &MemberState)| {
            let out = next.get(place).is_none_or(|&next| next == MemberState::Out);
            if state == MemberState::InSync && out == is_out { state } else { MemberState::Out }
        };
        attempt.iter().enumerate().map(place).collect()
    };
    // Where those that go on are enough in that epoch too, opening asks for them.
    groups.are_enough(&of(true)) && !groups.are_enough(&of(false))
}

impl Engine {
    /// Takes note that these disks fail and stay, and tells every core.
    pub(super) async fn note_failing(&self, disks: BTreeMap<usize, String>) {
        let failures = &self.membership().failures;
        let (now, since) = (self.inner.core.now(), self.inner.core.wall());
        let mut is_new = false;
        for (place, reason) in disks {
            if self.inner.members.states()[place] == MemberState::Out {
                continue;
            }
            let mut known = failures.known.borrow_mut();
            let before = known.get(&place).map(|failure| failure.logged);
            is_new |= before.is_none();
            if before.is_none_or(|logged| now.since(logged) >= REMIND_EVERY) {
                tracing::error!(disk = place, path = %self.path_of(place), %reason,
                    "a disk fails that the set cannot do without");
                let failure = known.entry(place).or_insert(Failure {
                    reason,
                    since,
                    away: false,
                    silent: false,
                    logged: now,
                });
                failure.logged = now;
            }
        }
        if is_new {
            self.tell_failing().await;
        }
    }

    /// The disk is not where it was, or says nothing.
    pub(super) async fn note_away(&self, place: usize, silent: bool) {
        let is_news = match self.membership().failures.known.borrow_mut().get_mut(&place) {
            Some(failure) => {
                let before = (failure.away, failure.silent);
                (failure.away, failure.silent) = (true, silent);
                before != (true, silent)
            }
            None => false,
        };
        if is_news {
            self.tell_failing().await;
        }
    }

    pub(super) async fn forget_failing(&self, is_over: impl Fn(usize) -> bool) {
        let known = &self.membership().failures.known;
        let before = known.borrow().len();
        known.borrow_mut().retain(|&place, _| !is_over(place));
        if known.borrow().len() != before {
            self.tell_failing().await;
        }
    }

    /// What all cores say of their shards.
    pub(super) async fn note_health(&self, is_healthy: bool) {
        if self.membership().failures.shards_fail.replace(!is_healthy) == is_healthy {
            self.tell_failing().await;
        }
    }

    async fn tell_failing(&self) {
        let shards_fail = self.membership().failures.shards_fail.get();
        let disks: Vec<Failing> = {
            let known = self.membership().failures.known.borrow();
            let one = |(&place, failure): (&usize, &Failure)| Failing {
                disk: DiskIndex(u8::try_from(place).expect("at most 240 disks")),
                away: failure.away,
                silent: failure.silent,
            };
            known.iter().map(one).collect()
        };
        for core in 0..self.inner.core_count {
            let told = Request::Failing { disks: disks.clone(), shards_fail };
            // A core that is closing writes nothing.
            let _closing = self.inner.port.call(CoreId(core), told).await.is_err();
        }
    }

    /// A disk that failed is where it was: whether it takes a flush through the files that the cores have open. Those of a
    /// device that was pulled never do again, whatever is at its path.
    pub(super) async fn look_at_failing(&self, place: usize) {
        if !self.membership().failures.is_known(place) {
            return;
        }
        let disk = DiskIndex(u8::try_from(place).expect("at most 240 disks"));
        for core in 0..self.inner.core_count {
            let probe = Request::ProbeDisk(disk);
            if !matches!(self.inner.port.call(CoreId(core), probe).await, Ok(Reply::Done(Ok(())))) {
                return;
            }
        }
        tracing::info!(disk = place, path = %self.path_of(place), "the disk answers again");
        self.forget_failing(|other| other == place).await;
    }

    /// On every core: whether the disk takes a flush.
    pub(in super::super) async fn probe(&self, disk: DiskIndex) -> bool {
        let Some(files) = self.inner.files.borrow().first().cloned() else { return false };
        let Some(open) = files.disk(disk) else { return false };
        // One flush at a time: of what does not answer there is never more than one.
        if !self.inner.probing.borrow_mut().insert(disk) {
            return false;
        }
        let engine = self.clone();
        let flush = async move {
            let flushed = files.sync(disk, &open.root).await;
            engine.inner.probing.borrow_mut().remove(&disk);
            flushed
        };
        in_time(&self.inner.core, flush).await.is_ok()
    }

    /// Whether an epoch was begun that did not come about, and none since that did.
    pub(in super::super) fn has_unsettled_epoch(&self) -> bool {
        !self.membership().unestablished.borrow().is_empty()
    }

    /// Once no member fails any more, an epoch that all of them have follows those that did not come about.
    pub(super) async fn settle_epochs(&self) {
        let membership = self.membership();
        if membership.unestablished.borrow().is_empty() || !membership.failures.is_empty() {
            return;
        }
        let turn = membership.turn.lock(EPOCH_TURN).await;
        let states = self.inner.members.states();
        let settled = self.start_epoch(&states, |_| {}).await;
        drop(turn);
        for place in settled.err().unwrap_or_default() {
            let disk = DiskIndex(u8::try_from(place).expect("at most 240 disks"));
            self.exclude(disk, "its superblock is not written").await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN: MemberState = MemberState::InSync;
    const OUT: MemberState = MemberState::Out;

    #[test]
    fn the_last_one_of_an_epoch_that_nobody_was_told_of_is_not_left_alone() {
        let mirror = Groups::one(1, 2);
        assert!(could_go_on_alone(&mirror, &[OUT, IN], &[IN, OUT]));
        assert!(!could_go_on_alone(&mirror, &[IN, IN], &[IN, OUT]));
        // Opening the third of three alone asks for the second.
        let three = Groups::one(2, 3);
        assert!(!could_go_on_alone(&three, &[OUT, IN, IN], &[OUT, IN, OUT]));
        assert!(could_go_on_alone(&three, &[OUT, OUT, IN], &[OUT, IN, OUT]));
        // Fewer than it takes never open alone.
        let wide = Groups::one(2, 5);
        assert!(!could_go_on_alone(&wide, &[OUT, IN, IN, IN, IN], &[OUT, OUT, IN, IN, IN]));
    }
}
