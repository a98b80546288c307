//! What RDMA needs: ports that are up, an address of each that peers reach, and memory that may be
//! pinned for devices. A host without devices lacks nothing.

use kvrail_reactors::probe::Limit;

use super::{ok, raise_memlock, warn};
use crate::doctor::{Facts, Finding, Verdict};
use crate::topology::{Devices, Gid, GidRank, Memory, RdmaDevice, RdmaPort, Size};

pub(in crate::doctor) fn ports(devices: &Devices) -> Finding {
    let name = "rdma";
    if devices.rdma.is_empty() {
        return ok(name, "none here");
    }
    let ports: Vec<_> = all_ports(devices).collect();
    let up = ports.iter().filter(|(_, port)| port.is_up()).count();
    let told: Vec<_> = ports.iter().map(|(device, port)| told(device, port)).collect();
    let what = format!("{up} of {} ports are up: {}", ports.len(), told.join(", "));
    if ports.is_empty() {
        return warn(name, "the devices have no ports", "look into `dmesg` for their driver");
    }
    if up == ports.len() {
        return ok(name, what);
    }
    // One port that is down beside others that are up is how machines are cabled.
    let verdict = if up == 0 { Verdict::Warn } else { Verdict::Ok };
    ok(name, what).or(verdict, "to have the others: bring the link up (`ip link set … up`)")
}

pub(in crate::doctor) fn verbs(facts: &Facts) -> Finding {
    let name = "rdma_verbs";
    let has_devices = !facts.devices.rdma.is_empty();
    match (&facts.verbs, has_devices) {
        (Some(Ok(known)), _) => ok(name, format!("libibverbs is here and knows {known} devices")),
        (_, false) => ok(name, "no devices, so libibverbs is not needed"),
        (Some(Err(why)), true) => {
            warn(name, why, "install libibverbs1 and ibverbs-providers (rdma-core), or use TCP")
        }
        (None, true) => warn(
            name,
            "this build has no RDMA, and the host has devices",
            "build kvrail with the feature `rdma`, or use TCP",
        ),
    }
}

pub(in crate::doctor) fn gids(devices: &Devices) -> Finding {
    let name = "rdma_gid";
    let up: Vec<_> = all_ports(devices).filter(|(_, port)| port.is_up()).collect();
    if up.is_empty() {
        return ok(name, "no port is up, so none needs an address");
    }
    let (mut chosen, mut refused, mut short) = (Vec::new(), Vec::new(), None);
    for (device, port) in up {
        let place = place(device, port);
        match port.choose_gid(None, devices.addresses.as_ref()) {
            Ok(gid) => {
                chosen.push(format!(
                    "at {place} GID {}, {}, {}",
                    gid.index,
                    address(gid),
                    gid.kind
                ));
                short = short.or_else(|| reach_of_one_link(port, gid).map(|()| place));
            }
            Err(error) => refused.push(format!("{place}: {error}")),
        }
    }
    let what = format!("queue pairs would use: {}", chosen.join("; "));
    match (chosen.is_empty(), refused.first(), short) {
        (true, _, _) => {
            warn(name, "no port has an address that peers could reach", refused.join("; "))
        }
        (false, Some(_), _) => ok(name, what).or(Verdict::Ok, refused.join("; ")),
        (false, None, Some(place)) => ok(name, what).or(
            Verdict::Ok,
            format!("{place} is reached within its own link only: give its interface an address"),
        ),
        (false, None, None) => ok(name, what),
    }
}

pub(in crate::doctor) fn memlock(facts: &Facts) -> Finding {
    let name = "rdma_memlock";
    if facts.devices.rdma.is_empty() {
        return ok(name, "there is no device to register memory with");
    }
    let Limit { soft: Some(bytes), .. } = facts.memlock else {
        return ok(name, "memory may be registered with devices without limit");
    };
    if facts.may_lock {
        return ok(name, "memory may be registered with devices without limit (CAP_IPC_LOCK)");
    }
    let what = format!("{} of memory may be registered with devices", Size(bytes));
    match room(&facts.memory) {
        Some(room) if bytes >= room => ok(name, what),
        Some(room) => warn(
            name,
            format!("{what}, and {} are free for regions", Size(room)),
            raise_memlock(facts.memlock, room),
        ),
        None => warn(name, what, raise_memlock(facts.memlock, u64::MAX)),
    }
}

/// What regions could take.
fn room(memory: &Memory) -> Option<u64> {
    memory.host_room_bytes.into_iter().chain(memory.group_room_bytes).min()
}

fn all_ports(devices: &Devices) -> impl Iterator<Item = (&RdmaDevice, &RdmaPort)> {
    devices.rdma.iter().flat_map(|device| device.ports.iter().map(move |port| (device, port)))
}

fn place(device: &RdmaDevice, port: &RdmaPort) -> String {
    format!("{}/{}", device.name, port.number)
}

/// `rxe0/1 over eth0 is ACTIVE (Ethernet)`.
fn told(device: &RdmaDevice, port: &RdmaPort) -> String {
    let over = device.over.as_ref().map_or_else(String::new, |nic| format!(" over {nic}"));
    format!("{}{over} is {} ({})", place(device, port), port.state, port.link_layer)
}

fn address(gid: &Gid) -> String {
    gid.address().map_or_else(|| gid.gid.clone(), |address| address.to_string())
}

fn reach_of_one_link(port: &RdmaPort, gid: &Gid) -> Option<()> {
    let rank = port.rank(gid)?;
    matches!(rank, GidRank::Degraded | GidRank::DegradedElsewhere).then_some(())
}
