//! The running server: one pinned thread per core, start-up, signals, draining, exit codes.
//!
//! The main thread owns the process: it checks the host, starts the cores, says what was started, then waits for
//! signals. Cores talk to it through one channel of [`Event`]s and learn of a shutdown by a flag they look at on
//! every watch round. A core that panics or cannot go on takes the whole process down with a reason: its siblings
//! must never serve half a keyspace.

mod banner;
mod credentials;
mod disks;
mod exit;
mod notify;
mod service;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use basalt_engine::extent::members::MemberState;
use basalt_engine::format::superblock::DiskClass;
use basalt_engine::request::{Reply, Request};
use basalt_engine::{Deployment, Engine, EngineError, OpenError};
use basalt_reactor::mesh::{self, PortSeed};
use basalt_reactor::net::Listener;
use basalt_reactor::ring::{self, SetupError};
use basalt_reactor::{Core, CoreId, Monotonic};
use basalt_tuning::host::{Finding, Needs};
use basalt_tuning::{Severity, host_checks, limits};
use base64::Engine as _;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

pub use self::credentials::stored as stored_credentials;
pub use self::exit::Exit;

use self::credentials::RootCredentials;
use self::service::CoreService;
use crate::config::Config;
use crate::http::limits::WATCH_INTERVAL;
use crate::http::tls::{Certificate, TlsError};
use crate::http::{Front, FrontParts, Probes};
use crate::logging::access::AccessLog;
use crate::logging::{self, LogWriter};
use crate::metrics::Metrics;
use crate::s3::addressing::Addressing;

/// Entries of each core's submission queue.
const RING_ENTRIES: u32 = 1024;
/// How often a core looks whether the others are where it waits for them, during start-up and at the end.
const START_POLL: Duration = Duration::from_millis(1);

/// What all cores share; nothing in it is written after start-up but the stop flag and the metrics' atomics.
struct Shared {
    config: Config,
    metrics: Metrics,
    root: RootCredentials,
    certificate: Option<Arc<Certificate>>,
    host_id: String,
    log: LogWriter,
    stop: AtomicBool,
    /// Where core 0 listens; the others bind the same, so that port 0 works.
    address: OnceLock<SocketAddr>,
    /// Of the disks for data, and of those for log and index.
    disk_classes: (DiskClass, DiskClass),
    /// Prepared by core 0.
    deployment: OnceLock<Arc<Deployment>>,
    /// Cores whose shards serve.
    started: AtomicUsize,
    /// Cores without a request in flight, after the signal to stop.
    drained: AtomicUsize,
}

/// What happens to the process.
enum Event {
    /// A core accepts connections; `redundancy` says in words what the deployment survives.
    Serving {
        redundancy: String,
    },
    /// A core has drained and closed.
    Stopped,
    Failed(StartError),
    Signal(i32),
}

/// Why the server cannot start; prints as a sentence for the operator.
#[derive(Debug)]
enum StartError {
    Ring(SetupError),
    Listen {
        address: SocketAddr,
        error: std::io::Error,
    },
    Certificate(TlsError),
    Disk {
        path: std::path::PathBuf,
        error: std::io::Error,
    },
    Credentials {
        path: std::path::PathBuf,
        reason: String,
    },
    Deployment(OpenError),
    /// What recovery found, or the disks refused.
    Engine(EngineError),
    Thread(std::io::Error),
    /// Findings that rule out serving were logged already.
    Host,
}

/// Runs the server until it is told to stop.
#[must_use]
pub fn run(config: Config) -> ExitCode {
    let log = match logging::start(config.log.format, &config.log.level) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("basalt: {error}");
            return Exit::Usage.into();
        }
    };
    let (events, inbox) = mpsc::channel();
    let shared = match prepare(config, log, &events) {
        Ok(shared) => shared,
        Err(error) => {
            eprintln!("basalt: {error}");
            return error.exit().into();
        }
    };
    exit::exit_on_panic();
    let end = match start_cores(&shared, &events) {
        Ok(()) => supervise(&shared, &inbox),
        Err(error) => Err(error),
    };
    shared.log.flush();
    match end {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("basalt: {error}");
            // Cores may be anywhere in their start; nothing has been acknowledged, so nothing needs them.
            std::process::exit(error.exit() as i32);
        }
    }
}

/// Everything that can fail before the first core runs.
fn prepare(config: Config, log: LogWriter, events: &Sender<Event>) -> Result<Arc<Shared>, StartError> {
    let disk_classes = check_host(&config)?;
    let new_disks = config.disks.iter().filter(|_| !config.start_read_only);
    for path in new_disks {
        // A deployment does without some of its disks; whether it can do without this one shows when it is opened.
        if let Err(error) = create_disk(path) {
            tracing::warn!("{error}");
        }
    }
    let certificate = match &config.tls {
        None => None,
        Some(files) => Some(Arc::new(Certificate::load(files.clone()).map_err(StartError::Certificate)?)),
    };
    let root = credentials::resolve(config.root.as_ref(), &config.disks)
        .map_err(|(path, reason)| StartError::Credentials { path, reason })?;
    if config.start_read_only && root.origin == credentials::Origin::Generated {
        let reason = "no disk that is there has them, and none are stored by a start that writes nothing; give \
                      --root-access-key and --root-secret-key";
        let path = std::path::PathBuf::from(credentials::FILE_NAME);
        return Err(StartError::Credentials { path, reason: reason.to_owned() });
    }
    let mut host_id = [0; 24];
    getrandom::fill(&mut host_id)
        .map_err(|error| StartError::Thread(std::io::Error::other(error.to_string())))?;
    forward_signals(events).map_err(StartError::Thread)?;
    Ok(Arc::new(Shared {
        metrics: Metrics::new(config.cpus.len()),
        root,
        certificate,
        host_id: base64::engine::general_purpose::STANDARD.encode(host_id),
        log,
        stop: AtomicBool::new(false),
        address: OnceLock::new(),
        disk_classes,
        deployment: OnceLock::new(),
        started: AtomicUsize::new(0),
        drained: AtomicUsize::new(0),
        config,
    }))
}

/// Raises limits, reports findings, and refuses a host that cannot work. Gives the classes of the disks for data and of
/// those for log and index: rotational if all of them are.
fn check_host(config: &Config) -> Result<(DiskClass, DiskClass), StartError> {
    let limits = limits::raise();
    let needs = Needs {
        locked_len: config.arena_len as u64 * config.cpus.len() as u64,
        files: config.files_needed(),
    };
    let cpus = config.cpus.iter().collect::<BTreeSet<_>>().len();
    if cpus < config.cpus.len() {
        tracing::warn!("{} cores share {cpus} CPUs, which costs throughput and latency", config.cpus.len());
    }
    let mut fatal = false;
    let mut rotational = Vec::new();
    for finding in host_checks(&needs, limits, &config.disks) {
        if let Finding::Rotational { path } = &finding {
            rotational.push(path.clone());
        }
        match finding.severity() {
            Severity::Fatal => {
                fatal = true;
                eprintln!("basalt: {finding}");
            }
            Severity::Warning => tracing::warn!("{finding}"),
            Severity::Note => tracing::info!("{finding}"),
        }
    }
    if fatal {
        return Err(StartError::Host);
    }
    let (data, metadata) = config.disks.split_at(config.disks.len() - config.metadata_count);
    let class = |disks: &[std::path::PathBuf]| {
        let all = !disks.is_empty() && disks.iter().all(|disk| rotational.contains(disk));
        if all { DiskClass::Rotational } else { DiskClass::Flash }
    };
    Ok((class(data), class(metadata)))
}

/// Creates a disk's directory, but never its parents: a missing parent is more often a disk that is not mounted.
fn create_disk(path: &std::path::Path) -> Result<(), StartError> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(StartError::Disk { path: path.to_owned(), error }),
    }
}

/// Sends signals to the main thread's inbox, from a thread of their own.
fn forward_signals(events: &Sender<Event>) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let events = events.clone();
    std::thread::Builder::new().name("basalt-signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                break;
            }
        }
    })?;
    Ok(())
}

fn start_cores(shared: &Arc<Shared>, events: &Sender<Event>) -> Result<(), StartError> {
    let cores = u16::try_from(shared.config.cpus.len()).expect("cores are capped far below");
    let seeds = mesh::seeds::<Request, Reply>(cores);
    for ((index, cpu), seed) in shared.config.cpus.iter().enumerate().zip(seeds) {
        let id = u16::try_from(index).expect("cores are capped far below");
        let ring = ring::Config {
            id: CoreId(id),
            cpu: Some(*cpu),
            arena_len: shared.config.arena_len,
            entries: RING_ENTRIES,
        };
        let (shared, events) = (Arc::clone(shared), events.clone());
        let thread = std::thread::Builder::new().name(format!("basalt-{index}"));
        thread
            .spawn(move || {
                let to_main = events.clone();
                let event = match ring::run(&ring, move |core| core_main(core, shared, seed, events)) {
                    Ok(Ok(())) => Event::Stopped,
                    Ok(Err(error)) => Event::Failed(error),
                    Err(error) => Event::Failed(StartError::Ring(error)),
                };
                // The main thread is gone only when the process is ending anyway.
                let _gone = to_main.send(event).is_err();
            })
            .map_err(StartError::Thread)?;
    }
    Ok(())
}

/// One core from start to drained.
async fn core_main(
    core: Core,
    shared: Arc<Shared>,
    seed: PortSeed<Request, Reply>,
    events: Sender<Event>,
) -> Result<(), StartError> {
    for warning in ring::warnings(&core) {
        tracing::warn!(core = core.id().0, "{warning}");
    }
    let service = service::open(&core, &shared, seed).await?;
    let listener = listen(&core, &shared).await?;
    let CoreService { handler, readiness, minio_bucket_exists, engine, redundancy } = service;
    let (metrics, log) = (shared.metrics.clone(), shared.log.queue());
    let front = Front::new(FrontParts {
        core: core.clone(),
        handler,
        probes: Probes {
            readiness,
            minio_bucket_exists,
            metrics: Rc::new(move || metrics.render(log.dropped())),
            metrics_public: shared.config.metrics_public,
            disks: disks::Desk::handler(
                engine.clone(),
                &shared.root.credentials,
                shared.config.metrics_public,
            ),
            addressing: Addressing::new(&shared.config.domains),
        },
        access: AccessLog::new(
            shared.log.queue(),
            shared.config.log.format,
            shared.config.log.access && tracing::enabled!(target: "access", tracing::Level::INFO),
        ),
        limits: shared.config.http.clone(),
        metrics: shared.metrics.clone(),
        certificate: shared.certificate.clone(),
        host_id: shared.host_id.clone(),
    });
    let accepting = core.spawn(Rc::clone(&front).accept_all(listener));
    let _main_gone = events.send(Event::Serving { redundancy }).is_err();

    while !shared.stop.load(Ordering::Relaxed) {
        core.sleep(WATCH_INTERVAL).await;
        front.round();
        service::sample(&engine, shared.metrics.core(usize::from(core.id().0)));
        disks::sample(&engine, shared.metrics.disks());
    }
    accepting.cancel();
    accepting.await;
    let deadline = core.now() + shared.config.drain_timeout;
    drain(&core, &front, shared.config.drain_timeout).await;
    // The others may still need this core's shards for what they have in flight.
    shared.drained.fetch_add(1, Ordering::Relaxed);
    while shared.drained.load(Ordering::Relaxed) < shared.config.cpus.len() {
        core.sleep(START_POLL).await;
    }
    checkpoint(&core, &engine, deadline).await;
    engine.release_locks();
    Ok(())
}

/// Brings this core's shards under new roots, so that the next start replays nothing. Without it, or with half of it, the
/// next start takes longer and finds the same.
async fn checkpoint(core: &Core, engine: &Engine, deadline: Monotonic) {
    let mut checkpoint = pin!(engine.checkpoint_own());
    let mut late = pin!(core.sleep(deadline.since(core.now())));
    let done = std::future::poll_fn(|cx| match checkpoint.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => late.as_mut().poll(cx).map(|()| None),
    });
    match done.await {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            tracing::warn!(core = core.id().0, %error, "no last checkpoint: the next start replays the log");
        }
        None => tracing::warn!(
            core = core.id().0,
            "no time for a last checkpoint: the next start replays the log"
        ),
    }
}

/// Binds the configured address; cores after the first take over its port.
async fn listen(core: &Core, shared: &Shared) -> Result<Listener, StartError> {
    let address = if core.id().0 == 0 {
        shared.config.listen
    } else {
        loop {
            match shared.address.get() {
                Some(address) => break *address,
                None => core.sleep(START_POLL).await,
            }
        }
    };
    let listener = Listener::bind(core, address).map_err(|error| StartError::Listen { address, error })?;
    shared.address.get_or_init(|| listener.local_addr());
    Ok(listener)
}

/// Waits for connections to end, while their timeouts go on, up to `time`.
async fn drain(core: &Core, front: &Rc<Front>, time: Duration) {
    let over = Cell::new(false);
    let mut drained = pin!(front.drain());
    let mut deadline = pin!(core.sleep(time));
    let mut rounds = pin!(async {
        while !over.get() {
            core.sleep(WATCH_INTERVAL).await;
            front.round();
        }
    });
    std::future::poll_fn(|cx| {
        let _never_first = rounds.as_mut().poll(cx);
        match drained.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => deadline.as_mut().poll(cx),
        }
    })
    .await;
    over.set(true);
    if front.connections() > 0 {
        tracing::warn!(core = core.id().0, connections = front.connections(), "closed while in flight");
    }
}

/// The main thread's life after the cores are started.
fn supervise(shared: &Arc<Shared>, inbox: &Receiver<Event>) -> Result<Exit, StartError> {
    let cores = shared.config.cpus.len();
    let (mut serving, mut stopped) = (0, 0);
    while stopped < cores {
        // Senders live in the signal thread, so the channel cannot close.
        let Ok(event) = inbox.recv() else { break };
        match event {
            Event::Failed(error) => return Err(error),
            Event::Serving { redundancy } => {
                serving += 1;
                if serving == cores {
                    announce(shared, &redundancy)?;
                }
            }
            Event::Stopped => stopped += 1,
            Event::Signal(SIGHUP) => reload(shared),
            Event::Signal(_) if shared.stop.swap(true, Ordering::Relaxed) => {
                shared.log.flush();
                std::process::exit(Exit::Interrupted as i32);
            }
            Event::Signal(signal) => {
                tracing::info!(signal, "shutting down: finishing requests in flight");
                notify::notify("STOPPING=1");
            }
        }
    }
    Ok(Exit::Ok)
}

fn announce(shared: &Shared, redundancy: &str) -> Result<(), StartError> {
    // Only members: a spare disk must stay empty, and an empty directory may be a mount point without its disk.
    let deployment = shared.deployment.get().expect("core 0 opened it before it served");
    let members = deployment.paths.iter().zip(deployment.states());
    let disks: Vec<_> = members
        .filter(|(_, state)| *state != MemberState::Out)
        .filter_map(|(path, _)| path.clone())
        .collect();
    let stored = match deployment.read_only {
        true => None,
        false => {
            shared.root.store(&disks).map_err(|(path, reason)| StartError::Credentials { path, reason })?
        }
    };
    let address = *shared.address.get().expect("core 0 listens before it serves");
    let text =
        banner::banner(address, shared.certificate.is_some(), &shared.root, stored.as_deref(), redundancy);
    // A closed stdout is no reason not to serve.
    let _closed = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()).is_err();
    notify::notify("READY=1");
    Ok(())
}

fn reload(shared: &Shared) {
    let Some(certificate) = &shared.certificate else {
        tracing::info!("SIGHUP: nothing to reload without TLS");
        return;
    };
    match certificate.reload() {
        Ok(()) => tracing::info!("SIGHUP: the certificate was replaced"),
        Err(error) => tracing::error!(%error, "SIGHUP: the old certificate stays"),
    }
}
