//! Every setting of an experiment: one table, read from a scenario file, the environment and flags.
//!
//! A key of a scenario is a flag with dashes instead of underscores and a `KVLAB_` variable in
//! capitals. A flag beats the environment, the environment beats the file, the file beats the
//! default. A scenario may have rows, each of which sets some keys otherwise (`[[row]]`); flags and the
//! environment beat these too. Whatever is wrong with a value, the message shows where it came from.

mod grid;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::trouble::{Source, Trouble, usage};
use grid::Link;

pub use grid::Grid;

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
    /// Whether rows of a scenario may set it: the workload is the same for all of them.
    pub in_rows: bool,
}

/// What is the same for a whole sweep, and no part of what one simulation of it is.
const WHOLE_SWEEP: [&str; 8] =
    ["title", "question", "rows", "reference", "columns", "engine", "seeds", "seed0"];

impl Key {
    /// Whether a sweep may vary it.
    fn is_swept(&self) -> bool {
        !WHOLE_SWEEP.contains(&self.name)
    }

    /// A value, of a file only its name.
    fn name_of(&self, value: &Value) -> String {
        let last = Path::new(&value.text).file_name().filter(|_| self.names_file(value));
        last.map_or_else(|| value.text.clone(), |last| last.to_string_lossy().into_owned())
    }

    /// Whether a value names a file or a folder.
    fn names_file(&self, value: &Value) -> bool {
        match self.name {
            "trace" => true,
            "model" => [".toml", ".gguf", ".json"].iter().any(|end| value.text.ends_with(end)),
            "gpu" => value.text.ends_with(".toml"),
            "cost" => value.text != "spec",
            _ => false,
        }
    }
}

const fn key(name: &'static str, default: Option<&'static str>, about: &'static str) -> Key {
    Key { name, about, default, grid: false, in_rows: true }
}

const fn grid(name: &'static str, default: Option<&'static str>, about: &'static str) -> Key {
    Key { name, about, default, grid: true, in_rows: true }
}

/// The same key, for all rows at once.
const fn shared(key: Key) -> Key {
    Key { in_rows: false, ..key }
}

/// Every setting, in the order in which they are printed.
pub const KEYS: &[Key] = &[
    shared(key("title", None, "heading of the report")),
    shared(key("question", None, "the question that the experiment answers")),
    shared(grid(
        "trace",
        None,
        "trace files, any known format, gzip or not; {seed} in a name makes one file per seed",
    )),
    shared(grid(
        "generate",
        None,
        "workloads to generate instead: chat, azure-chat, image-chat, screenshots, code, rag, documents, agent, \
         seats:N, uniform:IN:OUT",
    )),
    shared(key("requests", Some("1000"), "requests to generate")),
    shared(key("rate", None, "mean requests per second to generate [default: that of the data]")),
    shared(key("limit", None, "requests to read from a trace [default: all]")),
    shared(key("time_scale", Some("1"), "factor on the arrival times of a trace")),
    shared(key("session_rate", None, "session starts per second for traces without times")),
    shared(key("trace_format", Some("auto"), "auto, or the name of a trace format")),
    key("until_s", None, "cut the run off at this virtual time, seconds"),
    shared(grid("rows", None, "rows of the scenario to run [default: all]")),
    grid(
        "policies",
        Some("contiguous,paged,shift,defrag,unlimited"),
        "policies to compare; see `kvlab policies`",
    ),
    shared(key("reference", None, "policy or row that the others are compared with [default: the first]")),
    shared(grid(
        "columns",
        None,
        "metrics of the table, as completed,found,ttft_p99_ms [default: all that have something to say]",
    )),
    shared(key(
        "engine",
        None,
        "scenario of the engine's own model; afterwards the reference and the winner run there; none: not",
    )),
    grid("model", Some("gemma3-12b-q4_0"), "models of the catalogue, TOML, GGUF or config.json files"),
    grid("gpu", Some("rtx4090"), "GPUs or hosts of the catalogues, a+b of GPU names, or TOML files"),
    grid("kv_cache_type", Some("f16"), "type of the cached K and V: f16, bf16, q8_0, q4_0, f32"),
    grid("scheduler", Some("continuous"), "continuous (vLLM's family) or runner (Ollama's)"),
    grid("num_ctx", Some("8192"), "context limit of a request, tokens"),
    grid("num_parallel", Some("16"), "requests served at once; on a host also auto (Ollama: 4, or 1)"),
    grid("num_batch", Some("512"), "tokens of a step, over all sequences"),
    key(
        "memory",
        Some("auto"),
        "cells: per-slot (Ollama; whole blocks for policies that have them), per-slot-0.6.2 (before 0.6.3), fill \
         (vLLM), or local=N;global=N [auto: by the scheduler]",
    ),
    key("gpu_memory_utilization", Some("0.9"), "share of the device's memory that `fill` may use"),
    key("pcie_gb_per_s", None, "bandwidth of the bus between GPU and main memory [default: that of the GPU]"),
    key("flash_attention", Some("false"), "per-slot: cells in multiples of 256, as a quantised cache needs"),
    key("visible_devices", Some("auto"), "host: numbers of the GPUs that the server may see, as 0,1"),
    key("sched_spread", Some("false"), "host: use every GPU even where one would do (OLLAMA_SCHED_SPREAD)"),
    key("gpu_overhead_gib", Some("0"), "host: memory kept free on every GPU (OLLAMA_GPU_OVERHEAD)"),
    key("sysmem_fallback", Some("true"), "host: Windows may put what does not fit into main memory"),
    key("freeze_ms", Some("200"), "host: the display freezes when a step makes it wait so long, ms"),
    key(
        "image_leak",
        Some("false"),
        "every image leaks main memory, as in Ollama 0.6.6; on a host it may fill it",
    ),
    key("cost", Some("spec"), "cost model: spec, a calibration (TOML), or a folder with a measured profile"),
    shared(key("seeds", None, "how many seeds [default: 5, or 1 where the seed changes nothing]")),
    shared(key("seed0", Some("0"), "first seed")),
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
    key("multi_user", Some("false"), "runner: choose slots for many users (OLLAMA_MULTIUSER_CACHE)"),
    key("keep_slots", Some("true"), "runner: leave an idle slot its cells for a prompt that begins alike"),
    key("chunked_prefill", Some("true"), "continuous: compute long prompts in pieces"),
    key(
        "reserve",
        Some("auto"),
        "continuous: set aside at admission: none, prompt, full (to its end, by an oracle), or max (to the longest \
         end) [auto: prompt, or none where reserve_prompt is false]",
    ),
    key("reserve_prompt", Some("true"), "continuous: admit only what has cells for its whole prompt"),
    key("watermark", Some("0"), "continuous: share of the cells that admission leaves free, 0 to 1"),
    key("preemption", Some("recompute"), "continuous: recompute or swap"),
    key("victim", Some("lifo"), "continuous: who is preempted: lifo, fifo, random, lcf, mcf, srf or lrf"),
    key(
        "host_memory",
        Some("none"),
        "continuous: main memory for swapped sequences, GiB; what finds no room is computed again [none: no limit]",
    ),
    key(
        "pipeline",
        Some("0"),
        "continuous: steps that may still run while the next is formed; freed cells wait",
    ),
    key("maintain_cells", Some("256"), "cells that incremental compaction may copy between two steps"),
    key("reload_s", Some("auto"), "seconds to load the model after a crash [auto: weights at 2 GB/s]"),
    key("fast_forward", Some("true"), "tell the policy of tokens only when something can change"),
    key("audit", Some("false"), "check the policy's books after every step (slow)"),
];

/// Whether a file is a scenario, and not a trace.
fn is_scenario(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "toml")
}

/// A value, and where it stands.
#[derive(Clone, Debug)]
pub struct Value {
    /// The text.
    pub text: String,
    source: Source,
    at: Range<usize>,
}

impl Value {
    /// A text that is a source of its own.
    fn whole(source: &str, text: String) -> Value {
        let at = 0..text.len();
        Value { source: Source::new(source.to_owned(), text.clone()), text, at }
    }

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

/// A row of a scenario: a name, and the keys that it sets.
#[derive(Clone, Debug)]
struct Row {
    name: Value,
    /// Per key that it sets, its number and the value.
    values: Vec<(usize, Value)>,
}

/// The settings of an experiment: per key the values that were given, or the default.
#[derive(Clone, Debug)]
pub struct Settings {
    values: Vec<Option<Vec<Value>>>,
    rows: Vec<Row>,
    /// Name of the row whose values have been taken over; empty if none.
    row: String,
    /// Folder of the scenario; paths in it are relative to it.
    base: Option<PathBuf>,
    /// Whether any key may have several values, and keys may be linked.
    is_sweep: bool,
    links: Vec<Link>,
}

fn index(name: &str) -> usize {
    KEYS.iter().position(|key| key.name == name).expect("the key is in the table")
}

impl Settings {
    /// Nothing said.
    pub fn new() -> Self {
        let values = KEYS.iter().map(|_| None).collect();
        let (rows, links) = (Vec::new(), Vec::new());
        Settings { values, rows, row: String::new(), base: None, is_sweep: false, links }
    }

    /// Nothing said, of a sweep.
    fn for_sweep() -> Self {
        Settings { is_sweep: true, ..Settings::new() }
    }

    /// The settings of one simulation, from a value for each key. Relative paths start at `base`.
    pub fn of_values(row: &str, values: &BTreeMap<String, String>, base: &Path) -> Result<Self, Trouble> {
        let mut settings = Settings::new().at_seed(0);
        settings.row = row.to_owned();
        settings.base = Some(base.to_owned());
        for (name, text) in values {
            let value = Value::whole(&format!("spec, {name}"), text.clone());
            let is_seed = name == "seed0";
            match KEYS.iter().position(|key| key.name == name).filter(|&key| is_seed || KEYS[key].is_swept())
            {
                Some(key) => settings.values[key] = Some(vec![value]),
                None => return Err(value.wrong(format!("{name:?} is no key of a spec"))),
            }
        }
        Ok(settings)
    }

    /// What one simulation is: the value of every key that has one, with paths as the scenario says
    /// them (those of the command line are made absolute), and every file that is named.
    ///
    /// # Panics
    /// If a key still has several values.
    pub fn to_values(&self) -> Result<(BTreeMap<String, String>, Vec<PathBuf>), Trouble> {
        let (mut values, mut files) = (BTreeMap::new(), Vec::new());
        for key in KEYS.iter().filter(|key| key.is_swept() || key.name == "seed0") {
            let all = self.all(key.name);
            let [value] = all.as_slice() else {
                assert!(all.is_empty(), "{} has one value", key.name);
                continue;
            };
            let mut text = value.text.clone();
            if key.names_file(value) {
                let is_flag = value.source.name() == "command line";
                let path = if is_flag { std::path::absolute(&text)? } else { PathBuf::from(&text) };
                text = path.display().to_string();
                files.push(path);
            }
            values.insert(key.name.to_owned(), text);
        }
        Ok((values, files))
    }

    /// The folder that relative paths start at.
    pub fn base(&self) -> &Path {
        self.base.as_deref().unwrap_or(Path::new(""))
    }

    /// The last part of every value that names a file, by key: what a file is called, not where it lies.
    pub fn without_folders(values: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let cut = |(name, text): (&String, &String)| {
            let value = Value::whole("spec", text.clone());
            let key = KEYS.iter().find(|key| key.name == name);
            (name.clone(), key.map_or_else(|| text.clone(), |key| key.name_of(&value)))
        };
        values.iter().map(cut).collect()
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

    /// What a command is told: the scenario or trace that it names first, the environment, its list of
    /// policies where it takes one, its flags. `before` is the command as error messages quote it. The
    /// second is the file, if one was named.
    pub fn of_command(matches: &ArgMatches, before: &str) -> Result<(Self, Option<PathBuf>), Trouble> {
        Self::told(Settings::new(), matches, before)
    }

    /// What a sweep is told: its file, the environment, its flags.
    pub fn of_sweep(matches: &ArgMatches) -> Result<(Self, Option<PathBuf>), Trouble> {
        Self::told(Settings::for_sweep(), matches, "kvlab sweep ")
    }

    fn told(
        mut settings: Settings,
        matches: &ArgMatches,
        before: &str,
    ) -> Result<(Self, Option<PathBuf>), Trouble> {
        let file = matches.get_one::<String>("file").map(PathBuf::from);
        if let Some(path) = file.as_ref().filter(|path| is_scenario(path)) {
            settings.read(path)?;
        }
        settings.take_environment()?;
        if let Some(path) = file.as_ref().filter(|path| !is_scenario(path)) {
            settings.set("trace", before, &path.display().to_string())?;
        }
        if let Some(list) = matches.try_get_one::<String>("list").ok().flatten() {
            settings.set("policies", &format!("{before}… "), list)?;
        }
        settings.take_flags(matches)?;
        Ok((settings, file))
    }

    /// Reads a scenario.
    pub fn read(&mut self, path: &Path) -> Result<(), Trouble> {
        let text =
            std::fs::read_to_string(path).map_err(|error| usage(format!("{}: {error}", path.display())))?;
        let source = Source::new(path.display().to_string(), text.clone());
        let table = toml::de::DeTable::parse(&text)
            .map_err(|error| usage(source.point(error.span().unwrap_or(0..0), error.message())))?;
        for (name, value) in table.get_ref() {
            if name.get_ref() == "row" {
                self.rows = rows(&source, &text, value)?;
                continue;
            }
            if name.get_ref() == "link" {
                if !self.is_sweep {
                    return Err(usage(source.point(name.span(), "linked keys are for `kvlab sweep`")));
                }
                self.links = grid::links(&source, &text, value)?;
                continue;
            }
            let key = known(&source, name)?;
            let mut values = Vec::new();
            collect(&source, &text, value, &mut values)?;
            if values.is_empty() || (values.len() > 1 && !self.takes_many(key)) {
                let message = format!(
                    "{} takes {}",
                    KEYS[key].name,
                    match KEYS[key].name {
                        "visible_devices" if !self.is_sweep => "one text, as \"0,1\"",
                        _ if self.takes_many(key) => "at least one value",
                        _ => "one value",
                    }
                );
                return Err(usage(source.point(value.span(), &message)));
            }
            self.values[key] = Some(values);
        }
        let linked = self.links.iter().flat_map(|link| &link.values);
        for (key, values) in linked {
            if self.values[*key].is_some() {
                return Err(
                    values[0].wrong(format!("{} stands above, too; link it or list it", KEYS[*key].name))
                );
            }
        }
        self.base = path.parent().map(Path::to_path_buf);
        Ok(())
    }

    /// Whether a key may have several values.
    fn takes_many(&self, key: usize) -> bool {
        KEYS[key].grid || (self.is_sweep && KEYS[key].is_swept())
    }

    /// The settings of every row that is asked for, in order; these settings themselves where the
    /// scenario has no rows.
    pub fn by_row(&self) -> Result<Vec<Settings>, Trouble> {
        let asked = self.all("rows");
        let names: Vec<&str> = self.rows.iter().map(|row| row.name.text.as_str()).collect();
        if let Some(unknown) = asked.iter().find(|value| !names.contains(&value.text.as_str())) {
            return Err(unknown.wrong(match names.as_slice() {
                [] => "the scenario has no rows".to_owned(),
                _ => format!("{:?} is not a row; the rows are {}", unknown.text, names.join(", ")),
            }));
        }
        if self.rows.is_empty() {
            return Ok(vec![self.clone()]);
        }
        let is_asked = |row: &&Row| asked.is_empty() || asked.iter().any(|name| name.text == row.name.text);
        self.rows.iter().filter(is_asked).map(|row| self.with_row(row)).collect()
    }

    fn with_row(&self, row: &Row) -> Result<Settings, Trouble> {
        let mut settings = Settings { rows: Vec::new(), row: row.name.text.clone(), ..self.clone() };
        for (key, value) in &row.values {
            if self.links.iter().any(|link| link.values.iter().any(|(linked, _)| linked == key)) {
                return Err(value.wrong(format!("{} is linked; a row cannot set it", KEYS[*key].name)));
            }
            settings.values[*key] = Some(vec![value.clone()]);
        }
        if self.is_sweep {
            return Ok(settings);
        }
        for key in KEYS.iter().filter(|key| key.in_rows && key.grid) {
            if let [_, second, ..] = settings.all(key.name).as_slice() {
                let message = format!("a scenario with rows takes one value of {}", key.name);
                return Err(match &settings.values[index(key.name)] {
                    Some(_) => second.wrong(message),
                    None => row.name.wrong(format!("{message}; set it above the rows")),
                });
            }
        }
        Ok(settings)
    }

    /// Name of the row that these settings are; empty if none.
    pub fn row(&self) -> &str {
        &self.row
    }

    /// Names of all rows.
    pub fn row_names(&self) -> Vec<&str> {
        self.rows.iter().map(|row| row.name.text.as_str()).collect()
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
        // The commas of a list of devices are its own.
        let is_list = self.takes_many(key) && name != "visible_devices";
        let parts: Vec<&str> = if is_list { text.split(',').collect() } else { vec![text] };
        for part in parts {
            let at = start..start + part.len();
            start = at.end + 1;
            if part.trim().is_empty() {
                return Err(usage(source.point(at, &format!("{name} has an empty value"))));
            }
            values.push(Value { text: part.trim().to_owned(), source: source.clone(), at });
        }
        self.values[key] = Some(values);
        for row in &mut self.rows {
            row.values.retain(|(set, _)| *set != key);
        }
        for link in &mut self.links {
            link.values.retain(|(set, _)| *set != key);
        }
        self.links.retain(|link| !link.values.is_empty());
        if name == "trace" || name == "generate" {
            let other = index(if name == "trace" { "generate" } else { "trace" });
            self.values[other] = None;
        }
        Ok(())
    }

    /// Whether a key has been given, in the file, the environment or a flag.
    pub fn is_given(&self, name: &str) -> bool {
        self.values[index(name)].is_some()
    }

    /// Forgets what was given for some keys.
    pub fn forget(&mut self, names: &[&str]) {
        for name in names {
            self.values[index(name)] = None;
        }
    }

    /// These settings without the rows of their scenario: what stands above them.
    pub fn above_rows(&self) -> Settings {
        let mut settings = Settings { rows: Vec::new(), ..self.clone() };
        settings.forget(&["rows", "reference", "engine"]);
        settings
    }

    /// The values of a key; its default where none was given.
    pub fn all(&self, name: &str) -> Vec<Value> {
        let key = index(name);
        if let Some(values) = &self.values[key] {
            return values.clone();
        }
        let default = KEYS[key].default.map(|text| text.split(',').collect::<Vec<_>>()).unwrap_or_default();
        default.into_iter().map(|text| Value::whole("defaults", text.to_owned())).collect()
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
        let quoted = |key: &Key, value: &Value| {
            let path = key.names_file(value).then(|| std::path::absolute(self.path(value)).ok()).flatten();
            let text = path.map_or_else(|| value.text.clone(), |path| path.display().to_string());
            toml::Value::String(text).to_string()
        };
        let mut text = String::new();
        for key in KEYS {
            let values = self.all(key.name);
            let list: Vec<String> = values.iter().map(|value| quoted(key, value)).collect();
            match list.as_slice() {
                [] => text += &format!("# {} is not set: {}\n", key.name, key.about),
                [one] => text += &format!("{} = {one}\n", key.name),
                many => text += &format!("{} = [{}]\n", key.name, many.join(", ")),
            }
        }
        for row in &self.rows {
            text += &format!("\n[[row]]\nname = {}\n", toml::Value::String(row.name.text.clone()));
            for (key, value) in &row.values {
                text += &format!("{} = {}\n", KEYS[*key].name, quoted(&KEYS[*key], value));
            }
        }
        text
    }
}

/// The number of a key of a scenario.
fn known(source: &Source, name: &toml::Spanned<toml::de::DeString<'_>>) -> Result<usize, Trouble> {
    KEYS.iter().position(|key| key.name == name.get_ref().as_ref()).ok_or_else(|| {
        let near = KEYS.iter().map(|key| key.name).max_by_key(|known| likeness(known, name.get_ref()));
        let near = near.unwrap_or_default();
        let message = format!("unknown key {:?}; did you mean {near:?}?", name.get_ref());
        usage(source.point(name.span(), &message))
    })
}

/// The rows of a scenario.
fn rows(
    source: &Source,
    text: &str,
    value: &toml::Spanned<toml::de::DeValue<'_>>,
) -> Result<Vec<Row>, Trouble> {
    use toml::de::DeValue;
    let wrong = |at: Range<usize>, message: &str| usage(source.point(at, message));
    let DeValue::Array(tables) = value.get_ref() else {
        return Err(wrong(value.span(), "expected tables: [[row]]"));
    };
    let mut rows: Vec<Row> = Vec::new();
    for table in tables.iter() {
        let DeValue::Table(entries) = table.get_ref() else {
            return Err(wrong(table.span(), "expected a table: [[row]]"));
        };
        let (mut name, mut values) = (None, Vec::new());
        for (key, value) in entries {
            let mut found = Vec::new();
            collect(source, text, value, &mut found)?;
            let [only] = found.as_slice() else {
                return Err(wrong(value.span(), "a row takes one value for each of its keys"));
            };
            if key.get_ref() == "name" {
                let text = only.text.trim().to_owned();
                if text.is_empty() || text.contains(|letter: char| letter == ',' || letter.is_control()) {
                    return Err(only.wrong("the name of a row is one line, not empty, without a comma"));
                }
                name = Some(Value { text, ..only.clone() });
                continue;
            }
            let index = known(source, key)?;
            if !KEYS[index].in_rows {
                let message = format!("{} is the same for all rows; set it above them", KEYS[index].name);
                return Err(wrong(key.span(), &message));
            }
            values.push((index, only.clone()));
        }
        let Some(name) = name else { return Err(wrong(table.span(), "a row needs a name")) };
        if rows.iter().any(|row| row.name.text == name.text) {
            return Err(name.wrong(format!("two rows are called {:?}", name.text)));
        }
        values.sort_by_key(|(key, _)| *key);
        rows.push(Row { name, values });
    }
    Ok(rows)
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
