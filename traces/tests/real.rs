//! The readers on the real traces, where they are at hand (see `KVLAB_TRACES`).

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::path::{Path, PathBuf};

use traces::{Format, ReadOptions, Reader, Request, TraceStats, When, open};

/// A real trace; none, with a message, where it is absent.
fn real(name: &str) -> Option<PathBuf> {
    let folder = std::env::var("KVLAB_TRACES")
        .map_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces"), PathBuf::from);
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent; set KVLAB_TRACES to the folder of traces", path.display());
    None
}

fn read(path: &Path, seed: u64) -> Reader {
    open(path, &ReadOptions { seed, ..ReadOptions::default() }).unwrap()
}

fn stats(path: &Path) -> TraceStats {
    TraceStats::collect(read(path, 1)).unwrap()
}

fn near(found: Option<f64>, expected: f64, share: f64) {
    let found = found.unwrap();
    assert!((found / expected - 1.0).abs() <= share, "found {found}, expected {expected}");
}

fn arrivals(requests: impl Iterator<Item = Request>) -> Vec<u64> {
    requests
        .filter_map(|request| match request.when {
            When::At { ns } => Some(ns),
            When::After { .. } => None,
        })
        .collect()
}

#[test]
fn azure_conversation() {
    let Some(path) = real("azure/AzureLLMInferenceTrace_conv.part0.csv.gz") else {
        return;
    };
    assert_eq!(read(&path, 0).format(), Format::Azure);
    assert!(!read(&path, 0).uses_seed());
    let stats = stats(&path);
    assert_eq!(stats.requests, 14_592);
    assert_eq!(stats.span_ns.map(|(first, _)| first), Some(0));
    let [second, ten, minute] = stats.dispersion();
    near(second, 1.33, 0.01);
    near(ten, 3.40, 0.01);
    near(minute, 14.58, 0.01);
}

#[test]
fn azure_code() {
    let Some(path) = real("azure/AzureLLMInferenceTrace_code.part0.csv.gz") else {
        return;
    };
    let stats = stats(&path);
    assert_eq!(stats.requests, 7_491);
    assert_eq!(stats.prompt.quantiles.max(), Some(7_437));
    assert_eq!(stats.output.quantiles.min(), Some(6));
    let [second, ten, minute] = stats.dispersion();
    near(second, 12.94, 0.01);
    near(ten, 70.21, 0.01);
    near(minute, 154.93, 0.01);
}

#[test]
fn mooncake_conversation_is_spread_over_its_ticks() {
    let Some(path) = real("mooncake/conversation_trace.part0.jsonl.gz") else {
        return;
    };
    assert!(read(&path, 0).uses_seed());
    let stats = stats(&path);
    assert_eq!(stats.requests, 8_940);
    near(stats.gap_cv(), 1.0, 0.05);
    near(stats.dispersion()[0], 1.05, 0.1);
    near(stats.dispersion()[2], 2.9, 0.1);
    near(stats.sharing.block_share(), 0.3537, 0.001);
    near(stats.sharing.token_share(), 0.3606, 0.001);
    let times = |seed| arrivals(read(&path, seed).map(Result::unwrap));
    assert!(times(1).is_sorted());
    assert_eq!(times(1), times(1));
    assert_ne!(times(1), times(2));
}

#[test]
fn mooncake_synthetic_is_left_alone() {
    let Some(path) = real("mooncake/synthetic_trace.jsonl.gz") else {
        return;
    };
    assert!(!read(&path, 0).uses_seed());
    let stats = stats(&path);
    assert_eq!(stats.requests, 3_993);
    near(stats.dispersion()[0], 1.09, 0.01);
    near(stats.dispersion()[2], 1.19, 0.01);
    near(stats.sharing.block_share(), 0.640, 0.001);
    assert_eq!(stats.prompt.quantiles.max(), Some(191_378));
}

#[test]
fn ragpulse_week_0() {
    let Some(path) = real("ragpulse/0_trace.week0.jsonl.gz") else {
        return;
    };
    let stats = stats(&path);
    assert_eq!(stats.requests, 3_800);
    assert_eq!(stats.sessions(), 2_215);
    near(stats.sharing.token_share(), 0.315, 0.005);
    near(stats.dispersion()[2], 1.59, 0.01);
}

#[test]
fn agents_share_nothing_between_sessions() {
    let Some(path) = real("claude_code_agent/traces_0200_0379.jsonl.gz") else {
        return;
    };
    let mut reader = read(&path, 1);
    let stats = TraceStats::collect(reader.by_ref()).unwrap();
    assert_eq!(stats.requests, 11_252 + 555);
    assert_eq!(stats.sessions(), 174);
    assert_eq!(stats.closed_loop, stats.requests - 174);
    assert_eq!(reader.mended().zero_outputs, 7);
    near(stats.sharing.block_share(), 0.963, 0.01);
}

#[test]
fn sharegpt_rows_are_conversations_and_arxiv_rows_are_not() {
    let name = "lengths/sharegpt_8k_filtered_stats_llama2_tokenizer.csv.gz";
    let Some(path) = real(name) else { return };
    let sharegpt = stats(&path);
    assert_eq!(sharegpt.requests, 30_731);
    assert_eq!(sharegpt.sessions(), 5_678);
    let name = "lengths/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv.gz";
    let Some(path) = real(name) else { return };
    let arxiv = stats(&path);
    assert_eq!((arxiv.requests, arxiv.sessions()), (28_257, 0));
}
