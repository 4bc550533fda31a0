//! Chat seats that take turns: each sends its conversation again with some new words, round after round.
//!
//! Source: vLLM issue 48435, whose seats have 8,192 tokens when their first answer ends. No data: who is next
//! is who has waited longest, which is the worst order for a cache that evicts what was used least recently.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::arrivals::later;
use crate::chain::{growing, mix};
use crate::request::{Request, When};

const BLOCK_TOKENS: u32 = 16;
const FIRST_PROMPT: u32 = 8_136;
const ANSWER: u32 = 56;
const NEW_WORDS: u32 = 200;
/// A seat begins another conversation before its prompt would pass twice the first one.
const PROMPT_MAX: u32 = 2 * FIRST_PROMPT;
/// Requests per second where nothing else is asked for: long enough apart for one to end before the next.
const RATE_PER_S: f64 = 0.1;

pub(super) struct Seats {
    /// Mixed into every block id.
    scope: u64,
    gap_s: f64,
    seats: u64,
    /// Requests after which it ends, if it does.
    most: Option<u64>,
    sent: u64,
    now_ns: u64,
}

impl Seats {
    pub(super) fn new(mut rng: ChaCha8Rng, rate_per_s: Option<f64>, seats: u32, rounds: Option<u32>) -> Self {
        let seats = u64::from(seats);
        let most = rounds.map(|rounds| seats * u64::from(rounds));
        let gap_s = 1.0 / rate_per_s.unwrap_or(RATE_PER_S);
        Seats { scope: rng.random(), gap_s, seats, most, sent: 0, now_ns: 0 }
    }
}

impl Iterator for Seats {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        if self.most.is_some_and(|most| self.sent >= most) {
            return None;
        }
        let turns = u64::from((PROMPT_MAX - FIRST_PROMPT) / (ANSWER + NEW_WORDS)) + 1;
        let (round, seat) = (self.sent / self.seats, self.sent % self.seats);
        let session = round / turns * self.seats + seat;
        let prompt_tokens = FIRST_PROMPT + (round % turns) as u32 * (ANSWER + NEW_WORDS);
        let request = Request {
            id: 0,
            session: Some(session),
            when: When::At { ns: self.now_ns },
            prompt_tokens,
            output_tokens: ANSWER,
            prefix: growing(mix(self.scope, session), BLOCK_TOKENS, prompt_tokens),
            images: Vec::new(),
        };
        self.sent += 1;
        self.now_ns = later(self.now_ns, self.gap_s);
        Some(request)
    }
}
