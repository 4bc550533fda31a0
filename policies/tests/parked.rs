//! Preempted sequences in main memory (`+swap`): each content goes there once, and is found again; and a second
//! tier behind any evictor.

use std::collections::BTreeMap;
use std::sync::Arc;

use policies::{
    Append, Budget, ClassId, Content, Effect, Geometry, Intent, LayerClass, Plan, Policy, Reach, Run, SeqId,
    Shadow, make_policy,
};
use proptest::prelude::*;

const BLOCK: u32 = 4;
const CLASS: ClassId = ClassId(0);

fn cache(spec: &str, blocks: u32, window: Option<u32>) -> Box<dyn Policy> {
    let class = |name: &str, reach| LayerClass { name: name.into(), layers: 1, reach, cells: blocks * BLOCK };
    let mut classes = vec![class("global", Reach::Full)];
    classes.extend(window.map(|window| class("local", Reach::Window(window))));
    let geometry = Geometry { classes, context_max: 64, batch_max: 64, sequences_max: 4 };
    make_policy(spec, &geometry).expect("the spec is good")
}

/// The first `shared` ids belong to a family of prompts, later tokens to one of them alone.
fn content(own: u64, family: u64, shared: u32) -> Content {
    let chain: Arc<[u64]> = (0..shared).map(|link| 100 * (family + 1) + u64::from(link)).collect();
    Content { chain, chain_tokens: BLOCK, chain_end: shared * BLOCK, own }
}

/// A name of a token that says all before it.
fn name(content: &Content, token: u32) -> u64 {
    match content.chain.get((token / BLOCK) as usize) {
        Some(id) => id << 16 | u64::from(token),
        None => (content.own + 1) << 40 | u64::from(token),
    }
}

/// A cache, its shadow, and what lies in main memory by its plans.
struct World {
    policy: Box<dyn Policy>,
    shadow: Shadow,
    open: BTreeMap<u32, Content>,
    /// What each block of main memory holds: the name of its last token.
    slots: BTreeMap<(ClassId, u32), u64>,
    offloaded: u32,
    fetched: u32,
}

impl World {
    fn new(policy: Box<dyn Policy>) -> Self {
        let (open, slots) = (BTreeMap::new(), BTreeMap::new());
        World { policy, shadow: Shadow::new(), open, slots, offloaded: 0, fetched: 0 }
    }

    fn holds(&self, class: ClassId, content: &Content, block: u32) -> bool {
        let wanted = name(content, (block + 1) * BLOCK - 1);
        self.slots.iter().any(|(&(of, _), &held)| of == class && held == wanted)
    }

    fn execute(&mut self, plan: &Plan) {
        for effect in plan.effects() {
            match *effect {
                Effect::Offload { class, run, slot } => {
                    let last = self.shadow.payload(class, run.start + BLOCK - 1).expect("it holds something");
                    let is_there =
                        |(&(of, _), &held): (&(ClassId, u32), &u64)| of == class && held == last.token;
                    assert!(!self.slots.iter().any(is_there), "a content goes to main memory once");
                    self.slots.insert((class, slot), last.token);
                    self.offloaded += run.len;
                }
                Effect::Fetch { run, .. } => self.fetched += run.len,
                _ => {}
            }
            let mut one = Plan::new();
            one.push(*effect);
            let open = &self.open;
            self.shadow.run(&one, |seq, token| name(&open[&seq.0], token));
        }
        assert_eq!(self.policy.audit(), Ok(()));
    }

    /// Opens a sequence and places the rest of `tokens`; how many were found, or none if there was no room.
    fn start(&mut self, seq: u32, content: &Content, tokens: u32, restored: bool) -> Option<u32> {
        let intent = Intent { content: content.clone(), prompt_tokens: tokens, total_tokens: tokens };
        let hit = self.policy.open(SeqId(seq), &intent);
        self.open.insert(seq, content.clone());
        let mut plan = Plan::new();
        let batch = [Append { seq: SeqId(seq), tokens: tokens - hit, restored }];
        if self.policy.place(&batch, &mut plan).is_err() {
            self.policy.release(SeqId(seq));
            self.open.remove(&seq);
            return None;
        }
        self.execute(&plan);
        Some(hit)
    }

    fn decode(&mut self, seq: u32) -> bool {
        let mut plan = Plan::new();
        let placed = self.policy.place(&[Append { seq: SeqId(seq), tokens: 1, restored: false }], &mut plan);
        self.execute(&plan);
        placed.is_ok()
    }

    /// Describes the transfer of a sequence's tokens from `from` on.
    fn transfer(&self, seq: u32, from: u32, out: bool) -> Plan {
        let (mut plan, mut runs) = (Plan::new(), Vec::new());
        for class in self.policy.geometry().class_ids() {
            let mut first = self.policy.layout(class, SeqId(seq), &mut runs).start;
            for run in &runs {
                let skipped = from.saturating_sub(first).min(run.len);
                let (seq, first_moved) = (SeqId(seq), first + skipped);
                let run_moved = Run { start: run.start + skipped, len: run.len - skipped };
                plan.push(match out {
                    true => Effect::SwapOut { class, seq, first: first_moved, run: run_moved },
                    false => Effect::SwapIn { class, seq, first: first_moved, run: run_moved },
                });
                first += run.len;
            }
        }
        plan
    }

    /// Preempts a sequence; the tokens that it had, and those that its policy has parked.
    fn preempt(&mut self, seq: u32) -> (u32, u32) {
        let (mut plan, len) = (Plan::new(), self.policy.len(SeqId(seq)));
        let parked = self.policy.park(SeqId(seq), &mut plan).expect("it was asked to swap");
        self.execute(&plan);
        let rest = self.transfer(seq, parked, true);
        self.execute(&rest);
        self.policy.release(SeqId(seq));
        self.open.remove(&seq);
        (len, parked)
    }

    /// Brings a preempted sequence back, and reads all of it. None if there is no room for it.
    fn resume(&mut self, seq: u32, content: &Content, len: u32) -> Option<u32> {
        let hit = self.start(seq, content, len, true)?;
        let rest = self.transfer(seq, hit, false);
        self.execute(&rest);
        Some(hit)
    }

    fn check(&self, seq: u32, content: &Content) {
        let checked = self.shadow.check(&*self.policy, SeqId(seq), |token| name(content, token));
        assert_eq!(checked, Ok(()));
    }
}

/// What happens to one of three sequences: it comes (with so many shared blocks, of so many tokens), gets a
/// token, is preempted or comes back, ends.
#[derive(Clone, Debug)]
enum Call {
    Start { seq: u32, family: u64, shared: u32, tokens: u32 },
    Decode { seq: u32 },
    Preempt { seq: u32 },
    Resume { seq: u32 },
    End { seq: u32 },
}

fn call() -> impl Strategy<Value = Call> {
    let seq = 0..3u32;
    prop_oneof![
        3 => (seq.clone(), 0..2u64, 0..4u32, 1..20u32)
            .prop_map(|(seq, family, shared, tokens)| Call::Start { seq, family, shared, tokens }),
        3 => seq.clone().prop_map(|seq| Call::Decode { seq }),
        4 => seq.clone().prop_map(|seq| Call::Preempt { seq }),
        3 => seq.clone().prop_map(|seq| Call::Resume { seq }),
        1 => seq.prop_map(|seq| Call::End { seq }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_content_is_parked_once_whoever_has_it_and_found_while_it_is_there(
        calls in prop::collection::vec(call(), 1..60),
        host_blocks in 0..14u32,
        evictor in prop_oneof![Just("lru"), Just("lfu"), Just("s3fifo"), Just("lru:none:leaf")],
    ) {
        let spec = format!("paged:{BLOCK}+prefix({evictor})+swap({})", host_blocks * BLOCK);
        let mut world = World::new(cache(&spec, 14, None));
        let mut away: BTreeMap<u32, (Content, u32, u32)> = BTreeMap::new();
        for (own, call) in (0..).zip(&calls) {
            match *call {
                Call::Start { seq, family, shared, tokens }
                    if !world.open.contains_key(&seq) && !away.contains_key(&seq) =>
                {
                    let shared = shared.min(tokens / BLOCK);
                    world.start(seq, &content(own, family, shared), tokens, false);
                }
                Call::Decode { seq } if world.open.contains_key(&seq) => {
                    world.decode(seq);
                }
                Call::Preempt { seq } if world.open.contains_key(&seq) => {
                    let content = world.open[&seq].clone();
                    let (len, parked) = world.preempt(seq);
                    let all = (len - 1) / BLOCK * BLOCK;
                    prop_assert_eq!(parked, if all / BLOCK <= host_blocks { all } else { 0 });
                    for block in 0..parked / BLOCK {
                        prop_assert!(world.holds(CLASS, &content, block), "block {} is there", block);
                    }
                    away.insert(seq, (content, len, parked));
                }
                Call::Resume { seq } => {
                    let Some((content, len, parked)) = away.remove(&seq) else { continue };
                    let is_there = (0..parked / BLOCK).all(|block| world.holds(CLASS, &content, block));
                    match world.resume(seq, &content, len) {
                        // Nobody else is in the way; if it is alone there is room.
                        None => prop_assert!(!world.open.is_empty()),
                        Some(hit) if hit < parked => {
                            prop_assert!(!is_there || world.open.len() > 1, "{} of {} found", hit, parked);
                            world.policy.release(SeqId(seq));
                            world.open.remove(&seq);
                        }
                        Some(_) => world.check(seq, &content),
                    }
                }
                Call::End { seq } if world.open.remove(&seq).is_some() => world.policy.release(SeqId(seq)),
                _ => {}
            }
            for (&seq, content) in &world.open {
                world.check(seq, content);
            }
        }
    }

    #[test]
    fn with_memory_enough_two_tiers_find_what_an_endless_cache_finds(
        prompts in prop::collection::vec((0..4u64, prop_oneof![Just(0), 1..8u32], 1..32u32), 1..60),
        window in prop_oneof![Just(None), (2..12u32).prop_map(Some)],
        evictor in prop_oneof![Just("lru"), Just("fifo"), Just("lfu"), Just("scan"), Just("s3fifo")],
    ) {
        let spec = format!("paged:{BLOCK}+prefix({evictor})+tiered(4096:4096)");
        let mut world = World::new(cache(&spec, 20, window));
        let mut seen: Vec<Vec<u64>> = Vec::new();
        for (own, &(family, shared, tokens)) in (0..).zip(&prompts) {
            let content = content(own, family, shared.min(tokens / BLOCK));
            let names: Vec<u64> = (0..tokens).map(|token| name(&content, token)).collect();
            let common = |other: &Vec<u64>| names.iter().zip(other).take_while(|(a, b)| a == b).count();
            let longest = seen.iter().map(common).max().unwrap_or(0).min(names.len() - 1) as u32;
            // A prompt takes eight blocks at most. One that adopts nothing takes those that are said to go next, so it
            // is enough to save the first eight that are not.
            let saved = if shared == 0 && window.is_none() { 8 * BLOCK } else { 1 << 20 };
            let mut plan = Plan::new();
            world.policy.maintain(Budget { cells: saved }, &mut plan);
            world.execute(&plan);
            let hit = world.start(0, &content, tokens, false).expect("it is alone");
            world.check(0, &content);
            let expected = longest / BLOCK * BLOCK;
            match window {
                None => prop_assert_eq!(hit, expected),
                // A window may have let go of what its reader did not need any more.
                Some(_) => prop_assert!(hit <= expected),
            }
            world.policy.release(SeqId(0));
            world.open.clear();
            seen.push(names);
        }
    }
}

#[test]
fn two_who_share_a_beginning_leave_it_once_and_each_the_rest() {
    for spec in ["paged:4+prefix(lru)+swap", "tiered:4+swap", "paged:4+prefix+tiered(64:0)+swap"] {
        let mut world = World::new(cache(spec, 20, Some(6)));
        let contents = [content(1, 0, 3), content(2, 0, 3)];
        for (seq, content) in (0..).zip(&contents) {
            assert_eq!(world.start(seq, content, 18, false), Some(if seq == 0 { 0 } else { 12 }), "{spec}");
        }
        // Four blocks of all tokens, and the three that the window of token 16 reaches back over.
        assert_eq!(world.preempt(0), (18, 16), "{spec}");
        assert_eq!(world.offloaded, (4 + 2) * BLOCK, "{spec}");
        // Of the second only its own block.
        assert_eq!(world.preempt(1), (18, 16), "{spec}");
        assert_eq!(world.offloaded, (4 + 2 + 1 + 1) * BLOCK, "{spec}");
        // Everything on the device is written over.
        let other = content(3, 9, 0);
        assert_eq!(world.start(2, &other, 64, false), Some(0), "{spec}");
        world.policy.release(SeqId(2));
        world.open.clear();
        let other = content(4, 9, 0);
        assert_eq!(world.start(2, &other, 64, false), Some(0), "{spec}");
        world.policy.release(SeqId(2));
        world.open.clear();
        for (seq, content) in (0..).zip(&contents) {
            assert_eq!(world.resume(seq, content, 18), Some(16), "{spec}");
            world.check(seq, content);
            assert!(world.decode(seq), "{spec}");
            world.check(seq, content);
        }
    }
}

#[test]
fn without_names_or_memory_everything_is_the_drivers() {
    for spec in ["paged:4+swap", "paged:4+prefix+swap(0)", "paged:4+prefix+swap(8)"] {
        let mut world = World::new(cache(spec, 20, None));
        let content = content(1, 0, 3);
        world.start(0, &content, 18, false);
        assert_eq!((world.preempt(0), world.offloaded), ((18, 0), 0), "{spec}");
        world.resume(0, &content, 18);
        world.check(0, &content);
    }
    for spec in ["paged:4+prefix", "tiered:4", "contiguous", "vllm:4"] {
        let mut world = World::new(cache(spec, 20, None));
        world.start(0, &content(1, 0, 3), 18, false);
        let mut plan = Plan::new();
        assert_eq!(world.policy.park(SeqId(0), &mut plan), None, "{spec}");
        assert!(plan.is_empty());
    }
}
