//! Leases of blocks, asked of the core that runs the shard.
//!
//! A writer may go away at any moment. What was granted meanwhile finds its way back.

use std::rc::Rc;

use basalt_reactor::mesh::Port;
use basalt_reactor::{Core, CoreId};

use crate::body::{BodyError, Lease, LeaseFuture, Lessor};
use crate::error::EngineError;
use crate::request::{Ask, Reply, Request};
use crate::shard::leases::LeaseGrant;

/// The owning shard as a writer on this core sees it.
pub(super) struct MeshLessor {
    pub(super) core: Core,
    pub(super) port: Port<Request, Reply>,
    pub(super) owner: CoreId,
    pub(super) shard: u16,
}

impl Lessor for MeshLessor {
    fn lease(&self, blocks_min: u32, blocks_max: u32) -> LeaseFuture {
        let (port, owner, shard) = (self.port.clone(), self.owner, self.shard);
        // A task of its own, so that a lease which arrives after its writer is gone finds its way back.
        let task = self.core.spawn(async move {
            let ask = Ask::Lease { blocks_min, blocks_max };
            let reply = port.call(owner, Request::Shard { shard, ask }).await;
            match reply {
                Ok(Reply::Lease(Ok(grant))) => Ok(GrantGuard { port, owner, shard, grant: Some(grant) }),
                Ok(Reply::Lease(Err(EngineError::NoSpace))) => Err(BodyError::NoSpace),
                _ => Err(BodyError::Closed),
            }
        });
        Box::pin(async move {
            let guard = task.await.unwrap_or(Err(BodyError::Closed))?;
            let grant = guard.keep();
            Ok(Lease {
                id: grant.id,
                placement: Rc::new(grant.placement),
                block: grant.block,
                blocks: grant.blocks,
            })
        })
    }

    fn release(&self, lease: u64) {
        self.port.notify(self.owner, Request::Shard { shard: self.shard, ask: Ask::EndLease(lease) });
    }
}

/// A lease that nobody has taken over yet; dropped, it goes back.
struct GrantGuard {
    port: Port<Request, Reply>,
    owner: CoreId,
    shard: u16,
    grant: Option<LeaseGrant>,
}

impl GrantGuard {
    fn keep(mut self) -> LeaseGrant {
        self.grant.take().expect("it is taken once")
    }
}

impl Drop for GrantGuard {
    fn drop(&mut self) {
        if let Some(grant) = &self.grant {
            let ask = Ask::EndLease(grant.id);
            self.port.notify(self.owner, Request::Shard { shard: self.shard, ask });
        }
    }
}
