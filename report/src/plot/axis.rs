//! Axes: a range that fits any data, and ticks at numbers that people would choose.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use crate::number::{Unit, fixed, human, scale};

/// How values are spread along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// By powers of ten; values of zero or less are drawn at the low end.
    Log,
}

/// What an axis shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AxisSpec {
    /// Its name; the unit is added where the ticks do not carry it.
    pub label: String,
    /// The unit of the values.
    pub unit: Unit,
    /// How they are spread.
    pub scale: Scale,
    /// Whether a linear axis begins at zero even if all values are large and close together.
    pub from_zero: bool,
}

impl AxisSpec {
    /// An evenly spread axis from zero.
    pub fn linear(label: &str, unit: Unit) -> AxisSpec {
        AxisSpec { label: label.to_owned(), unit, scale: Scale::Linear, from_zero: true }
    }

    /// The same axis, beginning near the lowest value where values are close together.
    pub fn close_up(mut self) -> AxisSpec {
        self.from_zero = false;
        self
    }

    /// An axis by powers of ten.
    pub fn log(label: &str, unit: Unit) -> AxisSpec {
        AxisSpec { label: label.to_owned(), unit, scale: Scale::Log, from_zero: false }
    }
}

/// Values beyond this are drawn at it: nothing that is measured comes near.
const LARGEST: f64 = 1e15;
/// Smallest value that a logarithmic axis tells from zero.
const SMALLEST: f64 = 1e-9;

/// An axis with its range.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    unit: Unit,
    scale: Scale,
    ticks: Vec<f64>,
    /// Factor and suffix of linear ticks, which share one.
    factor: (f64, &'static str),
}

impl Axis {
    /// An axis over all finite values, with about `count` ticks. Linear axes begin and end at a
    /// tick, and hold zero unless the specification lets them go without.
    pub(crate) fn fit(spec: &AxisSpec, values: impl Iterator<Item = f64>, count: usize) -> Axis {
        let values = values.filter(|x| x.is_finite());
        match spec.scale {
            Scale::Linear => {
                let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
                for value in values.map(|x| x.clamp(-LARGEST, LARGEST)) {
                    (low, high) = (low.min(value), high.max(value));
                }
                let is_close = !spec.from_zero && low > 0.0 && low > high * 0.4 && high > low * 1.001;
                if is_close {
                    low -= (high - low) * 0.1;
                } else {
                    (low, high) = (low.min(0.0), high.max(0.0));
                }
                if high - low < SMALLEST {
                    high = if spec.unit == Unit::Share { 0.01 } else { 1.0 };
                }
                let step = step(high - low, count, spec.unit);
                let (low, high) = ((low / step).floor() * step, (high / step - 1e-9).ceil() * step);
                Axis::linear(spec, low, high, count)
            }
            Scale::Log => {
                let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
                for value in values.filter(|x| *x > 0.0).map(|x| x.clamp(SMALLEST, LARGEST)) {
                    (low, high) = (low.min(value), high.max(value));
                }
                if low > high {
                    (low, high) = (1.0, 10.0);
                }
                if high / low < 1.5 {
                    (low, high) = (low / 1.5, high * 1.5);
                }
                Axis::log(spec, low, high, count)
            }
        }
    }

    /// A linear axis with exactly this range; an empty or broken range becomes 0 to 1.
    pub(crate) fn linear(spec: &AxisSpec, low: f64, high: f64, count: usize) -> Axis {
        let whole = low.is_finite() && high.is_finite() && high - low >= SMALLEST;
        let (low, high) = if whole { (low, high) } else { (0.0, 1.0) };
        let step = step(high - low, count, spec.unit);
        let first = (low / step - 1e-9).ceil();
        let ticks = (0..64).map(|i| (first + f64::from(i)) * step);
        let ticks = ticks.take_while(|t| *t <= high + step * 1e-6).collect();
        let factor = scale(low.abs().max(high.abs()), spec.unit);
        Axis { low, high, unit: spec.unit, scale: Scale::Linear, ticks, factor }
    }

    fn log(spec: &AxisSpec, low: f64, high: f64, count: usize) -> Axis {
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let within = |t: &f64| *t >= low * 0.999 && *t <= high * 1.001;
        let ticks_of = |digits: &[f64]| -> Vec<f64> {
            let all = decades.clone().flat_map(|d| digits.iter().map(move |m| m * 10f64.powi(d)));
            all.filter(within).collect()
        };
        const DIGITS: [&[f64]; 6] = [
            &[1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0],
            &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
            &[1.0, 2.0, 3.0, 5.0, 7.0],
            &[1.0, 2.0, 5.0],
            &[1.0, 3.0],
            &[1.0],
        ];
        let sets = DIGITS.iter().map(|digits| ticks_of(digits));
        let ticks = sets.into_iter().find(|t| t.len() <= count).unwrap_or_else(|| ticks_of(&[1.0]));
        let every = ticks.len().div_ceil(count.max(1)).max(1);
        let ticks = ticks.into_iter().step_by(every).collect();
        Axis { low, high, unit: spec.unit, scale: Scale::Log, ticks, factor: (1.0, "") }
    }

    /// The same axis with ticks at these values only.
    pub(crate) fn with_ticks(mut self, ticks: &[f64]) -> Axis {
        self.ticks = ticks.to_vec();
        self
    }

    /// Where a value lies, from 0 at the low end to 1 at the high end; never outside.
    pub(crate) fn fraction(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log if value > 0.0 => (value / self.low).ln() / (self.high / self.low).ln(),
            Scale::Log => 0.0,
        };
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// The value at a fraction of the axis.
    pub(crate) fn at(&self, fraction: f64) -> f64 {
        match self.scale {
            Scale::Linear => self.low + fraction * (self.high - self.low),
            Scale::Log => self.low * (self.high / self.low).powf(fraction),
        }
    }

    /// Text of a tick.
    pub(crate) fn label(&self, tick: f64) -> String {
        if self.scale == Scale::Log {
            return human(tick, self.unit);
        }
        let (factor, suffix) = self.factor;
        let step = self.ticks.windows(2).map(|w| (w[1] - w[0]) * factor).fold(f64::INFINITY, f64::min);
        let places = if step.is_finite() && step > 0.0 {
            (-(step + step * 1e-6).log10().floor()).clamp(0.0, 9.0)
        } else {
            0.0
        };
        // Steps such as 0.25 need one place more than their size says.
        let places = places as usize;
        let fine = (step * 10f64.powi(places as i32)).fract();
        let places = if (0.01..0.99).contains(&fine) { places + 1 } else { places };
        let text = fixed(tick * factor, places);
        match self.unit {
            Unit::Share => text + " %",
            _ if suffix.trim().len() == 1 && suffix != " s" => text + suffix,
            _ => text,
        }
    }

    /// Widest tick label, in characters.
    pub(crate) fn label_width(&self) -> usize {
        self.ticks.iter().map(|t| self.label(*t).chars().count()).max().unwrap_or(0)
    }

    /// The name of the axis, with the unit of the ticks where they do not carry it.
    pub(crate) fn title(&self, label: &str) -> String {
        match (self.scale, self.unit) {
            (Scale::Linear, Unit::Seconds | Unit::Milliseconds) => {
                format!("{label},{}", self.factor.1)
            }
            _ => label.to_owned(),
        }
    }
}

/// Distance between ticks: 1, 2 or 5 times a power of ten; for cells a power of two.
fn step(range: f64, count: usize, unit: Unit) -> f64 {
    let rough = range / count.max(1) as f64;
    if unit == Unit::Cells && rough >= 1.0 {
        return 2f64.powf(rough.log2().ceil());
    }
    let (factor, _) = scale(range, unit);
    let power = 10f64.powf((rough * factor).log10().floor());
    let digit = rough * factor / power;
    let nice = [1.0, 2.0, 2.5, 5.0].into_iter().find(|d| *d >= digit - 1e-9).unwrap_or(10.0);
    let step = nice * power / factor;
    // Things are whole: half a request is no tick.
    if matches!(unit, Unit::Count | Unit::Cells) { step.max(1.0).ceil() } else { step }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let length = f64::from(limit.1) - f64::from(limit.0);
        limit.0 + (self.fraction(*value) * length).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, tick: &f64) -> String {
        self.label(*tick)
    }
}
