//! What is mounted where.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// Where file systems of a kind are mounted, in the order of mounting.
pub(crate) fn points(kind: &str) -> Result<Vec<PathBuf>> {
    let path = "/proc/thread-self/mountinfo";
    let mounts = fs::read_to_string(path).map_err(|error| Error::system("read", path, error))?;
    Ok(points_in(&mounts, kind))
}

fn points_in(mounts: &str, kind: &str) -> Vec<PathBuf> {
    let point = |line: &str| {
        // proc_pid_mountinfo(5): the mount point is field 5, the type follows " - ".
        let (mount, file_system) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        (file_system.split(' ').next()? == kind).then(|| unescape(point))
    };
    mounts.lines().filter_map(point).collect()
}

/// Blanks, line ends and backslashes are written as three octal digits behind a backslash.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = |digits: &[u8; 3]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        let escaped = tail.first_chunk().filter(|_| first == b'\\').and_then(code);
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn points_are_found_by_kind() {
        let mounts = "\
            24 29 0:22 / /proc rw,nosuid shared:5 - proc proc rw\n\
            33 24 0:29 / /sys/fs/bpf rw shared:9 master:2 - bpf bpf rw,mode=700\n\
            90 24 0:30 / /tmp/a\\040b\\134c rw - bpf none rw\n\
            91 24 0:31 / /odd - proc bpf rw\n";
        assert_eq!(points_in(mounts, "bpf"), [PathBuf::from("/sys/fs/bpf"), "/tmp/a b\\c".into()]);
        assert!(points_in(mounts, "cgroup2").is_empty());
    }

    proptest! {
        #[test]
        fn whatever_stands_there_is_read(mounts in "([ -~]|\n|\\\\| - bpf )*") {
            points_in(&mounts, "bpf");
        }

        #[test]
        fn what_the_kernel_escapes_is_unescaped(name in "[ -~]{0,20}") {
            let escape = |c| match c {
                ' ' | '\\' => format!("\\{:03o}", u32::from(c)),
                _ => c.to_string(),
            };
            let escaped: Vec<String> = name.chars().map(escape).collect();
            prop_assert_eq!(unescape(&escaped.concat()), PathBuf::from(name));
        }
    }
}
