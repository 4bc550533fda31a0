//! The page of a sweep: who is first where, what it costs, what matters, and what the cells looked like.

mod knobs;
mod sections;
mod sentences;

use serde::Serialize;

use super::figures::Figure;
use super::{ABLATION_STYLE, PageError, STYLE, Words, cost_model, render};
use crate::metric::{LOSS, Metric};
use crate::row::CellMap;
use crate::sweep::{Grid, Outcome, Pair, Trial, flips, fronts, heat, rankings, sensitivities};

/// What a page of a sweep is made of.
#[derive(Clone, Debug, Default)]
pub struct SweepPage {
    /// Heading.
    pub title: String,
    /// The question that the sweep answers, one sentence.
    pub question: String,
    /// What the others are compared with; none for the first.
    pub reference: Option<String>,
    /// Policies that are upper bounds: shown, but they cannot win.
    pub bounds: Vec<String>,
    /// What is compared; none for goodput, or throughput where nobody kept the SLO.
    pub target: Option<&'static Metric>,
    /// Which columns are drawn against each other; none for the usual ones.
    pub fronts: Vec<Pair>,
    /// Names of the settings that vary within the rows of the sweep, but for trace and policy.
    pub keys: Vec<String>,
    /// All simulations in the order of the list.
    pub trials: Vec<Trial>,
    /// Settings that are the same everywhere, with their values.
    pub same: Vec<(String, String)>,
    /// Who held which cells, under the first setting of each name on the first trace, its first seed.
    pub maps: Vec<CellMap>,
    /// That setting in words.
    pub maps_of: String,
    /// The command line that makes the results again.
    pub command: String,
    /// Version of kvlab that draws, where no result says which one simulated.
    pub version: String,
}

/// What `sweep.html` sees.
#[derive(Serialize)]
struct SweepView<'a> {
    style: String,
    page: Words<'a>,
    answer: Vec<String>,
    kind: &'static str,
    target: String,
    about: &'static str,
    loss_about: &'static str,
    rankings: Option<Section<RankingTable>>,
    flips: Option<Section<FlipLine>>,
    fronts: Option<Section<FrontTable>>,
    sensitivity: Option<SensitivitySection>,
    heat: Option<Section<()>>,
    maps: Option<Section<()>>,
    maps_of: &'a str,
    same: &'a [(String, String)],
    varied: Vec<(String, String)>,
    cost_models: Vec<String>,
    versions: Vec<&'a str>,
    data: sections::Data<'a>,
}

/// A part of the page: what is to be seen, pictures, and the numbers behind them.
#[derive(Serialize)]
struct Section<T> {
    sentences: Vec<String>,
    figures: Vec<Figure>,
    tables: Vec<T>,
    left_out: usize,
}

#[derive(Serialize)]
struct RankingTable {
    trace: String,
    about: String,
    lines: Vec<RankingLine>,
}

#[derive(Clone, Serialize)]
struct RankingLine {
    name: String,
    is_bound: bool,
    is_ahead: bool,
    value: String,
    found: String,
    loss: String,
    ttft: String,
    best: String,
    best_setting: String,
}

#[derive(Serialize)]
struct FlipLine {
    first: String,
    second: String,
    where_first: String,
    where_second: String,
}

#[derive(Serialize)]
struct FrontTable {
    title: String,
    x: &'static str,
    y: &'static str,
    lines: Vec<[String; 4]>,
    left_out: usize,
}

#[derive(Serialize)]
struct SensitivitySection {
    sentences: Vec<String>,
    figures: Vec<Figure>,
    values: Vec<ValueTable>,
    knobs: Vec<String>,
    by_name: Vec<(String, Vec<String>)>,
    never_alone: Vec<String>,
}

#[derive(Serialize)]
struct ValueTable {
    label: String,
    lines: Vec<[String; 4]>,
    left_out: usize,
}

/// The page of a sweep as HTML. Its length is bounded whatever the sweep's.
///
/// # Errors
///
/// Where template and data do not fit: a mistake of this crate.
pub fn sweep_page(page: &SweepPage) -> Result<String, PageError> {
    let grid = Grid::new(&page.keys, &page.trials, page.reference.as_deref(), &page.bounds, page.target);
    let rankings = rankings(&grid);
    let (found, pairs) = flips(&grid, &rankings);
    let fronts = fronts(&grid, &page.fronts);
    let overall = sensitivities(&grid, None);
    let heat = heat(&grid, &overall);
    let rows = || {
        page.trials.iter().filter_map(|trial| match &trial.outcome {
            Outcome::Done(row) => Some(&**row),
            _ => None,
        })
    };
    let mut cost_models: Vec<String> = Vec::new();
    let mut versions: Vec<&str> = rows().map(|row| row.kvlab_version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    if versions.is_empty() {
        versions.push(&page.version);
    }
    let mut models: Vec<&str> = rows().map(|row| row.cost_model.as_str()).collect();
    models.sort_unstable();
    models.dedup();
    cost_models.extend(models.into_iter().map(cost_model));
    let notes = sentences::notes(page, &grid);
    let values = |knob: &crate::sweep::Knob| {
        let texts: Vec<String> = (0..knob.values.len()).map(|value| knob.value(value)).collect();
        (knob.label(), texts.join(", "))
    };
    let view = SweepView {
        style: format!("{STYLE}{ABLATION_STYLE}"),
        page: Words {
            title: &page.title,
            question: &page.question,
            notes: &notes,
            command: &page.command,
            settings: "",
        },
        answer: sentences::answer(&grid, &rankings, &found, pairs, &overall),
        kind: grid.kind,
        target: sentences::named(grid.target),
        about: grid.target.about,
        loss_about: LOSS.about,
        rankings: sections::rankings(&grid, &rankings),
        flips: sections::flips(&grid, &rankings, &found, pairs),
        fronts: sections::fronts(&grid, &fronts),
        sensitivity: knobs::sensitivity(&grid, &overall),
        heat: heat.as_ref().map(|heat| knobs::heat(&grid, heat)),
        maps: sections::maps(page),
        maps_of: &page.maps_of,
        same: &page.same,
        varied: grid.knobs.iter().map(values).collect(),
        cost_models,
        versions,
        data: sections::data(&grid, &rankings, &overall),
    };
    render("sweep.html", &view)
}
