//! `kvrail topology`'s view of RDMA devices: where each hangs, and the address it would use.

use comfy_table::Table;
use kvrail::topology::{Devices, Gid, RdmaDevice, RdmaPort};
use serde_json::{Value, json};

use super::node;
use crate::table;

/// A line for each port; under its addresses, marked with `*`, the chosen one, or why there is
/// none.
pub fn table(devices: &Devices) -> Table {
    let mut shown = table::new(&["device", "node", "over", "port", "state", "GIDs, * = chosen"]);
    for (device, port) in ports(devices) {
        shown.add_row([
            device.name.clone(),
            node(device.node),
            device.over.clone().unwrap_or_else(|| "-".to_owned()),
            port.number.to_string(),
            format!("{}, {}", port.state, port.link_layer),
            gids(devices, port),
        ]);
    }
    shown
}

pub fn json(devices: &Devices) -> Value {
    devices.rdma.iter().map(|device| device_json(devices, device)).collect()
}

fn ports(devices: &Devices) -> impl Iterator<Item = (&RdmaDevice, &RdmaPort)> {
    devices.rdma.iter().flat_map(|device| device.ports.iter().map(move |port| (device, port)))
}

fn chosen<'a>(devices: &Devices, port: &'a RdmaPort) -> kvrail::Result<&'a Gid> {
    port.choose_gid(None, devices.addresses.as_ref())
}

fn gids(devices: &Devices, port: &RdmaPort) -> String {
    let chosen = chosen(devices, port);
    let is_chosen = |gid: &Gid| chosen.as_ref().is_ok_and(|chosen| *chosen == gid);
    let line = |gid: &Gid| {
        let mark = if is_chosen(gid) { '*' } else { ' ' };
        let netdev = gid.netdev.as_ref().map_or_else(String::new, |name| format!(", {name}"));
        format!("{mark}{}: {} ({}{netdev})", gid.index, address(gid), kind(port, gid))
    };
    let mut lines: Vec<_> = port.gids.iter().map(line).collect();
    if let Err(error) = &chosen {
        lines.push(format!("none is usable: {error}"));
    }
    lines.join("\n")
}

fn address(gid: &Gid) -> String {
    gid.address().map_or_else(|| gid.gid.clone(), |address| address.to_string())
}

/// How far it reaches, or what it is where nobody here speaks it.
fn kind(port: &RdmaPort, gid: &Gid) -> String {
    match port.rank(gid) {
        Some(rank) if gid.kind.is_empty() => rank.to_string(),
        Some(rank) => format!("{}, {rank}", gid.kind),
        None => gid.kind.clone(),
    }
}

fn device_json(devices: &Devices, device: &RdmaDevice) -> Value {
    let ports: Vec<_> = device.ports.iter().map(|port| port_json(devices, port)).collect();
    json!({ "name": device.name, "node": device.node, "over": device.over, "ports": ports })
}

fn port_json(devices: &Devices, port: &RdmaPort) -> Value {
    let chosen = chosen(devices, port);
    let gids = port.gids.iter().map(|gid| {
        json!({
            "index": gid.index,
            "gid": gid.gid,
            "type": gid.kind,
            "netdev": gid.netdev,
            "reach": port.rank(gid).map(|rank| rank.to_string()),
        })
    });
    json!({
        "port": port.number,
        "state": port.state,
        "link_layer": port.link_layer,
        "gids": gids.collect::<Vec<_>>(),
        "chosen_gid": chosen.as_ref().ok().map(|gid| gid.index),
        "why_no_gid": chosen.as_ref().err().map(ToString::to_string),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: usize, gid: &str, kind: &str) -> Gid {
        Gid { index, gid: gid.into(), kind: kind.into(), netdev: Some("n0".into()) }
    }

    fn devices(gids: Vec<Gid>) -> Devices {
        let (state, link_layer) = ("ACTIVE".to_owned(), "Ethernet".to_owned());
        let port = RdmaPort { number: 1, state, link_layer, speed_mbps: None, gids };
        let (name, over) = ("rxe0".to_owned(), Some("n0".to_owned()));
        let rdma = vec![RdmaDevice { name, node: Some(1), over, ports: vec![port] }];
        Devices { rdma, ..Devices::default() }
    }

    #[test]
    fn the_chosen_address_is_marked() {
        let mapped = "0000:0000:0000:0000:0000:ffff:0a09:0001";
        let found = devices(vec![gid(0, "fe80::1", "RoCE v2"), gid(1, mapped, "RoCE v2")]);
        let text = table(&found).trim_fmt();
        assert!(text.contains(" 0: fe80::1 (RoCE v2, local, n0)"), "{text}");
        assert!(text.contains("*1: ::ffff:10.9.0.1 (RoCE v2, private, n0)"), "{text}");
        let port = &json(&found)[0]["ports"][0];
        assert_eq!((&port["chosen_gid"], &port["why_no_gid"]), (&json!(1), &Value::Null));
        assert_eq!(port["gids"][1]["netdev"], "n0");
    }

    #[test]
    fn a_port_without_a_usable_address_says_why() {
        let found = devices(vec![gid(0, "fe80::1", "IB/RoCE v1")]);
        let text = table(&found).trim_fmt();
        assert!(text.contains("none is usable: "), "{text}");
        let port = &json(&found)[0]["ports"][0];
        assert_eq!((&port["chosen_gid"], &port["gids"][0]["reach"]), (&Value::Null, &Value::Null));
        assert!(port["why_no_gid"].as_str().unwrap().contains("RoCE v2"));
    }
}
