//! How a command says that it failed: one line with what, why, and what to do about it.

use std::fmt;

/// The result of a command.
pub(crate) type Outcome = Result<(), Failure>;

/// One line: what failed, why, what to do. A file may be wrong in several ways, of which
/// each is a line.
#[derive(Debug)]
pub(crate) struct Failure {
    lines: Vec<String>,
    /// The exit status.
    pub(crate) status: u8,
}

impl Failure {
    /// A failure of the command line's own.
    pub(crate) fn new(line: impl Into<String>) -> Self {
        Self { lines: vec![line.into()], status: 1 }
    }

    /// Several things failed, each in a line.
    pub(crate) fn several(lines: Vec<String>) -> Self {
        Self { lines, status: 1 }
    }

    /// What was asked is wrong, whatever the machine has.
    pub(crate) fn wrong(lines: Vec<String>) -> Self {
        Self { lines, status: 2 }
    }

    pub(crate) fn lines(&self) -> &[String] {
        &self.lines
    }
}

impl From<overspill::Error> for Failure {
    fn from(error: overspill::Error) -> Self {
        let mut line = error.with_causes();
        if let Some(remedy) = error.remedy() {
            line = format!("{line}; {remedy}");
        }
        Self::new(line)
    }
}

impl From<overspill_supervisor::Error> for Failure {
    fn from(error: overspill_supervisor::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}
