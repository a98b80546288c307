//! Redis: both documents by one script that compares the name's first, and ends them with a time of
//! their own. A script runs alone, so nobody comes between.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind as RedisKind, FromRedisValue,
    IntoConnectionInfo, RedisConnectionInfo, RedisError,
};

use super::kind::{MetadataKind, RedisServer};
use super::store::{Entry, Put, in_time};
use crate::control::ControlLimits;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::CONTROL_FRAME_MAX_BYTES;

/// Stores both documents for a time if the name's is as before; no document is the empty one.
const PUT: &str = "
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[4])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
return 1";

/// Deletes both documents if the name is ours.
const DELETE: &str = "
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1], KEYS[2]) end
return 1";

pub(super) struct RedisStore {
    url: String,
    client: Client,
    /// Kept while it answers.
    connection: Mutex<Option<MultiplexedConnection>>,
    lease: Duration,
    request: Duration,
}

impl RedisStore {
    /// Checks the address; asks nobody yet.
    pub fn new(kind: &MetadataKind, server: &RedisServer, limits: &ControlLimits) -> Result<Self> {
        let refused = |error| Error::refused("the Redis address is malformed").with_source(error);
        let address = kind.addresses()?.pop().ok_or_else(|| Error::refused("no Redis address"))?;
        let mut login = RedisConnectionInfo::default().set_db(server.database.into());
        if let Some(username) = &server.username {
            login = login.set_username(username);
        }
        if let Some(password) = &server.password {
            login = login.set_password(password);
        }
        let info = ConnectionAddr::Tcp(address.host, address.port).into_connection_info();
        let info = info.map_err(refused)?.set_redis_settings(login.set_skip_set_lib_name());
        Ok(Self {
            url: kind.url(),
            client: Client::open(info).map_err(refused)?,
            connection: Mutex::new(None),
            lease: limits.metadata_lease,
            request: limits.metadata_request,
        })
    }

    pub async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        // One byte more than any engine writes tells a longer one; a missing one is empty.
        let mut command = redis::cmd("GETRANGE");
        command.arg(key).arg(0).arg(CONTROL_FRAME_MAX_BYTES);
        let text: Vec<u8> = self.ask(&command).await?;
        Ok((!text.is_empty()).then(|| text.into()))
    }

    pub async fn put(&self, entry: &Entry, before: Option<&[u8]>) -> Result<Put> {
        let mut command = script(PUT, entry);
        command.arg(before.unwrap_or_default()).arg(&*entry.rpc.text).arg(&*entry.ram.text);
        let is_stored: bool = self.ask(command.arg(self.lease_ms())).await?;
        Ok(if is_stored { Put::Stored } else { Put::Taken })
    }

    /// Writes both anew: Redis can't say whether the descriptor is still the one that we put.
    pub async fn renew(&self, entry: &Entry) -> Result<bool> {
        Ok(self.put(entry, Some(&entry.rpc.text)).await? == Put::Stored)
    }

    pub async fn delete(&self, entry: &Entry) -> Result<()> {
        let mut command = script(DELETE, entry);
        self.ask(command.arg(&*entry.rpc.text)).await.map(|_: u64| ())
    }

    fn lease_ms(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }

    /// Asks, and once more if the connection turns out to have broken since it was last used. What
    /// is asked twice compares first, so it is done once.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        let had_connection = self.slot(|connection| connection.is_some());
        let mut answer = self.ask_once(command).await;
        if had_connection && answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Lost) {
            answer = self.ask_once(command).await;
        }
        answer.map_err(|error| error.with_peer(&*self.url))
    }

    async fn ask_once<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        let answer = in_time(self.request, async {
            let mut connection = self.connect().await.map_err(translated)?;
            command.query_async(&mut connection).await.map_err(translated)
        })
        .await;
        if answer.as_ref().is_err_and(|error| error.kind() != ErrorKind::Refused) {
            self.slot(|connection| *connection = None);
        }
        answer
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        if let Some(connection) = self.slot(|connection| connection.clone()) {
            return Ok(connection);
        }
        // The whole question has its time.
        let config = AsyncConnectionConfig::new();
        let config = config.set_connection_timeout(None).set_response_timeout(None);
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        self.slot(|slot| *slot = Some(connection.clone()));
        Ok(connection)
    }

    fn slot<T>(&self, with: impl FnOnce(&mut Option<MultiplexedConnection>) -> T) -> T {
        with(&mut self.connection.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn script(text: &str, entry: &Entry) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(text).arg(2).arg(&entry.rpc.key).arg(&entry.ram.key);
    command
}

fn translated(error: RedisError) -> Error {
    match (error.kind(), error.code()) {
        (RedisKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => {
            Error::refused(
                "Redis does not let us in: give it the user and password that may read and write \
                 these keys and run scripts",
            )
        }
        (_, Some("LOADING" | "BUSY" | "OOM")) => Error::busy("Redis has no room or no time now"),
        (_, Some(_)) => Error::refused("Redis refuses what it was asked"),
        (_, None) => Error::lost("Redis cannot be reached: is it running?"),
    }
    .with_source(error)
}
