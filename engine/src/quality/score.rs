//! What is measured of one prediction.

use crate::quality::corpus::{Document, Kind};

/// One predicted token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Index of the token in its document.
    pub at: u32,
    /// What it is.
    pub kind: Kind,
    /// Negative log probability, nats.
    pub nll: f64,
    /// Divergence of this prediction from that of the full cache, `KL(full || this)`, nats.
    pub kl: f64,
    /// Whether the token is the most likely one.
    pub is_right: bool,
    /// Whether the most likely token is that of the full cache.
    pub agrees: bool,
    /// Whether it was predicted from K and V of another sequence among others.
    pub is_foreign: bool,
}

impl Score {
    /// Scores the prediction of token `at` of a document.
    pub fn new(document: &Document, at: usize, logits: &[f32], full: &[f32]) -> Score {
        let (logs, full_logs) = (log_softmax(logits), log_softmax(full));
        let kl: f64 = full_logs.iter().zip(&logs).map(|(full, log)| full.exp() * (full - log)).sum();
        let best = most_likely(logits);
        Score {
            at: at as u32,
            kind: document.kinds[at],
            nll: -logs[document.tokens[at] as usize],
            kl,
            is_right: best == document.tokens[at],
            agrees: best == most_likely(full),
            is_foreign: false,
        }
    }

    /// Tokens from the fact to its answer; none for what is no answer.
    pub fn distance(&self) -> Option<u32> {
        match self.kind {
            Kind::Answer { fact_at } => Some(self.at - fact_at),
            _ => None,
        }
    }

    /// Loss above the exact floor, nats; none for what has no known probability.
    pub fn excess(&self) -> Option<f64> {
        self.kind.floor().map(|floor| self.nll - floor)
    }
}

/// The first of the largest logits.
fn most_likely(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit - most) - sum.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(token: u32, kind: Kind) -> Document {
        Document { tokens: vec![0, token], kinds: vec![Kind::Other, kind], exam: 1 }
    }

    #[test]
    fn a_prediction_of_four_words_is_scored_by_hand() {
        // Probabilities 1/2, 1/4, 1/8, 1/8 against the full cache's 1/4, 1/2, 1/8, 1/8.
        let (ln2, shift) = (std::f32::consts::LN_2, 7.0);
        let logits = [-1.0, -2.0, -3.0, -3.0].map(|power| power * ln2 + shift);
        let full = [-2.0, -1.0, -3.0, -3.0].map(|power| power * ln2 - shift);
        let ln2 = f64::from(ln2);
        let score = Score::new(&document(1, Kind::Chat { odds: 1024 }), 1, &logits, &full);
        assert!((score.nll - 2.0 * ln2).abs() < 1e-6);
        assert!((score.kl - (0.25 * -ln2 + 0.5 * ln2)).abs() < 1e-6, "{}", score.kl);
        assert!(!score.is_right && !score.agrees);
        assert!(score.excess().unwrap().abs() < 1e-6, "1024 of 4096 is what it was given");
        assert_eq!(score.distance(), None);
        let score = Score::new(&document(1, Kind::Answer { fact_at: 0 }), 1, &full, &full);
        assert!(score.is_right && score.agrees && score.kl.abs() < 1e-12);
        assert_eq!((score.distance(), score.excess()), (Some(1), None));
    }

    #[test]
    fn the_divergence_is_that_of_the_full_cache_from_this_one_and_not_the_other_way_round() {
        let (full, other) = ([0.0, 3.0f32, 0.0], [2.0, 0.0, 0.0f32]);
        let kl = |a, b| Score::new(&document(0, Kind::Other), 1, b, a).kl;
        let p = log_softmax(&full);
        let q = log_softmax(&other);
        let expected: f64 = (0..3).map(|i| p[i].exp() * (p[i] - q[i])).sum();
        assert!((kl(&full, &other) - expected).abs() < 1e-12);
        assert!((kl(&other, &full) - expected).abs() > 0.1);
    }
}
