//! Every kind of bad input gives one clear error: where, what was found, what was expected.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::io::{Cursor, Read, Write, repeat};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use traces::read::LINE_BYTES_MAX;
use traces::{Format, ReadOptions, Reader, Request, TraceError, open};

fn error_of(read: impl Read + Send + 'static, options: &ReadOptions) -> String {
    let requests: Result<Vec<Request>, TraceError> =
        Reader::from_read(read, "bad", options).and_then(Iterator::collect);
    requests.unwrap_err().to_string()
}

/// Checks that the error for a text is the expected one.
fn refused(text: &str, expected: &str) {
    let error = error_of(Cursor::new(text.to_owned()), &ReadOptions::default());
    assert_eq!(error, expected, "for {text:?}");
}

const TOKENS: &str = "expected a whole number of tokens from 1 to 100000000";

fn azure(rows: &str) -> String {
    format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
}

fn kvlab(rows: &str) -> String {
    format!("arrival_s,wait_s,session,prompt_tokens,output_tokens,prefix_block,prefix_ids,images\n{rows}")
}

fn mooncake(timestamp: &str, input: &str, output: &str, ids: &str) -> String {
    format!(
        "{{\"timestamp\": {timestamp}, \"input_length\": {input}, \"output_length\": {output}, \
         \"hash_ids\": {ids}}}\n"
    )
}

#[test]
fn empty_files() {
    let expected = "bad: the trace is empty; expected at least one request";
    refused("", expected);
    refused("\n\r\n \n", expected);
    refused("\u{feff}", expected);
    refused(&azure(""), expected);
    refused("num_prefill_tokens,num_decode_tokens\n", expected);
    refused(&kvlab(""), expected);
    for format in Format::ALL {
        if format != Format::RagPulse {
            let options = ReadOptions { format: Some(format), ..ReadOptions::default() };
            assert_eq!(error_of(Cursor::new(""), &options), expected);
        }
    }
}

#[test]
fn unknown_formats() {
    let rest = "expected a header or a JSON object of one of: \
                azure, mooncake, ragpulse, agents, lengths, kvlab";
    refused("hello", &format!("bad: unknown format: the first line is \"hello\"; {rest}"));
    let row = r#"{"passage_id": 0}"#;
    refused(row, &format!("bad: unknown format: the first line is {row:?}; {rest}"));
    let long = "x".repeat(100);
    let short = "x".repeat(40) + "...";
    refused(&long, &format!("bad: unknown format: the first line is {short:?}; {rest}"));
}

#[test]
fn wrong_columns() {
    refused(
        "TIMESTAMP,GeneratedTokens\n",
        "bad, line 1: wrong columns: found \"TIMESTAMP,GeneratedTokens\"; \
         expected TIMESTAMP,ContextTokens,GeneratedTokens",
    );
    refused(
        "num_prefill_tokens\n1\n",
        "bad, line 1: wrong columns: found \"num_prefill_tokens\"; \
         expected num_prefill_tokens and num_decode_tokens, once each",
    );
    refused(
        "arrival_s,prompt_tokens,output_tokens,colour\n",
        "bad, line 1: wrong columns: found \"colour\"; expected only arrival_s, wait_s, session, \
         prompt_tokens, output_tokens, prefix_block, prefix_ids, images",
    );
    refused(
        "arrival_s,arrival_s\n",
        "bad, line 1: wrong columns: found \"arrival_s twice\"; expected each column once",
    );
    refused(
        "arrival_s,prompt_tokens\n",
        "bad, line 1: wrong columns: found \"arrival_s,prompt_tokens\"; \
         expected a column output_tokens",
    );
    refused(
        &azure("2023-11-16 18:15:46,1\n"),
        "bad, line 2, GeneratedTokens: found \"nothing\"; expected a value",
    );
    refused(
        &azure("2023-11-16 18:15:46,1,1,1\n"),
        "bad, line 2, fourth column: found \"1\"; expected three columns",
    );
    refused(
        &kvlab("0,,,1\n"),
        "bad, line 2, output_tokens: found \"the end of the line\"; \
         expected 8 columns as in the header",
    );
    refused(
        "num_prefill_tokens,num_decode_tokens\n1,2,3\n",
        "bad, line 2, number of columns: found \"3\"; expected 2 as in the header",
    );
}

#[test]
fn counts_out_of_range() {
    for count in
        ["0", "-1", "", "1.5", "1e3", "NaN", "inf", "100000001", "2147483648", "99999999999999999999999"]
    {
        refused(
            &azure(&format!("2023-11-16 18:15:46,{count},1\n")),
            &format!("bad, line 2, ContextTokens: found {count:?}; {TOKENS}"),
        );
        refused(
            &kvlab(&format!("0,,,1,{count},,,\n")),
            &format!("bad, line 2, output_tokens: found {count:?}; {TOKENS}"),
        );
        refused(
            &format!("num_prefill_tokens,num_decode_tokens\n{count},1\n"),
            &format!("bad, line 2, num_prefill_tokens: found {count:?}; {TOKENS}"),
        );
    }
    for (count, found) in [
        ("0", "0"),
        ("-1", "-1"),
        ("null", "nothing"),
        ("\"5\"", "5"),
        ("1.5", "1.5"),
        ("true", "true"),
        ("[1]", "a list"),
        ("{}", "an object"),
        ("100000001", "100000001"),
    ] {
        refused(
            &mooncake("0", "5", count, "[]"),
            &format!("bad, line 1, output_length: found {found:?}; {TOKENS}"),
        );
        refused(
            &format!("{{\"requests\":[{{\"in\":{count},\"out\":1}}]}}"),
            &format!("bad, line 1, requests[0].in: found {found:?}; {TOKENS}"),
        );
    }
    refused(
        r#"{"requests":[{"in":1,"out":-1}]}"#,
        "bad, line 1, requests[0].out: found \"-1\"; expected a whole number",
    );
    refused(
        r#"{"requests":[]}"#,
        "bad, line 1, requests: found \"no request\"; expected at least one request",
    );
}

#[test]
fn times_that_are_none() {
    for time in ["NaN", "inf", "-1", "1e3", ".5", "5.", "+1", "9000000001", "x"] {
        refused(
            &kvlab(&format!("{time},,,1,1,,,\n")),
            &format!(
                "bad, line 2, arrival_s: found {time:?}; \
                 expected seconds from 0 to 9000000000, like 12.5"
            ),
        );
    }
    for time in [
        "2023-11-16",
        "2023-11-31 00:00:00",
        "2023-02-29 00:00:00",
        "2023-11-16 24:00:00",
        "2023-11-16 18:15:46.",
        "2023-11-16 18:15:46 UTC",
        "now",
    ] {
        refused(
            &azure(&format!("{time},1,1\n")),
            &format!(
                "bad, line 2, TIMESTAMP: found {time:?}; \
                 expected a time like 2023-11-16 18:15:46.6805900"
            ),
        );
    }
    refused(
        r#"{"requests":[{"in":1,"out":1,"think_time":-2.5}]}"#,
        "bad, line 1, requests[0].think_time: found \"-2.5\"; \
         expected seconds from 0 to 9000000000, like 12.5",
    );
    let error = error_of(Cursor::new(mooncake("NaN", "1", "1", "[]")), &Format::Mooncake.options());
    assert!(
        error.starts_with("bad, line 1: not the expected JSON object: column 15: expected value"),
        "{error}"
    );
}

trait Options {
    fn options(self) -> ReadOptions;
}

impl Options for Format {
    fn options(self) -> ReadOptions {
        ReadOptions { format: Some(self), ..ReadOptions::default() }
    }
}

#[test]
fn times_that_fall_name_both_lines() {
    let rest = "expected rows in order of time";
    refused(
        &azure("2023-11-16 18:15:46,1,1\n2023-11-16 18:15:48,1,1\n\n2023-11-16 18:15:45,1,1\n"),
        &format!("bad, line 5: arrives at -1.000000000, before line 3 (2.000000000); {rest}"),
    );
    refused(
        &kvlab("2,,7,1,1,,,\n,1,7,1,1,,,\n1.5,,,1,1,,,\n"),
        &format!("bad, line 4: arrives at 1.500000000, before line 2 (2.000000000); {rest}"),
    );
    refused(
        &(mooncake("2000", "1", "1", "[]") + &mooncake("1999", "1", "1", "[]")),
        &format!("bad, line 2: arrives at 1.999000000, before line 1 (2.000000000); {rest}"),
    );
}

#[test]
fn closed_loop_rows_out_of_place() {
    let wait = "bad, line 2, wait_s: found \"1\"; expected";
    refused(&kvlab(",1,7,1,1,,,\n"), &format!("{wait} a session, the same as in the row above"));
    refused(&kvlab("0,1,7,1,1,,,\n"), &format!("{wait} nothing where arrival_s is given"));
    refused(
        &kvlab("0,,7,1,1,,,\n,1,8,1,1,,,\n"),
        "bad, line 3, wait_s: found \"1\"; expected a session, the same as in the row above",
    );
    refused(&kvlab(",,7,1,1,,,\n"), "bad, line 2, arrival_s: found \"\"; expected a time, here or in wait_s");
}

#[test]
fn prefixes_and_images_that_do_not_fit() {
    refused(
        &kvlab("0,,,32,1,16,1;2;3,\n"),
        "bad, line 2, prefix_ids: found \"3 ids\"; expected at most 2 for 32 tokens",
    );
    refused(&kvlab("0,,,32,1,16,1;x,\n"), "bad, line 2, prefix_ids: found \"x\"; expected a whole number");
    refused(
        &kvlab("0,,,32,1,16,0..18446744073709551615,\n"),
        "bad, line 2, prefix_ids: found \"18446744073709551615 ids\"; expected at most 2 for 32 tokens",
    );
    refused(
        &kvlab("0,,,32,1,16,9..8,\n"),
        "bad, line 2, prefix_ids: found \"9..8\"; expected first..last with first below last",
    );
    refused(&kvlab("0,,,32,1,,1,\n"), &format!("bad, line 2, prefix_block: found \"\"; {TOKENS}"));
    refused(
        &kvlab("0,,,32,1,16,,\n"),
        "bad, line 2, prefix_block: found \"16\"; expected nothing where prefix_ids is empty",
    );
    for images in ["30:3", "1", "9:2;10:2", "-1:2"] {
        let found = images.split(';').next_back().unwrap();
        refused(
            &kvlab(&format!("0,,,32,1,,,{images}\n")),
            &format!(
                "bad, line 2, images: found {found:?}; \
                 expected offset:tokens inside the prompt, after the image before it"
            ),
        );
    }
    refused(
        &mooncake("0", "1024", "1", "[1, 2, 3]"),
        "bad, line 1, hash_ids: found \"3 ids\"; \
         expected 2 ids for 1024 tokens in blocks of 512",
    );
    refused(
        r#"{"requests":[{"in":127,"out":1,"hash_ids":[1,2]}]}"#,
        "bad, line 1, requests[0].hash_ids: found \"2 ids\"; \
         expected at most 1 full blocks in 127 tokens",
    );
}

#[test]
fn broken_json() {
    let error = error_of(
        Cursor::new(mooncake("0", "1", "1", "[]") + "{\"timestamp\": 3, \"input_len"),
        &ReadOptions::default(),
    );
    assert!(error.starts_with("bad, line 2: not the expected JSON object: column"), "{error}");
    let long = format!("[\"{}\"]", "x".repeat(1_000));
    let error = error_of(Cursor::new(mooncake("0", "1", "1", &long)), &Format::Mooncake.options());
    assert!(error.contains("invalid type: string \"xxx") && error.len() < 300, "{error}");
    let deep = "[".repeat(100_000);
    let error = error_of(Cursor::new(mooncake("0", "1", "1", &deep)), &Format::Mooncake.options());
    assert!(error.starts_with("bad, line 1: not the expected JSON object"), "{error}");
}

#[test]
fn text_that_is_not_utf_8() {
    let mut text = azure("2023-11-16 18:15:46,1,1\n2023").into_bytes();
    text.extend([0xff, 0xfe, b'\n']);
    let error = error_of(Cursor::new(text), &ReadOptions::default());
    assert_eq!(error, "bad, line 3, byte 4: not UTF-8 text");
}

#[test]
fn a_line_without_end_is_not_read_whole() {
    let endless = Cursor::new(azure("2023-11-16 18:15:46,1,1\n")).chain(repeat(b'1'));
    let error = error_of(endless, &ReadOptions::default());
    assert_eq!(error, format!("bad, line 3: longer than {LINE_BYTES_MAX} bytes"));
}

#[test]
fn a_tick_without_end_is_an_error() {
    let row = mooncake("3000", "1", "1", "[]");
    let endless = Cursor::new(row.repeat((1 << 20) + 300));
    let error = error_of(endless, &ReadOptions::default());
    assert!(error.contains("timestamp: found \"more than 1048576 in one tick\""), "{error}");
}

#[test]
fn gzip_cut_short_or_damaged() {
    let rows = "2023-11-16 18:15:46,1,1\n".repeat(20_000);
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(azure(&rows).as_bytes()).unwrap();
    let whole = out.finish().unwrap();
    for cut in [3, 12, whole.len() / 2, whole.len() - 4] {
        let error = error_of(Cursor::new(whole[..cut].to_vec()), &ReadOptions::default());
        assert!(error.contains("the gzip data are damaged or cut short"), "{error}");
    }
    let mut damaged = whole.clone();
    damaged[whole.len() / 2..].fill(0xaa);
    let error = error_of(Cursor::new(damaged), &ReadOptions::default());
    assert!(error.starts_with("bad, "), "{error}");
    let middle = error_of(Cursor::new(whole[..whole.len() - 4].to_vec()), &ReadOptions::default());
    assert!(middle.starts_with("bad, after line 20001: "), "{middle}");
}

#[test]
fn files_that_are_not_there() {
    let missing = open(Path::new("/no/such/trace.csv"), &ReadOptions::default());
    assert!(missing.err().unwrap().to_string().starts_with("/no/such/trace.csv: "));
    let folder = tempfile::tempdir().unwrap();
    assert!(open(folder.path(), &ReadOptions::default()).is_err());
    let path = folder.path().join("0_trace.jsonl");
    std::fs::write(&path, "{\"input_length\": 1, \"session_id\": \"a\"}\n").unwrap();
    let error = open(&path, &ReadOptions::default()).err().unwrap().to_string();
    assert!(error.contains("1_sys_prompt.jsonl.gz: cannot open this RAGPulse table"), "{error}");
    let error = error_of(Cursor::new("{}"), &Format::RagPulse.options());
    assert!(error.starts_with("option tables_dir: found \"nothing, for bad\""), "{error}");
}

#[test]
fn options_that_make_no_sense() {
    for time_scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let options = ReadOptions { time_scale, ..ReadOptions::default() };
        let error = error_of(Cursor::new("x"), &options);
        assert!(error.starts_with("option time_scale: found "), "{error}");
        let rate = ReadOptions { session_rate_per_s: Some(time_scale), ..ReadOptions::default() };
        let error = error_of(Cursor::new("x"), &rate);
        assert!(error.starts_with("option session_rate_per_s: found "), "{error}");
    }
    let options = ReadOptions { time_scale: 1e30, ..ReadOptions::default() };
    let error = error_of(Cursor::new(kvlab("1,,,1,1,,,\n")), &options);
    assert!(error.starts_with("bad, line 2, arrival: found \"1.000e39 ns\""), "{error}");
    assert!("yaml".parse::<Format>().is_err());
}
