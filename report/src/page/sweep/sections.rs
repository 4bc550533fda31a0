//! Rankings, flips, fronts and maps of a sweep's page: sentences, pictures and tables.

use serde::Serialize;

use super::sentences::{count, flipped, listed, named, opening, ranking, relative};
use super::{Figure, FlipLine, FrontTable, RankingLine, RankingTable, Section, SweepPage};
use crate::metric::{LOSS, Metric};
use crate::number::{Unit, human};
use crate::plot::{self, AxisSpec, Frame, PlaceRow, Ranks, Tone};
use crate::stats::{Better, Verdict};
use crate::sweep::{Flip, Front, Grid, Place, Ranking, Sensitivity};

/// Traces with pictures of their own.
const TRACES_MAX: usize = 16;
/// Traces on which other columns than the first two are drawn against each other.
const OTHER_FRONTS_MAX: usize = 4;
/// Such pictures in all.
const FRONTS_MAX: usize = 32;
/// Names in one picture or table.
const NAMES_MAX: usize = 80;
/// Lines of a table of flips, or of a front.
const LINES_MAX: usize = 24;
/// Maps in a picture.
const MAPS_MAX: usize = 48;
/// All maps together.
const MAPS_BYTES_MAX: usize = 1_000_000;

/// The numbers behind the tables, as JSON in the page.
#[derive(Serialize)]
pub(super) struct Data<'a> {
    target: &'static str,
    reference: &'a str,
    ranking: Vec<DataPlace<'a>>,
    sensitivity: Vec<DataFactor>,
}

#[derive(Serialize)]
struct DataPlace<'a> {
    trace: &'a str,
    name: &'a str,
    samples: &'a [f64],
    mean: f64,
    half_width: Option<f64>,
    change: Option<f64>,
    change_ends: Option<(f64, f64)>,
    loss: Option<f64>,
    ttft_p99_ms: Option<f64>,
}

#[derive(Serialize)]
struct DataFactor {
    factor: String,
    combinations: usize,
    median: f64,
    range: (f64, f64),
}

pub(super) fn data<'a>(grid: &Grid<'a>, rankings: &'a [Ranking], overall: &[Sensitivity]) -> Data<'a> {
    let place = |trace: usize, place: &'a Place| DataPlace {
        trace: grid.traces[trace],
        name: grid.names[place.name],
        samples: &place.samples,
        mean: place.mean.0,
        half_width: place.mean.1,
        change: place.change.map(|(mean, _)| mean),
        change_ends: place.change.and_then(|(_, ends)| ends),
        loss: place.loss,
        ttft_p99_ms: place.ttft_ms,
    };
    let shown = rankings.iter().take(TRACES_MAX);
    let factor = |one: &Sensitivity| DataFactor {
        factor: super::sentences::factor(grid, one.factor),
        combinations: one.combinations,
        median: one.median,
        range: one.range,
    };
    Data {
        target: grid.target.key,
        reference: grid.names.get(grid.reference).copied().unwrap_or_default(),
        ranking: shown
            .flat_map(|one| one.places.iter().take(NAMES_MAX).map(move |p| place(one.trace, p)))
            .collect(),
        sensitivity: overall.iter().map(factor).collect(),
    }
}

fn axis(metric: &Metric) -> AxisSpec {
    AxisSpec::linear(&named(metric), metric.unit)
}

/// An axis by powers of ten where values are far apart.
fn wide_axis(metric: &Metric, values: impl Iterator<Item = f64>) -> AxisSpec {
    let wish = match metric.better {
        Some(Better::Higher) => " (higher is better)",
        Some(Better::Lower) => " (lower is better)",
        None => "",
    };
    let label = named(metric) + wish;
    let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), x| (low.min(x), high.max(x)));
    if low > 0.0 && high > low * 20.0 {
        AxisSpec::log(&label, metric.unit)
    } else {
        AxisSpec::linear(&label, metric.unit).close_up()
    }
}

pub(super) fn rankings(grid: &Grid, rankings: &[Ranking]) -> Option<Section<RankingTable>> {
    if rankings.iter().all(|one| one.places.len() < 2) {
        return None;
    }
    let reference = grid.names.get(grid.reference).copied().unwrap_or_default();
    let mut section = Section { sentences: Vec::new(), figures: Vec::new(), tables: Vec::new(), left_out: 0 };
    section.left_out = rankings.len().saturating_sub(TRACES_MAX);
    for one in rankings.iter().take(TRACES_MAX) {
        section.sentences.push(ranking(grid, one));
        let rows: Vec<PlaceRow> = one.places.iter().take(NAMES_MAX).map(|place| row(grid, place)).collect();
        let trace = grid.traces[one.trace];
        let title = format!("{trace}: {}", grid.target.title);
        let frame = Frame { width: 1200, ..Frame::wide(&title) }.height(150);
        let caption = "Bars are means with 95 % intervals, points differences to the reference, paired by setting and \
                       seed. Green is better than the reference, orange worse, grey not shown to differ.";
        section
            .figures
            .push(Figure::wide(plot::places(&frame, &axis(grid.target), reference, &rows), caption));
        section.tables.push(table(grid, one));
    }
    Some(section)
}

fn label(grid: &Grid, name: usize) -> String {
    let bound = if grid.is_bound[name] { " (bound)" } else { "" };
    format!("{}{bound}", grid.names[name])
}

fn row(grid: &Grid, place: &Place) -> PlaceRow {
    let tone = match place.verdict {
        _ if place.name == grid.reference => Tone::Reference,
        _ if grid.is_bound[place.name] => Tone::Neutral,
        Some(Verdict::Better) => Tone::Good,
        Some(Verdict::Worse) => Tone::Bad,
        _ => Tone::Neutral,
    };
    PlaceRow { label: label(grid, place.name), tone, value: place.mean, change: place.change }
}

fn table(grid: &Grid, one: &Ranking) -> RankingTable {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let line = |place: &Place| RankingLine {
        name: grid.names[place.name].to_owned(),
        is_bound: grid.is_bound[place.name],
        is_ahead: one.ahead.contains(&place.name),
        value: grid.target.number(place.mean),
        found: place.found.clone().unwrap_or_else(|| {
            if place.name == grid.reference { "reference".to_owned() } else { "-".to_owned() }
        }),
        loss: or_dash(place.loss.map(|loss| human(loss, LOSS.unit))),
        ttft: or_dash(place.ttft_ms.map(|ms| human(ms, Unit::Milliseconds))),
        best: or_dash(place.best.as_ref().map(|(_, value)| human(*value, grid.target.unit))),
        best_setting: place.best.as_ref().map(|(setting, _)| grid.setting(setting)).unwrap_or_default(),
    };
    let (counted, all) = one.settings;
    let mut about = match counted == all {
        true => format!("Means over {}, {}.", count(all, "setting"), count(one.seeds, "seed")),
        false => format!(
            "Means over those {counted} of {} in which everyone ranked has a result, {}.",
            count(all, "setting"),
            count(one.seeds, "seed")
        ),
    };
    if !one.unranked.is_empty() {
        let names: Vec<String> = one.unranked.iter().map(|name| grid.names[*name].to_owned()).collect();
        about += &format!(" Not ranked, for want of results under the same settings: {}.", listed(&names));
    }
    RankingTable {
        trace: grid.traces[one.trace].to_owned(),
        about,
        lines: one.places.iter().take(NAMES_MAX).map(line).collect(),
    }
}

pub(super) fn flips(
    grid: &Grid,
    rankings: &[Ranking],
    flips: &[Flip],
    pairs: usize,
) -> Option<Section<FlipLine>> {
    if rankings.len() < 2 || grid.names.len() < 2 {
        return None;
    }
    let shown: Vec<&Ranking> = rankings.iter().take(TRACES_MAX).collect();
    let names = (0..grid.names.len().min(NAMES_MAX)).map(|name| Ranks {
        label: label(grid, name),
        style: name,
        places: shown.iter().map(|one| one.places.iter().position(|place| place.name == name)).collect(),
    });
    let traces: Vec<String> = shown.iter().map(|one| grid.traces[one.trace].to_owned()).collect();
    let frame = Frame { width: 1200, ..Frame::wide(&format!("Places by {}", grid.target.title)) }.height(200);
    let svg = plot::ranks(&frame, &traces, &names.collect::<Vec<_>>());
    let caption = "The best is on top. Lines that cross change places; whether that is shown beyond chance stands below.";
    let lead = |(trace, mean, ends): (usize, f64, (f64, f64))| {
        format!("{}: {}", grid.traces[trace], relative(mean, Some(ends)))
    };
    let line = |flip: &Flip| FlipLine {
        first: grid.names[flip.names.0].to_owned(),
        second: grid.names[flip.names.1].to_owned(),
        where_first: lead(flip.first),
        where_second: lead(flip.second),
    };
    Some(Section {
        sentences: vec![flipped(grid, rankings, flips, pairs)],
        figures: vec![Figure::wide(svg, caption)],
        tables: flips.iter().take(LINES_MAX).map(line).collect(),
        left_out: flips.len().saturating_sub(LINES_MAX),
    })
}

/// The fronts that are shown: of the first pair on most traces, of the others on a few.
fn shown(fronts: &[Front]) -> Vec<&Front> {
    let is_same = |a: &Front, b: &Front| (a.pair.x.key, a.pair.y.key) == (b.pair.x.key, b.pair.y.key);
    let place = |at: usize| fronts[..at].iter().filter(|other| is_same(other, &fronts[at])).count();
    let most = |front: &Front| if is_same(front, &fronts[0]) { TRACES_MAX } else { OTHER_FRONTS_MAX };
    let chosen: Vec<&Front> = fronts
        .iter()
        .enumerate()
        .filter(|(at, front)| place(*at) < most(front))
        .map(|(_, front)| front)
        .collect();
    chosen.into_iter().take(FRONTS_MAX).collect()
}

pub(super) fn fronts(grid: &Grid, fronts: &[Front]) -> Option<Section<FrontTable>> {
    if fronts.is_empty() {
        return None;
    }
    let shown = shown(fronts);
    let mut section = Section { sentences: Vec::new(), figures: Vec::new(), tables: Vec::new(), left_out: 0 };
    section.left_out = fronts.len() - shown.len();
    let is_wide = shown.len() == 1;
    for one in shown {
        let (x, y) = (one.pair.x, one.pair.y);
        let words = |i: usize| {
            let setting =
                if one.settings[i].is_empty() { String::new() } else { format!(" ({})", one.settings[i]) };
            format!("{}{setting}", one.points[i].label)
        };
        let values = |i: usize| {
            let point = &one.points[i];
            [x.words((point.x, point.x_half_width)), y.words((point.y, point.y_half_width))]
        };
        let told = |i: usize| {
            let [at_x, at_y] = values(i);
            format!("{}: {} {at_x}, {} {at_y}", words(i), x.title, y.title)
        };
        let trace = grid.traces[one.trace];
        let on = if grid.traces.len() > 1 { format!("{trace}: ") } else { String::new() };
        let (front, all) = (&one.front, one.points.len());
        let said = match front.as_slice() {
            [] => opening(&on, "only bounds have results."),
            [only] => {
                opening(&on, &format!("one of {all} points beats all others in both. {}.", told(*only)))
            }
            [first, .., last] => {
                let ends = format!("At one end {}; at the other {}.", told(*first), told(*last));
                format!("{on}{} of {all} points are beaten by none in both. {ends}", front.len())
            }
        };
        let title = format!("{trace}: {} against {}", y.title, x.title);
        let frame = Frame { width: if is_wide { 1200 } else { 600 }, ..Frame::half(&title) };
        let frame = frame.height(if is_wide { 520 } else { 440 });
        let across = wide_axis(x, one.points.iter().map(|point| point.x));
        let upwards = wide_axis(y, one.points.iter().map(|point| point.y));
        let corner = super::super::sentence(one.pair.wish().corner());
        let caption = format!(
            "{corner} is better. A point is one setting, mean over seeds; grey or pale points are dominated. Bars are \
             95 % intervals over seeds."
        );
        let svg = plot::pareto(&frame, &across, &upwards, one.pair.wish(), &one.points);
        section.figures.push(match is_wide {
            true => Figure::wide(svg, &caption),
            false => Figure::half(svg, &format!("{said} {caption}")),
        });
        if is_wide {
            section.sentences.push(said);
        }
        let line = |&i: &usize| {
            let [at_x, at_y] = values(i);
            [one.points[i].label.clone(), one.settings[i].clone(), at_x, at_y]
        };
        section.tables.push(FrontTable {
            title,
            x: x.title,
            y: y.title,
            lines: front.iter().take(LINES_MAX).map(line).collect(),
            left_out: front.len().saturating_sub(LINES_MAX),
        });
    }
    Some(section)
}

pub(super) fn maps(page: &SweepPage) -> Option<Section<()>> {
    let mut classes: Vec<&str> = Vec::new();
    for map in &page.maps {
        if !classes.contains(&map.class.as_str()) {
            classes.push(&map.class);
        }
    }
    let bytes_max = MAPS_BYTES_MAX / classes.len().max(1);
    let (mut sentences, mut figures, mut left_out) = (Vec::new(), Vec::new(), 0);
    for class in &classes {
        let own: Vec<_> = page.maps.iter().filter(|map| map.class == *class).collect();
        left_out += own.len().saturating_sub(MAPS_MAX);
        let broken = own.iter().filter_map(|map| Some((map.name(), plot::most_pieces(map)?)));
        let broken: Vec<_> = broken.collect();
        let whole = broken.iter().filter(|(_, at)| at.pieces < 2).map(|(name, _)| (*name).to_owned());
        let whole: Vec<String> = whole.collect();
        let lost = |at: &plot::Broken| at.free - at.largest;
        let worst = broken.iter().max_by(|(_, a), (_, b)| lost(a).total_cmp(&lost(b)));
        let of = if classes.len() > 1 { format!("Class {class}: ") } else { String::new() };
        let mut said = Vec::new();
        if let Some((name, at)) = worst.filter(|(_, at)| at.pieces > 1) {
            said.push(format!(
                "most broken up was {name} at {}, with {} of the cells free in {} pieces, the largest {}",
                human(at.time_s, Unit::Seconds),
                human(at.free, Unit::Share),
                at.pieces,
                human(at.largest, Unit::Share)
            ));
        }
        if !whole.is_empty() {
            said.push(format!("free cells always lay in one piece under {}", listed(&whole)));
        }
        if !said.is_empty() {
            sentences.push(opening(&of, &format!("{} (one run each, so no interval).", said.join("; "))));
        }
        let title =
            if classes.len() > 1 { format!("The cells of class {class}") } else { "The cells".to_owned() };
        let frame = Frame { width: 1200, ..Frame::wide(&title) }.height(240);
        let maps: Vec<_> = own.into_iter().take(MAPS_MAX).cloned().collect();
        figures.push(Figure::wide(plot::cell_maps(&frame, &maps, bytes_max), ""));
    }
    (!figures.is_empty()).then_some(Section { sentences, figures, tables: Vec::new(), left_out })
}
