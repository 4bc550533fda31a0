//! What `kvlab calibrate` prints.

use engine::measure::Measurements;
use report::table::{Format, Table, Value};
use sim::cost::linear::{Calibration, Errors, Kind};

use crate::trouble::Trouble;

/// For people all three tables, for programs the points.
pub fn text(calibration: &Calibration, words: &[String], format: Format) -> Result<String, Trouble> {
    let points = points(calibration, words).render(format)?;
    if !matches!(format, Format::Table | Format::Md) {
        return Ok(points);
    }
    let coefficients = coefficients(calibration).render(format)?;
    let errors = errors(calibration).render(format)?;
    Ok(format!("{points}\n{coefficients}\n{errors}"))
}

fn points(calibration: &Calibration, words: &[String]) -> Table {
    let headers =
        ["kind", "step", "measured_ms", "spread_percent", "predicted_ms", "error_percent", "weight", "role"];
    let mut table = Table::new(headers);
    for (point, words) in calibration.point.iter().zip(words) {
        table.row([
            Value::from(point.kind.name()),
            Value::from(words.as_str()),
            rounded(point.ns / 1e6),
            percent(point.spread),
            rounded(point.predicted_ns / 1e6),
            percent(point.error()),
            rounded(point.weight),
            Value::from(if point.held_out { "held out" } else { "fit" }),
        ]);
    }
    table
}

fn coefficients(calibration: &Calibration) -> Table {
    let mut table = Table::new(["time of one", "ns", "low_ns", "high_ns"]);
    for coefficient in &calibration.coefficient {
        table.row([
            Value::from(coefficient.name.as_str()),
            rounded(coefficient.ns),
            rounded(coefficient.low_ns),
            rounded(coefficient.high_ns),
        ]);
    }
    table
}

fn errors(calibration: &Calibration) -> Table {
    let headers = ["kind", "held_out_percent", "cross_validated_percent", "gate_percent", "verdict"];
    let mut table = Table::new(headers);
    for kind in Kind::ALL {
        let held_out = calibration.held_out.of(kind);
        let maybe = |share: Option<f64>| share.map_or(Value::from(""), percent);
        let verdict = match (held_out, Errors::gate(kind)) {
            (Some(error), Some(gate)) if error <= gate => "met",
            (Some(_), Some(_)) => "not met",
            _ => "",
        };
        table.row([
            Value::from(kind.name()),
            maybe(held_out),
            maybe(calibration.cross_validated.of(kind)),
            maybe(Errors::gate(kind)),
            Value::from(verdict),
        ]);
    }
    table
}

/// One sentence on what was measured, and one on how quiet the machine was.
pub fn summary(calibration: &Calibration, found: &Measurements) -> String {
    let Calibration { model, device, kv, rounds, noise, drift, .. } = calibration;
    let mut text = format!(
        "{} with {} cache on {device}: {} steps, {rounds} rounds, {} runs; spread {:.1} %, drift of rounds {:.1} %",
        model.name,
        kv.name(),
        calibration.point.len(),
        found.timed,
        noise * 100.0,
        drift * 100.0,
    );
    let disturbed = f64::from(found.disturbed) / f64::from(found.timed.max(1));
    if disturbed > 0.1 {
        text += &format!(
            "\nnote: other programs were in the way of {:.0} % of the runs; calibrate on a quiet machine",
            disturbed * 100.0
        );
    }
    text
}

/// Four significant digits.
fn rounded(number: f64) -> Value {
    if number == 0.0 || !number.is_finite() {
        return Value::from(number);
    }
    let digits = 3 - number.abs().log10().floor() as i32;
    let scale = 10f64.powi(digits);
    Value::from((number * scale).round() / scale)
}

fn percent(share: f64) -> Value {
    Value::from((share * 1000.0).round() / 10.0)
}
