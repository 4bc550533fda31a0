//! Known results of the field: every scenario of `scenarios/known` shows its own, in direction and rough size.
//!
//! Half a minute, most of it `compaction`. A scenario without an assertion here fails the test.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use report::Summary;
use report::files::read_summary;
use report::metric::metric;
use tempfile::tempdir;

/// What a scenario's results have to say.
type Check = fn(&Results);

const KNOWN: [(&str, Check); 10] = [
    ("class-split", class_split),
    ("compaction", compaction),
    ("kv-cliff", kv_cliff),
    ("pollution", pollution),
    ("preempted-hashes", preempted_hashes),
    ("prefix-cliff", prefix_cliff),
    ("swap-long", swap_long),
    ("swap-short", swap_short),
    ("victims", victims),
    ("window-slot", window_slot),
];

/// The summary of a scenario.
struct Results(Vec<Summary>);

impl Results {
    /// The runs of a row, or of a policy, by seed; of the one workload whose name ends so.
    fn runs(&self, name: &str, workload: &str) -> Vec<&Summary> {
        let is_meant = |row: &&Summary| row.name() == name && row.trace.ends_with(workload);
        let runs: Vec<&Summary> = self.0.iter().filter(is_meant).collect();
        assert!(!runs.is_empty(), "{name} {workload} is not run");
        runs
    }

    /// A metric by seed.
    fn by_seed(&self, name: &str, key: &str) -> Vec<f64> {
        let metric = metric(key).expect("the metric is in the table");
        let value = |row: &Summary| metric.value(row).expect("it is measured");
        self.runs(name, "").into_iter().map(value).collect()
    }

    /// Its mean over the seeds.
    fn mean(&self, name: &str, key: &str) -> f64 {
        let values = self.by_seed(name, key);
        values.iter().sum::<f64>() / values.len() as f64
    }

    fn throughput(&self, name: &str, workload: &str) -> f64 {
        let runs = self.runs(name, workload);
        runs.iter().map(|row| row.throughput_tokens_per_s).sum::<f64>() / runs.len() as f64
    }

    fn all_completed(&self) {
        for row in &self.0 {
            assert_eq!(row.completed, row.requests, "{} {} {}", row.row, row.policy, row.trace);
        }
    }
}

#[track_caller]
fn within(found: f64, least: f64, most: f64, what: &str) {
    println!("  {what}: {found:.3}, expected {least} to {most}");
    assert!((least..=most).contains(&found), "{what}: {found}, expected {least} to {most}");
}

#[test]
fn every_known_result_is_what_its_scenario_prints() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/known");
    let entries = fs::read_dir(&folder).expect("the folder is there");
    let paths = entries.map(|entry| entry.expect("it is readable").path());
    let scenarios = paths.filter(|path| path.extension().is_some_and(|end| end == "toml"));
    let names: BTreeSet<String> =
        scenarios.map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned()).collect();
    let asserted: BTreeSet<String> = KNOWN.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names, asserted, "every scenario has an assertion, every assertion a scenario");
    let out = tempdir().expect("there is a folder for results");
    let mut failed = Vec::new();
    for (name, check) in KNOWN {
        println!("{name}");
        let path = folder.join(format!("{name}.toml"));
        let text = fs::read_to_string(&path).expect("the scenario is there");
        let head: String = text.lines().take_while(|line| line.starts_with('#')).collect();
        assert!(head.contains("Expected: "), "{name} does not say what to expect");
        let printed =
            common::run(out.path(), &format!("compare {} --out {name} --quiet", path.to_string_lossy()));
        let table = printed.split("\n\n").next().expect("there is a table");
        assert!(!table.contains("goodput"), "{name} asks for its columns: {table}");
        let summary = read_summary(&out.path().join(name).join("summary.csv"));
        let results = Results(summary.expect("the results are readable"));
        if catch_unwind(|| check(&results)).is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "other than known: {failed:?}");
}

/// Share of the prompts after the first round that is found.
fn warm(results: &Results, policy: &str, seats: u64) -> f64 {
    let runs = results.runs(policy, &format!("seats:{seats}:4"));
    assert_eq!(runs[0].requests, 4 * seats);
    runs[0].cached_tokens as f64 / (runs[0].prompt_tokens - seats * 8136) as f64
}

fn prefix_cliff(results: &Results) {
    results.all_completed();
    for (policy, last, first_gone) in
        [("vllm:retention=dense", 4, 6), ("vllm:retention=2048", 6, 8), ("vllm:retention=0", 12, 14)]
    {
        within(warm(results, policy, last), 0.96, 0.98, &format!("{policy}, {last} seats"));
        for seats in [6, 8, 12, 14, 16, 20].into_iter().filter(|&seats| seats >= first_gone) {
            within(warm(results, policy, seats), 0.0, 0.0, &format!("{policy}, {seats} seats"));
        }
    }
    // Who stays above it, beside the bound: 14 seats fit, the others are computed.
    for policy in ["vllm:retention=dense:evict=whole", "vllm:retention=0:evict=whole"] {
        within(warm(results, policy, 12), 0.96, 0.98, &format!("{policy}, 12 seats"));
        for seats in [14, 16, 20] {
            let bound = 0.97 * 14.0 / seats as f64;
            let share = warm(results, policy, seats) / bound;
            within(share, 0.8, 1.0, &format!("{policy}, {seats} seats, of the bound"));
        }
    }
    for seats in [6, 8, 12] {
        within(warm(results, "paged:16+prefix(lru)", seats), 0.0, 0.0, &format!("lru, {seats} seats"));
        let least = 0.9 / seats as f64;
        within(warm(results, "paged:16+prefix(scan)", seats), least, 0.6, &format!("scan, {seats} seats"));
    }
}

fn victims(results: &Results) {
    results.all_completed();
    let rules = ["lcf", "lifo", "random", "mcf"];
    let taxes = |blocks: u32| rules.map(|rule| results.mean(&format!("{rule} {blocks}"), "recomputed"));
    let known =
        [(1600, [0.36, 0.44, 0.56, 0.80]), (800, [0.39, 0.47, 0.63, 0.85]), (400, [0.45, 0.53, 0.65, 0.92])];
    for (blocks, expected) in known {
        let found = taxes(blocks);
        assert!(found.is_sorted_by(|less, more| less < more), "{blocks} blocks: {found:?}");
        for ((rule, found), expected) in rules.iter().zip(found).zip(expected) {
            within(found, expected / 1.1, expected * 1.1, &format!("{rule}, {blocks} blocks"));
        }
        within(found[0] / found[3], 0.35, 0.6, "lcf over mcf");
    }
    for (rule, ((few, some), many)) in rules.iter().zip(taxes(400).iter().zip(taxes(800)).zip(taxes(1600))) {
        assert!(*few > some && some > many, "{rule} loses more with fewer blocks: {many} {some} {few}");
    }
}

fn pollution(results: &Results) {
    results.all_completed();
    let found = |policy| results.runs(policy, "")[0].cached_tokens;
    // The last token of a prompt is always computed, so the last of its 30 blocks is.
    assert_eq!(["vllm:keyless=last", "vllm", "paged:16+prefix"].map(found), [0, 7 * 464, 7 * 464]);
}

fn kv_cliff(results: &Results) {
    results.all_completed();
    let blocks = [582, 557, 532, 507, 484, 462, 441, 421, 402].map(|blocks| format!("{blocks} blocks"));
    let p99: Vec<Vec<f64>> = blocks.iter().map(|name| results.by_seed(name, "ttft_p99_ms")).collect();
    let steps = |seed: usize| p99.windows(2).map(move |pair| pair[1][seed] / pair[0][seed]);
    let steepest: Vec<f64> = (0..4).map(|seed| steps(seed).fold(0.0, f64::max)).collect();
    println!("  steepest step by seed: {steepest:.2?}");
    within(steepest.iter().sum::<f64>() / 4.0, 3.0, 7.0, "steepest step of 4.5 %, mean");
    for (seed, steepest) in steepest.iter().enumerate() {
        within(*steepest, 2.0, 10.0, "steepest step of 4.5 %");
        assert!(steps(seed).take(2).all(|ratio| (0.8..1.25).contains(&ratio)), "far from the edge");
    }
    let throughput = blocks.each_ref().map(|name| results.throughput(name, ""));
    within(throughput[8] / throughput[0], 0.995, 1.005, "throughput, fewest over most blocks");
}

fn preempted_hashes(results: &Results) {
    results.all_completed();
    let named = [
        ("vllm:prefix=off", ["vllm", "vllm:retention=dense", "vllm:evict=whole"].as_slice()),
        ("paged", ["paged:16+prefix", "radix", "tiered", "paged:16+prefix(lru)+swap"].as_slice()),
    ];
    for (without, with) in named {
        within(results.mean(without, "preempted"), 100.0, 200.0, &format!("{without}: preempted"));
        for policy in with {
            within(results.mean(policy, "preempted"), 100.0, 200.0, &format!("{policy}: preempted"));
            let factor = results.throughput(policy, "") / results.throughput(without, "");
            within(factor, 1.0, 1.15, &format!("{policy}: throughput over {without}"));
            let saved = results.mean(without, "recomputed") - results.mean(policy, "recomputed");
            within(saved, 0.05, 0.65, &format!("{policy}: saved of what is computed again"));
            // Requests have nothing in common.
            assert_eq!(results.mean(policy, "found"), 0.0, "{policy}");
        }
    }
}

fn window_slot(results: &Results) {
    let outcome = |policy| {
        let run = results.runs(policy, "")[0];
        (run.completed, run.failed, run.crashes, run.cells_copied > 0)
    };
    for policy in ["contiguous:run", "shift:defrag=never", "buddy"] {
        assert_eq!(outcome(policy), (0, 8, 8, false), "{policy}");
    }
    assert_eq!(outcome("defrag"), (8, 0, 0, true));
    assert_eq!(outcome("paged"), (8, 0, 0, false));
}

fn compaction(results: &Results) {
    results.all_completed();
    let never = "contiguous:run";
    let holes = "defrag:threshold:0";
    let whole = "defrag:threshold:0:objective=runs";
    let over = |policy, key| results.mean(policy, key) / results.mean(never, key);
    within(over(holes, "high_water_mean"), 0.4, 0.6, "high water, holes filled over never compacted");
    within(over(holes, "sequence_runs_mean"), 0.9, 1.0, "runs, likewise");
    within(results.mean(whole, "sequence_runs_mean"), 1.0, 3.0, "runs, sequences moved whole");
    let copies = results.mean(whole, "cells_copied") / results.mean(holes, "cells_copied");
    within(copies, 100.0, 2000.0, "copies for it, over those that fill holes");
    within(over("paged", "sequence_runs_mean"), 1.0 / 16.0 / 1.2, 1.2 / 16.0, "runs, blocks of 16");
}

fn class_split(results: &Results) {
    results.all_completed();
    let (short, long) = ("uniform:64:448", "uniform:6144:2048");
    let rate = |row, workload| results.throughput(row, workload);
    let (for_short, for_long) = ("split for short", "split for long");
    within(rate(for_long, short) / rate(for_short, short), 0.5, 0.75, "512 tokens, split for long");
    within(rate(for_short, long) / rate(for_long, long), 0.25, 0.45, "8,192 tokens, split for short");
    for one in ["shared", "vLLM's groups"] {
        within(rate(one, short) / rate(for_short, short), 0.9, 1.05, &format!("512 tokens, {one}"));
        within(rate(one, long) / rate(for_long, long), 0.9, 1.2, &format!("8,192 tokens, {one}"));
    }
    within(rate("no windows", long) / rate("shared", long), 0.15, 0.4, "8,192 tokens, no windows");
}

/// Up to which bandwidth, GB/s, it is quicker to compute again, and from which on it is not.
fn crossing(results: &Results, slow: u32, fast: u32) {
    results.all_completed();
    assert!(results.0.iter().all(|run| run.preemptions == 1), "one of two is preempted once");
    let recompute = results.throughput("recompute", "");
    let rates = [1, 2, 4, 8, 16, 32];
    let swaps = rates.map(|rate| results.throughput(&format!("swap at {rate} GB/s"), ""));
    println!("  recompute {recompute:.1}, swap {swaps:.1?} tokens/s");
    assert!(swaps.is_sorted_by(|slow, fast| slow < fast), "{swaps:?}");
    for (rate, swap) in rates.into_iter().zip(swaps) {
        assert!(rate > slow || swap < recompute, "{rate} GB/s: {swap} against {recompute}");
        assert!(rate < fast || swap > recompute, "{rate} GB/s: {swap} against {recompute}");
    }
}

/// Equal at 8.5 GB/s.
fn swap_short(results: &Results) {
    crossing(results, 4, 16);
}

/// Equal at 1.2 GB/s.
fn swap_long(results: &Results) {
    crossing(results, 1, 2);
}
