//! What every policy promises, tried with random calls on all of them.
//!
//! A naive model keeps each sequence as a list of tokens; shadow memory executes every plan. A
//! twin of the policy gets the successful calls only: it must stay equal, so a refusal that
//! changed anything is found out sooner or later.
//!
//! Policies that reproduce the faults of a real server promise less. A refusal may move cells (the
//! twin gets it too, and the plan is executed), and once a copy has turned cells over a token may
//! find another's K and V; then every cell that does so must be accounted for as foreign.

use policies::{
    Append, Attention, Budget, Cell, ClassId, Content, Effect, Geometry, Intent, LayerClass, POLICIES, Plan,
    Policy, Reach, Reduction, Run, SeqId, Shadow, make_policy,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Specs beyond the plain names, so that every knob is walked.
const VARIANTS: &[&str] = &[
    "contiguous:max:next",
    "contiguous:max:best",
    "contiguous:pow2",
    "contiguous:pow2:best",
    "contiguous:pow2:first:2",
    "buddy:2",
    "buddy:least=9",
    "slab:20:150:3",
    "slab:slab=9:factor=200:least=2",
    "slab:48:110:1",
    "vmem:1",
    "vmem:4",
    "vmem:7",
    "shared:1",
    "shared:4",
    "shared:block=5",
    "ladder:1",
    "ladder:4",
    "ladder:3:q8_0",
    "swa-full:next:never",
    "swa-full+shift",
    "swa-full+shift+unrotated",
    "shift:2+unrotated",
    "defrag:step:0+shift+unrotated",
    "ring:5+unrotated",
    "sinks:2+unrotated",
    "sinks:0:half+unrotated",
    "heavy:20:5:0:3+unrotated",
    "snap:9:4+unrotated",
    "paged:3+prefix(lru:cow)+unrotated",
    "contiguous:exact",
    "contiguous:exact:next",
    "contiguous:run",
    "contiguous:run:next",
    "contiguous:run:best",
    "paged:1",
    "paged:5",
    "paged:4+prefix",
    "paged:1+prefix",
    "tiered:4:64:ahead=99",
    "tiered:4:12:ahead=99",
    "tiered:1:20",
    "tiered:2:0",
    "paged:4+swap",
    "paged:4+prefix+swap",
    "paged:3+prefix(lfu)+swap(24)",
    "paged:4+prefix(s3fifo)+tiered(64:ahead=99)",
    "paged:3+prefix(order=leaf)+tiered(30:20)+swap",
    "paged:2+prefix(lru)+tiered(host=40)+swap+unrotated",
    "tiered:3:64:ahead=99+swap",
    "paged:3+prefix(fifo)",
    "paged:3+prefix(lfu:cow)",
    "paged:2+prefix(s3fifo)",
    "paged:2+prefix(s3fifo:cow:leaf)",
    "paged:4+prefix(cost)",
    "paged:3+prefix(scan:cow)",
    "paged:3+prefix(belady)",
    "paged:5+prefix(lru:cow)",
    "paged:3+prefix(order=leaf:partial=cow)",
    "radix:4",
    "radix:6:lru:cow",
    "radix:3:cost:cow",
    "shift:2:next:never",
    "shift:0:best",
    "defrag:threshold:20",
    "defrag:step:0:next",
    "defrag:failure:10:best+shift",
    "defrag:threshold:20:objective=runs",
    "defrag:threshold:0:next:runs+shift",
    "defrag:step:5:first:runs",
    "defrag:background:0:best:runs:9",
    "defrag:background:10:cells=3",
    "shift:3:first:failure:2",
    "shift:drop=1",
    "shift:drop=30%",
    "truncate:0:3",
    "truncate:99",
    "ring:5",
    "ring:99",
    "sinks:0",
    "sinks:2:half",
    "sinks:keep=9:drop=7",
    "heavy:9",
    "heavy:20:5:0:3",
    "heavy:16:recent=1",
    "snap:9:4",
    "snap:30:7:pool=1:keep=3",
    "ollama-0.6.6:256:no:20",
    "ollama-0.12.4:nodes=8",
    "vllm:4",
    "vllm:1:dense",
    "vllm:4:8:whole",
    "vllm:5:prefix=off",
    "vllm:2:dense:keyless=last",
    "llama-unified:3:256",
    "llama-unified:ubatch=5:shift=no",
    "ollama-0.12.4:shift=no",
];

const SEQUENCES: u32 = 5;
const CONTEXT: u32 = 48;

fn specs() -> impl Iterator<Item = &'static str> {
    POLICIES.iter().map(|spec| spec.name).chain(VARIANTS.iter().copied())
}

/// Whether a policy reproduces faults of a real server on purpose.
fn has_faults(spec: &str) -> bool {
    let name = spec.split([':', '+']).next();
    POLICIES.iter().any(|policy| Some(policy.name) == name && !policy.faults.is_empty())
}

fn geometry(global: u32, local: u32, window: u32) -> Geometry {
    let class = |name: &str, reach, cells| LayerClass { name: name.into(), layers: 1, reach, cells };
    Geometry {
        classes: vec![class("local", Reach::Window(window), local), class("global", Reach::Full, global)],
        context_max: CONTEXT,
        batch_max: 12,
        sequences_max: SEQUENCES,
    }
}

#[derive(Clone, Debug)]
enum Call {
    Open { seq: u32, family: u64, prompt: u32, output: u32 },
    Place { batch: Vec<(u32, u32)> },
    Decode,
    Room { seq: u32, tokens: u32 },
    Truncate { seq: u32, len: u32 },
    Remove { seq: u32, start: u32, len: u32 },
    Reduce { seq: u32 },
    Swap { seq: u32 },
    Maintain { cells: u32 },
    Fork { from: u32, to: u32, tokens: u32 },
    Release { seq: u32 },
}

fn call() -> impl Strategy<Value = Call> {
    let seq = 0..SEQUENCES;
    prop_oneof![
        4 => (seq.clone(), 0..3u64, 1..30u32, 1..20u32)
            .prop_map(|(seq, family, prompt, output)| Call::Open { seq, family, prompt, output }),
        8 => prop::collection::vec((seq.clone(), 1..12u32), 1..4).prop_map(|batch| Call::Place { batch }),
        10 => Just(Call::Decode),
        2 => (seq.clone(), 1..CONTEXT).prop_map(|(seq, tokens)| Call::Room { seq, tokens }),
        1 => (seq.clone(), 0..CONTEXT).prop_map(|(seq, len)| Call::Truncate { seq, len }),
        2 => (seq.clone(), 0..30u32, 1..10u32).prop_map(|(seq, start, len)| Call::Remove { seq, start, len }),
        2 => seq.clone().prop_map(|seq| Call::Reduce { seq }),
        1 => seq.clone().prop_map(|seq| Call::Swap { seq }),
        2 => (0..9u32).prop_map(|cells| Call::Maintain { cells }),
        3 => (seq.clone(), seq.clone(), 1..CONTEXT)
            .prop_map(|(from, to, tokens)| Call::Fork { from, to, tokens }),
        3 => seq.prop_map(|seq| Call::Release { seq }),
    ]
}

/// A sequence as the model sees it.
#[derive(Clone, Debug)]
struct Tokens {
    content: Content,
    /// Identity of each token it has now.
    tokens: Vec<u64>,
    /// Whether tokens still correspond to the content (no removal so far).
    prompt: u32,
    /// Whose tokens these are, in the names of tokens.
    life: u64,
}

/// Where the name of a token says whose it is, for policies whose tokens may turn up anywhere.
const LIFE: u32 = 24;

/// Identity of token `index`, worked out apart from [`Content::key`]: what the chain's ids cover
/// belongs to all who have the id, the rest to the sequence alone.
fn identity(content: &Content, index: u32) -> u64 {
    let link = (index / content.chain_tokens) as usize;
    match content.chain.get(link) {
        Some(id) if index < content.chain_end => id << 16 | u64::from(index),
        _ => 1 << 60 | content.own << 16 | u64::from(index),
    }
}

/// Whether compaction turns data over, on purpose.
fn is_faulty(spec: &str) -> bool {
    spec.starts_with("ollama")
}

/// Whether two sequences may hold the same cell.
fn shares(spec: &str) -> bool {
    ["paged", "radix", "vllm", "tiered"].iter().any(|name| spec.starts_with(name))
}

struct World {
    policy: Box<dyn Policy>,
    twin: Box<dyn Policy>,
    shadow: Shadow,
    model: BTreeMap<u32, Tokens>,
    serial: u64,
    shares: bool,
    bounded: bool,
    faulty: bool,
    /// Whether a copy has turned cells over, so that tokens may not be where they should.
    turned: bool,
    /// Whether anything was cut off: what is written then counts as another's.
    cut: bool,
    /// Whether a refusal changes nothing, as it must unless the policy reproduces such a fault.
    atomic: bool,
}

type Outcome = Result<(), TestCaseError>;

impl World {
    fn new(spec: &str, geometry: &Geometry) -> Self {
        let make = || make_policy(spec, geometry).expect("the spec is good");
        let policy = make();
        World {
            shadow: Shadow::of(&*policy),
            policy,
            twin: make(),
            model: BTreeMap::new(),
            serial: 0,
            shares: shares(spec),
            bounded: spec != "unlimited",
            faulty: is_faulty(spec),
            turned: false,
            cut: false,
            atomic: !has_faults(spec),
        }
    }

    /// The name of the next token of a sequence. Content may be shared, so it names tokens; but where
    /// they may get lost each has a name of its own.
    fn name(&mut self, seq: u32) -> u64 {
        self.serial += 1;
        let tokens = &self.model[&seq];
        if self.faulty {
            return tokens.life << LIFE | self.serial;
        }
        identity(&tokens.content, tokens.tokens.len() as u32)
    }

    fn lens(&self) -> BTreeMap<u32, usize> {
        self.model.iter().map(|(&seq, tokens)| (seq, tokens.tokens.len())).collect()
    }

    /// Runs the plan on shadow memory; tokens are named by what the model says they are.
    fn execute(&mut self, plan: &Plan) {
        let rotates = |effect: &Effect| matches!(effect, Effect::Rotate { .. });
        assert!(
            !self.policy.rotates_on_read() || !plan.effects().iter().any(rotates),
            "what is rotated as it is read needs no rotation: {plan:?}"
        );
        let turns = |effect: &Effect| matches!(effect, Effect::Copy { len, .. } if *len > 1);
        self.turned |= self.faulty && plan.effects().iter().any(turns);
        let model = &self.model;
        let policy = &self.policy;
        let token_of = |seq: SeqId, token| model[&seq.0].tokens[token as usize];
        self.shadow.run_at(plan, |seq| policy.offset(seq), token_of);
    }

    fn place(&mut self, batch: &[Append]) -> Outcome {
        let mut plan = Plan::new();
        let starts = self.starts(batch);
        let before = self.lens();
        match self.policy.place(batch, &mut plan) {
            Err(full) if self.faulty => {
                let mut twin_plan = Plan::new();
                prop_assert_eq!(self.twin.place(batch, &mut twin_plan), Err(full));
                prop_assert_eq!(&plan, &twin_plan, "same calls, other cells");
                let copies = |effect: &Effect| matches!(effect, Effect::Copy { .. });
                prop_assert!(plan.effects().iter().all(copies), "a refusal writes: {:?}", plan);
                prop_assert!(full.needed > full.largest_free_run && !full.is_fragmented());
                self.execute(&plan);
                self.check_reach(batch, &starts, false)?;
                prop_assert_eq!(before, self.lens());
            }
            Err(full) => {
                if self.atomic {
                    prop_assert!(plan.is_empty(), "a refusal leaves a plan: {plan:?}");
                } else {
                    // The twin goes through the same refusal, and nothing has been written.
                    let mut twin_plan = Plan::new();
                    prop_assert_eq!(self.twin.place(batch, &mut twin_plan), Err(full));
                    prop_assert_eq!(&plan, &twin_plan, "same calls, other cells");
                    let writes = |effect: &Effect| matches!(effect, Effect::Write { .. });
                    prop_assert!(!plan.effects().iter().any(writes), "a refusal writes: {plan:?}");
                    self.execute(&plan);
                }
                prop_assert_eq!(before, self.lens());
                prop_assert!(self.bounded, "unlimited refused: {}", full);
            }
            Ok(()) => {
                let mut twin_plan = Plan::new();
                let twin = self.twin.place(batch, &mut twin_plan);
                prop_assert_eq!(twin, Ok(()), "a refusal changed the policy: the twin cannot place");
                prop_assert_eq!(&plan, &twin_plan, "same calls, other cells");
                for append in batch {
                    for _ in 0..append.tokens {
                        let name = self.name(append.seq.0);
                        self.model.get_mut(&append.seq.0).expect("open").tokens.push(name);
                    }
                }
                self.execute(&plan);
                self.check_reach(batch, &starts, true)?;
                self.check_writes(&plan)?;
                self.look(batch)?;
            }
        }
        Ok(())
    }

    /// Tells what new tokens looked at, by the names of tokens.
    fn look(&mut self, batch: &[Append]) -> Outcome {
        let batch = if self.policy.needs_scores() { batch } else { &[] };
        for append in batch {
            let tokens = &self.model[&append.seq.0].tokens;
            let len = tokens.len() as u32;
            let queries = self.policy.wants_attention(append.seq, len - append.tokens..len);
            prop_assert_eq!(&queries, &self.twin.wants_attention(append.seq, len - append.tokens..len));
            prop_assert!(queries.start >= len - append.tokens && queries.end <= len);
            if !queries.is_empty() {
                let got = |token: &u64| token.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                let mass = tokens[..queries.end as usize].iter().map(got).collect();
                let attention = Attention { seq: append.seq, queries, mass };
                self.policy.attended(&attention);
                self.twin.attended(&attention);
            }
        }
        Ok(())
    }

    fn run(&mut self, call: &Call) -> Outcome {
        match *call {
            Call::Open { seq, family, prompt, output } => {
                if self.model.contains_key(&seq) {
                    return Ok(());
                }
                self.serial += 1;
                // A family shares its first two links, and the first with another: prompts agree for 4 or 8 tokens.
                let chain: Arc<[u64]> = Arc::from([1 + family / 2, 10 + family, 100 + self.serial]);
                let content = Content { chain, chain_tokens: 4, chain_end: prompt, own: self.serial };
                let intent =
                    Intent { content: content.clone(), prompt_tokens: prompt, total_tokens: prompt + output };
                let promised = self.policy.cached(&content, prompt);
                let hit = self.policy.open(SeqId(seq), &intent);
                prop_assert_eq!(hit, promised.tokens, "cached() promised something else than open() adopts");
                prop_assert!(hit < prompt, "at least one token is left to compute");
                prop_assert_eq!(self.twin.open(SeqId(seq), &intent), hit);
                let tokens = (0..hit).map(|index| identity(&content, index)).collect();
                self.model.insert(seq, Tokens { content, tokens, prompt, life: self.serial });
            }
            Call::Place { ref batch } => {
                let mut appends: Vec<Append> = Vec::new();
                for &(seq, tokens) in batch {
                    let Some(model) = self.model.get(&seq) else { continue };
                    let room = CONTEXT - model.tokens.len() as u32;
                    let used: u32 = appends.iter().map(|append| append.tokens).sum();
                    let tokens = tokens.min(room).min(12 - used.min(12));
                    if tokens > 0 && appends.iter().all(|append| append.seq.0 != seq) {
                        appends.push(Append { seq: SeqId(seq), tokens, restored: false });
                    }
                }
                if !appends.is_empty() {
                    self.place(&appends)?;
                }
            }
            Call::Decode => {
                let ready = self.model.iter().filter(|(_, model)| {
                    !model.tokens.is_empty()
                        && model.tokens.len() >= model.prompt as usize / 2
                        && model.tokens.len() < CONTEXT as usize
                });
                let batch: Vec<Append> =
                    ready.map(|(&seq, _)| Append { seq: SeqId(seq), tokens: 1, restored: false }).collect();
                if !batch.is_empty() {
                    self.place(&batch)?;
                }
            }
            Call::Room { seq, tokens } => {
                let Some(model) = self.model.get(&seq) else { return Ok(()) };
                let len = model.tokens.len() as u32;
                let room = self.policy.room(SeqId(seq)).min(tokens).min(CONTEXT - len);
                let usage: Vec<_> =
                    self.policy.geometry().class_ids().map(|class| self.policy.usage(class)).collect();
                let mut plan = Plan::new();
                if room > 0 {
                    let all = Append { seq: SeqId(seq), tokens: room, restored: false };
                    prop_assert_eq!(self.policy.place(&[all], &mut plan), Ok(()), "room was promised");
                    for _ in 0..room {
                        let one = Append { tokens: 1, ..all };
                        prop_assert_eq!(self.twin.place(&[one], &mut Plan::new()), Ok(()));
                    }
                    let model = self.model.get_mut(&seq).expect("open");
                    for index in len..len + room {
                        model.tokens.push(identity(&model.content, index));
                    }
                    self.execute(&plan);
                    let after: Vec<_> =
                        self.policy.geometry().class_ids().map(|class| self.policy.usage(class)).collect();
                    prop_assert_eq!(usage, after, "tokens within the room took or gave cells");
                }
            }
            Call::Truncate { seq, len } => {
                let Some(model) = self.model.get_mut(&seq) else { return Ok(()) };
                let keep = self.policy.truncate(SeqId(seq), len);
                prop_assert!(keep <= len && keep as usize <= model.tokens.len());
                prop_assert_eq!(self.twin.truncate(SeqId(seq), len), keep);
                model.tokens.truncate(keep as usize);
                self.cut = true;
            }
            Call::Remove { seq, start, len } => {
                let Some(model) = self.model.get_mut(&seq) else { return Ok(()) };
                let end = (start + len).min(model.tokens.len() as u32);
                if start >= end {
                    return Ok(());
                }
                let mut plan = Plan::new();
                let answer = self.policy.remove(SeqId(seq), start..end, &mut plan);
                prop_assert_eq!(self.twin.remove(SeqId(seq), start..end, &mut Plan::new()), answer);
                self.cut |= answer.is_ok();
                if answer.is_ok() {
                    self.drop_tokens(seq, start..end);
                    self.execute(&plan);
                } else {
                    prop_assert!(plan.is_empty());
                }
            }
            Call::Reduce { seq } => {
                let Some(model) = self.model.get(&seq) else { return Ok(()) };
                let len = model.tokens.len() as u32;
                let mut plan = Plan::new();
                let reduction = self.policy.reduce(SeqId(seq), 4, &mut plan);
                prop_assert_eq!(self.twin.reduce(SeqId(seq), 4, &mut Plan::new()), reduction);
                prop_assert!(reduction == Reduction::Stop || self.policy.reduces());
                let dropped = match reduction {
                    Reduction::Stop => 0,
                    Reduction::Dropped(dropped) => dropped,
                    Reduction::Picked(dropped) => {
                        let picked = self.policy.picked(SeqId(seq)).to_vec();
                        prop_assert_eq!(&picked[..], self.twin.picked(SeqId(seq)));
                        prop_assert!(picked.windows(2).all(|pair| pair[0].end < pair[1].start));
                        prop_assert!(
                            picked.iter().all(|tokens| tokens.start < tokens.end && tokens.end <= len)
                        );
                        prop_assert_eq!(
                            picked.iter().map(|tokens| tokens.len() as u32).sum::<u32>(),
                            dropped
                        );
                        prop_assert!(dropped > 0 && plan.is_empty(), "nothing moves");
                        picked.into_iter().rev().for_each(|tokens| self.drop_tokens(seq, tokens));
                        return self.check();
                    }
                    Reduction::Again { dropped, .. } if self.faulty && dropped < len => {
                        self.execute(&plan);
                        self.model.get_mut(&seq).expect("open").tokens.clear();
                        return self.check();
                    }
                    // The driver hands all that is left of it over again.
                    Reduction::Again { dropped: again, .. } => {
                        prop_assert!(again > 0 && again <= len && plan.is_empty());
                        self.model.get_mut(&seq).expect("open").tokens.clear();
                        return self.check();
                    }
                };
                prop_assert!(
                    len < CONTEXT || !self.policy.reduces() || dropped > 0,
                    "a full context was not reduced"
                );
                if dropped > 0 {
                    // The rule keeps a head; what it is follows from the positions that were not rotated.
                    let keep = (0..=len - dropped)
                        .find(|&keep| self.turned || self.fits_after(seq, keep, dropped, &plan))
                        .expect("some head was kept");
                    let keep = if self.turned { 4 } else { keep };
                    prop_assert!(keep == 4 || !self.faulty, "the request wants to keep 4 tokens");
                    self.drop_tokens(seq, keep..keep + dropped);
                }
                self.execute(&plan);
            }
            Call::Swap { seq } => {
                let Some(model) = self.model.get(&seq).cloned() else { return Ok(()) };
                let len = model.tokens.len() as u32;
                if len == 0 || self.policy.foreign(SeqId(seq)) > 0 || self.policy.offset(SeqId(seq)) > 0 {
                    return Ok(());
                }
                let mut runs = Vec::new();
                let policy = &self.policy;
                let whole = |class: ClassId| {
                    let needed = policy.geometry().classes[class.index()].reach.first_needed(len);
                    policy.layout(class, SeqId(seq), &mut Vec::new()).start <= needed
                };
                let mut turns = Vec::new();
                let mut rotated = |class: ClassId| {
                    policy.unrotated(class, &mut turns);
                    turns.is_empty()
                };
                let mut owed = Vec::new();
                let mut fetched = |class: ClassId| {
                    policy.unfetched(class, &mut owed);
                    owed.is_empty()
                };
                let mut ready = |class| whole(class) && rotated(class) && fetched(class);
                if !policy.geometry().class_ids().all(&mut ready) {
                    return Ok(());
                }
                let mut out = Plan::new();
                let parked = self.policy.park(SeqId(seq), &mut out);
                prop_assert_eq!(self.twin.park(SeqId(seq), &mut Plan::new()), parked);
                let parked = parked.unwrap_or(0);
                prop_assert!(parked < len, "one token at least is left to the driver");
                for class in self.policy.geometry().class_ids() {
                    let mut first = self.policy.layout(class, SeqId(seq), &mut runs).start;
                    for &run in &runs {
                        let skipped = parked.saturating_sub(first).min(run.len);
                        let rest = Run { start: run.start + skipped, len: run.len - skipped };
                        out.push(Effect::SwapOut {
                            class,
                            seq: SeqId(seq),
                            first: first + skipped,
                            run: rest,
                        });
                        first += run.len;
                    }
                }
                self.execute(&out);
                self.serial += 1;
                // What its policy has parked is found by what it is; otherwise it comes back as somebody else.
                let content = if parked > 0 { model.content.clone() } else { Content::own(self.serial) };
                let intent = Intent { content: content.clone(), prompt_tokens: len, total_tokens: len };
                for policy in [&mut self.policy, &mut self.twin] {
                    policy.release(SeqId(seq));
                }
                let adopted = self.policy.open(SeqId(seq), &intent);
                prop_assert_eq!(self.twin.open(SeqId(seq), &intent), adopted);
                if adopted < parked {
                    self.model.get_mut(&seq).expect("open").tokens.truncate(adopted as usize);
                    return self.check();
                }
                let back = Append { seq: SeqId(seq), tokens: len - adopted, restored: true };
                let mut moves = Plan::without_writes();
                let placed = self.policy.place(&[back], &mut moves);
                self.execute(&moves);
                prop_assert_eq!(self.twin.place(&[back], &mut Plan::without_writes()), placed);
                if placed.is_err() {
                    self.model.get_mut(&seq).expect("open").tokens.truncate(adopted as usize);
                    return self.check();
                }
                let mut back = Plan::new();
                for class in self.policy.geometry().class_ids() {
                    let mut first = self.policy.layout(class, SeqId(seq), &mut runs).start;
                    for &run in &runs {
                        let skipped = adopted.saturating_sub(first).min(run.len);
                        let rest = Run { start: run.start + skipped, len: run.len - skipped };
                        back.push(Effect::SwapIn {
                            class,
                            seq: SeqId(seq),
                            first: first + skipped,
                            run: rest,
                        });
                        first += run.len;
                    }
                }
                self.execute(&back);
                self.model.get_mut(&seq).expect("open").content = content;
            }
            Call::Maintain { cells } => {
                let mut plan = Plan::new();
                let copied = self.policy.maintain(Budget { cells }, &mut plan);
                prop_assert_eq!(self.twin.maintain(Budget { cells }, &mut Plan::new()), copied);
                self.execute(&plan);
            }
            // The forks of a real server are tested with its own cache.
            Call::Fork { from, to, tokens } if self.shares => {
                let Some(parent) = self.model.get(&from) else { return Ok(()) };
                if self.model.contains_key(&to) {
                    return Ok(());
                }
                let forked = self.policy.fork(SeqId(from), SeqId(to), tokens);
                prop_assert_eq!(self.twin.fork(SeqId(from), SeqId(to), tokens), forked);
                prop_assert!(forked <= tokens && forked as usize <= parent.tokens.len());
                if forked > 0 {
                    self.serial += 1;
                    let tokens = parent.tokens[..forked as usize].to_vec();
                    let content = Content::own(self.serial);
                    let child = Tokens { content, tokens, prompt: forked, life: self.serial };
                    self.model.insert(to, child);
                }
            }
            Call::Fork { .. } => {}
            Call::Release { seq } => {
                if self.model.remove(&seq).is_some() {
                    self.policy.release(SeqId(seq));
                    self.twin.release(SeqId(seq));
                }
            }
        }
        self.check()
    }

    /// First token that each sequence of a batch has, by class.
    fn starts(&self, batch: &[Append]) -> Vec<Vec<u32>> {
        let mut runs = Vec::new();
        let classes = || self.policy.geometry().class_ids();
        batch
            .iter()
            .map(|append| {
                classes().map(|class| self.policy.layout(class, append.seq, &mut runs).start).collect()
            })
            .collect()
    }

    /// The first new token of an append reads back over its whole window, so nothing of that may
    /// be given away for the batch, not even to its own later tokens.
    fn check_reach(&self, batch: &[Append], starts: &[Vec<u32>], placed: bool) -> Outcome {
        for ((append, before), after) in batch.iter().zip(starts).zip(self.starts(batch)) {
            let token = self.policy.len(append.seq) - if placed { append.tokens } else { 0 };
            for ((layers, &before), after) in self.policy.geometry().classes.iter().zip(before).zip(after) {
                let reads = match layers.reach {
                    Reach::Full => 0,
                    Reach::Window(window) => (token + 1).saturating_sub(window),
                };
                prop_assert!(
                    after <= reads.max(before),
                    "token {} reads from {}, kept from {}",
                    token,
                    reads,
                    after
                );
            }
        }
        Ok(())
    }

    /// What two sequences read is never written again.
    fn check_writes(&self, plan: &Plan) -> Outcome {
        let mut runs: Vec<Run> = Vec::new();
        for effect in plan.effects().iter().filter(|_| self.shares) {
            let Effect::Write { class, seq, run: written, .. } = *effect else { continue };
            for &other in self.model.keys().filter(|&&other| other != seq.0) {
                self.policy.holding(class, SeqId(other), &mut runs);
                let apart = |run: &Run| run.cells().end <= written.start || written.cells().end <= run.start;
                prop_assert!(runs.iter().all(apart), "a cell of sequence {} is written for {}", other, seq.0);
            }
        }
        Ok(())
    }

    /// Whether a removal of `dropped` tokens after `keep` explains the rotations of a plan.
    fn fits_after(&self, seq: u32, keep: u32, dropped: u32, plan: &Plan) -> bool {
        let mut trial = World {
            policy: make_policy("unlimited", self.policy.geometry()).expect("a policy"),
            twin: make_policy("unlimited", self.policy.geometry()).expect("a policy"),
            shadow: self.shadow.clone(),
            model: self.model.clone(),
            serial: 0,
            shares: false,
            bounded: true,
            faulty: false,
            turned: false,
            cut: false,
            atomic: true,
        };
        trial.drop_tokens(seq, keep..keep + dropped);
        trial.execute(plan);
        let tokens = &trial.model[&seq].tokens;
        trial.shadow.check(&*self.policy, SeqId(seq), |token| tokens[token as usize]).is_ok()
    }

    fn drop_tokens(&mut self, seq: u32, tokens: std::ops::Range<u32>) {
        let model = self.model.get_mut(&seq).expect("open");
        model.tokens.drain(tokens.start as usize..tokens.end as usize);
    }

    fn check(&self) -> Outcome {
        if let Err(what) = self.policy.audit() {
            return Err(TestCaseError::fail(format!("audit: {what}")));
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut twin_runs: Vec<Run> = Vec::new();
        for class in self.policy.geometry().class_ids() {
            let usage = self.policy.usage(class);
            prop_assert_eq!(usage, self.twin.usage(class), "the twin uses other cells");
            prop_assert_eq!(usage.held + usage.cached + usage.free, usage.cells);
            prop_assert!(usage.placeable <= usage.free + usage.cached);
            let mut owner: BTreeMap<Cell, u32> = BTreeMap::new();
            let mut held: Vec<Cell> = Vec::new();
            for &seq in self.model.keys() {
                let tokens = self.policy.layout(class, SeqId(seq), &mut runs);
                let twin_tokens = self.twin.layout(class, SeqId(seq), &mut twin_runs);
                prop_assert_eq!(
                    last_cells(&runs, &tokens, class, &*self.policy),
                    last_cells(&twin_runs, &twin_tokens, class, &*self.twin)
                );
                let used: Vec<Cell> = runs.iter().flat_map(|run| run.cells()).collect();
                self.policy.holding(class, SeqId(seq), &mut runs);
                held.extend(runs.iter().flat_map(|run| run.cells()));
                for cell in used {
                    prop_assert!(
                        held.contains(&cell),
                        "sequence {} reads cell {} without holding it",
                        seq,
                        cell
                    );
                    prop_assert!(
                        !self.bounded || cell < self.policy.geometry().classes[class.index()].cells,
                        "cell {} does not exist",
                        cell
                    );
                    let other = owner.insert(cell, seq);
                    prop_assert!(
                        other.is_none() || self.shares,
                        "cell {} is held by {:?} and {}",
                        cell,
                        other,
                        seq
                    );
                }
            }
            held.sort_unstable();
            held.dedup();
            prop_assert_eq!(held.len() as u32, usage.held, "cells held by sequences, and counted");
            self.policy.caching(class, &mut runs);
            prop_assert_eq!(runs.iter().map(|run| run.len).sum::<u32>(), usage.cached);
            if self.bounded {
                self.check_shape(class)?;
            }
        }
        for (&seq, model) in &self.model {
            prop_assert_eq!(self.policy.len(SeqId(seq)), model.tokens.len() as u32);
            if self.turned {
                continue;
            }
            let checked = self.shadow.check(&*self.policy, SeqId(seq), |token| model.tokens[token as usize]);
            prop_assert_eq!(checked, Ok(()));
        }
        self.check_foreign()
    }

    /// The cells that hold another sequence's K and V, by what lies in them.
    fn check_foreign(&self) -> Outcome {
        let mut runs: Vec<Run> = Vec::new();
        let mut of_seq: BTreeMap<u32, u32> = self.model.keys().map(|&seq| (seq, 0)).collect();
        for class in self.policy.geometry().class_ids().filter(|_| self.faulty) {
            let mut foreign: Vec<Cell> = Vec::new();
            for (&seq, model) in &self.model {
                self.policy.holding(class, SeqId(seq), &mut runs);
                for cell in runs.iter().flat_map(|run| run.cells()) {
                    let token = self.shadow.payload(class, cell).map(|payload| payload.token);
                    if token.is_none_or(|token| token >> LIFE != model.life) {
                        foreign.push(cell);
                        *of_seq.entry(seq).or_default() += 1;
                    }
                }
            }
            foreign.sort_unstable();
            self.policy.foreign_cells(class, &mut runs);
            let told: Vec<Cell> = runs.iter().flat_map(|run| run.cells()).collect();
            prop_assert!(foreign.iter().all(|cell| told.contains(cell)));
            prop_assert!(self.cut || told == foreign, "foreign {:?}, told {:?}", foreign, told);
        }
        for (seq, found) in of_seq {
            let told = self.policy.foreign(SeqId(seq));
            prop_assert!(told == found || self.cut && told > found, "{} foreign, told {}", found, told);
            prop_assert_eq!(told, self.twin.foreign(SeqId(seq)));
        }
        Ok(())
    }

    /// Shape against usage.
    fn check_shape(&self, class: ClassId) -> Outcome {
        let (usage, shape) = (self.policy.usage(class), self.policy.shape(class));
        let addresses = self.policy.geometry().classes[class.index()].cells;
        prop_assert!(shape.high_water <= addresses && shape.high_water >= usage.held);
        prop_assert!(shape.largest_free_run <= usage.free + usage.cached);
        prop_assert_eq!(shape.free_runs == 0, shape.largest_free_run == 0);
        Ok(())
    }
}

/// The cells of the tokens that the next token reads, which is all that drivers may rely on.
fn last_cells(runs: &[Run], tokens: &std::ops::Range<u32>, class: ClassId, policy: &dyn Policy) -> Vec<Cell> {
    let needed = policy.geometry().classes[class.index()].reach.first_needed(tokens.end);
    let skip = needed.saturating_sub(tokens.start) as usize;
    runs.iter().flat_map(|run| run.cells()).skip(skip).collect()
}

fn drive(spec: &str, geometry: &Geometry, calls: &[Call]) -> Outcome {
    let mut world = World::new(spec, geometry);
    for call in calls {
        world.run(call)?;
    }
    for seq in std::mem::take(&mut world.model).into_keys() {
        world.policy.release(SeqId(seq));
    }
    for class in geometry.class_ids() {
        let usage = world.policy.usage(class);
        prop_assert_eq!(usage.held, 0, "release did not return all of class {}", class.0);
        prop_assert_eq!(usage.free + usage.cached, usage.cells);
    }
    prop_assert_eq!(world.policy.audit(), Ok(()));
    Ok(())
}

#[test]
fn a_restarted_policy_does_what_a_new_one_does() {
    let geometry = geometry(120, 60, 8);
    let intent = |seq: u32| Intent {
        content: Content { chain: Arc::from([7, 8, 9]), chain_tokens: 4, chain_end: 12, own: u64::from(seq) },
        prompt_tokens: 12,
        total_tokens: 30,
    };
    let life = |policy: &mut dyn Policy| {
        let mut plans = Vec::new();
        for seq in 0..4 {
            policy.open(SeqId(seq), &intent(seq));
        }
        for round in 0..18_u32 {
            let batch: Vec<Append> = (0..4)
                .filter(|seq| (seq + round) % 3 > 0)
                .map(|seq| Append { seq: SeqId(seq), tokens: 1 + (seq + round) % 3, restored: false })
                .collect();
            let mut plan = Plan::new();
            let placed = policy.place(&batch, &mut plan);
            plans.push((placed, plan));
        }
        plans
    };
    for spec in specs() {
        let make = || make_policy(spec, &geometry).expect("the spec is good");
        let (mut old, mut new) = (make(), make());
        life(&mut *old);
        for seq in [2, 0, 3, 1] {
            old.release(SeqId(seq));
        }
        old.restart();
        old.audit().expect("the books agree");
        assert_eq!(old.cached(&intent(0).content, 12), new.cached(&intent(0).content, 12), "{spec}");
        assert!(life(&mut *old) == life(&mut *new), "{spec}: other plans than those of a new one");
        assert_eq!(old.fork(SeqId(0), SeqId(9), 0), 0, "{spec}: nothing is shared");
        old.open(SeqId(9), &intent(9));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_policy_keeps_its_promises(
        calls in prop::collection::vec(call(), 1..90),
        global in 40..140u32,
        local in 20..80u32,
        window in 2..11u32,
    ) {
        for spec in specs() {
            drive(spec, &geometry(global, local, window), &calls)
                .map_err(|error| TestCaseError::fail(format!("{spec}: {error}")))?;
        }
    }
}
