//! Real metadata services under control: etcd and Redis from Debian's packages and our own HTTP
//! server, each a process of its own on free ports of loopback, its data in a folder that goes
//! with it.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A service starts in a second; a busy machine may need many times that.
const START: Duration = Duration::from_secs(60);

/// Where a service keeps its data. On a busy disk one answers late, and members of etcd lose their
/// leader by themselves: a disk's trouble is no test here.
pub(crate) fn folder() -> TempDir {
    let in_memory = tempfile::tempdir_in("/dev/shm");
    in_memory.or_else(|_| tempfile::tempdir()).expect("a folder")
}

/// A kind of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    #[cfg(feature = "etcd")]
    Etcd,
    #[cfg(feature = "redis")]
    Redis,
    /// By `kvrail metadata-server`.
    Http,
}

/// A running service; ends with this value.
pub struct Service {
    kind: Kind,
    port: u16,
    peer_port: u16,
    folder: TempDir,
    child: Child,
}

impl Service {
    /// Starts an empty one.
    pub fn start(kind: Kind) -> Self {
        let [port, peer_port] = free_ports();
        let folder = folder();
        let child = spawn(kind, port, peer_port, &folder);
        let service = Self { kind, port, peer_port, folder, child };
        service.wait();
        service
    }

    /// Mooncake's connection string.
    pub fn url(&self) -> String {
        match self.kind {
            #[cfg(feature = "etcd")]
            Kind::Etcd => format!("etcd://127.0.0.1:{}", self.port),
            #[cfg(feature = "redis")]
            Kind::Redis => format!("redis://127.0.0.1:{}", self.port),
            Kind::Http => format!("http://127.0.0.1:{}/metadata", self.port),
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it lives");
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        // It may have been killed before.
        let _ = self.child.kill();
        self.child.wait().expect("our child");
    }

    /// Starts it again where it was, with its data.
    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.kind, self.port, self.peer_port, &self.folder);
        self.wait();
    }

    /// Starts it again where it was, with nothing.
    pub fn restart_empty(&mut self) {
        self.kill();
        self.folder = folder();
        self.restart();
    }

    /// Until it answers, not only listens.
    fn wait(&self) {
        let end = Instant::now() + START;
        while !self.answers() {
            assert!(Instant::now() < end, "{:?} does not answer", self.kind);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn answers(&self) -> bool {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            return false;
        }
        self.try_get("no such key").is_ok()
    }

    /// The text under a key, as the service's own client finds it.
    pub fn get(&self, key: &str) -> Option<String> {
        self.try_get(key).expect("the service answers")
    }

    fn try_get(&self, key: &str) -> Result<Option<String>, String> {
        match self.kind {
            #[cfg(feature = "etcd")]
            Kind::Etcd => self.etcd(async |mut client| {
                let mut found = client.get(key, None).await?.take_kvs();
                Ok(found.pop().map(|pair| pair.value_str().unwrap().to_owned()))
            }),
            #[cfg(feature = "redis")]
            Kind::Redis => self.redis(redis::cmd("GET").arg(key)),
            Kind::Http => {
                let (status, body) = http(self.port, "GET", key, "").map_err(|e| e.to_string())?;
                Ok((status == 200).then_some(body))
            }
        }
    }

    /// How long the service keeps a text from now on, unless somebody renews it; `None` where
    /// it keeps it for ever, or there is none.
    pub fn left(&self, key: &str) -> Option<Duration> {
        match self.kind {
            #[cfg(feature = "etcd")]
            Kind::Etcd => self.etcd(async |mut client| {
                let found = client.get(key, None).await?.take_kvs().pop();
                let Some(lease) = found.map(|pair| pair.lease()).filter(|lease| *lease != 0) else {
                    return Ok(None);
                };
                let seconds = client.lease_time_to_live(lease, None).await?.ttl();
                Ok(u64::try_from(seconds).ok().map(Duration::from_secs))
            }),
            #[cfg(feature = "redis")]
            Kind::Redis => {
                let left_ms: Result<i64, String> = self.redis(redis::cmd("PTTL").arg(key));
                left_ms.map(|left_ms| u64::try_from(left_ms).ok().map(Duration::from_millis))
            }
            Kind::Http => Ok(None),
        }
        .expect("the service answers")
    }

    /// Puts a text there, as another program would: without a lease, whatever is there.
    pub fn put(&self, key: &str, text: &str) {
        match self.kind {
            #[cfg(feature = "etcd")]
            Kind::Etcd => self
                .etcd(async |mut client| client.put(key, text, None).await.map(drop))
                .expect("the service answers"),
            #[cfg(feature = "redis")]
            Kind::Redis => {
                self.redis(redis::cmd("SET").arg(key).arg(text)).expect("the service answers")
            }
            Kind::Http => {
                // The owner may put its own again in between.
                let put = || http(self.port, "PUT", key, text).expect("an answer").0;
                while put() != 200 {
                    self.delete(key);
                }
            }
        }
    }

    pub fn delete(&self, key: &str) {
        match self.kind {
            #[cfg(feature = "etcd")]
            Kind::Etcd => self
                .etcd(async |mut client| client.delete(key, None).await.map(drop))
                .expect("the service answers"),
            #[cfg(feature = "redis")]
            Kind::Redis => self.redis(redis::cmd("DEL").arg(key)).expect("the service answers"),
            Kind::Http => drop(http(self.port, "DELETE", key, "").expect("an answer")),
        }
    }

    #[cfg(feature = "etcd")]
    fn etcd<T>(
        &self,
        ask: impl AsyncFnOnce(etcd_client::Client) -> Result<T, etcd_client::Error>,
    ) -> Result<T, String> {
        blocking(async {
            let options = etcd_client::ConnectOptions::new().with_timeout(Duration::from_secs(5));
            let address = format!("127.0.0.1:{}", self.port);
            let client = etcd_client::Client::connect([address], Some(options)).await?;
            ask(client).await
        })
        .map_err(|error| error.to_string())
    }

    #[cfg(feature = "redis")]
    fn redis<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> Result<T, String> {
        let client = redis::Client::open(format!("{}/", self.url())).expect("an address");
        let mut connection = client.get_connection().map_err(|error| error.to_string())?;
        command.query(&mut connection).map_err(|error| error.to_string())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(feature = "etcd")]
pub(crate) fn blocking<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

fn spawn(kind: Kind, port: u16, peer_port: u16, folder: &TempDir) -> Child {
    let _ = peer_port;
    let (mut command, package) = match kind {
        #[cfg(feature = "etcd")]
        Kind::Etcd => {
            let alone = format!("one=http://127.0.0.1:{peer_port}");
            (etcd("one", port, peer_port, &alone), "etcd-server")
        }
        #[cfg(feature = "redis")]
        Kind::Redis => (redis_server(port), "redis-server"),
        Kind::Http => (http_server(port), "kvrail"),
    };
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; it comes with Debian's package {package}")
    })
}

/// A member called `name` of a cluster, which lists its members' names with their peer URLs.
#[cfg(feature = "etcd")]
pub(crate) fn etcd(name: &str, port: u16, peer_port: u16, cluster: &str) -> Command {
    let (client, peer) =
        (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let mut command = Command::new("etcd");
    command.args(["--name", name, "--data-dir", &format!("data-{name}")]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", cluster]);
    command
}

/// What it was told is on disk before it answers.
#[cfg(feature = "redis")]
fn redis_server(port: u16) -> Command {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port"]).arg(port.to_string());
    command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
    command
}

fn http_server(port: u16) -> Command {
    let program = env!("CARGO_BIN_EXE_kvrail");
    let mut command = Command::new(program);
    command.args(["metadata-server", "--host", "127.0.0.1", "--port"]).arg(port.to_string());
    command
}

/// One request by hand: status and body.
fn http(port: u16, method: &str, key: &str, body: &str) -> std::io::Result<(u16, String)> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(START))?;
    let (key, length) = (key.replace(' ', "%20"), body.len());
    let head = format!("{method} /metadata?key={key} HTTP/1.1\r\nHost: x\r\n");
    write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status.unwrap_or(0), body.to_owned()))
}

/// Ports that were free a moment ago.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("bound").port())
}
