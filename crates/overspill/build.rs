//! Compiles the kernel half with clang and embeds it: the objects, their skeletons and
//! the digest of the pinned one, by which a state made by another build is recognised.

use std::env;
use std::fmt::Write as _;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;
use sha2::{Digest, Sha256};

fn main() {
    let object = compile("overspill");
    compile("hooks");
    let object = std::fs::read(object).expect("the object has just been built");
    let mut digest = String::new();
    for byte in Sha256::digest(object) {
        write!(digest, "{byte:02x}").expect("a String takes everything");
    }
    println!("cargo::rustc-env=OVERSPILL_BUILD={digest}");
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-changed=include/overspill_dispatcher.h");
}

/// Makes the object and the skeleton of `bpf/NAME.bpf.c` in `OUT_DIR`.
fn compile(name: &str) -> PathBuf {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let source = format!("bpf/{name}.bpf.c");
    let object = out.join(format!("{name}.bpf.o"));
    SkeletonBuilder::new()
        .source(&source)
        .obj(&object)
        // In one call: a second one would take the place of the first. The instruction set is
        // not left to the version of clang: with v3 the verifier takes five times the steps.
        // The folder of the build is not to be part of what is built: the same source gives
        // the same digest everywhere.
        .clang_args([
            "-mcpu=v1",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-Werror",
            &format!("-ffile-prefix-map={}=.", env!("CARGO_MANIFEST_DIR")),
        ])
        .build_and_generate(out.join(format!("{name}.skel.rs")))
        .unwrap_or_else(|error| panic!("cannot compile {source}: {error:#}"));
    object
}
