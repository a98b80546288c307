//! An engine's settings from a file, under names of our own and Mooncake's. What the file leaves
//! out has the builder's default; a name that nobody knows is an error.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{EngineBuilder, Metadata, Protocol};
use crate::auth::{Authentication, PeerNames, Policy, TlsFiles};
use crate::limits::{CONFIG_MAX_BYTES, IDLE_BUDGET};
use crate::runtime::{Driver, Idle, Shards};
use crate::{Engine, Error, Result};

/// Settings of an engine, as a file holds them: TOML or JSON.
///
/// ```
/// # fn main() -> kvrail::Result<()> {
/// let config = kvrail::Config::from_toml(
///     r#"
///     local_hostname = "127.0.0.1"
///     metadata_server = "P2PHANDSHAKE"
///     protocol = "tcp"
///     shards = 1
///     "#,
/// )?;
/// let engine = config.builder()?.start()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Config {
    /// Mooncake's key, [`EngineBuilder::name`]: in P2P mode this host's address, else the segment
    /// name.
    pub local_hostname: Option<String>,
    /// Mooncake's key, [`Metadata`] by its connection string.
    pub metadata_server: Option<String>,
    /// [`EngineBuilder::metadata_lease`], in seconds.
    pub metadata_lease_s: Option<u64>,
    /// Mooncake's key: `tcp`, `rdma` or `auto`.
    pub protocol: Option<Protocol>,
    /// Mooncake's key, [`EngineBuilder::devices`]: names in a list, or joined by commas.
    pub device_name: Option<Devices>,
    /// [`EngineBuilder::gid_index`].
    pub gid_index: Option<u8>,
    /// [`EngineBuilder::cluster`].
    pub cluster: Option<String>,
    /// [`EngineBuilder::advertise`].
    pub advertise: Option<String>,
    /// [`EngineBuilder::bind`].
    pub bind: Option<IpAddr>,
    /// [`Shards::Count`].
    pub shards: Option<usize>,
    /// [`EngineBuilder::idle`].
    pub idle: Option<IdlePolicy>,
    /// [`EngineBuilder::driver`]: `auto`, `uring` or `epoll`.
    pub driver: Option<Driver>,
    /// [`EngineBuilder::same_host`].
    pub same_host: Option<bool>,
    /// [`EngineBuilder::socket_folder`].
    pub socket_folder: Option<PathBuf>,
    /// [`EngineBuilder::peers_may_trace`].
    pub peers_may_trace: Option<bool>,
    /// [`EngineBuilder::tcp_version_1`].
    pub tcp_version_1: Option<bool>,
    /// [`EngineBuilder::progress_deadline`], in seconds.
    pub progress_deadline_s: Option<u64>,
    /// [`EngineBuilder::spin_caller`], in microseconds.
    pub caller_spin_us: Option<u64>,
    /// [`Authentication::Keys`]: the file of keys.
    pub key_file: Option<PathBuf>,
    /// [`Authentication::Tls`]: [`TlsFiles::certificate`]. It takes `tls_key` and `tls_ca`, too.
    pub tls_cert: Option<PathBuf>,
    /// [`TlsFiles::key`].
    pub tls_key: Option<PathBuf>,
    /// [`TlsFiles::authorities`].
    pub tls_ca: Option<PathBuf>,
    /// [`PeerNames::Any`].
    pub tls_any_name: Option<bool>,
    /// [`EngineBuilder::allow_mooncake`].
    pub allow_mooncake: Option<bool>,
    /// [`EngineBuilder::encrypt_tcp`].
    pub encrypt_tcp: Option<bool>,
    /// [`EngineBuilder::policy`]; in TOML a table for each rule:
    ///
    /// ```toml
    /// [[policy.rules]]
    /// peers = { named = "prefill" }   # or "all", or "mooncake"
    /// regions = ["cache"]             # by label; without, all of them
    /// write = true
    /// ```
    pub policy: Option<Policy>,
}

/// What an idle shard does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdlePolicy {
    /// [`Idle::Spin`].
    Spin,
    /// [`Idle::Hybrid`], with the default budget.
    Hybrid,
    /// [`Idle::Event`].
    Event,
}

impl From<IdlePolicy> for Idle {
    fn from(policy: IdlePolicy) -> Self {
        match policy {
            IdlePolicy::Spin => Self::Spin,
            IdlePolicy::Hybrid => Self::Hybrid { budget: IDLE_BUDGET },
            IdlePolicy::Event => Self::Event,
        }
    }
}

impl std::str::FromStr for IdlePolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "spin" => Ok(Self::Spin),
            "hybrid" => Ok(Self::Hybrid),
            "event" => Ok(Self::Event),
            other => Err(Error::refused(format!("{other:?} is not spin, hybrid or event"))),
        }
    }
}

/// Names of NICs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Devices {
    /// `"mlx5_0,mlx5_1"`, as Mooncake has them.
    Joined(String),
    /// `["mlx5_0", "mlx5_1"]`
    List(Vec<String>),
}

impl Devices {
    fn names(&self) -> Vec<String> {
        let (joined, list) = match self {
            Self::Joined(names) => (names.split(',').collect(), &Vec::new()),
            Self::List(names) => (Vec::new(), names),
        };
        let names = joined.into_iter().chain(list.iter().map(String::as_str));
        names.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
    }
}

impl Config {
    /// Reads a file of TOML or JSON, by its extension.
    ///
    /// # Errors
    /// Refused: it can't be read, has another extension, is malformed, or names a setting that
    /// there isn't; with the file's name, and the name that was most likely meant.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let in_file = |error: Error| {
            let what = format!("the configuration file {}", path.display());
            Error::refused(what).with_source(error)
        };
        let text = read(path).map_err(in_file)?;
        let config = match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => Self::from_toml(&text),
            Some("json") => Self::from_json(&text),
            _ => Err(Error::refused("its name must end in .toml or .json, which says how to read")),
        };
        config.map_err(in_file)
    }

    /// Reads TOML.
    ///
    /// # Errors
    /// As [`Config::from_file`].
    pub fn from_toml(text: &str) -> Result<Self> {
        let table: toml::Table = toml::from_str(text).map_err(malformed)?;
        check_names(table.keys())?;
        toml::from_str::<Self>(text).map_err(malformed)?.checked()
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// As [`Config::from_file`].
    pub fn from_json(text: &str) -> Result<Self> {
        let object: serde_json::Map<_, serde_json::Value> =
            serde_json::from_str(text).map_err(malformed)?;
        check_names(object.keys())?;
        serde_json::from_str::<Self>(text).map_err(malformed)?.checked()
    }

    fn checked(self) -> Result<Self> {
        self.builder().map(|_| self)
    }

    /// The settings in a builder, which may change them still.
    ///
    /// # Errors
    /// Refused: the metadata server's connection string is none, or what peers have to prove is
    /// said twice or by halves.
    pub fn builder(&self) -> Result<EngineBuilder> {
        let Self { local_hostname, metadata_server, protocol, device_name, gid_index, .. } = self;
        let metadata = metadata_server.as_deref().map(str::parse::<Metadata>).transpose()?;
        let with = Setting(Engine::builder())
            .set(local_hostname.clone(), EngineBuilder::name)
            .set(metadata, EngineBuilder::metadata)
            .set(self.metadata_lease_s.map(Duration::from_secs), EngineBuilder::metadata_lease)
            .set(*protocol, EngineBuilder::protocol)
            .set(device_name.as_ref().map(Devices::names), EngineBuilder::devices)
            .set(*gid_index, EngineBuilder::gid_index)
            .set(self.cluster.clone(), EngineBuilder::cluster)
            .set(self.advertise.clone(), EngineBuilder::advertise)
            .set(self.bind, EngineBuilder::bind)
            .set(self.shards.map(Shards::Count), EngineBuilder::shards)
            .set(self.idle.map(Idle::from), EngineBuilder::idle)
            .set(self.driver, EngineBuilder::driver)
            .set(self.same_host, EngineBuilder::same_host)
            .set(self.socket_folder.clone(), EngineBuilder::socket_folder)
            .set(self.peers_may_trace, EngineBuilder::peers_may_trace)
            .set(self.tcp_version_1, EngineBuilder::tcp_version_1)
            .set(self.progress_deadline_s.map(Duration::from_secs), |builder, limit| {
                builder.progress_deadline(limit)
            })
            .set(self.caller_spin_us.map(Duration::from_micros), EngineBuilder::spin_caller)
            .set(self.authentication()?, EngineBuilder::authentication)
            .set(self.allow_mooncake, EngineBuilder::allow_mooncake)
            .set(self.encrypt_tcp, EngineBuilder::encrypt_tcp)
            .set(self.policy.clone(), EngineBuilder::policy);
        Ok(with.0)
    }

    fn authentication(&self) -> Result<Option<Authentication>> {
        let Self { key_file, tls_cert, tls_key, tls_ca, tls_any_name, .. } = self;
        let is_any = *tls_any_name == Some(true);
        let is_tls = is_any || [tls_cert, tls_key, tls_ca].iter().any(|file| file.is_some());
        match (key_file, tls_cert, tls_key, tls_ca) {
            (Some(file), ..) if !is_tls => Ok(Some(Authentication::Keys(file.clone()))),
            (Some(_), ..) => Err(Error::refused("key_file and tls_cert: choose one of them")),
            (None, Some(certificate), Some(key), Some(authorities)) => {
                let (certificate, key) = (certificate.clone(), key.clone());
                let names = if is_any { PeerNames::Any } else { PeerNames::Opened };
                let authorities = authorities.clone();
                let files = TlsFiles { certificate, key, authorities, names };
                Ok(Some(Authentication::Tls(files)))
            }
            _ if is_tls => Err(Error::refused("TLS takes tls_cert, tls_key and tls_ca")),
            _ => Ok(None),
        }
    }
}

/// A builder, changed by what is there.
struct Setting(EngineBuilder);

impl Setting {
    fn set<T>(
        self,
        value: Option<T>,
        change: impl FnOnce(EngineBuilder, T) -> EngineBuilder,
    ) -> Self {
        match value {
            Some(value) => Self(change(self.0, value)),
            None => self,
        }
    }
}

fn read(path: &Path) -> Result<String> {
    let unread = |error| Error::refused("it can't be read").with_source(error);
    let file = std::fs::File::open(path).map_err(unread)?;
    let mut text = String::new();
    file.take(CONFIG_MAX_BYTES + 1).read_to_string(&mut text).map_err(unread)?;
    match text.len() as u64 <= CONFIG_MAX_BYTES {
        true => Ok(text),
        false => Err(Error::refused(format!("it has more than {CONFIG_MAX_BYTES} bytes"))),
    }
}

fn malformed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::refused("it is malformed").with_source(error)
}

/// Every name is that of a setting.
fn check_names<'a>(mut names: impl Iterator<Item = &'a String>) -> Result<()> {
    let known = known();
    let Some(name) = names.find(|name| !known.contains(name)) else { return Ok(()) };
    let likeness = |known: &&String| strsim::jaro_winkler(known, name);
    let nearest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let nearest = nearest.map_or("", String::as_str);
    Err(Error::refused(format!("no setting is called {name:?}; did you mean {nearest:?}?")))
}

/// The settings' names, which are the fields'.
fn known() -> Vec<String> {
    match serde_json::to_value(Config::default()) {
        Ok(serde_json::Value::Object(fields)) => fields.into_iter().map(|(name, _)| name).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
