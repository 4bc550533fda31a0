//! A fault of kvlab in the middle of a sweep: what the command line cannot make happen.

use std::fs;

use report::files::read_summary;
use report::table::Format;
use tempfile::tempdir;

use super::*;

const SWEEP: &str = "\
generate = \"chat\"
requests = 8
seeds = 3
policies = [\"contiguous\", \"paged\"]
model = \"gemma3-1b\"
memory = \"local=2048;global=2048\"
num_ctx = 512
num_parallel = 4
";

/// The settings of a sweep as its command reads them.
fn settings(file: &Path) -> Settings {
    fs::write(file, SWEEP).unwrap();
    let words = ["kvlab".as_ref(), "sweep".as_ref(), file.as_os_str()];
    let matches = crate::arguments::command().try_get_matches_from(words).unwrap();
    Settings::of_sweep(matches.subcommand().unwrap().1).unwrap().0
}

#[test]
fn a_panic_is_a_failure_of_its_own_simulation_and_of_no_other() {
    let dir = tempdir().unwrap();
    let settings = settings(&dir.path().join("grid.toml"));
    let out = dir.path().join("out");
    let sweep = Sweep::new(&settings).unwrap();
    let (store, places) = planned(&sweep, &Head::new(&settings, None, &[]), &out).unwrap();
    let keys: Vec<&str> = places.iter().map(|place| place.key.as_str()).collect();
    assert_eq!(keys.len(), 6);
    // One panics with a text that is made, another with one that is not; both after all the work.
    let (made, plain) = (keys[1], keys[4]);
    let faulty = |settings: &Settings, spec: &Spec, library: &Arc<Library>| {
        let done = task::run(settings, spec, library)?;
        assert!(spec.key != made, "cell {} has two owners", done.0.summary.requests);
        assert!(spec.key != plain, "a cell has no owner");
        Ok(done)
    };
    let tally = sweep.run(&places, &store, true, &faulty).unwrap();
    assert_eq!((tally.simulations, tally.failed), (6, 2));
    for key in &keys {
        let is_faulty = [made, plain].contains(key);
        assert_eq!((store.has(key), store.has_failed(key)), (!is_faulty, is_faulty), "{key}");
    }
    // The failure says what has failed and why.
    for (key, policy, seed, why) in
        [(made, "contiguous", "1", "cell 8 has two owners"), (plain, "paged", "1", "a cell has no owner")]
    {
        let failed = store.failed(key).unwrap().unwrap();
        assert_eq!(failed.error, format!("error: kvlab panicked: {why}"));
        assert_eq!((failed.key.as_str(), failed.settings["seed0"].as_str()), (key, seed));
        assert_eq!(failed.settings["policies"], policy);
    }
    // What is there is put together all the same, and the exit code is that of a failure.
    let wishes = Wishes {
        format: Format::Csv,
        reference: None,
        target: None,
        fronts: Vec::new(),
        fail_if: Vec::new(),
        quiet: true,
    };
    let trouble = collect::put_together(&out, &wishes).unwrap_err();
    assert_eq!(trouble.code(), 1);
    let said = trouble.text();
    assert!(said.contains("2 of 6 simulations failed") && said.contains(made), "{said}");
    assert!(said.contains("cell 8 has two owners"), "{said}");
    assert_eq!(read_summary(&out.join("summary.csv")).unwrap().len(), 4);
    // A kvlab without the fault goes on where this one was.
    let pending: Vec<Place> = places.into_iter().filter(|place| !store.has(&place.key)).collect();
    let tally = sweep.run(&pending, &store, true, &task::run).unwrap();
    assert_eq!((tally.simulations, tally.failed), (2, 0));
    collect::put_together(&out, &wishes).unwrap();
    assert_eq!(read_summary(&out.join("summary.csv")).unwrap().len(), 6);
}
