//! `engine/compare/run_all.sh` without a GPU: the command lines that it gives, one JSON and one log whatever happens, and
//! its limits of time. A program that only writes down what it is asked stands in for kvlab.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

#[path = "../../engine/tests/common/imitation.rs"]
mod imitation;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A folder whose name has a space, with a program in it that does what `body` says after it has noted its arguments.
struct Place {
    folder: tempfile::TempDir,
}

/// Writes what kvlab would write: JSON where it is asked for, and the tables of a validation.
const WRITES: &str = r#"
json= out=
while [ $# -gt 0 ]; do
    case $1 in
    --json) json=$2 ;;
    --out) out=$2 ;;
    esac
    shift
done
[ -n "$json" ] && printf '{"written": true}\n' >"$json"
if [ -n "$out" ]; then
    mkdir -p "$out"
    printf 'policy,number\n"a ""b"" \\ c",1\n' >"$out/validate.csv"
    printf 'policy,error\n' >"$out/errors.csv"
fi
exit 0
"#;

impl Place {
    fn new(body: &str) -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir_all(place.at("a folder/tools")).unwrap();
        let note = "printf '%s\\n' \"$@\" -- >>\"$(dirname \"$0\")/calls.txt\"\n";
        place.script("a folder/kv lab", &format!("{note}{body}"));
        // Neither the machine's GPU nor its Python has a part in this.
        place.script("a folder/tools/nvidia-smi", "exit 1");
        place.script("a folder/tools/python3", "exit 1");
        place
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn script(&self, path: &str, body: &str) {
        std::fs::write(self.at(path), format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(self.at(path), PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/compare/run_all.sh");
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", self.at("a folder/tools").display());
        let mut command = Command::new(script);
        command.args(args).current_dir(self.folder.path()).env("PATH", path).env_remove("KVLAB_NVRTC");
        command.output().unwrap()
    }

    /// What the script wrote.
    fn json(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.at("an end/all.json")).unwrap()).unwrap()
    }

    /// The command lines that the program was given.
    fn calls(&self) -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(self.at("a folder/calls.txt")).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.split(|line| line == "--").filter(|call| !call.is_empty()).map(<[String]>::to_vec).collect()
    }
}

const RUN: [&str; 2] = ["a folder/kv lab", "an end"];

const PARTS: [&str; 12] = [
    "selftest",
    "1b",
    "4b",
    "12b",
    "27b",
    "1b-q4_0",
    "27b-q4_0",
    "1b-plain",
    "1b-late",
    "validate",
    "validate-light",
    "transformers",
];

#[test]
fn every_part_is_in_one_json_and_paths_may_have_spaces() {
    let place = Place::new(WRITES);
    let output = place.run(&RUN);
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert_eq!(log, std::fs::read_to_string(place.at("an end/all.log")).unwrap());
    assert!(log.contains("== python3 has no torch and transformers: nothing to compare with"), "{log}");
    let all = place.json();
    let mut expected = json!({});
    for part in PARTS {
        expected[part] = json!({ "written": true });
    }
    let lines = ["policy,number", "\"a \"\"b\"\" \\ c\",1"];
    expected["validate"] = json!({ "validate": lines, "errors": ["policy,error"] });
    expected["validate-light"] = expected["validate"].clone();
    expected["transformers"] = Value::Null;
    assert_eq!(all, expected);
    // Results of an earlier run are not taken for those of this one.
    place.script("a folder/kv lab", "case \"$*\" in *gemma3-tiny*) exit 0 ;; esac; exit 1");
    assert_eq!(place.run(&RUN).status.code(), Some(0));
    assert!(PARTS.iter().all(|part| place.json()[part].is_null()), "{}", place.json());
}

#[test]
fn kvlab_knows_every_command_line_of_the_script() {
    let place = Place::new(WRITES);
    assert_eq!(place.run(&RUN).status.code(), Some(0));
    let calls = place.calls();
    assert_eq!(calls.len(), PARTS.len(), "{calls:?}");
    let Some(library) = imitation::build(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine"), false)
    else {
        return;
    };
    for call in calls {
        let mut kvlab = assert_cmd::Command::cargo_bin("kvlab").unwrap();
        kvlab.current_dir(place.folder.path()).env("LD_LIBRARY_PATH", &library).env("IMITATED_DEVICES", "0");
        let assert = kvlab.args(&call).assert().code(2);
        // It comes as far as the device, which is not there.
        let words = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(
            words.starts_with(
                "error: --device cuda:0: the CUDA driver does not start: no CUDA-capable device is detected"
            ),
            "{call:?}: {words}"
        );
    }
}

#[test]
fn no_gpu_is_told_in_the_log_and_leaves_a_json_of_nothing() {
    let place = Place::new("echo 'error: no CUDA driver library on this machine' >&2; exit 2");
    let output = place.run(&RUN);
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(log.contains("error: no CUDA driver library on this machine\n"), "{log}");
    assert!(log.ends_with("== kvlab computes nothing on a GPU here: it ended with 2\n"), "{log}");
    let all = place.json();
    assert_eq!(all.as_object().unwrap().len(), PARTS.len());
    assert!(PARTS.iter().all(|part| all[part].is_null()), "{all}");
}

#[test]
fn wrong_arguments_are_told_before_anything_is_written() {
    let place = Place::new(WRITES);
    place.script("a folder/no program", "");
    std::fs::set_permissions(place.at("a folder/no program"), PermissionsExt::from_mode(0o644)).unwrap();
    for program in ["a folder/nothing", "a folder", "a folder/no program"] {
        let output = place.run(&[program, "an end"]);
        assert_eq!(output.status.code(), Some(2));
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(words.starts_with(&format!("run_all.sh: {program} is no program: expected")), "{words}");
    }
    for args in [&[][..], &["a folder/kv lab"], &["a folder/kv lab", "an end", "1x"], &["a", "b", "3", "c"]] {
        let output = place.run(args);
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(output.stderr, b"usage: run_all.sh KVLAB FOLDER [SECONDS]\n");
    }
    assert!(!place.at("an end").exists());
}

#[test]
fn all_parts_together_end_in_time() {
    let place = Place::new(&format!("case \"$*\" in *selftest*) sleep 60 ;; esac\n{WRITES}"));
    let start = Instant::now();
    let output = place.run(&[RUN[0], RUN[1], "7"]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(output.status.code(), Some(0));
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(log.contains("== selftest ended with 124"), "{log}");
    assert!(log.contains("== 27b ended with 124"), "{log}");
    let all = place.json();
    assert!(PARTS.iter().all(|part| all[part].is_null()), "{all}");
    assert_eq!(place.calls().len(), 2, "the parts after it have no time and do not begin");
}
