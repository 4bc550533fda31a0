//! `kvlab validate` on a tiny run: exactness, files, bad input.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::fs;

use assert_cmd::Command;

const SETTINGS: &[&str] = &[
    "--generate",
    "chat",
    "--requests",
    "4",
    "--rate",
    "1000",
    "--num-ctx",
    "192",
    "--num-parallel",
    "3",
    "--num-batch",
    "48",
    "--memory",
    "local=160;global=400",
    "--kv-cache-type",
    "f32",
    "--reload-s",
    "0.01",
    "--quiet",
];

fn validate(more: &[&str]) -> std::process::Output {
    let mut command = Command::cargo_bin("kvlab").unwrap();
    command.arg("validate").args(SETTINGS).args(more).output().unwrap()
}

#[test]
fn the_simulator_does_exactly_what_the_engine_did() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let policies = "paged:16,defrag,ollama-0.6.6,unlimited";
    for scheduler in ["continuous", "runner"] {
        let flags = ["--policies", policies, "--scheduler", scheduler, "--out", out.to_str().unwrap()];
        let output = validate(&flags);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(text.matches("exact in lock-step").count(), 4, "{text}");
        assert!(text.contains("generate:chat, by throughput tok/s, measured: "), "{text}");
        for name in ["validate.csv", "errors.csv", "steps.csv", "calibration.toml", "run.toml"] {
            assert!(fs::metadata(out.join(name)).unwrap().len() > 0, "{name}");
        }
        let numbers = fs::read_to_string(out.join("validate.csv")).unwrap();
        assert!(numbers.starts_with(
            "trace,policy,scheduler,number,measured,least,most,±,predicted,low,high,error,gate"
        ));
        assert_eq!(numbers.lines().count(), 1 + 4 * 12);
    }
}

#[test]
fn what_goes_by_attention_and_what_is_rounded_is_the_same_in_both() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for scheduler in ["continuous", "runner"] {
        let policies = "heavy:64,heavy:96:drop=8,snap:64:16,ladder:8";
        let flags = ["--policies", policies, "--scheduler", scheduler, "--out", out.to_str().unwrap()];
        let output = validate(&flags);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(text.matches("exact in lock-step").count(), 4, "{text}");
    }
}

#[test]
fn bad_input_is_refused_before_anything_is_measured() {
    for (flags, said) in [
        (["--repeats", "0"], "--repeats 0"),
        (["--calibration", "no-such.toml"], "--calibration no-such.toml"),
        (["--text", "no-such.txt"], "--text no-such.txt"),
        (["--engine-model", "no-such"], "no-such"),
        (["--synthetic", "gemma3-9b"], "--synthetic"),
        (["--policies", "pagde"], "pagde"),
        (["--clock", "slow"], "slow"),
    ] {
        let output = validate(&flags);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {text}");
        assert!(text.contains(said), "{flags:?}: {text}");
    }
}
