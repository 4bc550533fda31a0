//! The plots of a page and the sentences below them.

use serde::Serialize;

use super::{Page, TracePage};
use crate::compare::{Change, Comparison, Effect, Group};
use crate::metric::{LOSS, Metric, metric};
use crate::number::{Unit, human};
use crate::plot::{self, AxisSpec, Frame, Outcomes, ParetoPoint, RowBars, Series, Tone, Wish};
use crate::row::{CellMap, Summary};
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
    pub(super) fn half(svg: String, caption: &str) -> Figure {
        Figure { svg: inline(&svg), caption: caption.to_owned(), is_wide: false }
    }

    pub(super) fn wide(svg: String, caption: &str) -> Figure {
        Figure { is_wide: true, ..Figure::half(svg, caption) }
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
        let is_bound = comparison.is_bound(group);
        let bound = if is_bound { " (bound)" } else { "" };
        let (label, policy) = (format!("{}{bound}", group.label), group.name.to_owned());
        Some(ParetoPoint { label, policy, x, x_half_width, y, y_half_width, is_bound })
    };
    let points: Vec<ParetoPoint> = groups.iter().filter(|g| g.is_loaded()).filter_map(point).collect();
    let bars: Vec<Outcomes> = groups.iter().map(outcome).collect();
    let height = 126 + 34 * u32::try_from(bars.len()).unwrap_or(0).min(40);
    let height = height.max(400);
    // Names of rows are sentences rather than words: they need the whole width.
    let is_wide = comparison.is_named();
    let frame = |title: &str| Frame { width: if is_wide { 1200 } else { 600 }, ..Frame::half(title) };
    let figures = vec![
        Figure::half(
            plot::pareto(
                &frame("Throughput against lost or cut requests").height(height.min(520)),
                &AxisSpec::linear("lost or cut requests (lower is better)", Unit::Share),
                &AxisSpec::linear("throughput, tokens/s (higher is better)", Unit::Plain).close_up(),
                Wish::LEFT_AND_UP,
                &points,
            ),
            "Up and to the left is better. Grey points are dominated: another one loses no more \
             requests and produces no less. Bars are 95 % intervals over seeds.",
        ),
        Figure::half(
            plot::outcomes(&frame("What became of the requests").height(height), &bars),
            "Numbers are requests, means over seeds. A request that was both cut and lost is counted \
             as lost.",
        ),
    ];
    figures.into_iter().map(|figure| Figure { is_wide, ..figure }).collect()
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
    let known = comparison.names().iter().map(|known| {
        let own = samples.iter().filter(|(name, _)| name == known);
        ((*known).to_owned(), own.flat_map(|(_, values)| values.iter().copied()).collect())
    });
    let unknown = samples.iter().filter(|(name, _)| !comparison.names().iter().any(|p| p == name));
    known.chain(unknown.cloned()).collect()
}

/// Height for the legend of many names, in pixels: a name of a row may take a line.
fn legend_room(comparison: &Comparison) -> u32 {
    if !comparison.is_named() {
        return 0;
    }
    let names = u32::try_from(comparison.names().len()).unwrap_or(u32::MAX);
    names.min(24).saturating_sub(3) * 16
}

pub(super) fn latencies(page: &Page, comparison: &Comparison) -> Vec<Figure> {
    let figure = |title: &str, samples: &[(String, Vec<f64>)], caption: &str| {
        if samples.iter().all(|(_, values)| values.is_empty()) {
            return None;
        }
        let axis = AxisSpec::log(&title.to_lowercase(), Unit::Milliseconds);
        let frame = Frame::half(title).height(380 + legend_room(comparison));
        let svg = plot::cdf(&frame, &axis, &ordered(comparison, samples));
        Some(Figure::half(svg, caption))
    };
    let caution = "Further left is faster. Only requests that got this far are counted, so compare \
                   with what was lost above.";
    let ttft = figure("Time to first token", &page.ttft_ms, caution);
    let tpot = figure("Time per output token", &page.tpot_ms, "Mean gap between the tokens of one answer.");
    ttft.into_iter().chain(tpot).collect()
}

pub(super) fn timelines(page: &Page, comparison: &Comparison) -> Vec<Figure> {
    let names = comparison.names();
    let classes = plot::classes(&page.timeline);
    let one = classes.len() == 1;
    let figures = classes.into_iter().map(|class| {
        let frame = Frame {
            width: if one { 1200 } else { 600 },
            ..Frame::half(&format!("The cells of class {class} over time"))
        };
        let frame = frame.height(560 + if one { 0 } else { legend_room(comparison) });
        let svg = plot::timeline(&frame, &page.timeline, class, names);
        Figure { is_wide: one, ..Figure::half(svg, "One seed, the lowest.") }
    });
    figures.collect()
}

pub(super) fn maps(page: &Page, comparison: &Comparison) -> Vec<Figure> {
    let mut classes: Vec<&str> = page.maps.iter().map(|map| map.class.as_str()).collect();
    classes.sort_unstable();
    classes.dedup();
    let bytes_max = MAPS_BYTES_MAX / page.maps.len().max(1);
    let figures = page.maps.iter().enumerate().map(|(m, map)| {
        let title = match classes.len() {
            0 | 1 => map.name().to_owned(),
            _ => format!("{}, class {}", map.name(), map.class),
        };
        let frame = Frame::half(&title).height(420);
        // Several settings of one name leave their maps in the order of their groups.
        let alike = |other: &&CellMap| (other.name(), &other.class) == (map.name(), &map.class);
        let earlier = page.maps[..m].iter().filter(alike).count();
        let group = comparison.groups().iter().filter(|g| g.name == map.name()).nth(earlier);
        let caption = group.and_then(|g| g.rows().first().copied()).map_or(String::new(), corruption);
        Figure::half(plot::cell_map_within(&frame, map, bytes_max), &caption)
    });
    figures.collect()
}

/// How often a sequence read another one's K and V; empty where that never happened.
fn corruption(row: &Summary) -> String {
    if row.corrupted_steps == 0 {
        return String::new();
    }
    let share = row.corrupted_steps as f64 / row.steps.max(row.corrupted_steps) as f64;
    format!(
        "In {} of {} steps of this run ({}) a sequence read K and V that belong to another one.",
        human(row.corrupted_steps as f64, Unit::Count),
        human(row.steps as f64, Unit::Count),
        human(share, Unit::Share)
    )
}

/// Crashes, lost requests and throughput of every row, the reference marked.
pub(super) fn ablation(comparison: &Comparison, changes: &[Change]) -> Figure {
    let keys = ["crashes", "failed", "throughput_tokens_per_s"];
    let metrics: Vec<&Metric> = keys.into_iter().filter_map(metric).collect();
    let reference = comparison.reference_group();
    let rows = comparison.groups().iter().enumerate().map(|(g, group)| {
        let change = changes.iter().find(|c| c.group == g);
        let (tone, note) = match change {
            Some(change) => (tone(change.effect), change.effect.word().to_owned()),
            None if reference == Some(g) => (Tone::Reference, "reference".to_owned()),
            None => (Tone::Neutral, String::new()),
        };
        let is_loaded = change.is_none_or(|c| c.effect != Effect::DoesNotStart);
        let values = metrics.iter().map(|m| is_loaded.then(|| group.estimate(m)).flatten()).collect();
        RowBars { label: group.label.clone(), note, tone, values }
    });
    let axes = [
        AxisSpec::linear("crashes per run", Unit::Plain),
        AxisSpec::linear("lost requests per run", Unit::Plain),
        AxisSpec::linear("throughput, tokens/s", Unit::Plain),
    ];
    let frame = Frame { width: 1200, ..Frame::wide("Each change alone") }.height(240);
    let svg = plot::row_bars(&frame, &axes, &rows.collect::<Vec<_>>());
    let caption = "Means over seeds with 95 % intervals. The dotted lines go down from the values of the \
                   reference. What a row does follows from paired differences, same seed by same seed, and \
                   not from intervals that overlap here.";
    Figure { is_wide: true, ..Figure::half(svg, caption) }
}

fn tone(effect: Effect) -> Tone {
    match effect {
        Effect::Cures => Tone::Good,
        Effect::Helps => Tone::Fair,
        Effect::NothingShown => Tone::Neutral,
        Effect::Mixed => Tone::Mixed,
        Effect::Worsens | Effect::DoesNotStart => Tone::Bad,
    }
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
