//! The wire of a pair: which of the two guests one is, what QEMU wants to hear of it, and what the
//! guest is told. Pure.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where a guest of a pair finds its letter, its address and that of the other.
const VARIABLES: [&str; 3] = ["KVRAIL_GUEST", "KVRAIL_GUEST_ADDRESS", "KVRAIL_PEER_ADDRESS"];
/// The soft-RoCE device on the wire, as xtask/vm/init makes it.
pub const DEVICE: &str = "rxe0";
/// What QEMU calls the wire, for whoever cuts it.
pub const NETDEV: &str = "wire";

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    A,
    B,
}

impl End {
    pub fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    pub fn address(self) -> &'static str {
        match self {
            Self::A => "10.8.0.1",
            Self::B => "10.8.0.2",
        }
    }

    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// How a guest's command learns which it is.
    pub fn environment(self) -> [(&'static str, &'static str); 3] {
        let values = [self.letter(), self.address(), self.other().address()];
        std::array::from_fn(|i| (VARIABLES[i], values[i]))
    }
}

/// One end of the wire, in a folder that both ends have in common.
#[derive(Debug, Clone)]
pub struct Wire {
    pub end: End,
    pub folder: PathBuf,
}

impl Wire {
    /// Where the guest's QEMU listens for orders.
    pub fn monitor(&self) -> PathBuf {
        self.folder.join(format!("{}.qmp", self.end.letter()))
    }

    fn socket(&self, end: End) -> PathBuf {
        self.folder.join(format!("{}.net", end.letter()))
    }

    /// What QEMU is told. Frames are datagrams: either guest may come, go or come again alone.
    pub fn arguments(&self) -> Vec<OsString> {
        let (near, far) = (self.socket(self.end), self.socket(self.end.other()));
        let wire = format!(
            "dgram,id={NETDEV},local.type=unix,local.path={},remote.type=unix,remote.path={}",
            escaped(&near),
            escaped(&far)
        );
        let last = match self.end {
            End::A => 1,
            End::B => 2,
        };
        let nic = format!("virtio-net-pci,netdev={NETDEV},mac=52:54:00:08:00:{last:02x}");
        let monitor = format!("unix:{},server=on,wait=off", escaped(&self.monitor()));
        ["-netdev", &wire, "-device", &nic, "-qmp", &monitor].map(OsString::from).into()
    }
}

/// A path inside an option, where QEMU wants commas doubled.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_sends_to_the_other() {
        let wire = |end| Wire { end, folder: "/tmp/x,y".into() };
        let words = |end| wire(end).arguments();
        assert_eq!(
            words(End::A),
            [
                "-netdev",
                "dgram,id=wire,local.type=unix,local.path=/tmp/x,,y/a.net,remote.type=unix,\
                 remote.path=/tmp/x,,y/b.net",
                "-device",
                "virtio-net-pci,netdev=wire,mac=52:54:00:08:00:01",
                "-qmp",
                "unix:/tmp/x,,y/a.qmp,server=on,wait=off",
            ]
        );
        let line = words(End::B).join(" ".as_ref()).into_string().unwrap();
        assert!(
            line.contains("local.path=/tmp/x,,y/b.net,remote.type=unix,remote.path=/tmp/x,,y/a")
        );
        assert!(line.contains("mac=52:54:00:08:00:02 ") && line.contains("b.qmp"), "{line}");
        assert_eq!(wire(End::B).monitor(), Path::new("/tmp/x,y/b.qmp"));
    }

    #[test]
    fn a_guest_learns_which_it_is_and_where_the_other_is() {
        let [guest, own, peer] = End::B.environment();
        assert_eq!(guest, ("KVRAIL_GUEST", "b"));
        assert_eq!(own, ("KVRAIL_GUEST_ADDRESS", "10.8.0.2"));
        assert_eq!(peer, ("KVRAIL_PEER_ADDRESS", End::A.address()));
    }
}
