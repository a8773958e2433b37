//! Compiles the kernel half with clang and embeds it: the object, the skeleton and
//! the object's digest, by which a state made by another build is recognised.

use std::env;
use std::fmt::Write as _;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;
use sha2::{Digest, Sha256};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = out.join("overspill.bpf.o");
    SkeletonBuilder::new()
        .source("bpf/overspill.bpf.c")
        .obj(&object)
        // v3 has the atomic compare-and-swap of the claims (Linux 5.12).
        .clang_args(["-mcpu=v3", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror"])
        // The folder of the build is not to be part of what is built: the same source
        // gives the same digest everywhere.
        .clang_args([format!("-ffile-prefix-map={}=.", env!("CARGO_MANIFEST_DIR"))])
        .build_and_generate(out.join("overspill.skel.rs"))
        .unwrap_or_else(|error| panic!("cannot compile bpf/overspill.bpf.c: {error:#}"));
    let object = std::fs::read(object).expect("the object has just been built");
    let mut digest = String::new();
    for byte in Sha256::digest(object) {
        write!(digest, "{byte:02x}").expect("a String takes everything");
    }
    println!("cargo::rustc-env=OVERSPILL_BUILD={digest}");
    println!("cargo::rerun-if-changed=bpf");
}
