//! Compiles the programs that overspill is measured beside.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for name in ["peer", "published"] {
        let source = format!("bpf/{name}.bpf.c");
        SkeletonBuilder::new()
            .source(&source)
            .clang_args(["-I../bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror"])
            .build_and_generate(out.join(format!("{name}.skel.rs")))
            .unwrap_or_else(|error| panic!("cannot compile {source}: {error:#}"));
    }
    // A dispatcher, loaded from its file as a user's is.
    SkeletonBuilder::new()
        .source("bpf/first.bpf.c")
        .obj(out.join("first.bpf.o"))
        .clang_args(["-I../include", "-Wall", "-Wextra", "-Werror"])
        .build()
        .unwrap_or_else(|error| panic!("cannot compile bpf/first.bpf.c: {error:#}"));
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-changed=../include/overspill_dispatcher.h");
    println!("cargo::rerun-if-changed=../bpf/kernel.h");
}
