//! The log extent that comes next: prepared ahead of need, then named by a batch, then entered.
//!
//! There is one at most, and it is younger than every extent the log was in. Recovery relies on both: it knows where the log
//! may go on by what the log named last, and takes no older extent for it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::Shard;
use crate::error::EngineError;
use crate::extent::{ExtentClass, ExtentId, Placement};
use crate::format::log_header::LogHeader;
use crate::log::{self, LogError, LogExtent};
use crate::wait::Event;

#[derive(Default)]
enum Next {
    #[default]
    None,
    /// Its header is on its replicas; the log does not name it yet.
    Prepared(LogExtent),
    /// The batch that names it is on its way.
    BeingNamed,
    /// The log names it.
    Named(LogExtent),
}

#[derive(Default)]
pub(super) struct Spare {
    next: RefCell<Next>,
    /// The extent in which the log entered its epoch, if it did so while it served.
    entered: Cell<Option<ExtentId>>,
    /// The last attempt to prepare one found no room.
    starved: Cell<bool>,
    wanted: Event,
}

impl Spare {
    fn is_wanted(&self) -> bool {
        matches!(*self.next.borrow(), Next::None) && !self.starved.get()
    }

    pub(super) fn is_prepared(&self) -> bool {
        matches!(*self.next.borrow(), Next::Prepared(_))
    }

    pub(super) fn is_named(&self) -> bool {
        matches!(*self.next.borrow(), Next::Named(_))
    }

    /// Whether it is known if there is a log extent to go on in.
    pub(super) fn is_decided(&self) -> bool {
        !matches!(*self.next.borrow(), Next::None) || self.starved.get()
    }

    /// The prepared extent, for the batch that names it.
    pub(super) fn begin_naming(&self) -> Option<LogExtent> {
        self.replace_if(Spare::is_prepared, Next::BeingNamed)
    }

    /// The batch that names `extent` is durable.
    pub(super) fn named(&self, extent: LogExtent) {
        self.next.replace(Next::Named(extent));
    }

    /// The extent that the log names, to be entered now.
    pub(super) fn take_named(&self) -> Option<LogExtent> {
        self.replace_if(Spare::is_named, Next::None)
    }

    /// The extent that the log does not name yet, if there is one.
    pub(super) fn take_prepared(&self) -> Option<LogExtent> {
        self.replace_if(Spare::is_prepared, Next::None)
    }

    fn replace_if(&self, is: impl Fn(&Spare) -> bool, with: Next) -> Option<LogExtent> {
        if !is(self) {
            return None;
        }
        match self.next.replace(with) {
            Next::Prepared(extent) | Next::Named(extent) => Some(extent),
            Next::None | Next::BeingNamed => None,
        }
    }

    /// Asks for one if there is none.
    pub(super) fn want(&self) {
        self.wanted.notify();
    }

    /// Lets one be tried again that found no room.
    pub(super) fn retry(&self) {
        self.starved.set(false);
        self.wanted.notify();
    }
}

impl Shard {
    /// The log has entered `extent` for a new epoch, and goes on in none of those it named. One that was ready in the meantime
    /// is older, and given back.
    pub(super) fn enter_extent(&self, extent: ExtentId) {
        let spare = &self.commits.spare;
        spare.entered.set(Some(extent));
        self.drop_prepared();
        spare.next.replace(Next::None);
    }

    /// Gives a log extent back that the log does not name.
    pub(super) fn drop_prepared(&self) {
        if let Some(prepared) = self.commits.spare.take_prepared() {
            self.space.extents.borrow_mut().release(&prepared.placement);
        }
    }

    /// Keeps one log extent prepared ahead of need.
    pub(crate) async fn run_spares(self: Rc<Self>) {
        let spare = &self.commits.spare;
        loop {
            spare.wanted.wait_until(|| spare.is_wanted()).await;
            match self.prepare_log_extent().await {
                Ok((extent, epoch)) => self.offer_spare(extent, epoch),
                Err(EngineError::MembersChanged) => {}
                Err(error) => {
                    tracing::debug!(shard = self.id, %error, "no room for the next log extent");
                    self.space.set_full(true);
                    spare.starved.set(true);
                    self.wake_background();
                }
            }
            self.commits.wake();
        }
    }

    /// Takes `extent`, prepared in `epoch`, as the one to go on in, if it still may be.
    fn offer_spare(&self, extent: LogExtent, epoch: u64) {
        let spare = &self.commits.spare;
        let is_older = spare.entered.get().is_some_and(|entered| extent.placement.id < entered);
        // Of another epoch, it may lie on a disk that went out meanwhile.
        if self.files.members().epoch() != epoch || is_older {
            self.space.extents.borrow_mut().release(&extent.placement);
        } else {
            spare.next.replace(Next::Prepared(extent));
            self.space.refresh_full();
        }
    }

    /// A log extent with its header on its replicas, and the epoch that the header names.
    ///
    /// # Errors
    /// [`EngineError::MembersChanged`] when a replica's disk went out meanwhile; the extent is given back then, as always.
    pub(super) async fn prepare_log_extent(&self) -> Result<(LogExtent, u64), EngineError> {
        let placement = self.space.allocate(ExtentClass::Log).await?;
        let epoch = self.files.members().epoch();
        let extent = self.new_log_extent(placement);
        let header = self.header_for(&extent, epoch);
        match log::prepare_extent(&self.core, &self.files, &extent.placement, &header, false).await {
            Ok(()) => Ok((extent, epoch)),
            Err(error) => {
                self.space.extents.borrow_mut().release(&extent.placement);
                match error {
                    LogError::Out { .. } => Err(EngineError::MembersChanged),
                    LogError::Device { .. } => {
                        Err(EngineError::ShardFailed { shard: self.id, reason: error.to_string() })
                    }
                }
            }
        }
    }

    fn new_log_extent(&self, placement: Placement) -> LogExtent {
        let mut nonce = [0; 16];
        self.core.fill_random(&mut nonce);
        LogExtent { placement: Rc::new(placement), nonce }
    }

    pub(crate) fn header_for(&self, extent: &LogExtent, epoch: u64) -> LogHeader {
        LogHeader {
            deployment: self.deployment,
            shard: self.id,
            extent: extent.placement.id,
            epoch,
            nonce: extent.nonce,
        }
    }
}
