//! Ollama's cache behind the trait: shifts, the fallback, forks, and cells that hold another's K and V.

use policies::ollama::{END, GRAPH_NODES, Kind, Setup, Token, Trim, Wrapper};
use policies::{
    Append, ClassId, Content, Effect, Geometry, Intent, LayerClass, NotShifted, Plan, Policy, Reach,
    Reduction, Run, SeqId, Unsupported, make_policy,
};

const LOCAL: ClassId = ClassId(0);
const GLOBAL: ClassId = ClassId(1);
const A: SeqId = SeqId(0);
const B: SeqId = SeqId(1);
const C: SeqId = SeqId(2);

fn policy(spec: &str, num_ctx: u32, window: u32, cells: [u32; 2]) -> Box<dyn Policy> {
    let class = |name: &str, layers, reach, cells| LayerClass { name: name.into(), layers, reach, cells };
    let classes =
        vec![class("local", 52, Reach::Window(window), cells[0]), class("global", 10, Reach::Full, cells[1])];
    let geometry = Geometry { classes, context_max: num_ctx, batch_max: 512, sequences_max: 4 };
    make_policy(spec, &geometry).expect("the spec is good")
}

fn open(policy: &mut dyn Policy, seq: SeqId) {
    policy.open(seq, &Intent { content: Content::own(1), prompt_tokens: 1, total_tokens: 1 });
}

fn place(policy: &mut dyn Policy, parts: &[(SeqId, u32)]) -> Plan {
    let mut plan = Plan::new();
    let batch: Vec<Append> =
        parts.iter().map(|&(seq, tokens)| Append { seq, tokens, restored: false }).collect();
    assert_eq!(policy.place(&batch, &mut plan), Ok(()));
    assert_eq!(policy.audit(), Ok(()));
    plan
}

/// A slot with a full context of `num_ctx` tokens.
fn full(spec: &str, num_ctx: u32) -> Box<dyn Policy> {
    let mut policy = policy(spec, num_ctx, 1024, [2560, 2 * num_ctx]);
    open(&mut *policy, A);
    while policy.len(A) < num_ctx {
        let tokens = 512.min(num_ctx - policy.len(A));
        place(&mut *policy, &[(A, tokens)]);
    }
    policy
}

fn layout(policy: &dyn Policy, class: ClassId, seq: SeqId) -> (std::ops::Range<u32>, Vec<Run>) {
    let mut runs = Vec::new();
    (policy.layout(class, seq, &mut runs), runs)
}

#[test]
fn a_full_context_drops_half_of_what_is_not_kept() {
    for (keep, dropped) in [(4, 2046), (5, 2045), (0, 2048), (4094, 1), (4095, 1), (9999, 1)] {
        let mut policy = full("ollama-0.6.6", 4096);
        let mut plan = Plan::new();
        assert_eq!(policy.reduce(A, keep, &mut plan), Reduction::Dropped(dropped), "keep {keep}");
        assert_eq!(policy.len(A), 4096 - dropped);
        assert_eq!(layout(&*policy, GLOBAL, A).0, 0..4096 - dropped);
        assert_eq!(policy.audit(), Ok(()));
        // One graph for each class, over every cell from the first to the last.
        let turned = |class: ClassId| {
            let runs = plan.effects().iter().filter_map(|effect| match *effect {
                Effect::Rotate { class: of, run, delta } if of == class => Some((run.len, delta)),
                _ => None,
            });
            runs.collect::<Vec<_>>()
        };
        assert_eq!(plan.graphs(), 2);
        let (keep, moved) = (keep.min(4095), -(dropped as i32));
        let tail = 4096 - dropped - keep;
        let sum = |pick: &dyn Fn(i32) -> bool| {
            turned(GLOBAL).iter().filter(|(_, delta)| pick(*delta)).map(|(cells, _)| cells).sum::<u32>()
        };
        assert_eq!(sum(&|delta| delta == moved), tail, "keep {keep}");
        // From the first cell that is left to the last; the dropped ones between them are walked too.
        let span = if keep == 0 {
            tail
        } else if tail == 0 {
            keep
        } else {
            4096
        };
        assert_eq!(sum(&|_| true), span, "keep {keep}");
        assert!(turned(LOCAL).iter().all(|&(_, delta)| delta == moved || delta == 0));
    }
    let mut policy = full("ollama-0.6.6", 1024);
    assert_eq!(policy.reduce(A, 1023, &mut Plan::new()), Reduction::Dropped(1), "the last token makes way");
    assert_eq!(policy.reduce(A, 1023, &mut Plan::new()), Reduction::Stop, "there is room");
}

#[test]
fn without_shift_the_fallback_frees_nothing_until_0_6_9() {
    let mut policy = full("ollama-0.6.6:shift=no", 4096);
    let held = |policy: &dyn Policy| [LOCAL, GLOBAL].map(|class| policy.usage(class).held);
    let before = held(&*policy);
    let again = Reduction::Again { dropped: 2046, why: NotShifted::Model };
    assert_eq!(policy.reduce(A, 4, &mut Plan::new()), again);
    assert_eq!((policy.len(A), policy.audit()), (0, Ok(())));
    // The window's cells below the cut are gone; the other cache was not even asked.
    assert_eq!(held(&*policy), before);
    assert_eq!(layout(&*policy, GLOBAL, A), (0..0, vec![]));
    place(&mut *policy, &[(A, 512)]);
    assert_eq!(layout(&*policy, GLOBAL, A).0, 0..512);
    assert_eq!(policy.usage(GLOBAL).held, 4096 + 512, "the old tokens are still there");
    let mut runs = Vec::new();
    policy.holding(GLOBAL, A, &mut runs);
    assert_eq!(runs.iter().map(|run| run.len).sum::<u32>(), 4096 + 512);
    policy.release(A);
    assert_eq!(held(&*policy), [0, 0]);

    let mut policy = full("ollama-0.12.4:shift=no", 4096);
    assert_eq!(policy.reduce(A, 4, &mut Plan::new()), again);
    assert_eq!((policy.len(A), held(&*policy)), (0, [0, 0]));
}

#[test]
fn a_model_without_shift_loses_tokens_only_from_the_end() {
    let mut policy = full("ollama-0.6.6:shift=no", 1024);
    let before = layout(&*policy, GLOBAL, A);
    let mut plan = Plan::new();
    assert_eq!(policy.remove(A, 10..20, &mut plan), Err(Unsupported));
    assert_eq!((layout(&*policy, GLOBAL, A), plan.is_empty()), (before, true));
    assert_eq!(policy.remove(A, 1000..1024, &mut plan), Ok(()));
    assert_eq!((policy.len(A), policy.usage(GLOBAL).held, plan.is_empty()), (1000, 1000, true));
}

#[test]
fn a_fork_shares_cells_that_cannot_move_then() {
    for (spec, resumes) in [("ollama-0.6.6", true), ("ollama-0.12.4", false)] {
        let mut policy = policy(spec, 64, 8, [60, 128]);
        open(&mut *policy, A);
        place(&mut *policy, &[(A, 6)]);
        assert_eq!(policy.fork(A, B, 4), 4, "{spec}");
        assert_eq!(policy.fork(B, C, 9), 4, "as many as there are");
        assert_eq!((policy.usage(LOCAL).held, policy.usage(GLOBAL).held), (6, 6), "nothing is copied");
        assert_eq!(layout(&*policy, GLOBAL, B), (0..4, vec![Run { start: 0, len: 4 }]));
        assert_eq!(policy.remove(A, 0..2, &mut Plan::new()), Err(Unsupported), "others read these cells");
        assert_eq!(policy.len(A), 6);
        policy.release(C);
        policy.release(A);
        assert_eq!(policy.usage(GLOBAL).held, 4, "B holds them still");
        assert_eq!(policy.remove(B, 0..2, &mut Plan::new()), Ok(()), "B alone may move them");
        assert_eq!((policy.len(B), policy.foreign(B), policy.audit()), (2, 0, Ok(())));
        policy.release(B);

        // A window that has moved on: B gets nothing of it, and only one version sees that.
        open(&mut *policy, A);
        for _ in 0..3 {
            place(&mut *policy, &[(A, 10)]);
        }
        place(&mut *policy, &[(A, 1)]);
        assert_eq!(policy.fork(A, B, 25), 25);
        assert_eq!(layout(&*policy, LOCAL, B).0, 22..25);
        let kept = policy.truncate(B, 25);
        assert_eq!(kept, if resumes { 25 } else { 0 }, "{spec}");
        assert_eq!(policy.audit(), Ok(()));
    }
}

#[test]
fn only_0_12_4_trims_who_is_not_in_the_batch() {
    for (spec, held) in [("ollama-0.6.6", 8 + 10), ("ollama-0.12.4", 8)] {
        let mut policy = policy(spec, 64, 8, [60, 128]);
        open(&mut *policy, A);
        open(&mut *policy, B);
        place(&mut *policy, &[(A, 10)]);
        place(&mut *policy, &[(A, 10)]);
        place(&mut *policy, &[(B, 1)]);
        assert_eq!(policy.usage(LOCAL).held, held + 1, "{spec}");
        let tokens = layout(&*policy, LOCAL, A).0;
        assert_eq!(tokens, 20 - held..20, "{spec}");
        // Resuming at the end is possible in both, further back in neither.
        assert_eq!(policy.truncate(A, 20), 20, "{spec}");
        assert_eq!(policy.truncate(A, 11), 0, "{spec}");
    }
}

#[test]
fn a_turned_pair_of_two_sequences_is_foreign_to_both_until_it_is_gone() {
    let mut policy = policy("ollama-0.6.6", 8, 4, [64, 6]);
    [A, B, C].into_iter().for_each(|seq| open(&mut *policy, seq));
    place(&mut *policy, &[(A, 2)]);
    place(&mut *policy, &[(B, 1), (C, 1)]);
    policy.truncate(A, 0);
    // Cells 0 and 1 are free, 2 and 3 used, 4 and 5 free: three neighbours are found after compaction.
    let plan = place(&mut *policy, &[(A, 3)]);
    let copies: Vec<_> = plan
        .effects()
        .iter()
        .filter_map(|effect| match *effect {
            Effect::Copy { class, from, to, len, .. } => Some((class, from, to, len)),
            _ => None,
        })
        .collect();
    assert_eq!(copies, [(GLOBAL, 2, 0, 2)]);
    assert_eq!((plan.defrag_passes(), plan.graphs()), (1, 1));
    assert_eq!([A, B, C].map(|seq| policy.foreign(seq)), [0, 1, 1]);
    let mut runs = Vec::new();
    policy.foreign_cells(GLOBAL, &mut runs);
    assert_eq!(runs, [Run { start: 0, len: 2 }]);
    policy.foreign_cells(LOCAL, &mut runs);
    assert_eq!(runs, []);
    // A fork reads what its source reads.
    policy.release(A);
    assert_eq!(policy.fork(B, A, 1), 1);
    assert_eq!([A, B, C].map(|seq| policy.foreign(seq)), [1, 1, 1]);
    policy.release(B);
    policy.release(C);
    assert_eq!([A, B, C].map(|seq| policy.foreign(seq)), [1, 0, 0]);
    policy.release(A);
    policy.foreign_cells(GLOBAL, &mut runs);
    assert_eq!((runs.len(), policy.audit()), (0, Ok(())));
    // What is written anew is the writer's own.
    open(&mut *policy, A);
    place(&mut *policy, &[(A, 6)]);
    assert_eq!(policy.foreign(A), 0);
}

#[test]
fn what_a_sequence_was_before_is_foreign_to_what_it_is_now() {
    let mut policy = policy("ollama-0.6.6", 8, 8, [64, 10]);
    let [d, e] = [SeqId(3), SeqId(4)];
    [A, B, C, d, e].into_iter().for_each(|seq| open(&mut *policy, seq));
    place(&mut *policy, &[(e, 2)]);
    place(&mut *policy, &[(C, 2)]);
    place(&mut *policy, &[(A, 1), (B, 1)]);
    policy.truncate(C, 0);
    // A and B change places and data: B has A's.
    place(&mut *policy, &[(d, 5)]);
    assert_eq!([A, B].map(|seq| policy.foreign(seq)), [1, 1]);
    // A begins anew beside B, and both change places and data again: A has what A was.
    policy.truncate(A, 0);
    place(&mut *policy, &[(A, 1)]);
    assert_eq!([A, B].map(|seq| policy.foreign(seq)), [0, 1]);
    policy.truncate(d, 0);
    policy.truncate(e, 0);
    let plan = place(&mut *policy, &[(d, 7)]);
    assert!(
        plan.effects().iter().any(|effect| matches!(effect, Effect::Copy { from: 2, to: 0, len: 2, .. }))
    );
    assert_eq!([A, B].map(|seq| policy.foreign(seq)), [1, 1]);
}

#[test]
fn a_graph_holds_as_many_copies_as_its_nodes_allow() {
    // (8192 - 2 * layers) / (6 * layers): Gemma 3 27b, 12b, 4b, 1b, and the last count that fits into one.
    let sizes = [(52, 25), (10, 136), (40, 33), (8, 170), (29, 46), (5, 272), (22, 61), (4, 341)];
    for (layers, copies) in sizes {
        for (moved, graphs) in [(300, 150u32.div_ceil(copies)), (2 * copies, 1), (2 * copies + 1, 2)] {
            let setup = Setup {
                class: GLOBAL,
                kind: Kind::Causal,
                cells: 2 * moved + 1,
                pad: 1,
                layers,
                graph_nodes: GRAPH_NODES,
                shift: true,
                trim: Trim::Batch,
            };
            let mut cache = Wrapper::new([setup]);
            let tokens =
                |seq, count: u32| -> Vec<Token> { (0..count as i32).map(|pos| Token { seq, pos }).collect() };
            let mut plan = Plan::new();
            assert_eq!(cache.forward(&tokens(0, moved), &mut plan), Ok(()));
            assert_eq!(cache.forward(&tokens(1, moved), &mut plan), Ok(()));
            assert_eq!(cache.remove(0, 0, END, &mut plan), Ok(()));
            plan.clear();
            assert_eq!(cache.forward(&tokens(0, moved + 1), &mut plan), Ok(()), "{layers} layers");
            let pieces = plan.effects().iter().filter(|effect| matches!(effect, Effect::Copy { .. }));
            assert_eq!(pieces.count() as u32, moved.div_ceil(2));
            assert_eq!(plan.graphs(), graphs, "{layers} layers, {moved} cells");
        }
    }
}

#[test]
fn compaction_takes_all_owners_of_a_cell_along() {
    let mut policy = policy("ollama-0.6.6", 8, 8, [64, 6]);
    let d = SeqId(3);
    [A, B].into_iter().for_each(|seq| open(&mut *policy, seq));
    place(&mut *policy, &[(A, 2)]);
    place(&mut *policy, &[(B, 2)]);
    // The last of them comes between the others.
    assert_eq!([policy.fork(B, d, 2), policy.fork(d, C, 2)], [2, 2]);
    assert_eq!(policy.audit(), Ok(()));
    policy.truncate(A, 0);
    place(&mut *policy, &[(A, 3)]);
    for seq in [B, C, d] {
        assert_eq!(layout(&*policy, GLOBAL, seq).1, [Run { start: 1, len: 1 }, Run { start: 0, len: 1 }]);
        policy.release(seq);
        assert_eq!(policy.audit(), Ok(()));
    }
    assert_eq!(policy.usage(GLOBAL).held, 3);
}

#[test]
fn a_third_move_across_a_hole_takes_the_old_content_of_the_hole_along() {
    let mut policy = policy("ollama-0.6.6", 16, 16, [64, 12]);
    [A, B].into_iter().for_each(|seq| open(&mut *policy, seq));
    place(&mut *policy, &[(A, 6)]);
    place(&mut *policy, &[(B, 1)]);
    place(&mut *policy, &[(A, 1)]);
    place(&mut *policy, &[(B, 2)]);
    policy.release(A);
    // B has cells 6, 8, 9. 9 and 8 go to 0 and 1 as a pair; 6 joins, for cell 7 is as wide as a cell.
    open(&mut *policy, A);
    let plan = place(&mut *policy, &[(A, 9)]);
    let copies = plan.effects().iter().filter(|effect| matches!(effect, Effect::Copy { .. }));
    let copies: Vec<_> = copies.collect();
    assert_eq!(copies.len(), 1);
    assert!(matches!(*copies[0], Effect::Copy { from: 6, to: 0, len: 3, .. }), "{copies:?}");
    // Cell 1 holds what lay in cell 7, which was A's.
    assert_eq!((policy.foreign(B), policy.foreign(A)), (1, 0));
    let mut runs = Vec::new();
    policy.foreign_cells(GLOBAL, &mut runs);
    assert_eq!(runs, [Run { start: 1, len: 1 }]);
}

#[test]
fn what_comes_back_from_host_memory_gets_cells_but_is_not_written() {
    let mut policy = policy("ollama-0.6.6", 64, 8, [60, 128]);
    [A, B].into_iter().for_each(|seq| open(&mut *policy, seq));
    let batch = [(A, 20, true), (B, 3, false)];
    let batch = batch.map(|(seq, tokens, restored)| Append { seq, tokens, restored });
    let mut plan = Plan::new();
    assert_eq!(policy.place(&batch, &mut plan), Ok(()));
    let writes = plan.effects().iter().all(|effect| matches!(effect, Effect::Write { seq: B, .. }));
    assert!(writes && plan.effects().len() == 2, "{plan:?}");
    // The next token reads 8, itself included.
    assert_eq!(layout(&*policy, LOCAL, A).0, 13..20);
    assert_eq!(layout(&*policy, GLOBAL, A).0, 0..20);
}

#[test]
fn attention_walks_the_padded_range_of_the_sequences_in_the_batch() {
    for (spec, pad) in [("ollama-0.6.6", 32), ("ollama-0.6.6:pad=256", 256)] {
        let mut policy = policy(spec, 1024, 512, [1536, 2048]);
        [A, B].into_iter().for_each(|seq| open(&mut *policy, seq));
        place(&mut *policy, &[(A, 300)]);
        assert_eq!(policy.walk(GLOBAL), Run { start: 0, len: 300u32.next_multiple_of(pad) });
        place(&mut *policy, &[(B, 10)]);
        let (from, to) = (300 / pad * pad, 310u32.next_multiple_of(pad));
        assert_eq!(policy.walk(GLOBAL), Run { start: from, len: to - from });
        place(&mut *policy, &[(A, 1)]);
        assert_eq!(policy.walk(GLOBAL), Run { start: 0, len: 311u32.next_multiple_of(pad) });
    }
}
