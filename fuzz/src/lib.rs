//! What the targets share: the checks that they make on the bytes they are given.
//!
//! Run one with `cargo +nightly fuzz run read_kvlab`; each target is one file in `fuzz_targets`
//! and one `[[bin]]` in `Cargo.toml`.

pub mod calls;

use std::io::Cursor;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::{env, fs, process};

use traces::{Format, ReadOptions, Reader, TraceStats, When, write_csv};

/// Reads bytes as a trace to the end. Whatever they are, there is no panic, the requests keep
/// the promises of their type, and what was read is read again after it was written.
///
/// # Panics
///
/// When one of these does not hold.
pub fn reader(format: Option<Format>, data: &[u8]) {
    let options = ReadOptions { format, tables_dir: Some(tables_dir().clone()), ..ReadOptions::default() };
    let Ok(reader) = Reader::from_read(Cursor::new(data.to_vec()), "fuzz", &options) else {
        return;
    };
    let mut requests = Vec::new();
    for request in reader {
        match request {
            Ok(request) => requests.push(request),
            Err(_) => break,
        }
    }
    let mut last_ns = 0;
    for request in &requests {
        assert!(request.prompt_tokens >= 1 && request.output_tokens >= 1);
        if let When::At { ns } = request.when {
            assert!(ns >= last_ns, "arrival times fall");
            last_ns = ns;
        }
    }
    if requests.is_empty() {
        return;
    }
    TraceStats::collect(requests.iter().cloned().map(Ok)).expect("no request is an error").rows();
    let mut text = Vec::new();
    write_csv(requests.iter().cloned(), &mut text).expect("memory takes every byte");
    let options = ReadOptions { format: Some(Format::Kvlab), ..ReadOptions::default() };
    let again = Reader::from_read(Cursor::new(text), "written", &options)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>);
    assert!(again.expect("what was written can be read") == requests);
}

/// Reads bytes as a log. Whatever they are, there is no panic, only damaged gzip is an error, and the
/// requests that are recovered can be written and read again.
///
/// # Panics
///
/// When one of these does not hold.
pub fn log(data: &[u8]) {
    let mut scan = logs::Scan::with_requests();
    let read = scan.read(data);
    assert!(read.is_ok() || data.starts_with(&[0x1f, 0x8b]), "{read:?}");
    let report = scan.finish();
    let diagnosis = logs::diagnose(&report);
    assert!(diagnosis.headline.ends_with('.'));
    logs::explain(&String::from_utf8_lossy(data));
    let Some(recovered) = report.requests.filter(|recovered| !recovered.requests.is_empty()) else { return };
    let mut text = Vec::new();
    write_csv(recovered.requests.iter().cloned(), &mut text).expect("memory takes every byte");
    reader(Some(Format::Kvlab), &text);
}

/// Tables of RAGPulse with components 1 to 5, written once per process.
fn tables_dir() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = env::temp_dir().join(format!("kvlab-fuzz-{}", process::id()));
        fs::create_dir_all(&folder).expect("the folder for temporary files can be written");
        let tables = [
            ("1_sys_prompt", "sys_prompt_id"),
            ("2_passages", "passage_id"),
            ("3_history", "history_id"),
            ("4_user_input", "user_input_id"),
            ("5_web_search", "web_search_id"),
        ];
        for (id, (name, field)) in (1..).zip(tables) {
            let row = format!("{{\"{field}\": {id}, \"token_length\": {}}}\n", id * 9);
            fs::write(folder.join(format!("{name}.jsonl")), row)
                .expect("the folder for temporary files can be written");
        }
        folder
    })
}
