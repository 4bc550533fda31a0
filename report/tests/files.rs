//! Result files: whole or not there, and readable again.

mod common;

use std::fs;

use common::{HOSTILE, row, rows};
use report::files::{self, FileError, RequestsWriter, TimelineWriter};
use report::{RequestRow, TimelineRow};

fn request() -> RequestRow {
    RequestRow {
        row: HOSTILE[3].to_owned(),
        policy: HOSTILE[1].to_owned(),
        seed: u64::MAX,
        id: 7,
        outcome: "completed".to_owned(),
        arrival_s: 0.1,
        ttft_ms: Some(1.0 / 3.0),
        tpot_ms: None,
        latency_ms: None,
        prompt_tokens: 12,
        output_tokens: 1,
        truncated_tokens: 0,
        shifts: 0,
        preemptions: 0,
        cached_tokens: 0,
    }
}

#[test]
fn summaries_come_back_as_they_went() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = rows();
    all.extend(HOSTILE.iter().map(|name| row(name, 1, 5, 1e-300)));
    let path = files::write_summary(dir.path(), &all).unwrap();
    assert_eq!(path.file_name().unwrap(), "summary.csv");
    assert_eq!(files::read_summary(&path).unwrap(), all);
    let first = fs::read(&path).unwrap();
    files::write_summary(dir.path(), &all).unwrap();
    assert_eq!(fs::read(&path).unwrap(), first);
    files::write_summary(dir.path(), &[]).unwrap();
    assert!(files::read_summary(&path).unwrap().is_empty());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_streamed_file_appears_only_when_finished() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = RequestsWriter::create(dir.path()).unwrap();
    writer.write(&request()).unwrap();
    assert!(!dir.path().join("requests.csv").exists());
    let path = writer.finish().unwrap();
    let back: Vec<RequestRow> = files::read_rows(&path).unwrap().map(Result::unwrap).collect();
    assert_eq!(back, [request()]);
    drop(TimelineWriter::create(dir.path()).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the dropped file is gone");
}

#[test]
fn a_bad_value_is_named_by_line_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let path = files::write_summary(dir.path(), &rows()).unwrap();
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replacen("contiguous,office.csv,2,", "contiguous,office.csv,two,", 1)).unwrap();
    let error = files::read_summary(&path).unwrap_err().to_string();
    assert!(error.ends_with("summary.csv, line 3, column seed: invalid digit found in string"), "{error}");
    fs::write(&path, good.replacen("seed", "sead", 1)).unwrap();
    let error = files::read_summary(&path).unwrap_err();
    assert!(matches!(error, FileError::Column { column: "seed", .. }), "{error}");
    fs::write(&path, good.replacen("paged,", "paged,extra,", 1)).unwrap();
    let error = files::read_summary(&path).unwrap_err().to_string();
    let columns = good.lines().next().expect("there is a header").split(',').count();
    let expected = format!("line 5: {} values under {columns} columns", columns + 1);
    assert!(error.contains(&expected), "{error}");
    let error = files::read_summary(&dir.path().join("none.csv")).unwrap_err();
    assert!(matches!(error, FileError::Io { .. }));
    assert!(TimelineWriter::create(&dir.path().join("no such directory")).is_err());
}

#[test]
fn a_timeline_is_not_taken_for_a_summary() {
    let dir = tempfile::tempdir().unwrap();
    let path = TimelineWriter::create(dir.path()).unwrap().finish().unwrap();
    assert!(files::read_summary(&path).is_err());
    assert_eq!(files::read_rows::<TimelineRow>(&path).unwrap().count(), 0);
}
