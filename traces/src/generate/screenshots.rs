//! One machine's server: a program that sends screenshots in a loop, and people who chat beside it.
//!
//! Each client has one session after another: a run of screenshots, or a conversation. When the
//! next one begins is planned from how long the last would take on an idle server, so a slow
//! server makes a client's sessions overlap instead of thinning them out.

use std::collections::VecDeque;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::arrivals::{exponential, later};
use super::laws::{geometric, ns, tokens};
use super::params;
use crate::chain::mix;
use crate::request::{Image, Prefix, Request, When};

const BLOCK_TOKENS: u32 = 16;
/// Mean requests per second of all clients, as planned and measured over 1,000,000 requests.
const RATE_PER_S: f64 = 0.150_2;

pub(super) struct Screenshots {
    rng: ChaCha8Rng,
    /// How much more is sent than by one machine.
    activity: f64,
    clients: [Client; 1 + params::SHOTS_CHATTERS],
    next_session: u64,
    /// Mixed into every block id.
    scope: u64,
    /// What is left of the session under way.
    session: VecDeque<Request>,
}

struct Client {
    is_program: bool,
    next_start_ns: u64,
}

/// A session as it is laid out, with the time that it takes on an idle server.
struct Plan {
    session: u64,
    start_ns: u64,
    requests: VecDeque<Request>,
    seconds: f64,
}

impl Plan {
    /// Appends a request, sent so long after the answer before it.
    fn push(
        &mut self,
        wait_s: f64,
        prompt_tokens: u32,
        output_tokens: u32,
        prefix: Prefix,
        image: Option<Image>,
    ) {
        let when = if self.requests.is_empty() {
            When::At { ns: self.start_ns }
        } else {
            self.seconds += wait_s;
            When::After { wait_ns: ns(wait_s) }
        };
        let (per_prompt, per_output) = params::SHOTS_TOKEN_S;
        self.seconds += f64::from(prompt_tokens) * per_prompt + f64::from(output_tokens) * per_output;
        self.requests.push_back(Request {
            id: 0,
            session: Some(self.session),
            when,
            prompt_tokens,
            output_tokens,
            prefix,
            images: image.into_iter().collect(),
        });
    }
}

/// A number from which ids can be counted up.
fn first_id(scope: u64, number: u64) -> u64 {
    mix(scope, number) >> 1
}

/// Ids of the full blocks of a prompt: those of its head, which many have, then its own.
fn beginning(head: u64, head_tokens: u32, own: u64, prompt_tokens: u32) -> Prefix {
    let blocks = u64::from(prompt_tokens / BLOCK_TOKENS);
    let shared = u64::from(head_tokens / BLOCK_TOKENS).min(blocks);
    Prefix::chained(BLOCK_TOKENS, (head..head + shared).chain(own..own + blocks - shared).collect())
}

impl Screenshots {
    pub(super) fn new(mut rng: ChaCha8Rng, rate_per_s: Option<f64>) -> Self {
        let activity = rate_per_s.map_or(1.0, |rate| rate / RATE_PER_S);
        let scope = rng.random();
        // The program runs from the start; people join in.
        let clients = std::array::from_fn(|client| {
            let joins_s = exponential(activity / params::SHOTS_CHAT_PAUSE_S, &mut rng);
            let is_program = client == 0;
            Client { is_program, next_start_ns: if is_program { 0 } else { ns(joins_s) } }
        });
        Screenshots { rng, activity, clients, next_session: 0, scope, session: VecDeque::new() }
    }

    /// A run of screenshots: the same instruction, another image, some words.
    fn program(&mut self, plan: &mut Plan) {
        let head = first_id(self.scope, 0);
        let own = mix(self.scope, 2 + plan.session);
        for shot in 0..geometric(params::SHOTS_RUN_P, &mut self.rng) {
            let wait_s = self.rng.random_range(params::SHOTS_WAIT_S);
            let words = self.rng.random_range(params::SHOTS_WORDS);
            let output_tokens = self.rng.random_range(params::SHOTS_OUTPUT);
            let image = Image { at: params::SHOTS_INSTRUCTION, tokens: params::IMAGE_TOKENS };
            let prompt_tokens = image.at + image.tokens + words;
            let prefix = beginning(head, image.at, first_id(own, shot), prompt_tokens);
            plan.push(wait_s, prompt_tokens, output_tokens, prefix, Some(image));
        }
    }

    /// A conversation: each prompt is the prompt and answer before it, and what the person adds.
    fn conversation(&mut self, plan: &mut Plan) {
        let head = first_id(self.scope, 1);
        let own = first_id(self.scope, 2 + plan.session);
        let mut context = params::SHOTS_CHAT_SYSTEM;
        for turn in 0..geometric(params::CHAT_TURNS_P, &mut self.rng) {
            let wait_s = params::SHOTS_CHAT_WAIT_S.sample(&mut self.rng);
            let prompt_tokens = context + self.message(turn == 0);
            if prompt_tokens > params::SHOTS_CHAT_PROMPT_MAX {
                return;
            }
            let output_tokens = self.rng.random_range(params::SHOTS_CHAT_OUTPUT);
            let prefix = beginning(head, params::SHOTS_CHAT_SYSTEM, own, prompt_tokens);
            plan.push(wait_s, prompt_tokens, output_tokens, prefix, None);
            context = prompt_tokens + output_tokens;
        }
    }

    /// Tokens that a person adds to a conversation.
    fn message(&mut self, is_first: bool) -> u32 {
        if is_first && self.rng.random_bool(params::SHOTS_PASTE_P) {
            return self.rng.random_range(params::SHOTS_PASTE);
        }
        let law = if is_first { &params::CHAT_FIRST_PROMPT } else { &params::CHAT_USER };
        tokens(law.sample(&mut self.rng), 1, params::CHAT_PROMPT_MAX)
    }

    /// Lays out the session that begins next.
    fn start(&mut self) {
        let starts = self.clients.iter().enumerate().map(|(index, client)| (client.next_start_ns, index));
        let (start_ns, index) = starts.min().expect("there are clients");
        let session = self.next_session;
        self.next_session += 1;
        let mut plan = Plan { session, start_ns, requests: VecDeque::new(), seconds: 0.0 };
        let pause_s = if self.clients[index].is_program {
            self.program(&mut plan);
            params::SHOTS_PAUSE_S
        } else {
            self.conversation(&mut plan);
            params::SHOTS_CHAT_PAUSE_S
        };
        let away_s = plan.seconds + exponential(1.0 / pause_s, &mut self.rng);
        self.clients[index].next_start_ns = later(start_ns, away_s / self.activity);
        self.session = plan.requests;
    }
}

impl Iterator for Screenshots {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        if self.session.is_empty() {
            self.start();
        }
        self.session.pop_front()
    }
}
