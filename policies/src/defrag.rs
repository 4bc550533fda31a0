//! Compaction of batch runs: on failure, on a threshold, or a few cells per step.
//!
//! The mover fills the lowest hole with the tail of the highest used run, a run at a time: the
//! fewest cells that can be moved, in as few copies as the two ends allow. Sequences stay
//! interleaved (compaction is not locality). Source of the triggers: Ollama 0.6.6 compacts when a
//! batch finds no run; llama.cpp had a threshold (`--defrag-thold`) until its pull request 15473.
//!
//! Cost: O(1) per cell moved and 1/64 per cell looked at between the ends; the ground is
//! [`cells`](crate::cells).

use crate::cells::{Cells, Class};
use crate::plan::{Effect, Plan, Why};
use crate::policy::{Budget, ClassId, Geometry, Policy};
use crate::shift::{Amount, Shift};
use crate::spec::{Args, FIT, Knob, Spec, SpecError};

pub(crate) const SPEC: Spec = Spec {
    name: "defrag",
    about: "batch runs, compacted on failure, on a threshold, or bit by bit",
    source: "Ollama 0.6.6 kvcache defrag; llama.cpp --defrag-thold",
    cost: "O(1) per cell moved",
    faults: "",
    knobs: &[
        Knob { name: "when", about: "failure | threshold | step", default: "failure" },
        Knob {
            name: "share",
            about: "threshold, step: compact while more than this share of the used range is holes (%)",
            default: "10",
        },
        FIT,
        Knob { name: "+shift", about: "context shift at the limit, 4 tokens kept", default: "off" },
    ],
    make,
};

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let when = args.choice("when", 0, &["failure", "threshold", "step"])?;
    let percent = args.number("share", 1, 0..=100, 10)?;
    let mut cells = Cells::new(geometry, args.fit(2)?);
    cells.defrag = Some(match when {
        "threshold" => When::Threshold { percent },
        "step" => When::Step { percent },
        _ => When::Failure,
    });
    cells.shift = args.has_extension("shift").then_some(Shift { keep: 4, drop: Amount::Half });
    Ok(Box::new(cells))
}

/// What sets compaction off; each compacts on failure too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// A batch finds no run though there are enough free cells.
    Failure,
    /// Between steps, all of a class at once, when more than this share of its used range is holes.
    Threshold {
        /// Per cent.
        percent: u32,
    },
    /// Between steps, at most the driver's budget of cells, under the same condition.
    Step {
        /// Per cent.
        percent: u32,
    },
}

impl Cells {
    /// Moves at most `budget` cells of a class down into its holes; returns how many.
    pub(crate) fn compact(&mut self, class: ClassId, budget: u32, plan: &mut Plan) -> u32 {
        let Class { map, owners } = &mut self.classes[class.index()];
        let sequences = &mut self.sequences;
        map.compact(budget, |from, to, len| {
            for i in 0..len {
                let owner = owners[(from + i) as usize];
                owners[(to + i) as usize] = owner;
                let table = &mut sequences[owner.seq as usize].tables[class.index()];
                let index = (owner.token - table.first) as usize;
                table.cells[index] = to + i;
            }
            plan.push(Effect::Copy { class, from, to, len, why: Why::Defrag });
        })
    }

    /// Compaction between steps, by the policy's rule and the driver's budget.
    pub(crate) fn compact_ahead(&mut self, budget: Budget, plan: &mut Plan) -> u32 {
        let (percent, mut left) = match self.defrag {
            Some(When::Threshold { percent }) => (percent, u32::MAX),
            Some(When::Step { percent }) => (percent, budget.cells),
            Some(When::Failure) | None => return 0,
        };
        let mut total = 0;
        for class in self.geometry.class_ids() {
            let map = &self.classes[class.index()].map;
            let high = map.high_water();
            let used = self.geometry.classes[class.index()].cells - map.free();
            let holes = high - used;
            if left > 0 && u64::from(holes) * 100 > u64::from(high) * u64::from(percent) {
                plan.begin_defrag();
                let moved = self.compact(class, left, plan);
                left -= moved;
                total += moved;
            }
        }
        total
    }
}
