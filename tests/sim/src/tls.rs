//! HTTPS: the certificate and key that a server is given.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;

/// Files of a server that speaks HTTPS, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate, and those of its authorities up to the root.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// Why a server cannot speak HTTPS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or holds something else.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The two do not fit together, or are of no use.
    #[error("the certificate and key cannot be used: {0}")]
    Pair(#[from] tokio_rustls::rustls::Error),
}

impl TlsFiles {
    /// Reads the files. HTTP/2 and HTTP/1.1 are both offered.
    pub fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let problem = |path: &Path, problem: String| TlsError::File {
            path: path.to_owned(),
            problem,
        };
        let chain = CertificateDer::pem_file_iter(&self.cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| problem(&self.cert, error.to_string()))?;
        if chain.is_empty() {
            return Err(problem(&self.cert, "no certificate in it".into()));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| problem(&self.key, error.to_string()))?;
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
