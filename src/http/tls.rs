//! TLS by rustls over a ring stream, and the certificate that can be replaced while serving.
//!
//! rustls is a state machine without I/O: ciphertext from the stream goes in, plaintext and ciphertext to send come out.
//! The adapter holds one read buffer and one write buffer, both bounded, and has no thread or task of its own.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use basalt_reactor::net::Stream;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

use crate::config::TlsFiles;

/// Ciphertext read at once: a full TLS record and its header.
const READ_LEN: usize = 16 * 1024 + 512;
/// Ciphertext that may wait for the socket before writes are refused.
const WRITE_LEN_MAX: usize = 128 << 10;
/// The most certificates of a chain.
const CHAIN_LEN_MAX: usize = 16;

/// Why a certificate cannot be used.
#[derive(Debug)]
pub enum TlsError {
    /// The file cannot be read or is not PEM.
    Pem {
        path: PathBuf,
        reason: String,
    },
    NoCertificate {
        path: PathBuf,
    },
    /// Key and certificate do not belong together, or rustls does not support them.
    Unusable(rustls::Error),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pem { path, reason } => write!(f, "cannot use {}: {reason}", path.display()),
            Self::NoCertificate { path } => write!(f, "{} holds no certificate", path.display()),
            Self::Unusable(error) => write!(f, "the certificate and its key cannot be used: {error}"),
        }
    }
}

impl std::error::Error for TlsError {}

/// The certificate of the process; shared by all cores, replaced by [`Certificate::reload`].
pub struct Certificate {
    files: TlsFiles,
    current: Mutex<Arc<ServerConfig>>,
    generation: AtomicU64,
}

/// One core's view of the certificate, so that a handshake takes no lock.
pub(super) struct Acceptor {
    certificate: Arc<Certificate>,
    held: RefCell<(u64, Arc<ServerConfig>)>,
}

impl Certificate {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// [`TlsError`] when they cannot be used.
    pub fn load(files: TlsFiles) -> Result<Certificate, TlsError> {
        let current = Mutex::new(server_config(&files)?);
        Ok(Certificate { files, current, generation: AtomicU64::new(0) })
    }

    /// Reads the files again; handshakes from now on use them. On an error the old certificate stays.
    ///
    /// # Errors
    /// [`TlsError`] when the new files cannot be used.
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = server_config(&self.files)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn current(&self) -> (u64, Arc<ServerConfig>) {
        let generation = self.generation.load(Ordering::Acquire);
        (generation, Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn server_config(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let pem = |path: &PathBuf, error: rustls::pki_types::pem::Error| TlsError::Pem {
        path: path.clone(),
        reason: error.to_string(),
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.cert)
        .map_err(|error| pem(&files.cert, error))?
        .take(CHAIN_LEN_MAX)
        .collect::<Result<_, _>>()
        .map_err(|error| pem(&files.cert, error))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: files.cert.clone() });
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| pem(&files.key, error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(TlsError::Unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Acceptor {
    pub(super) fn new(certificate: Arc<Certificate>) -> Acceptor {
        let held = RefCell::new(certificate.current());
        Acceptor { certificate, held }
    }

    /// Puts TLS on an accepted stream; the handshake happens with the first read.
    pub(super) fn accept(&self, stream: Stream) -> Result<TlsStream, rustls::Error> {
        let mut held = self.held.borrow_mut();
        if held.0 != self.certificate.generation.load(Ordering::Acquire) {
            *held = self.certificate.current();
        }
        let tls = ServerConnection::new(Arc::clone(&held.1))?;
        Ok(TlsStream::new(stream, tls))
    }
}

/// A TLS session on a stream.
pub(super) struct TlsStream {
    stream: Stream,
    tls: ServerConnection,
    /// Ciphertext received and not yet given to rustls: `read_buf[read_start..read_end]`.
    read_buf: Box<[u8]>,
    read_start: usize,
    read_end: usize,
    /// Ciphertext for the socket: `write_buf[write_start..]`.
    write_buf: Vec<u8>,
    write_start: usize,
    close_sent: bool,
}

impl TlsStream {
    fn new(stream: Stream, tls: ServerConnection) -> TlsStream {
        TlsStream {
            stream,
            tls,
            read_buf: vec![0; READ_LEN].into_boxed_slice(),
            read_start: 0,
            read_end: 0,
            write_buf: Vec::new(),
            write_start: 0,
            close_sent: false,
        }
    }

    /// Whether the handshake is still going on.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Reads ciphertext from the stream; false at its end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut buf = ReadBuf::new(&mut self.read_buf);
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf.unfilled()))?;
        self.read_start = 0;
        self.read_end = buf.filled().len();
        Poll::Ready(Ok(self.read_end > 0))
    }

    /// Gives received ciphertext to rustls, as much as it takes now.
    fn process(&mut self) -> io::Result<()> {
        let mut ciphertext = &self.read_buf[self.read_start..self.read_end];
        self.read_start += self.tls.read_tls(&mut ciphertext)?;
        if let Err(error) = self.tls.process_new_packets() {
            // The alert that says why goes out with the next drain, if the socket takes it.
            self.collect()?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        self.collect()
    }

    /// Takes what rustls wants to send.
    fn collect(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.write_buf)?;
        }
        Ok(())
    }

    /// Writes collected ciphertext until none is left.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.write_start < self.write_buf.len() {
            let rest = &self.write_buf[self.write_start..];
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.write_start += count;
        }
        self.write_buf.clear();
        self.write_start = 0;
        Poll::Ready(Ok(()))
    }

    /// Encrypts by `write` once there is room, and pushes towards the socket.
    fn poll_encrypt(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut rustls::Writer<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if self.write_buf.len() - self.write_start >= WRITE_LEN_MAX {
            ready!(self.poll_drain(cx))?;
        }
        let count = write(&mut self.tls.writer())?;
        self.collect()?;
        // Whether the socket takes it now does not matter: the bytes are ours, and a flush follows.
        if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(count))
    }
}

impl Read for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut plaintext = [0; 16 * 1024];
        loop {
            let wanted = plaintext.len().min(buf.remaining());
            match this.tls.reader().read(&mut plaintext[..wanted]) {
                Ok(count) => {
                    buf.put_slice(&plaintext[..count]);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            if this.read_start < this.read_end {
                if let Err(error) = this.process() {
                    let _alert_sent = this.poll_drain(cx);
                    return Poll::Ready(Err(error));
                }
                continue;
            }
            // The answer of a handshake must go out before more can come in.
            if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
                return Poll::Ready(Err(error));
            }
            if !ready!(this.poll_fill(cx))? {
                // Tells rustls of the end, so that the reader can tell a clean close from a truncated one.
                this.tls.read_tls(&mut io::empty())?;
                this.tls
                    .process_new_packets()
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            }
        }
    }
}

impl Write for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_encrypt(cx, |writer| writer.write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_encrypt(cx, |writer| writer.write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.close_sent {
            this.close_sent = true;
            this.tls.send_close_notify();
            this.collect()?;
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
