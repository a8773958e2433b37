//! Where the demo plays: namespaces of its own, which the kernel takes away with all
//! that is in them, however the demo ends.
//!
//! The process that the user starts only makes a process namespace and waits for its
//! first process, the demo proper. When that one ends, the kernel kills every server that
//! it has started, stopped ones too, and with the last of them go the network, the mounts,
//! the temporary files and the pins. It ends when its standard input does: a pipe that
//! the kernel closes when the user's process is gone, by ^C or any other way.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::failure::{Failure, Outcome};

/// The servers' addresses: a network for documentation, local on this stage.
const NETWORK: &str = "192.0.2.0/24";

/// Runs this command once more, with `--inside`, in a process namespace of its own.
pub(super) fn play_inside() -> Result<ExitStatus, Failure> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(failed("make a process namespace"))?;
    let program = std::env::current_exe().map_err(failed("find its own program"))?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg("--inside")
        .stdin(Stdio::piped())
        .spawn()
        .map_err(failed("start itself"))?;
    // Waiting would close it first.
    let _lifeline = child.stdin.take();
    child.wait().map_err(failed("wait for itself"))
}

/// Sets the stage for this process and all that it starts; answers with a folder for
/// temporary files.
pub(super) fn enter() -> Result<PathBuf, Failure> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .map_err(failed("make a network and a mount namespace"))?;
    end_with_the_user();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(failed("keep its mounts to itself"))?;
    mount_new("proc", "/proc")?;
    // A place that exists everywhere and where no file of the user's can be.
    mount_new("tmpfs", "/sys/fs")?;
    make_folder(Path::new("/sys/fs/bpf"))?;
    mount_new("bpf", "/sys/fs/bpf")?;
    ip(&["link", "set", "lo", "up"])?;
    ip(&["route", "add", "local", NETWORK, "dev", "lo"])?;
    let folder = PathBuf::from("/sys/fs/demo");
    make_folder(&folder)?;
    Ok(folder)
}

/// Ends this process, the first of its namespace, when the user's process is gone.
fn end_with_the_user() {
    thread::spawn(|| {
        // Nothing is ever written there: it ends, or fails, when the other end is closed.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(1);
    });
}

fn mount_new(kind: &'static str, on: &str) -> Outcome {
    mount(Some(kind), on, Some(kind), MsFlags::empty(), None::<&str>)
        .map_err(|error| Failure::new(format!("demo cannot mount a {kind} file system: {error}")))
}

/// Makes a folder on the stage.
pub(super) fn make_folder(path: &Path) -> Outcome {
    fs::create_dir(path).map_err(failed("make a folder for temporary files"))
}

fn ip(arguments: &[&str]) -> Outcome {
    let output = Command::new(super::tools::IP.find()?)
        .args(arguments)
        .output()
        .map_err(failed("run ip"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("demo cannot run ip {}: {}", arguments.join(" "), said.trim_end())))
}

/// The line for a step that failed.
pub(super) fn failed<E: std::fmt::Display>(step: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::new(format!("demo cannot {step}: {error}"))
}
