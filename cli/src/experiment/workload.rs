//! A workload of an experiment: a trace file, one per seed, or a generator.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use traces::{GenerateOptions, ReadOptions, TraceError, Workload};

use super::Library;
use super::library::Requests;
use crate::trouble::{Trouble, usage};

/// Where requests come from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    File { path: PathBuf, options: ReadOptions },
    Generated { workload: Workload, options: GenerateOptions },
}

impl Origin {
    /// What decides how the content is read; the place of a file does not matter.
    pub(super) fn options(&self) -> String {
        match self {
            Origin::File { options, .. } => format!("{options:?}"),
            Origin::Generated { workload, options } => format!("{workload:?} {options:?}"),
        }
    }
}

/// A workload of the experiment.
#[derive(Clone, Debug)]
pub struct Workloads {
    /// Name in the results.
    pub name: String,
    pub(super) origin: Origin,
    /// Whether the seed changes anything.
    pub seeded: bool,
    /// Hash of the content, hexadecimal.
    pub(super) digest: String,
    /// Where its requests are kept for the next run, if anywhere.
    pub(super) library: Option<Arc<Library>>,
}

impl Workloads {
    /// A trace file; with `{seed}` in its name, one file per seed.
    pub(super) fn file(
        name: &str,
        path: PathBuf,
        options: ReadOptions,
        seeds: &[u64],
        library: Option<&Arc<Library>>,
    ) -> Result<Self, Trouble> {
        let by_seed = name.contains(SEED);
        let paths: Vec<PathBuf> = if by_seed {
            seeds.iter().map(|&seed| at_seed(&path, seed)).collect()
        } else {
            vec![path.clone()]
        };
        let look = || -> Result<(String, bool), Trouble> {
            let mut hasher = blake3::Hasher::new();
            let mut seeded = by_seed;
            for path in &paths {
                seeded |= traces::open(path, &options).map_err(usage)?.uses_seed();
                let file = File::open(path).map_err(|error| usage(format!("{}: {error}", path.display())))?;
                hasher.update_reader(file)?;
            }
            Ok((hasher.finalize().to_hex()[..16].to_owned(), seeded))
        };
        let (digest, seeded) = match library {
            Some(library) => library.facts(&format!("{paths:?} {options:?}"), look)?,
            None => look()?,
        };
        let (name, library) = (file_name(name), library.cloned());
        Ok(Workloads { name, origin: Origin::File { path, options }, seeded, digest, library })
    }

    /// The requests, for a seed.
    pub(super) fn requests(&self, seed: u64) -> Result<Requests, TraceError> {
        let Some(library) = &self.library else { return self.open(seed) };
        let seed = if self.seeded { seed } else { 0 };
        let name = format!("{:?} {seed}", (&self.digest, &self.origin));
        library.requests(name, || self.open(seed))
    }

    fn open(&self, seed: u64) -> Result<Requests, TraceError> {
        Ok(match &self.origin {
            Origin::File { path, options } => {
                let path = at_seed(path, seed);
                Box::new(traces::open(&path, &ReadOptions { seed, ..options.clone() })?)
            }
            Origin::Generated { workload, options } => {
                Box::new(traces::generate(*workload, &GenerateOptions { seed, ..*options })?.map(Ok))
            }
        })
    }
}

/// Stands for the seed in the name of a trace.
pub(super) const SEED: &str = "{seed}";

/// The last part of a path, which names it in results.
pub(super) fn file_name(path: &str) -> String {
    Path::new(path).file_name().map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The path for a seed.
pub fn at_seed(path: &Path, seed: u64) -> PathBuf {
    PathBuf::from(path.to_string_lossy().replace(SEED, &seed.to_string()))
}
