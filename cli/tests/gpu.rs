//! The commands that compute on a GPU, over a driver library that imitates one (`engine/tests/fake`).
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

#[path = "../../engine/tests/common/imitation.rs"]
mod imitation;

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

/// `kvlab` with an imitated GPU; none where there is no C++ compiler.
fn kvlab(folder: &Path) -> Option<Command> {
    let library = imitation::build(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine"), false)?;
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
                --prefill 16 --moves 40 --rounds 2 --without early --format csv --json bench.json";
    let Some((table, words)) = run(folder.path(), line) else { return };
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 5, "{table}");
    assert!(rows[1].starts_with("decode,1,40,") && rows[2].starts_with("decode,2,40,"), "{table}");
    assert!(rows[3].starts_with("prefill,1,16,"), "{table}");
    // Whole pieces of 16 cells.
    assert!(rows[4].starts_with("move,,48,"), "{table}");
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
    // The library that comes with the imitated driver computes no step of so few rows, but it is there.
    assert_eq!(json["prefill"][0]["library"], true);
    // Seven layers of K and V, 48 cells of 80 bytes read and written.
    assert_eq!(json["moves"][0]["bytes"], 2 * 48 * 7 * 2 * 80);
}

#[test]
fn a_size_that_does_not_fit_is_told_and_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let line = "engine bench --device cuda --synthetic gemma3-tiny --batch 1,100000 --context 40 --prefill 4 --moves 16,4000000000 \
                --rounds 1 --format csv --json bench.json";
    let Some((table, words)) = run(folder.path(), line) else { return };
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(words.contains("note: 100000 sequences of 40 tokens: "), "{words}");
    assert!(words.contains("note: a move of 4000000000 cells: the cache needs "), "{words}");
}

#[test]
fn graphs_without_early_starts_are_captured_where_those_with_them_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let line = "engine bench --device cuda --synthetic gemma3-tiny --batch 1 --context 16 --prefill 4 --moves 16 \
                --rounds 1 --json bench.json";
    for (plain, without, expected) in
        [(false, "", (1, true)), (true, "", (1, false)), (false, " --without graphs", (0, true))]
    {
        let Some(mut command) = kvlab(folder.path()) else { return };
        if plain {
            command.env("IMITATED_PLAIN_GRAPHS", "1");
        }
        command.args(format!("{line}{without}").split(' ')).assert().success();
        let json: Value =
            serde_json::from_slice(&std::fs::read(folder.path().join("bench.json")).unwrap()).unwrap();
        let decode = &json["decode"][0];
        assert_eq!((decode["graphs"].as_u64().unwrap(), decode["early"] == true), expected, "{decode}");
    }
}

/// The words of a command that ends with a code, over a driver of which something is said.
fn words(folder: &Path, driver: (&str, &str), line: &str, code: i32) -> Option<String> {
    let assert = kvlab(folder)?.env(driver.0, driver.1).args(line.split(' ')).assert().code(code);
    Some(String::from_utf8_lossy(&assert.get_output().stderr).into_owned())
}

/// The message of a command that is refused.
fn refused(folder: &Path, devices: &str, line: &str) -> Option<String> {
    words(folder, ("IMITATED_DEVICES", devices), line, 2)
}

#[test]
fn a_device_that_is_not_there_is_told_by_its_number() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["engine selftest --device", "engine logits --tokens 2 --out gpu.csv --device"] {
        let Some(words) = refused(folder.path(), "2", &format!("{command} cuda:2")) else { return };
        let expected = "error: --device cuda:2: no CUDA device 2: the driver finds 2, counted from 0\n";
        assert_eq!(words, expected, "{command}");
        let words = refused(folder.path(), "0", &format!("{command} cuda")).unwrap();
        let expected = "error: --device cuda:0: the CUDA driver does not start: no CUDA-capable device is detected \
                        (CUDA_ERROR_NO_DEVICE)\n";
        assert_eq!(words, expected, "{command}");
    }
}

#[test]
fn flags_that_made_up_weights_on_a_device_cannot_have_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let line = "engine bench --device cuda --synthetic gemma3-tiny --context 16 --batch 1";
    for (flag, expected) in
        [("--dequantize", "--dequantize is for"), ("--activations q8_0", "--activations q8_0 is for")]
    {
        let Some(words) = refused(folder.path(), "1", &format!("{line} {flag}")) else { return };
        assert!(words.contains(&format!("error: {expected}")), "{words}");
    }
}

#[test]
fn the_self_test_runs_the_cases_that_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let line = "engine selftest --json cases.json --only padding";
    let Some((text, _)) = run(folder.path(), line) else { return };
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("\nok   kernels: a padding sequence writes nothing: "), "{text}");
    let json: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("cases.json")).unwrap()).unwrap();
    assert_eq!(json["cases"].as_array().unwrap().len(), 1);
    let words =
        refused(folder.path(), "1", "engine selftest --json none.json --only nothing-like-it").unwrap();
    assert_eq!(words, "error: --only \"nothing-like-it\": no case has these words in its name\n");
    assert!(!folder.path().join("none.json").exists(), "nothing is written");
}

/// Logits that a command wrote.
fn logits(folder: &Path, file: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(folder.join(file)).unwrap();
    text.lines()
        .skip(1)
        .flat_map(|row| row.split(',').map(|x| x.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

#[test]
fn logits_on_the_device_name_it_and_agree_with_those_of_the_processor() {
    let folder = tempfile::tempdir().unwrap();
    let line = "engine logits --tokens 2,4,7,9 --kv f32 --policy paged:4 --out";
    let Some((_, words)) = run(folder.path(), &format!("{line} gpu.csv --device auto")) else { return };
    assert!(words.contains("note: no device (sm_90, 1 GiB) computes"), "{words}");
    run(folder.path(), &format!("{line} cpu.csv"));
    let most = |file: &str| {
        let (gpu, cpu) = (logits(folder.path(), file), logits(folder.path(), "cpu.csv"));
        assert_eq!(gpu.len(), cpu.len());
        gpu.iter().zip(&cpu).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    // bf16 weights and inputs; f32 where it is asked for.
    let rounded = most("gpu.csv");
    assert!(rounded > 1e-3 && rounded < 0.3, "{rounded}");
    run(folder.path(), &format!("{line} full.csv --device cuda --dequantize"));
    assert!(most("full.csv") < 5e-5, "{}", most("full.csv"));
}

#[test]
fn without_a_device_auto_says_so_and_the_processor_computes() {
    let folder = tempfile::tempdir().unwrap();
    let line = "engine logits --tokens 2,4 --device auto --out cpu.csv";
    let Some(words) = words(folder.path(), ("IMITATED_DEVICES", "0"), line, 0) else { return };
    let expected = "note: no GPU (the CUDA driver does not start: no CUDA-capable device is detected \
                    (CUDA_ERROR_NO_DEVICE)), so the processor computes\n";
    assert!(words.starts_with(expected), "{words}");
    assert!(folder.path().join("cpu.csv").exists());
}

#[test]
fn a_driver_that_is_too_old_is_told_by_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let line = "engine logits --tokens 2 --out gpu.csv --device cuda";
    let Some(words) = words(folder.path(), ("IMITATED_DRIVER", "11040"), line, 2) else { return };
    assert!(words.contains("the driver is for CUDA 11.4: expected CUDA 11.8 or newer"), "{words}");
    assert!(!folder.path().join("gpu.csv").exists());
}

#[test]
fn policies_under_pressure_are_served_on_the_device_and_predicted_from_its_own_steps() {
    let folder = tempfile::tempdir().unwrap();
    let settings = "--generate uniform:18:24 --requests 4 --rate 1000 --num-ctx 64 --num-parallel 3 --num-batch 32 \
                    --memory local=96;global=96 --device cuda --synthetic gemma3-tiny --quiet";
    let line = format!("calibrate --quick {settings} --out calibration.toml");
    if run(folder.path(), &line).is_none() {
        return;
    }
    let calibration = std::fs::read_to_string(folder.path().join("calibration.toml")).unwrap();
    assert!(calibration.contains("device = \"no device (sm_90, 1 GiB)\""), "{calibration}");
    // Who is preempted leaves for host memory; cells move together; neighbours are swapped.
    let policies = ["paged:8+swap", "defrag", "ollama-0.6.6"];
    let line = format!(
        "validate {settings} --calibration calibration.toml --policies {} --reload-s 0.01 --out out",
        policies.join(",")
    );
    let (text, _) = run(folder.path(), &line).unwrap();
    assert_eq!(text.matches("exact in lock-step").count(), policies.len(), "{text}");
    let numbers = std::fs::read_to_string(folder.path().join("out/validate.csv")).unwrap();
    let measured = |policy: &str, number: &str| -> f64 {
        let row =
            numbers.lines().find(|row| row.contains(&format!(",{policy},continuous,{number},"))).unwrap();
        row.split(',').nth(4).unwrap().parse().unwrap()
    };
    for policy in policies {
        assert!(
            measured(policy, "throughput tok/s") > 0.0 && measured(policy, "preemptions") > 0.0,
            "{numbers}"
        );
        assert!(measured(policy, "moves ms") > 0.0, "{numbers}");
    }
    // How well steps are predicted is for machines with nothing else to do; that they are is for all.
    let errors = std::fs::read_to_string(folder.path().join("out/errors.csv")).unwrap();
    for row in errors.lines().skip(1) {
        assert!(row.split(',').nth(3).unwrap().parse::<f64>().unwrap().is_finite(), "{errors}");
        assert!(row.contains(",exact,") && row.ends_with(",0,0,0"), "{errors}");
    }
}
