//! The files of examples/operations say what the code does: the dashboard asks for the metrics that
//! there are, the seccomp profile lets io_uring through and refuses the rest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kvrail::metrics::{Kind, TABLE};
use serde_json::Value;

use super::service::{a_run, has_uring};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/operations").join(name)
}

fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(file(name)).expect("it is there");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every expression of the dashboard's panels, with the panel's title.
fn expressions(dashboard: &Value) -> Vec<(&str, &str)> {
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    panels
        .flat_map(|panel| {
            let title = panel["title"].as_str().expect("a title");
            let targets = panel["targets"].as_array().expect("targets").iter();
            targets.map(move |target| (title, target["expr"].as_str().expect("an expression")))
        })
        .collect()
}

/// The names of kvrail's metrics in an expression.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    expression.split(move |c| !is_word(c)).filter(|word| word.starts_with("kvrail_"))
}

/// What a scraper sees of each metric, and the metric.
fn series() -> Vec<(String, &'static str)> {
    let of = |metric: &kvrail::metrics::Metric| {
        let suffixes: &[&str] = match metric.kind {
            Kind::Counter => &[""],
            Kind::Histogram => &["_bucket", "_count", "_sum"],
        };
        let name = metric.name;
        suffixes.iter().map(move |suffix| (format!("{name}{suffix}"), name)).collect::<Vec<_>>()
    };
    TABLE.iter().flat_map(of).collect()
}

#[test]
fn the_dashboard_shows_every_metric_and_asks_for_no_other() {
    let (dashboard, series) = (json("grafana.json"), series());
    let mut shown = BTreeSet::new();
    for (title, expression) in expressions(&dashboard) {
        for name in names(expression) {
            let found = series.iter().find(|(series, _)| series == name);
            let (_, metric) = found.unwrap_or_else(|| panic!("{title}: nobody records {name}"));
            shown.insert(*metric);
        }
    }
    let all: BTreeSet<_> = TABLE.iter().map(|metric| metric.name).collect();
    assert_eq!(shown, all, "what is shown, and what there is");
    // The list of processes, too.
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let queries = variables.iter().filter_map(|variable| variable["query"].as_str());
    for name in queries.flat_map(names) {
        assert!(series.iter().any(|(series, _)| series == name), "nobody records {name}");
    }
}

#[test]
fn panels_lie_side_by_side_and_have_their_own_numbers() {
    let dashboard = json("grafana.json");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len());
    let places: BTreeSet<_> = panels
        .iter()
        .map(|panel| (panel["gridPos"]["x"].as_u64(), panel["gridPos"]["y"].as_u64()))
        .collect();
    assert_eq!(places.len(), panels.len());
}

/// The system calls that the profile lets through.
fn allowed(profile: &Value) -> BTreeSet<&str> {
    let rules = profile["syscalls"].as_array().expect("rules").iter();
    rules
        .flat_map(|rule| {
            assert_eq!(rule["action"], "SCMP_ACT_ALLOW", "every rule is an exception");
            rule["names"].as_array().expect("names").iter().map(|name| name.as_str().expect("text"))
        })
        .collect()
}

#[test]
fn the_seccomp_profile_refuses_by_default_and_lets_io_uring_through() {
    let profile = json("seccomp.json");
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let allowed = allowed(&profile);
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert!(allowed.contains(call), "{call}");
    }
    for call in ["mount", "ptrace", "bpf", "setns", "unshare", "init_module", "kexec_load"] {
        assert!(!allowed.contains(call), "{call}");
    }
}

/// What runtimes call behind the profile to become the container's user, where a container may
/// gain privileges, which is the default. crun was seen to fail without its own.
const RUNTIMES: [(&str, &[&str]); 2] = [
    ("runc", &["capset", "chdir", "close_range", "prctl", "setgid", "setgroups", "setuid"]),
    ("crun", &["capset", "chdir", "prctl", "setgroups", "setresgid", "setresuid", "umask"]),
];

#[test]
fn the_seccomp_profile_lets_runtimes_start_the_command() {
    let profile = json("seccomp.json");
    let allowed = allowed(&profile);
    for (runtime, calls) in RUNTIMES {
        let missing: Vec<_> = calls.iter().filter(|call| !allowed.contains(**call)).collect();
        assert!(missing.is_empty(), "{runtime}: {missing:?}");
    }
}

/// What this test calls itself, to start processes and to end them.
const STARTING: [&str; 4] = ["dup2", "kill", "vfork", "waitid"];

/// From here on this thread, and what it starts, lives under the profile.
fn enter(profile: &Value) {
    let calls = allowed(profile).into_iter().chain(STARTING);
    let filter: Vec<_> = calls.map(|name| serde_json::json!({"syscall": name})).collect();
    let program = serde_json::json!({"all": {
        "mismatch_action": {"errno": profile["defaultErrnoRet"]},
        "match_action": "allow",
        "filter": filter,
    }});
    let arch = std::env::consts::ARCH.try_into().expect("an architecture with seccomp");
    let programs = seccompiler::compile_from_json(program.to_string().as_bytes(), arch);
    seccompiler::apply_filter(&programs.expect("names of system calls")["all"]).expect("seccomp");
}

#[test]
fn the_command_works_under_the_seccomp_profile_on_io_uring() {
    let under = |work: fn()| {
        let thread = std::thread::spawn(move || {
            enter(&json("seccomp.json"));
            work();
        });
        thread.join().expect("it works");
    };
    under(|| {
        let refused = rustix::process::getpriority_process(None);
        assert!(refused.is_err(), "what it does not name is refused");
    });
    if has_uring() {
        under(|| a_run(&["--driver", "uring", "--path", "auto"]));
        under(|| a_run(&["--driver", "uring", "--path", "tcp"]));
    } else {
        eprintln!("left out on io_uring: this host refuses it");
    }
    under(|| a_run(&["--driver", "epoll", "--path", "tcp", "--memory", "foreign"]));
}

#[test]
fn systemd_takes_the_unit() {
    let unit = file("kvrail-bench-target.service");
    let mut verify = std::process::Command::new("systemd-analyze");
    let Ok(output) = verify.args(["verify", "--man=no"]).arg(&unit).output() else {
        return eprintln!("left out: systemd-analyze is not installed");
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let is_here = |line: &&str| line.contains("kvrail-bench-target.service");
    // It looks for the command, which is not installed where it is tested.
    let wrong: Vec<_> =
        said.lines().filter(is_here).filter(|line| !line.contains("not executable")).collect();
    assert!(wrong.is_empty(), "{said}");
    let text = std::fs::read_to_string(unit).expect("it is there");
    for line in ["LimitMEMLOCK=infinity", "KillSignal=SIGTERM"] {
        assert!(text.lines().any(|other| other == line), "{line}");
    }
}

#[test]
fn the_example_of_a_configuration_file_is_one() {
    let config = kvrail::Config::from_file(file("kvrail.toml")).expect("it is read");
    assert_eq!(config.local_hostname.as_deref(), Some("127.0.0.1"));
    assert!(config.builder().is_ok());
}
