//! Main memory as a second tier of the cache: what is found there is fetched, and that takes time.

mod common;

use common::{limits, request, serve};
use policies::scheduler::{ContinuousKnobs, Limits};
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
