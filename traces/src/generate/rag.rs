//! Questions with retrieved passages: a system prompt whose date and time break the prefix.
//!
//! The day starts at midnight. Follow-ups come at drawn times (open loop, like the data); the
//! history in a follow-up is the questions and answers before it.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use super::arrivals::{exponential, later};
use super::laws::{geometric, tokens};
use super::merge::Sessions;
use super::params;
use crate::chain::{PieceChain, mix};
use crate::request::{Request, When};

const BLOCK_TOKENS: u32 = 16;
const HOUR_NS: u64 = 3_600_000_000_000;
const DAY_S: f64 = 86_400.0;
/// Tokens of the mark that stands for an empty history.
const NO_HISTORY_TOKENS: u32 = 11;

/// The kind of system prompt whose second piece is the same for a day.
const DAILY: usize = 0;
/// The kind of system prompt that goes without passages.
const WITHOUT_PASSAGES: usize = 1;

/// Kinds of pieces, so that no two pieces have the same number.
#[derive(Clone, Copy)]
enum Piece {
    System = 1,
    Day,
    Unique,
    Constant,
    Minute,
    Passage,
    NoHistory,
    History,
    Question,
}

impl Piece {
    fn id(self, number: u64) -> u64 {
        mix(self as u64, number)
    }
}

pub(super) struct Rag {
    rng: ChaCha8Rng,
    /// Session starts per second before the hour of the day is counted in.
    rate_per_s: f64,
    /// For each passage the share of references up to it, and its tokens.
    passages: Vec<(f64, u32)>,
    now_ns: u64,
    next_session: u64,
    next_request: u64,
}

impl Rag {
    pub(super) fn new(mut rng: ChaCha8Rng, rate_per_s: Option<f64>) -> Self {
        let hours_mean = params::RAG_HOURS.iter().sum::<f64>() / 24.0;
        let rate_per_s =
            rate_per_s.map_or(params::RAG_SESSIONS_PER_S, |rate| rate * params::RAG_TURNS_P / hours_mean);
        let (count, exponent, shift) = params::RAG_PASSAGES;
        let weights: Vec<f64> = (1..=count).map(|rank| (rank as f64 + shift).powf(-exponent)).collect();
        let sum: f64 = weights.iter().sum();
        let mut below = 0.0;
        let passage = |weight: f64| {
            below += weight / sum;
            (below, tokens(params::RAG_PASSAGE_TOKENS.sample(&mut rng), 1, 512))
        };
        let passages = weights.into_iter().map(passage).collect();
        let mut rag = Rag { rng, rate_per_s, passages, now_ns: 0, next_session: 0, next_request: 0 };
        rag.advance();
        rag
    }

    /// Goes to the next start of a session: a Poisson process at the rate of the busiest hour,
    /// of which each hour keeps its share.
    fn advance(&mut self) {
        let busiest = params::RAG_HOURS.iter().copied().fold(0.0, f64::max);
        loop {
            let before_ns = self.now_ns;
            let gap = exponential(self.rate_per_s * busiest, &mut self.rng);
            self.now_ns = later(self.now_ns, gap);
            let hour = (self.now_ns / HOUR_NS % 24) as usize;
            let keep = self.rng.random_bool(params::RAG_HOURS[hour] / busiest);
            if keep || self.now_ns == before_ns {
                return;
            }
        }
    }

    fn passage_count(&mut self) -> usize {
        let (none_p, six_p) = params::RAG_PASSAGES_P;
        match self.rng.random::<f64>() {
            uniform if uniform < none_p => 0,
            uniform if uniform < none_p + six_p => 6,
            _ => [1, 2, 3, 4, 5, 7][self.rng.random_range(0..6)],
        }
    }

    /// Different passages, by how often each is referred to.
    fn choose_passages(&mut self, count: usize) -> Vec<usize> {
        let mut chosen = Vec::with_capacity(count);
        while chosen.len() < count {
            let uniform: f64 = self.rng.random();
            let passage = self.passages.partition_point(|(below, _)| *below < uniform);
            if passage < self.passages.len() && !chosen.contains(&passage) {
                chosen.push(passage);
            }
        }
        chosen
    }

    fn request(&mut self, session: u64, ns: u64, history: Option<(u64, u32)>) -> (Request, u32) {
        let number = self.next_request;
        self.next_request += 1;
        let kind = kind_of_system(&mut self.rng);
        let (_, [common, second_tokens, unique]) = params::RAG_SYSTEM[kind];
        let second = match kind {
            DAILY => Piece::Day.id(ns / (24 * HOUR_NS)),
            WITHOUT_PASSAGES => Piece::Unique.id(number),
            _ => Piece::Constant.id(0),
        };
        let (history, history_tokens) = history.unwrap_or((Piece::NoHistory.id(0), NO_HISTORY_TOKENS));
        let question = tokens(params::RAG_USER.sample(&mut self.rng), 1, 178);
        let mut pieces = vec![
            (Piece::System.id(kind as u64), common),
            (second, second_tokens),
            (Piece::Minute.id(number), unique),
        ];
        let passages = if kind == WITHOUT_PASSAGES { 0 } else { self.passage_count() };
        for passage in self.choose_passages(passages) {
            pieces.push((Piece::Passage.id(passage as u64), self.passages[passage].1));
        }
        pieces.push((history, history_tokens));
        pieces.push((Piece::Question.id(number), question));
        let mut chain = PieceChain::new(BLOCK_TOKENS);
        let mut prompt_tokens = self.rng.random_range(6..=12);
        for (piece, piece_tokens) in pieces {
            chain.push(piece, piece_tokens);
            prompt_tokens += piece_tokens;
        }
        let output_tokens = tokens(params::RAG_OUTPUT.sample(&mut self.rng), 1, 2_183);
        let request = Request {
            id: 0,
            session: Some(session),
            when: When::At { ns },
            prompt_tokens,
            output_tokens,
            prefix: chain.finish(),
            images: Vec::new(),
        };
        (request, question + output_tokens)
    }
}

fn kind_of_system(rng: &mut impl Rng) -> usize {
    let uniform: f64 = rng.random();
    let (first, second) = (params::RAG_SYSTEM[0].0, params::RAG_SYSTEM[1].0);
    usize::from(uniform >= first) + usize::from(uniform >= first + second)
}

impl Sessions for Rag {
    fn draw(&mut self, session: &mut Vec<(u64, Request)>) {
        let number = self.next_session;
        self.next_session += 1;
        let mut ns = self.now_ns;
        let mut history = None;
        for turn in 0..geometric(params::RAG_TURNS_P, &mut self.rng) {
            let (request, added) = self.request(number, ns, history);
            session.push((ns, request));
            let history_tokens = history.map_or(NO_HISTORY_TOKENS, |(_, before)| before) + added;
            history = Some((Piece::History.id(mix(number, turn)), history_tokens));
            ns = later(ns, params::RAG_GAP_S.sample(&mut self.rng).min(DAY_S));
        }
        self.advance();
    }
}
