//! Allocating a region: is there room, under which policy, and what the kernel says to it. The
//! kernel kills a process rather than refuse it a page, so the question comes before the pages.

use std::io;

use kvrail_reactors::numa::NumaPolicy;
use kvrail_reactors::probe::{EACCES, EMFILE, ENFILE, ENOSYS, EPERM};
use kvrail_reactors::region::{AllocateError, Pages, Region};

use super::fit::{Misfit, advice, base_fits, effective, fit, short_of_free};
use crate::topology::{Memory, Size};
use crate::{Error, Result};

/// Allocates a region that fits into the memory that is free now; asks again while its pages come.
///
/// # Errors
/// Refused: it does not fit, with the numbers and what would; or the system has no policies.
/// Busy: the memory went to somebody else meanwhile.
pub(crate) fn allocate(len: usize, policy: &NumaPolicy) -> Result<Region> {
    if len == 0 {
        return Err(Error::refused("a region of 0 bytes"));
    }
    let facts = Memory::here();
    let pages = fit(&facts, len as u64, policy).map_err(|misfit| {
        let advice = advice(&facts, len as u64);
        Error::refused(format!("a region of {len} bytes, {policy}: {misfit}; {advice}"))
    })?;
    let asked = effective(&facts, policy);
    if pages != Pages::Huge {
        drop_page_cache(facts, len as u64, &asked);
    }
    Region::allocate_with(len, &asked, pages, &mut |left| still_fits(left, policy)).map_err(
        |error| match error {
            AllocateError::Policy(error) => no_policy(policy, error),
            AllocateError::Memory(error) => no_memory(len, policy, error),
        },
    )
}

/// The kernel wakes its reclaim and does not wait for it: a node may have a little less than it
/// gave just before.
const DROPS_MAX: usize = 3;

/// Has the nodes of an interleaved region that are full of page cache drop it first, by memory
/// bound to them that is given back at once. Where one doesn't, others stand in for it: that is
/// what the kernel does, and no reason to refuse a region that there is room for.
fn drop_page_cache(mut facts: Memory, len: u64, policy: &NumaPolicy) {
    for _ in 0..DROPS_MAX {
        let short = short_of_free(&facts, len, policy);
        if short.is_empty() {
            return;
        }
        for (node, share) in short {
            let bind = NumaPolicy::Bind(vec![node]);
            let mut room = |left| still_fits(left, &bind);
            if Region::allocate_with(share as usize, &bind, Pages::Base, &mut room).is_err() {
                return;
            }
        }
        facts = Memory::here();
    }
}

fn still_fits(left: usize, policy: &NumaPolicy) -> io::Result<()> {
    base_fits(&Memory::here(), left as u64, policy)
        .map_err(|misfit| io::Error::new(io::ErrorKind::OutOfMemory, misfit.to_string()))
}

/// It was permitted when a page was tried.
fn no_policy(policy: &NumaPolicy, error: io::Error) -> Error {
    let remedy = match error.raw_os_error() {
        Some(EPERM) => Misfit::Forbidden.to_string(),
        Some(ENOSYS) => Misfit::Unsupported.to_string(),
        _ => "leave the node open, or name others".to_owned(),
    };
    Error::refused(format!("can't {policy}: {remedy}")).with_source(error)
}

fn no_memory(len: usize, policy: &NumaPolicy, error: io::Error) -> Error {
    let size = Size(len as u64);
    let Some(errno) = error.raw_os_error() else {
        return Error::busy(format!("{size} ({policy}): the memory went meanwhile; ask again"))
            .with_source(error);
    };
    let remedy = match errno {
        EMFILE | ENFILE => "raise `ulimit -n`",
        ENOSYS | EACCES | EPERM => {
            "allow memfd_create in the seccomp profile, and keep the sysctl vm.memfd_noexec below 2"
        }
        _ => {
            "raise the process's limit on memory (`ulimit -v`) or vm.max_map_count, or ask for less"
        }
    };
    Error::refused(format!("{size} ({policy}) can't be had: {remedy}")).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use kvrail_reactors::probe::EINVAL;

    #[test]
    fn a_region_larger_than_memory_is_refused_with_both_numbers_and_advice() {
        let error = allocate(1 << 50, &NumaPolicy::Any).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let text = error.to_string();
        assert!(text.contains("1125899906842624 bytes, no binding: 1024.0 TiB asked"), "{text}");
        assert!(text.contains("bytes free (") && text.contains("nothing of this size"), "{text}");
        assert!(allocate(1 << 20, &NumaPolicy::Any).is_ok());
        let error = allocate(1, &NumaPolicy::Bind(vec![4000])).unwrap_err();
        assert!(
            error.to_string().contains("leave the node open")
                || error.to_string().contains("no NUMA node 4000"),
            "{error}"
        );
    }

    #[test]
    fn what_the_system_refuses_is_named_with_its_remedy() {
        let policy = NumaPolicy::Bind(vec![1]);
        for (errno, words) in
            [(EPERM, "--cap-add SYS_NICE"), (ENOSYS, "no NUMA policies"), (EINVAL, "name others")]
        {
            let error = no_policy(&policy, io::Error::from_raw_os_error(errno));
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains(words), "{error}");
        }
        for (errno, words) in [(EMFILE, "ulimit -n"), (ENOSYS, "memfd_create")] {
            let error = no_memory(1, &policy, io::Error::from_raw_os_error(errno));
            assert!(error.to_string().contains(words), "{error}");
        }
        let gone = no_memory(1, &policy, io::ErrorKind::OutOfMemory.into());
        assert_eq!(gone.kind(), ErrorKind::Busy);
    }
}
