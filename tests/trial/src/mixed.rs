//! All kinds of trouble at random, one over the other.
//!
//! Of what no supervisor could mend nothing is made: while none runs, one worker at least is left
//! alive, and some worker always takes requests. Whatever lasts ends within a second.

use std::net::{SocketAddr, TcpListener};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use overspill::{Error, Policy, Service};

use crate::record::Order;
use crate::staff::{CAPACITY, NAME, PORT, Staff};

/// The service that leaves no room for members.
const FILLER: &str = "filler";

/// What lasts for a while.
enum Lasting {
    Stopped(u32),
    ReadOnly,
    Unread,
    Full(Vec<TcpListener>),
    NoSupervisor,
}

/// What is under way, and until when.
pub(crate) struct Mixed {
    random: fastrand::Rng,
    lasting: Vec<(Instant, Lasting)>,
}

impl Mixed {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), lasting: Vec::new() }
    }

    /// Makes one trouble, and ends those whose time has come.
    pub(crate) fn step(&mut self, staff: &mut Staff) -> Result<()> {
        sleep(self.millis(10..250));
        self.end_some(staff, Instant::now())?;
        match self.random.u32(0..15) {
            0..3 => self.kill(staff),
            3..5 => self.stop(staff),
            5 => self.order(staff, Order::Block),
            6 => self.order(staff, Order::Close),
            7 => self.kill_supervisor(staff),
            8 => staff.ask("restart", Signal::SIGHUP),
            9 => staff.upgrade(),
            10 => self.change(staff),
            11 => self.remove(staff),
            12 => self.make_read_only(),
            13 => {
                self.fill();
                Ok(())
            }
            _ => {
                self.leave_unread(staff);
                Ok(())
            }
        }
    }

    /// Ends all that is under way.
    pub(crate) fn end(&mut self, staff: &mut Staff) -> Result<()> {
        let start = Instant::now();
        while !self.lasting.is_empty() {
            ensure!(start.elapsed() < Duration::from_secs(10), "a trouble does not end");
            self.end_some(staff, Instant::now() + Duration::from_secs(3600))?;
        }
        Ok(())
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.u64(range))
    }

    fn begin(&mut self, what: Lasting) {
        let until = Instant::now() + self.millis(50..1000);
        self.lasting.push((until, what));
    }

    fn is_under_way(&self, what: impl Fn(&Lasting) -> bool) -> bool {
        self.lasting.iter().any(|(_, it)| what(it))
    }

    fn end_some(&mut self, staff: &mut Staff, now: Instant) -> Result<()> {
        let (over, lasting) =
            std::mem::take(&mut self.lasting).into_iter().partition(|(until, _)| *until <= now);
        self.lasting = lasting;
        let over: Vec<(Instant, Lasting)> = over;
        for (_, it) in over {
            match it {
                Lasting::Stopped(pid) => Staff::signal(pid, Signal::SIGCONT),
                Lasting::ReadOnly => remount(MsFlags::empty())?,
                Lasting::Unread => staff.read_log(true),
                Lasting::Full(listeners) => {
                    drop(listeners);
                    let filler = Service::open(FILLER).and_then(Service::remove);
                    // Where nothing can be written just now it is tried again.
                    if filler.is_err_and(|error| !matches!(error, Error::NoSuchService { .. })) {
                        let until = Instant::now() + Duration::from_millis(200);
                        self.lasting.push((until, Lasting::Full(Vec::new())));
                    }
                }
                Lasting::NoSupervisor => staff.begin_supervisor()?,
            }
        }
        Ok(())
    }

    /// A worker that can be spared.
    fn victim(&mut self, staff: &Staff) -> Result<Option<u32>> {
        let mut workers = staff.workers()?;
        workers.retain(|pid| {
            !self.is_under_way(|it| matches!(it, Lasting::Stopped(own) if own == pid))
        });
        Ok(self.random.choice(&workers).copied().filter(|_| workers.len() > 1))
    }

    fn kill(&mut self, staff: &Staff) -> Result<()> {
        if let Some(pid) = self.victim(staff)? {
            Staff::signal(pid, Signal::SIGKILL);
        }
        Ok(())
    }

    fn stop(&mut self, staff: &Staff) -> Result<()> {
        if let Some(pid) = self.victim(staff)? {
            Staff::signal(pid, Signal::SIGSTOP);
            self.begin(Lasting::Stopped(pid));
        }
        Ok(())
    }

    fn order(&mut self, staff: &Staff, order: Order) -> Result<()> {
        // One that closes ends: so it has to be spared.
        self.victim(staff)?.map_or(Ok(()), |pid| staff.order(pid, order))
    }

    /// At any moment of its life, from the first millisecond on.
    fn kill_supervisor(&mut self, staff: &mut Staff) -> Result<()> {
        if !self.is_under_way(|it| matches!(it, Lasting::NoSupervisor)) {
            staff.kill_supervisor()?;
            self.begin(Lasting::NoSupervisor);
        }
        Ok(())
    }

    fn change(&mut self, staff: &Staff) -> Result<()> {
        let policy = self.random.choice(Policy::ALL).expect("there are some");
        staff.attempt(&format!("set {NAME} --policy {policy}"))
    }

    /// Takes the service away, or makes it by hand of the workers that there are.
    fn remove(&mut self, staff: &Staff) -> Result<()> {
        if !staff.redirect {
            return Ok(());
        }
        staff.attempt(&format!("rm {NAME} --force"))?;
        let pids: Vec<String> = staff.workers()?.iter().map(u32::to_string).collect();
        if self.random.bool() && !pids.is_empty() {
            let pids = pids.join(",");
            let share = format!("share {NAME} --pid {pids} --port {PORT} --capacity {CAPACITY}");
            staff.attempt(&share)?;
        }
        Ok(())
    }

    fn make_read_only(&mut self) -> Result<()> {
        if !self.is_under_way(is_read_only) {
            remount(MsFlags::MS_RDONLY)?;
            self.begin(Lasting::ReadOnly);
        }
        Ok(())
    }

    /// Takes every place that is left for members.
    fn fill(&mut self) {
        if self.is_under_way(|it| matches!(it, Lasting::Full(..))) {
            return;
        }
        for count in (1..=8).rev() {
            let all = (1..=count).map(|n| SocketAddr::from(([10, 0, 1, n], 9)));
            // With fewer sockets, or without any: somebody is removing services just now.
            if let Ok((_, listeners)) = Service::builder(FILLER).listen(all) {
                self.begin(Lasting::Full(listeners));
                break;
            }
        }
    }

    fn leave_unread(&mut self, staff: &Staff) {
        if !self.is_under_way(|it| matches!(it, Lasting::Unread)) {
            staff.read_log(false);
            self.begin(Lasting::Unread);
        }
    }
}

fn is_read_only(it: &Lasting) -> bool {
    matches!(it, Lasting::ReadOnly)
}

fn remount(how: MsFlags) -> Result<()> {
    let none = None::<&str>;
    ensure!(std::path::Path::new("/sys/fs/bpf").exists(), "there is no BPF file system");
    Ok(mount(none, "/sys/fs/bpf", none, MsFlags::MS_REMOUNT | how, none)?)
}
