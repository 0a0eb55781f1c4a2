//! CompleteMultipartUpload.
//!
//! Everything that can be wrong with the request is found before the answer begins; the shard then decides once more,
//! under the locks of key and upload, what may have changed since. A repeated request, whose first answer got lost, is
//! told the same again for as long as the object it made is the current one.

use basalt_engine::value::{Object, Upload, UploadState};
use basalt_engine::{Engine, EngineError, ObjectDraft, PartItem};
use http::header::HOST;

use super::{UploadChecksum, UploadId, damaged, failure, no_such_upload, part_checksum};
use crate::http::Response;
use crate::s3::checksum::multipart::{ChecksumType, ObjectChecksum};
use crate::s3::error::{ErrorCode, S3Error};
use crate::s3::etag::ETag;
use crate::s3::operation::{BATCH_DOCUMENT_LEN_MAX, CompleteMultipartUpload};
use crate::s3::request::bodies::{CompleteRequest, CompletedPart};
use crate::s3::xml::results::write_complete_multipart_upload;
use crate::service::admission::PARTS_FACTOR;
use crate::service::context::Context;
use crate::service::document::Checksums;
use crate::service::failure::Result;
use crate::service::{keep_alive, precondition, stored};

/// The smallest part that another part may follow, in bytes.
const PART_LEN_MIN: u64 = 5 << 20;
/// The largest object, in bytes.
const OBJECT_LEN_MAX: u64 = 5 << 40;

/// Parts looked up at once.
const PAGE_LEN: usize = 500;

pub(in crate::service) async fn complete(
    context: &mut Context,
    operation: CompleteMultipartUpload,
) -> Result<Response> {
    let id = UploadId::parse(&operation.upload_id)?;
    let document = context.document(BATCH_DOCUMENT_LEN_MAX, Checksums::OfTheObject).await?;
    context.reserve_in_all(document.len() * PARTS_FACTOR).await?;
    let request = CompleteRequest::parse_body(&document)?;
    let (engine, bucket) = (context.engine().clone(), context.bucket().id);
    let (upload, parts) = listed_parts(&engine, bucket, &operation, id, &request).await?;
    let completion = Completion { engine, bucket, id, location: url(context), operation, request };
    if upload.state != UploadState::Open {
        let again = async move { completion.again(&upload.state).await };
        return keep_alive::answer(context, again).await;
    }
    let Completion { operation, request, .. } = &completion;
    let checksum = UploadChecksum::of(&upload)?;
    let parts = choose(request, parts, checksum, &operation.upload_id)?;
    check_lengths(&parts, operation.object_size)?;
    let object_checksum = object_checksum(operation, &parts, checksum)?;
    object_checksum.check_completed(&context.headers)?;
    if !operation.conditions.is_empty() {
        // The guard decides; this only finds early what would be told late.
        let current = completion.current().await?;
        operation.conditions.evaluate(current.as_ref().map(stored::etag))?;
    }

    let draft = ObjectDraft {
        etag: ETag::of_parts(parts.iter().map(|item| item.part.etag)).md5(),
        attributes: upload.attributes,
        checksum: Some(stored::to_stored(object_checksum)),
        extensions: Vec::new(),
    };
    // In a task of its own: a completion that was started ends, whether or not its client stays.
    let task =
        context.engine().core().spawn(async move { completion.commit(draft, parts, object_checksum).await });
    let work = async move { task.await.unwrap_or_else(|| Err(EngineError::Closed.into())) };
    keep_alive::answer(context, work).await
}

/// The upload, and of its parts those that the request lists. The memory of the request is measured by its document, so the
/// others, of which there may be thousands more, are let go of page by page.
async fn listed_parts(
    engine: &Engine,
    bucket: u64,
    operation: &CompleteMultipartUpload,
    id: UploadId,
    request: &CompleteRequest,
) -> Result<(Upload, Vec<PartItem>)> {
    let name = operation.key.as_str().as_bytes();
    let mut numbers = request.parts.iter().map(|part| part.number.get()).peekable();
    let mut listed = Vec::with_capacity(request.parts.len());
    loop {
        // Nothing before the next listed part matters.
        let after = numbers.peek().map_or(0, |number| number - 1);
        let page = engine.list_parts(bucket, name, id.0, after, PAGE_LEN).await;
        let page = page.map_err(|error| failure(error, &operation.upload_id))?;
        for item in page.parts {
            // A listed part that there is not is the chooser's to refuse.
            while numbers.next_if(|number| *number < item.number).is_some() {}
            if numbers.next_if_eq(&item.number).is_some() {
                listed.push(item);
            }
        }
        if page.exhausted || numbers.peek().is_none() {
            return Ok((page.upload, listed));
        }
    }
}

/// The object's URL, as the client addressed it.
fn url(context: &Context) -> String {
    let scheme = if context.tls { "https" } else { "http" };
    let host = context.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    format!("{scheme}://{host}{}", context.uri.path())
}

/// A completion and what its answer is made of.
struct Completion {
    engine: Engine,
    bucket: u64,
    id: UploadId,
    location: String,
    operation: CompleteMultipartUpload,
    request: CompleteRequest,
}

impl Completion {
    async fn commit(
        self,
        draft: ObjectDraft,
        parts: Vec<PartItem>,
        checksum: ObjectChecksum,
    ) -> Result<String> {
        let Completion { engine, bucket, id, operation, .. } = &self;
        let etag = ETag::of_parts(parts.iter().map(|item| item.part.etag));
        let guard = precondition::guard(operation.conditions.clone());
        let name = operation.key.as_str().as_bytes();
        match engine.complete_upload(*bucket, name, id.0, draft, parts, guard).await {
            Ok(_) => Ok(self.document(etag, Some(checksum))),
            Err(EngineError::NoSuchUpload) => {
                // A twin of this request may have been faster.
                let page = engine.list_parts(*bucket, name, id.0, 0, 0).await;
                let upload = page.map_err(|error| failure(error, &operation.upload_id))?.upload;
                self.again(&upload.state).await
            }
            Err(error) => Err(failure(error, &operation.upload_id)),
        }
    }

    /// The answer to the completion of an upload that is no longer open.
    async fn again(&self, state: &UploadState) -> Result<String> {
        if let UploadState::Completed { object: made, .. } = state
            && let Some(object) = self.current().await?
            && object.uuid == *made
        {
            return self.repeat(&object);
        }
        Err(no_such_upload(&self.operation.upload_id).into())
    }

    /// The answer that once told of `object`, if this request names the same parts.
    fn repeat(&self, object: &Object) -> Result<String> {
        let etag = stored::etag(object);
        if ETag::of_parts(self.request.parts.iter().map(|part| part.etag.md5())) != etag {
            return Err(S3Error::new(ErrorCode::InvalidPart)
                .with("UploadId", &self.operation.upload_id)
                .into());
        }
        Ok(self.document(etag, stored::checksum(object)))
    }

    async fn current(&self) -> Result<Option<Object>> {
        Ok(self.engine.lookup(self.bucket, self.operation.key.as_str().as_bytes()).await?)
    }

    fn document(&self, etag: ETag, checksum: Option<ObjectChecksum>) -> String {
        let mut document = String::new();
        let CompleteMultipartUpload { bucket, key, .. } = &self.operation;
        let (bucket, key) = (bucket.as_str(), key.as_str());
        write_complete_multipart_upload(&mut document, &self.location, bucket, key, etag, checksum);
        document
    }
}

/// The stored parts that the request lists, in order. Both are in order of part numbers.
fn choose(
    request: &CompleteRequest,
    stored: Vec<PartItem>,
    checksum: UploadChecksum,
    upload_id: &str,
) -> Result<Vec<PartItem>> {
    let mut stored = stored.into_iter();
    let mut chosen = Vec::with_capacity(request.parts.len());
    for listed in &request.parts {
        let number = listed.number.get();
        let found = stored
            .find(|item| item.number >= number)
            .filter(|item| item.number == number && item.part.etag == listed.etag.md5());
        // The tag of an object made of parts looks alike but is none of a part.
        let item = found.filter(|_| listed.etag.part_count() == 0);
        let item = item.ok_or_else(|| invalid_part(listed, upload_id))?;
        check_listed_checksum(listed, &item, checksum, upload_id)?;
        chosen.push(item);
    }
    Ok(chosen)
}

fn invalid_part(listed: &CompletedPart, upload_id: &str) -> S3Error {
    S3Error::new(ErrorCode::InvalidPart)
        .with("UploadId", upload_id)
        .with("PartNumber", listed.number.get().to_string())
        .with("ETag", listed.etag.to_string())
}

/// Holds what the request says of a part's checksum against the one computed when the part arrived.
fn check_listed_checksum(
    listed: &CompletedPart,
    item: &PartItem,
    checksum: UploadChecksum,
    upload_id: &str,
) -> Result<()> {
    let algorithm = checksum.effective().algorithm();
    for claimed in &listed.checksums {
        checksum.check_part(Some(claimed.algorithm()))?;
        // Where the client chose no algorithm, that of its SDK was verified with the part and is not kept.
        if claimed.algorithm() == algorithm && *claimed != part_checksum(item, algorithm)? {
            return Err(invalid_part(listed, upload_id).into());
        }
    }
    let is_composite = checksum.effective().checksum_type() == ChecksumType::Composite;
    if is_composite && listed.checksums.is_empty() {
        return Err(S3Error::invalid_request(format!(
            "The upload was created using a {} checksum. The complete request must include the checksum for each \
             part. It was missing for part {} in the request.",
            algorithm.name().to_lowercase(),
            listed.number.get()
        ))
        .into());
    }
    Ok(())
}

fn check_lengths(parts: &[PartItem], announced: Option<u64>) -> std::result::Result<(), S3Error> {
    let (_, all_but_last) = parts.split_last().expect("a request lists at least one part");
    if let Some(small) = all_but_last.iter().find(|item| item.part.len < PART_LEN_MIN) {
        return Err(S3Error::new(ErrorCode::EntityTooSmall)
            .with("ProposedSize", small.part.len.to_string())
            .with("MinSizeAllowed", PART_LEN_MIN.to_string())
            .with("PartNumber", small.number.to_string())
            .with("ETag", ETag::of_md5(small.part.etag).to_string()));
    }
    let len: u64 = parts.iter().map(|item| item.part.len).sum();
    if len > OBJECT_LEN_MAX {
        return Err(S3Error::new(ErrorCode::EntityTooLarge)
            .with("ProposedSize", len.to_string())
            .with("MaxSizeAllowed", OBJECT_LEN_MAX.to_string()));
    }
    match announced {
        Some(announced) if announced != len => Err(S3Error::invalid_request(format!(
            "The provided 'x-amz-mp-object-size' header value {announced} does not match what was computed: {len}"
        ))),
        _ => Ok(()),
    }
}

fn object_checksum(
    operation: &CompleteMultipartUpload,
    parts: &[PartItem],
    checksum: UploadChecksum,
) -> Result<ObjectChecksum> {
    let effective = checksum.effective();
    if operation.checksum_type.is_some_and(|kind| kind != effective.checksum_type()) {
        return Err(S3Error::invalid_request(format!(
            "The upload was created using the {} checksum mode. The complete request must use the same checksum mode.",
            effective.checksum_type().name()
        ))
        .into());
    }
    let of_parts: Vec<_> = parts
        .iter()
        .map(|item| Ok((part_checksum(item, effective.algorithm())?, item.part.len)))
        .collect::<Result<_>>()?;
    effective.of_parts(of_parts).ok_or_else(|| damaged("parts give no checksum of their object"))
}

#[cfg(test)]
mod tests {
    use basalt_engine::value::{PartBody, Striped, UploadedPart};

    use super::*;
    use crate::s3::checksum::Algorithm;
    use crate::s3::checksum::Checksum;
    use crate::s3::checksum::hasher::Hasher;
    use crate::s3::checksum::multipart::MultipartChecksum;
    use crate::s3::operation::PartNumber;
    use crate::service::failure::Failure;

    const CRC32: Algorithm = Algorithm::Crc32;

    fn digest(algorithm: Algorithm, data: &[u8]) -> Checksum {
        let mut hasher = Hasher::new().checksum(algorithm);
        hasher.update(data);
        hasher.finish().checksum(algorithm).expect("it was asked for")
    }

    fn stored_part(number: u16, len: u64, algorithm: Algorithm) -> PartItem {
        let body = PartBody::Striped(Striped { len, segments: Vec::new(), crcs: Vec::new() });
        let checksum = ObjectChecksum::full(digest(algorithm, &number.to_le_bytes()));
        let part = UploadedPart {
            uuid: [0; 16],
            modified: 0,
            len,
            etag: [u8::try_from(number).expect("few parts"); 16],
            checksum: Some(stored::to_stored(checksum)),
            body,
            footprint: Vec::new(),
            extensions: Vec::new(),
        };
        PartItem { number, part }
    }

    fn listed(number: u16, checksums: &[Checksum]) -> CompletedPart {
        CompletedPart {
            number: PartNumber::parse(&number.to_string()).expect("in range"),
            etag: ETag::of_md5([u8::try_from(number).expect("few parts"); 16]),
            checksums: checksums.to_vec(),
        }
    }

    fn wished(kind: ChecksumType) -> UploadChecksum {
        UploadChecksum { wished: MultipartChecksum::new(CRC32, kind) }
    }

    const DEFAULT: UploadChecksum = UploadChecksum { wished: None };

    /// The numbers chosen of parts 1, 2, 4 and 7, or the code of the refusal.
    fn chosen(
        parts: Vec<CompletedPart>,
        checksum: UploadChecksum,
    ) -> std::result::Result<Vec<u16>, ErrorCode> {
        let algorithm = checksum.effective().algorithm();
        let stored = [1, 2, 4, 7].map(|number| stored_part(number, 1, algorithm)).to_vec();
        match choose(&CompleteRequest { parts }, stored, checksum, "u") {
            Ok(parts) => Ok(parts.iter().map(|item| item.number).collect()),
            Err(Failure::Refused(error)) => Err(error.code()),
            Err(Failure::Engine(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn behaviour_17_only_listed_parts_that_exist_are_taken() {
        let numbers = |numbers: &[u16]| numbers.iter().map(|&number| listed(number, &[])).collect::<Vec<_>>();
        assert_eq!(chosen(numbers(&[1, 2, 4, 7]), DEFAULT), Ok(vec![1, 2, 4, 7]));
        assert_eq!(chosen(numbers(&[2, 7]), DEFAULT), Ok(vec![2, 7]));
        for missing in [&[3][..], &[1, 3], &[8], &[1, 2, 4, 7, 8]] {
            assert_eq!(chosen(numbers(missing), DEFAULT), Err(ErrorCode::InvalidPart), "{missing:?}");
        }
        let other = CompletedPart { etag: ETag::of_md5([9; 16]), ..listed(1, &[]) };
        assert_eq!(chosen(vec![other], DEFAULT), Err(ErrorCode::InvalidPart));
        let of_an_object = CompletedPart { etag: ETag::from_raw([1; 16], 2), ..listed(1, &[]) };
        assert_eq!(chosen(vec![of_an_object], DEFAULT), Err(ErrorCode::InvalidPart));
    }

    #[test]
    fn behaviour_29_listed_checksums_must_be_those_of_the_parts() {
        let right = digest(CRC32, &1u16.to_le_bytes());
        let wrong = digest(CRC32, b"other");
        for kind in [ChecksumType::Composite, ChecksumType::FullObject] {
            assert_eq!(chosen(vec![listed(1, &[right])], wished(kind)), Ok(vec![1]));
            assert_eq!(chosen(vec![listed(1, &[wrong])], wished(kind)), Err(ErrorCode::InvalidPart));
            let sha1 = digest(Algorithm::Sha1, b"x");
            assert_eq!(chosen(vec![listed(1, &[sha1])], wished(kind)), Err(ErrorCode::InvalidRequest));
        }
        let none = || vec![listed(1, &[])];
        assert_eq!(chosen(none(), wished(ChecksumType::Composite)), Err(ErrorCode::InvalidRequest));
        assert_eq!(chosen(none(), wished(ChecksumType::FullObject)), Ok(vec![1]));
        // An SDK that protects each part by its own choice may repeat what it sent.
        assert_eq!(chosen(vec![listed(1, &[wrong])], DEFAULT), Ok(vec![1]));
        let crc64 = digest(Algorithm::Crc64Nvme, b"other");
        assert_eq!(chosen(vec![listed(1, &[crc64])], DEFAULT), Err(ErrorCode::InvalidPart));
    }

    #[test]
    fn only_the_last_part_may_be_small_and_the_sum_has_a_limit() {
        let check = |lens: &[u64], announced| {
            let parts: Vec<_> = (1..).zip(lens).map(|(n, &len)| stored_part(n, len, CRC32)).collect();
            check_lengths(&parts, announced).map_err(|error| error.code())
        };
        assert_eq!(check(&[0], None), Ok(()));
        assert_eq!(check(&[PART_LEN_MIN, 1], Some(PART_LEN_MIN + 1)), Ok(()));
        assert_eq!(check(&[PART_LEN_MIN - 1, 1], None), Err(ErrorCode::EntityTooSmall));
        assert_eq!(check(&[PART_LEN_MIN, 1, PART_LEN_MIN], None), Err(ErrorCode::EntityTooSmall));
        assert_eq!(check(&[7], Some(8)), Err(ErrorCode::InvalidRequest));
        let lens = [OBJECT_LEN_MAX / 2, OBJECT_LEN_MAX / 2];
        assert_eq!(check(&lens, None), Ok(()));
        assert_eq!(check(&[lens[0], lens[1], 1], None), Err(ErrorCode::EntityTooLarge));
    }
}
