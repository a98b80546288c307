//! Channels by certificates: mutual TLS 1.3. Every channel begins with a whole handshake, so that
//! a certificate which has expired or whose authority was taken out lets nobody in any more.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    ServerConfig, SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Duplex, Files, Stream, broken};
use crate::auth::{PeerId, PeerNames, TlsFiles};
use crate::control::address::Address;
use crate::error::{Error, Result};

/// The protocol within TLS: other services' certificates of one authority must not do for ours by
/// a confusion of ports.
const PROTOCOL: &[u8] = b"kvrail/1";

/// Behind the handshake, from the side that was connected to. The other side's handshake is over
/// before its certificate was looked at; waiting for this, it hears of a refusal as such.
const WELCOME: &[u8] = b"k";

/// What this engine proves, and by which authorities its peers have to.
pub(super) struct Tls {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
    own: PeerId,
}

/// # Errors
/// Refused: a file can't be read or makes no sense.
pub(super) fn load(files: &TlsFiles) -> Result<Files<Tls>> {
    let paths = vec![files.certificate.clone(), files.key.clone(), files.authorities.clone()];
    let names = files.names;
    Files::load(paths, move |contents| Tls::new(contents, names))
}

impl Tls {
    fn new(files: &[Vec<u8>], names: PeerNames) -> Result<Self> {
        let [certificate, key, authorities] = files else {
            return Err(Error::refused("TLS takes a certificate, a key and authorities"));
        };
        let chain = certificates(certificate, "the certificate")?;
        let own = names_in(&chain[0])?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| Error::refused("no private key in PEM").with_source(error))?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(authorities, "the authorities")? {
            roots.add(authority).map_err(unfit)?;
        }
        let (provider, roots) = (Arc::new(ring::default_provider()), Arc::new(roots));
        let server = server(&provider, &roots, chain.clone(), key.clone_key())?;
        let client = client(&provider, &roots, chain, key, names)?;
        let (connector, acceptor) = (Arc::new(client).into(), Arc::new(server).into());
        Ok(Self { connector, acceptor, own })
    }

    pub fn own(&self) -> PeerId {
        self.own.clone()
    }

    /// # Errors
    /// Refused: the peer's certificate doesn't hold, or isn't that of the engine called `name`.
    pub async fn connect(&self, stream: TcpStream, name: &str) -> Result<Stream> {
        let server = server_name(name)?;
        let connected = self.connector.connect(server, stream).await;
        let refused = |error| refusal(&error).unwrap_or_else(|| broken(error));
        let mut stream = connected.map_err(refused)?;
        check_protocol(stream.get_ref().1.alpn_protocol())?;
        stream.read_exact(&mut [0; WELCOME.len()]).await.map_err(refused)?;
        Ok(Box::new(stream))
    }

    /// # Errors
    /// Refused: the peer brings no certificate that holds, or one without names.
    pub async fn accept<S: Duplex + 'static>(&self, stream: S) -> Result<(Stream, PeerId)> {
        let accepted = self.acceptor.accept(stream).await;
        let refused = |error| refusal(&error).unwrap_or_else(|| broken(error));
        let mut stream = accepted.map_err(refused)?;
        check_protocol(stream.get_ref().1.alpn_protocol())?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let first = chain.first().ok_or_else(|| Error::refused("a peer without a certificate"))?;
        let peer = names_in(first)?;
        stream.write_all(WELCOME).await.map_err(refused)?;
        stream.flush().await.map_err(refused)?;
        Ok((Box::new(stream), peer))
    }
}

/// rustls lets those pass who name no protocol at all.
fn check_protocol(agreed: Option<&[u8]>) -> Result<()> {
    match agreed == Some(PROTOCOL) {
        true => Ok(()),
        false => Err(Error::refused("the peer speaks TLS, but is no kvrail engine")),
    }
}

/// The peer's refusal, or ours of its certificate, in words that say what to do.
pub(super) fn refusal(error: &io::Error) -> Option<Error> {
    let inner = error.get_ref()?.downcast_ref::<TlsError>()?;
    let what = match inner {
        TlsError::AlertReceived(_) => {
            "the peer refuses this engine's certificate: is it in date, and of an authority that \
             the peer has?"
        }
        TlsError::InvalidCertificate(CertificateError::NotValidForName)
        | TlsError::InvalidCertificate(CertificateError::NotValidForNameContext { .. }) => {
            "the peer's certificate is another's: issue one that names the peer as it is opened, \
             or set the names to any"
        }
        TlsError::InvalidCertificate(_) => {
            "the peer's certificate does not hold: is it in date, and of an authority that is \
             configured here?"
        }
        TlsError::InvalidMessage(_) => "the peer does not speak TLS: authentication is required",
        _ => "the peer does not go on with the TLS handshake",
    };
    Some(Error::refused(what).with_source(inner.clone()))
}

fn server(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
    let verifier = verifier
        .build()
        .map_err(|error| Error::refused("the authorities can't be used").with_source(error))?;
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_protocol_versions(&[&TLS13]).map_err(unfit)?;
    let builder = builder.with_client_cert_verifier(verifier);
    let mut config = builder.with_single_cert(chain, key).map_err(unfit)?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    names: PeerNames,
) -> Result<ClientConfig> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
    let verifier = verifier
        .build()
        .map_err(|error| Error::refused("the authorities can't be used").with_source(error))?;
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_protocol_versions(&[&TLS13]).map_err(unfit)?;
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { chain: verifier, names }));
    let mut config = builder.with_client_auth_cert(chain, key).map_err(unfit)?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// rustls's own verifier, which may overlook whose certificate it is, never whether it holds.
#[derive(Debug)]
struct Verifier {
    chain: Arc<WebPkiServerVerifier>,
    names: PeerNames,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let verified = self.chain.verify_server_cert(certificate, between, name, stapled, now);
        // It looks at the name last, when everything else holds.
        match verified {
            Err(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.names == PeerNames::Any => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Whom an engine's segment name names: its host, or itself where it is none of the form
/// `host:port`.
fn server_name(name: &str) -> Result<ServerName<'static>> {
    let host = Address::parse(name).map_or_else(|_| name.to_owned(), |address| address.host);
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(ServerName::IpAddress(ip.into()));
    }
    ServerName::try_from(host).map_err(|error| {
        Error::refused(format!("no certificate can name {name:?}: choose a name like a host's"))
            .with_source(error)
    })
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| {
        Error::refused(format!("{what}: the file is no PEM")).with_source(error)
    })?;
    match found.is_empty() {
        false => Ok(found),
        true => Err(Error::refused(format!("{what}: there is none in the file"))),
    }
}

/// The names by which others know whoever has this certificate.
fn names_in(certificate: &CertificateDer<'_>) -> Result<PeerId> {
    let parsed = webpki::EndEntityCert::try_from(certificate)
        .map_err(|error| Error::refused("a certificate is malformed").with_source(error))?;
    let names: Vec<_> = parsed.valid_uri_names().chain(parsed.valid_dns_names()).collect();
    match names.is_empty() {
        false => Ok(PeerId::named(names.into_iter().map(str::to_owned))),
        true => Err(Error::refused(
            "a certificate has no alternative name of the kinds DNS and URI: peers are known by it",
        )),
    }
}

fn unfit(error: TlsError) -> Error {
    Error::refused("certificate, key and authorities don't fit").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tests::authentication::tls::authority::Authority;

    #[tokio::test]
    async fn a_client_that_names_no_protocol_is_refused() {
        let files = Authority::new();
        let files = files.issue("one");
        let [chain, key, roots] = [&files.certificate, &files.key, &files.authorities]
            .map(|path| std::fs::read(path).unwrap());
        let ours = Tls::new(&[chain.clone(), key.clone(), roots.clone()], PeerNames::Any).unwrap();
        let provider = Arc::new(ring::default_provider());
        let mut store = RootCertStore::empty();
        for authority in certificates(&roots, "authorities").unwrap() {
            store.add(authority).unwrap();
        }
        for names_protocol in [true, false] {
            let chain = certificates(&chain, "chain").unwrap();
            let key = PrivateKeyDer::from_pem_slice(&key).unwrap();
            let store = Arc::new(store.clone());
            let mut config = client(&provider, &store, chain, key, PeerNames::Any).unwrap();
            if !names_protocol {
                config.alpn_protocols.clear();
            }
            let (near, far) = tokio::io::duplex(1 << 16);
            let connector = TlsConnector::from(Arc::new(config));
            let name = ServerName::try_from("one").unwrap();
            let connecting = async { connector.connect(name, near).await.unwrap() };
            let (_near, accepted) = tokio::join!(connecting, ours.accept(far));
            assert_eq!(accepted.is_ok(), names_protocol);
        }
    }
}
