//! A ladder of K and V in virtual time: rounding instead of preempting, and what it costs.

mod common;

use common::{limits, request, serve};
use policies::scheduler::{ContinuousKnobs, Reserve};
use sim::{Totals, hardware};

/// Eight requests of 2000 tokens at once; the device has memory for `contexts` of them at 16 bits.
fn run(spec: &str, contexts: u32) -> Totals {
    let knobs = ContinuousKnobs { reserve: Reserve::None, ..ContinuousKnobs::default() };
    let gpu = hardware::find("rtx4090").expect("a GPU of the catalogue");
    let requests = (0..8).map(|id| request(id, 1000, 1000));
    serve(spec, &gpu, contexts * 2048, limits(2048, 8, 512), knobs, true, requests)
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
