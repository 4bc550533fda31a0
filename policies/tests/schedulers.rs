//! The schedulers without a clock: random jobs on shadow memory, and their rules one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use policies::scheduler::victim::{Fifo, Lcf, Lifo, Mcf, VictimRule};
use policies::scheduler::{
    Continuous, ContinuousKnobs, Event, Job, Keep, Limits, OnFull, Preemption, Reserve, Runner, RunnerKind,
    RunnerKnobs, Scheduler, Unbreakable,
};
use policies::{
    Attention, Content, Effect, Geometry, LayerClass, Plan, Policy, Reach, Run, SeqId, Shadow, make_policy,
};
use proptest::prelude::*;

fn limits() -> Limits {
    Limits {
        num_ctx: 48,
        num_parallel: 4,
        num_batch: 12,
        queue_max: None,
        maintain_cells: 6,
        fast_forward: false,
    }
}

fn policy(spec: &str, limits: &Limits, local: u32, global: u32) -> Box<dyn Policy> {
    let class = |name: &str, reach, cells| LayerClass { name: name.into(), layers: 1, reach, cells };
    let geometry = Geometry {
        classes: vec![class("local", Reach::Window(6), local), class("global", Reach::Full, global)],
        context_max: limits.num_ctx,
        batch_max: limits.num_batch,
        sequences_max: limits.num_parallel,
    };
    make_policy(spec, &geometry).expect("the spec is good")
}

fn job(id: u64, prompt_tokens: u32, output_tokens: u32) -> Job {
    Job::new(id, prompt_tokens, output_tokens)
}

fn chain(id: u64, ids: &[u64], prompt_tokens: u32) -> Content {
    Content { chain: Arc::from(ids), chain_tokens: 4, chain_end: prompt_tokens, own: id }
}

/// What is known of a request from outside: its job, its tokens, how it ended.
struct Known {
    job: Job,
    /// Identity of each token it has had in the cache, and would have again.
    tokens: Vec<u64>,
    /// Tokens cut out of the prompt, and before them.
    cut: u32,
    keep: u32,
    shifted: bool,
    ended: bool,
    /// Tokens it found in the cells of its slot.
    cached: u32,
    /// Whether it took another request's K and V to host memory and back as its own.
    tainted: bool,
}

/// Where the name of a token says whose it is, for policies whose tokens may turn up anywhere.
const LIFE: u32 = 32;

impl Known {
    fn identity(&self, index: u32) -> u64 {
        let content = &self.job.content;
        let index = if index < self.keep { index } else { index + self.cut };
        match content.chain.get((index / content.chain_tokens) as usize) {
            Some(id) if index < content.chain_end && !self.shifted => id << 16 | u64::from(index),
            _ => 1 << 60 | u64::from(self.shifted) << 59 | content.own << 16 | self.tokens.len() as u64,
        }
    }
}

/// Drives a scheduler as an engine would: every plan is executed, every cell is checked.
struct Engine {
    scheduler: Box<dyn Scheduler>,
    limits: Limits,
    /// Whether the whole prompt is to stay where tokens are dropped, instead of 4.
    keeps_prompt: bool,
    /// Most tokens of a batch without images.
    batch: u32,
    shadow: Shadow,
    known: BTreeMap<u64, Known>,
    /// Who had which sequence at the end of the step before.
    before: BTreeMap<u32, u64>,
    serial: u64,
    /// Whether the policy reproduces faults on purpose.
    faulty: bool,
    /// Whether a copy has turned cells over, so that tokens may not be where they should.
    turned: bool,
    /// Whether the scheduler places all sequences of a step at once.
    one_batch: bool,
    /// All requests that ever had a sequence.
    holders: BTreeMap<u32, Vec<u64>>,
}

type Outcome = Result<(), TestCaseError>;

impl Engine {
    fn submit(&mut self, job: Job) -> Outcome {
        let known = Known {
            job: job.clone(),
            tokens: Vec::new(),
            cut: 0,
            keep: if self.keeps_prompt { job.prompt_tokens.min(self.limits.num_ctx - 1) } else { 4 },
            shifted: false,
            ended: false,
            cached: 0,
            tainted: false,
        };
        self.known.insert(job.id, known);
        self.scheduler.submit(job);
        self.take_events()
    }

    fn take_events(&mut self) -> Outcome {
        let mut events = Vec::new();
        self.scheduler.take_events(&mut events);
        for event in events {
            match event {
                Event::Truncated { id, tokens, .. } => {
                    let known = self.known.get_mut(&id).expect("it was submitted");
                    known.job.prompt_tokens -= tokens;
                    known.cut = tokens;
                }
                Event::Shifted { id, at, tokens, .. } => {
                    let known = self.known.get_mut(&id).expect("it was submitted");
                    let (policy, at) = (self.scheduler.policy(), at as usize);
                    let keep = policy.head_kept(known.keep) as usize;
                    prop_assert!(at == keep || at > keep && policy.needs_scores());
                    known.tokens.drain(at..at + tokens as usize);
                    known.shifted = true;
                }
                Event::Finished { id, output_tokens, at_limit } => {
                    self.end(id)?;
                    let known = &self.known[&id];
                    let asked = known.job.output_tokens;
                    let room = self.limits.num_ctx - known.job.prompt_tokens + 1;
                    prop_assert!(output_tokens <= asked);
                    if !known.shifted && !self.scheduler.policy().reduces() {
                        prop_assert_eq!(
                            (output_tokens, at_limit),
                            (asked.min(room), asked > room),
                            "request {}",
                            id
                        );
                        // The last token of the answer is never computed.
                        let len = known.job.prompt_tokens + output_tokens - 1;
                        prop_assert_eq!(known.tokens.len() as u32, len, "tokens of request {}", id);
                    }
                }
                Event::Failed { id, .. } | Event::Rejected { id, .. } => self.end(id)?,
                Event::Admitted { id, cached_tokens } => {
                    self.known.get_mut(&id).expect("it was submitted").cached = cached_tokens;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn end(&mut self, id: u64) -> Outcome {
        let known = self.known.get_mut(&id).expect("it was submitted");
        prop_assert!(!std::mem::replace(&mut known.ended, true), "request {} ended twice", id);
        Ok(())
    }

    /// One step; false if there is nothing to do.
    fn step(&mut self) -> Result<bool, TestCaseError> {
        let Some(step) = self.scheduler.next().cloned() else {
            self.take_events()?;
            return Ok(false);
        };
        self.take_events()?;
        let now: BTreeMap<u32, u64> =
            self.scheduler.sequences().into_iter().map(|(seq, id)| (seq.0, id)).collect();
        prop_assert!(now.len() as u32 <= self.limits.num_parallel);
        for (&seq, id) in &now {
            let len = self.scheduler.policy().len(SeqId(seq));
            prop_assert!(len <= self.limits.num_ctx, "request {} has {} tokens", id, len);
            let holders = self.holders.entry(seq).or_default();
            if self.faulty && holders.last() != Some(id) {
                // What it found in the slot has the names of who was there before.
                let before = holders.last().map_or(&[][..], |before| &self.known[before].tokens);
                let found = self.known[id].cached as usize;
                if self.known[id].tokens.is_empty() && found > 0 {
                    let found = before[..found].to_vec();
                    self.known.get_mut(id).expect("it was submitted").tokens = found;
                }
                holders.push(*id);
            }
            let known = self.known.get_mut(id).expect("it was submitted");
            while known.tokens.len() < len as usize {
                self.serial += 1;
                let index = known.tokens.len() as u32;
                let token = match (self.faulty, known.shifted) {
                    (true, _) => id << LIFE | self.serial,
                    (false, true) => 1 << 61 | self.serial,
                    (false, false) => known.identity(index),
                };
                known.tokens.push(token);
            }
        }
        // Host memory is looked up by request: a sequence's number is another's by the time it is back.
        // What comes back from there is not computed, so its writes write nothing.
        let restored = |of: SeqId| {
            step.plan
                .effects()
                .iter()
                .any(|effect| matches!(*effect, Effect::SwapIn { seq, .. } if seq == of))
        };
        let mut plan = Plan::new();
        for &effect in step.plan.effects() {
            self.turned |= self.faulty && matches!(effect, Effect::Copy { len, .. } if len > 1);
            if matches!(effect, Effect::Write { seq, .. } if restored(seq)) {
                continue;
            }
            let request =
                |of: &BTreeMap<u32, u64>, seq: SeqId| SeqId(of.get(&seq.0).map_or(u32::MAX, |&id| id as u32));
            plan.push(match effect {
                Effect::Write { class, seq, first, run } => {
                    Effect::Write { class, seq: request(&now, seq), first, run }
                }
                Effect::SwapOut { class, seq, first, run } => {
                    Effect::SwapOut { class, seq: request(&self.before, seq), first, run }
                }
                Effect::SwapIn { class, seq, first, run } => {
                    Effect::SwapIn { class, seq: request(&now, seq), first, run }
                }
                other => other,
            });
        }
        let known = &self.known;
        let token_of =
            |id: SeqId, token| known.get(&u64::from(id.0)).map_or(0, |known| known.tokens[token as usize]);
        let policy = self.scheduler.policy();
        let seq_of = |id: SeqId| now.iter().find(|(_, of)| **of == u64::from(id.0)).map(|(&seq, _)| seq);
        let offset_of = |id: SeqId| seq_of(id).map_or(0, |seq| policy.offset(SeqId(seq)));
        self.shadow.run_at(&plan, offset_of, token_of);
        let swapped_out = step.plan.effects().iter().filter_map(|effect| match effect {
            Effect::SwapOut { seq, .. } => self.before.get(&seq.0),
            _ => None,
        });
        for id in swapped_out.filter(|_| self.turned).copied().collect::<Vec<_>>() {
            self.known.get_mut(&id).expect("it was submitted").tainted = true;
        }
        self.check_foreign(&now)?;
        for (&seq, id) in now.iter().filter(|_| !self.turned) {
            let tokens = &self.known[id].tokens;
            let checked =
                self.shadow.check(self.scheduler.policy(), SeqId(seq), |token| tokens[token as usize]);
            prop_assert_eq!(checked, Ok(()), "request {}", id);
        }
        self.check_books(&step)?;
        self.look(&step);
        self.before = now;
        self.scheduler.done();
        self.take_events()?;
        Ok(true)
    }

    /// Tells the policy what the step's tokens looked at, where it wants to know.
    fn look(&mut self, step: &policies::scheduler::Step) {
        if !self.scheduler.policy().needs_scores() {
            return;
        }
        let chunks = step.prefills.iter().map(|chunk| (chunk.seq, chunk.tokens));
        for (seq, tokens) in chunks.chain(step.decoding.iter().map(|&seq| (seq, 1))) {
            let policy = self.scheduler.policy();
            let len = policy.len(seq);
            let queries = policy.wants_attention(seq, len - tokens..len);
            self.serial += 1;
            let got = |token: u32| u64::from(token * 7 % 5) << (self.serial % 20);
            let mass = (0..queries.end).map(got).collect();
            self.scheduler.attended(&Attention { seq, queries, mass });
        }
    }

    /// Attention walks all cells of the sequences in the batch.
    fn check_walk(&self, step: &policies::scheduler::Step) -> Outcome {
        let policy = self.scheduler.policy();
        let mut runs: Vec<Run> = Vec::new();
        for (class, walk) in policy.geometry().class_ids().zip(&step.walks) {
            let seqs = step.decoding.iter().copied().chain(step.prefills.iter().map(|chunk| chunk.seq));
            for seq in seqs.filter(|_| self.one_batch && !step.reload) {
                policy.holding(class, seq, &mut runs);
                for run in &runs {
                    let is_inside = walk.start <= run.start && run.cells().end <= walk.cells().end;
                    prop_assert!(is_inside, "{:?} is walked, {:?} is read", walk, run);
                }
            }
            prop_assert!(walk.cells().end <= policy.geometry().classes[class.index()].cells);
        }
        Ok(())
    }

    /// The policy knows of every cell whose K and V come from a request that never had the sequence.
    fn check_foreign(&self, now: &BTreeMap<u32, u64>) -> Outcome {
        let policy = self.scheduler.policy();
        let mut runs = Vec::new();
        for (&seq, id) in now.iter().filter(|_| self.faulty) {
            let mut foreign = 0;
            for class in policy.geometry().class_ids() {
                policy.holding(class, SeqId(seq), &mut runs);
                let payloads = runs.iter().flat_map(|run| run.cells());
                let writers =
                    payloads.filter_map(|cell| self.shadow.payload(class, cell)).map(|p| p.token >> LIFE);
                foreign += writers.filter(|writer| !self.holders[&seq].contains(writer)).count() as u32;
            }
            let told = policy.foreign(SeqId(seq));
            prop_assert!(told >= foreign || self.known[id].tainted, "{} foreign, told {}", foreign, told);
            prop_assert!(told == 0 || self.turned);
        }
        Ok(())
    }

    fn check_books(&self, step: &policies::scheduler::Step) -> Outcome {
        let policy = self.scheduler.policy();
        let pieces = step.prefills.iter().any(|chunk| chunk.tokens > self.limits.num_batch);
        prop_assert!(step.tokens() <= self.batch || pieces, "{} tokens in a batch", step.tokens());
        let walks = policy.reading().walks();
        if self.faulty {
            self.check_walk(step)?;
        } else {
            prop_assert_eq!(step.walks.len(), if walks { policy.geometry().classes.len() } else { 0 });
            for (class, walk) in policy.geometry().class_ids().zip(&step.walks) {
                let is_all = walk.cells().end >= policy.shape(class).high_water;
                prop_assert!(is_all || step.reload || step.tokens() == 0, "{:?} is walked", walk);
            }
        }
        for (layers, &reads) in policy.geometry().classes.iter().zip(&step.decode_reads) {
            let lens = step.decoding.iter().map(|&seq| u64::from(layers.reach.clip(policy.len(seq))));
            // After a crash nothing is computed.
            prop_assert!(step.reload || reads == lens.sum::<u64>(), "cells read: {}", reads);
        }
        Ok(())
    }
}

fn all(spec: &str, local: u32, global: u32) -> Vec<(String, Box<dyn Scheduler>)> {
    let limits = limits();
    let policy = || policy(spec, &limits, local, global);
    let mut all: Vec<(String, Box<dyn Scheduler>)> = Vec::new();
    for preemption in [Preemption::Recompute, Preemption::Swap] {
        for (reserve, victim, pipeline) in [
            (Reserve::Prompt, &Lifo as &dyn VictimRule, 0),
            (Reserve::None, &Lifo, 0),
            (Reserve::None, &Fifo, 0),
            (Reserve::None, &Mcf, 1),
            (Reserve::Full, &Lifo, 2),
            (Reserve::None, &Lcf, 1),
        ] {
            let knobs =
                ContinuousKnobs { preemption, reserve, victim, pipeline, ..ContinuousKnobs::default() };
            all.push((format!("{spec} {knobs:?}"), Box::new(Continuous::new(policy(), limits, knobs, true))));
        }
    }
    for on_full in [OnFull::Crash, OnFull::FailOne, OnFull::Halve, OnFull::Wait] {
        for keep_slots in [true, false] {
            let knobs = RunnerKnobs { on_full, keep_slots, ..RunnerKnobs::default() };
            all.push((format!("{spec} {knobs:?}"), Box::new(Runner::new(policy(), limits, knobs, true))));
        }
    }
    for (multi_user, num_keep, kind) in [
        (true, Keep::Tokens(4), RunnerKind::Ollama),
        (false, Keep::Prompt, RunnerKind::Ollama),
        (false, Keep::Tokens(4), RunnerKind::Llama),
    ] {
        let knobs =
            RunnerKnobs { multi_user, num_keep, kind, on_full: OnFull::FailOne, ..RunnerKnobs::default() };
        all.push((format!("{spec} {knobs:?}"), Box::new(Runner::new(policy(), limits, knobs, true))));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_step_finds_its_tokens_in_the_cells_that_the_plans_filled(
        jobs in prop::collection::vec((0..6u32, 0..3u64, 1..60u32, 1..60u32), 1..25),
        local in 30..60u32,
        global in 50..120u32,
    ) {
        for spec in ["paged:3", "paged:4+prefix", "paged:3+prefix(s3fifo:cow)", "paged:5+prefix(belady)", "radix", "tiered:4:64", "paged:3+swap", "paged:4+prefix(lru)+swap", "paged:3+prefix(s3fifo)+tiered(64:16)+swap", "paged:2+prefix+swap(12)", "radix:6:lru:cow", "radix:3:cost:cow", "contiguous:pow2", "contiguous:exact", "contiguous:run", "shift", "shift:drop=3", "truncate", "ring", "ring:4", "sinks", "sinks+unrotated", "ring:4+unrotated", "shift+unrotated", "heavy:12", "heavy:16:3:drop=4+unrotated", "heavy:16:3:drop=4", "snap:9:5", "ladder:4", "defrag:step:0", "clairvoyant", "ollama-0.6.6", "ollama-0.6.6:shift=no", "ollama-0.12.4", "llama-unified:8", "llama-unified:5:32:no"] {
            for (name, scheduler) in all(spec, local, global) {
                let faulty = spec.starts_with("ollama");
                if faulty && name.contains("multi_user: true") {
                    continue; // Who was in a slot before does not tell what was copied into it.
                }
                let named = |error: TestCaseError| TestCaseError::fail(format!("{name}: {error}"));
                let mut engine = Engine {
                    shadow: Shadow::of(scheduler.policy()),
                    scheduler,
                    limits: limits(),
                    keeps_prompt: name.contains("num_keep: Prompt"),
                    batch: limits().num_batch * if name.contains("kind: Llama") { 4 } else { 1 },
                    known: BTreeMap::new(),
                    before: BTreeMap::new(),
                    serial: 0,
                    faulty,
                    turned: false,
                    one_batch: name.contains("Runner"),
                    holders: BTreeMap::new(),
                };
                for (id, &(pause, family, prompt, output)) in (1..).zip(&jobs) {
                    for _ in 0..pause {
                        engine.step().map_err(named)?;
                    }
                    let content = chain(id, &[family + 1, 11 + family, 100 + id], prompt);
                    engine.submit(Job { content, ..job(id, prompt, output) }).map_err(named)?;
                }
                let mut steps = 0;
                while engine.step().map_err(named)? {
                    steps += 1;
                    prop_assert!(steps < 20_000, "{} does not come to an end", name);
                }
                prop_assert!(engine.known.values().all(|known| known.ended), "{} forgot a request", name);
            }
        }
    }
}

/// All events of a run, by step (those before the first step under 0), and the steps' prompts.
#[derive(Default)]
struct Log {
    events: Vec<(u32, Event)>,
    /// (sequence, tokens, tokens before them).
    chunks: Vec<(u32, u32, u32)>,
}

impl Log {
    fn run(scheduler: &mut dyn Scheduler, most: u32) -> Log {
        let mut log = Log::default();
        let mut events = Vec::new();
        for number in 1..=most {
            let Some(step) = scheduler.next() else { break };
            log.chunks.extend(step.prefills.iter().map(|chunk| (chunk.seq.0, chunk.tokens, chunk.context)));
            scheduler.done();
            scheduler.take_events(&mut events);
            log.events.extend(events.drain(..).map(|event| (number, event)));
        }
        log
    }

    /// Requests that an event names, in order.
    fn ids(&self, pick: impl Fn(&Event) -> Option<u64>) -> Vec<u64> {
        self.events.iter().filter_map(|(_, event)| pick(event)).collect()
    }

    fn admitted(&self) -> Vec<u64> {
        self.ids(|event| if let Event::Admitted { id, .. } = event { Some(*id) } else { None })
    }

    fn failed(&self) -> Vec<u64> {
        self.ids(|event| if let Event::Failed { id, .. } = event { Some(*id) } else { None })
    }
}

fn continuous(limits: Limits, knobs: ContinuousKnobs, cells: u32) -> Continuous {
    Continuous::new(policy("paged:1", &limits, 1000, cells), limits, knobs, false)
}

fn runner(limits: Limits, on_full: OnFull, keep_slots: bool, cells: u32) -> Runner {
    let knobs = RunnerKnobs { on_full, keep_slots, ..RunnerKnobs::default() };
    Runner::new(policy("contiguous:run", &limits, 1000, cells), limits, knobs, false)
}

#[test]
fn the_one_admitted_last_is_preempted_and_comes_back_first() {
    let limits = Limits { num_batch: 32, num_parallel: 3, ..limits() };
    let mut scheduler = continuous(limits, ContinuousKnobs::default(), 20);
    (0..3).for_each(|id| scheduler.submit(job(id, 8, 8)));
    let log = Log::run(&mut scheduler, 100);
    // Two prompts and two tokens each fill the 20 cells in step 3.
    let preempted: Vec<_> =
        log.events.iter().filter(|(_, event)| matches!(event, Event::Preempted { .. })).collect();
    assert_eq!(preempted[0], &(4, Event::Preempted { id: 1 }));
    let order = log.ids(|event| match *event {
        Event::Admitted { id, .. } | Event::Recomputed { id, .. } => Some(id),
        _ => None,
    });
    assert_eq!(order[..4], [0, 1, 1, 2]);
    assert!(log.events.iter().any(|(_, event)| *event == Event::Recomputed { id: 1, tokens: 10 }));
    let finished = log
        .ids(|event| if let Event::Finished { id, output_tokens: 8, .. } = event { Some(*id) } else { None });
    assert_eq!(finished, [0, 1, 2]);
}

#[test]
fn requests_are_admitted_in_the_order_they_came() {
    let limits = limits();
    let mut scheduler = continuous(limits, ContinuousKnobs::default(), 200);
    (0..9).for_each(|id| scheduler.submit(job(id, 10, 5)));
    assert_eq!(Log::run(&mut scheduler, 200).admitted(), Vec::from_iter(0..9));
    let mut scheduler = runner(limits, OnFull::Wait, true, 200);
    (0..9).for_each(|id| scheduler.submit(job(id, 10, 5)));
    assert_eq!(Log::run(&mut scheduler, 200).admitted(), Vec::from_iter(0..9));
}

#[test]
fn admission_waits_for_cells_for_the_whole_prompt_if_told_to() {
    let limits = Limits { num_batch: 14, ..limits() };
    for (reserve, step) in [(Reserve::Prompt, 4), (Reserve::None, 1)] {
        let knobs = ContinuousKnobs { reserve, ..ContinuousKnobs::default() };
        let mut scheduler = continuous(limits, knobs, 20);
        (0..2).for_each(|id| scheduler.submit(job(id, 12, 3)));
        let log = Log::run(&mut scheduler, 100);
        assert!(
            log.events.contains(&(step, Event::Admitted { id: 1, cached_tokens: 0 })),
            "{:?}",
            log.events
        );
    }
}

#[test]
fn admission_leaves_the_watermark_free_while_others_run() {
    let limits = Limits { num_ctx: 100, num_batch: 100, ..limits() };
    for (watermark_permille, step) in [(0, 1), (50, 1), (51, 1), (60, 4), (900, 4)] {
        let knobs = ContinuousKnobs { watermark_permille, ..ContinuousKnobs::default() };
        let mut scheduler = continuous(limits, knobs, 100);
        scheduler.submit(job(0, 50, 3));
        scheduler.submit(job(1, 45, 3));
        let log = Log::run(&mut scheduler, 100);
        assert!(
            log.events.contains(&(step, Event::Admitted { id: 1, cached_tokens: 0 })),
            "{watermark_permille}: {:?}",
            log.events
        );
    }
}

#[test]
fn a_prompt_too_long_keeps_its_head_and_its_tail() {
    let limits = Limits { num_ctx: 40, num_batch: 4, num_parallel: 1, ..limits() };
    let mut scheduler = runner(limits, OnFull::Crash, false, 200);
    // 4 tokens of the head stay, then 20 are cut; the second image moves down with the tail.
    let unbreakable = vec![Unbreakable { at: 10, tokens: 9 }, Unbreakable { at: 50, tokens: 8 }];
    scheduler.submit(Job { unbreakable, ..job(0, 60, 1) });
    let log = Log::run(&mut scheduler, 100);
    assert_eq!(log.events[0].1, Event::Truncated { id: 0, at: 4, tokens: 20 });
    let images: Vec<_> = log.chunks.iter().filter(|chunk| chunk.1 > 4).collect();
    assert_eq!(images, [&(0, 8, 30)]);
    assert_eq!(log.chunks.iter().map(|chunk| chunk.1).sum::<u32>(), 40);
}

#[test]
fn a_slot_that_found_no_place_in_the_batch_is_first_in_the_next() {
    let limits = Limits { num_batch: 4, num_parallel: 2, ..limits() };
    let mut scheduler = runner(limits, OnFull::Crash, false, 200);
    (0..2).for_each(|id| scheduler.submit(job(id, 12, 1)));
    let turns: Vec<u32> = Log::run(&mut scheduler, 100).chunks.iter().map(|chunk| chunk.0).collect();
    assert_eq!(turns, [0, 1, 0, 1, 0, 1]);
}

#[test]
fn a_request_goes_to_the_slot_that_agrees_longest() {
    // Prompts of one batch each, so that the window class can still go back.
    let limits = Limits { num_batch: 48, ..limits() };
    let mut scheduler = runner(limits, OnFull::Crash, true, 200);
    for (id, ids) in [(0, [1, 2]), (1, [1, 3]), (2, [5, 6])] {
        scheduler.submit(Job { content: chain(id, &ids, 9), ..job(id, 9, 1) });
    }
    Log::run(&mut scheduler, 100);
    scheduler.submit(Job { content: chain(3, &[1, 3, 9], 14), ..job(3, 14, 1) });
    assert_eq!(scheduler.sequences_len(), 3, "the cells stay with their slots");
    let log = Log::run(&mut scheduler, 100);
    assert_eq!(log.events[0].1, Event::Admitted { id: 3, cached_tokens: 8 });
    assert_eq!(scheduler.sequences()[1], (SeqId(1), 3));
}

#[test]
fn the_slot_that_is_idle_longest_is_emptied_first() {
    let limits = Limits { num_batch: 32, num_parallel: 3, ..limits() };
    let mut scheduler = runner(limits, OnFull::FailOne, true, 30);
    for (id, output) in [(0, 1), (1, 1), (2, 10)] {
        scheduler.submit(job(id, 8, output));
    }
    let log = Log::run(&mut scheduler, 100);
    assert_eq!(log.failed(), [] as [u64; 0]);
    // 8 cells each, and 9 more for the third: the 30 cells are short of 3.
    assert_eq!(scheduler.sequences(), [(SeqId(1), 1), (SeqId(2), 2)]);
}

#[test]
fn the_request_admitted_last_is_the_one_that_fails() {
    for on_full in [OnFull::FailOne, OnFull::Wait] {
        let limits = Limits { num_batch: 32, num_parallel: 3, ..limits() };
        let mut scheduler = runner(limits, on_full, false, 30);
        (0..3).for_each(|id| scheduler.submit(job(id, 8, 10)));
        assert_eq!(Log::run(&mut scheduler, 100).failed(), [2, 1], "{on_full:?}");
    }
}
