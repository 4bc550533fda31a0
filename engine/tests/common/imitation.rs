//! A CUDA driver library and a cuBLASLt that imitate a device on the CPU, built of `fake/*.cpp` and the kernels.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use engine::cuda::images::IMAGES;
use engine::cuda::{SOURCE, kernel_names};

#[path = "compiler.rs"]
mod compiler;

use compiler::Library;

/// The most threads that a block of each kernel may have, from the PTX that comes with the program.
fn most_threads() -> BTreeMap<String, u32> {
    let image = IMAGES.iter().find(|image| image.is_ptx).expect("one image is PTX");
    let ptx = image.unpack().expect("it is whole");
    let (mut threads, mut name) = (BTreeMap::new(), String::new());
    for line in String::from_utf8_lossy(&ptx).lines() {
        if let Some(entry) = line.strip_prefix(".visible .entry ") {
            name = entry.trim_end_matches('(').to_owned();
        }
        if let Some(most) = line.strip_prefix(".maxntid ") {
            let most = most.split(',').next().and_then(|most| most.trim().parse().ok());
            threads.insert(name.clone(), most.expect("a number of threads"));
        }
    }
    threads
}

/// The folder where `libcuda.so` and `libcublasLt.so` lie, built once for these sources; none where there is no C++ compiler.
/// `engine` is the folder of the crate. What kernels do with memory may be watched (`kernels/emu/watch.cpp`): slower.
pub fn build(engine: &Path, is_watched: bool) -> Option<PathBuf> {
    let read = |file: &str| std::fs::read_to_string(engine.join(file)).expect("the source is there");
    let (mut names, threads) = (String::new(), most_threads());
    for name in kernel_names() {
        // A kernel that is newer than the images is bounded by what every device takes.
        let most = threads.get(&name).copied().unwrap_or(1024);
        writeln!(names, "NAMED({name}, {most})").expect("a string takes all");
    }
    let files = [
        ("all.cu", SOURCE),
        ("kernels.inc", &names),
        ("cuda.cpp", &read("tests/fake/cuda.cpp")),
        ("cublaslt.cpp", &read("tests/fake/cublaslt.cpp")),
        ("shim.h", &read("kernels/emu/shim.h")),
        ("watch.cpp", &read("kernels/emu/watch.cpp")),
    ];
    let beside = &["-Wl,-rpath,$ORIGIN", "-L.", "-lcuda"];
    let libraries = [
        Library { name: "libcuda.so", source: "cuda.cpp", flags: &[], is_watched },
        Library { name: "libcublasLt.so", source: "cublaslt.cpp", flags: beside, is_watched: false },
    ];
    compiler::build("imitation", &files, &libraries)
}
