//! What a sweep says, in sentences computed from its numbers.

use crate::compare::finding;
use crate::metric::Metric;
use crate::number::{Unit, change, human, signed};
use crate::stats::Better;
use crate::sweep::{Change, Factor, Flip, Grid, Outcome, Ranking, Sensitivity};

use super::SweepPage;

/// Traces of which the answer speaks.
const TRACES_MAX: usize = 8;
/// Names in one sentence.
const NAMES_MAX: usize = 6;

/// A metric with its unit, for a heading.
pub(super) fn named(metric: &Metric) -> String {
    if metric.per.is_empty() { metric.title.to_owned() } else { format!("{}, {}", metric.title, metric.per) }
}

/// `-12 % [-13, -11]`; without the brackets where there is no interval.
pub(super) fn changed(one: &Change) -> String {
    relative(one.mean, one.half_width.map(|half| (one.mean - half, one.mean + half)))
}

pub(super) fn relative(mean: f64, ends: Option<(f64, f64)>) -> String {
    match ends {
        Some((low, high)) => format!("{} [{}, {}]", change(mean), signed(low * 100.0), signed(high * 100.0)),
        None => change(mean),
    }
}

/// Some names, and how many more there are.
pub(super) fn listed(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_MAX).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

pub(super) fn count(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// A sentence behind what it is about; with a capital letter where that is nothing.
pub(super) fn opening(on: &str, text: &str) -> String {
    if on.is_empty() { super::super::sentence(text) } else { format!("{on}{text}") }
}

/// `12 combinations of everything else`.
pub(super) fn combinations(n: usize) -> String {
    count(n, "combination") + " of everything else"
}

/// What a factor is called.
pub(super) fn factor(grid: &Grid, factor: Factor) -> String {
    match factor {
        Factor::Name => grid.kind.to_owned(),
        Factor::Knob(knob) => grid.knobs[knob].label(),
    }
}

/// What a value of a factor is called.
pub(super) fn value(grid: &Grid, factor: Factor, value: usize) -> String {
    match factor {
        Factor::Name => grid.names[value].to_owned(),
        Factor::Knob(knob) => grid.knobs[knob].value(value),
    }
}

/// The answer in a few sentences.
pub(super) fn answer(
    grid: &Grid,
    rankings: &[Ranking],
    flips: &[Flip],
    pairs: usize,
    overall: &[Sensitivity],
) -> Vec<String> {
    let mut said: Vec<String> = rankings.iter().take(TRACES_MAX).map(|one| ranking(grid, one)).collect();
    if rankings.len() > TRACES_MAX {
        said.push(format!("{} more traces stand below.", rankings.len() - TRACES_MAX));
    }
    if rankings.is_empty() {
        said.push("There are no results to compare.".to_owned());
    }
    if rankings.len() > 1 {
        said.push(flipped(grid, rankings, flips, pairs));
    }
    said.extend(overall.first().map(|one| sensitivity(grid, one)));
    said
}

/// Who is first on a trace, and by how much.
pub(super) fn ranking(grid: &Grid, one: &Ranking) -> String {
    let on = if grid.traces.len() > 1 { format!("{}: ", grid.traces[one.trace]) } else { String::new() };
    let target = grid.target.title;
    let place = |name: usize| one.places.iter().find(|place| place.name == name);
    let told = |name: &usize| {
        let mean = place(*name).map(|place| grid.target.words(place.mean));
        format!("{} ({})", grid.names[*name], mean.unwrap_or_default())
    };
    let over = match one.settings {
        (1, 1) => count(one.seeds, "seed"),
        (settings, _) => format!("mean over {}, {}", count(settings, "setting"), count(one.seeds, "seed")),
    };
    let rivals: Vec<_> = one.places.iter().filter(|place| !grid.is_bound[place.name]).collect();
    let mut said = match (one.ahead.as_slice(), rivals.get(1)) {
        ([], _) => opening(&on, "only bounds have results."),
        ([only], None) => opening(&on, &format!("only {} was run ({over}).", told(only))),
        ([first], Some(next)) => {
            let samples = place(*first).map(|place| &place.samples[..]).unwrap_or_default();
            let lead = finding(samples, &next.samples, grid.target).unwrap_or_default();
            let lead = lead.replace(", better", " better").replace(", worse", " worse");
            let most = if grid.target.better == Some(Better::Lower) { "lowest" } else { "highest" };
            let next = grid.names[next.name];
            format!("{on}{} has the {most} {target} ({over}), {lead} than {next}, the next.", told(first))
        }
        (ahead, _) => {
            let first = ahead.first().map(told);
            let others = ahead.iter().skip(1).map(|name| grid.names[*name].to_owned());
            let names: Vec<String> = first.into_iter().chain(others).collect();
            let shown = format!("no difference in {target} shown between {} ({over}).", listed(&names));
            opening(&on, &shown)
        }
    };
    if one.seeds == 1 && rivals.len() > 1 {
        said += " One run each gives no interval: this holds for this trace as replayed, not beyond it.";
    }
    said += &losses(grid, one);
    let bounds: Vec<usize> =
        one.places.iter().filter(|place| grid.is_bound[place.name]).map(|place| place.name).collect();
    if let Some(best) = bounds.first() {
        let mean = place(*best).map(|place| grid.target.words(place.mean)).unwrap_or_default();
        said += &format!(" The bound {} reaches {mean}.", grid.names[*best]);
    }
    said
}

/// How many requests the first has lost or cut: who refuses many looks fast.
fn losses(grid: &Grid, one: &Ranking) -> String {
    let first = one.ahead.first().and_then(|name| one.places.iter().find(|place| place.name == *name));
    let Some((first, lost)) = first.and_then(|first| Some((first, first.loss?))) else {
        return String::new();
    };
    let name = grid.names[first.name];
    if lost == 0.0 {
        return format!(" {name} lost or cut no request.");
    }
    let rivals = one.places.iter().filter(|place| !grid.is_bound[place.name]);
    let fewest = rivals.filter_map(|place| Some((place.name, place.loss?)));
    let fewest = fewest.reduce(|a, b| if b.1 < a.1 { b } else { a }).filter(|(_, least)| *least < lost);
    let fewest =
        fewest.map(|(n, least)| format!("; the fewest, {}, {}", human(least, Unit::Share), grid.names[n]));
    format!(" {name} lost or cut {} of its requests{}.", human(lost, Unit::Share), fewest.unwrap_or_default())
}

/// How many pairs change places, and the one that does so most.
pub(super) fn flipped(grid: &Grid, rankings: &[Ranking], flips: &[Flip], pairs: usize) -> String {
    let what = if grid.kind == "row" { "rows" } else { "policies" };
    if rankings.iter().all(|one| one.seeds < 2) {
        return "One run each has no interval, so no order can be shown to change from trace to trace."
            .to_owned();
    }
    let Some(first) = flips.first() else {
        return format!("Of {pairs} pairs of {what} none is shown to change places from trace to trace.");
    };
    let (a, b) = (grid.names[first.names.0], grid.names[first.names.1]);
    let lead = |(trace, mean, ends): (usize, f64, (f64, f64))| {
        format!("by {} on {}", relative(mean, Some(ends)), grid.traces[trace])
    };
    format!(
        "{} of {pairs} pairs of {what} change places from trace to trace, each way by an interval without zero; \
         most: {a} leads {b} {}, {b} leads {a} {}.",
        flips.len(),
        lead(first.first),
        lead(first.second)
    )
}

/// How far a factor moves the target.
pub(super) fn sensitivity(grid: &Grid, one: &Sensitivity) -> String {
    let label = factor(grid, one.factor);
    let (low, high) = one.range;
    let [median, low, high] = [one.median, low, high].map(|share| human(share, Unit::Share));
    let mut said = format!(
        "Of what was varied, {label} moves {} most: its worst value loses {median} against its best (median of {}; \
         {low} to {high}).",
        grid.target.title,
        combinations(one.combinations)
    );
    if let Some(change) = &one.change {
        let [from, to] = [change.from, change.to].map(|v| value(grid, one.factor, v));
        let over = match change.half_width {
            Some(_) => format!("95 % interval over {} paired seeds", change.seeds),
            None => "one run each, so no interval".to_owned(),
        };
        said += &format!(
            " From {from}, the best on the whole, to {to}, the worst, it is {} ({over}).",
            changed(change)
        );
    }
    said
}

/// What a reader must know before believing the numbers.
pub(super) fn notes(page: &SweepPage, grid: &Grid) -> Vec<String> {
    let mut notes = Vec::new();
    let all = page.trials.len();
    let is =
        |outcome: fn(&Outcome) -> bool| page.trials.iter().filter(|trial| outcome(&trial.outcome)).count();
    let failed = is(|outcome| matches!(outcome, Outcome::Failed));
    let missing = is(|outcome| matches!(outcome, Outcome::Missing));
    let unloaded = is(|outcome| matches!(outcome, Outcome::Done(row) if !row.load_error.is_empty()));
    if failed > 0 {
        notes.push(format!("{failed} of {all} simulations failed; what they would have shown is not here."));
    }
    if missing > 0 {
        notes.push(format!("{missing} of {all} simulations have not been run yet."));
    }
    if unloaded > 0 {
        notes.push(format!("In {unloaded} of {all} simulations the model could not be loaded."));
    }
    let is_single = |trace: usize| grid.points.iter().filter(|p| p.trace == trace).all(|p| p.runs.len() < 2);
    let single: Vec<String> = (0..grid.traces.len())
        .filter(|trace| is_single(*trace))
        .map(|trace| grid.traces[trace].to_owned())
        .collect();
    if !single.is_empty() && all > 0 {
        notes.push(format!("{}: one run each, so there is no interval.", listed(&single)));
    }
    let is_spec = |trial: &crate::sweep::Trial| matches!(&trial.outcome, Outcome::Done(row) if row.cost_model == "spec");
    if page.trials.iter().any(is_spec) {
        notes.push(
            "Step times come from the catalogue's data sheets and efficiencies (cost model spec): they are not \
             calibrated on a device, so compare policies with each other, not with a stopwatch."
                .to_owned(),
        );
    }
    let bounds: Vec<String> =
        (0..grid.names.len()).filter(|n| grid.is_bound[*n]).map(|n| grid.names[n].to_owned()).collect();
    if !bounds.is_empty() {
        notes.push(format!(
            "{}: bounds, which hold what no device holds or know what nobody knows; they are shown, and win nothing.",
            listed(&bounds)
        ));
    }
    notes
}
