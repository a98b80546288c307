//! What the kernel grants this process: the CPUs it may run on, memory it may lock, io_uring.

use std::io;

/// CPUs per word of the kernel's mask.
const WORD_BITS: usize = u64::BITS as usize;
/// Largest mask tried: 64 Ki CPUs, eight times the largest NR_CPUS a kernel can be configured with.
const MASK_MAX_WORDS: usize = 1024;

/// The CPUs that the calling thread may run on, ascending.
///
/// # Errors
/// What sched_getaffinity(2) gives.
pub fn allowed() -> io::Result<Vec<usize>> {
    let mut words = 16; // 1024 CPUs, glibc's fixed size; EINVAL asks for more
    loop {
        let mut mask = vec![0u64; words];
        let bytes = size_of_val(&mask[..]);
        // SAFETY: the kernel stores at most `bytes` bytes into `mask`, which has them.
        let result = unsafe { libc::sched_getaffinity(0, bytes, mask.as_mut_ptr().cast()) };
        if result == 0 {
            return Ok(members(&mask));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) || words >= MASK_MAX_WORDS {
            return Err(error);
        }
        words *= 2;
    }
}

/// Lets the calling thread, and the threads it will start, run on `cpus` and no other.
///
/// # Errors
/// EINVAL when `cpus` is empty or holds no CPU that the process may use.
pub fn restrict(cpus: &[usize]) -> io::Result<()> {
    let words = cpus.iter().max().map_or(1, |cpu| cpu / WORD_BITS + 1);
    if words > MASK_MAX_WORDS {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut mask = vec![0u64; words];
    for cpu in cpus {
        mask[cpu / WORD_BITS] |= 1 << (cpu % WORD_BITS);
    }
    // SAFETY: the kernel reads `size_of_val(mask)` bytes from `mask`, which has them.
    let result =
        unsafe { libc::sched_setaffinity(0, size_of_val(&mask[..]), mask.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The soft limit on locked memory in bytes; `None` is unlimited.
///
/// # Errors
/// What getrlimit(2) gives.
pub fn memlock_bytes() -> io::Result<Option<u64>> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a rlimit that the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur))
}

/// Asks the kernel for a small io_uring and gives it back.
///
/// # Errors
/// ENOSYS or EPERM where a seccomp profile or `kernel.io_uring_disabled` refuses it.
pub fn probe_uring() -> io::Result<()> {
    // On a thread of its own: the end of a ring interrupts waits (EINTR) of the thread that made
    // it, some time after it is gone.
    let probe = std::thread::Builder::new().spawn(|| io_uring::IoUring::new(2).map(drop))?;
    probe.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

fn members(mask: &[u64]) -> Vec<usize> {
    (0..mask.len() * WORD_BITS)
        .filter(|cpu| mask[cpu / WORD_BITS] >> (cpu % WORD_BITS) & 1 == 1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_restricts_itself_and_no_other() {
        let before = allowed().unwrap();
        let one = vec![*before.last().unwrap()];
        let seen = std::thread::scope(|scope| {
            let restricted = || restrict(&one).and_then(|()| allowed());
            scope.spawn(restricted).join().unwrap().unwrap()
        });
        assert_eq!(seen, one);
        assert_eq!(allowed().unwrap(), before);
    }

    #[test]
    fn no_cpu_at_all_and_absurd_cpus_are_errors() {
        assert_eq!(restrict(&[]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(restrict(&[1 << 40]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn masks_list_their_members() {
        assert_eq!(members(&[0b101, 0, 1 << 63]), [0, 2, 191]);
    }
}
