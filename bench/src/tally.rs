//! What one thread has counted: latencies, bytes, failures, and what verification found.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use md5::{Digest as _, Md5};

use crate::client::{Failure, Payload};
use crate::content::Mismatch;
use crate::keyspace::{Etag, Keyspace};
use crate::plan::Operation;

/// Faults of which the report shows the evidence; all are counted.
const EXAMPLES_MAX: usize = 10;
/// Different failure codes that are told apart.
const LABELS_MAX: usize = 64;
/// ETags per thread that wait for their MD5; further ones are counted as unchecked.
const CLAIMS_MAX: usize = 1 << 20;
/// Latencies beyond an hour are an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// Three digits: an error below 0.1 %.
const SIGNIFICANT_DIGITS: u8 = 3;

/// A row of the report: a whole operation, or a step of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    Whole(Operation),
    UploadCreate,
    UploadPart,
    UploadComplete,
}

impl Row {
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole(operation) => operation.name(),
            Self::UploadCreate => "· create",
            Self::UploadPart => "· part",
            Self::UploadComplete => "· complete",
        }
    }
}

/// Counts of one row.
#[derive(Clone, Debug)]
pub struct Counts {
    /// Nanoseconds.
    pub latency: Histogram<u64>,
    pub bytes: u64,
    pub failures: u64,
}

impl Counts {
    pub fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_NS_MAX, SIGNIFICANT_DIGITS)
            .expect("the bounds are in order and the digits few");
        Self { latency, bytes: 0, failures: 0 }
    }
}

/// An ETag that the server gave for bytes it acknowledged. Its MD5 is computed after the measured window, so
/// that checking costs the load generator nothing while it measures.
#[derive(Clone, Copy, Debug)]
pub struct EtagClaim {
    pub index: u64,
    pub generation: u32,
    /// None: written by one PUT.
    pub part_size: Option<u64>,
    pub etag: Etag,
}

impl EtagClaim {
    /// The ETag that S3 documents: MD5 of the bytes, or MD5 of the parts' MD5s and their number.
    pub fn expected(&self, keyspace: &Keyspace) -> Etag {
        let content = keyspace.content(self.index, self.generation);
        let size = keyspace.size(self.index, self.generation);
        let md5_of = |offset, len| -> [u8; 16] {
            let mut md5 = Md5::new();
            Payload::Object { content, offset, len, checksum: None }
                .for_each_chunk(|chunk| md5.update(chunk));
            md5.finalize().into()
        };
        match self.part_size {
            None => Etag { md5: md5_of(0, size), part_count: 0 },
            Some(part_size) => {
                let mut md5 = Md5::new();
                let part_count = size.div_ceil(part_size).max(1);
                for part in 0..part_count {
                    let offset = part * part_size;
                    md5.update(md5_of(offset, part_size.min(size - offset)));
                }
                Etag { md5: md5.finalize().into(), part_count: part_count as u16 }
            }
        }
    }
}

/// Something that the server answered and must not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Bytes other than those written. `note` says whose they are, if that is known.
    Bytes { key: String, generation: u32, mismatch: Mismatch, note: Option<String> },
    /// More or fewer bytes than were asked for.
    Length { key: String, expected: u64, found: u64 },
    /// A header that contradicts the object or the request.
    Header { key: String, name: &'static str, expected: String, found: Option<String> },
    /// An acknowledged object is not there.
    Lost { key: String, code: String },
    /// A page of a listing is wrong.
    Listing { what: String },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { key, generation, mismatch: Mismatch { offset, expected, found }, note } => {
                write!(
                    f,
                    "{key} (generation {generation}): byte {offset} is {found:#04x} and was written as {expected:#04x}"
                )?;
                note.as_ref().map_or(Ok(()), |note| write!(f, "; {note}"))
            }
            Self::Length { key, expected, found } => write!(f, "{key}: {found} bytes instead of {expected}"),
            Self::Header { key, name, expected, found: Some(found) } => {
                write!(f, "{key}: {name} is {found} instead of {expected}")
            }
            Self::Header { key, name, expected, found: None } => {
                write!(f, "{key}: no {name} instead of {expected}")
            }
            Self::Lost { key, code } => write!(f, "{key}: acknowledged, and now {code}"),
            Self::Listing { what } => write!(f, "list: {what}"),
        }
    }
}

/// What was verified and what was found.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    pub bytes_verified: u64,
    /// ETags compared with what is known, and MD5s computed for those that the server made.
    pub etags_verified: u64,
    /// ETags whose MD5 was not computed, because there were too many.
    pub etags_unverified: u64,
    pub listed_verified: u64,
    pub fault_count: u64,
    pub examples: Vec<String>,
    pub claims: Vec<EtagClaim>,
}

impl Verification {
    pub fn fault(&mut self, fault: &Fault) {
        self.fault_count += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(fault.to_string());
        }
    }

    pub fn claim(&mut self, claim: EtagClaim) {
        if self.claims.len() < CLAIMS_MAX {
            self.claims.push(claim);
        } else {
            self.etags_unverified += 1;
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.bytes_verified += other.bytes_verified;
        self.etags_verified += other.etags_verified;
        self.etags_unverified += other.etags_unverified;
        self.listed_verified += other.listed_verified;
        self.fault_count += other.fault_count;
        let room = EXAMPLES_MAX - self.examples.len();
        self.examples.extend(other.examples.into_iter().take(room));
        self.claims.extend(other.claims);
    }
}

/// The counts of a thread, or of all threads.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub rows: BTreeMap<Row, Counts>,
    /// Failures by S3 code, and an example of each.
    pub failures: BTreeMap<String, (u64, String)>,
    pub verification: Verification,
}

impl Tally {
    pub fn success(&mut self, row: Row, latency: Duration, bytes: u64) {
        let counts = self.rows.entry(row).or_insert_with(Counts::new);
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        counts.latency.saturating_record(nanos.clamp(1, LATENCY_NS_MAX));
        counts.bytes += bytes;
    }

    pub fn failure(&mut self, row: Row, failure: &Failure) {
        self.rows.entry(row).or_insert_with(Counts::new).failures += 1;
        self.failure_outside(failure);
    }

    /// Counts a failure that no row is measured for.
    pub fn failure_outside(&mut self, failure: &Failure) {
        let label = failure.label();
        if self.failures.len() < LABELS_MAX || self.failures.contains_key(label) {
            let entry = self.failures.entry(label.to_owned());
            entry.or_insert_with(|| (0, failure.to_string())).0 += 1;
        }
    }

    pub fn merge(&mut self, other: Self) {
        for (row, counts) in other.rows {
            let sum = self.rows.entry(row).or_insert_with(Counts::new);
            sum.latency.add(&counts.latency).expect("all histograms have the same bounds");
            sum.bytes += counts.bytes;
            sum.failures += counts.failures;
        }
        for (label, (count, example)) in other.failures {
            self.failures.entry(label).or_insert((0, example)).0 += count;
        }
        self.verification.merge(other.verification);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up() {
        let put = Row::Whole(Operation::Put);
        let mut sum = Tally::default();
        for thread in 1..=3_u64 {
            let mut tally = Tally::default();
            for n in 0..thread {
                tally.success(put, Duration::from_micros(100 * (n + 1)), 10);
            }
            tally.failure(put, &Failure::Timeout);
            tally.verification.fault(&Fault::Length { key: "k".to_owned(), expected: 1, found: 2 });
            sum.merge(tally);
        }
        let counts = &sum.rows[&put];
        assert_eq!((counts.latency.len(), counts.bytes, counts.failures), (6, 60, 3));
        assert_eq!(sum.failures["(timeout)"].0, 3);
        assert_eq!(sum.verification.fault_count, 3);
        assert_eq!(sum.verification.examples[0], "k: 2 bytes instead of 1");
    }

    #[test]
    fn examples_are_few_and_counts_exact() {
        let mut verification = Verification::default();
        for n in 0..100 {
            verification.fault(&Fault::Listing { what: n.to_string() });
        }
        let mut sum = verification.clone();
        sum.merge(verification);
        assert_eq!((sum.fault_count, sum.examples.len()), (200, EXAMPLES_MAX));
    }

    #[test]
    fn etags_are_what_s3_documents() {
        let keyspace = Keyspace::new("", 1, "25".parse().expect("a size"), 1, 1);
        let content = keyspace.content(0, 1);
        let mut bytes = [0; 25];
        content.fill(0, &mut bytes);
        let zero = Etag { md5: [0; 16], part_count: 0 };
        let plain = EtagClaim { index: 0, generation: 1, part_size: None, etag: zero };
        assert_eq!(plain.expected(&keyspace).to_string(), format!("\"{}\"", hex::encode(Md5::digest(bytes))));
        let md5s: Vec<u8> = bytes.chunks(10).flat_map(|part| Md5::digest(part).to_vec()).collect();
        let parts = EtagClaim { part_size: Some(10), ..plain };
        let expected = format!("\"{}-3\"", hex::encode(Md5::digest(md5s)));
        assert_eq!(parts.expected(&keyspace).to_string(), expected);
    }
}
