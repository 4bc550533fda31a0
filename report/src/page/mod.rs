//! One HTML file that needs nothing else: no network, no script, no fonts, no pictures beside it.

mod figures;
mod sweep;

use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment};
use serde::Serialize;

use figures::Figure;

use crate::compare::{Ablation, Comparison, MemoryCell, MemoryTable};
use crate::metric;
use crate::row::{CellMap, Summary, TimelineRow};

pub use sweep::{SweepPage, sweep_page};

/// A page that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The template and its data do not fit: a mistake of this crate.
    #[error("cannot write the page: {0:#}")]
    Template(#[from] minijinja::Error),
}

/// What a page of results is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// Heading.
    pub title: String,
    /// The question that the experiment answers, one sentence.
    pub question: String,
    /// Policy or name of the row that the others are compared with; none for the first of the
    /// summaries.
    pub reference: Option<String>,
    /// Policies that are upper bounds: shown, but they cannot win.
    pub bounds: Vec<String>,
    /// Keys of the metrics that the table has; none for those that have something to say.
    pub columns: Vec<String>,
    /// One row per policy, setting, trace and seed.
    pub summaries: Vec<Summary>,
    /// State of the cache over time; may be empty.
    pub timeline: Vec<TimelineRow>,
    /// Times to first token per policy, or per row where rows have names, milliseconds.
    pub ttft_ms: Vec<(String, Vec<f64>)>,
    /// Times per output token, likewise.
    pub tpot_ms: Vec<(String, Vec<f64>)>,
    /// Who held which cells, one map per policy and layer class.
    pub maps: Vec<CellMap>,
    /// The fully resolved experiment.
    pub settings_toml: String,
    /// The command line that makes this page again.
    pub command: String,
    /// Sentences that a reader must know before believing the numbers.
    pub notes: Vec<String>,
}

/// What a page about a trace is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TracePage {
    /// Name of the trace.
    pub title: String,
    /// Names and values of its statistics, for people.
    pub facts: Vec<(String, String)>,
    /// Prompt lengths, tokens.
    pub prompt_tokens: Vec<f64>,
    /// Output lengths, tokens.
    pub output_tokens: Vec<f64>,
    /// Arrivals in rising order, seconds; empty if the trace has no times.
    pub arrivals_s: Vec<f64>,
    /// Requests seen so far, and the share of their prompt tokens that an earlier prompt began
    /// with, 0 to 1; empty if the trace does not say.
    pub sharing: Vec<(f64, f64)>,
    /// The command line that makes this page again.
    pub command: String,
    /// Version of kvlab.
    pub version: String,
    /// Sentences that a reader must know.
    pub notes: Vec<String>,
}

/// Rows embedded in a page as JSON, more than a kilobyte each.
const ROWS_MAX: usize = 500;

const STYLE: &str = include_str!("style.css");

/// Appended where a page has parts that need it.
const ABLATION_STYLE: &str = include_str!("ablation.css");

/// What `report.html` sees.
#[derive(Serialize)]
struct PageView<'a> {
    style: String,
    page: Words<'a>,
    winner: Vec<String>,
    verdicts: Vec<String>,
    ablation: Option<AblationView>,
    memory: Option<MemoryView>,
    kind: &'static str,
    is_named: bool,
    setting_names: Vec<&'static str>,
    headings: Vec<Heading>,
    lines: Vec<Line>,
    table_notes: Vec<String>,
    overview: Vec<Figure>,
    latencies: Vec<Figure>,
    timelines: Vec<Figure>,
    maps: Vec<Figure>,
    cost_models: Vec<String>,
    versions: Vec<&'a str>,
    data: &'a [Summary],
    rows_left_out: usize,
}

/// What `trace.html` sees.
#[derive(Serialize)]
struct TraceView<'a> {
    style: String,
    page: Words<'a>,
    facts: &'a [(String, String)],
    figures: Vec<Figure>,
    versions: Vec<&'a str>,
    data: &'a [(String, String)],
}

/// The words of a page that go into it as they are.
#[derive(Serialize)]
struct Words<'a> {
    title: &'a str,
    question: &'a str,
    notes: &'a [String],
    command: &'a str,
    settings: &'a str,
}

#[derive(Serialize)]
struct AblationView {
    overall: Vec<String>,
    figures: Vec<Figure>,
    changes: Vec<ChangeView>,
}

#[derive(Serialize)]
struct ChangeView {
    label: String,
    key: &'static str,
    word: &'static str,
    found: String,
    aside: String,
    why: String,
}

#[derive(Serialize)]
struct MemoryView {
    title: &'static str,
    headers: Vec<[String; 2]>,
    lines: Vec<Vec<Cell>>,
}

#[derive(Serialize)]
struct Cell {
    text: String,
    is_best: bool,
    is_short: bool,
}

#[derive(Serialize)]
struct Line {
    name: String,
    is_bound: bool,
    settings: Vec<String>,
    cells: Vec<Cell>,
}

#[derive(Serialize)]
struct Heading {
    title: &'static str,
    per: &'static str,
    about: &'static str,
    note: usize,
}

/// The page of an experiment as HTML.
pub fn page(page: &Page) -> Result<String, PageError> {
    let mut comparison = Comparison::new(&page.summaries).bounds(&page.bounds).columns(&page.columns);
    if let Some(reference) = &page.reference {
        comparison = comparison.reference(reference);
    }
    let metrics = comparison.shown_metrics();
    let headings: Vec<Heading> = metrics
        .iter()
        .enumerate()
        .map(|(i, m)| Heading { title: m.title, per: m.per, about: m.about, note: i + 1 })
        .collect();
    let best: Vec<Vec<usize>> = metrics.iter().map(|m| comparison.best(m)).collect();
    let lines = comparison.groups().iter().enumerate().map(|(g, group)| Line {
        name: group.name.to_owned(),
        is_bound: comparison.is_bound(group),
        settings: comparison.settings(g).into_iter().map(str::to_owned).collect(),
        cells: metrics
            .iter()
            .zip(&best)
            .map(|(metric, best)| Cell {
                text: comparison.cell(g, metric).unwrap_or_else(|| "-".to_owned()),
                is_best: best.contains(&g),
                is_short: false,
            })
            .collect(),
    });
    let lines: Vec<Line> = lines.collect();
    let mut models: Vec<String> = Vec::new();
    for row in &page.summaries {
        let model = cost_model(&row.cost_model);
        if !models.contains(&model) {
            models.push(model);
        }
    }
    let mut versions: Vec<&str> = page.summaries.iter().map(|r| r.kvlab_version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    let (ablation, memory) = (comparison.ablation(), comparison.memory());
    let mut style = STYLE.to_owned();
    if ablation.is_some() || memory.is_some() {
        style += ABLATION_STYLE;
    }
    let view = PageView {
        style,
        page: Words {
            title: &page.title,
            question: &page.question,
            notes: &page.notes,
            command: &page.command,
            settings: &page.settings_toml,
        },
        winner: comparison.winner(),
        verdicts: comparison.verdicts(),
        ablation: ablation.map(|ablation| ablation_view(&comparison, ablation)),
        memory: memory.map(memory_view),
        kind: comparison.kind(),
        is_named: comparison.is_named(),
        setting_names: comparison.setting_names(),
        headings,
        lines,
        table_notes: comparison.notes("shaded"),
        overview: figures::overview(&comparison),
        latencies: figures::latencies(page, &comparison),
        timelines: figures::timelines(page, &comparison),
        maps: figures::maps(page, &comparison),
        cost_models: models,
        versions,
        data: page.summaries.get(..ROWS_MAX).unwrap_or(&page.summaries),
        rows_left_out: page.summaries.len().saturating_sub(ROWS_MAX),
    };
    render("report.html", &view)
}

fn ablation_view(comparison: &Comparison, ablation: Ablation) -> AblationView {
    let figures = vec![figures::ablation(comparison, &ablation.changes)];
    let changes = ablation.changes.into_iter().map(|change| ChangeView {
        label: change.label,
        key: change.effect.key(),
        word: change.effect.word(),
        found: sentence(&change.found),
        aside: change.aside.join("; "),
        why: change.why.join(" "),
    });
    AblationView { overall: ablation.overall, figures, changes: changes.collect() }
}

/// The text with a capital letter.
pub(super) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

fn memory_view(memory: MemoryTable) -> MemoryView {
    let headers = memory.headers.iter().map(|header| {
        let (first, second) = header.split_once('\n').unwrap_or((header, ""));
        [first.to_owned(), second.to_owned()]
    });
    let cells = |line: Vec<MemoryCell>| {
        let cell = |c: MemoryCell| Cell { text: c.text, is_best: false, is_short: c.is_short };
        line.into_iter().map(cell).collect()
    };
    MemoryView {
        title: MemoryTable::TITLE,
        headers: headers.collect(),
        lines: memory.lines.into_iter().map(cells).collect(),
    }
}

/// The page of a trace as HTML.
pub fn trace_page(page: &TracePage) -> Result<String, PageError> {
    let view = TraceView {
        style: STYLE.to_owned(),
        page: Words {
            title: &page.title,
            question: "",
            notes: &page.notes,
            command: &page.command,
            settings: "",
        },
        facts: &page.facts,
        figures: figures::trace(page),
        versions: vec![&page.version],
        data: &page.facts,
    };
    render("trace.html", &view)
}

fn render(name: &str, view: &impl Serialize) -> Result<String, PageError> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template("base.html", include_str!("base.html"))?;
    environment.add_template("report.html", include_str!("report.html"))?;
    environment.add_template("sweep.html", include_str!("sweep.html"))?;
    environment.add_template("trace.html", include_str!("trace.html"))?;
    Ok(environment.get_template(name)?.render(Value::from(Serde(view)))?)
}

/// What a back-end of the cost model is worth, in words.
fn cost_model(name: &str) -> String {
    let worth = match name {
        "spec" => {
            "not calibrated: times follow from data sheets and are good for comparing policies, \
                   not for promising latencies"
        }
        "fitted" => "calibrated: fitted to measurements of this hardware",
        "table" => "calibrated: looked up in measurements",
        "measured" => "not a model: real time on real hardware",
        _ => "of unknown calibration",
    };
    format!("{name}: {worth}")
}

/// Names and meanings of all metrics, for a page or a help text.
pub fn definitions() -> Vec<(&'static str, &'static str)> {
    metric::all().map(|m| (m.title, m.about)).collect()
}
