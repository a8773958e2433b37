//! A kernel unpacked: its image, and its modules with the indices by which modprobe finds them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::choice::Kernel;
use crate::image;
use crate::packages::Packages;
use crate::run;

/// Where the parts of an unpacked kernel lie.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    folder: PathBuf,
    release: String,
}

impl Tree {
    /// Of `kernel`, below `folder`; fetched unless it is there.
    pub(crate) fn of(kernel: &Kernel, packages: &Packages, folder: &Path) -> Result<Self> {
        let build: Vec<_> =
            kernel.packages.iter().filter_map(|name| name.split('=').nth(1)).collect();
        let name = format!("{}_{}", kernel.release, build.first().unwrap_or(&""));
        let tree = Self { folder: folder.join(name), release: kernel.release.clone() };
        if !tree.folder.exists() {
            fs::create_dir_all(folder)?;
            let unpacked = tempfile::tempdir_in(folder)?;
            packages.unpack(&kernel.packages, unpacked.path())?;
            let ready = tempfile::tempdir_in(folder)?;
            arrange(unpacked.path(), ready.path(), &kernel.release)
                .with_context(|| format!("cannot unpack {}", kernel.packages.join(" ")))?;
            // Only a whole tree has the name.
            fs::rename(ready.keep(), &tree.folder)?;
        }
        Ok(tree)
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    pub(crate) fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.release)
    }

    /// The files of `wanted` modules and of what they need, in the order in which they load. What
    /// is built into the kernel has no file.
    pub(crate) fn module_files(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let needs = fs::read_to_string(self.modules().join("modules.dep"))?;
        let needs: BTreeMap<&str, (&str, &str)> = needs
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| (module(path), (path, needs)))
            .collect();
        let mut files: Vec<PathBuf> = Vec::new();
        for (path, needed) in wanted.iter().filter_map(|name| needs.get(name)) {
            // modules.dep names what is needed last first.
            for path in needed.split_whitespace().rev().chain([*path]) {
                let file = self.modules().join(path);
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }
}

/// The name of a module's file, as the kernel calls the module.
fn module(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split(".ko").next().unwrap_or(name)
}

fn arrange(unpacked: &Path, ready: &Path, release: &str) -> Result<()> {
    let modules = [unpacked.join("usr/lib/modules"), unpacked.join("lib/modules")]
        .map(|folder| folder.join(release))
        .into_iter()
        .find(|folder| folder.exists());
    let image = modules.iter().map(|folder| folder.join("vmlinuz"));
    let image = image
        .chain([unpacked.join("boot").join(format!("vmlinuz-{release}"))])
        .find(|path| path.exists())
        .context("it has no image of a kernel")?;
    fs::write(ready.join("vmlinuz"), image::bootable(fs::read(image)?)?)?;
    let place = ready.join("lib/modules").join(release);
    fs::create_dir_all(&place)?;
    if let Some(modules) = modules {
        fs::rename(modules, place)?;
    }
    run::output(Command::new(depmod()).arg("-b").arg(ready).arg(release))?;
    Ok(())
}

/// depmod lies where the PATH of an ordinary user does not lead.
fn depmod() -> &'static OsStr {
    let path =
        ["/usr/sbin/depmod", "/sbin/depmod"].into_iter().find(|path| Path::new(path).exists());
    OsStr::new(path.unwrap_or("depmod"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_modules_in_loading_order() {
        let folder = tempfile::tempdir().unwrap();
        let tree = Tree { folder: folder.path().to_owned(), release: "9".to_owned() };
        fs::create_dir_all(tree.modules()).unwrap();
        let needs = "fs/fuse.ko.xz:\nfs/virtiofs.ko.xz: fs/fuse.ko.xz virtio/ring.ko.xz virtio/virtio.ko.xz\n\
             virtio/virtio.ko.xz:\nvirtio/ring.ko.xz: virtio/virtio.ko.xz\n";
        fs::write(tree.modules().join("modules.dep"), needs).unwrap();
        let files = tree.module_files(&["ring", "virtiofs", "built_in"]).unwrap();
        let names: Vec<_> = files.iter().map(|file| module(file.to_str().unwrap())).collect();
        assert_eq!(names, ["virtio", "ring", "fuse", "virtiofs"]);
    }
}
