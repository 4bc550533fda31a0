//! The C++ compiler that the kernels are built with on the CPU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// `CXX`, else `c++`; none, with a message, where there is none or it does not know `_Float16`, as GCC does from
/// version 12 on (on x86-64). Files of its own go to `folder`.
fn find(folder: &Path) -> Option<String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let probe = tempfile::Builder::new().suffix(".cpp").tempfile_in(folder).expect("a file");
    std::fs::write(probe.path(), "float wide(_Float16 half) { return half; }\n").expect("written");
    match Command::new(&compiler).args(["-std=c++17", "-fsyntax-only"]).arg(probe.path()).output() {
        Ok(run) if run.status.success() => Some(compiler),
        Ok(_) => {
            println!("skipped: the C++ compiler ({compiler}) does not know _Float16");
            None
        }
        Err(error) => {
            println!("skipped: no C++ compiler ({compiler}: {error})");
            None
        }
    }
}

/// A library to be built: its name, the source among the files, and flags.
pub struct Library {
    pub name: &'static str,
    pub source: &'static str,
    pub flags: &'static [&'static str],
    /// With every access of the kernels watched, by `watch.cpp` among the files.
    pub is_watched: bool,
}

/// The folder with libraries made of these files, whose name begins with `stem`: built once, and anew where a file or a
/// flag differs. None where there is no compiler, or accesses cannot be watched.
pub fn build(stem: &str, files: &[(&str, &str)], libraries: &[Library]) -> Option<PathBuf> {
    if libraries.iter().any(|library| library.is_watched) && !cfg!(target_os = "linux") {
        println!("skipped: accesses are watched on Linux only");
        return None;
    }
    let mut hasher = blake3::Hasher::new();
    for (name, text) in files {
        hasher.update(name.as_bytes()).update(text.as_bytes());
    }
    for Library { name, source, flags, is_watched } in libraries {
        hasher.update(format!("{name} {source} {flags:?} {is_watched}").as_bytes());
    }
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = temporary.join(format!("{stem}-{}", &hasher.finalize().to_hex()[..16]));
    // One thread of this process builds, and the others find what it has built.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if folder.exists() {
        return Some(folder);
    }
    let compiler = find(temporary)?;
    // Made under another name, as other processes may be making it, too; whoever is first gives it its own.
    let part = tempfile::Builder::new().prefix(stem).tempdir_in(temporary).expect("a folder");
    for (file, text) in files {
        std::fs::write(part.path().join(file), text).expect("written");
    }
    let run = |args: &[&str], more: &[&str]| {
        let common = ["-std=c++17", "-O2", "-w", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off"];
        let mut command = Command::new(&compiler);
        let run = command.current_dir(part.path()).args(common).args(args).args(more).output();
        let run = run.expect("the compiler has just run");
        assert!(run.status.success(), "{compiler}: {}", String::from_utf8_lossy(&run.stderr));
    };
    for &Library { name, source, flags, is_watched } in libraries {
        let soname = format!("-Wl,-soname,{name}");
        if is_watched {
            run(&["-DKVLAB_EMU_WATCH", "-fsanitize=thread", "-c", "-o", "watched.o", source], flags);
            run(&["-shared", &soname, "-o", name, "watched.o", "watch.cpp"], &[]);
        } else {
            run(&["-shared", &soname, "-o", name, source], flags);
        }
    }
    let renamed = std::fs::rename(part.path(), &folder);
    assert!(folder.exists(), "{renamed:?}");
    Some(folder)
}
