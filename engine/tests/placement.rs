//! Where tokens lie changes no bit: every policy, driven with random load, against a twin that keeps
//! every sequence in a region of its own and computes it token by token.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Hand, Random, assert_same_bits, geometry, push_span};
use engine::cpu::Cpu;
use engine::serve::shape_for;
use engine::{Backend, Batch, Config, KvType, LayerKind, Span, View, Wanted, Weights, synthetic};
use policies::{
    Append, Budget, ClassId, Content, Effect, Intent, POLICIES, Plan, Policy, Run, SeqId, make_policy,
};

/// Specs beside the defaults of all policies.
const VARIANTS: &[&str] = &[
    "contiguous:pow2",
    "contiguous:pow2:first:2",
    "buddy:2",
    "slab:20:150:3",
    "vmem:4",
    "shared:4",
    "contiguous:exact",
    "contiguous:run:best",
    "paged:1",
    "paged:4",
    "paged:5",
    "paged:4+prefix",
    "vllm:4",
    "vllm:4:dense:whole",
    "tiered:4:64",
    "paged:4+prefix(s3fifo)+tiered(64)",
    "paged:4+prefix+swap",
    "paged:5+prefix(scan:cow)",
    "radix:6:lru:cow",
    "defrag:step:0",
    "defrag:threshold:20",
    "defrag:background:0",
    "defrag:threshold:20:objective=runs",
    "shift:2:next",
    "shift:2+unrotated",
    "paged:4+prefix+unrotated",
    "ollama-0.6.6:32",
    "llama-unified:ubatch=5",
];
const SEQUENCES: u32 = 5;
const CONTEXT: u32 = 48;

/// Policies that round nothing.
fn specs() -> impl Iterator<Item = &'static str> {
    let exact = POLICIES.iter().map(|spec| spec.name).filter(|&name| name != "ladder");
    exact.chain(VARIANTS.iter().copied())
}

fn has_faults(spec: &str) -> bool {
    let name = spec.split([':', '+']).next();
    POLICIES.iter().any(|policy| Some(policy.name) == name && !policy.faults.is_empty())
}

fn tiny() -> Arc<Weights> {
    let mut config = Config::preset("gemma3-tiny").unwrap();
    config.layers = vec![LayerKind::Local, LayerKind::Global, LayerKind::Local];
    config.window = 8;
    config.vocab = 64;
    Arc::new(synthetic::weights(&config, 3, true).unwrap())
}

/// A policy with a backend, beside the twin.
struct Pair {
    policy: Box<dyn Policy>,
    cpu: Cpu,
    twin: Cpu,
    classes: usize,
    plan: Plan,
    /// Tokens of each open sequence; those not placed yet are to be computed.
    texts: BTreeMap<u32, Vec<u32>>,
    /// Whether the policy reproduces faults of a real server: its copies may turn cells over.
    has_faults: bool,
    /// Sequences whose cells may not hold what the policy says, by such a fault.
    tainted: Vec<u32>,
    copied: usize,
    compared: usize,
}

impl Pair {
    fn new(spec: &str, weights: &Arc<Weights>, cells: &[u32], kv: KvType) -> Pair {
        let mut geometry = geometry(&weights.config, cells);
        geometry.context_max = CONTEXT;
        geometry.batch_max = 12;
        geometry.sequences_max = SEQUENCES;
        let policy = make_policy(spec, &geometry).unwrap();
        // Classes that share memory have more addresses than they were told of.
        let geometry = policy.geometry().clone();
        let cpu = |is_twin: bool, cells: &dyn Fn(u32) -> u32| {
            let mut shape = shape_for(spec, &weights.config, &geometry, kv).unwrap();
            shape.rotated |= is_twin;
            shape.cells.iter_mut().for_each(|count| *count = cells(*count));
            Cpu::new(weights.clone(), shape).unwrap()
        };
        Pair {
            policy,
            cpu: cpu(false, &|count| count),
            twin: cpu(true, &|_| SEQUENCES * CONTEXT),
            classes: cells.len(),
            plan: Plan::without_writes(),
            texts: BTreeMap::new(),
            has_faults: has_faults(spec),
            tainted: Vec::new(),
            copied: 0,
            compared: 0,
        }
    }

    fn open(&mut self, seq: u32, family: u64, random: &mut Random) {
        let prompt = 4 + random.below(20) as u32;
        let token = |i: u32| (family * 7919 + u64::from(i) * u64::from(i) * 31 + 5) as u32 % 64;
        let chain: Vec<u64> = (0..6).map(|link| family * 1000 + link + 1).collect();
        let own = random.below(u64::MAX);
        let content = Content { chain: chain.into(), chain_tokens: 4, chain_end: prompt, own };
        let total_tokens = (prompt + 1 + random.below(16) as u32).min(CONTEXT);
        self.policy.open(SeqId(seq), &Intent { content, prompt_tokens: prompt, total_tokens });
        let mut text: Vec<u32> = (0..prompt).map(token).collect();
        text.extend(random.tokens((total_tokens - prompt) as usize, 64));
        self.texts.insert(seq, text);
        let mut hand = Hand::default();
        hand.place(self.classes, seq, seq * CONTEXT..(seq + 1) * CONTEXT);
        let mut tokens = self.texts[&seq].clone();
        tokens.truncate(self.policy.len(SeqId(seq)) as usize);
        if !tokens.is_empty() {
            hand.step(&mut self.twin, &[(seq, &tokens)]);
        }
    }

    /// Computes the next tokens of some sequences on both sides.
    fn step(&mut self, parts: &[(u32, u32)]) -> bool {
        let append = |&(seq, tokens)| Append { seq: SeqId(seq), tokens, restored: false };
        let appends: Vec<Append> = parts.iter().map(append).collect();
        let firsts: Vec<u32> = parts.iter().map(|&(seq, _)| self.policy.len(SeqId(seq))).collect();
        self.plan.clear();
        let placed = self.policy.place(&appends, &mut self.plan);
        self.copied += self.plan.effects().len();
        self.cpu.apply(&self.plan, &|seq| seq.0.into()).unwrap();
        if self.has_faults && self.plan.effects().iter().any(|effect| matches!(effect, Effect::Copy { .. })) {
            self.tainted = self.texts.keys().copied().collect();
        }
        if placed.is_err() {
            return false;
        }
        let mut batch = Batch { wanted: Wanted::Logits, ..Batch::default() };
        let walks_range = self.policy.reading().walks();
        for (&(seq, tokens), &first) in parts.iter().zip(&firsts) {
            let mut views = vec![View::default(); self.classes];
            for (class, view) in views.iter_mut().enumerate() {
                view.read(&*self.policy, ClassId(class as u8), SeqId(seq));
            }
            let tokens = &self.texts[&seq][first as usize..(first + tokens) as usize];
            push_span(&mut batch, tokens, Span { first, views, ..Span::default() });
        }
        if walks_range {
            let walk = |class| Run { start: 0, len: self.policy.shape(ClassId(class as u8)).high_water };
            batch.walks = (0..self.classes).map(|class| Some(walk(class))).collect();
        }
        let logits = common::logits(&mut self.cpu, &batch);
        let vocab = self.cpu.config().vocab;
        let mut rows = logits.chunks_exact(vocab);
        for (&(seq, tokens), &first) in parts.iter().zip(&firsts) {
            for token in first..first + tokens {
                let mut hand = Hand::default();
                hand.place(self.classes, seq, seq * CONTEXT..(seq + 1) * CONTEXT);
                hand.set_len(seq, token);
                let expected = hand.step(&mut self.twin, &[(seq, &[self.texts[&seq][token as usize]])]);
                let row = rows.next().unwrap();
                if !self.tainted.contains(&seq) {
                    assert_same_bits(&expected, row, &format!("sequence {seq}, token {token}"));
                    self.compared += 1;
                }
            }
        }
        true
    }

    fn close(&mut self, seq: u32) {
        self.policy.release(SeqId(seq));
        self.texts.remove(&seq);
        self.tainted.retain(|&tainted| tainted != seq);
    }
}

/// Random load for so many steps.
fn drive(pair: &mut Pair, seed: u64, steps: usize) {
    let mut random = Random(seed);
    for _ in 0..steps {
        let seq = random.below(SEQUENCES.into()) as u32;
        match pair.texts.get(&seq) {
            None => {
                let family = random.below(3);
                pair.open(seq, family, &mut random);
            }
            Some(_) if random.below(12) == 0 => pair.close(seq),
            Some(_) => {}
        }
        if random.below(6) == 0 {
            pair.plan.clear();
            pair.policy.maintain(Budget { cells: 8 }, &mut pair.plan);
            pair.cpu.apply(&pair.plan, &|seq| seq.0.into()).unwrap();
        }
        let mut parts = Vec::new();
        let mut room = 12;
        for (&seq, text) in &pair.texts {
            let left = text.len() as u32 - pair.policy.len(SeqId(seq));
            let tokens = left.min(1 + random.below(7) as u32).min(room);
            if tokens > 0 {
                parts.push((seq, tokens));
                room -= tokens;
            }
        }
        let done: Vec<u32> = pair
            .texts
            .iter()
            .filter(|(seq, text)| pair.policy.len(SeqId(**seq)) == text.len() as u32)
            .map(|(seq, _)| *seq)
            .collect();
        done.into_iter().for_each(|seq| pair.close(seq));
        if !parts.is_empty() && !pair.step(&parts) {
            pair.close(parts[0].0);
        }
    }
}

#[test]
fn no_policy_changes_a_bit_with_two_classes_or_one() {
    let weights = tiny();
    for spec in specs() {
        for cells in [&[56, 96][..], &[96]] {
            let mut pair = Pair::new(spec, &weights, cells, KvType::F32);
            drive(&mut pair, 11, 60);
            println!("{spec}: {} rows compared, {} effects", pair.compared, pair.copied);
            assert!(pair.compared > 60, "{spec}: {} rows", pair.compared);
        }
    }
}

#[test]
fn no_policy_changes_a_bit_of_quantised_k_and_v() {
    let weights = tiny();
    for kv in [KvType::F16, KvType::Bf16, KvType::Q8_0, KvType::Q4_0] {
        for spec in ["paged:4", "defrag:step:0", "llama-unified"] {
            drive(&mut Pair::new(spec, &weights, &[56, 96], kv), 5, 30);
        }
    }
}
