//! `kvlab advise`: a trace or a log, a model, GPUs and an objective in; settings for a server out.
//!
//! A closed-form filter drops what does not fit, successive halving simulates the rest on longer and longer
//! parts of the trace, and the best are compared with what runs now.

mod lab;
mod objective;
mod server;
mod words;

use std::fs::File;
use std::io::{Write, stdin, stdout};
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use logs::{Assume, Facts, Population, Scan};
use rayon::ThreadPoolBuilder;
use serde::Serialize;
use tempfile::TempDir;

use crate::compare::command_line;
use crate::experiment::Shortage;
use crate::settings::{KEYS, Settings};
use crate::trouble::{Trouble, usage};
use lab::{Fallen, Judged, Lab, Rung, TOP, rank};
use objective::{Numbers, Objective, Score};
use server::{Choice, Lines, Server, Try};

/// Names of the servers that advice can be for.
pub const SERVERS: [&str; 5] = {
    let all = Server::ALL;
    [all[0].0, all[1].0, all[2].0, all[3].0, all[4].0]
};

/// Objective where none is given: the defaults of goodput.
const SLO: &str = "ttft_p99=5s,tpot_p99=200ms";

/// A setting and what it does.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// Values of the knobs.
    pub settings: Vec<(&'static str, String)>,
    /// Knobs that are not as now.
    pub changes: Vec<&'static str>,
    /// Whether the whole objective is kept.
    pub qualifies: bool,
    /// The parts of it that are not.
    pub violations: Vec<String>,
    /// Per limit of the objective the largest latency of any seed, ms.
    pub worst_ms: Vec<f64>,
    /// Simulated numbers.
    pub numbers: Numbers,
    /// How the server is told.
    pub lines: Lines,
}

/// What runs now.
#[derive(Clone, Debug, Serialize)]
pub struct Now {
    /// Values of the knobs.
    pub settings: Vec<(&'static str, String)>,
    /// What it does; none where it does not fit.
    pub simulated: Option<Setting>,
    /// What is short, even if it runs all the same with the excess in main memory.
    pub shortage: Option<Shortage>,
}

/// How the candidates were searched.
#[derive(Clone, Debug, Serialize)]
pub struct Search {
    /// Points of the grid.
    pub candidates: usize,
    /// What the memory filter dropped.
    pub fallen: Vec<Fallen>,
    /// Points that do the same as another.
    pub equal: usize,
    /// Steps of the halving.
    pub rungs: Vec<Rung>,
    /// Simulations of the search and of what runs now.
    pub simulations: usize,
    /// Simulations in all.
    pub simulations_total: usize,
}

/// How much an exhaustive search would have gained.
#[derive(Clone, Debug, Serialize)]
pub struct Regret {
    /// By how much the advice is worse than the best, as a share of the best; none where it is infinite.
    pub share: Option<f64>,
    /// In what.
    pub of: &'static str,
    /// The best of all candidates.
    pub best: Vec<(&'static str, String)>,
    /// Simulations of the exhaustive search.
    pub simulations: usize,
}

/// What binds where nothing keeps the objective.
#[derive(Clone, Debug, Serialize)]
pub struct Binding {
    /// The part of the objective, or `memory`.
    pub constraint: String,
    /// Candidates of the last rung that miss nothing else.
    pub alone: usize,
    /// Candidates of the last rung that miss it.
    pub missed: usize,
    /// Candidates of the last rung.
    pub of: usize,
}

/// The advice.
#[derive(Clone, Debug, Serialize)]
pub struct Advice {
    pub schema: u32,
    pub kvlab_version: &'static str,
    pub command: String,
    pub server: &'static str,
    pub model: String,
    pub gpu: String,
    pub trace: String,
    pub requests: u64,
    pub seeds: usize,
    pub objective: String,
    pub search: Search,
    pub now: Now,
    /// The best that keep the objective; the first is advised.
    pub ranked: Vec<Setting>,
    /// The nearest misses where none does.
    pub misses: Vec<Setting>,
    pub binding: Option<Binding>,
    pub because: Vec<String>,
    /// Multiple of the load up to which the advised setting keeps the objective.
    pub safe_load: Option<f64>,
    /// Whether more than that multiple was not tried.
    pub safe_load_is_limit: bool,
    pub regret: Option<Regret>,
    pub notes: Vec<String>,
}

/// `kvlab advise`.
pub fn advise(matches: &ArgMatches) -> Result<(), Trouble> {
    if let Some(&threads) = matches.get_one::<u64>("threads") {
        let threads = usize::try_from(threads).ok().filter(|threads| (1..=4096).contains(threads));
        let threads = threads.ok_or_else(|| usage("--threads: expected a whole number from 1 to 4096"))?;
        ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let objective = Objective::parse(matches.get_one::<String>("slo").map_or(SLO, String::as_str))?;
    let (settings, file) = Settings::of_command(matches, "kvlab advise ")?;
    let mut settings = settings.above_rows();
    let quiet = matches.get_flag("quiet");
    let logs: Vec<&String> = matches.get_many("server-log").into_iter().flatten().collect();
    let mut notes = Vec::new();
    let mut folder = None;
    let mut from_log = None;
    if !logs.is_empty() {
        let named = ["trace", "generate"].iter().any(|key| settings.is_given(key));
        if named {
            let file = file.map_or("a workload".to_owned(), |file| file.display().to_string());
            return Err(usage(format!(
                "--server-log has the requests already: expected no trace beside it, found {file}"
            )));
        }
        let (facts, kept, note) = read_logs(&logs, &mut settings)?;
        notes.push(note);
        folder = Some(kept);
        from_log = Some(facts);
    }
    let server = which_server(matches, from_log.as_ref())?;
    if let Some(facts) = &from_log {
        take_facts(&mut settings, facts)?;
    }
    let mut pool = if server == Server::Vllm { "on" } else { "unified" }.to_owned();
    for text in matches.get_many::<String>("now").into_iter().flatten() {
        take_now(server, &mut settings, &mut pool, text)?;
    }
    let machine = server.complete(&mut settings)?;
    let lists = ["rows", "columns", "policies", "scheduler"];
    for key in KEYS.iter().filter(|key| key.grid && !lists.contains(&key.name)) {
        if let [_, second, ..] = settings.all(key.name).as_slice() {
            return Err(second.wrong(format!("advice is for one {}; values to try go to --try", key.name)));
        }
    }
    for (name, prefix) in [("slo_ttft_ms", "ttft"), ("slo_tpot_ms", "tpot")] {
        if let Some(most) = objective.most_ms(prefix).filter(|_| !settings.is_given(name)) {
            settings.set(name, "--slo ", &most.to_string())?;
        }
    }
    let tries = matches.get_many::<String>("try").into_iter().flatten();
    let tries = tries.map(|text| Try::parse("try", text)).collect::<Result<Vec<_>, _>>()?;
    let axes = server.axes(&settings, &machine, &tries, &pool)?;
    let lab = Lab::new(server, machine, &axes, settings, objective, quiet);
    let advice = Adviser { lab, notes, model: String::new() }.run(matches.get_flag("exhaustive"))?;
    drop(folder);
    let text = match matches.get_flag("json") {
        true => serde_json::to_string_pretty(&advice)? + "\n",
        false => words::text(&advice)?,
    };
    stdout().write_all(text.as_bytes())?;
    match advice.ranked.is_empty() {
        false => Ok(()),
        true => Err(Trouble::Unmet("no setting keeps the objective".into())),
    }
}

/// The requests of logs become the trace; what the logs tell of the server, and a note.
fn read_logs(names: &[&String], settings: &mut Settings) -> Result<(Facts, TempDir, String), Trouble> {
    let mut scan = Scan::with_requests();
    for name in names {
        let trouble = |error| usage(format!("{name}: {error}"));
        if *name == "-" {
            scan.read(stdin().lock()).map_err(|error| usage(format!("standard input: {error}")))?;
        } else {
            scan.read(File::open(name).map_err(trouble)?).map_err(trouble)?;
        }
    }
    let report = scan.finish_with(&Assume::default());
    let Some(recovered) = report.requests.filter(|recovered| !recovered.requests.is_empty()) else {
        return Err(usage(format!(
            "{}: the log has no request; expected [GIN] lines, `loading cache slot`, or the timings of llama-server",
            names[0]
        )));
    };
    let folder = tempfile::tempdir()?;
    let stem = Path::new(names[0]).file_name().map_or("log".into(), |name| name.to_string_lossy());
    let path: PathBuf = folder.path().join(format!("{stem}.csv"));
    let count = traces::write_csv_file(recovered.requests.into_iter().map(Ok), &path).map_err(usage)?;
    settings.set("trace", "--server-log ", &path.display().to_string())?;
    let note = format!(
        "The trace is {count} requests recovered from the log. Prompts known: {}; the others are taken to be {} tokens. \
         Answers known: {}; the others are guessed at {:.1} tokens/s or {} tokens. Nobody in it waits for an answer.",
        recovered.prompts_known,
        recovered.prompt_assumed,
        recovered.outputs_known,
        recovered.tokens_per_s,
        recovered.output_assumed
    );
    Ok((report.facts, folder, note))
}

/// The server that was asked for, or the one whose log was given.
fn which_server(matches: &ArgMatches, facts: Option<&Facts>) -> Result<Server, Trouble> {
    if let Some(server) = matches.get_one::<String>("for").and_then(|name| Server::find(name)) {
        return Ok(server);
    }
    let names = Server::ALL.map(|(name, _)| name).join(", ");
    let Some(facts) = facts else {
        return Err(usage(format!("which server? expected --for with one of {names}, or --server-log LOG")));
    };
    match facts.population() {
        Some(Population::Failing) => Ok(Server::Ollama066),
        Some(Population::Trimming) => Ok(Server::Ollama0124),
        Some(Population::LlamaServer) => Ok(Server::Ollama030),
        None if facts.has_llama_server => Ok(Server::LlamaCpp),
        None if !facts.vllm.is_empty() => Ok(Server::Vllm),
        None | Some(Population::Before) => Err(usage(format!(
            "the log does not say a version that is modelled: expected --for with one of {names}"
        ))),
    }
}

/// What the log says of the server is what runs now, unless something else was said.
fn take_facts(settings: &mut Settings, facts: &Facts) -> Result<(), Trouble> {
    let flash = facts.flash.map(|flash| flash.to_string());
    let known = [
        ("num_ctx", facts.slot_context().map(|tokens| tokens.to_string())),
        ("num_parallel", facts.parallel.map(|slots| slots.to_string())),
        ("num_batch", facts.batch.map(|tokens| tokens.to_string())),
        ("flash_attention", flash),
        (
            "kv_cache_type",
            facts.cache_type.clone().filter(|kv| ["f16", "q8_0", "q4_0"].contains(&kv.as_str())),
        ),
        ("model", facts.model_name().map(|name| format!("{name}-q4_0"))),
    ];
    for (key, value) in known {
        if let Some(value) = value.filter(|_| !settings.is_given(key)) {
            settings.set(key, &format!("the log: {key} = "), &value)?;
        }
    }
    Ok(())
}

/// `--now num_ctx=4096,num_parallel=2`.
fn take_now(server: Server, settings: &mut Settings, pool: &mut String, text: &str) -> Result<(), Trouble> {
    let mut parts: Vec<String> = Vec::new();
    for piece in text.split(',') {
        match parts.last_mut() {
            // The commas of a list of devices are its own.
            Some(last) if !piece.contains('=') => *last += &format!(",{piece}"),
            _ => parts.push(piece.to_owned()),
        }
    }
    let keys = [
        "num_ctx",
        "num_parallel",
        "num_batch",
        "kv_cache_type",
        "flash_attention",
        "visible_devices",
        "sched_spread",
        "gpu_memory_utilization",
    ];
    let split = (server == Server::LlamaCpp).then_some("layer_split");
    let keys: Vec<&str> = keys.into_iter().chain(split).collect();
    for part in parts {
        let now = Try::parse("now", &part)?;
        let value = now.values.join(",");
        let extra = match server {
            Server::LlamaCpp => Some(("pool", ["split", "unified"])),
            Server::Vllm => Some(("prefix_caching", ["on", "off"])),
            _ => None,
        };
        match (now.name.as_str(), extra) {
            (name, Some((knob, words))) if name == knob => {
                if !words.contains(&value.as_str()) {
                    return Err(now.wrong(&format!(
                        "{value:?} is no value of {knob}; expected {}",
                        words.join(" or ")
                    )));
                }
                *pool = value;
            }
            (name, _) if keys.contains(&name) => settings.set(name, &format!("--now {name}="), &value)?,
            (name, _) => {
                return Err(
                    now.wrong(&format!("{name:?} is no knob of what runs now; expected {}", keys.join(", ")))
                );
            }
        }
    }
    Ok(())
}

/// A search under way.
struct Adviser<'a> {
    lab: Lab<'a>,
    notes: Vec<String>,
    model: String,
}

impl<'a> Adviser<'a> {
    fn option(&self, judged: &Judged) -> Setting {
        let Judged { choice, score } = judged;
        Setting {
            settings: named(choice),
            changes: choice.changes().into_iter().map(|axis| self.lab.axes[axis].name).collect(),
            qualifies: score.qualifies(),
            violations: score.violations(&self.lab.objective),
            worst_ms: score.worst_ms.clone(),
            numbers: score.numbers.clone(),
            lines: self.lab.server.lines(choice, &self.model),
        }
    }

    fn run(mut self, exhaustive: bool) -> Result<Advice, Trouble> {
        let text = |key: &str| self.lab.base.one(key).map(|value| value.text).unwrap_or_default();
        let (gpu, trace) = (text("gpu"), [text("trace"), text("generate")].concat());
        self.model = text("model");
        let axes = self.lab.axes;
        let all: Vec<Choice> = Choice::all(axes).into_iter().filter(Choice::is_possible).collect();
        let candidates = all.len();
        let (fit, fallen, equal) = self.lab.filter(all)?;
        let now = Choice::now(axes);
        let short_now = match now.is_possible() {
            true => self.lab.shortage(&now)?,
            false => {
                return Err(usage(
                    "what runs now has more slots than tokens in a batch; expected num_parallel at most num_batch",
                ));
            }
        };
        let (mut judged, rungs) =
            if fit.is_empty() { (Vec::new(), Vec::new()) } else { self.lab.halve(fit.clone())? };
        // On a host even what does not fit runs, unless it does not load; on one GPU it does not start.
        let judged_now = match (&short_now, fit.is_empty(), self.lab.machine.gpus.is_empty()) {
            (Some(_), _, true) | (_, true, _) => None,
            _ => self.lab.judge(vec![now.clone()])?.pop(),
        };
        let simulations = self.lab.simulations();
        let (mut qualified, missed): (Vec<Judged>, Vec<Judged>) =
            judged.drain(..).partition(|judged| judged.score.qualifies());
        if !qualified.is_empty() {
            let advised = self.simplify(qualified.remove(0))?;
            qualified.retain(|other| other.choice.at != advised.choice.at);
            qualified.insert(0, advised);
        }
        let regret = match (exhaustive, qualified.first().or(missed.first())) {
            (true, Some(advised)) => Some(self.regret(fit, &advised.score)?),
            _ => None,
        };
        let binding = if qualified.is_empty() { self.binding(&missed, &fallen) } else { None };
        let mut because = Vec::new();
        let mut safe = None;
        if let Some(advised) = qualified.first() {
            because = self.because(advised, judged_now.as_ref(), short_now.as_ref())?;
            safe = Some(self.lab.safe_load(&advised.choice)?);
        }
        let top = |judged: &[Judged]| judged.iter().take(TOP).map(|judged| self.option(judged)).collect();
        let misses = if qualified.is_empty() { top(&missed) } else { Vec::new() };
        let ranked: Vec<Setting> = top(&qualified);
        let mut notes = self.notes.clone();
        notes.extend(words::notes(self.lab.server, !self.lab.machine.gpus.is_empty(), ranked.first()));
        Ok(Advice {
            schema: 1,
            kvlab_version: env!("CARGO_PKG_VERSION"),
            command: command_line(),
            server: self.lab.server.name(),
            model: self.model.clone(),
            gpu,
            trace: Path::new(&trace)
                .file_name()
                .map_or(trace.clone(), |name| name.to_string_lossy().into_owned()),
            requests: self.lab.requests,
            seeds: self.lab.seeds.len(),
            objective: self.lab.objective.words(),
            search: Search {
                candidates,
                fallen,
                equal,
                rungs,
                simulations,
                simulations_total: self.lab.simulations(),
            },
            now: Now {
                settings: named(&now),
                simulated: judged_now.as_ref().map(|judged| self.option(judged)),
                shortage: short_now,
            },
            ranked,
            misses,
            binding,
            because,
            safe_load: safe.map(|(load, _)| load),
            safe_load_is_limit: safe.is_some_and(|(_, is_limit)| is_limit),
            regret,
            notes,
        })
    }

    /// The best without the changes that it does not need: each is taken back in turn, where the setting is
    /// as good as the best without it.
    fn simplify(&mut self, best: Judged<'a>) -> Result<Judged<'a>, Trouble> {
        let first = best.score.clone();
        let mut simple = best;
        for axis in simple.choice.changes() {
            let mut without = simple.choice.clone();
            without.at[axis] = self.lab.axes[axis].now;
            if !without.is_possible() || self.lab.shortage(&without)?.is_some() {
                continue;
            }
            let without = self.lab.judge(vec![without])?.pop().expect("one was judged");
            if without.score.is_as_good_as(&first) {
                simple = without;
            }
        }
        Ok(simple)
    }

    /// Every candidate on the whole trace, and what the advice falls short of the best.
    fn regret(&mut self, fit: Vec<Choice<'a>>, advised: &Score) -> Result<Regret, Trouble> {
        let simulations = fit.len() * self.lab.seeds.len();
        let mut all = self.lab.judge(fit)?;
        rank(&mut all);
        // Latencies that count as equal are told apart here.
        let first = all.first().expect("a candidate has been advised");
        let same = |judged: &&Judged| judged.score.compare(&first.score).is_eq();
        let best =
            all.iter().filter(same).min_by(|a, b| a.score.latency_ms().total_cmp(&b.score.latency_ms()));
        let best = best.expect("the first is equal to itself");
        let (share, of) = advised.regret(&best.score);
        let share = share.is_finite().then_some(share);
        Ok(Regret { share, of, best: named(&best.choice), simulations })
    }

    /// What binds: the part of the objective that most candidates miss alone, else the one that most miss.
    fn binding(&self, missed: &[Judged], fallen: &[Fallen]) -> Option<Binding> {
        if missed.is_empty() {
            let candidates = fallen.iter().map(|fallen| fallen.candidates).sum();
            return Some(Binding {
                constraint: "memory".into(),
                alone: candidates,
                missed: candidates,
                of: candidates,
            });
        }
        let missing: Vec<Vec<String>> =
            missed.iter().map(|judged| judged.score.violations(&self.lab.objective)).collect();
        let mut parts: Vec<&String> = Vec::new();
        for part in missing.iter().flatten() {
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
        let count = |part: &String| {
            let alone = missing.iter().filter(|all| all.len() == 1 && all[0] == *part).count();
            (alone, missing.iter().filter(|all| all.contains(part)).count())
        };
        let mut best: Option<Binding> = None;
        for part in parts {
            let (alone, missed) = count(part);
            if best.as_ref().is_none_or(|best| (alone, missed) > (best.alone, best.missed)) {
                best = Some(Binding { constraint: part.clone(), alone, missed, of: missing.len() });
            }
        }
        best
    }

    /// One sentence for the whole, and one per changed knob: the advice with that knob as it is now.
    fn because(
        &mut self,
        advised: &Judged<'a>,
        now: Option<&Judged<'a>>,
        short_now: Option<&Shortage>,
    ) -> Result<Vec<String>, Trouble> {
        let mut said =
            vec![words::overall(&advised.score, now.map(|now| &now.score), short_now, &self.lab.objective)];
        for axis in advised.choice.changes() {
            let mut without = advised.choice.clone();
            without.at[axis] = self.lab.axes[axis].now;
            let knob = &self.lab.axes[axis];
            let (to, from) = (&knob.places[advised.choice.at[axis]].text, &knob.places[knob.now].text);
            if !without.is_possible() {
                said.push(format!(
                    "{} {to} instead of {from}: with {from} a batch has no token for every slot.",
                    knob.name
                ));
                continue;
            }
            let shortage = self.lab.shortage(&without)?;
            if let Some(shortage) = shortage {
                said.push(format!(
                    "{} {to} instead of {from}: with {from}, {}.",
                    knob.name,
                    shortage.words()
                ));
                continue;
            }
            let reverted = self.lab.judge(vec![without])?.pop().expect("one was judged");
            said.push(words::knob(knob.name, to, from, &advised.score, &reverted.score, &self.lab.objective));
        }
        Ok(said)
    }
}

/// The values of all knobs.
fn named(choice: &Choice) -> Vec<(&'static str, String)> {
    choice.words().map(|(name, text)| (name, text.to_owned())).collect()
}
