//! Keys that are rotated as they are read in virtual time: dearer reads against rotations at the limit.

mod common;

use common::{limits, request, serve};
use policies::scheduler::ContinuousKnobs;
use sim::{Totals, hardware};

/// Eight requests at once, each in a context of 4096 tokens; all of them fit.
fn run(spec: &str, prompt: u32, output: u32) -> Totals {
    let gpu = hardware::find("rtx4090").expect("a GPU of the catalogue");
    let limits = limits(4096, 8, 1024);
    let requests = (0..8).map(|id| request(id, prompt, output));
    serve(spec, &gpu, 9 * 4096, limits, ContinuousKnobs::default(), false, requests)
}

/// The same with keys before their rotation; how much longer the steps take, as a part.
fn dearer(spec: &str, prompt: u32, output: u32) -> (Totals, Totals, f64) {
    let (stored, read) = (run(spec, prompt, output), run(&format!("{spec}+unrotated"), prompt, output));
    let more = read.busy_ns as f64 / stored.busy_ns as f64 - 1.0;
    println!(
        "{spec}, {prompt} + {output}: {:.3} s, {} cells rotated, {:.3} s in moves; read: {:.3} s ({:+.2} %)",
        stored.busy_ns as f64 / 1e9,
        stored.cells_rotated,
        stored.stall_ns as f64 / 1e9,
        read.busy_ns as f64 / 1e9,
        more * 100.0
    );
    assert_eq!((stored.completed, read.completed, read.cells_rotated), (8, 8, 0));
    assert_eq!((stored.steps, stored.shifted_tokens), (read.steps, read.shifted_tokens));
    (stored, read, more)
}

#[test]
fn who_never_shifts_pays_for_every_read_and_gets_nothing() {
    for spec in ["paged", "ring", "sinks", "shift"] {
        let (stored, read, more) = dearer(spec, 2000, 1000);
        assert!(more > 0.0 && stored.cells_rotated == 0 && read.stall_ns == stored.stall_ns, "{spec}");
    }
}

#[test]
fn a_tail_that_slides_for_every_token_is_read_cheaper_than_rotated() {
    let (stored, _, more) = dearer("sinks", 3000, 3000);
    assert!(stored.cells_rotated > 0 && more < 0.0, "{more}");
}

#[test]
fn a_shift_by_half_is_rotated_cheaper_than_read() {
    let (stored, read, more) = dearer("shift", 3000, 3000);
    assert!(stored.cells_rotated > 0 && more > 0.0 && read.stall_ns < stored.stall_ns, "{more}");
}

#[test]
fn the_longer_an_answer_goes_on_at_the_limit_the_better_for_who_does_not_rotate() {
    // The limit is reached after 96 tokens of the answer.
    let parts = [80, 100, 200, 800].map(|output| dearer("sinks", 4000, output).2);
    assert!(parts.is_sorted_by(|a, b| a > b) && parts[0] > 0.0 && parts[1] < 0.0, "{parts:?}");
}

#[test]
fn the_more_tokens_go_at_once_the_better_for_who_rotates() {
    let parts = [1, 16, 256, 2046].map(|drop| dearer(&format!("sinks:drop={drop}"), 3000, 3000).2);
    assert!(parts.is_sorted_by(|a, b| a < b) && parts[1] < 0.0 && parts[3] > 0.0, "{parts:?}");
}
