//! A CUDA driver library that imitates a device on the CPU, built of `fake/cuda.cpp` and the kernels.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use engine::cuda::{SOURCE, kernel_names};

#[path = "compiler.rs"]
mod compiler;

/// The folder where `libcuda.so` lies, built once for these sources; none where there is no C++ compiler.
/// `engine` is the folder of the crate.
pub fn build(engine: &Path) -> Option<PathBuf> {
    let read = |file: &str| std::fs::read_to_string(engine.join(file)).expect("the source is there");
    let mut names = String::new();
    for name in kernel_names() {
        writeln!(names, "NAMED({name})").expect("a string takes all");
    }
    let (driver, shim) = (read("tests/fake/cuda.cpp"), read("kernels/emu/shim.h"));
    let key = blake3::hash([SOURCE, &names, &driver, &shim].concat().as_bytes()).to_hex();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("imitation-{}", &key[..16]));
    if folder.exists() {
        return Some(folder);
    }
    let compiler = compiler::find(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    // Made under another name, as other tests may be making it, too.
    let part = folder.with_extension(std::process::id().to_string());
    std::fs::create_dir_all(&part).expect("a folder");
    for (file, text) in
        [("all.cu", SOURCE), ("kernels.inc", &names), ("cuda.cpp", &driver), ("shim.h", &shim)]
    {
        std::fs::write(part.join(file), text).expect("written");
    }
    let mut command = Command::new(&compiler);
    command.args(["-std=c++17", "-O2", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so", "-I"]).arg(&part);
    let run = command.arg("-o").arg(part.join("libcuda.so")).arg(part.join("cuda.cpp")).output();
    let run = run.expect("the compiler has just run");
    assert!(run.status.success(), "{compiler}: {}", String::from_utf8_lossy(&run.stderr));
    if std::fs::rename(&part, &folder).is_err() {
        // Another test was faster.
        std::fs::remove_dir_all(&part).expect("the folder is ours");
    }
    Some(folder)
}
