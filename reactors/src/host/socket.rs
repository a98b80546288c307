//! Unix sockets between engines of one host: whole messages with descriptors, and the kernel's
//! word on who is at the other end. For the control plane; never blocks.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, bind, listen, recvmsg, sendmsg, socket_with,
};

/// Descriptors that one message may bring: a bell for each of eight lanes, and a few more. The
/// kernel's own limit is 253 (`SCM_MAX_FD`).
pub const MESSAGE_MAX_FDS: usize = 16;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 128;

/// Who is at the other end, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Its process, where it can be seen from our pid namespace.
    pub pid: Option<i32>,
    /// Its effective user when it connected or began to listen.
    pub uid: u32,
}

/// Our own effective user.
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A listening socket; one on a path takes the path with it.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: Option<String>,
}

impl Listener {
    /// Listens under a path, or under an abstract name where `name` begins with `@`.
    ///
    /// # Errors
    /// The system's own; EINVAL for a name of more than 107 bytes.
    pub fn bind(name: &str) -> io::Result<Self> {
        let fd = socket()?;
        bind(&fd, &address(name)?)?;
        let path = (!name.starts_with('@')).then(|| name.to_owned());
        let listener = Self { fd, path };
        listen(&listener.fd, BACKLOG)?;
        Ok(listener)
    }

    /// The next connection; WouldBlock where none waits.
    ///
    /// # Errors
    /// The system's own.
    pub fn accept(&self) -> io::Result<OwnedFd> {
        Ok(accept_with(&self.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // It may be gone already, with its folder.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Removes the socket at `path` if nobody listens there any more: its process was killed.
pub fn remove_if_dead(path: &Path) {
    let Some(name) = path.to_str() else { return };
    if connect(name).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
        // Another process may have been faster.
        let _ = std::fs::remove_file(path);
    }
}

/// A message as it arrived.
#[derive(Debug)]
pub struct Received {
    /// Bytes of it, at the start of the buffer; 0: the peer is gone.
    pub len: usize,
    /// The descriptors that came with it, ours from now on.
    pub fds: Vec<OwnedFd>,
}

/// Connects to a path, or to an abstract name where `name` begins with `@`.
///
/// # Errors
/// The system's own: ECONNREFUSED and ENOENT where nobody listens, EAGAIN where too many wait.
pub fn connect(name: &str) -> io::Result<OwnedFd> {
    let fd = socket()?;
    net::connect(&fd, &address(name)?)?;
    Ok(fd)
}

/// Sends a message with descriptors, all of it or nothing; WouldBlock where the peer's queue is
/// full.
///
/// # Errors
/// The system's own; EPIPE where the peer is gone.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let is_full = fds.len() > MESSAGE_MAX_FDS;
    if is_full || !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a message; WouldBlock where none waits. Descriptors of a message that is refused here
/// are closed.
///
/// # Errors
/// InvalidData: longer than `buffer`, or with more than [`MESSAGE_MAX_FDS`] descriptors.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(buffer)];
    let message = recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    let is_cut = message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    if is_cut || fds.len() > MESSAGE_MAX_FDS {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Received { len: message.bytes, fds })
}

/// Who is at the other end.
///
/// # Errors
/// The system's own.
pub fn peer(socket: impl AsFd) -> io::Result<Credentials> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` has the `len` bytes that the kernel fills.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // 0: a process of a pid namespace that isn't below ours.
    Ok(Credentials { pid: Some(peer.pid).filter(|pid| *pid > 0), uid: peer.uid })
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn address(name: &str) -> io::Result<SocketAddrUnix> {
    Ok(match name.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        None => SocketAddrUnix::new(name)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str) -> (OwnedFd, OwnedFd, Listener) {
        let listener = Listener::bind(name).unwrap();
        let ours = connect(name).unwrap();
        (ours, listener.accept().unwrap(), listener)
    }

    #[test]
    fn messages_bring_descriptors_and_the_kernel_names_the_sender() {
        let name = format!("@kvrail-test-{}", std::process::id());
        let (ours, theirs, listener) = pair(&name);
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        send(&ours, b"hello", &[listener.fd.as_fd(), ours.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let received = receive(&theirs, &mut buffer).unwrap();
        assert_eq!((&buffer[..received.len], received.fds.len()), (&b"hello"[..], 2));
        let nothing = receive(&theirs, &mut buffer).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        let expected = Credentials { pid: Some(std::process::id() as i32), uid: own_uid() };
        assert_eq!((peer(&theirs).unwrap(), peer(&ours).unwrap()), (expected, expected));
        drop((ours, received));
        assert_eq!(receive(&theirs, &mut buffer).unwrap().len, 0);
        assert!(send(&theirs, b"x", &[]).is_err());
    }

    #[test]
    fn what_is_too_long_is_refused_and_its_descriptors_closed() {
        let (ours, theirs, listener) = pair(&format!("@kvrail-long-{}", std::process::id()));
        send(&ours, &[0; 100], &[listener.fd.as_fd()]).unwrap();
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        let error = receive(&theirs, &mut [0; 16]).unwrap_err();
        assert_eq!((error.kind(), open()), (io::ErrorKind::InvalidData, before));
        let many = [listener.fd.as_fd(); MESSAGE_MAX_FDS + 1];
        assert!(send(&ours, b"x", &many).is_err());
    }

    #[test]
    fn a_path_goes_with_its_listener_and_a_dead_one_is_removed() {
        let folder = std::env::temp_dir().join(format!("kvrail-socket-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.sock");
        let name = path.to_str().unwrap();
        drop(Listener::bind(name).unwrap());
        assert!(!path.exists());
        let listener = Listener::bind(name).unwrap();
        remove_if_dead(&path);
        assert!(path.exists(), "somebody listens");
        drop(listener);
        // As a killed process leaves it: bound, and nobody listens.
        bind(socket().unwrap(), &address(name).unwrap()).unwrap();
        remove_if_dead(&path);
        assert!(!path.exists());
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(Listener::bind(&"/x".repeat(100)).is_err());
    }
}
