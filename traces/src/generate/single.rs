//! Requests that stand alone: Azure's chat and code completion.

use rand_chacha::ChaCha8Rng;

use super::arrivals::{Bursts, TwoRates, later};
use super::laws::{from_grid, tokens};
use super::params;
use crate::read::TOKENS_MAX;
use crate::request::{Prefix, Request, When};

pub(super) struct AzureChat {
    rng: ChaCha8Rng,
    arrivals: TwoRates,
    now_ns: u64,
}

impl AzureChat {
    pub(super) fn new(mut rng: ChaCha8Rng, rate_per_s: Option<f64>) -> Self {
        let (rates, dwell) = (params::CHAT_RATES_PER_S, params::CHAT_DWELL_S);
        let factor = rate_per_s.map_or(1.0, |rate| rate / TwoRates::mean_rate(rates, dwell));
        let arrivals = TwoRates::new(rates.map(|rate| rate * factor), dwell, &mut rng);
        AzureChat { rng, arrivals, now_ns: 0 }
    }
}

impl Iterator for AzureChat {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        let request = alone(
            self.now_ns,
            tokens(from_grid(&params::AZURE_CHAT_PROMPT, &mut self.rng), 1, TOKENS_MAX),
            tokens(from_grid(&params::AZURE_CHAT_OUTPUT, &mut self.rng), 1, TOKENS_MAX),
        );
        self.now_ns = later(self.now_ns, self.arrivals.gap_s(&mut self.rng));
        Some(request)
    }
}

pub(super) struct Code {
    rng: ChaCha8Rng,
    arrivals: Bursts<3>,
    /// Factor on all gaps.
    stretch: f64,
    now_ns: u64,
}

impl Code {
    pub(super) fn new(rng: ChaCha8Rng, rate_per_s: Option<f64>) -> Self {
        let arrivals = Bursts {
            size: params::CODE_BURST,
            pause_s: params::CODE_PAUSE_S,
            pause_min_s: params::CODE_PAUSE_MIN_S,
            gap_s: params::CODE_GAP_S,
            left: 0,
        };
        let stretch = rate_per_s.map_or(1.0, |rate| arrivals.mean_rate() / rate);
        Code { rng, arrivals, stretch, now_ns: 0 }
    }
}

impl Iterator for Code {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        let (output_min, output_max) = params::CODE_OUTPUT_RANGE;
        let request = alone(
            self.now_ns,
            tokens(params::CODE_PROMPT.sample(&mut self.rng), 1, params::CODE_PROMPT_MAX),
            tokens(params::CODE_OUTPUT.sample(&mut self.rng), output_min, output_max),
        );
        self.now_ns = later(self.now_ns, self.arrivals.gap_s(&mut self.rng) * self.stretch);
        Some(request)
    }
}

pub(super) fn alone(ns: u64, prompt_tokens: u32, output_tokens: u32) -> Request {
    Request {
        id: 0,
        session: None,
        when: When::At { ns },
        prompt_tokens,
        output_tokens,
        prefix: Prefix::unknown(),
        images: Vec::new(),
    }
}
