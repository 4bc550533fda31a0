//! Looks at a running replay now and then: usage over time, and a map of the cells.
//!
//! The run's length is not known beforehand, so samples are taken twice as far apart whenever
//! there are too many, and every second one is dropped: between half and all of the asked number
//! stay, evenly spread, the same for the same run.

use policies::scheduler::Scheduler;
use policies::{ClassId, Run, SeqId, Shape, Usage};

use crate::replay::{Observer, StepSummary};

/// The state of one class at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassSample {
    /// Cells and who has them.
    pub usage: Usage,
    /// Where the free ones lie.
    pub shape: Shape,
    /// Tokens that may still be read.
    pub live: u64,
    /// Tokens that idle slots keep for a next request; they count as held in `usage`.
    pub kept: u64,
    /// Runs that the tokens of all sequences lie in: as many as there are sequences where each lies in one.
    pub runs: u32,
}

/// What an address range held at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeState {
    /// Nothing.
    Free,
    /// Content without a holder.
    Cached,
    /// Tokens of this request that may still be read.
    Live(u64),
    /// Cells held for this request, or for somebody, that no token will be read from.
    Wasted(u64),
    /// At least one cell has K and V of another sequence in it than its books say; most of the
    /// range belongs to this request.
    Foreign(u64),
}

/// One moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Virtual time, ns.
    pub time_ns: u64,
    /// Sequences that hold cells.
    pub sequences: u32,
    /// Requests waiting.
    pub waiting: u32,
    /// Per class.
    pub classes: Vec<ClassSample>,
    /// The map: per class, one state per address range from 0 up; empty if no map is taken.
    pub map: Vec<Vec<RangeState>>,
}

/// An observer that samples.
pub struct Sampler {
    most: usize,
    map_rows: u32,
    interval_ns: u64,
    next_ns: u64,
    samples: Vec<Sample>,
}

impl Sampler {
    /// Takes at most `most` samples (at least 2); maps have `map_rows` address ranges, 0 for none.
    pub fn new(most: usize, map_rows: u32) -> Self {
        Sampler { most: most.max(2), map_rows, interval_ns: 1_000_000, next_ns: 0, samples: Vec::new() }
    }

    /// The samples, in order of time.
    pub fn into_samples(self) -> Vec<Sample> {
        self.samples
    }

    fn thin(&mut self) {
        let mut keep = false;
        self.samples.retain(|_| {
            keep = !keep;
            keep
        });
        self.interval_ns *= 2;
    }

    fn map(&self, scheduler: &dyn Scheduler, class: ClassId) -> Vec<RangeState> {
        let policy = scheduler.policy();
        let cells = policy.geometry().classes[class.index()].cells;
        let rows = self.map_rows.min(cells);
        let reach = policy.geometry().classes[class.index()].reach;
        let ranges = rows as usize;
        // Per range: cells that are live, held, cached; and the request that holds most of it.
        let (mut live, mut held, mut cached) = (vec![0u32; ranges], vec![0u32; ranges], vec![0u32; ranges]);
        let mut owner: Vec<(u64, u32)> = vec![(0, 0); ranges];
        let mut runs: Vec<Run> = Vec::new();
        for (seq, request) in scheduler.sequences() {
            let tokens = policy.layout(class, seq, &mut runs);
            let mut skip = reach.first_needed(tokens.end).saturating_sub(tokens.start);
            for run in &runs {
                let past = skip.min(run.len);
                skip -= past;
                spread(run.start + past, run.len - past, cells, rows, |row, count| live[row] += count);
            }
            policy.holding(class, seq, &mut runs);
            for run in &runs {
                spread(run.start, run.len, cells, rows, |row, count| {
                    held[row] += count;
                    if count > owner[row].1 {
                        owner[row] = (request, count);
                    }
                });
            }
        }
        policy.caching(class, &mut runs);
        for run in &runs {
            spread(run.start, run.len, cells, rows, |row, count| cached[row] += count);
        }
        let mut foreign = vec![false; ranges];
        policy.foreign_cells(class, &mut runs);
        for run in &runs {
            spread(run.start, run.len, cells, rows, |row, _| foreign[row] = true);
        }
        let state = |row: usize| {
            // However few they are, they are what the reader looks for.
            if foreign[row] {
                return RangeState::Foreign(owner[row].0);
            }
            let first = |row: usize| (row as u64 * u64::from(cells) / u64::from(rows)) as u32;
            let wasted = held[row].saturating_sub(live[row]);
            let idle = (first(row + 1) - first(row)).saturating_sub(held[row] + cached[row]);
            let most = live[row].max(wasted).max(cached[row]).max(idle);
            match most {
                _ if most == live[row] && most > 0 => RangeState::Live(owner[row].0),
                _ if most == wasted && most > 0 => RangeState::Wasted(owner[row].0),
                _ if most == cached[row] && most > 0 => RangeState::Cached,
                _ => RangeState::Free,
            }
        };
        (0..ranges).map(state).collect()
    }
}

/// Distributes `len` cells from `start` over the address ranges they fall into.
fn spread(start: u32, len: u32, cells: u32, rows: u32, mut add: impl FnMut(usize, u32)) {
    let (mut at, end) = (u64::from(start), u64::from(start) + u64::from(len));
    while at < end && at < u64::from(cells) {
        // The row of a cell, and the first cell of the next row: rows differ by one cell at most.
        let row = ((at + 1) * u64::from(rows)).div_ceil(u64::from(cells)) - 1;
        let next = (row + 1) * u64::from(cells) / u64::from(rows);
        let stop = next.min(end).max(at + 1);
        add(row as usize, (stop - at) as u32);
        at = stop;
    }
}

impl Observer for Sampler {
    fn stepped(&mut self, now_ns: u64, scheduler: &mut dyn Scheduler, step: StepSummary<'_>) {
        if now_ns < self.next_ns {
            return;
        }
        scheduler.settle();
        let policy = scheduler.policy();
        let sequences = scheduler.sequences();
        let mut runs: Vec<Run> = Vec::new();
        let mut runs_of = |class: ClassId| -> u32 {
            let of_sequence = |&(seq, _): &(SeqId, u64)| {
                policy.layout(class, seq, &mut runs);
                runs.len() as u32
            };
            sequences.iter().map(of_sequence).sum()
        };
        let classes = policy.geometry().class_ids().zip(step.live.iter().zip(step.kept));
        let classes = classes.map(|(class, (&live, &kept))| ClassSample {
            usage: policy.usage(class),
            shape: policy.shape(class),
            live,
            kept,
            runs: runs_of(class),
        });
        let sample = Sample {
            time_ns: now_ns,
            sequences: scheduler.sequences_len() as u32,
            waiting: scheduler.waiting() as u32,
            classes: classes.collect(),
            map: if self.map_rows == 0 {
                Vec::new()
            } else {
                policy.geometry().class_ids().map(|class| self.map(scheduler, class)).collect()
            },
        };
        self.samples.push(sample);
        if self.samples.len() > self.most {
            self.thin();
        }
        self.next_ns = (now_ns / self.interval_ns + 1) * self.interval_ns;
    }
}
