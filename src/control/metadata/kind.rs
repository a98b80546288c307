//! Which metadata service, as users write it: Mooncake's connection strings, and what its
//! environment variables add for Redis. Pure; nobody is asked here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::http::server_of;
use crate::control::address::Address;
use crate::error::{Error, Result};
use crate::limits::ETCD_MEMBERS_MAX;

/// Ports that are meant where a connection string has none: the services' own.
const ETCD_PORT: u16 = 2379;
const REDIS_PORT: u16 = 6379;

/// How much of a connection string is quoted.
const QUOTED_MAX_CHARS: usize = 100;

/// Where engines find each other.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetadataKind {
    /// No server: a segment's name is `host:port` of the engine itself.
    #[default]
    P2p,
    /// A metadata server of Mooncake's kind, by its whole URL: `http://10.0.0.1:8080/metadata`.
    Http(String),
    /// etcd, by the client addresses of its members, `host:port`. Takes a build with the feature
    /// `etcd`.
    Etcd(Vec<String>),
    /// Redis, or what speaks its protocol. Takes a build with the feature `redis`.
    Redis(RedisServer),
}

/// A Redis server, and whom we are to it.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisServer {
    /// `host:port`.
    pub address: String,
    /// The user of its access lists, if not the default one.
    pub username: Option<String>,
    /// Never shown, logged or serialized.
    #[serde(skip_serializing)]
    pub password: Option<String>,
    /// The number of its database.
    pub database: u8,
}

impl fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, username, password, database } = self;
        f.debug_struct("RedisServer")
            .field("address", address)
            .field("username", username)
            .field("password", &password.as_ref().map(|_| "…"))
            .field("database", database)
            .finish()
    }
}

impl FromStr for MetadataKind {
    type Err = Error;

    /// Reads Mooncake's connection strings: `P2PHANDSHAKE`, `http://host:port/metadata`,
    /// `etcd://host:port;host:port` (the scheme may be left out), `redis://host:port`.
    fn from_str(text: &str) -> Result<Self> {
        match text.split_once("://") {
            None if text == "P2PHANDSHAKE" => Ok(Self::P2p),
            Some(("http" | "https", _)) => server_of(text).map(|_| Self::Http(text.to_owned())),
            Some(("etcd", members)) => etcd(members),
            Some(("redis", server)) => redis(server),
            None if text.contains(':') => etcd(text),
            _ => Err(Error::refused(format!(
                "metadata server {:?} is of no known kind: expected P2PHANDSHAKE, \
                 http://HOST:PORT/metadata, etcd://HOST:PORT;HOST:PORT or redis://HOST:PORT",
                quoted(text)
            ))),
        }
    }
}

fn etcd(text: &str) -> Result<MetadataKind> {
    // etcd's own clients take members as URLs, too, and between commas.
    let bare = |member: &str| member.trim().trim_start_matches("http://").to_owned();
    let members: Vec<_> =
        text.split([';', ',']).map(bare).filter(|member| !member.is_empty()).collect();
    let kind = MetadataKind::Etcd(members);
    kind.addresses().map(|_| kind)
}

fn redis(text: &str) -> Result<MetadataKind> {
    if text.contains('@') {
        // Not quoted: it holds a password.
        return Err(Error::refused(
            "a redis:// address with a user or password: give them as MC_REDIS_USERNAME and \
             MC_REDIS_PASSWORD, or as fields of RedisServer",
        ));
    }
    let (address, database) = text.split_once('/').unwrap_or((text, ""));
    let database = if database.is_empty() { 0 } else { parse_database(database)? };
    let server = RedisServer { address: address.to_owned(), database, ..RedisServer::default() };
    let kind = MetadataKind::Redis(server);
    kind.addresses().map(|_| kind)
}

fn parse_database(text: &str) -> Result<u8> {
    text.parse().map_err(|error| {
        let shown = quoted(text);
        Error::refused(format!("the Redis database {shown:?} is no number from 0 to 255"))
            .with_source(error)
    })
}

fn quoted(text: &str) -> String {
    text.chars().take(QUOTED_MAX_CHARS).collect()
}

impl MetadataKind {
    /// Takes what Mooncake reads from its environment: `MC_REDIS_USERNAME`, `MC_REDIS_PASSWORD`
    /// and `MC_REDIS_DB_INDEX`, looked up by `variable`, for what isn't set yet. A library reads
    /// no environment unasked; `|name| std::env::var(name).ok()` asks.
    ///
    /// # Errors
    /// Refused: the database is no number from 0 to 255.
    pub fn with_variables(mut self, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        if let Self::Redis(server) = &mut self {
            let set = |name| variable(name).filter(|value| !value.is_empty());
            server.username = server.username.take().or_else(|| set("MC_REDIS_USERNAME"));
            server.password = server.password.take().or_else(|| set("MC_REDIS_PASSWORD"));
            if let (0, Some(database)) = (server.database, set("MC_REDIS_DB_INDEX")) {
                server.database = parse_database(&database)?;
            }
        }
        Ok(self)
    }

    /// Where the service listens; nowhere where there is none.
    pub(in crate::control) fn addresses(&self) -> Result<Vec<Address>> {
        match self {
            Self::P2p => Ok(Vec::new()),
            Self::Http(url) => server_of(url).map(|server| vec![server]),
            Self::Redis(server) => {
                Address::parse_or(&server.address, REDIS_PORT).map(|server| vec![server])
            }
            Self::Etcd(members) if (1..=ETCD_MEMBERS_MAX).contains(&members.len()) => {
                members.iter().map(|member| Address::parse_or(member, ETCD_PORT)).collect()
            }
            Self::Etcd(members) => Err(Error::refused(format!(
                "{} members of etcd: name 1 to {ETCD_MEMBERS_MAX}, as in etcd://a:2379;b:2379",
                members.len()
            ))),
        }
    }

    /// As a connection string, without what is secret.
    pub(in crate::control) fn url(&self) -> String {
        match self {
            Self::P2p => "P2PHANDSHAKE".to_owned(),
            Self::Http(url) => url.clone(),
            Self::Etcd(members) => format!("etcd://{}", members.join(";")),
            Self::Redis(server) => format!("redis://{}/{}", server.address, server.database),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> MetadataKind {
        text.parse().unwrap()
    }

    fn redis(text: &str) -> RedisServer {
        match parsed(text) {
            MetadataKind::Redis(server) => server,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn connection_strings_are_mooncakes() {
        let etcd = |members: &[&str]| {
            MetadataKind::Etcd(members.iter().map(|member| (*member).to_owned()).collect())
        };
        assert_eq!(parsed("P2PHANDSHAKE"), MetadataKind::P2p);
        assert_eq!(parsed("http://h:8080/metadata").url(), "http://h:8080/metadata");
        assert_eq!(parsed("etcd://a:1;[::1]:2"), etcd(&["a:1", "[::1]:2"]));
        assert_eq!(parsed("10.0.0.1:2379"), etcd(&["10.0.0.1:2379"]));
        assert_eq!(parsed("etcd://http://a:1;"), etcd(&["a:1"]));
        assert_eq!(parsed("etcd://a:1,b:2, c:3"), etcd(&["a:1", "b:2", "c:3"]));
        assert_eq!(redis("redis://h").address, "h");
        assert_eq!(redis("redis://h:1/7").database, 7);
        for wrong in
            ["", "p2p", "ftp://h", "etcd://", "etcd://a:1;b:x", "redis://", "redis://h/256"]
        {
            wrong.parse::<MetadataKind>().unwrap_err();
        }
    }

    #[test]
    fn ports_default_to_the_services_own() {
        let ports = |text: &str| -> Vec<_> {
            parsed(text).addresses().unwrap().iter().map(|address| address.port).collect()
        };
        assert_eq!(ports("etcd://a;b:1"), [2379, 1]);
        assert_eq!(ports("redis://h"), [6379]);
        assert_eq!(ports("http://h/metadata"), [80]);
        assert!(ports("P2PHANDSHAKE").is_empty());
    }

    #[test]
    fn mooncakes_variables_fill_in_what_is_not_set() {
        let variable = |name: &str| match name {
            "MC_REDIS_USERNAME" => Some("kv".to_owned()),
            "MC_REDIS_PASSWORD" => Some("secret".to_owned()),
            "MC_REDIS_DB_INDEX" => Some("3".to_owned()),
            _ => None,
        };
        let MetadataKind::Redis(server) = parsed("redis://h").with_variables(variable).unwrap()
        else {
            panic!("another kind")
        };
        assert_eq!((server.username.as_deref(), server.database), (Some("kv"), 3));
        assert_eq!(server.password.as_deref(), Some("secret"));
        let bad = |_: &str| Some("256".to_owned());
        assert!(parsed("redis://h").with_variables(bad).unwrap_err().to_string().contains("256"));
        assert_eq!(parsed("etcd://a").with_variables(bad).unwrap(), parsed("etcd://a"));
    }

    #[test]
    fn a_password_is_neither_shown_nor_written() {
        let server = RedisServer { password: Some("secret".to_owned()), ..redis("redis://h") };
        let kind = MetadataKind::Redis(server);
        let json = serde_json::to_string(&kind).unwrap();
        for text in [format!("{kind:?}"), json, kind.url()] {
            assert!(!text.contains("secret"), "{text}");
        }
        let error = "redis://u:secret@h".parse::<MetadataKind>().unwrap_err().to_string();
        assert!(error.contains("MC_REDIS_PASSWORD") && !error.contains("secret"), "{error}");
    }
}
