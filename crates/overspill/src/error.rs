//! What can go wrong, with what was tried, on what, why, and what to do about it.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::member::{Address, MemberId};

/// The first layout whose state other builds can read, drain, remove and take over.
pub(crate) const FIRST_SHARED: u32 = 8;

/// The result of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed. A failed operation has changed nothing, except
/// [`Error::Unfinished`].
///
/// [`Error::remedy`] says what can be done about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name breaks the rules for names.
    #[error("{name:?} is not a service name")]
    BadName {
        /// The name given.
        name: String,
    },
    /// A word that stands for none of the known choices.
    #[error("there is no {what} {word:?}{} (known: {known})", hint(nearest.as_ref()))]
    UnknownWord {
        /// What was to be chosen.
        what: &'static str,
        /// The word given.
        word: String,
        /// The one of them that is much like it.
        nearest: Option<String>,
        /// The words that would do.
        known: String,
    },
    /// A service of that name exists in the network namespace.
    #[error("the name {name} is taken by another service")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// There is no such service in the network namespace.
    #[error("there is no service {name} in this network namespace{}", hint(nearest.as_ref()))]
    NoSuchService {
        /// The name asked for.
        name: String,
        /// A name much like it that exists.
        nearest: Option<String>,
    },
    /// There is no service at all in the network namespace.
    #[error("there is no service in this network namespace")]
    NoServices,
    /// As many as may trace a network namespace do.
    #[error("{most} are tracing this network namespace already")]
    TooManyTracers {
        /// How many may.
        most: usize,
    },
    /// The service has no such member.
    #[error("service {service} has no member {member} (it has {known})")]
    NoSuchMember {
        /// The service.
        service: String,
        /// The member asked for.
        member: MemberId,
        /// The members that it has.
        known: String,
    },
    /// A service cannot be without members.
    #[error("service {service} would be left without members")]
    NoMembers {
        /// The service.
        service: String,
    },
    /// The descriptor is no TCP socket.
    #[error("{socket} is a {kind} socket, not a TCP one")]
    NotTcp {
        /// Which socket.
        socket: String,
        /// What it is.
        kind: String,
    },
    /// The descriptor is an MPTCP socket.
    #[error("{socket} is an MPTCP socket, which the kernel does not let into a socket map")]
    Mptcp {
        /// Which socket.
        socket: String,
    },
    /// The socket does not listen.
    #[error("{socket} does not listen")]
    NotListening {
        /// Which socket.
        socket: String,
    },
    /// The socket is bound to a device.
    #[error("{socket} is bound to the device {device}")]
    BoundToDevice {
        /// Which socket.
        socket: String,
        /// The device.
        device: String,
    },
    /// The socket lives in another network namespace than the service.
    #[error("{socket} is in network namespace {actual}, the service in {expected}")]
    OtherNamespace {
        /// Which socket.
        socket: String,
        /// The namespace of the socket.
        actual: u64,
        /// The namespace of the service.
        expected: u64,
    },
    /// The socket listens on another port than the service's.
    #[error("{socket} listens on port {actual}, the service on {expected}")]
    OtherPort {
        /// Which socket.
        socket: String,
        /// The port of the socket.
        actual: u16,
        /// The port of the service.
        expected: u16,
    },
    /// The socket is bound to another address than the member whose place it is to take.
    #[error("{socket} is not bound to {expected}")]
    OtherAddress {
        /// Which socket.
        socket: String,
        /// The address of the member.
        expected: Address,
    },
    /// The socket is a member already.
    #[error("{socket} is already a member of service {service}")]
    AlreadyMember {
        /// Which socket.
        socket: String,
        /// The service that it is a member of.
        service: String,
        /// Which member.
        member: MemberId,
        /// Whether it is the service's only one.
        only: bool,
        /// The network namespace, by inode number, where it is not the caller's.
        netns: Option<u64>,
    },
    /// The socket stands twice in the list.
    #[error("{socket} is given twice")]
    GivenTwice {
        /// Which socket.
        socket: String,
    },
    /// The socket is a member of no service of the network namespace.
    #[error("{socket} is no member of a service here")]
    NotAMember {
        /// Which socket.
        socket: String,
    },
    /// The address belongs to another service.
    #[error("{address} is served by service {service}")]
    AddressTaken {
        /// The address.
        address: SocketAddr,
        /// The service that serves it.
        service: String,
    },
    /// IPv4 and IPv6-only sockets cannot take each other's requests.
    #[error("{ipv4} takes IPv4 only and {ipv6} IPv6 only: neither can take the other's requests")]
    MixedFamilies {
        /// An IPv4 socket.
        ipv4: String,
        /// An IPv6-only socket.
        ipv6: String,
    },
    /// The socket is in a map of another kind already.
    #[error("{socket} is held by a REUSEPORT_SOCKARRAY of another BPF program")]
    HeldElsewhere {
        /// Which socket.
        socket: String,
    },
    /// No room for more services or members.
    #[error("{what} over capacity: {wanted} wanted, {capacity} possible in this network namespace")]
    OverCapacity {
        /// Services or members.
        what: &'static str,
        /// How many there would be.
        wanted: u64,
        /// How many there can be.
        capacity: u32,
    },
    /// A capacity that cannot be had.
    #[error("a capacity of {wanted} {what} cannot be had: {why}")]
    BadCapacity {
        /// Services or members.
        what: &'static str,
        /// How many were asked for.
        wanted: u32,
        /// Why not.
        why: String,
    },
    /// The process does not exist: it has ended, or the number is that of a thread.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// Its id.
        pid: u32,
    },
    /// The process holds no TCP socket that listens on the port.
    #[error("process {pid} ({command}) has no TCP socket that listens on port {port}{found}")]
    NoSuchSocket {
        /// Its id.
        pid: u32,
        /// Its command.
        command: String,
        /// The port.
        port: u16,
        /// What it has instead; empty or beginning with "; ".
        found: String,
    },
    /// The state was made by another build of overspill.
    #[error(
        "the state in {path} has layout {layout} (overspill {version}, build {build}); this binary \
         has layout {own_layout} (overspill {own_version}, build {own_build})",
        path = path.display()
    )]
    OtherVersion {
        /// Where the state is.
        path: PathBuf,
        /// The version that made it.
        version: String,
        /// The build that made it: the head of its object's digest.
        build: String,
        /// The number of the layout of its maps.
        layout: u32,
        /// This version.
        own_version: &'static str,
        /// This build.
        own_build: String,
        /// The number of this build's layout.
        own_layout: u32,
    },
    /// The state can't be taken over by this build.
    #[error("cannot take over the state in {path}: {why}", path = path.display())]
    NoUpgrade {
        /// Where the state is.
        path: PathBuf,
        /// Why.
        why: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The programs of this build place requests, but a step after the swap failed.
    #[error("the upgrade of {path} is incomplete", path = path.display())]
    Unfinished {
        /// Where the state is.
        path: PathBuf,
        /// Why.
        source: Box<Error>,
    },
    /// A service has a policy that this build does not know.
    #[error("unknown policy {policy} of service \"{service}\"")]
    UnknownPolicy {
        /// The service's name.
        service: String,
        /// The policy's number.
        policy: u8,
    },
    /// The state is not as overspill leaves it.
    #[error("the state in {path} is damaged: {what}", path = path.display())]
    Damaged {
        /// Where the state is.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The service is to ask a dispatcher and has none.
    #[error("service {service} has no dispatcher to ask")]
    NoDispatcher {
        /// The service.
        service: String,
    },
    /// The file is no dispatcher.
    #[error("{path} is not a dispatcher: {why}", path = path.display())]
    NotADispatcher {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The dispatcher was made for another version of its header.
    #[error("{path} was made for version {version} of overspill_dispatcher.h; this is version {own}", path = path.display())]
    DispatcherVersion {
        /// The file.
        path: PathBuf,
        /// The version that it was made for.
        version: u32,
        /// The version of this build.
        own: u32,
    },
    /// The kernel's verifier does not take the dispatcher.
    #[error("the kernel refuses {path}: {verdict}", path = path.display())]
    DispatcherRefused {
        /// The file.
        path: PathBuf,
        /// The verifier's last words.
        verdict: String,
    },
    /// The state was made by another user, who could change under our hands what we make.
    #[error("the state in {path} belongs to user {owner}", path = path.display())]
    OtherOwner {
        /// Where the states are.
        path: PathBuf,
        /// The user's number.
        owner: u32,
    },
    /// Another writer does not let go of the lock that every change takes.
    #[error(
        "{} has kept {path} locked for {seconds} s: nobody else can change services",
        holder(*pid, command),
        path = path.display()
    )]
    Locked {
        /// Where the states are.
        path: PathBuf,
        /// The writer's process; `None` where that lives in a pid namespace that can't be
        /// seen into from here.
        pid: Option<u32>,
        /// Its command; empty where it can't be read.
        command: String,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// No BPF file system is mounted.
    #[error("no BPF file system is mounted")]
    NoBpffs,
    /// No cgroup2 file system with the process's control group is mounted.
    #[error("no cgroup2 file system is mounted that has this process's cgroup")]
    NoCgroup2,
    /// The kernel has no type information.
    #[error("this kernel has no BTF (/sys/kernel/btf/vmlinux)")]
    NoBtf,
    /// The caller may not do it.
    #[error("no permission to {operation} {object}")]
    Permission {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {operation} {object}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's verifier refused one of overspill's own programs.
    #[error("the kernel refuses the program {program}: {verdict}")]
    Refused {
        /// The program.
        program: String,
        /// The end of the verifier's log.
        verdict: String,
    },
    /// libbpf failed.
    #[error("cannot {operation} {object}")]
    Bpf {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn hint(nearest: Option<&String>) -> String {
    nearest.map_or_else(String::new, |nearest| format!("; there is {nearest}"))
}

fn holder(pid: Option<u32>, command: &str) -> String {
    match pid {
        None => "a process that can't be seen from here".to_owned(),
        Some(pid) if command.is_empty() => format!("process {pid}"),
        Some(pid) => format!("process {pid} ({command})"),
    }
}

impl Error {
    /// What can be done about it, as a sentence without a full stop.
    #[must_use]
    pub fn remedy(&self) -> Option<Cow<'static, str>> {
        if self.lacks_descriptors() {
            let raise = "raise the limit of open files (ulimit -n, or LimitNOFILE= of a unit)";
            return Some(raise.into());
        }
        if let Some(remedy) = self.remedy_by_name() {
            return Some(remedy.into());
        }
        if let Some(remedy) = self.remedy_for_a_program() {
            return Some(remedy.into());
        }
        let remedy = match self {
            Self::Locked { pid: None, .. } => {
                "look for it with lslocks where all processes can be seen (the host), and end it"
            }
            Self::BadName { .. } => {
                "use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
            }
            Self::NameTaken { .. } => {
                "choose another name, join that service (share --join), or remove it (overspill \
                 rm); if a killed supervisor has left it, end its processes first"
            }
            Self::NoSuchService { .. } => "overspill ls lists them; --netns looks elsewhere",
            Self::NoServices => {
                "overspill run or overspill share makes one; --netns looks elsewhere"
            }
            Self::TooManyTracers { .. } => "end one of them",
            Self::NoMembers { .. } => "remove the service with overspill rm",
            Self::NotTcp { .. } => "leave it out: only TCP sockets can be members",
            Self::OtherAddress { .. } => "bind it to that address, or let it join as a new member",
            Self::Bpf { .. } => "overspill check tells what this machine lacks",
            Self::Mptcp { .. } => {
                "let the server make a TCP socket (Go: GODEBUG=multipathtcp=0), or, if it \
                 runs under mptcpize, start it without"
            }
            Self::NotListening { .. } => "let the server call listen() first",
            Self::BoundToDevice { .. } => "bind it to an address of the device instead",
            Self::OtherNamespace { .. } => "make one service in each network namespace",
            Self::OtherPort { .. } => "make one service for each port",
            Self::NotAMember { .. } => "let it join a service first",
            Self::GivenTwice { .. } => "give it once",
            Self::AddressTaken { .. } => {
                "let the socket join that service, or remove the service first"
            }
            Self::MixedFamilies { .. } => {
                "make one service for each family, or listen on [::] without IPV6_V6ONLY"
            }
            Self::HeldElsewhere { .. } => "stop the other program, or let it use a SOCKMAP",
            Self::OverCapacity { .. } => {
                "remove services, or remove all and make the first anew with a larger --capacity"
            }
            Self::NoSuchProcess { .. } => "look with ps or ss -ltnp",
            Self::NoSuchSocket { .. } => "look with ss -ltnp",
            Self::OtherVersion { layout, .. } if *layout >= FIRST_SHARED => {
                "run overspill upgrade to switch to this version, or use the other one; a \
                 supervisor with this message has to be started again"
            }
            Self::NoUpgrade { remedy, .. } => remedy,
            Self::Unfinished { .. } => "run overspill upgrade again to complete it",
            Self::UnknownPolicy { .. } => {
                "set another policy with the version that made the service (overspill set \
                 --policy), or use that version"
            }
            Self::OtherVersion { .. } => {
                "use that version, or remove its services with it and make them anew; if it is \
                 not there any more, remove that folder (its services end)"
            }
            Self::Damaged { .. } => {
                "remove that folder with everything in it (the services in it end), and make \
                 them anew"
            }
            Self::NoBpffs => "mount it: mount -t bpf -o mode=700 bpf /sys/fs/bpf",
            Self::NoCgroup2 => "mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            Self::NoBtf => "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            Self::Permission { .. } => {
                "run as root, or with CAP_SYS_ADMIN (with CAP_DAC_OVERRIDE too where another user \
                 has made the state; to make services, or to join them, with CAP_NET_ADMIN and \
                 CAP_SYS_PTRACE too, and CAP_DAC_READ_SEARCH for processes of other users); \
                 overspill check tells what is missing"
            }
            Self::System { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => "ss -ltnp shows who listens there",
                io::ErrorKind::AddrNotAvailable => "ip address shows the machine's addresses",
                io::ErrorKind::ReadOnlyFilesystem => "mount it writable (mount -o remount,rw)",
                _ => return None,
            },
            _ => return None,
        };
        Some(remedy.into())
    }

    /// Where a BPF program is the cause.
    fn remedy_for_a_program(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoDispatcher { .. } => "give the file: --policy dispatcher=FILE",
            Self::NotADispatcher { .. } => {
                "give one that is made from a C file with OVERSPILL_DISPATCHER in it: clang -target \
                 bpf -O2 -g -c"
            }
            Self::DispatcherVersion { .. } => {
                "compile it anew with the header that this version of overspill comes with"
            }
            Self::DispatcherRefused { .. } => {
                "change the program so that the kernel's verifier sees that it ends and stays \
                 within its memory; bpftool prog load tells all that it says"
            }
            Self::Refused { .. } => {
                "use a kernel listed in docs/COMPATIBILITY.md, and report this one with the output \
                 of: overspill check --programs"
            }
            _ => return None,
        })
    }

    /// One that names what is to be dealt with.
    fn remedy_by_name(&self) -> Option<String> {
        Some(match self {
            Self::AlreadyMember { service, member, only, netns, .. } => {
                let netns = netns.map(|inode| format!(" --netns {inode}")).unwrap_or_default();
                if *only {
                    format!("remove that service first (overspill rm {service}{netns})")
                } else {
                    format!("take it out there first (overspill rm {service} {member}{netns})")
                }
            }
            Self::NoSuchMember { service, .. } => {
                format!("overspill show {service} lists them with their addresses")
            }
            Self::OtherOwner { owner, .. } => format!(
                "do it as that user; if nobody should have made it as user {owner}, remove that \
                 folder with everything in it (the services in it end)"
            ),
            Self::Locked { pid: Some(pid), .. } => format!(
                "if it is stopped, let it go on (kill -CONT {pid}), or else end it (kill -KILL \
                 {pid}): the next change puts right what it leaves"
            ),
            _ => return None,
        })
    }

    /// By its text: where libbpf was asked, the number is nowhere else.
    fn lacks_descriptors(&self) -> bool {
        let causes = self.with_causes();
        [libc::EMFILE, libc::ENFILE].iter().any(|n| causes.contains(&format!("(os error {n})")))
    }

    /// The error with its causes, on one line.
    #[must_use]
    pub fn with_causes(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(source) = cause {
            let text = source.to_string();
            // Some errors repeat their cause in their own text.
            if !line.ends_with(&text) {
                line = format!("{line}: {text}");
            }
            cause = source.source();
        }
        // Other people's words: a program's name may have any character in it.
        line.replace(char::is_control, "?")
    }

    pub(crate) fn system(
        operation: &'static str,
        object: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        let (object, source) = (object.into(), source.into());
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission { operation, object, source },
            _ => Self::System { operation, object, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once_and_on_one_line() {
        let denied = || io::Error::from_raw_os_error(libc::EACCES);
        let error = Error::system("open", "/a\nb", denied());
        let line = error.with_causes();
        assert_eq!(line, "no permission to open /a?b: Permission denied (os error 13)");
        let nested = Error::system("open", "it", io::Error::other(denied()));
        assert_eq!(nested.with_causes(), "cannot open it: Permission denied (os error 13)");
        assert_eq!(Error::NoBpffs.with_causes(), "no BPF file system is mounted");
    }

    #[test]
    fn a_lack_of_descriptors_has_its_remedy_wherever_it_is_met() {
        let full = || io::Error::from_raw_os_error(libc::EMFILE);
        let system = Error::system("open", "it", full());
        let source = Box::new(io::Error::other(full()));
        let nested = Error::Bpf { operation: "open", object: "it".to_owned(), source };
        for error in [system, nested] {
            assert!(error.remedy().is_some_and(|it| it.contains("ulimit -n")), "{error:?}");
        }
    }
}
