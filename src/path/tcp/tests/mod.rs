//! The streams and lanes without a kernel.

mod duet;
mod granted;
mod landing;
mod lanes;
mod sealed;
mod server;
mod shard;
mod visitors;

use std::sync::Arc;

use kvrail_reactors::region::{Region, Slice};

use super::client::{Action, Request};
use crate::Landed;
use crate::receipt::Fenced;

fn slice(region: &Arc<Region>, offset: usize, len: usize) -> Slice {
    Slice::new(region.clone(), offset, len).unwrap()
}

fn request(index: usize, action: Action, addr: usize) -> Request {
    Request {
        part: 0,
        index,
        action,
        addr: addr as u64,
        key: None,
        attempts: 0,
        landed: Landed::No,
        fenced: Fenced::Unposted,
        name: None,
    }
}
