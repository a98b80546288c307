//! What an engine publishes of its RDMA devices, in the order that its readers need.

use super::{Descriptor, Device, PROTOCOL_RDMA, PriorityMatrix};

/// An RDMA device of this engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnDevice {
    /// As peers are to know it.
    pub device: Device,
    /// The NUMA node it hangs on, if one is known.
    pub node: Option<u32>,
}

/// Devices that work, and the memory they are near to. One that has failed is left out: readers
/// number the devices that the matrix names, so gaps would shift the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    devices: Vec<Device>,
    priority_matrix: PriorityMatrix,
    /// Which of the engine's own devices stands at each place.
    order: Vec<usize>,
}

impl Offer {
    /// An offer of these devices for memory at these locations (`cpu:0`, `*`).
    pub fn new<'a>(own: &[OwnDevice], locations: impl IntoIterator<Item = &'a str>) -> Self {
        let priority_matrix = PriorityMatrix::new(own, locations);
        let at = |name: &str| own.iter().position(|own| own.device.name == name);
        let order: Vec<_> = priority_matrix.device_order().into_iter().filter_map(at).collect();
        let devices = order.iter().map(|&at| own[at].device.clone()).collect();
        Self { devices, priority_matrix, order }
    }

    /// What the engine has one a device (a region's keys), in the order in which it is published;
    /// `of_own` is in the order of the devices of [`Offer::new`].
    pub fn in_order<T: Clone>(&self, of_own: &[T]) -> Vec<T> {
        self.order.iter().filter_map(|&at| of_own.get(at)).cloned().collect()
    }
}

impl Descriptor {
    /// The same engine, its memory served over RDMA by what is offered. Its buffers have their keys
    /// in the offer's order. It keeps its TCP listener, by which kvrail peers without RDMA come.
    pub fn offering(self, offer: Offer) -> Self {
        let Offer { devices, priority_matrix, .. } = offer;
        Self { devices, priority_matrix, protocol: PROTOCOL_RDMA.to_owned(), ..self }
    }
}
