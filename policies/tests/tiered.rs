//! What goes to main memory, when, and what of it comes back.

use std::sync::Arc;

use policies::{
    Append, Budget, ClassId, Content, Effect, Geometry, Intent, LayerClass, Plan, Policy, Reach, SeqId,
    Shadow, make_policy,
};

const BLOCK: u32 = 4;

fn cache(spec: &str, blocks: u32) -> Box<dyn Policy> {
    let class = |name: &str, reach| LayerClass { name: name.into(), layers: 1, reach, cells: blocks * BLOCK };
    let classes = vec![class("local", Reach::Window(6)), class("global", Reach::Full)];
    let geometry = Geometry { classes, context_max: 64, batch_max: 64, sequences_max: 4 };
    make_policy(spec, &geometry).expect("the spec is good")
}

fn chain(ids: &[u64]) -> Content {
    let end = ids.len() as u32 * BLOCK;
    Content { chain: Arc::from(ids), chain_tokens: BLOCK, chain_end: end, own: ids[0] << 8 }
}

/// A token's name: its place in the chain that leads to it.
fn name(content: &Content, token: u32) -> u64 {
    content.chain[(token / BLOCK) as usize] << 16 | u64::from(token)
}

/// A cache, its shadow, and what its plans asked for.
struct World {
    policy: Box<dyn Policy>,
    shadow: Shadow,
    offloaded: u32,
    fetched: u32,
}

impl World {
    fn new(spec: &str, blocks: u32) -> Self {
        World { policy: cache(spec, blocks), shadow: Shadow::new(), offloaded: 0, fetched: 0 }
    }

    fn execute(&mut self, plan: &Plan, content: &Content) {
        self.shadow.run(plan, |_, token| name(content, token));
        for effect in plan.effects() {
            match *effect {
                Effect::Offload { run, .. } => self.offloaded += run.len,
                Effect::Fetch { run, .. } => self.fetched += run.len,
                _ => {}
            }
        }
        assert_eq!(self.policy.audit(), Ok(()));
    }

    fn open(&mut self, seq: u32, content: &Content, tokens: u32) -> u32 {
        let intent = Intent { content: content.clone(), prompt_tokens: tokens, total_tokens: tokens };
        let promised = self.policy.cached(content, tokens).tokens;
        let hit = self.policy.open(SeqId(seq), &intent);
        assert_eq!(hit, promised);
        assert_eq!(self.policy.audit(), Ok(()));
        hit
    }

    fn check(&self, seq: u32, content: &Content) {
        let checked = self.shadow.check(&*self.policy, SeqId(seq), |token| name(content, token));
        assert_eq!(checked, Ok(()));
    }

    fn place(&mut self, seq: u32, content: &Content, tokens: u32) {
        let mut plan = Plan::new();
        let batch = [Append { seq: SeqId(seq), tokens, restored: false }];
        assert_eq!(self.policy.place(&batch, &mut plan), Ok(()));
        self.execute(&plan, content);
        self.check(seq, content);
    }

    fn maintain(&mut self, cells: u32) {
        let mut plan = Plan::new();
        self.policy.maintain(Budget { cells }, &mut plan);
        self.execute(&plan, &chain(&[0]));
    }

    /// A sequence comes, holds its whole chain, and goes; the tokens that it found.
    fn visit(&mut self, content: &Content) -> u32 {
        let tokens = content.chain_end;
        let hit = self.open(0, content, tokens);
        self.check(0, content);
        self.place(0, content, tokens - hit);
        self.policy.release(SeqId(0));
        hit
    }
}

#[test]
fn what_was_copied_out_before_it_was_evicted_is_found_again() {
    let (a, b) = (chain(&[1, 2, 3, 4]), chain(&[5, 6, 7, 8, 9]));
    for (spec, hit) in [("tiered:4:64", 12), ("tiered:4:0", 0), ("paged:4+prefix", 0)] {
        let mut world = World::new(spec, 5);
        world.visit(&a);
        world.maintain(64);
        world.visit(&b);
        assert_eq!(world.visit(&a), hit, "{spec}");
        // Both classes: the global one three blocks, the local one the two that the window reaches.
        assert_eq!(world.fetched, if hit > 0 { 5 * BLOCK } else { 0 }, "{spec}");
    }
}

#[test]
fn what_is_evicted_before_its_turn_is_lost() {
    let (a, b) = (chain(&[1, 2, 3, 4]), chain(&[5, 6, 7, 8, 9]));
    for (budget, offloaded) in [(0, 0), (3, 0), (4, 4), (11, 8), (64, 32)] {
        let mut world = World::new("tiered:4:64", 5);
        world.visit(&a);
        world.maintain(budget);
        assert_eq!(world.offloaded, offloaded, "{budget}");
        world.visit(&b);
        assert_eq!(world.visit(&a), if budget == 64 { 12 } else { 0 }, "{budget}");
    }
}

#[test]
fn nothing_is_copied_out_twice_and_only_what_is_evicted_next_at_all() {
    let a = chain(&[1, 2, 3, 4]);
    let mut world = World::new("tiered:4:64", 9);
    world.visit(&a);
    world.maintain(64);
    world.maintain(64);
    assert_eq!(world.offloaded, 2 * 16);
    // Two blocks are looked at, and five others, that hold nothing, are reused before any that does.
    let mut world = World::new("tiered:4:64:ahead=8", 9);
    world.visit(&a);
    world.maintain(64);
    assert_eq!(world.offloaded, 0);
}

#[test]
fn main_memory_forgets_what_was_used_least_recently() {
    let chains: Vec<Content> =
        (0..4).map(|i| chain(&[10 * i + 1, 10 * i + 2, 10 * i + 3, 10 * i + 4])).collect();
    // Main memory has room for two chains, the device for one.
    let mut world = World::new("tiered:4:32", 4);
    for content in &chains[..3] {
        world.visit(content);
        world.maintain(64);
    }
    assert_eq!(world.visit(&chains[0]), 0);
    world.maintain(64);
    assert_eq!(world.visit(&chains[2]), 12);
    assert_eq!(world.visit(&chains[1]), 0);
}

#[test]
fn what_is_owed_is_fetched_by_the_next_plan_whoever_it_is_for() {
    let (a, b) = (chain(&[1, 2, 3, 4]), chain(&[5, 6, 7, 8]));
    let mut world = World::new("tiered:4:64", 9);
    world.visit(&a);
    world.maintain(64);
    world.visit(&b);
    world.visit(&chain(&[9, 10, 11, 12, 13, 14, 15, 16]));
    // The first waits with what it found, a second finds the same, and goes first.
    let hit = world.open(1, &a, 16);
    assert_eq!(hit, 12);
    world.check(1, &a);
    let mut owed = Vec::new();
    world.policy.unfetched(ClassId(1), &mut owed);
    assert_eq!(owed.iter().map(|(run, _)| run.len).sum::<u32>(), 12);
    assert_eq!(world.open(2, &a, 16), 12);
    world.place(2, &a, 4);
    assert_eq!(world.fetched, 5 * BLOCK);
    world.check(1, &a);
    world.policy.unfetched(ClassId(1), &mut owed);
    assert!(owed.is_empty());
    world.place(1, &a, 4);
    assert_eq!(world.fetched, 5 * BLOCK, "it is there already");
}

#[test]
fn who_goes_before_its_blocks_were_fetched_leaves_them_to_be_fetched_or_forgotten() {
    let (a, b, c) = (chain(&[1, 2, 3, 4]), chain(&[5, 6, 7, 8, 9]), chain(&[11, 12, 13, 14]));
    for other_needs_them in [false, true] {
        let mut world = World::new("tiered:4:64", 5);
        for content in [&a, &c] {
            world.visit(content);
            world.maintain(64);
        }
        world.visit(&b);
        assert_eq!(world.open(1, &a, 16), 12);
        world.policy.release(SeqId(1));
        let (next, seq) = if other_needs_them { (&c, 2) } else { (&a, 1) };
        assert_eq!(world.open(seq, next, 16), 12);
        world.place(seq, next, 4);
        world.policy.release(SeqId(seq));
        assert_eq!(world.visit(&a), 12);
    }
}

#[test]
fn a_hit_that_finds_no_cells_is_what_the_device_has() {
    let (a, b) = (chain(&[1, 2, 3, 4]), chain(&[5, 6, 7, 8]));
    let mut world = World::new("tiered:4:64", 5);
    world.visit(&a);
    world.maintain(64);
    assert_eq!(world.open(1, &b, 16), 0);
    world.place(1, &b, 16);
    assert_eq!(world.open(2, &a, 16), 4, "one block is there, none is free for two more");
    world.check(2, &a);
}
