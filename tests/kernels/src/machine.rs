//! QEMU: boots a kernel, and brings back what its command printed and how it ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::initramfs::{self, File};
use crate::signals;
use crate::tree::Tree;

/// How much of the console is quoted where a guest fails.
const LAST_LINES: usize = 15;

/// How often an emulated kernel is started that ends before it starts our command: what it dies
/// of then is the emulation, not what is tested.
const BOOTS: usize = 3;

/// A guest to be.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) tree: &'a Tree,
    /// A shell script.
    pub(crate) command: &'a str,
    pub(crate) deadline: Duration,
    pub(crate) kind: Kind<'a>,
    /// Let the output go to ours as it comes, instead of bringing it back.
    pub(crate) pass_on: bool,
}

/// What a guest is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind<'a> {
    /// Our own architecture and the host's root file system.
    Native(Accelerator),
    /// An arm64 machine that has a busybox and these files.
    Arm64 { busybox: &'a Path, files: &'a [File] },
}

impl Kind<'_> {
    fn is_emulated(self) -> bool {
        !matches!(self, Self::Native(Accelerator::Kvm))
    }
}

/// How QEMU runs the guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    Emulation,
}

/// What became of a start.
#[derive(Debug)]
enum Boot {
    Ended(Ended),
    /// Before the command was started; the console's last lines.
    Failed(String),
}

/// How a guest ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) output: String,
    /// From the kernel's start until the command's.
    pub(crate) boot: Duration,
    /// Until the guest powered off.
    pub(crate) whole: Duration,
}

impl Guest<'_> {
    /// Runs it to its end. Only what ended before its command is started again.
    pub(crate) fn run(&self) -> Result<Ended> {
        let boots = if self.kind.is_emulated() { BOOTS } else { 1 };
        for _ in 1..boots {
            match self.boot()? {
                Boot::Ended(ended) => return Ok(ended),
                Boot::Failed(console) => {
                    println!("a guest is started again: it ended before its command; {console}");
                }
            }
        }
        match self.boot()? {
            Boot::Ended(ended) => Ok(ended),
            Boot::Failed(console) => bail!("the guest ended before its command; {console}"),
        }
    }

    fn boot(&self) -> Result<Boot> {
        let start = Instant::now();
        let folder = tempfile::Builder::new().prefix("kernels").tempdir()?;
        let alone = match self.kind {
            Kind::Native(_) => None,
            Kind::Arm64 { busybox, files } => Some((busybox, files)),
        };
        let archive = initramfs::build(self.tree, self.command, alone)?;
        fs::write(folder.path().join("initramfs"), archive)?;
        let root = match self.kind {
            Kind::Native(_) => Some(Root::serve(&folder)?),
            Kind::Arm64 { .. } => None,
        };
        let mut machine = self.machine(&folder, root.as_ref())?;
        // Through a pipe: QEMU would write a file from its end, and we from where we are in it.
        let output = machine.child.stdout.take();
        let passing = output.map(|mut output| {
            std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::stdout()))
        });
        let in_time = machine.wait(self.deadline)?;
        drop(machine);
        if let Some(passing) = passing {
            passing.join().expect("copying does not panic")?;
        }
        let console = read(&folder, "console");
        let status = read(&folder, "status");
        let said = |name: &str| {
            let line = status.lines().rfind(|line| line.starts_with(name))?;
            Some(line.rsplit(' ').next()?.to_owned())
        };
        ensure!(
            in_time,
            "the guest did not end within {} s; {}",
            self.deadline.as_secs(),
            last(&read(&folder, "output"), &console)
        );
        let Some(boot) = said("up").and_then(|up| up.parse().ok()) else {
            return Ok(Boot::Failed(last("", &console)));
        };
        let output = read(&folder, "output");
        let Some(code) = said("exit").and_then(|code| code.parse().ok()) else {
            bail!("the guest ended during its command; {}", last(&output, &console));
        };
        let boot = Duration::from_secs_f64(boot);
        Ok(Boot::Ended(Ended { code, output, boot, whole: start.elapsed() }))
    }

    fn machine(&self, folder: &TempDir, root: Option<&Root>) -> Result<Running> {
        let at = |name: &str| folder.path().join(name).display().to_string();
        let (program, console) = match self.kind {
            Kind::Native(_) => ("qemu-system-x86_64", "ttyS0"),
            Kind::Arm64 { .. } => ("qemu-system-aarch64", "ttyAMA0"),
        };
        let output = if self.pass_on { "/dev/stdout".to_owned() } else { at("output") };
        let mut machine = ends_with_us(program);
        match self.kind {
            Kind::Native(Accelerator::Kvm) => {
                machine.args(["-machine", "q35", "-accel", "kvm", "-cpu", "host"]);
            }
            Kind::Native(Accelerator::Emulation) => {
                // A kernel patches its own code. With a thread for each processor, one of them may
                // still execute what was there before, and the kernel ends with "Oops: int3". Two
                // guests at a time occupy two processors anyway.
                machine.args(["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max"]);
            }
            // The keys of pointers by QEMU's own function: the architecture's takes most of the time.
            Kind::Arm64 { .. } => {
                machine.args(["-machine", "virt", "-cpu", "max,pauth-impdef=on"]);
            }
        }
        machine
            .args(["-m", "2G", "-smp", "2", "-nodefaults", "-no-reboot", "-display", "none"])
            .args(["-serial", &format!("file:{}", at("console"))])
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("file,id=output,append=on,path={output}")])
            .args(["-device", "virtserialport,chardev=output,name=output"])
            .args(["-chardev", &format!("file,id=status,path={}", at("status"))])
            .args(["-device", "virtserialport,chardev=status,name=status"])
            .arg("-kernel")
            .arg(self.tree.image())
            .args(["-initrd", &at("initramfs"), "-append"])
            // A grace period of RCU takes seconds on an emulated 6.1, and every change of a service
            // waits for several.
            .arg(format!("console={console} panic=-1 quiet rcupdate.rcu_expedited=1"));
        if let Some(root) = root {
            machine
                // The daemon reads the guest's requests in its memory.
                .args(["-object", "memory-backend-memfd,id=memory,size=2G,share=on"])
                .args(["-numa", "node,memdev=memory", "-chardev"])
                .arg(format!("socket,id=root,path={}", root.socket.display()))
                .args(["-device", "vhost-user-fs-pci,chardev=root,tag=root"]);
        }
        let complaints = fs::File::create(folder.path().join("complaints"))?;
        let output = if self.pass_on { Stdio::piped() } else { Stdio::null() };
        machine.stdin(Stdio::null()).stdout(output).stderr(complaints);
        let child = machine.spawn().with_context(|| cannot_run(program))?;
        Ok(Running { child, complaints: folder.path().join("complaints") })
    }
}

/// Which accelerator works here: the device may be there and of no use.
pub(crate) fn accelerator(tree: &Tree) -> Accelerator {
    let kind = Kind::Native(Accelerator::Kvm);
    let deadline = Duration::from_secs(15);
    let probe = Guest { tree, command: "true", deadline, kind, pass_on: false };
    if Path::new("/dev/kvm").exists() && probe.run().is_ok_and(|ended| ended.code == 0) {
        Accelerator::Kvm
    } else {
        Accelerator::Emulation
    }
}

/// The daemon that serves the host's root file system to one guest.
#[derive(Debug)]
struct Root {
    daemon: Child,
    socket: PathBuf,
}

impl Root {
    fn serve(folder: &TempDir) -> Result<Self> {
        let socket = folder.path().join("root.socket");
        let log = fs::File::create(folder.path().join("root.log"))?;
        let mut command = Self::command(&socket)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let daemon = command.spawn().with_context(|| cannot_run("virtiofsd"))?;
        let mut root = Self { daemon, socket };
        let start = Instant::now();
        while !root.socket.exists() {
            let ended = root.daemon.try_wait()?.is_some();
            if ended || start.elapsed() > Duration::from_secs(10) {
                let log = read(folder, "root.log");
                let why = log.lines().last().unwrap_or("it says nothing");
                bail!("virtiofsd cannot serve the root file system: {why}; run this as root");
            }
            sleep(Duration::from_millis(5));
        }
        Ok(root)
    }

    /// There are two programs of this name: the older is QEMU's own.
    fn command(socket: &Path) -> Result<Command> {
        let older = Path::new("/usr/lib/qemu/virtiofsd");
        let newer = Path::new("/usr/libexec/virtiofsd");
        if newer.exists() {
            let mut command = ends_with_us(newer.to_str().expect("it is text"));
            command.arg("--socket-path").arg(socket);
            command.args(["--shared-dir", "/", "--sandbox", "chroot", "--cache", "always"]);
            return Ok(command);
        }
        ensure!(older.exists(), "virtiofsd is missing; install it with: tools/setup kernels");
        let mut command = ends_with_us(older.to_str().expect("it is text"));
        command.arg(format!("--socket-path={}", socket.display())).arg("-f");
        command.args(["-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=always"]);
        Ok(command)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        end(&mut self.daemon);
    }
}

#[derive(Debug)]
struct Running {
    child: Child,
    complaints: PathBuf,
}

impl Running {
    /// Returns whether it ended before the deadline.
    fn wait(&mut self, deadline: Duration) -> Result<bool> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                let complaints = fs::read_to_string(&self.complaints).unwrap_or_default();
                let last = complaints.lines().last().unwrap_or_default();
                ensure!(status.success(), "QEMU failed ({status}): {last}");
                return Ok(true);
            }
            if start.elapsed() > deadline {
                return Ok(false);
            }
            ensure!(!signals::interrupted(), "interrupted");
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A command that is killed when this process ends, however that ends.
fn ends_with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

fn end(child: &mut Child) {
    // It has ended already, or is killed now: neither is a failure.
    let _ = child.kill();
    let _ = child.wait();
}

fn cannot_run(program: &str) -> String {
    format!("cannot run {program}; install it with: tools/setup kernels")
}

fn read(folder: &TempDir, name: &str) -> String {
    let bytes = fs::read(folder.path().join(name)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn last(output: &str, console: &str) -> String {
    let tail = |text: &str| {
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n  ")
    };
    let output = if output.is_empty() {
        String::new()
    } else {
        format!("its output's last lines:\n  {}\n", tail(output))
    };
    // What the kernel prints after this line is about its own code.
    let panic = console.find("Kernel panic").map(|start| &console[start..]);
    let after = panic.and_then(|panic| panic.split_once('\n')).map_or("", |(_, after)| after);
    let console = console.strip_suffix(after).unwrap_or(console);
    format!("{output}its console's last lines:\n  {}", tail(console))
}
