//! Identities, pins and TLS 1.3 configurations.
//!
//! There is no certificate authority. A controller's key is pinned by the join token; a node is the hash of its own
//! key. Certificates are self-signed wrappers: names, dates and chains in them mean nothing here, only the key and
//! the proof, in the handshake, that the other side holds it.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};
use znet_core::id::NodeId;

pub use znet_core::id::Pin;

/// The controller showed another key than the pinned one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the controller's key has pin {got}, but {expected} was expected; somebody may be in the middle, or the token is of another controller"
)]
pub struct PinMismatch {
    /// The pin that the token or the flag gave.
    pub expected: Pin,
    /// The pin of the key that was shown.
    pub got: Pin,
}

/// What can go wrong with identities and configurations.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A key pair or certificate could not be made or read.
    #[error("the key or certificate cannot be used: {0}")]
    Identity(String),
    /// The TLS library refused the configuration.
    #[error(transparent)]
    Config(#[from] Error),
}

/// An ECDSA P-256 key pair and the self-signed certificate that carries it. The key is wiped when dropped.
#[derive(Clone)]
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: Zeroizing<Vec<u8>>,
}

impl Identity {
    /// A fresh identity out of the operating system's randomness.
    ///
    /// # Errors
    /// [`TlsError::Identity`] when the cryptography library fails.
    pub fn generate() -> Result<Self, TlsError> {
        let failed = |error: rcgen::Error| TlsError::Identity(error.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let params = CertificateParams::new(vec!["znet".to_owned()]).map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self { certificate: certificate.der().clone(), key: Zeroizing::new(key.serialize_der()) })
    }

    /// Reads the PEM text that [`Identity::to_pem`] wrote.
    ///
    /// # Errors
    /// [`TlsError::Identity`] when a part is missing or not PEM.
    pub fn from_pem(pem: &str) -> Result<Self, TlsError> {
        let failed = |what: &str| TlsError::Identity(format!("the PEM text has no usable {what}"));
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| failed("certificate"))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| failed("private key"))?;
        let identity = Self {
            certificate: certificate.into_owned(),
            key: Zeroizing::new(key.secret_pkcs8_der().to_vec()),
        };
        identity.spki()?;
        Ok(identity)
    }

    /// Certificate and private key as PEM; wiped when dropped.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::new());
        pem_block(&mut text, "CERTIFICATE", &self.certificate);
        pem_block(&mut text, "PRIVATE KEY", &self.key);
        text
    }

    /// The pin of this identity's key.
    ///
    /// # Errors
    /// [`TlsError::Identity`] when the certificate cannot be read.
    pub fn pin(&self) -> Result<Pin, TlsError> {
        Ok(Pin::from_bytes(self.spki()?))
    }

    /// The node that this identity is.
    ///
    /// # Errors
    /// [`TlsError::Identity`] when the certificate cannot be read.
    pub fn node_id(&self) -> Result<NodeId, TlsError> {
        Ok(NodeId::from_bytes(self.spki()?))
    }

    fn spki(&self) -> Result<[u8; 32], TlsError> {
        spki_hash(&self.certificate)
            .ok_or_else(|| TlsError::Identity("the certificate is malformed".to_owned()))
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.to_vec().into())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

fn pem_block(text: &mut String, label: &str, der: &[u8]) {
    use base64::Engine as _;
    let mut body = base64::engine::general_purpose::STANDARD.encode(der);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at_checked(64).unwrap_or((rest, ""));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    body.zeroize();
}

/// The SHA-256 of a certificate's SubjectPublicKeyInfo; `None` when it is malformed.
fn spki_hash(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(Sha256::digest(parsed.tbs_certificate.subject_pki.raw).into())
}

/// The node that a peer's certificate stands for. The handshake has proved that the peer holds its key.
pub fn node_of(certificates: Option<&[CertificateDer<'_>]>) -> Option<NodeId> {
    certificates?.first().and_then(spki_hash).map(NodeId::from_bytes)
}

/// The name under which a client asks for the key of this pin (SNI, RFC 6066, section 3): a controller whose key is being
/// changed has several. It goes over the wire in the clear, and tells nothing that opens anything.
pub fn name_of(pin: &Pin) -> String {
    let (half, _) = pin.as_bytes().split_at(16);
    let digits: String = half.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{digits}.pin.znet")
}

/// Makes aws-lc-rs the process's cryptography provider; harmless to repeat.
pub fn install_provider() {
    // The error says that a provider is installed already, which is what is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A client that speaks TLS 1.3 with whoever holds one of the pinned keys, as `identity` where one is given.
///
/// # Errors
/// [`TlsError::Config`] when the TLS library refuses the identity.
pub fn client_config(
    pins: &[Pin],
    identity: Option<&Identity>,
    alpn: &[&str],
) -> Result<rustls::ClientConfig, TlsError> {
    let provider = provider();
    let verifier = Arc::new(PinnedServer { pins: pins.to_vec(), provider: provider.clone() });
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => {
            builder.with_client_auth_cert(vec![identity.certificate.clone()], identity.private_key())?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(config)
}

/// A server that speaks TLS 1.3, HTTP/2 and HTTP/1.1, and accepts callers with and without a key of their own.
///
/// # Errors
/// [`TlsError::Config`] when the TLS library refuses the configuration.
pub fn server_config(keys: Arc<ServerKeys>) -> Result<rustls::ServerConfig, TlsError> {
    let provider = provider();
    let verifier = Arc::new(AnyNode { provider: provider.clone() });
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(keys);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Agents stay connected, and when thousands come back at once it is to a process that knows no session.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The keys that a server has. Which one it shows depends on the name that the client asks for ([`name_of`]); they can be replaced
/// while it serves.
#[derive(Debug)]
pub struct ServerKeys(RwLock<Arc<[ServerKey]>>);

#[derive(Debug)]
struct ServerKey {
    name: String,
    key: Arc<CertifiedKey>,
}

impl ServerKeys {
    /// These keys; the first is for whoever asks for none of them.
    ///
    /// # Errors
    /// [`TlsError`] when one cannot be used.
    pub fn new(identities: &[Identity]) -> Result<Self, TlsError> {
        Ok(Self(RwLock::new(Self::load(identities)?)))
    }

    /// Replaces them for the handshakes that come.
    ///
    /// # Errors
    /// [`TlsError`] when one cannot be used; then they stay.
    pub fn set(&self, identities: &[Identity]) -> Result<(), TlsError> {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Self::load(identities)?;
        Ok(())
    }

    fn load(identities: &[Identity]) -> Result<Arc<[ServerKey]>, TlsError> {
        let provider = provider();
        let load = |identity: &Identity| {
            let signing = provider.key_provider.load_private_key(identity.private_key())?;
            let key = CertifiedKey::new(vec![identity.certificate.clone()], signing);
            Ok(ServerKey { name: name_of(&identity.pin()?), key: Arc::new(key) })
        };
        identities.iter().map(load).collect()
    }
}

impl ResolvesServerCert for ServerKeys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let asked = hello.server_name();
        let named = asked.and_then(|asked| keys.iter().find(|key| key.name == asked));
        named.or(keys.first()).map(|key| key.key.clone())
    }
}

/// The [`PinMismatch`] among the causes of an error, if that is what it was.
pub fn pin_mismatch(error: &(dyn std::error::Error + 'static)) -> Option<PinMismatch> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(mismatch) = error.downcast_ref::<PinMismatch>() {
            return Some(*mismatch);
        }
        if let Some(Error::InvalidCertificate(CertificateError::Other(OtherError(other)))) =
            error.downcast_ref::<Error>()
            && let Some(mismatch) = other.downcast_ref::<PinMismatch>()
        {
            return Some(*mismatch);
        }
        // An io::Error hides what it wraps from `source`, which gives the wrapped error's own cause.
        if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            cause = Some(inner);
            continue;
        }
        cause = error.source();
    }
    None
}

#[derive(Debug)]
struct PinnedServer {
    pins: Vec<Pin>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let got = spki_hash(end_entity).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if self.pins.iter().any(|pin| bool::from(got.ct_eq(pin.as_bytes()))) {
            return Ok(ServerCertVerified::assertion());
        }
        // Without any pin nothing is believed, and what was shown stands for what was expected.
        let expected = self.pins.first().copied().unwrap_or(Pin::from_bytes([0; 32]));
        let mismatch = PinMismatch { expected, got: Pin::from_bytes(got) };
        Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(mismatch)))))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Accepts any caller that proves to hold the P-256 key in its certificate; who that is, is decided by the key's hash.
#[derive(Debug)]
struct AnyNode {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyNode {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        spki_hash(end_entity).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
