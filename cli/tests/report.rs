//! Pages drawn again from results alone: the same bytes, or a place in a damaged file and nothing touched.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::fs;
use std::path::Path;

use common::{kvlab, run, sweep_folder};
use tempfile::TempDir;

const SWEEP: &str = "\
title = \"A <grid>\"
question = \"Which?\"
reference = \"paged\"
trace = \"chat-{seed}.csv\"
seeds = 2
policies = [\"contiguous\", \"paged\"]
model = \"gemma3-1b\"
memory = \"local=2048;global=2048\"
num_ctx = 512
num_batch = [32, 64]
num_parallel = [2, 4]
";

const TIGHT: &str = "--model gemma3-1b --memory local=2048;global=2048 --num-ctx 1024 --num-parallel 4 \
                     --num-batch 64 --quiet";

/// A folder with two traces and a sweep over them.
fn folder() -> TempDir {
    sweep_folder(SWEEP, 2, 24)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Copies a folder of results elsewhere, without its page.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else if name != "report.html" {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

/// Exit code and standard error of a command.
fn outcome(dir: &Path, words: &[&str]) -> (i32, String) {
    let assert = kvlab(dir).args(words).assert();
    let output = assert.get_output();
    (output.status.code().unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

/// A report that has to be refused, with these words, and to leave everything as it was.
fn refused(dir: &Path, words: &[&str]) {
    let before = fs::read_dir(dir.join("out")).unwrap().count();
    let page = read(&dir.join("out/report.html"));
    let (code, said) = outcome(dir, &["report", "out"]);
    assert_eq!(code, 2, "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    assert!(read(&dir.join("out/report.html")) == page);
    assert_eq!(fs::read_dir(dir.join("out")).unwrap().count(), before, "something half-written is left");
}

#[test]
fn pages_of_experiments_are_drawn_again_byte_by_byte() {
    let dir = folder();
    let rows = "trace = \"chat-0.csv\"\npolicies = \"contiguous\"\nreference = \"b\"\n\n[[row]]\nname = \"a\"\n\n[[row]]\n\
                name = \"b\"\npolicies = \"ollama-0.6.6\"\nscheduler = \"runner\"\n";
    fs::write(dir.path().join("rows.toml"), rows).unwrap();
    for line in [
        format!(
            "compare --trace chat-{{seed}}.csv --policies paged,defrag,unlimited --seeds 2 {TIGHT} --out out --title a\"<b>"
        ),
        format!("compare rows.toml {TIGHT} --out out"),
        format!(
            "compare --generate screenshots --requests 30 --seed0 5 --policies ollama-0.6.6 --scheduler runner {TIGHT} --out out"
        ),
        format!("run --generate chat --requests 9 --policies paged {TIGHT} --out out"),
    ] {
        run(dir.path(), &line);
        let elsewhere = dir.path().join("elsewhere");
        copy(&dir.path().join("out"), &elsewhere.join("copy"));
        let page = read(&dir.path().join("out/report.html"));
        assert!(page.contains("Who held which cells") && page.contains("How long it took"), "{line}");
        // Nothing but the folder is there.
        run(&elsewhere, "report copy --quiet");
        assert!(read(&elsewhere.join("copy/report.html")) == page, "{line}");
        fs::remove_dir_all(&elsewhere).unwrap();
        fs::remove_dir_all(dir.path().join("out")).unwrap();
    }
}

#[test]
fn the_page_of_a_sweep_is_drawn_again_byte_by_byte() {
    let dir = folder();
    run(dir.path(), "sweep grid.toml --quiet --out out");
    let page = read(&dir.path().join("out/report.html"));
    for part in [
        "A &lt;grid&gt;",
        "Which?",
        "Who is first",
        "What one costs in the other",
        "What matters",
        "Two knobs at a time",
        "Who held which cells",
        "difference to paged",
        "num_ctx = 512",
        "<pre class=\"command\">kvlab sweep grid.toml</pre>",
        "num_parallel 2, num_batch 32 on chat-{seed}.csv, seed 0",
    ] {
        assert!(page.contains(part), "no {part:?}");
    }
    let elsewhere = dir.path().join("elsewhere");
    copy(&dir.path().join("out"), &elsewhere.join("copy"));
    run(&elsewhere, "report copy --quiet");
    assert!(read(&elsewhere.join("copy/report.html")) == page);
    // The same from parts on one thread, in another order, put together by somebody else.
    for index in [2, 0, 1] {
        run(dir.path(), &format!("sweep grid.toml --quiet --out parts --threads 1 --shard {index}/3"));
    }
    run(dir.path(), "collect parts --quiet");
    assert!(read(&dir.path().join("parts/report.html")) == page);
    // Another target is another page, and is not kept unless it is asked for when the sweep is listed.
    run(dir.path(), "report out --quiet --target ttft_p99_ms --out other.html");
    assert!(read(&dir.path().join("other.html")).contains("By TTFT p99."));
    assert!(read(&dir.path().join("out/report.html")) == page);
    run(dir.path(), "sweep grid.toml --quiet --out out --target ttft_p99_ms");
    run(dir.path(), "report out --quiet");
    let kept = read(&dir.path().join("out/report.html"));
    assert!(kept.contains("By TTFT p99.") && kept.contains("--target ttft_p99_ms</pre>"));
    // So are the columns that are drawn against each other.
    let fronts = ["--front", "held_peak_gib,latency_p99_ms", "--front", "throughput_tokens_per_s,loss"];
    let words = [&["report", "out", "--quiet", "--out", "fronts.html"][..], &fronts].concat();
    assert_eq!(outcome(dir.path(), &words), (0, String::new()));
    let drawn = read(&dir.path().join("fronts.html"));
    for title in ["latency p99 against peak memory", "lost or cut requests against throughput"] {
        assert!(drawn.contains(title) && !kept.contains(title), "{title}");
    }
    assert!(kept.contains("TTFT p99 against peak memory") && !drawn.contains("TTFT p99 against peak memory"));
    let words = [&["sweep", "grid.toml", "--quiet", "--out", "out"][..], &fronts].concat();
    assert_eq!(outcome(dir.path(), &words), (0, String::new()));
    let head = read(&dir.path().join("out/sweep.toml"));
    assert!(
        head.contains("front = [\"held_peak_gib,latency_p99_ms\", \"throughput_tokens_per_s,loss\"]"),
        "{head}"
    );
    let of_sweep = read(&dir.path().join("out/report.html"));
    run(dir.path(), "report out --quiet");
    assert!(read(&dir.path().join("out/report.html")) == of_sweep);
    assert!(of_sweep.contains("latency p99 against peak memory"));
    for wrong in ["ttft_p99_ms", "ttft_p99_ms,ttft_p99_ms", "ttft_p99_ms,cells_copied", "ttft_p99_ms,policy"]
    {
        let (code, said) = outcome(dir.path(), &["report", "out", "--front", wrong]);
        assert!(
            code == 2 && said.contains("two different columns") && said.contains("held_peak_gib"),
            "{said}"
        );
    }
    let (code, said) = outcome(dir.path(), &["report", "out", "--target", "cells_copied"]);
    assert!(code == 2 && said.contains("expected one of") && said.contains("ttft_p99_ms"), "{said}");
    let (code, said) = outcome(dir.path(), &["report", "out", "--reference", "shift"]);
    assert!(code == 2 && said.contains("shift"), "{said}");
}

#[test]
fn a_sweep_that_is_not_done_has_a_page_that_says_so() {
    let dir = folder();
    run(dir.path(), "sweep grid.toml --quiet --out out --shard 0/2");
    run(dir.path(), "report out --quiet");
    let page = read(&dir.path().join("out/report.html"));
    assert!(page.contains("of 16 simulations have not been run yet"));
    // What others simulate is planned first.
    assert_eq!(run(dir.path(), "sweep grid.toml --plan --out planned"), "16 simulations\n");
    for name in ["sweep.jsonl", "sweep.toml"] {
        assert_eq!(read(&dir.path().join("planned").join(name)), read(&dir.path().join("out").join(name)));
    }
    let list = run(dir.path(), "sweep grid.toml --list");
    assert_eq!(read(&dir.path().join("planned/sweep.jsonl")), list);
    run(dir.path(), "report planned --quiet");
    assert!(read(&dir.path().join("planned/report.html")).contains("There are no results to compare."));
    // A simulation that failed is marked in the heat map.
    let trace = read(&dir.path().join("chat-1.csv"));
    fs::write(dir.path().join("chat-1.csv"), format!("{trace}1e9,none,5\n")).unwrap();
    let (code, _) = outcome(dir.path(), &["sweep", "grid.toml", "--quiet", "--out", "failed"]);
    assert_eq!(code, 1);
    let page = read(&dir.path().join("failed/report.html"));
    assert!(page.contains("8 of 16 simulations failed") && page.contains("a simulation failed\n"), "no mark");
}

/// Values put in front move the first setting of a policy: it is simulated again for its map, and nothing else is.
#[test]
fn a_map_that_is_missing_is_made() {
    let dir = folder();
    run(dir.path(), "sweep grid.toml --quiet --out out --num-batch 64");
    let said = outcome(dir.path(), &["sweep", "grid.toml", "--out", "out", "--num-batch", "64"]).1;
    assert!(said.contains("8 simulations were there already") && !said.contains("simulations in"), "{said}");
    let said = outcome(
        dir.path(),
        &["sweep", "grid.toml", "--out", "out", "--num-batch", "64", "--num-parallel", "4,2"],
    )
    .1;
    assert!(said.contains("6 simulations were there already") && said.contains("2 simulations in"), "{said}");
    assert!(read(&dir.path().join("out/report.html")).contains("num_parallel 4 on chat-{seed}.csv, seed 0"));
}

/// A file, what becomes of its text, and what is then said.
type Damage<'a> = (&'a str, fn(&str) -> String, &'a [&'a str]);

#[test]
fn damaged_results_are_pointed_at() {
    let dir = folder();
    run(dir.path(), &format!("compare --trace chat-0.csv --policies paged,defrag {TIGHT} --out out"));
    let out = dir.path().join("out");
    let cases: [Damage; 9] = [
        (
            "summary.csv",
            |text| text.replacen("paged,chat-0.csv,0,", "paged,chat-0.csv,zero,", 1),
            &["summary.csv, line 2", "column seed"],
        ),
        (
            "summary.csv",
            |text| text.replacen("policy", "police", 1),
            &["summary.csv, line 1", "column policy"],
        ),
        ("timeline.csv", |text| format!("{text}a,b\n"), &["timeline.csv, line ", "2 values"]),
        (
            "page.json",
            |text| text.replacen("\"maps\"", "\"mapps\"", 1),
            &["page.json", "mapps", "line 1 column"],
        ),
        ("page.json", |text| text[..text.len() / 2].to_owned(), &["page.json", "EOF", "line 1 column"]),
        (
            "page.json",
            |text| text.replacen("f\"]", "q\"]", 1),
            &["page.json", "q\"; expected runs", "line 1 column"],
        ),
        ("page.json", |_| String::new(), &["page.json", "line 1 column 0"]),
        ("run.toml", |text| format!("{text}title = \n"), &["run.toml:", "title ="]),
        ("summary.csv", |_| "\u{0}\u{1}".to_owned(), &["summary.csv, line 1"]),
    ];
    for (name, damage, words) in cases {
        let whole = read(&out.join(name));
        let damaged = damage(&whole);
        assert!(damaged != whole, "{name} is not damaged: {words:?}");
        fs::write(out.join(name), damaged).unwrap();
        refused(dir.path(), words);
        fs::write(out.join(name), whole).unwrap();
    }
    run(dir.path(), "report out --quiet");
    for (name, words) in
        [("page.json", ["earlier version", "kvlab compare run.toml"]), ("timeline.csv", ["timeline.csv", ""])]
    {
        fs::rename(out.join(name), dir.path().join("aside")).unwrap();
        refused(dir.path(), &words);
        fs::rename(dir.path().join("aside"), out.join(name)).unwrap();
    }
    for (words, said_too) in [
        (&["report", "nowhere"][..], "expected a folder"),
        (&["report", "out", "--target", "failed"], "only the page of a sweep"),
        (&["report", "out", "--reference", "shift"], "no result is called"),
        (&["report", "out", "--out", "nowhere/page.html"], "nowhere/page.html"),
    ] {
        let (code, said) = outcome(dir.path(), words);
        assert!(code == 2 && said.contains(said_too), "{words:?}: {said}");
    }
    fs::write(out.join("sweep.jsonl"), "").unwrap();
    refused(dir.path(), &["of a sweep and of an experiment"]);
}

#[test]
fn damaged_sweeps_are_pointed_at() {
    let dir = folder();
    run(dir.path(), "sweep grid.toml --quiet --out out --num-batch 32");
    let out = dir.path().join("out");
    for (name, text, words) in [
        ("sweep.toml", "title = 3\n", &["sweep.toml:1", "string"][..]),
        ("sweep.toml", "titel = \"a\"\n", &["sweep.toml:1", "titel"]),
        ("sweep.toml", "target = \"model\"\n", &["sweep.toml", "model"]),
        ("sweep.jsonl", "{\n", &["sweep.jsonl, line 1", "EOF"]),
        (
            "sweep.jsonl",
            "{\"settings\":{\"colour\":\"red\"}}\n{\"settings\":3}\n",
            &["sweep.jsonl, line 2", "map"],
        ),
    ] {
        let whole = read(&out.join(name));
        fs::write(out.join(name), text).unwrap();
        refused(dir.path(), words);
        fs::write(out.join(name), whole).unwrap();
    }
    // A list by hand, of settings that nobody knows, is a sweep without results.
    fs::write(out.join("sweep.jsonl"), "{\"settings\":{\"colour\":\"red\"}}\n{\"settings\":{}}\n").unwrap();
    run(dir.path(), "report out --quiet");
}
