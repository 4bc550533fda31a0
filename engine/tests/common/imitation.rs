//! A CUDA driver library and a cuBLASLt that imitate a device on the CPU, built of `fake/*.cpp` and the kernels.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use engine::cuda::images::IMAGES;
use engine::cuda::{SOURCE, kernel_names};

#[path = "compiler.rs"]
mod compiler;

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
/// `engine` is the folder of the crate.
pub fn build(engine: &Path) -> Option<PathBuf> {
    let read = |file: &str| std::fs::read_to_string(engine.join(file)).expect("the source is there");
    let (mut names, threads) = (String::new(), most_threads());
    for name in kernel_names() {
        // A kernel that is newer than the images is bounded by what every device takes.
        let most = threads.get(&name).copied().unwrap_or(1024);
        writeln!(names, "NAMED({name}, {most})").expect("a string takes all");
    }
    let (driver, library) = (read("tests/fake/cuda.cpp"), read("tests/fake/cublaslt.cpp"));
    let shim = read("kernels/emu/shim.h");
    let key = blake3::hash([SOURCE, &names, &driver, &library, &shim].concat().as_bytes()).to_hex();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("imitation-{}", &key[..16]));
    if folder.exists() {
        return Some(folder);
    }
    let compiler = compiler::find(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    // Made under another name, as other tests may be making it, too.
    let part = folder.with_extension(std::process::id().to_string());
    std::fs::create_dir_all(&part).expect("a folder");
    let files = [
        ("all.cu", SOURCE),
        ("kernels.inc", &names),
        ("cuda.cpp", &driver),
        ("cublaslt.cpp", &library),
        ("shim.h", &shim),
    ];
    for (file, text) in files {
        std::fs::write(part.join(file), text).expect("written");
    }
    let built: [(&str, &[&str]); 2] = [("cuda", &[]), ("cublasLt", &["-Wl,-rpath,$ORIGIN", "-L.", "-lcuda"])];
    for (name, extra) in built {
        let mut command = Command::new(&compiler);
        command.current_dir(&part).args(["-std=c++17", "-O2", "-w", "-shared", "-fPIC"]);
        command.arg(format!("-Wl,-soname,lib{name}.so")).arg("-o").arg(format!("lib{name}.so"));
        let run = command.arg(format!("{}.cpp", name.to_lowercase())).args(extra).output();
        let run = run.expect("the compiler has just run");
        assert!(run.status.success(), "{compiler}: {}", String::from_utf8_lossy(&run.stderr));
    }
    if std::fs::rename(&part, &folder).is_err() {
        // Another test was faster.
        std::fs::remove_dir_all(&part).expect("the folder is ours");
    }
    Some(folder)
}
