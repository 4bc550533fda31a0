//! The cache of the llama runner with its indexes against the one that scans, call by call.

use benches::linear_llama::LinearCache;
use policies::SeqId;
use policies::llama_unified::{Part, UnifiedCache};
use proptest::prelude::*;

const SEQUENCES: u32 = 5;

#[derive(Clone, Debug)]
enum Call {
    /// Tokens go on where the sequence ends, or somewhere else.
    Decode(Vec<(u32, u32, Option<i32>)>),
    Remove(u32, i32, i32),
    Copy(u32, u32, i32, i32),
    Shift(u32, i32, i32, i32),
    /// What a runner does at the limit: drop and slide down.
    Slide(u32, i32, i32),
}

fn call() -> impl Strategy<Value = Call> {
    let seq = || 0..SEQUENCES;
    let start = || prop_oneof![3 => Just(0), 6 => 0..40i32, 1 => Just(-1)];
    let end = || prop_oneof![3 => Just(-1), 6 => 0..60i32];
    let first = prop_oneof![9 => Just(None), 1 => (0..50i32).prop_map(Some)];
    prop_oneof![
        9 => prop::collection::vec((seq(), 0..14u32, first), 1..4).prop_map(Call::Decode),
        5 => (seq(), start(), end()).prop_map(|(seq, start, end)| Call::Remove(seq, start, end)),
        1 => seq().prop_map(|seq| Call::Remove(seq, 0, -1)),
        2 => (seq(), seq(), start(), end()).prop_map(|(from, to, start, end)| Call::Copy(from, to, start, end)),
        1 => (seq(), start(), end(), -9..9i32)
            .prop_map(|(seq, start, end, delta)| Call::Shift(seq, start, end, delta)),
        2 => (seq(), 0..20i32, 1..9i32).prop_map(|(seq, start, len)| Call::Slide(seq, start, len)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_indexes_answer_like_a_scan(
        size in prop_oneof![1..40u32, 40..200u32],
        layers in prop_oneof![Just(1u32), Just(26), Just(3000), Just(10_000)],
        ubatch in 1..20u32,
        pad in prop_oneof![Just(32u32), Just(256)],
        calls in prop::collection::vec(call(), 1..90),
    ) {
        let mut cache = UnifiedCache::new(size, layers, ubatch, pad);
        let mut linear = LinearCache::new(size, layers, ubatch, pad);
        let (mut effects, mut expected) = (Vec::new(), Vec::new());
        for call in calls {
            match call.clone() {
                Call::Decode(parts) => {
                    let mut batch: Vec<Part> = Vec::new();
                    for (seq, tokens, first) in parts {
                        let table = cache.table(SeqId(seq));
                        let end = table.last().and_then(|&cell| cache.position(cell)).map_or(0, |pos| pos + 1);
                        let in_batch = batch.iter().filter(|part| part.seq.0 == seq).map(|part| part.tokens);
                        let first = first.unwrap_or((end + in_batch.sum::<u32>()) as i32);
                        batch.push(Part { seq: SeqId(seq), first, tokens });
                    }
                    effects.clear();
                    expected.clear();
                    let free = size - cache.used();
                    let wanted: u32 = batch.iter().map(|part| part.tokens).sum();
                    let answer = cache.decode(&batch, &mut effects);
                    prop_assert_eq!(answer, linear.decode(&batch, &mut expected), "{:?}", &call);
                    prop_assert_eq!(&effects, &expected, "{:?}", &call);
                    prop_assert_eq!(cache.work(), linear.work());
                    // Compaction makes the free cells one run, so only too many tokens are refused.
                    prop_assert_eq!(answer.is_ok(), wanted <= free, "{} tokens for {} cells", wanted, free);
                }
                Call::Remove(seq, start, end) => {
                    cache.remove(SeqId(seq), start..end);
                    linear.remove(SeqId(seq), start..end);
                }
                Call::Copy(from, to, start, end) => {
                    cache.copy(SeqId(from), SeqId(to), start..end);
                    linear.copy(SeqId(from), SeqId(to), start..end);
                }
                Call::Shift(seq, start, end, delta) => {
                    cache.shift(SeqId(seq), start..end, delta);
                    linear.shift(SeqId(seq), start..end, delta);
                }
                Call::Slide(seq, start, len) => {
                    cache.remove(SeqId(seq), start..start + len);
                    cache.shift(SeqId(seq), start + len..-1, -len);
                    linear.remove(SeqId(seq), start..start + len);
                    linear.shift(SeqId(seq), start + len..-1, -len);
                }
            }
            prop_assert_eq!((cache.head(), cache.attended()), linear.counts(), "after {:?}", &call);
            prop_assert_eq!(cache.used() as usize, linear.used(), "after {:?}", &call);
            for cell in 0..size {
                let holders = (0..SEQUENCES).filter(|&seq| cache.table(SeqId(seq)).contains(&cell)).collect();
                let found = cache.position(cell).map(|pos| (pos, holders));
                prop_assert_eq!(found, linear.cell(cell), "cell {} after {:?}", cell, &call);
            }
            prop_assert_eq!(cache.audit(), Ok(()), "after {:?}", &call);
        }
    }
}
