//! The scenario of the incident, shortened: what each change does, on which device, and whether the log
//! of the simulated server is read as what happened.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::run;
use report::Summary;
use report::files::read_summary;
use tempfile::tempdir;

fn scenario() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/ollama-gemma3.toml")
}

/// Runs some rows of the scenario on the first requests of the first traces; the results by row.
fn rows(names: &str, seeds: u32, limit: u32) -> BTreeMap<String, Vec<Summary>> {
    let dir = tempdir().unwrap();
    let command = format!(
        "compare|{}|--rows|{names}|--seeds|{seeds}|--limit|{limit}|--reference|as it was|--out|out|--quiet",
        scenario().display()
    );
    common::kvlab(dir.path()).args(command.split('|')).assert().success();
    let mut found: BTreeMap<String, Vec<Summary>> = BTreeMap::new();
    for row in read_summary(&dir.path().join("out/summary.csv")).unwrap() {
        found.entry(row.row.clone()).or_default().push(row);
    }
    found
}

fn crashes(rows: &[Summary]) -> u64 {
    rows.iter().map(|row| row.crashes).sum()
}

#[test]
fn the_failing_settings_crash_and_only_what_should_cure_them_does() {
    let rows = rows(
        "as it was,num_ctx 12288,num_batch 256,num_parallel 1,sized as before 0.6.3,Ollama 0.12.4,paged",
        4,
        400,
    );
    assert!(crashes(&rows["as it was"]) > 0);
    assert!(rows["as it was"].iter().any(|row| row.corrupted_steps > 0));
    for row in ["num_ctx 12288", "num_batch 256"] {
        assert!(crashes(&rows[row]) > 0, "{row} is no cure");
    }
    for row in ["num_parallel 1", "sized as before 0.6.3", "Ollama 0.12.4", "paged"] {
        assert_eq!(crashes(&rows[row]), 0, "{row} is a cure");
        assert!(rows[row].iter().all(|row| row.completed == row.requests), "{row} loses nothing");
    }
    for row in ["num_parallel 1", "paged"] {
        assert!(rows[row].iter().all(|row| row.corrupted_steps == 0), "{row} mixes nobody's tokens");
    }
    assert!(rows["as it was"].iter().all(|row| row.cells == "local=2560;global=8192"));
    assert!(rows["num_ctx 12288"].iter().all(|row| row.cells == "local=2560;global=24576"));
    assert!(
        rows["paged"].iter().all(|row| row.cells == "local=2624;global=8192"),
        "whole blocks for windows"
    );
    assert!(rows["sized as before 0.6.3"].iter().all(|row| row.cells == "local=3072;global=8192"));
}

#[test]
fn the_small_gpu_matters_only_where_it_is_used() {
    let names = "as it was,small GPU hidden,no sysmem fallback,small GPU used,small GPU without fallback";
    let rows = rows(names, 1, 60);
    let one = |name: &str| rows[name][0].clone();
    let reference = one("as it was");
    for name in ["small GPU hidden", "no sysmem fallback"] {
        let row = Summary {
            row: reference.row.clone(),
            gpu: reference.gpu.clone(),
            spec_key: reference.spec_key.clone(),
            ..one(name)
        };
        assert_eq!(row, reference, "{name} changes nothing but its name");
    }
    assert_eq!(reference.memory_gib, "rtx8000=19.9/46.5");
    assert_eq!((reference.freezes, reference.spilled_gib), (0, 0.0));
    let used = one("small GPU used");
    assert_eq!(used.memory_gib, "rtx8000=13.6/46.5;gtx1660super=7.3/5.1");
    assert_eq!(used.memory_estimated_gib, "rtx8000=19.0;gtx1660super=5.0");
    assert!(used.spilled_gib > 2.0 && used.freezes > used.steps / 2, "{used:?}");
    assert!(used.tpot_p50_ms > reference.tpot_p50_ms.map(|ms| 5.0 * ms));
    let strict = one("small GPU without fallback");
    assert_eq!((strict.failed, strict.completed, strict.steps), (strict.requests, 0, 0));
    assert!(strict.load_error.contains("CUDA1"), "{}", strict.load_error);
}

#[test]
fn the_log_of_the_simulated_server_is_read_as_what_happened() {
    let dir = tempdir().unwrap();
    let command = format!(
        "run|{}|--rows|as it was|--seeds|1|--seed0|3|--limit|600|--out|out|--quiet|--log|server.log",
        scenario().display()
    );
    common::kvlab(dir.path()).args(command.split('|')).assert().success();
    let row = read_summary(&dir.path().join("out/summary.csv")).unwrap().remove(0);
    assert!(row.crashes > 0, "this trace crashes");
    let events = run(dir.path(), "diagnose server.log --format csv");
    let count = |event: &str| {
        let mut reader = csv::Reader::from_reader(events.as_bytes());
        let headers = reader.headers().unwrap().clone();
        let column = |wanted: &str| headers.iter().position(|name| name == wanted).unwrap();
        let (name, count) = (column("event"), column("count"));
        let found = reader.records().map(Result::unwrap).find(|record| &record[name] == event);
        found.map_or(0, |record| record[count].parse::<u64>().unwrap())
    };
    assert_eq!(count("cache-slot"), row.crashes);
    assert_eq!(count("defrag"), row.defrag_passes);
    assert_eq!(count("context-shift"), row.shifts);
    assert_eq!(count("truncated-prompt"), row.truncated);
    let story = run(dir.path(), "diagnose server.log");
    assert!(story.contains("2560 = 2 slots x 1024 window + 512 batch"), "{story}");
    assert!(story.contains("OLLAMA_NUM_PARALLEL=1"), "{story}");
}

#[test]
fn hosts_and_their_settings_are_checked() {
    let dir = tempdir().unwrap();
    let base = "compare --generate screenshots --requests 2 --scheduler runner --policies paged --no-files --quiet \
                --model gemma3-4b-q4_0 --num-parallel 2 ";
    for (flags, expected) in [
        ("--gpu rtx8000+nothing", "nothing"),
        ("--gpu rtx8000+gtx1660super --visible-devices 2", "no device 2"),
        ("--gpu rtx8000+gtx1660super --visible-devices 0,x", "\"x\" is not the number of a GPU"),
        ("--gpu rtx8000+gtx1660super --memory fill", "fill needs a single GPU"),
        ("--gpu rtx8000+gtx1660super --sched-spread perhaps", "not one of true, false"),
        ("--gpu rtx8000+gtx1660super --gpu-overhead-gib -1", "a number of at least 0"),
        ("--gpu rtx8000 --num-parallel auto", "auto is for hosts"),
        ("--gpu rtx8000+gtx1660super --model llama-3.1-8b", "Gemma 3 only"),
    ] {
        let line = format!("{base}{flags}");
        // A flag that stands twice is clap's to refuse; the later one is meant here.
        let mut words: Vec<&str> = Vec::new();
        for word in line.split_whitespace() {
            if let Some(at) = words.iter().position(|&known| word.starts_with("--") && known == word) {
                words.drain(at..at + 2);
            }
            words.push(word);
        }
        let assert = common::kvlab(dir.path()).args(&words).assert().code(2);
        let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        assert!(said.contains(expected), "{flags}: {said}");
    }
    let auto = format!("{base} --gpu rtx8000+gtx1660super --format csv")
        .replace("--num-parallel 2", "--num-parallel auto");
    let words: Vec<&str> = auto.split_whitespace().collect();
    let table = run(dir.path(), &words.join(" "));
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let headers = reader.headers().unwrap().clone();
    let parallel = headers.iter().position(|name| name == "num_parallel").unwrap();
    assert_eq!(&reader.records().next().unwrap().unwrap()[parallel], "4");
}
