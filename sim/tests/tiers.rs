//! Main memory as a second tier of the cache: what is found there is fetched, and that takes time.

mod common;

use common::{limits, request, serve};
use policies::scheduler::{ContinuousKnobs, Limits, Preemption, Reserve};
use sim::{Totals, hardware};
use traces::{Prefix, Request, When};

/// Twelve documents of 4096 tokens are asked about in turn, again and again; the device has room for six.
fn run(spec: &str, pcie: f64, maintain_cells: u32) -> Totals {
    let gpu = hardware::Gpu { pcie, ..hardware::find("rtx4090").expect("a GPU of the catalogue") };
    let limits = Limits { maintain_cells, ..limits(8192, 4, 2048) };
    let requests = (0..48).map(|id| Request {
        when: When::At { ns: 20_000_000_000 * id },
        prefix: Prefix::chained(4096, vec![id % 12 + 1]),
        ..request(id, 4096 + 64, 64)
    });
    serve(spec, &gpu, 6 * 4352, limits, ContinuousKnobs::default(), true, requests)
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

/// Eight questions about one document of 4096 tokens, all at once, with answers that do not fit side by side.
fn pressed(spec: &str, preemption: Preemption) -> Totals {
    let gpu = hardware::find("rtx4090").expect("a GPU of the catalogue");
    let knobs = ContinuousKnobs { preemption, reserve: Reserve::None, ..ContinuousKnobs::default() };
    let prefix = || Prefix::chained(4096, vec![1]);
    // The first one computes the document, so that the others find it.
    let requests = (0..8).map(|id| Request {
        when: When::At { ns: if id == 0 { 0 } else { 2_000_000_000 } },
        prefix: prefix(),
        ..request(id, 4096 + 64, 1500)
    });
    serve(spec, &gpu, 4096 + 8 * 1000, limits(8192, 8, 2048), knobs, true, requests)
}

#[test]
fn what_is_shared_goes_to_main_memory_once() {
    let recomputed = pressed("paged:16+prefix", Preemption::Recompute);
    let swapped = pressed("paged:16+prefix", Preemption::Swap);
    let parked = pressed("paged:16+prefix(lru)+swap", Preemption::Recompute);
    for (name, totals) in [("recompute", &recomputed), ("swap", &swapped), ("+swap", &parked)] {
        println!(
            "{name}: {} preemptions, {} tokens computed again, {} cells moved, {:.3} s",
            totals.preemptions,
            totals.recomputed_tokens,
            totals.cells_swapped,
            totals.busy_ns as f64 / 1e9
        );
        assert_eq!(totals.completed, 8);
        assert!(totals.preemptions > 0);
    }
    assert!(recomputed.recomputed_tokens > 0 && recomputed.cells_swapped == 0);
    assert_eq!((swapped.recomputed_tokens, parked.recomputed_tokens), (0, 0));
    // The driver copies the document with every victim.
    let document = 4096 * swapped.preemptions;
    assert!(swapped.cells_swapped > document && parked.cells_swapped < swapped.cells_swapped - document / 2);
    assert!(parked.busy_ns < swapped.busy_ns && parked.busy_ns < recomputed.busy_ns);
}
