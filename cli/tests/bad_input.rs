//! The commands on bad input: exit code 2, one message that says where, and nothing left behind.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;

use common::{kvlab, run};
use flate2::Compression;
use flate2::write::GzEncoder;
use report::files::read_summary;
use tempfile::{TempDir, tempdir};

const HEADER: &str = "arrival_s,prompt_tokens,output_tokens";

/// A folder with a trace of two requests.
fn folder() -> TempDir {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("good.csv"), format!("{HEADER}\n0,30,4\n1.5,20,9\n")).unwrap();
    dir
}

/// Runs a command line that has to be refused; what it says. Afterwards `out` has no file.
fn refused(dir: &Path, line: &str) -> String {
    let assert = kvlab(dir).args(line.split(' ')).assert();
    let output = assert.get_output();
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{line}: {message}");
    assert!(!message.contains("panicked"), "{line}: {message}");
    assert_eq!(message.matches("error: ").count(), 1, "{line}: one message: {message}");
    assert!(message.starts_with("error: "), "{line}: {message}");
    assert!(output.stdout.is_empty(), "{line} prints a result");
    let out = dir.join("out");
    let left = fs::read_dir(out).map_or(0, Iterator::count);
    assert_eq!(left, 0, "{line} leaves files");
    message
}

/// As [`refused`], and the message has all of these words.
fn refused_with(dir: &Path, line: &str, words: &[&str]) {
    let message = refused(dir, line);
    for word in words {
        assert!(message.contains(word), "{line}: no {word:?} in: {message}");
    }
}

/// As [`refused`], and a caret stands under the first letter of `spot`, as the message quotes it.
fn refused_at(dir: &Path, line: &str, spot: &str) {
    let message = refused(dir, line);
    let lines: Vec<&str> = message.lines().collect();
    let caret = lines.iter().position(|line| line.contains('^'));
    let caret = caret.unwrap_or_else(|| panic!("{line}: no caret in: {message}"));
    let column = |line: &str, at: usize| line[..at].chars().count();
    let above = lines[caret - 1];
    let at = column(lines[caret], lines[caret].find('^').unwrap());
    let rest: String = above.chars().skip(at).collect();
    assert!(rest.starts_with(spot), "{line}: the caret is not at {spot:?}: {message}");
}

#[test]
fn files_that_results_could_not_tell_apart_are_refused() {
    let dir = folder();
    for name in ["a", "b"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        let rows = "arrival_s,prompt_tokens,output_tokens\n0,5,3\n";
        fs::write(dir.path().join(name).join("t.csv"), rows).unwrap();
    }
    refused_at(dir.path(), "compare --trace a/t.csv,b/t.csv --policies paged --no-files", "b/t.csv");
    let scenario = "policies = \"paged\"\ntrace = [\"a/t.csv\", \"b/t.csv\"]\n";
    fs::write(dir.path().join("both.toml"), scenario).unwrap();
    for command in ["compare both.toml --no-files", "sweep both.toml --check"] {
        refused_with(dir.path(), command, &["t.csv stands twice", "by name", "both.toml:2:22"]);
    }
    kvlab(dir.path()).args(["compare", "a/t.csv", "paged", "--no-files"]).assert().success();
}

#[test]
fn bad_traces_are_refused_with_file_line_and_field() {
    let dir = folder();
    let rows = [
        ("0,-5,3", &["line 2", "prompt_tokens", "-5"]),
        ("0,0,3", &["line 2", "prompt_tokens", "0"]),
        ("0,5,99999999999", &["line 2", "output_tokens", "99999999999"]),
        ("0,5,99999999999999999999999", &["line 2", "output_tokens", "999999"]),
        ("0,5,1.5", &["line 2", "output_tokens", "1.5"]),
        ("0,five,5", &["line 2", "prompt_tokens", "five"]),
        ("NaN,5,5", &["line 2", "arrival_s", "NaN"]),
        ("inf,5,5", &["line 2", "arrival_s", "inf"]),
        ("-1,5,5", &["line 2", "arrival_s", "-1"]),
        ("1e300,5,5", &["line 2", "arrival_s", "1e300"]),
        ("5,5,5\n1,5,5", &["line 3", "line 2", "order"]),
        ("0,5,5\n1,5", &["line 3", "output_tokens", "end of the line"]),
        ("0,5,5\n1,5,5,5", &["line 3", "column", "3 columns"]),
    ];
    for (row, words) in rows {
        fs::write(dir.path().join("bad.csv"), format!("{HEADER}\n{row}\n")).unwrap();
        for command in ["compare bad.csv paged --model gemma3-1b --out out", "trace show bad.csv"] {
            refused_with(dir.path(), command, words);
            refused_with(dir.path(), command, &["bad.csv"]);
        }
    }
}

#[test]
fn a_bound_that_has_to_know_the_trace_is_refused_where_its_order_is_not_known() {
    let dir = folder();
    let rows = "arrival_s,wait_s,session,prompt_tokens,output_tokens\n0,,7,30,4\n,1.5,7,40,9\n";
    fs::write(dir.path().join("closed.csv"), rows).unwrap();
    let words = ["closed.csv", "belady", "request 1", "closed loop"];
    let line = "compare closed.csv paged+prefix(belady) --model gemma3-1b --out out";
    refused_with(dir.path(), line, &words);
}

#[test]
fn bad_files_are_refused_by_name() {
    let dir = folder();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    writeln!(gzip, "{HEADER}").unwrap();
    for second in 0..5000 {
        writeln!(gzip, "{second},{},{}", 20 + second % 7, 5 + second % 3).unwrap();
    }
    let gzip = gzip.finish().unwrap();
    write("cut.csv.gz", &gzip[..gzip.len() / 2]);
    write("head.csv.gz", &gzip[..8]);
    write("empty.csv", b"");
    write("blank.csv", b"\n\n  \n");
    write("header.csv", format!("{HEADER}\n").as_bytes());
    write("other.csv", b"a,b\n1,2\n");
    write("more.csv", format!("{HEADER},colour\n0,1,1,red\n").as_bytes());
    write("less.csv", b"arrival_s,prompt_tokens\n0,1\n");
    write("twice.csv", format!("{HEADER},arrival_s\n0,1,1,0\n").as_bytes());
    write("latin.csv", b"arrival_s,prompt_tokens,output_tokens\n0,\xe9,1\n");
    write("object.jsonl", b"{\"input_length\": }\n");
    fs::create_dir(dir.path().join("folder")).unwrap();
    for (name, word) in [
        ("cut.csv.gz", "gzip"),
        ("head.csv.gz", "gzip"),
        ("empty.csv", "empty"),
        ("blank.csv", "empty"),
        ("header.csv", "empty"),
        ("other.csv", "unknown format"),
        ("more.csv", "colour"),
        ("less.csv", "output_tokens"),
        ("twice.csv", "arrival_s twice"),
        ("latin.csv", "UTF-8"),
        ("object.jsonl", "format"),
        ("missing.csv", "file"),
        ("folder", "folder"),
    ] {
        let line = format!("compare --trace {name} --policies paged --model gemma3-1b --out out");
        refused_with(dir.path(), &line, &[name, word]);
        refused_with(dir.path(), &format!("trace show {name}"), &[name]);
        refused_with(dir.path(), &format!("trace convert {name} out/x.csv"), &[name]);
    }
}

#[test]
fn bad_settings_are_pointed_at() {
    let dir = folder();
    for (flags, spot) in [
        ("--policies paged,pagd", "pagd"),
        ("--policies paged:blck=3", "blck=3"),
        ("--policies paged:0", "0"),
        ("--policies paged,contiguous:max:worst", "worst"),
        ("--policies paged+swop", "swop"),
        ("--policies paged+prefix(lur)", "lur"),
        ("--policies paged,paged+prefix(lru:cow:size=3)", "size=3"),
        ("--policies paged+prefix(lru", "(lru"),
        ("--policies paged,,shift", ","),
        ("--model gemma3-1b,gema3", "gema3"),
        ("--model missing.toml", "missing.toml"),
        ("--gpu rtx4090,rtx8001", "rtx8001"),
        ("--scheduler vllm", "vllm"),
        ("--kv-cache-type f16,q9_0", "q9_0"),
        ("--memory local=0;global=0", "local=0"),
        ("--memory local=64;global=0", "global=0"),
        ("--memory local=64;gobal=64", "gobal=64"),
        ("--memory local=64", "local=64"),
        ("--memory lots", "lots"),
        ("--num-parallel 16 --num-batch 512,8", "8"),
        ("--num-parallel 0", "0"),
        ("--num-ctx -4096", "-4096"),
        ("--num-ctx 4096,99999999999999999999", "99999999999999999999"),
        ("--num-batch 1.5", "1.5"),
        ("--seeds 0", "0"),
        ("--seeds many", "many"),
        ("--seed0 -1", "-1"),
        ("--limit -1", "-1"),
        ("--time-scale 0", "0"),
        ("--time-scale NaN", "NaN"),
        ("--until-s inf", "inf"),
        ("--slo-ttft-ms -5", "-5"),
        ("--watermark 1.5", "1.5"),
        ("--gpu-memory-utilization 0", "0"),
        ("--gpu-memory-utilization 1.5", "1.5"),
        ("--preemption never", "never"),
        ("--victim anybody", "anybody"),
        ("--reserve some", "some"),
        ("--host-memory much", "much"),
        ("--host-memory -1", "-1"),
        ("--pipeline -1", "-1"),
        ("--scheduler runner --on-full explode", "explode"),
        ("--queue-max few", "few"),
        ("--audit maybe", "maybe"),
        ("--cost missing.toml", "missing.toml"),
        ("--reference shift --policies paged", "shift"),
        ("--trace-format excel", "excel"),
        ("--generate chats", "chats"),
        ("--generate chat --rate 0", "0"),
    ] {
        let trace = if flags.starts_with("--generate") { "" } else { "--trace good.csv " };
        refused_at(dir.path(), &format!("compare {trace}{flags} --out out"), spot);
    }
}

#[test]
fn bad_flags_are_named() {
    let dir = folder();
    for (line, word) in [
        ("compare good.csv --nope 3", "--nope"),
        ("compare good.csv --format yaml", "yaml"),
        ("compare good.csv --seeds", "--seeds"),
        ("explode", "explode"),
        ("completions tcl", "tcl"),
        ("trace generate poetry x.csv", "poetry"),
        ("trace generate chat --requests -3 x.csv", "-3"),
        ("trace generate chat --rate 0 x.csv", "rate"),
        ("trace show good.csv --time-scale 0", "time_scale"),
        ("trace show good.csv --trace-format excel", "excel"),
        ("run good.csv --out out", "one policy"),
        ("compare --out out", "trace"),
    ] {
        refused_with(dir.path(), line, &[word]);
    }
    assert!(!dir.path().join("x.csv").exists());
}

#[test]
fn bad_scenarios_are_quoted() {
    let dir = folder();
    for (text, spot) in [
        ("trace = \"good.csv\"\nnum_ctx = = 4\n", "= 4"),
        ("trace = \"good.csv\"\ntitle = \"open\n", ""),
        ("trace = \"good.csv\"\nnum_ctx = true\n", "true"),
        ("trace = \"good.csv\"\nnum_ctx = \"many\"\n", "many"),
        ("trace = \"good.csv\"\nnum_ctx = { a = 1 }\n", "{ a = 1 }"),
        ("trace = \"good.csv\"\nnum_ctx = 1979-05-27\n", "1979-05-27"),
        ("trace = \"good.csv\"\nnum_ctxx = 4\n", "num_ctxx"),
        ("trace = \"good.csv\"\nseeds = [1, 2]\n", "[1, 2]"),
        ("trace = \"good.csv\"\npolicies = []\n", "[]"),
        ("trace = \"good.csv\"\npolicies = [\"paged\", \"pagd\"]\n", "pagd"),
        ("trace = \"good.csv\"\npolicies = [\"paged:x\"]\n", "x"),
        ("trace = \"gone.csv\"\n", "gone.csv"),
        ("[table]\nnum_ctx = 4\n", "table"),
        ("trace = \"good.csv\"\nseeds = 1\nseeds = 2\n", "seeds = 2"),
    ] {
        fs::write(dir.path().join("own.toml"), text).unwrap();
        refused_at(dir.path(), "compare own.toml --out out", spot);
        refused_with(dir.path(), "compare own.toml --out out", &["own.toml:"]);
    }
    fs::write(dir.path().join("own.toml"), b"title = \"\xff\"\n").unwrap();
    refused_with(dir.path(), "compare own.toml --out out", &["own.toml"]);
    refused_with(dir.path(), "compare gone.toml --out out", &["gone.toml"]);
}

#[test]
fn a_variable_that_is_wrong_is_named() {
    let dir = folder();
    let assert = kvlab(dir.path())
        .args(["compare", "good.csv", "--no-files"])
        .env("KVLAB_NUM_CTX", "lots")
        .assert()
        .code(2);
    let message = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(message.contains("KVLAB_NUM_CTX=lots") && message.contains('^'), "{message}");
}

#[test]
fn a_model_that_does_not_fit_says_how_much_is_missing() {
    let dir = folder();
    let line = "compare good.csv paged --model gemma3-27b --gpu gtx1660super --out out";
    refused_with(dir.path(), line, &["gemma3-27b", "gtx1660super", "GiB"]);
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = folder();
    fs::write(dir.path().join("taken"), "mine").unwrap();
    for out in ["taken", "taken/deeper"] {
        let line = format!("compare good.csv paged --model gemma3-1b --out {out}");
        refused_with(dir.path(), &line, &[out]);
        let shown = kvlab(dir.path()).args(["trace", "show", "good.csv", "--out", out]).assert().code(2);
        assert!(String::from_utf8_lossy(&shown.get_output().stderr).contains(out));
    }
    refused_with(dir.path(), "trace convert good.csv taken/x.csv", &["taken/x.csv"]);
    refused_with(dir.path(), "trace generate chat taken/x.csv", &["taken/x.csv"]);
    assert_eq!(fs::read_to_string(dir.path().join("taken")).unwrap(), "mine");
}

#[test]
fn trouble_in_the_middle_leaves_earlier_results_alone() {
    let dir = folder();
    let line = "compare good.csv paged --model gemma3-1b --quiet --out results";
    run(dir.path(), line);
    let read = |name: &str| fs::read(dir.path().join("results").join(name)).unwrap();
    let names = ["summary.csv", "requests.csv", "timeline.csv", "run.toml", "page.json", "report.html"];
    let before = names.map(read);
    fs::write(dir.path().join("good.csv"), format!("{HEADER}\n0,30,4\n1.5,20,x\n")).unwrap();
    kvlab(dir.path()).args(line.split(' ')).assert().code(2);
    assert!(before == names.map(read));
    assert_eq!(fs::read_dir(dir.path().join("results")).unwrap().count(), names.len());
}

#[test]
fn a_prompt_longer_than_the_cache_is_counted_and_no_error() {
    let dir = folder();
    fs::write(dir.path().join("long.csv"), format!("{HEADER}\n0,30,4\n1,5000,9\n2,20,9\n")).unwrap();
    let line = "compare long.csv contiguous:run,paged,defrag --model gemma3-1b --num-ctx 8192 --num-parallel 2 \
                --num-batch 64 --memory local=1024;global=1024 --quiet --out out";
    run(dir.path(), line);
    for row in read_summary(&dir.path().join("out/summary.csv")).unwrap() {
        assert_eq!((row.requests, row.completed, row.rejected), (3, 2, 1), "{}", row.policy);
    }
}

#[test]
fn a_line_without_end_is_refused() {
    let dir = folder();
    let letters = vec![b'a'; 1 << 20];
    let mut file = fs::File::create(dir.path().join("endless.csv")).unwrap();
    writeln!(file, "{HEADER}").unwrap();
    for _ in 0..80 {
        file.write_all(&letters).unwrap();
    }
    drop(file);
    let words = ["endless.csv", "line 2", "67108864"];
    refused_with(dir.path(), "compare endless.csv paged --model gemma3-1b --out out", &words);
    refused_with(dir.path(), "trace show endless.csv", &words);
}

/// Gzip makes any line short on disk; the limit counts what comes out of it, and so does memory.
#[test]
#[cfg(target_os = "linux")]
fn a_line_without_end_takes_little_memory() {
    let dir = folder();
    let letters = vec![b'a'; 1 << 20];
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    for _ in 0..400 {
        gzip.write_all(&letters).unwrap();
    }
    fs::write(dir.path().join("endless.csv.gz"), gzip.finish().unwrap()).unwrap();
    let shell = format!("ulimit -v 400000; exec {} trace show endless.csv.gz", env!("CARGO_BIN_EXE_kvlab"));
    let mut command = assert_cmd::Command::new("sh");
    let assert = command.current_dir(dir.path()).args(["-c", &shell]).assert().code(2);
    let message = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(message.contains("67108864") && !message.contains("panicked"), "{message}");
}
