//! The llama runner's cache against records of the real one, and against cases of our own.
//!
//! A record is a line `{case, in, out}`: one operation as a short text, and everything that can be
//! seen of the cache after it. The recorded folder is named by `KVLAB_GOLDEN` and may be absent; the
//! cases in `cases/llama` are worked out by hand from the rules and always run.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use policies::SeqId;
use policies::llama_unified::{Part, UnifiedCache, Work};
use serde_json::{Value, json};

/// One number of an operation.
fn number(word: Option<&str>) -> i32 {
    word.expect("an operand").parse().expect("a number")
}

fn seq(word: Option<&str>) -> SeqId {
    SeqId(number(word) as u32)
}

/// What is seen of a cache from outside, as the records have it.
fn seen(op: &str, res: &str, cache: &UnifiedCache, sequences: u32) -> Value {
    let work = if op == "dec" { cache.work() } else { Work::default() };
    let mut holders = vec![Vec::new(); cache.size() as usize];
    for seq in 0..sequences {
        cache.table(SeqId(seq)).iter().for_each(|&cell| holders[cell as usize].push(seq));
    }
    let cells: Vec<Value> = (0..cache.size())
        .filter_map(|cell| Some(json!([cell, cache.position(cell)?, holders[cell as usize]])))
        .collect();
    json!({
        "op": op, "res": res, "head": cache.head(), "used": cache.used(), "n": cache.attended(),
        "size": cache.size(), "defrags": work.defrags, "moves": work.moves, "graphs": work.graphs,
        "cells": cells,
    })
}

/// Executes one operation on the cache, which `init` makes.
fn run(cache: &mut Option<UnifiedCache>, text: &str) -> Value {
    let mut words = text.split_whitespace();
    let op = words.next().expect("an operation");
    if op == "init" {
        let [size, layers, ubatch, flash] = [(); 4].map(|()| number(words.next()) as u32);
        *cache = Some(UnifiedCache::new(size, layers, ubatch, if flash == 0 { 32 } else { 256 }));
    }
    let cache = cache.as_mut().expect("a case begins with init");
    let mut res = "ok";
    match op {
        "init" => {}
        "dec" => {
            let part = |text: &str| {
                let mut fields = text.split(':');
                let (seq, first) = (seq(fields.next()), number(fields.next()));
                Part { seq, first, tokens: number(fields.next()) as u32 }
            };
            let batch: Vec<Part> = words.next().expect("a batch").split(',').map(part).collect();
            if cache.decode(&batch, &mut Vec::new()).is_err() {
                res = "1 (no slot)";
            }
        }
        "rm" => cache.remove(seq(words.next()), number(words.next())..number(words.next())),
        "cp" => {
            let (from, to) = (seq(words.next()), seq(words.next()));
            cache.copy(from, to, number(words.next())..number(words.next()));
        }
        "add" => {
            let (seq, positions) = (seq(words.next()), number(words.next())..number(words.next()));
            cache.shift(seq, positions, number(words.next()));
        }
        other => panic!("unknown operation {other}"),
    }
    assert_eq!(cache.audit(), Ok(()), "after {text}");
    seen(op, res, cache, 64)
}

/// Replays every line of a file; returns how many there were.
fn replay(path: &Path) -> usize {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let is_packed = path.extension().is_some_and(|extension| extension == "gz");
    let reader: Box<dyn Read> = if is_packed { Box::new(GzDecoder::new(file)) } else { Box::new(file) };
    let mut cache = None;
    let mut lines = 0;
    for (line, number) in BufReader::new(reader).lines().zip(1..) {
        let at = || format!("{}:{number}", path.display());
        let line = line.unwrap_or_else(|error| panic!("{}: {error}", at()));
        if line.trim().is_empty() {
            continue;
        }
        let record: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{}: {error}", at()));
        let text = record["in"].as_str().expect("an operation");
        let found = run(&mut cache, text);
        let expected = record["out"].as_object().expect("an answer");
        for (field, expected) in expected {
            assert_eq!(&found[field], expected, "{}, {}, {text:?}: {field}", at(), record["case"]);
        }
        lines += 1;
    }
    lines
}

/// Files of a folder whose names begin and end so, in order.
fn files(folder: &Path, begin: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a folder").path()).collect();
    files.retain(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(begin) && (name.ends_with(".jsonl") || name.ends_with(".jsonl.gz"))
    });
    files.sort();
    files
}

#[test]
fn golden_llama_cache_answers_as_recorded() {
    let folder = std::env::var_os("KVLAB_GOLDEN")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden").into(), PathBuf::from);
    let files = files(&folder.join("ollama"), "llamakv_");
    if files.is_empty() {
        eprintln!("skipped: no ollama/llamakv_*.jsonl[.gz] under KVLAB_GOLDEN (default ../shared/golden)");
        return;
    }
    for file in files {
        let lines = replay(&file);
        eprintln!("{}: {lines} answers equal", file.display());
        assert!(lines > 0, "{} is empty", file.display());
    }
}

#[test]
fn golden_cases_of_our_own_answer_as_worked_out() {
    let files = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/llama"), "");
    assert!(!files.is_empty());
    assert!(files.iter().map(|file| replay(file)).sum::<usize>() > 20);
}
