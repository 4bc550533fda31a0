//! Means and differences with 95 % intervals, and the words that may be drawn from them.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// A mean with the half-width of its 95 % interval (Student's t).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Mean of the samples, in their unit.
    pub mean: f64,
    /// Half the width of the interval, in the unit of the samples.
    pub half_width: f64,
    /// Number of samples, at least 2.
    pub samples: usize,
}

impl Interval {
    /// Lower end.
    pub fn low(&self) -> f64 {
        self.mean - self.half_width
    }

    /// Upper end.
    pub fn high(&self) -> f64 {
        self.mean + self.half_width
    }

    /// Whether zero lies inside or on an end.
    pub fn covers_zero(&self) -> bool {
        self.low() <= 0.0 && self.high() >= 0.0
    }
}

/// What paired samples say about `a - b`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Difference {
    /// Every pair differs by exactly this much, as in replays that the seed does not vary:
    /// there is no spread to make an interval of.
    Exact {
        /// The difference of every pair, in the unit of the samples.
        value: f64,
        /// Number of pairs, at least 2.
        samples: usize,
    },
    /// The pairs differ by different amounts.
    Spread(Interval),
}

impl Difference {
    /// Mean difference, in the unit of the samples.
    pub fn mean(&self) -> f64 {
        match self {
            Difference::Exact { value, .. } => *value,
            Difference::Spread(interval) => interval.mean,
        }
    }

    /// The word that this difference allows for a metric of the given direction.
    pub fn verdict(&self, better: Better) -> Verdict {
        let shown = match self {
            Difference::Exact { value, .. } => *value != 0.0,
            Difference::Spread(interval) => !interval.covers_zero(),
        };
        let good = match better {
            Better::Higher => self.mean() > 0.0,
            Better::Lower => self.mean() < 0.0,
        };
        match (shown, good) {
            (false, _) => Verdict::NoDifferenceShown,
            (true, true) => Verdict::Better,
            (true, false) => Verdict::Worse,
        }
    }
}

/// Which direction of a metric is wished for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// What may be said of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The whole interval lies on the wished side of zero.
    Better,
    /// The whole interval lies on the other side.
    Worse,
    /// The interval covers zero, or every pair is equal.
    NoDifferenceShown,
}

impl Verdict {
    /// The word as printed.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::NoDifferenceShown => "no difference shown",
        }
    }
}

/// Mean of the samples; none without samples or if one is not finite.
pub fn mean(samples: &[f64]) -> Option<f64> {
    if samples.is_empty() || samples.iter().any(|x| !x.is_finite()) {
        return None;
    }
    // Welford's running mean stays inside the range of the samples.
    let mut mean = 0.0;
    for (i, x) in samples.iter().enumerate() {
        mean += (x - mean) / (i + 1) as f64;
    }
    mean.is_finite().then_some(mean)
}

/// Sample variance (divided by n - 1), in the square of the unit; none with fewer than two
/// samples or if one is not finite.
pub fn variance(samples: &[f64]) -> Option<f64> {
    if samples.len() < 2 {
        return None;
    }
    let mean = mean(samples)?;
    let squares: f64 = samples.iter().map(|x| (x - mean).powi(2)).sum();
    let variance = squares / (samples.len() - 1) as f64;
    variance.is_finite().then_some(variance)
}

/// Mean with its 95 % interval; none with fewer than two samples or if one is not finite.
pub fn interval(samples: &[f64]) -> Option<Interval> {
    let variance = variance(samples)?;
    let n = samples.len();
    let half_width = t_quantile(n - 1)? * (variance / n as f64).sqrt();
    Some(Interval { mean: mean(samples)?, half_width, samples: n })
}

/// Difference `a - b` of samples that belong together one by one (same seed, same workload);
/// none if the lengths differ, with fewer than two pairs, or if a value is not finite.
///
/// ```
/// use report::stats::{Better, Verdict, paired_difference};
/// let paged = [11.0, 12.1, 13.2, 14.0];
/// let contiguous = [10.0, 11.0, 12.0, 13.0];
/// let difference = paired_difference(&paged, &contiguous).expect("four pairs");
/// assert_eq!(difference.verdict(Better::Higher), Verdict::Better);
/// ```
pub fn paired_difference(a: &[f64], b: &[f64]) -> Option<Difference> {
    if a.len() != b.len() || a.len() < 2 {
        return None;
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let (&first, rest) = differences.split_first()?;
    if first.is_finite() && rest.iter().all(|x| *x == first) {
        return Some(Difference::Exact { value: first, samples: a.len() });
    }
    interval(&differences).map(Difference::Spread)
}

/// 97.5 % quantile of Student's t; none for zero degrees of freedom.
pub fn t_quantile(degrees_of_freedom: usize) -> Option<f64> {
    let t = StudentsT::new(0.0, 1.0, degrees_of_freedom as f64).ok()?;
    Some(t.inverse_cdf(0.975))
}

/// Burstiness of arrivals: variance / mean of the number that arrive in a window, one value per
/// window length. 1 is a Poisson process, 0 a clock, more than 1 comes in bursts.
///
/// Times and windows share a unit. A window that fits fewer than eight times into the trace,
/// or would be counted more than a million times, is left out; so are values that are not finite.
pub fn dispersion(arrivals: &[f64], windows: &[f64]) -> Vec<(f64, f64)> {
    let arrivals: Vec<f64> = arrivals.iter().copied().filter(|t| t.is_finite()).collect();
    let first = arrivals.iter().copied().fold(f64::INFINITY, f64::min);
    let last = arrivals.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut out = Vec::new();
    for &window in windows {
        let whole = ((last - first) / window).floor();
        if !(window > 0.0 && (8.0..=1e6).contains(&whole)) {
            continue;
        }
        let mut counts = vec![0.0; whole as usize];
        for t in &arrivals {
            if let Some(count) = counts.get_mut(((t - first) / window) as usize) {
                *count += 1.0;
            }
        }
        if let (Some(mean), Some(variance)) = (mean(&counts), variance(&counts))
            && mean > 0.0
        {
            out.push((window, variance / mean));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_printed_tables() {
        for (df, expected) in [(1, 12.7062), (4, 2.7764), (9, 2.2622), (30, 2.0423), (1000, 1.9623)] {
            let t = t_quantile(df).expect("positive degrees of freedom");
            assert!((t - expected).abs() < 1e-4, "{df}: {t}");
        }
        assert_eq!(t_quantile(0), None);
    }

    #[test]
    fn an_interval_is_the_one_worked_by_hand() {
        // mean 3, variance 2.5, t(4) 2.7764, half-width 2.7764 * sqrt(2.5 / 5)
        let i = interval(&[1.0, 2.0, 3.0, 4.0, 5.0]).expect("five samples");
        assert_eq!(i.mean, 3.0);
        assert!((i.half_width - 1.9632).abs() < 1e-4);
        assert_eq!(variance(&[1.0, 2.0, 3.0, 4.0, 5.0]), Some(2.5));
    }

    #[test]
    fn too_few_or_broken_samples_give_nothing() {
        assert_eq!(mean(&[]), None);
        assert_eq!(variance(&[1.0]), None);
        assert_eq!(interval(&[1.0, f64::NAN]), None);
        assert_eq!(interval(&[f64::MAX, -f64::MAX]), None);
        assert_eq!(paired_difference(&[1.0], &[2.0]), None);
        assert_eq!(paired_difference(&[1.0, 2.0], &[2.0]), None);
        assert_eq!(paired_difference(&[1.0, f64::INFINITY], &[2.0, 2.0]), None);
    }

    #[test]
    fn equal_differences_are_exact_and_have_no_interval() {
        let same = paired_difference(&[2.0, 2.0, 2.0], &[2.0, 2.0, 2.0]).expect("pairs");
        assert_eq!(same, Difference::Exact { value: 0.0, samples: 3 });
        assert_eq!(same.verdict(Better::Higher), Verdict::NoDifferenceShown);
        let more = paired_difference(&[3.0, 4.0], &[2.0, 3.0]).expect("pairs");
        assert_eq!(more.verdict(Better::Higher), Verdict::Better);
        assert_eq!(more.verdict(Better::Lower), Verdict::Worse);
    }

    #[test]
    fn better_is_never_said_when_the_interval_covers_zero() {
        let d = paired_difference(&[1.0, 5.0, 2.0], &[2.0, 1.0, 2.0]).expect("pairs");
        assert!(d.mean() > 0.0);
        assert_eq!(d.verdict(Better::Higher), Verdict::NoDifferenceShown);
    }

    #[test]
    fn a_clock_has_no_dispersion_and_bursts_have_much() {
        let clock: Vec<f64> = (0..100).map(f64::from).collect();
        let burst: Vec<f64> = (0..100).map(|i| f64::from(i / 10) * 10.0).collect();
        let at = |arrivals: &[f64], w| dispersion(arrivals, &[w]).first().map(|p| p.1);
        assert!(at(&clock, 5.0).expect("fits") < 0.01);
        assert!(at(&burst, 5.0).expect("fits") > 4.0);
        assert!(dispersion(&[], &[1.0]).is_empty());
        assert!(dispersion(&clock, &[0.0, f64::NAN, 99.0, 1e-9]).is_empty());
    }
}
