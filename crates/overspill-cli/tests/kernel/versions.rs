//! Other versions of overspill, made from this one's source by a few changes and built.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::tool::Ran;

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// What is built, and what the workspace does not do without.
const PARTS: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "bpf",
    "include",
    "crates",
    "tests",
    "benches",
    "examples",
    "dist",
    "docs",
];

/// A change of a file: what stands there exactly once, and what is to stand there.
type Edit = (&'static str, &'static str, &'static str);

/// Other rules, with everything in its place.
const RULES: &[Edit] = &[("bpf/overspill.bpf.c", "#define WALK 3\n", "#define WALK 2\n")];

/// Fields appended to what builds share. No number is raised for that.
const APPENDED: &[Edit] = &[
    (
        "bpf/overspill.h",
        "\t__u8 flags; /* as ov_member.flags */\n\t__u8 zero;\n",
        "\t__u8 flags;\n\t__u8 zero;\n\t__u64 later;\n",
    ),
    (
        "crates/overspill/src/datapath/layout.rs",
        "        flags: u8,\n        zero: u8,\n    }",
        "        flags: u8,\n        zero: u8,\n        later: u64,\n    }",
    ),
    (
        "bpf/overspill.h",
        "\t__u64 cgroup; /* id of the socket's control group */\n",
        "\t__u64 cgroup;\n\t__u64 later;\n",
    ),
    (
        "crates/overspill/src/datapath/layout.rs",
        "        awaited: u32,\n        cgroup: u64,\n    }",
        "        awaited: u32,\n        cgroup: u64,\n        later: u64,\n    }",
    ),
    (
        "bpf/overspill.h",
        "\t__u32 spare; /* slots that the capacity does not count: a replacement needs one */\n\t__u32 zero;\n",
        "\t__u32 spare;\n\t__u32 zero;\n\t__u64 later;\n",
    ),
    (
        "crates/overspill/src/datapath/layout.rs",
        "        spare: u32,\n        zero: u32,\n    }",
        "        spare: u32,\n        zero: u32,\n        later: u64,\n    }",
    ),
    (
        "crates/overspill/src/datapath/make.rs",
        "        spare: size.spare,\n        zero: 0,\n",
        "        spare: size.spare,\n        zero: 0,\n        later: 0,\n",
    ),
    (
        "bpf/overspill.h",
        "\t__u64 special; /* requests put here for another address than its own */\n",
        "\t__u64 special;\n\t__u64 later;\n",
    ),
    (
        "crates/overspill/src/datapath/layout.rs",
        "        redirected_out: u64,\n        special: u64,\n    }",
        "        redirected_out: u64,\n        special: u64,\n        later: u64,\n    }",
    ),
];

/// Fields of rows trade places.
const MOVED: &[Edit] = &[
    (
        "bpf/overspill.h",
        "\t__u64 cookie; /* SO_COOKIE: tells whether memory at sk is still that socket */\n\
         \t__u64 claim; /* the last request put on one of its last places */\n",
        "\t__u64 claim;\n\t__u64 cookie;\n",
    ),
    (
        "crates/overspill/src/datapath/layout.rs",
        "        sk: u64,\n        cookie: u64,\n        claim: u64,\n",
        "        sk: u64,\n        claim: u64,\n        cookie: u64,\n",
    ),
    (
        "bpf/overspill.h",
        "\t__u32 id; /* for user space, as is all that follows */\n\t__u32 pid;\n",
        "\t__u32 pid;\n\t__u32 id;\n",
    ),
    (
        "crates/overspill/src/datapath/layout.rs",
        "        id: u32,\n        pid: u32,\n        marked: u32,\n        cgroup: u32,\n    }",
        "        pid: u32,\n        id: u32,\n        marked: u32,\n        cgroup: u32,\n    }",
    ),
];

/// A supervisor that fails when nearly all is taken over.
const FAILING: &[Edit] = &[(
    "crates/overspill-supervisor/src/run.rs",
    "        it.inherit(estate, &mut services)?;\n",
    "        it.inherit(estate, &mut services).and(Err(Error::ChildrenIgnored))?;\n",
)];

/// A line whose number is raised by one: the file, and what stands before and after the number.
type Raise = (&'static str, &'static str, &'static str);

const LAYOUT: &[Raise] = &[
    ("bpf/overspill.h", "#define OVERSPILL_LAYOUT ", "\n"),
    ("crates/overspill/src/datapath/layout.rs", "pub(crate) const LAYOUT: u32 = ", ";\n"),
];

const CONNECTIONS: &[Raise] = &[
    ("bpf/overspill.h", "#define OVERSPILL_CONNECTIONS ", "\n"),
    ("crates/overspill/src/datapath/layout.rs", "pub(crate) const CONNECTIONS: u32 = ", ";\n"),
];

/// A build of overspill.
#[derive(Clone)]
pub(crate) struct Version(PathBuf);

impl Version {
    /// The one that is tested.
    pub(crate) fn this() -> Self {
        Self(env!("CARGO_BIN_EXE_overspill").into())
    }

    /// One with other rules, fields appended to what builds share, and the same layout.
    pub(crate) fn of_other_rules() -> Self {
        Self::built("rules", &[RULES, APPENDED].concat(), &[])
    }

    /// The same, with another layout.
    pub(crate) fn of_other_layout() -> Self {
        Self::built("layout", &[RULES, APPENDED, MOVED].concat(), LAYOUT)
    }

    /// One that keeps another record of connections, and whose supervisor can't go on in the place
    /// of another one.
    pub(crate) fn of_other_connections() -> Self {
        Self::built("connections", FAILING, CONNECTIONS)
    }

    /// The one that is tested, as another file in that folder.
    pub(crate) fn copied_to(folder: &Path) -> Self {
        let copy = folder.join("overspill");
        fs::copy(Self::this().path(), &copy).unwrap();
        Self(copy)
    }

    fn built(name: &str, edits: &[Edit], raised: &[Raise]) -> Self {
        // One after the other: several tests want the same one.
        static BUILDING: Mutex<()> = Mutex::new(());
        let _turn = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("versions");
        let source = folder.join(name);
        let program = folder.join(format!("overspill-{name}"));
        fs::create_dir_all(&source).unwrap();
        for part in PARTS {
            let wrote =
                copy(&Path::new(REPOSITORY).join(part), &source.join(part), &|path, text| {
                    edited(path.strip_prefix(REPOSITORY).unwrap(), text, edits, raised)
                });
            if wrote && program.exists() {
                fs::remove_file(&program).unwrap();
            }
        }
        // Guests of `make test-kernels` cannot build; they find it built.
        if !program.exists() {
            build(&source, &folder.join(format!("{name}-target")), &program);
        }
        Self(program)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Runs it with arguments that have no blanks in them.
    pub(crate) fn run(&self, arguments: &str) -> Ran {
        Ran::from(Command::new(&self.0).args(arguments.split(' ')).output().unwrap())
    }
}

/// Builds the command of a workspace in a folder of its own: cargo does not tell two copies of
/// a workspace apart.
fn build(source: &Path, target: &Path, program: &Path) {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--offline", "--package", "overspill-cli"])
        .env("CARGO_TARGET_DIR", target)
        .current_dir(source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::copy(target.join("debug/overspill"), program).unwrap();
}

/// `make test-kernels` builds them by this.
#[test]
fn each_can_be_built() {
    Version::of_other_rules();
    Version::of_other_layout();
    Version::of_other_connections();
}

/// Copies what differs. Returns whether anything does.
fn copy(from: &Path, to: &Path, edit: &dyn Fn(&Path, Vec<u8>) -> Vec<u8>) -> bool {
    if from.is_symlink() {
        let target = fs::read_link(from).unwrap();
        let differs = fs::read_link(to).ok().as_ref() != Some(&target);
        if differs {
            symlink(target, to).unwrap();
        }
        return differs;
    }
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        let names = |folder: &Path| {
            fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect::<Vec<_>>()
        };
        let there = names(from);
        let stale: Vec<_> = names(to).into_iter().filter(|name| !there.contains(name)).collect();
        for name in &stale {
            let path = to.join(name);
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }
        // Each is copied: no short cut after the first that differs.
        let differ = there.iter().filter(|name| copy(&from.join(name), &to.join(name), edit));
        return differ.count() + stale.len() > 0;
    }
    let wanted = edit(from, fs::read(from).unwrap());
    let differs = fs::read(to).ok().as_ref() != Some(&wanted);
    if differs {
        fs::write(to, wanted).unwrap();
    }
    differs
}

fn edited(path: &Path, bytes: Vec<u8>, edits: &[Edit], raised: &[Raise]) -> Vec<u8> {
    let path = path.to_str().unwrap();
    let touched = edits.iter().chain(raised).any(|(file, ..)| *file == path);
    if !touched {
        return bytes;
    }
    let mut text = String::from_utf8(bytes).unwrap();
    for (_, before, after) in edits.iter().filter(|(file, ..)| *file == path) {
        assert_eq!(text.matches(before).count(), 1, "{path} has this not once:\n{before}");
        text = text.replace(before, after);
    }
    for (_, before, after) in raised.iter().filter(|(file, ..)| *file == path) {
        let (head, rest) = text.split_once(before).unwrap_or_else(|| panic!("{path}: {before}"));
        let (number, tail) = rest.split_once(after).unwrap();
        let number: u32 = number.parse().unwrap();
        text = format!("{head}{before}{}{after}{tail}", number + 1);
    }
    text.into_bytes()
}
