//! The page of a sweep, from its results alone.

use report::metric::Metric;
use report::page::{SweepPage, sweep_page};

use super::head::Head;
use super::results::Results;
use crate::trouble::Trouble;

/// The page as HTML.
pub fn draw(
    results: Results,
    head: &Head,
    reference: Option<String>,
    bounds: Vec<String>,
    target: Option<&'static Metric>,
) -> Result<String, Trouble> {
    let text = |text: &Option<String>, default: &str| text.clone().unwrap_or_else(|| default.to_owned());
    Ok(sweep_page(&SweepPage {
        title: text(&head.title, "A sweep of KV-cache policies"),
        question: text(&head.question, ""),
        reference,
        bounds,
        target,
        keys: results.keys,
        trials: results.trials,
        same: results.same,
        maps: results.maps,
        maps_of: results.maps_of,
        command: text(&head.command, "kvlab report DIR"),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })?)
}
