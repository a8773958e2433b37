//! The names of the pins within a namespace's folder.

pub(super) const LINK: &str = "link";
pub(super) const PROGRAM: &str = "overspill";
pub(super) const READER: &str = "read_queues";
pub(super) const MARKER: &str = "mark";
pub(super) const EXPORTER: &str = "export";
pub(super) const RETIRER: &str = "retire";
pub(super) const LOCATOR: &str = "locate";
/// Attached to `SO_REUSEPORT` groups, and calls `MOVER` of the build at work.
pub(super) const MIGRATE: &str = "migrate";
pub(super) const MOVER: &str = "move_request";
pub(super) const TAKER: &str = "take_answer";
pub(super) const COUNTER: &str = "connections";
pub(super) const FINDER: &str = "find_cgroup";
/// Every program that is pinned.
pub(super) const PROGRAMS: &[&str] =
    &[PROGRAM, READER, MARKER, EXPORTER, LOCATOR, RETIRER, MIGRATE, MOVER, TAKER, COUNTER, FINDER];
/// Followed by the id of the control group that it is attached to.
pub(super) const COUNTED: &str = "connections-";
pub(super) const STATE: &str = "state";
/// Maps that user space does not open in normal use. They are pinned for upgrades, and
/// because user space must hold a program array, or the kernel empties it.
pub(super) const MAPS: &[&str] = &[STATE, "rules", "movers", "any_moved", "cookies"];
