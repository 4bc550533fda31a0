//! `kvlab sweep`: every point of a grid, each simulated once, whatever stops the process in between.

mod collect;
mod fail_if;
mod head;
mod page;
mod results;
mod spec;
mod store;
mod tails;
mod task;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::{Write, stderr, stdout};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::ArgMatches;
use rayon::prelude::*;
use report::files::TemporaryFile;

use crate::arguments::format_of;
use crate::compare::{check_reference, progress_bar};
use crate::experiment::{Experiment, Library};
use crate::settings::{Grid, Settings};
use crate::trouble::{Source, Trouble, usage};
use collect::Wishes;
use fail_if::FailIf;
use head::{Head, fronts_of, target_of};
use spec::{Done, Failed, Spec};
use store::Store;

pub use collect::{collect, is_sweep, redraw};
pub use task::task;

/// Points that are expanded at a time.
const POINTS_AT_ONCE: usize = 4096;

/// How the one case of settings is simulated; [`task::run`], but in tests.
type Simulate<'a> = dyn Fn(&Settings, &Spec, &Arc<Library>) -> Result<(Done, Duration), Trouble> + Sync + 'a;

/// A part of a sweep: what has this remainder when keys are divided.
#[derive(Clone, Copy, Debug)]
struct Shard {
    index: u64,
    count: u64,
}

impl Shard {
    /// `0/4` to `3/4`.
    fn parse(text: &str) -> Result<Shard, Trouble> {
        let parts = text.split_once('/');
        let numbers = parts.and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match numbers {
            Some((index, count)) if index < count => Ok(Shard { index, count }),
            _ => {
                let (before, message) = ("--shard ", "expected I/N with I from 0 to N - 1, as 0/4");
                let source = Source::new("command line".into(), format!("{before}{text}"));
                Err(usage(source.point(before.len()..before.len() + text.len(), message)))
            }
        }
    }

    /// By the key and not by the place in the list, so that a value more in a grid moves nothing.
    fn has(self, key: &str) -> bool {
        let number = key.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        number.is_some_and(|number| number % self.count == self.index)
    }
}

/// Where a simulation stands in the grids, what it is called, and whether a map of its cells is kept.
struct Place {
    grid: usize,
    point: usize,
    seed: u64,
    key: String,
    map: bool,
}

/// A sweep, checked.
struct Sweep {
    grids: Vec<Grid>,
    library: Arc<Library>,
}

impl Sweep {
    fn new(settings: &Settings) -> Result<Sweep, Trouble> {
        Ok(Sweep { grids: Grid::of(settings)?, library: Arc::default() })
    }

    /// Every simulation in order: rows, then the grid, seeds fastest. A map of the cells is kept of the first one
    /// of every policy, within every row.
    fn expand(&self, mut each: impl FnMut(Place, Spec) -> Result<(), Trouble>) -> Result<(), Trouble> {
        let mut mapped = BTreeSet::new();
        for (index, grid) in self.grids.iter().enumerate() {
            for start in (0..grid.points()).step_by(POINTS_AT_ONCE) {
                let points = start..(start + POINTS_AT_ONCE).min(grid.points());
                // All of them before the first complaint: which one it is does not depend on threads.
                let specs: Vec<_> =
                    points.into_par_iter().map(|point| (point, self.specs(grid, point))).collect();
                for (point, specs) in specs {
                    for (seed, mut spec) in specs? {
                        spec.map = mapped.insert((spec.row.clone(), spec.settings.get("policies").cloned()));
                        let (key, map) = (spec.key.clone(), spec.map);
                        each(Place { grid: index, point, seed, key, map }, spec)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The specs of all seeds that make a difference.
    fn specs(&self, grid: &Grid, point: usize) -> Result<Vec<(u64, Spec)>, Trouble> {
        let settings = grid.at(point);
        let seeds: Vec<u64> = {
            let experiment = Experiment::with_library(&settings, &self.library)?;
            experiment.cases().into_iter().map(|(_, seed)| seed).collect()
        };
        let spec = |seed| {
            let settings = settings.at_seed(seed);
            let experiment = Experiment::with_library(&settings, &self.library)?;
            Ok((seed, Spec::of(&settings, &experiment)?))
        };
        seeds.into_iter().map(spec).collect()
    }

    /// Simulates what has no result yet.
    fn run(
        &self,
        pending: &[Place],
        store: &Store,
        quiet: bool,
        simulate: &Simulate<'_>,
    ) -> Result<Tally, Trouble> {
        let bar = progress_bar(pending.len(), "simulations", quiet);
        let (simulating_ns, failed) = (AtomicU64::new(0), AtomicUsize::new(0));
        let start = Instant::now();
        let run = pending.par_iter().try_for_each(|place| {
            let settings = self.grids[place.grid].at(place.point).at_seed(place.seed);
            let (settings_of, _) = settings.to_values()?;
            let (files, key, row) = (Vec::new(), place.key.clone(), settings.row().to_owned());
            let spec = Spec { files, key, map: place.map, row, settings: settings_of };
            match attempt(|| simulate(&settings, &spec, &self.library)) {
                Ok((done, took)) => {
                    simulating_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
                    store.keep(&done)?;
                }
                Err(error) => {
                    failed.fetch_add(1, Ordering::Relaxed);
                    store.keep_failure(&Failed::new(&spec, error))?;
                }
            }
            bar.inc(1);
            Ok::<(), Trouble>(())
        });
        bar.finish_and_clear();
        run?;
        Ok(Tally {
            simulations: pending.len(),
            failed: failed.into_inner(),
            took: start.elapsed(),
            simulating: Duration::from_nanos(simulating_ns.into_inner()),
        })
    }
}

/// Runs a simulation; a fault of kvlab is a failure of this one and of no other.
fn attempt<T>(simulate: impl FnOnce() -> Result<T, Trouble>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(simulate)) {
        Ok(result) => result.map_err(|trouble| trouble.text()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(format!("error: kvlab panicked: {text}"))
        }
    }
}

/// What a run of a sweep adds up to.
struct Tally {
    simulations: usize,
    failed: usize,
    took: Duration,
    /// Time of all simulations themselves, over all threads.
    simulating: Duration,
}

impl Tally {
    fn say(&self, there: usize) -> Result<(), Trouble> {
        if there > 0 {
            writeln!(stderr(), "{there} simulations were there already")?;
        }
        if self.simulations == 0 {
            return Ok(());
        }
        let threads = rayon::current_num_threads();
        let all = self.took.as_secs_f64() * threads as f64;
        let beside = (all - self.simulating.as_secs_f64()).max(0.0);
        Ok(writeln!(
            stderr(),
            "{} simulations in {:.2} s on {threads} threads: {:.1} per second; beside the simulation itself \
             {:.2} ms of a thread for each ({:.1} %)",
            self.simulations,
            self.took.as_secs_f64(),
            self.simulations as f64 / self.took.as_secs_f64(),
            beside * 1e3 / self.simulations as f64,
            beside / all * 100.0
        )?)
    }
}

/// `kvlab sweep FILE`.
pub fn sweep(matches: &ArgMatches) -> Result<(), Trouble> {
    let (settings, file) = Settings::of_sweep(matches)?;
    check_reference(&settings)?;
    let fail_if = FailIf::of_command(matches)?;
    let (target, fronts) = (target_of(matches)?, fronts_of(matches)?);
    let shard = matches.get_one::<String>("shard").map(|text| Shard::parse(text)).transpose()?;
    if let Some(&threads) = matches.get_one::<u64>("threads") {
        let threads = usize::try_from(threads).ok().filter(|threads| (1..=4096).contains(threads));
        let threads = threads.ok_or_else(|| usage("--threads: expected a whole number from 1 to 4096"))?;
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let is_ours = |key: &str| shard.is_none_or(|shard| shard.has(key));
    let sweep = Sweep::new(&settings)?;
    if matches.get_flag("check") {
        let (mut all, mut ours) = (0, 0);
        sweep.expand(|place, _| {
            all += 1;
            ours += usize::from(is_ours(&place.key));
            Ok(())
        })?;
        let part = if shard.is_some() { format!("{ours} of {all}") } else { all.to_string() };
        return Ok(writeln!(stdout(), "{part} simulations")?);
    }
    if matches.get_flag("list") {
        let mut out = std::io::BufWriter::new(stdout().lock());
        // Nothing is printed before everything has been found right.
        let mut lines = String::new();
        sweep.expand(|place, spec| {
            if is_ours(&place.key) {
                lines += &spec.line()?;
            }
            Ok(())
        })?;
        out.write_all(lines.as_bytes())?;
        return Ok(out.flush()?);
    }
    let stem = file.as_deref().and_then(Path::file_stem);
    let name = stem.map_or("sweep".into(), |stem| stem.to_string_lossy().into_owned());
    let out = matches.get_one::<String>("out");
    let dir = out.map_or_else(|| Path::new("kvlab-out").join(name), PathBuf::from);
    let quiet = matches.get_flag("quiet");
    let head = Head::new(&settings, target, &fronts);
    let (store, places) = planned(&sweep, &head, &dir)?;
    if matches.get_flag("plan") {
        return Ok(writeln!(stdout(), "{} simulations", places.len())?);
    }
    let ours: Vec<Place> = places.into_iter().filter(|place| is_ours(&place.key)).collect();
    let is_there = |place: &Place| store.has(&place.key) && (!place.map || store.has_map(&place.key));
    let there: Vec<bool> = ours.par_iter().map(is_there).collect();
    let count = ours.len();
    let pending: Vec<Place> =
        ours.into_iter().zip(there).filter(|(_, there)| !there).map(|(p, _)| p).collect();
    let again = pending.iter().filter(|place| store.has_failed(&place.key)).count();
    if again > 0 && !quiet {
        writeln!(stderr(), "{again} that failed before are tried again")?;
    }
    let tally = sweep.run(&pending, &store, quiet, &task::run)?;
    if !quiet {
        tally.say(count - pending.len())?;
    }
    if shard.is_none() {
        let wishes = Wishes {
            format: format_of(matches),
            reference: None,
            target: None,
            fronts: Vec::new(),
            fail_if,
            quiet,
        };
        return collect::put_together(&dir, &wishes);
    }
    if tally.failed > 0 {
        let message = format!("{} of {count} simulations of this shard failed", tally.failed);
        return Err(Trouble::Run(anyhow::Error::msg(message)));
    }
    Ok(())
}

/// Writes the list of a sweep and its head into its folder, once all of it has been found right.
fn planned(sweep: &Sweep, head: &Head, dir: &Path) -> Result<(Store, Vec<Place>), Trouble> {
    let (mut places, mut lines) = (Vec::new(), String::new());
    sweep.expand(|place, spec| {
        lines += &spec.line()?;
        places.push(place);
        Ok(())
    })?;
    let store = Store::create(dir)?;
    let mut list = TemporaryFile::new(&store.list())?;
    list.write_all(lines.as_bytes())?;
    list.finish()?;
    head.write(&store)?;
    Ok((store, places))
}
