//! `kvlab calibrate` on the tiny model: the form of what it says and writes, never its times.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::fs;
use std::path::Path;

use common::{kvlab, run};
use sim::cost::linear::Calibration;
use tempfile::tempdir;

const SMALL: &str = "--synthetic gemma3-tiny --threads 1 --kv-cache-type f32 --num-ctx 96 --num-parallel 3 \
                     --num-batch 24 --quick --quiet";

fn complaint(dir: &Path, line: &str) -> String {
    let assert = kvlab(dir).args(line.split_whitespace()).assert().code(2);
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

fn line(rest: &str) -> String {
    let words: Vec<&str> = format!("calibrate {SMALL} {rest}").leak().split_whitespace().collect();
    words.join(" ")
}

#[test]
fn a_calibration_prices_simulations_of_what_was_measured_and_of_nothing_else() {
    let dir = tempdir().unwrap();
    let table = run(dir.path(), &line("--generate chat --requests 30 --policies paged,defrag --out c.toml"));
    for heading in ["measured_ms", "time of one", "held_out_percent", "decode read, global", "held out"] {
        assert!(table.contains(heading), "{heading}: {table}");
    }
    let text = fs::read_to_string(dir.path().join("c.toml")).unwrap();
    let calibration = Calibration::from_toml(&text).unwrap();
    assert_eq!(calibration.model.name, "gemma3-tiny");
    assert_eq!((calibration.threads, calibration.draws.len()), (1, 200));
    assert!(calibration.device.ends_with(", 1 thread"), "{}", calibration.device);
    assert!(calibration.held_out.decode.is_some() && calibration.held_out.prefill.is_some());
    assert!(calibration.held_out.moves.is_some());
    let weights: f64 = calibration.point.iter().map(|point| point.weight).sum();
    assert!((weights / calibration.point.len() as f64 - 1.0).abs() < 1e-6);
    assert!(calibration.point.iter().any(|point| point.weight > 2.0), "the workload weighs");

    let compare = "compare --generate chat --requests 20 --seeds 1 --policies paged --num-ctx 96 --num-parallel 3 \
                   --num-batch 24 --memory per-slot --no-files --quiet --format csv --model c.toml --cost c.toml";
    let with = |flags: &str| format!("{compare} {flags}");
    let priced = run(
        dir.path(),
        &with("--gpu cpu --kv-cache-type f32").split_whitespace().collect::<Vec<_>>().join(" "),
    );
    assert!(priced.contains("paged"), "{priced}");
    let refused = complaint(dir.path(), &with("--gpu rtx4090 --kv-cache-type f32"));
    assert!(refused.contains("the calibration is for GPU cpu, not for rtx4090"), "{refused}");
    let refused = complaint(dir.path(), &with("--gpu cpu --kv-cache-type q8_0"));
    assert!(refused.contains("the calibration is for KV type f32, not for q8_0"), "{refused}");
    let refused = complaint(
        dir.path(),
        &with("--gpu cpu --kv-cache-type f32").replace("--model c.toml", "--model gemma3-1b"),
    );
    assert!(refused.contains("the calibration is for model gemma3-tiny, not for gemma3-1b"), "{refused}");
    fs::write(dir.path().join("c.toml"), text.replacen("name = \"sample\"", "name = \"simple\"", 1)).unwrap();
    let refused = complaint(dir.path(), &with("--gpu cpu --kv-cache-type f32"));
    assert!(refused.contains("c.toml: calibration: expected"), "{refused}");
}

#[test]
fn without_a_workload_all_steps_count_alike_and_points_are_a_csv() {
    let dir = tempdir().unwrap();
    let csv = run(dir.path(), &line("--format csv --out c.toml"));
    let calibration =
        Calibration::from_toml(&fs::read_to_string(dir.path().join("c.toml")).unwrap()).unwrap();
    assert!(calibration.point.iter().all(|point| point.weight == 1.0));
    assert_eq!(csv.lines().count(), calibration.point.len() + 1);
    assert!(csv.starts_with("kind,step,measured_ms,spread_percent,predicted_ms,error_percent,weight,role"));
    let held_out = calibration.point.iter().filter(|point| point.held_out).count();
    assert!((5..calibration.point.len() / 3).contains(&held_out), "{held_out}");
}

#[test]
fn what_makes_no_calibration_is_refused_before_anything_is_measured() {
    let dir = tempdir().unwrap();
    let refused = complaint(dir.path(), "calibrate --synthetic gemma3-2b");
    assert!(refused.contains("--synthetic") && refused.contains("gemma3-270m"), "{refused}");
    let refused = complaint(dir.path(), &line("").replace("--num-ctx 96", "--num-ctx 96,128"));
    assert!(refused.contains("one set of limits"), "{refused}");
    let refused = complaint(dir.path(), &line("--memory fill"));
    assert!(refused.contains("fill is for GPUs"), "{refused}");
    let refused = complaint(dir.path(), &line("--out ."));
    assert!(refused.contains("is a folder"), "{refused}");
    let refused = complaint(dir.path(), "calibrate --threads 0");
    assert!(refused.contains("--threads"), "{refused}");
    assert!(!dir.path().join("calibration.toml").exists());
}
