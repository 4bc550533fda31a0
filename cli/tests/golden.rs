//! A golden row for every policy: what it does with a hundred chats, under a short and a long context, to the last event.
//!
//! `KVLAB_BLESS=1 cargo test -p kvlab --test golden` writes the rows anew; read the difference before it is committed.

mod common;

use std::path::Path;
use std::{env, fs};

/// Beside every policy of the table.
const SPECS: [&str; 9] = [
    "contiguous:pow2",
    "contiguous:run",
    "defrag:step",
    "paged:16+prefix(lru:cow)",
    "paged:16+prefix(s3fifo)",
    "paged:16+prefix(lru)+tiered+swap",
    "shift+unrotated",
    "ring+unrotated",
    "sinks:drop=64",
];

/// Whole numbers and a hash of all events: the same on every machine.
const COLUMNS: [&str; 12] = [
    "policy",
    "num_ctx",
    "completed",
    "rejected",
    "truncated",
    "shifted",
    "preempted",
    "output_tokens",
    "defrag_passes",
    "cells_copied",
    "steps",
    "event_hash",
];

fn kvlab(line: &str) -> String {
    common::run(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("crates lie in the workspace"), line)
}

fn rows(policies: &str) -> String {
    let scenario = "scenarios/chat.toml --seeds 1 --limit 100 --num-ctx 1024,8192";
    let table = kvlab(&format!("compare {scenario} --format csv --no-files --quiet --policies {policies}"));
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let header = reader.headers().expect("there is a header").clone();
    let place = |name: &str| header.iter().position(|found| found == name).expect("the column is there");
    let places = COLUMNS.map(place);
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS).expect("memory takes it");
    for row in reader.records() {
        let row = row.expect("it is a table");
        writer.write_record(places.map(|place| &row[place])).expect("memory takes it");
    }
    String::from_utf8(writer.into_inner().expect("memory takes it")).expect("it was text")
}

#[test]
fn every_policy_does_what_it_did() {
    let table = kvlab("policies --format csv");
    let mut policies: Vec<&str> = table.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
    policies.dedup();
    assert!(policies.len() > 20, "{policies:?}");
    policies.extend(SPECS);
    let found = rows(&policies.join(","));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/policies.csv");
    if env::var_os("KVLAB_BLESS").is_some() {
        fs::write(&path, &found).expect("the folder is there");
    }
    let golden = fs::read_to_string(&path).expect("the rows are there");
    for (found, golden) in found.lines().zip(golden.lines()) {
        assert_eq!(found, golden);
    }
    assert_eq!(found.lines().count(), golden.lines().count());
    assert_eq!(found.lines().count(), 1 + 2 * policies.len());
}
