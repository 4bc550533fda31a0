//! One HTML file that needs nothing else: no network, no script, no fonts, no pictures beside it.

mod figures;

use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment};
use serde::Serialize;

use figures::Figure;

use crate::compare::Comparison;
use crate::metric::{LOSS, METRICS};
use crate::row::{CellMap, Summary, TimelineRow};

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
    /// Policy that the others are compared with; none for the first of the summaries.
    pub reference: Option<String>,
    /// Policies that are upper bounds: shown, but they cannot win.
    pub bounds: Vec<String>,
    /// One row per policy, setting, trace and seed.
    pub summaries: Vec<Summary>,
    /// State of the cache over time; may be empty.
    pub timeline: Vec<TimelineRow>,
    /// Times to first token per policy, milliseconds.
    pub ttft_ms: Vec<(String, Vec<f64>)>,
    /// Times per output token per policy, milliseconds.
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

/// What `report.html` sees.
#[derive(Serialize)]
struct PageView<'a> {
    style: &'static str,
    page: Words<'a>,
    winner: Vec<String>,
    verdicts: Vec<String>,
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
    style: &'static str,
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
struct Cell {
    text: String,
    is_best: bool,
}

#[derive(Serialize)]
struct Line {
    policy: String,
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
    let mut comparison = Comparison::new(&page.summaries).bounds(&page.bounds);
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
        policy: group.policy.to_owned(),
        is_bound: comparison.is_bound(group.policy),
        settings: comparison.settings(g).into_iter().map(str::to_owned).collect(),
        cells: metrics
            .iter()
            .zip(&best)
            .map(|(metric, best)| Cell {
                text: comparison.cell(g, metric).unwrap_or_else(|| "-".to_owned()),
                is_best: best.contains(&g),
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
    let view = PageView {
        style: STYLE,
        page: Words {
            title: &page.title,
            question: &page.question,
            notes: &page.notes,
            command: &page.command,
            settings: &page.settings_toml,
        },
        winner: comparison.winner(),
        verdicts: comparison.verdicts(),
        setting_names: comparison.setting_names(),
        headings,
        lines,
        table_notes: comparison.notes("shaded"),
        overview: figures::overview(&comparison),
        latencies: figures::latencies(page, &comparison),
        timelines: figures::timelines(page, &comparison),
        maps: figures::maps(page),
        cost_models: models,
        versions,
        data: page.summaries.get(..ROWS_MAX).unwrap_or(&page.summaries),
        rows_left_out: page.summaries.len().saturating_sub(ROWS_MAX),
    };
    render("report.html", &view)
}

/// The page of a trace as HTML.
pub fn trace_page(page: &TracePage) -> Result<String, PageError> {
    let view = TraceView {
        style: STYLE,
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
    METRICS.iter().chain([&LOSS]).map(|m| (m.title, m.about)).collect()
}
