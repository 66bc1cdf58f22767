//! Mutual TLS between nodes: who may connect, and how a certificate names a node.
//!
//! A node certificate carries exactly one URI subject alternative name of the form `quorate://node/<name>`. Its chain must end
//! at the configured authority and allow both server and client authentication. Host names and addresses in it are not
//! looked at: a peer is who its certificate says, wherever it was reached.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error as RustlsError, RootCertStore,
    ServerConfig, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{error::Error, options::PeerTls};

/// What the URI name of a node's certificate begins with.
pub const NODE_URI_PREFIX: &str = "quorate://node/";

/// Loaded certificates of a node.
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    pub(crate) server: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the files and checks that the certificate names `node_name`.
    pub(crate) fn load(files: &PeerTls, node_name: &str) -> Result<Self, Error> {
        let bad = |path: &Path, why: String| Error::Tls {
            path: path.to_owned(),
            why,
        };
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for cert in read_certs(&files.ca)? {
            roots
                .add(cert)
                .map_err(|error| bad(&files.ca, error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let chain = read_certs(&files.cert)?;
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|error| bad(&files.key, error.to_string()))?;
        let own = chain
            .first()
            .map(node_name_of)
            .ok_or_else(|| bad(&files.cert, "no certificate".into()))?;
        match own {
            Ok(name) if name == node_name => {}
            Ok(name) => {
                return Err(bad(
                    &files.cert,
                    format!("it names node {name:?}, but this node is {node_name:?}"),
                ));
            }
            Err(why) => return Err(bad(&files.cert, why)),
        }
        let client_chain =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| bad(&files.ca, error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&files.cert, error.to_string()))?
            .with_client_cert_verifier(Arc::new(NodeClients {
                chain: client_chain,
            }))
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| bad(&files.key, error.to_string()))?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            provider,
            roots,
            chain,
            key,
            server: Arc::new(server),
        })
    }

    /// Settings for a connection to the node named `expected`; `None` accepts any node of the authority (first contact).
    pub(crate) fn client(
        &self,
        expected: Option<String>,
    ) -> Result<Arc<ClientConfig>, RustlsError> {
        let verifier = NodeServer {
            provider: Arc::clone(&self.provider),
            roots: Arc::clone(&self.roots),
            expected,
        };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn read_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bad = |why: String| Error::Tls {
        path: path.to_owned(),
        why,
    };
    let certs: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| bad(error.to_string()))?;
    if certs.is_empty() {
        return Err(bad("there is no certificate in this file".to_owned()));
    }
    Ok(certs)
}

/// The node that a certificate names.
pub(crate) fn node_name_of(cert: &CertificateDer<'_>) -> Result<String, String> {
    let (_, parsed) = X509Certificate::from_der(cert)
        .map_err(|error| format!("malformed certificate: {error}"))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| format!("malformed certificate: {error}"))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let mut nodes = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(NODE_URI_PREFIX),
        _ => None,
    });
    match (nodes.next(), nodes.next()) {
        (Some(name), None) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(format!(
            "the certificate does not name a node: it needs exactly one URI subject alternative name {NODE_URI_PREFIX}<name>"
        )),
    }
}

/// Accepts servers whose chain is good and whose certificate names the expected node.
#[derive(Debug)]
struct NodeServer {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    expected: Option<String>,
}

impl ServerCertVerifier for NodeServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _address: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        let cert = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &cert,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let name = node_name_of(end_entity).map_err(RustlsError::General)?;
        match &self.expected {
            Some(expected) if *expected != name => Err(RustlsError::General(format!(
                "the certificate is that of node {name:?}, expected was {expected:?}"
            ))),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Accepts clients whose chain is good and whose certificate names a node.
#[derive(Debug)]
struct NodeClients {
    chain: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for NodeClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, RustlsError> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        node_name_of(end_entity).map_err(RustlsError::General)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
