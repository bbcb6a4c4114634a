//! What memory there is, and how much of it the KV cache takes.

use std::path::Path;

use lockstep_proto::Bytes;

/// Memory this process and its children may still take: what the host has, or less where a control group
/// says so. `None` where the system does not tell.
pub fn available() -> Option<Bytes> {
    let host = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| host_available(&text));
    let group = std::fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| group_path(&text).map(str::to_owned));
    let group = group.and_then(|path| group_available(Path::new("/sys/fs/cgroup"), &path));
    match (host, group) {
        (Some(host), Some(group)) => Some(host.min(group)),
        (host, group) => host.or(group),
    }
}

/// `MemAvailable` of `/proc/meminfo`.
fn host_available(meminfo: &str) -> Option<Bytes> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kibibytes * 1024))
}

/// The path of the unified hierarchy in `/proc/self/cgroup`.
fn group_path(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// The least that this group and those it lies in have left; `None` where none has a limit.
fn group_available(root: &Path, path: &str) -> Option<Bytes> {
    let innermost = root.join(path);
    let groups = innermost.ancestors().take_while(|group| group.starts_with(root));
    groups.filter_map(left_in_group).min()
}

fn left_in_group(group: &Path) -> Option<Bytes> {
    let number =
        |name: &str| -> Option<u64> { std::fs::read_to_string(group.join(name)).ok()?.trim().parse().ok() };
    let limit = number("memory.max")?;
    let used = number("memory.current")?;
    // Pages of files that nobody uses are given back on demand.
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let idle = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
    let idle: u64 = idle.and_then(|count| count.trim().parse().ok()).unwrap_or(0);
    Some(Bytes(limit.saturating_sub(used.saturating_sub(idle))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_says_what_is_available() {
        let meminfo = "MemTotal:       24689012 kB\nMemFree:  1 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(host_available(meminfo), Some(Bytes(1 << 20)));
        assert_eq!(host_available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn the_tightest_group_counts_and_idle_file_pages_are_free() {
        let root = tempfile::tempdir().expect("a folder");
        let inner = root.path().join("slice/unit");
        std::fs::create_dir_all(&inner).expect("folders");
        let write = |folder: &Path, files: &[(&str, &str)]| {
            for (name, text) in files {
                std::fs::write(folder.join(name), text).expect("a file");
            }
        };
        write(&inner, &[("memory.max", "max\n"), ("memory.current", "500\n")]);
        assert_eq!(group_available(root.path(), "slice/unit"), None);
        write(
            &root.path().join("slice"),
            &[
                ("memory.max", "1000\n"),
                ("memory.current", "700\n"),
                ("memory.stat", "anon 1\ninactive_file 200\n"),
            ],
        );
        assert_eq!(group_available(root.path(), "slice/unit"), Some(Bytes(500)));
        write(&inner, &[("memory.max", "510\n")]);
        assert_eq!(group_available(root.path(), "slice/unit"), Some(Bytes(10)));
    }

    #[test]
    fn the_unified_hierarchy_is_the_one_that_counts() {
        assert_eq!(group_path("12:cpu:/old\n0::/user.slice/app\n"), Some("user.slice/app"));
        assert_eq!(group_path("12:cpu:/old\n"), None);
    }
}
