//! etcd: both documents in one transaction that compares the name's first, and held by a lease.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, Error as EtcdError, PutOptions, Txn, TxnOp,
};

use tokio::time::{Instant, sleep};

use super::kind::MetadataKind;
use super::store::{Document, Entry, Put, in_time};
use crate::control::ControlLimits;
use crate::error::{Error, ErrorKind, Result};

/// Codes of a gRPC status (grpc.io/docs/guides/status-codes): what is asked is wrong and stays so,
/// whichever member is asked.
const INVALID_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 5;
const PERMISSION_DENIED: i32 = 7;
const FAILED_PRECONDITION: i32 = 9;
const UNIMPLEMENTED: i32 = 12;
const UNAUTHENTICATED: i32 = 16;
/// The database is full, or the document too long for it.
const RESOURCE_EXHAUSTED: i32 = 8;

/// Before members that elect a leader are asked again: an election takes a second or two by etcd's
/// defaults.
const ELECTION_PAUSE: Duration = Duration::from_millis(100);

/// No lease has this number.
const NO_LEASE: i64 = 0;

pub(super) struct EtcdStore {
    url: String,
    members: Vec<Member>,
    /// The member that answered last.
    current: AtomicUsize,
    /// What our documents hang on.
    lease: AtomicI64,
    lease_s: i64,
    limits: Limits,
}

#[derive(Clone, Copy)]
struct Limits {
    connect: Duration,
    request: Duration,
}

impl EtcdStore {
    /// Of the members in `kind`; asks nobody yet.
    pub fn new(kind: &MetadataKind, limits: &ControlLimits) -> Result<Self> {
        let members = kind
            .addresses()?
            .into_iter()
            .map(|address| Member { address: address.to_string(), client: Mutex::new(None) });
        Ok(Self {
            url: kind.url(),
            members: members.collect(),
            current: AtomicUsize::new(0),
            lease: AtomicI64::new(NO_LEASE),
            lease_s: limits.metadata_lease.as_secs_f64().ceil() as i64,
            limits: Limits { connect: limits.metadata_connect, request: limits.metadata_request },
        })
    }

    pub async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let mut found = self.ask(|mut client| async move { client.get(key, None).await }).await?;
        let mut found = found.take_kvs();
        Ok(found.pop().map(|pair| pair.into_key_value().1.into()))
    }

    pub async fn put(&self, entry: &Entry, before: Option<&[u8]>) -> Result<Put> {
        if let Some(put) = self.put_leased(entry, before).await? {
            return Ok(put);
        }
        // The lease ran out, or a service that lost its data knows nothing of it.
        self.lease.store(NO_LEASE, Ordering::Relaxed);
        let put = self.put_leased(entry, before).await?;
        put.ok_or_else(|| Error::lost("etcd ends leases as soon as it grants them"))
            .map_err(|error| error.with_peer(&*self.url))
    }

    pub async fn renew(&self, entry: &Entry) -> Result<bool> {
        let lease = self.lease.load(Ordering::Relaxed);
        if lease == NO_LEASE {
            return Ok(false);
        }
        if !self.ask(|client| keep_alive(client, lease)).await? {
            self.lease.store(NO_LEASE, Ordering::Relaxed);
            return Ok(false);
        }
        let held =
            |document: &Document| Compare::lease(document.key.as_str(), CompareOp::Equal, lease);
        let ours = Compare::value(&*entry.rpc.key, CompareOp::Equal, &*entry.rpc.text);
        let txn = Txn::new().when([held(&entry.rpc), held(&entry.ram), ours]);
        Ok(self.ask(|client| attempt(client, txn.clone())).await? == Some(Put::Stored))
    }

    /// What hangs on our lease is ours, and goes with it.
    pub async fn delete(&self, _entry: &Entry) -> Result<()> {
        let lease = self.lease.swap(NO_LEASE, Ordering::Relaxed);
        if lease == NO_LEASE {
            return Ok(());
        }
        self.ask(|client| revoke(client, lease)).await
    }

    /// None: there is no such lease any more.
    async fn put_leased(&self, entry: &Entry, before: Option<&[u8]>) -> Result<Option<Put>> {
        let lease = self.lease().await?;
        let put = |Document { key, text }: &Document| {
            let options = PutOptions::new().with_lease(lease);
            TxnOp::put(key.as_str(), text.as_slice(), Some(options))
        };
        let key = entry.rpc.key.as_str();
        let is_as_before = match before {
            None => Compare::create_revision(key, CompareOp::Equal, 0),
            Some(text) => Compare::value(key, CompareOp::Equal, text),
        };
        let txn = Txn::new().when([is_as_before]).and_then([put(&entry.rpc), put(&entry.ram)]);
        self.ask(|client| attempt(client, txn.clone())).await
    }

    /// Ours, granted now if there is none.
    async fn lease(&self) -> Result<i64> {
        let lease = self.lease.load(Ordering::Relaxed);
        if lease != NO_LEASE {
            return Ok(lease);
        }
        let lease_s = self.lease_s;
        let grant = |mut client: Client| async move { client.lease_grant(lease_s, None).await };
        let lease = self.ask(grant).await?.id();
        self.lease.store(lease, Ordering::Relaxed);
        Ok(lease)
    }

    /// Asks the member that answered last, and the others when it doesn't; all of them again where
    /// they are about to elect a leader. What is asked twice for want of an answer compares first,
    /// so it is done once.
    async fn ask<T, F>(&self, question: impl Fn(Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, EtcdError>>,
    {
        let answer = outlast_election(self.limits.request, || self.ask_each(&question)).await;
        answer.map_err(|error| error.with_peer(&*self.url))
    }

    async fn ask_each<T, F>(&self, question: &impl Fn(Client) -> F) -> Result<T, Missed>
    where
        F: Future<Output = Result<T, EtcdError>>,
    {
        let first = self.current.load(Ordering::Relaxed);
        let mut missed = Missed { error: None, has_no_leader: false };
        for step in 0..self.members.len() {
            let index = (first + step) % self.members.len();
            match self.members[index].ask(question, self.limits).await {
                Err(error) if error.kind() != ErrorKind::Refused => missed.add(error),
                answered => {
                    self.current.store(index, Ordering::Relaxed);
                    return answered.map_err(Missed::for_good);
                }
            }
        }
        Err(missed)
    }
}

/// Why no member answered what was asked.
struct Missed {
    /// The last one's.
    error: Option<Error>,
    /// One of them waits for a leader.
    has_no_leader: bool,
}

impl Missed {
    fn for_good(error: Error) -> Self {
        Self { error: Some(error), has_no_leader: false }
    }

    fn add(&mut self, error: Error) {
        let source = std::error::Error::source(&error);
        let status = source.and_then(|source| source.downcast_ref::<EtcdError>());
        self.has_no_leader |= matches!(
            status, Some(EtcdError::GRpcStatus(status)) if is_without_leader(status.message())
        );
        self.error = Some(error);
    }
}

/// Whether a member that lives says so since its cluster has no leader, or had none a moment ago:
/// `etcdserver: leader changed`, `no leader`, `request timed out, possibly due to previous leader
/// failure` and the like, all of them of code Unavailable (etcd's api/v3rpc/rpctypes).
fn is_without_leader(message: &str) -> bool {
    message.starts_with("etcdserver: ")
        && ["leader", "timed out"].iter().any(|word| message.contains(word))
}

/// Tries again for as long as members elect a leader, for `patience` at most.
async fn outlast_election<T, F>(patience: Duration, mut attempt: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, Missed>>,
{
    let start = Instant::now();
    loop {
        match attempt().await {
            Ok(answer) => return Ok(answer),
            Err(Missed { has_no_leader: true, .. }) if start.elapsed() < patience => {
                sleep(ELECTION_PAUSE).await;
            }
            Err(missed) => {
                return Err(missed.error.unwrap_or_else(|| Error::refused("etcd has no members")));
            }
        }
    }
}

/// One server of the cluster, and our connection to it.
struct Member {
    address: String,
    client: Mutex<Option<Client>>,
}

impl Member {
    async fn ask<T, F>(&self, question: &impl Fn(Client) -> F, limits: Limits) -> Result<T>
    where
        F: Future<Output = Result<T, EtcdError>>,
    {
        let answer = in_time(limits.request, async {
            let client = self.client(limits).await.map_err(translated)?;
            question(client).await.map_err(translated)
        })
        .await;
        if answer.as_ref().is_err_and(|error| error.kind() != ErrorKind::Refused) {
            // A connection that says nothing may be one that nobody hears.
            self.slot(|client| *client = None);
        }
        answer
    }

    async fn client(&self, limits: Limits) -> Result<Client, EtcdError> {
        if let Some(client) = self.slot(|client| client.clone()) {
            return Ok(client);
        }
        let options = ConnectOptions::new().with_connect_timeout(limits.connect);
        let client = Client::connect([&self.address], Some(options)).await?;
        self.slot(|slot| *slot = Some(client.clone()));
        Ok(client)
    }

    fn slot<T>(&self, with: impl FnOnce(&mut Option<Client>) -> T) -> T {
        with(&mut self.client.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// None: a lease in it is no more.
async fn attempt(mut client: Client, txn: Txn) -> Result<Option<Put>, EtcdError> {
    match client.txn(txn).await {
        Ok(answer) if answer.succeeded() => Ok(Some(Put::Stored)),
        Ok(_) => Ok(Some(Put::Taken)),
        Err(error) if code(&error) == Some(NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

/// False: the lease is no more.
async fn keep_alive(mut client: Client, lease: i64) -> Result<bool, EtcdError> {
    match client.lease_keep_alive(lease).await {
        Ok(_) => Ok(true),
        // What etcd-client makes of an answer that the lease is over.
        Err(EtcdError::LeaseKeepAliveError(_)) => Ok(false),
        Err(error) if code(&error) == Some(NOT_FOUND) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn revoke(mut client: Client, lease: i64) -> Result<(), EtcdError> {
    match client.lease_revoke(lease).await {
        Err(error) if code(&error) != Some(NOT_FOUND) => Err(error),
        _ => Ok(()),
    }
}

fn code(error: &EtcdError) -> Option<i32> {
    match error {
        EtcdError::GRpcStatus(status) => Some(status.code().into()),
        _ => None,
    }
}

fn translated(error: EtcdError) -> Error {
    match code(&error) {
        Some(UNAUTHENTICATED | PERMISSION_DENIED) => {
            Error::refused("etcd asks who we are: it must let clients in without a name")
        }
        Some(INVALID_ARGUMENT | NOT_FOUND | FAILED_PRECONDITION | UNIMPLEMENTED) => {
            Error::refused("etcd refuses what it was asked")
        }
        Some(RESOURCE_EXHAUSTED) => {
            Error::busy("etcd has no room: compact it, or raise its limits")
        }
        _ => Error::lost("etcd cannot be reached: is it running?"),
    }
    .with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_members_that_live_are_without_a_leader() {
        for message in [
            "etcdserver: leader changed",
            "etcdserver: no leader",
            "etcdserver: request timed out",
            "etcdserver: request timed out, possibly due to previous leader failure",
        ] {
            assert!(is_without_leader(message), "{message}");
        }
        for message in ["tcp connect error", "etcdserver: mvcc: database space exceeded", ""] {
            assert!(!is_without_leader(message), "{message}");
        }
    }

    #[tokio::test]
    async fn an_election_is_outlasted_and_nothing_else_is_waited_for() {
        let lost = || Some(Error::lost("nobody"));
        let mut asked = 0;
        let answer = outlast_election(Duration::from_secs(30), || {
            asked += 1;
            let missed = Missed { error: lost(), has_no_leader: true };
            let answer = if asked < 3 { Err(missed) } else { Ok(asked) };
            async { answer }
        });
        assert_eq!(answer.await.unwrap(), 3);
        let mut asked = 0;
        let gone = outlast_election::<(), _>(Duration::from_secs(30), || {
            asked += 1;
            async { Err(Missed { error: lost(), has_no_leader: false }) }
        });
        assert_eq!(gone.await.unwrap_err().kind(), ErrorKind::Lost);
        let for_ever = outlast_election::<(), _>(Duration::from_millis(150), || async {
            Err(Missed { error: lost(), has_no_leader: true })
        });
        assert_eq!((for_ever.await.unwrap_err().kind(), asked), (ErrorKind::Lost, 1));
    }
}
