//! Debian's packages, through an apt root of our own: the system's apt is neither used nor changed.
//! The mirror is the one that the system's sources name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::run;

/// The suites that have kernels; those with `-security` lie on a mirror of their own.
const SUITES: [&str; 11] = [
    "bookworm",
    "bookworm-updates",
    "bookworm-backports",
    "bookworm-security",
    "trixie",
    "trixie-updates",
    "trixie-backports",
    "trixie-security",
    "testing",
    "unstable",
    "experimental",
];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// How old the lists may be before they are fetched anew.
const FRESH: Duration = Duration::from_secs(12 * 3600);

/// A package, as the mirror has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) architecture: String,
}

/// The apt root.
#[derive(Debug)]
pub(crate) struct Packages {
    folder: PathBuf,
}

impl Packages {
    /// Makes the root in `folder`, and fetches the lists unless they are fresh.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let packages = Self { folder: folder.to_owned() };
        let moved = packages.keep("sources.list", &sources(&Mirrors::of_the_system()?))?;
        packages.keep("status", "")?;
        packages.keep("apt.conf", &configuration(folder))?;
        let stale = moved || packages.age().is_none_or(|age| age > FRESH);
        if stale {
            run::output(packages.apt("apt-get").arg("update"))
                .context("cannot fetch the lists of packages; is there a network?")?;
            fs::write(packages.path("fetched"), "")?;
        }
        Ok(packages)
    }

    /// The newest of each package whose name begins so and is `wanted`.
    pub(crate) fn list(&self, prefix: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<Package>> {
        let names = run::output(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        let names: Vec<_> = names.lines().filter(|name| wanted(name)).collect();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let records =
            run::output(self.apt("apt-cache").args(["show", "--no-all-versions"]).args(names))?;
        Ok(records.split("\n\n").filter_map(package).collect())
    }

    /// Fetches packages, given as apt-get takes them, and returns their files in no order.
    pub(crate) fn download(&self, packages: &[String]) -> Result<Vec<PathBuf>> {
        let folder = tempfile::tempdir_in(self.path("archives"))?.keep();
        run::output(self.apt("apt-get").arg("download").args(packages).current_dir(&folder))
            .with_context(|| format!("cannot download {}", packages.join(" ")))?;
        let files = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path()));
        files.collect()
    }

    /// Fetches packages and unpacks them into `folder`.
    pub(crate) fn unpack(&self, packages: &[String], folder: &Path) -> Result<()> {
        let files = self.download(packages)?;
        for file in &files {
            run::output(Command::new("dpkg-deb").arg("-x").arg(file).arg(folder))?;
        }
        if let Some(archives) = files.first().and_then(|file| file.parent()) {
            fs::remove_dir_all(archives)?;
        }
        Ok(())
    }

    fn age(&self) -> Option<Duration> {
        fs::metadata(self.path("fetched")).ok()?.modified().ok()?.elapsed().ok()
    }

    /// Writes a file unless it has this text, and returns whether it had another: apt's cache is
    /// valid as long as its files are not touched.
    fn keep(&self, name: &str, text: &str) -> Result<bool> {
        let path = self.path(name);
        let other = fs::read_to_string(&path).ok().as_deref() != Some(text);
        if other {
            fs::write(path, text)?;
        }
        Ok(other)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.path("apt.conf")).env("LC_ALL", "C").arg("--quiet");
        // Where the system keeps no cache, each call would read all lists.
        command.args(["-o", "Dir::Cache::pkgcache=pkgcache.bin"]);
        command
    }
}

/// Where Debian's packages and its security updates are.
#[derive(Debug, PartialEq, Eq)]
struct Mirrors {
    main: String,
    security: String,
}

impl Mirrors {
    fn of_the_system() -> Result<Self> {
        let format = "$(COMPONENT) $(RELEASE) $(REPO_URI) $(ORIGIN)";
        let targets = run::output(
            Command::new("apt-get")
                .args(["indextargets", "--format", format, "Created-By: Packages"])
                .env("LC_ALL", "C"),
        )?;
        match Self::among(&targets) {
            Some(mirrors) => Ok(mirrors),
            None => bail!(
                "no mirror of Debian and of its security updates among this system's apt sources: \
                 the kernels are Debian's; add both to /etc/apt/sources.list.d"
            ),
        }
    }

    /// From lines of component, release, address, and origin where it is known.
    fn among(targets: &str) -> Option<Self> {
        let uri = |wanted: &dyn Fn(&str) -> bool| {
            targets.lines().find_map(|line| {
                let mut words = line.split(' ');
                let (component, release, uri) = (words.next()?, words.next()?, words.next()?);
                // Without lists apt leaves the origin out, or prints the variable's name.
                let debian = words.next().is_none_or(|origin| {
                    origin.is_empty() || origin.starts_with('$') || origin == "Debian"
                });
                (component == "main" && debian && wanted(release)).then(|| uri.to_owned())
            })
        };
        let names = ["bookworm", "trixie", "forky", "sid", "stable", "oldstable", "testing"];
        let main = |release: &str| names.contains(&release.trim_end_matches("-updates"));
        let security = |release: &str| {
            release.strip_suffix("-security").is_some_and(|name| names.contains(&name))
        };
        Some(Self { main: uri(&main)?, security: uri(&security)? })
    }
}

fn sources(mirrors: &Mirrors) -> String {
    let line = |suite: &str| {
        let uri = if suite.ends_with("-security") { &mirrors.security } else { &mirrors.main };
        format!("deb [arch=amd64,arm64 signed-by={KEYRING}] {uri} {suite} main\n")
    };
    SUITES.into_iter().map(line).collect()
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "Dir::State \"{folder}\";\n\
         Dir::State::lists \"{folder}/lists\";\n\
         Dir::State::status \"{folder}/status\";\n\
         Dir::Cache \"{folder}\";\n\
         Dir::Etc::sourcelist \"{folder}/sources.list\";\n\
         Dir::Etc::sourceparts \"-\";\n\
         Dir::Etc::preferencesparts \"-\";\n\
         APT::Architectures {{ \"amd64\"; \"arm64\"; }};\n\
         APT::Sandbox::User \"\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::PDiffs \"false\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n"
    )
}

fn package(record: &str) -> Option<Package> {
    let field = |name: &str| {
        record
            .lines()
            .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
    };
    Some(Package {
        name: field("Package")?,
        version: field("Version")?,
        architecture: field("Architecture")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_debians_mirrors_among_others() {
        let targets = "main nodistro http://node.test/ .\n\
             stable bookworm http://container.test/ Container\n\
             main bookworm http://other.test/ Other\n\
             main bookworm http://debian.test/debian/ Debian\n\
             main bookworm-security http://debian.test/security/ Debian\n";
        let mirrors = Mirrors::among(targets).unwrap();
        assert_eq!(mirrors.main, "http://debian.test/debian/");
        assert_eq!(mirrors.security, "http://debian.test/security/");
        assert_eq!(Mirrors::among("main noble http://ubuntu.test/ Ubuntu\n"), None);
        let unfetched = "main trixie-updates http://debian.test/ $(ORIGIN)\n\
             main trixie-security http://security.test/ \n";
        assert!(Mirrors::among(unfetched).is_some());
    }

    #[test]
    fn reads_a_record() {
        let record = "Package: linux-image-6.1.0-56-cloud-amd64\nVersion: 6.1.192-2\nInstalled-Size: 9\n\
             Architecture: amd64\nDescription: Linux 6.1\n";
        let read = package(record).unwrap();
        assert_eq!(read.name, "linux-image-6.1.0-56-cloud-amd64");
        assert_eq!((read.version.as_str(), read.architecture.as_str()), ("6.1.192-2", "amd64"));
        assert_eq!(package(""), None);
    }
}
