//! IP addresses that the interfaces of this host have, from the kernel's tables.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// The addresses of the network namespace whose `proc` lies under `root`; `None` where the kernel
/// doesn't show them.
pub fn read(root: &Path) -> Option<BTreeSet<IpAddr>> {
    let text = |name: &str| fs::read_to_string(root.join("proc/net").join(name)).ok();
    let v4 = text("fib_trie")?;
    // Not there where the kernel has no IPv6.
    let v6 = text("if_inet6").unwrap_or_default();
    let v4 = local_v4(&v4).map(IpAddr::from);
    Some(v4.chain(v6.lines().filter_map(local_v6).map(IpAddr::from)).collect())
}

/// An address of ours stands as `|-- 10.9.0.1`, with `/32 host LOCAL` among the lines beneath.
fn local_v4(text: &str) -> impl Iterator<Item = Ipv4Addr> {
    let mut address = None;
    text.lines().filter_map(move |line| {
        if let Some((_, node)) = line.split_once("|-- ") {
            address = node.trim().parse().ok();
        }
        address.filter(|_| line.trim() == "/32 host LOCAL")
    })
}

/// `fe80000000000000505400fffe123456 02 40 20 80 eth0`.
fn local_v6(line: &str) -> Option<Ipv6Addr> {
    let digits = line.split_whitespace().next().filter(|digits| digits.len() == 32)?;
    u128::from_str_radix(digits, 16).ok().map(Ipv6Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::tests::tree;

    /// As Linux 6.1 shows it for lo and one interface, cut to what differs.
    const FIB_TRIE: &str = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.9.0.0/24 2 0 2
        |-- 10.9.0.0
           /24 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 10.9.0.0/24 2 0 2
        +-- 10.9.0.0/28 2 0 2
           |-- 10.9.0.1
              /32 host LOCAL
        |-- 10.9.0.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
     |-- 192.0.2.2
        /31 link UNICAST
        /32 host LOCAL
";

    const IF_INET6: &str = "\
00000000000000000000000000000001 01 80 10 80       lo
fe80000000000000505400fffe123456 02 40 20 80     eth0
nonsense
";

    #[test]
    fn what_interfaces_have_is_read_and_what_routes_name_is_not() {
        let root = tree(&[("proc/net/fib_trie", FIB_TRIE), ("proc/net/if_inet6", IF_INET6)]);
        let addresses = read(root.path()).unwrap();
        let words: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["10.9.0.1", "127.0.0.1", "192.0.2.2", "::1", "fe80::5054:ff:fe12:3456"]);
    }

    #[test]
    fn a_kernel_without_ipv6_has_the_others_and_one_without_tables_says_nothing() {
        let root = tree(&[("proc/net/fib_trie", FIB_TRIE)]);
        assert_eq!(read(root.path()).unwrap().len(), 3);
        assert_eq!(read(tree(&[]).path()), None);
    }

    #[test]
    fn this_hosts_loopback_is_its_own() {
        // Sandboxes that show no table are what `None` is for.
        if let Some(addresses) = read(Path::new("/")) {
            let can_bind = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).is_ok();
            assert_eq!(addresses.contains(&Ipv4Addr::LOCALHOST.into()), can_bind);
        }
    }
}
