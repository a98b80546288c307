//! The one thing a shard sleeps on: an eventfd, and a flag that spares its write while it is awake.
//!
//! The protocol loses no wake. The sleeper raises the flag, looks at its queues once more, and only
//! then waits. Whoever has work for it first makes the work visible, then rings. The fences order
//! "raise, look" against "push, read the flag": at least one of the two sees the other.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::epoll::{self, Epoll, LEVEL};
use crate::sync::{AtomicBool, Ordering, fence};

/// Wakes a sleeper. The kernel's is [`EventFd`]; tests bring their own.
pub trait Ringer: Send + Sync + 'static {
    /// Ends the sleeper's wait, or the next one if it hasn't begun; never blocks.
    fn ring(&self);
}

impl<F: Fn() + Send + Sync + 'static> Ringer for F {
    fn ring(&self) {
        self()
    }
}

/// A sleeping flag and the bell behind it. One sleeper, any number of ringers.
#[derive(Debug)]
pub struct Doorbell<R = EventFd> {
    sleeping: AtomicBool,
    ringer: R,
}

impl Doorbell {
    /// A doorbell on an eventfd of its own.
    ///
    /// # Errors
    /// What eventfd(2) gives: the process or the system is out of descriptors.
    pub fn new() -> io::Result<Self> {
        EventFd::new(None).map(Self::with_ringer)
    }

    /// A doorbell that other descriptors can ring too ([`Doorbell::watch`]): where no io_uring
    /// turns readiness into completions. Its sleeper waits by [`Doorbell::wait`].
    ///
    /// # Errors
    /// As [`Doorbell::new`].
    pub fn with_sources() -> io::Result<Self> {
        EventFd::new(Some(Epoll::new()?)).map(Self::with_ringer)
    }

    /// Ends every wait for as long as `source` can be read, until it is closed.
    ///
    /// # Errors
    /// Unsupported without sources ([`Doorbell::new`]): register [`Doorbell::raw_fd`] instead.
    /// Else what epoll_ctl(2) gives.
    pub fn watch(&self, source: BorrowedFd<'_>) -> io::Result<()> {
        let sources = self.ringer.sources.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        sources.add(source, 0, LEVEL)
    }

    /// For the sleeper alone: blocks until it is rung, for at most `timeout`. A signal may end it
    /// early.
    ///
    /// # Errors
    /// What ppoll(2) gives.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let sources = self.ringer.sources.as_ref().map(AsFd::as_fd);
        epoll::wait(sources.unwrap_or(self.ringer.event.as_fd()), timeout)
    }

    /// What becomes readable when the sleeper is to wake: by the eventfd, or by any other source
    /// ([`Doorbell::watch`]). Valid as long as the doorbell lives.
    pub fn wait_fd(&self) -> RawFd {
        self.ringer.sources.as_ref().map_or(self.raw_fd(), |sources| sources.as_fd().as_raw_fd())
    }

    /// The eventfd: what an io_uring registers for its completions.
    /// Valid as long as the doorbell lives.
    pub fn raw_fd(&self) -> RawFd {
        self.ringer.event.as_raw_fd()
    }

    /// Forgets every ring so far. For the sleeper alone, after it woke.
    pub fn drain(&self) {
        self.ringer.drain()
    }
}

impl<R: Ringer> Doorbell<R> {
    /// A doorbell that wakes its sleeper through `ringer`.
    pub fn with_ringer(ringer: R) -> Self {
        Self { sleeping: AtomicBool::new(false), ringer }
    }

    /// Wakes the sleeper if it sleeps or is about to: a system call then, else a load.
    /// What the sleeper should find must be visible before.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        // The swap lets only the first of many ringers pay for the system call.
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel) {
            self.ringer.ring();
        }
    }

    /// For the sleeper alone: every ring from here on wakes. Look at every queue once more before
    /// waiting, and call [`Doorbell::wake`] instead of waiting if one isn't empty.
    pub fn sleep(&self) {
        // A swap only for the model checker's sake: it takes a plain store and a ringer's swap that
        // read an older one for unordered. Here it costs nothing beside a wait.
        self.sleeping.swap(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Whether the sleeper has announced its sleep and nobody has rung since.
    #[cfg(feature = "sim")]
    pub fn is_sleeping(&self) -> bool {
        self.sleeping.load(Ordering::Acquire)
    }

    /// For the sleeper alone: awake again, rings cost nothing.
    pub fn wake(&self) {
        self.sleeping.store(false, Ordering::Release);
    }

    /// What rings behind the flag.
    pub fn ringer(&self) -> &R {
        &self.ringer
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ringer.event.as_fd()
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.raw_fd()
    }
}

/// A non-blocking eventfd(2).
#[derive(Debug)]
pub struct EventFd {
    event: OwnedFd,
    /// The eventfd and all that is watched beside it.
    sources: Option<Epoll>,
}

impl EventFd {
    fn new(sources: Option<Epoll>) -> io::Result<Self> {
        // SAFETY: eventfd takes no pointer.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above just made `fd` and nothing else owns it.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        sources.iter().try_for_each(|sources| sources.add(event.as_fd(), 0, LEVEL))?;
        Ok(Self { event, sources })
    }

    fn drain(&self) {
        let mut count = 0u64;
        // SAFETY: `count` has the eight bytes that an eventfd stores. Nothing to read is EAGAIN,
        // which leaves it untouched and is no error here.
        unsafe { libc::read(self.event.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
    }
}

impl Ringer for EventFd {
    fn ring(&self) {
        let one = 1u64;
        // SAFETY: `one` has the eight bytes that an eventfd takes. The only failure on a live
        // descriptor is EAGAIN: the counter is full, so the sleeper is being woken already.
        unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }
}

/// The eventfd of another process's doorbell, which passed it to us. Ringing never blocks: the
/// descriptor is checked to be of that kind, and made non-blocking.
#[derive(Debug)]
pub struct Bell(EventFd);

impl Bell {
    /// Takes over a peer's eventfd.
    ///
    /// # Errors
    /// InvalidInput where it is anything else: writing to that could block.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstat};
        // Eventfds share one anonymous inode with descriptors that refuse or ignore writes.
        let (own, peers) = (fstat(&EventFd::new(None)?.event)?, fstat(&fd)?);
        if (own.st_dev, own.st_ino) != (peers.st_dev, peers.st_ino) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Self(EventFd { event: fd, sources: None }))
    }

    /// Wakes the peer's shard; it is awake if it did not sleep.
    pub fn ring(&self) {
        self.0.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(doorbell: &Doorbell) -> bool {
        let mut poll = libc::pollfd { fd: doorbell.raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, and the count says one.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    #[test]
    fn only_a_sleeper_is_rung_and_only_once() {
        let doorbell = Doorbell::new().unwrap();
        doorbell.ring();
        assert!(!readable(&doorbell), "nobody sleeps");
        doorbell.sleep();
        doorbell.ring();
        doorbell.ring();
        assert!(readable(&doorbell));
        doorbell.wake();
        doorbell.drain();
        assert!(!readable(&doorbell));
        doorbell.drain();
    }

    #[test]
    fn a_bell_rings_a_doorbell_from_outside_and_is_nothing_else() {
        let doorbell = Doorbell::new().unwrap();
        let bell = Bell::new(doorbell.as_fd().try_clone_to_owned().unwrap()).unwrap();
        bell.ring();
        assert!(readable(&doorbell));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Bell::new(file.into()).is_err());
        let (_reader, writer) = io::pipe().unwrap();
        assert!(Bell::new(writer.into()).is_err());
    }

    #[test]
    fn a_ring_and_a_watched_source_both_end_the_wait() {
        let (doorbell, source) = (Doorbell::with_sources().unwrap(), Doorbell::new().unwrap());
        doorbell.watch(source.as_fd()).unwrap();
        let is_over = || {
            doorbell.wait(Some(Duration::ZERO)).unwrap();
            let sources = doorbell.ringer.sources.as_ref().unwrap().as_fd().as_raw_fd();
            let mut poll = libc::pollfd { fd: sources, events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, and the count says one.
            unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
        };
        assert!(!is_over());
        for bell in [&source, &doorbell] {
            bell.sleep();
            bell.ring();
            doorbell.wait(None).unwrap();
            assert!(is_over(), "as long as it is there");
            bell.drain();
            assert!(!is_over());
        }
        let plain = Doorbell::new().unwrap();
        let error = plain.watch(source.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        plain.sleep();
        plain.ring();
        plain.wait(None).unwrap();
    }

    #[test]
    fn the_first_of_many_ringers_pays() {
        use std::sync::Arc;
        use std::sync::atomic::AtomicUsize;
        let rings = Arc::new(AtomicUsize::new(0));
        let counter = rings.clone();
        let doorbell = Doorbell::with_ringer(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        doorbell.sleep();
        (0..5).for_each(|_| doorbell.ring());
        assert_eq!(rings.load(Ordering::Relaxed), 1);
    }
}
