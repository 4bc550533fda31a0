//! Compaction of batch runs: when it is done, how much at once, and what for.
//!
//! The ladder, each rung with the ones before it as a last resort: never (`contiguous:run`); when a batch
//! finds no run (`failure`); between steps, all at once, when holes pass a share of the used range
//! (`threshold`); under the same condition at most the driver's budget of cells per step (`step`); or at most
//! `cells` per step on a stream beside the model's (`background`), which costs bandwidth and no launches.
//!
//! What for: `high-water` fills the lowest hole with the tail of the highest used run, a run at a time: the
//! fewest cells that can be moved, in as few copies as the two ends allow. Sequences stay interleaved:
//! compaction is not locality (llama.cpp issue 13497). `runs` moves whole sequences: those in more runs than
//! `share` per cent of their cells go to the lowest hole that is long enough, then the highest ones down into
//! holes that take them whole. A sequence longer than what is left of the budget stays; where no hole takes
//! them all, `threshold` makes one by filling holes first, if there are free cells for all.
//! Source of the triggers: Ollama 0.6.6 compacts when a batch finds no run; llama.cpp had a threshold
//! (`--defrag-thold`) until its pull request 15473.
//!
//! Cost: O(1) per cell moved and 1/64 per cell looked at between the ends; `runs` also looks at every
//! sequence, and is O(log n) per run moved. The ground is [`cells`](crate::cells).

use crate::cells::{Cells, Class, Owner};
use crate::plan::{Effect, Plan, Why};
use crate::policy::{Budget, ClassId, Geometry, Policy, Run, push_run};
use crate::shift::{Amount, Shift};
use crate::spec::{Args, FIT, Knob, Spec, SpecError};
use crate::unrotated;

pub(crate) const SPEC: Spec = Spec {
    name: "defrag",
    about: "batch runs, compacted on failure, on a threshold, bit by bit, or beside the steps",
    source: "Ollama 0.6.6 kvcache defrag; llama.cpp --defrag-thold",
    cost: "O(1) per cell moved",
    faults: "",
    knobs: &[
        Knob { name: "when", about: "failure | threshold | step | background", default: "failure" },
        Knob {
            name: "share",
            about: "all but failure: compact while more than this share of the used range is holes (%)",
            default: "10",
        },
        FIT,
        Knob {
            name: "objective",
            about: "high-water (fewest moves) | runs (each sequence in one)",
            default: "high-water",
        },
        Knob { name: "cells", about: "background: most cells to copy beside a step", default: "64" },
        Knob { name: "+shift", about: "context shift at the limit, 4 tokens kept", default: "off" },
        unrotated::KNOB,
    ],
    make,
};

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let when = args.choice("when", 0, &["failure", "threshold", "step", "background"])?;
    let percent = args.number("share", 1, 0..=100, 10)?;
    let mut cells = Cells::new(geometry, args.fit(2)?);
    let objective = args.choice("objective", 3, &["high-water", "runs"])?;
    let beside = args.number("cells", 4, 1..=u32::MAX, 64)?;
    cells.defrag = Some(Defrag {
        when: match when {
            "threshold" => When::Threshold,
            "step" => When::Step,
            "background" => When::Background { cells: beside },
            _ => When::Failure,
        },
        percent,
        objective: if objective == "runs" { Objective::Runs } else { Objective::HighWater },
    });
    cells.shift = args.has_extension("shift").then_some(Shift { keep: 4, drop: Amount::HALF });
    Ok(Box::new(cells))
}

/// What sets compaction off; each compacts on failure too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// A batch finds no run though there are enough free cells.
    Failure,
    /// Between steps, all of a class at once.
    Threshold,
    /// Between steps, at most the driver's budget of cells.
    Step,
    /// Beside each step, at most so many cells.
    Background { cells: u32 },
}

/// What compaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Objective {
    HighWater,
    Runs,
}

/// When to compact, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Defrag {
    when: When,
    /// Share of holes, or of runs, that is put up with.
    percent: u32,
    objective: Objective,
}

impl Defrag {
    /// When a batch finds no run, to lower the high-water mark.
    pub const ON_FAILURE: Defrag =
        Defrag { when: When::Failure, percent: 0, objective: Objective::HighWater };

    fn is_more(self, part: u32, whole: u32) -> bool {
        u64::from(part) * 100 > u64::from(whole) * u64::from(self.percent)
    }
}

impl Cells {
    /// Moves at most `budget` cells of a class down into its holes; returns how many.
    pub(crate) fn compact(&mut self, class: ClassId, budget: u32, why: Why, plan: &mut Plan) -> u32 {
        let Class { map, owners } = &mut self.classes[class.index()];
        let sequences = &mut self.sequences;
        map.compact(budget, |from, to, len| {
            for i in 0..len {
                let owner = owners[(from + i) as usize];
                owners[(to + i) as usize] = owner;
                let table = &mut sequences[owner.seq as usize].tables[class.index()];
                table.set((owner.token - table.first) as usize, to + i);
            }
            plan.push(Effect::Copy { class, from, to, len, why });
        })
    }

    /// Compaction between steps, by the policy's rule and the driver's budget.
    pub(crate) fn compact_ahead(&mut self, budget: Budget, plan: &mut Plan) -> u32 {
        let Some(defrag) = self.defrag else { return 0 };
        let (mut left, why) = match defrag.when {
            When::Threshold => (u32::MAX, Why::Defrag),
            When::Step => (budget.cells, Why::Defrag),
            When::Background { cells } => (cells, Why::Background),
            When::Failure => return 0,
        };
        let mut total = 0;
        for class in self.geometry.class_ids() {
            let moved = match defrag.objective {
                Objective::HighWater if self.has_holes(class, defrag) => self.compact(class, left, why, plan),
                Objective::HighWater => 0,
                Objective::Runs => self.gather(class, defrag, left, why, plan),
            };
            if moved > 0 {
                plan.begin_defrag();
            }
            left -= moved;
            total += moved;
        }
        total
    }

    /// Whether too much of the used range is holes.
    fn has_holes(&self, class: ClassId, defrag: Defrag) -> bool {
        let map = &self.classes[class.index()].map;
        let (high, used) = (map.high_water(), map.cells() - map.free());
        defrag.is_more(high - used, high)
    }

    /// Gives sequences one run each again, then lowers those that lie highest; returns the cells copied.
    fn gather(&mut self, class: ClassId, defrag: Defrag, budget: u32, why: Why, plan: &mut Plan) -> u32 {
        let table = |cells: &Cells, seq: usize| {
            let table = cells.sequences[seq].tables.get(class.index());
            table.map_or((0, 0, 0), |table| {
                (table.runs(), table.cells().len() as u32, table.cells().front().copied().unwrap_or(0))
            })
        };
        let is_scattered = |&seq: &usize| {
            let (runs, len, _) = table(self, seq);
            runs > 1 && defrag.is_more(runs, len)
        };
        let scattered: Vec<usize> = (0..self.sequences.len()).filter(is_scattered).collect();
        let needed: u32 = scattered.iter().map(|&seq| table(self, seq).1).sum();
        let map = &self.classes[class.index()].map;
        let mut moved = 0;
        // Filling holes scatters others, so it has to be enough for all.
        if defrag.when == When::Threshold && map.largest_run() < needed && needed <= map.free() {
            moved += self.compact(class, u32::MAX, why, plan);
        }
        for seq in scattered {
            moved += self.move_whole(class, seq, budget - moved.min(budget), u32::MAX, why, plan);
        }
        let mut by_height: Vec<(u32, usize)> = Vec::new();
        if self.has_holes(class, defrag) {
            by_height.extend((0..self.sequences.len()).map(|seq| (table(self, seq).2, seq)));
            by_height.sort_unstable();
        }
        for (start, seq) in by_height.into_iter().rev() {
            moved += self.move_whole(class, seq, budget - moved.min(budget), start, why, plan);
        }
        moved
    }

    /// Moves a sequence to the lowest hole that takes it whole, if that begins below a cell and the budget
    /// allows; returns the cells copied.
    fn move_whole(
        &mut self,
        class: ClassId,
        seq: usize,
        budget: u32,
        below: u32,
        why: Why,
        plan: &mut Plan,
    ) -> u32 {
        let Class { map, owners } = &mut self.classes[class.index()];
        let Some(table) = self.sequences[seq].tables.get_mut(class.index()) else { return 0 };
        let len = table.cells().len() as u32;
        let hole = if len == 0 || len > budget { None } else { map.first_fit(len) };
        let Some(start) = hole.filter(|&start| start < below) else { return 0 };
        let mut runs: Vec<Run> = Vec::new();
        table.cells().iter().for_each(|&cell| push_run(&mut runs, cell, 1));
        map.occupy(start..start + len);
        map.vacate_all(&runs);
        let mut to = start;
        for run in runs {
            plan.push(Effect::Copy { class, from: run.start, to, len: run.len, why });
            to += run.len;
        }
        for (i, token) in (0..len).zip(table.first..) {
            table.set(i as usize, start + i);
            owners[(start + i) as usize] = Owner { seq: seq as u32, token };
        }
        len
    }
}
