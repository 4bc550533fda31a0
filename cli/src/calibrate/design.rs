//! The steps that a calibration measures: a sweep over what the limits allow, and steps of the
//! workload itself.
//!
//! Sizes are shares of the limits that are no powers of two, on purpose: kernels work in tiles, and
//! a power of two is the cheapest place of a tile or the dearest.

use std::error::Error;

use engine::measure::{Move, MoveShape, PieceShape, StepShape};
use policies::scheduler::{Limits, Scheduler};
use policies::{ClassId, Effect, Geometry, Reach};
use sim::Executor;
use sim::cost::linear::Operating;
use sim::cost::{CostModel, Moves, Prefill, Work};
use traces::random::SplitMix64;

/// Shares of the context limit at which sequences decode.
const CONTEXTS: [f64; 4] = [0.023, 0.11, 0.37, 0.87];
/// Shares of a batch that pieces of prompts have.
const CHUNKS: [f64; 5] = [0.04, 0.13, 0.31, 0.59, 0.93];
/// Shares of the context limit that lie before pieces of prompts.
const BEFORE: [f64; 3] = [0.0, 0.27, 0.71];

/// The sweep for a cache of some geometry under some limits, sequences that are read through tables lying in
/// runs of `run_len` cells; with `quick` about half of it.
pub fn designed(geometry: &Geometry, limits: &Limits, run_len: u32, quick: bool) -> Vec<StepShape> {
    let limits = &Limits { num_ctx: longest(geometry, limits), ..*limits };
    let mut all = decodes(limits, quick);
    all.extend(prefills(limits, quick));
    all.extend(mixed(limits));
    all.iter_mut().for_each(|step| step.run_len = run_len);
    all.extend(walks(geometry, limits));
    all.extend(moves(geometry, quick));
    let mut steps: Vec<StepShape> = Vec::new();
    for step in all {
        if step.fits(geometry) && step.tokens() <= limits.num_batch && !steps.contains(&step) {
            steps.push(step);
        }
    }
    steps
}

fn part(of: u32, share: f64) -> u32 {
    ((f64::from(of) * share) as u32).max(1)
}

fn counts(limits: &Limits, quick: bool) -> Vec<u32> {
    let shares: &[f64] = if quick { &[0.0, 0.5, 1.0] } else { &[0.0, 0.15, 0.4, 0.7, 1.0] };
    let mut counts: Vec<u32> = shares.iter().map(|&share| part(limits.num_parallel, share)).collect();
    counts.dedup();
    counts
}

fn decoding(count: u32, context: u32) -> StepShape {
    StepShape { decodes: vec![context.max(1); count as usize], ..StepShape::default() }
}

fn piece(tokens: u32, context: u32, samples: bool) -> PieceShape {
    PieceShape { tokens, context, samples }
}

fn decodes(limits: &Limits, quick: bool) -> Vec<StepShape> {
    let mut steps = Vec::new();
    for count in counts(limits, quick) {
        steps.extend(CONTEXTS.map(|share| decoding(count, part(limits.num_ctx, share))));
        // Long and short ones together.
        let context = |at: u32| part(limits.num_ctx, if at.is_multiple_of(3) { 0.79 } else { 0.053 });
        steps.push(StepShape { decodes: (0..count).map(context).collect(), ..StepShape::default() });
    }
    steps
}

fn prefills(limits: &Limits, quick: bool) -> Vec<StepShape> {
    let mut steps = Vec::new();
    for (row, chunk) in CHUNKS.iter().enumerate() {
        for (column, before) in BEFORE.iter().enumerate() {
            if quick && (row + column) % 2 == 1 {
                continue;
            }
            let context = if *before > 0.0 { part(limits.num_ctx, *before) } else { 0 };
            let tokens = part(limits.num_batch, *chunk).min(limits.num_ctx.saturating_sub(context)).max(1);
            let prefills = vec![piece(tokens, context, (row + column) % 2 == 0)];
            steps.push(StepShape { prefills, ..StepShape::default() });
        }
    }
    for share in [0.11, 0.23, 0.44] {
        let tokens = part(limits.num_batch, share).min(part(limits.num_ctx, 0.5));
        let prefills = vec![piece(tokens, 0, true), piece(tokens, part(limits.num_ctx, 0.19), false)];
        steps.push(StepShape { prefills, ..StepShape::default() });
    }
    steps
}

fn mixed(limits: &Limits) -> Vec<StepShape> {
    let mut steps = Vec::new();
    let pairs = [(0.0, 0.09), (0.0, 0.67), (0.45, 0.21), (0.45, 0.53), (0.8, 0.14), (0.8, 0.81), (0.6, 0.37)];
    for (at, (decoding_share, chunk)) in pairs.into_iter().enumerate() {
        let count = part(limits.num_parallel, decoding_share).min(limits.num_parallel.saturating_sub(1));
        let context = part(limits.num_ctx, CONTEXTS[at % CONTEXTS.len()]);
        let before = if at % 2 == 0 { 0 } else { part(limits.num_ctx, 0.33) };
        let room = limits.num_batch.saturating_sub(count).min(limits.num_ctx.saturating_sub(before));
        let prefills = vec![piece(part(limits.num_batch, chunk).min(room), before, at % 3 == 0)];
        if count > 0 && room > 0 {
            steps.push(StepShape { prefills, ..decoding(count, context) });
        }
    }
    steps
}

/// Attention that walks a range of cells with an owner test, longer than what it reads.
fn walks(geometry: &Geometry, limits: &Limits) -> Vec<StepShape> {
    let walked =
        |share: f64| -> Vec<u32> { geometry.classes.iter().map(|class| part(class.cells, share)).collect() };
    let context = part(limits.num_ctx, 0.083);
    let count = part(limits.num_parallel, 0.55);
    let chunk = part(limits.num_batch, 0.17).min(limits.num_ctx);
    let prompt = StepShape { prefills: vec![piece(chunk, 0, true)], ..StepShape::default() };
    let bases =
        [(decoding(1, context), 0.9), (decoding(count, context), 0.45), (decoding(count, context), 0.95)];
    let prompts = [(prompt.clone(), 0.3), (prompt, 0.85)];
    bases
        .into_iter()
        .chain(prompts)
        .map(|(base, share)| StepShape { walked: walked(share), ..base })
        .collect()
}

fn moves(geometry: &Geometry, quick: bool) -> Vec<StepShape> {
    // Share of the cells, and cells of a command.
    let sizes: &[(f64, u32)] = if quick {
        &[(0.04, 5), (0.13, 1000), (0.31, 11)]
    } else {
        &[(0.04, 5), (0.07, 50), (0.13, 1000), (0.31, 11), (0.44, 300)]
    };
    let mut steps = Vec::new();
    for (class, layers) in geometry.classes.iter().enumerate() {
        for what in [Move::Copy, Move::Rotate, Move::Swap] {
            for &(share, command) in sizes {
                let cells = part(layers.cells, share);
                let commands = cells.div_ceil(command).max(1);
                let moves = vec![MoveShape { what, class, cells, commands }];
                steps.push(StepShape { moves, ..StepShape::default() });
            }
        }
    }
    steps
}

/// What a step of a design asks for, as the simulator prices it.
pub fn work_of(step: &StepShape, geometry: &Geometry) -> Work {
    let pieces = step.prefills.iter().map(|piece| Prefill { tokens: piece.tokens, context: piece.context });
    let decodes = step.decodes.len() as u32;
    let samples = decodes + step.prefills.iter().filter(|piece| piece.samples).count() as u32;
    Work {
        tokens: step.tokens(),
        sequences: decodes + step.prefills.len() as u32,
        samples,
        decodes,
        prefills: pieces.collect(),
        decode_reads: step.decode_reads(geometry),
        decode_spared: Vec::new(),
        context_spared: Vec::new(),
        walked: step.walked.iter().map(|&cells| u64::from(cells)).collect(),
        scored: Vec::new(),
        turned: Vec::new(),
        moves: moves_of(step, geometry.classes.len()),
    }
}

fn moves_of(step: &StepShape, classes: usize) -> Moves {
    if step.moves.is_empty() {
        return Moves::default();
    }
    let mut moves = Moves {
        copied_cells: vec![0; classes],
        rotated_cells: vec![0; classes],
        swapped_cells: vec![0; classes],
        ..Moves::default()
    };
    for &MoveShape { what, class, cells, commands } in &step.moves {
        match what {
            Move::Copy => {
                moves.copied_cells[class] += u64::from(cells);
                moves.copies += u64::from(commands);
            }
            Move::Rotate => {
                moves.rotated_cells[class] += u64::from(cells);
                moves.rotations += u64::from(commands);
            }
            // There and back.
            Move::Swap => moves.swapped_cells[class] += 2 * u64::from(cells),
        }
    }
    moves
}

/// Watches a dry run: where its time goes, and some of its steps.
pub struct Recorder<'a> {
    cost: &'a dyn CostModel,
    geometry: Geometry,
    /// Where the time goes.
    pub operating: Operating,
    /// Steps of computing, and of moves, with the keys by which they were drawn.
    drawn: [Vec<(f64, StepShape)>; 2],
    /// How many of either to draw.
    most: [usize; 2],
    random: SplitMix64,
}

impl<'a> Recorder<'a> {
    /// A dry run at these prices. Draws so many steps, the longer they take the likelier.
    pub fn new(cost: &'a dyn CostModel, geometry: Geometry, most: usize, seed: u64) -> Self {
        let most = [most, most / 4];
        Recorder {
            cost,
            geometry,
            operating: Operating::default(),
            drawn: Default::default(),
            most,
            random: SplitMix64::new(seed),
        }
    }

    /// The steps drawn, each once, in the order of the draw.
    pub fn into_steps(self) -> Vec<StepShape> {
        let mut steps: Vec<StepShape> = Vec::new();
        for (_, step) in self.drawn.into_iter().flatten() {
            if step.fits(&self.geometry) && !steps.contains(&step) {
                steps.push(step);
            }
        }
        steps
    }

    /// Weighted sampling without replacement: the steps with the largest u^(1/weight) (Efraimidis and
    /// Spirakis 2006); the logarithm of it, here.
    fn offer(&mut self, which: usize, weight: f64, step: impl FnOnce(&Geometry) -> StepShape) {
        let uniform = self.random.unit();
        let key = uniform.max(f64::MIN_POSITIVE).ln() / weight.max(f64::MIN_POSITIVE);
        let drawn = &mut self.drawn[which];
        let at = drawn.partition_point(|(other, _)| *other > key);
        if at < self.most[which] {
            drawn.insert(at, (key, step(&self.geometry)));
            drawn.truncate(self.most[which]);
        }
    }
}

impl Executor for Recorder<'_> {
    fn run(&mut self, work: &Work, scheduler: &dyn Scheduler) -> Result<u64, Box<dyn Error + Send + Sync>> {
        let ns = self.cost.step_ns(work);
        self.operating.add(work, ns);
        if work.tokens > 0 {
            self.offer(0, ns as f64, |_| computing(scheduler));
        }
        if !work.moves.is_empty() {
            self.offer(1, 1.0, |geometry| moving(scheduler, geometry));
        }
        Ok(ns)
    }

    fn moves_ns(&mut self, work: &Work, step_ns: u64) -> u64 {
        sim::Priced(self.cost).moves_ns(work, step_ns)
    }
}

/// What the scheduler's step computes.
fn computing(scheduler: &dyn Scheduler) -> StepShape {
    let (step, policy) = (scheduler.step(), scheduler.policy());
    let pieces = step.prefills.iter().map(|chunk| piece(chunk.tokens, chunk.context, chunk.samples));
    StepShape {
        decodes: step.decoding.iter().map(|&seq| policy.len(seq).max(1)).collect(),
        prefills: pieces.collect(),
        walked: step.walks.iter().map(|walk| walk.len).collect(),
        run_len: if step.walks.is_empty() { run_len(scheduler) } else { 0 },
        moves: Vec::new(),
    }
}

/// Mean length of the runs in which the sequences of the scheduler's step lie, where everything is read.
fn run_len(scheduler: &dyn Scheduler) -> u32 {
    let (step, policy) = (scheduler.step(), scheduler.policy());
    let geometry = policy.geometry();
    let reads_all = |class: &ClassId| geometry.classes[class.index()].reach == Reach::Full;
    let class = geometry.class_ids().find(reads_all).unwrap_or(ClassId(0));
    let (mut cells, mut count, mut runs) = (0, 0, Vec::new());
    for &seq in step.decoding.iter().chain(step.prefills.iter().map(|chunk| &chunk.seq)) {
        policy.layout(class, seq, &mut runs);
        cells += runs.iter().map(|run| run.len).sum::<u32>();
        count += runs.len() as u32;
    }
    cells.checked_div(count).unwrap_or(0)
}

/// What the scheduler's step moves, as far as it can be done with other cells.
fn moving(scheduler: &dyn Scheduler, geometry: &Geometry) -> StepShape {
    let mut moves: Vec<MoveShape> = Vec::new();
    for effect in scheduler.step().plan.effects() {
        let (what, class, len) = match *effect {
            // Roundings have no rate of their own (see `sim::cost::linear`), and the engine maps nothing.
            Effect::Write { .. } | Effect::Requantise { .. } | Effect::Map { .. } | Effect::Unmap { .. } => {
                continue;
            }
            Effect::Copy { class, len, .. } => (Move::Copy, class.index(), len),
            Effect::Rotate { class, run, .. } => (Move::Rotate, class.index(), run.len),
            Effect::SwapOut { class, run, .. }
            | Effect::SwapIn { class, run, .. }
            | Effect::Offload { class, run, .. }
            | Effect::Fetch { class, run, .. } => (Move::Swap, class.index(), run.len),
        };
        match moves.iter_mut().find(|known| known.what == what && known.class == class) {
            Some(known) => {
                known.cells += len;
                known.commands += 1;
            }
            None => moves.push(MoveShape { what, class, cells: len, commands: 1 }),
        }
    }
    for known in &mut moves {
        let room = geometry.classes[known.class].cells / if known.what == Move::Copy { 2 } else { 1 };
        known.cells = known.cells.min(room);
        known.commands = known.commands.min(known.cells);
    }
    StepShape { moves, ..StepShape::default() }
}

/// A step in few words: `5 x 1200`, `193+400 | 5 x 80`, `copy 300 local in 7`.
pub fn words(step: &StepShape, geometry: &Geometry) -> String {
    let mut parts: Vec<String> =
        step.prefills.iter().map(|piece| format!("{}+{}", piece.context, piece.tokens)).collect();
    if let Some(&first) = step.decodes.first() {
        let sum: u64 = step.decodes.iter().map(|&context| u64::from(context)).sum();
        let about = if step.decodes.iter().all(|&context| context == first) { "" } else { "~" };
        let mean = sum / step.decodes.len() as u64;
        parts.push(format!("{} x {about}{mean}", step.decodes.len()));
    }
    for &MoveShape { what, class, cells, commands } in &step.moves {
        let verb = match what {
            Move::Copy => "copy",
            Move::Rotate => "rotate",
            Move::Swap => "swap",
        };
        let name = geometry.classes.get(class).map_or("", |class| &class.name);
        parts.push(format!("{verb} {cells} {name} in {commands}"));
    }
    let mut text = parts.join(" | ");
    if let Some(most) = step.walked.iter().max() {
        text += &format!(", walks {most}");
    }
    text
}

/// The longest context that finds room where everything is read.
fn longest(geometry: &Geometry, limits: &Limits) -> u32 {
    let full = geometry.classes.iter().filter(|class| class.reach == Reach::Full);
    full.map(|class| class.cells).min().unwrap_or(u32::MAX).min(limits.num_ctx)
}
