//! Every metric in one table: name, labels, unit. Recorded through the `metrics` facade, which
//! costs next to nothing where no recorder is installed.

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

use crate::memory::Operation;
use crate::receipt::{Proof, Receipt};
use crate::{Error, ErrorKind, PathKind};

/// Bytes of our own requests that were carried. Labels: path.
pub const CARRIED_BYTES: &str = "kvrail_carried_bytes_total";
/// Slices of our own requests that ended. Labels: path, outcome (ok or an error's kind).
pub const SLICES: &str = "kvrail_slices_total";
/// Bytes that peers asked us to read or write. Labels: operation.
pub const SERVED_BYTES: &str = "kvrail_served_bytes_total";
/// Peers' requests that we refused. Labels: operation.
pub const SERVED_REFUSED: &str = "kvrail_served_refused_total";
/// From posting a batch to its end. Labels: path.
pub const BATCH_SECONDS: &str = "kvrail_batch_seconds";
/// Ends of batches that failed, were cancelled or passed their deadline. Labels: path, remote
/// (quiet or unproven), fenced (by whose word).
pub const RECEIPTS: &str = "kvrail_receipts_total";
/// From such an end's cause until the memory was quiet. Labels: path.
pub const RECEIPT_SECONDS: &str = "kvrail_receipt_seconds";

/// Renewals of our entry at a metadata service. Labels: outcome (kept, restored, or an error's
/// kind).
pub const METADATA_RENEWALS: &str = "kvrail_metadata_renewals_total";

/// Connections of peers that did not prove who they are, where they have to.
pub const HANDSHAKES_REFUSED: &str = "kvrail_handshakes_refused_total";

/// RDMA work requests that NICs took. Labels: device.
pub const RDMA_WORK_REQUESTS: &str = "kvrail_rdma_work_requests_total";
/// Lists that they were posted in, each of which rings a doorbell once. Labels: device.
pub const RDMA_DOORBELLS: &str = "kvrail_rdma_doorbells_total";
/// Completions of work requests that were polled. Labels: device.
pub const RDMA_COMPLETIONS: &str = "kvrail_rdma_completions_total";

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// Samples, by their size.
    Histogram,
}

/// A row of the [`TABLE`].
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// As it is recorded.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it counts in.
    pub unit: Unit,
    /// What it means.
    pub about: &'static str,
}

/// Every metric.
pub const TABLE: [Metric; 12] = [
    counter_of(CARRIED_BYTES, Unit::Bytes, "payload of own requests that was carried"),
    counter_of(SLICES, Unit::Count, "slices of own requests that ended"),
    counter_of(SERVED_BYTES, Unit::Bytes, "payload of peers' requests"),
    counter_of(SERVED_REFUSED, Unit::Count, "peers' requests that were refused"),
    seconds_of(BATCH_SECONDS, "from posting a batch to its end"),
    counter_of(RECEIPTS, Unit::Count, "ends of batches that did not succeed"),
    seconds_of(RECEIPT_SECONDS, "from such an end's cause to quiet"),
    counter_of(METADATA_RENEWALS, Unit::Count, "renewals of our metadata entry"),
    counter_of(HANDSHAKES_REFUSED, Unit::Count, "peers that did not prove who they are"),
    counter_of(RDMA_WORK_REQUESTS, Unit::Count, "work requests that NICs took"),
    counter_of(RDMA_DOORBELLS, Unit::Count, "lists that they were posted in"),
    counter_of(RDMA_COMPLETIONS, Unit::Count, "completions that were polled"),
];

const fn counter_of(name: &'static str, unit: Unit, about: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, unit, about }
}

const fn seconds_of(name: &'static str, about: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, unit: Unit::Seconds, about }
}

/// Tells the installed recorder each metric's unit and meaning.
pub fn describe() {
    for Metric { name, kind, unit, about } in TABLE {
        match kind {
            Kind::Counter => describe_counter!(name, unit, about),
            Kind::Histogram => describe_histogram!(name, unit, about),
        }
    }
}

/// Counts a renewal at a metadata service.
pub(crate) fn renewed(renewal: &crate::Result<bool>) {
    let outcome = match renewal {
        Ok(true) => "kept",
        Ok(false) => "restored",
        Err(error) => error.kind().label(),
    };
    counter!(METADATA_RENEWALS, "outcome" => outcome).increment(1);
}

/// Counts a handshake that failed for want of a proof; one that broke off proves nothing.
pub(crate) fn handshake_failed(error: &Error) {
    if error.kind() == ErrorKind::Refused {
        counter!(HANDSHAKES_REFUSED).increment(1);
    }
}

/// What a part of a transfer carried; recorded once, when the part is back.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    slices: u64,
    bytes: u64,
}

impl Carried {
    pub(crate) fn add(&mut self, bytes: usize) {
        self.slices += 1;
        self.bytes += bytes as u64;
    }

    pub(crate) fn add_all(&mut self, slices: usize, bytes: usize) {
        self.slices += slices as u64;
        self.bytes += bytes as u64;
    }

    pub(crate) fn record(self, path: PathKind, failures: &[(usize, Error)]) {
        let path = path.label();
        counter!(SLICES, "path" => path, "outcome" => "ok").increment(self.slices);
        counter!(CARRIED_BYTES, "path" => path).increment(self.bytes);
        for (_, error) in failures {
            let outcome = error.kind().label();
            counter!(SLICES, "path" => path, "outcome" => outcome).increment(1);
        }
    }
}

/// What peers asked of one shard; recorded when the shard comes to rest and at every tick.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    read: Asked,
    written: Asked,
}

#[derive(Debug, Default)]
struct Asked {
    bytes: u64,
    refused: u64,
}

impl Serving {
    pub(crate) fn add(&mut self, operation: Operation, bytes: u64, is_permitted: bool) {
        let asked = match operation {
            Operation::Read => &mut self.read,
            Operation::Write => &mut self.written,
        };
        asked.bytes += if is_permitted { bytes } else { 0 };
        asked.refused += u64::from(!is_permitted);
    }

    pub(crate) fn record(&mut self) {
        for (operation, asked) in
            [(Operation::Read, &mut self.read), (Operation::Write, &mut self.written)]
        {
            let Asked { bytes, refused } = std::mem::take(asked);
            if bytes > 0 {
                counter!(SERVED_BYTES, "operation" => operation.label()).increment(bytes);
            }
            if refused > 0 {
                counter!(SERVED_REFUSED, "operation" => operation.label()).increment(refused);
            }
        }
    }
}

/// What a NIC did for a shard since the last time.
#[cfg(feature = "rdma")]
pub(crate) fn nic(device: &str, work_requests: u64, doorbells: u64, completions: u64) {
    let counts = [
        (RDMA_WORK_REQUESTS, work_requests),
        (RDMA_DOORBELLS, doorbells),
        (RDMA_COMPLETIONS, completions),
    ];
    for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        counter!(name, "device" => device.to_owned()).increment(count);
    }
}

pub(crate) fn batch_ended(path: PathKind, elapsed: std::time::Duration) {
    histogram!(BATCH_SECONDS, "path" => path.label()).record(elapsed);
}

pub(crate) fn receipt(path: PathKind, receipt: &Receipt) {
    let remote = match receipt.remote() {
        Proof::Quiet => "quiet",
        Proof::Unproven => "unproven",
    };
    let (path, fenced) = (path.label(), receipt.fenced().label());
    counter!(RECEIPTS, "path" => path, "remote" => remote, "fenced" => fenced).increment(1);
    histogram!(RECEIPT_SECONDS, "path" => path).record(receipt.took());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_metric_that_has_a_name() {
        let named = include_str!("metrics.rs").lines().filter_map(|line| {
            line.strip_prefix("pub const ")?.split_once(": &str = \"")?.1.strip_suffix("\";")
        });
        let mut named: Vec<_> = named.collect();
        let mut listed: Vec<_> = TABLE.iter().map(|metric| metric.name).collect();
        named.sort_unstable();
        listed.sort_unstable();
        assert_eq!(named, listed);
    }
}
