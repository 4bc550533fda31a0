//! Arrival processes: steady Poisson, two Poisson rates in turn, and bursts.

use rand::{Rng, RngExt};
use rand_distr::Exp1;

use super::laws::{LogNormal, Mixture, ns};
use crate::read::TIME_NS_MAX;

/// The moment so many seconds later, at most [`TIME_NS_MAX`].
pub(super) fn later(now_ns: u64, seconds: f64) -> u64 {
    now_ns.saturating_add(ns(seconds)).min(TIME_NS_MAX)
}

/// Exponentially distributed seconds with the given rate per second.
pub(super) fn exponential(rate: f64, rng: &mut impl Rng) -> f64 {
    rng.sample::<f64, _>(Exp1) / rate
}

/// A Poisson process whose rate switches between two values.
pub(super) struct TwoRates {
    rates_per_s: [f64; 2],
    dwell_s: [f64; 2],
    state: usize,
    left_s: f64,
}

impl TwoRates {
    /// Begins in a state drawn by how long each lasts.
    pub(super) fn new(rates_per_s: [f64; 2], dwell_s: [f64; 2], rng: &mut impl Rng) -> Self {
        let state = usize::from(rng.random::<f64>() * (dwell_s[0] + dwell_s[1]) >= dwell_s[0]);
        let left_s = exponential(1.0 / dwell_s[state], rng);
        TwoRates { rates_per_s, dwell_s, state, left_s }
    }

    /// Mean arrivals per second over both states.
    pub(super) fn mean_rate(rates_per_s: [f64; 2], dwell_s: [f64; 2]) -> f64 {
        let arrivals = rates_per_s[0] * dwell_s[0] + rates_per_s[1] * dwell_s[1];
        arrivals / (dwell_s[0] + dwell_s[1])
    }

    /// Seconds to the next arrival.
    pub(super) fn gap_s(&mut self, rng: &mut impl Rng) -> f64 {
        let mut gap = 0.0;
        loop {
            let step = exponential(self.rates_per_s[self.state], rng);
            if step < self.left_s {
                self.left_s -= step;
                return gap + step;
            }
            gap += self.left_s;
            self.state = 1 - self.state;
            self.left_s = exponential(1.0 / self.dwell_s[self.state], rng);
        }
    }
}

/// Bursts of arrivals with pauses between them.
pub(super) struct Bursts<const N: usize> {
    pub(super) size: LogNormal,
    pub(super) pause_s: LogNormal,
    /// Shortest pause, and longest gap inside a burst.
    pub(super) pause_min_s: f64,
    pub(super) gap_s: Mixture<N>,
    /// Arrivals left in the burst.
    pub(super) left: u64,
}

impl<const N: usize> Bursts<N> {
    /// Mean arrivals per second, from the means of the laws (the cut of long gaps left aside).
    pub(super) fn mean_rate(&self) -> f64 {
        let mean = |mu: f64, sigma: f64| (mu + sigma * sigma / 2.0).exp();
        let gaps =
            (0..N).map(|part| self.gap_s.weights[part] * mean(self.gap_s.mu[part], self.gap_s.sigma[part]));
        let size = mean(self.size.mu, self.size.sigma);
        let pause = self.pause_min_s + mean(self.pause_s.mu, self.pause_s.sigma);
        size / (pause + (size - 1.0) * gaps.sum::<f64>())
    }

    /// Seconds to the next arrival.
    pub(super) fn gap_s(&mut self, rng: &mut impl Rng) -> f64 {
        if self.left > 0 {
            self.left -= 1;
            return self.gap_s.sample(rng).min(self.pause_min_s);
        }
        self.left = self.size.sample(rng).round().max(1.0) as u64 - 1;
        self.pause_min_s + self.pause_s.sample(rng)
    }
}
