//! Available memory on the CPU.

use std::path::{Path, PathBuf};

/// Memory available on the CPU, in bytes, without swapping or evicting; `None` if unknown.
pub(super) fn available() -> Option<u64> {
    on_the_cpu(&|path| std::fs::read_to_string(path).ok())
}

/// Function that reads the text of a file, if possible.
type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

/// Minimum of what the machine, the control groups and the limits of the process leave free.
fn on_the_cpu(read: Read<'_>) -> Option<u64> {
    let free = read(Path::new("/proc/meminfo")).and_then(|text| meminfo(&text));
    [free, cgroups(read), process_limits(read)].into_iter().flatten().min()
}

/// `MemAvailable` of Linux's `/proc/meminfo`.
fn meminfo(text: &str) -> Option<u64> {
    kib(text, "MemAvailable:")
}

/// Bytes in a line such as `VmSize:   2048 kB`.
fn kib(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Memory left by the limits of the process (`ulimit -v`, `ulimit -d`). Every thread reserves address space before it
/// uses any.
fn process_limits(read: Read<'_>) -> Option<u64> {
    /// Address space reserved by the C library for each thread.
    const ARENA: u64 = 64 << 20;
    let limits = read(Path::new("/proc/self/limits"))?;
    let status = read(Path::new("/proc/self/status"))?;
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let left = |limit: &str, used: &str, reserve: u64| {
        let line = limits.lines().find_map(|line| line.strip_prefix(limit))?;
        let most: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(most.saturating_sub(kib(&status, used)?).saturating_sub(reserve))
    };
    let addresses = left("Max address space", "VmSize:", ARENA.saturating_mul(threads));
    let data = left("Max data size", "VmData:", 0);
    [addresses, data].into_iter().flatten().min()
}

/// Memory left by the control groups of the process, including all parent groups. Cached files count as free.
fn cgroups(read: Read<'_>) -> Option<u64> {
    let groups = read(Path::new("/proc/self/cgroup"))?;
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    let of_mount = |line: &str| {
        let (mount, hierarchy) = Mount::parse(line)?;
        let path = groups.lines().find_map(|line| hierarchy.path(line))?;
        mount.folders(path).iter().filter_map(|folder| hierarchy.headroom(folder, read)).min()
    };
    mounts.lines().filter_map(of_mount).min()
}

/// Version of a control group hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hierarchy {
    V1,
    V2,
}

impl Hierarchy {
    /// Group in a line of `/proc/self/cgroup`, if it is of this hierarchy.
    fn path(self, line: &str) -> Option<&str> {
        let (number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let is_own = match self {
            Self::V1 => controllers.split(',').any(|name| name == "memory"),
            Self::V2 => number == "0" && controllers.is_empty(),
        };
        is_own.then_some(path)
    }

    /// Memory left by the limit of one group.
    fn headroom(self, folder: &Path, read: Read<'_>) -> Option<u64> {
        let (limit, usage, cached) = match self {
            Self::V1 => (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                ["total_active_file ", "total_inactive_file "],
            ),
            Self::V2 => ("memory.max", "memory.current", ["active_file ", "inactive_file "]),
        };
        let number = |name: &str| read(&folder.join(name))?.trim().parse::<u64>().ok();
        let limit = number(limit)?;
        // Version 1 represents no limit as the largest multiple of the page size.
        if limit >= 1 << 62 {
            return None;
        }
        let stat = read(&folder.join("memory.stat")).unwrap_or_default();
        let cache: u64 = cached
            .iter()
            .filter_map(|label| stat.lines().find_map(|line| line.strip_prefix(label)))
            .filter_map(|bytes| bytes.trim().parse::<u64>().ok())
            .sum();
        Some(limit.saturating_sub(number(usage)?.saturating_sub(cache)))
    }
}

/// Mount of a control group hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// Group that is mounted.
    root: PathBuf,
    /// Mount point.
    point: PathBuf,
}

impl Mount {
    /// Parses a line of `/proc/self/mountinfo`, if it is of a hierarchy that limits memory.
    fn parse(line: &str) -> Option<(Self, Hierarchy)> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let mount = Self { root: place.next()?.into(), point: place.next()?.into() };
        let mut kind = kind.split(' ');
        match (kind.next()?, kind.nth(1)?) {
            ("cgroup2", _) => Some((mount, Hierarchy::V2)),
            ("cgroup", options) if options.split(',').any(|word| word == "memory") => {
                Some((mount, Hierarchy::V1))
            }
            _ => None,
        }
    }

    /// Folders of a group and of all visible parent groups.
    fn folders(&self, group: &str) -> Vec<PathBuf> {
        // In some containers the group is outside of the mount; then only the mounted group is known.
        let inner = Path::new(group).strip_prefix(&self.root).unwrap_or(Path::new(""));
        let inner = if group.contains("..") { Path::new("") } else { inner };
        inner.ancestors().map(|inner| self.point.join(inner)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn free_memory_is_read_in_bytes() {
        let text = "MemTotal: 9 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(meminfo(text), Some(2 << 20));
        assert_eq!(meminfo("MemAvailable: many kB"), None);
        assert_eq!(meminfo(""), None);
    }

    /// Available memory for the given system files.
    fn left(files: &[(&str, &str)]) -> Option<u64> {
        let files: BTreeMap<&Path, &str> =
            files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
        on_the_cpu(&|path| files.get(path).map(|text| (*text).to_owned()))
    }

    const FREE: (&str, &str) = ("/proc/meminfo", "MemAvailable: 8388608 kB\n");
    const V2: (&str, &str) =
        ("/proc/self/mountinfo", "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");

    #[test]
    fn the_tightest_of_all_nested_groups_counts() {
        let group = ("/proc/self/cgroup", "0::/user.slice/run-1.scope\n");
        let outer = ("/sys/fs/cgroup/user.slice/memory.max", "3000\n");
        let used = ("/sys/fs/cgroup/user.slice/memory.current", "1500\n");
        let stat = (
            "/sys/fs/cgroup/user.slice/memory.stat",
            "anon 1\nfile 900\nactive_file 300\ninactive_file 200\n",
        );
        let inner = ("/sys/fs/cgroup/user.slice/run-1.scope/memory.max", "max\n");
        // 3000 less 1500, of which 500 are cached files; shared memory in `file` cannot be dropped.
        assert_eq!(left(&[FREE, V2, group, outer, used, stat, inner]), Some(2000));
        let inner = ("/sys/fs/cgroup/user.slice/run-1.scope/memory.max", "700\n");
        let inner_used = ("/sys/fs/cgroup/user.slice/run-1.scope/memory.current", "100\n");
        let all = [FREE, V2, group, outer, used, stat, inner, inner_used];
        assert_eq!(left(&all), Some(600));
        // In a container, its own group is the root.
        let container = ("/proc/self/cgroup", "0::/\n");
        let max = ("/sys/fs/cgroup/memory.max", "500\n");
        let current = ("/sys/fs/cgroup/memory.current", "600\n");
        assert_eq!(left(&[FREE, V2, container, max, current]), Some(0));
        let outside = ("/proc/self/cgroup", "0::/../other\n");
        assert_eq!(left(&[FREE, V2, outside, max, current]), Some(0));
        assert_eq!(left(&[FREE, V2, group]), Some(8 << 30));
    }

    #[test]
    fn groups_of_the_first_version_count_too() {
        let mounts = (
            "/proc/self/mountinfo",
            "40 30 0:35 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
             41 30 0:36 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n",
        );
        let group = ("/proc/self/cgroup", "9:cpu:/docker/abc\n8:memory:/docker/abc/job\n0::/\n");
        let limit = ("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4096\n");
        let usage = ("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1024\n");
        let stat = ("/sys/fs/cgroup/memory/job/memory.stat", "total_inactive_file 24\n");
        assert_eq!(left(&[FREE, mounts, group, limit, usage, stat]), Some(3096));
        let none = ("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(left(&[FREE, mounts, group, none, usage, stat]), Some(8 << 30));
        let above = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2048\n");
        let above_usage = ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "2000\n");
        let all = [FREE, mounts, group, limit, usage, stat, above, above_usage];
        assert_eq!(left(&all), Some(48));
    }

    #[test]
    fn limits_of_the_process_count() {
        let status = ("/proc/self/status", "VmSize:\t 1048576 kB\nVmData:\t 1024 kB\n");
        let limits = |text| ("/proc/self/limits", text);
        let none = "Max data size             unlimited            unlimited            bytes\n\
                    Max address space         unlimited            unlimited            bytes\n";
        assert_eq!(left(&[FREE, status, limits(none)]), Some(8 << 30));
        let data = "Max data size             3145728   unlimited bytes\n";
        assert_eq!(left(&[FREE, status, limits(data)]), Some(2 << 20));
        let addresses = "Max address space         1073741825   unlimited bytes\n";
        assert_eq!(left(&[FREE, status, limits(addresses)]), Some(0));
        assert_eq!(left(&[]), None);
    }
}
