//! An authority that vouches for the engines of a test, and the files that it gives them.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use tempfile::TempDir;

/// Certificates, and the folder in which they lie.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: TempDir,
}

/// Files in PEM.
#[derive(Debug, Clone)]
pub struct Files {
    /// A certificate of the authority's.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority's own certificate.
    pub authorities: PathBuf,
}

impl Authority {
    /// One that nobody else knows.
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let folder = tempfile::tempdir().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(folder.path().join("ca.pem"), pem).unwrap();
        Self { issuer: Issuer::new(params, key), folder }
    }

    /// A certificate for 127.0.0.1 and this name, which is good now.
    pub fn issue(&self, name: &str) -> Files {
        self.issue_with(name, |_| ())
    }

    /// One whose time is over.
    pub fn issue_expired(&self, name: &str) -> Files {
        self.issue_with(name, |params| params.not_after = date_time_ymd(2001, 1, 1))
    }

    /// One that is not what [`Authority::issue`] would make of it.
    pub fn issue_with(&self, name: &str, adjust: impl FnOnce(&mut CertificateParams)) -> Files {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.subject_alt_names.push(match name.contains("://") {
            true => SanType::URI(name.try_into().unwrap()),
            false => SanType::DnsName(name.try_into().unwrap()),
        });
        params.not_before = date_time_ymd(2000, 1, 1);
        adjust(&mut params);
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        let file = |kind: &str| self.folder().join(format!("{}.{kind}", name.replace('/', "_")));
        let files = Files {
            certificate: file("pem"),
            key: file("key"),
            authorities: self.folder().join("ca.pem"),
        };
        std::fs::write(&files.certificate, pem).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    /// Where its files lie.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}
