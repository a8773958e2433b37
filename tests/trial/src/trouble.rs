//! What befalls the workers.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use overspill::{MemberState, MemberStatus, Policy, Service};

use crate::mixed::Mixed;
use crate::record::Order;
use crate::staff::{NAME, Staff};

/// What befalls the workers for as long as clients come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Every 200 ms one is killed.
    Kill,
    /// Some are stopped, up to all but one, and continued.
    Stop,
    /// All are replaced, one after another, again and again.
    Restart,
    /// The supervisor is killed, and another one takes its workers over.
    Takeover,
    /// The policy, and who is a member and takes requests, is changed.
    Change,
    /// One works on a request for 300 ms; now and then one never comes to its end and is
    /// killed.
    Block,
    /// All of this at random and at once; besides, the supervisor is killed at any moment,
    /// becomes another build, and nobody reads its log; workers close their sockets; the service
    /// is removed or made by hand, the BPF file system can't be written, no member has room.
    Mixed,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Kill,
        Self::Stop,
        Self::Restart,
        Self::Takeover,
        Self::Change,
        Self::Block,
        Self::Mixed,
    ];

    /// In a few words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "killed",
            Self::Stop => "stopped",
            Self::Restart => "restarted",
            Self::Takeover => "taken over",
            Self::Change => "changed",
            Self::Block => "blocked",
            Self::Mixed => "mixed",
        }
    }

    /// Makes it until then, and says how often.
    pub(crate) fn make(self, staff: &mut Staff, until: Instant) -> Result<u32> {
        let mut random = fastrand::Rng::with_seed(1);
        let mut mixed = Mixed::new(1);
        let mut made = 0;
        while Instant::now() < until {
            match self {
                Self::Kill => kill(staff, &mut random)?,
                Self::Stop => stop(staff, &mut random)?,
                Self::Restart => staff.overspill(&format!("restart {NAME}"))?,
                Self::Takeover => take_over(staff, &mut random)?,
                Self::Change => change(staff, &mut random)?,
                Self::Block => block(staff, &mut random, made)?,
                Self::Mixed => mixed.step(staff)?,
            }
            made += 1;
        }
        mixed.end(staff)?;
        Ok(made)
    }
}

fn pause(random: &mut fastrand::Rng, millis: std::ops::Range<u64>) {
    sleep(Duration::from_millis(random.u64(millis)));
}

fn kill(staff: &Staff, random: &mut fastrand::Rng) -> Result<()> {
    sleep(Duration::from_millis(200));
    if let Some(&pid) = random.choice(&staff.workers()?) {
        Staff::signal(pid, Signal::SIGKILL);
    }
    Ok(())
}

fn stop(staff: &Staff, random: &mut fastrand::Rng) -> Result<()> {
    let mut workers = staff.workers()?;
    random.shuffle(&mut workers);
    workers.truncate(random.usize(1..workers.len()));
    Staff::signal_all(&workers, Signal::SIGSTOP);
    pause(random, 50..1000);
    Staff::signal_all(&workers, Signal::SIGCONT);
    pause(random, 0..300);
    Ok(())
}

fn take_over(staff: &mut Staff, random: &mut fastrand::Rng) -> Result<()> {
    staff.kill_supervisor()?;
    pause(random, 100..1000);
    staff.start_supervisor()
}

fn change(staff: &Staff, random: &mut fastrand::Rng) -> Result<()> {
    pause(random, 10..50);
    if !staff.redirect {
        return Ok(());
    }
    let members = Service::open(NAME)?.status()?.members;
    let member = random.choice(&members).context("nobody is a member")?;
    let number = member.member;
    // Where all that is left drains, requests are refused, as they are to be.
    let others = |other: &&MemberStatus| {
        other.member != number && !matches!(other.state, MemberState::Draining | MemberState::Gone)
    };
    let alone = !members.iter().any(|other| others(&other));
    match random.u32(0..4) {
        0 => {
            let policy = random.choice(Policy::ALL).expect("there are some");
            staff.overspill(&format!("set {NAME} --policy {policy}"))
        }
        1 if !alone => {
            // It comes back by itself.
            staff.overspill(&format!("rm {NAME} {number} --force"))
        }
        _ if member.state == MemberState::Draining => {
            staff.overspill(&format!("resume {NAME} {number}"))
        }
        _ if alone => Ok(()),
        _ => staff.overspill(&format!("drain {NAME} {number}")),
    }
}

fn block(staff: &Staff, random: &mut fastrand::Rng, made: u32) -> Result<()> {
    pause(random, 200..400);
    let workers = staff.workers()?;
    let Some(&pid) = random.choice(&workers) else { return Ok(()) };
    if made % 8 != 7 {
        return staff.order(pid, Order::Block);
    }
    staff.order(pid, Order::Loop)?;
    sleep(Duration::from_secs(1));
    Staff::signal(pid, Signal::SIGKILL);
    Ok(())
}
