//! `kvlab task`: one spec in, one result out, no files written.

use std::io::{Read, Write, stdin, stdout};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::ArgMatches;

use super::spec::{Done, Spec};
use crate::experiment::{Experiment, Library};
use crate::settings::Settings;
use crate::trouble::{Trouble, usage};

/// Bytes that a spec may have.
const SPEC_BYTES_MAX: u64 = 1 << 20;

/// Runs the one case of settings; `spec` is what it has to be. The second is how long the simulation itself took.
pub fn run(settings: &Settings, spec: &Spec, library: &Arc<Library>) -> Result<(Done, Duration), Trouble> {
    let experiment = Experiment::with_library(settings, library)?;
    let [(setting, seed)] = experiment.cases()[..] else {
        return Err(usage(format!(
            "a spec is one simulation, this makes {}; expected one workload and one of the policies",
            experiment.cases().len()
        )));
    };
    let found = Spec::of(settings, &experiment)?;
    if !spec.key.is_empty() && spec.key != found.key {
        return Err(usage(format!(
            "the key of the spec is {}, here it makes {}; expected the same version of kvlab and the same files",
            spec.key, found.key
        )));
    }
    let simulated = experiment.simulate(setting, seed, spec.map)?;
    let took = simulated.took;
    Ok((Done::new(&found, simulated), took))
}

/// `kvlab task`.
pub fn task(matches: &ArgMatches) -> Result<(), Trouble> {
    let base = matches.get_one::<String>("base").expect("the base has a default");
    let mut text = String::new();
    let read = stdin().lock().take(SPEC_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| usage(format!("standard input: {error}")))?;
    let wrong = |error: serde_json::Error| usage(format!("standard input: {error}; expected one spec"));
    let spec: Spec = serde_json::from_str(&text).map_err(wrong)?;
    let settings = Settings::of_values(&spec.row, &spec.settings, Path::new(base))?;
    let (done, _) = run(&settings, &spec, &Arc::default())?;
    Ok(stdout().write_all((serde_json::to_string(&done)? + "\n").as_bytes())?)
}
