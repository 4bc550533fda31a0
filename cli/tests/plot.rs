//! `kvlab plot`: which rows and columns are drawn, and what it says to those it cannot draw.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::fs;
use std::path::Path;

use common::{kvlab, run};
use tempfile::{TempDir, tempdir};

/// Two policies, two contexts, three sizes of a batch and three seeds; what is drawn is easily told.
fn folder() -> TempDir {
    let dir = tempdir().unwrap();
    let mut text =
        "policy,trace,seed,num_ctx,num_batch,variant,ttft_p99_ms,goodput_requests_per_s,load_error\n"
            .to_owned();
    for policy in ["paged:128", "paged:16"] {
        for num_ctx in [512, 4096] {
            for num_batch in [1024, 32, 256] {
                for seed in 0..3 {
                    let ttft =
                        if num_batch == 32 { String::new() } else { format!("{}", num_batch * (seed + 1)) };
                    let (good, watermark) =
                        (num_batch / 16 + seed, if policy == "paged:16" { "0" } else { "0.05" });
                    text += &format!(
                        "{policy},a.csv,{seed},{num_ctx},{num_batch},memory=local=1;global=2;watermark={watermark},{ttft},{good},\n"
                    );
                }
            }
        }
    }
    fs::write(dir.path().join("summary.csv"), text).unwrap();
    dir
}

fn plot(dir: &Path, words: &[&str]) -> String {
    let assert = kvlab(dir).args(["plot", "summary.csv", "--quiet"]).args(words).assert().success();
    let svg = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    assert!(svg.starts_with("<svg") && !svg.contains("NaN") && !svg.contains("could not be drawn"), "{svg}");
    svg
}

fn refused(dir: &Path, words: &[&str]) -> String {
    let assert = kvlab(dir).args(["plot", "summary.csv"]).args(words).assert().code(2);
    let output = assert.get_output();
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// Where texts stand in a picture, in order.
fn order(svg: &str, texts: &[&str]) -> Vec<usize> {
    texts.iter().map(|text| svg.find(text).unwrap_or_else(|| panic!("no {text:?} in {svg}"))).collect()
}

#[test]
fn panels_and_curves_are_the_values_of_their_columns() {
    let dir = folder();
    let svg = plot(dir.path(), &["--x", "num_batch", "--y", "goodput_requests_per_s", "--col-by", "num_ctx"]);
    // Numbers by size, policies as they come; a curve each in both panels.
    let places = order(&svg, &["paged:128\n", "paged:16\n", "num_ctx=512\n", "num_ctx=4096\n"]);
    assert!(places.is_sorted(), "{places:?}");
    let curves = |svg: &str, name: &str| svg.matches(&format!("<title>{name}</title>")).count();
    assert_eq!((curves(&svg, "paged:128"), curves(&svg, "paged:16")), (2, 2));
    let svg = plot(
        dir.path(),
        &[
            "--x",
            "num_batch",
            "--y",
            "goodput_requests_per_s",
            "--row-by",
            "num_ctx",
            "--curve-by",
            "watermark,policy",
        ],
    );
    assert_eq!(curves(&svg, "watermark=0, paged:16"), 2, "{svg}");
    let svg = plot(
        dir.path(),
        &[
            "--x",
            "num_batch",
            "--y",
            "goodput_requests_per_s",
            "--filter-by",
            "num_ctx > 512",
            "--filter-by",
            "policy != paged:16",
        ],
    );
    assert_eq!((curves(&svg, "paged:128"), curves(&svg, "paged:16")), (1, 0));
    assert!(!svg.contains("num_ctx"));
    // The policy that is left keeps its colour.
    assert!(svg.contains("#0072B2") && !svg.contains("#D55E00"), "{svg}");
    let again = plot(
        dir.path(),
        &["--x", "num_batch", "--y", "goodput_requests_per_s", "--filter-by", "policy == paged:16"],
    );
    assert!(!again.contains("#0072B2") && again.contains("#D55E00"), "{again}");
}

#[test]
fn panels_say_what_was_set_and_no_label_is_cut_off() {
    let dir = folder();
    let words = ["--x", "seed", "--y", "goodput_requests_per_s", "--curve-by", "none"];
    for by in
        [&["--row-by", "num_ctx,num_batch,watermark,memory"][..], &["--col-by", "memory,watermark,num_ctx"]]
    {
        let svg = plot(dir.path(), &[&words[..], by].concat());
        assert!(!svg.contains("..."), "{by:?}: {svg}");
        // A label stands in as many lines as it takes.
        for part in ["num_ctx=512", "num_ctx=4096", "watermark=0.05", "memory=local=1;global=2"] {
            assert!(svg.contains(part), "{by:?}: no {part:?} in {svg}");
        }
    }
}

#[test]
fn filters_compare_numbers_by_size_and_words_by_letters() {
    let dir = folder();
    let count = |filter: &str| {
        let words = [
            "--x",
            "seed",
            "--y",
            "goodput_requests_per_s",
            "--curve-by",
            "num_batch,policy,num_ctx",
            "--filter-by",
            filter,
        ];
        plot(dir.path(), &words).matches("<title>num_batch").count()
    };
    for (filter, curves) in [
        ("num_batch >= 256", 8),
        ("num_batch>256", 4),
        ("num_batch < 256.5", 8),
        ("num_batch <= 32", 4),
        ("num_batch == 32.0", 4),
        ("num_batch != 32", 8),
        ("policy == paged:16", 6),
        ("policy != paged:16", 6),
        ("watermark < 0.01", 6),
        ("memory == local=1;global=2", 12),
        ("ttft_p99_ms > 0", 8),
        ("ttft_p99_ms == ", 4),
    ] {
        assert_eq!(count(filter), curves, "{filter}");
    }
}

#[test]
fn intervals_are_over_seeds_and_what_is_averaged_is_told() {
    let dir = folder();
    let words =
        ["plot", "summary.csv", "--x", "num_batch", "--y", "goodput_requests_per_s", "--curve-by", "none"];
    let assert = kvlab(dir.path()).args(words).assert().success();
    let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(said.contains("averaged over policy, num_ctx, watermark;"), "{said}");
    let said = kvlab(dir.path())
        .args(words)
        .args(["--filter-by", "policy == paged:16", "--filter-by", "num_ctx == 512"])
        .assert();
    assert!(said.get_output().stderr.is_empty());
    // Three caps of three points, and their whiskers, are lines of five numbers or so.
    let whiskers = |words: &[&str]| plot(dir.path(), words).matches("stroke-width=\"1.3\"").count();
    let seeds = ["--x", "num_batch", "--y", "goodput_requests_per_s", "--curve-by", "none"];
    assert_eq!(whiskers(&seeds), 3 * 3);
    assert_eq!(whiskers(&[&seeds[..], &["--filter-by", "seed == 1"]].concat()), 0);
}

#[test]
fn words_lie_across_and_axes_may_be_of_powers_of_ten() {
    let dir = folder();
    let svg = plot(dir.path(), &["--x", "policy", "--y", "goodput_requests_per_s", "--curve-by", "num_ctx"]);
    assert!(svg.contains(">\npaged:128\n<"), "{svg}");
    assert!(svg.matches("<rect").count() >= 4, "bars");
    let svg = plot(
        dir.path(),
        &["--x", "policy", "--y", "goodput_requests_per_s", "--curve-by", "num_ctx", "--log-y"],
    );
    assert!(svg.matches("<rect").count() < 4, "bars of a logarithm begin nowhere: points");
    let [plain, log] = ["--log-x=false", "--log-x"]
        .map(|flag| plot(dir.path(), &["--x", "num_batch", "--y", "goodput_requests_per_s", flag]));
    assert!(plain != log);
    fs::create_dir(dir.path().join("results")).unwrap();
    fs::copy(dir.path().join("summary.csv"), dir.path().join("results/summary.csv")).unwrap();
    run(dir.path(), "plot results --x num_batch --y goodput_requests_per_s --out drawn.svg --quiet --log-x");
    assert_eq!(fs::read_to_string(dir.path().join("drawn.svg")).unwrap(), log);
}

#[test]
fn a_front_is_what_no_other_setting_beats_in_both() {
    let dir = tempdir().unwrap();
    // By hand: memory, latency and throughput of four settings under two seeds each.
    let mut text =
        "policy,seed,num_ctx,variant,held_peak_gib,latency_p99_ms,throughput_tokens_per_s,cells_copied\n"
            .to_owned();
    for (policy, num_ctx, gib, ms, rate) in [
        ("paged", 512, 1.0, 900.0, 10.0),
        ("paged", 4096, 2.0, 500.0, 30.0),
        ("shift", 512, 2.0, 600.0, 40.0),
        ("unlimited", 512, 0.5, 100.0, 99.0),
    ] {
        for seed in 0..2 {
            let more = f64::from(seed) * 2.0;
            text += &format!("{policy},{seed},{num_ctx},victim=lcf,{gib},{},{},7\n", ms + more, rate + more);
        }
    }
    fs::write(dir.path().join("summary.csv"), text).unwrap();
    let told = |x: &str, y: &str| -> Vec<String> {
        let words = ["plot", "summary.csv", "--front", "--out", "front.svg", "--x", x, "--y", y];
        let assert = kvlab(dir.path()).args(words).assert().success();
        let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        let name = |line: &str| line.strip_prefix("front: ")?.split(": ").next().map(str::to_owned);
        said.lines().filter_map(name).collect()
    };
    // The bound is drawn and beats nobody.
    let small = ["paged, num_ctx=512", "paged, num_ctx=4096"];
    assert_eq!(told("held_peak_gib", "latency_p99_ms"), small);
    assert!(fs::read_to_string(dir.path().join("front.svg")).unwrap().contains("unlimited"));
    assert_eq!(
        told("latency_p99_ms", "throughput_tokens_per_s"),
        ["paged, num_ctx=4096", "shift, num_ctx=512"]
    );
    assert_eq!(
        told("throughput_tokens_per_s", "held_peak_gib"),
        ["shift, num_ctx=512", "paged, num_ctx=512"]
    );
    let words = ["--x", "held_peak_gib", "--y", "latency_p99_ms", "--front"];
    let svg = plot(dir.path(), &words);
    assert!(
        svg.contains("latency p99 against peak memory") && svg.contains("further down and to the left"),
        "{svg}"
    );
    let one = plot(dir.path(), &[&words[..], &["--filter-by", "num_ctx > 512"]].concat());
    assert!(one.contains("paged") && !one.contains("shift"));
    for (words, said_too) in [
        (&["--x", "cells_copied", "--y", "latency_p99_ms", "--front"][..], "expected one of"),
        (&["--x", "num_ctx", "--y", "latency_p99_ms", "--front"], "nobody wishes"),
        (&[&words[..], &["--row-by", "policy"]].concat(), "cannot be used with"),
        (&[&words[..], &["--filter-by", "num_ctx > 9999"]].concat(), "no row is left"),
    ] {
        let said = refused(dir.path(), words);
        assert!(said.contains(said_too), "{said}");
    }
}

#[test]
fn results_of_sweeps_and_other_tables_are_drawn() {
    let dir = tempdir().unwrap();
    run(
        dir.path(),
        "compare --generate chat --requests 12 --policies paged,defrag --seeds 2 --model gemma3-1b --num-ctx 1024 \
         --num-parallel 4 --memory local=2048;global=2048 --quiet --out out",
    );
    for line in [
        "plot out --x policy --y ttft_p99_ms",
        "plot out/timeline.csv --x time_s --y live_cells --filter-by seed==0 --col-by class",
        "plot out/requests.csv --x prompt_tokens --y ttft_ms --row-by policy --col-by seed",
    ] {
        assert!(run(dir.path(), line).starts_with("<svg"), "{line}");
    }
}

#[test]
fn what_cannot_be_drawn_is_said_with_what_there_is() {
    let dir = folder();
    let xy = ["--x", "num_batch", "--y", "goodput_requests_per_s"];
    for (words, said_too) in [
        (
            &["--x", "num_bach", "--y", "seed"][..],
            &["there is no column \"num_bach\"", "num_ctx, num_batch", "watermark", "^"][..],
        ),
        (
            &["--x", "num_batch", "--y", "policy"],
            &["no column of numbers", "ttft_p99_ms, goodput_requests_per_s"],
        ),
        (&["--x", "num_batch", "--y", "load_error"], &["no column of numbers"]),
        (&[&xy[..], &["--col-by", "policy,colour"]].concat(), &["there is no column \"colour\""]),
        (
            &[&xy[..], &["--filter-by", "colour == red"]].concat(),
            &["there is no column \"colour\"", "the columns are policy"],
        ),
        (&[&xy[..], &["--filter-by", "num_ctx"]].concat(), &["no comparison"]),
        (&[&xy[..], &["--filter-by", "policy > paged"]].concat(), &["expected a number"]),
        (&[&xy[..], &["--filter-by", "num_ctx > 9999"]].concat(), &["no row is left"]),
        (&[&xy[..], &["--out", "plot.png"]].concat(), &["plot.png", ".svg"]),
        (&[&xy[..], &["--out", "nowhere/plot.svg"]].concat(), &["nowhere/plot.svg"]),
    ] {
        let said = refused(dir.path(), words);
        for word in said_too {
            assert!(said.contains(word), "{words:?}: no {word:?} in {said}");
        }
    }
    for (name, text, words) in [
        ("ragged.csv", "a,b\n1,2\n3\n", &["ragged.csv, line 3", "1 values under 2 columns"][..]),
        ("odd.csv", "a,b\n1,2\n1,x\n", &["no column of numbers"]),
        (
            "many.csv",
            &("a,b\n".to_owned() + &(0..100).map(|i| format!("w{i},1\n")).collect::<String>()),
            &["100 words by a"],
        ),
        ("none.csv", "a,b\n", &["no column of numbers"]),
        ("empty.csv", "", &["no column \"a\""]),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
        let assert = kvlab(dir.path()).args(["plot", name, "--x", "a", "--y", "b"]).assert().code(2);
        let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        for word in words {
            assert!(said.contains(word), "{name}: no {word:?} in {said}");
        }
    }
    let assert = kvlab(dir.path()).args(["plot", ".", "--x", "a", "--y", "b"]).assert().code(2);
    assert!(!assert.get_output().stderr.is_empty());
    kvlab(dir.path()).args(["plot", "gone.csv", "--x", "a", "--y", "b"]).assert().code(2);
}
