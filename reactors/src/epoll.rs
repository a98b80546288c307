//! epoll(7) and timerfd(2): as little of them as a doorbell and the sockets reactor need.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// What an [`Epoll`] reports: descriptors by their tokens, with the bits of epoll_ctl(2).
pub(crate) type Event = libc::epoll_event;

/// Says once for each change that a socket can be read, can be written, or has ended.
pub(crate) const EDGES: u32 =
    (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;

/// Says for as long as it is so that a descriptor can be read.
pub(crate) const LEVEL: u32 = libc::EPOLLIN as u32;

/// A set of descriptors, itself readable while it has something to report.
#[derive(Debug)]
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1 takes no pointer.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the call above just made `fd` and nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Adds `fd` until its last duplicate is closed. One that is in already is reported under
    /// `token` from now on.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64, events: u32) -> io::Result<()> {
        let (set, fd) = (self.0.as_raw_fd(), fd.as_raw_fd());
        let mut event = Event { events, u64: token };
        let mut control = |operation| {
            // SAFETY: both descriptors are open, and the kernel copies `event`.
            check(unsafe { libc::epoll_ctl(set, operation, fd, &raw mut event) }).map(drop)
        };
        control(libc::EPOLL_CTL_ADD).or_else(|error| match error.raw_os_error() {
            Some(libc::EEXIST) => control(libc::EPOLL_CTL_MOD),
            _ => Err(error),
        })
    }

    /// Stores what there is to report into `events`, and returns how much; never blocks.
    pub(crate) fn look(&self, events: &mut [Event]) -> usize {
        let room = events.len().try_into().unwrap_or(i32::MAX);
        // SAFETY: the kernel stores at most `room` events, which `events` has.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), room, 0) };
        // The only failure of a live set that does not wait is none at all.
        usize::try_from(count).unwrap_or(0)
    }
}

impl std::os::fd::AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A timerfd(2): readable once its time has passed.
pub(crate) struct Timer(OwnedFd);

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: timerfd_create takes no pointer.
        let fd = check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?;
        // SAFETY: the call above just made `fd` and nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Becomes readable `after` from now, and not before.
    pub(crate) fn set(&self, after: Duration) {
        // Zero would mean never.
        let value = timespec(after.max(Duration::from_nanos(1)));
        let never = timespec(Duration::ZERO);
        let setting = libc::itimerspec { it_interval: never, it_value: value };
        // SAFETY: `setting` is read, and null is no place for the old one. The descriptor is a
        // timer and the setting is normalized, so it can't fail.
        unsafe {
            libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const setting, std::ptr::null_mut())
        };
    }

    /// Not readable any more, until it is set again and that time has passed.
    pub(crate) fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: `count` has the eight bytes that a timerfd stores. Nothing to read is EAGAIN.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
    }
}

impl std::os::fd::AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until `fd` can be read, for at most `timeout`; a signal may end it early.
pub(crate) fn wait(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = timeout.map(timespec);
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: one pollfd, and the count says one; the time is null or lives until the return;
    // null leaves the signal mask alone.
    match check(unsafe { libc::ppoll(&raw mut poll, 1, timeout, std::ptr::null()) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
