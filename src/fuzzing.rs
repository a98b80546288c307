//! Properties of what arrives from outside, for `fuzz/` to try with any bytes. Each function panics
//! if its property does not hold. Tests replay the corpora of `fuzz/` through the same functions.

use crate::control::fuzzing as control;

/// Control frames: consumed and rest are the input, encoding again gives what was consumed, and
/// how the input is cut into chunks makes no difference.
pub fn control_frame(input: &[u8]) {
    control::frame(input);
}

/// Segment descriptors and `rpc_meta` documents: what was read, written and read again is the same.
pub fn descriptor(input: &[u8]) {
    control::descriptor(input);
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
}
