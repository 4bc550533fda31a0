//! Products of tiles, whose inputs are rounded to 8 bits: against plain arithmetic, on every vector unit, in any company.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module as _, Tensor};
use common::{Random, assert_same_bits, chunked, difference, geometry};
use engine::cpu::{Cpu, Isa, multiply};
use engine::{CacheShape, Config, Data, KvType, Matrix, Weights, synthetic};

/// Rows of more tiles than a thread takes at once, and columns of an odd number of blocks.
const ROWS: usize = 5 * 16;
const COLS: usize = 9 * 32;

/// More inputs than a group of them has.
const INPUTS: usize = 101;

/// A matrix in blocks, and what it stands for, decoded by candle.
fn matrix(kind: GgmlDType, bytes: Vec<u8>) -> (Matrix, Vec<f32>) {
    let storage = QStorage::from_data(bytes.clone().into(), &Device::Cpu, kind).unwrap();
    let tensor = QTensor::new(storage, (ROWS, COLS)).unwrap().dequantize(&Device::Cpu).unwrap();
    let data = if kind == GgmlDType::Q8_0 { Data::Q8_0(bytes.into()) } else { Data::Q4_0(bytes.into()) };
    let matrix = Matrix { rows: ROWS, cols: COLS, data }.tiled();
    assert!(matches!(matrix.data, Data::Tiles(_)));
    (matrix, tensor.flatten_all().unwrap().to_vec1().unwrap())
}

/// Blocks of any bytes at all, whose scales are small numbers.
fn any_blocks(kind: GgmlDType, random: &mut Random) -> Vec<u8> {
    let size = kind.type_size();
    let mut bytes: Vec<u8> = (0..ROWS * COLS / 32 * size).map(|_| random.below(256) as u8).collect();
    for block in bytes.chunks_exact_mut(size) {
        let scale = half::f16::from_f32(random.below(200) as f32 / 1e4 - 0.01);
        block[..2].copy_from_slice(&scale.to_le_bytes());
        // The number without an opposite.
        block[2] = 0x80;
    }
    bytes
}

/// Inputs of which no number lies near the middle between two whole ones.
fn inputs(random: &mut Random) -> Vec<f32> {
    let mut x = Vec::with_capacity(INPUTS * COLS);
    for _ in 0..INPUTS * COLS / 32 {
        let unit = (1 + random.below(1000)) as f32 / 3e4;
        let largest = random.below(32);
        for i in 0..32 {
            let (whole, rest) = (random.below(255) as f32 - 127.0, random.below(601) as f32 / 1000.0 - 0.3);
            let inside = (whole + rest).clamp(-127.0, 127.0);
            x.push(unit * if i == largest { 127.0_f32.copysign(whole) } else { inside });
        }
    }
    x[..64].fill(0.0);
    x[64..96].fill(-1e-30);
    x
}

/// An input as blocks of whole numbers leave it.
fn rounded(x: &[f32]) -> Vec<f64> {
    let block = |x: &[f32]| {
        let most = x.iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
        let unit = if most > 0.0 { most / 127.0 } else { 1.0 };
        x.iter().map(|&x| (f64::from(x) / unit).round() * unit).collect::<Vec<f64>>()
    };
    x.chunks(32).flat_map(block).collect()
}

#[test]
fn products_are_those_of_rounded_inputs() {
    let mut random = Random(3);
    let x = inputs(&mut random);
    for kind in [GgmlDType::Q8_0, GgmlDType::Q4_0] {
        let (matrix, weights) = matrix(kind, any_blocks(kind, &mut random));
        let mut out = vec![0.0; ROWS * INPUTS];
        multiply(Isa::Portable, &matrix, &x, &mut out);
        for t in 0..INPUTS {
            let x = rounded(&x[t * COLS..(t + 1) * COLS]);
            for row in 0..ROWS {
                let products = x.iter().zip(&weights[row * COLS..]).map(|(x, &weight)| x * f64::from(weight));
                let (sum, size) = products.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                let found = f64::from(out[row * INPUTS + t]);
                assert!(
                    (found - sum).abs() <= 1e-6 * size,
                    "{kind:?} row {row}, input {t}: {found} for {sum}"
                );
            }
        }
    }
}

#[test]
fn units_and_company_change_no_bit() {
    let mut random = Random(4);
    let x = inputs(&mut random);
    for kind in [GgmlDType::Q8_0, GgmlDType::Q4_0] {
        let (matrix, _) = matrix(kind, any_blocks(kind, &mut random));
        let mut alone = vec![0.0; ROWS * INPUTS];
        for t in 0..INPUTS {
            let mut out = vec![0.0; ROWS];
            multiply(Isa::Portable, &matrix, &x[t * COLS..(t + 1) * COLS], &mut out);
            for row in 0..ROWS {
                alone[row * INPUTS + t] = out[row];
            }
        }
        for n in [1, 2, 3, 4, 5, 7, 8, 11, 15, 33, 96, INPUTS] {
            let expected: Vec<f32> = alone.chunks(INPUTS).flat_map(|row| &row[..n]).copied().collect();
            for unit in Isa::all() {
                let mut out = vec![f32::NAN; ROWS * n];
                multiply(unit, &matrix, &x[..n * COLS], &mut out);
                assert_same_bits(&out, &expected, &format!("{kind:?}, {n} inputs, {}", unit.name()));
            }
        }
    }
}

#[test]
fn candle_rounds_alike() {
    let mut random = Random(5);
    let x = inputs(&mut random);
    for kind in [GgmlDType::Q8_0, GgmlDType::Q4_0] {
        let bytes = any_blocks(kind, &mut random);
        let storage = QStorage::from_data(bytes.clone().into(), &Device::Cpu, kind).unwrap();
        let theirs = QMatMul::from_qtensor(QTensor::new(storage, (ROWS, COLS)).unwrap()).unwrap();
        let input = Tensor::from_slice(&x, (INPUTS, COLS), &Device::Cpu).unwrap();
        let theirs: Vec<f32> =
            theirs.forward(&input).unwrap().t().unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let (matrix, weights) = matrix(kind, bytes);
        let plain = Matrix { data: Data::F32(weights.into()), ..matrix.clone() };
        let (mut ours, mut exact) = (vec![0.0; ROWS * INPUTS], vec![0.0; ROWS * INPUTS]);
        multiply(Isa::detect(), &matrix, &x, &mut ours);
        multiply(Isa::detect(), &plain, &x, &mut exact);
        let size = exact.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let distance = |a: &[f32], b: &[f32]| f64::from(difference(a, b).0 / size);
        // Their scales are f16, which is an eleventh bit; both lose as much to the exact product.
        assert!(distance(&ours, &theirs) < 1e-3, "{kind:?}: {}", distance(&ours, &theirs));
        assert!(distance(&ours, &exact) < 0.02, "{kind:?}: {}", distance(&ours, &exact));
        assert!(distance(&ours, &exact) > 1e-5, "{kind:?}: nothing was rounded");
    }
}

#[test]
fn what_is_no_number_stays_none() {
    let mut random = Random(6);
    for kind in [GgmlDType::Q8_0, GgmlDType::Q4_0] {
        let (matrix, _) = matrix(kind, any_blocks(kind, &mut random));
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![0.5; 2 * COLS];
            x[COLS + 40] = odd;
            for unit in Isa::all() {
                let mut out = vec![0.0; 2 * ROWS];
                multiply(unit, &matrix, &x, &mut out);
                for row in out.chunks(2) {
                    assert!(
                        row[0].is_finite() && row[1].is_nan(),
                        "{kind:?}, {odd}, {}: {row:?}",
                        unit.name()
                    );
                }
            }
        }
    }
}

/// A small model with all matrices packed.
fn packed_model(kind: GgmlDType) -> Weights {
    let mut config = Config::preset("gemma3-tiny").unwrap();
    config.hidden = 64;
    config.ffn = 96;
    config.head_dim = 32;
    config.vocab = 80;
    let mut weights = synthetic::weights(&config, 7, true).unwrap();
    let pack = |matrix: &mut Matrix| {
        let Data::F32(numbers) = &matrix.data else { panic!("weights are f32 where that is asked for") };
        let full = Tensor::from_slice(numbers, (matrix.rows, matrix.cols), &Device::Cpu).unwrap();
        let bytes = QTensor::quantize(&full, kind).unwrap().data().unwrap().to_vec();
        matrix.data =
            if kind == GgmlDType::Q8_0 { Data::Q8_0(bytes.into()) } else { Data::Q4_0(bytes.into()) };
    };
    pack(&mut weights.embedding);
    for layer in &mut weights.layers {
        let of_attention = [&mut layer.q, &mut layer.k, &mut layer.v, &mut layer.o];
        of_attention.into_iter().for_each(pack);
        [&mut layer.gate, &mut layer.up, &mut layer.down].into_iter().for_each(pack);
    }
    weights
}

#[test]
fn logits_do_not_depend_on_chunks_or_units() {
    for kind in [GgmlDType::Q8_0, GgmlDType::Q4_0] {
        let weights = packed_model(kind);
        let shape = CacheShape::new(&weights.config, &geometry(&weights.config, &[64]), KvType::F32).unwrap();
        let mut random = Random(8);
        let tokens: Vec<u32> = (0..40).map(|_| random.below(weights.config.vocab as u64) as u32).collect();
        let logits = |weights: &Arc<Weights>, unit, chunk| {
            let mut cpu = Cpu::on(unit, weights.clone(), shape.clone()).unwrap();
            chunked(&mut cpu, 1, &tokens, chunk)
        };
        let exact = logits(&Arc::new(weights.clone()), Isa::detect(), 40);
        let tiled = weights.tiled();
        assert!(tiled.is_tiled());
        let all =
            tiled.layers.iter().flat_map(|layer| [&layer.q, &layer.k, &layer.o, &layer.gate, &layer.down]);
        assert!(all.chain([&tiled.embedding]).all(|matrix| matches!(matrix.data, Data::Tiles(_))));
        let tiled = Arc::new(tiled);
        let one_by_one = logits(&tiled, Isa::Portable, 1);
        for unit in Isa::all() {
            for chunk in [1, 7, 40] {
                let found = logits(&tiled, unit, chunk);
                assert_same_bits(&found, &one_by_one, &format!("{kind:?}, {}, {chunk}", unit.name()));
            }
        }
        let size = exact.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let error = difference(&exact, &one_by_one).0 / size;
        assert!(error > 0.0 && error < 0.05, "{kind:?}: {error}");
    }
}

#[test]
fn what_fills_no_tiles_stays_as_it_is() {
    for (rows, cols) in [(24, 64), (16, 0)] {
        let matrix = Matrix { rows, cols, data: Data::Q8_0(vec![0; rows * cols / 32 * 34].into()) }.tiled();
        assert!(matches!(matrix.data, Data::Q8_0(_)));
    }
    let floats = Matrix { rows: 16, cols: 32, data: Data::F32(vec![0.0; 512].into()) }.tiled();
    assert!(matches!(floats.data, Data::F32(_)));
}
