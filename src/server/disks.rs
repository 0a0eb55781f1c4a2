//! `/-/disks`: what is known of the disks, and what an operator does with them.
//!
//! Anybody on this machine may look, as with the metrics. Whoever changes something, or looks from elsewhere, signs the
//! request with the root credentials as any S3 request is signed (Signature Version 4), so that a proxy on this machine
//! gives nobody that right.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use basalt_engine::extent::members::MemberState;
use basalt_engine::{DiskOrder, DiskReport, DiskStatus, Engine, EngineError, OrderError};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

use crate::config::Credentials;
use crate::http::{Handler, Response, is_loopback, refuse};
use crate::metrics::{DiskGauge, DiskGauges};
use crate::s3::auth::{self, Identity, RegionPolicy, Secret, SigningKeys, authenticate};
use crate::s3::error::{ErrorCode, Result, S3Error};
use crate::s3::query::Query;
use crate::s3::request::RequestHead;

/// Where it is answered.
const ROOT: &str = "/-/disks";

/// What the endpoint needs.
pub(super) struct Desk {
    engine: Engine,
    access_key: String,
    secret: Secret,
    keys: RefCell<SigningKeys>,
    /// Whoever may read the metrics may look at the disks.
    public: bool,
}

impl Desk {
    pub(super) fn handler(engine: Engine, root: &Credentials, public: bool) -> Handler {
        let desk = Rc::new(Desk {
            engine,
            access_key: root.access_key.clone(),
            secret: Secret::new(root.secret_key.clone()),
            keys: RefCell::default(),
            public,
        });
        Rc::new(move |request| {
            let desk = Rc::clone(&desk);
            Box::pin(async move {
                let crate::http::Request { head, peer, id, host_id, .. } = request;
                let mut response = match desk.answer(&head, peer).await {
                    Ok(body) => {
                        let mut response = Response::new(StatusCode::OK).with_body(body.to_string().into());
                        response.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                        response
                    }
                    Err(error) => refuse(&error, &head.method, head.uri.path(), id, &host_id),
                };
                response.note.operation = "-disks";
                response.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
                response
            })
        })
    }

    async fn answer(&self, head: &Parts, peer: SocketAddr) -> Result<Value> {
        let request = RequestHead::new(&head.method, &head.uri, &head.headers);
        let query = Query::parse(request.raw_query)?;
        let what = head.uri.path().strip_prefix(ROOT).unwrap_or_default();
        let reads = matches!(head.method, Method::GET | Method::HEAD);
        if !(reads && (self.public || is_loopback(peer))) {
            self.check_signature(head, &query)?;
        }
        match what {
            "" if reads => {
                let report = self.engine.disks().await;
                report.map(|report| report_json(&report)).map_err(|error| unavailable(&error))
            }
            "" => Err(method_not_allowed("GET, HEAD")),
            "/add" if head.method == Method::POST => {
                let paths = query.first("paths").unwrap_or_default().lines().map(PathBuf::from);
                let paths = paths.collect::<Vec<_>>();
                if paths.is_empty() || !paths.iter().all(|path| path.is_absolute()) {
                    let reason = "paths=… names empty directories from the root on, a line each";
                    return Err(S3Error::invalid_request(reason));
                }
                match self.engine.add_set(paths).await {
                    Ok(()) => Ok(json!({ "done": true })),
                    Err(EngineError::DisksRefused(reason)) => Err(S3Error::invalid_request(reason)),
                    Err(error) => Err(unavailable(&error)),
                }
            }
            _ if head.method == Method::POST => {
                let order = order(what, &query)?;
                self.engine.order_disk(order).await.map_err(|error| refusal(&error))?;
                Ok(json!({ "done": true }))
            }
            _ => Err(method_not_allowed("POST")),
        }
    }

    fn check_signature(&self, head: &Parts, query: &Query<'_>) -> Result<()> {
        let (method, headers) = (&head.method, &head.headers);
        let signed = auth::RequestHead { method, path: head.uri.path(), query, headers };
        let secret_of = |key: &str| (key == self.access_key).then(|| self.secret.clone());
        let now = i64::try_from(self.engine.core().wall().unix_secs()).unwrap_or(i64::MAX);
        let region = RegionPolicy::Any { report: String::new() };
        match authenticate(&signed, &secret_of, now, &region, &mut self.keys.borrow_mut())? {
            Identity::Signed(_) => Ok(()),
            Identity::Anonymous { .. } => Err(ErrorCode::AccessDenied.into()),
        }
    }
}

fn method_not_allowed(allowed: &'static str) -> S3Error {
    S3Error::new(ErrorCode::MethodNotAllowed).header(ALLOW, HeaderValue::from_static(allowed))
}

fn unavailable(error: &dyn std::fmt::Display) -> S3Error {
    S3Error::new(ErrorCode::ServiceUnavailable).message(error.to_string())
}

fn refusal(error: &OrderError) -> S3Error {
    match error {
        OrderError::NoSuchDisk { .. } | OrderError::NotEmpty { .. } | OrderError::NotMounted { .. } => {
            S3Error::invalid_request(error.to_string())
        }
        OrderError::TooFew { .. } => S3Error::new(ErrorCode::OperationAborted).message(error.to_string()),
        OrderError::Engine(_) => unavailable(error),
    }
}

/// What `POST /-/disks/…` asks for.
fn order(what: &str, query: &Query<'_>) -> Result<DiskOrder> {
    let place = query.first("disk").and_then(|place| place.parse().ok());
    let place = place.ok_or_else(|| S3Error::invalid_request("disk=N names a disk by its place"))?;
    match what {
        "/remove" => Ok(DiskOrder::Remove { place }),
        "/return" => Ok(DiskOrder::Return { place }),
        "/replace" => match query.first("path").map(PathBuf::from) {
            Some(path) if path.is_absolute() => Ok(DiskOrder::Replace { place, path }),
            _ => Err(S3Error::invalid_request("path=… names an empty directory from the root on")),
        },
        _ => Err(S3Error::invalid_request("a disk can be told to remove, return, replace or add")),
    }
}

/// From the root on, whatever directory the server was started in.
fn shown(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

fn report_json(report: &DiskReport) -> Value {
    json!({
        "epoch": report.epoch,
        "failures_tolerated": report.failures_tolerated,
        "read_only": report.read_only,
        "disks": report.disks.iter().map(disk_json).collect::<Vec<_>>(),
        "spares": report.spares.iter().map(|path| shown(path)).collect::<Vec<_>>(),
    })
}

fn disk_json(disk: &DiskStatus) -> Value {
    let state = match disk.state {
        _ if disk.failing.is_some() => "failing",
        MemberState::InSync => "in sync",
        MemberState::Behind => "behind",
        MemberState::Out => "out",
    };
    let rebuild = disk.rebuild.map(|rebuild| {
        json!({
            "percent": rebuild.permyriad() as f64 / 100.0,
            "done_bytes": rebuild.lens.done_len,
            "left_bytes": rebuild.lens.left_len,
            "bytes_per_second": rebuild.rate,
            "seconds_left": rebuild.time_left().map(|left| left.as_secs()),
        })
    });
    json!({
        "disk": disk.place,
        "path": disk.path.as_deref().map(shown),
        "uuid": hex::encode(disk.disk),
        "group": disk.group,
        "state": state,
        "removed": disk.removed,
        "reason": disk.out.as_ref().or(disk.failing.as_ref()).map(|out| &out.reason),
        "since_unix": disk.out.as_ref().or(disk.failing.as_ref()).map(|out| out.since.unix_secs()),
        "rebuild": rebuild,
        "capacity_bytes": disk.space.map(|(total, _)| total),
        "available_bytes": disk.space.map(|(_, available)| available),
        "read_microseconds": disk.read_latency.map(|latency| latency.as_micros() as u64),
        "read_errors": disk.read_errors,
        "damaged_blocks": disk.damaged,
    })
}

/// The state of a disk that fails and stays a member because the set cannot do without it, beside those of members.
const FAILING: u64 = 3;

/// Takes over what the engine knows of the disks; on the core that adds it up.
pub(super) fn sample(engine: &Engine, gauges: &DiskGauges) {
    let Some(report) = engine.disks_lately() else { return };
    gauges.set_count(report.disks.len());
    for disk in &report.disks {
        let rebuild = disk.rebuild.unwrap_or_default();
        let (capacity, available) = disk.space.unwrap_or_default();
        let latency = disk.read_latency.unwrap_or_default();
        for (gauge, value) in [
            (DiskGauge::State, if disk.failing.is_some() { FAILING } else { disk.state as u64 }),
            (DiskGauge::Capacity, capacity),
            (DiskGauge::Available, available),
            (DiskGauge::RebuiltBytes, rebuild.lens.done_len),
            (DiskGauge::RebuildLeft, rebuild.lens.left_len),
            (DiskGauge::RebuildRate, rebuild.rate),
            (DiskGauge::RebuildSeconds, rebuild.time_left().unwrap_or_default().as_secs()),
            (DiskGauge::ReadMicroseconds, latency.as_micros() as u64),
            (DiskGauge::ReadErrors, disk.read_errors),
            (DiskGauge::Damaged, disk.damaged),
        ] {
            gauges.set(disk.place, gauge, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_understood_or_refused() {
        let parse = |what: &str, query: &str| order(what, &Query::parse(query).expect("a query"));
        assert_eq!(parse("/remove", "disk=3").expect("valid"), DiskOrder::Remove { place: 3 });
        assert_eq!(parse("/return", "disk=0").expect("valid"), DiskOrder::Return { place: 0 });
        let replace = DiskOrder::Replace { place: 1, path: "/mnt/a b".into() };
        assert_eq!(parse("/replace", "disk=1&path=/mnt/a%20b").expect("valid"), replace);
        for (what, query) in
            [("/remove", ""), ("/remove", "disk=x"), ("/eat", "disk=1"), ("/replace", "disk=1&path=here")]
        {
            assert!(parse(what, query).is_err(), "{what}?{query}");
        }
    }
}
