//! Engines that have peers prove who they are, through the public API alone: who has the key or
//! the certificate goes on as without, nobody else gets anything, and a policy refuses the region
//! that it should. Handshakes and passes one by one are tested where they are made
//! (src/control/tests/authentication, src/engine/tests.rs).

#[cfg(feature = "tls")]
mod authority;
mod drain;
mod encrypted;
mod keys;
mod mooncake;
mod policy;
mod stored;
#[cfg(feature = "tls")]
mod tls;

use std::path::PathBuf;
use std::time::Duration;

use kvrail::{
    Access, Authentication, Batch, Engine, EngineBuilder, Error, Failed, Location, Outcome,
    PathKind, Peer, Protocol, Region,
};
use tempfile::TempDir;

/// A folder of files with keys.
pub(crate) struct Keys(TempDir);

impl Keys {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// What the holder of the first of these keys, who knows the others, is started with. A key is
    /// a name and the byte that it is made of.
    pub(crate) fn of(&self, keys: &[(&str, u8)]) -> Authentication {
        let line = |(name, byte): &(&str, u8)| format!("{name} = {}\n", hex(*byte));
        let text: String = keys.iter().map(line).collect();
        let path: PathBuf = self.0.path().join(keys[0].0);
        std::fs::write(&path, text).expect("a file");
        Authentication::Keys(path)
    }
}

fn hex(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}

/// How engines reach each other here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Host,
    Tcp,
}

impl Way {
    pub(crate) fn builder(self) -> EngineBuilder {
        Engine::builder().same_host(self == Self::Host).protocol(Protocol::Tcp)
    }

    pub(crate) fn path(self) -> PathKind {
        match self {
            Self::Host => PathKind::Host,
            Self::Tcp => PathKind::Tcp,
        }
    }
}

pub(crate) const LEN: usize = 64 << 10;

pub(crate) fn region(engine: &Engine, access: Access, byte: u8) -> Region {
    let region = engine.allocate(LEN, Location::Cpu(None), access).expect("a region");
    region.lease(0..LEN).expect("a lease").copy_in(0, &[byte; LEN]).expect("room");
    region
}

/// The byte that a region is full of.
pub(crate) fn content(region: &Region) -> u8 {
    let mut bytes = vec![0; LEN];
    region.share(0..LEN).expect("a lease").copy_out(0, &mut bytes).expect("room");
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

/// Writes a region full of this byte; what became of it.
pub(crate) async fn write(from: &Engine, to: &Peer, addr: u64, byte: u8) -> Result<(), Error> {
    let source = region(from, Access::LOCAL, byte);
    let mut batch = Batch::new(to);
    batch.write(&source.share(0..LEN)?, addr);
    status(from.transfer(batch).await)
}

/// Reads a region; the byte that it is full of.
pub(crate) async fn read(into: &Engine, from: &Peer, addr: u64) -> Result<u8, Error> {
    let target = region(into, Access::LOCAL, 0);
    let mut batch = Batch::new(from);
    batch.read(target.lease(0..LEN)?, addr);
    status(into.transfer(batch).await)?;
    Ok(content(&target))
}

/// How the only request ended.
pub(crate) fn status(result: Result<Outcome, Failed>) -> Result<(), Error> {
    let outcome = result.unwrap_or_else(Failed::into_outcome);
    outcome.statuses()[0].clone()
}

/// Runs a test to its end, and fails it rather than hang.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let test = async { tokio::time::timeout(Duration::from_secs(120), test).await };
    runtime.expect("tokio").block_on(test).expect("it hangs");
}
