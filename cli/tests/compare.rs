//! The commands on good input: what they print, which files they write, and that the same
//! question always gets the same bytes.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Stdio;

use common::{kvlab, run};
use policies::POLICIES;
use report::Summary;
use report::files::read_summary;
use tempfile::{TempDir, tempdir};

const COLUMNS: [&str; 25] = [
    "row",
    "policy",
    "trace",
    "seed",
    "requests",
    "completed",
    "failed",
    "rejected",
    "unfinished",
    "truncated",
    "shifted",
    "preempted",
    "output_tokens",
    "duration_s",
    "throughput_tokens_per_s",
    "goodput_requests_per_s",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "tpot_p50_ms",
    "tpot_p99_ms",
    "defrag_passes",
    "cells_copied",
    "utilisation_mean",
    "fragmentation_internal_mean",
    "fragmentation_external_mean",
];

const FILES: [&str; 6] =
    ["page.json", "report.html", "requests.csv", "run.toml", "summary.csv", "timeline.csv"];

/// A small model, and memory for few tokens, so that policies have something to decide.
const TIGHT: &str = "--model gemma3-1b --memory local=2048;global=2048 --num-ctx 1024 --num-parallel 4 \
                     --num-batch 64 --quiet";

/// A folder with a trace of 16 requests of a conversation workload.
fn folder() -> TempDir {
    let dir = tempdir().unwrap();
    run(dir.path(), "trace generate chat --requests 16 --seed 1 chat.csv");
    dir
}

/// Names in a folder, hidden ones too, in order.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let names: BTreeSet<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.into_iter().collect()
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The rows of `DIR/summary.csv`; every request is accounted for.
fn summary(dir: &Path) -> Vec<Summary> {
    let rows = read_summary(&dir.join("summary.csv")).unwrap();
    for row in &rows {
        let sum = row.completed + row.failed + row.rejected + row.unfinished;
        assert_eq!(sum, row.requests, "{} seed {}", row.policy, row.seed);
    }
    rows
}

/// Rows of `requests.csv` for each run.
fn requests(dir: &Path) -> BTreeMap<(String, u64), BTreeSet<u64>> {
    let mut runs: BTreeMap<(String, u64), BTreeSet<u64>> = BTreeMap::new();
    for row in csv::Reader::from_path(dir.join("requests.csv")).unwrap().records() {
        let row = row.unwrap();
        let run = runs.entry((row[1].to_owned(), row[2].parse().unwrap())).or_default();
        assert!(run.insert(row[3].parse().unwrap()), "a request stands twice: {row:?}");
    }
    runs
}

/// The value of a key in the output of `--print-config`.
fn setting<'a>(config: &'a str, key: &str) -> &'a str {
    let line = config.lines().find(|line| line.split(' ').next() == Some(key)).unwrap();
    line.split('"').nth(1).unwrap()
}

#[test]
fn four_policies_on_a_trace_make_a_table_and_its_files() {
    let dir = tempdir().unwrap();
    run(dir.path(), "trace generate chat --requests 16 --seed 1 chat.csv");
    let table = run(
        dir.path(),
        "compare --trace chat.csv --policies contiguous,paged,shift,defrag --model gemma3-12b --gpu rtx8000 \
         --num-ctx 4096 --num-parallel 4 --num-batch 512 --seeds 3 --format csv --out out",
    );
    let out = dir.path().join("out");
    assert_eq!(names(&out), FILES);
    assert_eq!(table, read(&out, "summary.csv"));
    let header: Vec<&str> = table.lines().next().unwrap().split(',').collect();
    for column in COLUMNS {
        assert!(header.contains(&column), "summary.csv has no column {column}");
    }
    let rows = summary(&out);
    let found: Vec<_> = rows.iter().map(|row| (&*row.policy, row.seed)).collect();
    let expected: Vec<_> = ["contiguous", "paged", "shift", "defrag"]
        .into_iter()
        .flat_map(|policy| (0..3).map(move |seed| (policy, seed)))
        .collect();
    assert_eq!(found, expected);
    assert!(rows.iter().all(|row| row.requests == 16 && row.completed > 0));
    // Seeds do not change a recorded trace: each policy ran once, and that run is in the file.
    let runs = requests(&out);
    assert_eq!(runs.len(), 4);
    assert!(runs.iter().all(|((_, seed), ids)| *seed == 0 && *ids == (0..16).collect()));
    assert!(read(&out, "timeline.csv").lines().count() > 8);
}

#[test]
fn the_page_loads_nothing_and_runs_nothing() {
    let dir = folder();
    run(dir.path(), &format!("compare --trace chat.csv --policies paged,defrag {TIGHT} --out out"));
    let page = read(&dir.path().join("out"), "report.html");
    for tag in page.split("<script").skip(1) {
        let tag = tag.split('>').next().unwrap();
        assert!(tag.contains("type=\"application/json\""), "<script{tag}>");
    }
    let loads =
        ["<link", "<iframe", "<object", "<embed", "@import", "url(http", "url(//", "src=\"http", "src=\"//"];
    for load in loads {
        assert!(!page.contains(load), "report.html has {load}");
    }
    for target in page.split("href=\"").skip(1) {
        let target = target.split('"').next().unwrap();
        assert!(target.starts_with('#'), "report.html refers to {target}");
    }
}

#[test]
fn the_settings_left_behind_repeat_the_run() {
    let dir = folder();
    let trace = dir.path().join("chat.csv");
    for trace in [trace.to_str().unwrap(), "chat.csv"] {
        let line =
            format!("compare --trace {trace} --policies shift:2,paged {TIGHT} --title a\"b --out first");
        run(dir.path(), &line);
        run(dir.path(), "compare first/run.toml --quiet --out second");
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        for name in ["summary.csv", "requests.csv", "timeline.csv", "run.toml"] {
            assert!(read(&first, name) == read(&second, name), "{name} differs for --trace {trace}");
        }
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    let line = format!(
        "compare --generate azure-chat --requests 16 --policies contiguous,paged,defrag --seeds 2 {TIGHT} --out out"
    );
    let mut results = Vec::new();
    for threads in ["1", "2"] {
        let dir = tempdir().unwrap();
        kvlab(dir.path()).args(line.split(' ')).env("RAYON_NUM_THREADS", threads).assert().success();
        results.push(FILES.map(|name| read(&dir.path().join("out"), name)));
    }
    let [one, two] = &results[..] else { unreachable!("two runs") };
    for (name, (one, two)) in FILES.iter().zip(one.iter().zip(two)) {
        assert!(one == two, "{name} depends on the number of threads");
    }
}

#[test]
fn fast_forward_changes_no_number() {
    let dir = folder();
    for scheduler in ["continuous", "runner"] {
        for on in ["true", "false"] {
            let line = format!(
                "compare --trace chat.csv --policies contiguous,paged,shift,defrag --scheduler {scheduler} {TIGHT} \
                 --fast-forward {on} --out {on}"
            );
            run(dir.path(), &line);
        }
        for name in ["summary.csv", "requests.csv"] {
            let (fast, slow) = (read(&dir.path().join("true"), name), read(&dir.path().join("false"), name));
            assert!(fast == slow, "{name} differs under {scheduler}:\n{fast}\n{slow}");
        }
    }
}

#[test]
fn seeds_make_runs_of_their_own() {
    let dir = tempdir().unwrap();
    let line = format!(
        "compare --generate azure-chat --requests 8 --policies paged,defrag --seeds 3 --seed0 5 {TIGHT} --out out"
    );
    run(dir.path(), &line);
    let out = dir.path().join("out");
    let rows = summary(&out);
    let seeds: Vec<_> = rows.iter().map(|row| row.seed).collect();
    assert_eq!(seeds, [5, 6, 7, 5, 6, 7]);
    let durations: BTreeSet<String> =
        rows[..3].iter().map(|row| format!("{} {}", row.duration_s, row.output_tokens)).collect();
    assert_eq!(durations.len(), 3, "other seeds, other workloads");
    let keys: BTreeSet<&str> = rows.iter().map(|row| &*row.spec_key).collect();
    assert_eq!(keys.len(), 6);
    let runs = requests(&out);
    assert_eq!(runs.len(), 6);
    assert!(runs.values().all(|ids| *ids == (0..8).collect()));
}

#[test]
fn a_seed_in_the_name_of_a_trace_makes_one_file_per_seed() {
    let dir = tempdir().unwrap();
    for seed in [3, 4] {
        let line = format!("trace generate azure-chat --requests 8 --seed {seed} part-{seed}.csv.gz");
        run(dir.path(), &line);
    }
    let line = format!("compare part-{{seed}}.csv.gz paged --seeds 2 --seed0 3 {TIGHT} --out out");
    run(dir.path(), &line);
    let rows = summary(&dir.path().join("out"));
    assert_eq!(rows.iter().map(|row| row.seed).collect::<Vec<_>>(), [3, 4]);
    assert_ne!(rows[0].event_hash, rows[1].event_hash);
}

#[test]
fn comma_lists_make_grids() {
    let dir = folder();
    let line = "compare --trace chat.csv --policies paged:16,paged:64+prefix --num-parallel 2,4 --num-ctx 512,1024 \
                --num-batch 64 --model gemma3-1b --quiet --out out";
    run(dir.path(), line);
    let rows = summary(&dir.path().join("out"));
    let cells: BTreeSet<_> =
        rows.iter().map(|row| (row.policy.clone(), row.num_parallel, row.num_ctx)).collect();
    assert_eq!((rows.len(), cells.len()), (8, 8));
}

#[test]
fn every_format_can_be_read_again() {
    let dir = folder();
    let table = |format: &str| {
        let line =
            format!("compare --trace chat.csv --policies paged,defrag {TIGHT} --no-files --format {format}");
        run(dir.path(), &line)
    };
    let json: Vec<BTreeMap<String, serde_json::Value>> = serde_json::from_str(&table("json")).unwrap();
    let lines: Vec<BTreeMap<String, serde_json::Value>> =
        table("jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json, lines);
    assert_eq!(json.len(), 2);
    assert!(COLUMNS.iter().all(|column| json[0].contains_key(*column)));
    let md = table("md");
    let rows: Vec<_> = md.lines().take_while(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), 4, "{md}");
    assert!(rows.iter().all(|row| row.matches('|').count() == rows[0].matches('|').count()), "{md}");
    assert!(rows[1].chars().all(|c| "|-: ".contains(c)), "{md}");
    assert!(table("table").contains("paged"));
    assert_eq!(names(dir.path()), ["chat.csv"], "--no-files writes files");
}

#[test]
fn every_policy_runs_under_every_scheduler_with_its_books_checked() {
    let dir = folder();
    let catalogue = run(dir.path(), "policies --format csv");
    let mut names: Vec<String> = Vec::new();
    for row in csv::Reader::from_reader(catalogue.as_bytes()).records() {
        let name = row.unwrap()[0].to_owned();
        if names.last() != Some(&name) {
            names.push(name);
        }
    }
    assert_eq!(names, POLICIES.iter().map(|spec| spec.name).collect::<Vec<_>>());
    names.extend(
        ["contiguous:run", "contiguous:pow2", "paged+prefix", "defrag:step+shift"].map(str::to_owned),
    );
    let policies = names.join(",");
    let settings = [
        "runner --on-full crash",
        "runner --on-full fail-one",
        "runner --on-full halve",
        "runner --on-full wait",
        "runner --on-full wait --keep-slots false",
        "continuous --preemption recompute --reserve-prompt false",
        "continuous --preemption swap --reserve-prompt false",
        "continuous --chunked-prefill false --watermark 0.05",
        "continuous --preemption swap --host-memory 0.01 --victim lcf --reserve none",
        "continuous --reserve full --pipeline 2",
        "continuous --reserve max --victim random --pipeline 1",
    ];
    for setting in settings {
        let line = format!(
            "compare chat.csv {policies} --scheduler {setting} --audit true --num-ctx 1024 --num-parallel 4 \
             --num-batch 128 --memory local=1400;global=1400 --model gemma3-1b --quiet --out out"
        );
        run(dir.path(), &line);
        let rows = summary(&dir.path().join("out"));
        assert_eq!(rows.len(), names.len(), "{setting}");
        assert!(rows.iter().any(|row| row.completed > 0), "{setting}");
    }
}

#[test]
fn one_run_prints_a_line_per_number() {
    let dir = folder();
    let text = run(dir.path(), &format!("run chat.csv paged {TIGHT} --out out"));
    for name in ["completed", "ttft_p99_ms", "utilisation_mean", "cells_copied"] {
        assert!(text.contains(name), "{text}");
    }
    assert_eq!(names(&dir.path().join("out")), FILES);
    let csv = run(dir.path(), &format!("run chat.csv paged {TIGHT} --no-files --format csv"));
    assert_eq!(csv, read(&dir.path().join("out"), "summary.csv"));
}

#[test]
fn catalogues_and_completions_are_printed() {
    let dir = tempdir().unwrap();
    for (line, word) in [
        ("policies", "contiguous"),
        ("policies --format md", "paged"),
        ("rules", "s3fifo"),
        ("rules --format csv", "victim,lcf,"),
        ("models", "gemma3-12b"),
        ("models --format json", "gemma3-27b"),
        ("gpus", "rtx8000"),
        ("hosts", "rtx8000+gtx1660super"),
        ("gpus --format jsonl", "gtx1660super"),
        ("completions bash", "complete"),
        ("completions zsh", "#compdef kvlab"),
        ("completions fish", "complete -c kvlab"),
        ("--version", "kvlab"),
        ("compare --help", "--num-parallel"),
    ] {
        assert!(run(dir.path(), line).contains(word), "{line}");
    }
    assert!(names(dir.path()).is_empty());
}

#[test]
fn traces_are_shown_converted_and_generated() {
    let dir = tempdir().unwrap();
    for workload in [
        "chat",
        "azure-chat",
        "image-chat",
        "screenshots",
        "code",
        "rag",
        "documents",
        "agent",
        "seats:5",
        "uniform:64-1023:200",
    ] {
        run(dir.path(), &format!("trace generate {workload} --requests 12 --seed 2 a.csv"));
        run(dir.path(), "trace convert a.csv b.csv.gz");
        run(dir.path(), "trace convert b.csv.gz c.csv");
        assert_eq!(read(dir.path(), "a.csv"), read(dir.path(), "c.csv"), "{workload}");
        let shown = run(dir.path(), "trace show b.csv.gz --format csv");
        assert!(shown.contains("requests,12,"), "{workload}: {shown}");
    }
    run(dir.path(), "trace generate screenshots --requests 12 --seed 2 s.csv");
    run(dir.path(), "trace convert s.csv a.csv --tokens-by 16 --time-by 100");
    let statistic = |file: &str, name: &str| {
        let shown = run(dir.path(), &format!("trace show {file} --format csv"));
        let line = shown.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        line.split(',').nth(1).unwrap().parse::<f64>().unwrap()
    };
    let ratio = statistic("s.csv", "prompt mean") / statistic("a.csv", "prompt mean");
    assert!((14.0..=16.0).contains(&ratio), "a sixteenth, rounded up: {ratio}");
    fs::remove_file(dir.path().join("s.csv")).unwrap();
    run(dir.path(), "trace show a.csv --out pictures --limit 3");
    assert_eq!(names(&dir.path().join("pictures")), ["trace.html"]);
    assert_eq!(names(dir.path()), ["a.csv", "b.csv.gz", "c.csv", "pictures"]);
}

#[test]
fn flags_beat_the_environment_which_beats_the_scenario() {
    let dir = tempdir().unwrap();
    let scenario = "generate = \"chat\"\nnum_ctx = 1024\nnum_parallel = 2\nnum_batch = [64, 128]\n";
    fs::write(dir.path().join("own.toml"), scenario).unwrap();
    let config = |line: &str, variable: Option<&str>| {
        let mut command = kvlab(dir.path());
        command.args(line.split(' ')).envs(variable.map(|value| ("KVLAB_NUM_CTX", value)));
        let output = command.assert().success().get_output().stdout.clone();
        String::from_utf8(output).unwrap()
    };
    let own = config("compare own.toml --print-config", None);
    assert_eq!(setting(&own, "num_ctx"), "1024");
    assert_eq!(setting(&own, "num_parallel"), "2");
    assert_eq!(setting(&own, "kv_cache_type"), "f16");
    assert!(own.contains("num_batch = [\"64\", \"128\"]"));
    let environment = config("compare own.toml --print-config", Some("2048"));
    assert_eq!(setting(&environment, "num_ctx"), "2048");
    let flag = config("compare own.toml --num-ctx 512 --print-config", Some("2048"));
    assert_eq!(setting(&flag, "num_ctx"), "512");
    assert_eq!(setting(&flag, "num_parallel"), "2");
    assert_eq!(names(dir.path()), ["own.toml"], "--print-config writes files");
    fs::write(dir.path().join("again.toml"), &own).unwrap();
    assert_eq!(config("compare again.toml --print-config", None), own);
}

#[test]
fn what_is_named_on_the_command_line_beats_the_environment() {
    let dir = folder();
    let config = |line: &str, name: &str, value: &str| {
        let assert = kvlab(dir.path()).args(line.split(' ')).env(name, value).assert().success();
        String::from_utf8(assert.get_output().stdout.clone()).unwrap()
    };
    let line = "compare chat.csv paged --print-config";
    assert_eq!(setting(&config(line, "KVLAB_POLICIES", "defrag"), "policies"), "paged");
    let trace = config(line, "KVLAB_TRACE", "other.csv");
    assert!(setting(&trace, "trace").ends_with("chat.csv"));
    let trace = config("compare --trace chat.csv --print-config", "KVLAB_GENERATE", "chat");
    assert!(setting(&trace, "trace").ends_with("chat.csv"));
}

#[test]
fn a_reader_that_goes_away_is_no_trouble() {
    let dir = folder();
    let compare = format!("compare chat.csv paged {TIGHT} --format csv --out out");
    for line in ["policies", "completions bash", "completions zsh", "trace show chat.csv", "--help", &compare]
    {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_kvlab"))
            .args(line.split(' '))
            .current_dir(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && stderr.is_empty(), "{line}: {} {stderr}", output.status);
    }
    assert_eq!(names(&dir.path().join("out")), FILES, "the files do not depend on who reads the table");
}
