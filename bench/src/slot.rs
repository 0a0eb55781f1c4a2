//! One request at a time: a slot owns a connection, a random stream and its share of the objects, and does
//! each S3 operation with the checks that its answer allows.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{Method, header};

use crate::client::{Answer, Checksum, Client, Failure, Payload, Request};
use crate::content::{Content, Mismatch, Random};
use crate::keyspace::{Etag, Keyspace, Presence};
use crate::listing::{Asked, Known, PAGE_BYTES_MAX, Page, faults_of_page, next_start};
use crate::plan::{Operation, Plan};
use crate::tally::{EtagClaim, Fault, Row, Tally};

/// Random picks before an existing object is searched for in order.
const PICKS_MAX: usize = 16;
/// Objects and generations that are tried to say whose bytes came instead.
const SUSPECTS_MAX: u64 = 4_096;
/// Bytes that must agree to name a culprit.
const EVIDENCE_BYTES: usize = 8;
/// The answers of CreateMultipartUpload and CompleteMultipartUpload.
const UPLOAD_ANSWER_BYTES_MAX: usize = 64 << 10;

/// What an operation did.
#[derive(Debug)]
pub(crate) enum Done {
    /// Payload bytes moved.
    Bytes(u64),
    /// There was nothing to do it to.
    Nothing,
}

pub(crate) struct Slot {
    pub number: usize,
    pub plan: Arc<Plan>,
    pub keyspace: Arc<Keyspace>,
    pub tally: Rc<RefCell<Tally>>,
    pub random: Random,
    client: Client,
    known: Known,
    checksum: Option<Checksum>,
    /// How many of its objects the slot has gone through in order.
    turn: u64,
    /// Where the next page begins, and the token that leads there.
    page_start: Option<(u64, String)>,
}

impl Slot {
    pub(crate) fn new(
        number: usize,
        plan: &Arc<Plan>,
        keyspace: &Arc<Keyspace>,
        tally: &Rc<RefCell<Tally>>,
    ) -> Self {
        let client =
            Client::new(Arc::clone(&plan.target), plan.credentials.clone(), &plan.region, plan.sign_payload);
        let known = if plan.partitioned() {
            Known { first: number as u64, stride: plan.slot_count as u64 }
        } else {
            Known::ALL
        };
        Self {
            number,
            plan: Arc::clone(plan),
            keyspace: Arc::clone(keyspace),
            tally: Rc::clone(tally),
            random: Random::new(plan.seed, number as u64),
            client,
            known,
            checksum: Checksum::new(plan.checksum),
            turn: 0,
            page_start: None,
        }
    }

    /// Connects, so that the first operation does not pay for it.
    pub(crate) async fn connect_ahead(&mut self) {
        self.client.connect_ahead().await;
    }

    /// Does one operation of the workload on an object of its own choice.
    pub(crate) async fn perform(&mut self, operation: Operation) -> Result<Done, Failure> {
        let in_order = self.plan.workload != "mixed";
        match operation {
            Operation::Put | Operation::Multipart => {
                let index = if in_order { self.next_in_order() } else { self.pick() };
                if operation == Operation::Put { self.put(index).await } else { self.multipart(index).await }
            }
            Operation::Delete => {
                let index = if in_order { self.next_undeleted() } else { self.pick_present() };
                match index {
                    Some(index) => self.delete(index).await,
                    None => Ok(Done::Nothing),
                }
            }
            Operation::List => self.list().await,
            Operation::Get | Operation::Range | Operation::Stat => match self.pick_present() {
                Some(index) if operation == Operation::Get => self.get(index).await,
                Some(index) if operation == Operation::Range => self.range(index).await,
                Some(index) => self.stat(index).await,
                None => Ok(Done::Nothing),
            },
        }
    }

    /// Writes the whole object.
    pub(crate) async fn put(&mut self, index: u64) -> Result<Done, Failure> {
        let generation = self.keyspace.begin_write(index);
        let (key, len) = (self.keyspace.key(index), self.keyspace.size(index, generation));
        let content = self.keyspace.content(index, generation);
        let payload = Payload::Object { content, offset: 0, len, checksum: self.checksum };
        let plan = Arc::clone(&self.plan);
        let request = Request { payload, ..Request::new(Method::PUT, &plan.bucket, Some(&key)) };
        let answer = self.client.exchange(request, ignore).await?;
        let etag = self.claim(index, generation, None, answer.header("etag"));
        self.keyspace.commit_write(index, generation, etag);
        Ok(Done::Bytes(len))
    }

    /// Notes the ETag that the server gave, to be checked later.
    fn claim(&self, index: u64, generation: u32, part_size: Option<u64>, text: Option<&str>) -> Option<Etag> {
        if !self.plan.verify {
            return None;
        }
        let mut tally = self.tally.borrow_mut();
        let etag = text.and_then(Etag::parse);
        match etag {
            Some(etag) => tally.verification.claim(EtagClaim { index, generation, part_size, etag }),
            None => tally.verification.fault(&Fault::Header {
                key: self.keyspace.key(index),
                name: "ETag",
                expected: "an MD5 in hex".to_owned(),
                found: text.map(str::to_owned),
            }),
        }
        etag
    }

    /// Writes the whole object in parts.
    async fn multipart(&mut self, index: u64) -> Result<Done, Failure> {
        let generation = self.keyspace.begin_write(index);
        let (key, len) = (self.keyspace.key(index), self.keyspace.size(index, generation));
        let plan = Arc::clone(&self.plan);
        let new = |method| Request::new(method, &plan.bucket, Some(&key));

        let started = Instant::now();
        let algorithm = self.checksum.map(|checksum| [("x-amz-checksum-algorithm", checksum.name)]);
        let amz_headers = algorithm.as_ref().map_or(&[][..], |header| &header[..]);
        let create = Request { query: &[("uploads", "")], amz_headers, ..new(Method::POST) };
        let (_, body) = self.client.exchange_whole(create, UPLOAD_ANSWER_BYTES_MAX).await?;
        let upload_id = element(&body, "UploadId")
            .ok_or_else(|| Failure::Malformed("CreateMultipartUpload without an UploadId".to_owned()))?;
        self.tally.borrow_mut().success(Row::UploadCreate, started.elapsed(), 0);

        let outcome = self.parts_and_complete(index, generation, &key, &upload_id).await;
        if outcome.is_err() {
            // Leaves nothing behind; whether that succeeds changes nothing about the result.
            let abort = Request { query: &[("uploadId", &upload_id)], ..new(Method::DELETE) };
            let _ = self.client.exchange(abort, ignore).await;
        }
        outcome.map(|()| Done::Bytes(len))
    }

    async fn parts_and_complete(
        &mut self,
        index: u64,
        generation: u32,
        key: &str,
        upload_id: &str,
    ) -> Result<(), Failure> {
        let plan = Arc::clone(&self.plan);
        let (content, len) =
            (self.keyspace.content(index, generation), self.keyspace.size(index, generation));
        let mut document = String::from("<CompleteMultipartUpload>");
        for part in 0..len.div_ceil(plan.part_size).max(1) {
            let started = Instant::now();
            let (number, offset) = ((part + 1).to_string(), part * plan.part_size);
            let part_len = plan.part_size.min(len - offset);
            let payload = Payload::Object { content, offset, len: part_len, checksum: self.checksum };
            let checksum = payload.checksum();
            let query = [("partNumber", number.as_str()), ("uploadId", upload_id)];
            let request =
                Request { query: &query, payload, ..Request::new(Method::PUT, &plan.bucket, Some(key)) };
            let answer = self.client.exchange(request, ignore).await?;
            let etag = answer
                .header("etag")
                .ok_or_else(|| Failure::Malformed("UploadPart without an ETag".to_owned()))?;
            document.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>"));
            if let (Some(Checksum { element, .. }), Some(value)) = (self.checksum, checksum) {
                document.push_str(&format!("<{element}>{value}</{element}>"));
            }
            document.push_str("</Part>");
            self.tally.borrow_mut().success(Row::UploadPart, started.elapsed(), part_len);
        }
        document.push_str("</CompleteMultipartUpload>");

        let started = Instant::now();
        let request = Request {
            query: &[("uploadId", upload_id)],
            payload: Payload::Text(Bytes::from(document)),
            ..Request::new(Method::POST, &plan.bucket, Some(key))
        };
        let (_, body) = self.client.exchange_whole(request, UPLOAD_ANSWER_BYTES_MAX).await?;
        // The 200 was sent before the outcome was known: only the document tells.
        if let Some(code) = element(&body, "Code") {
            let message = element(&body, "Message").unwrap_or_default();
            return Err(Failure::Refused { status: 200, code, message });
        }
        let etag = element(&body, "ETag").map(|etag| etag.replace("&quot;", "\"").replace("&#34;", "\""));
        let etag = self.claim(index, generation, Some(plan.part_size), etag.as_deref());
        self.keyspace.commit_write(index, generation, etag);
        self.tally.borrow_mut().success(Row::UploadComplete, started.elapsed(), 0);
        Ok(())
    }

    async fn get(&mut self, index: u64) -> Result<Done, Failure> {
        self.read(index, |_, len| (0, len), false).await
    }

    async fn range(&mut self, index: u64) -> Result<Done, Failure> {
        let plan = Arc::clone(&self.plan);
        let choose = |random: &mut Random, object_len: u64| {
            let len = plan.range_sizes.draw(random.next()).min(object_len);
            (random.below(object_len - len + 1), len)
        };
        self.read(index, choose, true).await
    }

    /// Reads the range that `choose` makes of the object's length and checks every byte.
    async fn read(
        &mut self,
        index: u64,
        choose: impl Fn(&mut Random, u64) -> (u64, u64),
        partial: bool,
    ) -> Result<Done, Failure> {
        let Presence::Present { generation, etag } = self.keyspace.presence(index) else {
            return Ok(Done::Nothing);
        };
        let object_len = self.keyspace.size(index, generation);
        let (offset, len) = choose(&mut self.random, object_len);
        let (key, content) = (self.keyspace.key(index), self.keyspace.content(index, generation));
        let plan = Arc::clone(&self.plan);

        let range = format!("bytes={}-{}", offset, (offset + len).saturating_sub(1));
        let headers = [(header::RANGE, range.as_str())];
        let headers = if partial { &headers[..] } else { &[] };
        let request = Request { headers, ..Request::new(Method::GET, &plan.bucket, Some(&key)) };
        let mut check = ByteCheck { content, position: offset, end: offset + len, mismatch: None };
        let verify = plan.verify;
        let answer = self
            .client
            .exchange(request, |_, bytes| if verify { check.bytes(bytes) } else { check.skip(bytes) })
            .await
            .inspect_err(|failure| self.note_if_lost(&key, failure))?;

        let received = check.position - offset;
        if verify {
            let mut faults = Vec::new();
            if partial {
                let expected = format!("bytes {offset}-{}/{object_len}", offset + len - 1);
                let found = answer.header("content-range").map(str::to_owned);
                if answer.status != 206 || found.as_deref() != Some(&expected) {
                    faults.push(Fault::Header { key: key.clone(), name: "Content-Range", expected, found });
                }
            }
            if received != len {
                faults.push(Fault::Length { key: key.clone(), expected: len, found: received });
            }
            if let Some((mismatch, evidence)) = check.mismatch {
                let note = self.whose(index, generation, mismatch.offset, &evidence);
                faults.push(Fault::Bytes { key: key.clone(), generation, mismatch, note });
            }
            self.verified(&key, etag, &answer, received, &faults);
        }
        Ok(Done::Bytes(received))
    }

    async fn stat(&mut self, index: u64) -> Result<Done, Failure> {
        let Presence::Present { generation, etag } = self.keyspace.presence(index) else {
            return Ok(Done::Nothing);
        };
        let (key, len) = (self.keyspace.key(index), self.keyspace.size(index, generation));
        let plan = Arc::clone(&self.plan);
        let request = Request::new(Method::HEAD, &plan.bucket, Some(&key));
        let answer = self
            .client
            .exchange(request, ignore)
            .await
            .inspect_err(|failure| self.note_if_lost(&key, failure))?;
        if plan.verify {
            let found = answer.header("content-length").map(str::to_owned);
            let expected = len.to_string();
            let fault = (found.as_deref() != Some(&expected)).then(|| Fault::Header {
                key: key.clone(),
                name: "Content-Length",
                expected,
                found,
            });
            self.verified(&key, etag, &answer, 0, fault.as_slice());
        }
        Ok(Done::Bytes(0))
    }

    /// Deletes the object.
    pub(crate) async fn delete(&mut self, index: u64) -> Result<Done, Failure> {
        let key = self.keyspace.key(index);
        let plan = Arc::clone(&self.plan);
        self.keyspace.begin_delete(index);
        self.client.exchange(Request::new(Method::DELETE, &plan.bucket, Some(&key)), ignore).await?;
        self.keyspace.commit_delete(index);
        Ok(Done::Bytes(0))
    }

    /// Lists the page after the last one, or from a random object on.
    async fn list(&mut self) -> Result<Done, Failure> {
        let (plan, keyspace) = (Arc::clone(&self.plan), Arc::clone(&self.keyspace));
        let (start, token) = match self.page_start.take() {
            Some((start, token)) => (start, Some(token)),
            None => {
                let start = self.random.below(keyspace.object_count());
                (if plan.delimited { keyspace.folder_start(keyspace.folder_of(start)) } else { start }, None)
            }
        };
        let asked = Asked { start, max_keys: plan.list_page, delimited: plan.delimited };
        let page = list_page(&mut self.client, &plan, &keyspace, asked, token.as_deref()).await?;
        if plan.verify {
            let mut tally = self.tally.borrow_mut();
            for what in faults_of_page(&keyspace, &page, asked, self.known) {
                tally.verification.fault(&Fault::Listing { what });
            }
            tally.verification.listed_verified += page.entry_count() as u64;
        }
        self.page_start = next_start(&keyspace, &page).zip(page.next_token);
        Ok(Done::Bytes(0))
    }

    /// Walks all keys and compares them with everything that is known. Nobody may write meanwhile.
    pub(crate) async fn check_all(&mut self) -> Result<(), Failure> {
        let (plan, keyspace) = (Arc::clone(&self.plan), Arc::clone(&self.keyspace));
        let mut next = Some((0, None));
        while let Some((start, token)) = next {
            let asked = Asked { start, max_keys: 1_000, delimited: false };
            let page = list_page(&mut self.client, &plan, &keyspace, asked, token.as_deref()).await?;
            let mut tally = self.tally.borrow_mut();
            for what in faults_of_page(&keyspace, &page, asked, Known::ALL) {
                tally.verification.fault(&Fault::Listing { what });
            }
            tally.verification.listed_verified += page.entry_count() as u64;
            // A page that does not advance would be asked for again forever.
            next = next_start(&keyspace, &page).filter(|next| *next > start).zip(Some(page.next_token));
        }
        Ok(())
    }

    /// Counts what an answer to a read proved, and its faults.
    fn verified(&self, key: &str, etag: Option<Etag>, answer: &Answer, bytes: u64, faults: &[Fault]) {
        let verification = &mut self.tally.borrow_mut().verification;
        verification.bytes_verified += bytes;
        for fault in faults {
            verification.fault(fault);
        }
        if let Some(etag) = etag {
            verification.etags_verified += 1;
            let found = answer.header("etag");
            if found.and_then(Etag::parse) != Some(etag) {
                verification.fault(&Fault::Header {
                    key: key.to_owned(),
                    name: "ETag",
                    expected: etag.to_string(),
                    found: found.map(str::to_owned),
                });
            }
        }
    }

    /// A read of an acknowledged object that is answered by 404 is worse than an error.
    fn note_if_lost(&self, key: &str, failure: &Failure) {
        if self.plan.verify && failure.status() == Some(404) {
            let code = failure.label().to_owned();
            self.tally.borrow_mut().verification.fault(&Fault::Lost { key: key.to_owned(), code });
        }
    }

    /// Says whose bytes came instead: an older generation's, or another object's.
    fn whose(&self, index: u64, generation: u32, offset: u64, evidence: &[u8]) -> Option<String> {
        if evidence.len() < EVIDENCE_BYTES {
            return None;
        }
        if evidence.iter().all(|byte| *byte == 0) {
            return Some("zeros came".to_owned());
        }
        let is = |content: Content| content.first_mismatch(offset, evidence).is_none();
        let older = (1..generation).rev().take(SUSPECTS_MAX as usize);
        for suspect in older {
            if is(self.keyspace.content(index, suspect)) {
                return Some(format!("these bytes are of generation {suspect}"));
            }
        }
        (0..self.keyspace.object_count().min(SUSPECTS_MAX)).filter(|other| *other != index).find_map(
            |other| match self.keyspace.presence(other) {
                Presence::Present { generation, .. } if is(self.keyspace.content(other, generation)) => {
                    Some(format!("these bytes are of {}", self.keyspace.key(other)))
                }
                _ => None,
            },
        )
    }

    fn own_count(&self) -> u64 {
        (self.keyspace.object_count() - self.known.first).div_ceil(self.known.stride)
    }

    fn own(&self, n: u64) -> u64 {
        self.known.first + n * self.known.stride
    }

    fn pick(&mut self) -> u64 {
        let n = self.random.below(self.own_count());
        self.own(n)
    }

    fn pick_present(&mut self) -> Option<u64> {
        let is_present =
            |slot: &Self, index| matches!(slot.keyspace.presence(index), Presence::Present { .. });
        for _ in 0..PICKS_MAX {
            let index = self.pick();
            if is_present(self, index) {
                return Some(index);
            }
        }
        let start = self.random.below(self.own_count());
        (start..self.own_count()).chain(0..start).map(|n| self.own(n)).find(|index| is_present(self, *index))
    }

    /// Its objects one after the other, and from the first again.
    fn next_in_order(&mut self) -> u64 {
        let index = self.own(self.turn % self.own_count());
        self.turn += 1;
        index
    }

    /// Its objects one after the other, each once.
    fn next_undeleted(&mut self) -> Option<u64> {
        (self.turn < self.own_count()).then(|| self.next_in_order())
    }
}

/// Checks the bytes of a body as they arrive.
struct ByteCheck {
    content: Content,
    position: u64,
    end: u64,
    /// The first wrong byte, and what came from there on.
    mismatch: Option<(Mismatch, Vec<u8>)>,
}

impl ByteCheck {
    fn bytes(&mut self, bytes: &[u8]) -> ControlFlow<()> {
        if self.mismatch.is_none()
            && let Some(mismatch) = self.content.first_mismatch(self.position, bytes)
        {
            let from = &bytes[(mismatch.offset - self.position) as usize..];
            self.mismatch = Some((mismatch, from[..from.len().min(4 * EVIDENCE_BYTES)].to_vec()));
        }
        self.skip(bytes)
    }

    fn skip(&mut self, bytes: &[u8]) -> ControlFlow<()> {
        self.position += bytes.len() as u64;
        if self.position > self.end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn ignore(_: &Answer, _: &[u8]) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Asks for one page of the run's keys.
pub(crate) async fn list_page(
    client: &mut Client,
    plan: &Plan,
    keyspace: &Keyspace,
    asked: Asked,
    token: Option<&str>,
) -> Result<Page, Failure> {
    let max_keys = asked.max_keys.to_string();
    let start_after = (asked.start > 0 && token.is_none()).then(|| {
        if asked.delimited {
            // `~` sorts after every digit: nothing of the folder before is left.
            format!("{}~", keyspace.folder_prefix(keyspace.folder_of(asked.start) - 1))
        } else {
            keyspace.key(asked.start - 1)
        }
    });
    let mut query: Vec<(&str, &str)> = Vec::with_capacity(6);
    query.extend(token.map(|token| ("continuation-token", token)));
    query.extend(asked.delimited.then_some(("delimiter", "/")));
    query.extend([("list-type", "2"), ("max-keys", &max_keys)]);
    query.push(("prefix", keyspace.prefix()));
    query.extend(start_after.as_deref().map(|key| ("start-after", key)));
    let request = Request { query: &query, ..Request::new(Method::GET, &plan.bucket, None) };
    let (_, body) = client.exchange_whole(request, PAGE_BYTES_MAX).await?;
    let body = String::from_utf8(body).map_err(|_| Failure::Malformed("a listing is no UTF-8".to_owned()))?;
    Page::parse(&body).map_err(Failure::Malformed)
}

/// The text of the first element of that name.
fn element(body: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once('<').map(|(value, _)| value.to_owned())
}
