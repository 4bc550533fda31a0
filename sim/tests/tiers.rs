//! Main memory as a second tier of the cache: what is found there is fetched, and that takes time.

use std::convert::Infallible;

use policies::scheduler::{Continuous, ContinuousKnobs, Limits};
use policies::{Geometry, LayerClass, Reach, make_policy};
use sim::cost::roofline::Roofline;
use sim::model::KvType;
use sim::{Nobody, Replay, Totals, hardware, model, replay};
use traces::{Prefix, Request, Slo, When};

/// Twelve documents of 4096 tokens are asked about in turn, again and again; the device has room for six.
fn run(spec: &str, pcie: f64, maintain_cells: u32) -> Totals {
    let (model, weights) = model::find("llama-3.1-8b").expect("a model of the catalogue");
    let gpu = hardware::Gpu { pcie, ..hardware::find("rtx4090").expect("a GPU of the catalogue") };
    let class = LayerClass { name: "all".into(), layers: 32, reach: Reach::Full, cells: 6 * 4352 };
    let limits = Limits {
        num_ctx: 8192,
        num_parallel: 4,
        num_batch: 2048,
        queue_max: None,
        maintain_cells,
        fast_forward: true,
    };
    let geometry = Geometry {
        classes: vec![class],
        context_max: limits.num_ctx,
        batch_max: limits.num_batch,
        sequences_max: limits.num_parallel,
    };
    let policy = make_policy(spec, &geometry).expect("the spec is good");
    let setup = Replay {
        scheduler: Box::new(Continuous::new(policy, limits, ContinuousKnobs::default(), false)),
        reload_ns: 0,
        cell_bytes: model.kv_bytes_per_cell(KvType::F16),
        until_ns: None,
        slo: Slo { ttft_ns: 1, tpot_ns: 1 },
        audit: true,
        freeze_ns: None,
        leak: None,
    };
    let trace = (0..48).map(|id| Request {
        id,
        session: None,
        when: When::At { ns: 20_000_000_000 * id },
        prompt_tokens: 4096 + 64,
        output_tokens: 64,
        prefix: Prefix::chained(4096, vec![id % 12 + 1]),
        images: Vec::new(),
    });
    let cost = Roofline::spec(&model, weights, KvType::F16, &gpu);
    replay(setup, &cost, trace.map(Ok::<_, Infallible>), &mut Nobody).expect("the books agree")
}

fn ttft_ms(totals: &Totals) -> f64 {
    totals.ttft.mean().expect("requests were served") / 1e6
}

#[test]
fn a_second_tier_changes_hits_and_so_latency() {
    let device = run("paged:16+prefix", 25.0, 256);
    let tiered = run("tiered:16:host=65536:ahead=8192", 25.0, 256);
    println!(
        "25 GB/s: {} and {} tokens found, TTFT {:.1} and {:.1} ms",
        device.cached_tokens,
        tiered.cached_tokens,
        ttft_ms(&device),
        ttft_ms(&tiered)
    );
    // Six of twelve in turn: least recently used finds nothing. With main memory only the first round computes.
    assert_eq!(device.cached_tokens, 0);
    assert!(tiered.cached_tokens >= 30 * 4096, "{}", tiered.cached_tokens);
    assert!(ttft_ms(&tiered) < 0.6 * ttft_ms(&device));
}

#[test]
fn what_is_fetched_takes_as_long_as_the_bus_says() {
    let [slow, fast] = [0.5, 25.0].map(|pcie| run("tiered:16:host=65536:ahead=8192", pcie, 256));
    assert_eq!(slow.cached_tokens, fast.cached_tokens);
    assert_eq!(slow.event_hash, fast.event_hash);
    assert!(slow.cells_swapped > 0 && slow.cells_swapped == fast.cells_swapped);
    let device = run("paged:16+prefix", 0.5, 256);
    assert!(ttft_ms(&slow) > ttft_ms(&device), "a bus may be too slow for a second tier");
}

#[test]
fn what_there_was_no_time_to_copy_out_is_not_found() {
    let [none, some, all] = [0, 16, 256].map(|budget| run("tiered:16:host=65536:ahead=8192", 25.0, budget));
    assert_eq!((none.cached_tokens, none.cells_swapped), (0, 0));
    assert!(some.cells_swapped > 0 && some.cells_swapped < all.cells_swapped);
    let device = run("paged:16+prefix", 25.0, 256);
    assert_eq!(none.cached_tokens, device.cached_tokens);
}
