//! What a replay counts beside requests: a display that stands still, and memory that images leak.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::convert::Infallible;

use policies::scheduler::{Continuous, ContinuousKnobs, Limits, OnFull, Runner, RunnerKnobs, Scheduler};
use policies::{Geometry, LayerClass, Reach, make_policy};
use sim::cost::{CostModel, Work};
use sim::{Leak, Nobody, Replay, Totals, replay};
use traces::{Image, Prefix, Request, Slo, When};

const STEP_NS: u64 = 1_000_000;
const PROMPT_STALL_NS: u64 = 300_000_000;
const DECODE_STALL_NS: u64 = 10_000_000;
const RELOAD_NS: u64 = 7_000_000_000;

/// Prompts keep the display waiting for long, decoding for a little.
struct Waits;

impl CostModel for Waits {
    fn name(&self) -> &str {
        "waits"
    }

    fn step_ns(&self, _: &Work) -> u64 {
        STEP_NS
    }

    fn stall_ns(&self, work: &Work) -> u64 {
        if work.prefills.is_empty() { DECODE_STALL_NS } else { PROMPT_STALL_NS }
    }
}

const LIMITS: Limits = Limits {
    num_ctx: 512,
    num_parallel: 2,
    num_batch: 96,
    queue_max: None,
    maintain_cells: 0,
    fast_forward: true,
};

fn geometry(cells: u32) -> Geometry {
    Geometry {
        classes: vec![LayerClass { name: "global".into(), layers: 1, reach: Reach::Full, cells }],
        context_max: LIMITS.num_ctx,
        batch_max: LIMITS.num_batch,
        sequences_max: LIMITS.num_parallel,
    }
}

fn runner(cells: u32) -> Box<dyn Scheduler> {
    let policy = make_policy("paged:16", &geometry(cells)).unwrap();
    let knobs = RunnerKnobs { on_full: OnFull::Crash, keep_slots: false, ..RunnerKnobs::default() };
    Box::new(Runner::new(policy, LIMITS, knobs, false))
}

/// A request every minute: prompt tokens and images of each.
fn trace(requests: &[(u32, u32)]) -> Vec<Request> {
    let request = |(id, (prompt_tokens, images)): (usize, &(u32, u32))| Request {
        id: id as u64,
        session: None,
        when: When::At { ns: id as u64 * 60_000_000_000 },
        prompt_tokens: *prompt_tokens,
        output_tokens: 5,
        prefix: Prefix::unknown(),
        images: (0..*images).map(|at| Image { at: at * 20, tokens: 20 }).collect(),
    };
    requests.iter().enumerate().map(request).collect()
}

fn run(
    scheduler: Box<dyn Scheduler>,
    requests: &[(u32, u32)],
    freeze_ns: Option<u64>,
    leak: Option<Leak>,
) -> Totals {
    let setup = Replay {
        scheduler,
        reload_ns: RELOAD_NS,
        cell_bytes: vec![1],
        until_ns: None,
        slo: Slo { ttft_ns: 1_000_000_000, tpot_ns: 1_000_000_000 },
        audit: true,
        freeze_ns,
        leak,
    };
    replay(setup, &Waits, trace(requests).into_iter().map(Ok::<_, Infallible>), &mut Nobody).unwrap()
}

#[test]
fn a_step_counts_as_a_freeze_from_the_threshold_on() {
    // 200 tokens are three batches; four more tokens are decoded one by one.
    let requests = [(200, 0), (90, 0)];
    let counted = |freeze_ns| {
        let totals = run(runner(1024), &requests, freeze_ns, None);
        (totals.freezes, totals.frozen_ns)
    };
    assert_eq!(counted(None), (0, 0));
    assert_eq!(counted(Some(PROMPT_STALL_NS + 1)), (0, 0));
    assert_eq!(counted(Some(PROMPT_STALL_NS)), (4, 4 * PROMPT_STALL_NS));
    assert_eq!(counted(Some(DECODE_STALL_NS)), (12, 4 * PROMPT_STALL_NS + 8 * DECODE_STALL_NS));
}

#[test]
fn loading_again_is_no_freeze() {
    let totals = run(runner(64), &[(200, 0)], Some(1), None);
    assert_eq!((totals.crashes, totals.completed), (1, 0));
    // Nothing of 96 tokens fits into 64 cells: the only step is the reload.
    assert_eq!((totals.steps, totals.freezes), (1, 0));
}

#[test]
fn every_image_of_an_admitted_request_leaks_until_the_server_starts_anew() {
    let leak = Some(Leak { image_bytes: 100, room_bytes: None });
    let leaked = |cells, requests: &[(u32, u32)]| {
        let totals = run(runner(cells), requests, None, leak);
        (totals.leaked_bytes, totals.crashes)
    };
    assert_eq!(leaked(1024, &[(90, 1), (90, 0), (90, 3)]), (400, 0));
    // The second is admitted and crashes the server; the third begins with nothing leaked.
    assert_eq!(leaked(128, &[(90, 1), (300, 2), (90, 1)]), (300, 1));
    assert_eq!(leaked(128, &[(90, 1), (300, 2), (90, 1), (90, 4)]), (500, 1));
    assert_eq!(run(runner(1024), &[(90, 1)], None, None).leaked_bytes, 0);
}

#[test]
fn leaks_that_fill_main_memory_kill_the_server() {
    let requests = [(90, 1); 5];
    let with_room = |scheduler, room| {
        run(scheduler, &requests, None, Some(Leak { image_bytes: 100, room_bytes: Some(room) }))
    };
    let totals = with_room(runner(1024), 200);
    // The second and the fourth fill it.
    assert_eq!((totals.killed, totals.crashes, totals.failed, totals.completed), (2, 2, 2, 3));
    assert_eq!(totals.leaked_bytes, 200);
    let roomy = with_room(runner(1024), 501);
    assert_eq!((roomy.killed, roomy.crashes, roomy.leaked_bytes), (0, 0, 500));
    // The last request ends with the server; then it takes the time of a reload to be back.
    let last = with_room(runner(1024), 500);
    assert_eq!((last.killed, last.failed, last.completed), (1, 1, 4));
    // A server of the other family is never killed.
    let policy = make_policy("paged:16", &geometry(1024)).unwrap();
    let continuous = Continuous::new(policy, LIMITS, ContinuousKnobs::default(), false);
    let totals = with_room(Box::new(continuous), 200);
    assert_eq!((totals.killed, totals.crashes, totals.leaked_bytes), (0, 0, 500));
}

#[test]
fn who_comes_while_a_killed_server_starts_waits_for_it() {
    let leak = Some(Leak { image_bytes: 100, room_bytes: Some(100) });
    let mut requests = trace(&[(90, 1), (90, 0)]);
    requests[1].when = When::At { ns: STEP_NS };
    let setup = Replay {
        scheduler: runner(1024),
        reload_ns: RELOAD_NS,
        cell_bytes: vec![1],
        until_ns: None,
        slo: Slo { ttft_ns: 1_000_000_000, tpot_ns: 1_000_000_000 },
        audit: true,
        freeze_ns: None,
        leak,
    };
    let totals = replay(setup, &Waits, requests.into_iter().map(Ok::<_, Infallible>), &mut Nobody).unwrap();
    assert_eq!((totals.killed, totals.failed, totals.completed), (1, 1, 1));
    // One step of the first, the reload, then five of the second, which came with the kill.
    assert_eq!(totals.last_end_ns, STEP_NS + RELOAD_NS + 5 * STEP_NS);
}

#[test]
fn an_image_of_ollama_leaks_thirteen_megabytes() {
    assert_eq!(Leak::OLLAMA_IMAGE_BYTES / 100_000, 131);
}
