//! The crate `kvrail`; its README follows, then the map of the source.
//!
#![doc = include_str!("../README.md")]
//!
//! # Where to look in the source
//!
//! The data path, in the order a transfer walks it: `engine` (the handle), `request` (what is
//! asked), `prepared` (checked and cut), `plan` (slices, pure), `post` (parts to shards), `path`
//! (copies; the same host's lanes; TCP streams; RDMA as machines, and on NICs; one shard's actors),
//! `flight` (the life of a batch, pure), `receipt` (whose memory is quiet behind it), `transfer`
//! (the future and its outcome), `counter` and `notification` (what arrives behind the data).
//! Beside it: `memory` (regions, leases, pools, what fits), `route` (which shard, pure), `links`
//! (ways to peers), `exposed` (what peers reach), `explain` (which path, and why), `runtime`
//! (shards and actors), `control` (daemon, descriptors, metadata), `topology` and `doctor` (the
//! machine), and `limits`, where every bound has its name and reason.
#![forbid(unsafe_code)]
// What only RDMA uses is dead without it. The build with it, which CI lints too, has nothing dead.
#![cfg_attr(not(feature = "rdma"), allow(dead_code, unused_imports))]

mod arrivals;
mod auth;
mod canary;
mod config;
mod control;
mod counter;
pub mod doctor;
mod engine;
mod error;
mod explain;
mod exposed;
mod flight;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod guests;
#[cfg(any(test, feature = "sim"))]
#[doc(hidden)]
pub mod hot;
pub mod limits;
mod links;
mod memory;
pub mod metrics;
mod notification;
mod path;
mod peer;
mod plan;
mod post;
mod prepared;
#[cfg(feature = "prometheus")]
pub mod prometheus;
mod receipt;
mod request;
mod route;
pub mod runtime;
#[cfg(any(test, feature = "sim"))]
#[doc(hidden)]
pub mod sim;
pub mod topology;
mod transfer;
mod window;

pub use auth::{Authentication, PeerNames, Peers, Policy, Rule, TlsFiles};
#[cfg(feature = "config-file")]
pub use config::file::{Config, Devices, IdlePolicy};
pub use config::{EngineBuilder, Protocol};
pub use control::{MetadataKind as Metadata, RedisServer, metadata};
pub use counter::Counter;
pub use engine::{Drained, Engine};
pub use error::{Error, ErrorKind, Landed, PathKind, Result};
pub use explain::{Candidate, Explanation, Means, Verdict};
pub use kvrail_reactors::cuda::Event as CudaEvent;
pub use kvrail_reactors::numa::NumaPolicy;
pub use kvrail_reactors::region::{Eternal, Foreign, ForeignVram};
pub use memory::{
    Access, Block, BlockPool, ExclusiveLease, Grant, GrantOptions, Lease, Location, Misfit,
    REFERENCE_BYTES, Reference, Region, SharedLease, UndefinedLease,
};
pub use notification::Notification;
pub use peer::{Peer, RemoteBuffer};
pub use prepared::Prepared;
pub use receipt::{Fenced, Proof, Receipt};
pub use request::{Batch, Pages, Strided};
pub use transfer::{Failed, Outcome, Transfer};
