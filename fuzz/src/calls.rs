//! Bytes as calls to a policy, in the order that the trait asks for and with valid arguments.

use std::collections::BTreeMap;
use std::sync::Arc;

use policies::{
    Append, Budget, Content, Effect, Geometry, Intent, LayerClass, Plan, Policy, Reach, Reduction, Run,
    SeqId, make_policy,
};

/// Every policy, with every knob somewhere.
const SPECS: &[&str] = &[
    "contiguous",
    "contiguous:max:next",
    "contiguous:max:best",
    "contiguous:pow2",
    "contiguous:pow2:best",
    "contiguous:pow2:first:2",
    "buddy",
    "buddy:2",
    "slab",
    "slab:20:150:3",
    "vmem",
    "vmem:4",
    "shared",
    "shared:4",
    "swa-full",
    "swa-full:next:never",
    "contiguous:exact",
    "contiguous:run",
    "contiguous:run:next",
    "contiguous:run:best",
    "paged",
    "paged:1",
    "paged:5",
    "paged:1+prefix",
    "paged:4+prefix",
    "vllm:4",
    "vllm:2:dense:whole",
    "tiered:4:40:ahead=99",
    "paged:3+prefix(s3fifo:cow)",
    "radix:4:cost:cow",
    "shift",
    "shift:2:next:never",
    "shift:0:best",
    "defrag",
    "defrag:threshold:20",
    "defrag:step:0:next",
    "defrag:failure:10:best+shift",
    "defrag:threshold:20:objective=runs",
    "defrag:background:0:best:runs:9",
    "shift:drop=1",
    "truncate",
    "truncate:0:3",
    "ring",
    "ring:5",
    "sinks",
    "sinks:2:half",
    "ladder:4",
    "heavy:9",
    "heavy:20:5:0:3",
    "snap:9:4",
    "llama-unified",
    "llama-unified:3:256:no",
    "ollama-0.6.6",
    "ollama-0.6.6:256:no:20",
    "ollama-0.12.4",
    "ollama-0.12.4:nodes=8",
    "unlimited",
    "clairvoyant",
];

/// Takes numbers from bytes; none once they have run out.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> Option<u32> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(u32::from(first))
    }

    /// A number from `least` to `most`.
    fn within(&mut self, least: u32, most: u32) -> Option<u32> {
        Some(least + self.next()? % (most - least + 1))
    }
}

/// Makes a policy and calls it until the bytes have run out.
///
/// # Panics
///
/// When the policy breaks a promise of its trait.
pub fn drive(data: &[u8]) {
    let mut bytes = Bytes(data);
    let Some(mut calls) = Calls::new(&mut bytes) else { return };
    while calls.call(&mut bytes).is_some() {
        calls.check();
    }
    for seq in std::mem::take(&mut calls.open).into_keys() {
        calls.policy.release(SeqId(seq));
    }
    calls.check();
    for class in calls.policy.geometry().class_ids() {
        assert_eq!(calls.policy.usage(class).held, 0, "{}: released cells are still held", calls.spec);
    }
}

/// A policy, and the sequences that are open with their lengths.
struct Calls {
    spec: &'static str,
    policy: Box<dyn Policy>,
    open: BTreeMap<u32, u32>,
    serial: u64,
}

impl Calls {
    fn new(bytes: &mut Bytes) -> Option<Calls> {
        let spec = SPECS[bytes.next()? as usize % SPECS.len()];
        let mut classes = Vec::new();
        for name in ["local", "global"] {
            let cells = bytes.within(1, 200)?;
            let window = bytes.within(0, 24)?;
            let reach = if window == 0 { Reach::Full } else { Reach::Window(window) };
            classes.push(LayerClass { name: name.to_owned(), layers: 1, reach, cells });
        }
        let geometry = Geometry {
            classes,
            context_max: bytes.within(2, 64)?,
            batch_max: bytes.within(1, 16)?,
            sequences_max: bytes.within(1, 6)?,
        };
        let policy = make_policy(spec, &geometry).expect("the spec is good");
        Some(Calls { spec, policy, open: BTreeMap::new(), serial: 0 })
    }

    /// One call. None when the bytes have run out.
    fn call(&mut self, bytes: &mut Bytes) -> Option<()> {
        let (sequences, context) = {
            let geometry = self.policy.geometry();
            (geometry.sequences_max, geometry.context_max)
        };
        let call = bytes.next()?;
        let seq = bytes.within(0, sequences - 1)?;
        let Some(&len) = self.open.get(&seq) else {
            let prompt = bytes.within(1, context)?;
            let output = bytes.within(1, context)?;
            let family = u64::from(bytes.next()? % 3);
            self.start(seq, prompt, prompt + output, family);
            return Some(());
        };
        match call % 8 {
            0 => {
                self.policy.release(SeqId(seq));
                self.open.remove(&seq);
            }
            1 => {
                let to = bytes.within(0, context)?;
                let kept = self.policy.truncate(SeqId(seq), to);
                assert!(kept <= to.min(len), "{}: truncation to {to} of {len} keeps {kept}", self.spec);
                self.open.insert(seq, kept);
            }
            2 if len > 0 => {
                let start = bytes.within(0, len - 1)?;
                let end = bytes.within(start + 1, len)?;
                let mut plan = Plan::new();
                match self.policy.remove(SeqId(seq), start..end, &mut plan) {
                    Ok(()) => {
                        self.open.insert(seq, len - (end - start));
                    }
                    Err(_) => assert!(plan.is_empty(), "{}: a refusal leaves a plan", self.spec),
                }
                self.check_plan(&plan);
            }
            3 if self.policy.reduces() => {
                let mut plan = Plan::new();
                let dropped = match self.policy.reduce(SeqId(seq), 4, &mut plan) {
                    Reduction::Stop => 0,
                    Reduction::Dropped(dropped) | Reduction::Picked(dropped) => dropped,
                    Reduction::Again { .. } => len,
                };
                assert!(dropped > 0 || len < context, "{}: a full context was not reduced", self.spec);
                assert!(dropped <= len);
                self.open.insert(seq, len - dropped);
                self.check_plan(&plan);
            }
            4 => {
                let cells = bytes.within(0, 20)?;
                let mut plan = Plan::new();
                let copied = self.policy.maintain(Budget { cells }, &mut plan);
                // On a threshold the policy makes a whole pass, whatever the budget says.
                let is_bounded = !["threshold", "background"].iter().any(|when| self.spec.contains(when));
                assert!(copied <= cells || !is_bounded, "{}: {copied} copied of {cells} cells", self.spec);
                self.check_plan(&plan);
            }
            5 => self.decode(),
            _ => {
                let tokens = bytes.within(1, 16)?;
                self.place(&[(seq, tokens)]);
            }
        }
        Some(())
    }

    fn start(&mut self, seq: u32, prompt_tokens: u32, total_tokens: u32, family: u64) {
        self.serial += 1;
        // Neighbouring families share their first link.
        let chain: Arc<[u64]> = Arc::from([family / 2 + 1, family + 10, self.serial + 100]);
        let content = Content { chain, chain_tokens: 4, chain_end: prompt_tokens, own: self.serial };
        let promised = self.policy.cached(&content, prompt_tokens).tokens;
        let hit = self.policy.open(SeqId(seq), &Intent { content, prompt_tokens, total_tokens });
        assert_eq!(hit, promised, "{}: cached() promised something else", self.spec);
        assert!(hit < prompt_tokens, "{}: nothing is left to compute", self.spec);
        self.open.insert(seq, hit);
    }

    /// One token for every sequence that has some.
    fn decode(&mut self) {
        let ready: Vec<(u32, u32)> =
            self.open.iter().filter(|&(_, &len)| len > 0).map(|(&seq, _)| (seq, 1)).collect();
        self.place(&ready);
    }

    /// Places tokens, as many as the context and the batch allow.
    fn place(&mut self, wanted: &[(u32, u32)]) {
        let geometry = self.policy.geometry();
        let (context, mut left) = (geometry.context_max, geometry.batch_max);
        let mut batch = Vec::new();
        for &(seq, tokens) in wanted {
            let tokens = tokens.min(context - self.open[&seq]).min(left);
            if tokens > 0 {
                left -= tokens;
                batch.push(Append { seq: SeqId(seq), tokens, restored: false });
            }
        }
        if batch.is_empty() {
            return;
        }
        let mut plan = Plan::new();
        match self.policy.place(&batch, &mut plan) {
            Ok(()) => {
                for append in &batch {
                    *self.open.get_mut(&append.seq.0).expect("the sequence is open") += append.tokens;
                }
            }
            Err(_) => {
                // A server's cache may have compacted itself in vain.
                let writes = |effect: &Effect| matches!(effect, Effect::Write { .. });
                let may_move = self.spec.starts_with("ollama") || self.spec.starts_with("llama-unified");
                let left = plan.effects().iter().any(|effect| !may_move || writes(effect));
                assert!(!left, "{}: a refusal leaves a plan", self.spec);
                assert!(self.spec != "unlimited", "unlimited refuses");
            }
        }
        self.check_plan(&plan);
    }

    /// Every cell of a plan exists.
    fn check_plan(&self, plan: &Plan) {
        if self.spec == "unlimited" {
            return;
        }
        for effect in plan.effects() {
            let (class, runs) = match *effect {
                Effect::Copy { class, from, to, len, .. } => {
                    (class, vec![Run { start: from, len }, Run { start: to, len }])
                }
                Effect::Write { class, run, .. }
                | Effect::Rotate { class, run, .. }
                | Effect::Requantise { class, run, .. }
                | Effect::Map { class, run, .. }
                | Effect::Unmap { class, run, .. }
                | Effect::SwapOut { class, run, .. }
                | Effect::SwapIn { class, run, .. }
                | Effect::Offload { class, run, .. }
                | Effect::Fetch { class, run, .. } => (class, vec![run]),
            };
            let cells = self.policy.geometry().classes[class.index()].cells;
            for run in runs {
                assert!(run.len > 0 && run.cells().end <= cells, "{}: {effect:?}", self.spec);
            }
        }
    }

    fn check(&self) {
        if let Err(what) = self.policy.audit() {
            panic!("{}: {what}", self.spec);
        }
        let mut runs = Vec::new();
        for class in self.policy.geometry().class_ids() {
            let usage = self.policy.usage(class);
            assert_eq!(usage.held + usage.cached + usage.free, usage.cells, "{}", self.spec);
            assert!(usage.placeable <= usage.free + usage.cached, "{}", self.spec);
            let shape = self.policy.shape(class);
            assert!(shape.largest_free_run <= usage.free + usage.cached, "{}", self.spec);
            for (&seq, &len) in &self.open {
                assert_eq!(self.policy.len(SeqId(seq)), len, "{}", self.spec);
                let tokens = self.policy.layout(class, SeqId(seq), &mut runs);
                let cells: u32 = runs.iter().map(|run| run.len).sum();
                assert_eq!(tokens, len - cells..len, "{}: sequence {seq} has {cells} cells", self.spec);
            }
        }
    }
}
