//! What the tests on records share: where records lie, how they are read, how two are compared.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

/// Records of the real server whose names begin so, under the folder that `KVLAB_GOLDEN` names
/// (default: `../shared/golden` beside the workspace). None, with a message, where it is absent.
pub fn recorded(begin: &str) -> Option<Vec<PathBuf>> {
    recorded_in("ollama", begin)
}

/// The same for the server of that folder.
pub fn recorded_in(server: &str, begin: &str) -> Option<Vec<PathBuf>> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden");
    let root = std::env::var_os("KVLAB_GOLDEN").unwrap_or_else(|| default.into());
    let folder = Path::new(&root).join(server);
    if !folder.is_dir() {
        eprintln!("skipped: {} is not there (KVLAB_GOLDEN)", folder.display());
        return None;
    }
    let files = files(&folder, begin);
    assert!(!files.is_empty(), "{} has no {begin}*.jsonl", folder.display());
    Some(files)
}

/// Cases of our own.
pub fn own(folder: &str) -> Vec<PathBuf> {
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(folder), "")
}

fn files(folder: &Path, begin: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with(begin) && (name.ends_with(".jsonl") || name.ends_with(".jsonl.gz"))
    });
    files.sort();
    files
}

/// The records of a file, each with its line as `FILE:LINE`.
pub fn records(path: &Path) -> impl Iterator<Item = (String, Value)> {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let is_packed = path.extension().is_some_and(|extension| extension == "gz");
    let reader: Box<dyn Read> = if is_packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let name = path.display().to_string();
    (1..).zip(BufReader::new(reader).lines()).filter_map(move |(number, line)| {
        let at = format!("{name}:{number}");
        let line = line.unwrap_or_else(|error| panic!("{at}: {error}"));
        let parse = || serde_json::from_str(&line).unwrap_or_else(|error| panic!("{at}: {error}"));
        (!line.trim().is_empty()).then(|| (at.clone(), parse()))
    })
}

/// Fails with every field in which two records differ.
pub fn assert_equal(at: &str, ours: &Value, theirs: &Value) {
    let mut found = Vec::new();
    differences("out", ours, theirs, &mut found);
    assert!(found.is_empty(), "{at}:\n{}", found.join("\n"));
}

fn differences(at: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for name in a.keys().chain(b.keys()).collect::<BTreeSet<&String>>() {
                let side = |map: &Map<String, Value>| map.get(name).cloned().unwrap_or(Value::Null);
                differences(&format!("{at}.{name}"), &side(a), &side(b), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{at}[{index}]"), a, b, found);
            }
        }
        _ if ours != theirs => found.push(format!("{at}: ours {ours}, recorded {theirs}")),
        _ => {}
    }
}
