//! BPF programs of somebody else, attached to the test's namespace beside overspill's.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;

use libbpf_rs::{Link, MapCore, MapFlags, Object, ObjectBuilder, ProgramMut};

/// The programs of `beside.bpf.c`, loaded.
pub(crate) struct Beside {
    object: Object,
    links: Vec<Link>,
}

impl Beside {
    /// Compiles and loads them, with the compiler that the build needs too.
    pub(crate) fn load() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let object = folder.path().join("beside.bpf.o");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel/beside.bpf.c");
        let include = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
        // libbpf's headers, as the build has them: the machine need not.
        let headers = folder.path().join("bpf");
        fs::create_dir(&headers).unwrap();
        for (name, text) in libbpf_rs::libbpf_sys::API_HEADERS {
            fs::write(headers.join(name), text).unwrap();
        }
        let status = Command::new("clang")
            .args(["-target", "bpf", "-O2", "-g", "-Wall", "-Werror", &include, "-c", source])
            .arg("-I")
            .arg(folder.path())
            .arg("-o")
            .arg(&object)
            .status()
            .expect("clang is installed: the build needs it");
        assert!(status.success(), "clang cannot compile {source}");
        let object = ObjectBuilder::default().open_file(object).unwrap().load().unwrap();
        Self { object, links: Vec::new() }
    }

    fn program(&mut self, name: &str) -> ProgramMut<'_> {
        self.object.progs_mut().find(|program| program.name() == name).expect("a program")
    }

    /// Attaches a `sk_lookup` program to the thread's network namespace, behind those
    /// attached already.
    pub(crate) fn attach(&mut self, name: &str) {
        let namespace = File::open("/proc/thread-self/ns/net").unwrap();
        let link = self.program(name).attach_netns(namespace.as_raw_fd()).unwrap();
        self.links.push(link);
    }

    /// A descriptor of a program.
    pub(crate) fn descriptor(&mut self, name: &str) -> OwnedFd {
        self.program(name).as_fd().try_clone_to_owned().unwrap()
    }

    /// The socket that `assigns`, `replaces` and `selects` choose.
    pub(crate) fn choose(&mut self, socket: &impl AsFd) {
        let fd = u64::try_from(socket.as_fd().as_raw_fd()).unwrap();
        let map = self.object.maps_mut().find(|map| map.name() == "chosen").unwrap();
        map.update(&0_u32.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY).unwrap();
    }

    /// How often its programs have run.
    pub(crate) fn runs(&self) -> u64 {
        let map = self.object.maps().find(|map| map.name() == "runs").unwrap();
        let value = map.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
        u64::from_ne_bytes(value.try_into().unwrap())
    }
}
