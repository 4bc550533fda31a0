//! Scenarios with rows: each row is the scenario with some keys set otherwise.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::fs;

use common::{kvlab, run};
use report::files::read_summary;
use tempfile::{TempDir, tempdir};

const SCENARIO: &str = r#"
generate = "chat"
requests = 12
seeds = 2
policies = "contiguous"
model = "gemma3-1b"
memory = "local=2048;global=2048"
num_ctx = 1024
num_parallel = 4
num_batch = 64
reference = "as it is"

[[row]]
name = "as it is"

[[row]]
name = "pages"
policies = "paged"

[[row]]
name = "two at once"
num_parallel = 2
"#;

fn folder(scenario: &str) -> TempDir {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("rows.toml"), scenario).unwrap();
    dir
}

/// What a bad scenario or flag is told; nothing may be written.
fn complaint(scenario: &str, flags: &str) -> String {
    let dir = folder(scenario);
    let mut command = kvlab(dir.path());
    let assert = command.args(["compare", "rows.toml"]).args(flags.split_whitespace()).assert().code(2);
    assert!(!dir.path().join("kvlab-out").exists(), "something was written");
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

#[test]
fn every_row_is_a_run_of_its_own_settings() {
    let dir = folder(SCENARIO);
    run(dir.path(), "compare rows.toml --out out --quiet");
    let rows = read_summary(&dir.path().join("out/summary.csv")).unwrap();
    let found: Vec<_> =
        rows.iter().map(|row| (&*row.row, &*row.policy, row.num_parallel, row.seed)).collect();
    let expected = [("as it is", "contiguous", 4), ("pages", "paged", 4), ("two at once", "contiguous", 2)];
    let expected: Vec<_> =
        expected.into_iter().flat_map(|(row, policy, n)| [0, 1].map(|seed| (row, policy, n, seed))).collect();
    assert_eq!(found, expected);
    for file in ["timeline.csv", "requests.csv"] {
        let text = fs::read_to_string(dir.path().join("out").join(file)).unwrap();
        assert!(text.starts_with("row,policy,seed,"), "{file}");
        for (row, policy, _, _) in &expected {
            assert!(text.contains(&format!("\n{row},{policy},")), "{file} lacks {row}");
        }
    }
}

#[test]
fn a_row_equals_the_same_settings_without_rows() {
    let dir = folder(SCENARIO);
    run(dir.path(), "compare rows.toml --out rows --quiet");
    let (plain, _) = SCENARIO.split_once("reference").unwrap();
    fs::write(dir.path().join("plain.toml"), plain).unwrap();
    run(dir.path(), "compare plain.toml --num-parallel 2 --out plain --quiet");
    let mut rows = read_summary(&dir.path().join("rows/summary.csv")).unwrap();
    rows.retain(|row| row.row == "two at once");
    rows.iter_mut().for_each(|row| row.row.clear());
    assert_eq!(rows, read_summary(&dir.path().join("plain/summary.csv")).unwrap());
}

#[test]
fn the_printed_configuration_repeats_the_rows() {
    let dir = folder(SCENARIO);
    let config = run(dir.path(), "compare rows.toml --print-config");
    fs::write(dir.path().join("again.toml"), &config).unwrap();
    assert_eq!(run(dir.path(), "compare again.toml --print-config"), config);
    run(dir.path(), "compare rows.toml --out a --quiet");
    run(dir.path(), "compare again.toml --out b --quiet");
    let read = |name: &str| fs::read_to_string(dir.path().join(name).join("summary.csv")).unwrap();
    assert_eq!(read("a"), read("b"));
}

#[test]
fn flags_beat_rows_and_rows_can_be_chosen() {
    let dir = folder(SCENARIO);
    run(dir.path(), "compare rows.toml --out out --quiet --num-parallel 3 --rows pages");
    let rows = read_summary(&dir.path().join("out/summary.csv")).unwrap();
    let found: Vec<_> = rows.iter().map(|row| (&*row.row, row.num_parallel)).collect();
    assert_eq!(found, [("pages", 3), ("pages", 3)]);
    run(dir.path(), "compare rows.toml --out all --quiet --num-parallel 3");
    let rows = read_summary(&dir.path().join("all/summary.csv")).unwrap();
    assert!(rows.len() == 6 && rows.iter().all(|row| row.num_parallel == 3), "a flag beats every row");
}

#[test]
fn columns_are_those_of_the_scenario_in_the_table_and_on_the_page() {
    let scenario =
        SCENARIO.replace("reference =", "columns = [\"completed\", \"high_water_mean\"]\nreference =");
    let dir = folder(&scenario);
    let table = run(dir.path(), "compare rows.toml --out out --quiet");
    assert!(
        table.contains("water") && !table.contains("goodput") && !table.contains("needed/there"),
        "{table}"
    );
    let page = fs::read_to_string(dir.path().join("out/report.html")).unwrap();
    let heads = page.matches("high water").count();
    assert!(heads > 0, "the page has the column");
    run(dir.path(), "report out --out again.html --quiet");
    assert!(page == fs::read_to_string(dir.path().join("again.html")).unwrap());
    let table = run(dir.path(), "compare rows.toml --no-files --quiet --columns ttft_p99_ms");
    assert!(table.contains("TTFT") && !table.contains("water"), "{table}");
    let said = complaint(&scenario, "--columns completed,nonsense");
    assert!(
        said.contains("\"nonsense\" is not one of completed,") && said.contains("sequence_runs_mean"),
        "{said}"
    );
}

#[test]
fn the_bus_can_be_set_by_row() {
    let slow = "\n[[row]]\nname = \"slow bus\"\npcie_gb_per_s = 0.1\n\n[[row]]\nname = \"fast bus\"\npcie_gb_per_s = 1000\n";
    let scenario = SCENARIO
        .replace("generate = \"chat\"", "generate = \"uniform:200:400\"")
        .replace("\"contiguous\"", "\"paged\"")
        .replace("global=2048", "global=1600\"\npreemption = \"swap\"\nkv_cache_type = \"f16");
    let dir = folder(&(scenario.clone() + slow));
    run(dir.path(), "compare rows.toml --out out --quiet");
    let rows = read_summary(&dir.path().join("out/summary.csv")).unwrap();
    let of = |name: &str| rows.iter().find(|row| row.row == name).unwrap();
    let (slow, plain, fast) = (of("slow bus"), of("as it is"), of("fast bus"));
    assert!(plain.cells_swapped > 0, "somebody is swapped");
    assert!(slow.duration_s > plain.duration_s && plain.duration_s > fast.duration_s);
    let said = complaint(&scenario, "--pcie-gb-per-s 0");
    assert!(said.contains("a number of GB/s above 0"), "{said}");
}

#[test]
fn run_checks_the_reference_too() {
    let dir = folder(SCENARIO);
    let words = ["run", "rows.toml", "--rows", "pages", "--no-files", "--reference", "nix"];
    let assert = kvlab(dir.path()).args(words).assert().code(2);
    let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(said.contains("not among the rows: as it is, pages, two at once"), "{said}");
}

#[test]
fn bad_rows_are_named_with_their_place() {
    let row = |lines: &str| format!("{SCENARIO}\n[[row]]\n{lines}\n");
    for (scenario, flags, expected) in [
        (row("name = \"z\"\nrequests = 3"), "", "requests is the same for all rows"),
        (row("name = \"z\"\nnum_parallel = [1, 2]"), "", "one value for each of its keys"),
        (row("name = \"pages\""), "", "two rows are called \"pages\""),
        (row("num_batch = 3"), "", "a row needs a name"),
        (row("name = \"a, b\""), "", "without a comma"),
        (row("name = \"z\"\nnum_batches = 3"), "", "did you mean \"num_batch\"?"),
        (row("name = \"z\"\npolicies = \"pagd\""), "", "unknown policy \"pagd\""),
        (SCENARIO.to_owned(), "--rows nix", "the rows are as it is, pages, two at once"),
        (SCENARIO.to_owned(), "--num-batch 32,64", "a scenario with rows takes one value of num_batch"),
        (SCENARIO.to_owned(), "--reference nix", "not among the rows: as it is, pages, two at once"),
        ("row = 3\n".to_owned(), "--generate chat", "expected tables: [[row]]"),
    ] {
        let said = complaint(&scenario, flags);
        assert!(said.contains(expected), "{said}");
        assert!(said.contains("-->"), "no place: {said}");
    }
}
