//! Sweeps taken apart: every number against a naive computation over the rows, and pages that stay small.

mod common;

use std::collections::BTreeMap;

use common::{HOSTILE, row};
use proptest::prelude::*;
use report::metric::{Metric, metric};
use report::page::{SweepPage, sweep_page};
use report::stats::{self, Better, Verdict};
use report::sweep::{
    Factor, Front, Grid, Outcome, Pair, Trial, flips, fronts, heat, rankings, sensitivities,
};
use report::{CellMap, Held, MapColumn, Summary};

const KEYS: [&str; 3] = ["num_parallel", "num_batch", "watermark"];

fn keys() -> Vec<String> {
    KEYS.map(str::to_owned).to_vec()
}

fn throughput() -> &'static Metric {
    metric("throughput_tokens_per_s").expect("the metric exists")
}

fn trial(name: &str, trace: &str, seed: u64, values: [&str; 3], result: Option<f64>) -> Trial {
    let done = |rate: f64| {
        let summary = Summary { trace: trace.to_owned(), ..row(name, seed, 900, rate) };
        Outcome::Done(Box::new(summary))
    };
    Trial {
        name: name.to_owned(),
        trace: trace.to_owned(),
        seed,
        values: values.map(str::to_owned).to_vec(),
        outcome: result.map_or(Outcome::Failed, done),
    }
}

/// Two traces, three policies, three linked pairs, two watermarks and three seeds; some simulations failed.
fn sweep(rates: &[Option<u8>]) -> Vec<Trial> {
    let mut rates = rates.iter().cycle();
    let mut trials = Vec::new();
    for trace in ["a.csv", "b.csv"] {
        for pair in [["16", "256"], ["8", "128"], ["48", "512"]] {
            for watermark in ["0.1", "0"] {
                for name in ["paged", "contiguous", "unlimited"] {
                    for seed in 0..3 {
                        let rate = rates.next().copied().flatten().map(|rate| f64::from(rate) / 8.0);
                        trials.push(trial(name, trace, seed, [pair[0], pair[1], watermark], rate));
                    }
                }
            }
        }
    }
    trials
}

fn rates() -> impl Strategy<Value = Vec<Option<u8>>> {
    prop::collection::vec(prop::option::weighted(0.95, 0_u8..40), 108)
}

fn rate(trial: &Trial) -> Option<f64> {
    match &trial.outcome {
        Outcome::Done(row) => Some(row.throughput_tokens_per_s),
        _ => None,
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()))
}

/// What is varied, as a text, and what is the same, as a text.
fn split(trial: &Trial, factor: &str) -> (String, String) {
    let [parallel, batch, watermark] = [0, 1, 2].map(|i| trial.values[i].as_str());
    let pair = format!("{parallel} + {batch}");
    match factor {
        "policy" => (trial.name.clone(), format!("{} {pair} {watermark}", trial.trace)),
        "pair" => (pair, format!("{} {} {watermark}", trial.trace, trial.name)),
        _ => (watermark.to_owned(), format!("{} {} {pair}", trial.trace, trial.name)),
    }
}

/// Losses of the worst value against the best, one per combination of the rest, straight from the rows.
fn losses(trials: &[Trial], factor: &str) -> Vec<f64> {
    let mut groups: BTreeMap<String, BTreeMap<String, BTreeMap<u64, f64>>> = BTreeMap::new();
    for trial in trials.iter().filter(|trial| trial.name != "unlimited") {
        if let Some(rate) = rate(trial) {
            let (value, rest) = split(trial, factor);
            groups.entry(rest).or_default().entry(value).or_default().insert(trial.seed, rate);
        }
    }
    let mut losses = Vec::new();
    for group in groups.values().filter(|group| group.len() > 1) {
        let seeds: Vec<u64> =
            (0..3).filter(|seed| group.values().all(|runs| runs.contains_key(seed))).collect();
        if seeds.is_empty() {
            continue;
        }
        let means: Vec<f64> = group
            .values()
            .map(|runs| mean(&seeds.iter().map(|seed| runs[seed]).collect::<Vec<_>>()))
            .collect();
        let best = means.iter().copied().fold(0.0, f64::max);
        if best > 0.0 {
            losses.push(1.0 - means.iter().copied().fold(f64::INFINITY, f64::min) / best);
        }
    }
    losses
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sensitivities_are_those_of_the_rows(rates in rates()) {
        let trials = sweep(&rates);
        let (keys, bounds) = (keys(), ["unlimited".to_owned()]);
        let grid = Grid::new(&keys, &trials, None, &bounds, Some(throughput()));
        prop_assert_eq!(grid.knobs.len(), 2);
        prop_assert_eq!(grid.knobs[0].label(), "num_parallel + num_batch");
        prop_assert_eq!(grid.knobs[0].value(1), "16 + 256");
        let found = sensitivities(&grid, None);
        prop_assert!(found.windows(2).all(|w| w[0].median >= w[1].median));
        for (factor, name) in [(Factor::Name, "policy"), (Factor::Knob(0), "pair"), (Factor::Knob(1), "watermark")] {
            let mut expected = losses(&trials, name);
            let Some(one) = found.iter().find(|one| one.factor == factor) else {
                prop_assert!(expected.is_empty());
                continue;
            };
            prop_assert_eq!(one.combinations, expected.len());
            prop_assert!(near(one.median, middle(&mut expected)), "{} {:?}", one.median, expected);
            prop_assert!(near(one.range.0, expected[0]) && near(one.range.1, expected[expected.len() - 1]));
            let wins: usize = one.values.iter().map(|value| value.wins).sum();
            prop_assert!(wins >= one.combinations, "somebody is best in each");
        }
    }

    #[test]
    fn changes_are_medians_by_seed_with_their_interval(rates in rates()) {
        let trials = sweep(&rates);
        let (keys, bounds) = (keys(), ["unlimited".to_owned()]);
        let grid = Grid::new(&keys, &trials, None, &bounds, Some(throughput()));
        for one in sensitivities(&grid, None) {
            let Factor::Knob(1) = one.factor else { continue };
            let Some(change) = one.values.last().and_then(|value| value.against_first.clone()) else { continue };
            // From a watermark of 0, the first in order, to 0.1.
            prop_assert_eq!((change.from, change.to), (0, 1));
            let of = |from: &Trial| trials.iter().find(|to| {
                (&to.name, &to.trace, to.seed, &to.values[..2]) == (&from.name, &from.trace, from.seed, &from.values[..2])
                    && to.values[2] == "0.1"
            }).and_then(rate);
            let by_seed = (0..3).filter_map(|seed| {
                let own = trials.iter().filter(|t| t.seed == seed && t.values[2] == "0" && t.name != "unlimited");
                let mut changes: Vec<f64> = own.filter_map(|from| {
                    let base = rate(from).filter(|base| *base != 0.0)?;
                    Some(of(from)? / base - 1.0)
                }).collect();
                (!changes.is_empty()).then(|| middle(&mut changes))
            });
            let by_seed: Vec<f64> = by_seed.collect();
            prop_assert_eq!(change.seeds, by_seed.len());
            prop_assert!(near(change.mean, mean(&by_seed)));
            let half = stats::interval(&by_seed).map(|i| i.half_width);
            prop_assert_eq!(change.half_width.is_some(), half.is_some());
            prop_assert!(near(change.half_width.unwrap_or(0.0), half.unwrap_or(0.0)));
        }
    }

    #[test]
    fn a_tile_is_the_median_share_of_the_best(rates in rates()) {
        let trials = sweep(&rates);
        let (keys, bounds) = (keys(), ["unlimited".to_owned()]);
        let grid = Grid::new(&keys, &trials, None, &bounds, Some(throughput()));
        let Some(heat) = heat(&grid, &sensitivities(&grid, None)) else { return Ok(()) };
        let point = |name: &str, trace: &str, pair: &str, watermark: &str| {
            let own = trials.iter().filter(|t| {
                let key = format!("{} + {}", t.values[0], t.values[1]);
                (t.name.as_str(), t.trace.as_str(), key.as_str(), t.values[2].as_str()) == (name, trace, pair, watermark)
            });
            let rates: Vec<f64> = own.filter_map(rate).collect();
            (!rates.is_empty()).then(|| mean(&rates))
        };
        let (pairs, watermarks) = (["8 + 128", "16 + 256", "48 + 512"], ["0", "0.1"]);
        for panel in &heat.panels {
            let name = grid.names[panel.name];
            for (y, row) in panel.cells.iter().enumerate() {
                for (x, cell) in row.iter().enumerate() {
                    let (pair, watermark) = if heat.across == 0 { (pairs[x], watermarks[y]) } else { (pairs[y], watermarks[x]) };
                    let mut shares = Vec::new();
                    for trace in ["a.csv", "b.csv"] {
                        let mut best: f64 = 0.0;
                        for other in ["paged", "contiguous"] {
                            for p in pairs {
                                for w in watermarks {
                                    best = best.max(point(other, trace, p, w).unwrap_or(0.0));
                                }
                            }
                        }
                        if let Some(own) = point(name, trace, pair, watermark).filter(|_| best > 0.0) {
                            shares.push(own / best);
                        }
                    }
                    let expected = (!shares.is_empty()).then(|| middle(&mut shares));
                    prop_assert_eq!(cell.share.is_some(), expected.is_some());
                    prop_assert!(near(cell.share.unwrap_or(0.0), expected.unwrap_or(0.0)), "{:?} {:?}", cell, expected);
                    let failed = trials.iter().filter(|t| {
                        t.name == name && format!("{} + {}", t.values[0], t.values[1]) == pair && t.values[2] == watermark
                            && t.outcome == Outcome::Failed
                    });
                    prop_assert_eq!(cell.failed, failed.count());
                }
            }
        }
    }

    #[test]
    fn rankings_are_paired_by_setting_and_seed(rates in rates()) {
        let trials = sweep(&rates);
        let (keys, bounds) = (keys(), ["unlimited".to_owned()]);
        let grid = Grid::new(&keys, &trials, Some("contiguous"), &bounds, Some(throughput()));
        for ranking in rankings(&grid) {
            let trace = grid.traces[ranking.trace];
            let names: Vec<&str> = ranking.places.iter().map(|place| grid.names[place.name]).collect();
            let of = |name: &str, values: &[String], seed: u64| {
                let mut own = trials.iter().filter(|t| t.name == name && t.trace == trace && t.seed == seed);
                own.find(|t| t.values == values).and_then(rate)
            };
            let samples = |name: &str| -> Vec<f64> {
                let by_seed = (0..3).filter_map(|seed| {
                    let all: Vec<&Trial> =
                        trials.iter().filter(|t| t.name == "paged" && t.trace == trace && t.seed == seed).collect();
                    let counted: Vec<f64> = all.iter().filter_map(|t| {
                        names.iter().all(|n| of(n, &t.values, seed).is_some()).then(|| of(name, &t.values, seed)).flatten()
                    }).collect();
                    (!counted.is_empty()).then(|| mean(&counted))
                });
                by_seed.collect()
            };
            let reference = samples("contiguous");
            prop_assert!(ranking.places.windows(2).all(|w| w[0].mean.0 >= w[1].mean.0));
            for place in &ranking.places {
                let expected = samples(grid.names[place.name]);
                prop_assert_eq!(place.samples.len(), expected.len());
                prop_assert!(place.samples.iter().zip(&expected).all(|(a, b)| near(*a, *b)));
                let is_reference = grid.names[place.name] == "contiguous";
                prop_assert_eq!(place.verdict.is_some(), !is_reference && expected.len() > 1);
                if let (Some(verdict), Some(difference)) =
                    (place.verdict, stats::paired_difference(&place.samples, &reference))
                {
                    // Sums in another order may differ in the last digit.
                    if difference.mean().abs() > 1e-9 {
                        prop_assert_eq!(verdict, difference.verdict(Better::Higher));
                    }
                }
            }
            prop_assert!(ranking.ahead.iter().all(|name| !grid.is_bound[*name]));
        }
    }

    #[test]
    fn pages_take_any_results(
        rates in rates(), names in prop::collection::vec(prop::sample::select(HOSTILE.to_vec()), 4), missing in 0_usize..108,
    ) {
        let mut trials = sweep(&rates);
        for trial in trials.iter_mut().skip(missing) {
            trial.outcome = Outcome::Missing;
        }
        for trial in &mut trials {
            if trial.name == "contiguous" {
                trial.name = names[0].to_owned();
            }
            if trial.values[2] == "0" {
                trial.values[2] = names[1].to_owned();
            }
        }
        let page = SweepPage {
            title: names[2].to_owned(), question: names[3].to_owned(), keys: keys(), trials, ..SweepPage::default()
        };
        let html = sweep_page(&page).unwrap();
        prop_assert_eq!(html.matches("<script").count(), 1);
        prop_assert!(!html.contains("http") && !html.contains("src="));
        prop_assert!(!html.contains("NaN") && !html.contains("could not be drawn"));
        prop_assert_eq!(sweep_page(&page).unwrap(), html);
    }
}

/// One policy leads on one trace and the other on the other one, in every seed.
fn flipping() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (trace, lead) in [("a.csv", 1.2), ("b.csv", 0.9), ("c.csv", 1.0)] {
        for seed in 0..4 {
            let noise = 100.0 + seed as f64;
            let rates =
                [("paged", noise), ("contiguous", noise * lead + 0.01 * seed as f64), ("unlimited", 200.0)];
            trials.extend(rates.map(|(name, rate)| trial(name, trace, seed, ["1", "1", "0"], Some(rate))));
        }
    }
    trials
}

#[test]
fn an_order_flips_where_both_intervals_say_so() {
    let (trials, keys, bounds) = (flipping(), keys(), ["unlimited".to_owned()]);
    let grid = Grid::new(&keys, &trials, None, &bounds, Some(throughput()));
    assert!(grid.knobs.is_empty());
    let ranked = rankings(&grid);
    let names =
        |place: usize| ranked.iter().map(|one| grid.names[one.places[place].name]).collect::<Vec<_>>();
    assert_eq!(names(0), ["unlimited"; 3]);
    assert_eq!(names(1), ["contiguous", "paged", "contiguous"]);
    assert_eq!(ranked[0].places[1].verdict, Some(Verdict::Better));
    assert_eq!(ranked[1].places[2].verdict, Some(Verdict::Worse));
    let (found, pairs) = flips(&grid, &ranked);
    assert_eq!((found.len(), pairs), (1, 1));
    let [flip] = &found[..] else { unreachable!("one flip") };
    assert_eq!((flip.names, flip.first.0, flip.second.0), ((0, 1), 1, 0));
    assert!(near(
        flip.second.1,
        (0..4).map(|s| (100.0 + f64::from(s)) * 0.2 + 0.01 * f64::from(s)).sum::<f64>() / 406.0
    ));
    let html = sweep_page(&SweepPage { trials, bounds: bounds.to_vec(), ..SweepPage::default() }).unwrap();
    assert!(html.contains("1 of 1 pairs of policies change places from trace to trace"), "{html}");
}

#[test]
fn less_is_better_where_the_target_says_so() {
    let ttft = metric("ttft_p99_ms").unwrap();
    let (trials, keys, bounds) = (flipping(), keys(), ["unlimited".to_owned()]);
    // The rows have a time to first token that falls with the rate.
    let grid = Grid::new(&keys, &trials, None, &bounds, Some(ttft));
    let ranked = rankings(&grid);
    assert_eq!(grid.names[ranked[0].places[1].name], "contiguous");
    assert_eq!(ranked[0].places[1].verdict, Some(Verdict::Better));
    let one = &sensitivities(&grid, None)[0];
    assert_eq!((one.factor, one.combinations), (Factor::Name, 3));
    assert!(one.median > 0.0 && one.median < 0.1, "{one:?}");
    let found = fronts(&grid, &[]);
    let of = |front: &Front| (front.pair.x.key, front.pair.y.key);
    // No time between tokens was measured, so nothing is drawn against it.
    let expected = [("ttft_p99_ms", "throughput_tokens_per_s"); 3];
    assert_eq!(found.iter().map(of).collect::<Vec<_>>(), expected);
    assert_eq!(
        found[0].front.iter().map(|i| found[0].points[*i].label.as_str()).collect::<Vec<_>>(),
        ["contiguous"]
    );
}

/// Peak memory and latency lie so that each policy is best of another pair.
fn trading() -> Vec<Trial> {
    let results = [("small", 1.0, 900.0, 10.0), ("fast", 4.0, 100.0, 50.0), ("worse", 4.5, 950.0, 45.0)];
    let one = |(name, gib, latency, rate): (&str, f64, f64, f64)| {
        let (gib, latency) = (Some(gib), Some(latency));
        let summary = Summary {
            held_peak_gib: gib,
            latency_p99_ms: latency,
            tpot_p99_ms: latency.map(|ms| 1000.0 - ms),
            trace: "a.csv".to_owned(),
            ..row(name, 0, 900, rate)
        };
        let values = ["1", "1", "0"].map(str::to_owned).to_vec();
        let outcome = Outcome::Done(Box::new(summary));
        Trial { name: name.to_owned(), trace: "a.csv".to_owned(), seed: 0, values, outcome }
    };
    results.map(one).to_vec()
}

#[test]
fn any_two_columns_make_a_front_whatever_is_wished_of_them() {
    let (trials, keys) = (trading(), keys());
    let grid = Grid::new(&keys, &trials, None, &[], None);
    let pair = |x: &str, y: &str| Pair::new(metric(x).unwrap(), metric(y).unwrap());
    let best = |x: &str, y: &str| -> Vec<String> {
        let found = fronts(&grid, &[pair(x, y).unwrap()]);
        assert_eq!(found.len(), 1);
        found[0].front.iter().map(|i| found[0].points[*i].label.clone()).collect()
    };
    // Little of both; the other way round the same ones, from the other end.
    assert_eq!(best("held_peak_gib", "latency_p99_ms"), ["small", "fast"]);
    assert_eq!(best("latency_p99_ms", "held_peak_gib"), ["fast", "small"]);
    // Little across and much upwards, and much across and little upwards.
    assert_eq!(best("tpot_p99_ms", "throughput_tokens_per_s"), ["worse", "fast"]);
    assert_eq!(best("throughput_tokens_per_s", "tpot_p99_ms"), ["fast", "worse"]);
    // Much of both: only one is best.
    assert_eq!(best("throughput_tokens_per_s", "goodput_requests_per_s"), ["fast"]);
    assert!(pair("held_peak_gib", "cells_copied").is_none() && pair("failed", "failed").is_none());
    // Without a wish: the target, and what users ask for first, each pair once.
    let usual = |target: &str| -> Vec<(&'static str, &'static str)> {
        let grid = Grid::new(&keys, &trials, None, &[], metric(target));
        fronts(&grid, &[]).iter().map(|front| (front.pair.x.key, front.pair.y.key)).collect()
    };
    let others = [("tpot_p99_ms", "throughput_tokens_per_s"), ("held_peak_gib", "ttft_p99_ms")];
    let first = [("ttft_p99_ms", "throughput_tokens_per_s")];
    assert_eq!(usual("throughput_tokens_per_s"), [&first[..], &others].concat());
    let goodput = [("ttft_p99_ms", "goodput_requests_per_s")];
    assert_eq!(usual("goodput_requests_per_s"), [&goodput[..], &first, &others].concat());
    let page = SweepPage { keys: keys.clone(), trials: trials.clone(), ..SweepPage::default() };
    let html = sweep_page(&page).unwrap();
    for title in ["goodput against TTFT p99", "throughput against TPOT p99", "TTFT p99 against peak memory"] {
        assert!(html.contains(&format!("a.csv: {title}")), "{title}");
    }
    assert!(html.contains("Down and to the left is better") && html.contains("Up and to the left"));
    let asked = vec![pair("throughput_tokens_per_s", "held_peak_gib").unwrap()];
    let html = sweep_page(&SweepPage { fronts: asked, ..page }).unwrap();
    assert!(html.contains("peak memory against throughput") && html.contains("Down and to the right"));
    assert!(!html.contains("goodput against TTFT p99"), "what was not asked for");
}

#[test]
fn a_page_of_sixteen_thousand_simulations_stays_small() {
    let mut trials = Vec::new();
    for trace in 0..6 {
        for (point, parallel) in (0..24).zip([5, 9, 19, 37].into_iter().cycle()) {
            for policy in 0..28 {
                for seed in 0..4_u64 {
                    let rate = 100.0 + f64::from((trace * 31 + point * 17 + policy * 13) % 97) + seed as f64;
                    let values = [parallel.to_string(), (point / 4).to_string(), (point % 2).to_string()];
                    let values = [values[0].as_str(), &values[1], &values[2]];
                    let name = format!("policy:{policy}");
                    let mut one = trial(&name, &format!("t{trace}"), seed, values, Some(rate));
                    if let Outcome::Done(row) = &mut one.outcome {
                        (row.tpot_p99_ms, row.held_peak_gib) = (Some(rate % 13.0), Some(rate % 7.0));
                    }
                    trials.push(one);
                }
            }
        }
    }
    assert_eq!(trials.len(), 16_128);
    let noise = |c: u64, r: u64| Held::Live((c * 7919 + r * 104_729) % 1009);
    let column = |c: u64| MapColumn { time_ns: c, ranges: (0..96).map(|r| noise(c, r)).collect() };
    let map = |policy: usize| CellMap {
        row: String::new(),
        policy: format!("policy:{}", policy / 2),
        class: ["local", "global"][policy % 2].to_owned(),
        cells: 16384,
        rows: 96,
        columns: (0..96).map(column).collect(),
    };
    let page = SweepPage { keys: keys(), trials, maps: (0..56).map(map).collect(), ..SweepPage::default() };
    let html = sweep_page(&page).unwrap();
    assert!(html.len() < 4_000_000, "{}", html.len());
    for heading in
        ["Who is first", "Where the order changes", "What one costs", "What matters", "Who held which cells"]
    {
        assert!(html.contains(heading), "{heading}");
    }
}

#[test]
fn parts_without_results_are_not_there() {
    let html = sweep_page(&SweepPage::default()).unwrap();
    for heading in
        ["Who is first", "Where the order changes", "What one costs", "What matters", "Two knobs", "Who held"]
    {
        assert!(!html.contains(heading), "{heading}");
    }
    assert!(html.contains("There are no results to compare."));
}
