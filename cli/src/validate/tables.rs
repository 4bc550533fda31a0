//! The tables of `validate`, and what they amount to in words.

use report::number::Unit;
use report::table::{Format, Table, Value};
use sim::cost::linear::Kind;
use sim::cost::{CostModel, Prefill};

use super::Case;
use super::numbers::{Compared, METRICS, RANKED, Verdict, differ};
use crate::tables::terminal_width;
use crate::trouble::Trouble;

/// Measured beside predicted, one row per case and number.
pub fn numbers(cases: &[Case]) -> Table {
    let columns = [
        "trace",
        "policy",
        "scheduler",
        "number",
        "measured",
        "least",
        "most",
        "±",
        "predicted",
        "low",
        "high",
        "error",
        "gate",
    ];
    let mut table = Table::new(columns);
    for case in cases {
        for (metric, number) in METRICS.iter().zip(&case.numbers) {
            table.row([
                case.trace.as_str().into(),
                case.policy.as_str().into(),
                case.scheduler.into(),
                metric.name.into(),
                plain(number.measured),
                plain(number.range().0),
                plain(number.range().1),
                share(number.half_width()),
                plain(number.predicted),
                number.interval.map_or(Value::Empty, |(low, _)| plain(low)),
                number.interval.map_or(Value::Empty, |(_, high)| plain(high)),
                share(number.error()),
                gate(metric.gate, number),
            ]);
        }
    }
    table
}

fn share(number: Option<f64>) -> Value {
    number.map_or(Value::Empty, |number| Value::Number(number, Unit::Share))
}

fn plain(number: f64) -> Value {
    if number.is_finite() { Value::Number(number, Unit::Plain) } else { Value::Empty }
}

fn gate(gate: Option<f64>, number: &Compared) -> Value {
    let Some(gate) = gate else { return Value::Text(String::new()) };
    let percent = gate * 100.0;
    Value::Text(match number.keeps(gate) {
        Verdict::Pass => format!("pass ({percent} %)"),
        Verdict::Fail => format!("fail ({percent} %)"),
        Verdict::Unsure => format!("unsure ({percent} %)"),
        Verdict::Nothing => "nothing measured".to_owned(),
    })
}

/// Errors apart, one row per case.
pub fn errors(cases: &[Case]) -> Table {
    let kinds = Kind::ALL.map(|kind| format!("{} steps, mean error", kind.name()));
    let head = ["trace", "policy", "engine's steps priced"].map(str::to_owned).into_iter().chain(kinds);
    let tail = ["lock-step", "both: latency", "corrupted steps", "strange requests", "requests lost"];
    let mut table = Table::new(head.chain(tail.map(str::to_owned)));
    for case in cases {
        let lock_step = if case.unequal.is_some() { "NOT EQUAL" } else { "exact" };
        let head = [case.trace.as_str().into(), case.policy.as_str().into(), share(Some(case.time.total))];
        let kinds = case.time.of_kind.iter().map(|(_, error)| share(*error));
        let tail = [
            lock_step.into(),
            share(case.numbers[RANKED[1].0].error()),
            case.corrupted_steps.into(),
            case.strange.into(),
            case.lost.into(),
        ];
        table.row(head.into_iter().chain(kinds).chain(tail));
    }
    table
}

/// Every step that was executed, with its price.
pub fn steps(cases: &[Case]) -> Table {
    let columns = [
        "trace",
        "policy",
        "run",
        "step",
        "kind",
        "tokens",
        "sequences",
        "samples",
        "decode_reads",
        "prefills",
        "walked",
        "step_ns",
        "moves_ns",
        "predicted_ns",
    ];
    let mut table = Table::new(columns);
    for case in cases {
        for (run, measured) in case.runs.iter().enumerate() {
            for (number, step) in measured.steps.iter().enumerate() {
                table.row([
                    case.trace.as_str().into(),
                    case.policy.as_str().into(),
                    (run as u64).into(),
                    (number as u64).into(),
                    Kind::of(&step.work).name().into(),
                    step.work.tokens.into(),
                    step.work.sequences.into(),
                    step.work.samples.into(),
                    joined(&step.work.decode_reads).into(),
                    pieces(&step.work.prefills).into(),
                    joined(&step.work.walked).into(),
                    step.step_ns.into(),
                    step.moves_ns.into(),
                    case.cost.step_ns(&step.work).into(),
                ]);
            }
        }
    }
    table
}

/// Numbers of the layer classes, between semicolons.
fn joined(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(";")
}

/// Pieces of prompts: tokens before them, a plus, and their own.
fn pieces(prefills: &[Prefill]) -> String {
    prefills.iter().map(|piece| format!("{}+{}", piece.context, piece.tokens)).collect::<Vec<_>>().join(";")
}

/// What is printed: for people both tables and the verdicts, for programs the numbers.
pub fn text(cases: &[Case], format: Format) -> Result<String, Trouble> {
    if !matches!(format, Format::Table | Format::Md) {
        return Ok(numbers(cases).render(format)?);
    }
    let render = |mut table: Table| -> Result<String, Trouble> {
        if let (Format::Table, Some(width)) = (format, terminal_width()) {
            table.fold(width, 2);
        }
        Ok(table.render(format)?)
    };
    let mut text = format!("{}\n{}\n", render(numbers(cases))?, render(errors(cases))?);
    for case in cases {
        let steps: usize = case.runs.iter().map(|run| run.steps.len()).sum();
        let (trace, policy) = (&case.trace, &case.policy);
        text += &match &case.unequal {
            None => format!(
                "{trace}, {policy}: exact in lock-step: {steps} steps, the same batches, cells, events and request times.\n"
            ),
            Some(what) => format!("{trace}, {policy}: NOT EQUAL in lock-step: {what}\n"),
        };
    }
    let mut traces: Vec<&str> = cases.iter().map(|case| case.trace.as_str()).collect();
    traces.dedup();
    for trace in traces {
        let of_trace: Vec<&Case> = cases.iter().filter(|case| case.trace == trace).collect();
        for (metric, more_is_better) in RANKED {
            text += &order(trace, &of_trace, metric, more_is_better);
        }
    }
    Ok(text)
}

/// Policies in the measured order, and whether the predicted one agrees.
fn order(trace: &str, cases: &[&Case], metric: usize, more_is_better: bool) -> String {
    if cases.len() < 2 {
        return String::new();
    }
    let is_better = |a: f64, b: f64| if more_is_better { a > b } else { a < b };
    let (mut wrong, mut alike) = (Vec::new(), Vec::new());
    for (at, one) in cases.iter().enumerate() {
        for other in &cases[at + 1..] {
            let (a, b) = (&one.numbers[metric], &other.numbers[metric]);
            let pair = format!("{} and {}", one.policy, other.policy);
            if !differ(a, b) {
                alike.push(pair);
            } else if is_better(a.measured, b.measured) != is_better(a.predicted, b.predicted) {
                wrong.push(pair);
            }
        }
    }
    let mut ranked = cases.to_vec();
    ranked.sort_by(|a, b| {
        let (a, b) = (a.numbers[metric].measured, b.numbers[metric].measured);
        if more_is_better { b.total_cmp(&a) } else { a.total_cmp(&b) }
    });
    let names: Vec<&str> = ranked.iter().map(|case| case.policy.as_str()).collect();
    let mut text = format!("{trace}, by {}, measured: {}.", METRICS[metric].name, names.join(", "));
    text += &match (wrong.is_empty(), alike.len() == cases.len() * (cases.len() - 1) / 2) {
        (_, true) => String::new(),
        (true, false) => " The predicted order agrees.".to_owned(),
        (false, _) => format!(" The predicted order differs: {}.", wrong.join("; ")),
    };
    if !alike.is_empty() {
        text += &format!(" No difference measured: {}.", alike.join("; "));
    }
    if cases.iter().any(|case| case.runs.len() == 1) {
        text += " One run each: use --repeats to see what differs by chance.";
    }
    text + "\n"
}
