//! `sweep.toml`: what is said of a whole sweep and is no part of any simulation.

use clap::ArgMatches;
use report::files::write_text;
use report::metric::{self, Metric, metric};
use report::sweep::Pair;
use serde::{Deserialize, Serialize};

use super::store::Store;
use crate::compare::command_without;
use crate::settings::Settings;
use crate::trouble::{Source, Trouble, usage};

/// The head of a sweep. Folders of sweeps that something else has listed have none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Heading of the page.
    pub title: Option<String>,
    /// The question that it answers.
    pub question: Option<String>,
    /// Policy or row that the others are compared with.
    pub reference: Option<String>,
    /// Column that is compared.
    pub target: Option<String>,
    /// Columns that are drawn against each other, `held_peak_gib,latency_p99_ms`; the usual ones where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub front: Vec<String>,
    /// The command line that lists the sweep, without what makes no difference to results.
    pub command: Option<String>,
}

impl Head {
    /// The head of a sweep with these settings.
    pub fn new(settings: &Settings, target: Option<&'static Metric>, fronts: &[Pair]) -> Head {
        let text = |name: &str| settings.one(name).map(|value| value.text);
        let without = ["--shard", "--threads", "--out", "--format", "--fail-if"];
        Head {
            title: text("title"),
            question: text("question"),
            reference: text("reference"),
            target: target.map(|target| target.key.to_owned()),
            front: fronts.iter().map(|pair| format!("{},{}", pair.x.key, pair.y.key)).collect(),
            command: Some(command_without(&without, &["--quiet", "-q", "--plan"])),
        }
    }

    /// Writes it into the folder of the sweep.
    pub fn write(&self, store: &Store) -> Result<(), Trouble> {
        Ok(write_text(&store.head(), &toml::to_string(self)?)?)
    }

    /// Reads it; an empty one where there is none.
    pub fn read(store: &Store) -> Result<Head, Trouble> {
        let path = store.head();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Head::default()),
            Err(error) => return Err(usage(format!("{}: {error}", path.display()))),
        };
        let source = Source::new(path.display().to_string(), text.clone());
        let wrong =
            |error: toml::de::Error| usage(source.point(error.span().unwrap_or(0..0), error.message()));
        toml::from_str(&text).map_err(wrong)
    }

    /// The column that is compared, if the sweep names one.
    pub fn target(&self, store: &Store) -> Result<Option<&'static Metric>, Trouble> {
        let Some(name) = &self.target else { return Ok(None) };
        let wrong =
            || usage(format!("{}: {name:?} is no column that can be compared", store.head().display()));
        wished(name).map(Some).ok_or_else(wrong)
    }

    /// The columns that are drawn against each other, if the sweep names any.
    pub fn fronts(&self, store: &Store) -> Result<Vec<Pair>, Trouble> {
        let wrong = |text: &str| usage(format!("{}: {text:?}; {PAIR}", store.head().display()));
        self.front.iter().map(|text| pair(text).ok_or_else(|| wrong(text))).collect()
    }
}

/// What is expected of `--front`.
const PAIR: &str = "expected two different columns that can be compared, as held_peak_gib,latency_p99_ms";

/// A metric of which more is better, or less.
fn wished(name: &str) -> Option<&'static Metric> {
    metric(name).filter(|metric| metric.better.is_some())
}

/// Two columns, the one across first.
fn pair(text: &str) -> Option<Pair> {
    let (x, y) = text.split_once(',')?;
    Pair::new(wished(x.trim())?, wished(y.trim())?)
}

/// Names of what can be compared.
fn comparable() -> String {
    let known = metric::all().filter(|metric| metric.better.is_some());
    known.map(|metric| metric.key).collect::<Vec<_>>().join(", ")
}

/// The columns that every `--front` names.
pub fn fronts_of(matches: &ArgMatches) -> Result<Vec<Pair>, Trouble> {
    let texts = matches.get_many::<String>("front").into_iter().flatten();
    let one = |text: &String| {
        pair(text).ok_or_else(|| {
            let before = "--front ";
            let source = Source::new("command line".into(), format!("{before}{text}"));
            let message = format!("{PAIR}; the columns are {}", comparable());
            usage(source.point(before.len()..before.len() + text.len(), &message))
        })
    };
    texts.map(one).collect()
}

/// The column that `--target` names.
pub fn target_of(matches: &ArgMatches) -> Result<Option<&'static Metric>, Trouble> {
    let Some(name) = matches.get_one::<String>("target") else { return Ok(None) };
    wished(name).map(Some).ok_or_else(|| {
        let before = "--target ";
        let source = Source::new("command line".into(), format!("{before}{name}"));
        let message = format!("{name:?} cannot be compared; expected one of {}", comparable());
        usage(source.point(before.len()..before.len() + name.len(), &message))
    })
}
