//! The control groups of workers: whose they are stands in their names.

use std::fs;

use overspill::Name;

/// The name of the control group of all workers of the supervisor of that name which this process
/// is.
pub(crate) fn own_name(name: &Name) -> String {
    format!("{}{}", prefix(name), std::process::id())
}

/// The process id of the supervisor of that name that made the control group called `cgroup`.
pub(crate) fn supervisor_of(cgroup: &str, name: &Name) -> Option<u32> {
    cgroup.strip_prefix(&prefix(name))?.parse().ok()
}

/// The number of the worker that a process belongs to, if it is one of a supervisor of that name.
pub(crate) fn worker(pid: u32, name: &Name) -> Option<usize> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    // cgroups(7): the line of version 2 has number 0 and no controllers.
    worker_of(text.lines().find_map(|line| line.strip_prefix("0::"))?, name)
}

fn worker_of(path: &str, name: &Name) -> Option<usize> {
    let folders = path.split('/').zip(path.split('/').skip(1));
    // Workers can be supervisors themselves.
    let own = folders.filter(|(folder, _)| supervisor_of(folder, name).is_some()).last();
    own?.1.split_once('.')?.0.parse().ok()
}

fn prefix(name: &Name) -> String {
    format!("overspill-{name}-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_known_by_its_control_group() {
        let worker = |path: &str| worker_of(path, &"web".parse().unwrap());
        assert_eq!(worker("/a.slice/overspill-web-4711/3.17"), Some(3));
        assert_eq!(worker("/../x/overspill-web-4711/3.17/inner"), Some(3));
        assert_eq!(worker("/overspill-web-1/0.1/overspill-web-2/1.2"), Some(1));
        for path in [
            "/",
            "/a.slice",
            "/overspill-web-4711",
            "/overspill-web-4711/3",
            "/overspill-web-4711/x.1",
            "/overspill-web-x/3.17",
            "/overspill-api-4711/3.17",
            "/overspill-web-2-4711/3.17",
        ] {
            assert_eq!(worker(path), None, "{path}");
        }
    }
}
