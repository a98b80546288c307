//! Ports as `sys` shows them, and the address that is chosen of each.

use super::super::tests::tree;
use super::*;
use crate::ErrorKind;
use crate::topology::Devices;

const LINK_LOCAL: &str = "fe80:0000:0000:0000:5054:00ff:fe12:3456";
const PRIVATE: &str = "0000:0000:0000:0000:0000:ffff:0a09:0001";
const PUBLIC: &str = "0000:0000:0000:0000:0000:ffff:c000:0202";
const PUBLIC_V6: &str = "2001:0db8:0000:0000:0000:0000:0000:0001";
const NULL: &str = "0000:0000:0000:0000:0000:0000:0000:0000";

/// A port of this link layer, read from a tree with these entries: GID, kind, interface.
fn port(link_layer: &str, gids: &[(&str, &str, &str)]) -> RdmaPort {
    let folder = "sys/class/infiniband/dev0/ports/1";
    let mut files = vec![
        (format!("{folder}/state"), "4: ACTIVE\n".to_owned()),
        (format!("{folder}/link_layer"), format!("{link_layer}\n")),
    ];
    for (index, (gid, kind, netdev)) in gids.iter().enumerate() {
        files.push((format!("{folder}/gids/{index}"), format!("{gid}\n")));
        let attributes = [("types", kind), ("ndevs", netdev)];
        for (name, value) in attributes.into_iter().filter(|(_, value)| !value.is_empty()) {
            files.push((format!("{folder}/gid_attrs/{name}/{index}"), format!("{value}\n")));
        }
    }
    let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let devices = Devices::read(tree(&files).path());
    devices.rdma[0].ports[0].clone()
}

fn ethernet(gids: &[(&str, &str, &str)]) -> RdmaPort {
    port("Ethernet", gids)
}

fn chosen(port: &RdmaPort) -> usize {
    port.choose_gid(None, None).unwrap().index
}

fn refusal(chosen: Result<&Gid>) -> String {
    let error = chosen.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    error.to_string()
}

#[test]
fn the_farthest_reaching_address_is_chosen() {
    // From the worst to the best: each entry beats all before it.
    let entries = [
        (PUBLIC, "IB/RoCE v1", "eth0"),
        (PUBLIC, "", "eth0"),
        (LINK_LOCAL, "RoCE v2", ""),
        (PRIVATE, "RoCE v2", ""),
        (LINK_LOCAL, "RoCE v2", "eth0"),
        (PRIVATE, "RoCE v2", "eth0"),
        (PUBLIC, "RoCE v2", ""),
        (PUBLIC_V6, "RoCE v2", "eth0"),
    ];
    for count in 2..=entries.len() {
        assert_eq!(chosen(&ethernet(&entries[..count])), count - 1);
        let mut reversed = entries[..count].to_vec();
        reversed.reverse();
        assert_eq!(chosen(&ethernet(&reversed)), 0);
    }
}

#[test]
fn what_containers_and_tunnels_made_is_degraded() {
    for name in ["flannel.1", "cni0", "vxlan.calico", "docker0", "tunl0"] {
        let port = ethernet(&[(PUBLIC, "RoCE v2", name), (PRIVATE, "RoCE v2", "eth0")]);
        assert_eq!(port.rank(&port.gids[0]), Some(GidRank::Degraded), "{name}");
        assert_eq!(chosen(&port), 1, "{name}");
    }
}

#[test]
fn private_networks_are_those_that_overlays_use() {
    let rank = |v4: [u8; 4]| {
        let [a, b, c, d] = v4;
        let gid = format!("0000:0000:0000:0000:0000:ffff:{a:02x}{b:02x}:{c:02x}{d:02x}");
        let port = ethernet(&[(&gid, "RoCE v2", "eth0")]);
        port.rank(&port.gids[0])
    };
    for v4 in [[10, 9, 0, 1], [172, 16, 0, 1], [172, 31, 0, 1], [100, 64, 0, 1], [100, 127, 0, 1]] {
        assert_eq!(rank(v4), Some(GidRank::Private), "{v4:?}");
    }
    for v4 in [[11, 0, 0, 1], [172, 32, 0, 1], [100, 128, 0, 1], [192, 168, 0, 1]] {
        assert_eq!(rank(v4), Some(GidRank::Routable), "{v4:?}");
    }
}

#[test]
fn equals_go_to_the_lowest_index_and_what_is_not_set_to_nobody() {
    let port = ethernet(&[
        (NULL, "RoCE v2", "eth0"),
        (PUBLIC, "RoCE v2", "eth0"),
        (PUBLIC_V6, "RoCE v2", "eth0"),
    ]);
    assert_eq!(chosen(&port), 1);
}

#[test]
fn a_forced_index_is_taken_as_it_is() {
    let port = ethernet(&[(LINK_LOCAL, "IB/RoCE v1", "eth0"), (PUBLIC, "RoCE v2", "eth0")]);
    let nothing = BTreeSet::new();
    assert_eq!(port.choose_gid(Some(0), Some(&nothing)).unwrap().index, 0);
    let refused = refusal(port.choose_gid(Some(7), None));
    assert!(refused.contains("GID 7 is not set: choose among 0: fe80"), "{refused}");
    let refused = refusal(ethernet(&[]).choose_gid(Some(0), None));
    assert!(refused.contains("bring the link up"), "{refused}");
}

#[test]
fn infiniband_has_addresses_of_its_own() {
    let port = port("InfiniBand", &[(LINK_LOCAL, "IB/RoCE v1", ""), (PUBLIC_V6, "", "ib0")]);
    assert_eq!(port.rank(&port.gids[0]), Some(GidRank::RoutableElsewhere), "a subnet's prefix");
    assert_eq!(chosen(&port), 1);
    let nothing = BTreeSet::new();
    assert_eq!(port.choose_gid(None, Some(&nothing)).unwrap().index, 1, "no IP address to check");
}

#[test]
fn an_address_that_no_interface_has_is_passed_over() {
    let port = ethernet(&[
        (LINK_LOCAL, "RoCE v2", "eth0"),
        (PRIVATE, "RoCE v2", "eth0"),
        (PUBLIC, "RoCE v2", "eth0"),
    ]);
    let own = |words: &[&str]| words.iter().map(|word| word.parse().unwrap()).collect();
    let index = |own: &BTreeSet<IpAddr>| port.choose_gid(None, Some(own)).unwrap().index;
    assert_eq!(index(&own(&["192.0.2.2", "10.9.0.1"])), 2);
    assert_eq!(index(&own(&["127.0.0.1", "10.9.0.1", "fe80::5054:ff:fe12:3456"])), 1);
    assert_eq!(index(&own(&["127.0.0.1", "fe80::5054:ff:fe12:3456"])), 0);
    let refused = refusal(port.choose_gid(None, Some(&own(&["127.0.0.1"]))));
    assert!(refused.contains("network namespace") && refused.contains("2: 0000:"), "{refused}");
}

#[test]
fn a_port_that_speaks_another_version_says_which() {
    let old = ethernet(&[(LINK_LOCAL, "IB/RoCE v1", "eth0"), (PUBLIC, "IB/RoCE v1", "eth0")]);
    let refused = refusal(old.choose_gid(None, None));
    assert!(refused.contains("RoCE v2: 0: IB/RoCE v1, 1: IB/RoCE v1"), "{refused}");
    assert!(refusal(ethernet(&[]).choose_gid(None, None)).contains("no GID"));
    assert!(
        refusal(ethernet(&[("nonsense", "RoCE v2", "")]).choose_gid(None, None)).contains("0:")
    );
}
