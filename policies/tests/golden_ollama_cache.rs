//! Ollama 0.6.6's cache against records of the real one: every cell, every count, every word.
//!
//! A record is an operation and what the cache answered after it. The records of the real server
//! are not in this repository: `KVLAB_GOLDEN` names the folder that has `ollama` in it. Short ones of
//! our own, in the same form, are in `cases/ollama`.

mod golden;

use std::collections::BTreeMap;
use std::path::Path;

use flate2::Crc;
use golden::{assert_equal, own, recorded, records};
use policies::ollama::{
    Cache, END, GRAPH_NODES, Kind, PAD, PAD_FLASH, Setup, Sizing, Span, Token, Trim, Trouble, Wrapper, cells,
};
use policies::{ClassId, Effect, Plan, Shadow};
use serde_json::{Map, Value, json};

/// The server's largest number, which stands for "no cell yet" in a range.
const NO_CELL: u64 = i64::MAX as u64;

/// A wrapper, the memory that its plans are executed on, and which token was written last.
struct World {
    wrapper: Wrapper,
    shadow: Shadow,
    /// Sequence of every token written so far, and its life in each cache; a token is its index.
    written: Vec<(u32, Vec<u32>)>,
    /// How often the sequences have been forgotten, by cache.
    lives: Vec<BTreeMap<u32, u32>>,
    copied: bool,
    mask_pad: u64,
    with_cells: bool,
}

fn number(from: &Value, name: &str) -> Option<i64> {
    from.get(name).and_then(Value::as_i64)
}

fn needed(from: &Value, name: &str) -> i64 {
    number(from, name).unwrap_or_else(|| panic!("{name} is missing in {from}"))
}

impl World {
    fn new(init: &Value) -> World {
        let (pad, mask_pad) = match init.get("flash").and_then(Value::as_bool) {
            Some(true) => (PAD_FLASH, 64),
            Some(false) => (PAD, 0),
            None => {
                (number(init, "padding").unwrap_or(0) as u32, number(init, "mask_batch_padding").unwrap_or(0))
            }
        };
        let kinds: &[&str] = match init.get("kind").and_then(Value::as_str).unwrap_or("wrapper") {
            "wrapper" => &["swa", "causal"],
            "swa" => &["swa"],
            "causal" => &["causal"],
            other => panic!("unknown kind {other}"),
        };
        let limit = |name| needed(init, name) as u32;
        let setup = |(class, &kind): (u8, &&str)| {
            let layers = number(init, &format!("{kind}_layers")).unwrap_or(1) as u32;
            let kind = match kind {
                "swa" => Kind::Swa { window: limit("window") },
                _ => Kind::Causal,
            };
            let (slots, capacity, batch) = (limit("max_seqs"), limit("capacity"), limit("max_batch"));
            Setup {
                class: ClassId(class),
                kind,
                cells: cells(kind, slots, capacity, batch, pad, Sizing::SharedBatch),
                pad,
                layers,
                graph_nodes: number(init, "graph_nodes").map_or(GRAPH_NODES, |nodes| nodes as u32),
                shift: init.get("no_shift") != Some(&json!(true)),
                trim: Trim::Batch,
            }
        };
        World {
            wrapper: Wrapper::new((0..).zip(kinds).map(setup)),
            shadow: Shadow::new(),
            written: Vec::new(),
            lives: vec![BTreeMap::new(); kinds.len()],
            copied: false,
            mask_pad: mask_pad as u64,
            with_cells: init.get("cells") != Some(&json!("none")),
        }
    }

    /// Does one operation, and says what there is afterwards in the form of the records.
    fn run(&mut self, input: &Value) -> Map<String, Value> {
        let mut plan = Plan::new();
        let mut result = Value::Null;
        let mut batch: Vec<Token> = Vec::new();
        let seq = || needed(input, "seq") as u32;
        let done = match input["op"].as_str().expect("op is a word") {
            "init" => Ok(()),
            "forward" => {
                batch = tokens(input);
                if input.get("reserve") == Some(&json!(true)) {
                    self.wrapper.reserve();
                    Ok(())
                } else {
                    self.wrapper.forward(&batch, &mut plan)
                }
            }
            "remove" => {
                let end = number(input, "end").map_or(END, |end| end as i32);
                self.wrapper.remove(seq(), needed(input, "begin") as i32, end, &mut plan)
            }
            "copy_prefix" => {
                let place = |name| needed(input, name) as u32;
                self.wrapper.copy_prefix(place("src"), place("dst"), needed(input, "len") as i32);
                self.copied = true;
                Ok(())
            }
            "can_resume" => {
                result = json!(self.wrapper.can_resume(seq(), needed(input, "pos") as i32));
                Ok(())
            }
            other => panic!("unknown operation {other}"),
        };
        assert_eq!(self.wrapper.audit(), Ok(()), "after {input}");
        self.execute(&plan, &batch);
        let mask = (done.is_ok() && !batch.is_empty()).then_some(&batch[..]);
        let caches: Vec<Value> =
            self.wrapper.caches().iter().map(|cache| self.describe(cache, mask)).collect();
        let mut out = Map::new();
        let mut note = |name: &str, value: Value| out.insert(name.to_owned(), value);
        note("op", input["op"].clone());
        note("ok", json!(done.is_ok()));
        if let Err(trouble) = done {
            note("err", json!(trouble.to_string()));
        }
        if !result.is_null() {
            note("result", result);
        }
        note("defrags", json!(plan.defrag_passes()));
        note("moves", json!(self.moves(&plan)));
        note("computes", json!(plan.graphs()));
        note("caches", json!(caches));
        out
    }

    /// Copies; where the caches differ in layers the records count every layer.
    fn moves(&self, plan: &Plan) -> u32 {
        let layers: Vec<u32> = self.wrapper.caches().iter().map(|cache| cache.setup().layers).collect();
        let alike = layers.iter().all(|&count| count == layers[0]);
        let copies = plan.effects().iter().filter_map(|effect| match effect {
            Effect::Copy { class, .. } => Some(if alike { 1 } else { layers[class.index()] }),
            _ => None,
        });
        copies.sum()
    }

    fn execute(&mut self, plan: &Plan, batch: &[Token]) {
        let first = self.written.len();
        let is_write = |effect: &Effect| matches!(effect, Effect::Write { .. });
        if plan.effects().iter().any(is_write) {
            for &Token { seq, .. } in batch {
                let lives = self.lives.iter().map(|lives| lives.get(&seq).copied().unwrap_or(0));
                self.written.push((seq, lives.collect()));
            }
        }
        self.shadow.run(plan, |seq, pos| {
            let index = batch.iter().position(|token| token.seq == seq.0 && token.pos == pos as i32);
            (first + index.expect("what is written is in the batch")) as u64
        });
        for (cache, lives) in self.wrapper.caches().iter().zip(&mut self.lives) {
            for seq in (0..cache.sequences()).filter(|&seq| cache.range(seq).is_none()) {
                *lives.entry(seq).or_insert(0) += 1;
            }
        }
    }

    /// The cells that the cache itself says are foreign, against what lies in them. (Of a shared
    /// cell nobody knows from outside who wrote it.)
    fn check_foreign(&self, cache: &Cache) {
        let class = cache.setup().class;
        let is_foreign = |&cell: &u32| {
            let payload = self.shadow.payload(class, cell).expect("a used cell was written");
            let (seq, lives) = &self.written[payload.token as usize];
            let life = self.lives[class.index()].get(seq).copied().unwrap_or(0);
            cache.owners(cell) != [*seq] || lives[class.index()] != life
        };
        let used = (0..cache.setup().cells).filter(|&cell| !cache.owners(cell).is_empty());
        let foreign: Vec<u32> = used.filter(is_foreign).collect();
        assert_eq!(cache.foreign_cells().collect::<Vec<_>>(), foreign);
        for seq in 0..cache.sequences() {
            let of_seq = foreign.iter().filter(|&&cell| cache.owners(cell) == [seq]).count();
            assert_eq!(cache.foreign(seq) as usize, of_seq, "sequence {seq}");
        }
    }

    fn describe(&self, cache: &Cache, batch: Option<&[Token]>) -> Value {
        let size = cache.setup().cells;
        let used = || (0..size).filter(|&cell| !cache.owners(cell).is_empty());
        let payload = |cell| self.shadow.payload(cache.setup().class, cell).expect("a used cell was written");
        let crosses = |&cell: &u32| {
            let (writer, _) = &self.written[payload(cell).token as usize];
            !self.copied && !cache.owners(cell).contains(writer)
        };
        if !self.copied {
            self.check_foreign(cache);
        }
        let is_elsewhere = |&cell: &u32| payload(cell).position as i32 != cache.pos(cell);
        let range = |span: Span| {
            if span == Span::EMPTY { json!([NO_CELL, 0]) } else { json!([span.min, span.max]) }
        };
        let known =
            (0..cache.sequences()).filter_map(|seq| Some((seq.to_string(), range(cache.range(seq)?))));
        let mut out = json!({
            "kind": if cache.setup().kind == Kind::Causal { "causal" } else { "swa" },
            "size": size,
            "used": used().count(),
            "free": cache.free(),
            "largest_free_run": cache.shape().largest_free_run,
            "cur_loc": cache.cur_loc(),
            "cur_range": range(cache.cur_range()),
            "ranges": known.collect::<Map<_, _>>(),
            "meta_data_mismatch": used().filter(|cell| is_elsewhere(cell) || crosses(cell)).count(),
            "cross_sequence": used().filter(crosses).count(),
        });
        if self.with_cells && used().next().is_some() {
            let cell = |cell| {
                let payload = payload(cell);
                let (pos, owners) = (cache.pos(cell), cache.owners(cell));
                json!([cell, pos, owners, payload.token, payload.position as i32, payload.token])
            };
            out["cells"] = used().map(cell).collect();
        }
        if let Some(batch) = batch {
            let Span { min, max } = cache.cur_range();
            let columns = u64::from(max - min) + 1;
            let rows = (batch.len() as u64).next_multiple_of(self.mask_pad.max(1));
            let row = |&token: &Token| (min..=max).map(move |cell| u8::from(cache.sees(token, cell)));
            let visible: Vec<u64> = batch.iter().map(|token| row(token).map(u64::from).sum()).collect();
            // One byte for each entry, 1 where the token sees the cell, row by row.
            let mut bytes: Vec<u8> = batch.iter().flat_map(row).collect();
            bytes.resize((columns * rows) as usize, 0);
            let mut crc = Crc::new();
            crc.update(&bytes);
            out["mask_shape"] = json!([columns, rows]);
            out["mask_visible"] = json!(visible);
            out["mask_crc"] = json!(format!("{:08x}", crc.sum()));
        }
        out
    }
}

/// The batch of a forward pass, given token by token or as runs of (sequence, position, count).
fn tokens(input: &Value) -> Vec<Token> {
    let numbers = |value: &Value| -> Vec<i64> {
        value.as_array().expect("a list").iter().map(|number| number.as_i64().expect("a number")).collect()
    };
    if let Some(runs) = input.get("runs") {
        let runs = runs.as_array().expect("a list").iter().map(numbers);
        return runs
            .flat_map(|run| {
                (run[1]..run[1] + run[2]).map(move |pos| Token { seq: run[0] as u32, pos: pos as i32 })
            })
            .collect();
    }
    let pairs = numbers(&input["seqs"]).into_iter().zip(numbers(&input["positions"]));
    pairs.map(|(seq, pos)| Token { seq: seq as u32, pos: pos as i32 }).collect()
}

/// Replays a file; returns how many records it has.
fn replay(path: &Path) -> usize {
    let mut world: Option<World> = None;
    let mut count = 0;
    for (at, mut record) in records(path) {
        if record["in"]["op"] == "init" {
            world = Some(World::new(&record["in"]));
        }
        let ours = Value::Object(world.as_mut().expect("a case begins with init").run(&record["in"]));
        // The number of the record in its case is the recorder's.
        record["out"].as_object_mut().expect("out is an object").remove("i");
        assert_equal(&format!("{at}, case {}, {}", record["case"], record["in"]), &ours, &record["out"]);
        count += 1;
    }
    count
}

#[test]
fn golden_records_of_the_real_cache_are_reproduced() {
    for path in recorded("kv_").into_iter().flatten() {
        assert!(replay(&path) > 0, "{} is empty", path.display());
    }
}

#[test]
fn golden_cases_of_our_own_are_reproduced() {
    let count: usize = own("ollama").iter().map(|path| replay(path)).sum();
    assert!(count >= 40, "{count} records");
}

#[test]
fn golden_words_of_the_refusals() {
    let full = policies::Full { class: ClassId(0), needed: 512, free: 511, largest_free_run: 511 };
    let words = [
        (Trouble::Full { length: 2560, full }, "could not find a kv cache slot (length: 2560)"),
        (Trouble::Shared, "shifting cells shared by multiple sequences not supported"),
        (Trouble::NoShift, "model does not support operation"),
    ];
    for (trouble, text) in words {
        assert_eq!(trouble.to_string(), text);
    }
}

#[test]
fn golden_lengths_of_the_public_reports() {
    let swa = |slots, num_batch, pad| {
        cells(Kind::Swa { window: 1024 }, slots, 4096, num_batch, pad, Sizing::SharedBatch)
    };
    assert_eq!([swa(2, 512, 32), swa(4, 512, 32), swa(6, 512, 256)], [2560, 4608, 6656]);
    assert_eq!([swa(2, 511, 32), swa(1, 256, 32), swa(1, 300, 256)], [2560, 1280, 1536]);
    let swa = |capacity| cells(Kind::Swa { window: 1024 }, 2, capacity, 512, 32, Sizing::SharedBatch);
    assert_eq!([swa(1023), swa(1024)], [2048, 2560], "a context as long as the window has a window");
    let own = cells(Kind::Swa { window: 1024 }, 2, 4096, 512, 32, Sizing::OwnBatch);
    assert_eq!(own, 2 * (1024 + 512));
    assert_eq!(cells(Kind::Causal, 2, 4100, 512, 256, Sizing::OwnBatch), 8448);
}
