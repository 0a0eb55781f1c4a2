//! Multipart uploads through crashes: an upload completes as a whole or not at all, and whatever becomes of it, the
//! space of its parts comes back.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use basalt_engine::{Engine, EngineError, ObjectDraft, PartItem, UploadQuery, UploadStart};
use basalt_reactor::sim::{Crash, Random};

use crate::client::{Client, Outcome, Shared, bucket_id, expect_empty};
use crate::cluster::{Cluster, Layout};
use crate::model::Content;

/// The parts of objects that were completed, by the objects' tags.
pub(crate) type Made = Rc<RefCell<BTreeMap<u64, Vec<Content>>>>;

/// One name per client; it alone works on it.
pub(crate) struct Uploader {
    pub(crate) client: Client,
    pub(crate) name: String,
    pub(crate) made: Made,
}

impl Uploader {
    async fn put_part(&self, id: [u8; 16], number: u16, content: Content) -> Result<(), EngineError> {
        let (engine, bucket) = (&self.client.engine, self.client.bucket);
        let mut writer =
            engine.write_part(bucket, self.name.as_bytes(), Some(content.len as u64)).for_part(id, number);
        for at in (0..content.len).step_by(70_000) {
            writer.write(&content.bytes(at..(at + 70_000).min(content.len))).await?;
        }
        let body = writer.finish().await?;
        engine
            .put_part(bucket, self.name.as_bytes(), id, number, content.etag(), None, body)
            .await
            .map(|_| ())
    }

    pub(crate) async fn run(self, shared: Rc<Shared>, mut random: Random, count: u64) {
        let (engine, bucket, name) = (&self.client.engine, self.client.bucket, self.name.as_bytes());
        for _ in 0..count {
            let id = engine.create_upload(bucket, name, Vec::new(), 0, false).await.expect("there is room");
            let mut parts: BTreeMap<u16, Content> = BTreeMap::new();
            for _ in 0..1 + random.below(12) {
                if random.below(4) == 0 {
                    self.collect_aside();
                }
                // Out of order, with holes, some of them again.
                let number = 1 + random.below(9) as u16;
                let len = [0, random.below(9000), random.below(150_000)][random.below(3) as usize];
                let content = Content { len: len as usize, tag: random.next_u64() };
                self.put_part(id, number, content).await.expect("there is room");
                parts.insert(number, content);
            }
            let (_, listed) = engine.all_parts(bucket, name, id).await.expect("it is open");
            // What was just listed moves before it is completed, or meanwhile.
            self.collect_aside();
            engine.core().sleep(Duration::from_micros(random.below(20_000))).await;
            let seen = listed.iter().map(|item| (item.number, Content::of(item.part.etag, item.part.len)));
            assert_eq!(seen.collect::<BTreeMap<_, _>>(), parts, "the parts listed and the parts put");
            match random.below(4) {
                0 => engine.abort_upload(bucket, name, id).await.expect("it is open"),
                1 => {} // Left open, for the end to find.
                _ => self.complete(&shared, &mut random, id, listed).await,
            }
        }
    }

    /// Has extents emptied while this goes on.
    fn collect_aside(&self) {
        let engine = self.client.engine.clone();
        drop(self.client.engine.core().spawn(async move { while engine.collect().await == Ok(true) {} }));
    }

    /// Completes with some of the parts, twice.
    async fn complete(&self, shared: &Shared, random: &mut Random, id: [u8; 16], listed: Vec<PartItem>) {
        let (engine, bucket, name) = (&self.client.engine, self.client.bucket, self.name.as_bytes());
        let kept = listed.into_iter().filter(|_| random.below(4) > 0).collect::<Vec<_>>();
        let len = kept.iter().map(|item| item.part.len).sum::<u64>();
        // Its bytes are those of its parts; the tag only tells it from other objects.
        let content = Content { len: usize::try_from(len).expect("small"), tag: random.next_u64() };
        let draft = || ObjectDraft { etag: content.etag(), ..ObjectDraft::default() };
        let parts = kept.iter().map(|item| Content::of(item.part.etag, item.part.len)).collect();
        self.made.borrow_mut().insert(content.tag, parts);
        let write = shared.model.borrow_mut().begin(&self.name, Some(content));
        let done = engine.complete_upload(bucket, name, id, draft(), kept.clone(), None).await;
        done.expect("every part is there");
        shared.model.borrow_mut().acknowledge(&self.name, write);
        shared.outcome.borrow_mut().acknowledged += 1;
        let again = engine.complete_upload(bucket, name, id, draft(), kept.clone(), None).await;
        assert_eq!(again, Err(EngineError::NoSuchUpload), "an upload completes once");
        self.verify(shared).await;
        if random.below(3) == 0 {
            // By then its parts are one body, if they are short.
            engine.core().sleep(Duration::from_secs(1)).await;
            self.verify(shared).await;
        }
    }

    /// Whatever the object is by now: it has the bytes of its parts.
    pub(crate) async fn verify(&self, shared: &Shared) {
        let (engine, bucket, name) = (&self.client.engine, self.client.bucket, self.name.as_bytes());
        let Some(reader) = engine.open(bucket, name).await.expect("it reads") else { return };
        let content = Content::of(reader.object().etag, reader.object().len);
        let mut body = reader.read(0..content.len as u64).await.expect("it reads");
        let mut got = Vec::new();
        while let Some(bytes) = body.next().await {
            got.extend_from_slice(&bytes.expect("nothing is damaged"));
        }
        let parts = self.made.borrow().get(&content.tag).cloned().expect("somebody completed it");
        let expected = parts.iter().flat_map(|part| part.bytes(0..part.len));
        assert!(expected.eq(got), "{}: the bytes of its parts in order", self.name);
        let listed = reader.parts().await.expect("it reads");
        assert!(listed.iter().map(|part| part.len).eq(parts.iter().map(|part| part.len as u64)));
        let is_merged = reader.object().merged_parts().expect("it is whole").is_some();
        shared.outcome.borrow_mut().merged += u64::from(is_merged);
        shared.outcome.borrow_mut().verified += 1;
    }
}

/// The uploads that are still open.
pub(crate) async fn open_uploads(engine: &Engine, bucket: u64) -> Vec<(Vec<u8>, [u8; 16])> {
    let query = UploadQuery {
        bucket,
        prefix: Vec::new(),
        delimiter: Vec::new(),
        start: UploadStart::First,
        limit: 1000,
    };
    let page = engine.list_uploads(&query).await.expect("nothing is damaged");
    page.items
        .into_iter()
        .map(|item| match item {
            basalt_engine::UploadItem::Upload { name, id, .. } => (name, id),
            basalt_engine::UploadItem::Prefix(_) => panic!("no delimiter was given"),
        })
        .collect()
}

pub(crate) fn run(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0xa470);
    let layout = Layout::draw(&mut random);
    let mut world = layout.world(seed, 96 << 20);
    let shared = Shared::new();
    for round in 0..3 {
        let cores = world.boot(1 + random.below(3) as u16);
        let (state, mut own) = (Rc::clone(&shared), random.fork());
        let work = async move {
            let cluster = Cluster::start(cores, layout).await;
            // Objects of parts do not have the bytes of their tag: only what they are is compared here.
            let mut running = Vec::new();
            for index in 0..3 {
                let engine = cluster.any(&mut own);
                let bucket = bucket_id(&engine, &state).await.expect("no device fails");
                let name = format!("object-{index}");
                let seen = engine.lookup(bucket, name.as_bytes()).await.expect("nothing is damaged");
                let seen = seen.map(|object| Content::of(object.etag, object.len));
                state.model.borrow_mut().settle(&name, seen);
                let client = Client { engine: engine.clone(), shared: Rc::clone(&state), bucket };
                let made = Made::default();
                let task = Uploader { client, name, made }.run(Rc::clone(&state), own.fork(), 6);
                running.push(engine.core().spawn(task));
            }
            for uploader in running {
                uploader.await.expect("nobody cancels an uploader");
            }
            let engine = cluster.any(&mut own);
            let bucket = bucket_id(&engine, &state).await.expect("no device fails");
            for (name, id) in open_uploads(&engine, bucket).await {
                engine.abort_upload(bucket, &name, id).await.expect("it is open");
            }
            let keys = state.model.borrow().keys();
            for key in keys {
                let write = state.model.borrow_mut().begin(&key, None);
                engine.delete(bucket, key.as_bytes(), None).await.expect("nothing is damaged");
                state.model.borrow_mut().acknowledge(&key, write);
            }
            // What a crash left of closed uploads is swept when they are old enough.
            engine.core().sleep(Duration::from_secs(2 * 3600)).await;
            expect_empty(&cluster, &engine).await;
            for (_, stats) in cluster.engines.iter().flat_map(Engine::stats) {
                state.outcome.borrow_mut().moved += stats.moved_count;
            }
        };
        if round == 2 {
            world.run(work);
        } else {
            if world.run_events(random.below(12_000), work).is_none() {
                shared.outcome.borrow_mut().crashes += 1;
            }
            world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
        }
    }
    let mut outcome = shared.outcome.borrow().clone();
    outcome.trace = world.trace_hash();
    outcome
}
