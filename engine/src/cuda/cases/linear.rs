//! Linear layers, their inputs and their weights.

use half::{bf16, f16};

use super::{Arg, NONE, Random, Runner, apart, bits, f, m, p, u};

fn kpad(k: usize) -> usize {
    k.div_ceil(128) * 128
}

/// Weights as the kernels take them, and in f64.
pub(super) struct Weights {
    pub(super) quants: Vec<u8>,
    pub(super) scales: Vec<u16>,
    pub(super) exact: Vec<f64>,
}

/// Random weights of a kind; quantised ones go through the kernels that repack them.
pub(super) fn weights(
    runner: &dyn Runner,
    kind: &str,
    rows: usize,
    k: usize,
    random: &mut Random,
) -> Weights {
    if kind == "bf16" {
        let numbers: Vec<bf16> = random.units(rows * k).into_iter().map(bf16::from_f32).collect();
        let quants = numbers.iter().flat_map(|n| n.to_bits().to_le_bytes()).collect();
        return Weights { quants, scales: Vec::new(), exact: numbers.iter().map(|n| n.to_f64()).collect() };
    }
    let is_q4 = kind == "q4_0";
    let bytes = if is_q4 { 16 } else { 32 };
    let mut blocks = Vec::new();
    let mut exact = Vec::new();
    for _ in 0..rows * k / 32 {
        let d = f16::from_f32(0.02 + random.unit().abs() * 0.01);
        let numbers: Vec<u8> = (0..bytes).map(|_| random.bits() as u8).collect();
        blocks.extend(d.to_bits().to_le_bytes());
        blocks.extend(&numbers);
        exact.extend((0..32).map(|i| {
            let number = match is_q4 {
                true if i < 16 => i32::from(numbers[i] & 15) - 8,
                true => i32::from(numbers[i - 16] >> 4) - 8,
                false => i32::from(numbers[i] as i8),
            };
            d.to_f64() * f64::from(number)
        }));
    }
    let mut quants = vec![0xAA_u8; rows * kpad(k) / if is_q4 { 2 } else { 1 }];
    let mut scales = vec![0xAAAA_u16; rows * kpad(k) / 32];
    let grid = [(kpad(k) / 32).div_ceil(64) as u32, rows as u32, 1];
    let args = vec![p(&blocks), m(&mut quants), m(&mut scales), u(rows), u(k)];
    runner.launch(&format!("repack_{kind}"), grid, 64, args);
    Weights { quants, scales, exact }
}

/// Inputs of a linear layer: bytes, block scales, and in f64.
struct Inputs {
    x: Vec<u8>,
    xd: Vec<f32>,
    exact: Vec<f64>,
}

fn place(i: usize) -> usize {
    (i & !63) + ((i >> 2) & 3) * 16 + ((i >> 5) & 1) * 8 + ((i >> 4) & 1) * 4 + (i & 3)
}

fn inputs(runner: &dyn Runner, kind: &str, n: usize, k: usize, random: &mut Random) -> Inputs {
    let src = random.units(n * k);
    if kind == "bf16" {
        let numbers: Vec<bf16> = src.into_iter().map(bf16::from_f32).collect();
        let x = numbers.iter().flat_map(|n| n.to_bits().to_le_bytes()).collect();
        return Inputs { x, xd: Vec::new(), exact: numbers.iter().map(|n| n.to_f64()).collect() };
    }
    let pad = kpad(k);
    let (mut x, mut xd) = (vec![0_u8; n * pad], vec![0.0_f32; n * pad / 32]);
    let args = vec![p(&src), m(&mut x), m(&mut xd), u(pad), u(k)];
    runner.launch("act_quant", [k.div_ceil(256) as u32, n as u32, 1], 256, args);
    let number = |i: usize| {
        let (row, i) = (i / k, i % k);
        f64::from(x[row * pad + place(i)] as i8) * f64::from(xd[row * pad / 32 + i / 32])
    };
    let exact: Vec<f64> = (0..n * k).map(number).collect();
    for (block, src) in exact.chunks(32).zip(src.chunks(32)) {
        let step = src.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0;
        assert!(apart(src, block) <= f64::from(step) * 0.501);
    }
    Inputs { x, xd, exact }
}

fn product(weights: &[f64], x: &[f64], rows: usize, k: usize) -> Vec<f64> {
    let dot = |(x, w): (&[f64], &[f64])| x.iter().zip(w).map(|(x, w)| x * w).sum();
    x.chunks(k).flat_map(|x| (0..rows).map(move |r| dot((x, &weights[r * k..(r + 1) * k])))).collect()
}

/// Launch shape and sizes of a case.
#[derive(Clone, Copy)]
struct Case {
    columns: usize,
    rows: usize,
    k: usize,
    n: usize,
    warps: usize,
    splits: usize,
}

fn run(runner: &dyn Runner, kind: &str, case: Case, w: &Weights, x: &Inputs, schedule: u32) -> Vec<f32> {
    let Case { columns, rows, k, n, warps, splits } = case;
    let mut y = vec![f32::NAN; splits * n * rows];
    let tile = if (columns, kind) == (32, "bf16") { 64 } else { 32 };
    let grid = [rows.div_ceil(tile) as u32, splits as u32, n.div_ceil(columns) as u32];
    let args = vec![p(&w.quants), p(&w.scales), p(&x.x), p(&x.xd), m(&mut y), u(rows), u(k), u(n)];
    runner.run(schedule, &format!("lin_{kind}_{columns}"), grid, 32 * warps as u32, args);
    let mut sum = vec![0.0; n * rows];
    y.chunks(n * rows).for_each(|split| sum.iter_mut().zip(split).for_each(|(sum, y)| *sum += y));
    sum
}

pub(super) fn linear_layers_equal_a_product_in_f64(runner: &dyn Runner) {
    let mut random = Random(1);
    let shape = |columns, rows, k, n, warps, splits| Case { columns, rows, k, n, warps, splits };
    let cases = [
        shape(8, 50, 160, 1, 3, 1),
        shape(8, 96, 1152, 8, 6, 2),
        shape(8, 33, 64, 11, 8, 3),
        shape(16, 70, 416, 13, 5, 2),
        shape(32, 130, 288, 40, 4, 2),
        shape(32, 64, 1024, 32, 8, 1),
    ];
    for kind in ["bf16", "q8_0", "q4_0"] {
        for case in cases {
            let w = weights(runner, kind, case.rows, case.k, &mut random);
            let x = inputs(runner, kind, case.n, case.k, &mut random);
            let y = run(runner, kind, case, &w, &x, 0);
            let expected = product(&w.exact, &x.exact, case.rows, case.k);
            let error = apart(&y, &expected);
            assert!(error < 2e-4, "{kind} {} columns, k {}: {error}", case.columns, case.k);
            for schedule in [1, 7] {
                let again = run(runner, kind, case, &w, &x, schedule);
                assert!(bits(&y) == bits(&again), "{kind}: schedules");
            }
        }
    }
}

pub(super) fn a_column_does_not_depend_on_its_neighbours(runner: &dyn Runner) {
    let mut random = Random(2);
    for kind in ["bf16", "q8_0", "q4_0"] {
        let case = Case { columns: 8, rows: 64, k: 640, n: 1, warps: 5, splits: 2 };
        let w = weights(runner, kind, case.rows, case.k, &mut random);
        let mut x = inputs(runner, kind, 20, case.k, &mut random);
        let all = run(runner, kind, Case { columns: 32, n: 20, ..case }, &w, &x, 0);
        let some = run(runner, kind, Case { columns: 16, n: 20, ..case }, &w, &x, 0);
        assert!(bits(&all) == bits(&some), "{kind}");
        x.x.truncate(x.x.len() / 20);
        let one = run(runner, kind, case, &w, &x, 0);
        assert!(bits(&all[..case.rows]) == bits(&one), "{kind}");
    }
}

pub(super) fn small_layers_equal_a_product_in_f64(runner: &dyn Runner) {
    let mut random = Random(3);
    for kind in ["bf16", "q8_0", "q4_0"] {
        let case = Case { columns: 16, rows: 40, k: 160, n: 9, warps: 2, splits: 1 };
        let w = weights(runner, kind, case.rows, case.k, &mut random);
        let x = inputs(runner, kind, case.n, case.k, &mut random);
        let y = run(runner, kind, case, &w, &x, 0);
        assert!(apart(&y, &product(&w.exact, &x.exact, case.rows, case.k)) < 2e-4, "{kind}");
    }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
}

pub(super) fn gate_and_up_become_one(runner: &dyn Runner) {
    let mut random = Random(4);
    for (kind, columns, n) in [
        ("bf16", 8, 3),
        ("bf16", 16, 10),
        ("bf16", 32, 33),
        ("q8_0", 8, 8),
        ("q8_0", 16, 9),
        ("q8_0", 32, 17),
        ("q4_0", 8, 1),
        ("q4_0", 16, 16),
        ("q4_0", 32, 20),
    ] {
        let (ffn, k) = (72, 320);
        let w = weights(runner, kind, 2 * ffn, k, &mut random);
        let mut x = inputs(runner, kind, n, k, &mut random);
        // Inputs of the size that keeps gates where the curve bends.
        if kind == "bf16" {
            let small: Vec<bf16> = x.exact.iter().map(|x| bf16::from_f64(x / 18.0)).collect();
            x.x = small.iter().flat_map(|n| n.to_bits().to_le_bytes()).collect();
            x.exact = small.iter().map(|n| n.to_f64()).collect();
        }
        let both = product(&w.exact, &x.exact, 2 * ffn, k);
        let expected: Vec<f64> = both
            .chunks(2 * ffn)
            .flat_map(|row| (0..ffn).map(|i| gelu(row[i]) * row[ffn + i]).collect::<Vec<_>>())
            .collect();
        let (mut y32, mut y16) = (vec![f32::NAN; n * ffn], vec![0_u16; n * ffn]);
        let tile: usize = if (columns, kind) == (32, "bf16") { 32 } else { 16 };
        let grid = [ffn.div_ceil(tile) as u32, 1, n.div_ceil(columns) as u32];
        let args =
            vec![p(&w.quants), p(&w.scales), p(&x.x), p(&x.xd), m(&mut y32), m(&mut y16), u(ffn), u(k), u(n)];
        runner.launch(&format!("glu_{kind}_{columns}"), grid, 128, args);
        let size = expected.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
        assert!(apart(&y32, &expected) < 1e-5 * size, "{kind} {}", apart(&y32, &expected));
        let rounded: Vec<u16> = y32.iter().map(|&y| bf16::from_f32(y).to_bits()).collect();
        assert!(y16 == rounded);

        let gate_up: Vec<f32> = both.iter().map(|&x| x as f32).collect();
        let mut plain = vec![f32::NAN; n * ffn];
        let args = vec![p(&gate_up), m(&mut plain), NONE, NONE, NONE, u(kpad(ffn)), u(ffn)];
        runner.launch("glu_plain", [1, n as u32, 1], 256, args);
        assert!(apart(&plain, &expected) < 1e-5 * size);
    }
}

pub(super) fn plain_layers_equal_a_product_in_f64(runner: &dyn Runner) {
    let mut random = Random(5);
    let (rows, k, n) = (37, 160, 11);
    let x = random.units(n * k);
    let exact_x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let full = random.units(rows * k);
    let brain: Vec<bf16> = full.iter().map(|&w| bf16::from_f32(w)).collect();
    for kind in ["f32", "bf16"] {
        let (at, exact): (_, Vec<f64>) = match kind {
            "f32" => (p(&full), full.iter().map(|&w| f64::from(w)).collect()),
            _ => (p(&brain), brain.iter().map(|w| w.to_f64()).collect()),
        };
        let mut y = vec![f32::NAN; n * rows];
        let grid = [rows.div_ceil(4) as u32, n.div_ceil(8) as u32, 1];
        runner.launch(
            &format!("lin_plain_{kind}"),
            grid,
            128,
            vec![at, p(&x), m(&mut y), u(rows), u(k), u(n)],
        );
        assert!(apart(&y, &product(&exact, &exact_x, rows, k)) < 1e-4);
    }
}

pub(super) fn repacked_weights_widen_to_what_they_were(runner: &dyn Runner) {
    let mut random = Random(6);
    for kind in ["q8_0", "q4_0"] {
        for k in [32, 160, 1152] {
            let w = weights(runner, kind, 5, k, &mut random);
            let mut out = vec![0_u16; 5 * k];
            let args = vec![p(&w.quants), p(&w.scales), m(&mut out), u(5), u(k)];
            runner.launch(&format!("dequant_{kind}"), [k.div_ceil(256) as u32, 5, 1], 256, args);
            let expected: Vec<u16> = w.exact.iter().map(|&w| bf16::from_f64(w).to_bits()).collect();
            assert!(out == expected, "{kind} {k}");
        }
    }
}

pub(super) fn made_up_weights_are_those_of_the_cpu(runner: &dyn Runner) {
    // What synthetic.rs does, written again: SplitMix64 of a counter, 24 bits of it.
    let hash = |seed: u64, index: u64| {
        let mut mixed = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    };
    let unit = |key, i| ((hash(key, i) >> 40) as f32 / 8_388_608.0 - 1.0) * 1.732_050_8_f32;
    let (key, scale, count) = (hash(42, 3), 1.0 / (1152.0_f32).sqrt(), 5000);
    let mut out = vec![0_u16; count];
    runner.launch("synth_bf16", [3, 1, 1], 256, vec![m(&mut out), u(count), Arg::Word(key), f(scale)]);
    let expected: Vec<u16> =
        (0..count as u64).map(|i| bf16::from_f32(unit(key, i) * scale).to_bits()).collect();
    assert!(out == expected);
    let mut norm = vec![0.0_f32; count];
    runner.launch("synth_norm", [3, 1, 1], 256, vec![m(&mut norm), u(count), Arg::Word(key)]);
    let expected: Vec<f32> = (0..count as u64).map(|i| 1.0 + 0.3 * unit(key, i)).collect();
    assert!(bits(&norm) == bits(&expected));
}
