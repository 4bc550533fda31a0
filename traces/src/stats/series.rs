//! Series for plots that never outgrow a fixed number of points.

const SECOND: u64 = 1_000_000_000;
/// Most bins of a [`TimeSeries`]; beyond it neighbours are joined and bins get twice as wide.
pub const TIME_BINS_MAX: usize = 4_096;

/// Counts of arrivals in equal bins of time, from 0 on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeSeries {
    /// Width of a bin in nanoseconds: a second, doubled as often as was needed.
    pub bin_ns: u64,
    /// Arrivals per bin, up to the last one.
    pub counts: Vec<u64>,
}

impl TimeSeries {
    pub(super) fn new() -> Self {
        TimeSeries { bin_ns: SECOND, counts: Vec::new() }
    }

    pub(super) fn record(&mut self, ns: u64) {
        while (ns / self.bin_ns) as usize >= TIME_BINS_MAX {
            self.counts = self.counts.chunks(2).map(|pair| pair.iter().sum()).collect();
            self.bin_ns *= 2;
        }
        let bin = (ns / self.bin_ns) as usize;
        if self.counts.len() <= bin {
            self.counts.resize(bin + 1, 0);
        }
        self.counts[bin] += 1;
    }
}

/// Counts of values in bins that grow by a fourth of a doubling; 0 has a bin of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogHistogram {
    counts: Vec<u64>,
}

impl LogHistogram {
    pub(super) fn new() -> Self {
        LogHistogram { counts: Vec::new() }
    }

    pub(super) fn record(&mut self, value: u64) {
        let bin = if value == 0 { 0 } else { 1 + ((value as f64).log2() * 4.0) as usize };
        if self.counts.len() <= bin {
            self.counts.resize(bin + 1, 0);
        }
        self.counts[bin] += 1;
    }

    /// Lower edge (in the unit of the values, included), upper edge (not included) and count of
    /// each bin up to the last one that is not empty.
    pub fn bins(&self) -> impl Iterator<Item = (f64, f64, u64)> {
        let edge = |bin: usize| {
            if bin == 0 { 0.0 } else { ((bin - 1) as f64 / 4.0).exp2() }
        };
        self.counts.iter().enumerate().map(move |(bin, count)| (edge(bin), edge(bin + 1), *count))
    }
}

/// A value that is noted from time to time: every request at first, then every second one, and
/// so on, so that a series never has more than 1,024 points.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Requests seen so far and the value then, in order.
    pub points: Vec<(u64, f64)>,
    every: u64,
}

const POINTS_MAX: usize = 1_024;

impl Progress {
    pub(super) fn new() -> Self {
        Progress { points: Vec::new(), every: 1 }
    }

    pub(super) fn record(&mut self, requests: u64, value: f64) {
        if !requests.is_multiple_of(self.every) {
            return;
        }
        if self.points.len() == POINTS_MAX {
            self.every *= 2;
            let every = self.every;
            self.points.retain(|(requests, _)| requests.is_multiple_of(every));
            if !requests.is_multiple_of(every) {
                return;
            }
        }
        self.points.push((requests, value));
    }
}

/// Counts per window of a fixed width, for their variance over their mean.
#[derive(Clone, Debug)]
pub(super) struct Windows {
    width_ns: u64,
    first_ns: Option<u64>,
    window: u64,
    in_window: u64,
    sum: u64,
    sum_of_squares: u128,
}

impl Windows {
    pub(super) fn new(width_s: u64) -> Self {
        Windows {
            width_ns: width_s * SECOND,
            first_ns: None,
            window: 0,
            in_window: 0,
            sum: 0,
            sum_of_squares: 0,
        }
    }

    /// Counts one arrival; times never fall.
    pub(super) fn record(&mut self, ns: u64) {
        let first = *self.first_ns.get_or_insert(ns);
        let window = ns.saturating_sub(first) / self.width_ns;
        if window > self.window {
            self.sum += self.in_window;
            self.sum_of_squares += u128::from(self.in_window).pow(2);
            self.window = window;
            self.in_window = 0;
        }
        self.in_window += 1;
    }

    /// Index of dispersion: variance over mean of the counts of all windows but the last, which
    /// is not full. None for fewer than two windows.
    pub(super) fn dispersion(&self) -> Option<f64> {
        let windows = self.window as f64;
        let mean = self.sum as f64 / windows;
        let variance = self.sum_of_squares as f64 / windows - mean * mean;
        (self.window >= 2).then(|| variance / mean)
    }
}

/// Mean and deviation of a stream of numbers (Welford).
#[derive(Clone, Debug, Default)]
pub(super) struct Moments {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Moments {
    pub(super) fn record(&mut self, value: f64) {
        self.count += 1;
        let off = value - self.mean;
        self.mean += off / self.count as f64;
        self.squares += off * (value - self.mean);
    }

    /// Coefficient of variation: deviation over mean. None without samples or for a mean of 0.
    pub(super) fn cv(&self) -> Option<f64> {
        let deviation = (self.squares / self.count as f64).sqrt();
        (self.count > 0 && self.mean > 0.0).then(|| deviation / self.mean)
    }
}
