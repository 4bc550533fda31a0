//! The policy over the llama runner's cache: what a runner sees of it, rule by rule.

use std::collections::BTreeMap;

use policies::{
    Append, ClassId, Content, Effect, Geometry, Intent, LayerClass, NotShifted, Plan, Policy, Reach, Reading,
    Reduction, Run, SeqId, Shadow, Unsupported, Why, make_policy,
};
use proptest::prelude::*;

const LOCAL: ClassId = ClassId(0);
const GLOBAL: ClassId = ClassId(1);

fn policy(spec: &str, local: u32, global: u32) -> Box<dyn Policy> {
    let class = |name: &str, reach, cells| LayerClass { name: name.into(), layers: 3, reach, cells };
    let geometry = Geometry {
        classes: vec![class("local", Reach::Window(4), local), class("global", Reach::Full, global)],
        context_max: 16,
        batch_max: 64,
        sequences_max: 4,
    };
    make_policy(spec, &geometry).expect("the spec is good")
}

fn open(policy: &mut dyn Policy, seq: u32) {
    let intent = Intent { content: Content::own(seq.into()), prompt_tokens: 1, total_tokens: 1 };
    assert_eq!(policy.open(SeqId(seq), &intent), 0);
}

fn append(seq: u32, tokens: u32) -> Append {
    Append { seq: SeqId(seq), tokens, restored: false }
}

/// Opens sequences and places so many tokens of each, one after another.
fn place_each(policy: &mut dyn Policy, tokens: &[u32]) {
    for (seq, &tokens) in (0..).zip(tokens) {
        open(policy, seq);
        assert_eq!(policy.place(&[append(seq, tokens)], &mut Plan::new()), Ok(()));
    }
}

fn layout(policy: &dyn Policy, seq: u32) -> Vec<Run> {
    let (mut runs, mut other) = (Vec::new(), Vec::new());
    let tokens = policy.layout(LOCAL, SeqId(seq), &mut runs);
    assert_eq!(policy.layout(GLOBAL, SeqId(seq), &mut other), tokens);
    assert_eq!(runs, other, "both classes have the same layout");
    assert_eq!(tokens, 0..policy.len(SeqId(seq)));
    runs
}

fn run(start: u32, len: u32) -> Run {
    Run { start, len }
}

/// The effect in both classes.
fn twice(effects: &[Effect]) -> Vec<Effect> {
    let in_class = |effect: Effect, to: ClassId| match effect {
        Effect::Write { seq, first, run, .. } => Effect::Write { class: to, seq, first, run },
        Effect::Copy { from, to: cell, len, why, .. } => Effect::Copy { class: to, from, to: cell, len, why },
        Effect::Rotate { run, delta, .. } => Effect::Rotate { class: to, run, delta },
        other => other,
    };
    effects.iter().flat_map(|&effect| [in_class(effect, LOCAL), in_class(effect, GLOBAL)]).collect()
}

fn write(seq: u32, first: u32, run: Run) -> Effect {
    Effect::Write { class: LOCAL, seq: SeqId(seq), first, run }
}

#[test]
fn all_classes_have_the_cells_of_the_smallest_and_one_layout() {
    let mut policy = policy("llama-unified:8", 40, 60);
    assert_eq!(policy.reading(), Reading::BatchRange);
    open(&mut *policy, 0);
    open(&mut *policy, 1);
    let mut plan = Plan::new();
    assert_eq!(policy.place(&[append(0, 5), append(1, 6)], &mut plan), Ok(()));
    // Two micro-batches of 8 and 3 tokens.
    let writes = [write(0, 0, run(0, 5)), write(1, 0, run(5, 3)), write(1, 3, run(8, 3))];
    assert_eq!(plan.effects(), twice(&writes));
    assert_eq!((layout(&*policy, 0), layout(&*policy, 1)), (vec![run(0, 5)], vec![run(5, 6)]));
    for class in [LOCAL, GLOBAL] {
        let usage = policy.usage(class);
        assert_eq!((usage.cells, usage.held, usage.free, usage.placeable), (40, 11, 29, 29));
        assert_eq!(policy.walk(class).len, 32);
        assert_eq!(policy.shape(class).high_water, 11);
    }
    // A window saves nothing: after 16 tokens all are still there.
    assert_eq!(policy.place(&[append(0, 11)], &mut plan), Ok(()));
    assert_eq!(layout(&*policy, 0).iter().map(|run| run.len).sum::<u32>(), 16);
}

#[test]
fn attention_walks_a_padded_length_that_stays_until_the_next_batch() {
    for (spec, walked) in [("llama-unified", 64), ("llama-unified:pad=256", 100)] {
        let mut policy = policy(spec, 100, 100);
        assert_eq!(policy.walk(GLOBAL).len, 0);
        place_each(&mut *policy, &[16, 16, 1]);
        assert_eq!(policy.walk(GLOBAL).len, walked, "{spec}");
        policy.release(SeqId(2));
        assert_eq!(policy.walk(GLOBAL).len, walked, "{spec}");
    }
}

#[test]
fn a_shift_keeps_the_head_and_is_rotated_by_the_next_batch() {
    for keep in [0, 1, 4, 15, 16, 99] {
        let mut policy = policy("llama-unified", 40, 40);
        place_each(&mut *policy, &[16]);
        let mut plan = Plan::new();
        let head = keep.min(15);
        let dropped = ((16 - head) / 2).max(1);
        assert_eq!(policy.reduce(SeqId(0), keep, &mut plan), Reduction::Dropped(dropped), "keep {keep}");
        assert!(plan.is_empty(), "nothing is rotated yet");
        assert_eq!(policy.len(SeqId(0)), 16 - dropped);
        let tail = run(head + dropped, 16 - head - dropped);
        let mut turns = Vec::new();
        policy.unrotated(GLOBAL, &mut turns);
        let expected = if tail.len > 0 { vec![(tail, -(dropped as i32))] } else { Vec::new() };
        assert_eq!(turns, expected);
        assert_eq!(policy.place(&[append(0, 1)], &mut plan), Ok(()));
        let rotated = expected.iter().map(|&(run, delta)| Effect::Rotate { class: LOCAL, run, delta });
        // A shift sends the search back to the first cell, one without a tail to the hole it left.
        let cell = run(head, 1);
        let effects: Vec<Effect> = rotated.chain([write(0, 16 - dropped, cell)]).collect();
        assert_eq!(plan.effects(), twice(&effects), "keep {keep}");
        policy.unrotated(GLOBAL, &mut turns);
        assert!(turns.is_empty());
    }
}

#[test]
fn half_a_context_is_free_after_a_shift_however_long_the_sequence_was() {
    let mut policy = policy("llama-unified", 40, 40);
    place_each(&mut *policy, &[12]);
    // 6 of the 12 tokens after the head are to be free, 4 are already.
    assert_eq!(policy.reduce(SeqId(0), 4, &mut Plan::new()), Reduction::Dropped(2));
    assert_eq!(policy.reduce(SeqId(0), 4, &mut Plan::new()), Reduction::Stop);
    assert_eq!(policy.len(SeqId(0)), 10);
}

#[test]
fn two_removals_add_up_before_the_rotation() {
    let mut policy = policy("llama-unified", 40, 40);
    place_each(&mut *policy, &[10]);
    let mut plan = Plan::new();
    assert_eq!(policy.remove(SeqId(0), 2..4, &mut plan), Ok(()));
    assert_eq!(policy.remove(SeqId(0), 3..99, &mut plan), Ok(()));
    assert_eq!(policy.remove(SeqId(0), 0..1, &mut plan), Ok(()));
    assert!(plan.is_empty());
    assert_eq!(layout(&*policy, 0), [run(1, 1), run(4, 1)]);
    assert_eq!(policy.place(&[append(0, 1)], &mut plan), Ok(()));
    let rotate = |start, delta| Effect::Rotate { class: LOCAL, run: run(start, 1), delta };
    assert_eq!(plan.effects(), twice(&[rotate(1, -1), rotate(4, -3), write(0, 2, run(0, 1))]));
}

#[test]
fn a_model_that_cannot_shift_computes_again() {
    let mut policy = policy("llama-unified:shift=no", 40, 40);
    place_each(&mut *policy, &[16, 3]);
    let mut plan = Plan::new();
    assert_eq!(policy.remove(SeqId(0), 2..4, &mut plan), Err(Unsupported));
    assert!(policy.reduces());
    assert_eq!(
        policy.reduce(SeqId(0), 4, &mut plan),
        Reduction::Again { dropped: 6, why: NotShifted::Model }
    );
    assert_eq!((policy.len(SeqId(0)), policy.usage(GLOBAL).held), (0, 3), "its cells are free");
    assert!(plan.is_empty());
    assert_eq!(policy.place(&[append(0, 10)], &mut plan), Ok(()));
    assert_eq!(plan.effects(), twice(&[write(0, 0, run(0, 10))]));
}

#[test]
fn compaction_is_described_before_the_writes_and_counted_once() {
    let mut policy = policy("llama-unified", 16, 16);
    place_each(&mut *policy, &[4, 4, 6]);
    policy.release(SeqId(1));
    open(&mut *policy, 1);
    let mut plan = Plan::new();
    assert_eq!(policy.place(&[append(1, 6)], &mut plan), Ok(()));
    let copy = Effect::Copy { class: LOCAL, from: 10, to: 4, len: 4, why: Why::Defrag };
    assert_eq!(plan.effects(), twice(&[copy, write(1, 0, run(10, 6))]));
    assert_eq!(plan.defrag_passes(), 1);
    assert_eq!(layout(&*policy, 2), [run(8, 2), run(4, 4)]);
}

#[test]
fn a_hole_is_filled_by_the_highest_cells_in_their_order() {
    let mut policy = policy("llama-unified", 12, 12);
    place_each(&mut *policy, &[5, 2, 1, 2]);
    policy.release(SeqId(0));
    policy.release(SeqId(2));
    open(&mut *policy, 0);
    let mut plan = Plan::new();
    assert_eq!(policy.place(&[append(0, 7)], &mut plan), Ok(()));
    let copy = |from, to| Effect::Copy { class: LOCAL, from, to, len: 2, why: Why::Defrag };
    assert_eq!(plan.effects(), twice(&[copy(5, 0), copy(8, 2), write(0, 0, run(4, 7))]));
}

#[test]
fn a_refusal_takes_the_batch_back_and_leaves_the_compaction() {
    let mut policy = policy("llama-unified:2", 8, 8);
    place_each(&mut *policy, &[2, 2]);
    assert_eq!(policy.remove(SeqId(0), 0..1, &mut Plan::new()), Ok(()));
    open(&mut *policy, 2);
    let mut plan = Plan::new();
    let full = policy.place(&[append(2, 6)], &mut plan).expect_err("five cells are free");
    assert_eq!((full.needed, full.free), (6, 5));
    assert!(!full.is_fragmented(), "compaction was tried: memory ran out");
    let rotate = Effect::Rotate { class: LOCAL, run: run(1, 1), delta: -1 };
    let copy = Effect::Copy { class: LOCAL, from: 7, to: 0, len: 1, why: Why::Defrag };
    assert_eq!(plan.effects(), twice(&[rotate, copy]), "no write of a batch that was taken back");
    assert_eq!((policy.len(SeqId(2)), layout(&*policy, 2)), (0, vec![]));
    assert_eq!(policy.audit(), Ok(()));
    assert_eq!(policy.place(&[append(2, 5)], &mut Plan::new()), Ok(()));
}

#[test]
fn what_comes_back_from_the_host_is_not_written() {
    let mut policy = policy("llama-unified", 16, 16);
    open(&mut *policy, 0);
    open(&mut *policy, 1);
    let mut plan = Plan::new();
    let back = Append { restored: true, ..append(0, 5) };
    assert_eq!(policy.place(&[back, append(1, 2)], &mut plan), Ok(()));
    assert_eq!(plan.effects(), twice(&[write(1, 0, run(5, 2))]));
    assert_eq!(layout(&*policy, 0), [run(0, 5)]);
}

#[test]
fn a_fork_shares_cells_and_goes_on_from_any_length() {
    let mut policy = policy("llama-unified", 32, 32);
    place_each(&mut *policy, &[8]);
    assert_eq!(policy.fork(SeqId(0), SeqId(1), 0), 0);
    assert_eq!(policy.fork(SeqId(0), SeqId(1), 5), 5);
    assert_eq!(policy.fork(SeqId(0), SeqId(2), 50), 8);
    assert_eq!((policy.len(SeqId(1)), policy.len(SeqId(2))), (5, 8));
    assert_eq!(policy.usage(GLOBAL).held, 8, "a shared cell is held once");
    assert_eq!(policy.place(&[append(1, 2)], &mut Plan::new()), Ok(()));
    assert_eq!(layout(&*policy, 1), [run(0, 5), run(8, 2)]);
    assert_eq!(policy.truncate(SeqId(2), 3), 3);
    policy.release(SeqId(0));
    assert_eq!(policy.usage(GLOBAL).held, 7, "what a fork holds stays");
    assert_eq!(layout(&*policy, 1), [run(0, 5), run(8, 2)]);
    assert_eq!(policy.truncate(SeqId(1), 4), 4);
    assert_eq!(policy.usage(GLOBAL).held, 4);
    assert_eq!(policy.audit(), Ok(()));
}

#[test]
fn a_shift_of_one_sequence_moves_the_positions_of_its_fork() {
    let mut policy = policy("llama-unified", 64, 64);
    let mut shadow = Shadow::new();
    let mut plan = Plan::new();
    open(&mut *policy, 0);
    assert_eq!(policy.place(&[append(0, 16)], &mut plan), Ok(()));
    assert_eq!(policy.fork(SeqId(0), SeqId(1), 12), 12);
    let own = |seq: u32, token: u32| u64::from(seq) << 32 | u64::from(token);
    shadow.run(&plan, |seq, token| own(seq.0, token));
    assert_eq!(shadow.check(&*policy, SeqId(1), |token| own(0, token)), Ok(()));
    assert_eq!(policy.reduce(SeqId(0), 4, &mut plan), Reduction::Dropped(6));
    plan.clear();
    assert_eq!(policy.place(&[append(0, 1)], &mut plan), Ok(()));
    let token_of = |token: u32| if token < 4 { own(0, token) } else { own(0, token + 6) };
    shadow.run(&plan, |_, token| own(0, token + 6));
    // The sequence that shifted is right. The fork has all its tokens, none of another sequence,
    // but tokens 10 and 11 have gone to positions 4 and 5.
    assert_eq!(shadow.check(&*policy, SeqId(0), token_of), Ok(()));
    assert!(shadow.check(&*policy, SeqId(1), |token| own(0, token)).is_err());
    let cells: Vec<u32> = layout(&*policy, 1).iter().flat_map(|run| run.cells()).collect();
    assert_eq!(cells, [0, 1, 2, 3, 4, 10, 5, 11, 6, 7, 8, 9]);
    let positions = cells.iter().map(|&cell| shadow.payload(GLOBAL, cell).expect("it was written").position);
    assert_eq!(Vec::from_iter(positions), [0, 1, 2, 3, 4, 4, 5, 5, 6, 7, 8, 9]);
    assert_eq!(policy.foreign(SeqId(1)), 0);
    // So a roll back to 8 tokens keeps two too many: positions 0 to 7 are ten cells.
    assert_eq!(policy.truncate(SeqId(1), 8), 8);
    assert_eq!(layout(&*policy, 1).iter().map(|run| run.len).sum::<u32>(), 10);
    assert_eq!(policy.audit(), Ok(()));
}

#[derive(Clone, Debug)]
enum Call {
    Place(Vec<(u32, u32)>),
    Fork { from: u32, to: u32, tokens: u32 },
    Truncate(u32, u32),
    Remove(u32, u32, u32),
    Release(u32),
}

fn call() -> impl Strategy<Value = Call> {
    let seq = || 0..4u32;
    prop_oneof![
        6 => prop::collection::vec((seq(), 1..7u32), 1..4).prop_map(Call::Place),
        2 => (seq(), seq(), 1..16u32).prop_map(|(from, to, tokens)| Call::Fork { from, to, tokens }),
        2 => (seq(), 0..16u32).prop_map(|(seq, len)| Call::Truncate(seq, len)),
        2 => (seq(), 0..12u32, 1..6u32).prop_map(|(seq, start, len)| Call::Remove(seq, start, len)),
        2 => seq().prop_map(Call::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Forks as a driver makes them, on shadow memory. Sequences that share cells are not shifted:
    /// nothing may go wrong then.
    #[test]
    fn forks_read_what_they_share_as_long_as_nobody_shifts_it(
        cells in 16..50u32,
        ubatch in 1..9u32,
        calls in prop::collection::vec(call(), 1..60),
    ) {
        let mut policy = policy(&format!("llama-unified:{ubatch}"), cells, cells + 9);
        let mut shadow = Shadow::new();
        let mut model: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        let mut serial = 0;
        for call in calls {
            match call {
                Call::Place(wanted) => {
                    let mut batch: Vec<Append> = Vec::new();
                    for (seq, tokens) in wanted {
                        let held = model.entry(seq).or_insert_with(|| {
                            open(&mut *policy, seq);
                            Vec::new()
                        });
                        let tokens = tokens.min(16 - held.len() as u32);
                        if tokens > 0 && batch.iter().all(|append| append.seq.0 != seq) {
                            batch.push(append(seq, tokens));
                        }
                    }
                    if batch.is_empty() {
                        continue;
                    }
                    let wanted: u32 = batch.iter().map(|append| append.tokens).sum();
                    let free = policy.usage(GLOBAL).free;
                    let mut plan = Plan::new();
                    let placed = policy.place(&batch, &mut plan);
                    prop_assert_eq!(placed.is_ok(), wanted <= free, "{} tokens, {} free", wanted, free);
                    for append in batch.iter().filter(|_| placed.is_ok()) {
                        for _ in 0..append.tokens {
                            serial += 1;
                            model.get_mut(&append.seq.0).expect("open").push(serial);
                        }
                    }
                    shadow.run(&plan, |seq, token| model[&seq.0][token as usize]);
                }
                Call::Fork { from, to, tokens } => {
                    if let Some(source) = model.get(&from).filter(|_| !model.contains_key(&to)) {
                        let tokens = tokens.min(source.len() as u32);
                        prop_assert_eq!(policy.fork(SeqId(from), SeqId(to), tokens), tokens);
                        if tokens > 0 {
                            model.insert(to, source[..tokens as usize].to_vec());
                        }
                    }
                }
                Call::Truncate(seq, len) => {
                    if let Some(tokens) = model.get_mut(&seq) {
                        prop_assert_eq!(policy.truncate(SeqId(seq), len), len.min(tokens.len() as u32));
                        tokens.truncate(len as usize);
                    }
                }
                Call::Remove(seq, start, len) => {
                    let shares = |tokens: &[u64]| {
                        model.iter().any(|(&other, own)| other != seq && own.iter().any(|token| tokens.contains(token)))
                    };
                    if let Some(tokens) = model.get(&seq).filter(|tokens| !shares(tokens)) {
                        let end = (start + len).min(tokens.len() as u32);
                        if start < end {
                            prop_assert_eq!(policy.remove(SeqId(seq), start..end, &mut Plan::new()), Ok(()));
                            model.get_mut(&seq).expect("open").drain(start as usize..end as usize);
                        }
                    }
                }
                Call::Release(seq) => {
                    if model.remove(&seq).is_some() {
                        policy.release(SeqId(seq));
                    }
                }
            }
            prop_assert_eq!(policy.audit(), Ok(()));
            for (&seq, tokens) in &model {
                prop_assert_eq!(policy.len(SeqId(seq)) as usize, tokens.len());
                prop_assert_eq!(shadow.check(&*policy, SeqId(seq), |token| tokens[token as usize]), Ok(()));
            }
        }
    }
}
