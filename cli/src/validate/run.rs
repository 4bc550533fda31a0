//! A case on the engine, and the same case from the recorded times of its steps.

use std::error::Error;
use std::thread::sleep;
use std::time::{Duration, Instant};

use engine::serve::{Answer, Dialogue, Serving, Source, cells_for, fingerprint};
use engine::{Backend, Batch, EngineError, Output, Span, View, Wanted};
use policies::scheduler::{Event, Scheduler};
use policies::{Attention, Geometry, Run};
use sim::cost::{CostModel, Work};
use sim::{Executor, Observer, Priced, StandIn, Totals};
use traces::{Request, Served};

use super::Clock;
use crate::engine_setup::EngineSetup;
use crate::experiment::{Experiment, Telling};
use crate::trouble::{Trouble, usage};

/// Steps of a prompt that are computed before anything is timed.
const WARM_UP_STEPS: u32 = 3;

/// A step as it was executed.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its size.
    pub work: Work,
    /// How long it took.
    pub step_ns: u64,
    /// The part that copies, rotations and transfers took.
    pub moves_ns: u64,
    /// Its batch and its cells.
    pub fingerprint: u64,
    /// What its tokens looked at, where the policy wants to know.
    pub attention: Vec<Attention>,
}

/// What a run leaves behind.
pub struct Ran {
    /// Its sums.
    pub totals: Totals,
    /// Its requests, in the order in which they ended.
    pub served: Vec<Served>,
}

/// A run on the engine.
pub struct Measured {
    /// The run.
    pub ran: Ran,
    /// Its steps.
    pub steps: Vec<Recorded>,
    /// Requests that read K and V of another context, which no policy without faults makes them do.
    pub strange: u64,
}

type Failure = Box<dyn Error + Send + Sync>;

/// Collects requests.
#[derive(Default)]
struct Requests(Vec<Served>);

impl Observer for Requests {
    fn served(&mut self, served: &Served) {
        self.0.push(served.clone());
    }
}

/// The engine as an executor.
struct Live<'a> {
    serving: Serving<'a>,
    clock: Clock,
    started: Instant,
    /// The time of the loop, ns.
    now_ns: u64,
    reload_ns: u64,
    steps: Vec<Recorded>,
    /// What went wrong before a step could say so.
    failure: Option<EngineError>,
}

impl Live<'_> {
    /// In real time: waits until the loop's time has come.
    fn catch_up(&self) {
        let now = Duration::from_nanos(self.now_ns);
        if self.clock == Clock::Real
            && let Some(rest) = now.checked_sub(self.started.elapsed())
        {
            sleep(rest);
        }
    }
}

impl Executor for Live<'_> {
    fn submitted(&mut self, request: &Request) {
        if let Err(error) = self.serving.submitted(request.id) {
            self.failure.get_or_insert(error);
        }
    }

    fn happened(&mut self, event: &Event) {
        if *event == Event::Crashed {
            self.now_ns += self.reload_ns;
        }
        self.serving.happened(event);
    }

    fn idle(&mut self, until_ns: u64) {
        self.now_ns = until_ns;
        self.catch_up();
    }

    fn run(&mut self, work: &Work, scheduler: &dyn Scheduler) -> Result<u64, Failure> {
        if let Some(error) = self.failure.take() {
            return Err(error.into());
        }
        self.catch_up();
        let timing = self.serving.run(scheduler)?;
        let moves_ns = nanos(timing.apply);
        let step_ns = match self.clock {
            Clock::Fast => moves_ns + nanos(timing.compute),
            Clock::Real => nanos(self.started.elapsed()).saturating_sub(self.now_ns),
        };
        self.now_ns += step_ns;
        let fingerprint = fingerprint(scheduler);
        let attention = self.serving.take_attention();
        self.steps.push(Recorded { work: work.clone(), step_ns, moves_ns, fingerprint, attention });
        Ok(step_ns)
    }

    fn attention(&mut self, _: &dyn Scheduler, _: &mut StandIn, into: &mut Vec<Attention>) {
        into.extend(self.steps.last().into_iter().flat_map(|step| step.attention.iter().cloned()));
    }

    fn moves_ns(&mut self, _: &Work, _: u64) -> u64 {
        self.steps.last().map_or(0, |step| step.moves_ns)
    }
}

fn nanos(time: Duration) -> u64 {
    time.as_nanos().min(u128::from(u64::MAX)) as u64
}

/// Recorded steps as an executor: batches have to be those that were recorded.
struct Replayed<'a> {
    steps: &'a [Recorded],
    next: usize,
    /// Whether the policy is told of every token, so that its cells can be compared.
    with_cells: bool,
}

impl Executor for Replayed<'_> {
    fn run(&mut self, work: &Work, scheduler: &dyn Scheduler) -> Result<u64, Failure> {
        let step = self.steps.get(self.next).ok_or("the engine had no such step")?;
        self.next += 1;
        if !same_work(work, &step.work) {
            return Err(format!("the batch is {work:?}, the engine's was {:?}", step.work).into());
        }
        if self.with_cells && fingerprint(scheduler) != step.fingerprint {
            return Err("the cells are not those of the engine".into());
        }
        Ok(step.step_ns)
    }

    fn attention(&mut self, _: &dyn Scheduler, _: &mut StandIn, into: &mut Vec<Attention>) {
        into.extend_from_slice(&self.steps[self.next - 1].attention);
    }

    fn moves_ns(&mut self, _: &Work, _: u64) -> u64 {
        self.steps[self.next - 1].moves_ns
    }
}

fn same_work(a: &Work, b: &Work) -> bool {
    (a.tokens, a.sequences, a.samples, a.decodes) == (b.tokens, b.sequences, b.samples, b.decodes)
        && (&a.prefills, &a.decode_reads, &a.walked) == (&b.prefills, &b.decode_reads, &b.walked)
        && (&a.scored, &a.turned) == (&b.scored, &b.turned)
        && (&a.decode_spared, &a.context_spared) == (&b.decode_spared, &b.context_spared)
        && a.moves == b.moves
}

/// Runs cases of one experiment on the engine.
pub struct Bench<'a> {
    pub experiment: &'a Experiment,
    pub engine: &'a EngineSetup,
    pub clock: Clock,
    /// Where the tokens come from.
    pub source: Source<'a>,
    pub seed: u64,
}

impl Bench<'_> {
    /// What computes a case, in words.
    pub fn device(&self, setting: usize) -> Result<String, Trouble> {
        let case = &self.experiment.settings[setting];
        let backend = self.engine.backend_for(case.policy(), &case.geometry(), case.kv()).map_err(usage)?;
        Ok(self.engine.device(&*backend))
    }

    /// A case on the engine.
    pub fn measure(&self, setting: usize, dialogue: &Dialogue) -> Result<Measured, Trouble> {
        let case = &self.experiment.settings[setting];
        let geometry = cells_for(case.policy(), &case.geometry());
        let told = case.geometry();
        let mut backend = self.engine.backend_for(case.policy(), &told, case.kv()).map_err(usage)?;
        warm_up(&mut *backend, &geometry)?;
        let mut live = Live {
            serving: Serving::new(&mut *backend, dialogue, Wanted::Argmax).timed_by(self.engine.clock),
            clock: self.clock,
            started: Instant::now(),
            now_ns: 0,
            reload_ns: case.reload_ns(),
            steps: Vec::new(),
            failure: None,
        };
        let ran = self.drive(setting, Telling::Writes, &mut live)?;
        let answers = live.serving.into_answers();
        let is_strange = |answer: &&Answer| answer.strange_steps > 0 && answer.shifted == 0;
        let strange = answers.values().filter(is_strange).count() as u64;
        Ok(Measured { ran, steps: live.steps, strange })
    }

    fn drive(&self, setting: usize, telling: Telling, executor: &mut dyn Executor) -> Result<Ran, Trouble> {
        let mut requests = Requests::default();
        let totals = self.experiment.drive_for(setting, self.seed, telling, executor, &mut requests)?;
        Ok(Ran { totals, served: requests.0 })
    }

    /// What the simulator says of a case.
    pub fn predict(&self, setting: usize, cost: &dyn CostModel) -> Result<Ran, Trouble> {
        self.drive(setting, Telling::AsSet, &mut Priced(cost))
    }

    /// Replays the times of the engine's steps through the simulator, once told of every token and once
    /// as `compare` runs it. The first thing that is not equal, if anything is not.
    pub fn lock_step(&self, setting: usize, measured: &Measured) -> Option<String> {
        [Telling::Everything, Telling::AsSet].into_iter().find_map(|telling| {
            let with_cells = telling == Telling::Everything;
            let mut replayed = Replayed { steps: &measured.steps, next: 0, with_cells };
            let ran = match self.drive(setting, telling, &mut replayed) {
                Ok(ran) => ran,
                Err(trouble) => return Some(trouble.text()),
            };
            if replayed.next != measured.steps.len() {
                return Some(format!("{} steps, the engine had {}", replayed.next, measured.steps.len()));
            }
            difference(&ran, &measured.ran)
        })
    }
}

/// The first number in which two runs differ.
fn difference(replayed: &Ran, engine: &Ran) -> Option<String> {
    let (a, b) = (&replayed.totals, &engine.totals);
    let numbers = [
        ("event hash", a.event_hash, b.event_hash),
        ("requests", replayed.served.len() as u64, engine.served.len() as u64),
        ("steps", a.steps, b.steps),
        ("preemptions", a.preemptions, b.preemptions),
        ("defrag passes", a.defrag_passes, b.defrag_passes),
        ("cells copied", a.cells_copied, b.cells_copied),
        ("cells rotated", a.cells_rotated, b.cells_rotated),
        ("cells swapped", a.cells_swapped, b.cells_swapped),
        ("crashes", a.crashes, b.crashes),
        ("corrupted steps", a.corrupted_steps, b.corrupted_steps),
        ("recomputed tokens", a.recomputed_tokens, b.recomputed_tokens),
        ("cached tokens", a.cached_tokens, b.cached_tokens),
        ("time in moves", a.stall_ns, b.stall_ns),
        ("time in steps", a.busy_ns, b.busy_ns),
    ];
    if let Some((name, a, b)) = numbers.into_iter().find(|(_, a, b)| a != b) {
        return Some(format!("{name}: {a}, the engine had {b}"));
    }
    let unequal = replayed.served.iter().zip(&engine.served).find(|(a, b)| a != b);
    unequal.map(|(a, b)| format!("{a:?}, the engine had {b:?}"))
}

/// Computes some steps of a prompt that nobody asked for: the first ones of a process take longer.
fn warm_up(backend: &mut dyn Backend, geometry: &Geometry) -> Result<(), Trouble> {
    let cells = geometry.classes.iter().map(|class| class.cells).min().unwrap_or(0);
    let most = cells.min(geometry.context_max);
    let mut output = Output::default();
    for step in 0..WARM_UP_STEPS {
        let first = step * geometry.batch_max;
        let tokens = geometry.batch_max.min(most.saturating_sub(first));
        if tokens == 0 {
            break;
        }
        let view = View { first: 0, runs: vec![Run { start: 0, len: first + tokens }] };
        let span = Span {
            rows: 0..tokens as usize,
            first,
            offset: 0,
            samples: 1,
            views: vec![view; geometry.classes.len()],
            ballot: None,
        };
        let walks = vec![None; geometry.classes.len()];
        let batch =
            Batch { tokens: vec![1; tokens as usize], spans: vec![span], wanted: Wanted::Argmax, walks };
        backend.step(&batch, &mut output)?;
    }
    Ok(())
}
