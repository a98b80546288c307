//! A machine with RDMA devices: their ports, addresses, and memory to register.

use super::*;
use crate::topology::{Gid, RdmaDevice, RdmaPort};

fn gid(index: usize, gid: &str, kind: &str) -> Gid {
    Gid { index, gid: gid.into(), kind: kind.into(), netdev: Some("eth0".into()) }
}

fn device(name: &str, state: &str, gids: &[Gid]) -> RdmaDevice {
    let port = RdmaPort {
        number: 1,
        state: state.into(),
        link_layer: "Ethernet".into(),
        speed_mbps: None,
        gids: gids.into(),
    };
    RdmaDevice { name: name.into(), node: None, over: Some("eth0".into()), ports: vec![port] }
}

fn healthy_device() -> RdmaDevice {
    device("rxe0", "ACTIVE", &[gid(1, "::ffff:192.0.2.2", "RoCE v2")])
}

fn with(name: &str, devices: &[RdmaDevice]) -> Finding {
    changed(name, |facts| {
        facts.devices.rdma = devices.into();
        facts.devices.addresses = Some(["192.0.2.2".parse().unwrap()].into());
    })
}

#[test]
fn no_device_is_no_fault() {
    says(&changed("rdma", |_| ()), Verdict::Ok, "none here", "");
    says(&changed("rdma_gid", |_| ()), Verdict::Ok, "no port is up", "");
    says(&changed("rdma_memlock", |_| ()), Verdict::Ok, "no device", "");
}

#[test]
fn a_host_with_devices_needs_libibverbs_and_a_build_that_knows_it() {
    let with_verbs = |verbs: Option<Result<usize, String>>, devices: &[RdmaDevice]| {
        changed("rdma_verbs", |facts| {
            facts.devices.rdma = devices.into();
            facts.verbs = verbs;
        })
    };
    let missing = || Some(Err("libibverbs.so.1: not found".to_owned()));
    let device = [healthy_device()];
    says(&with_verbs(Some(Ok(1)), &device), Verdict::Ok, "knows 1 devices", "");
    says(&with_verbs(missing(), &device), Verdict::Warn, "not found", "libibverbs1");
    says(&with_verbs(None, &device), Verdict::Warn, "this build has no RDMA", "feature `rdma`");
    says(&with_verbs(missing(), &[]), Verdict::Ok, "not needed", "");
}

#[test]
fn ports_are_told_with_state_and_link_layer() {
    let up = healthy_device();
    let down = device("rxe1", "DOWN", &[]);
    let told = "1 of 1 ports are up: rxe0/1 over eth0 is ACTIVE (Ethernet)";
    says(&with("rdma", std::slice::from_ref(&up)), Verdict::Ok, told, "");
    says(&with("rdma", &[up, down.clone()]), Verdict::Ok, "rxe1/1 over eth0 is DOWN", "ip link");
    says(&with("rdma", &[down]), Verdict::Warn, "0 of 1 ports", "bring the link up");
    let portless = RdmaDevice { ports: Vec::new(), ..healthy_device() };
    says(&with("rdma", &[portless]), Verdict::Warn, "no ports", "dmesg");
}

#[test]
fn the_chosen_address_is_named_and_so_is_what_is_missing() {
    let up = healthy_device();
    let found = with("rdma_gid", std::slice::from_ref(&up));
    says(&found, Verdict::Ok, "use: at rxe0/1 GID 1, ::ffff:192.0.2.2, RoCE v2", "");
    assert_eq!(found.remedy, None);
    let old = device("old0", "ACTIVE", &[gid(0, "fe80::1", "IB/RoCE v1")]);
    says(&with("rdma_gid", &[up, old.clone()]), Verdict::Ok, "rxe0/1 GID 1", "old0/1: ");
    says(&with("rdma_gid", &[old]), Verdict::Warn, "no port has an address", "0: IB/RoCE v1");
    let stranger = device("rxe0", "ACTIVE", &[gid(1, "::ffff:192.0.2.9", "RoCE v2")]);
    says(&with("rdma_gid", &[stranger]), Verdict::Warn, "no port", "network namespace");
}

#[test]
fn an_address_of_one_link_is_hinted_at() {
    let found = changed("rdma_gid", |facts| {
        facts.devices.rdma = vec![device("rxe0", "ACTIVE", &[gid(0, "fe80::1", "RoCE v2")])];
    });
    says(&found, Verdict::Ok, "at rxe0/1 GID 0, fe80::1", "within its own link only");
}

#[test]
fn little_memory_to_register_is_warned_of() {
    let limited = |hard: Option<u64>, change: fn(&mut Facts)| {
        changed("rdma_memlock", |facts| {
            facts.devices.rdma = vec![healthy_device()];
            facts.memlock = Limit { soft: Some(GIB), hard };
            change(facts);
        })
    };
    let found = limited(Some(GIB), |_| ());
    says(&found, Verdict::Warn, "1.0 GiB of memory may be registered", "LimitMEMLOCK");
    assert!(found.what.contains("8.0 GiB are free"), "{found:?}");
    says(&limited(None, |_| ()), Verdict::Warn, "1.0 GiB", "`ulimit -l 8388608`");
    let found = limited(None, |facts| facts.memory.host_room_bytes = None);
    says(&found, Verdict::Warn, "1.0 GiB", "`ulimit -l unlimited`");
    let found = limited(Some(GIB), |facts| facts.memory.group_room_bytes = Some(GIB));
    says(&found, Verdict::Ok, "1.0 GiB of memory may be registered", "");
    says(&limited(None, |facts| facts.may_lock = true), Verdict::Ok, "CAP_IPC_LOCK", "");
    let unlimited = limited(None, |facts| facts.memlock = Limit { soft: None, hard: None });
    says(&unlimited, Verdict::Ok, "without limit", "");
}
