//! vLLM 0.33's block manager against records of the real one: hits, refusals, free blocks, every table.
//!
//! A record is an operation and what the manager answered after it. The records of the real server are not in
//! this repository: `KVLAB_GOLDEN` names the folder that has `vllm` in it. Short ones of our own, in the same
//! form, are in `cases/vllm`.

mod golden;

use std::collections::BTreeMap;
use std::path::Path;

use golden::{assert_equal, own, recorded_in, records};
use policies::Reach;
use policies::vllm::{Cache, Chain, Eviction, Retention, Setup};
use serde_json::{Value, json};

/// A manager, and the sequences that have a place in it by their names.
struct World {
    cache: Cache,
    groups: usize,
    open: BTreeMap<String, (u32, Chain)>,
    next: u32,
}

fn number(from: &Value, name: &str) -> u32 {
    from[name].as_u64().unwrap_or_else(|| panic!("{name} is missing in {from}")) as u32
}

fn tokens(from: &Value) -> Vec<u32> {
    let list = from["tokens"].as_array().expect("tokens are a list");
    list.iter().map(|token| token.as_u64().expect("a number") as u32).collect()
}

impl World {
    fn new(init: &Value) -> World {
        let groups = match init["kind"].as_str().expect("kind is a word") {
            "full" => vec![Reach::Full],
            "hybrid" => {
                let window = Reach::Window(number(init, "window"));
                vec![Reach::Full, window, window]
            }
            other => panic!("unknown kind {other}"),
        };
        let retention = match init.get("retention").and_then(Value::as_u64) {
            None => Retention::Dense,
            Some(0) => Retention::Last,
            Some(tokens) => Retention::Every(tokens as u32),
        };
        let setup = Setup {
            blocks: number(init, "num_blocks"),
            block_size: number(init, "block_size"),
            groups,
            caching: init["caching"].as_bool().expect("caching is true or false"),
            retention,
            eviction: Eviction::Lru,
            keyless_first: true,
        };
        World { groups: setup.groups.len(), cache: Cache::new(setup), open: BTreeMap::new(), next: 0 }
    }

    fn tables(&self, seq: u32) -> Value {
        (0..self.groups).map(|group| self.cache.table(seq, group).collect::<Vec<u32>>()).collect()
    }

    /// Does one operation, and says what there is afterwards in the form of the records.
    fn run(&mut self, input: &Value) -> Value {
        let name = input["seq"].as_str().unwrap_or_default().to_owned();
        let mut out = json!({});
        match input["op"].as_str().expect("op is a word") {
            "admit" => {
                let tokens = tokens(input);
                let mut chain = Chain::new(self.cache.setup().block_size);
                chain.extend(&tokens);
                let (found, placed) = self.cache.admit(self.next, tokens.len() as u32, |at| chain.key(at));
                out["ok"] = json!(placed.is_ok());
                out["hit_tokens"] = json!(found.tokens);
                if placed.is_ok() {
                    out["blocks"] = self.tables(self.next);
                    self.open.insert(name, (self.next, chain));
                    self.next += 1;
                }
            }
            "append" => {
                let tokens = tokens(input);
                let (seq, chain) = self.open.get_mut(&name).expect("the sequence is open");
                chain.extend(&tokens);
                let placed = self.cache.append(*seq, tokens.len() as u32, false, |at| chain.key(at));
                out["ok"] = json!(placed.is_ok());
                if placed.is_ok() {
                    let seq = *seq;
                    out["blocks"] = self.tables(seq);
                }
            }
            "release" => {
                let (seq, _) = self.open.remove(&name).expect("the sequence is open");
                self.cache.release(seq);
            }
            "init" => {}
            other => panic!("unknown operation {other}"),
        }
        out["free_blocks"] = json!(self.cache.free());
        assert_eq!(self.cache.audit(), Ok(()), "after {input}");
        out
    }
}

/// Replays a file; how many operations it has.
fn replay(path: &Path) -> usize {
    let mut worlds: BTreeMap<String, World> = BTreeMap::new();
    let mut count = 0;
    for (at, record) in records(path) {
        let (case, input) = (record["case"].as_str().expect("a case has a name"), &record["in"]);
        if input["op"] == "init" {
            worlds.insert(case.to_owned(), World::new(input));
        }
        let world = worlds.get_mut(case).unwrap_or_else(|| panic!("{at}: case {case} has no beginning"));
        assert_equal(&at, &world.run(input), &record["out"]);
        count += 1;
    }
    count
}

#[test]
fn every_table_and_every_count_is_that_of_the_real_manager() {
    let Some(files) = recorded_in("vllm", "vllm_") else { return };
    let count: usize = files.iter().map(|path| replay(path)).sum();
    println!("{count} operations in {} files", files.len());
    assert!(count > 7000, "{count} operations");
}

#[test]
fn short_cases_worked_by_hand() {
    let files = own("vllm");
    assert!(files.len() >= 3);
    assert!(files.iter().map(|path| replay(path)).sum::<usize>() > 20);
}
