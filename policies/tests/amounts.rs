//! How many cells each policy takes, against arithmetic: a policy that keeps every promise may
//! still take more than it says.

use policies::{
    Append, ClassId, Content, Geometry, Intent, LayerClass, Plan, Policy, Reach, Reduction, SeqId,
    make_policy,
};
use proptest::prelude::*;

const WINDOW: u32 = 8;
const BATCH: u32 = 32;
const CONTEXT: u32 = 300;
const LOCAL: ClassId = ClassId(0);
const GLOBAL: ClassId = ClassId(1);
const SEQ: SeqId = SeqId(0);

fn policy(spec: &str, local: u32, global: u32) -> Box<dyn Policy> {
    let class = |name: &str, reach, cells| LayerClass { name: name.into(), layers: 1, reach, cells };
    let geometry = Geometry {
        classes: vec![class("local", Reach::Window(WINDOW), local), class("global", Reach::Full, global)],
        context_max: CONTEXT,
        batch_max: BATCH,
        sequences_max: 8,
    };
    make_policy(spec, &geometry).expect("the spec is good")
}

fn open(policy: &mut dyn Policy, seq: SeqId, prompt_tokens: u32, total_tokens: u32) {
    policy.open(seq, &Intent { content: Content::own(u64::from(seq.0) + 1), prompt_tokens, total_tokens });
}

fn place(policy: &mut dyn Policy, seq: SeqId, tokens: u32) -> bool {
    policy.place(&[Append { seq, tokens, restored: false }], &mut Plan::new()).is_ok()
}

#[test]
fn a_window_reads_so_many_tokens_the_newest_included() {
    for window in 1..20 {
        for token in 0..60u32 {
            let read = (0..=token).filter(|&earlier| token - earlier < window);
            assert_eq!(Reach::Window(window).first_needed(token), read.clone().min().unwrap_or(0));
            assert_eq!(Reach::Window(window).clip(token + 1), read.count() as u32);
        }
    }
    assert_eq!((Reach::Full.first_needed(50), Reach::Full.clip(50)), (0, 50));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_not_reserved_is_held_for_tokens_only(
        calls in prop::collection::vec(prop_oneof![4 => (1..=BATCH).prop_map(Ok), 1 => (0..CONTEXT).prop_map(Err)], 1..40),
    ) {
        // The cells in a block, and whether blocks that others may find cut a rollback short.
        let specs = [
            ("paged:1", 1, false), ("paged:5", 5, false), ("paged", 16, false), ("paged:4+prefix", 4, true),
            ("contiguous:run", 1, false), ("shift", 1, false), ("defrag", 1, false), ("clairvoyant", 1, false),
            ("unlimited", 1, false),
        ];
        for (spec, block, whole_blocks) in specs {
            let mut policy = policy(spec, 1000, 1000);
            open(&mut *policy, SEQ, 1, CONTEXT);
            let (mut len, mut first) = (0u32, 0u32);
            for &call in &calls {
                match call {
                    Ok(tokens) => {
                        let tokens = tokens.min(CONTEXT - len);
                        if tokens == 0 {
                            continue;
                        }
                        prop_assert!(place(&mut *policy, SEQ, tokens), "{} refused", spec);
                        first = first.max((len + 1).saturating_sub(WINDOW));
                        len += tokens;
                    }
                    Err(to) => {
                        let kept = policy.truncate(SEQ, to);
                        let most = len.min(to);
                        if block == 1 {
                            let reaches = (most + 1).saturating_sub(WINDOW) >= first;
                            prop_assert_eq!(kept, if reaches { most } else { 0 }, "{} rolled back to {}", spec, to);
                        } else {
                            let whole = if whole_blocks { most / block * block } else { most };
                            prop_assert!(kept == 0 || kept == whole, "{} rolled back to {}: {}", spec, to, kept);
                        }
                        len = kept;
                        first = if kept == 0 { 0 } else { first };
                    }
                }
                prop_assert_eq!(policy.usage(GLOBAL).held, len.div_ceil(block) * block, "{} with {} tokens", spec, len);
                if block == 1 {
                    prop_assert_eq!(policy.usage(LOCAL).held, len - first, "{} with {} tokens", spec, len);
                }
            }
        }
    }

    #[test]
    fn whoever_the_clairvoyant_admits_reaches_its_end(
        calls in prop::collection::vec(prop::option::weighted(0.3, (1..30u32, 1..40u32)), 1..120),
        global in 40..200u32,
    ) {
        let mut policy = policy("clairvoyant", 1000, global);
        // (tokens now, tokens at the end) of whoever is present.
        let mut present: Vec<Option<(u32, u32)>> = vec![None; 8];
        for call in calls {
            if let (Some((prompt, output)), Some(id)) = (call, present.iter().position(Option::is_none)) {
                open(&mut *policy, SeqId(id as u32), prompt, prompt + output);
                if place(&mut *policy, SeqId(id as u32), prompt) {
                    present[id] = Some((prompt, prompt + output));
                } else {
                    policy.release(SeqId(id as u32));
                }
            }
            let seqs = (0..).map(SeqId).zip(&present).filter(|(_, slot)| slot.is_some());
            let batch: Vec<Append> = seqs.map(|(seq, _)| Append { seq, tokens: 1, restored: false }).collect();
            prop_assert_eq!(policy.place(&batch, &mut Plan::new()), Ok(()), "with {:?} present", &present);
            for (id, slot) in present.iter_mut().enumerate() {
                if let Some((len, total)) = slot {
                    *len += 1;
                    if len == total {
                        policy.release(SeqId(id as u32));
                        *slot = None;
                    }
                }
            }
        }
    }
}

#[test]
fn an_empty_cache_is_enough_for_a_clairvoyant_that_just_fits() {
    let mut policy = policy("clairvoyant", 1000, 30);
    open(&mut *policy, SEQ, 10, 30);
    assert!(place(&mut *policy, SEQ, 10), "10 tokens and 20 to come are 30 cells");
    open(&mut *policy, SeqId(1), 1, 2);
    assert!(place(&mut *policy, SeqId(1), 1), "it has gone before the first needs its cells");
    open(&mut *policy, SeqId(2), 1, 20);
    assert!(!place(&mut *policy, SeqId(2), 1), "both together would need more than there is");
}

#[test]
fn reservations_are_as_large_as_their_rule_says() {
    let total = 100;
    for spec in [
        "contiguous:max",
        "contiguous:pow2",
        "contiguous:exact",
        "contiguous:pow2:best",
        "contiguous:exact:next",
    ] {
        for step in [1, 7, BATCH, 64] {
            let mut policy = policy(spec, 1000, 1000);
            open(&mut *policy, SEQ, 10, total);
            let mut len = 0;
            while len < CONTEXT {
                let tokens = step.min(CONTEXT - len);
                assert!(place(&mut *policy, SEQ, tokens), "{spec}");
                len += tokens;
                let most = |class| if class == LOCAL { WINDOW + BATCH } else { CONTEXT };
                // A ring is as long as it must be for a batch that is longer than any should be.
                for class in [LOCAL, GLOBAL].into_iter().filter(|&class| class == GLOBAL || step <= BATCH) {
                    // Powers of two begin with 64; beyond its oracle, an exact one grows as it must.
                    let wanted = match spec.split(':').nth(1) {
                        Some("max") => most(class),
                        Some("exact") => len.max(total).min(most(class)),
                        _ => [64, 128, 256, 512]
                            .into_iter()
                            .find(|&size| size >= len)
                            .expect("a size")
                            .min(most(class)),
                    };
                    assert_eq!(
                        policy.usage(class).held,
                        wanted,
                        "{spec} with {len} tokens, class {}",
                        class.0
                    );
                }
            }
        }
    }
}

#[test]
fn a_shift_keeps_the_head_and_frees_half_of_the_rest() {
    for (spec, keep) in
        [("shift", 4), ("shift:0", 0), ("shift:100", 100), ("defrag+shift", 4), ("ollama-0.6.6", 4)]
    {
        let mut policy = policy(spec, 1000, 1000);
        open(&mut *policy, SEQ, 10, CONTEXT);
        while policy.len(SEQ) < CONTEXT {
            assert!(place(&mut *policy, SEQ, 20), "{spec}");
        }
        let mut plan = Plan::new();
        assert_eq!(policy.reduce(SEQ, 4, &mut plan), Reduction::Dropped((CONTEXT - keep) / 2), "{spec}");
        assert_eq!(policy.len(SEQ), CONTEXT - (CONTEXT - keep) / 2, "{spec}");
        assert!(!plan.is_empty(), "{spec}: the tail is rotated");
    }
}
