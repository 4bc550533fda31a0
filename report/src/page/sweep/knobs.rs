//! Sensitivity and heat maps of a sweep's page.

use super::sentences::{changed, combinations, count, factor, sensitivity as sentence, value};
use super::{Figure, Section, SensitivitySection, ValueTable};
use crate::number::{Unit, human};
use crate::plot::{self, Frame, HeatMap, HeatSide, Span, Tile};
use crate::sweep::{Factor, Grid, Heat, HeatPanel, Sensitivity, ValueEffect, sensitivities};

/// Factors with a bar.
const FACTORS_MAX: usize = 24;
/// Values of a factor in its table.
const VALUES_MAX: usize = 32;
/// Names in the table by name.
const NAMES_MAX: usize = 80;
/// Panels of the heat map.
const PANELS_MAX: usize = 40;

pub(super) fn sensitivity(grid: &Grid, overall: &[Sensitivity]) -> Option<SensitivitySection> {
    let first = overall.first()?;
    let never_alone = (0..grid.knobs.len()).filter(|k| !overall.iter().any(|s| s.factor == Factor::Knob(*k)));
    let bars: Vec<Span> = overall.iter().take(FACTORS_MAX).map(|one| span(grid, one)).collect();
    let axis = format!("{} lost by the worst value against the best", grid.target.title);
    let frame = Frame { width: 1200, ..Frame::wide("What matters") }.height(180);
    let caption = "Bars are medians over all combinations of everything else that has results under two or more values, thin \
                   lines go from the least to the most. Bounds do not count.";
    Some(SensitivitySection {
        sentences: vec![sentence(grid, first)],
        figures: vec![Figure::wide(plot::spans(&frame, &axis, &bars), caption)],
        values: overall.iter().take(FACTORS_MAX).map(|one| values(grid, one)).collect(),
        knobs: overall.iter().filter_map(|one| knob(one.factor)).map(|k| grid.knobs[k].label()).collect(),
        by_name: by_name(grid, overall),
        never_alone: never_alone.map(|k| grid.knobs[k].label()).collect(),
    })
}

fn knob(factor: Factor) -> Option<usize> {
    match factor {
        Factor::Knob(knob) => Some(knob),
        Factor::Name => None,
    }
}

/// The value that is best in most combinations.
fn favourite(one: &Sensitivity) -> Option<&ValueEffect> {
    one.values.iter().reduce(|a, b| if b.wins > a.wins { b } else { a })
}

fn span(grid: &Grid, one: &Sensitivity) -> Span {
    let note = favourite(one).map(|best| {
        format!("best: {}, in {} of {}", value(grid, one.factor, best.value), best.wins, one.combinations)
    });
    let (median, range) = (one.median, one.range);
    Span { label: factor(grid, one.factor), note: note.unwrap_or_default(), median, range }
}

fn values(grid: &Grid, one: &Sensitivity) -> ValueTable {
    let line = |effect: &ValueEffect| {
        let against = effect.against_first.as_ref().map_or_else(|| "-".to_owned(), changed);
        [
            value(grid, one.factor, effect.value),
            human(effect.share, Unit::Share),
            format!("{} of {}", effect.wins, effect.of),
            against,
        ]
    };
    ValueTable {
        label: factor(grid, one.factor),
        lines: one.values.iter().take(VALUES_MAX).map(line).collect(),
        left_out: one.values.len().saturating_sub(VALUES_MAX),
    }
}

/// Per name the medians of all knobs, in the order of the bars.
fn by_name(grid: &Grid, overall: &[Sensitivity]) -> Vec<(String, Vec<String>)> {
    let knobs: Vec<usize> = overall.iter().filter_map(|one| knob(one.factor)).collect();
    let rivals = (0..grid.names.len()).filter(|name| !grid.is_bound[*name]);
    if knobs.is_empty() || rivals.clone().count() < 2 {
        return Vec::new();
    }
    let line = |name: usize| {
        let own = sensitivities(grid, Some(name));
        let cell = |k: &usize| {
            let one = own.iter().find(|one| one.factor == Factor::Knob(*k));
            let text = one.map(|one| {
                let best = favourite(one).map(|best| value(grid, one.factor, best.value)).unwrap_or_default();
                format!("{}, best {best}", human(one.median, Unit::Share))
            });
            text.unwrap_or_else(|| "-".to_owned())
        };
        (grid.names[name].to_owned(), knobs.iter().map(cell).collect())
    };
    rivals.take(NAMES_MAX).map(line).collect()
}

pub(super) fn heat(grid: &Grid, heat: &Heat) -> Section<()> {
    let (across, up) = (&grid.knobs[heat.across], &grid.knobs[heat.up]);
    let pair = |(x, y): (usize, usize)| [across.told(x), up.told(y)].concat().join(", ");
    let tile = |panel: &HeatPanel, (x, y): (usize, usize)| {
        let cell = &panel.cells[y][x];
        let mut about = pair((x, y));
        if let Some(share) = cell.share {
            about += &format!(": {} of the best", human(share, Unit::Share));
        }
        if let Some(value) = cell.value {
            about += &format!(", {} {}", grid.target.title, human(value, grid.target.unit));
        }
        for (count, what) in [(cell.failed, "failed"), (cell.missing, "not run")] {
            if count > 0 {
                about += &format!(", {count} {what}");
            }
        }
        Tile { share: cell.share, is_failed: cell.failed > 0, about }
    };
    let map = |panel: &HeatPanel| HeatMap {
        title: grid.names[panel.name].to_owned(),
        tiles: (0..up.values.len())
            .map(|y| (0..across.values.len()).map(|x| tile(panel, (x, y))).collect())
            .collect(),
    };
    let maps: Vec<HeatMap> = heat.panels.iter().take(PANELS_MAX).map(map).collect();
    let side = |knob: &crate::sweep::Knob| HeatSide {
        label: knob.label(),
        values: (0..knob.values.len()).map(|value| knob.value(value)).collect(),
    };
    let title = format!("{} over {} and {}", grid.target.title, across.label(), up.label());
    let frame = Frame { width: 1200, ..Frame::wide(&title) }.height(200);
    let whole = match heat.combinations {
        0 | 1 => "the mean over seeds, as a share of the best that anybody reaches".to_owned(),
        n => format!(
            "the median over {} of the share of the best that anybody reaches in the same combination, means over seeds",
            combinations(n)
        ),
    };
    let caption = format!("Each number is in %: {whole}. Bounds may reach more than 100.");
    let svg = plot::heat_maps(&frame, &side(across), &side(up), &maps);
    Section {
        sentences: sentences(grid, heat, pair),
        figures: vec![Figure::wide(svg, &caption)],
        tables: Vec::new(),
        left_out: heat.panels.len().saturating_sub(PANELS_MAX),
    }
}

/// Where most names are best, and what the wrong pair costs the one that it costs most.
fn sentences(grid: &Grid, heat: &Heat, pair: impl Fn((usize, usize)) -> String) -> Vec<String> {
    let rivals: Vec<&HeatPanel> = heat.panels.iter().filter(|panel| !grid.is_bound[panel.name]).collect();
    let best: Vec<(usize, usize)> = rivals.iter().filter_map(|panel| panel.best).collect();
    let times = |pair: &(usize, usize)| best.iter().filter(|other| *other == pair).count();
    let Some(most) = best.iter().reduce(|a, b| if times(b) > times(a) { b } else { a }) else {
        return Vec::new();
    };
    let what = if grid.kind == "row" { "row" } else { "policy" };
    let plural = count(rivals.len(), what).replace("policys", "policies");
    let mut said = format!("{} of {plural} do best with {}.", times(most), pair(*most));
    let changes = rivals.iter().filter_map(|panel| Some((panel, panel.change.as_ref()?)));
    let largest = changes.max_by(|(_, a), (_, b)| a.mean.abs().total_cmp(&b.mean.abs()));
    if let Some((panel, change)) = largest
        && let (Some(best), Some(worst)) = (panel.best, panel.worst)
    {
        let over = match change.half_width {
            Some(_) => format!("95 % interval over {} paired seeds", change.seeds),
            None => "one run each, so no interval".to_owned(),
        };
        said += &format!(
            " The pair matters most to {}: from {} to {} it is {} ({over}).",
            grid.names[panel.name],
            pair(best),
            pair(worst),
            changed(change)
        );
    }
    vec![said]
}
