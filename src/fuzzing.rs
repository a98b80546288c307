//! Properties of what arrives from outside, for `fuzz/` to try with any bytes. Each function panics
//! if its property does not hold. Tests replay the corpora of `fuzz/` through the same functions.

use crate::control::fuzzing as control;
use crate::path::host::fuzzing as host;
use crate::path::rdma::mooncake::fuzzing as mooncake;
use crate::path::tcp::fuzzing as tcp;
use crate::plan::fuzzing as plans;

/// Control frames: consumed and rest are the input, encoding again gives what was consumed, and
/// how the input is cut into chunks makes no difference.
pub fn control_frame(input: &[u8]) {
    control::frame(input);
}

/// Segment descriptors and `rpc_meta` documents: what was read, written and read again is the same.
pub fn descriptor(input: &[u8]) {
    control::descriptor(input);
}

/// A data connection's bytes: replies, stored memory and events are those of a plain reading of
/// the whole input, however it is cut into chunks; nothing but permitted ranges changes; what
/// waits is bounded. The first byte says how many bytes give sizes of chunks.
pub fn tcp_stream(input: &[u8]) {
    tcp::stream(input);
}

/// A same-host lane's words: whatever a peer writes into it, only memory that it offered is copied,
/// and only onto memory that it may write.
pub fn host_lane(input: &[u8]) {
    host::lane(input);
}

/// Messages at the Unix socket: what was read, written and read again is the same.
pub fn host_message(input: &[u8]) {
    host::message(input);
}

/// Handshakes of RDMA queue pairs, one a line, and letters for what happens to the target that they
/// reach: every request is answered once, queue pairs that were made are in use or ended, and
/// endpoints are bounded.
pub fn handshake(input: &[u8]) {
    mooncake::property(input);
}

/// A request's shape and numbers: its slices tile it exactly, or it is refused for a reason.
pub fn plan(input: &[u8]) {
    plans::property(input);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn replay(target: &str, property: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            property(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "no corpus for {target}");
    }

    #[test]
    fn the_control_frame_corpus_holds() {
        replay("control_frame", control_frame);
    }

    #[test]
    fn the_descriptor_corpus_holds() {
        replay("descriptor", descriptor);
    }

    #[test]
    fn the_tcp_stream_corpus_holds() {
        replay("tcp_stream", tcp_stream);
    }

    #[test]
    fn the_host_message_corpus_holds() {
        replay("host_message", host_message);
    }

    #[test]
    fn the_host_lane_corpus_holds() {
        replay("host_lane", host_lane);
    }

    #[test]
    fn the_handshake_corpus_holds() {
        replay("handshake", handshake);
    }

    #[test]
    fn the_plan_corpus_holds() {
        replay("plan", plan);
    }
}
