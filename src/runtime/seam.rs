//! What a shard asks of its executor, and the only file that names one: glommio, or epoll where
//! there is no io_uring.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use glommio::io::PollableFd;
use glommio::timer::Timer;
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};
use kvrail_reactors::affinity;
use kvrail_reactors::doorbell::Doorbell;

use super::driver::Driver;
use crate::limits::{EXECUTOR_PREEMPT, EXECUTOR_RING_ENTRIES};
use crate::topology::CpuSet;
use crate::{Error, Result};

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

/// A doorbell for a shard of this driver.
///
/// # Errors
/// What eventfd(2) and epoll_create(2) give.
pub(crate) fn doorbell(driver: Driver) -> io::Result<Doorbell> {
    // A ring turns its own readiness into completions; NICs' channels are watched on any driver.
    match driver {
        Driver::Epoll => Doorbell::with_sources(),
        Driver::Uring | Driver::Auto if cfg!(feature = "rdma") => Doorbell::with_sources(),
        Driver::Uring | Driver::Auto => Doorbell::new(),
    }
}

/// An executor of the thread that made it. A shard is one task, which polls its own futures: all
/// that an executor does is to let it wait.
pub(crate) enum Executor {
    Glommio(LocalExecutor),
    /// Nothing is needed: [`Waiter`] blocks the thread inside epoll.
    Epoll,
}

impl Executor {
    /// Makes the executor of this thread; it stays on the CPUs that the thread is pinned to.
    ///
    /// # Errors
    /// Refused when the kernel gives it no rings.
    pub(crate) fn new(driver: Driver) -> Result<Self> {
        match driver {
            Driver::Epoll => Ok(Self::Epoll),
            Driver::Uring | Driver::Auto => glommio().map(Self::Glommio),
        }
    }

    /// Runs `future`, a shard's loop, to its end on this thread.
    pub(crate) fn run<F: Future>(&self, future: F) -> F::Output {
        match self {
            Self::Glommio(executor) => executor.run(future),
            Self::Epoll => futures_lite::future::block_on(future),
        }
    }

    /// What waits for `doorbell` on this executor; for use inside [`Executor::run`].
    ///
    /// # Errors
    /// Closed when the executor is gone.
    pub(crate) fn waiter(driver: Driver, doorbell: Arc<Doorbell>) -> Result<Waiter> {
        match driver {
            Driver::Epoll => Ok(Waiter::Epoll(doorbell)),
            Driver::Uring | Driver::Auto => {
                PollableFd::new(Rung(doorbell)).map(Waiter::Glommio).map_err(gone)
            }
        }
    }
}

fn glommio() -> Result<LocalExecutor> {
    LocalExecutorBuilder::new(Placement::Unbound)
        // Storage buffers are not ours to use; glommio rounds up to its minimum.
        .io_memory(0)
        .ring_depth(EXECUTOR_RING_ENTRIES)
        .preempt_timer(EXECUTOR_PREEMPT)
        .make()
        .map_err(|error| {
            Error::refused("the io_uring executor can't start").with_source(io::Error::from(error))
        })
}

/// Waits for a doorbell on the executor of this thread.
pub(crate) enum Waiter {
    Glommio(PollableFd<Rung>),
    Epoll(Arc<Doorbell>),
}

/// Keeps the descriptor open for as long as the executor may poll it.
pub(crate) struct Rung(Arc<Doorbell>);

impl std::os::fd::AsRawFd for Rung {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.wait_fd()
    }
}

impl Waiter {
    /// Parks until the doorbell is rung, for at most `timeout`.
    ///
    /// # Errors
    /// Closed when the executor can't wait: its ring or its descriptor is broken.
    pub(crate) async fn rung(&self, timeout: Option<Duration>) -> Result<()> {
        match (self, timeout) {
            (Self::Glommio(eventfd), None) => eventfd.readable().await.map_err(gone),
            (Self::Glommio(eventfd), Some(timeout)) => {
                let timer = async {
                    Timer::new(timeout).await;
                    Ok(())
                };
                futures_lite::future::or(eventfd.readable(), timer).await.map_err(gone)
            }
            (Self::Epoll(doorbell), timeout) => doorbell.wait(timeout).map_err(gone),
        }
    }
}

fn gone(error: impl Into<io::Error>) -> Error {
    Error::closed("the executor can't wait for the doorbell").with_source(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_from_another_thread_ends_the_wait() {
        for driver in [Driver::Epoll, Driver::Uring] {
            if let Err(error) = driver.choose() {
                eprintln!("not on {driver}: {error}");
                continue;
            }
            let doorbell = Arc::new(super::doorbell(driver).unwrap());
            let other = doorbell.clone();
            doorbell.sleep();
            let ringer = std::thread::spawn(move || other.ring());
            let executor = Executor::new(driver).unwrap();
            executor.run(async {
                let waiter = Executor::waiter(driver, doorbell.clone()).unwrap();
                waiter.rung(None).await.unwrap();
                doorbell.drain();
                waiter.rung(Some(Duration::from_millis(1))).await.unwrap();
            });
            ringer.join().unwrap();
        }
    }
}
