//! The plots of a page and the sentences below them.

use serde::Serialize;

use super::{Page, TracePage};
use crate::compare::{Comparison, Group};
use crate::metric::{LOSS, metric};
use crate::number::{Unit, human};
use crate::plot::{self, AxisSpec, Frame, Outcomes, ParetoPoint, Series};
use crate::row::Summary;
use crate::stats;

/// All maps of a page together: more of them means coarser ones.
const MAPS_BYTES_MAX: usize = 1_000_000;

/// A plot and the sentence below it.
#[derive(Serialize)]
pub(super) struct Figure {
    svg: String,
    caption: String,
    is_wide: bool,
}

impl Figure {
    fn half(svg: String, caption: &str) -> Figure {
        Figure { svg: inline(&svg), caption: caption.to_owned(), is_wide: false }
    }
}

/// An SVG inside HTML needs no namespace, and so the page holds no address at all.
fn inline(svg: &str) -> String {
    svg.replacen(" xmlns=\"http://www.w3.org/2000/svg\"", "", 1)
}

pub(super) fn overview(comparison: &Comparison) -> Vec<Figure> {
    let groups = comparison.groups();
    let Some(throughput) = metric("throughput_tokens_per_s") else {
        return Vec::new();
    };
    let point = |group: &Group| {
        let (x, x_half_width) = group.estimate(&LOSS)?;
        let (y, y_half_width) = group.estimate(throughput)?;
        let is_bound = comparison.is_bound(group.policy);
        let bound = if is_bound { " (bound)" } else { "" };
        let (label, policy) = (format!("{}{bound}", group.label), group.policy.to_owned());
        Some(ParetoPoint { label, policy, x, x_half_width, y, y_half_width, is_bound })
    };
    let points: Vec<ParetoPoint> = groups.iter().filter_map(point).collect();
    let bars: Vec<Outcomes> = groups.iter().map(outcome).collect();
    let height = 126 + 34 * u32::try_from(bars.len()).unwrap_or(0).min(40);
    let height = height.max(400);
    vec![
        Figure::half(
            plot::pareto(
                &Frame::half("Throughput against lost or cut requests").height(height.min(520)),
                &AxisSpec::linear("lost or cut requests (lower is better)", Unit::Share),
                &AxisSpec::linear("throughput, tokens/s (higher is better)", Unit::Plain).close_up(),
                &points,
            ),
            "Up and to the left is better. Grey points are dominated: another one loses no more \
             requests and produces no less. Bars are 95 % intervals over seeds.",
        ),
        Figure::half(
            plot::outcomes(&Frame::half("What became of the requests").height(height), &bars),
            "Numbers are requests, means over seeds. A request that was both cut and lost is counted \
             as lost.",
        ),
    ]
}

fn outcome(group: &Group) -> Outcomes {
    let mean = |read: fn(&Summary) -> f64| {
        let values: Vec<f64> = group.rows().iter().map(|row| read(row)).collect();
        stats::mean(&values).unwrap_or(0.0)
    };
    let completed = mean(|row| row.completed as f64);
    // One request may be truncated, shifted and stopped early: the largest number is the least that were cut.
    let cut = mean(|row| {
        let most = row.truncated.max(row.shifted).max(row.stopped_at_limit);
        most.min(row.completed) as f64
    });
    Outcomes {
        label: group.label.clone(),
        completed: completed - cut,
        cut,
        failed: mean(|row| row.failed as f64),
        rejected: mean(|row| row.rejected as f64),
        unfinished: mean(|row| row.unfinished as f64),
    }
}

/// Samples in the order of the policies, so that colours agree between plots.
fn ordered(comparison: &Comparison, samples: &[(String, Vec<f64>)]) -> Vec<(String, Vec<f64>)> {
    let known = comparison.policies().iter().map(|policy| {
        let own = samples.iter().filter(|(name, _)| name == policy);
        ((*policy).to_owned(), own.flat_map(|(_, values)| values.iter().copied()).collect())
    });
    let unknown = samples.iter().filter(|(name, _)| !comparison.policies().iter().any(|p| p == name));
    known.chain(unknown.cloned()).collect()
}

pub(super) fn latencies(page: &Page, comparison: &Comparison) -> Vec<Figure> {
    let figure = |title: &str, samples: &[(String, Vec<f64>)], caption: &str| {
        if samples.iter().all(|(_, values)| values.is_empty()) {
            return None;
        }
        let axis = AxisSpec::log(&title.to_lowercase(), Unit::Milliseconds);
        let svg = plot::cdf(&Frame::half(title), &axis, &ordered(comparison, samples));
        Some(Figure::half(svg, caption))
    };
    let caution = "Further left is faster. Only requests that got this far are counted, so compare \
                   with what was lost above.";
    let ttft = figure("Time to first token", &page.ttft_ms, caution);
    let tpot = figure("Time per output token", &page.tpot_ms, "Mean gap between the tokens of one answer.");
    ttft.into_iter().chain(tpot).collect()
}

pub(super) fn timelines(page: &Page, comparison: &Comparison) -> Vec<Figure> {
    let policies = comparison.policies();
    let classes = plot::classes(&page.timeline);
    let one = classes.len() == 1;
    let figures = classes.into_iter().map(|class| {
        let frame = Frame {
            width: if one { 1200 } else { 600 },
            ..Frame::half(&format!("The cells of class {class} over time"))
        };
        let svg = plot::timeline(&frame.height(560), &page.timeline, class, policies);
        Figure { is_wide: one, ..Figure::half(svg, "One seed, the lowest.") }
    });
    figures.collect()
}

pub(super) fn maps(page: &Page) -> Vec<Figure> {
    let mut classes: Vec<&str> = page.maps.iter().map(|map| map.class.as_str()).collect();
    classes.sort_unstable();
    classes.dedup();
    let bytes_max = MAPS_BYTES_MAX / page.maps.len().max(1);
    let figures = page.maps.iter().map(|map| {
        let title = match classes.len() {
            0 | 1 => map.policy.clone(),
            _ => format!("{}, class {}", map.policy, map.class),
        };
        let frame = Frame::half(&title).height(420);
        Figure::half(plot::cell_map_within(&frame, map, bytes_max), "")
    });
    figures.collect()
}

pub(super) fn trace(page: &TracePage) -> Vec<Figure> {
    let lengths = [
        ("prompt".to_owned(), page.prompt_tokens.clone()),
        ("output".to_owned(), page.output_tokens.clone()),
    ];
    let tokens = AxisSpec::log("tokens", Unit::Count);
    let mut figures = vec![Figure::half(
        plot::histogram(&Frame::half("Lengths of prompts and outputs"), &tokens, &lengths),
        "Bins are equally wide on this scale.",
    )];
    if page.arrivals_s.len() > 1 {
        figures.extend(arrival_figures(&page.arrivals_s));
    }
    if !page.sharing.is_empty() {
        let curve = [Series::new("", page.sharing.clone())];
        figures.push(Figure::half(
            plot::line_chart(
                &Frame::half("Prompt tokens shared with an earlier prompt"),
                &AxisSpec::linear("requests so far", Unit::Count),
                &AxisSpec::linear("share of prompt tokens", Unit::Share),
                &curve,
            ),
            "The most that a prefix cache without limit could find.",
        ));
    }
    figures
}

fn arrival_figures(arrivals: &[f64]) -> Vec<Figure> {
    let first = arrivals.iter().copied().filter(|t| t.is_finite()).fold(f64::INFINITY, f64::min);
    let last = arrivals.iter().copied().filter(|t| t.is_finite()).fold(f64::NEG_INFINITY, f64::max);
    let length = if last > first { last - first } else { 1.0 };
    let bins = 120;
    let mut counts = vec![0.0; bins];
    for t in arrivals.iter().filter(|t| t.is_finite()) {
        let bin = ((t - first) / length * bins as f64) as usize;
        counts[bin.min(bins - 1)] += 1.0;
    }
    let width = length / bins as f64;
    let rate = |(i, n): (usize, &f64)| (first + i as f64 * width, n / width);
    let rates: Vec<(f64, f64)> = counts.iter().enumerate().map(rate).collect();
    let mut gaps: Vec<f64> = arrivals.windows(2).map(|w| w[1] - w[0]).collect();
    gaps.retain(|gap| gap.is_finite() && *gap >= 0.0);
    let mean = stats::mean(&gaps).unwrap_or(0.0);
    let poisson = (1..200).map(|i| f64::from(i) / 200.0).map(|share| (-(1.0 - share).ln() * mean, share));
    let poisson = if mean > 0.0 { poisson.collect() } else { Vec::new() };
    let curves = [
        Series::new("this trace", plot::cumulative(&gaps)),
        Series::guide("Poisson of the same rate", poisson),
    ];
    let windows: Vec<f64> = (0..24).map(|i| length / 8.0 / 1.5f64.powi(i)).collect();
    let mut dispersion = stats::dispersion(arrivals, &windows);
    dispersion.reverse();
    let ends = [dispersion.first(), dispersion.last()];
    let flat = ends.into_iter().flatten().map(|(window, _)| (*window, 1.0)).collect();
    let burstiness = [Series::new("this trace", dispersion), Series::guide("Poisson", flat)];
    vec![
        Figure::half(
            plot::step_chart(
                &Frame::half("Arrivals over time"),
                &AxisSpec::linear("time", Unit::Seconds),
                &AxisSpec::linear("requests per second", Unit::Plain),
                &[Series::new("", rates)],
            ),
            &format!("Mean rate in each of {bins} windows of {}.", human(width, Unit::Seconds)),
        ),
        Figure::half(
            plot::cdf_with_guides(
                &Frame::half("Time between arrivals"),
                &AxisSpec::log("time between arrivals", Unit::Seconds),
                &curves,
            ),
            "A curve flatter than the dotted one means bursts and pauses.",
        ),
        Figure::half(
            plot::line_chart(
                &Frame::half("Burstiness"),
                &AxisSpec::log("length of the window", Unit::Seconds),
                &AxisSpec::linear("variance / mean of arrivals", Unit::Plain),
                &burstiness,
            ),
            "1 is a Poisson process; more means that arrivals come in bursts of about this length.",
        ),
    ]
}
