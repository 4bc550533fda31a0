//! Choosing the next token from logits.

use traces::random::SplitMix64;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// Only so many of the most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens that have this share of the probability together; 1: all.
    pub top_p: f32,
}

/// Chooses tokens; equal seeds choose equally.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: SplitMix64,
}

impl Sampler {
    /// A sampler with a seed.
    pub fn new(sampling: Sampling, seed: u64) -> Sampler {
        Sampler { sampling, random: SplitMix64::new(seed) }
    }

    /// The next token after logits, `[vocab]`, none of them NaN.
    ///
    /// ```
    /// use engine::sample::{Sampler, Sampling};
    /// let greedy = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 };
    /// assert_eq!(Sampler::new(greedy, 0).choose(&[0.5, 2.0, 2.0]), 1);
    /// ```
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        let by_rank = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let all = 0..logits.len() as u32;
        if self.sampling.temperature <= 0.0 {
            return all.min_by(by_rank).unwrap_or(0);
        }
        let mut tokens: Vec<u32> = all.collect();
        let most = match self.sampling.top_k {
            0 => tokens.len(),
            most => most.min(tokens.len()),
        };
        if most < tokens.len() {
            tokens.select_nth_unstable_by(most, by_rank);
            tokens.truncate(most);
        }
        tokens.sort_unstable_by(by_rank);
        let best = logits[tokens[0] as usize];
        let weight =
            |&token: &u32| f64::from((logits[token as usize] - best) / self.sampling.temperature).exp();
        let weights: Vec<f64> = tokens.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        let mut kept = 0.0;
        let mut count = 0;
        while count < weights.len() && (count == 0 || kept < total * f64::from(self.sampling.top_p)) {
            kept += weights[count];
            count += 1;
        }
        let mut left = self.random.unit() * kept;
        for (token, weight) in tokens.iter().zip(&weights[..count]) {
            left -= weight;
            if left < 0.0 {
                return *token;
            }
        }
        tokens[count - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        const DRAWS: u32 = 40_000;
        let mut sampler = Sampler::new(sampling, 7);
        let mut counts = vec![0.0; logits.len()];
        (0..DRAWS).for_each(|_| counts[sampler.choose(logits) as usize] += 1.0 / f64::from(DRAWS));
        counts
    }

    fn softmax(logits: &[f32], temperature: f32) -> Vec<f64> {
        let weights: Vec<f64> = logits.iter().map(|x| f64::from(x / temperature).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let logits = [0.1, 1.5, -0.7, 1.0, 0.4];
        for temperature in [0.5, 1.0, 3.0] {
            let found = frequencies(Sampling { temperature, top_k: 0, top_p: 1.0 }, &logits);
            for (found, expected) in found.iter().zip(softmax(&logits, temperature)) {
                assert!((found - expected).abs() < 0.01, "{temperature}: {found} {expected}");
            }
        }
    }

    #[test]
    fn what_is_unlikely_is_left_out() {
        let logits = [0.1, 1.5, -0.7, 1.0, 0.4];
        let two = frequencies(Sampling { temperature: 1.0, top_k: 2, top_p: 1.0 }, &logits);
        assert!(two[1] > two[3] && two[3] > 0.0);
        assert!((two[1] + two[3] - 1.0).abs() < 1e-9);
        // The best has 0.42 of the probability, the two best 0.68.
        let nucleus = |top_p| frequencies(Sampling { temperature: 1.0, top_k: 0, top_p }, &logits);
        assert_eq!(nucleus(0.4).iter().filter(|share| **share > 0.0).count(), 1);
        assert_eq!(nucleus(0.6).iter().filter(|share| **share > 0.0).count(), 2);
    }

    #[test]
    fn equal_seeds_choose_equally() {
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
        let draw = |seed| {
            let mut sampler = Sampler::new(sampling, seed);
            (0..20).map(|_| sampler.choose(&[1.0, 1.0, 1.0, 1.0])).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }
}
