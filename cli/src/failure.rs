//! How a command says that it failed: one line with what, why, and what to do about it.

use std::error::Error;
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
        let mut line = error.to_string();
        let mut cause = error.source();
        while let Some(source) = cause {
            let text = source.to_string();
            // Some errors repeat their cause in their own text.
            if !line.ends_with(&text) {
                line = format!("{line}: {text}");
            }
            cause = source.source();
        }
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
