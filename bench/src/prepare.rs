//! Before and after the load: the bucket, the objects, the final check and the clean-up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;

use crate::client::{Answer, Client, Failure, Payload, Request};
use crate::error::Error;
use crate::fleet::Fleet;
use crate::keyspace::{Etag, Keyspace, Presence};
use crate::listing::{Asked, next_start};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::slot::{Slot, list_page};
use crate::tally::{EtagClaim, Tally, Verification};

const TICK: Duration = Duration::from_millis(100);
/// Checking ETags may take as long as the run did, but at least so long.
const ETAG_CHECK_MIN: Duration = Duration::from_secs(10);
/// Answers to requests about buckets.
const BUCKET_ANSWER_BYTES_MAX: usize = 64 << 10;

/// The state of the bucket before the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// By this run: so it is this run's to remove.
    pub created: bool,
    /// The `Server` header.
    pub server: Option<String>,
}

/// Makes sure that the bucket exists and that nothing is under the prefix, or exactly the objects that
/// `--existing` promises.
pub(crate) fn open_bucket(plan: &Arc<Plan>, keyspace: &Arc<Keyspace>) -> Result<Bucket, Error> {
    alone(plan, |mut client| {
        let (plan, keyspace) = (Arc::clone(plan), Arc::clone(keyspace));
        async move {
            let bucket = ensure_bucket(&mut client, &plan).await?;
            if plan.existing {
                adopt(&mut client, &plan, &keyspace).await?;
            } else if !bucket.created {
                let asked = Asked { start: 0, max_keys: 1, delimited: false };
                let page =
                    list_page(&mut client, &plan, &keyspace, asked, None).await.map_err(|failure| {
                        Error::Request { what: "cannot list the bucket".to_owned(), failure }
                    })?;
                if let Some(listed) = page.keys.into_iter().next() {
                    let (bucket, prefix) = (plan.bucket.clone(), plan.prefix.clone());
                    return Err(Error::PrefixInUse { bucket, prefix, key: listed.key });
                }
            }
            Ok(bucket)
        }
    })
}

async fn ensure_bucket(client: &mut Client, plan: &Plan) -> Result<Bucket, Error> {
    let server_of = |answer: &Answer| answer.header("server").map(str::to_owned);
    let head = Request::new(Method::HEAD, &plan.bucket, None);
    match client.exchange_whole(head, BUCKET_ANSWER_BYTES_MAX).await {
        Ok((answer, _)) => return Ok(Bucket { created: false, server: server_of(&answer) }),
        Err(failure) if failure.status() == Some(404) => {}
        Err(failure) => {
            let what = format!("cannot look for bucket {} at {}", plan.bucket, plan.target.url());
            return Err(Error::Request { what, failure });
        }
    }
    // us-east-1 is the one region that must not be named.
    let payload = if plan.region == "us-east-1" {
        Payload::Empty
    } else {
        let location = format!("<LocationConstraint>{}</LocationConstraint>", plan.region);
        Payload::Text(Bytes::from(format!(
            "<CreateBucketConfiguration>{location}</CreateBucketConfiguration>"
        )))
    };
    let create = Request { payload, ..Request::new(Method::PUT, &plan.bucket, None) };
    match client.exchange_whole(create, BUCKET_ANSWER_BYTES_MAX).await {
        Ok((answer, _)) => Ok(Bucket { created: true, server: server_of(&answer) }),
        Err(failure) => {
            Err(Error::Request { what: format!("cannot create bucket {}", plan.bucket), failure })
        }
    }
}

/// Takes over the objects of an earlier run: exactly its keys, with its sizes; ETags as listed.
async fn adopt(client: &mut Client, plan: &Plan, keyspace: &Keyspace) -> Result<(), Error> {
    let wrong = |reason: String| Err(Error::NotTheObjects { reason });
    let mut found = 0;
    let mut next = Some((0, None));
    while let Some((start, token)) = next {
        let asked = Asked { start, max_keys: 1_000, delimited: false };
        let page = list_page(client, plan, keyspace, asked, token.as_deref())
            .await
            .map_err(|failure| Error::Request { what: "cannot list the objects".to_owned(), failure })?;
        for listed in &page.keys {
            let Some(index) = keyspace.parse_key(&listed.key) else {
                return wrong(format!("{:?} is none of them", listed.key));
            };
            let generation = keyspace.begin_write(index);
            let size = keyspace.size(index, generation);
            if listed.size != size {
                return wrong(format!("{:?} has {} bytes and not {size}", listed.key, listed.size));
            }
            let etag = if plan.verify { Etag::parse(&listed.etag) } else { None };
            keyspace.commit_write(index, generation, etag);
            found += 1;
        }
        next = next_start(keyspace, &page).filter(|next| *next > start).zip(Some(page.next_token));
    }
    if found == keyspace.object_count() {
        Ok(())
    } else {
        wrong(format!("{found} objects exist of {}", keyspace.object_count()))
    }
}

/// Writes every object once.
pub(crate) fn populate(plan: &Arc<Plan>, keyspace: &Arc<Keyspace>) -> Result<Tally, Error> {
    let failed: Arc<Mutex<Option<Failure>>> = Arc::default();
    let keep_failure = Arc::clone(&failed);
    let tally = on_each_object(plan, keyspace, "preparing", move |mut slot, index, stop| {
        let failed = Arc::clone(&keep_failure);
        async move {
            if let Err(failure) = slot.put(index).await {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
                stop.store(true, Ordering::Relaxed);
            }
            slot
        }
    })?;
    match failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
        None => Ok(tally),
        Some(failure) => {
            Err(Error::Request { what: "cannot write the objects to be read".to_owned(), failure })
        }
    }
}

/// Deletes every object that may exist, and the bucket if this run made it. Failures are told, not raised: the
/// result is already there.
pub(crate) fn clean_up(
    plan: &Arc<Plan>,
    keyspace: &Arc<Keyspace>,
    bucket: &Bucket,
) -> Result<Vec<String>, Error> {
    let tally = on_each_object(plan, keyspace, "removing", |mut slot, index, _stop| async move {
        if slot.keyspace.presence(index) != Presence::Absent
            && let Err(failure) = slot.delete(index).await
        {
            slot.tally.borrow_mut().failure_outside(&failure);
        }
        slot
    })?;
    let mut left: Vec<String> =
        tally.failures.values().map(|(count, example)| format!("{count} objects: {example}")).collect();
    if bucket.created {
        let removed = alone(plan, |mut client| {
            let plan = Arc::clone(plan);
            async move {
                let request = Request::new(Method::DELETE, &plan.bucket, None);
                Ok(client.exchange_whole(request, BUCKET_ANSWER_BYTES_MAX).await.err())
            }
        })?;
        left.extend(removed.map(|failure| format!("bucket {}: {failure}", plan.bucket)));
    }
    Ok(left)
}

/// After a load that wrote: every key that exists is listed, and no other. Nothing is in flight any more.
pub(crate) fn check_listing(plan: &Arc<Plan>, keyspace: &Arc<Keyspace>) -> Result<Tally, Error> {
    let fleet = Fleet::start(plan, keyspace, |mut slot| async move {
        if slot.number == 0
            && let Err(failure) = slot.check_all().await
        {
            slot.tally.borrow_mut().failure_outside(&failure);
        }
    })?;
    fleet.join()
}

/// Computes the MD5 of what was written for each ETag that the server gave, on all threads, for at most as
/// long as the run itself took.
pub(crate) fn check_etags(plan: &Plan, keyspace: &Keyspace, verification: &mut Verification, run: Duration) {
    let claims = std::mem::take(&mut verification.claims);
    let deadline = Instant::now() + run.max(ETAG_CHECK_MIN);
    let next = AtomicU64::new(0);
    let progress = Progress::new(plan, "ETags", None, Some(claims.len() as u64));
    let check = || {
        let mut checked = Verification::default();
        let started = Instant::now();
        while Instant::now() < deadline {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            let Some(claim) = claims.get(turn as usize) else { break };
            checked.etags_verified += 1;
            let expected = claim.expected(keyspace);
            if expected != claim.etag {
                checked.fault(&fault_of(keyspace, claim, expected));
            }
            if turn.is_multiple_of(64) {
                progress.show(started.elapsed(), turn, 0);
            }
        }
        checked
    };
    let mut checked = Verification::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.thread_count).map(|_| scope.spawn(check)).collect();
        for thread in threads {
            match thread.join() {
                Ok(part) => checked.merge(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    progress.finish();
    checked.etags_unverified += claims.len() as u64 - checked.etags_verified;
    verification.merge(checked);
}

fn fault_of(keyspace: &Keyspace, claim: &EtagClaim, expected: Etag) -> crate::tally::Fault {
    crate::tally::Fault::Header {
        key: keyspace.key(claim.index),
        name: "ETag",
        expected: expected.to_string(),
        found: Some(claim.etag.to_string()),
    }
}

/// Does `work` for every object, on all slots, until done or told to stop.
fn on_each_object<F, W>(
    plan: &Arc<Plan>,
    keyspace: &Arc<Keyspace>,
    what: &'static str,
    work: F,
) -> Result<Tally, Error>
where
    F: Fn(Slot, u64, Arc<AtomicBool>) -> W + Clone + Send + 'static,
    W: Future<Output = Slot> + 'static,
{
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let counter = Arc::clone(&done);
    let fleet = Fleet::start(plan, keyspace, move |mut slot| {
        let (stop, done, work) = (Arc::clone(&stop), Arc::clone(&counter), work.clone());
        async move {
            let (first, stride) = (slot.number as u64, slot.plan.slot_count);
            for index in (first..slot.keyspace.object_count()).step_by(stride) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                slot = work(slot, index, Arc::clone(&stop)).await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
    })?;
    let progress = Progress::new(plan, what, None, Some(keyspace.object_count()));
    let started = Instant::now();
    while !fleet.ended_within(TICK) {
        progress.show(started.elapsed(), done.load(Ordering::Relaxed), 0);
    }
    progress.finish();
    fleet.join()
}

/// Runs a few requests one after the other on a connection of their own.
fn alone<F, W, T>(plan: &Plan, work: F) -> Result<T, Error>
where
    F: FnOnce(Client) -> W,
    W: Future<Output = Result<T, Error>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|source| Error::System { what: "cannot start a runtime".to_owned(), source })?;
    let client = Client::new(Arc::clone(&plan.target), plan.credentials.clone(), &plan.region, false);
    runtime.block_on(work(client))
}
