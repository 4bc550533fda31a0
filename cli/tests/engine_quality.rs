//! `kvlab engine quality` as a command.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::fs;

use assert_cmd::Command;

fn kvlab(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("kvlab").unwrap();
    command.args(["engine", "quality"]).args(arguments);
    command
}

fn output(arguments: &[&str]) -> String {
    let output = kvlab(arguments).assert().success().get_output().stdout.clone();
    String::from_utf8(output).unwrap()
}

#[test]
fn the_tiny_model_is_measured_from_any_folder_and_the_files_hold_all_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--documents", "2", "--policies", "full/q8_0,shift:28", "--out", "there", "-q"];
    let first = kvlab(&arguments).current_dir(&folder).assert().success().get_output().stdout.clone();
    let text = String::from_utf8(first.clone()).unwrap();
    assert!(
        text.starts_with("2 documents of 1152 tokens, the last 128 predicted; context limit 640; "),
        "{text}"
    );
    for word in ["full/f32", "full/q8_0", "shift:28", "recall by distance", "1024+"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let read = |name: &str| fs::read_to_string(folder.path().join("there").join(name)).unwrap();
    let quality = read("quality.csv");
    let mut lines = quality.lines();
    assert!(lines.next().unwrap().starts_with("variant,kv_type,kv_kib,recall,recall_se,recall_n,"));
    assert!(lines.next().unwrap().starts_with("full/f32,f32,640,1,0,"), "{quality}");
    assert_eq!(lines.count(), 2);
    assert_eq!(read("distances.csv").lines().count(), 4);
    assert_eq!(read("differences.csv").lines().count(), 1);
    let again = kvlab(&arguments).current_dir(&folder).env("RAYON_NUM_THREADS", "1").assert().success();
    assert!(again.get_output().stdout == first, "the same on one thread");
}

#[test]
fn machines_get_means_errors_and_counts() {
    let arguments = ["--documents", "1", "--body", "100", "--exam", "60", "--num-ctx", "120", "-q"];
    let json = output(&[&arguments[..], &["--policies", "ring,sinks:1", "--format", "json"]].concat());
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[1]["variant"], "ring");
    assert_eq!(rows[0]["kl"], 0.0);
    assert!(rows[1]["kl"].as_f64().unwrap() > 0.0 && rows[1]["kl_se"].is_null(), "one document has no error");
    assert_eq!(rows[1]["kl_n"], 60);
}

#[test]
fn a_checkpoint_and_a_text_give_the_same_table_without_facts() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    fs::write(&text, "about home from by give across one kind fast always ".repeat(40)).unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/models/tiny");
    let text = text.to_str().unwrap();
    let both = ["--model", model, "--text", text, "--body", "100", "--exam", "28", "--num-ctx", "64", "-q"];
    let table = output(&[&both[..], &["--policies", "full,shift:4,full/q4_0"]].concat());
    assert!(
        table.starts_with("3 documents of 128 tokens, the last 28 predicted; context limit 64."),
        "{table}"
    );
    assert!(table.contains("perplexity") && !table.contains("recall"), "{table}");
}

#[test]
fn wrong_input_is_said_and_leads_to_2() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().to_str().unwrap();
    let short = folder.path().join("short.txt");
    fs::write(&short, "about home").unwrap();
    let short = short.to_str().unwrap();
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/models/tiny");
    let missing = folder.path().join("missing.txt");
    let missing = missing.to_str().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["--policies", "nonsense"], "unknown policy"),
        (&["--policies", "full/q3_0"], "unknown word \"q3_0\""),
        (&["--policies", "contiguous", "--documents", "1"], "the context ends at 640 tokens"),
        (&["--policies", "prompt", "--num-ctx", "100"], "no room for the exam"),
        (&["--documents", "0"], "--documents is 0, expected 1 to"),
        (&["--num-ctx", "1"], "--num-ctx is 1, expected 2 to"),
        (&["--body", "27"], "--body is 27, expected 28 to"),
        (&["--body", "4090"], "the model takes 4096"),
        (&["--model", tiny], "--text"),
        (&["--text", short], "--model"),
        (&["--model", here, "--text", short], "config.json"),
        (&["--model", tiny, "--text", missing], "missing.txt"),
        (&["--model", tiny, "--text", short], "expected at least 1151 for one window"),
        (&["--format", "xml"], "unknown format"),
    ];
    for (arguments, expected) in cases {
        let output = kvlab(arguments).assert().code(2).get_output().stderr.clone();
        let text = String::from_utf8(output).unwrap();
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
}
