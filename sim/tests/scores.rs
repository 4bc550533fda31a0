//! Tokens dropped by attention in virtual time: cells come free, and scores cost time.

use std::convert::Infallible;

use policies::scheduler::{Continuous, ContinuousKnobs, Limits, Reserve};
use policies::{Geometry, LayerClass, Reach, make_policy};
use sim::cost::roofline::Roofline;
use sim::model::KvType;
use sim::{Nobody, Replay, Totals, hardware, model, replay};
use traces::{Prefix, Request, Slo, When};

/// Prompts of 3000 tokens, answers of 1000, all at once; the device has room for six contexts of 4096.
fn run(spec: &str, num_batch: u32) -> Totals {
    let (model, weights) = model::find("llama-3.1-8b").expect("a model of the catalogue");
    let gpu = hardware::find("rtx4090").expect("a GPU of the catalogue");
    let class = LayerClass { name: "all".into(), layers: 32, reach: Reach::Full, cells: 6 * 4096 };
    let limits = Limits {
        num_ctx: 4096,
        num_parallel: 8,
        num_batch,
        queue_max: None,
        maintain_cells: 0,
        fast_forward: true,
    };
    let geometry = Geometry {
        classes: vec![class],
        context_max: limits.num_ctx,
        batch_max: limits.num_batch,
        sequences_max: limits.num_parallel,
    };
    let policy = make_policy(spec, &geometry).expect("the spec is good");
    let knobs = ContinuousKnobs { reserve: Reserve::None, ..ContinuousKnobs::default() };
    let setup = Replay {
        scheduler: Box::new(Continuous::new(policy, limits, knobs, false)),
        reload_ns: 0,
        cell_bytes: model.kv_bytes_per_cell(KvType::F16),
        until_ns: None,
        slo: Slo { ttft_ns: 1, tpot_ns: 1 },
        audit: false,
        freeze_ns: None,
        leak: None,
    };
    let trace = (0..24).map(|id| Request {
        id,
        session: None,
        when: When::At { ns: 0 },
        prompt_tokens: 3000,
        output_tokens: 1000,
        prefix: Prefix::unknown(),
        images: Vec::new(),
    });
    let cost = Roofline::spec(&model, weights, KvType::F16, &gpu);
    replay(setup, &cost, trace.map(Ok::<_, Infallible>), &mut Nobody).expect("the books agree")
}

#[test]
fn a_budget_serves_more_at_once_and_pays_for_the_scores() {
    let [ring, heavy, often, snap] =
        ["ring", "heavy:1024:drop=64", "heavy:1024:drop=1", "snap:1024"].map(|spec| run(spec, 1024));
    for (name, totals) in [("ring", &ring), ("heavy:drop=64", &heavy), ("heavy", &often), ("snap", &snap)] {
        println!(
            "{name}: {} preemptions, {} tokens dropped, {:.1} s, {} steps",
            totals.preemptions,
            totals.shifted_tokens,
            totals.busy_ns as f64 / 1e9,
            totals.steps
        );
        assert_eq!(totals.completed, 24);
    }
    assert!(ring.preemptions > 0 && snap.preemptions == 0, "{} {}", ring.preemptions, snap.preemptions);
    assert_eq!(ring.shifted_tokens, 0, "contexts fit");
    assert_eq!(snap.shifted_tokens, 24 * (3000 - 1024));
    // What is computed last is never placed, and 1024 are left, or up to 64 less.
    assert_eq!(often.shifted_tokens, 24 * (3999 - 1024));
    assert!(heavy.shifted_tokens >= often.shifted_tokens && heavy.shifted_tokens < 24 * (3999 - 960));
    assert!(snap.busy_ns < ring.busy_ns, "{} {}", snap.busy_ns, ring.busy_ns);
    // Every query of `heavy` writes its scores, those of one window do for `snap`.
    assert!(often.busy_ns > snap.busy_ns);
}

#[test]
fn which_tokens_look_like_heavy_hitters_is_the_same_in_every_run() {
    let [a, b] = [0, 1].map(|_| run("heavy:700:keep=0:drop=16", 512));
    assert_eq!((a.event_hash, a.busy_ns), (b.event_hash, b.busy_ns));
    let other = run("heavy:700:keep=0:drop=16:recent=100", 512);
    assert_eq!(
        (a.steps, a.shifted_tokens),
        (other.steps, other.shifted_tokens),
        "counts do not hang on scores"
    );
    assert_ne!(a.event_hash, other.event_hash, "cells do");
}
