//! Where an engine's two documents are kept: one contract, whichever service it is.
//!
//! etcd and Redis compare before they write, and hold the documents by a lease, which ends some
//! time after their engine did. HTTP has neither: there it is looked at first, and the descriptor
//! says how old it is. Every question is answered or failed in time.

use std::time::Duration;

use axum::body::Bytes;
use tokio::time::timeout;

#[cfg(feature = "etcd")]
use super::etcd::EtcdStore;
use super::http::HttpStore;
use super::kind::MetadataKind;
#[cfg(feature = "redis")]
use super::redis::RedisStore;
use crate::control::ControlLimits;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{CONTROL_FRAME_MAX_BYTES, METADATA_LEASE_MAX_MS, METADATA_LEASE_MIN_MS};

/// A text under its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Document {
    pub key: String,
    pub text: Vec<u8>,
}

/// What an engine publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where its daemon listens. Whose it is has the name, and both documents.
    pub rpc: Document,
    /// Its descriptor.
    pub ram: Document,
}

/// How putting an entry went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    Stored,
    /// Somebody was faster: the name's document isn't any more what it was.
    Taken,
}

/// A service that keeps documents.
pub(super) enum Store {
    Http(Box<HttpStore>),
    #[cfg(feature = "etcd")]
    Etcd(EtcdStore),
    #[cfg(feature = "redis")]
    Redis(Box<RedisStore>),
}

/// The same question to whichever service it is.
macro_rules! ask {
    ($store:expr, $service:ident => $answer:expr) => {
        match $store {
            Store::Http($service) => $answer,
            #[cfg(feature = "etcd")]
            Store::Etcd($service) => $answer,
            #[cfg(feature = "redis")]
            Store::Redis($service) => $answer,
        }
    };
}

impl Store {
    /// Of the kind, unless it has none; asks nobody yet.
    ///
    /// # Errors
    /// Refused: a malformed address, or a service that this build lacks.
    pub fn new(kind: &MetadataKind, limits: &ControlLimits) -> Result<Option<Self>> {
        // What is wrong with a setting is said before what is wrong with the build.
        kind.addresses()?;
        check_lease(limits.metadata_lease)?;
        match kind {
            MetadataKind::P2p => Ok(None),
            MetadataKind::Http(url) => Ok(Some(Self::Http(HttpStore::new(url, limits)?.into()))),
            #[cfg(feature = "etcd")]
            MetadataKind::Etcd(_) => Ok(Some(Self::Etcd(EtcdStore::new(kind, limits)?))),
            #[cfg(not(feature = "etcd"))]
            MetadataKind::Etcd(_) => Err(lacking("etcd", "building it takes protoc")),
            #[cfg(feature = "redis")]
            MetadataKind::Redis(server) => {
                Ok(Some(Self::Redis(RedisStore::new(kind, server, limits)?.into())))
            }
            #[cfg(not(feature = "redis"))]
            MetadataKind::Redis(_) => Err(lacking("redis", "one of the default features")),
        }
    }

    /// Whether documents end with their engine. Elsewhere they tell their age.
    pub fn has_leases(&self) -> bool {
        !matches!(self, Self::Http(_))
    }

    /// What a document's text ends with; Mooncake's writers differ between services.
    pub fn line_end(&self) -> &'static [u8] {
        if self.has_leases() { b"\n" } else { b"" }
    }

    /// The document, if there is one.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let document = ask!(self, service => service.get(key).await)?;
        match document {
            Some(text) if text.len() > CONTROL_FRAME_MAX_BYTES => Err(Error::refused(format!(
                "the document {key:?} is longer than 1 MiB, which no engine writes: delete it"
            ))),
            document => Ok(document),
        }
    }

    /// Stores both documents, if the name's is still `before`; may replace what is the same.
    pub async fn put(&self, entry: &Entry, before: Option<&[u8]>) -> Result<Put> {
        ask!(self, service => service.put(entry, before).await)
    }

    /// Keeps the entry for another lease. False if it isn't there as it was put: then it is to be
    /// put again.
    pub async fn renew(&self, entry: &Entry) -> Result<bool> {
        ask!(self, service => service.renew(entry).await)
    }

    /// Deletes the entry, unless it has become another engine's; it is fine if there is none.
    pub async fn delete(&self, entry: &Entry) -> Result<()> {
        ask!(self, service => service.delete(entry).await)
    }
}

fn check_lease(lease: Duration) -> Result<()> {
    let [min, max] = [METADATA_LEASE_MIN_MS, METADATA_LEASE_MAX_MS].map(Duration::from_millis);
    match (min..=max).contains(&lease) {
        true => Ok(()),
        false => Err(Error::refused(format!(
            "a metadata lease of {lease:?}: choose one from {min:?} to {max:?}"
        ))),
    }
}

#[cfg(not(all(feature = "etcd", feature = "redis")))]
fn lacking(feature: &str, hint: &str) -> Error {
    Error::refused(format!(
        "this build has no metadata service {feature}: build kvrail with the feature `{feature}` \
         ({hint}), or use P2PHANDSHAKE or http"
    ))
}

/// A service's answer, or the word that there was none in time.
pub(super) async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T>>,
) -> Result<T> {
    timeout(limit, answer).await.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::Expired,
            format!("the metadata server did not answer within {limit:?}"),
        ))
    })
}
