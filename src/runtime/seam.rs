//! What a shard asks of its executor, and the only file that names one. Another executor (epoll,
//! where io_uring is refused) gives the same handful of functions.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use glommio::io::PollableFd;
use glommio::timer::Timer;
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};
use kvrail_reactors::affinity;
use kvrail_reactors::doorbell::Doorbell;

use crate::limits::{EXECUTOR_PREEMPT, EXECUTOR_RING_ENTRIES, MEMLOCK_MIN_BYTES};
use crate::topology::CpuSet;
use crate::{Error, Result};

/// Whether the executor can run here. glommio itself would start its threads first and fail there.
///
/// # Errors
/// Refused, with the remedy, when io_uring or enough locked memory is not to be had.
pub(crate) fn probe() -> Result<()> {
    let limit = affinity::memlock_bytes()
        .map_err(|error| Error::refused("getrlimit failed").with_source(error))?;
    check_memlock(limit)?;
    affinity::probe_uring().map_err(no_uring)
}

fn check_memlock(limit_bytes: Option<u64>) -> Result<()> {
    match limit_bytes {
        Some(bytes) if bytes < MEMLOCK_MIN_BYTES => Err(Error::refused(format!(
            "this process may lock {bytes} bytes of memory, the executor needs \
             {MEMLOCK_MIN_BYTES}: raise it (`ulimit -l`, LimitMEMLOCK=, \
             `docker run --ulimit memlock=-1`)"
        ))),
        _ => Ok(()),
    }
}

fn no_uring(error: io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "a seccomp profile or the sysctl kernel.io_uring_disabled forbids it: allow \
             io_uring_setup, io_uring_enter and io_uring_register in the container's profile, \
             set the sysctl to 0"
        }
        io::ErrorKind::Unsupported => {
            "the kernel has none or a seccomp profile hides it: run Linux 5.11 or later and allow \
             io_uring_setup, io_uring_enter and io_uring_register in the container's profile"
        }
        _ => "raise the process's limits on memory and descriptors",
    };
    Error::refused(format!("io_uring can't be used: {remedy}")).with_source(error)
}

/// Keeps the calling thread, and what it starts, on `cpus`.
///
/// # Errors
/// What sched_setaffinity(2) gives.
pub(crate) fn pin(cpus: &CpuSet) -> io::Result<()> {
    /// glibc's fixed set, beyond which core_affinity would panic.
    const SET_CPUS: usize = 1024;
    let cpus: Vec<usize> = cpus.iter().collect();
    match cpus[..] {
        [id] if id < SET_CPUS && core_affinity::set_for_current(core_affinity::CoreId { id }) => {
            Ok(())
        }
        // Also the way to the reason, when core_affinity only says no.
        _ => affinity::restrict(&cpus),
    }
}

/// An executor of the thread that made it.
pub(crate) struct Executor(LocalExecutor);

impl Executor {
    /// Makes the executor of this thread; it stays on the CPUs that the thread is pinned to.
    ///
    /// # Errors
    /// Refused when the kernel gives it no rings.
    pub(crate) fn new() -> Result<Self> {
        LocalExecutorBuilder::new(Placement::Unbound)
            // Storage buffers are not ours to use; glommio rounds up to its minimum.
            .io_memory(0)
            .ring_depth(EXECUTOR_RING_ENTRIES)
            .preempt_timer(EXECUTOR_PREEMPT)
            .make()
            .map(Self)
            .map_err(|error| {
                Error::refused("the executor can't start").with_source(io::Error::from(error))
            })
    }

    /// Runs `future` to its end on this thread.
    pub(crate) fn run<F: Future>(&self, future: F) -> F::Output {
        self.0.run(future)
    }
}

/// Waits for a doorbell on the executor of this thread.
pub(crate) struct Waiter(PollableFd<Rung>);

/// Keeps the descriptor open for as long as the executor may poll it.
struct Rung(Arc<Doorbell>);

impl std::os::fd::AsRawFd for Rung {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.raw_fd()
    }
}

impl Waiter {
    /// For use inside [`Executor::run`].
    ///
    /// # Errors
    /// Closed when the executor is gone.
    pub(crate) fn new(doorbell: Arc<Doorbell>) -> Result<Self> {
        PollableFd::new(Rung(doorbell)).map(Self).map_err(gone)
    }

    /// Parks until the eventfd is readable.
    ///
    /// # Errors
    /// Closed when the executor can't wait: its ring is broken.
    pub(crate) async fn rung(&self) -> Result<()> {
        self.0.readable().await.map_err(gone)
    }
}

fn gone(error: glommio::GlommioError<()>) -> Error {
    Error::closed("the executor can't wait for the doorbell").with_source(io::Error::from(error))
}

/// Parks for `duration`, or lets the executor do other things meanwhile.
pub(crate) async fn sleep(duration: Duration) {
    Timer::new(duration).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn little_locked_memory_is_refused_with_numbers() {
        let error = check_memlock(Some(64 << 10)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let text = error.to_string();
        assert!(text.contains("65536") && text.contains("524288"), "{text}");
        assert!(check_memlock(None).is_ok());
        assert!(check_memlock(Some(MEMLOCK_MIN_BYTES)).is_ok());
    }

    #[test]
    fn refused_io_uring_names_the_remedy() {
        for errno in [1, 38] {
            // EPERM, ENOSYS
            let error = no_uring(io::Error::from_raw_os_error(errno));
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains("io_uring_setup"), "{error}");
        }
    }

    #[test]
    fn a_ring_from_another_thread_ends_the_wait() {
        let doorbell = Arc::new(Doorbell::new().unwrap());
        let other = doorbell.clone();
        doorbell.sleep();
        let ringer = std::thread::spawn(move || other.ring());
        let executor = Executor::new().unwrap();
        executor.run(async {
            let waiter = Waiter::new(doorbell.clone()).unwrap();
            waiter.rung().await.unwrap();
        });
        ringer.join().unwrap();
    }
}
