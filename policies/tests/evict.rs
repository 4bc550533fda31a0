//! Every rule of eviction against a naive model that looks at all cached blocks, with random prompts that
//! part from each other at random.
//!
//! The model knows blocks by the tokens up to their ends, not by hashes, and chooses by looking; for the
//! bound it looks through all prompts to come. Policy and model have to agree on every hit, every refusal
//! and the number of cached blocks after every call.

use std::collections::BTreeMap;
use std::sync::Arc;

use policies::{
    Append, ClassId, Content, Geometry, Intent, LayerClass, Plan, Policy, Reach, SeqId, make_policy,
};
use proptest::prelude::*;

const BLOCK: u32 = 2;
const SEQUENCES: u32 = 3;

/// All tokens up to the end of a block, as ids of the chain; or whose own tokens, and how many.
type Name = Vec<u64>;

/// A prompt: the choices at which it parts from others, one per block, and its tokens.
#[derive(Clone, Debug)]
struct Prompt {
    path: Vec<u64>,
    tokens: u32,
    own: u64,
}

impl Prompt {
    fn content(&self) -> Content {
        let ids = self.path.iter().scan(1, |id, choice| {
            *id = *id * 5 + choice + 1;
            Some(*id)
        });
        Content { chain: ids.collect(), chain_tokens: BLOCK, chain_end: self.tokens, own: self.own }
    }

    fn name(&self, block: u32) -> Name {
        let end = (block + 1) * BLOCK;
        if end <= self.tokens && block < self.path.len() as u32 {
            self.path[..=block as usize].to_vec()
        } else {
            vec![u64::MAX, self.own, end.into()]
        }
    }

    /// Blocks that could be found by this prompt.
    fn names(&self) -> Vec<Name> {
        (0..(self.tokens - 1) / BLOCK).map(|block| self.name(block)).collect()
    }
}

/// A cached block.
#[derive(Clone, Debug)]
struct Known {
    name: Name,
    /// What it goes on from, if that is cached and of the same sequence.
    parent: Option<Name>,
    holders: u32,
    start: u32,
    hits: u32,
    /// When it was given back by its last holder, the first time and last.
    first: u64,
    last: u64,
    /// What its rule thought of it then; for `scan` the chain in which it came back.
    worth: i64,
    /// For `s3fifo`: whether it has left the small queue, and its place in its queue.
    main: bool,
    place: u64,
    spared: u32,
}

struct Sequence {
    prompt: Prompt,
    len: u32,
    /// The name of each block, where this sequence holds the one that can be found.
    blocks: Vec<Option<Name>>,
}

struct Naive {
    rule: &'static str,
    leaves: bool,
    blocks: u32,
    known: Vec<Known>,
    sequences: BTreeMap<u32, Sequence>,
    clock: u64,
    /// Of `cost`: the worth of the last block evicted.
    age: i64,
    /// Of `scan`.
    chains: u64,
    last_start: u32,
    /// Of `s3fifo`: names of what left by the small queue, oldest first.
    ghosts: Vec<Name>,
    /// Of `belady`: all prompts, and how many have come.
    prompts: Vec<Prompt>,
    come: usize,
}

impl Naive {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn find(&self, name: &Name) -> Option<usize> {
        self.known.iter().position(|known| known.name == *name)
    }

    fn cached(&self) -> u32 {
        self.known.iter().filter(|known| known.holders == 0).count() as u32
    }

    fn free(&self) -> u32 {
        let private =
            self.sequences.values().flat_map(|sequence| &sequence.blocks).filter(|name| name.is_none());
        self.blocks - self.known.len() as u32 - private.count() as u32
    }

    fn open(&mut self, seq: u32, prompt: &Prompt) -> u32 {
        let hits: Vec<Name> =
            prompt.names().into_iter().take_while(|name| self.find(name).is_some()).collect();
        for name in &hits {
            let at = self.find(name).expect("it was just found");
            let known = &mut self.known[at];
            known.holders += 1;
            known.hits += 1;
            known.spared = (known.spared + 1).min(3);
        }
        self.come += 1;
        let len = hits.len() as u32 * BLOCK;
        let blocks = hits.into_iter().map(Some).collect();
        self.sequences.insert(seq, Sequence { prompt: prompt.clone(), len, blocks });
        len
    }

    /// Whether there was room.
    fn place(&mut self, seq: u32, tokens: u32) -> bool {
        let sequence = &self.sequences[&seq];
        let end = sequence.len + tokens;
        let take = end.div_ceil(BLOCK) - sequence.blocks.len() as u32;
        if take > self.free() + self.cached() {
            return false;
        }
        for _ in 0..take {
            if self.free() == 0 {
                self.evict();
            }
            self.sequences.get_mut(&seq).expect("open").blocks.push(None);
        }
        let from = self.sequences[&seq].len / BLOCK;
        self.sequences.get_mut(&seq).expect("open").len = end;
        for block in from..end / BLOCK {
            self.name(seq, block);
        }
        true
    }

    fn name(&mut self, seq: u32, block: u32) {
        let sequence = &self.sequences[&seq];
        let name = sequence.prompt.name(block);
        if self.find(&name).is_some() {
            return;
        }
        let before = block.checked_sub(1).map(|before| sequence.prompt.name(before));
        let parent = before.filter(|name| sequence.blocks[block as usize - 1].as_ref() == Some(name));
        let ghost = self.ghosts.iter().position(|ghost| *ghost == name);
        if let Some(ghost) = ghost {
            self.ghosts.remove(ghost);
        }
        self.known.push(Known {
            name: name.clone(),
            parent,
            holders: 1,
            start: block * BLOCK,
            hits: 0,
            first: 0,
            last: 0,
            worth: 0,
            main: ghost.is_some(),
            place: 0,
            spared: 0,
        });
        self.sequences.get_mut(&seq).expect("open").blocks[block as usize] = Some(name);
    }

    fn release(&mut self, seq: u32) {
        let sequence = self.sequences.remove(&seq).expect("open");
        for name in sequence.blocks.into_iter().rev().flatten() {
            let at = self.find(&name).expect("what is held is not evicted");
            self.known[at].holders -= 1;
            if self.known[at].holders == 0 {
                self.touch(at);
            }
        }
    }

    fn touch(&mut self, at: usize) {
        let now = self.tick();
        let known = &mut self.known[at];
        known.last = now;
        if known.first == 0 {
            (known.first, known.place) = (now, now);
        }
        let (start, hits) = (known.start, known.hits);
        if self.rule == "cost" {
            let cost = i64::from(BLOCK) * i64::from(30_000 + start + BLOCK / 2);
            self.known[at].worth = self.age + i64::from(1 + hits) * cost;
        }
        if self.rule == "scan" {
            if hits == 0 && self.last_start != start + BLOCK {
                self.chains += 1;
            }
            if hits == 0 {
                self.last_start = start;
            }
            let is_chosen = hits == 0 && self.chains.is_multiple_of(32);
            self.known[at].hits += u32::from(is_chosen);
            self.known[at].worth = if self.known[at].hits > 0 { now as i64 } else { -(self.chains as i64) };
        }
    }

    fn next_use(&self, known: &Known) -> usize {
        let to_come = self.prompts[self.come..].iter();
        to_come.clone().position(|prompt| prompt.names().contains(&known.name)).unwrap_or(usize::MAX)
    }

    fn evict(&mut self) {
        let is_inner =
            |known: &Known| self.known.iter().any(|other| other.parent.as_ref() == Some(&known.name));
        let offered = |known: &Known| known.holders == 0 && !(self.leaves && is_inner(known));
        let idle: Vec<usize> = (0..self.known.len()).filter(|&at| offered(&self.known[at])).collect();
        let victim = if self.rule == "s3fifo" {
            self.evict_s3fifo(&idle)
        } else {
            let rank = |known: &Known| match self.rule {
                "fifo" => (known.first as i64, 0),
                "lfu" => (known.hits.into(), known.last),
                "cost" | "scan" => (known.worth, known.last),
                "belady" => (i64::MAX - self.next_use(known).min(1 << 40) as i64, known.last),
                _ => (known.last as i64, 0),
            };
            *idle.iter().min_by_key(|&&at| rank(&self.known[at])).expect("something is idle")
        };
        let known = self.known.remove(victim);
        self.age = self.age.max(known.worth);
    }

    /// The rule as its paper has it, on two queues that are looked through.
    fn evict_s3fifo(&mut self, idle: &[usize]) -> usize {
        loop {
            let first = |main: bool| {
                let queue = idle.iter().copied().filter(|&at| self.known[at].main == main);
                queue.min_by_key(|&at| self.known[at].place)
            };
            let small = idle.iter().filter(|&&at| !self.known[at].main).count();
            let (head, main) = match (first(false), first(true)) {
                (Some(head), _) if small * 10 >= idle.len() => (head, false),
                (_, Some(head)) => (head, true),
                (head, None) => (head.expect("something is idle"), false),
            };
            let now = self.tick();
            let known = &mut self.known[head];
            if main && known.spared > 0 {
                (known.place, known.spared) = (now, known.spared - 1);
            } else if !main && known.spared > 1 {
                (known.place, known.spared, known.main) = (now, 0, true);
            } else {
                if !main {
                    self.ghosts.push(self.known[head].name.clone());
                    let most = (self.blocks - self.blocks / 10) as usize;
                    let more = self.ghosts.len().saturating_sub(most);
                    self.ghosts.drain(..more);
                }
                return head;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Call {
    Open { seq: u32, path: Vec<u64>, spare: u32 },
    Place { seq: u32, tokens: u32 },
    Release { seq: u32 },
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let choice = prop_oneof![5 => Just(0u64), 2 => Just(1), 1 => Just(2)];
    let path = prop::collection::vec(choice, 1..6);
    let call = prop_oneof![
        3 => (0..SEQUENCES, path, 0..3u32).prop_map(|(seq, path, spare)| Call::Open { seq, path, spare }),
        3 => (0..SEQUENCES, 1..12u32).prop_map(|(seq, tokens)| Call::Place { seq, tokens }),
        3 => (0..SEQUENCES).prop_map(|seq| Call::Release { seq }),
    ];
    prop::collection::vec(call, 1..160)
}

/// The prompts that the calls open, in order.
fn prompts(calls: &[Call]) -> Vec<Prompt> {
    let mut is_open = [false; SEQUENCES as usize];
    let mut prompts = Vec::new();
    for call in calls {
        match call {
            Call::Open { seq, path, spare } if !is_open[*seq as usize] => {
                is_open[*seq as usize] = true;
                let tokens = path.len() as u32 * BLOCK + 1 - spare.min(&1);
                prompts.push(Prompt { path: path.clone(), tokens, own: prompts.len() as u64 + 1 });
            }
            Call::Release { seq } => is_open[*seq as usize] = false,
            _ => {}
        }
    }
    prompts
}

fn cache(spec: &str, blocks: u32) -> Box<dyn Policy> {
    let all = LayerClass { name: "all".into(), layers: 1, reach: Reach::Full, cells: blocks * BLOCK };
    let geometry =
        Geometry { classes: vec![all], context_max: 100, batch_max: 100, sequences_max: SEQUENCES };
    make_policy(spec, &geometry).expect("the spec is good")
}

fn agree(rule: &'static str, leaves: bool, blocks: u32, calls: &[Call]) -> Result<(), TestCaseError> {
    let order = if leaves { "leaf" } else { "any" };
    let mut policy = cache(&format!("paged:{BLOCK}+prefix({rule}:none:{order})"), blocks);
    let all = prompts(calls);
    policy.foresee(&mut all.iter().map(|prompt| (prompt.content(), prompt.tokens)));
    prop_assert!(!policy.wants_future() || all.is_empty());
    let mut naive = Naive {
        rule,
        leaves,
        blocks,
        known: Vec::new(),
        sequences: BTreeMap::new(),
        clock: 0,
        age: 0,
        chains: 0,
        last_start: 0,
        ghosts: Vec::new(),
        prompts: all.clone(),
        come: 0,
    };
    for call in calls {
        match *call {
            Call::Open { seq, .. } if !naive.sequences.contains_key(&seq) => {
                let prompt = &all[naive.come];
                let content = prompt.content();
                let intent = Intent { content, prompt_tokens: prompt.tokens, total_tokens: prompt.tokens };
                prop_assert_eq!(policy.open(SeqId(seq), &intent), naive.open(seq, prompt), "hit");
            }
            Call::Place { seq, tokens } if naive.sequences.contains_key(&seq) => {
                let placed =
                    policy.place(&[Append { seq: SeqId(seq), tokens, restored: false }], &mut Plan::new());
                prop_assert_eq!(placed.is_ok(), naive.place(seq, tokens), "room");
            }
            Call::Release { seq } if naive.sequences.contains_key(&seq) => {
                policy.release(SeqId(seq));
                naive.release(seq);
            }
            _ => {}
        }
        prop_assert_eq!(policy.audit(), Ok(()));
        let usage = policy.usage(ClassId(0));
        prop_assert_eq!((usage.cached, usage.free), (naive.cached() * BLOCK, naive.free() * BLOCK));
        for prompt in &all {
            let found = prompt.names().iter().take_while(|name| naive.find(name).is_some()).count() as u32;
            let hit = policy.cached(&prompt.content(), prompt.tokens);
            prop_assert_eq!(hit.tokens, found * BLOCK, "what {:?} would find", prompt);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_rule_does_what_a_naive_one_does(calls in calls(), blocks in 4..24u32) {
        for (rule, orders) in [
            ("lru", &[false, true][..]),
            ("fifo", &[false, true]),
            ("lfu", &[false, true]),
            ("s3fifo", &[false, true]),
            ("cost", &[true]),
            ("scan", &[false, true]),
            ("belady", &[false, true]),
        ] {
            for &leaves in orders {
                agree(rule, leaves, blocks, &calls)
                    .map_err(|error| TestCaseError::fail(format!("{rule}, leaves {leaves}: {error}")))?;
            }
        }
    }

    #[test]
    fn under_lru_a_tree_and_a_hash_chain_have_the_same_hits(
        prompts in prop::collection::vec((prop::collection::vec(0..3u64, 1..6), 0..40usize), 1..80),
        blocks in 6..24u32,
    ) {
        // One prompt after the other: the tail of a chain comes back first, so what is idle longest is a leaf.
        let mut both = [cache("paged:2+prefix", blocks), cache("radix:2", blocks)];
        for ((path, output), own) in prompts.into_iter().zip(1..) {
            let prompt = Prompt { tokens: path.len() as u32 * BLOCK + 1, path, own };
            let hits = both.each_mut().map(|policy| serve(&mut **policy, &prompt, output as u32 % 3));
            prop_assert_eq!(hits[0], hits[1]);
        }
    }
}

/// A prompt comes, is computed, answered, and goes.
fn serve(policy: &mut dyn Policy, prompt: &Prompt, output: u32) -> u32 {
    let total_tokens = prompt.tokens + output;
    let intent = Intent { content: prompt.content(), prompt_tokens: prompt.tokens, total_tokens };
    let hit = policy.open(SeqId(0), &intent);
    let append = |tokens| Append { seq: SeqId(0), tokens, restored: false };
    if policy.place(&[append(prompt.tokens - hit)], &mut Plan::new()).is_ok() && output > 0 {
        let answered = policy.place(&[append(output)], &mut Plan::new());
        assert!(answered.is_ok() || policy.usage(ClassId(0)).placeable < output + BLOCK);
    }
    policy.release(SeqId(0));
    hit
}

/// Share of tokens found while `chains` prompts of 4 blocks come in turns, in a cache of `blocks`.
fn in_turns(spec: &str, chains: u64, rounds: u32, blocks: u32) -> f64 {
    let mut policy = cache(spec, blocks);
    let prompt =
        |turn: u64| Prompt { path: vec![turn % chains, 0, 0, 0], tokens: 4 * BLOCK + 1, own: turn + 1 };
    let turns = || (0..chains * u64::from(rounds)).map(prompt);
    policy.foresee(&mut turns().map(|prompt| (prompt.content(), prompt.tokens)));
    let found: u32 = turns().map(|prompt| serve(&mut *policy, &prompt, 0)).sum();
    f64::from(found) / (chains as f64 * f64::from(rounds) * f64::from(4 * BLOCK))
}

#[test]
fn on_a_scan_in_cycles_lru_finds_nothing_and_scan_most_of_what_fits() {
    // 12 chains of 4 blocks through a cache that holds 8 of them and the last token.
    let share = |spec| in_turns(spec, 12, 50, 33);
    assert_eq!(share("paged:2+prefix"), 0.0);
    assert_eq!(share("radix:2"), 0.0);
    let (scan, bound) = (share("paged:2+prefix(scan)"), share("paged:2+prefix(belady)"));
    assert!(bound > 0.6 && bound < 0.7, "8 of 12 fit, less the one on its way: {bound}");
    assert!(scan > 0.5 && scan <= bound, "{scan}, bound {bound}");
    for spec in
        ["paged:2+prefix(fifo)", "paged:2+prefix(s3fifo)", "paged:2+prefix(lfu)", "paged:2+prefix(cost)"]
    {
        assert!(share(spec) <= bound, "{spec}");
    }
}

#[test]
fn a_bound_that_is_told_nothing_says_so_and_does_as_lru() {
    let (mut blind, mut lru) = (cache("paged:2+prefix(belady)", 9), cache("paged:2+prefix", 9));
    assert!(blind.wants_future() && !lru.wants_future());
    for turn in 0..60u64 {
        let prompt = Prompt { path: vec![turn * turn % 5, turn % 2], tokens: 5, own: turn + 1 };
        assert_eq!(serve(&mut *blind, &prompt, 1), serve(&mut *lru, &prompt, 1));
    }
    assert!(blind.wants_future());
}

#[test]
fn a_beginning_that_goes_first_leaves_its_ends_useless_unless_only_leaves_go() {
    let prompt = |path: [u64; 2], own| Prompt { path: path.into(), tokens: 5, own };
    let left = |spec: &str| {
        let mut policy = cache(spec, 6);
        // The third fills the cache, the fourth needs two blocks of what came first: [0, 1], then [0].
        for (path, own) in [[0, 1], [0, 2], [1, 1], [2, 1]].into_iter().zip(1..) {
            serve(&mut *policy, &prompt(path, own), 0);
        }
        (policy.cached(&prompt([0, 2], 9).content(), 5).tokens, policy.usage(ClassId(0)).cached)
    };
    assert_eq!(left("paged:2+prefix(fifo)"), (0, 10), "the block of [0, 2] is there, but not [0]");
    assert_eq!(left("radix:2:fifo"), (2, 10), "[0, 2] went instead of [0]");
}

/// Leading tokens two prompts have in common.
fn agreement(a: &[u64], b: &[u64]) -> u32 {
    a.iter().zip(b).take_while(|(a, b)| a == b).count() as u32
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_endless_cache_finds_the_longest_common_beginning(
        prompts in prop::collection::vec(prop::collection::vec(0..2u64, 1..14), 1..30),
    ) {
        // Token by token: a tree of single tokens, blocks, and blocks that are found by their beginnings.
        let specs = [("radix", 1, false), ("radix:4", 4, false), ("radix:4:lru:cow", 4, true),
            ("paged:3+prefix(lru:cow)", 3, true), ("paged:1+prefix", 1, false)];
        for (spec, block, cow) in specs {
            let mut policy = cache(spec, 2000);
            let mut before: Vec<&Vec<u64>> = Vec::new();
            for (tokens, own) in prompts.iter().zip(1..) {
                let ids = tokens.iter().scan(1, |id, token| { *id = *id * 3 + token + 1; Some(*id) });
                let chain: Arc<[u64]> = ids.collect();
                let len = tokens.len() as u32;
                let content = Content { chain, chain_tokens: 1, chain_end: len, own };
                let hit = policy.open(SeqId(0), &Intent { content, prompt_tokens: len, total_tokens: len });
                policy.place(&[Append { seq: SeqId(0), tokens: len - hit, restored: false }], &mut Plan::new())
                    .expect("there is room");
                policy.release(SeqId(0));
                // Only full blocks outlive their sequence.
                let kept = |old: &&Vec<u64>| old.len() as u32 / block * block;
                let common = before.iter().map(|old| agreement(old, tokens).min(kept(old)).min(len - 1)).max();
                let common = common.unwrap_or(0);
                prop_assert_eq!(hit, if cow { common } else { common / block * block }, "{} {:?}", spec, tokens);
                before.push(tokens);
            }
        }
    }
}

#[test]
fn a_partial_hit_copies_what_it_shares_and_leaves_the_block_to_others() {
    use policies::{Effect, Why};
    let mut policy = cache("paged:2+prefix(lru:cow)", 8);
    let content =
        |ids: &[u64], own| Content { chain: ids.into(), chain_tokens: 1, chain_end: ids.len() as u32, own };
    let open = |policy: &mut dyn Policy, seq, ids: &[u64]| {
        let tokens = ids.len() as u32;
        let content = content(ids, u64::from(seq) + 1);
        policy.open(SeqId(seq), &Intent { content, prompt_tokens: tokens, total_tokens: tokens })
    };
    open(&mut *policy, 0, &[1, 2, 3, 4]);
    policy.place(&[Append { seq: SeqId(0), tokens: 4, restored: false }], &mut Plan::new()).expect("room");
    assert_eq!(open(&mut *policy, 1, &[1, 2, 3, 9, 9]), 3, "one token of the second block is the same");
    let mut plan = Plan::new();
    policy.place(&[Append { seq: SeqId(1), tokens: 2, restored: false }], &mut plan).expect("room");
    let copy = Effect::Copy { class: ClassId(0), from: 2, to: 6, len: 1, why: Why::CopyOnWrite };
    assert!(plan.effects().contains(&copy), "{plan:?}");
    assert_eq!(
        policy.cached(&content(&[1, 2, 3, 4, 5], 7), 5).tokens,
        4,
        "the first one's block is as it was"
    );
    assert_eq!(policy.cached(&content(&[1, 2, 3, 9, 9, 9], 8), 6).tokens, 4);
}

#[test]
fn a_fork_shares_until_one_of_the_two_writes() {
    for spec in ["paged:2", "radix:2", "paged:2+prefix"] {
        let mut policy = cache(spec, 6);
        let content = Content::own(1);
        policy.open(SeqId(0), &Intent { content, prompt_tokens: 3, total_tokens: 6 });
        policy
            .place(&[Append { seq: SeqId(0), tokens: 3, restored: false }], &mut Plan::new())
            .expect("room");
        // Where blocks get names, the token that fills one has to be told.
        assert_eq!(policy.room(SeqId(0)), u32::from(spec == "paged:2"));
        assert_eq!(policy.fork(SeqId(0), SeqId(1), 9), 3, "{spec}");
        assert_eq!(policy.usage(ClassId(0)).held, 4, "both hold the same blocks");
        assert_eq!((policy.room(SeqId(0)), policy.room(SeqId(1))), (0, 0), "{spec}: who writes copies");
        let mut plan = Plan::without_writes();
        let both = [0, 1].map(|seq| Append { seq: SeqId(seq), tokens: 1, restored: false });
        policy.place(&both, &mut plan).expect("room");
        assert_eq!(plan.effects().len(), 1, "{spec}: one copies, the other has the block alone then");
        assert_eq!(policy.usage(ClassId(0)).held, 6);
        policy.release(SeqId(0));
        assert_eq!(policy.usage(ClassId(0)).held, 4);
        policy.release(SeqId(1));
        assert_eq!(policy.usage(ClassId(0)).held, 0);
        assert_eq!(policy.audit(), Ok(()));
    }
}
