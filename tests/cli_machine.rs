//! `kvrail topology` and `kvrail doctor`, as people and scripts use them, on the machine that runs
//! the test and under limits set for it.

use std::process::{Command, Output};

use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvrail")).args(arguments).output().expect("it runs")
}

/// The command after `limits`, which a shell sets for it.
fn run_under(limits: &str, arguments: &str) -> Output {
    let line = format!("{limits}; exec {} {arguments}", env!("CARGO_BIN_EXE_kvrail"));
    Command::new("sh").args(["-c", &line]).output().expect("it runs")
}

fn json(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("one line of JSON: {error}"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["name"] == name).expect("the check")
}

#[test]
fn topology_draws_the_machine_and_fits_the_terminal() {
    let output = run(&["topology", "--shards", "3"]);
    assert!(output.status.success());
    let drawn = text(&output);
    for word in ["This process may use", "NUMA nodes", "Shards", "NICs", "RDMA devices"] {
        assert!(drawn.contains(word), "{word} is not in:\n{drawn}");
    }
    assert!(drawn.lines().all(|line| line.chars().count() <= 100), "{drawn}");
}

#[test]
fn topology_tells_scripts_where_shards_run() {
    let report = json(&run(&["topology", "--shards", "3", "--json"]));
    let shards = report["shards"].as_array().expect("shards");
    assert_eq!(shards.len(), 3);
    let here = kvrail::topology::Topology::here().unwrap();
    assert_eq!(report["allowed_cpus"], here.allowed.to_string());
    assert_eq!(report["nodes"].as_array().map(Vec::len), Some(here.nodes.len()));
    for shard in shards {
        let cpus = shard["cpus"].as_str().expect("CPUs");
        let cpus: kvrail::topology::CpuSet = cpus.parse().unwrap();
        assert!(cpus.is_subset(&here.allowed));
    }
}

#[test]
fn a_size_that_fits_is_told_from_one_that_does_not() {
    let fits = run(&["topology", "--fit", "1MiB"]);
    assert!(fits.status.success(), "{}", text(&fits));
    assert!(text(&fits).contains("no binding"), "{}", text(&fits));
    let report = json(&run(&["topology", "--fit", "1MiB", "--json"]));
    assert_eq!((&report["bytes"], &report["fits"]), (&(1 << 20).into(), &true.into()));
    let huge = run(&["topology", "--fit", "4096T", "--json"]);
    assert_eq!(huge.status.code(), Some(1));
    let report = json(&huge);
    assert_eq!(report["fits"], false);
    for policy in report["policies"].as_array().expect("policies") {
        assert_eq!(policy["fits"], false);
        let why = policy["why"].as_str().expect("a reason");
        assert!(why.contains("4096.0 TiB asked"), "{why}");
    }
    assert!(text(&run(&["topology", "--fit", "4096T"])).contains("does not fit now"));
    assert_eq!(run(&["topology", "--fit", "1X"]).status.code(), Some(2), "clap's own");
}

#[test]
fn no_shards_are_refused_and_said_so() {
    let output = run(&["topology", "--shards", "0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("ask for 1 to"));
}

#[test]
fn doctor_passes_where_these_tests_pass() {
    let output = run(&["doctor"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    for name in ["io_uring", "memlock", "huge_pages", "numa", "memfd", "foreign_memory", "rdma"] {
        assert!(text(&output).contains(name), "{}", text(&output));
    }
    let report = json(&run(&["doctor", "--json"]));
    assert_ne!(report["verdict"], "fail");
    assert_eq!(check(&report, "memfd")["verdict"], "ok");
    let help = text(&run(&["doctor", "--help"]));
    assert!(help.contains("Exit code: 0"), "{help}");
}

#[test]
fn doctor_warns_of_little_locked_memory() {
    let output = run_under("ulimit -l 64", "doctor --json");
    assert_eq!(output.status.code(), Some(0), "a warning is no failure");
    let report = json(&output);
    let memlock = check(&report, "memlock");
    assert_eq!(memlock["verdict"], "warn");
    assert!(memlock["what"].as_str().is_some_and(|what| what.contains("64.0 KiB")), "{memlock}");
    assert!(memlock["remedy"].is_string(), "{memlock}");
}

#[test]
fn doctor_fails_where_an_engine_would() {
    let output = run_under("ulimit -n 32", "doctor --json");
    assert_eq!(output.status.code(), Some(1));
    let report = json(&output);
    assert_eq!(report["verdict"], "fail");
    assert_eq!(check(&report, "open_files")["verdict"], "fail");
    let output = run_under("ulimit -n 32", "doctor");
    assert!(text(&output).contains("an engine does not run here"), "{}", text(&output));
}

#[test]
fn a_limit_on_file_sizes_bounds_regions_and_kills_nobody() {
    let output = run_under("ulimit -f 1024", "topology --fit 64M --json");
    assert_eq!(output.status.code(), Some(1));
    let why = json(&output)["policies"][0]["why"].as_str().expect("a reason").to_owned();
    assert!(why.contains("ulimit -f"), "{why}");
    let local = "bench --mode initiator --path local --buffer-size 64M --duration 1";
    let output = run_under("ulimit -f 1024", local);
    assert_eq!(output.status.code(), Some(1), "an exit code and no signal");
    assert!(String::from_utf8_lossy(&output.stderr).contains("ulimit -f"));
    // What an engine makes for itself has to be small too, and what fits works.
    for limit in [0, 8, 1024, 8192] {
        let local = "bench --mode initiator --path local --buffer-size 256K --block-size 4K \
                     --batch-size 2 --threads 1 --duration 1";
        let output = run_under(&format!("ulimit -f {limit}"), local);
        assert!(output.status.code().is_some(), "a signal under {limit}: {output:?}");
        assert_eq!(output.status.success(), limit >= 1024, "under {limit}: {output:?}");
    }
}

/// The port of `rxe1` as `kvrail topology` sees it.
fn rxe1() -> Value {
    let report = json(&run(&["topology", "--json"]));
    let devices = report["rdma"].as_array().expect("devices");
    let device = devices.iter().find(|device| device["name"] == "rxe1").expect("rxe1");
    assert_eq!(device["over"], "n1");
    device["ports"][0].clone()
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2");
    assert!(status.success(), "ip {arguments}");
}

#[test]
#[ignore = "needs rxe0 and rxe1, and changes their interfaces: cargo xtask test --only rdma"]
fn topology_and_doctor_follow_what_happens_to_rdma_devices() {
    let port = rxe1();
    assert_eq!((&port["state"], &port["link_layer"]), (&"ACTIVE".into(), &"Ethernet".into()));
    assert_eq!(port["chosen_gid"], 1, "the interface's IPv4 address: {port}");
    assert_eq!(port["gids"][1]["netdev"], "n1");
    let report = json(&run(&["doctor", "--json"]));
    let gid = check(&report, "rdma_gid");
    assert!(gid["what"].as_str().is_some_and(|what| what.contains("::ffff:10.9.0.2")), "{gid}");
    for name in ["rdma", "rdma_gid", "rdma_memlock"] {
        assert_eq!(check(&report, name)["verdict"], "ok");
    }
    ip("addr del 10.9.0.2/24 dev n1");
    assert_eq!(rxe1()["chosen_gid"], 0, "the link's own address is left");
    // The device's table keeps an address of the link that the interface no longer has.
    ip("addr flush dev n1 scope link");
    let port = rxe1();
    assert_eq!(port["chosen_gid"], Value::Null, "{port}");
    assert!(port["why_no_gid"].as_str().is_some_and(|why| why.contains("no interface here")));
    ip("link set n1 down");
    assert_eq!(rxe1()["state"], "DOWN");
    let report = json(&run(&["doctor", "--json"]));
    assert!(check(&report, "rdma")["what"].as_str().is_some_and(|what| what.contains("DOWN")));
}
