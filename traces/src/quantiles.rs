//! Quantiles of whole numbers: exact up to a million samples, within 0.1 % beyond that.
//!
//! Memory is at most 16 MiB while exact, and less than 1 MiB after that.

use std::sync::OnceLock;

use hdrhistogram::Histogram;

/// Samples up to which quantiles are exact.
pub const EXACT_SAMPLES_MAX: usize = 1_000_000;

/// Collects samples and answers quantiles. The unit is the caller's.
#[derive(Clone, Debug)]
pub struct Quantiles {
    samples: Samples,
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

#[derive(Clone, Debug)]
enum Samples {
    Exact { samples: Vec<u64>, sorted: OnceLock<Vec<u64>> },
    Binned(Histogram<u64>),
}

impl Default for Quantiles {
    fn default() -> Self {
        let samples = Samples::Exact { samples: Vec::new(), sorted: OnceLock::new() };
        Quantiles { samples, count: 0, sum: 0, min: u64::MAX, max: 0 }
    }
}

impl Quantiles {
    /// No samples yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one sample.
    pub fn record(&mut self, value: u64) {
        self.count += 1;
        self.sum += u128::from(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        match &mut self.samples {
            Samples::Exact { samples, sorted } => {
                samples.push(value);
                sorted.take();
                if samples.len() > EXACT_SAMPLES_MAX {
                    let mut bins = Histogram::new_with_bounds(1, u64::MAX / 2, 3)
                        .expect("the bounds and three digits are valid");
                    for sample in samples {
                        bins.saturating_record(*sample);
                    }
                    self.samples = Samples::Binned(bins);
                }
            }
            Samples::Binned(bins) => bins.saturating_record(value),
        }
    }

    /// The smallest sample that at least a share `q` of all samples does not exceed (nearest
    /// rank, so an actual sample while exact). None without samples or for `q` outside 0 to 1.
    /// `quantile(1.0)` is always the exact maximum.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        if self.count == 0 || !(0.0..=1.0).contains(&q) {
            return None;
        }
        match &self.samples {
            Samples::Exact { samples, sorted } => {
                let sorted = sorted.get_or_init(|| {
                    let mut sorted = samples.clone();
                    sorted.sort_unstable();
                    sorted
                });
                let rank = (q * sorted.len() as f64).ceil() as usize;
                sorted.get(rank.saturating_sub(1)).copied()
            }
            Samples::Binned(bins) => Some(bins.value_at_quantile(q).clamp(self.min, self.max)),
        }
    }

    /// At most `most` quantiles, evenly spaced from the minimum to the maximum: they draw the same
    /// curve as all samples.
    pub fn spaced(&self, most: u64) -> Vec<u64> {
        let count = self.count.min(most);
        let at = |i: u64| if count < 2 { 0.5 } else { i as f64 / (count - 1) as f64 };
        (0..count).filter_map(|i| self.quantile(at(i))).collect()
    }

    /// Values and how many samples each stands for, rising in value where they are not exact; what
    /// [`Bins`](crate::Bins) are made of.
    pub(crate) fn counts(&self) -> Vec<(u64, u64)> {
        match &self.samples {
            Samples::Exact { samples, .. } => samples.iter().map(|&sample| (sample, 1)).collect(),
            Samples::Binned(bins) => {
                bins.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
            }
        }
    }

    /// Exact mean of the samples; none without samples.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum as f64 / self.count as f64)
    }

    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Exact sum of the samples.
    pub fn sum(&self) -> u128 {
        self.sum
    }

    /// Exact least sample; none without samples.
    pub fn min(&self) -> Option<u64> {
        (self.count > 0).then_some(self.min)
    }

    /// Exact greatest sample; none without samples.
    pub fn max(&self) -> Option<u64> {
        (self.count > 0).then_some(self.max)
    }

    /// Whether quantiles are still exact.
    pub fn is_exact(&self) -> bool {
        matches!(self.samples, Samples::Exact { .. })
    }
}
