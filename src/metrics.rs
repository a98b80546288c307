//! Every metric in one table: name, unit, labels. Recorded through the `metrics` facade, which
//! costs next to nothing where no recorder is installed.

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

use crate::memory::Operation;
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

/// Tells the installed recorder each metric's unit and meaning.
pub fn describe() {
    describe_counter!(CARRIED_BYTES, Unit::Bytes, "payload of own requests that was carried");
    describe_counter!(SLICES, Unit::Count, "slices of own requests that ended");
    describe_counter!(SERVED_BYTES, Unit::Bytes, "payload of peers' requests");
    describe_counter!(SERVED_REFUSED, Unit::Count, "peers' requests that were refused");
    describe_histogram!(BATCH_SECONDS, Unit::Seconds, "from posting a batch to its end");
}

pub(crate) fn carried(path: PathKind, bytes: usize, error: Option<&Error>) {
    let outcome = error.map_or("ok", |error| error.kind().label());
    counter!(SLICES, "path" => path.label(), "outcome" => outcome).increment(1);
    if error.is_none() {
        counter!(CARRIED_BYTES, "path" => path.label()).increment(bytes as u64);
    }
}

pub(crate) fn served(operation: Operation, bytes: u64, is_permitted: bool) {
    let label = operation.label();
    if is_permitted {
        counter!(SERVED_BYTES, "operation" => label).increment(bytes);
    } else {
        counter!(SERVED_REFUSED, "operation" => label).increment(1);
    }
}

pub(crate) fn batch_ended(path: PathKind, elapsed: std::time::Duration) {
    histogram!(BATCH_SECONDS, "path" => path.label()).record(elapsed);
}
