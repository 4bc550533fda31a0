//! The commands that compute on a GPU, over a driver library that imitates one (`engine/tests/fake`).
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

#[path = "../../engine/tests/common/imitation.rs"]
mod imitation;

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

/// `kvlab` with an imitated GPU; none where there is no C++ compiler.
fn kvlab(folder: &Path) -> Option<Command> {
    let library = imitation::build(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine"))?;
    let mut command = Command::cargo_bin("kvlab").unwrap();
    command.current_dir(folder).env("LD_LIBRARY_PATH", library);
    Some(command)
}

fn run(folder: &Path, line: &str) -> Option<(String, String)> {
    let assert = kvlab(folder)?.args(line.split(' ')).assert().success();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let output = assert.get_output();
    Some((text(&output.stdout), text(&output.stderr)))
}

#[test]
fn a_benchmark_of_made_up_weights_prints_a_table_and_writes_json() {
    let folder = tempfile::tempdir().unwrap();
    let line = "engine bench --device cuda --synthetic gemma3-tiny --weights q4_0 --kv q8_0 --batch 1,2 --context 40 \
                --prefill 16 --rounds 2 --without early --format csv --json bench.json";
    let Some((table, words)) = run(folder.path(), line) else { return };
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 4, "{table}");
    assert!(rows[1].starts_with("decode,1,40,") && rows[2].starts_with("decode,2,40,"), "{table}");
    assert!(rows[3].starts_with("prefill,1,16,"), "{table}");
    assert!(
        words.contains("weights in q4_0, made by a hash, on no device (sm_90, 1 GiB), kernels for sm_90"),
        "{words}"
    );
    let json: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("bench.json")).unwrap()).unwrap();
    assert_eq!(json["decode"].as_array().unwrap().len(), 2);
    assert_eq!(json["decode"][1]["batch"], 2);
    assert_eq!(json["decode"][0]["weights"], "q4_0");
    assert_eq!(json["decode"][0]["kv"], "q8_0");
    assert_eq!(json["without"][0], "early");
    assert!(json["decode"][0]["step_seconds"]["median"].as_f64().unwrap() > 0.0);
    assert!(json["decode"][0]["share_of_roofline"].as_f64().unwrap() > 0.0);
    assert_eq!(json["prefill"][0]["tokens"], 16);
}

#[test]
fn a_size_that_does_not_fit_is_told_and_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let line = "engine bench --device cuda --synthetic gemma3-tiny --batch 1,100000 --context 40 --prefill 4 --rounds 1 \
                --format csv --json bench.json";
    let Some((table, words)) = run(folder.path(), line) else { return };
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(words.contains("note: 100000 sequences of 40 tokens: "), "{words}");
}

#[test]
fn logits_on_the_device_name_it_and_agree_with_those_of_the_processor() {
    let folder = tempfile::tempdir().unwrap();
    let line = "engine logits --tokens 2,4,7,9 --kv f32 --policy paged:4 --out";
    let Some((_, words)) = run(folder.path(), &format!("{line} gpu.csv --device auto")) else { return };
    assert!(words.contains("note: no device (sm_90, 1 GiB) computes"), "{words}");
    run(folder.path(), &format!("{line} cpu.csv"));
    let numbers = |file: &str| -> Vec<f64> {
        let text = std::fs::read_to_string(folder.path().join(file)).unwrap();
        text.lines()
            .skip(1)
            .flat_map(|row| row.split(',').map(|x| x.parse().unwrap()).collect::<Vec<_>>())
            .collect()
    };
    let (gpu, cpu) = (numbers("gpu.csv"), numbers("cpu.csv"));
    assert_eq!(gpu.len(), cpu.len());
    let most = gpu.iter().zip(&cpu).map(|(a, b): (&f64, &f64)| (a - b).abs()).fold(0.0, f64::max);
    assert!(most < 0.3, "{most}");
}

#[test]
fn a_driver_that_is_too_old_is_told_by_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut command) = kvlab(folder.path()) else { return };
    let line = "engine logits --tokens 2 --out gpu.csv --device cuda";
    let assert = command.env("IMITATED_DRIVER", "11040").args(line.split(' ')).assert().failure();
    let words = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(words.contains("the driver is for CUDA 11.4: expected CUDA 11.8 or newer"), "{words}");
    assert!(!folder.path().join("gpu.csv").exists());
}
