//! Chat seats that take turns: each sends its conversation again with some new words, round after round.
//!
//! A seat has 8,192 tokens when its first answer ends, which is what one of 12,000 blocks holds 14 of with
//! Gemma 3 12B's groups (512 blocks that read everything and five windows of 65). Source: vLLM issue 48435.
#![allow(dead_code, reason = "the test and the example each use some of it")]

use policies::vllm::{Cache, Chain, Eviction, Retention, Setup};
use policies::{Append, Content, Geometry, Intent, LayerClass, Plan, Policy, Reach, SeqId, make_policy};

/// Blocks of the pool.
pub const BLOCKS: u32 = 12_000;
/// Blocks of a seat at rest.
pub const SEAT_BLOCKS: u32 = 512 + 5 * 65;

const BLOCK_SIZE: u32 = 16;
const FIRST_PROMPT: u32 = 8136;
const ANSWER: u32 = 56;
const NEW_WORDS: u32 = 200;
/// Prompt tokens of a step.
const CHUNK: u32 = 2048;

/// A pool for Gemma 3 12B: one group that reads everything, five with a window of 1024.
pub fn gemma3_12b(retention: Retention, eviction: Eviction) -> Setup {
    let mut groups = vec![Reach::Window(1024); 5];
    groups.push(Reach::Full);
    let (blocks, block_size) = (BLOCKS, BLOCK_SIZE);
    Setup { blocks, block_size, groups, caching: true, retention, eviction, keyless_first: true }
}

/// The same bytes without groups for windows: a block has all layers, so there are a sixth as many.
pub fn without_groups() -> Setup {
    let groups = vec![Reach::Full];
    Setup { blocks: BLOCKS / 6, groups, ..gemma3_12b(Retention::Last, Eviction::Lru) }
}

/// As many seats as the pool has room for, each found whole round after round, and nothing of the others: no rule
/// that keeps whole seats does better.
pub fn bound(hit_rate: f64, seats: u32) -> f64 {
    hit_rate * f64::from(((BLOCKS - 1) / SEAT_BLOCKS).min(seats)) / f64::from(seats)
}

/// What serves one request after another.
trait Server {
    /// Serves a text whose first `prompt` tokens are the prompt; how many of these were found.
    fn serve(&mut self, text: &Chain, prompt: u32) -> u32;
}

impl Server for Cache {
    fn serve(&mut self, text: &Chain, prompt: u32) -> u32 {
        let hit = self.open(0, prompt, |at| text.key(at)).tokens;
        for tokens in pieces(prompt - hit, text.tokens() - prompt) {
            self.append(0, tokens, false, |at| text.key(at)).expect("a seat alone fits");
        }
        self.release(0);
        hit
    }
}

impl Server for Box<dyn Policy> {
    fn serve(&mut self, text: &Chain, prompt: u32) -> u32 {
        let full = text.tokens() / BLOCK_SIZE;
        let chain = (0..full).map(|at| text.key(at)).collect();
        let content = Content { chain, chain_tokens: BLOCK_SIZE, chain_end: full * BLOCK_SIZE, own: 0 };
        let intent = Intent { content, prompt_tokens: prompt, total_tokens: text.tokens() };
        let hit = self.open(SeqId(0), &intent);
        for tokens in pieces(prompt - hit, text.tokens() - prompt) {
            let append = Append { seq: SeqId(0), tokens, restored: false };
            self.place(&[append], &mut Plan::without_writes()).expect("a seat alone fits");
        }
        self.release(SeqId(0));
        hit
    }
}

/// A prompt in chunks, then an answer token by token.
fn pieces(prompt: u32, answer: u32) -> impl Iterator<Item = u32> {
    let chunks = (0..prompt).step_by(CHUNK as usize).map(move |at| CHUNK.min(prompt - at));
    chunks.chain((0..answer).map(|_| 1))
}

/// Lengthens a text by words that only its seat says.
fn say(text: &mut Chain, seat: u32, count: u32) {
    let first = text.tokens();
    text.extend(&(first..first + count).map(|at| seat << 20 | at).collect::<Vec<u32>>());
}

fn hit_rate(server: &mut dyn Server, seats: u32, rounds: u32) -> f64 {
    let mut texts: Vec<Chain> = (0..seats).map(|_| Chain::new(BLOCK_SIZE)).collect();
    let (mut found, mut asked) = (0u64, 0u64);
    for round in 0..=rounds {
        for (seat, text) in (0..).zip(&mut texts) {
            say(text, seat, if round == 0 { FIRST_PROMPT } else { NEW_WORDS });
            let prompt = text.tokens();
            say(text, seat, ANSWER);
            let hit = server.serve(text, prompt);
            if round > 0 {
                found += u64::from(hit);
                asked += u64::from(prompt);
            }
        }
    }
    found as f64 / asked as f64
}

/// Share of the prompt tokens found in the cache, after a first round in which nothing is there.
pub fn warm_hit_rate(setup: Setup, seats: u32, rounds: u32) -> f64 {
    hit_rate(&mut Cache::new(setup), seats, rounds)
}

/// The same of a policy that has the memory of that pool, for Gemma 3 12B.
pub fn policy_hit_rate(spec: &str, seats: u32, rounds: u32) -> f64 {
    // Six groups of eight layers share the blocks.
    let cells = BLOCKS / 6 * BLOCK_SIZE;
    let class = |name: &str, layers, reach| LayerClass { name: name.into(), layers, reach, cells };
    let geometry = Geometry {
        classes: vec![class("local", 40, Reach::Window(1024)), class("global", 8, Reach::Full)],
        context_max: 1 << 17,
        batch_max: CHUNK,
        sequences_max: 1,
    };
    hit_rate(&mut make_policy(spec, &geometry).expect("the spec is good"), seats, rounds)
}
