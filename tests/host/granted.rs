//! Taking back what was granted ends while its writer or reader is stopped, and nothing of what
//! that one does on resuming shows.

use kvrail::{Access, Engine, Grant, GrantOptions, Region};
use rustix::process::Signal;

use super::process::Process;
use super::{contents, engine, fill, pattern, region, run};

const LEN: usize = 64 << 20;

fn granted(engine: &Engine, region: &Region, access: Access) -> Grant {
    engine.grant(region, 0..LEN, access, GrantOptions::default()).unwrap()
}

#[test]
fn a_writer_is_stopped() {
    run(async {
        let ours = engine();
        let (mut child, _) = Process::start("");
        let near = child.region(&format!("allocate {LEN} local"));
        child.ask(&format!("fill {} 1", near.number));
        assert_eq!(child.ask(&format!("open {}", ours.name())), "Host");
        let far = region(&ours, LEN, Access::LOCAL);
        let expected = pattern(2, LEN);
        for _ in 0..20 {
            fill(&far, &[0; 64]);
            let grant = granted(&ours, &far, Access::WRITE);
            child.ask(&format!("write_to {} {}", near.number, grant.reference()));
            // In mid-copy: some of it is there.
            let mut head = [0; 64];
            while head == [0; 64] {
                far.share(0..64).unwrap().copy_out(0, &mut head).unwrap();
            }
            child.stop();
            grant.revoke().await;
            assert!(child.is_stopped(), "nobody waited for it");
            fill(&far, &expected);
            child.signal(Signal::CONT);
            let end = child.ask("end");
            assert!(contents(&far) == expected, "nothing shows after it resumed: {end}");
            match end.as_str() {
                // It had ended before.
                "ok" => {}
                "Stale" => return,
                end => panic!("{end}"),
            }
        }
        panic!("it was never stopped in mid-write");
    });
}

#[test]
fn a_reader_is_stopped() {
    run(async {
        let ours = engine();
        let (mut child, _) = Process::start("");
        let near = child.region(&format!("allocate {LEN} local"));
        assert_eq!(child.ask(&format!("open {}", ours.name())), "Host");
        let far = region(&ours, LEN, Access::LOCAL);
        let mut torn = 0;
        for _ in 0..20 {
            fill(&far, &pattern(1, LEN));
            let grant = granted(&ours, &far, Access::READ);
            child.ask(&format!("read_from {} {}", near.number, grant.reference()));
            child.stop();
            grant.revoke().await;
            assert!(child.is_stopped(), "nobody waited for it");
            fill(&far, &pattern(2, LEN));
            child.signal(Signal::CONT);
            match child.ask("end").as_str() {
                // It had ended before: then all of it is what the owner had granted.
                "ok" => assert_eq!(child.ask(&format!("check {} 1", near.number)), "same"),
                "Stale" => torn += 1,
                end => panic!("{end}"),
            }
            if torn == 3 {
                return;
            }
        }
        panic!("it was never stopped in mid-read");
    });
}

#[test]
fn an_owner_that_was_killed_ends_what_is_asked_under_its_grants() {
    run(async {
        let ours = engine();
        let near = region(&ours, 4096, Access::LOCAL);
        let (mut child, name) = Process::start("");
        let far = child.region("allocate 4096 local");
        let reference = child.ask(&format!("grant {}", far.number)).parse().unwrap();
        let peer = ours.open(&name).await.unwrap();
        let read = |into| {
            let mut batch = kvrail::Batch::new(&peer);
            batch.read_from(into, &reference, 0);
            ours.transfer(batch)
        };
        read(near.lease(0..4096).unwrap()).await.unwrap();
        child.kill();
        // Its memory stays readable until its end is noticed; then nobody answers.
        while read(near.lease(0..4096).unwrap()).await.is_ok() {}
        drop(read(near.lease(0..4096).unwrap()).await.unwrap_err());
        near.lease(0..4096).expect("the lease came back");
    });
}
