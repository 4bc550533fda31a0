//! Single requests of uniformly drawn lengths that have nothing in common: all at once, or Poisson arrivals.
//!
//! No data: the workload of benchmarks and of issues that say "N requests of A to B tokens".

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::arrivals::{exponential, later};
use super::single::alone;
use crate::request::Request;

pub(super) struct Uniform {
    rng: ChaCha8Rng,
    /// None: all at once.
    rate_per_s: Option<f64>,
    prompt: (u32, u32),
    output: (u32, u32),
    now_ns: u64,
}

impl Uniform {
    pub(super) fn new(
        rng: ChaCha8Rng,
        rate_per_s: Option<f64>,
        prompt: (u32, u32),
        output: (u32, u32),
    ) -> Self {
        Uniform { rng, rate_per_s, prompt, output, now_ns: 0 }
    }
}

impl Iterator for Uniform {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        let mut draw = |(least, most): (u32, u32)| self.rng.random_range(least..=most);
        let request = alone(self.now_ns, draw(self.prompt), draw(self.output));
        if let Some(rate) = self.rate_per_s {
            self.now_ns = later(self.now_ns, exponential(rate, &mut self.rng));
        }
        Some(request)
    }
}
