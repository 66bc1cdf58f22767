//! TLS towards clients, with certificates that are read again when their files change, and TLS towards endpoints.

use crate::config::{TlsConfig, UpstreamConfig};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing, unreadable or not PEM.
    #[error("cannot read {path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The certificate and the key do not belong together, or are of a kind that is not supported.
    #[error("{cert} and {key} cannot be used together: {source}")]
    Pair {
        /// The certificate chain.
        cert: PathBuf,
        /// The private key.
        key: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
    /// No usable certificate authority for `https` endpoints.
    #[error("no certificate authority for https endpoints: {0}")]
    NoAuthority(String),
    /// The TLS library refused the settings.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// The certificate of a listener: resolved for each handshake, replaced when its files change.
#[derive(Debug)]
pub(crate) struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    current: ArcSwap<CertifiedKey>,
    /// Modification times of the files when they were last looked at.
    seen: Mutex<[Option<SystemTime>; 2]>,
}

impl Certificate {
    /// Reads both files.
    ///
    /// # Errors
    /// [`TlsError`] if they cannot be used.
    pub fn load(config: &TlsConfig) -> Result<Arc<Self>, TlsError> {
        let seen = [modified(&config.cert), modified(&config.key)];
        let current = read_pair(&config.cert, &config.key)?;
        Ok(Arc::new(Self {
            cert: config.cert.clone(),
            key: config.key.clone(),
            current: ArcSwap::from_pointee(current),
            seen: Mutex::new(seen),
        }))
    }

    /// Reads the files again if one has changed since the last look; true if the certificate was replaced.
    ///
    /// # Errors
    /// [`TlsError`]; the old certificate stays in use. Tried again at the next change: half of a pair may just have been written.
    pub fn reload_if_changed(&self) -> Result<bool, TlsError> {
        let now = [modified(&self.cert), modified(&self.key)];
        if std::mem::replace(&mut *self.seen.lock(), now) == now {
            return Ok(false);
        }
        self.reload().map(|()| true)
    }

    /// Reads the files again.
    ///
    /// # Errors
    /// [`TlsError`]; the old certificate stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current
            .store(Arc::new(read_pair(&self.cert, &self.key)?));
        Ok(())
    }

    /// TLS for a listener: HTTP/2 and HTTP/1.1 by ALPN.
    ///
    /// # Errors
    /// [`TlsError::Rustls`] if the TLS library refuses its own defaults.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// TLS towards endpoints. Read when the first `https` endpoint is connected to, or at once where the configuration names files.
pub(crate) struct UpstreamTls {
    config: UpstreamConfig,
    loaded: OnceLock<Option<Protocols>>,
}

/// The TLS that `https` endpoints are reached with, for others who talk to them (health probes).
///
/// # Errors
/// [`TlsError`] if there is no usable authority.
pub fn upstream_client_config(config: &UpstreamConfig) -> Result<Arc<ClientConfig>, TlsError> {
    Ok(Protocols::load(config)?.http1)
}

/// One configuration for each protocol to ask for.
struct Protocols {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl UpstreamTls {
    /// Checks what the configuration names.
    ///
    /// # Errors
    /// [`TlsError`] if the authorities it names cannot be used.
    pub fn new(config: &UpstreamConfig) -> Result<Self, TlsError> {
        let this = Self {
            config: config.clone(),
            loaded: OnceLock::new(),
        };
        if config.ca.is_some() {
            let _ = this.loaded.set(Some(Protocols::load(config)?));
        }
        Ok(this)
    }

    /// The configuration for an endpoint that speaks HTTP/2, or HTTP/1.1. `None` if there is no usable authority.
    pub fn get(&self, http2: bool) -> Option<&Arc<ClientConfig>> {
        let load = || {
            Protocols::load(&self.config)
                .inspect_err(|e| tracing::error!(error = %e, "https endpoints cannot be used"))
                .ok()
        };
        let protocols = self.loaded.get_or_init(load).as_ref()?;
        Some(if http2 {
            &protocols.http2
        } else {
            &protocols.http1
        })
    }
}

impl Protocols {
    fn load(config: &UpstreamConfig) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?;
        let base = if config.insecure {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AcceptAny(provider())))
                .with_no_client_auth()
        } else {
            builder
                .with_root_certificates(roots(config.ca.as_deref())?)
                .with_no_client_auth()
        };
        let with = |protocol: &[u8]| {
            let mut config = base.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        };
        Ok(Self {
            http1: with(b"http/1.1"),
            http2: with(b"h2"),
        })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let problem = |problem: String| TlsError::File {
        path: path.to_owned(),
        problem,
    };
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| problem(e.to_string()))?;
    if chain.is_empty() {
        Err(problem("no certificate in it".into()))
    } else {
        Ok(chain)
    }
}

fn read_pair(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = read_chain(cert)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| TlsError::File {
        path: key.to_owned(),
        problem: e.to_string(),
    })?;
    CertifiedKey::from_der(chain, private, &provider()).map_err(|source| TlsError::Pair {
        cert: cert.to_owned(),
        key: key.to_owned(),
        source,
    })
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    match ca {
        Some(path) => {
            for cert in read_chain(path)? {
                store.add(cert)?;
            }
        }
        None => {
            let system = rustls_native_certs::load_native_certs();
            let (added, _) = store.add_parsable_certificates(system.certs);
            if added == 0 {
                let why = system
                    .errors
                    .first()
                    .map_or_else(|| "the system has none".into(), ToString::to_string);
                return Err(TlsError::NoAuthority(why));
            }
        }
    }
    Ok(store)
}

/// Accepts every certificate; the handshake's signature is checked all the same.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
