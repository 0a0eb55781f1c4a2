//! Damage that this core's readers meet: counted and kept here, and told to the shard that owns what is damaged.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use basalt_reactor::mesh::Port;
use basalt_reactor::{Core, CoreId};

use crate::body::{Damage, Fault, OnDamage};
use crate::extent::members::Members;
use crate::log_pace::LogPace;
use crate::request::{Ask, Reply, Request};
use crate::shard::Shard;
use crate::shard::repair::Suspect;

/// Damage that is kept for [`super::Engine::take_damage`], at most.
const DAMAGE_KEPT_MAX: usize = 4096;

/// Lines about damage that each shard's readers on a core log in a second, at most.
const LINES_PER_SECOND: u32 = 10;

/// Reports of damage to other cores that may be under way at one time.
const REPORTS_MAX: usize = 64;

/// Logs damage, counts it, and keeps it for [`super::Engine::take_damage`].
pub(super) fn note_damage(
    core: &Core,
    kept: &Rc<RefCell<Vec<Damage>>>,
    corrupt: &Rc<Cell<u64>>,
) -> impl Fn(Damage) + 'static {
    let (core, kept, corrupt) = (core.clone(), Rc::clone(kept), Rc::clone(corrupt));
    let pace = LogPace::new(LINES_PER_SECOND);
    move |damage: Damage| {
        if matches!(damage.fault, Fault::Checksum { .. }) {
            corrupt.set(corrupt.get() + 1);
        }
        if let Some(left_out) = pace.admit(core.now()) {
            tracing::warn!(extent = damage.extent.0, disk = damage.disk.0, offset = damage.offset,
                fault = %damage.fault, left_out, "damaged block read around");
        }
        let mut kept = kept.borrow_mut();
        if kept.len() < DAMAGE_KEPT_MAX {
            kept.push(damage);
        }
    }
}

/// Tells the owning shards of damage that this core's readers meet.
#[derive(Clone)]
pub(super) struct Reports {
    core: Core,
    port: Port<Request, Reply>,
    /// Reports to other cores that are not answered yet.
    under_way: Rc<Cell<usize>>,
}

impl Reports {
    pub(super) fn new(core: Core, port: Port<Request, Reply>) -> Reports {
        Reports { core, port, under_way: Rc::default() }
    }

    /// What readers of a shard's bodies report to.
    pub(super) fn for_shard(
        self,
        shard: u16,
        owner: CoreId,
        own: Option<Rc<Shard>>,
        members: Rc<Members>,
        note: impl Fn(Damage) + 'static,
    ) -> OnDamage {
        Rc::new(move |damage, row| {
            // A disk that is absent is not damaged, nor is one that fails altogether.
            let is_gone = matches!(damage.fault, Fault::Device(_)) && members.is_failing(damage.disk);
            if is_gone || damage.fault == Fault::Absent {
                return;
            }
            note(damage);
            let suspect = match row {
                Some(row) => Suspect::Row(row.clone()),
                // A body in one piece lies in the log.
                None => {
                    let (extent, offset, len) = (damage.extent, damage.offset, damage.len.into());
                    Suspect::Log { extent, offset, len }
                }
            };
            match &own {
                Some(own) => own.suspect(suspect),
                None => self.send(shard, owner, suspect),
            }
        })
    }

    /// Tells another core, unless many reports wait already: what is not told now will be met again.
    fn send(&self, shard: u16, owner: CoreId, suspect: Suspect) {
        if self.under_way.get() >= REPORTS_MAX {
            return;
        }
        self.under_way.set(self.under_way.get() + 1);
        let reports = self.clone();
        self.core.spawn(async move {
            let request = Request::Shard { shard, ask: Ask::Repair(suspect) };
            // A core that is gone repairs nothing any more.
            let _ = reports.port.call(owner, request).await;
            reports.under_way.set(reports.under_way.get() - 1);
        });
    }
}
