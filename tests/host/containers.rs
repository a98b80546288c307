//! Namespaces as containers have them: processes that don't see each other's numbers, and networks
//! in which abstract sockets don't meet, but a shared folder does.

use std::process::Command;

use kvrail::{Access, Batch, Eternal, PathKind};

use super::process::Process;
use super::{engine, fill, pattern, region, run};

const LEN: usize = 300_000;

/// This binary behind another command.
fn behind(command: &[&str]) -> Command {
    let mut words = command.iter();
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(std::env::current_exe().unwrap());
    command
}

fn is_permitted(command: &[&str]) -> bool {
    let ran = Command::new(command[0]).args(&command[1..]).output();
    let is_fine = ran.as_ref().is_ok_and(|output| output.status.success());
    if !is_fine {
        println!("skipped: `{}` is not permitted here: {ran:?}", command.join(" "));
    }
    is_fine
}

#[test]
fn a_process_of_another_pid_namespace_maps_memory_and_reads_no_processes() {
    let unshare = ["unshare", "--pid", "--fork", "--kill-child"];
    if !is_permitted(&[&unshare[..], &["true"]].concat()) {
        return;
    }
    run(async {
        let ours = engine();
        let mut child = Process::start_by(behind(&unshare));
        let name = child.ask("engine");
        let far = child.region(&format!("allocate {LEN} both"));
        let peer = ours.open(&name).await.unwrap();
        assert_eq!(peer.path(), PathKind::Host);
        let near = region(&ours, LEN, Access::LOCAL);
        fill(&near, &pattern(1, LEN));
        let mut batch = Batch::new(&peer);
        batch.write(&near.share(0..LEN).unwrap(), far.addr);
        ours.transfer(batch).await.unwrap();
        assert_eq!(child.ask(&format!("check {} 1", far.number)), "same");
        // It can't name us, so it reads no foreign memory of ours: that goes by TCP, and says why.
        let foreign = ours.register(Eternal::new(LEN).foreign(), Access::LOCAL).unwrap();
        fill(&foreign, &pattern(2, LEN));
        let explanation = ours.explain(&peer, &foreign).await;
        assert_eq!(explanation.write_path().unwrap().path, PathKind::Tcp);
        assert!(explanation.to_string().contains("pid namespace"), "{explanation}");
        let mut batch = Batch::new(&peer);
        batch.write(&foreign.share(0..LEN).unwrap(), far.addr);
        ours.transfer(batch).await.unwrap();
        assert_eq!(child.ask(&format!("check {} 2", far.number)), "same");
    });
}

/// Two network namespaces with a cable between them; gone on drop.
struct Networks {
    names: [String; 2],
}

impl Networks {
    fn new() -> Option<Self> {
        let names = ["a", "b"].map(|end| format!("kvrail-{end}-{}", std::process::id()));
        let networks = Self { names };
        let [a, b] = &networks.names;
        let ip = |words: &str| {
            let words: Vec<_> = words.split(' ').collect();
            is_permitted(&[&["ip"], &words[..]].concat())
        };
        let is_there = ip(&format!("netns add {a}"))
            && ip(&format!("netns add {b}"))
            && ip(&format!("link add v0 netns {a} type veth peer name v0 netns {b}"))
            && [a, b].iter().enumerate().all(|(end, name)| {
                ip(&format!("-n {name} addr add 10.77.0.{}/24 dev v0", end + 1))
                    && ip(&format!("-n {name} link set v0 up"))
            });
        is_there.then_some(networks)
    }

    fn process(&self, end: usize) -> Process {
        Process::start_by(behind(&["ip", "netns", "exec", &self.names[end]]))
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for name in &self.names {
            // It may not have come so far.
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

#[test]
fn processes_of_two_networks_meet_in_a_folder_that_they_share() {
    let Some(networks) = Networks::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let settings = [format!(" folder={}", folder.path().display()), String::new()];
    for (settings, path) in settings.iter().zip(["Host", "Tcp"]) {
        let mut processes = [0, 1].map(|end| networks.process(end));
        let names = [0, 1]
            .map(|end| processes[end].ask(&format!("engine host=10.77.0.{}{settings}", end + 1)));
        let [near, far] = &mut processes;
        let target = far.region(&format!("allocate {LEN} both"));
        let source = near.region(&format!("allocate {LEN} local"));
        near.ask(&format!("fill {} 3", source.number));
        assert_eq!(near.ask(&format!("open {}", names[1])), path);
        near.ask(&format!("write {} {}", source.number, target.addr));
        assert_eq!(near.ask("end"), "ok");
        assert_eq!(far.ask(&format!("check {} 3", target.number)), "same");
        let why = near.ask(&format!("explain {}", source.number));
        let expected =
            if path == "Host" { "copies it" } else { "no Unix socket of the peer's at @" };
        assert!(why.contains(expected), "{why}");
    }
}
