//! Other users: no memory is shared with them, and they are told why.

use std::os::unix::process::CommandExt;
use std::process::Command;

use kvrail::{Access, Batch, PathKind};

use super::process::Process;
use super::{Honest, contents, engine, fill, pattern, region, run};

/// Somebody else; on Debian `nobody`.
const OTHER_UID: u32 = 65_534;

/// This binary, started as another user. That one must be able to reach it.
fn as_another(folder: &tempfile::TempDir) -> Command {
    use std::os::unix::fs::PermissionsExt;
    let copy = folder.path().join("peer");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    for path in [folder.path(), &copy] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(copy);
    command.uid(OTHER_UID).gid(OTHER_UID).current_dir("/");
    command
}

#[test]
fn a_process_of_another_user_shares_no_memory_either_way() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can start a process as another user");
    }
    run(async {
        let ours = engine();
        let mut honest = Honest::of(&ours).await;
        let folder = tempfile::tempdir().unwrap();
        let mut child = Process::start_by(as_another(&folder));
        let name = child.ask("engine");
        let far = child.region("allocate 100000 both");
        // Ours to it.
        let peer = ours.open(&name).await.unwrap();
        assert_eq!(peer.path(), PathKind::Tcp);
        let near = region(&ours, 100_000, Access::READ_WRITE);
        let explanation = ours.explain(&peer, &near).await.to_string();
        let why = "the peer runs as user 65534, this process as 0";
        assert!(explanation.contains(why), "{explanation}");
        fill(&near, &pattern(1, near.len()));
        let mut batch = Batch::new(&peer);
        batch.write(&near.share(0..near.len()).unwrap(), far.addr);
        ours.transfer(batch).await.unwrap();
        assert_eq!(child.ask(&format!("check {} 1", far.number)), "same");
        // It to ours.
        assert_eq!(child.ask(&format!("open {}", ours.name())), "Tcp");
        let explanation = child.ask(&format!("explain {}", far.number));
        assert!(explanation.contains("the peer runs as user 0"), "{explanation}");
        child.ask(&format!("fill {} 2", far.number));
        child.ask(&format!("write {} {}", far.number, near.addr()));
        assert_eq!(child.ask("end"), "ok");
        assert!(contents(&near) == pattern(2, near.len()));
        honest.is_served().await;
    });
}
