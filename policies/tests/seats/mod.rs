//! Chat seats that take turns: each sends its conversation again with some new words, round after round.
//!
//! A seat has 8,192 tokens when its first answer ends, which is what one of 12,000 blocks holds 14 of with
//! Gemma 3 12B's groups (512 blocks that read everything and five windows of 65). Source: vLLM issue 48435.
#![allow(dead_code, reason = "the test and the example each use some of it")]

use policies::Reach;
use policies::vllm::{Cache, Chain, Eviction, Retention, Setup};

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

/// Share of the prompt tokens found in the cache, after a first round in which nothing is there.
pub fn warm_hit_rate(setup: Setup, seats: u32, rounds: u32) -> f64 {
    let mut cache = Cache::new(setup);
    let mut chains: Vec<Chain> = (0..seats).map(|_| Chain::new(BLOCK_SIZE)).collect();
    let (mut found, mut asked) = (0u64, 0u64);
    for round in 0..=rounds {
        for (seat, chain) in (0..).zip(&mut chains) {
            let say = |count: u32, chain: &mut Chain| {
                let words: Vec<u32> = (0..count).map(|at| seat << 20 | (chain.tokens() + at)).collect();
                chain.extend(&words);
            };
            say(if round == 0 { FIRST_PROMPT } else { NEW_WORDS }, chain);
            let prompt = chain.tokens();
            let hit = cache.open(0, prompt, |at| chain.key(at)).tokens;
            if round > 0 {
                found += u64::from(hit);
                asked += u64::from(prompt);
            }
            let mut left = prompt - hit;
            while left > 0 {
                let tokens = left.min(CHUNK);
                cache.append(0, tokens, false, |at| chain.key(at)).expect("a seat alone fits");
                left -= tokens;
            }
            for _ in 0..ANSWER {
                say(1, chain);
                cache.append(0, 1, false, |at| chain.key(at)).expect("a seat alone fits");
            }
            cache.release(0);
        }
    }
    found as f64 / asked as f64
}
