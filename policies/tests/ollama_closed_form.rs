//! When Ollama's cache refuses a batch, by arithmetic alone.
//!
//! A sequence that is not in the batch holds `r = min(p, W) + b` cells of the window cache, where `b`
//! is how many tokens it had in the last batch it took part in and `p` how many it had before
//! that. One in the batch has been trimmed to `min(p, W)`. Compaction leaves no hole, so a batch is
//! refused if and only if
//!
//! ```text
//! sum of r (not in the batch) + sum of min(p, W) (in the batch) + tokens of the batch > cells
//! ```
//!
//! or the cache of the other layers is full, which it is not while every slot keeps to its context.

use policies::ollama::{Kind, PAD, PAD_FLASH, Sizing, cells};
use policies::{
    Append, ClassId, Content, Full, Geometry, Intent, LayerClass, Plan, Policy, Reach, SeqId, make_policy,
};
use proptest::prelude::*;

/// Tokens of an image of Gemma 3, which go into one batch.
const IMAGE: u32 = 260;

#[derive(Clone, Copy, Debug)]
struct Server {
    window: u32,
    slots: u32,
    num_ctx: u32,
    num_batch: u32,
    pad: u32,
}

impl Server {
    fn cells(&self, sizing: Sizing) -> [u32; 2] {
        [Kind::Swa { window: self.window }, Kind::Causal]
            .map(|kind| cells(kind, self.slots, self.num_ctx, self.num_batch, self.pad, sizing))
    }

    fn policy(&self, name: &str, sizing: Sizing) -> Box<dyn Policy> {
        let [local, global] = self.cells(sizing);
        let class = |name: &str, layers, reach, cells| LayerClass { name: name.into(), layers, reach, cells };
        let geometry = Geometry {
            classes: vec![
                class("local", 52, Reach::Window(self.window), local),
                class("global", 10, Reach::Full, global),
            ],
            context_max: self.num_ctx,
            batch_max: self.num_batch,
            sequences_max: self.slots,
        };
        let mut policy = make_policy(&format!("{name}:{}", self.pad), &geometry).expect("the spec is good");
        for seq in 0..self.slots {
            open(&mut *policy, seq);
        }
        policy
    }
}

fn open(policy: &mut dyn Policy, seq: u32) {
    let intent = Intent { content: Content::own(u64::from(seq) + 1), prompt_tokens: 1, total_tokens: 1 };
    policy.open(SeqId(seq), &intent);
}

/// What the arithmetic knows of a slot: tokens it has, tokens before its last batch, tokens in that.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    len: u32,
    before: u32,
    last: u32,
}

impl Slot {
    /// Cells of the window cache while it is not in the batch.
    fn idle(&self, window: u32) -> u32 {
        self.before.min(window) + self.last
    }
}

/// The formula, for both caches.
fn refuses(server: &Server, slots: &[Slot], batch: &[Append], [local, global]: [u32; 2]) -> Option<ClassId> {
    let tokens: u32 = batch.iter().map(|append| append.tokens).sum();
    let held = |(seq, slot): (u32, &Slot)| {
        let in_batch = batch.iter().any(|append| append.seq.0 == seq);
        if in_batch { slot.len.min(server.window) } else { slot.idle(server.window) }
    };
    let held: u32 = (0..).zip(slots).map(held).sum();
    let all: u32 = slots.iter().map(|slot| slot.len).sum();
    if held + tokens > local { Some(ClassId(0)) } else { (all + tokens > global).then_some(ClassId(1)) }
}

fn server() -> impl Strategy<Value = Server> {
    let pads = prop::sample::select(vec![PAD, PAD_FLASH]);
    (1..40u32, 1..5u32, 1..120u32, 1..40u32, pads).prop_map(|(window, slots, num_ctx, num_batch, pad)| {
        Server { window, slots, num_ctx, num_batch, pad }
    })
}

#[derive(Clone, Debug)]
enum Call {
    /// Up to so many tokens of these slots.
    Batch(Vec<(u32, u32)>),
    /// A prompt in full batches, by one slot.
    Prompt(u32, u32),
    /// The slot's request makes way for one that begins differently.
    Anew(u32),
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        6 => prop::collection::vec((0..5u32, prop_oneof![3 => Just(1u32), 2 => 1..60u32]), 1..5)
            .prop_map(Call::Batch),
        3 => (0..5u32, 1..120u32).prop_map(|(seq, tokens)| Call::Prompt(seq, tokens)),
        2 => (0..5u32).prop_map(Call::Anew),
    ]
}

/// A server, its cache, and the arithmetic beside it.
struct Run {
    server: Server,
    policy: Box<dyn Policy>,
    slots: Vec<Slot>,
}

impl Run {
    fn new(server: Server, name: &str, sizing: Sizing) -> Run {
        let slots = vec![Slot::default(); server.slots as usize];
        Run { server, policy: server.policy(name, sizing), slots }
    }

    /// The batch as far as contexts and `most` tokens allow.
    fn batch(&self, parts: &[(u32, u32)], most: u32) -> Vec<Append> {
        let mut batch: Vec<Append> = Vec::new();
        let mut left = most;
        for &(seq, tokens) in parts {
            let seq = seq % self.server.slots;
            let tokens = tokens.min(left).min(self.server.num_ctx - self.slots[seq as usize].len);
            if tokens > 0 && batch.iter().all(|append| append.seq.0 != seq) {
                batch.push(Append { seq: SeqId(seq), tokens, restored: false });
                left -= tokens;
            }
        }
        batch
    }

    fn place(&mut self, batch: &[Append]) -> Result<(), Full> {
        if batch.is_empty() {
            return Ok(());
        }
        let placed = self.policy.place(batch, &mut Plan::new());
        for append in batch {
            let slot = &mut self.slots[append.seq.index()];
            let tokens = if placed.is_ok() { append.tokens } else { 0 };
            *slot = Slot { len: slot.len + tokens, before: slot.len, last: tokens };
        }
        placed
    }

    fn call(&mut self, call: &Call, most: u32, mut each: impl FnMut(&mut Run, &[Append])) {
        match *call {
            Call::Batch(ref parts) => {
                let batch = self.batch(parts, most);
                each(self, &batch);
            }
            Call::Prompt(seq, tokens) => {
                let mut left = tokens;
                while left > 0 {
                    let batch = self.batch(&[(seq, left)], most);
                    let Some(append) = batch.first() else { return };
                    left -= append.tokens;
                    each(self, &batch);
                }
            }
            Call::Anew(seq) => {
                let seq = seq % self.server.slots;
                self.policy.truncate(SeqId(seq), 0);
                self.slots[seq as usize] = Slot::default();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// Batches here may be longer than the server was made for, as images are.
    #[test]
    fn ollama_0_6_6_refuses_a_batch_if_and_only_if_the_formula_says_so(
        server in server(),
        most in 1..60u32,
        calls in prop::collection::vec(call(), 1..60),
    ) {
        let mut run = Run::new(server, "ollama-0.6.6", Sizing::SharedBatch);
        let cells = server.cells(Sizing::SharedBatch);
        let mut wrong = None;
        for call in &calls {
            run.call(call, most, |run, batch| {
                let expected = if batch.is_empty() { None } else { refuses(&server, &run.slots, batch, cells) };
                let slots = run.slots.clone();
                let refused = run.place(batch).err().map(|full| full.class);
                if refused != expected && wrong.is_none() {
                    wrong = Some(format!("{batch:?} with {slots:?}: {refused:?}, expected {expected:?}"));
                }
            });
        }
        prop_assert_eq!(wrong, None);
    }

    /// One slot is always in the batch itself, so nobody else holds anything.
    #[test]
    fn ollama_0_6_6_with_one_slot_never_refuses_a_batch_it_was_made_for(
        server in server(),
        calls in prop::collection::vec(call(), 1..60),
    ) {
        let mut run = Run::new(Server { slots: 1, ..server }, "ollama-0.6.6", Sizing::SharedBatch);
        let mut refused = None;
        for call in &calls {
            run.call(call, server.num_batch, |run, batch| refused = refused.or(run.place(batch).err()));
        }
        prop_assert_eq!(refused, None);
    }

    /// With all windows trimmed, or a batch for every slot, the cache is as large as it must be.
    #[test]
    fn ollama_0_12_4_and_the_old_sizing_never_refuse_a_batch_they_were_made_for(
        server in server(),
        calls in prop::collection::vec(call(), 1..60),
    ) {
        for (name, sizing) in [("ollama-0.12.4", Sizing::SharedBatch), ("ollama-0.6.6", Sizing::OwnBatch)] {
            let mut run = Run::new(server, name, sizing);
            let mut refused = None;
            for call in &calls {
                run.call(call, server.num_batch, |run, batch| refused = refused.or(run.place(batch).err()));
            }
            prop_assert_eq!(refused, None, "{}", name);
        }
    }
}

/// Full scale, one slot: text up to where the window is full, then images.
fn images(name: &str, num_batch: u32) -> Result<(), Full> {
    let server = Server { window: 1024, slots: 1, num_ctx: 4096, num_batch, pad: PAD };
    let mut run = Run::new(server, name, Sizing::SharedBatch);
    while run.slots[0].len < 1300 {
        let batch = run.batch(&[(0, 1300 - run.slots[0].len)], num_batch);
        run.place(&batch)?;
    }
    for _ in 0..8 {
        let batch = run.batch(&[(0, IMAGE)], IMAGE);
        run.place(&batch)?;
    }
    Ok(())
}

#[test]
fn images_break_a_batch_of_256_even_with_one_slot() {
    for name in ["ollama-0.6.6", "ollama-0.12.4"] {
        for num_batch in 200..300 {
            let local = cells(Kind::Swa { window: 1024 }, 1, 4096, num_batch, PAD, Sizing::SharedBatch);
            let refused = images(name, num_batch).err();
            assert_eq!(refused.is_some(), 1024 + IMAGE > local, "{name}, num_batch {num_batch}");
            assert!(num_batch < IMAGE || refused.is_none(), "{name}, num_batch {num_batch}");
        }
        let full = images(name, 256).expect_err("1280 cells are short of 4");
        assert_eq!((full.needed, full.free), (IMAGE, 256));
    }
}

/// Two prompts of so many tokens at once, then answers. Batches are full; who found no place in one
/// begins the next, and who has read its prompt adds a token to each.
fn two_prompts(name: &str, num_batch: u32, tokens: u32) -> bool {
    let server = Server { window: 1024, slots: 2, num_ctx: 4096, num_batch, pad: PAD };
    let mut run = Run::new(server, name, Sizing::SharedBatch);
    let mut first = 0;
    (0..2 * tokens.div_ceil(num_batch) + 4).all(|_| {
        let wanted = |seq: u32| (seq, tokens.saturating_sub(run.slots[seq as usize].len).max(1));
        let batch = run.batch(&[wanted(first), wanted(1 - first)], num_batch);
        if batch.len() == 1 {
            first = 1 - first;
        }
        run.place(&batch).is_ok()
    })
}

#[test]
fn two_long_prompts_at_once_are_too_much_from_this_length_on() {
    for (num_batch, threshold) in [(512, 1536), (256, 1280), (128, 1152), (1024, 2048)] {
        assert!(two_prompts("ollama-0.6.6", num_batch, threshold - 1), "{num_batch}");
        assert!(!two_prompts("ollama-0.6.6", num_batch, threshold), "{num_batch}");
        assert!(two_prompts("ollama-0.12.4", num_batch, 4000), "{num_batch}");
    }
}
