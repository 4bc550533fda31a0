//! The CUDA backend without a GPU: the same host code over a driver library that imitates a device on
//! the CPU. Skipped where there is no C++ compiler or no NVRTC.

#![allow(unsafe_code)]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use engine::cuda::{self, Effort};

const SOURCES: [&str; 6] = ["common.cu", "linear.cu", "norm.cu", "cache.cu", "attention.cu", "sample.cu"];

/// Builds the imitation; none where no compiler is found.
fn build(folder: &Path) -> Option<std::path::PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read =
        |file: &&str| std::fs::read_to_string(root.join("kernels").join(file)).expect("the source is there");
    std::fs::write(folder.join("all.cu"), SOURCES.iter().map(read).collect::<String>()).expect("written");
    let mut names = String::new();
    for name in cuda::kernel_names() {
        writeln!(names, "NAMED({name})").expect("a string takes all");
    }
    std::fs::write(folder.join("kernels.inc"), names).expect("written");
    let library = folder.join("libcuda.so");
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-O2", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so", "-I"]);
    compiler.arg(folder).arg("-I").arg(root.join("kernels/emu")).arg("-o").arg(&library);
    let status = compiler.arg(root.join("tests/fake/cuda.cpp")).status().ok()?;
    assert!(status.success(), "the imitation does not compile");
    Some(library)
}

#[test]
fn the_backend_computes_what_the_cpu_does_over_an_imitated_device() {
    if let Err(error) = cuda::nvrtc_version() {
        println!("skipped: {error}");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(library) = build(folder.path()) else {
        println!("skipped: no C++ compiler");
        return;
    };
    // Loaded under the name by which the backend looks for the driver, it is found instead of one.
    // SAFETY: the library's initialisers only set up its own variables.
    let library = unsafe { libloading::Library::new(library) }.expect("it loads");
    std::mem::forget(library);
    let gpu = cuda::open(0).expect("the imitation opens");
    let outcomes = cuda::selftest(&gpu, Effort::Brief, |outcome| println!("{outcome:?}"));
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}
