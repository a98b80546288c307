//! Every metric in one table: name, unit, labels. Recorded through the `metrics` facade, which
//! costs next to nothing where no recorder is installed.

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

use crate::memory::Operation;
use crate::receipt::{Proof, Receipt};
use crate::{Error, PathKind};

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

/// RDMA work requests that NICs took. Labels: device.
pub const RDMA_WORK_REQUESTS: &str = "kvrail_rdma_work_requests_total";
/// Lists that they were posted in, each of which rings a doorbell once. Labels: device.
pub const RDMA_DOORBELLS: &str = "kvrail_rdma_doorbells_total";
/// Completions of work requests that were polled. Labels: device.
pub const RDMA_COMPLETIONS: &str = "kvrail_rdma_completions_total";

/// Tells the installed recorder each metric's unit and meaning.
pub fn describe() {
    describe_counter!(CARRIED_BYTES, Unit::Bytes, "payload of own requests that was carried");
    describe_counter!(SLICES, Unit::Count, "slices of own requests that ended");
    describe_counter!(SERVED_BYTES, Unit::Bytes, "payload of peers' requests");
    describe_counter!(SERVED_REFUSED, Unit::Count, "peers' requests that were refused");
    describe_histogram!(BATCH_SECONDS, Unit::Seconds, "from posting a batch to its end");
    describe_counter!(RECEIPTS, Unit::Count, "ends of batches that did not succeed");
    describe_counter!(METADATA_RENEWALS, Unit::Count, "renewals of our metadata entry");
    describe_counter!(RDMA_WORK_REQUESTS, Unit::Count, "work requests that NICs took");
    describe_counter!(RDMA_DOORBELLS, Unit::Count, "lists that they were posted in");
    describe_counter!(RDMA_COMPLETIONS, Unit::Count, "completions that were polled");
    describe_histogram!(RECEIPT_SECONDS, Unit::Seconds, "from such an end's cause to quiet");
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
