//! Memory that an engine allocates, is told of, and gives back.

use kvrail_reactors::region;

use super::{Engine, tell};
use crate::control::Host;
use crate::memory::{self, Access, Location, Region};
use crate::path::{self, tcp};
use crate::{Error, Foreign, ForeignVram, NumaPolicy, Result};

impl Engine {
    /// Allocates and registers `len` bytes at `location`: of host memory page-aligned, faulted in,
    /// on huge pages where enough are free; of a GPU's such that peers of this host can map it.
    /// Peers learn of it (with a metadata server, once [`Engine::publish`] has returned).
    ///
    /// # Errors
    /// As [`Engine::allocate_with`]. Refused, too: this process has no such GPU; why.
    pub fn allocate(&self, len: usize, location: Location, access: Access) -> Result<Region> {
        let policy = match location {
            Location::Cpu(None) => NumaPolicy::Any,
            Location::Cpu(Some(node)) => NumaPolicy::Bind(vec![node]),
            Location::Cuda(device) => {
                let memory = memory::allocate_on(&self.inner.gpus, device, len)?;
                return self.insert(Region::new(memory, access, location));
            }
        };
        self.allocate_with(len, &policy, access)
    }

    /// Like [`Engine::allocate`], under a NUMA policy. Peers see the node of a policy that names
    /// one, else none.
    ///
    /// # Errors
    /// Refused: no bytes, a node that has no memory for this process, no room (with the numbers
    /// and the policies that would fit), or no right to set a policy. Busy: too many regions, or
    /// the memory went to another process while it was taken.
    pub fn allocate_with(&self, len: usize, policy: &NumaPolicy, access: Access) -> Result<Region> {
        let memory = memory::allocate(len, policy)?;
        self.insert(Region::new(memory, access, policy.into()))
    }

    /// Registers memory that the caller owns; it must stay until [`Engine::unregister`] returns.
    ///
    /// # Errors
    /// Refused: no bytes, or an overlap with another region, with the numbers. Busy: too many
    /// regions.
    pub fn register(&self, foreign: Foreign, access: Access) -> Result<Region> {
        let memory = region::Region::foreign(foreign);
        if memory.is_empty() {
            return Err(Error::refused("a region of 0 bytes"));
        }
        self.insert(Region::new(memory, access, Location::Cpu(None)))
    }

    /// Registers a GPU's memory that the caller owns, PyTorch's, say; it must stay until
    /// [`Engine::unregister`] returns, which then waits, too, until peers of this host have closed
    /// it: for as long as one that is stopped is. They open it by CUDA's IPC handle, and go by TCP
    /// where it has none (PyTorch's expandable segments, `cudaMallocAsync`), which is logged once.
    /// A handle opens the whole allocation, so peers of this host and user could read what else
    /// lies in it.
    ///
    /// # Errors
    /// Refused: no bytes, no memory of that GPU's, a range that is not of one allocation, an
    /// overlap with another region, or this process has no such GPU. Busy: too many regions. Lost:
    /// the GPU does not answer.
    pub fn register_vram(&self, foreign: ForeignVram, access: Access) -> Result<Region> {
        let memory = memory::foreign_on(&self.inner.gpus, &foreign)?;
        self.insert(Region::new(memory, access, Location::Cuda(foreign.device())))
    }

    pub(crate) fn insert(&self, region: Region) -> Result<Region> {
        self.inner.host.regions.insert(region.clone())?;
        if let Err(error) = self.register_with_nics(&region) {
            self.inner.host.regions.remove(&region);
            return Err(error);
        }
        // A descriptor that default peers can't read would take all other regions down with it.
        if let Err(error) = self.inner.host.descriptor().to_json() {
            self.inner.host.regions.remove(&region);
            return Err(error);
        }
        if let Some(hub) = &self.inner.host.hub {
            hub.added(&region);
        }
        self.publish_soon();
        Ok(region)
    }

    /// Takes a region back. New requests are refused from now on; those that peers have under way
    /// get 100 ms, then their connection is closed. Returns when nothing touches the memory any
    /// more, for which every lease must come back too.
    ///
    /// # Errors
    /// Refused: it isn't registered here.
    pub async fn unregister(&self, region: Region) -> Result<()> {
        if !self.inner.host.regions.remove(&region) {
            return Err(Error::refused("the region is not registered with this engine"));
        }
        region.close();
        let grants = self.inner.host.grants.strike_region(&region);
        let hub = self.inner.host.hub.as_ref();
        if let Some(hub) = hub {
            // What peers of this host are reading is no answer from here on.
            hub.struck(&region);
        }
        self.publish_soon();
        let (guard, quiet) = flume::bounded(0);
        for shard in self.inner.shards() {
            let (region, guard) = (region.memory().clone(), guard.clone());
            tell(shard, tcp::Message::Fence { region, guard }).await;
        }
        for shard in hub.into_iter().flat_map(|hub| hub.shards()) {
            let (region, guard) = (region.memory().clone(), guard.clone());
            tell(shard, path::host::Message::Fence { region, guard }).await;
        }
        drop(guard);
        // Nobody sends: the channel closes when the last shard has let go of its guard.
        let _ = quiet.recv_async().await;
        for quiet in grants {
            quiet.wait().await;
        }
        // Behind the grants: a device does not let go of memory that a window is open to.
        if let Some(rdma) = self.inner.rdma() {
            rdma.deregister(&region).await;
        }
        region.quiet().await;
        region.memory().unpin();
        Ok(())
    }
}
