//! Which cached blocks go first, and how far two contents agree.

use std::sync::Arc;

use policies::{
    Append, ClassId, Content, Geometry, Intent, LayerClass, Plan, Policy, Reach, SeqId, make_policy,
};

const BLOCK: u32 = 4;

fn cache(blocks: u32) -> Box<dyn Policy> {
    let classes =
        vec![LayerClass { name: "all".into(), layers: 1, reach: Reach::Full, cells: blocks * BLOCK }];
    let geometry = Geometry { classes, context_max: 64, batch_max: 64, sequences_max: 4 };
    make_policy("paged:4+prefix", &geometry).expect("the spec is good")
}

fn open(policy: &mut dyn Policy, seq: u32, content: &Content, prompt_tokens: u32) -> u32 {
    policy.open(SeqId(seq), &Intent { content: content.clone(), prompt_tokens, total_tokens: prompt_tokens })
}

fn place(policy: &mut dyn Policy, seq: u32, tokens: u32) {
    let append = Append { seq: SeqId(seq), tokens, restored: false };
    assert_eq!(policy.place(&[append], &mut Plan::new()), Ok(()));
}

/// A sequence comes, holds `tokens`, and goes.
fn visit(policy: &mut dyn Policy, content: &Content, tokens: u32) {
    let hit = open(policy, 0, content, tokens);
    place(policy, 0, tokens - hit);
    policy.release(SeqId(0));
}

fn chain(ids: &[u64], end: u32) -> Content {
    Content {
        chain: Arc::from(ids),
        chain_tokens: BLOCK,
        chain_end: end,
        own: ids.iter().sum::<u64>() << 8 | u64::from(end),
    }
}

#[test]
fn the_least_recently_used_chain_is_evicted_tail_first() {
    let (a, b) = (chain(&[1, 2, 3], 12), chain(&[5, 6, 7], 12));
    for a_is_used_again in [false, true] {
        let mut policy = cache(8);
        visit(&mut *policy, &a, 12);
        visit(&mut *policy, &b, 12);
        if a_is_used_again {
            assert_eq!(open(&mut *policy, 0, &a, 12), 8, "one token is left to compute");
            policy.release(SeqId(0));
        }
        let mut left = vec![];
        open(&mut *policy, 1, &Content::own(99), 64);
        for _ in 0..8 {
            place(&mut *policy, 1, BLOCK);
            left.push((policy.cached(&a, 13).tokens, policy.cached(&b, 13).tokens));
        }
        // Two blocks were never used; then the chain that was idle longest goes from its end.
        let expected: [(u32, u32); 8] = if a_is_used_again {
            // Its third block was not adopted, so it has been idle longest of all.
            [(12, 12), (12, 12), (8, 12), (8, 8), (8, 4), (8, 0), (4, 0), (0, 0)]
        } else {
            [(12, 12), (12, 12), (8, 12), (4, 12), (0, 12), (0, 8), (0, 4), (0, 0)]
        };
        assert_eq!(left, expected);
    }
}

#[test]
fn a_block_that_nobody_can_find_is_taken_before_a_cached_one() {
    let mut policy = cache(4);
    let known = chain(&[1, 2, 3], 12);
    visit(&mut *policy, &known, 12);
    // Two tokens do not fill a block, so their block has no key when it comes back.
    visit(&mut *policy, &Content::own(9), 2);
    open(&mut *policy, 1, &Content::own(10), 2);
    place(&mut *policy, 1, 2);
    assert_eq!(policy.cached(&known, 13).tokens, 12);
    assert_eq!(policy.usage(ClassId(0)).free, 0);
}

#[test]
fn a_hit_says_how_many_of_its_cells_nobody_holds() {
    let mut policy = cache(8);
    let known = chain(&[1, 2, 3], 12);
    visit(&mut *policy, &known, 12);
    open(&mut *policy, 1, &chain(&[1, 2], 9), 9);
    let hit = policy.cached(&known, 13);
    assert_eq!((hit.tokens, hit.idle_cells), (12, 4), "two of the three blocks are held");
}

#[test]
fn contents_agree_as_far_as_both_chains_speak() {
    let common = |a: &Content, b: &Content| (a.common_tokens(b), b.common_tokens(a));
    assert_eq!(common(&chain(&[1, 2, 3], 12), &chain(&[1, 2, 4], 12)), (8, 8));
    assert_eq!(common(&chain(&[1, 2, 3], 11), &chain(&[1, 2, 3], 10)), (10, 10));
    assert_eq!(common(&chain(&[1, 2], 12), &chain(&[2, 2], 12)), (0, 0));
    let a = chain(&[1, 2, 3], 10);
    assert_eq!(a.common_tokens(&a.clone()), u32::MAX, "the same request");
}
