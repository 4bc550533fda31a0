//! Conditions on a column, as `failed > 0`: of `--fail-if` and of `--filter-by`.

use std::cmp::Ordering;

use crate::trouble::{Source, Trouble, usage};

/// How a comparison is written, and which orders meet it.
pub type Comparison = (&'static str, fn(Ordering) -> bool);

/// Longer signs before those that they begin with.
const COMPARISONS: [Comparison; 6] = [
    (">=", Ordering::is_ge),
    ("<=", Ordering::is_le),
    ("==", Ordering::is_eq),
    ("!=", Ordering::is_ne),
    (">", Ordering::is_gt),
    ("<", Ordering::is_lt),
];

/// A column, a comparison, and what stands behind it; whether they mean anything is for others to say.
#[derive(Clone, Debug)]
pub struct Condition {
    /// The whole text.
    pub text: String,
    /// Name of the column.
    pub column: String,
    /// The comparison.
    pub comparison: Comparison,
    /// What it compares with.
    pub value: String,
    source: Source,
    /// Where the text begins in the source, and where the value begins in the text.
    starts: (usize, usize),
}

impl Condition {
    /// Takes the text of a flag apart.
    pub fn parse(flag: &str, text: &str) -> Result<Condition, Trouble> {
        let before = format!("{flag} ");
        let source = Source::new("command line".into(), format!("{before}{text}"));
        let sign = |&(sign, _): &Comparison| text.find(sign).map(|at| (at, sign.len()));
        let signs = COMPARISONS.iter().filter_map(|comparison| Some((sign(comparison)?, comparison)));
        // The first sign of the text, and of two that begin there the longer.
        let first = signs.min_by_key(|((at, length), _)| (*at, usize::MAX - length));
        let Some(((at, length), &comparison)) = first else {
            let whole = before.len()..before.len() + text.len();
            return Err(usage(source.point(whole, "no comparison; expected as 'failed > 0'")));
        };
        let (column, value) = (text[..at].trim().to_owned(), text[at + length..].trim().to_owned());
        Ok(Condition {
            text: text.to_owned(),
            column,
            comparison,
            value,
            source,
            starts: (before.len(), at + length),
        })
    }

    /// A complaint that points at the column.
    pub fn wrong_column(&self, message: &str) -> Trouble {
        let (start, value) = self.starts;
        let end = start + (value - self.comparison.0.len()).max(1);
        usage(self.source.point(start..end, message))
    }

    /// A complaint that points at the value.
    pub fn wrong_value(&self, message: &str) -> Trouble {
        let (start, value) = self.starts;
        usage(self.source.point(start + value..start + self.text.len(), message))
    }

    /// Whether an order meets it.
    pub fn is_met_by(&self, order: Ordering) -> bool {
        (self.comparison.1)(order)
    }
}
