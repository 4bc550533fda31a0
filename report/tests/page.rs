//! Pages need nothing from outside, run nothing, and believe no name.

mod common;

use common::{HOSTILE, row, rows};
use report::page::{Page, TracePage, page, trace_page};
use report::{CellMap, Held, MapColumn, Summary, TimelineRow};

fn hostile_page() -> Page {
    let name = || HOSTILE[0].to_owned();
    let all = || HOSTILE.iter().map(|n| (*n).to_owned());
    let summaries: Vec<Summary> = HOSTILE
        .iter()
        .flat_map(|n| (0..3).map(|seed| row(n, seed, 900 + seed, 10.0 + seed as f64)))
        .collect();
    let timeline = (0..10).map(|i| TimelineRow {
        row: String::new(),
        policy: name(),
        seed: 0,
        time_s: f64::from(i),
        class: HOSTILE[1].to_owned(),
        cells: 100,
        live_cells: 5 * i,
        held_cells: 6 * i,
        cached_cells: 0,
        free_cells: 100 - 6 * i,
        placeable_cells: 10,
        high_water_cells: 60,
        sequence_runs: 1,
        sequences: i,
        waiting: 1,
    });
    let columns = vec![MapColumn { time_ns: 1, ranges: vec![Held::Live(1), Held::Free, Held::Wasted(2)] }];
    Page {
        title: name(),
        question: HOSTILE[1].to_owned(),
        reference: Some(HOSTILE[2].to_owned()),
        bounds: vec![HOSTILE[3].to_owned()],
        columns: vec![HOSTILE[3].to_owned()],
        summaries,
        timeline: timeline.collect(),
        ttft_ms: all().map(|n| (n, vec![1.0, 2.0, f64::NAN])).collect(),
        tpot_ms: all().map(|n| (n, vec![])).collect(),
        maps: vec![CellMap { row: String::new(), policy: name(), class: name(), cells: 3, rows: 3, columns }],
        settings_toml: HOSTILE.join("\n"),
        command: format!("kvlab compare '{}'", HOSTILE[0]),
        notes: all().collect(),
    }
}

/// Holds what every page must hold, and returns the JSON in it.
fn check(html: &str) -> serde_json::Value {
    assert!(!html.contains("http"), "an address");
    assert!(!html.contains("<script>alert"), "a name was believed");
    assert!(!html.contains(" onload=\"alert"), "a name was believed");
    assert!(!html.contains("src="), "something is loaded");
    assert!(!html.contains("@import") && !html.contains("<link"), "something is loaded");
    assert!(!html.contains("{{") || html.contains("{{ 7 * 7 }}"), "a template is left over");
    let data = "<script type=\"application/json\" id=\"data\">";
    assert_eq!(html.matches("<script").count(), 1);
    let (_, rest) = html.split_once(data).expect("the data is embedded");
    let (json, _) = rest.split_once("</script>").expect("the data ends");
    serde_json::from_str(json).expect("the data is JSON")
}

#[test]
fn hostile_names_are_only_text() {
    let html = page(&hostile_page()).unwrap();
    let data = check(&html);
    assert_eq!(data[0]["policy"], HOSTILE[0]);
    assert!(html.contains("&lt;script&gt;alert(1)"));
    assert!(html.len() < 2_000_000);
    assert_eq!(page(&hostile_page()).unwrap(), html, "same input, same bytes");
}

#[test]
fn the_page_answers_asks_and_doubts() {
    let input = Page {
        title: "Which policy?".to_owned(),
        summaries: rows(),
        notes: vec!["the trace is replayed as recorded".to_owned()],
        settings_toml: "num_ctx = 8192".to_owned(),
        command: "kvlab compare x.toml".to_owned(),
        ..Page::default()
    };
    let html = page(&input).unwrap();
    check(&html);
    for words in [
        "paged has the highest goodput",
        "throughput +12.0 % [10.0, 14.0], better",
        "spec: not calibrated",
        "the trace is replayed as recorded",
        "num_ctx = 8192",
        "kvlab compare x.toml",
        "kvlab 0.1.0",
        "class=\"number best\"",
    ] {
        assert!(html.contains(words), "{words}");
    }
}

#[test]
fn empty_pages_are_pages() {
    check(&page(&Page::default()).unwrap());
    check(&trace_page(&TracePage::default()).unwrap());
}

#[test]
fn a_trace_page_takes_hostile_facts_and_odd_times() {
    let html = trace_page(&TracePage {
        title: HOSTILE[0].to_owned(),
        facts: vec![(HOSTILE[0].to_owned(), HOSTILE[1].to_owned())],
        prompt_tokens: vec![1.0, f64::NAN, 0.0, 1e9],
        output_tokens: Vec::new(),
        arrivals_s: vec![5.0, f64::NAN, 1.0, f64::INFINITY, 5.0],
        sharing: vec![(1.0, 0.0), (2.0, 0.5)],
        ..TracePage::default()
    });
    check(&html.unwrap());
}

#[test]
fn a_page_of_many_runs_stays_small_and_says_what_it_leaves_out() {
    let noise = |c: u64, r: u64| Held::Live((c * 7919 + r * 104_729) % 1009);
    let column = |c: u64| MapColumn { time_ns: c, ranges: (0..200).map(|r| noise(c, r)).collect() };
    let map = |i: usize| CellMap {
        row: String::new(),
        policy: format!("policy {i}"),
        class: "global".to_owned(),
        cells: 16384,
        rows: 200,
        columns: (0..240).map(column).collect(),
    };
    let summaries = (0..600).map(|seed| row("a", seed, 900, seed as f64)).collect();
    let input = Page { summaries, maps: (0..12).map(map).collect(), ..Page::default() };
    let html = page(&input).unwrap();
    assert!(html.len() < 2_000_000, "{}", html.len());
    assert!(html.contains("but for the last 100,"));
    assert_eq!(check(&html).as_array().map(Vec::len), Some(500));
}
