//! The programs that the demo runs, and the packages that have them.

use std::env;
use std::path::PathBuf;

use crate::failure::{Failure, Outcome};

/// A program that is expected on the machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tool {
    program: &'static str,
    /// The package of Debian and Ubuntu that has it.
    package: &'static str,
}

pub(super) const NGINX: Tool = Tool { program: "nginx", package: "nginx" };
pub(super) const HAPROXY: Tool = Tool { program: "haproxy", package: "haproxy" };
pub(super) const PYTHON: Tool = Tool { program: "python3", package: "python3" };
pub(super) const IP: Tool = Tool { program: "ip", package: "iproute2" };

const ALL: [Tool; 4] = [NGINX, HAPROXY, PYTHON, IP];

impl Tool {
    /// Where it is: in PATH, or where servers are although many a PATH leaves it out.
    pub(super) fn find(self) -> Result<PathBuf, Failure> {
        self.look_up().ok_or_else(|| missing(&[self]))
    }

    fn look_up(self) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
            .map(|folder| folder.join(self.program))
            .find(|candidate| candidate.is_file())
    }
}

/// Checks that all are there.
pub(super) fn check() -> Outcome {
    let lacking: Vec<Tool> = ALL.into_iter().filter(|tool| tool.look_up().is_none()).collect();
    if lacking.is_empty() { Ok(()) } else { Err(missing(&lacking)) }
}

fn missing(tools: &[Tool]) -> Failure {
    let join = |word: fn(&Tool) -> &'static str, between| {
        tools.iter().map(word).collect::<Vec<_>>().join(between)
    };
    let programs = join(|tool| tool.program, " and no ");
    let packages = join(|tool| tool.package, " ");
    Failure::new(format!(
        "cannot play the demo: there is no {programs} in PATH or /usr/sbin; on Debian and Ubuntu: \
         apt-get install {packages}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let line = missing(&[NGINX, HAPROXY]).to_string();
        assert!(line.contains("no nginx and no haproxy"), "{line}");
        assert!(line.ends_with("apt-get install nginx haproxy"), "{line}");
    }

    #[test]
    fn a_shell_is_found_and_a_fancy_is_not() {
        assert!(Tool { program: "sh", package: "dash" }.find().is_ok());
        assert!(Tool { program: "no-such-program", package: "none" }.find().is_err());
    }
}
