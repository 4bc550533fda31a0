//! The folder of a sweep: a file per simulation, named by its key, whole or not there.
//!
//! `DIR/ab/abcd....json` is a result, `DIR/ab/abcd....failed.json` a failure, `DIR/sweep.jsonl` the list
//! of all specs, `DIR/sweep.toml` what is said of the whole. Any number of processes may write to one folder.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use report::files::TemporaryFile;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::spec::{Done, Failed};
use crate::trouble::{Trouble, usage};

/// Name of the list of all specs.
const LIST: &str = "sweep.jsonl";
/// Name of what is said of the whole sweep.
const HEAD: &str = "sweep.toml";

/// Results by key.
pub struct Store {
    dir: PathBuf,
    /// Held while this process may write: whoever finds nobody holding it may clear up.
    _lock: Option<File>,
}

impl Store {
    /// Opens a folder for writing, makes it where there is none, and removes what a process that was
    /// killed has left half-written.
    pub fn create(dir: &Path) -> Result<Store, Trouble> {
        let wrong = |error| usage(format!("{}: {error}", dir.display()));
        fs::create_dir_all(dir).map_err(wrong)?;
        let path = dir.join(".lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|error| usage(format!("{}: {error}", path.display())))?;
        match lock.try_lock() {
            Ok(()) => {
                clear(dir).map_err(wrong)?;
                lock.unlock()?;
            }
            Err(TryLockError::WouldBlock) => {}
            // A file system without locks: what is half-written stays, hidden and unused.
            Err(TryLockError::Error(_)) => return Ok(Store { dir: dir.to_owned(), _lock: None }),
        }
        lock.lock_shared()?;
        Ok(Store { dir: dir.to_owned(), _lock: Some(lock) })
    }

    /// Opens a folder for reading.
    pub fn open(dir: &Path) -> Store {
        Store { dir: dir.to_owned(), _lock: None }
    }

    /// What is said of the whole sweep.
    pub fn head(&self) -> PathBuf {
        self.dir.join(HEAD)
    }

    /// The list of all specs.
    pub fn list(&self) -> PathBuf {
        self.dir.join(LIST)
    }

    fn path(&self, key: &str, ending: &str) -> PathBuf {
        self.dir.join(key.get(..2).unwrap_or_default()).join(format!("{key}.{ending}"))
    }

    /// Whether there is a result. What a power cut has left empty is none.
    pub fn has(&self, key: &str) -> bool {
        fs::metadata(self.path(key, "json")).is_ok_and(|file| file.is_file() && file.len() > 0)
    }

    /// Whether there is a result with a map of the cells. What cannot be read is not judged here.
    pub fn has_map(&self, key: &str) -> bool {
        self.done(key).map_or(true, |done| done.is_some_and(|done| done.map.is_some()))
    }

    /// Whether the last try has failed.
    pub fn has_failed(&self, key: &str) -> bool {
        self.path(key, "failed.json").is_file()
    }

    /// Keeps a result; an earlier failure is forgotten.
    pub fn keep(&self, done: &Done) -> Result<(), Trouble> {
        let failed = self.path(&done.key, "failed.json");
        match fs::remove_file(&failed) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(usage(format!("{}: {error}", failed.display())));
            }
            _ => {}
        }
        write(&self.path(&done.key, "json"), done)
    }

    /// Keeps a failure.
    pub fn keep_failure(&self, failed: &Failed) -> Result<(), Trouble> {
        write(&self.path(&failed.key, "failed.json"), failed)
    }

    /// The result, if there is one.
    pub fn done(&self, key: &str) -> Result<Option<Done>, Trouble> {
        read(&self.path(key, "json"))
    }

    /// The failure, if there is one.
    pub fn failed(&self, key: &str) -> Result<Option<Failed>, Trouble> {
        read(&self.path(key, "failed.json"))
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), Trouble> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| usage(format!("{}: {error}", folder.display())))?;
    }
    let mut file = TemporaryFile::new(path)?;
    file.write_all((serde_json::to_string(value)? + "\n").as_bytes())?;
    Ok(file.finish_unsynced()?)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Trouble> {
    let text = match fs::read_to_string(path) {
        Ok(text) if text.is_empty() => return Ok(None),
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(usage(format!("{}: {error}", path.display()))),
    };
    let wrong =
        |error| usage(format!("{}: {error}; remove the file and run the sweep again", path.display()));
    serde_json::from_str(&text).map(Some).map_err(wrong)
}

/// Removes temporary files.
fn clear(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            for inner in fs::read_dir(entry.path())? {
                clear_one(&inner?)?;
            }
        } else {
            clear_one(&entry)?;
        }
    }
    Ok(())
}

fn clear_one(entry: &fs::DirEntry) -> std::io::Result<()> {
    let name = entry.file_name();
    let name = name.to_string_lossy();
    let is_temporary = name.starts_with('.') && name.ends_with(".tmp");
    if is_temporary { fs::remove_file(entry.path()) } else { Ok(()) }
}
