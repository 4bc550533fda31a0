//! The back-ends against a measured profile (Llama 3.1 8B bf16 on an RTX 4090), if it is there:
//! `KVLAB_GOLDEN` names the folder that has `vllm-4090` in it.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use sim::cost::fit::{Fitted, Sample, fit_with_bootstrap};
use sim::cost::profile::{Profile, ProfileError};
use sim::cost::roofline::Roofline;
use sim::cost::table::Table;
use sim::cost::{CostModel, Prefill, Work, sweep};
use sim::hardware::{self, Gpu};
use sim::model::{self, KvType, Model, WeightType};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// Cells that the engine had beside the weights: no real step reads more.
const CELLS: u64 = 2588 * 16;

struct Lab {
    model: Model,
    gpu: Gpu,
    profile: Profile,
    table: Table,
}

/// The profile and what it is of; none, with a word on stderr, where the folder is missing.
fn lab() -> Option<Lab> {
    let folder = golden()?;
    let (model, _) = model::find("llama-3.1-8b").unwrap();
    let gpu = hardware::find("rtx4090").unwrap();
    let profile = Profile::read(&folder).unwrap();
    let table = Table::new(profile.clone(), &model, KvType::F16, &gpu).unwrap();
    Some(Lab { model, gpu, profile, table })
}

fn golden() -> Option<PathBuf> {
    let root = match std::env::var_os("KVLAB_GOLDEN") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden"),
    };
    let folder = root.join("vllm-4090");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: {} is not there; set KVLAB_GOLDEN", folder.display());
    None
}

impl Lab {
    fn calibrate(&self) -> Fitted {
        let works = sweep::designed(&self.model);
        let samples: Vec<Sample> = works
            .into_iter()
            .map(|work| Sample { step_ns: self.table.step_ns(&work), work, weight: 1.0 })
            .collect();
        let bf16 = WeightType::Bf16;
        fit_with_bootstrap(&samples, &self.model, bf16, KvType::F16, &self.gpu, 200, 1).unwrap()
    }

    fn fitted(&self, fitted: &Fitted) -> Roofline {
        fitted.cost(&self.model, WeightType::Bf16, KvType::F16, &self.gpu).unwrap()
    }

    fn step(&self, point: [u32; 4]) -> Work {
        let [tokens, context, decodes, cells] = point;
        let piece = (tokens > 0).then_some(Prefill { tokens, context });
        sweep::step(&self.model, decodes, cells, piece)
    }

    /// The points of the attention grid that fit into the engine's cells.
    fn grid(&self) -> Vec<[u32; 4]> {
        let whole = |axis: &[f64]| -> Vec<u32> { axis.iter().map(|place| *place as u32).collect() };
        let decode = [0, 1].map(|dim| whole(self.profile.decode.axis(dim)));
        let mixed = [0, 1, 2, 3].map(|dim| whole(self.profile.mixed.axis(dim)));
        let mut points = Vec::new();
        for n in &decode[0] {
            points.extend(decode[1].iter().map(|kv| [0, 0, *n, *kv]));
        }
        for c in &mixed[0] {
            for k in &mixed[1] {
                points.push([*c, *k, 0, 0]);
                for n in &mixed[2] {
                    points.extend(mixed[3].iter().map(|kv| [*c, *k, *n, *kv]));
                }
            }
        }
        points.retain(|[c, k, n, kv]| u64::from(c + k) + u64::from(*n) * u64::from(*kv) <= CELLS);
        points
    }
}

fn regime(work: &Work) -> &'static str {
    match (work.prefills.is_empty(), work.decodes) {
        (true, _) => "decode",
        (false, 0) => "prefill",
        (false, _) => "mixed",
    }
}

/// Mean absolute relative error by regime, in percent.
fn errors(works: &[Work], truth: &dyn CostModel, model: &dyn CostModel) -> BTreeMap<&'static str, f64> {
    let mut sums: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for work in works {
        let error = model.step_ns(work) as f64 / truth.step_ns(work) as f64 - 1.0;
        let sum = sums.entry(regime(work)).or_default();
        sum.0 += 100.0 * error.abs();
        sum.1 += 1.0;
    }
    sums.into_iter().map(|(regime, (sum, count))| (regime, sum / count)).collect()
}

/// Steps as a saturated engine makes them: any size, not only those of the grid.
fn everyday_steps(lab: &Lab) -> Vec<Work> {
    let mut state = 1_u64;
    let mut draw = |low: u32, high: u32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        low + ((state >> 33) % u64::from(high - low)) as u32
    };
    let mut works = Vec::new();
    for _ in 0..1000 {
        let [decodes, cells] = [draw(8, 96), draw(128, 2048)];
        let cells = cells.min(CELLS as u32 / decodes);
        let [tokens, context] = [draw(128, 1900), draw(0, 1024)];
        works.push(lab.step([0, 0, decodes, cells]));
        works.push(lab.step([tokens, context, 0, 0]));
        works.push(lab.step([tokens, context, decodes, cells]));
    }
    works
}

#[test]
fn fifteen_steps_calibrate_the_roofline() {
    let Some(lab) = lab() else { return };
    let fitted = lab.calibrate();
    let cost = lab.fitted(&fitted);
    assert!(fitted.error_mean < 0.03, "{}", fitted.error_mean);

    let grid: Vec<Work> = lab.grid().into_iter().map(|point| lab.step(point)).collect();
    let on_grid = errors(&grid, &lab.table, &cost);
    println!("grid, percent: {on_grid:.2?}");
    assert!(on_grid["decode"] < 6.0 && on_grid["prefill"] < 12.0 && on_grid["mixed"] < 10.0);

    let everyday = everyday_steps(&lab);
    let in_use = errors(&everyday, &lab.table, &cost);
    println!("everyday steps, percent: {in_use:.2?}");
    assert!(in_use["decode"] < 5.0 && in_use["prefill"] < 8.0 && in_use["mixed"] < 8.0);

    let spec = Roofline::spec(&lab.model, WeightType::Bf16, KvType::F16, &lab.gpu);
    let uncalibrated = errors(&everyday, &lab.table, &spec);
    println!("the same, spec: {uncalibrated:.2?}");
    assert!(uncalibrated.values().all(|error| *error < 25.0));

    let inside = |work: &&Work| {
        let (low, high) = fitted.interval_ns(&cost, work, 0.95).unwrap();
        (low..=high).contains(&lab.table.step_ns(work))
    };
    let part = everyday.iter().filter(inside).count() as f64 / everyday.len() as f64;
    println!("inside the 95 % interval: {part:.3}");
    assert!(part > 0.85, "{part}");
}

#[test]
fn equal_seeds_give_equal_calibrations_and_toml_keeps_them() {
    let Some(lab) = lab() else { return };
    let fitted = lab.calibrate();
    assert_eq!(fitted, lab.calibrate());
    assert_eq!(fitted, Fitted::from_toml(&fitted.to_toml().unwrap()).unwrap());
    assert_eq!(fitted.resampled.len(), 200);
    let other = model::find("gemma3-1b").unwrap().0;
    let error = fitted.cost(&other, WeightType::Bf16, KvType::F16, &lab.gpu).unwrap_err();
    assert!(error.to_string().contains("not for gemma3-1b"), "{error}");
}

#[test]
fn the_table_gives_back_what_was_measured() {
    let Some(lab) = lab() else { return };
    // Llama on one layer: 9.31067 us of attention for one sequence of 16 cells, 9.546 for a
    // prompt of 16 tokens.
    let decode = lab.profile.decode.at([1.0, 16.0]);
    assert!((decode - 9310.67).abs() < 0.01, "{decode}");
    let layers = 32.0;
    let one = lab.step([0, 0, 1, 16]);
    let two = lab.step([0, 0, 1, 32]);
    let more = lab.table.step_ns(&two) as f64 - lab.table.step_ns(&one) as f64;
    let measured = layers * (lab.profile.decode.at([1.0, 32.0]) - decode);
    assert!((more - measured).abs() <= 1.0, "{more} {measured}");
    // a step of one token is mostly the reading of 16 GB: 14.95 ms of layers, 1.1 ms of output
    let total = lab.table.step_ns(&one) as f64 / 1e6;
    assert!((16.0..17.5).contains(&total), "{total}");
}

#[test]
fn the_table_grows_with_the_work_beyond_its_grid() {
    let Some(lab) = lab() else { return };
    let at = |point| lab.table.step_ns(&lab.step(point));
    assert!(at([0, 0, 400, 512]) > at([0, 0, 256, 512]));
    assert!(at([0, 0, 2, 40_000]) > at([0, 0, 2, 16_384]));
    assert!(at([4096, 0, 0, 0]) > at([2048, 0, 0, 0]));
    assert!(at([512, 0, 200, 512]) > at([512, 0, 128, 512]));
    let one = lab.step([600, 0, 0, 0]);
    let mut split = lab.step([300, 0, 0, 0]);
    split.prefills.push(Prefill { tokens: 300, context: 0 });
    split.tokens = 600;
    split.samples = 1;
    assert!(lab.table.step_ns(&split) < lab.table.step_ns(&one), "less work under the mask");
}

#[test]
fn half_of_the_attention_grid_predicts_the_other_half() {
    let Some(lab) = lab() else { return };
    let folder = scratch("half");
    let golden = golden().unwrap();
    for name in ["profile_dense.csv", "profile_per_sequence.csv"] {
        fs::copy(golden.join(name), folder.join(name)).unwrap();
    }
    // keeps 1, 4, 16, 64, 256, 1024 ... on every axis, and 0
    let kept = |place: u32| place == 0 || place.trailing_zeros().is_multiple_of(2);
    let kept_row = |line: &str| line.split(',').take(4).all(|field| kept(field.parse().unwrap()));
    let text = fs::read_to_string(golden.join("profile_attention.csv")).unwrap();
    let mut half = String::new();
    for (index, line) in text.lines().enumerate() {
        if index == 0 || kept_row(line) {
            writeln!(half, "{line}").unwrap();
        }
    }
    fs::write(folder.join("profile_attention.csv"), half).unwrap();
    let coarse = Profile::read(&folder).unwrap();
    let coarse = Table::new(coarse, &lab.model, KvType::F16, &lab.gpu).unwrap();
    let mut dropped = lab.grid();
    dropped.retain(|point| !point.iter().all(|place| kept(*place)));
    let works: Vec<Work> = dropped.into_iter().map(|point| lab.step(point)).collect();
    let halved = errors(&works, &lab.table, &coarse);
    println!("points left out of the grid, percent: {halved:.2?}");
    assert!(halved["decode"] < 2.0 && halved["prefill"] < 4.0 && halved["mixed"] < 6.0);
}

#[test]
fn a_broken_profile_says_file_line_and_field() {
    let folder = scratch("broken");
    let fill = |dense: &str, attention: &str| {
        fs::write(folder.join("profile_dense.csv"), dense).unwrap();
        let samples = "layer,sequences,time_us\nlm_head,1,9\n";
        fs::write(folder.join("profile_per_sequence.csv"), samples).unwrap();
        fs::write(folder.join("profile_attention.csv"), attention).unwrap();
        Profile::read(&folder)
    };
    let header = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n";
    let dense = "layer,tokens,time_us\nqkv,1,5\nqkv,2,5.5\n";
    let good = format!("{header}0,0,1,16,3\n16,0,0,0,4\n16,0,1,16,6\n");
    assert!(fill(dense, &good).is_ok());

    let message = |dense: &str, attention: &str| fill(dense, attention).unwrap_err().to_string();
    let error = message("layer,tokens,time_us\nqkv,1,fast\n", &good);
    assert!(error.contains("profile_dense.csv, line 2, field time_us"), "{error}");
    let error = message("layer,tokens,time_us\nqkv,1\n", &good);
    assert!(error.contains("line 2: 2 fields instead of 3"), "{error}");
    let error = message("layer,tokens,time_us\nqkv,1,5\nqkv,1,5\n", &good);
    assert!(error.contains("line 3: this point was given before"), "{error}");
    let error = message("layer;tokens\n", &good);
    assert!(error.contains("the header must be"), "{error}");
    let error = message(dense, header);
    assert!(error.contains("no row for decoding alone"), "{error}");
    let holed = format!("{good}32,0,0,0,4\n32,16,0,0,5\n");
    let error = message(dense, &holed);
    assert!(error.contains("[16, 16, 0, 0]"), "{error}");
    fs::remove_file(folder.join("profile_attention.csv")).unwrap();
    assert!(matches!(Profile::read(&folder), Err(ProfileError::Read { .. })));
}

#[test]
fn a_profile_is_of_one_class_without_window() {
    let folder = scratch("class");
    fs::write(folder.join("profile_dense.csv"), "layer,tokens,time_us\nqkv,1,5\n").unwrap();
    let samples = "layer,sequences,time_us\nlm_head,1,9\n";
    fs::write(folder.join("profile_per_sequence.csv"), samples).unwrap();
    let attention = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n\
                     0,0,1,16,3\n16,0,0,0,4\n16,0,1,16,6\n";
    fs::write(folder.join("profile_attention.csv"), attention).unwrap();
    let profile = Profile::read(&folder).unwrap();
    let (gemma, _) = model::find("gemma3-1b").unwrap();
    let gpu = hardware::find("rtx4090").unwrap();
    let error = Table::new(profile, &gemma, KvType::F16, &gpu).unwrap_err();
    assert!(error.to_string().contains("gemma3-1b has others"), "{error}");
}

fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}
