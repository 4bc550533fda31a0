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
    make(engine, false)
}

/// The same, and what kernels do with memory is watched (`kernels/emu/watch.cpp`): slower.
#[allow(dead_code, reason = "not every user watches")]
pub fn build_watched(engine: &Path) -> Option<PathBuf> {
    make(engine, true)
}

fn make(engine: &Path, is_watched: bool) -> Option<PathBuf> {
    let read = |file: &str| std::fs::read_to_string(engine.join(file)).expect("the source is there");
    let (mut names, threads) = (String::new(), most_threads());
    for name in kernel_names() {
        // A kernel that is newer than the images is bounded by what every device takes.
        let most = threads.get(&name).copied().unwrap_or(1024);
        writeln!(names, "NAMED({name}, {most})").expect("a string takes all");
    }
    let (driver, library) = (read("tests/fake/cuda.cpp"), read("tests/fake/cublaslt.cpp"));
    let (shim, watch) = (read("kernels/emu/shim.h"), read("kernels/emu/watch.cpp"));
    let text = [SOURCE, &names, &driver, &library, &shim, &watch].concat();
    let key = blake3::hash(format!("{is_watched} {text}").as_bytes()).to_hex();
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
        ("watch.cpp", &watch),
    ];
    for (file, text) in files {
        std::fs::write(part.join(file), text).expect("written");
    }
    let run = |args: &str| {
        let mut command = Command::new(&compiler);
        command.current_dir(&part).args(["-std=c++17", "-O2", "-w", "-fPIC"]).args(args.split(' '));
        let run = command.output().expect("the compiler has just run");
        assert!(run.status.success(), "{compiler}: {}", String::from_utf8_lossy(&run.stderr));
    };
    if is_watched {
        run("-DKVLAB_EMU_WATCH -fsanitize=thread -c -o cuda.o cuda.cpp");
        run("-c -o watch.o watch.cpp");
        run("-shared -Wl,-soname,libcuda.so -o libcuda.so cuda.o watch.o");
    } else {
        run("-shared -Wl,-soname,libcuda.so -o libcuda.so cuda.cpp");
    }
    run("-shared -Wl,-soname,libcublasLt.so -o libcublasLt.so cublaslt.cpp -Wl,-rpath,$ORIGIN -L. -lcuda");
    if std::fs::rename(&part, &folder).is_err() {
        // Another test was faster.
        std::fs::remove_dir_all(&part).expect("the folder is ours");
    }
    Some(folder)
}
