//! How a command says that it failed: one line with what, why, and what to do about it.

use std::fmt;

/// The result of a command.
pub(crate) type Outcome = Result<(), Failure>;

/// One line: what failed, why, what to do.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    /// A failure of the command line's own.
    pub(crate) fn new(line: impl Into<String>) -> Self {
        Self(line.into())
    }
}

impl From<overspill::Error> for Failure {
    fn from(error: overspill::Error) -> Self {
        let mut line = error.with_causes();
        if let Some(remedy) = error.remedy() {
            line = format!("{line}; {remedy}");
        }
        Self(line)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
