//! The traps of the public traces, each on a few rows made by hand.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::fs;
use std::io::{Cursor, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use traces::read::Mended;
use traces::{Format, ReadOptions, Reader, Request, TraceError, When, open};

fn reader(text: &str, options: &ReadOptions) -> Result<Reader, TraceError> {
    Reader::from_read(Cursor::new(text.to_owned()), "trace", options)
}

fn read(text: &str) -> Vec<Request> {
    reader(text, &ReadOptions::default()).unwrap().map(Result::unwrap).collect()
}

fn seconds(requests: &[Request]) -> Vec<f64> {
    let time = |request: &Request| match request.when {
        When::At { ns } => ns as f64 / 1e9,
        When::After { wait_ns } => -(wait_ns as f64) / 1e9,
    };
    requests.iter().map(time).collect()
}

fn tokens(requests: &[Request]) -> Vec<(u32, u32)> {
    requests.iter().map(|request| (request.prompt_tokens, request.output_tokens)).collect()
}

const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n\
    2023-11-16 23:59:59.6805900,374,44\r\n\
    2023-11-17 00:00:01.0000001,396,109";

#[test]
fn azure_has_crlf_and_no_last_line_end() {
    let requests = read(AZURE);
    assert_eq!(seconds(&requests), [0.0, 1.3194101]);
    assert_eq!(tokens(&requests), [(374, 44), (396, 109)]);
    assert!(requests.iter().all(|request| request.prefix.ids.is_empty()));
}

#[test]
fn azure_2024_has_microseconds_and_a_zone() {
    let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
        2024-02-28 23:59:59.999999+00:00,1,1\n2024-03-01 02:00:00+02:00,1,1\n\
        2024-03-01T00:00:01Z,1,1\n2024-02-29 22:00:02-02:00,1,1\n";
    assert_eq!(seconds(&read(text)), [0.0, 86_400.000001, 86_401.000001, 86_402.000001]);
}

#[test]
fn a_byte_order_mark_and_blank_lines_are_passed_over() {
    let text = format!("\u{feff}\r\n{AZURE}\r\n\r\n\n  \n");
    assert_eq!(read(&text).len(), 2);
    assert_eq!(read(&format!("\u{feff}{AZURE}")).len(), 2);
}

#[test]
fn gzip_is_told_from_the_bytes_and_may_have_several_members() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("named-like-plain.csv");
    let (head, tail) = AZURE.split_at(70);
    let mut bytes = Vec::new();
    for part in [head, tail] {
        let mut out = GzEncoder::new(&mut bytes, Compression::default());
        out.write_all(part.as_bytes()).unwrap();
        out.finish().unwrap();
    }
    fs::write(&path, bytes).unwrap();
    assert_eq!(open(&path, &ReadOptions::default()).unwrap().count(), 2);
    let path = folder.path().join("named-like-gzip.csv.gz");
    fs::write(&path, AZURE).unwrap();
    let reader = open(&path, &ReadOptions::default()).unwrap();
    assert_eq!(reader.format(), Format::Azure);
    assert_eq!(reader.count(), 2);
}

fn mooncake(times_ms: impl IntoIterator<Item = u64>) -> String {
    let row = |ms| {
        format!(
            "{{\"timestamp\": {ms}, \"input_length\": 513, \"output_length\": 1, \"hash_ids\": [0, {ms}]}}\n"
        )
    };
    times_ms.into_iter().map(row).collect()
}

#[test]
fn mooncake_ticks_are_spread_and_stay_sorted() {
    let ticks = [0, 2_999, 3_000, 3_001, 6_000, 6_000, 6_001, 9_003, 11_997, 12_000, 15_000, 15_000];
    let text = mooncake(ticks);
    let times = |seed| {
        let reader = reader(&text, &ReadOptions { seed, ..ReadOptions::default() }).unwrap();
        assert!(reader.uses_seed());
        seconds(&reader.map(Result::unwrap).collect::<Vec<_>>())
    };
    assert!(times(1).is_sorted());
    assert_ne!(times(1), times(2));
    let in_tick = |tick: f64| {
        let from = tick * 3.0;
        times(1).iter().filter(|s| (from..from + 3.0).contains(*s)).count()
    };
    assert_eq!([0.0, 1.0, 2.0, 3.0, 4.0, 5.0].map(in_tick), [1, 3, 3, 1, 2, 2]);
}

#[test]
fn mooncake_rows_between_ticks_keep_their_time_and_their_place() {
    let mut ticks: Vec<u64> = (0..200).map(|tick| tick * 3_000).collect();
    ticks.insert(101, 301_000);
    let requests = read(&mooncake(ticks));
    let times = seconds(&requests);
    assert!(times.is_sorted());
    assert!(times.contains(&301.0));
}

#[test]
fn mooncake_without_ticks_is_left_alone() {
    let text = mooncake([0, 0, 40, 277, 3_000, 4_100, 5_003, 6_000, 7_700, 9_100, 10_000, 10_001]);
    let reader = reader(&text, &ReadOptions::default()).unwrap();
    assert!(!reader.uses_seed());
    let requests: Vec<Request> = reader.map(Result::unwrap).collect();
    assert_eq!(seconds(&requests)[3], 0.277);
    assert_eq!(requests[0].prefix.block_tokens, 512);
    assert_eq!(requests[0].prefix.ids[0], requests[5].prefix.ids[0]);
}

fn ragpulse_row(time: &str, sys: &str, passages: &str, session: &str) -> String {
    format!(
        "{{\"timestamp\": \"{time}\", \"input_length\": 100, \"output_length\": 7, \"hash_ids\": \
         {{\"sys_prompt\": [{sys}], \"passages_ids\": [{passages}], \"history\": [], \"web_search\": \
         [], \"user_input\": [5]}}, \"session_id\": \"{session}\"}}\n"
    )
}

fn read_ragpulse(text: &str) -> (Result<Vec<Request>, TraceError>, Mended) {
    let folder = tempfile::tempdir().unwrap();
    let tables = [
        ("1_sys_prompt", "sys_prompt_id", [(1, 40), (2, 20)]),
        ("2_passages", "passage_id", [(3, 20), (4, 20)]),
        ("3_history", "history_id", [(8, 1), (9, 1)]),
        ("4_user_input", "user_input_id", [(5, 10), (6, 1)]),
        ("5_web_search", "web_search_id", [(10, 1), (11, 1)]),
    ];
    for (name, field, rows) in tables {
        let row = |(id, length)| format!("{{\"{field}\": {id}, \"token_length\": {length}}}\n");
        let text = format!("{}\n", rows.map(row).concat());
        fs::write(folder.path().join(format!("{name}.jsonl")), text).unwrap();
    }
    let path = folder.path().join("0_trace.jsonl");
    fs::write(&path, text).unwrap();
    let mut reader = open(&path, &ReadOptions::default()).unwrap();
    let requests = reader.by_ref().collect();
    (requests, reader.mended())
}

#[test]
fn ragpulse_weeks_are_put_one_after_the_other() {
    let text = [
        ragpulse_row("82", "1", "3", "a"),
        ragpulse_row("604453", "1", "3", "b"),
        ragpulse_row("0", "1", "3", "a"),
        ragpulse_row("9", "1", "3", "c"),
        "\n".to_owned(),
    ];
    let (requests, mended) = read_ragpulse(&text.concat());
    let requests = requests.unwrap();
    assert_eq!(seconds(&requests), [82.0, 604_453.0, 604_800.0, 604_809.0]);
    assert_eq!(mended.clock_resets, 1);
    assert_eq!(requests[0].session, requests[2].session);
    assert_ne!(requests[0].session, requests[1].session);
}

#[test]
fn ragpulse_prompts_share_as_far_as_their_components_are_the_same() {
    let rows = [
        ragpulse_row("1", "1", "3,4", "a"),
        ragpulse_row("2", "1", "3", "a"),
        ragpulse_row("3", "1", "4", "a"),
        ragpulse_row("4", "2,1", "3", "a"),
    ];
    let requests = read_ragpulse(&rows.concat()).0.unwrap();
    let shared = |left: usize, right: usize| {
        let pairs = requests[left].prefix.ids.iter().zip(requests[right].prefix.ids.iter());
        pairs.take_while(|(left, right)| left == right).count()
    };
    // Components of 40 + 20 + 20 + 10 tokens: five full blocks of 16.
    assert_eq!(requests[0].prefix.ids.len(), 5);
    assert_eq!(requests[0].prefix.block_tokens, 16);
    // 40 + 20 tokens are the same: three full blocks. Then only the 40: two.
    assert_eq!(shared(0, 1), 3);
    assert_eq!(shared(0, 2), 2);
    assert_eq!(shared(0, 3), 0);
}

#[test]
fn a_small_fall_of_the_ragpulse_clock_is_an_error() {
    let text = ragpulse_row("50000", "1", "3", "a") + &ragpulse_row("49999", "1", "3", "a");
    let error = read_ragpulse(&text).0.unwrap_err().to_string();
    assert!(error.contains("line 2: arrives at 49999.000000000, before line 1"), "{error}");
}

const AGENTS: &str = concat!(
    r#"{"id":"a","block_size":64,"requests":[{"t":0.0,"type":"s","in":130,"out":0,"hash_ids":[1,2],"api_time":2.0,"think_time":9.0},"#,
    r#"{"t":3.0,"type":"subagent","duration_ms":null,"requests":[{"t":0.0,"in":70,"out":4,"hash_ids":[7],"api_time":5.0},{"t":6.5,"in":80,"out":4,"hash_ids":[7],"api_time":1.5}]},"#,
    r#"{"t":16.0,"type":"n","in":200,"out":5,"hash_ids":[1,2,3],"think_time":14.0},"#,
    r#"{"t":20.0,"type":"n","in":201,"out":5,"hash_ids":[1,2,3],"api_time":1.0}]}"#,
    "\n"
);

#[test]
fn agent_sessions_are_closed_loop_with_sub_agents_in_line() {
    let mut reader = reader(AGENTS, &ReadOptions::default()).unwrap();
    assert!(reader.uses_seed());
    let requests: Vec<Request> = reader.by_ref().map(Result::unwrap).collect();
    // The group takes 8 s of the 14 s that its parent waits; the last wait comes from the clock.
    assert_eq!(seconds(&requests), [0.0, 0.0, -1.5, -6.0, -4.0]);
    assert!(matches!(requests[1].when, When::After { wait_ns: 0 }));
    assert_eq!(tokens(&requests), [(130, 1), (70, 4), (80, 4), (200, 5), (201, 5)]);
    assert_eq!(reader.mended().zero_outputs, 1);
    assert_eq!(requests[0].prefix.ids[..], requests[3].prefix.ids[..2]);
}

#[test]
fn agent_ids_are_local_and_repeated_sessions_are_left_out() {
    let other = AGENTS.replace("\"id\":\"a\"", "\"id\":\"b\"");
    let third = other.replace("\"in\":130", "\"in\":131");
    let text = format!("{AGENTS}{other}{third}");
    let mut from_file = reader(&text, &ReadOptions::default()).unwrap();
    let requests: Vec<Request> = from_file.by_ref().map(Result::unwrap).collect();
    assert_eq!(requests.len(), 10);
    assert_eq!(from_file.mended().duplicate_sessions, 1);
    assert!(requests[..5].iter().all(|request| request.session == Some(0)));
    assert!(requests[5..].iter().all(|request| request.session == Some(1)));
    let first_ids = |request: &Request| request.prefix.ids[0];
    assert_ne!(first_ids(&requests[0]), first_ids(&requests[5]));
    let options = ReadOptions { keep_duplicate_sessions: true, ..ReadOptions::default() };
    assert_eq!(reader(&text, &options).unwrap().count(), 15);
}

#[test]
fn agent_sessions_start_at_the_given_rate() {
    let lines: String = (0..2_000)
        .map(|session| AGENTS.replace("\"in\":130", &format!("\"in\":{}", 130 + session)))
        .collect();
    let options =
        ReadOptions { session_rate_per_s: Some(0.5), limit: Some(10_000), ..ReadOptions::default() };
    let requests: Vec<Request> = reader(&lines, &options).unwrap().map(Result::unwrap).collect();
    let starts: Vec<f64> = seconds(&requests).into_iter().step_by(5).collect();
    assert!(starts.is_sorted());
    assert!((starts[1_999] / 4_000.0 - 1.0).abs() < 0.1, "{}", starts[1_999]);
}

#[test]
fn lengths_in_conversation_order_become_sessions() {
    let mut text = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n".to_owned();
    for _ in 0..20 {
        text += "40,10,50,4.0\n50,30,80,1.6\n100,4,104,25.0\n300,4,304,75.0\n";
    }
    let reader = reader(&text, &ReadOptions::default()).unwrap();
    assert_eq!((reader.format(), reader.uses_seed()), (Format::Lengths, true));
    let requests: Vec<Request> = reader.map(Result::unwrap).collect();
    let open = requests.iter().filter(|request| matches!(request.when, When::At { .. }));
    assert_eq!(open.count(), 20);
    assert_eq!(requests[3].session, Some(0));
    assert_eq!(requests[4].session, Some(1));
    assert_eq!(requests[1].prefix.ids.len(), 3);
    assert_eq!(requests[1].prefix.ids[..], requests[2].prefix.ids[..3]);
    assert_ne!(requests[0].prefix.ids[0], requests[4].prefix.ids[0]);
}

#[test]
fn lengths_in_no_order_stay_single() {
    let mut text = "num_decode_tokens,num_prefill_tokens\n".to_owned();
    for row in 0..40 {
        text += &format!("10,{}\n", if row % 2 == 0 { 500 } else { 100 });
    }
    let requests = read(&text);
    assert!(requests.iter().all(|request| request.session.is_none()));
    assert_eq!(tokens(&requests)[0], (500, 10));
    assert!(seconds(&requests).is_sorted());
}

#[test]
fn kvlab_columns_may_stand_in_any_order() {
    let text = "output_tokens,images,prompt_tokens,session,wait_s,arrival_s\n\
                5,2:260;262:260,600,3,,1.5\n6,,700,3,2,\n";
    let requests = read(text);
    assert_eq!(seconds(&requests), [1.5, -2.0]);
    assert_eq!(tokens(&requests), [(600, 5), (700, 6)]);
    assert_eq!(requests[0].images.len(), 2);
}

#[test]
fn limit_and_time_scale() {
    let options = ReadOptions { limit: Some(1), ..ReadOptions::default() };
    assert_eq!(reader(AZURE, &options).unwrap().count(), 1);
    let options = ReadOptions { limit: Some(0), ..ReadOptions::default() };
    assert_eq!(reader(AZURE, &options).unwrap().count(), 0);
    let options = ReadOptions { time_scale: 0.5, ..ReadOptions::default() };
    let requests: Vec<Request> = reader(AZURE, &options).unwrap().map(Result::unwrap).collect();
    assert_eq!(seconds(&requests), [0.0, 0.65970505]);
}
