//! The digests of a body that is on its way into the engine.
//!
//! CRC and SHA are computed as the bytes pass by. MD5 costs more than everything else that is done to a large body, unless
//! several bodies are computed together; so the bodies of a core share one [`Streams`], and a body may run ahead of its MD5.
//! A body waits for others only by letting the tasks that are ready run once, and only if it is short or there are others: never for
//! their clients.

use basalt_md5::shared::{Stream, Streams};
use basalt_reactor::{Core, Slice};
use bytes::Bytes;

use super::Service;
use crate::s3::checksum::hasher::{Digests, Hasher};

/// The bodies of one core whose MD5 is being computed.
pub(super) type BodyStreams = Streams<Piece>;

/// Bytes of a body in memory that is shared.
pub(super) enum Piece {
    Received(Bytes),
    Read(Slice),
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        match self {
            Piece::Received(bytes) => bytes,
            Piece::Read(slice) => slice,
        }
    }
}

/// A body up to this many bytes waits whole for others that end in the same turn.
const SHORT_LEN_MAX: u64 = 64 << 10;

/// Every digest of one body.
pub(super) struct BodyDigest {
    core: Core,
    passing: Hasher,
    md5: Stream<Piece>,
}

impl BodyDigest {
    /// The MD5 of a body of `len` bytes, and what `hasher` computes beside.
    pub(super) fn new(service: &Service, len: u64, hasher: Hasher) -> BodyDigest {
        BodyDigest::among(&service.md5, service.engine.core(), len, hasher)
    }

    fn among(streams: &BodyStreams, core: &Core, len: u64, hasher: Hasher) -> BodyDigest {
        let md5 = if len <= SHORT_LEN_MAX { streams.short_stream() } else { streams.stream() };
        BodyDigest { core: core.clone(), passing: hasher.without_md5(), md5 }
    }

    /// Takes bytes that a client sent, and may keep them for a while.
    pub(super) fn update(&mut self, bytes: Bytes) {
        self.passing.update(&bytes);
        self.md5.update(Piece::Received(bytes));
    }

    /// Takes bytes that were read from disk. They are let go before this returns: the arena that they lie in is what the next
    /// read may wait for.
    pub(super) async fn update_read(&mut self, slice: Slice) {
        self.passing.update(&slice);
        self.md5.update(Piece::Read(slice));
        if self.md5.may_share() {
            self.md5.ask();
            self.core.yield_now().await;
        }
        self.md5.catch_up();
    }

    pub(super) async fn finish(self) -> Digests {
        let ended = self.md5.end();
        if ended.may_share() {
            // Others that end in this turn of the core share the lanes.
            self.core.yield_now().await;
        }
        let mut digests = self.passing.finish();
        digests.md5 = Some(ended.digest());
        digests
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_md5::Kernel;
    use basalt_md5::shared::HELD_MAX;
    use basalt_reactor::JoinHandle;
    use basalt_reactor::sim::{Config, World};
    use md5::{Digest, Md5};

    use crate::s3::checksum::Algorithm;

    const SEEDS: u64 = 20;
    const BODIES: u64 = 40;

    fn content(body: u64) -> Vec<u8> {
        let len = [0, 1, 63, 64, 4096, 100_000, 700_000][(body % 7) as usize];
        (0..len as u64).map(|i| ((i * (body + 3)) >> 3) as u8).collect()
    }

    /// A client that sends now and then, or a copy of what lies in the arena.
    fn body(core: &Core, streams: &BodyStreams, body: u64) -> JoinHandle<Digests> {
        let (task_core, streams) = (core.clone(), streams.clone());
        core.spawn(async move {
            let core = task_core;
            let content = content(body);
            let mut digest = BodyDigest::among(
                &streams,
                &core,
                content.len() as u64,
                Hasher::new().md5().checksum(Algorithm::Crc32c),
            );
            for piece in content.chunks(16 << 10) {
                if body.is_multiple_of(3) {
                    let mut buf = core.arena().alloc(piece.len()).await;
                    buf.set_len(piece.len());
                    buf.copy_from_slice(piece);
                    digest.update_read(buf.freeze()).await;
                } else {
                    digest.update(Bytes::copy_from_slice(piece));
                }
                if core.random_u64().is_multiple_of(3) {
                    core.yield_now().await;
                }
            }
            digest.finish().await
        })
    }

    /// Whatever the order of turns, and whoever is gone in the middle.
    #[test]
    fn bodies_of_one_core_have_their_own_digests() {
        for seed in 0..SEEDS {
            let mut world = World::new(seed, Config { arena_len: 1 << 20, ..Config::default() });
            let core = world.boot(1).remove(0);
            world.run(async move {
                let streams = BodyStreams::new(Kernel::detect());
                let tasks: Vec<_> =
                    (0..BODIES).map(|number| (number, body(&core, &streams, number))).collect();
                for (number, task) in &tasks {
                    if (number + seed).is_multiple_of(5) {
                        core.yield_now().await;
                        task.cancel();
                    }
                }
                let mut whole = 0;
                for (number, task) in tasks {
                    let Some(digests) = task.await else { continue };
                    let content = content(number);
                    assert_eq!(digests.md5, Some(Md5::digest(&content).into()), "seed {seed}, body {number}");
                    let mut crc = Hasher::new().checksum(Algorithm::Crc32c);
                    crc.update(&content);
                    assert_eq!(
                        digests.checksum(Algorithm::Crc32c),
                        crc.finish().checksum(Algorithm::Crc32c),
                        "seed {seed}, body {number}"
                    );
                    whole += 1;
                }
                assert!(whole >= BODIES / 2 && streams.held() == 0);
            });
        }
    }

    /// A client that stalls keeps nobody else from an answer, and the bytes of copies are let go at once.
    #[test]
    fn a_stalled_body_is_not_waited_for() {
        let mut world = World::new(1, Config::default());
        let core = world.boot(1).remove(0);
        world.run(async move {
            let streams = BodyStreams::new(Kernel::detect());
            let mut stalled = BodyDigest::among(&streams, &core, 1 << 20, Hasher::new());
            stalled.update(Bytes::from_static(&[1; 1000]));
            let held = streams.held();
            let mut other = BodyDigest::among(&streams, &core, 1 << 20, Hasher::new());
            let mut buf = core.arena().alloc(1 << 16).await;
            buf.set_len(1 << 16);
            buf.fill(2);
            other.update_read(buf.freeze()).await;
            assert!(streams.held() <= held && held <= HELD_MAX);
            assert_eq!(core.arena().usage().used, 0);
            let started = core.now();
            assert_eq!(other.finish().await.md5, Some(Md5::digest([2; 1 << 16]).into()));
            assert!(core.now().since(started) < std::time::Duration::from_millis(1));
            assert_eq!(stalled.finish().await.md5, Some(Md5::digest([1; 1000]).into()));
        });
    }
}
