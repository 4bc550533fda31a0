//! `--fail-if 'failed > 0'`: conditions on results that lead to an exit code of their own.

use clap::ArgMatches;
use report::Summary;
use serde_json::Value;

use crate::condition::Condition;
use crate::trouble::Trouble;

/// A condition on a column of `summary.csv`.
#[derive(Clone, Debug)]
pub struct FailIf {
    condition: Condition,
    limit: f64,
}

impl FailIf {
    /// All conditions of a command line.
    pub fn of_command(matches: &ArgMatches) -> Result<Vec<FailIf>, Trouble> {
        let texts = matches.get_many::<String>("fail-if").into_iter().flatten();
        texts.map(|text| FailIf::parse(text)).collect()
    }

    fn parse(text: &str) -> Result<FailIf, Trouble> {
        let condition = Condition::parse("--fail-if", text)?;
        let column = &condition.column;
        if !columns().iter().any(|known| known == column) {
            return Err(condition.wrong_column(&format!("{column:?} is no column of numbers of summary.csv")));
        }
        let limit = condition.value.parse().ok().filter(|limit: &f64| !limit.is_nan());
        let limit = limit.ok_or_else(|| condition.wrong_value("expected a number behind the comparison"))?;
        Ok(FailIf { condition, limit })
    }

    /// The value of the column; none where it was not measured.
    fn value(&self, row: &Summary) -> Option<f64> {
        serde_json::to_value(row).ok()?.get(&self.condition.column)?.as_f64()
    }

    fn is_met(&self, row: &Summary) -> bool {
        let order = self.value(row).and_then(|value| value.partial_cmp(&self.limit));
        order.is_some_and(|order| self.condition.is_met_by(order))
    }

    /// Trouble if a row meets one of the conditions. What was not measured meets none.
    pub fn check(conditions: &[FailIf], rows: &[Summary]) -> Result<(), Trouble> {
        let mut said = Vec::new();
        for condition in conditions {
            let met: Vec<&Summary> = rows.iter().filter(|row| condition.is_met(row)).collect();
            if let Some(first) = met.first() {
                let value = condition.value(first).unwrap_or_default();
                said.push(format!(
                    "{} in {} of {} simulations, first in {} on {}, seed {}: {} {value}",
                    condition.condition.text,
                    met.len(),
                    rows.len(),
                    first.name(),
                    first.trace,
                    first.seed,
                    condition.condition.column
                ));
            }
        }
        if said.is_empty() { Ok(()) } else { Err(Trouble::Met(said.join("\n"))) }
    }
}

/// Columns that hold numbers.
fn columns() -> Vec<String> {
    let row = serde_json::to_value(Summary::default());
    let Ok(Value::Object(fields)) = row else { return Vec::new() };
    // What may be missing is null here; texts are not.
    let numbers = fields.into_iter().filter(|(_, value)| value.is_number() || value.is_null());
    numbers.map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_comparison_means_what_it_says() {
        let row = Summary { failed: 2, ttft_p99_ms: Some(1.5), ..Summary::default() };
        for (text, met) in [
            ("failed > 1", true),
            ("failed > 2", false),
            ("failed>=2", true),
            ("failed < 2", false),
            ("failed <= 2", true),
            ("failed == 2", true),
            ("failed != 2", false),
            ("ttft_p99_ms > 1.4", true),
            ("tpot_p99_ms > 0", false),
            ("tpot_p99_ms <= 0", false),
        ] {
            let condition = FailIf::parse(text).expect("the condition is understood");
            assert_eq!(condition.is_met(&row), met, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in
            ["", "failed", "failed > many", "failed >", "policy > 0", "fialed > 0", "> 0", "failed > NaN"]
        {
            assert!(FailIf::parse(text).is_err(), "{text}");
        }
    }
}
