//! kvlab's own CSV: what is written is read again, to the nanosecond; any bytes are survived.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::fs;
use std::io::Cursor;

use proptest::collection::vec;
use proptest::prelude::*;
use traces::{
    Format, GenerateOptions, Image, Prefix, ReadOptions, Reader, Request, TraceError, When, Workload,
    generate, open, write_csv, write_csv_file,
};

fn read_csv(text: Vec<u8>) -> Result<Vec<Request>, TraceError> {
    let options = ReadOptions { format: Some(Format::Kvlab), ..ReadOptions::default() };
    Reader::from_read(Cursor::new(text), "test.csv", &options)?.collect()
}

fn written(requests: &[Request]) -> Vec<u8> {
    let mut out = Vec::new();
    let count = write_csv(requests.iter().cloned(), &mut out).unwrap();
    assert_eq!(count, requests.len() as u64);
    out
}

prop_compose! {
    fn row()(
        step in 0u64..1 << 50,
        wait in proptest::option::of(0u64..1 << 60),
        session in proptest::option::of(any::<u64>()),
        prompt_tokens in 1u32..=100_000_000,
        output_tokens in 1u32..=100_000_000,
        block_tokens in 1u32..=512,
        ids in vec(any::<u64>(), 0..6),
        images in vec((0u32..300, 1u32..300), 0..4),
    ) -> (u64, Option<u64>, Request) {
        let ids = ids.into_iter().take(prompt_tokens.div_ceil(block_tokens) as usize).collect();
        let mut end = 0;
        let images = images.into_iter().filter_map(|(gap, tokens)| {
            let at = end + gap;
            end = at + tokens;
            (end <= prompt_tokens).then_some(Image { at, tokens })
        });
        let images = images.collect();
        let prefix = Prefix::chained(block_tokens, ids);
        let when = When::At { ns: 0 };
        (step, wait, Request { id: 0, session, when, prompt_tokens, output_tokens, prefix, images })
    }
}

/// Turns free rows into a trace: times rise, and a follow-up has the session of the row above.
fn trace() -> impl Strategy<Value = Vec<Request>> {
    vec(row(), 1..40).prop_map(|rows| {
        let (mut ns, mut session) = (0, None);
        let rows = (0..).zip(rows).map(|(id, (step, wait, mut request))| {
            request.id = id;
            request.when = match wait {
                Some(wait_ns) if session.is_some() => {
                    request.session = session;
                    When::After { wait_ns }
                }
                _ => {
                    ns += step;
                    When::At { ns }
                }
            };
            session = request.session;
            request
        });
        rows.collect()
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(requests in trace()) {
        prop_assert_eq!(read_csv(written(&requests)).unwrap(), requests);
    }

    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..400), format in 0usize..7) {
        survive(&bytes, format);
    }

    #[test]
    fn any_rows_are_survived(
        header in 0usize..HEADERS.len(),
        rows in vec(r#"[-0-9.,:;eE+ "{}\[\]a-zT]{0,60}"#, 0..8),
        format in 0usize..7,
    ) {
        let text = format!("{}\n{}", HEADERS[header], rows.join("\n"));
        survive(text.as_bytes(), format);
    }

    #[test]
    fn any_mutation_is_survived(
        sample in 0usize..SAMPLES.len(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = SAMPLES[sample].as_bytes().to_vec();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        survive(&bytes, 6);
        survive(&bytes, sample);
    }
}

const HEADERS: [&str; 4] = [
    "",
    "TIMESTAMP,ContextTokens,GeneratedTokens",
    "num_prefill_tokens,num_decode_tokens",
    "arrival_s,wait_s,session,prompt_tokens,output_tokens,prefix_block,prefix_ids,images",
];

/// One valid file per format, in the order of [`Format::ALL`].
const SAMPLES: [&str; 6] = [
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n",
    r#"{"timestamp": 27, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}"#,
    r#"{"timestamp": "8", "input_length": 60, "output_length": 5, "hash_ids": {"sys_prompt": [1], "passages_ids": [2], "history": [], "web_search": [], "user_input": [3]}, "session_id": "1-a"}"#,
    r#"{"id": "a", "block_size": 64, "requests": [{"t": 0.0, "type": "n", "in": 70, "out": 3, "hash_ids": [1], "api_time": 2.5, "think_time": 0.0}, {"t": 3.0, "type": "subagent", "requests": [{"t": 0.5, "in": 9, "out": 1, "hash_ids": []}]}]}"#,
    "num_prefill_tokens,num_decode_tokens,pd_ratio\n10,5,2.0\n15,2,7.5\n",
    "arrival_s,wait_s,session,prompt_tokens,output_tokens,prefix_block,prefix_ids,images\n0.5,,7,600,20,256,1;2;3,4:260;300:260\n,1.5,7,700,5,,,\n",
];

/// Reads to the end, whatever the bytes are; format 6 is to be told from them.
fn survive(bytes: &[u8], format: usize) {
    let folder = tempfile::tempdir().unwrap();
    let tables = ["1_sys_prompt", "2_passages", "3_history", "4_user_input", "5_web_search"];
    let fields = ["sys_prompt", "passage", "history", "user_input", "web_search"];
    for (number, (table, field)) in (1..).zip(tables.iter().zip(fields)) {
        let row = format!("{{\"{field}_id\": {number}, \"token_length\": {}}}\n\n", number * 9);
        fs::write(folder.path().join(format!("{table}.jsonl")), row).unwrap();
    }
    let options = ReadOptions {
        format: Format::ALL.get(format).copied(),
        tables_dir: Some(folder.path().to_owned()),
        ..ReadOptions::default()
    };
    let Ok(reader) = Reader::from_read(Cursor::new(bytes.to_vec()), "bytes", &options) else {
        return;
    };
    let mut last = None;
    for request in reader {
        assert!(!matches!(last, Some(Err(_))), "an error ends a reader");
        if let Ok(request) = &request {
            assert!(request.prompt_tokens >= 1 && request.output_tokens >= 1);
        }
        last = Some(request);
    }
    assert!(last.is_some(), "an empty trace is an error");
}

#[test]
fn the_samples_are_valid() {
    for (sample, format) in SAMPLES.iter().zip(Format::ALL) {
        if format == Format::RagPulse {
            continue;
        }
        let reader = Reader::from_read(Cursor::new(*sample), "sample", &ReadOptions::default()).unwrap();
        assert_eq!(reader.format(), format);
        reader.for_each(|request| drop(request.unwrap()));
    }
}

#[test]
fn generated_traces_come_back_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    for kind in Workload::ALL {
        for name in ["trace.csv", "trace.csv.gz"] {
            let path = folder.path().join(name);
            let options = GenerateOptions { requests: 40, seed: 3, rate_per_s: None };
            let requests: Vec<Request> = generate(kind, &options).unwrap().collect();
            let count = write_csv_file(requests.iter().cloned().map(Ok), &path).unwrap();
            assert_eq!(count, 40);
            let reader = open(&path, &ReadOptions::default()).unwrap();
            assert_eq!(reader.format(), Format::Kvlab);
            assert!(!reader.uses_seed());
            let again: Vec<Request> = reader.map(Result::unwrap).collect();
            assert!(again == requests, "{}", kind.name());
        }
    }
    assert_eq!(fs::read(folder.path().join("trace.csv.gz")).unwrap()[..2], [0x1f, 0x8b]);
}

#[test]
fn an_error_while_writing_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.csv");
    fs::write(&path, "old").unwrap();
    let options = ReadOptions { format: Some(Format::Lengths), ..ReadOptions::default() };
    let bad = Cursor::new("num_prefill_tokens,num_decode_tokens\n1,1\n0,1\n");
    let trouble = match Reader::from_read(bad, "bad", &options) {
        Ok(reader) => write_csv_file(reader, &path),
        Err(error) => write_csv_file([Err(error)], &path),
    };
    assert!(trouble.is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn times_are_exact_to_the_nanosecond() {
    let text = "arrival_s,prompt_tokens,output_tokens\n\
                0.000000001,1,1\n1.1,1,1\n1.10000000049,1,1\n1.1000000005,1,1\n9000000000,1,1\n";
    let requests = read_csv(text.into()).unwrap();
    let times: Vec<When> = requests.iter().map(|request| request.when).collect();
    let ns = [1, 1_100_000_000, 1_100_000_000, 1_100_000_001, 9_000_000_000_000_000_000];
    assert_eq!(times, ns.map(|ns| When::At { ns }));
    assert_eq!(read_csv(written(&requests)).unwrap(), requests);
}
