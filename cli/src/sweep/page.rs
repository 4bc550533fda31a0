//! The page of a sweep, from its results alone.

use report::metric::Metric;
use report::page::{SweepPage, sweep_page};
use report::sweep::Pair;

use super::head::Head;
use super::results::Results;
use crate::trouble::Trouble;

/// What a page compares with what.
pub struct Compared {
    /// Policy or row that the others are compared with; the first where none is named.
    pub reference: Option<String>,
    /// Policies that are upper bounds.
    pub bounds: Vec<String>,
    /// Column that is compared; the usual one where none is named.
    pub target: Option<&'static Metric>,
    /// Columns that are drawn against each other; the usual ones where none are named.
    pub fronts: Vec<Pair>,
}

/// The page as HTML.
pub fn draw(results: Results, head: &Head, compared: Compared) -> Result<String, Trouble> {
    let text = |text: &Option<String>, default: &str| text.clone().unwrap_or_else(|| default.to_owned());
    Ok(sweep_page(&SweepPage {
        title: text(&head.title, "A sweep of KV-cache policies"),
        question: text(&head.question, ""),
        reference: compared.reference,
        bounds: compared.bounds,
        target: compared.target,
        fronts: compared.fronts,
        keys: results.keys,
        trials: results.trials,
        same: results.same,
        maps: results.maps,
        maps_of: results.maps_of,
        command: text(&head.command, "kvlab report DIR"),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })?)
}
