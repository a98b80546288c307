//! Taking a region back ends while its writer or reader is stopped, and nothing of what that one
//! does on resuming shows.

use kvrail::{Access, Eternal};
use rustix::process::Signal;

use super::process::Process;
use super::{contents, engine, fill, pattern, run};

const LEN: usize = 256 << 20;

/// The owner takes memory back while a writer, whose memory is of this kind, is stopped.
async fn writer(memory: &str) {
    let ours = engine();
    let (mut child, _) = Process::start("");
    let near = child.region(&format!("{memory} {LEN} local"));
    child.ask(&format!("fill {} 1", near.number));
    assert_eq!(child.ask(&format!("open {}", ours.name())), "Host");
    let target = Eternal::new(LEN);
    let region = ours.register(target.foreign(), Access::READ_WRITE).unwrap();
    child.ask(&format!("write {} {}", near.number, region.addr()));
    // In mid-copy: some of it is there.
    let some = region.share(0..64).unwrap();
    let mut head = [0; 64];
    while head == [0; 64] {
        some.copy_out(0, &mut head).unwrap();
    }
    drop(some);
    child.stop();
    ours.unregister(region).await.unwrap();
    assert!(child.is_stopped(), "nobody waited for it");
    let region = ours.register(target.foreign(), Access::LOCAL).unwrap();
    let expected = pattern(2, LEN);
    fill(&region, &expected);
    child.signal(Signal::CONT);
    let end = child.ask("end");
    assert_ne!(end, "ok", "its memory was taken back");
    assert!(contents(&region) == expected, "nothing shows after it resumed: {end}");
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(contents(&region) == expected, "nor later");
}

#[test]
fn a_writer_is_stopped() {
    run(writer("allocate"));
}

#[test]
fn a_writer_of_foreign_memory_is_stopped() {
    run(writer("register"));
}

/// The owner takes memory back while a reader is stopped, and uses it for something else.
#[test]
fn a_reader_is_stopped() {
    run(async {
        let ours = engine();
        let (mut child, _) = Process::start("");
        let near = child.region(&format!("allocate {LEN} local"));
        assert_eq!(child.ask(&format!("open {}", ours.name())), "Host");
        let source = Eternal::new(LEN);
        let mut torn = 0;
        for _ in 0..20 {
            let region = ours.register(source.foreign(), Access::READ_WRITE).unwrap();
            fill(&region, &pattern(1, LEN));
            child.ask(&format!("read {} {}", near.number, region.addr()));
            child.stop();
            ours.unregister(region).await.unwrap();
            assert!(child.is_stopped(), "nobody waited for it");
            let region = ours.register(source.foreign(), Access::LOCAL).unwrap();
            fill(&region, &pattern(2, LEN));
            child.signal(Signal::CONT);
            let end = child.ask("end");
            ours.unregister(region).await.unwrap();
            if end == "ok" {
                // It had ended before: then all of it is what the owner had given.
                assert_eq!(child.ask(&format!("check {} 1", near.number)), "same");
            } else {
                torn += 1;
            }
            if torn == 3 {
                return;
            }
        }
        panic!("it was never stopped in mid-read");
    });
}
