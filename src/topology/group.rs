//! The control groups this process is in, of either version, as directories to read from.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// The directories of this process's group for `controller` and of all groups above it, nearest
/// first. Empty where the controller is in no hierarchy.
///
/// A container may see the host's path with only its own subtree mounted: directories that aren't
/// there are left out, and the mount itself is the last.
pub(super) fn groups(root: &Path, controller: &str) -> Vec<PathBuf> {
    let Ok(text) = fs::read_to_string(root.join("proc/self/cgroup")) else { return Vec::new() };
    let mut second = None;
    for line in text.lines() {
        // hierarchy:controllers:path, version 2 being hierarchy 0 with no controllers named
        let mut fields = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if controllers.split(',').any(|name| name == controller) {
            return upwards(&root.join("sys/fs/cgroup").join(controller), path);
        }
        if hierarchy == "0" && controllers.is_empty() {
            second = Some(upwards(&root.join("sys/fs/cgroup"), path));
        }
    }
    second.unwrap_or_default()
}

fn upwards(mount: &Path, path: &str) -> Vec<PathBuf> {
    let path = PathBuf::from(path.trim_start_matches('/'));
    // A path out of the namespace leads nowhere in here.
    let outside = path.components().any(|part| part == Component::ParentDir);
    let path = if outside { PathBuf::new() } else { path };
    path.ancestors().map(|group| mount.join(group)).filter(|group| group.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    fn names(root: &Path, controller: &str) -> Vec<String> {
        let name = |group: PathBuf| {
            let inside = group.strip_prefix(root.join("sys/fs/cgroup")).unwrap();
            inside.to_str().unwrap().trim_end_matches('/').to_owned()
        };
        groups(root, controller).into_iter().map(name).collect()
    }

    #[test]
    fn groups_go_from_our_own_up_to_the_mount() {
        let root = tree(&[
            ("proc/self/cgroup", "4:memory:/a/b\n0::/x/y\n"),
            ("sys/fs/cgroup/memory/a/b/memory.stat", ""),
            ("sys/fs/cgroup/x/y/cgroup.procs", ""),
        ]);
        assert_eq!(names(root.path(), "memory"), ["memory/a/b", "memory/a", "memory"]);
        assert_eq!(names(root.path(), "cpuset"), ["x/y", "x", ""]);
    }

    #[test]
    fn paths_that_are_not_here_leave_what_is_mounted() {
        for path in ["/../../kubepods/abc", "/kubepods/abc"] {
            let root = tree(&[
                ("proc/self/cgroup", &format!("0::{path}\n")),
                ("sys/fs/cgroup/cgroup.procs", ""),
            ]);
            assert_eq!(names(root.path(), "memory"), [""], "{path}");
        }
        assert!(groups(tree(&[]).path(), "memory").is_empty());
    }
}
