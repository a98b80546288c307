//! What peers of an engine have to prove, as options of a command.

use std::path::PathBuf;

use clap::Args;
use kvrail::{Authentication, EngineBuilder, PeerNames, TlsFiles};

#[derive(Args, Clone)]
#[command(next_help_heading = "Authentication")]
pub struct Security {
    /// This engine's certificate in PEM: peers have to prove who they are by mutual TLS 1.3.
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Certificates of the authorities that vouch for peers, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// Takes any peer for the one it opens whom an authority vouches for, whatever its
    /// certificate names.
    #[arg(long, requires = "tls_cert")]
    tls_any_name: bool,
    /// Pre-shared keys, a line `NAME = 64 HEXADECIMAL DIGITS` each, this engine's own first: peers
    /// have to prove that they hold one of them.
    #[arg(long, value_name = "FILE", conflicts_with = "tls_cert")]
    key_file: Option<PathBuf>,
    /// Lets Mooncake's engines in, which can't prove anything, and with them anyone who reaches
    /// the ports, to what the configuration file's policy permits them.
    #[arg(long)]
    allow_mooncake: bool,
    /// Encrypts what goes by TCP, at both ends: takes keys or certificates, and a kernel with TLS.
    #[arg(long)]
    encrypt_tcp: bool,
}

impl Security {
    /// The same engine with what the options say; what they leave out stays as it is.
    pub fn apply(&self, builder: EngineBuilder) -> EngineBuilder {
        let builder = match self.authentication() {
            Some(authentication) => builder.authentication(authentication),
            None => builder,
        };
        let builder = if self.allow_mooncake { builder.allow_mooncake(true) } else { builder };
        if self.encrypt_tcp { builder.encrypt_tcp(true) } else { builder }
    }

    fn authentication(&self) -> Option<Authentication> {
        let names = if self.tls_any_name { PeerNames::Any } else { PeerNames::Opened };
        match (&self.key_file, &self.tls_cert, &self.tls_key, &self.tls_ca) {
            (Some(file), ..) => Some(Authentication::Keys(file.clone())),
            (None, Some(certificate), Some(key), Some(authorities)) => {
                let (certificate, key) = (certificate.clone(), key.clone());
                let authorities = authorities.clone();
                Some(Authentication::Tls(TlsFiles { certificate, key, authorities, names }))
            }
            _ => None,
        }
    }
}
