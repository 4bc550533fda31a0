//! `kvlab engine logits`, `generate` and `bench`, and the end of `kvlab compare` on the engine.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{kvlab, run};
use tempfile::tempdir;

const TOKENS: &str = "2,4,7,9,16,80,12,5,4,8,11,5,4,7,10,16";

/// The rows of a file of logits: position, token, logits.
fn rows(text: &str) -> Vec<(usize, u32, Vec<f32>)> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let rows = reader.records().map(|row| {
        let row = row.unwrap();
        let logits = row.iter().skip(2).map(|number| number.parse().unwrap()).collect();
        (row[0].parse().unwrap(), row[1].parse().unwrap(), logits)
    });
    rows.collect()
}

/// What a command line is refused with; nothing may be left behind.
fn refused(line: &str, words: &[&str]) {
    let dir = tempdir().unwrap();
    let assert = kvlab(dir.path()).args(line.split(' ')).assert().code(2);
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    for word in words {
        assert!(text.contains(word), "{line}: {word:?} is not in {text}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{line} left something behind");
}

fn scenarios() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios")
}

#[test]
fn logits_are_the_same_whoever_chooses_the_cells_and_however_the_prompt_is_cut() {
    let dir = tempdir().unwrap();
    run(dir.path(), &format!("engine logits --tokens {TOKENS} --out a.csv"));
    let first = fs::read_to_string(dir.path().join("a.csv")).unwrap();
    let found = rows(&first);
    assert_eq!(found.len(), 16);
    assert!(found.iter().all(|(_, _, logits)| logits.len() == 256 && logits.iter().all(|x| x.is_finite())));
    assert_eq!((found[5].0, found[5].1), (5, 80));
    let spread = |logits: &[f32]| logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) - logits[0];
    assert!(found.iter().any(|(_, _, logits)| spread(logits) > 1.0), "a trained model prefers something");
    for policy in
        ["paged:4", "contiguous:run", "defrag", "ollama-0.6.6", "llama-unified", "ring", "unlimited"]
    {
        for batch in [1, 3] {
            let line =
                format!("engine logits --tokens {TOKENS} --policy {policy} --num-batch {batch} --out -");
            assert!(run(dir.path(), &line) == first, "{policy} in batches of {batch}");
        }
    }
}

#[test]
fn a_short_context_and_coarse_cells_change_the_logits() {
    let dir = tempdir().unwrap();
    let logits =
        |more: &str| rows(&run(dir.path(), &format!("engine logits --tokens {TOKENS} --out -{more}")));
    let full = logits("");
    let differ = |other: &[(usize, u32, Vec<f32>)]| {
        let pairs = full.iter().zip(other);
        pairs.filter(|(a, b)| a.2 != b.2).map(|(a, _)| a.0).collect::<Vec<_>>()
    };
    run(dir.path(), &format!("engine logits --tokens {TOKENS} --num-ctx 2 --policy ollama-0.6.6 --out -"));
    for policy in ["shift:2", "sinks:2", "ring", "truncate:2"] {
        let short = logits(&format!(" --num-ctx 10 --policy {policy}"));
        let changed = differ(&short);
        assert_eq!(changed.first(), Some(&10), "{policy} drops tokens at its limit, not before: {changed:?}");
    }
    assert!(!differ(&logits(" --kv q4_0")).is_empty());
    let read = logits(" --rotate-on-read");
    let off = full.iter().zip(&read).flat_map(|(a, b)| a.2.iter().zip(&b.2)).map(|(a, b)| (a - b).abs());
    assert!(off.fold(0.0, f32::max) < 1e-3, "rotating later is rotating");
}

#[test]
fn the_tiny_model_answers_what_it_was_told() {
    let dir = tempdir().unwrap();
    let told = "<start_of_turn> user note ada apple . <end_of_turn> <start_of_turn> model ok <end_of_turn> \
                <start_of_turn> user ask ada <end_of_turn> <start_of_turn> model";
    let answer = |more: &[&str]| {
        let arguments = ["engine", "generate", "--max-tokens", "4", "--prompt", told];
        let assert = kvlab(dir.path()).args(arguments).args(more).assert().success();
        String::from_utf8(assert.get_output().stdout.clone()).unwrap()
    };
    let first = answer(&[]);
    assert!(first.contains("ada apple"), "{first}");
    assert_eq!(answer(&["--policy", "paged:4", "--num-batch", "2"]), first);
    let drawn = ["--temperature", "1.5", "--seed", "3"];
    assert_eq!(answer(&drawn), answer(&drawn), "equal seeds give equal text");
}

#[test]
fn a_bench_tells_every_step_beside_the_roofline() {
    let dir = tempdir().unwrap();
    let line = "engine bench --batch 1,3 --context 100 --prefill 20 --rounds 1 --kv q8_0 --format json";
    let rows: serde_json::Value = serde_json::from_str(&run(dir.path(), line)).unwrap();
    let steps: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["prefill", "decode", "decode"]);
    assert!(rows.as_array().unwrap().iter().all(|row| row["tokens_per_s"].as_f64().unwrap() > 0.0));
}

#[test]
fn what_is_wrong_with_a_command_line_is_said() {
    refused("engine logits --tokens 2,x --out a.csv", &["--tokens, line 1", "\"x\"", "whole number"]);
    refused("engine logits --tokens 2,256 --out a.csv", &["token 256 at place 1", "0 to 255"]);
    refused("engine logits --tokens @no.txt --out a.csv", &["no.txt"]);
    refused("engine logits --tokens 2 --policy pged --out a.csv", &["unknown policy", "paged"]);
    refused("engine logits --tokens 2,4,7 --num-ctx 2 --out a.csv", &["context ends at 2"]);
    refused("engine logits --tokens 2 --model nowhere --out a.csv", &["nowhere", "config.json"]);
    refused("engine logits --tokens 2 --synthetic gemma3-2b --out a.csv", &["gemma3-2b", "gemma3-1b"]);
    refused("engine logits --tokens 2 --kv q5 --out a.csv", &["q5", "q8_0"]);
    refused("engine generate --prompt ada --top-p 2", &["--top-p is 2"]);
    refused("engine generate --prompt ada --synthetic gemma3-tiny", &["no tokenizer"]);
    refused("engine bench --context 9999", &["9999", "4096"]);
    refused("compare --generate chat --engine no.toml --policies paged", &["no.toml"]);
}

#[test]
fn a_comparison_ends_with_reference_and_winner_on_the_engine() {
    let dir = tempdir().unwrap();
    let engine = scenarios().join("incident-tiny.toml");
    let text = fs::read_to_string(&engine).unwrap();
    let trace = scenarios().join("incident-tiny.csv.gz").display().to_string();
    fs::write(dir.path().join("tiny.toml"), text.replace("incident-tiny.csv.gz", &trace) + "\n").unwrap();
    let line = format!(
        "compare|{}|--rows|as it was,paged|--seeds|2|--limit|150|--engine|tiny.toml|--out|out|--quiet",
        scenarios().join("ollama-gemma3.toml").display()
    );
    let assert = kvlab(dir.path()).args(line.split('|')).assert().success();
    let text = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    for words in
        ["On the engine (kvlab-tiny", "as it was: measured", "paged: measured", "recall of planted facts"]
    {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    let table = fs::read_to_string(dir.path().join("out/engine.csv")).unwrap();
    let number = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(name)).unwrap();
        line.split(',').skip(1).map(|cell| cell.parse().unwrap_or(f64::NAN)).collect::<Vec<f64>>()
    };
    assert!(number("throughput").iter().all(|rate| *rate > 0.0), "{table}");
    assert!(number("corrupted steps")[0] > 0.0 && number("corrupted steps")[2] == 0.0, "{table}");
    let recall = number("recall");
    assert!(recall[2] == 1.0 && recall[0] < 1.0, "foreign cells cost recall, paging costs none: {table}");
}

#[test]
fn activations_are_rounded_only_for_quantised_weights() {
    let dir = tempdir().unwrap();
    let line = format!("engine logits --tokens {TOKENS} --out -");
    let assert = kvlab(dir.path()).args(format!("{line} --activations q8_0").split(' ')).assert().success();
    let output = assert.get_output();
    assert_eq!(String::from_utf8_lossy(&output.stdout), run(dir.path(), &line));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.starts_with("note: no weights in q8_0 or q4_0"), "{said}");
    refused("engine bench --activations int8", &["--activations", "f32, q8_0"]);
}

#[test]
fn a_gpu_that_is_not_there_is_refused_or_done_without() {
    if engine::cuda::open(0).is_ok() {
        println!("skipped: there is a GPU");
        return;
    }
    refused("engine logits --tokens 2,4 --device cuda --out a.csv", &["--device cuda:0: "]);
    refused("engine bench --device cuda:7", &["--device cuda:7: "]);
    refused("engine bench --weights q4_0", &["--weights is for --synthetic on a GPU"]);
    refused("validate --device gpu", &["expected cpu, auto, cuda or cuda:N"]);
    let dir = tempdir().unwrap();
    let line = format!("engine logits --tokens {TOKENS} --out -");
    let assert = kvlab(dir.path()).args(format!("{line} --device auto").split(' ')).assert().success();
    let output = assert.get_output();
    assert_eq!(String::from_utf8_lossy(&output.stdout), run(dir.path(), &line));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.matches("note: no GPU (").count(), 1, "{said}");
    let selftest = kvlab(dir.path()).args(["engine", "selftest"]).assert().code(2);
    let said = String::from_utf8_lossy(&selftest.get_output().stderr).into_owned();
    assert!(said.starts_with("error: ") && said.contains("CUDA") && said.lines().count() == 1, "{said}");
}
