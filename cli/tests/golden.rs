//! A golden row for every policy: what it does, to the last event, with two hundred turns of conversations on a
//! cache that is too small, under a context limit that many reach and one that few do; and for every evictor what
//! it finds for seats that take turns.
//!
//! No two rows under one setting do the same, but for those listed, or one rule could stand in for another unseen.
//! `KVLAB_BLESS=1 cargo test -p kvlab --test golden` writes the rows anew; read the difference before it is committed.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs};

const CONVERSATIONS: &str = "scenarios/conversations.toml --seeds 1 --limit 200 --scheduler continuous \
                             --num-parallel 8 --memory local=3000;global=4400 --num-ctx 2048,4096";

/// Beside every policy of the table.
const SPECS: [&str; 24] = [
    "contiguous:pow2",
    "contiguous:run",
    "contiguous:exact",
    "defrag:threshold",
    "defrag:step",
    "defrag:background",
    "defrag:threshold:0:objective=runs",
    "shift:defrag=never",
    "shift+unrotated",
    "swa-full+shift",
    "ring+unrotated",
    "sinks:drop=64",
    "paged:16+prefix",
    "paged:64+prefix",
    "paged:64+prefix(lru:cow)",
    "paged:16+prefix(fifo)",
    "paged:16+prefix(lfu)",
    "paged:16+prefix(s3fifo)",
    "paged:16+prefix(cost)",
    "paged:16+prefix(scan)",
    "paged:16+prefix(lru)+swap",
    "paged:16+prefix(lru)+tiered+swap",
    "ladder:16:q8_0",
    "vllm:retention=dense",
];

const SEATS: &str = "scenarios/known/prefix-cliff.toml --generate seats:4:4";

/// Here the bound is one: who is next is known.
const EVICTORS: [&str; 8] = [
    "paged:16+prefix(lru)",
    "paged:16+prefix(fifo)",
    "paged:16+prefix(lfu)",
    "paged:16+prefix(s3fifo)",
    "paged:16+prefix(cost)",
    "paged:16+prefix(scan)",
    "paged:16+prefix(belady)",
    "vllm:evict=whole",
];

/// Who does the same, by context limit: neither reaches it.
const ALIKE: [(&str, &[&str]); 1] = [("4096", &["swa-full", "swa-full+shift"])];

/// Whole numbers and a hash of all events: the same on every machine.
const COLUMNS: [&str; 15] = [
    "policy",
    "trace",
    "num_ctx",
    "completed",
    "rejected",
    "shifted",
    "preempted",
    "output_tokens",
    "defrag_passes",
    "cells_copied",
    "cells_swapped",
    "cells_requantised",
    "cached_tokens",
    "steps",
    "event_hash",
];

fn kvlab(line: &str) -> String {
    common::run(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("crates lie in the workspace"), line)
}

/// The columns of every run.
fn rows(scenario: &str, policies: &str) -> Vec<Vec<String>> {
    let table = kvlab(&format!("compare {scenario} --format csv --no-files --quiet --policies {policies}"));
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let header = reader.headers().expect("there is a header").clone();
    let place = |name: &str| header.iter().position(|found| found == name).expect("the column is there");
    let places = COLUMNS.map(place);
    let columns = |row: csv::StringRecord| places.map(|place| row[place].to_owned()).to_vec();
    reader.records().map(|row| columns(row.expect("it is a table"))).collect()
}

/// Policies that did the same to the last event, by trace and context limit.
fn alike(rows: &[Vec<String>]) -> Vec<(&str, Vec<&str>)> {
    let mut groups: BTreeMap<(&str, &str, &str), Vec<&str>> = BTreeMap::new();
    for row in rows {
        let [policy, trace, num_ctx, .., hash] = row.as_slice() else { panic!("{row:?}") };
        groups.entry((trace, num_ctx, hash)).or_default().push(policy);
    }
    let several = groups.into_iter().filter(|(_, policies)| policies.len() > 1);
    several.map(|((_, num_ctx, _), policies)| (num_ctx, policies)).collect()
}

#[test]
fn every_policy_does_what_it_did() {
    let table = kvlab("policies --format csv");
    let mut policies: Vec<&str> = table.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
    policies.dedup();
    assert!(policies.len() > 20, "{policies:?}");
    policies.extend(SPECS);
    let mut rows = rows(CONVERSATIONS, &policies.join(","));
    rows.extend(self::rows(SEATS, &EVICTORS.join(",")));
    assert_eq!(rows.len(), 2 * policies.len() + EVICTORS.len());

    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS).expect("memory takes it");
    rows.iter().for_each(|row| writer.write_record(row).expect("memory takes it"));
    let found = String::from_utf8(writer.into_inner().expect("memory takes it")).expect("it was text");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/policies.csv");
    if env::var_os("KVLAB_BLESS").is_some() {
        fs::write(&path, &found).expect("the folder is there");
    }
    let golden = fs::read_to_string(&path).expect("the rows are there");
    for (found, golden) in found.lines().zip(golden.lines()) {
        assert_eq!(found, golden);
    }
    assert_eq!(found.lines().count(), golden.lines().count());

    let (mut alike, mut expected) = (alike(&rows), ALIKE.map(|(num_ctx, all)| (num_ctx, all.to_vec())));
    alike.sort();
    expected.sort();
    assert_eq!(alike, expected);
    // Whatever a column counts, somebody does it.
    for (at, column) in COLUMNS.iter().enumerate() {
        assert!(rows.iter().any(|row| row[at] != "0"), "{column} is nothing everywhere");
    }
}
