//! What the tests of the command line share: the binary, free of the caller's settings, and sweeps to run.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::path::Path;

use assert_cmd::Command;
use tempfile::{TempDir, tempdir};

/// The binary in a folder, with no setting from the environment.
pub fn kvlab(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvlab"));
    command.current_dir(dir);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KVLAB_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command line that has to succeed (its words are separated by spaces); its output.
pub fn run(dir: &Path, line: &str) -> String {
    let assert = kvlab(dir).args(line.split(' ')).assert().success();
    String::from_utf8(assert.get_output().stdout.clone()).expect("the output is UTF-8")
}

/// A folder with a sweep, `grid.toml`, and its traces: conversations of so many requests, one per seed.
pub fn sweep_folder(sweep: &str, seeds: u64, requests: u64) -> TempDir {
    let dir = tempdir().expect("there is room for a folder");
    for seed in 0..seeds {
        let line = format!("trace generate chat --requests {requests} --seed {seed} chat-{seed}.csv");
        run(dir.path(), &line);
    }
    std::fs::write(dir.path().join("grid.toml"), sweep).expect("the sweep is written");
    dir
}
