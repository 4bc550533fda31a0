//! Coding agents: a context that grows with every tool call, at times rewritten or compacted.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma};

use super::arrivals::{exponential, later};
use super::laws::{ns, tokens};
use super::params;
use crate::chain::mix;
use crate::request::{Prefix, Request, When};

const BLOCK_TOKENS: u32 = 64;
const OUTPUT_MAX: u32 = 18_195;
const REQUESTS_MIN: u64 = 3;

pub(super) struct Agent {
    rng: ChaCha8Rng,
    /// Session starts per second.
    rate_per_s: f64,
    requests: Gamma<f64>,
    /// Mixed into every block id.
    scope: u64,
    next_start_ns: u64,
    next_session: u64,
    session: Option<Session>,
}

struct Session {
    number: u64,
    requests_left: u64,
    /// Prompt tokens of the last request.
    prompt_tokens: u32,
    /// Ids of the full blocks of the last prompt.
    ids: Vec<u64>,
    /// How often the text has been changed from some place on.
    versions: u64,
}

impl Session {
    /// Keeps the first tokens of the text; what comes after them will be new.
    fn keep(&mut self, kept_tokens: u32) {
        self.ids.truncate((kept_tokens / BLOCK_TOKENS) as usize);
        self.versions += 1;
    }

    /// Fills up the ids for a prompt of this length; tools and system prompt are everyone's.
    fn grow(&mut self, scope: u64, prompt_tokens: u32) {
        self.prompt_tokens = prompt_tokens;
        let own = mix(mix(scope, 1 + self.number), self.versions);
        let shared = params::AGENT_SYSTEM_TOKENS / BLOCK_TOKENS;
        let blocks = prompt_tokens / BLOCK_TOKENS;
        self.ids.truncate(blocks as usize);
        for block in self.ids.len() as u32..blocks {
            let owner = if block < shared { scope } else { own };
            self.ids.push(mix(owner, u64::from(block)));
        }
    }
}

impl Agent {
    pub(super) fn new(mut rng: ChaCha8Rng, rate_per_s: Option<f64>) -> Self {
        let (shape, scale) = params::AGENT_REQUESTS;
        let rate_per_s = rate_per_s.map_or(params::AGENT_SESSIONS_PER_S, |rate| rate / (shape * scale));
        let requests = Gamma::new(shape, scale).expect("shape and scale are above 0");
        let scope = rng.random();
        let (next_start_ns, next_session, session) = (0, 0, None);
        Agent { rng, rate_per_s, requests, scope, next_start_ns, next_session, session }
    }

    fn start(&mut self) -> Session {
        let number = self.next_session;
        self.next_session += 1;
        let requests = (self.requests.sample(&mut self.rng).round() as u64).max(REQUESTS_MIN);
        let first = params::AGENT_FIRST_PROMPT.sample(&mut self.rng);
        let mut session =
            Session { number, requests_left: requests, prompt_tokens: 0, ids: Vec::new(), versions: 0 };
        session.grow(self.scope, tokens(first, 1, params::AGENT_CONTEXT_MAX));
        session
    }

    /// Lays out the next prompt of a session; false where it would be too long.
    fn go_on(&mut self, session: &mut Session) -> bool {
        let before = session.prompt_tokens;
        let growth = params::AGENT_GROWTH.sample(&mut self.rng);
        let mut prompt_tokens = before.saturating_add(tokens(growth, 1, u32::MAX));
        let is_long = before > params::AGENT_COMPACT_FROM;
        if is_long && self.rng.random_bool(params::AGENT_COMPACT_P) {
            let after = params::AGENT_COMPACTED.sample(&mut self.rng);
            prompt_tokens = tokens(after, params::AGENT_SYSTEM_TOKENS, before / 10 * 9);
            session.keep(params::AGENT_SYSTEM_TOKENS);
        } else if self.rng.random_bool(params::AGENT_BREAK_P) {
            let kept: f64 = if self.rng.random_bool(0.5) {
                self.rng.random_range(0.10..0.17)
            } else {
                self.rng.random_range(0.99..1.0)
            };
            prompt_tokens = before;
            session.keep((f64::from(before) * kept) as u32);
        }
        if prompt_tokens > params::AGENT_CONTEXT_MAX {
            return false;
        }
        session.grow(self.scope, prompt_tokens);
        true
    }

    fn wait_ns(&mut self) -> u64 {
        let seconds = if self.rng.random_bool(params::AGENT_TOOL_P) {
            params::AGENT_TOOL_S.sample(&mut self.rng)
        } else {
            params::AGENT_USER_S.sample(&mut self.rng)
        };
        ns(seconds.min(params::AGENT_WAIT_MAX_S))
    }

    /// The request whose prompt has been laid out.
    fn request(&mut self, mut session: Session, when: When) -> Request {
        let output = params::AGENT_OUTPUT.sample(&mut self.rng);
        session.requests_left -= 1;
        let request = Request {
            id: 0,
            session: Some(session.number),
            when,
            prompt_tokens: session.prompt_tokens,
            output_tokens: tokens(output, 1, OUTPUT_MAX),
            prefix: Prefix::chained(BLOCK_TOKENS, session.ids.clone()),
            images: Vec::new(),
        };
        self.session = (session.requests_left > 0).then_some(session);
        request
    }
}

impl Iterator for Agent {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        if let Some(mut session) = self.session.take()
            && self.go_on(&mut session)
        {
            let when = When::After { wait_ns: self.wait_ns() };
            return Some(self.request(session, when));
        }
        let session = self.start();
        let when = When::At { ns: self.next_start_ns };
        self.next_start_ns = later(self.next_start_ns, exponential(self.rate_per_s, &mut self.rng));
        Some(self.request(session, when))
    }
}
