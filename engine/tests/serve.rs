//! The loop on real compute: whatever a policy does with cells, an answer's logits are bit for bit those
//! of the same text computed alone.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, LazyLock};

use engine::cpu::Cpu;
use engine::serve::{Answer, Dialogue, End, Serving, Source, fingerprint, hash_of, job, shape_for};
use engine::{
    Backend, Batch, CacheShape, Config, KvType, LayerKind, Output, Span, View, Wanted, Weights, synthetic,
};
use policies::scheduler::{
    Continuous, ContinuousKnobs, Event, Limits, OnFull, Preemption, Reserve, Runner, RunnerKnobs, Scheduler,
};
use policies::{Effect, Geometry, LayerClass, POLICIES, Reach, Run, make_policy};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use traces::{Prefix, Request, When};

const WINDOW: usize = 6;

/// Answers of each policy that a run of the random workloads compares at least.
const LEAST_COMPARED: usize = 20;

/// A model of two layers, one of each kind.
static WEIGHTS: LazyLock<Arc<Weights>> = LazyLock::new(|| {
    let config = Config {
        name: "two layers".to_owned(),
        hidden: 16,
        layers: vec![LayerKind::Local, LayerKind::Global],
        query_heads: 2,
        kv_heads: 1,
        head_dim: 8,
        ffn: 24,
        vocab: 96,
        window: WINDOW,
        max_positions: 256,
        ..Config::preset("gemma3-tiny").expect("the preset exists")
    };
    Arc::new(synthetic::weights(&config, 7, true).expect("it is small"))
});

fn backend(geometry: &Geometry) -> Cpu {
    let shape = CacheShape::new(&WEIGHTS.config, geometry, KvType::F32).expect("the classes are the model's");
    Cpu::new(WEIGHTS.clone(), shape).expect("f32 is implemented")
}

fn geometry(limits: &Limits, cells: [u32; 2]) -> Geometry {
    let class = |name: &str, reach, cells| LayerClass { name: name.into(), layers: 1, reach, cells };
    Geometry {
        classes: vec![
            class("local", Reach::Window(WINDOW as u32), cells[0]),
            class("global", Reach::Full, cells[1]),
        ],
        context_max: limits.num_ctx,
        batch_max: limits.num_batch,
        sequences_max: limits.num_parallel,
    }
}

/// Which scheduler.
#[derive(Clone, Copy, Debug)]
enum Family {
    Continuous(ContinuousKnobs),
    Runner(RunnerKnobs),
}

fn swapping() -> Family {
    Family::Continuous(ContinuousKnobs { preemption: Preemption::Swap, ..ContinuousKnobs::default() })
}

fn recomputing() -> Family {
    Family::Continuous(ContinuousKnobs { reserve: Reserve::None, ..ContinuousKnobs::default() })
}

fn runner(on_full: OnFull) -> Family {
    // Prompts of random tokens do not all begin alike.
    Family::Runner(RunnerKnobs { on_full, bos: false, ..RunnerKnobs::default() })
}

/// A run: who is served how.
#[derive(Clone, Debug)]
struct Case<'a> {
    policy: &'a str,
    family: Family,
    limits: Limits,
    cells: [u32; 2],
    restarts: bool,
}

/// What a run left behind.
#[derive(Debug, Default)]
struct Ran {
    answers: BTreeMap<u64, Answer>,
    /// Per request, what was cut out of its prompt: first token, tokens.
    cuts: BTreeMap<u64, (u32, u32)>,
    crashes: u64,
    preemptions: u32,
    swapped: u32,
    /// Cells that went to main memory by what they hold, and that came back.
    offloaded: u32,
    fetched: u32,
    copied: u32,
    cached: u32,
    corrupted_steps: u32,
    fingerprints: Vec<u64>,
}

impl Case<'_> {
    fn scheduler(&self) -> Box<dyn Scheduler> {
        let policy = make_policy(self.policy, &geometry(&self.limits, self.cells)).expect("the spec is good");
        match self.family {
            Family::Continuous(knobs) => Box::new(Continuous::new(policy, self.limits, knobs, true)),
            Family::Runner(knobs) => {
                let runner = Runner::new(policy, self.limits, knobs, true);
                Box::new(if self.restarts { runner } else { runner.without_restart() })
            }
        }
    }

    /// Serves requests; the time of one is the number of steps before it comes.
    fn run(&self, requests: &[Request], dialogue: &Dialogue) -> Ran {
        let mut scheduler = self.scheduler();
        let geometry = geometry(&self.limits, self.cells);
        let shape = shape_for(self.policy, &WEIGHTS.config, &geometry, KvType::F32);
        let shape = shape.expect("the classes are the model's");
        let mut backend = Cpu::new(WEIGHTS.clone(), shape).expect("f32 is implemented");
        let mut serving = Serving::new(&mut backend, dialogue, Wanted::Logits);
        let mut ran = Ran::default();
        let mut waiting: VecDeque<&Request> = requests.iter().collect();
        let mut time = 0;
        loop {
            while waiting.front().is_some_and(|request| due(request) <= time) {
                let request = waiting.pop_front().expect("there is a first one");
                serving.submitted(request.id).expect("the dialogue has it");
                scheduler.submit(job(request));
            }
            let is_busy = scheduler.next().is_some();
            ran.take_events(&mut *scheduler, &mut serving);
            if is_busy {
                ran.count(&*scheduler);
                if !scheduler.step().reload {
                    serving.run(&*scheduler).unwrap_or_else(|error| panic!("{self:?}: {error}"));
                    serving.take_attention().iter().for_each(|attention| scheduler.attended(attention));
                }
                scheduler.done();
                ran.take_events(&mut *scheduler, &mut serving);
            } else if waiting.is_empty() {
                break;
            }
            time += 1;
            assert!(time < 20_000, "{} does not come to an end", self.policy);
        }
        ran.crashes = serving.crashes();
        ran.answers = serving.into_answers();
        ran
    }
}

fn due(request: &Request) -> u64 {
    match request.when {
        When::At { ns } => ns,
        When::After { wait_ns } => wait_ns,
    }
}

impl Ran {
    fn take_events(&mut self, scheduler: &mut dyn Scheduler, serving: &mut Serving<'_>) {
        let mut events = Vec::new();
        scheduler.take_events(&mut events);
        for event in &events {
            match *event {
                Event::Truncated { id, at, tokens } => drop(self.cuts.insert(id, (at, tokens))),
                Event::Preempted { .. } => self.preemptions += 1,
                Event::Admitted { cached_tokens, .. } => self.cached += cached_tokens,
                _ => {}
            }
            serving.happened(event);
        }
    }

    fn count(&mut self, scheduler: &dyn Scheduler) {
        let step = scheduler.step();
        self.corrupted_steps += u32::from(step.foreign > 0);
        for effect in step.plan.effects() {
            self.copied += u32::from(matches!(effect, Effect::Copy { .. }));
            self.swapped += u32::from(matches!(effect, Effect::SwapIn { .. }));
            match effect {
                Effect::Offload { run, .. } => self.offloaded += run.len,
                Effect::Fetch { run, .. } => self.fetched += run.len,
                _ => {}
            }
        }
        self.fingerprints.push(fingerprint(scheduler));
    }

    /// Whether any context was shifted: what a slot holds of it is then passed on, too.
    fn any_shift(&self) -> bool {
        self.answers.values().any(|answer| answer.shifted > 0)
    }
}

/// Hashes of the logits of a text's last `count` tokens, computed alone in one batch.
fn alone(text: &[u32], count: usize) -> Vec<u64> {
    let limits =
        Limits { num_ctx: text.len() as u32, num_parallel: 1, num_batch: text.len() as u32, ..limits() };
    let len = text.len() as u32;
    let mut backend = backend(&geometry(&limits, [len, len]));
    let view = View { first: 0, runs: vec![Run { start: 0, len }] };
    let span =
        Span { rows: 0..text.len(), samples: count, views: vec![view.clone(), view], ..Span::default() };
    let batch =
        Batch { tokens: text.to_vec(), spans: vec![span], wanted: Wanted::Logits, walks: vec![None, None] };
    let mut output = Output::default();
    backend.step(&batch, &mut output).expect("the batch agrees with itself");
    output.logits.chunks_exact(WEIGHTS.config.vocab).map(hash_of).collect()
}

/// What a request should have been answered, had it been alone.
fn expected(dialogue: &Dialogue, id: u64, cut: Option<&(u32, u32)>, count: usize) -> Vec<u64> {
    let script = dialogue.script(id).expect("it was served");
    let mut text = script.prompt.clone();
    if let Some(&(at, tokens)) = cut {
        text.drain(at as usize..(at + tokens) as usize);
    }
    text.extend(&script.answer.as_ref().expect("the answer is known")[..count - 1]);
    alone(&text, count)
}

fn request(id: u64, at: u64, prompt_tokens: u32, output_tokens: u32) -> Request {
    let (when, prefix) = (When::At { ns: at }, Prefix::unknown());
    Request { id, session: None, when, prompt_tokens, output_tokens, prefix, images: Vec::new() }
}

fn limits() -> Limits {
    Limits {
        num_ctx: 48,
        num_parallel: 4,
        num_batch: 16,
        queue_max: None,
        maintain_cells: 6,
        fast_forward: false,
    }
}

/// Every policy of the table that rounds nothing, some with the knobs that make them do more.
fn specs() -> Vec<String> {
    let more = [
        "contiguous:run",
        "contiguous:pow2",
        "paged:4+prefix",
        "tiered:4:64",
        "paged:1+prefix",
        "vllm:4",
        "vllm:1:dense",
        "paged:5+prefix(lru:cow)",
        "radix:6:cost:cow",
        "shift:2:next:never",
        "defrag:threshold:20",
        "defrag:step:0:next",
        "defrag:failure:10:best+shift",
        "ollama-0.6.6:nodes=40",
        "heavy:20:6:2:drop=3",
        "snap:16:5",
        "shift:2+unrotated",
        "paged:4+prefix(lru)+swap",
        "paged:4+prefix(lfu)+tiered(64)+swap",
        "paged:3+prefix+swap(9)+unrotated",
        "sinks+unrotated",
        "paged:4+prefix+unrotated",
    ];
    let exact = POLICIES.iter().map(|spec| spec.name).filter(|&name| name != "ladder");
    exact.chain(more).map(str::to_owned).collect()
}

/// Requests: steps after the one before, prompt, answer, the family with which the prompt begins alike,
/// and whether it is the next turn of the one before.
type Drawn = Vec<(u64, u32, u32, u64, bool)>;

fn requests(drawn: &Drawn) -> Vec<Request> {
    let mut requests: Vec<Request> = Vec::new();
    let mut at = 0;
    for (id, &(wait, prompt, output, family, goes_on)) in (0..).zip(drawn) {
        at += wait;
        let before = requests.last().filter(|_| goes_on);
        let (session, start, mut ids) = match before {
            Some(before) => {
                let total = before.prompt_tokens + before.output_tokens;
                (before.session, total, before.prefix.ids.to_vec())
            }
            None => (Some(id), 0, vec![1 + family, 100 + family]),
        };
        let prompt_tokens = (start + prompt).min(70);
        let blocks = u64::from(prompt_tokens.div_ceil(4));
        ids.extend((ids.len() as u64..blocks).map(|block| id << 20 | block << 8 | 7));
        let prefix = Prefix::chained(4, ids);
        requests.push(Request { session, prefix, ..request(id, at, prompt_tokens, output) });
    }
    requests
}

/// The hashes of answers computed alone, by request and by what was cut out of its prompt.
type Known = BTreeMap<(u64, Option<(u32, u32)>), Vec<u64>>;

/// Answers of every spec that were compared: whole ones, those that were not shifted and read what they should.
type Compared = BTreeMap<String, usize>;

/// Serves requests under every spec and scheduler, and compares.
fn compare_all(
    requests: &[Request],
    num_batch: u32,
    cells: [u32; 2],
    compared: &mut Compared,
) -> Result<(), TestCaseError> {
    let dialogue = Dialogue::seeded(requests, Source::Hash(WEIGHTS.config.vocab), 3);
    let limits = Limits { num_batch, ..limits() };
    let families = [swapping(), recomputing(), runner(OnFull::Crash), runner(OnFull::Wait)];
    let mut known: Known = BTreeMap::new();
    for spec in specs() {
        for family in families {
            let case = Case { policy: &spec, family, limits, cells, restarts: true };
            let ran = case.run(requests, &dialogue);
            prop_assert_eq!(ran.answers.len(), requests.len());
            let is_faulty = spec.starts_with("ollama");
            for (id, answer) in &ran.answers {
                let named = |what: &str| format!("{spec}, {family:?}, request {id}: {what}");
                prop_assert!(answer.end.is_some(), "{}", named("has no end"));
                let strange = answer.strange_steps > 0;
                prop_assert!(is_faulty || !strange || ran.any_shift(), "{}", named("read strange cells"));
                if strange || answer.shifted > 0 || answer.hashes.is_empty() {
                    continue;
                }
                let cut = ran.cuts.get(id);
                let output = requests[*id as usize].output_tokens as usize;
                let whole =
                    known.entry((*id, cut.copied())).or_insert_with(|| expected(&dialogue, *id, cut, output));
                let count = answer.hashes.len();
                prop_assert!(count <= whole.len(), "{}", named("said too much"));
                prop_assert_eq!(&answer.hashes[..], &whole[..count], "{}", named("other bits"));
                *compared.entry(spec.clone()).or_default() += 1;
            }
        }
    }
    Ok(())
}

#[test]
fn whatever_a_policy_does_an_answer_is_that_of_the_request_alone() {
    let drawn = prop::collection::vec((0..9u64, 1..30u32, 1..14u32, 0..3u64, any::<bool>()), 1..7);
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    let compared = RefCell::new(Compared::new());
    let ran = TestRunner::new(config).run(
        &(drawn, 4..24u32, 26..60u32, 50..130u32),
        |(drawn, num_batch, local, global)| {
            compare_all(&requests(&drawn), num_batch, [local, global], &mut compared.borrow_mut())
        },
    );
    ran.unwrap_or_else(|error| panic!("{error}"));
    let compared = compared.into_inner();
    println!("{compared:?}");
    for spec in specs() {
        let count = compared.get(&spec).copied().unwrap_or(0);
        assert!(count >= LEAST_COMPARED, "{spec}: {count} answers compared");
    }
}

#[test]
fn a_preempted_answer_goes_on_bit_for_bit_by_recompute_and_by_swap() {
    let requests: Vec<Request> = (0..4).map(|id| request(id, 0, 12, 14)).collect();
    let dialogue = Dialogue::seeded(&requests, Source::Hash(WEIGHTS.config.vocab), 1);
    for (family, swaps) in [(swapping(), true), (recomputing(), false)] {
        let case = Case { policy: "paged:4", family, limits: limits(), cells: [60, 60], restarts: true };
        let ran = case.run(&requests, &dialogue);
        assert!(ran.preemptions > 0);
        assert_eq!(ran.swapped > 0, swaps);
        for (id, answer) in &ran.answers {
            assert_eq!(answer.hashes, expected(&dialogue, *id, None, 14), "request {id}, {family:?}");
        }
    }
}

#[test]
fn who_shares_a_prefix_is_parked_with_it_once_and_changes_no_bit() {
    let prefix = || Prefix::chained(4, vec![11, 12, 13]);
    let requests: Vec<Request> =
        (0..4).map(|id| Request { prefix: prefix(), ..request(id, id * 3, 17, 20) }).collect();
    let dialogue = Dialogue::seeded(&requests, Source::Hash(WEIGHTS.config.vocab), 1);
    let run = |policy, family| {
        let case = Case { policy, family, limits: limits(), cells: [60, 56], restarts: true };
        let ran = case.run(&requests, &dialogue);
        assert!(ran.preemptions > 0, "{policy}");
        for (id, answer) in &ran.answers {
            assert_eq!(answer.hashes, expected(&dialogue, *id, None, 20), "{policy}, request {id}");
        }
        ran
    };
    for policy in ["paged:4+prefix(lru)+swap", "paged:4+prefix(lru)+tiered(64:0)+swap"] {
        let ran = run(policy, recomputing());
        assert!(ran.swapped > 0 && ran.offloaded > 0 && ran.fetched > 0, "{ran:?}");
        // A block of each class at most for every four tokens of the prefix and of what each says.
        assert!(ran.offloaded <= 2 * 4 * (3 + 4 * 7), "{ran:?}");
    }
    let apart = run("paged:4+prefix(lru)", swapping());
    assert_eq!((apart.offloaded, apart.fetched), (0, 0));
}

#[test]
fn a_shared_prefix_is_computed_once_and_changes_no_bit() {
    let prefix = || Prefix::chained(4, vec![11, 12, 13]);
    let requests: Vec<Request> =
        (0..4).map(|id| Request { prefix: prefix(), ..request(id, id * 3, 17, 6) }).collect();
    let dialogue = Dialogue::seeded(&requests, Source::Hash(WEIGHTS.config.vocab), 1);
    let (policy, family) = ("paged:4+prefix", recomputing());
    let case = Case { policy, family, limits: limits(), cells: [90, 90], restarts: true };
    let ran = case.run(&requests, &dialogue);
    assert_eq!(ran.cached, 3 * 12);
    for (id, answer) in &ran.answers {
        assert_eq!(answer.hashes, expected(&dialogue, *id, None, 6), "request {id}");
    }
}

/// A conversation: the prompt of the second turn holds the first one's prompt and answer.
fn two_turns() -> Vec<Request> {
    let ids = [21, 22, 23, 24, 25, 26];
    let turn = |id, at, prompt, blocks: usize| Request {
        session: Some(5),
        prefix: Prefix::chained(4, ids[..blocks].to_vec()),
        ..request(id, at, prompt, 7)
    };
    vec![turn(0, 0, 9, 2), turn(1, 40, 23, 6)]
}

fn serve_two_turns(dialogue: &Dialogue) -> Ran {
    let limits = Limits { num_batch: 24, ..limits() };
    let (policy, family) = ("contiguous:run", runner(OnFull::Crash));
    let case = Case { policy, family, limits, cells: [90, 90], restarts: true };
    case.run(&two_turns(), dialogue)
}

#[test]
fn a_next_turn_goes_on_from_the_answer_that_lies_in_its_slot() {
    let dialogue = Dialogue::seeded(&two_turns(), Source::Hash(WEIGHTS.config.vocab), 1);
    let ran = serve_two_turns(&dialogue);
    assert!(ran.cached > 9, "{} tokens of prompt and answer were found", ran.cached);
    assert_eq!(ran.answers[&1].strange_steps, 0);
    assert_eq!(ran.answers[&1].hashes, expected(&dialogue, 1, None, 7));
}

#[test]
fn a_trace_is_spoken_in_stretches_of_a_text() {
    let text: Vec<u32> = (0..50).collect();
    let dialogue = Dialogue::seeded(&two_turns(), Source::Text(&text), 1);
    let script = |id| dialogue.script(id).expect("it says something");
    let (first, second) = (script(0), script(1));
    let said = [first.prompt.as_slice(), first.answer.as_deref().expect("it is known")].concat();
    assert_eq!(second.prompt[..said.len()], said, "a turn goes on from the turn before");
    let tokens = [second.prompt.as_slice(), second.answer.as_deref().expect("it is known")].concat();
    let breaks = tokens.windows(2).filter(|pair| (pair[0] + 1) % 50 != pair[1]).count();
    assert_eq!(breaks, 0, "the text reads on: {tokens:?}");
    let other = Dialogue::seeded(&two_turns(), Source::Text(&text), 2);
    assert_ne!(other.script(1), dialogue.script(1));
}

#[test]
fn prompts_that_part_are_equal_up_to_there_and_read_on_apart() {
    let text: Vec<u32> = (0..500).collect();
    let turn = |id, ids: Vec<u64>| Request { prefix: Prefix::chained(4, ids), ..request(id, 0, 10, 3) };
    let requests = [turn(0, vec![1, 2, 3]), turn(1, vec![1, 7, 8]), turn(2, vec![1, 2, 9])];
    let dialogue = Dialogue::seeded(&requests, Source::Text(&text), 1);
    let prompt = |id| dialogue.script(id).expect("it says something").prompt.clone();
    let common = |a: u64, b: u64| prompt(a).iter().zip(prompt(b)).take_while(|(a, b)| **a == *b).count();
    assert_eq!((common(0, 1), common(0, 2), common(1, 2)), (4, 8, 4));
}

#[test]
fn a_hit_on_tokens_that_differ_is_found() {
    // The first turn says something else than the second turn says it did.
    let dialogue = Dialogue::seeded(&two_turns(), Source::Hash(WEIGHTS.config.vocab), 1);
    let said = dialogue.script(0).and_then(|script| script.answer.clone()).expect("it is known");
    let dialogue = dialogue.with_answers([(0, said.iter().map(|token| (token + 1) % 96).collect())]);
    let ran = serve_two_turns(&dialogue);
    assert!(ran.answers[&1].strange_steps > 0);
    assert_ne!(ran.answers[&1].hashes, expected(&dialogue, 1, None, 7));
}

#[test]
fn corrupted_steps_of_ollama_change_bits_and_its_crash_is_lost_requests() {
    let (mut corrupted, mut lost) = (0, 0);
    for seed in 0..12 {
        let one = |id| request(id, id * 4, 6 + ((id + seed) * 7 % 19) as u32, 4 + (id * seed % 11) as u32);
        let requests: Vec<Request> = (0..9).map(one).collect();
        let dialogue = Dialogue::seeded(&requests, Source::Hash(WEIGHTS.config.vocab), seed);
        for (restarts, cells) in [(true, [34, 100]), (true, [40, 70]), (false, [30, 64])] {
            let (policy, family) = ("ollama-0.6.6", runner(OnFull::Crash));
            let case = Case { policy, family, limits: limits(), cells, restarts };
            let ran = case.run(&requests, &dialogue);
            if ran.crashes > 0 {
                lost += ran.answers.values().filter(|answer| answer.end == Some(End::Lost)).count();
            }
            let is_whole = |answer: &Answer| answer.shifted == 0 && !answer.hashes.is_empty();
            for (id, answer) in ran.answers.iter().filter(|(_, answer)| is_whole(answer)) {
                let alone = expected(&dialogue, *id, ran.cuts.get(id), answer.hashes.len());
                if answer.strange_steps == 0 {
                    assert_eq!(answer.hashes, alone, "request {id}");
                } else if answer.hashes != alone {
                    // Compaction turns cells over: of one sequence, or of several, which is foreign.
                    assert!(ran.copied > 0, "nothing was moved, request {id}");
                    corrupted += u32::from(ran.corrupted_steps > 0);
                }
            }
        }
    }
    assert!(corrupted > 0, "no answer was corrupted");
    assert!(lost > 0, "nobody was lost in a crash");
}

#[test]
fn answers_that_are_not_known_are_the_most_likely_tokens() {
    let dialogue = Dialogue::spoken([vec![3, 9, 27, 81], vec![], vec![5, 25, 29]]);
    let requests = dialogue.requests(|_| 0, 5);
    assert_eq!(requests.iter().map(|request| request.prompt_tokens).collect::<Vec<_>>(), [4, 3]);
    let run = |policy| {
        let (family, limits) = (recomputing(), limits());
        Case { policy, family, limits, cells: [60, 60], restarts: true }.run(&requests, &dialogue)
    };
    let ran = run("paged:4");
    assert_eq!(ran.answers, run("contiguous").answers);
    let said = ran.answers.iter().map(|(id, answer)| (*id, answer.sampled.clone()));
    let told = dialogue.clone().with_answers(said);
    for (id, answer) in &ran.answers {
        assert_eq!(answer.hashes, expected(&told, *id, None, 5), "request {id}");
    }
}

#[test]
fn two_drivers_with_equal_decisions_have_equal_fingerprints() {
    let requests: Vec<Request> = (0..5).map(|id| request(id, id, 9, 8)).collect();
    let dialogue = Dialogue::seeded(&requests, Source::Hash(WEIGHTS.config.vocab), 1);
    let run = |policy, global| {
        let (family, limits) = (recomputing(), limits());
        Case { policy, family, limits, cells: [80, global], restarts: true }.run(&requests, &dialogue)
    };
    let (one, other) = (run("defrag", 60), run("contiguous:run", 60));
    assert_eq!(one.fingerprints, run("defrag", 60).fingerprints);
    assert_ne!(one.fingerprints, other.fingerprints);
}

/// Policies that drop the same tokens at the limit, the first one the plainest.
const ALIKE: [&[&str]; 5] = [
    &[
        "shift:4",
        "shift:4:next:never",
        "defrag+shift",
        "defrag:step:0+shift",
        "swa-full+shift",
        "llama-unified",
        "llama-unified:ubatch=5",
        "ollama-0.6.6",
        "ollama-0.12.4",
    ],
    &["shift:2+unrotated"],
    &["defrag+shift+unrotated", "swa-full+shift+unrotated"],
    &["sinks:keep=2:drop=7"],
    &["ring:2"],
];

/// Alone each of them drops what the reference's cache does (`limit.rs`).
#[test]
fn a_shifted_answer_hangs_on_neither_company_nor_batches_nor_where_its_cells_lie() {
    let requests: Vec<Request> = (0..5).map(|id| request(id, id * 9, 17 + 5 * id as u32, 60)).collect();
    let dialogue = Dialogue::seeded(&requests, Source::Hash(WEIGHTS.config.vocab), 4);
    let roomy = [400, 400];
    let families = [
        (recomputing(), 7, roomy),
        (runner(OnFull::Wait), 11, roomy),
        // Somebody is swapped out, and runs are compacted.
        (swapping(), 16, [46, 150]),
        (runner(OnFull::Wait), 11, [46, 200]),
    ];
    let (mut turned_over, mut swapped, mut compared) = (0, 0, 0);
    for specs in ALIKE {
        let run = |policy, family, num_batch, num_parallel, cells| {
            let limits = Limits { num_batch, num_parallel, ..limits() };
            Case { policy, family, limits, cells, restarts: true }.run(&requests, &dialogue)
        };
        let alone = run(specs[0], recomputing(), 48, 1, roomy).answers;
        for (id, answer) in &alone {
            assert!(answer.shifted >= requests[*id as usize].prompt_tokens + 59 - 48, "request {id}");
            assert_eq!((answer.hashes.len(), answer.end), (60, Some(End::Finished)));
        }
        for policy in specs.iter().copied() {
            for (family, num_batch, cells) in families {
                let ran = run(policy, family, num_batch, 4, cells);
                let named = format!("{policy}, {family:?}, {cells:?}");
                let ends: Vec<Option<End>> = ran.answers.values().map(|answer| answer.end).collect();
                println!("{named}: {} copies, {} foreign, {ends:?}", ran.copied, ran.corrupted_steps);
                // Ollama's compaction, which comes when no run is found, turns cells over; nothing else changes a bit.
                let turns_over = policy.starts_with("ollama") && cells != roomy && ran.copied > 0;
                for (id, answer) in &ran.answers {
                    let is_equal = alone[id].hashes.starts_with(&answer.hashes);
                    assert!(is_equal || turns_over, "{named}, request {id}: other bits");
                    turned_over += u32::from(!is_equal);
                    assert!(cells != roomy || answer.end == Some(End::Finished), "{named}, request {id}");
                    compared += answer.hashes.len();
                }
                swapped += ran.swapped;
            }
        }
    }
    assert!(turned_over > 0 && swapped > 0 && compared > 10_000, "{turned_over}, {swapped}, {compared}");
}

#[test]
fn what_goes_by_attention_hangs_on_neither_batches_nor_company() {
    let requests: Vec<Request> = (0..4).map(|id| request(id, 0, 30, 40)).collect();
    let dialogue = Dialogue::seeded(&requests, Source::Hash(WEIGHTS.config.vocab), 2);
    for policy in ["heavy:24:8", "heavy:24:8:4:drop=5", "snap:20:8"] {
        let run = |family, num_batch, num_parallel| {
            let limits = Limits { num_batch, num_parallel, ..limits() };
            let case = Case { policy, family, limits, cells: [200, 200], restarts: true };
            case.run(&requests, &dialogue).answers
        };
        let alone = run(recomputing(), 48, 1);
        for (id, answer) in &alone {
            assert!(answer.shifted >= 30 + 39 - 48, "{policy}, request {id}: {}", answer.shifted);
            assert_eq!((answer.hashes.len(), answer.end), (40, Some(End::Finished)));
        }
        for (family, num_batch) in [(recomputing(), 7), (swapping(), 16), (runner(OnFull::Wait), 11)] {
            for (id, answer) in run(family, num_batch, 4) {
                assert_eq!(answer.hashes, alone[&id].hashes, "{policy}, {family:?}, request {id}");
                assert_eq!(answer.shifted, alone[&id].shifted);
            }
        }
        let dialogue = Dialogue::seeded(&requests, Source::Hash(WEIGHTS.config.vocab), 3);
        let case =
            Case { policy, family: recomputing(), limits: limits(), cells: [200, 200], restarts: true };
        assert_ne!(case.run(&requests, &dialogue).answers[&0].hashes, alone[&0].hashes, "another text");
    }
}
