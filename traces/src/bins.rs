//! Samples of many runs in bins that can be added up.

use hdrhistogram::Histogram;

use crate::Quantiles;

/// Significant decimal digits of a bin: its ends are less than 1 % apart.
const DIGITS: u8 = 2;

/// What is kept of the samples of a run when runs are added up: how many lie in each bin of at most
/// 1 % of its value. The unit is the caller's. Adding is exact: the bins of the sum are the sums of
/// the bins, in any order.
///
/// ```
/// use traces::{Bins, Quantiles};
/// let (mut first, mut second) = (Quantiles::new(), Quantiles::new());
/// (1..=500).for_each(|ns| first.record(ns * 1000));
/// (501..=1000).for_each(|ns| second.record(ns * 1000));
/// let mut both = Bins::of(&first);
/// both.merge(&Bins::of(&second));
/// let p99 = both.quantile(0.99).expect("there are samples");
/// assert!((980_000..=1_000_000).contains(&p99));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Bins(Histogram<u64>);

impl Default for Bins {
    fn default() -> Self {
        let bins = Histogram::new_with_bounds(1, u64::MAX / 2, DIGITS);
        Bins(bins.expect("the bounds and the digits are valid"))
    }
}

impl Bins {
    /// The samples of one run.
    pub fn of(quantiles: &Quantiles) -> Self {
        Bins::from_pairs(quantiles.counts())
    }

    /// Bins from values and how many samples each stands for, as [`Bins::pairs`] gives them.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut bins = Bins::default();
        for (value, count) in pairs {
            bins.0.saturating_record_n(value, count);
        }
        bins
    }

    /// The least value of every bin that has samples, and how many it has; values rise.
    pub fn pairs(&self) -> Vec<(u64, u64)> {
        let bin = |value| self.0.lowest_equivalent(value);
        self.0.iter_recorded().map(|step| (bin(step.value_iterated_to()), step.count_at_value())).collect()
    }

    /// Takes in the samples of another.
    pub fn merge(&mut self, other: &Bins) {
        for (value, count) in other.pairs() {
            self.0.saturating_record_n(value, count);
        }
    }

    /// The greatest value of the bin in which the sample lies that at least a share `q` of all samples does not
    /// exceed (nearest rank). None without samples or for `q` outside 0 to 1.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        let is_there = !self.0.is_empty() && (0.0..=1.0).contains(&q);
        is_there.then(|| self.0.value_at_quantile(q))
    }

    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(seed: u64, count: u64) -> Quantiles {
        let mut quantiles = Quantiles::new();
        for i in 0..count {
            quantiles.record((i * 2_654_435_761 + seed * 97) % 40_000_000_000);
        }
        quantiles
    }

    #[test]
    fn adding_up_is_the_same_in_any_order_and_through_pairs() {
        let parts: Vec<Bins> = (0..4).map(|seed| Bins::of(&spread(seed, 500 + seed))).collect();
        let (mut there, mut back) = (Bins::default(), Bins::default());
        for part in &parts {
            there.merge(part);
        }
        for part in parts.iter().rev() {
            back.merge(&Bins::from_pairs(part.pairs()));
        }
        assert_eq!(there.pairs(), back.pairs());
        assert_eq!(there.count(), 2006);
    }

    #[test]
    fn quantiles_are_within_one_per_cent() {
        let exact = spread(1, 10_000);
        let bins = Bins::of(&exact);
        for q in [0.01, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let (exact, found) = (exact.quantile(q), bins.quantile(q));
            let (exact, found) = (exact.expect("samples") as f64, found.expect("samples") as f64);
            assert!((found / exact - 1.0).abs() < 0.01, "{q}: {found} instead of {exact}");
        }
        assert_eq!(Bins::default().quantile(0.5), None);
        assert_eq!(bins.quantile(1.5), None);
    }
}
