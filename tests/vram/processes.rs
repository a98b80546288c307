//! Foreign memory of GPUs between two processes, as CUDA's handles are made for: a process can't
//! open its own. The peer is this binary, started again.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use kvrail::{Access, Location, PathKind, RemoteBuffer};
use kvrail_reactors::cuda::outside::EternalVram;

use super::{contents, driver, engine_on, fill, pages, pattern, read, run, write};

const LEN: usize = 1 << 20;

/// Before what the peer says, since libtest writes to the same output.
const ANSWER: &str = "=> ";

/// Shows two regions of one allocation until its input ends.
#[test]
#[ignore = "the peer of the test below"]
fn a_peer() {
    run(async {
        let driver = driver();
        let engine = engine_on(&driver, |builder| builder);
        let memory = EternalVram::new(driver, 0, 2 * LEN, true).expect("memory");
        let region = |at| engine.register_vram(memory.part(at, LEN), Access::READ_WRITE);
        let regions = [0, LEN].map(|at| region(at).expect("a region"));
        let [first, second] = regions.each_ref().map(kvrail::Region::addr);
        println!("{ANSWER}{} {first} {second}", engine.name());
        std::io::stdout().flush().expect("a reader");
        let until_told = || std::io::stdin().read_to_end(&mut Vec::new());
        tokio::task::spawn_blocking(until_told).await.expect("a thread").expect("an input");
        for region in regions {
            engine.unregister(region).await.expect("quiet");
        }
        println!("{ANSWER}quiet");
    });
}

#[test]
fn foreign_memory_of_another_process_is_read_and_written_in_place() {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["processes::a_peer", "--exact", "--ignored", "--nocapture"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
    let mut lines = BufReader::new(child.stdout.take().expect("an output")).lines();
    let mut answer = || {
        let answers = lines.by_ref().map_while(Result::ok);
        let mut told = answers.filter_map(|line| Some(line.split_once(ANSWER)?.1.to_owned()));
        told.next().expect("the peer answers")
    };
    let shown = answer();
    let mut words = shown.split(' ');
    let name = words.next().expect("a name").to_owned();
    let far: Vec<RemoteBuffer> = words
        .map(|addr| {
            let (name, len) = (Location::Cuda(0).to_string(), LEN as u64);
            RemoteBuffer { name, addr: addr.parse().expect("an address"), len }
        })
        .collect();
    run(async {
        let driver = driver();
        let engine = engine_on(&driver, |builder| builder);
        let peer = engine.open(&name).await.expect("a peer");
        assert_eq!(peer.path(), PathKind::Host);
        // A GPU that the far memory isn't on is to reach it, too.
        let devices = (0..driver.devices().len() as u32).take(2);
        for (device, far) in devices.flat_map(|device| far.iter().map(move |far| (device, far))) {
            let memory = EternalVram::new(driver.clone(), device, LEN, true).expect("memory");
            let near = engine.register_vram(memory.foreign(), Access::READ_WRITE);
            let near = near.expect("a region");
            let (bytes, pages) = (pattern(far.addr, LEN), pages(256, LEN / 256));
            fill(&near, &bytes);
            engine.transfer(write(&peer, &near, far, &pages)).await.expect("a write");
            fill(&near, &vec![0; LEN]);
            engine.transfer(read(&peer, &near, far, &pages)).await.expect("a read");
            assert!(contents(&near) == bytes, "cuda:{device}");
            let explained = engine.explain(&peer, &near).await;
            let chosen = explained.read_path().expect("a path").path;
            assert_eq!(chosen, PathKind::Host, "{explained}");
            let chosen = explained.write_path().expect("a path").path;
            assert_eq!(chosen, PathKind::Host, "{explained}");
            engine.unregister(near).await.expect("quiet");
        }
        drop(child.stdin.take());
        assert_eq!(answer(), "quiet");
        engine.stop().await;
    });
    assert!(child.wait().expect("an end").success());
}
