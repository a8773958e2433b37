//! The binary as a person runs it.

use std::fs;
use std::process::{Command, Output, Stdio};

/// What a run of it came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("it speaks UTF-8");
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// What it printed; it must have done what it was asked, without a complaint.
    #[track_caller]
    pub(crate) fn done(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{self:?}");
        self.stdout
    }

    /// The line with which it failed: the only one, and all that it said.
    #[track_caller]
    pub(crate) fn failed(self) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{self:?}");
        self.complaint()
    }

    /// The one line on its standard error.
    #[track_caller]
    pub(crate) fn complaint(self) -> String {
        let line = self.stderr.strip_suffix('\n').unwrap_or_default();
        assert!(line.starts_with("overspill: ") && !line.contains('\n'), "{self:?}");
        line.to_owned()
    }
}

/// The binary with arguments that have no blanks in them.
pub(crate) fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overspill"));
    command.args(arguments.split(' '));
    command
}

/// Runs it.
pub(crate) fn overspill(arguments: &str) -> Ran {
    Ran::from(command(arguments).output().unwrap())
}

/// The system calls of that name that a command made, one on each line. It must succeed.
pub(crate) fn traced(command: &Command, call: &str) -> String {
    let log = tempfile::NamedTempFile::new().unwrap();
    let status = Command::new("strace")
        .args(["-f", "-qq", "-e", &format!("trace={call}"), "-o"])
        .arg(log.path())
        .arg(command.get_program())
        .args(command.get_args())
        .stdout(Stdio::null())
        .status()
        .expect("strace is installed");
    assert!(status.success(), "{command:?}");
    fs::read_to_string(log.path()).unwrap()
}

/// The words of each line of a table.
pub(crate) fn cells(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}
