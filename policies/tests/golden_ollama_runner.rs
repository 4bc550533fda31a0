//! Ollama 0.6.6's runner against records of the real one: every batch, slot, cache and log line.
//!
//! A case is a list of operations and what the server answered. The records of the real server are
//! not in this repository: `KVLAB_GOLDEN` names the folder that has `ollama` in it. Short cases of our
//! own, in the same form, are in `cases/runner`; `UPDATE_EXPECT=1` writes their answers anew.

mod golden;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use golden::{assert_equal, own, recorded, records};
use policies::ollama::{Kind, PAD, PAD_FLASH, Sizing, cells};
use policies::scheduler::{
    Event, Job, Keep, Limits, LogLine, Runner, RunnerKnobs, Scheduler, Step, Unbreakable,
};
use policies::{ClassId, Content, Effect, Geometry, LayerClass, Policy, Reach, SeqId, Shadow, make_policy};
use serde_json::{Map, Value, json};

const BOS: u64 = 2;
const NEWLINE: u64 = 108;
const IMAGE_BEGINS: u64 = 255_999;
const IMAGE_ENDS: u64 = 256_000;
const PLACEHOLDER: u64 = 0;
/// Steps of a `run` that says no number.
const STEPS_MAX: i64 = 100_000;

fn number(from: &Value, name: &str) -> Option<i64> {
    from.get(name).and_then(Value::as_i64)
}

fn is_set(from: &Value, name: &str) -> bool {
    from.get(name) == Some(&json!(true))
}

fn text<'a>(from: &'a Value, name: &str) -> &'a str {
    from[name].as_str().unwrap_or_else(|| panic!("{name} is missing in {from}"))
}

/// What a request asked for.
struct Asked {
    name: String,
    gen_tokens: u32,
    prompt_tokens: u32,
}

/// The server, and the memory that its plans are executed on.
struct World {
    runner: Runner,
    num_ctx: u32,
    image_tokens: u64,
    shadow: Shadow,
    asked: Vec<Asked>,
    /// Per class, the first cell of the batch placed last.
    cur_loc: Vec<u32>,
    copied: bool,
    panicked: bool,
}

impl World {
    fn new(init: &Value) -> World {
        let setting = |name, default| number(init, name).map_or(default, |number| number as u32);
        let (num_ctx, slots, num_batch) =
            (setting("num_ctx", 4096), setting("parallel", 1), setting("num_batch", 512));
        let pad = if is_set(init, "flash") { PAD_FLASH } else { PAD };
        let window = setting("window", 1024);
        let classes = match init.get("kind").and_then(Value::as_str).unwrap_or("gemma3") {
            "gemma3" => vec![("local", Kind::Swa { window }), ("global", Kind::Causal)],
            "causal" => vec![("global", Kind::Causal)],
            other => panic!("unknown kind {other}"),
        };
        let classes = classes.into_iter().map(|(name, kind)| LayerClass {
            name: name.into(),
            layers: 1,
            reach: match kind {
                Kind::Swa { window } => Reach::Window(window),
                Kind::Causal => Reach::Full,
            },
            cells: cells(kind, slots, num_ctx, num_batch, pad, Sizing::SharedBatch),
        });
        let geometry = Geometry {
            classes: classes.collect(),
            context_max: num_ctx,
            batch_max: num_batch,
            sequences_max: slots,
        };
        let shift = if is_set(init, "no_shift") { "no" } else { "yes" };
        let policy = make_policy(&format!("ollama-0.6.6:pad={pad}:shift={shift}"), &geometry)
            .expect("the spec is good");
        let limits = Limits {
            num_ctx,
            num_parallel: slots,
            num_batch,
            queue_max: None,
            maintain_cells: 0,
            fast_forward: false,
        };
        let knobs = RunnerKnobs { multi_user: is_set(init, "multiuser"), ..RunnerKnobs::default() };
        World {
            cur_loc: vec![0; geometry.classes.len()],
            runner: Runner::new(policy, limits, knobs, true).with_log().without_restart(),
            num_ctx,
            image_tokens: setting("image_tokens", 256).into(),
            shadow: Shadow::new(),
            asked: Vec::new(),
            copied: false,
            panicked: false,
        }
    }

    fn request(&mut self, op: &Value) -> Value {
        let id = self.asked.len() as u64;
        let mut tokens = vec![BOS];
        let mut unbreakable = Vec::new();
        for run in op["runs"].as_array().expect("runs is a list") {
            let run: Vec<i64> = run.as_array().expect("a run").iter().filter_map(Value::as_i64).collect();
            if run[0] >= 0 {
                tokens.extend(run[0] as u64..(run[0] + run[1]) as u64);
                continue;
            }
            let at = tokens.len() as u32;
            tokens.extend([NEWLINE, IMAGE_BEGINS, 1 << 32 | run[1] as u64]);
            tokens.extend((1..self.image_tokens).map(|_| PLACEHOLDER));
            tokens.extend([IMAGE_ENDS, NEWLINE]);
            unbreakable.push(Unbreakable { at, tokens: tokens.len() as u32 - at });
        }
        let gen_tokens = number(op, "gen").unwrap_or(0) as u32;
        let prompt_tokens = tokens.len() as u32;
        let first = number(op, "first").map_or((id + 1) << 40, |first| first as u64);
        tokens.extend(first..first + u64::from(gen_tokens));
        let chain = tokens.iter().scan(0u64, |link, token| {
            *link = (link.rotate_left(5) ^ token).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            Some(*link)
        });
        let content = Content {
            chain: chain.collect(),
            chain_tokens: 1,
            chain_end: prompt_tokens + gen_tokens,
            own: id,
        };
        let keep = match number(op, "num_keep").unwrap_or(4) {
            keep if keep < 0 => Keep::Prompt,
            keep => Keep::Tokens(keep as u32),
        };
        let name = text(op, "id").to_owned();
        self.asked.push(Asked { name, gen_tokens, prompt_tokens });
        // The token that ends the answer is sampled like the others.
        self.runner.submit(Job {
            content,
            unbreakable,
            num_keep: Some(keep),
            num_predict: number(op, "num_predict").filter(|&most| most > 0).map(|most| most as u32),
            ..Job::new(id, prompt_tokens, gen_tokens + 1)
        });
        let mut out = json!({ "op": "request", "id": op["id"] });
        let mut slot = -1;
        for event in self.events() {
            match event {
                Event::Truncated { id, tokens, .. } => self.asked[id as usize].prompt_tokens -= tokens,
                Event::Admitted { id, .. } => {
                    let sequences = self.runner.sequences();
                    let (seq, _) =
                        sequences.iter().find(|(_, request)| *request == id).expect("it has a slot");
                    slot = i64::from(seq.0);
                }
                Event::Rejected { why, .. } => out["err"] = json!(why.to_string()),
                _ => {}
            }
        }
        if out.get("err").is_none() {
            out["prompt_tokens"] = json!(self.asked[id as usize].prompt_tokens);
            out["slot"] = json!(slot);
        }
        self.add_log(&mut out);
        out
    }

    fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.runner.take_events(&mut events);
        events
    }

    fn add_log(&mut self, out: &mut Value) {
        let mut log = Vec::new();
        self.runner.take_log(&mut log);
        self.copied |= log.iter().any(|line| matches!(line, LogLine::ForkingSlot { .. }));
        let lines: Vec<String> = log.iter().map(LogLine::to_string).collect();
        let (panics, lines): (Vec<_>, Vec<_>) =
            lines.into_iter().partition(|line| line.starts_with("panic: "));
        if let [panic] = &panics[..] {
            out["panic"] = json!(panic.trim_start_matches("panic: "));
        }
        if !lines.is_empty() {
            out["log"] = json!(lines);
        }
    }

    /// One step as a record; none where there is nothing to do.
    fn step(&mut self, quiet: bool) -> Option<Value> {
        let step = self.runner.next()?.clone();
        self.panicked = step.reload;
        let (batch, tokens) = self.execute(&step);
        if !step.reload {
            self.runner.done();
        }
        let batch = if batch.is_empty() { Value::Null } else { Value::Array(batch) };
        // Every graph of a compaction or a shift is computed apart from the batch's own.
        let computes = step.plan.graphs() + u32::from(!batch.is_null());
        let mut out = json!({ "op": "step", "batch": batch, "tokens": tokens, "computes": computes });
        // The recorder looked at its requests one after another, in the order it had sent them.
        let finished = self.events().into_iter().filter_map(|event| match event {
            Event::Finished { id, output_tokens, .. } => Some((id, output_tokens)),
            _ => None,
        });
        let finished: BTreeMap<u64, u32> = finished.collect();
        let ended = |(id, produced): (u64, u32)| {
            let asked = &self.asked[id as usize];
            let stops = produced > asked.gen_tokens;
            let (out, reason) = if stops { (produced - 1, "stop") } else { (produced, "length") };
            json!({ "err": "", "id": asked.name, "out": out, "reason": reason })
        };
        let done: Vec<Value> = finished.into_iter().map(ended).collect();
        if !done.is_empty() {
            out["done"] = json!(done);
        }
        self.add_log(&mut out);
        if !quiet || self.panicked {
            out["caches"] = self.caches();
            let slot = |(id, slot): (usize, policies::scheduler::SlotView)| json!({ "id": id, "in_use": slot.in_use, "inputs": slot.tokens });
            out["slots"] = self.runner.slots().enumerate().map(slot).collect();
        }
        Some(out)
    }

    /// Executes the plan of a step. The batch comes back as runs, with its tokens.
    fn execute(&mut self, step: &Step) -> (Vec<Value>, u32) {
        // Who wrote a cell is all that is asked of it later.
        self.shadow.run(&step.plan, |seq, _| seq.0.into());
        if step.reload {
            // Caches before the one that refused may have been given the batch; none is here.
            self.cur_loc[0] = 0;
            return (Vec::new(), 0);
        }
        let last = ClassId(self.cur_loc.len() as u8 - 1);
        let mut runs: Vec<(u32, u32, u32)> = Vec::new();
        let mut placed: BTreeSet<ClassId> = BTreeSet::new();
        for effect in step.plan.effects() {
            let Effect::Write { class, seq, first, run } = *effect else { continue };
            if placed.insert(class) {
                self.cur_loc[class.index()] = run.start;
            }
            match runs.last_mut() {
                _ if class != last => {}
                Some((to, pos, len)) if *to == seq.0 && *pos + *len == first => *len += run.len,
                _ => runs.push((seq.0, first, run.len)),
            }
        }
        let tokens = runs.iter().map(|run| run.2).sum();
        assert_eq!(tokens, step.tokens(), "the batch is what is written");
        (runs.iter().map(|(seq, pos, n)| json!({ "n": n, "pos": pos, "seq": seq })).collect(), tokens)
    }

    fn caches(&self) -> Value {
        let policy = self.runner.policy();
        policy.geometry().class_ids().map(|class| self.cache(policy, class)).collect()
    }

    fn cache(&self, policy: &dyn Policy, class: ClassId) -> Value {
        let mut runs = Vec::new();
        let mut per_seq = Map::new();
        // Owners, and the positions of the cells that are still read; the books of those left
        // behind by a failed removal have moved on without their data.
        let mut owners: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let mut positions: BTreeMap<u32, u32> = BTreeMap::new();
        for seq in 0..policy.geometry().sequences_max {
            policy.holding(class, SeqId(seq), &mut runs);
            let held: u32 = runs.iter().map(|run| run.len).sum();
            if held > 0 {
                per_seq.insert(seq.to_string(), json!(held));
            }
            for cell in runs.iter().flat_map(|run| run.cells()) {
                owners.entry(cell).or_default().push(seq);
            }
            let tokens = policy.layout(class, SeqId(seq), &mut runs);
            positions.extend(runs.iter().flat_map(|run| run.cells()).zip(tokens));
        }
        let payload = |cell| self.shadow.payload(class, cell).expect("a used cell was written");
        let crosses = |cell: &u32| {
            !self.copied && !owners[cell].iter().any(|&seq| u64::from(seq) == payload(*cell).token)
        };
        let is_elsewhere = |cell: &u32| positions.get(cell) != Some(&payload(*cell).position);
        let usage = policy.usage(class);
        json!({
            "cross": owners.keys().filter(|cell| crosses(cell)).count(),
            "cur_loc": self.cur_loc[class.index()],
            "largest_free_run": policy.shape(class).largest_free_run,
            "mismatch": owners.keys().filter(|cell| is_elsewhere(cell) || crosses(cell)).count(),
            "per_seq": per_seq,
            "size": usage.cells,
            "used": usage.held,
        })
    }
}

/// Does the operations of a case; what the server would have answered.
fn replay(ops: &[Value]) -> Vec<Value> {
    let mut out = Vec::new();
    let mut world: Option<World> = None;
    for op in ops {
        if op["op"] == "init" {
            let new = World::new(op);
            out.push(json!({ "op": "init", "num_ctx": new.num_ctx, "caches": new.caches() }));
            world = Some(new);
            continue;
        }
        let world = world.as_mut().expect("a case begins with init");
        match text(op, "op") {
            "request" => out.push(world.request(op)),
            "step" => out.extend(world.step(false)),
            "run" => {
                let quiet = is_set(op, "quiet");
                for _ in 0..number(op, "steps").unwrap_or(STEPS_MAX) {
                    let Some(record) = world.step(quiet) else { break };
                    let tells = ["log", "done", "panic"].iter().any(|&name| record.get(name).is_some());
                    if !quiet || tells {
                        out.push(record);
                    }
                }
            }
            other => panic!("unknown operation {other}"),
        }
    }
    out
}

/// Compares all cases of a file; returns how many records they have.
fn check(path: &Path) -> usize {
    let mut count = 0;
    for (at, case) in records(path) {
        let at = format!("{at}, case {}", case["case"]);
        let ours = replay(case["ops"].as_array().expect("ops is a list"));
        let theirs = case["out"].as_array().expect("out is a list");
        for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            assert_equal(&format!("{at}, record {index}"), ours, theirs);
        }
        assert_eq!(ours.len(), theirs.len(), "{at}: records");
        count += ours.len();
    }
    count
}

#[test]
fn golden_records_of_the_real_runner_are_reproduced() {
    for path in recorded("runner").into_iter().flatten() {
        assert!(check(&path) > 0, "{} is empty", path.display());
    }
}

#[test]
fn golden_cases_of_our_own_are_reproduced() {
    let files = own("runner");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        for path in &files {
            let rewrite = |(_, mut case): (String, Value)| {
                case["out"] = Value::Array(replay(case["ops"].as_array().expect("ops is a list")));
                format!("{case}\n")
            };
            let text: String = records(path).map(rewrite).collect();
            fs::write(path, text).expect("the case can be written");
        }
    }
    let count: usize = files.iter().map(|path| check(path)).sum();
    assert!(count >= 100, "{count} records");
}
