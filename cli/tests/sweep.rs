//! Sweeps: the same list everywhere, every simulation once, and nothing lost whatever stops them.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::{kvlab, run, sweep_folder};
use report::Summary;
use report::files::read_summary;
use serde_json::Value;
use tempfile::TempDir;

/// Twelve simulations: two policies, two contexts with a batch each, and three seeds.
const SWEEP: &str = "\
title = \"Twelve\"
reference = \"paged\"
trace = \"chat-{seed}.csv\"
seeds = 3
policies = [\"contiguous\", \"paged\"]
model = \"gemma3-1b\"
memory = \"local=2048;global=2048\"
num_parallel = 4

[[link]]
num_ctx = [512, 1024]
num_batch = [32, 64]
";

/// A folder with a sweep and its traces.
fn folder() -> TempDir {
    sweep_folder(SWEEP, 3, 30)
}

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).unwrap();
}

/// Every visible file below a folder, by its path.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().unwrap() != ".lock" {
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// The files that hold one simulation each.
fn results(dir: &Path) -> Vec<PathBuf> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let is_one = |path: &PathBuf| path.components().count() == 2 && !name(path).starts_with('.');
    files(dir).into_keys().filter(is_one).map(|path| dir.join(path)).collect()
}

fn specs(list: &str) -> Vec<Value> {
    list.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn keys(list: &str) -> Vec<String> {
    specs(list).iter().map(|spec| spec["key"].as_str().unwrap().to_owned()).collect()
}

/// Exit code and standard error of a command line.
fn outcome(dir: &Path, line: &str) -> (i32, String) {
    let assert = kvlab(dir).args(line.split(' ')).assert();
    let output = assert.get_output();
    (output.status.code().unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

/// Runs `kvlab task` on a text.
fn task(dir: &Path, spec: &str) -> (i32, String, String) {
    let assert = kvlab(dir).arg("task").write_stdin(spec).assert();
    let output = assert.get_output();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_list_is_the_grid_in_a_stable_order() {
    let dir = folder();
    let list = run(dir.path(), "sweep grid.toml --list");
    assert_eq!(list, run(dir.path(), "sweep grid.toml --list --threads 1"));
    let setting = |spec: &Value, key: &str| spec["settings"][key].as_str().unwrap().to_owned();
    let found: Vec<String> = specs(&list)
        .iter()
        .map(|spec| ["num_ctx", "num_batch", "policies", "seed0"].map(|key| setting(spec, key)).join(" "))
        .collect();
    let mut expected = Vec::new();
    for linked in ["512 32", "1024 64"] {
        for policy in ["contiguous", "paged"] {
            expected.extend((0..3).map(|seed| format!("{linked} {policy} {seed}")));
        }
    }
    assert_eq!(found, expected);
    assert_eq!(keys(&list).iter().collect::<BTreeSet<_>>().len(), 12);
    assert_eq!(specs(&list)[1]["files"], serde_json::json!(["chat-1.csv"]));
    assert_eq!(run(dir.path(), "sweep grid.toml --check"), "12 simulations\n");
    assert!(!dir.path().join("kvlab-out").exists(), "neither writes anything");
}

#[test]
fn keys_follow_from_content_and_not_from_places() {
    let dir = folder();
    let list = run(dir.path(), "sweep grid.toml --list");
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for name in ["grid.toml", "chat-0.csv", "chat-1.csv", "chat-2.csv"] {
        fs::copy(dir.path().join(name), elsewhere.join(name)).unwrap();
    }
    assert_eq!(run(dir.path(), "sweep elsewhere/grid.toml --list"), list);
    // One trace is another now: its simulations have other keys, the rest keep theirs.
    let trace = fs::read_to_string(elsewhere.join("chat-1.csv")).unwrap();
    let (head, _) = trace.trim_end().rsplit_once('\n').unwrap();
    write(&elsewhere, "chat-1.csv", &format!("{head}\n"));
    let (old, new) = (keys(&list), keys(&run(dir.path(), "sweep elsewhere/grid.toml --list")));
    for (at, (old, new)) in old.iter().zip(&new).enumerate() {
        assert_eq!(old == new, at % 3 != 1, "{at}");
    }
    // A value more moves no key.
    write(dir.path(), "more.toml", &SWEEP.replace("\"paged\"]", "\"paged\", \"paged:32\"]"));
    let more: BTreeSet<String> = keys(&run(dir.path(), "sweep more.toml --list")).into_iter().collect();
    assert_eq!(more.len(), 18);
    assert!(old.iter().all(|key| more.contains(key)));
}

#[test]
fn shards_partition_the_list() {
    let dir = folder();
    let all = keys(&run(dir.path(), "sweep grid.toml --list"));
    for count in [1, 2, 5] {
        let mut joined = Vec::new();
        for index in 0..count {
            let shard = run(dir.path(), &format!("sweep grid.toml --list --shard {index}/{count}"));
            joined.extend(keys(&shard));
        }
        joined.sort();
        let mut sorted = all.clone();
        sorted.sort();
        assert_eq!(joined, sorted, "{count} shards");
    }
    run(dir.path(), "sweep grid.toml --quiet --out whole");
    for index in 0..3 {
        let line = format!("sweep grid.toml --quiet --out parts --shard {index}/3");
        assert_eq!(run(dir.path(), &line), "", "a shard has no table");
        if index < 2 {
            let (code, said) = outcome(dir.path(), "collect parts");
            assert_eq!(code, 1, "{said}");
            assert!(said.contains("of 12 simulations are missing"), "{said}");
        }
    }
    run(dir.path(), "collect parts --quiet");
    assert!(files(&dir.path().join("parts")) == files(&dir.path().join("whole")));
}

#[test]
fn results_are_those_of_compare_on_any_number_of_threads() {
    let dir = folder();
    let one = run(dir.path(), "sweep grid.toml --quiet --threads 1 --out one");
    let two = run(dir.path(), "sweep grid.toml --quiet --threads 2 --out two");
    assert_eq!(one, two);
    let (first, second) = (files(&dir.path().join("one")), files(&dir.path().join("two")));
    assert!(first == second);
    // The list, what is said of the whole, both tables and the page.
    assert_eq!(first.len(), 12 + 5, "{:?}", first.keys());
    let line = "compare grid-of-one.toml --no-files --quiet --format csv --num-ctx 1024 --num-batch 64";
    let (above, _) = SWEEP.split_once("\n[[link]]").unwrap();
    write(dir.path(), "grid-of-one.toml", above);
    write(dir.path(), "compared.csv", &run(dir.path(), line));
    let compared = read_summary(&dir.path().join("compared.csv")).unwrap();
    let swept = read_summary(&dir.path().join("one/summary.csv")).unwrap();
    assert_eq!(compared.len(), 6);
    for (swept, compared) in swept[6..].iter().zip(&compared) {
        // The key of `compare` is one of the traces of all its seeds, and a sweep keeps no timeline.
        assert!(compared.high_water_mean.is_some() && compared.sequence_runs_mean.is_some());
        let compared = Summary {
            spec_key: swept.spec_key.clone(),
            high_water_mean: None,
            sequence_runs_mean: None,
            ..compared.clone()
        };
        assert_eq!(*swept, compared);
    }
}

#[test]
fn a_second_run_simulates_nothing_and_a_wider_one_only_what_is_new() {
    let dir = folder();
    let table = run(dir.path(), "sweep grid.toml --quiet --out out");
    let before = files(&dir.path().join("out"));
    let modified = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    let times: Vec<_> = results(&dir.path().join("out")).iter().map(modified).collect();
    let (code, said) = outcome(dir.path(), "sweep grid.toml --out out");
    assert_eq!(code, 0);
    assert!(said.contains("12 simulations were there already"), "{said}");
    assert_eq!(run(dir.path(), "sweep grid.toml --quiet --out out"), table);
    assert!(files(&dir.path().join("out")) == before);
    assert_eq!(results(&dir.path().join("out")).iter().map(modified).collect::<Vec<_>>(), times);
    let (code, said) = outcome(dir.path(), "sweep grid.toml --out out --watermark 0,0.1");
    assert_eq!(code, 0);
    assert!(said.contains("12 simulations were there already"), "{said}");
    assert!(said.contains("12 simulations in"), "{said}");
}

#[test]
fn keys_without_a_column_tell_results_apart() {
    let dir = folder();
    let line = "sweep grid.toml --quiet --out out --watermark 0,0.1 --num-ctx 512 --num-batch 32";
    let table = run(dir.path(), line);
    let rows = read_summary(&dir.path().join("out/summary.csv")).unwrap();
    assert_eq!(rows.len(), 12);
    let variants: BTreeSet<&str> = rows.iter().map(|row| row.variant.as_str()).collect();
    assert_eq!(variants, BTreeSet::from(["watermark=0", "watermark=0.1"]));
    for said in ["contiguous, variant watermark=0 over paged, variant watermark=0 (3 paired seeds)", "95 %"] {
        assert!(table.contains(said), "no {said:?} in {table}");
    }
    let tails = fs::read_to_string(dir.path().join("out/tails.csv")).unwrap();
    let mut reader = csv::Reader::from_reader(tails.as_bytes());
    let headers = reader.headers().unwrap().clone();
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 4 * 3);
    let value = |row: &csv::StringRecord, name: &str| {
        row[headers.iter().position(|header| header == name).unwrap()].parse::<f64>().unwrap()
    };
    for row in &rows {
        assert_eq!(value(row, "runs"), 3.0);
        assert!(value(row, "samples") > 10.0);
        assert!(value(row, "p50_ms") <= value(row, "p99_ms"));
        assert!(value(row, "p99_ms") <= value(row, "max_ms"));
    }
}

#[test]
fn a_trace_without_seeds_has_one_sample_and_no_interval() {
    let dir = folder();
    write(dir.path(), "replay.toml", &SWEEP.replace("chat-{seed}", "chat-0"));
    assert_eq!(run(dir.path(), "sweep replay.toml --check"), "4 simulations\n");
    let table = run(dir.path(), "sweep replay.toml --quiet --out out");
    assert!(table.contains("one run each, so no interval"), "{table}");
    assert!(!table.contains('±'), "{table}");
}

#[test]
fn rows_and_grids_go_together() {
    let dir = folder();
    let rows = "policies = \"paged\"\n\n[[row]]\nname = \"small\"\nnum_batch = 32\n\n[[row]]\nname = \"large\"\n\
                num_batch = 64\nwatermark = 0.1\n";
    let (above, _) = SWEEP.split_once("\n[[link]]").unwrap();
    let above = above.replace("policies = [\"contiguous\", \"paged\"]\n", "num_ctx = [512, 1024]\n");
    let above = above.replace("reference = \"paged\"\n", "");
    write(dir.path(), "rows.toml", &format!("{above}{rows}"));
    let table = run(dir.path(), "sweep rows.toml --quiet --out out --reference large");
    let rows = read_summary(&dir.path().join("out/summary.csv")).unwrap();
    assert_eq!(rows.len(), 2 * 2 * 3);
    assert!(rows.iter().all(|row| row.num_batch == if row.row == "small" { 32 } else { 64 }));
    assert!(table.contains("small"), "{table}");
    assert_eq!(keys(&run(dir.path(), "sweep rows.toml --list --rows small")).len(), 6);
}

/// Runs a sweep that has to be refused; a caret stands under the first letter of `spot`.
fn refused_at(dir: &Path, text: &str, spot: &str, words: &str) {
    write(dir, "bad.toml", text);
    for line in ["sweep bad.toml --out out", "sweep bad.toml --check", "sweep bad.toml --list"] {
        let assert = kvlab(dir).args(line.split(' ')).assert();
        let output = assert.get_output();
        let message = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}: {message}");
        assert!(output.stdout.is_empty(), "{text}: prints something");
        assert!(!dir.join("out").exists(), "{text}: leaves files");
        assert!(message.contains("bad.toml:"), "{message}");
        assert!(message.contains(words), "no {words:?} in {message}");
        let lines: Vec<&str> = message.lines().collect();
        let caret = lines.iter().position(|line| line.contains('^')).unwrap();
        let at = lines[caret].find('^').unwrap();
        assert!(lines[caret - 1][at..].starts_with(spot), "the caret is not at {spot:?}: {message}");
    }
}

#[test]
fn what_is_wrong_with_a_grid_is_pointed_at() {
    let dir = folder();
    let with = |link: &str| SWEEP.split_once("num_ctx = [").unwrap().0.to_owned() + link;
    for (link, spot, words) in [
        ("num_ctx = [512, 1024]\nnum_batch = [32]\n", "[32]", "num_batch has 1 value, num_ctx has 2 values"),
        (
            "num_batch = 32\nnum_ctx = [512, 1024, 256]\n",
            "[512",
            "num_ctx has 3 values, num_batch has 1 value",
        ),
        ("num_ctx = [512, 1024]\n", "[[link]]", "two or more keys"),
        ("num_ctx = []\nnum_batch = []\n", "[[link]]", "with values"),
        ("num_ctx = [512, 1024]\nnum_parallel = [2, 4]\n", "2, 4", "num_parallel stands above"),
        ("num_ctx = [512, 1024]\nseeds = [2, 4]\n", "seeds", "same for the whole sweep"),
        ("num_ctx = [512, 1024]\nnum_bach = [2, 4]\n", "num_bach", "did you mean \"num_batch\"?"),
        ("num_ctx = [512, \"many\"]\nnum_batch = [32, 64]\n", "many", "whole number"),
        ("num_ctx = [512, 512]\nnum_batch = [32, 32]\n", "512]", "512 stands twice"),
        (
            "num_ctx = [512, 1024]\nnum_batch = [32, 64]\n[[link]]\nnum_ctx = [1, 2]\nvictim = [3, 4]\n",
            "num_ctx",
            "linked twice",
        ),
        (
            "generate = [\"chat\", \"code\"]\nnum_batch = [32, 64]\n",
            "chat-{seed}",
            "workload is linked already",
        ),
        ("num_ctx = [512, 1024]\nnum_batch = [32, 2]\n", "2", "below num_parallel"),
    ] {
        refused_at(dir.path(), &with(link), spot, words);
    }
    for (line, spot, words) in [
        ("watermark = [0, 0.1, 0]\n", "0]", "0 stands twice"),
        ("watermark = [0, 1.5]\n", "1.5", "share"),
        ("seeds = [1, 2]\n", "[1, 2]", "one value"),
        ("[link]\nnum_ctx = [1, 2]\n", "[link]", "[[link]]"),
    ] {
        let mut text = SWEEP.split_once("\n[[link]]").unwrap().0.to_owned();
        if line.starts_with("seeds") {
            text = text.replace("seeds = 3\n", "");
        }
        refused_at(dir.path(), &format!("{text}{line}"), spot, words);
    }
    let (code, said) = outcome(dir.path(), "compare grid.toml --no-files");
    assert_eq!(code, 2);
    assert!(said.contains("grid.toml:10") && said.contains("kvlab sweep"), "{said}");
    for (flags, word) in [
        ("--shard 4/4", "0 to N - 1"),
        ("--shard 1", "0 to N - 1"),
        ("--threads 0", "1 to 4096"),
        ("--fail-if failed", "failed > 0"),
        ("--fail-if fialed>0", "fialed"),
        ("--reference shift", "shift"),
    ] {
        let (code, said) = outcome(dir.path(), &format!("sweep grid.toml --out out {flags}"));
        assert_eq!(code, 2, "{flags}: {said}");
        assert!(said.contains(word), "{flags}: {said}");
        assert!(!dir.path().join("out").exists(), "{flags} leaves files");
    }
}

#[test]
fn a_task_is_a_result_of_the_sweep() {
    let dir = folder();
    run(dir.path(), "sweep grid.toml --quiet --out out");
    let list = run(dir.path(), "sweep grid.toml --list");
    for (line, key) in list.lines().zip(keys(&list)).step_by(5) {
        let (code, done, said) = task(dir.path(), line);
        assert_eq!((code, said.as_str()), (0, ""));
        let kept = dir.path().join("out").join(&key[..2]).join(format!("{key}.json"));
        assert_eq!(done, fs::read_to_string(kept).unwrap());
    }
    // The first simulation of each policy keeps a map of its cells, and no other.
    let map = |line: &str| serde_json::from_str::<Value>(line).unwrap()["map"] == true;
    assert_eq!(
        list.lines().map(map).collect::<Vec<_>>()[..8],
        [true, false, false, true, false, false, false, false]
    );
    let has_map = |path: &PathBuf| fs::read_to_string(path).unwrap().contains("\"map\":[");
    assert_eq!(results(&dir.path().join("out")).iter().filter(|path| has_map(path)).count(), 2);
    // From another folder, with the base.
    let mut task = kvlab(&std::env::temp_dir());
    task.args(["task", "--base"])
        .arg(dir.path())
        .write_stdin(list.lines().next().unwrap())
        .assert()
        .success();
}

#[test]
fn exit_codes_tell_a_bad_spec_from_a_failure_and_a_kill() {
    let dir = folder();
    let list = run(dir.path(), "sweep grid.toml --list");
    let line = list.lines().next().unwrap();
    for (spec, word) in [
        (String::new(), "expected one spec"),
        ("{".to_owned(), "line 1"),
        (format!("{line}\n{line}"), "trailing"),
        (line.replace("\"settings\"", "\"setings\""), "setings"),
        (line.replace("\"num_ctx\":\"512\"", "\"num_ctx\":\"lots\""), "spec, num_ctx"),
        (line.replace("\"num_ctx\"", "\"num_ctxx\""), "num_ctxx"),
        (line.replace("\"num_ctx\":\"512\"", "\"num_ctx\":\"513\""), "key"),
        (line.replace("chat-{seed}.csv", "gone-{seed}.csv"), "gone-0.csv"),
        (line.replace("{\"files\"", "{\"colour\":1,\"files\""), "colour"),
        ("{\"settings\":{\"generate\":\"chat\"}}".to_owned(), "one simulation"),
        ("{\"settings\":{\"generate\":\"chat\",\"seeds\":\"3\"}}".to_owned(), "seeds"),
    ] {
        let (code, out, said) = task(dir.path(), &spec);
        assert_eq!((code, out.as_str()), (2, ""), "{spec}: {said}");
        assert!(said.contains(word), "no {word:?} in {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    // A trace that is wrong further down is bad input, too: it will not be better elsewhere.
    write(dir.path(), "chat-0.csv", "arrival_s,prompt_tokens,output_tokens\n0,30,4\n1,30,x\n");
    let line = run(dir.path(), "sweep grid.toml --list");
    let (code, _, said) = task(dir.path(), line.lines().next().unwrap());
    assert_eq!(code, 2);
    assert!(said.contains("chat-0.csv") && said.contains("line 3"), "{said}");
    // A spec by hand needs no key, and what it leaves out has its default.
    let spec = "{\"settings\":{\"generate\":\"chat\",\"policies\":\"paged\",\"requests\":\"5\"}}";
    let (code, done, _) = task(dir.path(), spec);
    assert_eq!(code, 0);
    let done: Value = serde_json::from_str(&done).unwrap();
    assert_eq!(done["summary"]["requests"], 5);
    assert_eq!(done["key"].as_str().unwrap().len(), 32);
}

#[test]
#[cfg(unix)]
fn a_task_that_is_killed_has_no_exit_code() {
    use std::os::unix::process::ExitStatusExt;

    let dir = folder();
    let spec = "{\"settings\":{\"generate\":\"chat\",\"policies\":\"paged\",\"requests\":\"100000000\"}}";
    write(dir.path(), "spec.json", spec);
    let mut task = std::process::Command::new(env!("CARGO_BIN_EXE_kvlab"))
        .arg("task")
        .stdin(fs::File::open(dir.path().join("spec.json")).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(50));
    task.kill().unwrap();
    let status = task.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (None, Some(9)));
}

#[test]
fn a_failure_is_kept_and_tried_again() {
    let dir = folder();
    let trace = fs::read_to_string(dir.path().join("chat-1.csv")).unwrap();
    write(dir.path(), "chat-1.csv", &format!("{trace}1e9,none,5\n"));
    let (code, said) = outcome(dir.path(), "sweep grid.toml --out out");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("4 of 12 simulations failed") && said.contains("chat-1.csv, line 32"), "{said}");
    let out = dir.path().join("out");
    let failures = |out: &Path| -> Vec<PathBuf> {
        let is_failure = |path: &PathBuf| path.to_string_lossy().ends_with(".failed.json");
        results(out).into_iter().filter(is_failure).collect()
    };
    assert_eq!(failures(&out).len(), 4);
    assert_eq!(results(&out).len(), 12);
    let failed: Value = serde_json::from_slice(&fs::read(&failures(&out)[0]).unwrap()).unwrap();
    assert!(failed["error"].as_str().unwrap().contains("chat-1.csv"), "{failed}");
    assert_eq!(failed["settings"]["seed0"], "1");
    // What is there is collected all the same, and `collect` knows of the failures.
    assert_eq!(read_summary(&out.join("summary.csv")).unwrap().len(), 8);
    let (code, said) = outcome(dir.path(), "collect out");
    assert_eq!(code, 1);
    assert!(said.contains("4 of 12 simulations failed"), "{said}");
    // They fail again, so they were tried again.
    let (_, said) = outcome(dir.path(), "sweep grid.toml --out out");
    assert!(said.contains("4 that failed before are tried again"), "{said}");
    assert!(said.contains("8 simulations were there already"), "{said}");
    // What failed for a reason that has gone succeeds, and the failure is forgotten.
    write(dir.path(), "chat-1.csv", &trace);
    run(dir.path(), "sweep grid.toml --quiet --out good");
    let good = dir.path().join("good");
    let before = files(&good);
    let one = results(&good)[5].clone();
    let failure = one.with_extension("failed.json");
    let done: Value = serde_json::from_slice(&fs::read(&one).unwrap()).unwrap();
    let failed = serde_json::json!({ "error": "error: out of luck", "key": done["key"], "row": "",
        "settings": done["settings"] });
    fs::write(&failure, failed.to_string()).unwrap();
    fs::remove_file(&one).unwrap();
    let (code, said) = outcome(dir.path(), "collect good");
    assert_eq!(code, 1);
    assert!(said.contains("1 of 12 simulations failed") && said.contains("out of luck"), "{said}");
    let (code, said) = outcome(dir.path(), "sweep grid.toml --out good");
    assert_eq!(code, 0);
    assert!(said.contains("1 that failed before are tried again"), "{said}");
    assert!(files(&good) == before);
}

#[test]
fn conditions_have_an_exit_code_of_their_own() {
    let dir = folder();
    let line =
        |condition: &'static str| ["sweep", "grid.toml", "--quiet", "--out", "out", "--fail-if", condition];
    let ask = |words: &[&str]| {
        let assert = kvlab(dir.path()).args(words).assert();
        let output = assert.get_output().clone();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap(), output.stdout)
    };
    let (code, said, table) = ask(&line("completed < 1"));
    assert_eq!((code, said.as_str()), (0, ""));
    let (code, said, same) = ask(&line("completed >= 1"));
    assert_eq!(code, 3, "{said}");
    assert_eq!(same, table, "the table is printed all the same");
    assert!(said.contains("fail-if: completed >= 1 in 12 of 12 simulations, first in contiguous"), "{said}");
    let (code, said, _) = ask(&["collect", "out", "--fail-if", "failed > 1e9", "--fail-if", "seed == 2"]);
    assert_eq!(code, 3);
    assert!(said.contains("seed == 2 in 4 of 12"), "{said}");
    let (code, said, _) = ask(&["collect", "nowhere"]);
    assert_eq!(code, 2);
    assert!(said.contains("nowhere") && said.contains("folder of a sweep"), "{said}");
    let (code, said, _) = ask(&["collect", "out", "--reference", "shift"]);
    assert_eq!(code, 2);
    assert!(said.contains("shift"), "{said}");
}

#[test]
fn a_result_that_is_broken_is_named() {
    let dir = folder();
    run(dir.path(), "sweep grid.toml --quiet --out out");
    let one = results(&dir.path().join("out"))[3].clone();
    fs::write(&one, "{\"key\":").unwrap();
    let (code, said) = outcome(dir.path(), "collect out");
    assert_eq!(code, 2);
    assert!(said.contains(one.file_name().unwrap().to_str().unwrap()), "{said}");
    // What a power cut leaves is as good as nothing.
    fs::write(&one, "").unwrap();
    let (code, said) = outcome(dir.path(), "collect out");
    assert_eq!(code, 1);
    assert!(said.contains("1 of 12 simulations are missing"), "{said}");
    let (_, said) = outcome(dir.path(), "sweep grid.toml --out out");
    assert!(said.contains("11 simulations were there already"), "{said}");
    run(dir.path(), "collect out");
}

/// Killed again and again, in the middle of whatever it does, a sweep ends with the same bytes; only what
/// was under way is simulated again, so it does end.
#[test]
fn killed_at_any_moment_a_sweep_loses_nothing() {
    let dir = folder();
    let lists = "num_parallel = [2, 4]\nwatermark = [0, 0.05, 0.1]\nvictim = [\"lifo\", \"lcf\", \"srf\"]\n";
    write(dir.path(), "grid.toml", &SWEEP.replace("num_parallel = 4\n", lists));
    run(dir.path(), "sweep grid.toml --quiet --out whole");
    let out = dir.path().join("out");
    let finished = |out: &Path| if out.exists() { results(out).len() } else { 0 };
    let (mut kills, mut before, mut left) = (0, 0, BTreeSet::new());
    loop {
        let mut sweep = std::process::Command::new(env!("CARGO_BIN_EXE_kvlab"))
            .args(["sweep", "grid.toml", "--quiet", "--out", "out", "--threads", "2"])
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // A little further every time: before the list, in it, in the simulations.
        let patience = Duration::from_millis(10 + 17 * kills);
        let start = std::time::Instant::now();
        let ended = loop {
            if let Some(status) = sweep.try_wait().unwrap() {
                break Some(status);
            }
            if start.elapsed() > patience {
                break None;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        if let Some(status) = ended {
            assert!(status.success());
            break;
        }
        sweep.kill().unwrap();
        sweep.wait().unwrap();
        kills += 1;
        let now = finished(&out);
        assert!(now >= before, "a result has gone: {now} of {before}");
        left.insert(now);
        before = now;
        assert!(kills < 500, "the sweep never ends");
    }
    assert!(kills >= 3 && left.len() >= 3, "{kills} kills at {left:?} results: too few to show anything");
    assert!(files(&out) == files(&dir.path().join("whole")), "other bytes after {kills} kills");
}
