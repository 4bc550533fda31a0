//! Conversations: each prompt is the prompt and answer before it, and what the user adds.
//!
//! The context is cut like the data: a conversation ends before its prompt would pass 8,141
//! tokens, which makes the mean 5.0 turns where the law of turns alone has 5.3.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::arrivals::{TwoRates, later};
use super::laws::{geometric, ns, tokens};
use super::params;
use crate::chain::{growing, mix};
use crate::request::{Image, Request, When};

/// Mean turns of a conversation, measured over 100,000 requests.
const TURNS_MEAN: f64 = 4.96;
/// The same with images, which fill the context sooner.
const TURNS_MEAN_WITH_IMAGES: f64 = 4.89;
const BLOCK_TOKENS: u32 = 16;

pub(super) struct Chat {
    rng: ChaCha8Rng,
    starts: TwoRates,
    has_images: bool,
    next_start_ns: u64,
    next_session: u64,
    /// Mixed into every block id.
    scope: u64,
    conversation: Option<Conversation>,
}

struct Conversation {
    session: u64,
    turns_left: u64,
    /// Tokens after the last answer.
    context: u32,
    images: Vec<Image>,
}

impl Chat {
    pub(super) fn new(mut rng: ChaCha8Rng, rate_per_s: Option<f64>, has_images: bool) -> Self {
        let (rates, dwell) = (params::CHAT_RATES_PER_S, params::CHAT_DWELL_S);
        let factor = rate_per_s.map_or(1.0, |rate| rate / TwoRates::mean_rate(rates, dwell));
        let turns = if has_images { TURNS_MEAN_WITH_IMAGES } else { TURNS_MEAN };
        let starts = TwoRates::new(rates.map(|rate| rate * factor / turns), dwell, &mut rng);
        let scope = rng.random();
        let (next_start_ns, next_session, conversation) = (0, 0, None);
        Chat { rng, starts, has_images, next_start_ns, next_session, scope, conversation }
    }

    /// The user's next message as tokens, and whether an image comes before it.
    fn message(&mut self, is_first: bool) -> (u32, bool) {
        let law_tokens = if is_first {
            params::CHAT_FIRST_PROMPT.sample(&mut self.rng)
        } else {
            params::CHAT_USER.sample(&mut self.rng)
        };
        let (first_p, later_p) = params::IMAGE_P;
        let image_p = if is_first { first_p } else { later_p };
        let has_image = self.has_images && self.rng.random_bool(image_p);
        let most = params::CHAT_PROMPT_MAX - params::IMAGE_TOKENS * u32::from(has_image);
        (tokens(law_tokens, 1, most), has_image)
    }

    /// The next turn; none where the conversation is over.
    fn turn(&mut self, mut conversation: Conversation, when: When) -> Option<Request> {
        conversation.turns_left = conversation.turns_left.checked_sub(1)?;
        let (text, has_image) = self.message(conversation.context == 0);
        let mut prompt_tokens = conversation.context + text;
        if has_image {
            // The template of a turn stands before its image.
            let at = conversation.context + text.min(params::TURN_HEAD_TOKENS);
            conversation.images.push(Image { at, tokens: params::IMAGE_TOKENS });
            prompt_tokens += params::IMAGE_TOKENS;
        }
        if prompt_tokens > params::CHAT_PROMPT_MAX {
            return None;
        }
        let output = params::CHAT_OUTPUT.sample(&mut self.rng);
        let output_tokens = tokens(output, 1, params::CHAT_OUTPUT_MAX);
        let request = Request {
            id: 0,
            session: Some(conversation.session),
            when,
            prompt_tokens,
            output_tokens,
            prefix: growing(mix(self.scope, conversation.session), BLOCK_TOKENS, prompt_tokens),
            images: conversation.images.clone(),
        };
        conversation.context = prompt_tokens + output_tokens;
        self.conversation = Some(conversation);
        Some(request)
    }
}

impl Iterator for Chat {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        if let Some(conversation) = self.conversation.take() {
            let wait_ns = ns(params::CHAT_WAIT_S.sample(&mut self.rng));
            let request = self.turn(conversation, When::After { wait_ns });
            if request.is_some() {
                return request;
            }
        }
        let conversation = Conversation {
            session: self.next_session,
            turns_left: geometric(params::CHAT_TURNS_P, &mut self.rng),
            context: 0,
            images: Vec::new(),
        };
        let when = When::At { ns: self.next_start_ns };
        self.next_session += 1;
        self.next_start_ns = later(self.next_start_ns, self.starts.gap_s(&mut self.rng));
        self.turn(conversation, when)
    }
}
