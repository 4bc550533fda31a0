//! A bound: single cells anywhere, and nobody is admitted who would not fit to the end.
//!
//! The policy knows how long every sequence will become. A new one is admitted only if, all
//! decoding one token a step from now on, no class ever runs over; so nothing is preempted,
//! moved or rounded up. It bounds what placement and admission can reach in the order of arrival.
//!
//! Cost: O(n log n) in the sequences present per admission, O(1) per token.

use crate::delegate::leave_to;
use crate::paged::Paged;
use crate::plan::Plan;
use crate::policy::{Append, ClassId, Full, Geometry, Intent, Policy, Reach, SeqId};
use crate::spec::{Args, Spec, SpecError};

pub(crate) const SPEC: Spec = Spec {
    name: "clairvoyant",
    about: "bound: single cells, admits only what fits to its end, knows all lengths",
    source: "upper bound on placement and admission",
    cost: "O(n log n) per admission",
    faults: "",
    knobs: &[],
    make,
};

fn make(_: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    Ok(Box::new(Clairvoyant { cells: Paged::new(geometry, 1, None), futures: Vec::new() }))
}

/// What is known of a sequence.
#[derive(Clone, Copy, Debug, Default)]
struct Future {
    open: bool,
    /// Whether it has been admitted: its first tokens were placed.
    admitted: bool,
    prompt: u32,
    total: u32,
}

struct Clairvoyant {
    cells: Paged,
    futures: Vec<Future>,
}

impl Clairvoyant {
    /// Most cells that sequences (steps left, tokens now), longest first, hold at one time. Demand
    /// peaks where somebody ends, when all who stay longer have grown as much.
    fn peak(&self, reach: Reach, present: &[(u32, u32)]) -> u64 {
        match reach {
            Reach::Full => {
                let mut now = 0;
                let ends = present.iter().zip(1u64..).map(|(&(steps, len), count)| {
                    now += u64::from(len);
                    now + count * u64::from(steps)
                });
                ends.max().unwrap_or(0)
            }
            // A window is as good as full once a prompt is in, and a prompt needs a batch beside it.
            Reach::Window(_) => {
                let held = present.iter().map(|&(steps, len)| u64::from(reach.clip(len + steps)));
                held.sum::<u64>() + u64::from(self.geometry().batch_max)
            }
        }
    }

    /// Whether everyone admitted and the newcomers of the batch fit until each has ended.
    fn check_future(&self, batch: &[Append]) -> Result<(), Full> {
        let newcomer = |id: usize| batch.iter().any(|append| append.seq.index() == id);
        if !batch.iter().any(|append| !self.futures[append.seq.index()].admitted) {
            return Ok(());
        }
        // (steps it still takes, tokens it has once its prompt is in), longest first.
        let mut present: Vec<(u32, u32)> = Vec::new();
        for (id, future) in self.futures.iter().enumerate() {
            if future.open && (future.admitted || newcomer(id)) {
                let len = self.cells.len(SeqId(id as u32)).max(future.prompt);
                present.push((future.total.saturating_sub(len), len));
            }
        }
        present.sort_unstable_by(|a, b| b.cmp(a));
        for (id, class) in self.cells.geometry().classes.iter().enumerate() {
            let demand = self.peak(class.reach, &present);
            if demand > u64::from(class.cells) {
                let free = self.cells.usage(ClassId(id as u8)).free;
                let needed = demand.min(u64::from(u32::MAX)) as u32;
                return Err(Full { class: ClassId(id as u8), needed, free, largest_free_run: free });
            }
        }
        Ok(())
    }
}

impl Policy for Clairvoyant {
    leave_to!(cells: geometry, truncate, restart, defer, retire, waiting);
    leave_to!(cells: len, layout, holding, usage, shape, audit);

    fn remembers_intent(&self) -> bool {
        true
    }

    fn open(&mut self, seq: SeqId, intent: &Intent) -> u32 {
        if self.futures.len() <= seq.index() {
            self.futures.resize_with(seq.index() + 1, Future::default);
        }
        let total = intent.total_tokens.max(intent.prompt_tokens);
        self.futures[seq.index()] =
            Future { open: true, admitted: false, prompt: intent.prompt_tokens, total };
        self.cells.open(seq, intent)
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        self.check_future(batch)?;
        self.cells.place(batch, plan)?;
        for append in batch {
            self.futures[append.seq.index()].admitted = true;
        }
        Ok(())
    }

    fn release(&mut self, seq: SeqId) {
        self.futures[seq.index()] = Future::default();
        self.cells.release(seq);
    }
}
