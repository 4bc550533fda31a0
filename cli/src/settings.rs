//! Every setting of an experiment: one table, read from a scenario file, the environment and flags.
//!
//! A key of a scenario is a flag with dashes instead of underscores and a `KVLAB_` variable in
//! capitals. A flag beats the environment, the environment beats the file, the file beats the
//! default. Whatever is wrong with a value, the message shows where it came from.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::trouble::{Source, Trouble, usage};

/// One setting.
pub struct Key {
    /// Name in scenarios.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// Value where nothing is said; none if there is none.
    pub default: Option<&'static str>,
    /// Whether several values make a grid.
    pub grid: bool,
}

const fn key(name: &'static str, default: Option<&'static str>, about: &'static str) -> Key {
    Key { name, about, default, grid: false }
}

const fn grid(name: &'static str, default: Option<&'static str>, about: &'static str) -> Key {
    Key { name, about, default, grid: true }
}

/// Every setting, in the order in which they are printed.
pub const KEYS: &[Key] = &[
    key("title", None, "heading of the report"),
    key("question", None, "the question that the experiment answers"),
    grid(
        "trace",
        None,
        "trace files, any known format, gzip or not; {seed} in a name makes one file per seed",
    ),
    grid(
        "generate",
        None,
        "workloads to generate instead: chat, azure-chat, image-chat, code, rag, documents, agent",
    ),
    key("requests", Some("1000"), "requests to generate"),
    key("rate", None, "mean requests per second to generate [default: that of the data]"),
    key("limit", None, "requests to read from a trace [default: all]"),
    key("time_scale", Some("1"), "factor on the arrival times of a trace"),
    key("session_rate", None, "session starts per second for traces without times"),
    key("trace_format", Some("auto"), "auto, or the name of a trace format"),
    key("until_s", None, "cut the run off at this virtual time, seconds"),
    grid(
        "policies",
        Some("contiguous,paged,shift,defrag,unlimited"),
        "policies to compare; see `kvlab policies`",
    ),
    key("reference", None, "policy that the others are compared with [default: the first]"),
    grid("model", Some("gemma3-12b-q4_0"), "models of the catalogue, or TOML files"),
    grid("gpu", Some("rtx4090"), "GPUs of the catalogue, or TOML files"),
    grid("kv_cache_type", Some("f16"), "type of the cached K and V: f16, bf16, q8_0, q4_0"),
    grid("scheduler", Some("continuous"), "continuous (vLLM's family) or runner (Ollama's)"),
    grid("num_ctx", Some("8192"), "context limit of a request, tokens"),
    grid("num_parallel", Some("16"), "requests served at once"),
    grid("num_batch", Some("512"), "tokens of a step, over all sequences"),
    key(
        "memory",
        Some("auto"),
        "cells: per-slot (Ollama), fill (vLLM), or local=N;global=N [auto: by the scheduler]",
    ),
    key("gpu_memory_utilization", Some("0.9"), "share of the device's memory that `fill` may use"),
    key("cost", Some("spec"), "cost model: spec, a calibration (TOML), or a folder with a measured profile"),
    key("seeds", None, "how many seeds [default: 5, or 1 where the seed changes nothing]"),
    key("seed0", Some("0"), "first seed"),
    key("slo_ttft_ms", Some("5000"), "goodput: longest time to first token, ms"),
    key("slo_tpot_ms", Some("200"), "goodput: longest time per output token, ms"),
    key(
        "queue_max",
        Some("auto"),
        "requests that may wait: a number, none, or auto (runner: 512, continuous: none)",
    ),
    key("on_full", Some("crash"), "runner: crash, fail-one, halve or wait when a batch finds no room"),
    key(
        "num_keep",
        Some("4"),
        "runner: leading prompt tokens that truncation and context shift keep, or prompt for all of it",
    ),
    key("keep_slots", Some("true"), "runner: leave an idle slot its cells for a prompt that begins alike"),
    key("chunked_prefill", Some("true"), "continuous: compute long prompts in pieces"),
    key("reserve_prompt", Some("true"), "continuous: admit only what has cells for its whole prompt"),
    key("watermark", Some("0"), "continuous: share of the cells that admission leaves free, 0 to 1"),
    key("preemption", Some("recompute"), "continuous: recompute or swap"),
    key("maintain_cells", Some("256"), "cells that incremental compaction may copy between two steps"),
    key("reload_s", Some("auto"), "seconds to load the model after a crash [auto: weights at 2 GB/s]"),
    key("fast_forward", Some("true"), "tell the policy of tokens only when something can change"),
    key("audit", Some("false"), "check the policy's books after every step (slow)"),
];

/// A value, and where it stands.
#[derive(Clone, Debug)]
pub struct Value {
    /// The text.
    pub text: String,
    source: Source,
    at: Range<usize>,
}

impl Value {
    /// A complaint that points at the value.
    pub fn wrong(&self, message: impl Into<String>) -> Trouble {
        usage(self.source.point(self.at.clone(), &message.into()))
    }

    /// A complaint that points at a part of the value.
    pub fn wrong_at(&self, part: Range<usize>, message: impl Into<String>) -> Trouble {
        let start = self.at.start + part.start;
        usage(self.source.point(start..(self.at.start + part.end).max(start), &message.into()))
    }

    /// The value as a `T`, or a complaint that names what was expected.
    pub fn parse<T: FromStr>(&self, expected: &str) -> Result<T, Trouble> {
        self.text.trim().parse().map_err(|_| self.wrong(format!("{:?} is not {expected}", self.text)))
    }
}

/// The settings of an experiment: per key the values that were given, or the default.
#[derive(Clone, Debug)]
pub struct Settings {
    values: Vec<Option<Vec<Value>>>,
    /// Folder of the scenario; paths in it are relative to it.
    base: Option<PathBuf>,
}

fn index(name: &str) -> usize {
    KEYS.iter().position(|key| key.name == name).expect("the key is in the table")
}

impl Settings {
    /// Nothing said.
    pub fn new() -> Self {
        Settings { values: KEYS.iter().map(|_| None).collect(), base: None }
    }

    /// Adds the flags of every key to a command.
    pub fn flags(command: Command) -> Command {
        KEYS.iter().fold(command, |command, key| {
            let help = match key.default {
                Some(default) => format!("{} [default: {default}]", key.about),
                None => key.about.to_owned(),
            };
            let arg = Arg::new(key.name).long(key.name.replace('_', "-")).value_name("V").help(help);
            command.arg(arg.action(ArgAction::Set).allow_hyphen_values(true).help_heading("Settings"))
        })
    }

    /// Reads a scenario.
    pub fn read(&mut self, path: &Path) -> Result<(), Trouble> {
        let text =
            std::fs::read_to_string(path).map_err(|error| usage(format!("{}: {error}", path.display())))?;
        let source = Source::new(path.display().to_string(), text.clone());
        let table = toml::de::DeTable::parse(&text)
            .map_err(|error| usage(source.point(error.span().unwrap_or(0..0), error.message())))?;
        for (name, value) in table.get_ref() {
            let Some(key) = KEYS.iter().position(|key| key.name == name.get_ref().as_ref()) else {
                let near = KEYS
                    .iter()
                    .map(|key| key.name)
                    .max_by_key(|known| likeness(known, name.get_ref()))
                    .unwrap_or_default();
                let message = format!("unknown key {:?}; did you mean {near:?}?", name.get_ref());
                return Err(usage(source.point(name.span(), &message)));
            };
            let mut values = Vec::new();
            collect(&source, &text, value, &mut values)?;
            if values.is_empty() || (values.len() > 1 && !KEYS[key].grid) {
                let message = format!(
                    "{} takes {}",
                    KEYS[key].name,
                    if KEYS[key].grid { "at least one value" } else { "one value" }
                );
                return Err(usage(source.point(value.span(), &message)));
            }
            self.values[key] = Some(values);
        }
        self.base = path.parent().map(Path::to_path_buf);
        Ok(())
    }

    /// Takes over what the environment says.
    pub fn take_environment(&mut self) -> Result<(), Trouble> {
        for key in KEYS {
            let variable = format!("KVLAB_{}", key.name.to_uppercase());
            if let Ok(text) = std::env::var(&variable) {
                self.set(key.name, &format!("{variable}="), &text)?;
            }
        }
        Ok(())
    }

    /// Takes over what flags say.
    pub fn take_flags(&mut self, matches: &ArgMatches) -> Result<(), Trouble> {
        for key in KEYS {
            if let Some(text) = matches.get_one::<String>(key.name) {
                self.set(key.name, &format!("--{} ", key.name.replace('_', "-")), text)?;
            }
        }
        Ok(())
    }

    /// Sets a key from a text that follows `before` on the command line.
    pub fn set(&mut self, name: &str, before: &str, text: &str) -> Result<(), Trouble> {
        let key = index(name);
        let source = Source::new("command line".into(), format!("{before}{text}"));
        let mut values = Vec::new();
        let mut start = before.len();
        let parts: Vec<&str> = if KEYS[key].grid { text.split(',').collect() } else { vec![text] };
        for part in parts {
            let at = start..start + part.len();
            start = at.end + 1;
            if part.trim().is_empty() {
                return Err(usage(source.point(at, &format!("{name} has an empty value"))));
            }
            values.push(Value { text: part.trim().to_owned(), source: source.clone(), at });
        }
        self.values[key] = Some(values);
        if name == "trace" || name == "generate" {
            let other = index(if name == "trace" { "generate" } else { "trace" });
            self.values[other] = None;
        }
        Ok(())
    }

    /// The values of a key; its default where none was given.
    pub fn all(&self, name: &str) -> Vec<Value> {
        let key = index(name);
        if let Some(values) = &self.values[key] {
            return values.clone();
        }
        let default = KEYS[key].default.map(|text| text.split(',').collect::<Vec<_>>()).unwrap_or_default();
        let make = |text: &str| {
            let source = Source::new("defaults".into(), text.to_owned());
            Value { text: text.to_owned(), source, at: 0..text.len() }
        };
        default.into_iter().map(make).collect()
    }

    /// The value of a key that has one or none.
    pub fn one(&self, name: &str) -> Option<Value> {
        self.all(name).into_iter().next()
    }

    /// The value of a key with a default, as a `T`.
    pub fn get<T: FromStr>(&self, name: &str, expected: &str) -> Result<T, Trouble> {
        self.one(name).expect("the key has a default").parse(expected)
    }

    /// A path as a scenario means it: relative to the scenario. Flags mean the working folder.
    pub fn path(&self, value: &Value) -> PathBuf {
        let path = PathBuf::from(&value.text);
        match &self.base {
            Some(base) if path.is_relative() && value.source.name() != "command line" => base.join(path),
            _ => path,
        }
    }

    /// Everything, as a scenario that says the same.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for key in KEYS {
            let values = self.all(key.name);
            let quoted = |value: &Value| {
                let is_path = match key.name {
                    "trace" => true,
                    "model" | "gpu" => value.text.ends_with(".toml"),
                    "cost" => value.text != "spec",
                    _ => false,
                };
                let path = is_path.then(|| std::path::absolute(self.path(value)).ok()).flatten();
                let text = path.map_or_else(|| value.text.clone(), |path| path.display().to_string());
                toml::Value::String(text).to_string()
            };
            let list: Vec<String> = values.iter().map(quoted).collect();
            match list.as_slice() {
                [] => text += &format!("# {} is not set: {}\n", key.name, key.about),
                [one] => text += &format!("{} = {one}\n", key.name),
                many => text += &format!("{} = [{}]\n", key.name, many.join(", ")),
            }
        }
        text
    }
}

/// Scalars of a TOML value with their places.
fn collect(
    source: &Source,
    text: &str,
    value: &toml::Spanned<toml::de::DeValue<'_>>,
    into: &mut Vec<Value>,
) -> Result<(), Trouble> {
    use toml::de::DeValue;
    let span = value.span();
    let scalar = |text: String, at: Range<usize>| Value { text, source: source.clone(), at };
    match value.get_ref() {
        DeValue::String(string) => {
            // The caret points into the string where it has no escapes, else at all of it.
            let inner = span.start + 1..span.end.saturating_sub(1);
            let plain = text.get(inner.clone()) == Some(string.as_ref());
            into.push(scalar(string.to_string(), if plain { inner } else { span }));
        }
        DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) => {
            into.push(scalar(text[span.clone()].replace('_', ""), span));
        }
        DeValue::Array(items) => {
            for item in items.iter() {
                collect(source, text, item, into)?;
            }
        }
        DeValue::Table(_) | DeValue::Datetime(_) => {
            return Err(usage(
                source.point(span, "expected a text, a number, true or false, or a list of these"),
            ));
        }
    }
    Ok(())
}

/// How much two names look alike: the letters they begin with in common, and those they share.
fn likeness(a: &str, b: &str) -> (usize, usize) {
    let start = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let shared = b.chars().filter(|&letter| a.contains(letter)).count();
    (start, shared)
}
