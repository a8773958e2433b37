//! The errors of supervisors, and of their clients.

use std::io;

use overspill::Name;

/// The result of what a supervisor does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed, why, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The library failed.
    #[error("{}", with_remedy(.0))]
    Library(Box<overspill::Error>),
    /// The system refused something that a supervisor needs.
    #[error("cannot {operation}: {source}{remedy}")]
    System {
        /// What was to be done, as in "read /proc/self/status".
        operation: String,
        /// What the system said.
        source: io::Error,
        /// "; " and what to do about it, or nothing.
        remedy: &'static str,
    },
    /// A file of the system has not what it should have.
    #[error("cannot read {path}: {why}; mount /proc")]
    Unreadable {
        /// The file.
        path: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The signal that tells of the ends of workers is ignored.
    #[error(
        "cannot wait for workers: SIGCHLD is ignored; start overspill with env \
         --default-signal=CHLD"
    )]
    ChildrenIgnored,
    /// A worker could not become its command. It has said why itself.
    #[error("{0}")]
    NotStarted(String),
    /// A worker ended before it listened, at the first start.
    #[error(
        "{worker} {ending} before it listened on a TCP port; run the command by itself to see why \
         (it has to stay in the foreground)"
    )]
    NeverListened {
        /// Which worker.
        worker: String,
        /// How it ended.
        ending: String,
    },
    /// There is no such user.
    #[error("there is no user {name}{}; look with getent passwd", hint(.near.as_deref()))]
    NoSuchUser {
        /// As given.
        name: String,
        /// One that is much like it.
        near: Option<String>,
    },
    /// A supervisor of that name runs.
    #[error(
        "a supervisor of {name} already runs ({holder}); choose another --name, replace its \
         workers with overspill restart {name}, or {}", end(*.pid)
    )]
    NameTaken {
        /// Its name.
        name: Name,
        /// Who it is.
        holder: String,
        /// Its process, where it can be seen from here.
        pid: Option<i32>,
    },
    /// Something holds the name and does not answer.
    #[error(
        "a process that does not answer ({source}) holds the control socket of {name}; choose \
         another --name, or find it with ss -xp"
    )]
    NameHeld {
        /// The name.
        name: Name,
        /// What came of asking it.
        source: io::Error,
    },
    /// The process that holds the name belongs to neither root nor the caller.
    #[error(
        "the supervisor of {name} ({holder}) is not root's nor your own; ask as that user, if you \
         trust it"
    )]
    NotTrusted {
        /// Its name.
        name: Name,
        /// Who it is.
        holder: String,
    },
    /// What the process has from the build that it was before can't be used.
    #[error("cannot take over from another build by {variable}: {why}; start overspill without it")]
    NotInherited {
        /// The environment variable that says where it is.
        variable: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody else has held the right to change services until the end.
    #[error(
        "cannot remove the services of {name}: another process is changing services, and does not \
         end; remove them with overspill rm"
    )]
    NotRemoved {
        /// The supervisor's name.
        name: Name,
    },
    /// A supervisor has not done what it was asked.
    #[error("cannot {request} {name}: {why}")]
    Refused {
        /// What it was asked.
        request: &'static str,
        /// Its name.
        name: Name,
        /// What it says.
        why: String,
    },
}

impl From<overspill::Error> for Error {
    fn from(error: overspill::Error) -> Self {
        Self::Library(Box::new(error))
    }
}

impl Error {
    /// Whether the same may succeed later, without anybody's doing.
    pub(crate) fn may_pass(&self) -> bool {
        use overspill::Error::{Locked, System, Unfinished};

        match self {
            Self::Library(error) => {
                matches!(**error, Locked { .. } | System { .. } | Unfinished { .. })
            }
            _ => false,
        }
    }

    /// The system refused something; nothing is known that helps.
    pub(crate) fn system(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::helped(operation, source, "")
    }

    /// The same, with what helps: "; " and a sentence.
    pub(crate) fn helped(
        operation: impl Into<String>,
        source: impl Into<io::Error>,
        remedy: &'static str,
    ) -> Self {
        Self::System { operation: operation.into(), source: source.into(), remedy }
    }
}

fn with_remedy(error: &overspill::Error) -> String {
    let line = error.with_causes();
    error.remedy().map(|remedy| format!("{line}; {remedy}")).unwrap_or(line)
}

fn hint(near: Option<&str>) -> String {
    near.map(|name| format!("; there is {name}")).unwrap_or_default()
}

fn end(pid: Option<i32>) -> String {
    pid.map_or_else(|| "end it there".to_owned(), |pid| format!("end it with kill {pid}"))
}
