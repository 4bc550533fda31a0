//! A ladder of K and V in virtual time: rounding instead of preempting, and what it costs.

mod common;

use common::{limits, llama, request, serve, serve_on};
use policies::scheduler::{ContinuousKnobs, Reserve, Scheduler};
use sim::cost::{CostModel, Work};
use sim::{Executor, Priced, Totals, hardware};

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

/// Prices steps, perhaps as if all cells had 16 bits, and keeps what they read.
struct Watching<'a> {
    cost: &'a dyn CostModel,
    is_blind: bool,
    steps: Vec<Work>,
}

impl Executor for Watching<'_> {
    fn run(
        &mut self,
        work: &Work,
        scheduler: &dyn Scheduler,
    ) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        self.steps.push(work.clone());
        let mut work = work.clone();
        if self.is_blind {
            (work.decode_spared, work.context_spared) = (Vec::new(), Vec::new());
        }
        Priced(self.cost).run(&work, scheduler)
    }

    fn moves_ns(&mut self, work: &Work, step_ns: u64) -> u64 {
        Priced(self.cost).moves_ns(work, step_ns)
    }
}

#[test]
fn attention_reads_the_bytes_that_there_are_and_no_more() {
    let gpu = hardware::find("rtx4090").expect("a GPU of the catalogue");
    let cost = llama(&gpu);
    for (spec, contexts) in [("ladder:16:q8_0", 5), ("ladder:16", 5), ("ladder:16", 3), ("paged:16", 8)] {
        let memory = f64::from(contexts * 2048);
        let run = |is_blind| {
            let knobs = ContinuousKnobs { reserve: Reserve::None, ..ContinuousKnobs::default() };
            let mut watching = Watching { cost: &cost, is_blind, steps: Vec::new() };
            let requests = (0..8).map(|id| request(id, 1000, 1000));
            let limits = limits(2048, 8, 512);
            let totals = serve_on(&mut watching, spec, contexts * 2048, limits, knobs, true, requests);
            (totals, watching.steps)
        };
        let ((priced, steps), (blind, _)) = (run(false), run(true));
        // A block is rounded only where one is needed, so memory is full from the first rounding on, but for what a
        // rounding sets free beyond a block and for cells in the last blocks of eight sequences that have no token yet.
        let (mut expected_ns, mut coarse) = (0.0, 0);
        for work in steps.iter().filter(|work| work.decodes == 8) {
            let reads = work.decode_reads[0] as f64;
            let spared = work.decode_spared.first().map_or(0.0, |&parts| parts as f64 / 32.0);
            if spared > 0.0 {
                coarse += 1;
                let left = memory - (reads - spared);
                assert!(
                    (0.0..8.0 * 15.0 + 7.5).contains(&left),
                    "{spec}: {left} of {memory} cells are not read"
                );
            }
            // 32 layers of 4096 bytes a cell at 0.84 * 1008 GB/s.
            expected_ns += (reads - memory).max(0.0) * 32.0 * 4096.0 / (0.84 * 1008.0);
        }
        let [tpot, blind_tpot] =
            [&priced, &blind].map(|totals| totals.tpot.mean().expect("answers have tokens"));
        println!(
            "{spec}, memory for {contexts}: TPOT {:.3} ms, {:.3} ms as if at 16 bits",
            tpot / 1e6,
            blind_tpot / 1e6
        );
        if spec == "paged:16" {
            assert!(coarse == 0 && tpot == blind_tpot);
            continue;
        }
        let saved_ns = (blind_tpot - tpot) * 999.0;
        assert!(
            coarse > 300 && (0.97..1.07).contains(&(saved_ns / expected_ns)),
            "{spec}: {saved_ns} {expected_ns}"
        );
    }
}

#[test]
fn a_prompt_longer_than_the_memory_reads_what_was_rounded_of_it() {
    let gpu = hardware::find("rtx4090").expect("a GPU of the catalogue");
    let cost = llama(&gpu);
    let knobs = ContinuousKnobs { reserve: Reserve::None, ..ContinuousKnobs::default() };
    let mut watching = Watching { cost: &cost, is_blind: false, steps: Vec::new() };
    let requests = std::iter::once(request(0, 4096, 5));
    serve_on(&mut watching, "ladder:16", 2048, limits(8192, 1, 512), knobs, true, requests);
    let pieces =
        watching.steps.iter().filter_map(|work| Some((work.prefills.first()?, work.context_spared[0])));
    let left: Vec<f64> = pieces
        .map(|(piece, spared)| 2048.0 - f64::from(piece.context + piece.tokens) + spared as f64 / 32.0)
        .collect();
    // Four pieces fill the memory; for each of the others just so many blocks of those before go down.
    assert_eq!(left.len(), 8);
    assert_eq!(left[..4], [1536.0, 1024.0, 512.0, 0.0]);
    assert!(left[4..].iter().all(|left| (0.0..7.5).contains(left)), "{left:?}");
}
