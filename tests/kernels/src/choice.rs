//! Which of the mirror's kernels are tested: the newest of each series, and the oldest that some
//! series still has.

use std::collections::BTreeMap;
use std::fmt;

use crate::packages::Package;

/// A series whose oldest kernel is tested as well: a long-term series that distributions froze
/// long ago.
const OLDEST_TOO: (u32, u32) = (6, 12);

/// An upstream version; a release candidate comes before its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
    candidate: u32,
}

impl Version {
    /// From a Debian version: `6.12.118-1~bpo12+1`, `7.3~rc7-1~exp1`.
    fn parse(text: &str) -> Option<Self> {
        let upstream = text.split('-').next()?;
        let (numbers, candidate) = match upstream.split_once("~rc") {
            Some((numbers, candidate)) => (numbers, candidate.parse().ok()?),
            None => (upstream, u32::MAX),
        };
        let mut numbers = numbers.split('.').map(|number| number.parse().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        Some(Self { major, minor, patch: numbers.next().unwrap_or(Some(0))?, candidate })
    }

    fn series(self) -> (u32, u32) {
        (self.major, self.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, patch, candidate } = self;
        match *candidate {
            u32::MAX => write!(f, "{major}.{minor}.{patch}"),
            candidate => write!(f, "{major}.{minor}-rc{candidate}"),
        }
    }
}

/// A kernel of the mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// `6.12`, or `6.12-oldest`: what its measurements are compared by.
    pub(crate) label: String,
    pub(crate) version: Version,
    /// What `uname -r` says there.
    pub(crate) release: String,
    pub(crate) architecture: String,
    /// As apt-get takes them.
    pub(crate) packages: Vec<String>,
}

impl Kernel {
    /// Whether a filter of the command line means this kernel: `6.1` is not `6.12`.
    pub(crate) fn matches(&self, filter: &str) -> bool {
        let is = |name: &str| {
            name.strip_prefix(filter).is_some_and(|rest| {
                rest.is_empty() || !rest.starts_with(|next: char| next.is_ascii_digit())
            })
        };
        is(&self.label) || is(&self.version.to_string()) || is(&self.release)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.version, self.architecture)
    }
}

/// What the packages of kernels begin with.
pub(crate) const PREFIX: &str = "linux-";

/// Whether a package of this name is a kernel, or a part of one.
pub(crate) fn is_kernel(name: &str) -> bool {
    let kernel = ["image-", "binary-", "modules-"]
        .into_iter()
        .find_map(|part| name.strip_prefix(PREFIX)?.strip_prefix(part));
    kernel.is_some_and(|release| {
        release.starts_with(|first: char| first.is_ascii_digit()) && release.contains("-cloud-")
    })
}

/// The kernels to test among the packages of one architecture, the oldest first.
pub(crate) fn choose(packages: &[Package], architecture: &str) -> Vec<Kernel> {
    let mut series: BTreeMap<_, Vec<Kernel>> = BTreeMap::new();
    for kernel in kernels(packages, architecture) {
        series.entry(kernel.version.series()).or_default().push(kernel);
    }
    let mut chosen = Vec::new();
    for ((major, minor), mut all) in series {
        all.sort_by(|one, other| (one.version, &one.release).cmp(&(other.version, &other.release)));
        let newest = all.pop().expect("a series has a kernel");
        if let Some(oldest) = all.into_iter().next().filter(|_| (major, minor) == OLDEST_TOO) {
            chosen.push(Kernel { label: format!("{major}.{minor}-oldest"), ..oldest });
        }
        chosen.push(Kernel { label: format!("{major}.{minor}"), ..newest });
    }
    chosen
}

fn kernels(packages: &[Package], architecture: &str) -> Vec<Kernel> {
    let suffix = format!("-cloud-{architecture}");
    // Of newer kernels the package of the image has only what its parts have not.
    let part = |kind: &str, release: &str| {
        let name = format!("linux-{kind}-{release}");
        packages.iter().find(|package| package.name == name)
    };
    let of = |image: &Package| {
        let release = image.name.strip_prefix("linux-image-")?;
        if !release.ends_with(&suffix) || !is_kernel(&image.name) {
            return None;
        }
        let others = ["binary", "modules"].iter().filter_map(|kind| part(kind, release));
        let parts = std::iter::once(image).chain(others);
        Some(Kernel {
            label: String::new(),
            version: Version::parse(&image.version)?,
            release: release.to_owned(),
            architecture: architecture.to_owned(),
            packages: parts
                .map(|part| format!("{}:{architecture}={}", part.name, part.version))
                .collect(),
        })
    };
    packages.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> Package {
        let architecture = "amd64".to_owned();
        Package { name: name.to_owned(), version: version.to_owned(), architecture }
    }

    fn offered() -> Vec<Package> {
        vec![
            package("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"),
            package("linux-image-6.1.0-47-cloud-amd64", "6.1.170-1"),
            package("linux-image-6.1.0-47-cloud-amd64-dbg", "6.1.170-1"),
            package("linux-image-6.12.43+deb12-cloud-amd64", "6.12.43-1~bpo12+1"),
            package("linux-image-6.12.118+deb13-cloud-amd64", "6.12.118-1"),
            package("linux-image-6.12.86+deb13-cloud-amd64", "6.12.86-1"),
            package("linux-image-7.3-cloud-amd64", "7.3~rc7-1~exp1"),
            package("linux-binary-7.3-cloud-amd64", "7.3~rc7-1~exp1"),
            package("linux-image-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
            package("linux-binary-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
            package("linux-modules-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
            package("linux-image-cloud-amd64", "7.3.4-1"),
            package("linux-image-7.3.4+deb13-cloud-arm64", "7.3.4-1~bpo13+1"),
        ]
    }

    #[test]
    fn takes_the_newest_of_each_series_and_the_oldest_of_one() {
        let chosen = choose(&offered(), "amd64");
        let labels: Vec<_> = chosen
            .iter()
            .map(|kernel| (kernel.label.as_str(), kernel.version.to_string()))
            .collect();
        assert_eq!(
            labels,
            [
                ("6.1", "6.1.192"),
                ("6.12-oldest", "6.12.43"),
                ("6.12", "6.12.118"),
                ("7.3", "7.3.4")
            ]
            .map(|(label, version)| (label, version.to_owned()))
        );
        assert_eq!(
            chosen[3].packages,
            ["linux-image", "linux-binary", "linux-modules"]
                .map(|part| format!("{part}-7.3.4+deb13-cloud-amd64:amd64=7.3.4-1~bpo13+1"))
        );
        assert_eq!(choose(&offered(), "arm64").len(), 1);
    }

    #[test]
    fn a_release_candidate_comes_before_the_release() {
        let version = |text| Version::parse(text).unwrap();
        assert!(version("7.3~rc7-1~exp1") < version("7.3.1-1"));
        assert!(version("7.3~rc7-1~exp1") < version("7.3-1"));
        assert_eq!(version("7.3~rc7-1~exp1").to_string(), "7.3-rc7");
        assert_eq!(Version::parse("unknown"), None);
    }

    #[test]
    fn a_filter_ends_at_a_number() {
        let chosen = choose(&offered(), "amd64");
        let matched = |filter| chosen.iter().filter(|kernel| kernel.matches(filter)).count();
        assert_eq!(matched("6.1"), 1);
        assert_eq!(matched("6.12"), 2);
        assert_eq!(matched("6.12.43"), 1);
        assert_eq!(matched("6.12-oldest"), 1);
        assert_eq!(matched("7"), 1);
    }
}
