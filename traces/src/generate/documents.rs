//! Long documents, each asked about one to 24 times; a prompt is the document and a question.
//!
//! Documents start as a Poisson process and are then asked again at drawn times, which makes
//! requests a little burstier than the data (IoD at 60 s: 1.4 to 1.8, there 1.19).

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::Exp1;

use super::arrivals::{exponential, later};
use super::laws::{from_grid, geometric, ns, tokens};
use super::merge::Sessions;
use super::params;
use crate::chain::{growing, mix};
use crate::read::TOKENS_MAX;
use crate::request::{Request, When};

const BLOCK_TOKENS: u32 = 16;

pub(super) struct Documents {
    rng: ChaCha8Rng,
    /// Documents per second.
    rate_per_s: f64,
    /// Mixed into every block id.
    scope: u64,
    now_ns: u64,
    next_document: u64,
}

impl Documents {
    pub(super) fn new(mut rng: ChaCha8Rng, rate_per_s: Option<f64>) -> Self {
        let rate_per_s = rate_per_s.map_or(params::DOCUMENTS_PER_S, |rate| rate / params::DOCUMENT_QUESTIONS);
        let scope = rng.random();
        Documents { rng, rate_per_s, scope, now_ns: 0, next_document: 0 }
    }

    /// Time after which questions about earlier documents have reached their steady rate: an
    /// hour, or that of 50,000 documents where they come faster.
    pub(super) fn warm_up_ns(&self) -> u64 {
        ns((50_000.0 / self.rate_per_s).min(3_600.0))
    }

    fn questions(&mut self) -> u64 {
        if self.rng.random_bool(params::DOCUMENT_ONCE_P) {
            return 1;
        }
        let questions = 1 + geometric(params::DOCUMENT_STOP_P, &mut self.rng);
        questions.min(params::DOCUMENT_QUESTIONS_MAX)
    }
}

impl Sessions for Documents {
    fn draw(&mut self, session: &mut Vec<(u64, Request)>) {
        let document = self.next_document;
        self.next_document += 1;
        let document_tokens = tokens(from_grid(&params::DOCUMENT, &mut self.rng), 1, TOKENS_MAX);
        let prefix = growing(mix(self.scope, document), BLOCK_TOKENS, document_tokens);
        let mut ns = self.now_ns;
        for _ in 0..self.questions() {
            let question = tokens(params::DOCUMENT_USER.sample(&mut self.rng), 1, 1_000);
            let request = Request {
                id: 0,
                session: Some(document),
                when: When::At { ns },
                prompt_tokens: document_tokens + question,
                output_tokens: tokens(params::DOCUMENT_OUTPUT.sample(&mut self.rng), 1, 893),
                prefix: prefix.clone(),
                images: Vec::new(),
            };
            session.push((ns, request));
            let (shape, scale_s) = params::DOCUMENT_GAP;
            let gap_s = scale_s * self.rng.sample::<f64, _>(Exp1).powf(1.0 / shape);
            ns = later(ns, gap_s);
        }
        self.now_ns = later(self.now_ns, exponential(self.rate_per_s, &mut self.rng));
    }
}
