//! `kvlab diagnose` and `kvlab explain` from the outside.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use common::{kvlab, run};
use flate2::Compression;
use flate2::write::GzEncoder;

fn log(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../logs/tests/logs").join(name)
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in
        ["ollama-0.6.6-crash.log", "ollama-0.9.5-pressure.log", "unrelated.log", "vllm-preemption.log"]
    {
        fs::copy(log(name), dir.path().join(name)).unwrap();
    }
    dir
}

/// Standard error of a command line that ends with exit code 2.
fn refused(dir: &Path, line: &str) -> String {
    let assert = kvlab(dir).args(line.split(' ')).assert().code(2);
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

#[test]
fn the_verdict_comes_first_and_the_next_command_last() {
    let dir = folder();
    let text = run(dir.path(), "diagnose ollama-0.6.6-crash.log");
    assert!(
        text.starts_with(
            "crash: the runner died once in 7 min 13 s: the cache of the sliding-window layers is full."
        ),
        "{text}"
    );
    for part in [
        "2560 = 2 slots x 1024 window + 512 batch",
        "num_parallel 2, num_ctx 4096, num_batch 512",
        "The log is from Ollama 0.6.6",
        "OLLAMA_NUM_PARALLEL=1 (cures)",
        "num_ctx 4096 -> 12288 (no effect)",
        "num_batch 512 -> 256 (worse)",
        "0.12.4 to 0.24",
        "kvlab diagnose ollama-0.6.6-crash.log --trace-out recovered.csv",
    ] {
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(part), "{part}\n{text}");
    }
    let mut last = text.lines().rev();
    let advise = "  kvlab advise --server-log ollama-0.6.6-crash.log --model gemma3-27b-q4_0 --gpu GPU";
    assert_eq!(last.next(), Some(advise), "{text}");
    assert!(last.next().unwrap().starts_with("  kvlab compare recovered.csv ollama-0.6.6,"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 110 || line.contains("kvlab compare")), "{text}");
}

#[test]
fn pressure_and_nothing_are_told_apart() {
    let dir = folder();
    assert!(
        run(dir.path(), "diagnose ollama-0.9.5-pressure.log").starts_with("pressure: nothing has failed")
    );
    assert!(run(dir.path(), "diagnose vllm-preemption.log").starts_with("pressure: nothing has failed"));
    let text = run(dir.path(), "diagnose unrelated.log");
    assert!(text.starts_with("nothing known: none of the 30 lines of this log is known."), "{text}");
}

#[test]
fn every_format_has_its_rows() {
    let dir = folder();
    let json = run(dir.path(), "diagnose ollama-0.6.6-crash.log --format json");
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 13);
    assert_eq!(
        (&rows[0]["verdict"], &rows[0]["event"], &rows[0]["count"]),
        (&"crash".into(), &"cache-slot".into(), &1.into())
    );
    assert_eq!(rows[0]["reading"], "2 slots x 1024 window + 512 batch");
    assert_eq!(rows[0]["first"], "2025-04-20T10:18:25+02:00");
    assert_eq!(rows[1]["length"], serde_json::Value::Null);
    assert_eq!(run(dir.path(), "diagnose ollama-0.6.6-crash.log --format jsonl").lines().count(), 13);
    assert_eq!(run(dir.path(), "diagnose unrelated.log --format csv").lines().count(), 2);
    for format in ["md", "table"] {
        let text = run(dir.path(), &format!("diagnose ollama-0.6.6-crash.log --format {format}"));
        assert_eq!(text.lines().count(), 15, "{text}");
        assert!(text.contains("cache-slot") && text.contains("per_hour"));
    }
}

#[test]
fn gzip_and_standard_input_are_read() {
    let dir = folder();
    let plain = run(dir.path(), "diagnose ollama-0.6.6-crash.log --format csv");
    let bytes = fs::read(log("ollama-0.6.6-crash.log")).unwrap();
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(&bytes).unwrap();
    let gz = gz.finish().unwrap();
    fs::write(dir.path().join("a.gz"), &gz).unwrap();
    assert_eq!(run(dir.path(), "diagnose a.gz --format csv"), plain);
    let assert =
        kvlab(dir.path()).args(["diagnose", "-", "--format", "csv"]).write_stdin(gz).assert().success();
    assert_eq!(String::from_utf8_lossy(&assert.get_output().stdout), plain);
}

#[test]
fn the_recovered_trace_is_read_by_the_other_commands() {
    let dir = folder();
    let assert = kvlab(dir.path())
        .args(["diagnose", "ollama-0.6.6-crash.log", "--trace-out", "t.csv.gz"])
        .assert()
        .success();
    let notes = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    for part in [
        "13 requests: t.csv.gz",
        "12 by access line and sizes, 0 by access line only, 1 by sizes only",
        "prompts: 13 from the log (0 of them without what was in the cache), 0 taken",
        "answers: 0 from the log, 12 from their duration at 20.0 tokens/s, 1 taken to be",
    ] {
        assert!(notes.contains(part), "{part}\n{notes}");
    }
    let shown = run(dir.path(), "trace show t.csv.gz --format csv");
    assert!(shown.contains("requests,13,") && shown.contains("5212"), "{shown}");
    let rows = run(dir.path(), "compare t.csv.gz paged:16,contiguous --no-files --format csv --seeds 1");
    assert_eq!(rows.lines().count(), 3, "{rows}");
    run(dir.path(), "diagnose ollama-0.6.6-crash.log --trace-out u.csv --tokens-per-s 10 --prompt-tokens 5");
    assert!(fs::read_to_string(dir.path().join("u.csv")).unwrap().lines().count() == 14);
}

#[test]
fn what_cannot_be_read_or_written_is_one_message_and_leaves_nothing() {
    let dir = folder();
    fs::write(dir.path().join("bad.gz"), b"\x1f\x8b\x08\x00\x00\x00\x00\x00garbage").unwrap();
    let cases = [
        ("diagnose missing.log", "missing.log: "),
        ("diagnose .", ".: "),
        ("diagnose bad.gz", "bad.gz: "),
        ("diagnose unrelated.log --format xml", "unknown format"),
        ("diagnose unrelated.log --tokens-per-s 5", "--trace-out"),
        (
            "diagnose ollama-0.6.6-crash.log --trace-out ./ollama-0.6.6-crash.log",
            "both a log and --trace-out",
        ),
        ("diagnose unrelated.log --trace-out t.csv", "t.csv: not written, the log has no request"),
        ("diagnose ollama-0.6.6-crash.log --trace-out no/t.csv", "no/t.csv: "),
        ("diagnose ollama-0.6.6-crash.log --trace-out t.csv --tokens-per-s nan", "--tokens-per-s: expected"),
        ("diagnose ollama-0.6.6-crash.log --trace-out t.csv --prompt-tokens 0", "--prompt-tokens: expected"),
    ];
    let before = fs::read(dir.path().join("ollama-0.6.6-crash.log")).unwrap();
    for (line, part) in cases {
        let said = refused(dir.path(), line);
        assert!(said.contains(part), "{line}: {said}");
    }
    assert_eq!(fs::read(dir.path().join("ollama-0.6.6-crash.log")).unwrap(), before);
    let files = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(files, 5, "nothing was left behind");
}

#[test]
fn lines_are_explained() {
    let dir = folder();
    let panic = "panic: failed to decode batch: could not find a kv cache slot (length: 6656)";
    let assert = kvlab(dir.path()).args(["explain", panic]).assert().success();
    let text = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
    assert!(text.starts_with("cache-slot (Ollama engine, crash)"), "{text}");
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flat.contains("6656 = 6 slots x 1024 window + 512 batch is likeliest"), "{text}");
    assert!(flat.contains("What works") && flat.contains("What does not"), "{text}");
    let lines =
        format!("time=2025-04-20T10:11:12Z level=DEBUG msg=\"defragmenting kv cache\"\r\n{panic}\r\n");
    let assert = kvlab(dir.path()).args(["explain", "-"]).write_stdin(lines).assert().success();
    let text = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
    assert!(text.contains("defrag (") && text.matches("\nWhy\n").count() == 1, "{text}");
    // Words without quotes.
    assert!(run(dir.path(), "explain context limit hit - shifting").starts_with("context-shift ("));
    assert!(run(dir.path(), "explain 4608").contains("4 slots x 1024 window + 512 batch"));
}

#[test]
fn what_is_unknown_is_said_so_and_all_that_is_known_is_listed() {
    let dir = folder();
    let text = run(dir.path(), "explain good morning");
    assert!(text.starts_with("Nothing in this text is known.") && text.contains("cache-slot"), "{text}");
    assert_eq!(run(dir.path(), "explain good morning --format json"), "[]\n");
    let list = run(dir.path(), "explain --format csv");
    assert_eq!(list.lines().count(), 1 + logs::EVENTS.len());
    assert!(run(dir.path(), "explain").contains("is preempted by PreemptionMode."));
}
