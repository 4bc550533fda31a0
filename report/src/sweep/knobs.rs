//! Which settings vary, and which of them only ever vary together.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::Trial;
use crate::order::{natural, number};

/// A setting that varies, or several that only ever vary together, as linked keys do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knob {
    /// The settings.
    pub keys: Vec<String>,
    /// Its values in natural order, each with one text per key.
    pub values: Vec<Vec<String>>,
}

impl Knob {
    /// Name for people.
    pub fn label(&self) -> String {
        self.keys.join(" + ")
    }

    /// A value for people.
    pub fn value(&self, value: usize) -> String {
        self.values.get(value).map(|texts| texts.join(" + ")).unwrap_or_default()
    }

    /// A value with the names of its settings.
    pub(crate) fn told(&self, value: usize) -> Vec<String> {
        let texts = self.values.get(value).into_iter().flatten();
        self.keys.iter().zip(texts).map(|(key, text)| format!("{key} {text}")).collect()
    }

    /// Whether its values are numbers: of several settings the first is looked at.
    pub fn is_numeric(&self) -> bool {
        self.values.iter().all(|texts| texts.first().is_some_and(|text| number(text).is_some()))
    }
}

/// The knobs, and the number of the value of each per trial. Keys without two values are no knobs.
pub(super) fn knobs(keys: &[String], trials: &[Trial]) -> (Vec<Knob>, Vec<Vec<usize>>) {
    let text = |trial: &Trial, key: usize| trial.values.get(key).cloned().unwrap_or_default();
    // Per key the number of the value of every trial, in the order in which they appear.
    let mut columns: Vec<(Vec<usize>, Vec<usize>, usize)> = Vec::new();
    for key in 0..keys.len() {
        let mut known: BTreeMap<String, usize> = BTreeMap::new();
        let numbers: Vec<usize> = trials
            .iter()
            .map(|trial| {
                let next = known.len();
                *known.entry(text(trial, key)).or_insert(next)
            })
            .collect();
        if known.len() < 2 {
            continue;
        }
        // Numbers by first appearance are equal exactly where values go together one to one.
        match columns.iter_mut().find(|(_, column, _)| *column == numbers) {
            Some((together, ..)) => together.push(key),
            None => columns.push((vec![key], numbers, known.len())),
        }
    }
    let mut knobs = Vec::new();
    let mut settings = vec![Vec::with_capacity(columns.len()); trials.len()];
    for (together, numbers, count) in columns {
        let mut values: Vec<(usize, Vec<String>)> = Vec::with_capacity(count);
        for number in 0..count {
            let first = numbers.iter().position(|n| *n == number).map(|at| &trials[at]);
            values.push((
                number,
                together.iter().map(|k| first.map(|t| text(t, *k)).unwrap_or_default()).collect(),
            ));
        }
        values.sort_by(|(_, a), (_, b)| {
            let orders = a.iter().zip(b).map(|(a, b)| natural(a, b));
            orders.fold(Ordering::Equal, Ordering::then)
        });
        let mut place = vec![0; count];
        for (at, (number, _)) in values.iter().enumerate() {
            place[*number] = at;
        }
        for (setting, number) in settings.iter_mut().zip(&numbers) {
            setting.push(place[*number]);
        }
        let keys = together.iter().map(|key| keys[*key].clone()).collect();
        knobs.push(Knob { keys, values: values.into_iter().map(|(_, texts)| texts).collect() });
    }
    (knobs, settings)
}
