//! Steps that are timed are steps that the cache has room for; on a backend that only takes notes.

use std::ops::Range;

use engine::clock::Clock;
use engine::measure::{Measurements, Move, MoveShape, Options, PieceShape, StepShape, measure};
use engine::{Backend, Batch, Config, EngineError, Output};
use policies::{Effect, Geometry, LayerClass, Plan, Reach, SeqId};

/// Notes what it is asked for.
struct Notes {
    config: Config,
    batches: Vec<Batch>,
    plans: Vec<Plan>,
    /// Calls of either kind, in order: tokens of a batch, or 0 for a plan.
    calls: Vec<usize>,
}

impl Backend for Notes {
    fn device(&self) -> String {
        "notes".to_owned()
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn apply(&mut self, plan: &Plan, _: &dyn Fn(SeqId) -> u64) -> Result<(), EngineError> {
        self.plans.push(plan.clone());
        self.calls.push(0);
        Ok(())
    }

    fn step(&mut self, batch: &Batch, _: &mut Output) -> Result<(), EngineError> {
        self.batches.push(batch.clone());
        self.calls.push(batch.tokens.len());
        Ok(())
    }

    fn restart(&mut self) {}
}

fn geometry() -> Geometry {
    let class = |name: &str, layers, reach, cells| LayerClass { name: name.to_owned(), layers, reach, cells };
    Geometry {
        classes: vec![class("local", 6, Reach::Window(16), 150), class("global", 1, Reach::Full, 1000)],
        context_max: 400,
        batch_max: 40,
        sequences_max: 8,
    }
}

fn notes() -> Notes {
    let config = Config::preset("gemma3-tiny").expect("it is a preset");
    Notes { config, batches: Vec::new(), plans: Vec::new(), calls: Vec::new() }
}

fn noted(steps: &[StepShape], rounds: u32, seed: u64) -> Result<(Notes, Measurements), EngineError> {
    let mut notes = notes();
    let found = measure(
        &mut notes,
        &geometry(),
        steps,
        Options { rounds, seed, clock: Clock::Wall },
        &mut |_, _| {},
    )?;
    Ok((notes, found))
}

fn piece(tokens: u32, context: u32, samples: bool) -> PieceShape {
    PieceShape { tokens, context, samples }
}

fn moving(what: Move, class: usize, cells: u32, commands: u32) -> StepShape {
    StepShape { moves: vec![MoveShape { what, class, cells, commands }], ..StepShape::default() }
}

fn steps() -> Vec<StepShape> {
    vec![
        StepShape { decodes: vec![1, 7, 300, 400], ..StepShape::default() },
        StepShape { prefills: vec![piece(33, 0, true), piece(5, 200, false)], ..StepShape::default() },
        StepShape {
            decodes: vec![390; 7],
            prefills: vec![piece(20, 100, false)],
            walked: vec![40, 900],
            ..StepShape::default()
        },
    ]
}

#[test]
fn batches_are_what_was_asked_for_within_the_cells() {
    let steps = steps();
    let (notes, _) = noted(&steps, 1, 3).expect("the steps fit");
    for step in &steps {
        let count = step.decodes.len() + step.prefills.len();
        let is_it =
            |batch: &&Batch| batch.spans.len() == count && batch.tokens.len() == step.tokens() as usize;
        let batch = notes.batches.iter().find(is_it).expect("every step is run");
        assert!(batch.tokens.iter().all(|&token| (token as usize) < notes.config.vocab));
        let mut rows = 0;
        let firsts = step.decodes.iter().map(|context| (context - 1, 1, true));
        let pieces = step.prefills.iter().map(|piece| (piece.context, piece.tokens, piece.samples));
        for (span, (first, tokens, samples)) in batch.spans.iter().zip(firsts.chain(pieces)) {
            assert_eq!(span.rows, rows..rows + tokens as usize);
            rows = span.rows.end;
            assert_eq!((span.first, span.samples), (first, usize::from(samples)));
            for (view, class) in span.views.iter().zip(&geometry().classes) {
                assert_eq!(view.first, class.reach.first_needed(first));
                let cells: Vec<u32> = view.cells().collect();
                assert_eq!(cells.len() as u32, first + tokens - view.first);
                assert!(cells.iter().all(|&cell| cell < class.cells));
            }
        }
        for (class, walk) in batch.walks.iter().enumerate() {
            let Some(walk) = walk else {
                assert!(step.walked.is_empty());
                continue;
            };
            assert!(walk.len >= step.walked[class] && walk.len <= geometry().classes[class].cells);
            let mut cells = batch.spans.iter().flat_map(|span| span.views[class].cells());
            assert!(cells.all(|cell| walk.cells().contains(&cell)));
        }
    }
}

#[test]
fn sequences_have_cells_of_their_own_while_there_are_any() {
    let step = StepShape { decodes: vec![300; 3], ..StepShape::default() };
    let (notes, _) = noted(&[step], 1, 9).expect("the step fits");
    let batch = notes.batches.last().expect("it was run");
    for class in 0..2 {
        let mut cells: Vec<u32> = batch.spans.iter().flat_map(|span| span.views[class].cells()).collect();
        let all = cells.len();
        cells.sort_unstable();
        cells.dedup();
        assert_eq!(cells.len(), all);
    }
}

#[test]
fn every_cell_is_filled_before_anything_is_timed() {
    let (notes, _) = noted(&steps(), 1, 4).expect("the steps fit");
    assert_eq!(notes.calls[1], 0, "the second call copies");
    let views = &notes.batches[0].spans[0].views;
    let mut filled: Vec<Range<u32>> = views.iter().map(|view| view.runs[0].cells()).collect();
    for effect in notes.plans[0].effects() {
        let Effect::Copy { class, from, to, len, .. } = *effect else { panic!("{effect:?}") };
        let filled = &mut filled[class.index()];
        assert!(from + len <= filled.end, "copies what is there");
        assert_eq!(to, filled.end);
        filled.end += len;
    }
    assert_eq!(filled, [0..150, 0..1000]);
}

#[test]
fn moves_lie_apart_and_within_the_cells() {
    for (cells, commands) in [(1, 1), (5, 2), (71, 9), (75, 75), (40, 7)] {
        let steps = [Move::Copy, Move::Rotate, Move::Swap].map(|what| moving(what, 0, cells, commands));
        let (notes, _) = noted(&steps, 1, 5).expect("the steps fit");
        let mut kinds = [0; 3];
        for plan in &notes.plans[1..] {
            let (mut read, mut written, mut sum, mut back) = (Vec::new(), Vec::new(), 0, 0);
            for effect in plan.effects() {
                let (from, to, len) = match *effect {
                    Effect::Copy { from, to, len, .. } => (from, to, len),
                    Effect::Rotate { run, .. } | Effect::SwapOut { run, .. } => {
                        (run.start, run.start, run.len)
                    }
                    Effect::SwapIn { run, .. } => {
                        back += run.len;
                        continue;
                    }
                    Effect::Write { .. }
                    | Effect::Requantise { .. }
                    | Effect::Offload { .. }
                    | Effect::Fetch { .. }
                    | Effect::Map { .. }
                    | Effect::Unmap { .. } => panic!("nothing is written, rounded, cached or mapped"),
                };
                sum += len;
                read.extend(from..from + len);
                written.extend(to..to + len);
            }
            assert_eq!(sum, cells);
            let count = plan.effects().len() as u32;
            let kind = match plan.effects()[0] {
                Effect::Copy { .. } => 0,
                Effect::Rotate { .. } => 1,
                _ => 2,
            };
            kinds[kind] += 1;
            assert_eq!((count, back), if kind == 2 { (2 * commands, cells) } else { (commands, 0) });
            if kind == 0 {
                written.extend(read);
            }
            assert!(written.iter().all(|&cell| cell < 150));
            let all = written.len();
            written.sort_unstable();
            written.dedup();
            assert_eq!(written.len(), all, "no cell is read or written twice");
        }
        assert!(kinds.iter().all(|&count| count > 0));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let refusal = |step: StepShape| {
        assert!(!step.fits(&geometry()));
        noted(&[step], 1, 0).err().expect("it does not fit").to_string()
    };
    let decodes = |context| StepShape { decodes: vec![context], ..StepShape::default() };
    assert!(decodes(1000).fits(&geometry()));
    assert_eq!(refusal(decodes(1001)), "class global: 1001 of 1000 cells");
    let long = StepShape { prefills: vec![piece(140, 30, true)], ..StepShape::default() };
    assert_eq!(refusal(long), "class local: 155 of 150 cells");
    assert!(refusal(moving(Move::Copy, 0, 76, 1)).contains("76 cells in 1 commands, of 150"));
    assert!(refusal(moving(Move::Rotate, 0, 4, 5)).contains("4 cells in 5 commands"));
    assert!(refusal(moving(Move::Swap, 7, 4, 2)).contains("class 7"));
    assert!(refusal(StepShape::default()).contains("computes or moves"));
    let both = StepShape { decodes: vec![4], ..moving(Move::Copy, 0, 4, 2) };
    assert!(refusal(both).contains("computes or moves"));
}

#[test]
fn rounds_visit_every_step_in_an_order_of_their_own() {
    let steps: Vec<StepShape> =
        (1..12).map(|count| StepShape { decodes: vec![9; count], ..StepShape::default() }).collect();
    let orders = |seed| {
        let (notes, found) = noted(&steps, 4, seed).expect("the steps fit");
        assert!(found.rounds_ns.iter().all(|rounds| rounds.len() == 4));
        assert!(found.rounds_ns.iter().flatten().all(|&ns| ns >= 1.0 && ns.is_finite()));
        let repeats = notes.calls.len() - 2 - 4 * steps.len();
        assert_eq!(found.timed as usize, repeats, "everything but the warm-ups is timed");
        let mut visits = notes.calls[2..].to_vec();
        visits.dedup();
        visits
    };
    let visits = orders(1);
    assert_ne!(visits[..11], visits[11..22]);
    assert_eq!(visits, orders(1));
    assert_ne!(visits, orders(2));
}

#[test]
fn progress_counts_to_its_end() {
    let mut told = Vec::new();
    let options = Options { rounds: 3, seed: 0, clock: Clock::Processor };
    measure(&mut notes(), &geometry(), &steps(), options, &mut |done, all| told.push((done, all)))
        .expect("the steps fit");
    assert_eq!(told, (1..=9).map(|done| (done, 9)).collect::<Vec<_>>());
}
