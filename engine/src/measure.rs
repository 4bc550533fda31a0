//! Times single steps on a backend, for whoever fits a cost model.
//!
//! What is timed is what serving times: one call of [`Backend::step`], or of [`Backend::apply`] for
//! moves. Steps are visited round after round, in a new order each, so that a machine that is slow
//! for a while is slow for all of them; a visit is a warm-up and some repeats, or one
//! execution of moves.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::DirEntry;
use std::time::Duration;

use policies::{ClassId, Effect, Geometry, Plan, Reach, Run, SeqId, Why};
use traces::random::SplitMix64;

use crate::backend::{Backend, Batch, Output, Span, View};
use crate::clock::Clock;
use crate::error::EngineError;

/// A visit repeats its step until it has taken about this long.
const VISIT: Duration = Duration::from_millis(12);
/// Repeats of a visit, at most.
const REPEATS_MAX: u32 = 9;
/// A step that waited for a processor for more than this share of its time was disturbed.
const WAITED_MAX: f64 = 0.02;
/// Cells that are filled by computing, at most.
const FILLED: u32 = 64;
/// The request whose tokens go to host memory and back.
const REQUEST: u64 = 0;

/// A step, as far as its time depends on it: computing, or moves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepShape {
    /// Per sequence that decodes, its context with the new token; at least 1.
    pub decodes: Vec<u32>,
    /// Pieces of prompts.
    pub prefills: Vec<PieceShape>,
    /// Per class, length of the range that attention walks; empty for attention through tables.
    pub walked: Vec<u32>,
    /// Cells of the runs in which a sequence lies, which are drawn from the whole cache, as those of blocks are
    /// after a while; 0 for sequences of one run each, side by side.
    pub run_len: u32,
    /// What is moved; a step that moves computes nothing.
    pub moves: Vec<MoveShape>,
}

/// A piece of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceShape {
    /// New tokens; at least 1.
    pub tokens: u32,
    /// Tokens before them.
    pub context: u32,
    /// Whether its last token samples.
    pub samples: bool,
}

/// Cells of a class that are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveShape {
    /// What is done.
    pub what: Move,
    /// Layer class.
    pub class: usize,
    /// Cells, all commands together; a transfer goes out and comes back, so that twice as many cross.
    pub cells: u32,
    /// Commands, at least 1 and at most as many as cells.
    pub commands: u32,
}

/// Kinds of moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Copies within the cache.
    Copy,
    /// Rotations of K.
    Rotate,
    /// Transfers to host memory and back.
    Swap,
}

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Times that each step is visited.
    pub rounds: u32,
    /// Seed of tokens and of the order.
    pub seed: u64,
    /// Which time counts.
    pub clock: Clock,
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Measurements {
    /// Per step and round, ns.
    pub rounds_ns: Vec<Vec<f64>>,
    /// Steps timed in all.
    pub timed: u32,
    /// Those of them during which a thread of this process waited for a processor. 0 where the system
    /// does not tell.
    pub disturbed: u32,
}

impl Measurements {
    /// Adds rounds of the same steps.
    ///
    /// # Panics
    /// If there are other steps.
    pub fn add(&mut self, more: Measurements) {
        if self.rounds_ns.is_empty() {
            *self = more;
            return;
        }
        assert_eq!(self.rounds_ns.len(), more.rounds_ns.len(), "rounds of the same steps");
        self.rounds_ns.iter_mut().zip(more.rounds_ns).for_each(|(all, more)| all.extend(more));
        self.timed += more.timed;
        self.disturbed += more.disturbed;
    }
}

/// A step that can be run again and again.
enum Ready {
    Compute(Batch),
    Moves(Plan),
}

/// Measures steps on a backend whose cache has this geometry. `progress` is told how many of how many
/// visits are done.
///
/// # Errors
/// [`EngineError::Batch`] for a step that does not fit the cache, and whatever the backend says.
pub fn measure(
    backend: &mut dyn Backend,
    geometry: &Geometry,
    steps: &[StepShape],
    options: Options,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Measurements, EngineError> {
    let mut random = SplitMix64::new(options.seed);
    let vocab = backend.config().vocab;
    let ready: Vec<Ready> =
        steps.iter().map(|step| prepare(step, geometry, vocab, &mut random)).collect::<Result<_, _>>()?;
    fill(backend, geometry, &mut random)?;
    let mut found = Measurements { rounds_ns: vec![Vec::new(); steps.len()], ..Measurements::default() };
    let visits = steps.len() * options.rounds as usize;
    let mut order: Vec<usize> = (0..steps.len()).collect();
    let mut output = Output::default();
    for round in 0..options.rounds as usize {
        random.shuffle(&mut order);
        for (at, &step) in order.iter().enumerate() {
            let ns = visit(backend, &ready[step], options.clock, &mut output, &mut found)?;
            found.rounds_ns[step].push(ns);
            progress(round * steps.len() + at + 1, visits);
        }
    }
    Ok(found)
}

/// One warm-up, some repeats; the mean of those that were not disturbed, since serving has the small
/// hiccups of a machine, too. Moves are timed once and with no warm-up: serving finds their cells in main
/// memory, too. Where all repeats were disturbed, the shortest: how much of a wait another thread's
/// computing hid, nobody knows. Time that others compute does not count on the processor's clock, so
/// nothing disturbs there.
fn visit(
    backend: &mut dyn Backend,
    ready: &Ready,
    clock: Clock,
    output: &mut Output,
    found: &mut Measurements,
) -> Result<f64, EngineError> {
    let repeats = match ready {
        Ready::Compute(_) => {
            let warm_up = run(backend, ready, clock, output)?;
            (VISIT.as_nanos() / warm_up.as_nanos().max(1)).clamp(1, REPEATS_MAX.into()) as u32
        }
        Ready::Moves(_) => 1,
    };
    let (mut sum, mut clean, mut least) = (0.0, 0, f64::INFINITY);
    for _ in 0..repeats {
        let before = waits_ns();
        let ns = run(backend, ready, clock, output)?.as_nanos().max(1) as f64;
        let waited = longest_wait(&before, &waits_ns()) as f64;
        found.timed += 1;
        least = least.min(ns);
        if clock == Clock::Wall && waited > WAITED_MAX * ns {
            found.disturbed += 1;
        } else {
            sum += ns;
            clean += 1;
        }
    }
    Ok(if clean > 0 { sum / f64::from(clean) } else { least })
}

fn run(
    backend: &mut dyn Backend,
    ready: &Ready,
    clock: Clock,
    output: &mut Output,
) -> Result<Duration, EngineError> {
    let started = clock.start();
    match ready {
        Ready::Compute(batch) => backend.step(batch, output)?,
        Ready::Moves(plan) => backend.apply(plan, &|_| REQUEST)?,
    }
    Ok(started.elapsed())
}

/// Per thread of this process, how long it has waited for a processor, ns, where Linux tells
/// (`Documentation/scheduler/sched-stats.rst`: the second number of `schedstat`).
fn waits_ns() -> BTreeMap<OsString, u64> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return BTreeMap::new() };
    let wait = |thread: DirEntry| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        Some((thread.file_name(), text.split_ascii_whitespace().nth(1)?.parse().ok()?))
    };
    threads.filter_map(|thread| wait(thread.ok()?)).collect()
}

/// The longest that one thread has waited between two looks, ns.
fn longest_wait(before: &BTreeMap<OsString, u64>, after: &BTreeMap<OsString, u64>) -> u64 {
    let waits = after.iter().map(|(thread, ns)| ns.saturating_sub(*before.get(thread).unwrap_or(ns)));
    waits.max().unwrap_or(0)
}

/// Writes K and V of seeded tokens into every cell, so that no step reads what nobody computed: some
/// are computed, the others copied from them.
fn fill(backend: &mut dyn Backend, geometry: &Geometry, random: &mut SplitMix64) -> Result<(), EngineError> {
    let least = geometry.classes.iter().map(|class| class.cells).min().unwrap_or(0);
    let len = least.min(geometry.batch_max).min(FILLED);
    let piece = PieceShape { tokens: len, context: 0, samples: false };
    let first = StepShape { prefills: vec![piece], ..StepShape::default() };
    let mut batch = batch(&first, geometry, backend.config().vocab, random)?;
    for view in batch.spans.iter_mut().flat_map(|span| &mut span.views) {
        *view = View { first: 0, runs: vec![Run { start: 0, len }] };
    }
    backend.step(&batch, &mut Output::default())?;
    let mut plan = Plan::new();
    for (class, layers) in geometry.class_ids().zip(&geometry.classes) {
        let mut filled = len;
        while filled < layers.cells {
            let len = filled.min(layers.cells - filled);
            plan.push(Effect::Copy { class, from: 0, to: filled, len, why: Why::Grow });
            filled += len;
        }
    }
    backend.apply(&plan, &|_| REQUEST)
}

fn prepare(
    step: &StepShape,
    geometry: &Geometry,
    vocab: usize,
    random: &mut SplitMix64,
) -> Result<Ready, EngineError> {
    let is_computing = !step.decodes.is_empty() || !step.prefills.is_empty();
    if is_computing != step.moves.is_empty() {
        return Err(EngineError::Batch("a step to measure computes or moves, not both".to_owned()));
    }
    if is_computing {
        batch(step, geometry, vocab, random).map(Ready::Compute)
    } else {
        plan(step, geometry).map(Ready::Moves)
    }
}

/// Gives cells to sequences, one after the other; where the cells are at an end, those given before.
enum Cells {
    /// In one run each.
    OneRun { cells: u32, next: u32 },
    /// In equal runs, by their first cells in a drawn order.
    Runs { starts: Vec<u32>, len: u32, next: usize },
}

impl Cells {
    fn new(cells: u32, run_len: u32, random: &mut SplitMix64) -> Cells {
        let count = cells.checked_div(run_len).unwrap_or(0);
        if count == 0 {
            return Cells::OneRun { cells, next: 0 };
        }
        let mut starts: Vec<u32> = (0..count).map(|run| run * run_len).collect();
        random.shuffle(&mut starts);
        Cells::Runs { starts, len: run_len, next: 0 }
    }

    /// Runs of so many cells in all; none if there are not so many.
    fn take(&mut self, tokens: u32) -> Option<Vec<Run>> {
        match self {
            Cells::OneRun { cells, .. } if tokens > *cells => None,
            Cells::OneRun { cells, next } => {
                let start = if *next + tokens > *cells { 0 } else { *next };
                *next = start + tokens;
                Some(vec![Run { start, len: tokens }])
            }
            Cells::Runs { starts, len, .. } if tokens.div_ceil(*len) as usize > starts.len() => None,
            Cells::Runs { starts, len, next } => {
                let mut runs = Vec::new();
                for first in (0..tokens).step_by(*len as usize) {
                    runs.push(Run { start: starts[*next], len: (tokens - first).min(*len) });
                    *next = (*next + 1) % starts.len();
                }
                Some(runs)
            }
        }
    }
}

fn batch(
    step: &StepShape,
    geometry: &Geometry,
    vocab: usize,
    random: &mut SplitMix64,
) -> Result<Batch, EngineError> {
    let mut batch = Batch::default();
    let mut cells: Vec<Cells> =
        geometry.classes.iter().map(|class| Cells::new(class.cells, step.run_len, random)).collect();
    let decodes = step.decodes.iter().map(|&context| (context.saturating_sub(1), 1, true));
    let prefills = step.prefills.iter().map(|piece| (piece.context, piece.tokens, piece.samples));
    for (first, tokens, samples) in decodes.chain(prefills) {
        let mut views = Vec::new();
        for (class, cells) in geometry.classes.iter().zip(&mut cells) {
            let from = class.reach.first_needed(first);
            let len = first + tokens - from;
            let Some(runs) = cells.take(len) else {
                let (name, cells) = (&class.name, class.cells);
                return Err(EngineError::Batch(format!("class {name}: {len} of {cells} cells")));
            };
            views.push(View { first: from, runs });
        }
        let rows = batch.tokens.len()..batch.tokens.len() + tokens as usize;
        batch.tokens.extend(rows.clone().map(|_| token(vocab, random)));
        batch.spans.push(Span { rows, first, samples: usize::from(samples), views, ..Span::default() });
    }
    for (class, layers) in geometry.classes.iter().enumerate() {
        let ends = batch.spans.iter().flat_map(|span| &span.views[class].runs).map(|run| run.start + run.len);
        let high = ends.max().unwrap_or(0);
        let walk = step.walked.get(class).map(|&len| Run { start: 0, len: len.max(high).min(layers.cells) });
        batch.walks.push(walk);
    }
    Ok(batch)
}

fn plan(step: &StepShape, geometry: &Geometry) -> Result<Plan, EngineError> {
    let mut plan = Plan::new();
    for &MoveShape { what, class, cells, commands } in &step.moves {
        let available = geometry.classes.get(class).map_or(0, |class| class.cells);
        let needed = if what == Move::Copy { 2 * u64::from(cells) } else { u64::from(cells) };
        if commands == 0 || commands > cells || needed > u64::from(available) {
            return Err(EngineError::Batch(format!(
                "class {class}: {cells} cells in {commands} commands, of {available} cells"
            )));
        }
        let (class, seq) = (ClassId(class as u8), SeqId(0));
        let half = available / 2;
        // Sources lie apart, as far as there is room; so do targets.
        let room = if what == Move::Copy { half } else { available };
        let share = |of: u32, command: u32| (u64::from(of) * u64::from(command) / u64::from(commands)) as u32;
        let mut pieces: Vec<Run> = Vec::new();
        for command in 0..commands {
            let after = pieces.last().map_or(0, |last| last.start + last.len);
            let len = share(cells, command + 1) - share(cells, command);
            pieces.push(Run { start: share(room, command).max(after), len });
        }
        for run in &pieces {
            plan.push(match what {
                Move::Copy => Effect::Copy {
                    class,
                    from: half + run.start,
                    to: run.start,
                    len: run.len,
                    why: Why::Defrag,
                },
                Move::Rotate => Effect::Rotate { class, run: *run, delta: -1 },
                Move::Swap => Effect::SwapOut { class, seq, first: run.start, run: *run },
            });
        }
        if what == Move::Swap {
            pieces.iter().for_each(|&run| plan.push(Effect::SwapIn { class, seq, first: run.start, run }));
        }
    }
    Ok(plan)
}

impl StepShape {
    /// Tokens computed.
    pub fn tokens(&self) -> u32 {
        self.decodes.len() as u32 + self.prefills.iter().map(|piece| piece.tokens).sum::<u32>()
    }

    /// Per class, the cells that its attention reads for decoding sequences.
    pub fn decode_reads(&self, geometry: &Geometry) -> Vec<u64> {
        let reads = |reach: Reach| self.decodes.iter().map(|&context| u64::from(reach.clip(context))).sum();
        geometry.classes.iter().map(|class| reads(class.reach)).collect()
    }

    /// Whether a cache of this geometry has cells for each of its sequences and moves.
    pub fn fits(&self, geometry: &Geometry) -> bool {
        prepare(self, geometry, 1, &mut SplitMix64::new(0)).is_ok()
    }
}

fn token(vocab: usize, random: &mut SplitMix64) -> u32 {
    (random.bits() % vocab.max(1) as u64) as u32
}
