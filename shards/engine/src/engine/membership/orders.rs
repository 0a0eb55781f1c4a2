//! What an operator tells the set to do with a disk: take it out, let it in again, give its place to another.

use std::path::{Path, PathBuf};

use basalt_reactor::CoreId;

use super::super::Engine;
use super::watch::Newcomer;
use super::{Cause, EPOCH_TURN};
use crate::deployment::DiskState;
use crate::error::EngineError;
use crate::extent::DiskIndex;
use crate::extent::members::MemberState;
use crate::request::{Reply, Request};

/// An operator's word about the disk at a place among the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOrder {
    /// Out it goes, and stays out until another order, also when it is away and comes back, and when the server restarts.
    Remove { place: usize },
    /// It may be a member again, whatever was held against it: at once if it is there, or when it turns up.
    Return { place: usize },
    /// The empty disk at `path` takes the place; a disk that is still a member is taken out first.
    Replace { place: usize, path: PathBuf },
}

impl DiskOrder {
    fn place(&self) -> usize {
        match self {
            DiskOrder::Remove { place } | DiskOrder::Return { place } | DiskOrder::Replace { place, .. } => {
                *place
            }
        }
    }
}

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderError {
    NoSuchDisk {
        place: usize,
    },
    /// Without the disk, too few would hold all that they should.
    TooFew {
        in_sync: usize,
        needed: usize,
    },
    /// The other disk is not empty, or cannot be looked at.
    NotEmpty {
        path: PathBuf,
        found: String,
    },
    /// It was a file system of its own, and what takes its place is not.
    NotMounted {
        path: PathBuf,
    },
    /// What went wrong while it was let in, or taken out.
    Engine(EngineError),
}

impl std::fmt::Display for OrderError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OrderError::NoSuchDisk { place } => write!(f, "there is no disk {place}"),
            OrderError::TooFew { in_sync, needed } => write!(
                f,
                "without it {in_sync} disks would hold all they should, and {needed} are needed; wait for rebuilding to end"
            ),
            OrderError::NotEmpty { path, found } => {
                write!(f, "{} is not an empty disk: {found}", path.display())
            }
            OrderError::NotMounted { path } => write!(
                f,
                "{} is not a file system of its own, as the disk was whose place it is to take: not mounted?",
                path.display()
            ),
            OrderError::Engine(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OrderError {}

impl Engine {
    /// Carries out an operator's word about a disk, on any core. Once this returns, the epoch that says so is durable.
    ///
    /// # Errors
    /// [`OrderError`]; the disk is then what it was before.
    pub async fn order_disk(&self, order: DiskOrder) -> Result<(), OrderError> {
        match self.inner.port.call(CoreId(0), Request::DiskOrder(order)).await {
            Ok(Reply::DiskOrdered(result)) => result,
            _ => Err(OrderError::Engine(EngineError::Closed)),
        }
    }

    pub(in super::super) async fn carry_out_order(&self, order: DiskOrder) -> Result<(), OrderError> {
        if self.is_read_only() {
            return Err(OrderError::Engine(EngineError::ReadOnly));
        }
        let place = order.place();
        if place >= self.inner.members.states().len() {
            return Err(OrderError::NoSuchDisk { place });
        }
        tracing::info!(?order, "an operator's word");
        match order {
            DiskOrder::Remove { place } => {
                self.take_out(index(place), "removed by an operator", Cause::Order).await
            }
            DiskOrder::Return { place } => self.return_disk(place).await,
            DiskOrder::Replace { place, path } => self.replace_disk(place, &path).await,
        }
    }

    async fn return_disk(&self, place: usize) -> Result<(), OrderError> {
        let membership = self.membership();
        if self.inner.members.state(index(place)) != MemberState::Out {
            return Ok(());
        }
        membership.distrusted.borrow_mut().remove(&place);
        let mut candidates = membership.unclaimed.borrow().clone();
        candidates.splice(0..0, membership.paths.borrow()[place].clone());
        for path in candidates {
            if self.look_at(&path).await.is_ok_and(|state| self.is_member(place, &state))
                && self.let_in(place, &path, Newcomer::Old).await.is_ok()
            {
                return Ok(());
            }
        }
        self.wait_for(place).await
    }

    /// The disk is not there, or what was written to it before is not over: it is let in when it turns up and is at rest, also
    /// after a restart.
    async fn wait_for(&self, place: usize) -> Result<(), OrderError> {
        let membership = self.membership();
        let _turn = membership.turn.lock(EPOCH_TURN).await;
        if !membership.config.borrow().members[place].removed {
            return Ok(());
        }
        let states = self.inner.members.states();
        let told = self.start_epoch(&states, |next| next.members[place].removed = false).await;
        told.map_err(|_| OrderError::Engine(EngineError::MembersChanged))
    }

    async fn replace_disk(&self, place: usize, path: &Path) -> Result<(), OrderError> {
        let not_empty = |found: String| OrderError::NotEmpty { path: path.to_owned(), found };
        match self.look_at(path).await {
            Ok(DiskState::Empty) => {}
            Ok(DiskState::Foreign { example }) => return Err(not_empty(format!("it holds {example}"))),
            Ok(DiskState::Ours(_)) => {
                return Err(not_empty("it is or was a disk of a deployment".to_owned()));
            }
            Ok(DiskState::Unreadable { reasons }) => return Err(not_empty(reasons.join("; "))),
            Err(error) => return Err(not_empty(error.to_string())),
        }
        if !self.may_replace(place, path) {
            return Err(OrderError::NotMounted { path: path.to_owned() });
        }
        if self.inner.members.state(index(place)) != MemberState::Out {
            self.take_out(index(place), "replaced by an operator", Cause::Order).await?;
        }
        self.let_in(place, path, Newcomer::Empty).await.map_err(OrderError::Engine)
    }
}

fn index(place: usize) -> DiskIndex {
    DiskIndex(u8::try_from(place).expect("at most 240 disks"))
}
