//! What an arm64 guest runs: a small loader, cross-built with Debian's compiler against the libbpf
//! that the library is built with, and the objects.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::built::Built;
use crate::initramfs::File;
use crate::packages::Packages;
use crate::programs;
use crate::run;

const COMPILER: &str = "aarch64-linux-gnu-gcc";
/// Of the oldest suite: what its static libraries need, each newer C library has.
const PACKAGES: [&str; 3] =
    ["libelf-dev:arm64/bookworm", "zlib1g-dev:arm64/bookworm", "busybox-static:arm64/bookworm"];

/// The parts of an arm64 guest.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) busybox: PathBuf,
    pub(crate) files: Vec<File>,
    pub(crate) script: String,
}

impl Guest {
    /// Builds the loader in `folder`.
    pub(crate) fn build(
        packages: &Packages,
        built: &Built,
        root: &Path,
        folder: &Path,
    ) -> Result<Self> {
        let libraries = folder.join("libraries");
        if !libraries.exists() {
            fs::create_dir_all(folder)?;
            let unpacked = tempfile::tempdir_in(folder)?;
            packages.unpack(&PACKAGES.map(str::to_owned), unpacked.path())?;
            fs::rename(unpacked.keep(), &libraries)?;
        }
        let loader = compile(built, root, folder, &libraries)
            .context("cannot build the loader for arm64")?;
        let mut files = vec![File { name: "bin/loader".to_owned(), content: fs::read(loader)? }];
        let mut command = "/bin/loader".to_owned();
        for name in ["overspill.bpf.o", "hooks.bpf.o"] {
            command.push_str(" /");
            command.push_str(name);
            let content = fs::read(built.objects.join(name))?;
            files.push(File { name: name.to_owned(), content });
        }
        let busybox = ["bin/busybox", "usr/bin/busybox"]
            .map(|path| libraries.join(path))
            .into_iter()
            .find(|path| path.exists())
            .context("busybox-static has no busybox")?;
        Ok(Self { busybox, files, script: programs::timed(&command, "/bin/busybox") })
    }
}

fn compile(built: &Built, root: &Path, folder: &Path, libraries: &Path) -> Result<PathBuf> {
    let objects = folder.join("libbpf");
    fs::create_dir_all(&objects)?;
    let headers = format!("-I{}", libraries.join("usr/include").display());
    run::output(
        Command::new("make")
            .arg("-C")
            .arg(&built.libbpf)
            .args(["BUILD_STATIC_ONLY=y", "NO_PKG_CONFIG=1"])
            .arg(format!("OBJDIR={}", objects.display()))
            .arg(format!("CC={COMPILER}"))
            .arg("AR=aarch64-linux-gnu-ar")
            .arg(format!("CFLAGS=-O2 {headers}"))
            .arg(objects.join("libbpf.a")),
    )?;
    let loader = folder.join("loader");
    let source = &built.libbpf;
    run::output(
        Command::new(COMPILER)
            .args(["-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&loader)
            .arg(root.join("tests/kernels/loader.c"))
            .arg(format!("-I{}", source.display()))
            .arg(format!("-I{}", source.with_file_name("include").join("uapi").display()))
            .arg(headers)
            .arg(objects.join("libbpf.a"))
            .arg(format!("-L{}", libraries.join("usr/lib/aarch64-linux-gnu").display()))
            .args(["-lelf", "-lz"]),
    )?;
    Ok(loader)
}
