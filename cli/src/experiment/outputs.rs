//! What a case leaves behind: request rows, timeline, maps.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use policies::make_policy;
use policies::scheduler::{Limits, LogLine, Scheduler};
use report::files::TemporaryFile;
use report::{CellMap, Held, MapColumn, RequestRow, TimelineRow};
use sim::sample::{RangeState, Sample, Sampler};
use sim::{Observer, StepSummary};
use traces::{Outcome, Quantiles, Served};

use super::Setting;
use crate::trouble::{Trouble, usage};

/// Looks on while a case runs: samples, and one row per request.
pub(super) struct Watch {
    pub sampler: Sampler,
    pub sink: Option<RequestSink>,
    pub log: Option<LogSink>,
}

impl Observer for Watch {
    fn served(&mut self, served: &Served) {
        if let Some(sink) = &mut self.sink {
            sink.write(served);
        }
    }

    fn stepped(&mut self, now_ns: u64, scheduler: &mut dyn Scheduler, step: StepSummary<'_>) {
        if let Some(log) = &mut self.log {
            log.write(now_ns, scheduler);
        }
        self.sampler.stepped(now_ns, scheduler, step);
    }
}

/// Writes what the server being simulated would have written, the start of the trace taken for the
/// beginning of 1970.
pub(super) struct LogSink {
    file: TemporaryFile,
    lines: Vec<LogLine>,
    /// The first thing that went wrong; told by [`LogSink::finish`].
    failure: Option<std::io::Error>,
}

impl LogSink {
    pub fn create(path: &Path, setting: &Setting) -> Result<Self, Trouble> {
        let mut file = TemporaryFile::new(path).map_err(usage)?;
        let Limits { num_ctx, num_parallel, num_batch, .. } = setting.seat.limits;
        let context = u64::from(num_ctx) * u64::from(num_parallel);
        writeln!(
            file,
            "time={} level=INFO msg=\"starting llama server\" cmd=\"ollama runner --ollama-engine --ctx-size \
             {context} --batch-size {num_batch} --parallel {num_parallel}\"",
            jiff::Timestamp::UNIX_EPOCH
        )?;
        if let Some(error) = setting.seat.load_error() {
            let time = jiff::Timestamp::UNIX_EPOCH;
            writeln!(file, "time={time} level=ERROR msg=\"error loading llama server\" error={error:?}")?;
        }
        Ok(LogSink { file, lines: Vec::new(), failure: None })
    }

    pub fn finish(self) -> Result<(), Trouble> {
        match self.failure {
            Some(error) => Err(error.into()),
            None => Ok(self.file.finish()?),
        }
    }

    fn write(&mut self, now_ns: u64, scheduler: &mut dyn Scheduler) {
        scheduler.take_log(&mut self.lines);
        for line in self.lines.drain(..) {
            let since = jiff::SignedDuration::from_nanos(now_ns.min(i64::MAX as u64) as i64);
            let time = jiff::Timestamp::UNIX_EPOCH.saturating_add(since).unwrap_or(jiff::Timestamp::MAX);
            let written = match line.level() {
                Some(_) => writeln!(self.file, "time={time} {line}"),
                None => writeln!(self.file, "{line}"),
            };
            if let Err(error) = written {
                self.failure.get_or_insert(error);
            }
        }
    }
}

/// Writes request rows without a header, to be joined later.
pub(super) struct RequestSink {
    writer: csv::Writer<BufWriter<File>>,
    row: String,
    policy: String,
    seed: u64,
    /// The first thing that went wrong; told by [`RequestSink::finish`].
    failure: Option<csv::Error>,
}

impl RequestSink {
    pub fn create(path: &Path, setting: &Setting, seed: u64) -> Result<Self, Trouble> {
        let file = BufWriter::with_capacity(1 << 16, File::create(path)?);
        let writer = csv::WriterBuilder::new().has_headers(false).from_writer(file);
        let (row, policy) = (setting.row.clone(), setting.policy.clone());
        Ok(RequestSink { writer, row, policy, seed, failure: None })
    }

    pub fn finish(mut self) -> Result<(), Trouble> {
        if let Some(error) = self.failure.take() {
            return Err(error.into());
        }
        let file = self.writer.into_inner().map_err(|error| error.into_error())?;
        file.into_inner().map_err(|error| error.into_error())?;
        Ok(())
    }

    fn write(&mut self, served: &Served) {
        let ms = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e6);
        let outcome = match served.outcome {
            Outcome::Completed => "completed",
            Outcome::Failed => "failed",
            Outcome::Rejected => "rejected",
            Outcome::Unfinished => "unfinished",
        };
        let written = self.writer.serialize(RequestRow {
            row: self.row.clone(),
            policy: self.policy.clone(),
            seed: self.seed,
            id: served.id,
            outcome: outcome.to_owned(),
            arrival_s: served.arrival_ns as f64 / 1e9,
            ttft_ms: ms(served.ttft_ns()),
            tpot_ms: ms(served.tpot_ns()),
            latency_ms: ms(served.latency_ns()),
            prompt_tokens: served.prompt_tokens,
            output_tokens: served.output_tokens,
            truncated_tokens: served.truncated_tokens,
            shifts: served.shifts,
            preemptions: served.preemptions,
            cached_tokens: served.cached_tokens,
        });
        if let Err(error) = written {
            self.failure.get_or_insert(error);
        }
    }
}

/// Joins parts into `requests.csv`.
pub fn join_requests(dir: &Path, parts: &[PathBuf]) -> Result<(), Trouble> {
    let mut joined = TemporaryFile::new(&dir.join("requests.csv"))?;
    let mut header = csv::WriterBuilder::new().from_writer(Vec::new());
    header.write_record(REQUEST_COLUMNS)?;
    joined.write_all(&header.into_inner().map_err(|error| error.into_error())?)?;
    for part in parts {
        std::io::copy(&mut File::open(part)?, &mut joined)?;
    }
    joined.finish()?;
    Ok(())
}

/// Columns of [`RequestRow`], in order.
const REQUEST_COLUMNS: [&str; 15] = [
    "row",
    "policy",
    "seed",
    "id",
    "outcome",
    "arrival_s",
    "ttft_ms",
    "tpot_ms",
    "latency_ms",
    "prompt_tokens",
    "output_tokens",
    "truncated_tokens",
    "shifts",
    "preemptions",
    "cached_tokens",
];

/// Up to 401 evenly spaced quantiles in milliseconds.
pub(super) fn spaced(quantiles: &Quantiles) -> Vec<f64> {
    quantiles.spaced(401).into_iter().map(|ns| ns as f64 / 1e6).collect()
}

pub(super) fn timeline(setting: &Setting, seed: u64, samples: &[Sample]) -> Vec<TimelineRow> {
    let mut rows = Vec::new();
    for sample in samples {
        for (class, state) in setting.seat.deployment.model.classes.iter().zip(&sample.classes) {
            // What an idle slot keeps is content without a holder, as in the summary.
            let kept = state.kept.min(u64::from(u32::MAX)) as u32;
            rows.push(TimelineRow {
                row: setting.row.clone(),
                policy: setting.policy.clone(),
                seed,
                time_s: sample.time_ns as f64 / 1e9,
                class: class.name.clone(),
                cells: state.usage.cells,
                live_cells: state.live.min(u64::from(u32::MAX)) as u32,
                held_cells: state.usage.held.saturating_sub(kept),
                cached_cells: state.usage.cached + kept.min(state.usage.held),
                free_cells: state.usage.free,
                placeable_cells: state.usage.placeable,
                high_water_cells: state.shape.high_water,
                sequence_runs: state.runs,
                sequences: sample.sequences,
                waiting: sample.waiting,
            });
        }
    }
    rows
}

/// Cells of each class as the policy numbers them: it may have made others of its memory.
fn addresses(setting: &Setting) -> Vec<u32> {
    let geometry = setting.geometry();
    let geometry =
        make_policy(&setting.policy, &geometry).map_or(geometry, |policy| policy.geometry().clone());
    geometry.classes.iter().map(|class| class.cells).collect()
}

/// How far up and in how many pieces what sequences hold lies, over the moments at which there are any: the
/// share of the bytes up to the highest cell in use, and the runs of a sequence; none without such a moment.
pub(super) fn spread(setting: &Setting, samples: &[Sample]) -> (Option<f64>, Option<f64>) {
    let bytes = setting.seat.deployment.model.kv_bytes_per_cell(setting.seat.kv);
    let cells = addresses(setting);
    let busy: Vec<&Sample> = samples.iter().filter(|sample| sample.sequences > 0).collect();
    let mean = |of: &dyn Fn(&Sample) -> f64| {
        (!busy.is_empty()).then(|| busy.iter().map(|sample| of(sample)).sum::<f64>() / busy.len() as f64)
    };
    let high_water = |sample: &Sample| {
        let (mut used, mut all) = (0.0, 0.0);
        for ((state, &cells), &bytes) in sample.classes.iter().zip(&cells).zip(&bytes) {
            used += f64::from(state.shape.high_water) * bytes as f64;
            all += f64::from(cells) * bytes as f64;
        }
        used / all
    };
    let runs = |sample: &Sample| {
        let runs: f64 = sample.classes.iter().map(|state| f64::from(state.runs)).sum();
        runs / (f64::from(sample.sequences) * sample.classes.len() as f64)
    };
    (mean(&high_water), mean(&runs))
}

/// Maps of all classes from samples that were taken with so many ranges.
pub(super) fn maps(setting: &Setting, samples: &[Sample], ranges: u32) -> Vec<CellMap> {
    let held = |state: &RangeState| match *state {
        RangeState::Free => Held::Free,
        RangeState::Cached => Held::Cached,
        RangeState::Live(request) => Held::Live(request),
        RangeState::Wasted(request) => Held::Wasted(request),
        RangeState::Foreign(request) => Held::Foreign(request),
    };
    let cells = addresses(setting);
    let classes = setting.seat.deployment.model.classes.iter().zip(cells).enumerate();
    let map = |(index, (class, cells)): (usize, (&sim::model::ModelClass, u32))| CellMap {
        row: setting.row.clone(),
        policy: setting.policy.clone(),
        class: class.name.clone(),
        cells,
        rows: ranges.min(cells),
        columns: samples
            .iter()
            .map(|sample| MapColumn {
                time_ns: sample.time_ns,
                ranges: sample.map[index].iter().map(held).collect(),
            })
            .collect(),
    };
    classes.map(map).collect()
}
