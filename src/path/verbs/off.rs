//! What stands in for RDMA in a build without it: nothing that can exist.

use std::sync::Arc;

use kvrail_reactors::region::Region as Memory;

use crate::auth::PeerId;
use crate::config::RdmaSettings;
use crate::control::{Control, Descriptor, Handshake, Letter, Resolved};
use crate::exposed::Exposure;
use crate::flight::Flight;
use crate::memory::Region;
use crate::prepared::Plan;
use crate::runtime::Runtime;
use crate::{Error, Result};

/// An engine's NICs: none.
#[derive(Debug)]
pub(crate) enum Rdma {}

/// A peer's memory by RDMA: none.
#[derive(Debug)]
pub(crate) enum Reach {}

impl Rdma {
    pub(crate) fn open(_: &RdmaSettings, _: &Exposure) -> Result<Arc<Self>> {
        Err(Error::refused("this build has no RDMA: build kvrail with the feature `rdma`"))
    }

    pub(crate) fn start(self: &Arc<Self>, _: &Runtime, _: &Arc<Control>) -> Result<()> {
        match **self {}
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        match *self {}
    }

    pub(crate) fn gb_per_s(&self) -> f64 {
        match *self {}
    }

    pub(crate) fn register(&self, _: &Region) -> Result<()> {
        match *self {}
    }

    pub(crate) fn has(&self, _: &Memory) -> bool {
        match *self {}
    }

    pub(crate) fn leaves_to_tcp(&self, _: &Error) {
        match *self {}
    }

    pub(crate) async fn deregister(&self, _: &Region) {
        match *self {}
    }

    pub(crate) fn describe(&self, _: Descriptor, _: &[Region]) -> Descriptor {
        match *self {}
    }

    pub(crate) fn letter(&self, _: &PeerId, _: Letter) {
        match *self {}
    }

    pub(crate) fn handshake(&self, _: Handshake) -> flume::Receiver<Handshake> {
        match *self {}
    }

    pub(crate) fn meet(&self, _: &str, _: &Resolved) -> Result<Arc<Reach>> {
        match *self {}
    }

    pub(crate) fn forget(&self, _: u64) {
        match *self {}
    }

    pub(crate) async fn leave(&self) {
        match *self {}
    }
}

impl Reach {
    pub(crate) fn counts(&self, _: u64) {
        match *self {}
    }
}

impl crate::engine::Inner {
    pub(crate) fn post_rdma(
        self: &Arc<Self>,
        _: &Arc<Plan>,
        reach: &Arc<Reach>,
        _: quanta::Instant,
    ) -> Arc<Flight> {
        match **reach {}
    }
}
