//! Completion sources of kvrail. All `unsafe`, every system call and every device live here.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod affinity;
pub mod doorbell;
