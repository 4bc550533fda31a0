//! Generated workloads against the laws and the data that they were fitted to.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::collections::BTreeMap;

use traces::{GenerateOptions, Request, TraceStats, When, Workload, generate};

fn requests(kind: Workload, requests: u64, seed: u64) -> impl Iterator<Item = Request> {
    generate(kind, &GenerateOptions { requests, seed, rate_per_s: None }).unwrap()
}

fn stats(kind: Workload, count: u64) -> TraceStats {
    TraceStats::collect(requests(kind, count, 7).map(Ok)).unwrap()
}

fn between(found: Option<f64>, low: f64, high: f64) {
    let found = found.unwrap();
    assert!((low..=high).contains(&found), "found {found}, expected {low} to {high}");
}

fn prompt_quantile(stats: &TraceStats, q: f64) -> Option<f64> {
    stats.prompt.quantiles.quantile(q).map(|tokens| tokens as f64)
}

#[test]
fn the_same_seed_gives_the_same_requests() {
    for kind in Workload::ALL {
        let first: Vec<Request> = requests(kind, 300, 1).collect();
        assert_eq!(first, requests(kind, 300, 1).collect::<Vec<_>>(), "{}", kind.name());
        assert_ne!(first, requests(kind, 300, 2).collect::<Vec<_>>(), "{}", kind.name());
        assert_eq!(first.len(), 300);
        assert_eq!(kind.name().parse::<Workload>().unwrap(), kind);
    }
}

#[test]
fn every_request_keeps_the_promises_of_its_type() {
    for kind in Workload::ALL {
        let (mut last_ns, mut session) = (0, None);
        for (id, request) in (0..).zip(requests(kind, 2_000, 3)) {
            assert_eq!(request.id, id);
            assert!(request.prompt_tokens >= 1 && request.output_tokens >= 1);
            match request.when {
                When::At { ns } => {
                    assert!(ns >= last_ns, "{} falls", kind.name());
                    last_ns = ns;
                }
                When::After { .. } => {
                    assert!(kind.is_closed_loop());
                    assert!(request.session.is_some() && request.session == session);
                }
            }
            session = request.session;
            let prefix = &request.prefix;
            let covered = prefix.ids.len() as u64 * u64::from(prefix.block_tokens);
            assert!(covered <= u64::from(request.prompt_tokens));
            let mut end = 0;
            for image in &request.images {
                assert!(image.at >= end);
                end = image.at + image.tokens;
            }
            assert!(end <= request.prompt_tokens);
        }
    }
}

#[test]
fn azure_chat_is_as_bursty_as_its_fit() {
    let stats = stats(Workload::AzureChat, 60_000);
    let [second, ten, minute] = stats.dispersion();
    between(second, 1.15, 1.30);
    between(ten, 2.6, 3.7);
    between(minute, 7.5, 14.0);
    between(stats.rate_per_s(), 5.6, 6.2);
    between(stats.output.quantiles.mean(), 197.0, 208.0);
    between(prompt_quantile(&stats, 0.5), 990.0, 1_040.0);
}

#[test]
fn code_comes_in_bursts() {
    let stats = stats(Workload::Code, 60_000);
    let [second, ten, minute] = stats.dispersion();
    between(second, 7.5, 13.0);
    between(ten, 42.0, 71.0);
    between(minute, 110.0, 190.0);
    between(prompt_quantile(&stats, 0.5), 1_400.0, 1_560.0);
    assert_eq!(stats.prompt.quantiles.max(), Some(7_437));
    assert_eq!(stats.output.quantiles.min(), Some(6));
}

#[test]
fn chat_grows_like_sharegpt() {
    let stats = stats(Workload::Chat, 40_000);
    between(stats.turns_mean(), 4.7, 5.3);
    between(prompt_quantile(&stats, 0.5), 1_400.0, 1_800.0);
    between(prompt_quantile(&stats, 0.95), 6_100.0, 6_800.0);
    between(stats.output.quantiles.mean(), 425.0, 450.0);
    between(stats.sharing.token_share(), 0.72, 0.80);
}

#[test]
fn images_stay_in_the_conversation() {
    let mut images = BTreeMap::new();
    for request in requests(Workload::ImageChat, 5_000, 3) {
        let before = images.insert(request.session, request.images.clone()).unwrap_or_default();
        assert!(request.images.starts_with(&before));
        assert!(request.images.iter().all(|image| image.tokens == 260));
    }
    between(stats(Workload::ImageChat, 5_000).image_share(), 0.10, 0.20);
}

#[test]
fn rag_breaks_its_prefix_like_ragpulse() {
    let stats = stats(Workload::Rag, 20_000);
    between(stats.turns_mean(), 1.65, 1.78);
    between(prompt_quantile(&stats, 0.5), 2_950.0, 3_250.0);
    between(prompt_quantile(&stats, 0.05), 1_030.0, 1_130.0);
    between(stats.sharing.token_share(), 0.27, 0.34);
    between(stats.dispersion()[2], 1.2, 1.7);
}

#[test]
fn documents_are_asked_again() {
    let stats = stats(Workload::Documents, 5_000);
    between(prompt_quantile(&stats, 0.5), 17_000.0, 19_500.0);
    between(stats.rate_per_s(), 3.6, 4.3);
    between(stats.dispersion()[0], 0.9, 1.2);
    between(stats.dispersion()[2], 1.0, 3.0);
    between(stats.sharing.token_share(), 0.55, 0.68);
}

#[test]
fn agents_grow_and_reuse_like_claude_code() {
    let stats = stats(Workload::Agent, 20_000);
    between(stats.sharing.block_share(), 0.95, 0.985);
    between(prompt_quantile(&stats, 0.5), 75_000.0, 115_000.0);
    between(stats.output.quantiles.quantile(0.5).map(|tokens| tokens as f64), 205.0, 230.0);
}

#[test]
fn the_rate_can_be_chosen() {
    for kind in Workload::ALL {
        // A week of RAG, so that all hours of the day are in it.
        let rate = if kind == Workload::Rag { 0.05 } else { 2.0 };
        let options = GenerateOptions { requests: 30_000, seed: 7, rate_per_s: Some(rate) };
        let times = generate(kind, &options).unwrap().filter_map(|request| match request.when {
            When::At { ns } => Some(ns),
            When::After { .. } => None,
        });
        let span_s = times.max().unwrap() as f64 / 1e9;
        between(Some(30_000.0 / span_s / rate), 0.8, 1.2);
    }
}

#[test]
fn rates_out_of_range_are_refused() {
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-9, 1e9] {
        let options = GenerateOptions { requests: 1, seed: 0, rate_per_s: Some(rate) };
        let refused = generate(Workload::Chat, &options).err().unwrap().to_string();
        assert!(refused.starts_with("option rate_per_s"), "{refused}");
    }
    assert!("poem".parse::<Workload>().is_err());
}
