//! What a guest starts from: a shell, the modules that its root needs, and the command to run.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use cpio::newc::{Builder, trailer};

use crate::image::unpack;
use crate::tree::Tree;

/// Modules that make the host's root and the ports of a guest.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "virtiofs", "overlay"];
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// A file of the guest.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// An archive for the kernel of `tree` whose guest runs the shell script `command`: in the host's
/// root, or, given a busybox of the guest's architecture, in the archive itself with `files`.
pub(crate) fn build(
    tree: &Tree,
    command: &str,
    alone: Option<(&Path, &[File])>,
) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for name in ["bin", "dev", "proc", "sys", "tmp", "modules", "layer", "new"] {
        archive.folder(name)?;
    }
    let busybox = match alone {
        Some((busybox, _)) => busybox,
        None => host_busybox()?,
    };
    let busybox = fs::read(busybox)?;
    // The head of a program that is linked dynamically names its loader.
    let head = &busybox[..busybox.len().min(4096)];
    let needs_libraries = head.windows(8).any(|bytes| bytes == b"ld-linux");
    ensure!(
        !needs_libraries,
        "busybox is not static; replace it with: apt-get install busybox-static"
    );
    archive.file("bin/busybox", &busybox)?;
    let mut order = String::new();
    for file in tree.module_files(&MODULES)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let content = fs::read(&file)?;
        let (name, content) = match name.rsplit_once('.') {
            Some((name, "xz")) => (name, unpack("xz", &content)?),
            Some((name, "zst")) => (name, unpack("zstd", &content)?),
            _ => (name.as_str(), content),
        };
        archive.file(&format!("modules/{name}"), &content)?;
        order.push_str(name);
        order.push('\n');
    }
    archive.file("modules/order", order.as_bytes())?;
    archive.file("init", include_bytes!("init.sh"))?;
    let modules = tree.modules();
    let modules = modules.to_str().context("the path of the modules is no text")?;
    let root = include_str!("root.sh").replace("KERNEL_MODULES", modules);
    archive.file("root.sh", root.as_bytes())?;
    archive.file("command", command.as_bytes())?;
    match alone {
        Some((_, files)) => {
            for file in files {
                archive.file(&file.name, &file.content)?;
            }
        }
        None => archive.folder("host")?,
    }
    Ok(trailer(archive.bytes)?)
}

fn host_busybox() -> Result<&'static Path> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .map(Path::new)
        .find(|path| path.exists())
        .context("busybox is missing; install it with: tools/setup kernels")
}

#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    number: u32,
}

impl Archive {
    fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(name, FOLDER, &[])
    }

    fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.entry(name, PROGRAM, content)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.number += 1;
        let size = u32::try_from(content.len()).context("a file for a guest exceeds 4 GiB")?;
        let entry = Builder::new(name).ino(self.number).nlink(1).mode(mode);
        let mut writer = entry.write(std::mem::take(&mut self.bytes), size);
        writer.write_all(content)?;
        self.bytes = writer.finish()?;
        Ok(())
    }
}
