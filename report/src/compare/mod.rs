//! Policies, or rows with names, beside each other: means over seeds, paired differences, and what
//! may be said of them.

mod ablation;
mod memory;
mod why;
mod words;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::files::fields;
use crate::metric::{Metric, in_order, metric};
use crate::number::{Unit, human};
use crate::row::Summary;
use crate::stats::{self, Better, Verdict};
use crate::table::{Format, Table, TableError, Value, machine_rows, one_line};

pub use ablation::{Ablation, Change, Effect};
pub use memory::{MemoryCell, MemoryTable};
pub(crate) use words::finding;

/// What tells two settings of one policy apart: its name and how it is read from a row.
type Setting = (&'static str, fn(&Summary) -> String);

const SETTINGS: &[Setting] = &[
    ("trace", |row| row.trace.clone()),
    ("policy", |row| row.policy.clone()),
    ("model", |row| row.model.clone()),
    ("gpu", |row| row.gpu.clone()),
    ("kv_cache_type", |row| row.kv_cache_type.clone()),
    ("scheduler", |row| row.scheduler.clone()),
    ("num_ctx", |row| row.num_ctx.to_string()),
    ("num_parallel", |row| row.num_parallel.to_string()),
    ("num_batch", |row| row.num_batch.to_string()),
    ("cost_model", |row| row.cost_model.clone()),
    ("kvlab", |row| row.kvlab_version.clone()),
    ("variant", |row| row.variant.clone()),
    ("cells", |row| row.cells.clone()),
];

/// `cells` may follow from the policy, so a reference with other cells is still comparable.
const CELLS: usize = SETTINGS.len() - 1;

/// The trace that was replayed.
const TRACE: usize = 0;

/// Where rows have no names the policy is their name, and no setting.
const POLICY: usize = 1;

/// The rows of one policy, or of one row of a scenario, under one setting, one per seed.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// Name of the row of the scenario; the policy spec where rows have no names.
    pub name: &'a str,
    /// Policy spec.
    pub policy: &'a str,
    /// The name, followed by the settings that differ between groups (of this name, where rows
    /// have names).
    pub label: String,
    /// The label without the trace, for sentences that have named it.
    on_trace: String,
    settings: Vec<String>,
    rows: Vec<&'a Summary>,
}

impl<'a> Group<'a> {
    /// The rows in order of their seeds; a seed that was given twice counts once, the first time.
    pub fn rows(&self) -> &[&'a Summary] {
        &self.rows
    }

    /// The values of a metric, in the metric's unit, over the seeds that have one.
    pub fn samples(&self, metric: &Metric) -> Vec<f64> {
        self.rows.iter().filter_map(|row| metric.value(row)).collect()
    }

    /// Mean of a metric and, where seeds differ, half the width of its 95 % interval.
    pub fn estimate(&self, metric: &Metric) -> Option<(f64, Option<f64>)> {
        let samples = self.samples(metric);
        let mean = stats::mean(&samples)?;
        let half_width = stats::interval(&samples).map(|i| i.half_width).filter(|w| *w > 0.0);
        Some((mean, half_width))
    }

    /// Whether the model could be loaded in every run.
    pub(crate) fn is_loaded(&self) -> bool {
        self.rows.iter().all(|row| row.load_error.is_empty())
    }

    /// The values of a metric for the seeds that both groups have.
    fn pairs(&self, other: &Group, metric: &Metric) -> (Vec<f64>, Vec<f64>) {
        let both = self.rows.iter().filter_map(|a| {
            let b = other.rows.iter().find(|b| b.seed == a.seed)?;
            Some((metric.value(a)?, metric.value(b)?))
        });
        both.unzip()
    }
}

/// Summaries grouped by name and setting: the name is the row of the scenario where rows have
/// names, else the policy. The first name is the reference.
#[derive(Clone, Debug)]
pub struct Comparison<'a> {
    rows: &'a [Summary],
    is_named: bool,
    groups: Vec<Group<'a>>,
    names: Vec<&'a str>,
    reference: Option<&'a str>,
    bounds: Vec<String>,
    /// The metrics that were asked for; none: those that are somewhere neither missing nor zero.
    columns: Vec<&'static Metric>,
    varied: Vec<usize>,
}

impl<'a> Comparison<'a> {
    /// Groups the rows; names and settings stay in the order in which they first appear.
    pub fn new(rows: &'a [Summary]) -> Comparison<'a> {
        let is_named = rows.iter().any(|row| !row.row.is_empty());
        let mut groups: Vec<Group> = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        let mut found: BTreeMap<(&str, Vec<String>), usize> = BTreeMap::new();
        for row in rows {
            let mut settings: Vec<String> = SETTINGS.iter().map(|(_, read)| read(row)).collect();
            if !is_named {
                settings[POLICY].clear();
            }
            if !names.contains(&row.name()) {
                names.push(row.name());
            }
            let group = *found.entry((row.name(), settings.clone())).or_insert_with(|| {
                let (name, label) = (row.name(), row.name().to_owned());
                let on_trace = label.clone();
                groups.push(Group { name, policy: &row.policy, label, on_trace, settings, rows: Vec::new() });
                groups.len() - 1
            });
            let rows = &mut groups[group].rows;
            if !rows.iter().any(|earlier| earlier.seed == row.seed) {
                rows.push(row);
            }
        }
        let differing = |among: &[&Group]| -> Vec<usize> {
            let differs = |s: &usize| among.iter().any(|g| g.settings[*s] != among[0].settings[*s]);
            (0..SETTINGS.len()).filter(differs).collect()
        };
        let varied = differing(&groups.iter().collect::<Vec<_>>());
        let told: Vec<Vec<usize>> = groups
            .iter()
            .map(|group| match is_named {
                // A row's name stands for its settings, unless several settings share it.
                true => differing(&groups.iter().filter(|g| g.name == group.name).collect::<Vec<_>>()),
                false => varied.clone(),
            })
            .collect();
        for (group, told) in groups.iter_mut().zip(told) {
            group.rows.sort_by_key(|row| row.seed);
            // The cells follow from the other settings: naming them too would be noise.
            for &s in told.iter().filter(|s| **s != CELLS || told == [CELLS]) {
                let setting = format!(", {} {}", SETTINGS[s].0, group.settings[s]);
                group.label += &setting;
                if s != TRACE {
                    group.on_trace += &setting;
                }
            }
        }
        let reference = names.first().copied();
        let (bounds, columns) = (Vec::new(), Vec::new());
        Comparison { rows, is_named, groups, names, reference, bounds, columns, varied }
    }

    /// Compares with this name, or with the first row of this policy, instead of the first; a name
    /// that no row has is ignored.
    pub fn reference(mut self, name: &str) -> Comparison<'a> {
        let by_name = self.names.iter().find(|n| **n == name).copied();
        let by_policy = || self.groups.iter().find(|g| g.policy == name).map(|g| g.name);
        self.reference = by_name.or_else(by_policy).or(self.reference);
        self
    }

    /// Names the policies that are upper bounds: they are shown but can neither win nor be best.
    pub fn bounds(mut self, policies: &[String]) -> Comparison<'a> {
        self.bounds = policies.to_vec();
        self
    }

    /// Shows these metrics, in this order, and speaks of them; a key that no metric has is ignored.
    pub fn columns(mut self, keys: &[String]) -> Comparison<'a> {
        self.columns = keys.iter().filter_map(|key| metric(key)).collect();
        self
    }

    /// The groups in the order of the rows.
    pub fn groups(&self) -> &[Group<'a>] {
        &self.groups
    }

    /// The names of the rows, or the policies where rows have none, in the order of the rows.
    pub fn names(&self) -> &[&'a str] {
        &self.names
    }

    /// Whether rows have names: then a row is known by its name, and its policy is a setting.
    pub fn is_named(&self) -> bool {
        self.is_named
    }

    /// What the names are, for the head of their column.
    pub fn kind(&self) -> &'static str {
        if self.is_named { "row" } else { "policy" }
    }

    /// Whether the policy or the name of this group was named as an upper bound.
    pub fn is_bound(&self, group: &Group) -> bool {
        self.bounds.iter().any(|bound| bound == group.policy || bound == group.name)
    }

    /// The comparison as text: full raw rows in CSV, JSON and JSON lines; in [`Format::Table`] and
    /// [`Format::Md`] one line per group, the memory per device where there is something to say,
    /// notes, and a sentence per group. Tables wider than `width` characters are folded.
    pub fn render(&self, format: Format, width: Option<usize>) -> Result<String, TableError> {
        if !matches!(format, Format::Table | Format::Md) {
            return machine_rows(self.rows, fields::<Summary>(), format);
        }
        let (mark, sign) = if format == Format::Md { (("**", "**"), "bold") } else { (("*", ""), "*") };
        let mut table = self.table(mark);
        if let Some(width) = width {
            // A name stands for its settings: once is enough for them.
            table.fold(width, if self.is_named { 1 } else { 1 + self.varied.len() });
        }
        let mut out = table.render(format)?;
        let bullet = if format == Format::Md { "- " } else { "" };
        if let Some(memory) = self.memory() {
            let mut table = memory.table();
            if let Some(width) = width {
                table.fold(width, 1);
            }
            out += &format!("\n{}\n\n{}", MemoryTable::TITLE, table.render(format)?);
            add_lines(&mut out, &memory.load_errors(), bullet);
        }
        let said = self.ablation().map_or_else(|| self.verdicts(), |ablation| ablation.lines());
        add_lines(&mut out, &self.notes(sign), bullet);
        add_lines(&mut out, &said, bullet);
        Ok(out)
    }

    /// The metrics that have a column: those that were asked for, else those that are somewhere neither
    /// missing nor zero.
    pub fn shown_metrics(&self) -> Vec<&'static Metric> {
        if !self.columns.is_empty() {
            return self.columns.clone();
        }
        let is_shown = |m: &&Metric| m.key == "completed" || self.largest(m).is_some_and(|x| x != 0.0);
        in_order(self.is_named).into_iter().filter(is_shown).collect()
    }

    fn largest(&self, metric: &Metric) -> Option<f64> {
        let sizes = self.groups.iter().flat_map(|g| g.samples(metric)).map(f64::abs);
        sizes.reduce(f64::max)
    }

    /// One row per group, the best of each metric between the two marks.
    fn table(&self, mark: (&str, &str)) -> Table {
        let metrics = self.shown_metrics();
        let settings = self.varied.iter().map(|s| SETTINGS[*s].0.to_owned());
        let titles = metrics.iter().map(|m| match m.per {
            "" => m.title.replacen(' ', "\n", 1),
            per => format!("{}\n{per}", m.title),
        });
        let mut table = Table::new([self.kind().to_owned()].into_iter().chain(self.beside(settings, titles)));
        let best: Vec<Vec<usize>> = metrics.iter().map(|metric| self.best(metric)).collect();
        for (g, group) in self.groups.iter().enumerate() {
            let bound = if self.is_bound(group) { " (bound)" } else { "" };
            let name = Value::Text(format!("{}{bound}", group.name));
            let settings = self.varied.iter().map(|s| Value::Text(group.settings[*s].clone()));
            let cells = metrics.iter().zip(&best).map(|(metric, best)| match self.cell(g, metric) {
                Some(text) if best.contains(&g) => Value::Figures(format!("{}{text}{}", mark.0, mark.1)),
                Some(text) => Value::Figures(text),
                None => Value::Empty,
            });
            table.row([name].into_iter().chain(self.beside(settings, cells)));
        }
        table
    }

    /// Settings before metrics; where rows have names, which say what was set, behind them.
    fn beside<T>(
        &self,
        settings: impl Iterator<Item = T>,
        metrics: impl Iterator<Item = T>,
    ) -> impl Iterator<Item = T> {
        let (settings, metrics): (Vec<T>, Vec<T>) = (settings.collect(), metrics.collect());
        let (first, second) = if self.is_named { (metrics, settings) } else { (settings, metrics) };
        first.into_iter().chain(second)
    }

    /// Names of the settings that differ between groups, in the order of [`Comparison::settings`].
    pub fn setting_names(&self) -> Vec<&'static str> {
        self.varied.iter().map(|s| SETTINGS[*s].0).collect()
    }

    /// The settings of a group that differ between groups.
    pub fn settings(&self, group: usize) -> Vec<&str> {
        let settings = self.groups.get(group).map(|g| &g.settings);
        self.varied.iter().filter_map(|s| settings?.get(*s)).map(String::as_str).collect()
    }

    /// A metric of a group for people; none if it was not measured.
    pub fn cell(&self, group: usize, metric: &Metric) -> Option<String> {
        let g = self.groups.get(group)?;
        let mut text = metric.number(g.estimate(metric)?);
        if metric.key == "completed" {
            let requests: Vec<f64> = g.rows.iter().map(|row| row.requests as f64).collect();
            let requests = stats::mean(&requests).unwrap_or_default();
            text = format!("{text}/{}", human(requests, Unit::Count));
        }
        Some(text)
    }

    /// The groups that are best in a metric or not shown to differ from the best, per trace. None
    /// are where that would be all.
    pub fn best(&self, metric: &Metric) -> Vec<usize> {
        let mut best = Vec::new();
        for rivals in self.rivals() {
            let ahead = self.ahead(&rivals, metric);
            if ahead.len() < rivals.len() {
                best.extend(ahead);
            }
        }
        best
    }

    /// Groups that may be compared for a prize: same trace, no upper bounds, and a server that
    /// starts.
    fn rivals(&self) -> Vec<Vec<usize>> {
        let mut traces: Vec<(&str, Vec<usize>)> = Vec::new();
        for (g, group) in self.groups.iter().enumerate() {
            if self.is_bound(group) || !group.is_loaded() {
                continue;
            }
            let trace = group.settings[TRACE].as_str();
            match traces.iter_mut().find(|(name, _)| *name == trace) {
                Some((_, groups)) => groups.push(g),
                None => traces.push((trace, vec![g])),
            }
        }
        traces.into_iter().map(|(_, groups)| groups).collect()
    }

    /// Best mean first, then those not shown to differ from it.
    fn ahead(&self, rivals: &[usize], metric: &Metric) -> Vec<usize> {
        let Some(better) = metric.better else {
            return Vec::new();
        };
        let ranked = self.ranked(rivals, metric, better);
        let Some(&(first, first_mean)) = ranked.first() else {
            return Vec::new();
        };
        let is_ahead = |&&(g, mean): &&(usize, f64)| {
            let (a, b) = self.groups[g].pairs(&self.groups[first], metric);
            match stats::paired_difference(&a, &b) {
                Some(difference) => difference.verdict(better) == Verdict::NoDifferenceShown,
                // Seeds without partners in the other group show nothing either.
                None => mean == first_mean || self.groups[g].rows.len() > 1,
            }
        };
        ranked.iter().filter(is_ahead).map(|(g, _)| *g).collect()
    }

    fn ranked(&self, rivals: &[usize], metric: &Metric, better: Better) -> Vec<(usize, f64)> {
        let mean = |g: &usize| Some((*g, self.groups[*g].estimate(metric)?.0));
        let mut ranked: Vec<(usize, f64)> = rivals.iter().filter_map(mean).collect();
        ranked.sort_by(|a, b| {
            let rising = a.1.partial_cmp(&b.1).unwrap_or(Ordering::Equal);
            if better == Better::Higher { rising.reverse() } else { rising }
        });
        ranked
    }

    /// What is the same everywhere, what was left out of the table, and what its marks mean;
    /// `sign` says how the best are marked.
    pub fn notes(&self, sign: &str) -> Vec<String> {
        let Some(first) = self.groups.first() else {
            return vec!["no results".to_owned()];
        };
        let constant = (0..SETTINGS.len()).filter(|s| !self.varied.contains(s));
        let constant = constant.filter(|s| !first.settings[*s].is_empty());
        let mut same: Vec<String> =
            constant.map(|s| format!("{} {}", SETTINGS[s].0, first.settings[s])).collect();
        let seeds = self.groups.iter().map(|g| g.rows.len());
        let (fewest, most) = (seeds.clone().min().unwrap_or(0), seeds.max().unwrap_or(0));
        same.push(match (fewest, most) {
            (1, 1) => "one run each".to_owned(),
            (a, b) if a == b => format!("{a} seeds"),
            (a, b) => format!("{a} to {b} seeds"),
        });
        let mut notes = vec![same.join("; ")];
        let names = |absent: &dyn Fn(Option<f64>) -> bool| {
            let in_order = if self.columns.is_empty() { in_order(self.is_named) } else { Vec::new() };
            let told = in_order.into_iter().filter(|m| self.is_named || !m.is_seldom());
            let absent = told.filter(|m| m.key != "completed" && absent(self.largest(m)));
            absent.map(|m| m.title).collect::<Vec<_>>().join(", ")
        };
        let (zero, missing) = (names(&|x| x == Some(0.0)), names(&|x| x.is_none()));
        if !zero.is_empty() {
            notes.push(format!("zero everywhere: {zero}"));
        }
        if !missing.is_empty() {
            notes.push(format!("not measured: {missing}"));
        }
        let shown = self.shown_metrics();
        let mut estimates = self.groups.iter().flat_map(|g| shown.iter().map(|m| g.estimate(m)));
        if estimates.any(|e| e.is_some_and(|(_, half_width)| half_width.is_some())) {
            notes.push("±: half the 95 % interval of the mean over seeds (Student's t)".to_owned());
        } else if most > 1 {
            notes.push("every seed gave the same result: the workload does not vary".to_owned());
        }
        if shown.iter().any(|m| !self.best(m).is_empty()) {
            let or = if most > 1 { ", or not shown to differ from the best" } else { "" };
            notes.push(format!("{sign}: best of the column{or}"));
        }
        notes
    }
}

/// Appends a block of lines behind an empty one; nothing where there are none.
fn add_lines(out: &mut String, lines: &[String], bullet: &str) {
    if !lines.is_empty() {
        out.push('\n');
    }
    for line in lines {
        *out += &format!("{bullet}{}\n", one_line(line));
    }
}
