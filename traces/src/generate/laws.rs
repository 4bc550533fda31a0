//! The laws that the fitted parameters belong to.

use rand::{Rng, RngExt};
use rand_distr::StandardNormal;

/// A log-normal law: mean and deviation of the natural logarithm.
pub(super) struct LogNormal {
    pub(super) mu: f64,
    pub(super) sigma: f64,
}

impl LogNormal {
    pub(super) fn sample(&self, rng: &mut impl Rng) -> f64 {
        let deviate: f64 = rng.sample(StandardNormal);
        (self.mu + self.sigma * deviate).exp()
    }
}

/// A mixture of log-normal laws; the last weight is what the others leave.
pub(super) struct Mixture<const N: usize> {
    pub(super) weights: [f64; N],
    pub(super) mu: [f64; N],
    pub(super) sigma: [f64; N],
}

impl<const N: usize> Mixture<N> {
    pub(super) fn sample(&self, rng: &mut impl Rng) -> f64 {
        let mut left: f64 = rng.random();
        let mut part = 0;
        while part + 1 < N && left >= self.weights[part] {
            left -= self.weights[part];
            part += 1;
        }
        LogNormal { mu: self.mu[part], sigma: self.sigma[part] }.sample(rng)
    }
}

/// A value between the quantiles of a grid from 0 to 1, evenly spaced.
pub(super) fn from_grid(grid: &[f64], rng: &mut impl Rng) -> f64 {
    let place = rng.random::<f64>() * (grid.len() - 1) as f64;
    let below = place as usize;
    grid[below] + (grid[below + 1] - grid[below]) * place.fract()
}

/// A geometric law on 1, 2, 3, ...: tries up to the first that ends it, with chance `p` each.
pub(super) fn geometric(p: f64, rng: &mut impl Rng) -> u64 {
    let uniform = 1.0 - rng.random::<f64>();
    1 + (uniform.ln() / (1.0 - p).ln()) as u64
}

/// Rounds to whole tokens within bounds.
pub(super) fn tokens(value: f64, min: u32, max: u32) -> u32 {
    (value.round() as u32).clamp(min, max)
}

/// Seconds to whole nanoseconds.
pub(super) fn ns(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::super::params;
    use super::*;

    const SAMPLES: usize = 20_000;

    /// The normal law up to 7.5e-8 (Abramowitz and Stegun, 26.2.17).
    fn normal_cdf(x: f64) -> f64 {
        let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
        let series = [0.319_381_53, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
        let tail = series.iter().rev().fold(0.0, |sum, factor| (sum + factor) * t);
        let tail = tail * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        if x < 0.0 { tail } else { 1.0 - tail }
    }

    fn ks(mut sample: impl FnMut(&mut ChaCha8Rng) -> f64, cdf: impl Fn(f64) -> f64) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut values: Vec<f64> = (0..SAMPLES).map(|_| sample(&mut rng)).collect();
        values.sort_by(f64::total_cmp);
        let steps = values.iter().enumerate().map(|(rank, value)| {
            let law = cdf(*value);
            let below = rank as f64 / SAMPLES as f64;
            (law - below).abs().max((law - below - 1.0 / SAMPLES as f64).abs())
        });
        steps.fold(0.0, f64::max)
    }

    fn mixture_ks<const N: usize>(mixture: &Mixture<N>) -> f64 {
        let cdf = |value: f64| {
            let parts = (0..N).map(|part| {
                let deviate = (value.ln() - mixture.mu[part]) / mixture.sigma[part];
                mixture.weights[part] * normal_cdf(deviate)
            });
            parts.sum()
        };
        ks(|rng| mixture.sample(rng), cdf)
    }

    #[test]
    fn mixtures_follow_their_law() {
        assert!(mixture_ks(&params::CHAT_FIRST_PROMPT) < 0.012);
        assert!(mixture_ks(&params::CHAT_USER) < 0.012);
        assert!(mixture_ks(&params::CHAT_OUTPUT) < 0.012);
        assert!(mixture_ks(&params::CODE_PROMPT) < 0.012);
        assert!(mixture_ks(&params::CODE_OUTPUT) < 0.012);
        assert!(mixture_ks(&params::RAG_OUTPUT) < 0.012);
        assert!(mixture_ks(&params::AGENT_OUTPUT) < 0.012);
        assert!(mixture_ks(&params::AGENT_TOOL_S) < 0.012);
    }

    #[test]
    fn grids_follow_their_quantiles() {
        let grid = &params::AZURE_CHAT_OUTPUT;
        let cdf = |value: f64| {
            let below = grid.partition_point(|edge| *edge <= value).clamp(1, 100) - 1;
            let (low, high) = (grid[below], grid[below + 1]);
            (below as f64 + (value - low) / (high - low)) / 100.0
        };
        assert!(ks(|rng| from_grid(grid, rng), cdf) < 0.012);
    }

    #[test]
    fn turns_are_geometric() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let turns: Vec<u64> = (0..SAMPLES).map(|_| geometric(0.189, &mut rng)).collect();
        let single = turns.iter().filter(|turns| **turns == 1).count() as f64;
        let mean = turns.iter().sum::<u64>() as f64 / SAMPLES as f64;
        assert!((single / SAMPLES as f64 - 0.189).abs() < 0.01);
        assert!((mean * 0.189 - 1.0).abs() < 0.03);
    }
}
