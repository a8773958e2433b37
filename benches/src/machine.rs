//! Where and when it was measured.

use std::fs;
use std::process::Command;
use std::time::SystemTime;

use anyhow::Result;

/// What a reader must know to compare figures.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    /// Over the minute before: who else was at work.
    pub(crate) load: String,
    pub(crate) commit: String,
}

impl Machine {
    pub(crate) fn now() -> Result<Self> {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| {
            line.strip_prefix("model name").map(|rest| rest.trim_start_matches([' ', '\t', ':']))
        });
        let load = fs::read_to_string("/proc/loadavg")?;
        Ok(Self {
            date: now.split('T').next().unwrap_or_default().to_owned(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            processor: model.unwrap_or("unknown processor").to_owned(),
            processors: std::thread::available_parallelism()?.get(),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            commit: commit().unwrap_or_else(|| "unknown".to_owned()),
        })
    }
}

/// The commit checked out, marked where files differ from it.
fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty", "--exclude", "*"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (!text.trim().is_empty()).then(|| text.trim().to_owned())
}
