//! The loop against answers known in closed form, and the laws that hold on every run.

use std::convert::Infallible;

use policies::scheduler::victim::{Fifo, Lifo, Mcf, Random, VictimRule};
use policies::scheduler::{
    Continuous, ContinuousKnobs, Down, Limits, OnFull, Preemption, Reserve, Runner, RunnerKnobs, Scheduler,
};
use policies::{Geometry, LayerClass, POLICIES, Reach, make_policy};
use sim::cost::{CostModel, Work};
use sim::{Nobody, Observer, Replay, StepSummary, Totals, replay};
use traces::random::{STEP, scramble};
use traces::{Outcome, Prefix, Request, Served, Slo, When};

/// A step takes a fixed time and so much for each token.
struct Affine {
    step_ns: u64,
    token_ns: u64,
}

impl CostModel for Affine {
    fn name(&self) -> &str {
        "affine"
    }

    fn step_ns(&self, work: &Work) -> u64 {
        let moved: u64 = work.moves.copied_cells.iter().chain(&work.moves.swapped_cells).sum();
        let spared: u64 = work.decode_spared.iter().chain(&work.context_spared).sum();
        self.step_ns + u64::from(work.tokens) * self.token_ns + moved + spared
    }
}

/// SplitMix64: the tests' own source of numbers.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        scramble(self.0)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        let unit = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        -mean * (1.0 - unit).ln()
    }
}

fn request(id: u64, when: When, prompt_tokens: u32, output_tokens: u32) -> Request {
    Request {
        id,
        session: None,
        when,
        prompt_tokens,
        output_tokens,
        prefix: Prefix::unknown(),
        images: Vec::new(),
    }
}

fn two_classes(local: u32, global: u32, limits: &Limits) -> Geometry {
    let class = |name: &str, reach, cells| LayerClass { name: name.into(), layers: 1, reach, cells };
    Geometry {
        classes: vec![class("local", Reach::Window(64), local), class("global", Reach::Full, global)],
        context_max: limits.num_ctx,
        batch_max: limits.num_batch,
        sequences_max: limits.num_parallel,
    }
}

fn limits(fast_forward: bool) -> Limits {
    Limits { num_ctx: 512, num_parallel: 8, num_batch: 96, queue_max: None, maintain_cells: 32, fast_forward }
}

const SLO: Slo = Slo { ttft_ns: 1_000_000_000, tpot_ns: 100_000_000 };

fn run(
    scheduler: Box<dyn Scheduler>,
    cost: &dyn CostModel,
    trace: &[Request],
    observer: &mut dyn Observer,
) -> Totals {
    run_audited(scheduler, cost, trace, observer, true)
}

/// With `audit` the policy is told of every token after each step, which fast-forward avoids.
fn run_audited(
    scheduler: Box<dyn Scheduler>,
    cost: &dyn CostModel,
    trace: &[Request],
    observer: &mut dyn Observer,
    audit: bool,
) -> Totals {
    let setup = Replay {
        scheduler,
        reload_ns: 5_000_000,
        cell_bytes: vec![2, 1],
        until_ns: None,
        slo: SLO,
        audit,
        freeze_ns: None,
        leak: None,
    };
    replay(setup, cost, trace.iter().cloned().map(Ok::<_, Infallible>), observer).expect("the books agree")
}

/// A mixed trace: open and closed loop, shared prefixes, some prompts too long for the context.
fn mixed(seed: u64, count: u64) -> Vec<Request> {
    let mut numbers = Numbers(seed);
    let mut now = 0;
    let mut trace = Vec::new();
    while (trace.len() as u64) < count {
        now += numbers.below(40_000_000);
        let session = numbers.next();
        let family = numbers.below(4);
        for turn in 0..1 + numbers.below(3) {
            let when = if turn == 0 {
                When::At { ns: now }
            } else {
                When::After { wait_ns: numbers.below(9_000_000) }
            };
            let long = numbers.below(30) == 0;
            let prompt = 1 + if long { 400 + numbers.below(300) } else { numbers.below(150) } as u32;
            let mut request = request(trace.len() as u64, when, prompt, 1 + numbers.below(120) as u32);
            request.session = Some(session);
            let ids: Vec<u64> = (0..3).map(|i| family * 10 + i).collect();
            request.prefix = Prefix { block_tokens: 16, ids: ids.into() };
            trace.push(request);
        }
    }
    trace
}

fn schedulers(spec: &str, local: u32, global: u32, fast_forward: bool) -> Vec<(String, Box<dyn Scheduler>)> {
    let limits = limits(fast_forward);
    let policy = || make_policy(spec, &two_classes(local, global, &limits)).expect("a good spec");
    let mut all: Vec<(String, Box<dyn Scheduler>)> = Vec::new();
    for preemption in [Preemption::Recompute, Preemption::Swap] {
        for (chunked_prefill, reserve, watermark_permille, victim, pipeline) in [
            (true, Reserve::Prompt, 0, &Lifo as &dyn VictimRule, 0),
            (true, Reserve::None, 20, &Fifo, 0),
            (true, Reserve::None, 0, &Random, 1),
            (true, Reserve::Full, 0, &Lifo, 2),
            (false, Reserve::Prompt, 0, &Mcf, 0),
        ] {
            let knobs = ContinuousKnobs {
                chunked_prefill,
                reserve,
                watermark_permille,
                preemption,
                victim,
                pipeline,
            };
            let name = format!("{spec} {knobs:?}");
            all.push((name, Box::new(Continuous::new(policy(), limits, knobs, false))));
        }
    }
    for on_full in [OnFull::Crash, OnFull::FailOne, OnFull::Halve, OnFull::Wait] {
        for keep_slots in [true, false] {
            let knobs = RunnerKnobs { on_full, keep_slots, ..RunnerKnobs::default() };
            all.push((format!("{spec} {knobs:?}"), Box::new(Runner::new(policy(), limits, knobs, false))));
        }
    }
    all
}

const SPECS: &[&str] = &[
    "contiguous:pow2:best",
    "contiguous:exact",
    "contiguous:run",
    "paged:16+prefix",
    "tiered:16:512:64",
    "paged:24+prefix(s3fifo:cow)",
    "radix:24:cost:cow",
    "paged:7",
    "shift:4:first:never",
    "defrag:threshold",
    "defrag:step:5+shift",
    "defrag:background:0:first:runs",
    "contiguous:pow2:least=4",
    "buddy:4",
    "slab:100:150:4",
    "vmem:7",
    "shared:5",
    "paged:8+prefix(lru)+swap",
    "paged:8+prefix(lfu)+tiered(600)+swap",
    "shift:4+unrotated",
    "ring:4+unrotated",
    "sinks:4:half+unrotated",
    "heavy:40+unrotated",
    "llama-unified:24:256:no",
];

fn specs() -> impl Iterator<Item = &'static str> {
    POLICIES.iter().map(|spec| spec.name).chain(SPECS.iter().copied())
}

/// Integrates the number of requests in the system, from outcomes alone and from outside.
#[derive(Default)]
struct Census {
    spans: Vec<(u64, u64)>,
    served: Vec<Served>,
    last_ns: u64,
}

impl Observer for Census {
    fn served(&mut self, served: &Served) {
        self.spans.push((served.arrival_ns, served.finished_ns.expect("the run goes to its end")));
        self.served.push(served.clone());
    }

    fn stepped(&mut self, now_ns: u64, _: &mut dyn Scheduler, _: StepSummary<'_>) {
        self.last_ns = now_ns;
    }
}

/// Time integral of the number of requests in the system, by sweeping over arrivals and ends.
fn time_in_system(spans: &[(u64, u64)]) -> u128 {
    let mut changes: Vec<(u64, i64)> = spans.iter().flat_map(|&(from, to)| [(from, 1), (to, -1)]).collect();
    changes.sort_unstable();
    let (mut area, mut present, mut last) = (0u128, 0i64, 0);
    for (at, change) in changes {
        area += u128::from(at - last) * present as u128;
        present += change;
        last = at;
    }
    area
}

#[test]
fn every_request_is_accounted_for_and_littles_law_holds() {
    let cost = Affine { step_ns: 1_000_000, token_ns: 20_000 };
    for seed in 0..2 {
        let trace = mixed(seed, 100);
        for spec in specs() {
            for (name, scheduler) in schedulers(spec, 500, 900, true) {
                let mut census = Census::default();
                let totals = run(scheduler, &cost, &trace, &mut census);
                assert_eq!(totals.requests, trace.len() as u64, "{name}");
                assert_eq!(
                    totals.completed + totals.failed + totals.rejected + totals.unfinished,
                    totals.requests,
                    "{name}"
                );
                assert_eq!(census.served.len() as u64, totals.requests, "{name}");
                let output: u64 = census.served.iter().map(|served| u64::from(served.output_tokens)).sum();
                assert_eq!(totals.output_tokens, output, "{name}");
                let prompts: u64 = trace.iter().map(|request| u64::from(request.prompt_tokens)).sum();
                assert_eq!(totals.prompt_tokens, prompts, "{name}");
                for served in &census.served {
                    let asked = &trace[served.id as usize];
                    if served.outcome == Outcome::Completed && !served.stopped_at_limit {
                        assert_eq!(served.output_tokens, asked.output_tokens, "{name} {served:?}");
                    }
                    assert!(served.output_tokens <= asked.output_tokens, "{name} {served:?}");
                }
                // Little: mean number in the system = arrival rate x mean time in it, as integrals.
                assert_eq!(time_in_system(&census.spans), totals.request_ns, "{name}");
            }
        }
    }
}

#[test]
fn fast_forward_changes_nothing() {
    let cost = Affine { step_ns: 1_000_000, token_ns: 20_000 };
    for seed in 0..2 {
        let trace = mixed(seed, 80);
        for spec in specs() {
            for (local, global) in [(500, 900), (2000, 4000)] {
                let pairs = schedulers(spec, local, global, true)
                    .into_iter()
                    .zip(schedulers(spec, local, global, false));
                for ((name, fast), (_, slow)) in pairs {
                    let (mut a, mut b) = (Census::default(), Census::default());
                    let fast = run_audited(fast, &cost, &trace, &mut a, false);
                    let slow = run_audited(slow, &cost, &trace, &mut b, false);
                    assert!(a.served == b.served, "{name}: requests were served differently");
                    assert_eq!(fast.event_hash, slow.event_hash, "{name}");
                    let means = |totals: &Totals| {
                        [
                            totals.utilisation(),
                            totals.fragmentation_internal(),
                            totals.fragmentation_external(),
                        ]
                        .map(f64::to_bits)
                    };
                    assert_eq!(means(&fast), means(&slow), "{name}");
                    assert_eq!(
                        (fast.steps, fast.cells_copied, fast.stall_ns),
                        (slow.steps, slow.cells_copied, slow.stall_ns),
                        "{name}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_server_that_does_not_start_fails_every_request_and_takes_no_time() {
    let limits = limits(true);
    let trace = mixed(3, 40);
    let policy = make_policy("paged", &two_classes(512, 1024, &limits)).expect("the spec is good");
    let totals = run(Box::new(Down::new(policy)), &Affine { step_ns: 1, token_ns: 1 }, &trace, &mut Nobody);
    assert_eq!(
        (totals.requests, totals.failed, totals.completed),
        (trace.len() as u64, trace.len() as u64, 0)
    );
    assert_eq!((totals.steps, totals.busy_ns, totals.output_tokens), (0, 0, 0));
}

#[test]
fn a_lone_request_takes_its_steps() {
    let cost = Affine { step_ns: 1_000_000, token_ns: 1_000 };
    // 200 prompt tokens in batches of 96: 3 steps, the last with the first token; 9 more tokens.
    let trace = [request(0, When::At { ns: 7 }, 200, 10)];
    for (name, scheduler) in schedulers("paged", 500, 900, true) {
        if name.contains("chunked_prefill: false") {
            continue;
        }
        let mut census = Census::default();
        run(scheduler, &cost, &trace, &mut census);
        let served = &census.served[0];
        assert_eq!(served.ttft_ns(), Some(3 * 1_000_000 + 200 * 1_000), "{name}");
        assert_eq!(served.tpot_ns(), Some(1_001_000), "{name}");
        assert_eq!(served.latency_ns(), Some(12 * 1_000_000 + 209 * 1_000), "{name}");
    }
}

#[test]
fn a_deterministic_queue_has_the_wait_that_arithmetic_gives() {
    // One slot, one token in, one out: service is one step of 10 ms. Arrivals every 8 ms: the
    // n-th request waits n * 2 ms, and one step more passes before its token is ready.
    let limits = Limits { num_parallel: 1, ..limits(true) };
    let cost = Affine { step_ns: 10_000_000, token_ns: 0 };
    let trace: Vec<Request> = (0..50).map(|id| request(id, When::At { ns: id * 8_000_000 }, 1, 1)).collect();
    let policy = make_policy("paged", &two_classes(500, 900, &limits)).expect("a good spec");
    let scheduler = Continuous::new(policy, limits, ContinuousKnobs::default(), false);
    let mut census = Census::default();
    let totals = run(Box::new(scheduler), &cost, &trace, &mut census);
    for served in &census.served {
        assert_eq!(served.ttft_ns(), Some(served.id * 2_000_000 + 10_000_000));
    }
    assert_eq!(totals.duration_ns(), 500_000_000);
}

#[test]
fn a_queue_with_random_arrivals_and_services_behaves_like_m_m_1() {
    // One slot; Poisson arrivals; geometric output lengths, each token one step of 1 ms, so that
    // service is (nearly) exponential with mean 100 ms. At load 0.7 the mean time in an M/M/1
    // system is 100 ms / (1 - 0.7); the discrete service time makes it
    // S + rho S (1 + c2) / (2 (1 - rho)) with c2 = 1 - 1/100 (Pollaczek-Khinchine).
    let limits = Limits { num_parallel: 1, num_ctx: 4096, ..limits(true) };
    let cost = Affine { step_ns: 1_000_000, token_ns: 0 };
    let mut numbers = Numbers(11);
    let (mean_tokens, load) = (100.0, 0.7);
    let mut now = 0.0;
    let trace: Vec<Request> = (0..60_000)
        .map(|id| {
            now += numbers.exponential(mean_tokens * 1e6 / load);
            let geometric = (numbers.exponential(1.0) / -(1.0 - 1.0 / mean_tokens).ln()).floor() as u32 + 1;
            request(id, When::At { ns: now as u64 }, 1, geometric)
        })
        .collect();
    let policy = make_policy("unlimited", &two_classes(500, 900, &limits)).expect("a good spec");
    let scheduler = Continuous::new(policy, limits, ContinuousKnobs::default(), false);
    let setup = Replay {
        scheduler: Box::new(scheduler),
        reload_ns: 0,
        cell_bytes: vec![2, 1],
        until_ns: None,
        slo: SLO,
        audit: false,
        freeze_ns: None,
        leak: None,
    };
    let totals = replay(setup, &cost, trace.iter().cloned().map(Ok::<_, Infallible>), &mut Nobody)
        .expect("the books agree");
    let squared_cv = 1.0 - 1.0 / mean_tokens;
    let expected = mean_tokens + load * mean_tokens * (1.0 + squared_cv) / (2.0 * (1.0 - load));
    let measured = totals.latency.mean().expect("requests were served") / 1e6;
    assert!(
        (measured / expected - 1.0).abs() < 0.04,
        "mean time in system {measured} ms, expected {expected} ms"
    );
    let busy = totals.busy_ns as f64 / totals.duration_ns() as f64;
    assert!((busy - load).abs() < 0.01, "busy {busy}, expected {load}");
}

#[test]
fn a_run_that_is_cut_off_counts_the_rest_as_unfinished() {
    let cost = Affine { step_ns: 1_000_000, token_ns: 20_000 };
    let trace = mixed(5, 100);
    for (name, scheduler) in schedulers("paged", 500, 900, true) {
        let setup = Replay {
            scheduler,
            reload_ns: 0,
            cell_bytes: vec![2, 1],
            until_ns: Some(400_000_000),
            slo: SLO,
            audit: true,
            freeze_ns: None,
            leak: None,
        };
        let totals = replay(setup, &cost, trace.iter().cloned().map(Ok::<_, Infallible>), &mut Nobody)
            .expect("the books agree");
        assert_eq!(totals.requests, trace.len() as u64, "{name}");
        assert!(totals.unfinished > 0, "{name}");
        assert_eq!(
            totals.completed + totals.failed + totals.rejected + totals.unfinished,
            totals.requests,
            "{name}"
        );
    }
}

#[test]
fn a_prompt_that_no_cache_could_hold_is_refused_and_nothing_hangs() {
    let limits = Limits { num_ctx: 100_000, ..limits(true) };
    let cost = Affine { step_ns: 1_000_000, token_ns: 0 };
    let trace = [request(0, When::At { ns: 0 }, 50_000, 3), request(1, When::At { ns: 1 }, 20, 3)];
    for spec in POLICIES.iter().filter(|spec| spec.name != "unlimited") {
        let policy = make_policy(spec.name, &two_classes(500, 900, &limits)).expect("a good spec");
        let scheduler = Continuous::new(policy, limits, ContinuousKnobs::default(), false);
        let totals = run(Box::new(scheduler), &cost, &trace, &mut Nobody);
        assert!(totals.rejected + totals.failed >= 1, "{}", spec.name);
        assert_eq!(totals.rejected + totals.failed + totals.completed, 2, "{}", spec.name);
    }
}

#[test]
fn a_prompt_is_not_refused_for_what_is_cached_of_it() {
    // The whole prompt lies idle in the cache of the global class, more cells than the local class has.
    let limits = Limits { num_ctx: 2048, num_parallel: 2, num_batch: 96, ..limits(true) };
    let cost = Affine { step_ns: 1_000_000, token_ns: 0 };
    let ids: std::sync::Arc<[u64]> = (1..=60).collect();
    let trace: Vec<Request> = (0..6)
        .map(|id| {
            let mut request = request(id, When::At { ns: id * 500_000_000 }, 1000, 4);
            request.prefix = Prefix { block_tokens: 16, ids: ids.clone() };
            request
        })
        .collect();
    let policy = make_policy("paged:16+prefix", &two_classes(320, 3200, &limits)).expect("a good spec");
    let scheduler = Continuous::new(policy, limits, ContinuousKnobs::default(), false);
    let totals = run(Box::new(scheduler), &cost, &trace, &mut Nobody);
    assert_eq!((totals.completed, totals.rejected), (6, 0));
    assert_eq!(totals.cached_tokens, 5 * 960);
}
