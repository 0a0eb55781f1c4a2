//! Reading what lies on several disks alike: the first good answer counts.
//!
//! One replica is asked at a time, a disk that is known to be slow last. When its answer is late, the next one is asked
//! too; when it is bad, the next one is asked instead.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::Poll;

use basalt_reactor::{Buf, Core};

use super::reads::DiskRead;
use super::{ArenaFiles, Column, ExtentClass};

/// A range of an extent that has replicas.
pub(crate) struct ReplicaRead<'a> {
    pub(crate) core: &'a Core,
    pub(crate) files: &'a ArenaFiles,
    pub(crate) class: ExtentClass,
    pub(crate) columns: &'a [Column],
    /// Index of the replica to begin with.
    pub(crate) first: usize,
    /// In the extent.
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

/// Reads under way with the index of their replica, the oldest first.
type Running = Vec<(usize, DiskRead)>;

enum Next {
    Ended {
        index: usize,
        result: io::Result<usize>,
        buf: Buf,
        /// An older read is still under way.
        overtook: bool,
    },
    Late,
}

impl ReplicaRead<'_> {
    /// What `open` makes of the first answer that it takes; `refused` hears of the others. `None` when no replica on a present
    /// disk has a good answer.
    pub(crate) async fn first_good<T, E>(
        &self,
        open: impl Fn(usize, io::Result<usize>, Buf) -> Result<T, E>,
        mut refused: impl FnMut(usize, E),
    ) -> Option<T> {
        let mut unasked = self.order();
        let mut running: Running = Vec::new();
        loop {
            if running.is_empty() {
                let index = unasked.pop_front()?;
                let buf = self.core.arena().alloc(self.len).await;
                running.extend(self.start(index, buf));
                continue;
            }
            match self.next(&mut running).await {
                Next::Ended { index, result, buf, overtook } => match open(index, result, buf) {
                    Ok(answer) => {
                        self.files.reads().count(|counts| counts.hedges_won += u64::from(overtook));
                        return Some(answer);
                    }
                    Err(fault) => refused(index, fault),
                },
                // Memory is not waited for: the answer may come at any moment.
                Next::Late => {
                    // Nobody else has it, or this one would not be waited for any more.
                    if unasked.is_empty() {
                        running.retain(|(_, read)| !read.is_stuck());
                        continue;
                    }
                    if let Some(buf) = self.core.arena().try_alloc(self.len)
                        && running.last().is_some_and(|(_, late)| late.may_hedge())
                        && let Some(index) = unasked.pop_front()
                    {
                        self.files.reads().count(|counts| counts.hedged += 1);
                        running.extend(self.start(index, buf));
                    }
                }
            }
        }
    }

    /// Waits for the end of any read, or for the one that began last to be late if there may be others to ask.
    async fn next(&self, running: &mut Running) -> Next {
        let has_others = self.files.geometry().m > 0;
        let mut timer = None;
        poll_fn(|cx| {
            for place in 0..running.len() {
                let (index, read) = &mut running[place];
                let index = *index;
                if let Poll::Ready((result, buf)) = Pin::new(read).poll(cx) {
                    running.remove(place);
                    return Poll::Ready(Next::Ended { index, result, buf, overtook: place > 0 });
                }
            }
            let Some((_, newest)) = running.last_mut().filter(|_| has_others) else { return Poll::Pending };
            let timer = timer.get_or_insert_with(|| Box::pin(self.core.sleep_until(newest.check_at())));
            timer.as_mut().poll(cx).map(|()| {
                newest.note_late();
                Next::Late
            })
        })
        .await
    }

    /// The replicas on present disks in the order in which to ask.
    fn order(&self) -> VecDeque<usize> {
        let count = self.columns.len();
        let present = |&index: &usize| self.files.locate_readable(self.class, self.columns[index]).is_some();
        let rotated = (0..count).map(|turn| (self.first + turn) % count).filter(present);
        let (avoided, mut order): (VecDeque<usize>, VecDeque<usize>) =
            rotated.partition(|&index| self.files.reads().is_avoided(self.columns[index].disk));
        if !order.is_empty() {
            for &index in &avoided {
                self.files.probe(self.core, self.class, self.columns[index], self.offset);
            }
        }
        order.extend(avoided);
        order
    }

    fn start(&self, index: usize, buf: Buf) -> Option<(usize, DiskRead)> {
        let read = self.files.read(self.core, self.class, self.columns[index], buf, self.offset);
        read.ok().map(|read| (index, read))
    }
}
