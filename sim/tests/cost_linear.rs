//! The back-end `linear`: features against a naive count, rates recovered from steps, the file.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use sim::cost::linear::{
    Calibration, FitOptions, Kind, Layout, Linear, LinearError, Made, Measured, Operating, fit,
};
use sim::cost::{CostModel, Moves, Prefill, Work};
use sim::hardware;
use sim::model::{KvType, Model, WeightType};
use traces::random::{STEP, scramble};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        scramble(self.0)
    }

    fn upto(&mut self, most: u32) -> u32 {
        (self.next() % (u64::from(most) + 1)) as u32
    }

    /// About normal, mean 0, deviation 1.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.next() as f64 / u64::MAX as f64).sum::<f64>() - 6.0
    }
}

fn tiny() -> Model {
    let text = r#"
        name = "tiny"
        hidden = 64
        query_heads = 4
        kv_heads = 2
        head_dim = 32
        ffn = 160
        vocab = 512
        max_positions = 4096
        tied = true
        classes = [{ name = "local", layers = 6, window = 16 }, { name = "global", layers = 1 }]
    "#;
    Model::from_toml(text).unwrap()
}

/// A step of sequences that decode with so many tokens of context each, and pieces of prompts.
fn step(model: &Model, contexts: &[u32], pieces: &[(u32, u32)]) -> Work {
    let reads = model.classes.iter().map(|class| {
        contexts.iter().map(|&context| u64::from(class.window.unwrap_or(u32::MAX).min(context))).sum()
    });
    let prefills: Vec<Prefill> =
        pieces.iter().map(|&(tokens, context)| Prefill { tokens, context }).collect();
    let sequences = (contexts.len() + pieces.len()) as u32;
    Work {
        tokens: contexts.len() as u32 + pieces.iter().map(|piece| piece.0).sum::<u32>(),
        sequences,
        samples: contexts.len() as u32 + (pieces.len() / 2) as u32,
        decodes: contexts.len() as u32,
        prefills,
        decode_reads: reads.collect(),
        ..Work::default()
    }
}

fn random_work(model: &Model, random: &mut Random) -> Work {
    let mut contexts = Vec::new();
    for _ in 0..random.upto(8) {
        contexts.push(1 + random.upto(500));
    }
    let mut pieces = Vec::new();
    for _ in 0..random.upto(3) {
        pieces.push((1 + random.upto(60), random.upto(300)));
    }
    if contexts.is_empty() && pieces.is_empty() {
        contexts.push(3);
    }
    let mut work = step(model, &contexts, &pieces);
    if random.upto(3) == 0 {
        work.walked = vec![random.next() % 300, random.next() % 3000];
    }
    work
}

fn random_moves(random: &mut Random) -> Work {
    let mut two = |most: u32| vec![u64::from(random.upto(most)), u64::from(random.upto(most))];
    let mut moves = Moves { copied_cells: two(500), ..Moves::default() };
    let (rotated, swapped) = (two(300), two(400));
    moves.copies = 1 + u64::from(random.upto(40));
    if random.upto(1) == 0 {
        moves.rotated_cells = rotated;
        moves.rotations = 1 + u64::from(random.upto(9));
    }
    if random.upto(1) == 0 {
        moves.swapped_cells = swapped;
    }
    Work { moves, ..Work::default() }
}

/// Rates of some engine, all positive.
fn truth(layout: &Layout) -> Linear {
    let mut random = Random(99);
    let rates = layout.names().into_iter().map(|name| {
        let scale = match name.as_str() {
            "step" => 20_000.0,
            "step that samples" | "step that swaps" => 8_000.0,
            name if name.starts_with("token") => 3_000.0,
            name if name.contains("in vain") => 0.4,
            name if name.contains("launch") => 700.0,
            name if name.contains("cell") => 90.0,
            name if name.contains("pair") || name.contains("read") => 25.0,
            _ => 1_500.0,
        };
        scale * (0.5 + random.upto(1000) as f64 / 1000.0)
    });
    Linear::new(layout.clone(), rates.collect())
}

fn measure(work: Work, truth: &Linear, noise: f64, random: &mut Random) -> Measured {
    let ns = truth.ns(&work);
    let rounds_ns = (0..5).map(|_| ns * (noise * random.normal()).exp()).collect();
    Measured { work, rounds_ns, weight: 1.0, held_out: false }
}

fn sweep(truth: &Linear, count: usize, noise: f64, seed: u64) -> Vec<Measured> {
    let (model, mut random) = (tiny(), Random(seed));
    let mut all = Vec::new();
    for at in 0..count {
        let work = if at % 4 == 3 { random_moves(&mut random) } else { random_work(&model, &mut random) };
        all.push(measure(work, truth, noise, &mut random));
    }
    all
}

fn layout() -> Layout {
    Layout::new(&tiny(), 200)
}

const FEW: FitOptions = FitOptions { draws: 40, folds: 5, seed: 1 };

/// The features token by token, with nothing clever.
fn counted(layout: &Layout, work: &Work) -> Vec<f64> {
    let mut features = vec![0.0; layout.len()];
    let names = layout.names();
    let mut add = |name: &str, count: f64| {
        features[names.iter().position(|known| known == name).unwrap_or_else(|| panic!("{name}"))] += count;
    };
    if work.tokens > 0 {
        add("step", 1.0);
    }
    if work.samples > 0 {
        add("step that samples", 1.0);
    }
    add("sample", f64::from(work.samples));
    add("sequence", f64::from(work.sequences));
    let ranges = ["token 1 to 4", "token 5 to 16", "token 17 to 64", "token from 65 on"];
    for token in 1..=work.tokens {
        add(ranges[[4, 16, 64].iter().filter(|&&end| token > end).count()], 1.0);
    }
    for (class, window) in [("local", Some(16)), ("global", None)] {
        for piece in &work.prefills {
            for new in 0..piece.tokens {
                let at = piece.context + new;
                let seen = (0..=at).filter(|cell| window.is_none_or(|window| cell + window > at)).count();
                add(&format!("prompt pair, {class}"), seen as f64);
            }
            let before = (0..piece.context).filter(|cell| window.is_none_or(|w| cell + w >= piece.context));
            add(&format!("context re-read, {class}"), before.count() as f64);
        }
        let at = usize::from(class == "global");
        let of_class = |cells: &[u64]| cells.get(at).copied().unwrap_or(0);
        add(&format!("decode read, {class}"), of_class(&work.decode_reads) as f64);
        let mut read = of_class(&work.decode_reads);
        for new in work.prefills.iter().flat_map(|piece| piece.context..piece.context + piece.tokens) {
            read += u64::from(window.map_or(new + 1, |window| window.min(new + 1)));
        }
        let walked = of_class(&work.walked) * u64::from(work.tokens);
        add(&format!("pair in vain, {class}"), walked.saturating_sub(read) as f64);
        let moves = &work.moves;
        for (what, cells) in [
            ("copied", &moves.copied_cells),
            ("rotated", &moves.rotated_cells),
            ("swapped", &moves.swapped_cells),
        ] {
            let cells = cells.get(at).copied().unwrap_or(0);
            let turned = if what == "rotated" { of_class(&work.turned) } else { 0 };
            add(&format!("{what} cell, {class}"), (cells + turned) as f64);
        }
    }
    for (name, commands, cells) in [
        ("copy launch", work.moves.copies, &work.moves.copied_cells),
        ("rotate launch", work.moves.rotations, &work.moves.rotated_cells),
    ] {
        let layers = match cells.as_slice() {
            [0, 0] | [] => 0.0,
            [_, 0] => 6.0,
            [0, _] => 1.0,
            _ => 3.5,
        };
        add(name, commands as f64 * layers);
    }
    if work.moves.swapped_cells.iter().sum::<u64>() > 0 {
        add("step that swaps", 1.0);
    }
    features
}

#[test]
fn features_are_those_of_a_naive_count() {
    let (layout, model, mut random) = (layout(), tiny(), Random(3));
    assert_eq!(layout.ranges, [0, 4, 16, 64]);
    for _ in 0..300 {
        let mut work = random_work(&model, &mut random);
        if random.upto(1) == 0 {
            work.moves = random_moves(&mut random).moves;
        }
        if random.upto(1) == 0 {
            work.turned = vec![u64::from(random.upto(90)), u64::from(random.upto(90))];
        }
        assert_eq!(layout.features(&work), counted(&layout, &work), "{work:?}");
    }
    assert_eq!(layout.features(&Work::default()), vec![0.0; layout.len()]);
}

#[test]
fn a_price_is_the_sum_of_computing_and_moves() {
    let (layout, model, mut random) = (layout(), tiny(), Random(4));
    let cost = truth(&layout);
    for _ in 0..50 {
        let computing = random_work(&model, &mut random);
        let moves = random_moves(&mut random).moves;
        let both = Work { moves: moves.clone(), ..computing.clone() };
        assert!((cost.ns(&both) - cost.compute_ns(&both) - cost.moves_ns(&moves)).abs() < 1e-6);
        assert!((cost.compute_ns(&both) - cost.ns(&computing)).abs() < 1e-6);
        assert_eq!(cost.step_ns(&both), (cost.ns(&both) + 0.5) as u64);
    }
    assert_eq!(cost.step_ns(&Work::default()), 0);
    assert_eq!(cost.name(), "linear");
}

#[test]
fn steps_made_by_known_rates_are_explained() {
    let layout = layout();
    let truth = truth(&layout);
    let found = fit(&sweep(&truth, 160, 0.0, 7), &layout, &FEW).unwrap();
    for step in sweep(&truth, 60, 0.0, 1234) {
        let ratio = found.linear.ns(&step.work) / truth.ns(&step.work);
        assert!((ratio - 1.0).abs() < 0.01, "{ratio} {:?}", step.work);
    }
    for step in found.unseen_ns.iter().zip(sweep(&truth, 160, 0.0, 7)) {
        assert!((step.0 / step.1.ns() - 1.0).abs() < 0.05);
    }
}

#[test]
fn noise_of_three_percent_is_averaged_out_and_shows_in_the_draws() {
    let layout = layout();
    let truth = truth(&layout);
    let found = fit(&sweep(&truth, 160, 0.03, 8), &layout, &FEW).unwrap();
    assert_eq!(found.draws.len(), FEW.draws);
    let mut inside = 0;
    let unseen = sweep(&truth, 100, 0.0, 4321);
    for step in &unseen {
        let known = truth.ns(&step.work);
        let ratio = found.linear.ns(&step.work) / known;
        assert!((ratio - 1.0).abs() < 0.06, "{ratio} {:?}", step.work);
        let drawn: Vec<f64> =
            found.draws.iter().map(|draw| Linear::new(layout.clone(), draw.clone()).ns(&step.work)).collect();
        let low = drawn.iter().copied().fold(f64::INFINITY, f64::min);
        let high = drawn.iter().copied().fold(0.0, f64::max);
        inside += usize::from((low..=high).contains(&known));
    }
    assert!(inside >= 85, "{inside} of 100 within the draws");
}

#[test]
fn one_wild_measurement_does_little() {
    let layout = layout();
    let truth = truth(&layout);
    let mut measured = sweep(&truth, 160, 0.01, 9);
    measured[5].rounds_ns.iter_mut().for_each(|ns| *ns *= 4.0);
    measured[7].rounds_ns.iter_mut().for_each(|ns| *ns *= 4.0);
    let found = fit(&measured, &layout, &FEW).unwrap();
    for step in sweep(&truth, 60, 0.0, 77) {
        let ratio = found.linear.ns(&step.work) / truth.ns(&step.work);
        assert!((ratio - 1.0).abs() < 0.05, "{ratio} {:?}", step.work);
    }
}

#[test]
fn a_wild_round_does_little() {
    let layout = layout();
    let truth = truth(&layout);
    let mut measured = sweep(&truth, 120, 0.0, 10);
    for step in &mut measured {
        step.rounds_ns[2] *= 10.0;
    }
    let found = fit(&measured, &layout, &FEW).unwrap();
    let work = step(&tiny(), &[100, 200], &[(20, 50)]);
    assert!((found.linear.ns(&work) / truth.ns(&work) - 1.0).abs() < 0.01);
}

#[test]
fn rounds_in_which_the_machine_was_slower_count_by_their_mean() {
    let layout = layout();
    let truth = truth(&layout);
    let mut measured = sweep(&truth, 120, 0.0, 10);
    for step in &mut measured {
        step.rounds_ns[2] *= 1.5;
    }
    let found = fit(&measured, &layout, &FEW).unwrap();
    let work = step(&tiny(), &[100, 200], &[(20, 50)]);
    assert!((found.linear.ns(&work) / truth.ns(&work) - 1.1).abs() < 0.01);
}

#[test]
fn prices_never_fall_when_a_step_has_more_to_do() {
    let (layout, model, mut random) = (layout(), tiny(), Random(11));
    // Times that no rates explain: the fit may do what it likes, but stays monotone.
    let mut measured = sweep(&truth(&layout), 80, 0.5, 12);
    measured.iter_mut().step_by(3).for_each(|step| step.rounds_ns.iter_mut().for_each(|ns| *ns = 1e5));
    let found = fit(&measured, &layout, &FEW).unwrap().linear;
    assert!(found.rates().iter().all(|rate| rate.is_finite() && *rate >= 0.0));
    for _ in 0..200 {
        let mut work = random_work(&model, &mut random);
        work.walked = vec![5, 6];
        work.moves = random_moves(&mut random).moves;
        let before = found.ns(&work);
        assert!(before >= 0.0);
        match random.upto(7) {
            0 => work.tokens += 1,
            1 => work.samples += 1,
            2 => work.sequences += 1,
            3 => work.decode_reads[0] += 1,
            4 => work.prefills.push(Prefill { tokens: 1, context: 9 }),
            5 => work.walked[1] += 1,
            6 => work.moves.copies += 1,
            _ => work.moves.swapped_cells = vec![2000, 3000],
        }
        assert!(found.ns(&work) >= before);
    }
}

#[test]
fn steps_that_are_held_out_do_not_touch_the_rates() {
    let layout = layout();
    let truth = truth(&layout);
    let measured = sweep(&truth, 120, 0.02, 13);
    let mut more = measured.clone();
    for mut step in sweep(&truth, 10, 0.0, 14) {
        step.held_out = true;
        step.rounds_ns.iter_mut().for_each(|ns| *ns *= 3.0);
        more.push(step);
    }
    let [without, with] = [measured, more].map(|steps| fit(&steps, &layout, &FEW).unwrap());
    assert_eq!(without.linear, with.linear);
    assert_eq!(without.draws, with.draws);
    let last = with.unseen_ns.len() - 1;
    assert_eq!(with.unseen_ns[last].to_bits(), with.linear.ns(&sweep(&truth, 10, 0.0, 14)[9].work).to_bits());
}

#[test]
fn equal_seeds_give_equal_fits() {
    let layout = layout();
    let measured = sweep(&truth(&layout), 60, 0.02, 15);
    let first = fit(&measured, &layout, &FEW).unwrap();
    assert_eq!(first, fit(&measured, &layout, &FEW).unwrap());
    assert_ne!(first.draws, fit(&measured, &layout, &FitOptions { seed: 2, ..FEW }).unwrap().draws);
}

#[test]
fn useless_measurements_are_refused() {
    let layout = layout();
    let measured = sweep(&truth(&layout), 40, 0.0, 16);
    let refusal = |change: &dyn Fn(&mut Vec<Measured>)| {
        let mut steps = measured.clone();
        change(&mut steps);
        fit(&steps, &layout, &FEW).unwrap_err().to_string()
    };
    assert_eq!(refusal(&|steps| steps.truncate(9)), "7 measured steps of computing, at least 8 are needed");
    assert_eq!(
        refusal(&|steps| steps[6].rounds_ns[1] = 0.0),
        "measured step 6: it takes no time, or no finite one"
    );
    assert_eq!(refusal(&|steps| steps[2].work = Work::default()), "measured step 2: it does nothing");
    assert_eq!(refusal(&|steps| steps[3].work.tokens = 1), "measured step 3: it computes and moves at once");
    assert_eq!(
        refusal(&|steps| {
            steps[4].rounds_ns.pop();
        }),
        "measured step 4: it has other rounds than the first"
    );
    assert_eq!(
        refusal(&|steps| steps[1].weight = -1.0),
        "measured step 1: the weight is not a number from 0 up"
    );
    assert!(refusal(&|steps| steps.iter_mut().for_each(|step| step.held_out = true)).contains("at least 8"));
}

fn made() -> Made {
    Made {
        model: tiny(),
        weights: WeightType::Bf16,
        kv: KvType::F32,
        gpu: "cpu".to_owned(),
        device: "CPU, 2 threads".to_owned(),
        threads: 2,
        seed: 1,
    }
}

fn calibration() -> Calibration {
    let layout = layout();
    let mut measured = sweep(&truth(&layout), 80, 0.02, 17);
    measured.iter_mut().step_by(7).for_each(|step| step.held_out = true);
    let fit = fit(&measured, &layout, &FEW).unwrap();
    Calibration::new(made(), &measured, &fit)
}

#[test]
fn a_calibration_survives_its_file() {
    let calibration = calibration();
    let text = calibration.to_toml().unwrap();
    assert_eq!(Calibration::from_toml(&text).unwrap(), calibration);
    for kind in Kind::ALL {
        assert!(calibration.held_out.of(kind).is_some_and(|error| error < 0.15), "{kind:?}");
        assert!(calibration.cross_validated.of(kind).is_some_and(|error| error < 0.15), "{kind:?}");
    }
    assert!((0.005..0.04).contains(&calibration.noise), "{}", calibration.noise);
    assert!(calibration.drift < 0.02, "{}", calibration.drift);
}

#[test]
fn a_broken_file_says_what_is_wrong() {
    let text = calibration().to_toml().unwrap();
    let refusal = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        Calibration::from_toml(&text.replacen(from, to, 1)).unwrap_err().to_string()
    };
    assert!(refusal("threads = 2", "threads = \"two\"").contains("line"));
    assert!(refusal("ranges = [0, 4", "ranges = [0, 0").contains("ranges"));
    assert!(refusal("ranges = [0, 4", "ranges = [0, 3").contains("token 1 to 3"));
    assert!(refusal("windows = [16, 0]", "windows = [17, 0]").contains("classes"));
    assert!(refusal("name = \"sample\"", "name = \"simple\"").contains("coefficients"));
    assert!(refusal("draws = [[", "draws = [[1.0], [").contains("draw 0"));
    assert!(refusal("errors = [", "errors = [nan, ").contains("quantiles"));
}

#[test]
fn a_calibration_is_refused_for_anything_else() {
    let calibration = calibration();
    let cpu = hardware::find("cpu").unwrap();
    let refusal = |model: &Model, weights, kv, gpu| {
        let error = calibration.cost(model, weights, kv, gpu).unwrap_err();
        assert!(matches!(error, LinearError::Mismatch { .. }));
        error.to_string()
    };
    let model = tiny();
    assert!(calibration.cost(&model, WeightType::Bf16, KvType::F32, &cpu).is_ok());
    let other = Model { name: "other".to_owned(), ..model.clone() };
    assert_eq!(
        refusal(&other, WeightType::Bf16, KvType::F32, &cpu),
        "the calibration is for model tiny, not for other"
    );
    let wider = Model { ffn: 161, ..model.clone() };
    assert!(refusal(&wider, WeightType::Bf16, KvType::F32, &cpu).contains("another shape"));
    assert!(refusal(&model, WeightType::F32, KvType::F32, &cpu).contains("weights bf16, not for f32"));
    assert!(refusal(&model, WeightType::Bf16, KvType::Q8_0, &cpu).contains("KV type f32, not for q8_0"));
    let gpu = hardware::find("rtx4090").unwrap();
    assert!(refusal(&model, WeightType::Bf16, KvType::F32, &gpu).contains("GPU cpu, not for rtx4090"));
    assert!(calibration.check_device("CPU, 2 threads").is_ok());
    assert!(
        calibration.check_device("CPU, 3 threads").unwrap_err().to_string().contains("device CPU, 2 threads")
    );
}

#[test]
fn steps_like_the_measured_ones_lie_within_the_interval() {
    let layout = layout();
    let truth = truth(&layout);
    let measured = sweep(&truth, 160, 0.04, 18);
    let fit = fit(&measured, &layout, &FEW).unwrap();
    let calibration = Calibration::new(made(), &measured, &fit);
    let mut random = Random(55);
    let (model, mut inside) = (tiny(), 0);
    for _ in 0..200 {
        let work = random_work(&model, &mut random);
        let ns = (truth.ns(&work) * (0.04 / 5f64.sqrt() * random.normal()).exp()) as u64;
        let (low, high) = calibration.interval_ns(&fit.linear, &work, 0.95).unwrap();
        inside += usize::from((low..=high).contains(&ns));
    }
    assert!((180..=200).contains(&inside), "{inside} of 200");
}

#[test]
fn weights_follow_where_the_workload_spends_its_time() {
    let model = tiny();
    let design = [
        step(&model, &[100], &[]),
        step(&model, &[100; 8], &[]),
        step(&model, &[], &[(64, 0)]),
        random_moves(&mut Random(1)),
    ];
    let mut operating = Operating::default();
    assert_eq!(operating.weights(&design), [1.0; 4]);
    // Walking a range is something else, however near the sizes are.
    let mut walking = Operating::default();
    walking.add(&Work { walked: vec![1, 1], ..design[1].clone() }, 1);
    let walks = Work { walked: vec![9, 9], ..design[0].clone() };
    assert_eq!(walking.shares([&design[1], &walks]), [0.0, 1.0]);
    for _ in 0..3 {
        operating.add(&step(&model, &[120; 7], &[]), 1000);
    }
    operating.add(&step(&model, &[], &[(50, 3)]), 1000);
    operating.add(&random_moves(&mut Random(2)), 1_000_000);
    assert_eq!(operating.shares(&design), [0.0, 0.75, 0.25, 0.0]);
    let weights = operating.weights(&design);
    assert!((weights.iter().sum::<f64>() - 4.0).abs() < 1e-12);
    assert!(weights[1] > weights[2] && weights[2] > weights[0] && weights[0] == weights[3]);
}
