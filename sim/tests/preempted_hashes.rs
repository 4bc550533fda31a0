//! A preempted request finds its own blocks again; that saves it some work and must not pass for throughput.
//!
//! BLIS issue 1121: a simulator whose preempted blocks kept their keys said 45 times what the server did.

use std::convert::Infallible;

use policies::scheduler::{Continuous, ContinuousKnobs, Limits, Preemption, Reserve};
use policies::{Geometry, LayerClass, Reach, make_policy};
use sim::cost::{CostModel, Work};
use sim::{Nobody, Replay, Totals, replay};
use traces::{Prefix, Request, Slo, When};

/// A step takes a fixed time and so much for each token.
struct Affine;

impl CostModel for Affine {
    fn name(&self) -> &str {
        "affine"
    }

    fn step_ns(&self, work: &Work) -> u64 {
        5_000_000 + u64::from(work.tokens) * 50_000
    }
}

/// 200 requests at once, nothing in common, five times as much as the cache holds.
fn run(policy: &str) -> Totals {
    let limits = Limits {
        num_ctx: 1024,
        num_parallel: 32,
        num_batch: 512,
        queue_max: None,
        maintain_cells: 0,
        fast_forward: true,
    };
    let class = |name: &str, layers, reach, cells| LayerClass { name: name.into(), layers, reach, cells };
    let geometry = Geometry {
        classes: vec![
            class("local", 10, Reach::Window(128), 32 * 160),
            class("global", 2, Reach::Full, 32 * 160),
        ],
        context_max: limits.num_ctx,
        batch_max: limits.num_batch,
        sequences_max: limits.num_parallel,
    };
    let policy = make_policy(policy, &geometry).expect("the spec is good");
    let knobs = ContinuousKnobs {
        reserve: Reserve::None,
        preemption: Preemption::Recompute,
        ..ContinuousKnobs::default()
    };
    let request = |id: u64| Request {
        id,
        session: None,
        when: When::At { ns: 0 },
        prompt_tokens: 200 + (id * 37 % 100) as u32,
        output_tokens: 300 + (id * 53 % 200) as u32,
        prefix: Prefix::unknown(),
        images: Vec::new(),
    };
    let setup = Replay {
        scheduler: Box::new(Continuous::new(policy, limits, knobs, false)),
        reload_ns: 0,
        cell_bytes: vec![10, 2],
        until_ns: None,
        slo: Slo { ttft_ns: 1, tpot_ns: 1 },
        audit: false,
        freeze_ns: None,
        leak: None,
    };
    replay(setup, &Affine, (0..200).map(|id| Ok::<_, Infallible>(request(id))), &mut Nobody)
        .expect("the books agree")
}

fn tokens_per_s(totals: &Totals) -> f64 {
    totals.completed_tokens as f64 / totals.duration_ns() as f64 * 1e9
}

/// Tokens that were computed: what the steps took says so.
fn computed(totals: &Totals) -> u64 {
    (totals.busy_ns - totals.stall_ns - totals.steps * 5_000_000) / 50_000
}

#[test]
fn keys_that_survive_preemption_do_not_pass_for_throughput() {
    for (without, with) in [
        ("vllm:prefix=off", &["vllm", "vllm:retention=dense", "vllm:evict=whole"][..]),
        (
            "paged:16",
            &[
                "paged:16+prefix",
                "radix:16",
                "tiered",
                "paged:16+prefix+tiered(9000)",
                "paged:16+prefix+swap",
            ],
        ),
    ] {
        let off = run(without);
        assert_eq!((off.completed, off.cached_tokens), (200, 0), "{without}");
        assert!(off.preemptions > 50, "{without}: {} preemptions of a cache too small", off.preemptions);
        let useful = off.prompt_tokens + off.completed_tokens - off.completed;
        assert_eq!(computed(&off), useful + off.recomputed_tokens, "{without}");
        for policy in with {
            let on = run(policy);
            assert_eq!(on.completed, 200);
            assert!(on.preemptions > 50, "{policy}: {} preemptions", on.preemptions);
            let factor = tokens_per_s(&on) / tokens_per_s(&off);
            println!(
                "{policy}: {factor:.3}, {} of {} preemptions, {} of {} tokens again",
                on.preemptions, off.preemptions, on.recomputed_tokens, off.recomputed_tokens
            );
            assert!((0.9..1.25).contains(&factor), "{policy}: {factor:.3} times the throughput");
            // What is found is not computed again, and nothing else is saved.
            assert_eq!(on.cached_tokens, 0, "{policy}: requests have nothing in common");
            assert!(on.recomputed_tokens <= off.recomputed_tokens, "{policy}: {}", on.recomputed_tokens);
            assert_eq!(computed(&on), useful + on.recomputed_tokens, "{policy}");
        }
    }
}
