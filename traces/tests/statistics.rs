//! Statistics on traces whose numbers can be worked out by hand.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::sync::Arc;

use proptest::prelude::*;
use traces::stats::{TIME_BINS_MAX, TraceStats};
use traces::{Image, Prefix, Quantiles, Request, When};

const SECOND: u64 = 1_000_000_000;

fn request(ns: u64, prompt_tokens: u32, ids: &[u64]) -> Request {
    Request {
        id: 0,
        session: None,
        when: When::At { ns },
        prompt_tokens,
        output_tokens: 1,
        prefix: Prefix { block_tokens: 16, ids: Arc::from(ids) },
        images: Vec::new(),
    }
}

fn collect(requests: impl IntoIterator<Item = Request>) -> TraceStats {
    TraceStats::collect(requests.into_iter().map(Ok)).unwrap()
}

#[test]
fn quantiles_are_nearest_ranks() {
    let mut quantiles = Quantiles::new();
    assert_eq!(quantiles.quantile(0.5), None);
    assert_eq!(quantiles.mean(), None);
    for value in [15, 20, 35, 40, 50] {
        quantiles.record(value);
    }
    let found = [0.0, 0.05, 0.3, 0.4, 0.5, 1.0].map(|q| quantiles.quantile(q).unwrap());
    assert_eq!(found, [15, 15, 20, 20, 35, 50]);
    assert_eq!(quantiles.quantile(1.1), None);
    assert_eq!(quantiles.quantile(f64::NAN), None);
    assert_eq!(quantiles.mean(), Some(32.0));
    quantiles.record(1);
    assert_eq!((quantiles.quantile(0.0), quantiles.count()), (Some(1), 6));
}

#[test]
fn quantiles_stay_close_beyond_a_million_samples() {
    let mut quantiles = Quantiles::new();
    for value in 1..=1_500_000 {
        quantiles.record(value);
    }
    assert!(!quantiles.is_exact());
    for q in [0.01, 0.25, 0.5, 0.75, 0.99] {
        let found = quantiles.quantile(q).unwrap() as f64;
        assert!((found / (q * 1_500_000.0) - 1.0).abs() < 0.002, "{q}: {found}");
    }
    assert_eq!(quantiles.quantile(1.0), Some(1_500_000));
    assert_eq!(quantiles.mean(), Some(750_000.5));
    quantiles.record(u64::MAX);
    assert_eq!(quantiles.max(), Some(u64::MAX));
}

proptest! {
    #[test]
    fn quantiles_agree_with_sorting(mut values in proptest::collection::vec(any::<u64>(), 1..200), q in 0.0..=1.0) {
        let mut quantiles = Quantiles::new();
        values.iter().for_each(|value| quantiles.record(*value));
        values.sort_unstable();
        let found = quantiles.quantile(q).unwrap();
        let not_above = values.iter().filter(|value| **value <= found).count() as f64;
        let below = values.iter().filter(|value| **value < found).count() as f64;
        prop_assert!(not_above >= q * values.len() as f64);
        prop_assert!(below == 0.0 || below < q * values.len() as f64);
    }
}

#[test]
fn prefix_hits_count_leading_runs_only() {
    let stats = collect([
        request(0, 50, &[1, 2, 3, 4]),
        request(1, 50, &[1, 2, 9]),
        request(2, 50, &[8, 2, 3]),
        request(3, 50, &[1, 2, 3, 4]),
    ]);
    // Hits: 0, 2, 0, 4; the last block of the last prompt reaches beyond its 50 tokens.
    assert_eq!((stats.sharing.blocks_hit, stats.sharing.blocks), (6, 14));
    assert_eq!((stats.sharing.tokens_hit, stats.sharing.tokens), (32 + 50, 200));
    let last = stats.sharing.progress.points.last().unwrap();
    assert_eq!(*last, (4, 82.0 / 200.0));
}

#[test]
fn dispersion_tells_bursts_from_even_arrivals() {
    let even = collect((0..601).map(|second| request(second * SECOND, 1, &[])));
    assert_eq!(even.dispersion(), [Some(0.0); 3]);
    assert_eq!(even.gap_cv(), Some(0.0));
    assert_eq!(even.rate_per_s(), Some(1.0));
    let bursts = collect((0..601).map(|index| request(index / 10 * 10 * SECOND, 1, &[])));
    // Windows of a second hold 10 requests or none: mean 1, variance 9.
    assert!((bursts.dispersion()[0].unwrap() - 9.0).abs() < 0.01);
    assert_eq!(bursts.dispersion()[1], Some(0.0));
}

#[test]
fn the_arrival_series_never_outgrows_its_bins() {
    let stats = collect([0, 1, 5_000, 9_000_000_000].map(|s| request(s * SECOND, 1, &[])));
    assert!(stats.arrivals.counts.len() <= TIME_BINS_MAX);
    assert_eq!(stats.arrivals.counts.iter().sum::<u64>(), 4);
    assert!(stats.arrivals.bin_ns >= 9_000_000_000 / TIME_BINS_MAX as u64 * SECOND);
}

#[test]
fn sessions_images_and_closed_loops_are_counted() {
    let turn = |session, when| Request { session: Some(session), when, ..request(0, 1_000, &[]) };
    let mut shown = turn(4, When::After { wait_ns: 5 });
    shown.images = vec![Image { at: 0, tokens: 260 }, Image { at: 300, tokens: 240 }];
    let stats = collect([turn(4, When::At { ns: 0 }), shown, turn(5, When::At { ns: 9 })]);
    assert_eq!((stats.sessions(), stats.turns_mean()), (2, Some(1.5)));
    assert_eq!((stats.with_images, stats.images, stats.closed_loop), (1, 2, 1));
    assert_eq!(stats.image_share(), Some(500.0 / 3_000.0));
    let rows = stats.rows();
    let value = |name: &str| rows.iter().find(|row| row.name == name).unwrap().value;
    assert_eq!(value("sessions of one turn"), Some(0.5));
    assert_eq!(value("prompt p95"), Some(1_000.0));
    assert_eq!(value("prefix hit, blocks"), None);
}

#[test]
fn nothing_is_made_up_for_an_empty_trace() {
    let stats = collect([]);
    assert_eq!((stats.rate_per_s(), stats.span_s(), stats.gap_cv()), (None, None, None));
    assert_eq!(stats.dispersion(), [None; 3]);
    assert!(stats.prompt.cdf().is_empty());
    assert_eq!(stats.rows()[0].value, Some(0.0));
}

#[test]
fn histograms_and_distribution_functions_cover_all_lengths() {
    let stats = collect((1..=1_000).map(|tokens| request(0, tokens, &[])));
    let bins: Vec<(f64, f64, u64)> = stats.prompt.histogram.bins().collect();
    assert_eq!(bins.iter().map(|(_, _, count)| count).sum::<u64>(), 1_000);
    assert!(bins.windows(2).all(|pair| pair[0].1 == pair[1].0));
    let cdf = stats.prompt.cdf();
    assert!(cdf.is_sorted() && cdf.len() <= 201);
    assert_eq!(cdf.last(), Some(&(1_000, 1.0)));
}
