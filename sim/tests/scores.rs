//! Tokens dropped by attention in virtual time: cells come free, and scores cost time.

mod common;

use common::{limits, request, serve};
use policies::scheduler::{ContinuousKnobs, Reserve};
use sim::{Totals, hardware};

/// Prompts of 3000 tokens, answers of 1000, all at once; the device has room for six contexts of 4096.
fn run(spec: &str, num_batch: u32) -> Totals {
    let knobs = ContinuousKnobs { reserve: Reserve::None, ..ContinuousKnobs::default() };
    let gpu = hardware::find("rtx4090").expect("a GPU of the catalogue");
    let requests = (0..24).map(|id| request(id, 3000, 1000));
    serve(spec, &gpu, 6 * 4096, limits(4096, 8, num_batch), knobs, false, requests)
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
