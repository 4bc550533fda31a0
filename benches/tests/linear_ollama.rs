//! The exact cache against its linear scan: the same answers, cells, ranges, copies, graphs.

use benches::linear_ollama::{Effects, Linear, LinearWrapper, cell_by_cell};
use policies::ollama::{Cache, END, Kind, Setup, Sizing, Token, Trim, Wrapper, cells};
use policies::{ClassId, Plan};
use proptest::prelude::*;

const SEQUENCES: u32 = 5;

#[derive(Clone, Debug)]
struct Make {
    kinds: Vec<bool>,
    window: u32,
    slots: u32,
    capacity: u32,
    batch: u32,
    pad: u32,
    layers: u32,
    graph_nodes: u32,
    shift: bool,
    all: bool,
}

impl Make {
    fn setups(&self) -> Vec<Setup> {
        let setup = |(class, &swa): (u8, &bool)| {
            let kind = if swa { Kind::Swa { window: self.window } } else { Kind::Causal };
            Setup {
                class: ClassId(class),
                kind,
                cells: cells(kind, self.slots, self.capacity, self.batch, self.pad, Sizing::SharedBatch),
                pad: self.pad,
                layers: self.layers,
                graph_nodes: self.graph_nodes,
                shift: self.shift,
                trim: if self.all { Trim::All } else { Trim::Batch },
            }
        };
        (0..).zip(&self.kinds).map(setup).collect()
    }
}

fn make() -> impl Strategy<Value = Make> {
    let kinds = prop::sample::select(vec![vec![true, false], vec![true], vec![false]]);
    let pad = prop::sample::select(vec![1, 2, 4, 32]);
    let nodes = prop::sample::select(vec![2, 8, 14, 26, 50, 8192]);
    let sizes = (1..12u32, 1..4u32, 1..40u32, 1..16u32);
    (kinds, sizes, pad, nodes, 1..3u32, prop::bool::weighted(0.8), any::<bool>()).prop_map(
        |(kinds, (window, slots, capacity, batch), pad, graph_nodes, layers, shift, all)| Make {
            kinds,
            window,
            slots,
            capacity,
            batch,
            pad,
            layers,
            graph_nodes,
            shift,
            all,
        },
    )
}

#[derive(Clone, Debug)]
enum Call {
    /// So many tokens of each sequence, one sequence after the other or in turn.
    Forward {
        parts: Vec<(u32, u32)>,
        in_turn: bool,
        at: Option<i32>,
    },
    Remove {
        seq: u32,
        begin: i32,
        end: i32,
    },
    CopyPrefix {
        from: u32,
        to: u32,
        len: i32,
    },
    CanResume {
        seq: u32,
        pos: i32,
    },
}

fn call() -> impl Strategy<Value = Call> {
    let seq = 0..SEQUENCES;
    let parts = prop::collection::vec((seq.clone(), 1..7u32), 1..4);
    let end = prop_oneof![2 => Just(END), 5 => 0..30i32, 1 => Just(-1)];
    prop_oneof![
        12 => (parts, any::<bool>(), prop::option::weighted(0.05, 0..20i32))
            .prop_map(|(parts, in_turn, at)| Call::Forward { parts, in_turn, at }),
        4 => (seq.clone(), 0..20i32, end).prop_map(|(seq, begin, end)| Call::Remove { seq, begin, end }),
        3 => seq.clone().prop_map(|seq| Call::Remove { seq, begin: 0, end: END }),
        2 => (seq.clone(), seq.clone(), 0..20i32)
            .prop_map(|(from, to, len)| Call::CopyPrefix { from, to, len }),
        2 => (seq, 0..40i32).prop_map(|(seq, pos)| Call::CanResume { seq, pos }),
    ]
}

/// One past the highest position that a sequence has anywhere.
fn next_pos(wrapper: &Wrapper, seq: u32) -> i32 {
    let of = |cache: &Cache| {
        let cells = (0..cache.setup().cells).filter(|&cell| cache.owners(cell).contains(&seq));
        cells.map(|cell| cache.pos(cell) + 1).max()
    };
    wrapper.caches().iter().filter_map(of).max().unwrap_or(0)
}

fn batch(wrapper: &Wrapper, parts: &[(u32, u32)], in_turn: bool, at: Option<i32>) -> Vec<Token> {
    let mut tokens: Vec<(u32, Token)> = Vec::new();
    let mut next: Vec<i32> = (0..SEQUENCES).map(|seq| at.unwrap_or_else(|| next_pos(wrapper, seq))).collect();
    for &(seq, count) in parts {
        for turn in 0..count {
            tokens.push((turn, Token { seq, pos: next[seq as usize] }));
            next[seq as usize] += 1;
        }
    }
    if in_turn {
        tokens.sort_by_key(|&(turn, _)| turn);
    }
    tokens.into_iter().map(|(_, token)| token).collect()
}

fn compare(exact: &Cache, linear: &Linear) -> Result<(), TestCaseError> {
    prop_assert_eq!(exact.cur_loc(), linear.cur_loc);
    prop_assert_eq!(exact.cur_range(), linear.cur_range);
    prop_assert_eq!(exact.free(), linear.free());
    for cell in 0..exact.setup().cells {
        let (pos, owners) = linear.place(cell);
        prop_assert_eq!(exact.owners(cell), owners, "cell {}", cell);
        prop_assert!(owners.is_empty() || exact.pos(cell) == pos, "cell {}", cell);
    }
    for seq in 0..SEQUENCES {
        prop_assert_eq!(exact.range(seq), linear.ranges.get(&seq).copied(), "sequence {}", seq);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_exact_cache_does_what_the_linear_scan_does(
        make in make(),
        calls in prop::collection::vec(call(), 1..60),
    ) {
        let mut exact = Wrapper::new(make.setups());
        let mut linear = LinearWrapper::new(make.setups());
        for call in calls {
            let (mut plan, mut done) = (Plan::new(), Effects::default());
            let said = |answer: Result<(), policies::ollama::Trouble>| {
                answer.map_err(|trouble| trouble.to_string())
            };
            match call {
                Call::Forward { ref parts, in_turn, at } => {
                    let batch = batch(&exact, parts, in_turn, at);
                    prop_assert_eq!(said(exact.forward(&batch, &mut plan)), linear.forward(&batch, &mut done));
                }
                Call::Remove { seq, begin, end } => {
                    let answer = said(exact.remove(seq, begin, end, &mut plan));
                    prop_assert_eq!(answer, linear.remove(seq, begin, end, &mut done));
                }
                Call::CopyPrefix { from, to, len } => {
                    exact.copy_prefix(from, to, len);
                    linear.caches.iter_mut().for_each(|cache| cache.copy_prefix(from, to, len));
                }
                Call::CanResume { seq, pos } => {
                    let answer = linear.caches.iter().all(|cache| cache.can_resume(seq, pos));
                    prop_assert_eq!(exact.can_resume(seq, pos), answer);
                }
            }
            prop_assert_eq!(cell_by_cell(plan.effects()), cell_by_cell(&done.effects), "{:?}", call);
            prop_assert_eq!((plan.defrag_passes(), plan.graphs()), (done.defrags, done.graphs));
            for (exact, linear) in exact.caches().iter().zip(&linear.caches) {
                compare(exact, linear)?;
            }
            prop_assert_eq!(exact.audit(), Ok(()), "after {:?}", call);
        }
    }
}
