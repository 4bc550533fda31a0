//! Every setting of an experiment: one table, read from a scenario file, the environment and flags.
//!
//! A key of a scenario is a flag with dashes instead of underscores and a `KVLAB_` variable in
//! capitals. A flag beats the environment, the environment beats the file, the file beats the
//! default. A scenario may have rows, each of which sets some keys otherwise (`[[row]]`); flags and the
//! environment beat these too. Whatever is wrong with a value, the message shows where it came from.

mod grid;
mod keys;
mod scenario;
mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::trouble::{Source, Trouble, usage};
use grid::Link;
use keys::index;
use scenario::{Row, is_scenario};

pub use grid::Grid;
pub use keys::KEYS;
pub use value::Value;

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
}
