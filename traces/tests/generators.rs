//! Generated workloads against the laws and the data that they were fitted to.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::collections::{BTreeMap, BTreeSet};

use traces::{GenerateOptions, Request, TraceStats, When, Workload, generate};

fn requests(kind: Workload, requests: u64, seed: u64) -> impl Iterator<Item = Request> {
    generate(kind, &GenerateOptions { requests, seed, rate_per_s: None }).unwrap()
}

fn stats(kind: Workload, count: u64) -> TraceStats {
    TraceStats::collect(requests(kind, count, 7).map(Ok)).unwrap()
}

fn between(found: Option<f64>, low: f64, high: f64) {
    let found = found.unwrap();
    assert!((low..=high).contains(&found), "found {found}, expected {low} to {high}");
}

fn prompt_quantile(stats: &TraceStats, q: f64) -> Option<f64> {
    stats.prompt.quantiles.quantile(q).map(|tokens| tokens as f64)
}

#[test]
fn the_same_seed_gives_the_same_requests() {
    for kind in Workload::ALL {
        let first: Vec<Request> = requests(kind, 300, 1).collect();
        assert_eq!(first, requests(kind, 300, 1).collect::<Vec<_>>(), "{}", kind.name());
        assert_ne!(first, requests(kind, 300, 2).collect::<Vec<_>>(), "{}", kind.name());
        assert_eq!(first.len(), 300);
        assert_eq!(kind.name().parse::<Workload>().unwrap(), kind);
    }
}

#[test]
fn every_request_keeps_the_promises_of_its_type() {
    for kind in Workload::ALL {
        let (mut last_ns, mut session) = (0, None);
        for (id, request) in (0..).zip(requests(kind, 2_000, 3)) {
            assert_eq!(request.id, id);
            assert!(request.prompt_tokens >= 1 && request.output_tokens >= 1);
            match request.when {
                When::At { ns } => {
                    assert!(ns >= last_ns, "{} falls", kind.name());
                    last_ns = ns;
                }
                When::After { .. } => {
                    assert!(kind.is_closed_loop());
                    assert!(request.session.is_some() && request.session == session);
                }
            }
            session = request.session;
            let prefix = &request.prefix;
            let covered = prefix.ids.len() as u64 * u64::from(prefix.block_tokens);
            assert!(covered <= u64::from(request.prompt_tokens));
            let mut end = 0;
            for image in &request.images {
                assert!(image.at >= end);
                end = image.at + image.tokens;
            }
            assert!(end <= request.prompt_tokens);
        }
    }
}

#[test]
fn azure_chat_is_as_bursty_as_its_fit() {
    let stats = stats(Workload::AzureChat, 60_000);
    let [second, ten, minute] = stats.dispersion();
    between(second, 1.15, 1.30);
    between(ten, 2.6, 3.7);
    between(minute, 7.5, 14.0);
    between(stats.rate_per_s(), 5.6, 6.2);
    between(stats.output.quantiles.mean(), 197.0, 208.0);
    between(prompt_quantile(&stats, 0.5), 990.0, 1_040.0);
}

#[test]
fn code_comes_in_bursts() {
    let stats = stats(Workload::Code, 60_000);
    let [second, ten, minute] = stats.dispersion();
    between(second, 7.5, 13.0);
    between(ten, 42.0, 71.0);
    between(minute, 110.0, 190.0);
    between(prompt_quantile(&stats, 0.5), 1_400.0, 1_560.0);
    assert_eq!(stats.prompt.quantiles.max(), Some(7_437));
    assert_eq!(stats.output.quantiles.min(), Some(6));
}

#[test]
fn chat_grows_like_sharegpt() {
    let stats = stats(Workload::Chat, 40_000);
    between(stats.turns_mean(), 4.7, 5.3);
    between(prompt_quantile(&stats, 0.5), 1_400.0, 1_800.0);
    between(prompt_quantile(&stats, 0.95), 6_100.0, 6_800.0);
    between(stats.output.quantiles.mean(), 425.0, 450.0);
    between(stats.sharing.token_share(), 0.72, 0.80);
}

#[test]
fn images_stay_in_the_conversation() {
    let mut images = BTreeMap::new();
    for request in requests(Workload::ImageChat, 5_000, 3) {
        let before = images.insert(request.session, request.images.clone()).unwrap_or_default();
        assert!(request.images.starts_with(&before));
        assert!(request.images.iter().all(|image| image.tokens == 260));
    }
    between(stats(Workload::ImageChat, 5_000).image_share(), 0.10, 0.20);
}

/// A session of the `screenshots` workload: when it starts, how long an idle server would take.
struct Run {
    is_program: bool,
    start_s: f64,
    long_s: f64,
}

fn screenshot_runs(requests: &[Request]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for request in requests {
        let service_s = f64::from(request.prompt_tokens) * 0.000_8 + f64::from(request.output_tokens) * 0.034;
        match request.when {
            When::At { ns } => {
                let is_program = !request.images.is_empty();
                runs.push(Run { is_program, start_s: ns as f64 / 1e9, long_s: service_s });
            }
            When::After { wait_ns } => runs.last_mut().unwrap().long_s += service_s + wait_ns as f64 / 1e9,
        }
    }
    runs
}

fn share<'a>(of: impl Iterator<Item = &'a Request> + Clone, is_in: impl Fn(&Request) -> bool) -> Option<f64> {
    Some(of.clone().filter(|request| is_in(request)).count() as f64 / of.count() as f64)
}

fn mean(values: impl Iterator<Item = u32>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + f64::from(value), count + 1.0));
    Some(sum / count)
}

#[test]
fn screenshots_are_mixed_with_chat_as_recorded() {
    let all: Vec<Request> = requests(Workload::Screenshots, 60_000, 7).collect();
    let shots = all.iter().filter(|request| !request.images.is_empty());
    let chat = all.iter().filter(|request| request.images.is_empty());
    between(share(all.iter(), |request| !request.images.is_empty()), 0.735, 0.765);
    between(mean(shots.clone().map(|request| request.prompt_tokens)), 309.0, 311.0);
    between(mean(shots.map(|request| request.output_tokens)), 101.0, 103.0);
    between(mean(chat.clone().map(|request| request.output_tokens)), 144.0, 148.0);
    // Recorded: 5 of 6.
    between(share(chat.clone(), |request| request.prompt_tokens >= 1_536), 0.81, 0.86);
    between(share(chat.clone(), |request| request.prompt_tokens > 4_096), 0.14, 0.22);
    between(share(chat.clone(), |request| request.prompt_tokens > 12_288), 0.000_1, 0.005);
    assert!(chat.clone().all(|request| request.prompt_tokens <= 16_384));
    let first = |request: &&Request| matches!(request.when, When::At { .. });
    between(
        share(chat.filter(first), |request| (1_276..=2_992).contains(&request.prompt_tokens)),
        0.79,
        0.85,
    );
    between(share(all.iter().filter(first), |request| request.images.is_empty()), 0.62, 0.68);
}

#[test]
fn three_clients_send_screenshots_and_chat_one_session_after_another() {
    let all: Vec<Request> = requests(Workload::Screenshots, 60_000, 7).collect();
    let runs = screenshot_runs(&all);
    let span_s = runs.last().unwrap().start_s;
    between(Some(all.len() as f64 / span_s), 0.146, 0.155);
    between(Some(runs.iter().map(|run| run.long_s).sum::<f64>() / span_s), 2.3, 2.5);
    for (is_program, most, pause_s) in [(true, 1, 45.0), (false, 2, 60.0)] {
        let runs: Vec<&Run> = runs.iter().filter(|run| run.is_program == is_program).collect();
        let mut ends: Vec<f64> = Vec::new();
        for run in &runs {
            ends.retain(|end| *end > run.start_s + 1e-6);
            ends.push(run.start_s + run.long_s);
            assert!(ends.len() <= most, "{} at once at {} s", ends.len(), run.start_s);
        }
        let idle_s = span_s * most as f64 - runs.iter().map(|run| run.long_s).sum::<f64>();
        between(Some(idle_s / runs.len() as f64), pause_s * 0.9, pause_s * 1.1);
    }
    // The program is first; the others join in.
    assert_eq!(all[0].when, When::At { ns: 0 });
    assert!(!all[0].images.is_empty());
    for seed in 0..8 {
        let few: Vec<Request> = requests(Workload::Screenshots, 600, seed).collect();
        let chat = screenshot_runs(&few).into_iter().filter(|run| !run.is_program).collect::<Vec<_>>();
        assert!(chat[0].start_s > 0.0 && chat[0].start_s < 600.0);
    }
}

#[test]
fn screenshots_share_their_instruction_and_chat_its_history() {
    let all: Vec<Request> = requests(Workload::Screenshots, 6_000, 3).collect();
    let shot = all.iter().find(|request| !request.images.is_empty()).unwrap();
    let chat = all.iter().find(|request| request.images.is_empty() && request.prompt_tokens > 64).unwrap();
    assert_ne!(shot.prefix.ids[0], chat.prefix.ids[0]);
    let mut last: Option<&Request> = None;
    let mut ends = BTreeSet::new();
    let mut wait_s = Vec::new();
    for request in &all {
        let ids = &request.prefix.ids;
        assert_eq!((request.prefix.block_tokens, ids.len()), (16, request.prompt_tokens as usize / 16));
        let last = last.replace(request).filter(|last| last.session == request.session);
        assert_eq!(last.is_none(), matches!(request.when, When::At { .. }));
        if let [image] = request.images.as_slice() {
            // One block of 16 lies in the 28 tokens of the instruction; no later one is seen twice.
            assert_eq!((image.at, image.tokens), (28, 260));
            assert!((296..=324).contains(&request.prompt_tokens));
            assert!((44..=160).contains(&request.output_tokens));
            assert_eq!(ids[0], shot.prefix.ids[0]);
            assert!(ids[1..].iter().all(|id| ends.insert(*id)));
            if let When::After { wait_ns } = request.when {
                wait_s.push(wait_ns as f64 / 1e9);
            }
            continue;
        }
        assert!(request.images.is_empty() && (60..=232).contains(&request.output_tokens));
        let shared = ids.len().min(3);
        assert_eq!(ids[..shared], chat.prefix.ids[..shared]);
        let known = last.map_or(shared, |last| last.prefix.ids.len());
        assert!(ids[known..].iter().all(|id| ends.insert(*id)));
        if let Some(last) = last {
            assert!(request.prompt_tokens > last.prompt_tokens + last.output_tokens);
            assert!(ids.starts_with(&last.prefix.ids));
        }
    }
    wait_s.sort_by(f64::total_cmp);
    between(wait_s.first().copied(), 0.95, 0.97);
    between(wait_s.last().copied(), 6.64, 6.66);
    between(Some(wait_s[wait_s.len() / 2]), 3.6, 4.0);
}

#[test]
fn rag_breaks_its_prefix_like_ragpulse() {
    let stats = stats(Workload::Rag, 20_000);
    between(stats.turns_mean(), 1.65, 1.78);
    between(prompt_quantile(&stats, 0.5), 2_950.0, 3_250.0);
    between(prompt_quantile(&stats, 0.05), 1_030.0, 1_130.0);
    between(stats.sharing.token_share(), 0.27, 0.34);
    between(stats.dispersion()[2], 1.2, 1.7);
}

#[test]
fn documents_are_asked_again() {
    let stats = stats(Workload::Documents, 5_000);
    between(prompt_quantile(&stats, 0.5), 17_000.0, 19_500.0);
    between(stats.rate_per_s(), 3.6, 4.3);
    between(stats.dispersion()[0], 0.9, 1.2);
    between(stats.dispersion()[2], 1.0, 3.0);
    between(stats.sharing.token_share(), 0.55, 0.68);
}

#[test]
fn agents_grow_and_reuse_like_claude_code() {
    let stats = stats(Workload::Agent, 20_000);
    between(stats.sharing.block_share(), 0.95, 0.985);
    between(prompt_quantile(&stats, 0.5), 75_000.0, 115_000.0);
    between(stats.output.quantiles.quantile(0.5).map(|tokens| tokens as f64), 205.0, 230.0);
}

#[test]
fn the_rate_can_be_chosen() {
    for kind in Workload::ALL {
        // A week of RAG, so that all hours of the day are in it.
        let rate = if kind == Workload::Rag { 0.05 } else { 2.0 };
        let options = GenerateOptions { requests: 30_000, seed: 7, rate_per_s: Some(rate) };
        let times = generate(kind, &options).unwrap().filter_map(|request| match request.when {
            When::At { ns } => Some(ns),
            When::After { .. } => None,
        });
        let span_s = times.max().unwrap() as f64 / 1e9;
        between(Some(30_000.0 / span_s / rate), 0.8, 1.2);
    }
}

#[test]
fn rates_out_of_range_are_refused() {
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-9, 1e9] {
        let options = GenerateOptions { requests: 1, seed: 0, rate_per_s: Some(rate) };
        let refused = generate(Workload::Chat, &options).err().unwrap().to_string();
        assert!(refused.starts_with("option rate_per_s"), "{refused}");
    }
    assert!("poem".parse::<Workload>().is_err());
}

#[test]
fn seats_take_turns_and_send_what_they_had_and_some_more() {
    let all: Vec<Request> = requests("seats:3:4".parse().unwrap(), 1_000, 5).collect();
    assert_eq!(all.len(), 12, "three seats, four rounds");
    for (at, request) in all.iter().enumerate() {
        let round = at / 3;
        assert_eq!(request.session, Some(at as u64 % 3));
        assert_eq!((request.prompt_tokens, request.output_tokens), (8136 + 256 * round as u32, 56));
        assert_eq!(request.when, When::At { ns: at as u64 * 10_000_000_000 });
        assert_eq!(request.prefix.ids.len(), request.prompt_tokens as usize / 16);
        for earlier in &all[..at] {
            let agrees = request.prefix.ids.starts_with(&earlier.prefix.ids);
            assert_eq!(
                agrees,
                earlier.session == request.session,
                "a conversation goes on, others are others"
            );
        }
    }
    assert_eq!(requests("seats:3:4".parse().unwrap(), 7, 5).count(), 7);
    // Before a prompt would be twice the first, another conversation begins.
    let long: Vec<Request> = requests("seats:2".parse().unwrap(), 200, 5).collect();
    let lengths = |turns: &[Request]| turns.iter().map(|request| request.prompt_tokens).max();
    assert_eq!(lengths(&long), Some(8136 + 31 * 256));
    assert_eq!((long[63].session, long[64].session, long[65].session), (Some(1), Some(2), Some(3)));
    assert_eq!(long[64].prompt_tokens, 8136);
    assert!(!long[..64].iter().any(|earlier| earlier.prefix.ids.first() == long[64].prefix.ids.first()));
}

#[test]
fn uniform_lengths_reach_both_ends_and_come_at_once_or_at_a_rate() {
    let kind: Workload = "uniform:3-5:7".parse().unwrap();
    let all: Vec<Request> = requests(kind, 300, 5).collect();
    let lengths: BTreeSet<(u32, u32)> = all.iter().map(|r| (r.prompt_tokens, r.output_tokens)).collect();
    assert_eq!(lengths, BTreeSet::from([(3, 7), (4, 7), (5, 7)]));
    assert!(all.iter().all(|request| request.when == When::At { ns: 0 } && request.prefix.ids.is_empty()));
    let options = GenerateOptions { requests: 300, seed: 5, rate_per_s: Some(2.0) };
    let times: BTreeSet<u64> = generate(kind, &options)
        .unwrap()
        .map(|request| match request.when {
            When::At { ns } => ns,
            When::After { .. } => panic!("it is an open loop"),
        })
        .collect();
    assert_eq!(times.len(), 300);
    for bad in [
        "seats",
        "seats:0",
        "seats:-1",
        "seats:2:0",
        "seats:2:3:4",
        "seats:100001",
        "uniform",
        "uniform:3",
        "uniform:0:1",
        "uniform:5-3:1",
        "uniform:3-:1",
        "uniform:1:100000001",
        "uniform:1:2:3",
    ] {
        let refused = bad.parse::<Workload>().err().unwrap().to_string();
        assert!(refused.contains("uniform:IN:OUT"), "{bad}: {refused}");
    }
}
