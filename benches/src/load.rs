//! A steady load of decoding sequences: one token each per step, forever.
//!
//! Every sequence starts with a prompt, decodes the same number of tokens and is replaced by a
//! new one; the ends are spread evenly over time, in an order that has nothing to do with the
//! ids. On average the sequences hold 70 % of the cells.

use policies::{Append, Content, Geometry, Intent, LayerClass, Plan, Policy, Reach, SeqId};

use traces::random::{SplitMix64, scramble};

/// Sequences that decode side by side.
pub const SEQUENCES: u32 = 256;

/// Tokens of a prompt that are placed at once; also the largest batch.
const CHUNK: u32 = 256;

/// Prompts that [`Prompts::Shared`] begins with, and tokens that one id of their contents stands for.
const FAMILIES: u64 = 64;
const CHAIN_TOKENS: u32 = 16;

/// What prompts have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompts {
    /// Nothing.
    Own,
    /// Every other one is one of 64 that come back.
    Shared,
}

/// Window of Gemma 3's local layers, tokens.
const WINDOW: u32 = 1024;

/// A cache for [`SEQUENCES`] equal shares of `cells`: one class, or the two of Gemma 3 12B. A local class
/// has room for a window and three chunks per sequence (a ring needs one, single cells need space
/// for holes), but no more than the share.
pub fn geometry(cells: u32, gemma: bool) -> Geometry {
    let context_max = cells / SEQUENCES;
    let layers = if gemma { 8 } else { 1 };
    let mut classes = vec![LayerClass { name: "global".into(), layers, reach: Reach::Full, cells }];
    if gemma {
        let cells = context_max.min(WINDOW + 3 * CHUNK) * SEQUENCES;
        classes.push(LayerClass { name: "local".into(), layers: 40, reach: Reach::Window(WINDOW), cells });
    }
    Geometry { classes, context_max, batch_max: CHUNK, sequences_max: SEQUENCES }
}

/// The load, with the policy that serves it.
pub struct Load {
    policy: Box<dyn Policy>,
    plan: Plan,
    batch: Vec<Append>,
    /// Which sequences end before step `i` of every round.
    ends: Vec<Vec<SeqId>>,
    step: usize,
    prompt: u32,
    prompts: Prompts,
    requests: u64,
    /// Sequences that had to start over early because a batch was refused.
    pub cut: u64,
    /// Steps since the load became steady.
    pub steps: u64,
    /// Tokens of the prompts of requests since then.
    pub asked: u64,
    /// Those of them that were found.
    pub found: u64,
}

impl Load {
    /// Fills the cache with sequences of every age and runs a round and at least a thousand steps,
    /// so that nobody is left whose prompt was placed before decoding began.
    pub fn new(policy: Box<dyn Policy>, plan: Plan, prompts: Prompts) -> Self {
        let context_max = policy.geometry().context_max;
        // 0.45 to 0.95 of a share each: 0.7 on average.
        let prompt = context_max * 45 / 100;
        let round = context_max * 95 / 100 - prompt;
        let mut order: Vec<SeqId> = (0..SEQUENCES).map(SeqId).collect();
        SplitMix64::new(1).shuffle(&mut order);
        let mut ends = vec![Vec::new(); round as usize];
        for (i, &seq) in (0..).zip(&order) {
            ends[(i * round / SEQUENCES) as usize].push(seq);
        }
        let batch =
            (0..SEQUENCES).map(|seq| Append { seq: SeqId(seq), tokens: 1, restored: false }).collect();
        let mut load = Load {
            policy,
            plan,
            batch,
            ends,
            step: 0,
            prompt,
            prompts,
            requests: 0,
            cut: 0,
            steps: 0,
            asked: 0,
            found: 0,
        };
        for end in 0..load.ends.len() {
            for seq in load.ends[end].clone() {
                load.open(seq, prompt + round - end as u32);
            }
        }
        for _ in 0..round.max(1000) {
            load.step();
        }
        (load.cut, load.steps, load.asked, load.found) = (0, 0, 0, 0);
        load
    }

    /// One step: ended sequences make way for new ones, then everyone gets a token.
    pub fn step(&mut self) {
        self.plan.clear();
        for i in 0..self.ends[self.step].len() {
            let seq = self.ends[self.step][i];
            self.policy.release(seq);
            self.open(seq, self.prompt);
        }
        while self.policy.place(&self.batch, &mut self.plan).is_err() {
            self.cut_one(None);
        }
        self.step = (self.step + 1) % self.ends.len();
        self.steps += 1;
    }

    /// Starts a sequence and places its prompt, a chunk at a time.
    fn open(&mut self, seq: SeqId, prompt_tokens: u32) {
        self.requests += 1;
        let total_tokens = self.prompt + self.ends.len() as u32;
        let intent = Intent { content: self.content(), prompt_tokens, total_tokens };
        let found = self.policy.open(seq, &intent);
        (self.asked, self.found) = (self.asked + u64::from(prompt_tokens), self.found + u64::from(found));
        let mut left = prompt_tokens - found;
        while left > 0 {
            let tokens = left.min(CHUNK);
            while self.policy.place(&[Append { seq, tokens, restored: false }], &mut self.plan).is_err() {
                self.cut_one(Some(seq));
            }
            left -= tokens;
        }
    }

    /// What the next request says: all of its own, or a prompt that others have, too.
    fn content(&self) -> Content {
        if self.prompts == Prompts::Own || self.requests % 2 == 1 {
            return Content::own(self.requests);
        }
        let family = scramble(self.requests) % FAMILIES;
        let ids = (0..self.prompt.div_ceil(CHAIN_TOKENS)).map(|i| scramble(family << 32 | u64::from(i)));
        Content {
            chain: ids.collect(),
            chain_tokens: CHAIN_TOKENS,
            chain_end: self.prompt,
            own: self.requests,
        }
    }

    /// The sequence that ends next gives its cells back and goes on from nothing; not `except`,
    /// and nobody who has nothing.
    fn cut_one(&mut self, except: Option<SeqId>) {
        let round = self.ends.len();
        let next = (1..=round).flat_map(|ahead| &self.ends[(self.step + ahead) % round]);
        let mut next = next.filter(|&&seq| Some(seq) != except && self.policy.len(seq) > 0);
        let &seq = next.next().expect("somebody holds cells");
        self.policy.release(seq);
        self.requests += 1;
        self.cut += 1;
        let content = Content::own(self.requests);
        self.policy.open(seq, &Intent { content, prompt_tokens: 1, total_tokens: self.ends.len() as u32 });
    }

    /// The policy, to look at.
    pub fn policy(&self) -> &dyn Policy {
        &*self.policy
    }
}
