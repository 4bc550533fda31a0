//! The llama runner's cache against records of the real one, and against cases of our own.
//!
//! A record is a line `{case, in, out}`: one operation as a short text, and everything that can be
//! seen of the cache after it. The recorded folder is named by `KVLAB_GOLDEN` and may be absent; the
//! cases in `cases/llama` are worked out by hand from the rules and always run.

mod golden;

use std::path::Path;

use golden::{assert_equal, own, recorded, records};
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

/// Replays a file; returns how many records it has.
fn replay(path: &Path) -> usize {
    let mut cache = None;
    let mut count = 0;
    for (at, record) in records(path) {
        let text = record["in"].as_str().expect("an operation");
        let mut found = run(&mut cache, text);
        // Cases of our own say only what they are about.
        let is_told = |field: &String| record["out"].get(field).is_some();
        found.as_object_mut().expect("an answer").retain(|field, _| is_told(field));
        assert_equal(&format!("{at}, case {}, {text:?}", record["case"]), &found, &record["out"]);
        count += 1;
    }
    count
}

#[test]
fn golden_llama_cache_answers_as_recorded() {
    for path in recorded("llamakv_").into_iter().flatten() {
        assert!(replay(&path) > 0, "{} is empty", path.display());
    }
}

#[test]
fn golden_cases_of_our_own_answer_as_worked_out() {
    let count: usize = own("llama").iter().map(|path| replay(path)).sum();
    assert!(count > 20, "{count} records");
}
