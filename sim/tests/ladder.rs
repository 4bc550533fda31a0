//! A ladder of K and V in virtual time: rounding instead of preempting, and what it costs.

use std::convert::Infallible;

use policies::scheduler::{Continuous, ContinuousKnobs, Limits, Reserve};
use policies::{Geometry, LayerClass, Reach, make_policy};
use sim::cost::roofline::Roofline;
use sim::model::KvType;
use sim::{Nobody, Replay, Totals, hardware, model, replay};
use traces::{Prefix, Request, Slo, When};

/// Eight requests of 2000 tokens at once; the device has memory for `contexts` of them at 16 bits.
fn run(spec: &str, contexts: u32) -> Totals {
    let (model, weights) = model::find("llama-3.1-8b").expect("a model of the catalogue");
    let gpu = hardware::find("rtx4090").expect("a GPU of the catalogue");
    let cells = contexts * 2048;
    let class = LayerClass { name: "all".into(), layers: 32, reach: Reach::Full, cells };
    let limits = Limits {
        num_ctx: 2048,
        num_parallel: 8,
        num_batch: 512,
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
        audit: true,
        freeze_ns: None,
        leak: None,
    };
    let trace = (0..8).map(|id| Request {
        id,
        session: None,
        when: When::At { ns: 0 },
        prompt_tokens: 1000,
        output_tokens: 1000,
        prefix: Prefix::unknown(),
        images: Vec::new(),
    });
    let cost = Roofline::spec(&model, weights, KvType::F16, &gpu);
    replay(setup, &cost, trace.map(Ok::<_, Infallible>), &mut Nobody).expect("the books agree")
}

#[test]
fn rounding_serves_who_would_have_been_preempted() {
    let [paged, one, two] = ["paged:16", "ladder:16:q8_0", "ladder:16"].map(|spec| run(spec, 5));
    for (name, totals) in [("paged", &paged), ("to q8_0", &one), ("to q4_0", &two)] {
        println!(
            "{name}: {} preemptions, {} cells rounded, {:.2} s, of these {:.3} s in moves",
            totals.preemptions,
            totals.cells_requantised,
            totals.busy_ns as f64 / 1e9,
            totals.stall_ns as f64 / 1e9
        );
        assert_eq!(totals.completed, 8);
    }
    assert!(paged.preemptions > 0 && one.preemptions == 0 && two.preemptions == 0);
    assert!(
        one.cells_requantised > 0 && one.cells_requantised == two.cells_requantised,
        "one rung is enough"
    );
    assert!(one.stall_ns > 0 && one.busy_ns < paged.busy_ns);
    assert_eq!(paged.cells_requantised, 0);
}

#[test]
fn the_last_rung_comes_when_the_first_is_not_enough() {
    let [one, two] = ["ladder:16:q8_0", "ladder:16"].map(|spec| run(spec, 3));
    assert!(one.preemptions > 0, "eight contexts do not fit into three at 8 bits");
    assert!(two.preemptions == 0 && two.cells_requantised > one.cells_requantised / 2);
    let free = run("ladder:16", 8);
    assert_eq!((free.cells_requantised, free.stall_ns), (0, 0), "without pressure nothing is rounded");
}
