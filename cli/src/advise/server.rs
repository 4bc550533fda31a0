//! The servers that advice can be for: the knobs each of them has, its defaults, and how it is told.
//!
//! A knob is an axis of the grid. No knob is in the grid of a server that lacks it, and what follows from
//! the version (allocator, scheduler, what a full cache does) is set and cannot be chosen.

use std::path::Path;

use serde::Serialize;

use crate::experiment::{Machine, machine};
use crate::settings::Settings;
use crate::trouble::{Source, Trouble, usage};

/// A server that advice is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Ollama 0.6.3 to 0.12.3, with the faults of 0.6.6.
    Ollama066,
    /// Ollama 0.12.4 to 0.24.
    Ollama0124,
    /// Ollama 0.30 and later, which starts llama-server with a context for each slot.
    Ollama030,
    /// llama-server alone.
    LlamaCpp,
    /// vLLM.
    Vllm,
}

/// A value of a knob: what it is called, and the settings that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// As the table and `--try` say it.
    pub text: String,
    sets: Vec<(&'static str, String)>,
}

/// A knob and its values.
#[derive(Clone, Debug)]
pub struct Axis {
    /// As `--try` and `--now` call it.
    pub name: &'static str,
    /// The values to try.
    pub places: Vec<Place>,
    /// Which of them is what runs now.
    pub now: usize,
}

/// What is typed or written to apply a setting.
#[derive(Clone, Debug, Serialize)]
pub struct Lines {
    /// Environment variables of the server.
    pub environment: Vec<String>,
    /// Lines of a Modelfile; none where the server has none.
    pub modelfile: Vec<String>,
    /// The command that starts it.
    pub command: String,
}

/// The values that every knob is tried with where `--try` says nothing.
const CONTEXTS: [&str; 5] = ["2048", "4096", "8192", "16384", "32768"];
const SLOTS: [&str; 4] = ["1", "2", "4", "8"];
const BATCHES: [&str; 4] = ["256", "512", "1024", "2048"];
const VLLM_SEQUENCES: [&str; 6] = ["8", "16", "32", "64", "128", "256"];
const VLLM_BATCHES: [&str; 5] = ["512", "1024", "2048", "4096", "8192"];

impl Server {
    /// Every server, by its name on the command line.
    pub const ALL: [(&'static str, Server); 5] = [
        ("ollama-0.6.6", Server::Ollama066),
        ("ollama-0.12.4", Server::Ollama0124),
        ("ollama-0.30", Server::Ollama030),
        ("llama-server", Server::LlamaCpp),
        ("vllm", Server::Vllm),
    ];

    /// The server of a name; none if there is none.
    pub fn find(name: &str) -> Option<Server> {
        Server::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, server)| server)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Server::ALL.into_iter().find(|(_, server)| *server == self).map_or("", |(name, _)| name)
    }

    /// Whether it asks Ollama's estimator where layers lie.
    fn is_placed(self) -> bool {
        matches!(self, Server::Ollama066 | Server::Ollama0124)
    }

    /// Whether it can be on a host of several GPUs.
    fn takes_hosts(self) -> bool {
        self.is_placed() || self == Server::LlamaCpp
    }

    /// What it does where nobody tells it otherwise.
    fn defaults(self, is_host: bool) -> Vec<(&'static str, &'static str)> {
        match self {
            // Automatic: four slots, or one where four do not fit.
            Server::Ollama066 => vec![
                ("num_ctx", "2048"),
                ("num_parallel", if is_host { "auto" } else { "4" }),
                ("num_batch", "512"),
            ],
            Server::Ollama0124 | Server::Ollama030 => {
                vec![("num_ctx", "4096"), ("num_parallel", "1"), ("num_batch", "512")]
            }
            Server::LlamaCpp => vec![("num_ctx", "8192"), ("num_parallel", "4"), ("num_batch", "512")],
            Server::Vllm => vec![
                ("num_ctx", "8192"),
                ("num_parallel", "256"),
                ("num_batch", "2048"),
                ("gpu_memory_utilization", "0.92"),
            ],
        }
    }

    /// The settings with the server's defaults for what nobody has said.
    pub fn complete(self, settings: &mut Settings) -> Result<Machine, Trouble> {
        let found = machine(settings)?;
        if !found.gpus.is_empty() && !self.takes_hosts() {
            let gpu = settings.one("gpu").expect("the key has a default");
            return Err(gpu.wrong(format!(
                "{} on several GPUs is not modelled; expected one GPU of `kvlab gpus`",
                self.name()
            )));
        }
        for (key, value) in self.defaults(!found.gpus.is_empty()) {
            if !settings.is_given(key) {
                settings.set(key, &format!("defaults of {}: {key} = ", self.name()), value)?;
            }
        }
        let split = settings.one("layer_split").expect("the key has a default");
        if self == Server::LlamaCpp && !found.gpus.is_empty() && split.text == "ollama" {
            settings.set("layer_split", "defaults of llama-server: layer_split = ", "free")?;
        }
        Ok(found)
    }

    /// The knobs and the values to try, those that run now among them. `now` has one value for each key;
    /// `pool` is what runs now on a server that has such a knob.
    pub fn axes(
        self,
        now: &Settings,
        machine: &Machine,
        tries: &[Try],
        pool: &str,
    ) -> Result<Vec<Axis>, Trouble> {
        let value = |key: &str| now.one(key).map(|value| value.text).unwrap_or_default();
        let plain = |name: &'static str, values: &[&str]| {
            let place = |text: &str| Place { text: text.to_owned(), sets: vec![(name, text.to_owned())] };
            Knob { name, now: place(&value(name)), places: values.iter().map(|text| place(text)).collect() }
        };
        let is_short = |text: &&str| text.parse().is_ok_and(|tokens: u32| tokens <= machine.context_max);
        let contexts: Vec<&str> = CONTEXTS.into_iter().filter(is_short).collect();
        let mut knobs = vec![plain("num_ctx", &contexts)];
        if self == Server::Vllm {
            knobs.push(plain("num_parallel", &VLLM_SEQUENCES));
            knobs.push(plain("num_batch", &VLLM_BATCHES));
            knobs.push(plain("gpu_memory_utilization", &["0.9", "0.95"]));
        } else {
            knobs.push(plain("num_parallel", &SLOTS));
            knobs.push(plain("num_batch", &BATCHES));
            knobs.push(self.kv_types(&value("kv_cache_type"), value("flash_attention") == "true"));
        }
        if machine.gpus.len() > 1 {
            let visible = value("visible_devices");
            knobs.push(match self {
                Server::LlamaCpp => dealt(machine, &visible, &value("layer_split")),
                _ => gpus(machine, &visible, value("sched_spread") == "true"),
            });
        }
        let named = |name: &'static str, words: [&str; 2]| {
            let place = |text: &str| Place { text: text.to_owned(), sets: Vec::new() };
            Knob { name, now: place(pool), places: words.map(place).to_vec() }
        };
        match self {
            Server::LlamaCpp => knobs.push(named("pool", ["split", "unified"])),
            Server::Vllm => knobs.push(named("prefix_caching", ["on", "off"])),
            _ => {}
        }
        for wanted in tries {
            let names: Vec<&str> = knobs.iter().map(|knob| knob.name).collect();
            let known = knobs.iter_mut().find(|knob| knob.name == wanted.name);
            let Some(knob) = known else {
                let message = format!(
                    "{} has no knob {:?} here; expected {}",
                    self.name(),
                    wanted.name,
                    names.join(", ")
                );
                return Err(wanted.wrong(&message));
            };
            knob.restrict(self, wanted)?;
        }
        Ok(knobs.into_iter().map(Knob::axis).collect())
    }

    fn kv_place(self, kv: &str, flash: bool) -> Place {
        // Ollama's older engines quantise only with flash attention; llama-server has it always.
        let is_choice = self.is_placed();
        let flash = flash || kv != "f16" || !is_choice;
        let text = if is_choice && flash && kv == "f16" { "f16+flash".to_owned() } else { kv.to_owned() };
        Place { text, sets: vec![("kv_cache_type", kv.to_owned()), ("flash_attention", flash.to_string())] }
    }

    fn kv_types(self, now: &str, flash: bool) -> Knob {
        let places = ["f16", "q8_0", "q4_0"].map(|kv| self.kv_place(kv, false)).to_vec();
        // Without flash attention a quantised cache is ignored: f16 is what runs.
        let now = if now != "f16" && !flash && self.is_placed() { "f16" } else { now };
        Knob { name: "kv_cache_type", now: self.kv_place(now, flash), places }
    }

    /// What the version makes of a choice: the settings that nobody chooses.
    fn derived(self, choice: &Choice, machine: &Machine) -> Vec<(&'static str, String)> {
        let flash = choice.set("flash_attention") == Some("true");
        let mut sets = vec![("scheduler", "runner".to_owned()), ("on_full", "crash".to_owned())];
        match self {
            Server::Ollama066 | Server::Ollama0124 => {
                let pad = if flash { ":256" } else { "" };
                sets.push(("policies", format!("{}{pad}", self.name())));
                sets.push(("memory", "per-slot".into()));
                sets.push(("layer_split", "ollama".into()));
            }
            Server::LlamaCpp if choice.text("pool") == "unified" => {
                let ubatch = choice.text("num_batch");
                let pool = choice.text("num_ctx");
                let cells: Vec<String> =
                    machine.classes.iter().map(|class| format!("{class}={pool}")).collect();
                sets.push(("policies", format!("llama-unified:ubatch={ubatch}:pad=256")));
                sets.push(("memory", cells.join(";")));
                sets[1].1 = "halve".into();
            }
            Server::Ollama030 | Server::LlamaCpp => {
                sets.push(("policies", "contiguous".into()));
                sets.push(("memory", "per-slot-0.6.2".into()));
            }
            Server::Vllm => {
                let prefix = if choice.text("prefix_caching") == "off" { ":prefix=off" } else { "" };
                sets = vec![("scheduler", "continuous".into()), ("memory", "fill".into())];
                sets.push(("policies", format!("vllm{prefix}")));
                sets.push(("kv_cache_type", "f16".into()));
            }
        }
        sets
    }

    /// The settings of a choice.
    ///
    /// # Errors
    /// A value that is empty.
    pub fn settings(self, base: &Settings, choice: &Choice, machine: &Machine) -> Result<Settings, Trouble> {
        let mut settings = base.clone();
        let chosen = choice.places().flat_map(|place| place.sets.clone());
        for (key, text) in chosen.chain(self.derived(choice, machine)) {
            settings.set(key, &format!("--try {key}="), &text)?;
        }
        Ok(settings)
    }

    /// How the server is told.
    pub fn lines(self, choice: &Choice, model: &str) -> Lines {
        let (context, slots, batch) =
            (choice.text("num_ctx"), choice.text("num_parallel"), choice.text("num_batch"));
        let mut environment = Vec::new();
        let kv = choice.set("kv_cache_type").unwrap_or("f16");
        match self {
            Server::Ollama066 | Server::Ollama0124 | Server::Ollama030 => {
                if slots != "auto" {
                    environment.push(format!("OLLAMA_NUM_PARALLEL={slots}"));
                }
                if choice.set("flash_attention") == Some("true") && (self.is_placed() || kv != "f16") {
                    environment.push("OLLAMA_FLASH_ATTENTION=1".into());
                }
                if kv != "f16" {
                    environment.push(format!("OLLAMA_KV_CACHE_TYPE={kv}"));
                }
                if let Some(visible) = choice.set("visible_devices").filter(|visible| *visible != "auto") {
                    environment.push(format!("CUDA_VISIBLE_DEVICES={visible}"));
                }
                if choice.set("sched_spread") == Some("true") {
                    environment.push("OLLAMA_SCHED_SPREAD=1".into());
                }
                let modelfile = vec![
                    format!("FROM {}", ollama_name(model)),
                    format!("PARAMETER num_ctx {context}"),
                    format!("PARAMETER num_batch {batch}"),
                ];
                Lines { environment, modelfile, command: "ollama serve".into() }
            }
            Server::LlamaCpp => {
                let is_unified = choice.text("pool") == "unified";
                // A unified pool is given as a whole, a split one is divided by the number of slots.
                let number = |text: &str| text.parse::<u64>().unwrap_or(0);
                let all = if is_unified { number(context) } else { number(context) * number(slots) };
                let pool = if is_unified { "--kv-unified --swa-full" } else { "--no-kv-unified" };
                let file = match model {
                    _ if model.ends_with(".gguf") => model.to_owned(),
                    _ if checkpoint(model).is_some() => "MODEL.gguf".to_owned(),
                    _ => format!("{model}.gguf"),
                };
                if let Some(visible) = choice.set("visible_devices").filter(|visible| *visible != "auto") {
                    environment.push(format!("CUDA_VISIBLE_DEVICES={visible}"));
                }
                let split = choice.set("layer_split").filter(|split| split.contains(':'));
                let split = split.map(|split| format!(" -sm layer -ts {}", split.replace(':', ",")));
                let command = format!(
                    "llama-server -m {file} -c {all} -np {slots} -b {batch} -ub {batch} -fa on -ctk {kv} -ctv {kv} {pool} --fit off{}",
                    split.unwrap_or_default()
                );
                Lines { environment, modelfile: Vec::new(), command }
            }
            Server::Vllm => {
                let utilization = choice.text("gpu_memory_utilization");
                let no = if choice.text("prefix_caching") == "off" { "no-" } else { "" };
                let command = format!(
                    "vllm serve {} --max-model-len {context} --max-num-seqs {slots} --max-num-batched-tokens {batch} --gpu-memory-utilization {utilization} --{no}enable-prefix-caching",
                    hub_name(model)
                );
                Lines { environment, modelfile: Vec::new(), command }
            }
        }
    }
}

/// A knob before `now` has got its place among the values.
struct Knob {
    name: &'static str,
    now: Place,
    places: Vec<Place>,
}

impl Knob {
    /// Only the values that are to be tried.
    fn restrict(&mut self, server: Server, wanted: &Try) -> Result<(), Trouble> {
        let mut places = Vec::new();
        for text in &wanted.values {
            let known = self.places.iter().chain([&self.now]).find(|place| place.text == *text);
            places.push(match (known, self.name) {
                (Some(place), _) => place.clone(),
                (None, "kv_cache_type") if text == "f16+flash" && server.is_placed() => {
                    server.kv_place("f16", true)
                }
                (None, "gpus") if server == Server::LlamaCpp && text.contains(':') => {
                    dealt_place(text, "auto", text)
                }
                (None, "num_ctx" | "num_parallel" | "num_batch" | "gpu_memory_utilization") => {
                    Place { text: text.clone(), sets: vec![(self.name, text.clone())] }
                }
                (None, _) => {
                    let names: Vec<&str> = self.places.iter().map(|place| place.text.as_str()).collect();
                    let message =
                        format!("{text:?} is no value of {}; expected {}", self.name, names.join(", "));
                    return Err(wanted.wrong(&message));
                }
            });
        }
        self.places = places;
        Ok(())
    }

    fn axis(mut self) -> Axis {
        if !self.places.contains(&self.now) {
            self.places.push(self.now.clone());
        }
        let number = |place: &Place| place.text.parse::<f64>().unwrap_or(f64::INFINITY);
        if self.places.iter().any(|place| number(place).is_finite()) && self.name != "gpus" {
            self.places.sort_by(|a, b| number(a).total_cmp(&number(b)));
        }
        let now =
            self.places.iter().position(|place| *place == self.now).expect("it has just been put there");
        Axis { name: self.name, places: self.places, now }
    }
}

/// Which GPUs of a host are used.
fn gpus(machine: &Machine, visible: &str, spread: bool) -> Knob {
    let place = |text: String, visible: &str, spread: bool| Place {
        text,
        sets: vec![("visible_devices", visible.to_owned()), ("sched_spread", spread.to_string())],
    };
    let mut places = vec![place("auto".into(), "auto", false)];
    places.extend((0..machine.gpus.len()).map(|gpu| place(gpu.to_string(), &gpu.to_string(), false)));
    places.push(place("spread".into(), "auto", true));
    let text = match (visible, spread) {
        ("auto", true) => "spread".to_owned(),
        (visible, true) => format!("{visible} spread"),
        (visible, false) => visible.to_owned(),
    };
    Knob { name: "gpus", now: place(text, visible, spread), places }
}

/// Which GPUs of a host llama-server sees, and how it deals layers to them.
fn dealt(machine: &Machine, visible: &str, split: &str) -> Knob {
    let mut places = vec![dealt_place("auto", "auto", "free")];
    places.extend(
        (0..machine.gpus.len()).map(|gpu| gpu.to_string()).map(|gpu| dealt_place(&gpu, &gpu, "free")),
    );
    let even = vec!["1"; machine.gpus.len()].join(":");
    places.push(dealt_place(&even, "auto", &even));
    let text = match (visible, split) {
        ("auto", "free") => "auto".to_owned(),
        ("auto", split) => split.to_owned(),
        (visible, "free") => visible.to_owned(),
        (visible, split) => format!("{visible} {split}"),
    };
    Knob { name: "gpus", now: dealt_place(&text, visible, split), places }
}

fn dealt_place(text: &str, visible: &str, split: &str) -> Place {
    let sets = vec![("visible_devices", visible.to_owned()), ("layer_split", split.to_owned())];
    Place { text: text.to_owned(), sets }
}

/// A value for each axis.
#[derive(Clone, Debug)]
pub struct Choice<'a> {
    axes: &'a [Axis],
    /// Per axis the number of the value.
    pub at: Vec<usize>,
}

impl<'a> Choice<'a> {
    /// What runs now.
    pub fn now(axes: &'a [Axis]) -> Self {
        Choice { axes, at: axes.iter().map(|axis| axis.now).collect() }
    }

    /// Every choice, the last axis fastest.
    pub fn all(axes: &'a [Axis]) -> Vec<Self> {
        let count: usize = axes.iter().map(|axis| axis.places.len()).product();
        let choice = |number: usize| {
            let mut rest = number;
            let mut at: Vec<usize> = axes
                .iter()
                .rev()
                .map(|axis| {
                    let place = rest % axis.places.len();
                    rest /= axis.places.len();
                    place
                })
                .collect();
            at.reverse();
            Choice { axes, at }
        };
        (0..count).map(choice).collect()
    }

    fn places(&self) -> impl Iterator<Item = &'a Place> {
        self.axes.iter().zip(&self.at).map(|(axis, &at)| &axis.places[at])
    }

    /// What the value of an axis is called; empty where there is no such axis.
    pub fn text(&self, name: &str) -> &'a str {
        let found = self.axes.iter().zip(&self.at).find(|(axis, _)| axis.name == name);
        found.map_or("", |(axis, &at)| axis.places[at].text.as_str())
    }

    fn set(&self, key: &str) -> Option<&'a str> {
        self.places()
            .flat_map(|place| &place.sets)
            .find(|(name, _)| *name == key)
            .map(|(_, text)| text.as_str())
    }

    /// Every axis with what its value is called.
    pub fn words(&self) -> impl Iterator<Item = (&'static str, &'a str)> {
        self.axes.iter().zip(self.places()).map(|(axis, place)| (axis.name, place.text.as_str()))
    }

    /// The axes in which it is not what runs now.
    pub fn changes(&self) -> Vec<usize> {
        (0..self.axes.len()).filter(|&axis| self.at[axis] != self.axes[axis].now).collect()
    }

    /// Whether every sequence gets a token of a batch, without which no scheduler works.
    pub fn is_possible(&self) -> bool {
        let number = |name| self.text(name).parse::<u64>().ok();
        match (number("num_parallel"), number("num_batch")) {
            (Some(slots), Some(batch)) => slots <= batch,
            _ => true,
        }
    }
}

/// A knob and values for it, as `--try` and `--now` give them.
#[derive(Clone, Debug)]
pub struct Try {
    /// The knob.
    pub name: String,
    /// The values.
    pub values: Vec<String>,
    source: Source,
    length: usize,
    before: usize,
}

impl Try {
    /// Reads `num_ctx=4096,8192` behind a flag.
    ///
    /// # Errors
    /// A text of another form.
    pub fn parse(flag: &str, text: &str) -> Result<Try, Trouble> {
        let before = format!("--{flag} ");
        let source = Source::new("command line".into(), format!("{before}{text}"));
        let (before, length) = (before.len(), text.len());
        let wrong = || usage(source.point(before..before + length, "expected KEY=VALUE, as num_ctx=8192"));
        let (name, values) = text.split_once('=').ok_or_else(wrong)?;
        let values: Vec<String> = values.split(',').map(|value| value.trim().to_owned()).collect();
        if name.trim().is_empty() || values.iter().any(String::is_empty) {
            return Err(wrong());
        }
        Ok(Try { name: name.trim().to_owned(), values, source, length, before })
    }

    /// A complaint that points at it.
    pub fn wrong(&self, message: &str) -> Trouble {
        usage(self.source.point(self.before..self.before + self.length, message))
    }
}

/// The folder of a checkpoint whose configuration is given.
fn checkpoint(model: &str) -> Option<String> {
    let folder = Path::new(model).parent().filter(|_| model.ends_with(".json"))?;
    Some(if folder.as_os_str().is_empty() { ".".to_owned() } else { folder.display().to_string() })
}

/// What Ollama's library calls a model of the catalogue; other models keep their names.
fn ollama_name(model: &str) -> String {
    if let Some(folder) = checkpoint(model) {
        return folder;
    }
    let Some(rest) = model.strip_prefix("gemma3-") else {
        let is_bare = model.ends_with(".gguf") && Path::new(model).parent() == Some(Path::new(""));
        return if is_bare { format!("./{model}") } else { model.to_owned() };
    };
    let (size, kind) = rest.split_once('-').unwrap_or((rest, "bf16"));
    match kind {
        "q4_0-qat" => format!("gemma3:{size}-it-qat"),
        "q8_0" => format!("gemma3:{size}-it-q8_0"),
        "bf16" | "f16" => format!("gemma3:{size}-it-fp16"),
        _ => format!("gemma3:{size}"),
    }
}

/// What the Hugging Face hub calls it.
fn hub_name(model: &str) -> String {
    if let Some(folder) = checkpoint(model) {
        return folder;
    }
    match model.strip_prefix("gemma3-").and_then(|rest| rest.split('-').next()) {
        Some(size) => format!("google/gemma-3-{size}-it"),
        None => model.to_owned(),
    }
}
