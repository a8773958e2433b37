//! What cargo has built: the command, the tests of the kernel, and the objects.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// Where `make test-kernels` keeps cargo's messages, from the project's root.
const FILE: &str = "target/kernels/build.json";

/// The crates whose tests run in guests.
pub(crate) const LIBRARY: &str = "crates/overspill";
pub(crate) const COMMAND: &str = "crates/overspill-cli";

/// The paths of what was built.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    pub(crate) overspill: PathBuf,
    /// The kernel tests of the library, and of the command.
    pub(crate) library_tests: PathBuf,
    pub(crate) command_tests: PathBuf,
    /// The folder of the objects.
    pub(crate) objects: PathBuf,
    /// The folder of libbpf's source, as the library is built with it.
    pub(crate) libbpf: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Message {
    manifest_path: Option<PathBuf>,
    executable: Option<PathBuf>,
    out_dir: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

impl Built {
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let messages = fs::read_to_string(root.join(FILE))
            .with_context(|| format!("{FILE} cannot be read; run this by: make test-kernels"))?;
        let messages: Vec<Message> = messages
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .with_context(|| format!("{FILE} is not what cargo prints"))?;
        Self::among(&messages, root)
            .with_context(|| format!("{FILE} lacks what is run; make it by: make test-kernels"))
    }

    fn among(messages: &[Message], root: &Path) -> Option<Self> {
        let executable = |manifest: &Path, name: &str| {
            messages.iter().find_map(|message| {
                let here = message.manifest_path.as_deref() == Some(manifest)
                    && message.target.as_ref()?.name == name;
                message.executable.clone().filter(|_| here)
            })
        };
        let library = root.join(LIBRARY).join("Cargo.toml");
        let command = root.join(COMMAND).join("Cargo.toml");
        let objects = messages.iter().find_map(|message| {
            let out = message.out_dir.clone()?;
            out.join("overspill.bpf.o").exists().then_some(out)
        });
        let libbpf = messages.iter().find_map(|message| {
            let manifest = message.manifest_path.as_deref()?;
            let source = manifest.parent()?.join("libbpf/src");
            source.join("libbpf.c").exists().then_some(source)
        });
        Some(Self {
            overspill: executable(&command, "overspill")?,
            library_tests: executable(&library, "kernel")?,
            command_tests: executable(&command, "kernel")?,
            objects: objects?,
            libbpf: libbpf?,
        })
    }
}
