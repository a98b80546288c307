//! Which of a peer's devices reach a range of its memory.
//!
//! Devices are found by their names. Mooncake's own readers count instead (see `order`), which with
//! a publisher that ordered its devices otherwise is the wrong device, though a consistent one.

use std::borrow::Cow;

use super::matrix::{ANYWHERE, Ranked};
use super::{Buffer, Descriptor, Device};
use crate::error::{Error, Result};
use crate::limits::RDMA_DEVICES_MAX;

/// A device of the peer by which a range of its memory can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The device.
    pub device: &'a Device,
    /// The range's key there.
    pub rkey: u32,
    /// Whether it is near to the range, by what the peer says.
    pub is_preferred: bool,
}

impl Descriptor {
    /// The devices for `len` bytes at `addr`, which lie in one buffer; preferred ones first, and
    /// among these in the peer's order. There is at least one.
    pub fn devices_for(&self, addr: u64, len: u64) -> Result<Vec<Candidate<'_>>> {
        let buffer = self.buffers.iter().find(|buffer| buffer.contains(addr, len));
        let buffer = buffer.ok_or_else(|| {
            Error::refused(format!("no buffer of the peer has all of {len} bytes at {addr:#x}"))
        })?;
        if buffer.rkey.is_empty() {
            return Err(Error::refused(format!(
                "the peer's buffer at {:#x} is not reached over RDMA: it has no keys",
                buffer.addr
            )));
        }
        let near = self.priority_matrix.get(&buffer.location_at(addr));
        let mut candidates = near.map_or_else(Vec::new, |ranked| self.ranked(buffer, ranked));
        if candidates.is_empty() {
            candidates = self.all(buffer);
        }
        if candidates.is_empty() {
            let why = "the peer's priority matrix is unreadable, or names none of its devices";
            return Err(Error::refused(why));
        }
        Ok(candidates)
    }

    /// The key of `buffer` at the device of that name.
    pub fn rkey(&self, buffer: &Buffer, device: &str) -> Option<u32> {
        let at = self.devices.iter().position(|known| known.name == device)?;
        buffer.rkey.get(at).copied()
    }

    fn ranked(&self, buffer: &Buffer, Ranked(preferred, others): &Ranked) -> Vec<Candidate<'_>> {
        let names = preferred.iter().map(|name| (name, true));
        let names = names.chain(others.iter().map(|name| (name, false))).take(RDMA_DEVICES_MAX);
        let mut candidates: Vec<Candidate<'_>> = Vec::new();
        for (name, is_preferred) in names {
            let known = self.devices.iter().find(|device| device.name == *name);
            let is_new = !candidates.iter().any(|known| known.device.name == *name);
            if let (Some(device), Some(rkey), true) = (known, self.rkey(buffer, name), is_new) {
                candidates.push(Candidate { device, rkey, is_preferred });
            }
        }
        candidates
    }

    /// Those that work, for memory that is near to none: a publisher takes a device that has
    /// failed out of the matrix, and leaves it elsewhere.
    fn all(&self, buffer: &Buffer) -> Vec<Candidate<'_>> {
        let named = self.priority_matrix.names();
        let working = self.devices.iter().zip(&buffer.rkey);
        let working = working.filter(|(device, _)| named.contains(device.name.as_str()));
        working.map(|(device, &rkey)| Candidate { device, rkey, is_preferred: true }).collect()
    }
}

impl Buffer {
    fn contains(&self, addr: u64, len: u64) -> bool {
        let offset = addr.checked_sub(self.addr);
        let end = offset.and_then(|offset| offset.checked_add(len));
        end.is_some_and(|end| end <= self.length)
    }

    /// Where the memory at `addr` is: the buffer's name, or one of the nodes of a buffer that lies
    /// on several (`segments:<page>:<node>,<node>…`, equal parts, the last one with the rest).
    fn location_at(&self, addr: u64) -> Cow<'_, str> {
        let Some(segments) = self.name.strip_prefix("segments:") else {
            return Cow::Borrowed(&self.name);
        };
        let nodes = segments.split_once(':').map_or("", |(_, nodes)| nodes);
        let nodes: Vec<&str> = nodes.split(',').filter(|node| !node.is_empty()).collect();
        let part_bytes = self.length.checked_div(nodes.len() as u64).filter(|&bytes| bytes > 0);
        let node = part_bytes.and_then(|bytes| {
            let at = usize::try_from((addr - self.addr) / bytes).unwrap_or(usize::MAX);
            nodes.get(at).or(nodes.last())
        });
        node.map_or(Cow::Borrowed(ANYWHERE), |node| Cow::Owned(format!("cpu:{node}")))
    }
}

#[cfg(test)]
mod tests;
