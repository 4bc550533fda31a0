//! The C++ compiler that the kernels are built with on the CPU.

use std::path::Path;
use std::process::Command;

/// `CXX`, else `c++`; none, with a message, where there is none or it does not know `_Float16`, as GCC does from
/// version 12 on (on x86-64). Files of its own go to `folder`.
pub fn find(folder: &Path) -> Option<String> {
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
