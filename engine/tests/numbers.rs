//! Small random models against the reference in f64, edits of the cache, types of K and V, vector
//! units, and batches that do not agree with themselves.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};
use common::reference::Reference;
use common::{Hand, Random, assert_same_bits, chunked, cpu, cpu_with, difference, geometry, push_span};
use engine::cpu::{Cpu, Isa, multiply};
use engine::{
    Backend, Batch, CacheShape, Config, Data, EngineError, KvType, Matrix, Output, Span, View, Wanted,
    Weights, synthetic,
};
use half::{bf16, f16};
use policies::{ClassId, Effect, KvBits, Plan, Run, SeqId, Why};

/// A small model of odd sizes.
fn random_model(seed: u64) -> Arc<Weights> {
    let mut random = Random(seed);
    let mut config = Config::preset("gemma3-tiny").unwrap();
    config.kv_heads = 1 + random.below(3) as usize;
    config.query_heads = config.kv_heads * (1 + random.below(5) as usize);
    config.head_dim = [10, 24, 32, 40, 64][random.below(5) as usize];
    config.hidden = 20 + random.below(60) as usize;
    config.ffn = 30 + random.below(80) as usize;
    config.vocab = 50 + random.below(50) as usize;
    config.window = 1 + random.below(12) as usize;
    config.layers = Config::pattern(1 + random.below(5) as usize, 1 + random.below(3) as usize);
    Arc::new(synthetic::weights(&config, seed, true).unwrap())
}

#[test]
fn random_models_agree_with_the_reference() {
    for seed in 0..24 {
        let weights = random_model(seed);
        let tokens = Random(seed).tokens(30, weights.config.vocab);
        let cells: &[u32] = if seed % 2 == 0 { &[32, 32] } else { &[32] };
        let logits = chunked(&mut cpu(&weights, cells), cells.len(), &tokens, 1 + seed as usize % 9);
        let (most, _) = difference(&logits, &Reference::new(&weights).text(&tokens));
        assert!(most < 2e-5, "seed {seed}, {:?}: off by {most}", weights.config);
    }
}

#[test]
fn every_vector_unit_gives_the_same_bits() {
    println!("of this processor: {:?}", Isa::all().iter().map(|unit| unit.name()).collect::<Vec<_>>());
    for (seed, kv) in
        [KvType::F32, KvType::F16, KvType::Bf16, KvType::Q8_0, KvType::Q4_0].into_iter().enumerate()
    {
        let mut config = random_model(seed as u64).config.clone();
        config.head_dim = 64;
        let weights = Arc::new(synthetic::weights(&config, 1, false).unwrap());
        let mut shape = CacheShape::new(&config, &geometry(&config, &[40]), kv).unwrap();
        shape.rotated = seed % 2 == 0;
        let tokens = Random(9).tokens(30, config.vocab);
        let on = |unit, chunk| {
            chunked(&mut Cpu::on(unit, weights.clone(), shape.clone()).unwrap(), 1, &tokens, chunk)
        };
        let portable = on(Isa::Portable, 7);
        for unit in Isa::all() {
            assert_same_bits(&on(unit, 30), &portable, &format!("{kv:?} on {}", unit.name()));
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let weights = random_model(7);
    let tokens = Random(7).tokens(40, weights.config.vocab);
    let run = |threads: usize, chunk: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| chunked(&mut cpu(&weights, &[64]), 1, &tokens, chunk))
    };
    let one = run(1, 40);
    for (threads, chunk) in [(2, 40), (7, 40), (16, 1), (3, 5)] {
        assert_same_bits(&one, &run(threads, chunk), &format!("{threads} threads"));
    }
}

#[test]
fn k_rotated_on_reading_is_k_rotated_on_writing() {
    for seed in 0..4 {
        let weights = random_model(seed);
        let tokens = Random(seed).tokens(30, weights.config.vocab);
        let rotated = chunked(&mut cpu(&weights, &[32]), 1, &tokens, 4);
        let on_read = chunked(&mut cpu_with(&weights, &[32], |shape| shape.rotated = false), 1, &tokens, 11);
        assert_same_bits(&rotated, &on_read, "f32");
    }
}

#[test]
fn a_walked_range_gives_the_bits_of_a_table() {
    let weights = random_model(3);
    let tokens = Random(3).tokens(20, weights.config.vocab);
    let run = |walks: Vec<Option<Run>>, chunk: usize| {
        let mut cpu = cpu(&weights, &[64]);
        let cells: Vec<u32> = (0..20).map(|i| (i * 13 + 5) % 64).collect();
        let mut logits = Vec::new();
        for (at, tokens) in tokens.chunks(chunk).enumerate() {
            let mut hand = Hand::default();
            hand.place(1, 0, cells.clone());
            let first = (at * chunk) as u32;
            let views = vec![hand.view(0, 0, 0, first + tokens.len() as u32)];
            let mut batch = Batch { wanted: Wanted::Logits, walks: walks.clone(), ..Batch::default() };
            push_span(&mut batch, tokens, Span { first, views, ..Span::default() });
            logits.extend(common::logits(&mut cpu, &batch));
        }
        logits
    };
    let table = run(Vec::new(), 20);
    for chunk in [1, 6, 20] {
        assert_same_bits(&table, &run(vec![Some(Run { start: 0, len: 64 })], chunk), "walked");
    }
}

/// Drops tokens 4 to 12 of a text of 20, whose K then is rotated, and goes on with 10 more.
fn shifted(cpu: &mut Cpu, tokens: &[u32], rotates: bool) -> Vec<f32> {
    let mut hand = Hand::default();
    hand.place(1, 0, 0..20);
    hand.step(cpu, &[(0, &tokens[..20])]);
    if rotates {
        let mut plan = Plan::new();
        plan.push(Effect::Rotate { class: ClassId(0), run: Run { start: 12, len: 8 }, delta: -8 });
        cpu.apply(&plan, &|_| 0).unwrap();
    }
    hand.place(1, 0, (0..4).chain(12..30).collect::<Vec<_>>());
    hand.set_len(0, 12);
    hand.step(cpu, &[(0, &tokens[20..])])
}

#[test]
fn a_context_shift_is_the_same_edit_of_the_references_cache() {
    for seed in 0..12 {
        let weights = random_model(seed);
        let tokens = Random(seed).tokens(30, weights.config.vocab);
        let mut reference = Reference::new(&weights);
        reference.text(&tokens[..20]);
        reference.drop(4..12, true);
        let expected = reference.text(&tokens[20..]);
        for rotated in [true, false] {
            let mut cpu = cpu_with(&weights, &[32], |shape| shape.rotated = rotated);
            let (most, _) = difference(&shifted(&mut cpu, &tokens, rotated), &expected);
            assert!(most < 2e-5, "seed {seed}, rotated {rotated}: off by {most}");
        }
        let again: Vec<u32> = [&tokens[..4], &tokens[12..]].concat();
        let again = chunked(&mut cpu(&weights, &[32]), 1, &again, 30);
        let (most, rms) = difference(&expected, &again[12 * weights.config.vocab..]);
        println!("seed {seed}: shift against computing again: {most:.2} at most, {rms:.2} rms");
    }
}

#[test]
fn turning_by_nothing_changes_no_bit_and_turning_back_almost_none() {
    let weights = Arc::new(synthetic::weights(&Config::preset("gemma3-tiny").unwrap(), 2, true).unwrap());
    let tokens = Random(2).tokens(30, 512);
    for (kv, tolerance) in [
        (KvType::F32, 1e-4),
        (KvType::F16, 0.1),
        (KvType::Bf16, 0.3),
        (KvType::Q8_0, 1.0),
        (KvType::Q4_0, 12.0),
    ] {
        let run = |deltas: &[i32]| {
            let mut cpu = cpu_with(&weights, &[64], |shape| (shape.k, shape.v) = (kv, kv));
            let mut hand = Hand::default();
            hand.place(1, 0, 0..30);
            hand.step(&mut cpu, &[(0, &tokens[..20])]);
            for &delta in deltas {
                let mut plan = Plan::new();
                plan.push(Effect::Rotate { class: ClassId(0), run: Run { start: 0, len: 20 }, delta });
                cpu.apply(&plan, &|_| 0).unwrap();
            }
            hand.step(&mut cpu, &[(0, &tokens[20..])])
        };
        let plain = run(&[]);
        assert_same_bits(&plain, &run(&[0, 0]), &format!("{kv:?}"));
        let (most, rms) = difference(&plain, &run(&[37, -37]));
        println!("{kv:?}: 37 there and back: {most:.1e} at most, {rms:.1e} rms");
        assert!(most < tolerance, "{kv:?}: off by {most}");
    }
}

#[test]
fn rounding_in_place_is_as_coarse_as_it_says_and_is_done_once() {
    let weights = Arc::new(synthetic::weights(&Config::preset("gemma3-tiny").unwrap(), 2, true).unwrap());
    let tokens = Random(5).tokens(30, 512);
    let run = |kv: KvType, roundings: &[(u32, KvBits)]| {
        let mut cpu = cpu_with(&weights, &[64], |shape| (shape.k, shape.v) = (kv, kv));
        let mut hand = Hand::default();
        hand.place(1, 0, 0..30);
        hand.step(&mut cpu, &[(0, &tokens[..20])]);
        for &(start, to) in roundings {
            let mut plan = Plan::new();
            plan.push(Effect::Requantise { class: ClassId(0), run: Run { start, len: 20 }, to });
            cpu.apply(&plan, &|_| 0).unwrap();
        }
        hand.step(&mut cpu, &[(0, &tokens[20..])])
    };
    let plain = run(KvType::F32, &[]);
    let (eight, four) = (run(KvType::F32, &[(0, KvBits::Q8_0)]), run(KvType::F32, &[(0, KvBits::Q4_0)]));
    let (fine, coarse) = (difference(&plain, &eight).1, difference(&plain, &four).1);
    assert!(fine > 0.0 && coarse > 4.0 * fine, "{fine} {coarse}");
    for (once, to) in [(&eight, KvBits::Q8_0), (&four, KvBits::Q4_0)] {
        assert_same_bits(once, &run(KvType::F32, &[(0, to), (0, to)]), &format!("{to:?} twice"));
    }
    assert_same_bits(&plain, &run(KvType::F32, &[(40, KvBits::Q4_0)]), "the cells of nobody");
    for (kv, to) in [(KvType::Q8_0, KvBits::Q8_0), (KvType::Q4_0, KvBits::Q8_0), (KvType::Q4_0, KvBits::Q4_0)]
    {
        assert_same_bits(&run(kv, &[]), &run(kv, &[(0, to)]), &format!("{kv:?} to {to:?}"));
    }
}

#[test]
fn types_of_k_and_v_cost_what_they_should() {
    let weights = Arc::new(synthetic::weights(&Config::preset("gemma3-tiny").unwrap(), 2, true).unwrap());
    let tokens = Random(4).tokens(60, 512);
    let full = chunked(&mut cpu(&weights, &[64]), 1, &tokens, 60);
    for (k, v, tolerance) in [
        (KvType::F16, KvType::F16, 0.02),
        (KvType::Bf16, KvType::Bf16, 0.1),
        (KvType::Q8_0, KvType::Q8_0, 0.5),
        (KvType::Q8_0, KvType::Q4_0, 4.0),
        (KvType::Q4_0, KvType::Q4_0, 8.0),
    ] {
        let mut cpu = cpu_with(&weights, &[64], |shape| (shape.k, shape.v) = (k, v));
        let (most, rms) = difference(&chunked(&mut cpu, 1, &tokens, 60), &full);
        println!("K {k:?}, V {v:?}: {most:.1e} at most, {rms:.1e} rms");
        assert!(most < tolerance && most > 0.0, "{k:?}, {v:?}: off by {most}");
    }
}

/// A sequence of 20 tokens of which 10 have been computed, into cells 0 to 9.
struct Halfway {
    cpu: Cpu,
    hand: Hand,
    rest_of_tokens: Vec<u32>,
    /// The logits of the rest.
    wanted: Vec<f32>,
}

fn halfway() -> Halfway {
    let weights = random_model(5);
    let tokens = Random(5).tokens(20, weights.config.vocab);
    let plain = chunked(&mut cpu(&weights, &[64]), 1, &tokens, 10);
    let (mut cpu, mut hand) = (cpu(&weights, &[64]), Hand::default());
    hand.place(1, 0, 0..20);
    hand.step(&mut cpu, &[(0, &tokens[..10])]);
    let wanted = plain[10 * weights.config.vocab..].to_vec();
    Halfway { cpu, hand, rest_of_tokens: tokens[10..].to_vec(), wanted }
}

#[test]
fn heads_that_are_no_whole_blocks_are_not_rounded() {
    let weights = random_model(5);
    assert!(!weights.config.head_dim.is_multiple_of(32));
    let mut plan = Plan::new();
    let run = Run { start: 0, len: 4 };
    plan.push(Effect::Requantise { class: ClassId(0), run, to: KvBits::Q8_0 });
    let error = cpu(&weights, &[64]).apply(&plan, &|_| 0).unwrap_err();
    assert!(error.to_string().contains("blocks of 32 numbers, and heads have"), "{error}");
}

#[test]
fn what_went_to_host_memory_comes_back_elsewhere() {
    let Halfway { mut cpu, mut hand, rest_of_tokens, wanted } = halfway();
    let (class, mut plan) = (ClassId(0), Plan::new());
    plan.push(Effect::SwapOut { class, seq: SeqId(0), first: 0, run: Run { start: 0, len: 10 } });
    plan.push(Effect::Copy { class, from: 20, to: 0, len: 10, why: Why::Defrag });
    cpu.apply(&plan, &|_| 77).unwrap();
    plan.clear();
    plan.push(Effect::SwapIn { class, seq: SeqId(3), first: 0, run: Run { start: 40, len: 10 } });
    cpu.apply(&plan, &|_| 77).unwrap();
    hand.place(1, 0, 40..60);
    let rest = hand.step(&mut cpu, &[(0, &rest_of_tokens)]);
    assert_same_bits(&wanted, &rest, "after host memory");
    let error = cpu.apply(&plan, &|_| 77).unwrap_err();
    assert!(error.to_string().contains("not in host memory"), "{error}");
}

#[test]
fn cells_of_host_memory_are_read_again_and_again() {
    let Halfway { mut cpu, mut hand, rest_of_tokens, wanted } = halfway();
    let (class, mut plan) = (ClassId(0), Plan::new());
    plan.push(Effect::Offload { class, run: Run { start: 0, len: 10 }, slot: 5 });
    plan.push(Effect::Copy { class, from: 20, to: 0, len: 10, why: Why::Defrag });
    cpu.apply(&plan, &|_| 77).unwrap();
    for start in [40, 20] {
        // Two pieces, so that cells and slots have to be counted from their own starts.
        plan.clear();
        plan.push(Effect::Fetch { class, slot: 8, run: Run { start: start + 3, len: 7 } });
        plan.push(Effect::Fetch { class, slot: 5, run: Run { start, len: 3 } });
        cpu.apply(&plan, &|_| 77).unwrap();
        hand.place(1, 0, start..start + 20);
        hand.set_len(0, 10);
        let rest = hand.step(&mut cpu, &[(0, &rest_of_tokens)]);
        assert_same_bits(&wanted, &rest, "after host memory");
    }
    plan.clear();
    plan.push(Effect::Fetch { class, slot: 14, run: Run { start: 0, len: 2 } });
    let error = cpu.apply(&plan, &|_| 77).unwrap_err();
    assert!(error.to_string().contains("nothing lies in cell 15"), "{error}");
    cpu.restart();
    plan.clear();
    plan.push(Effect::Fetch { class, slot: 5, run: Run { start: 0, len: 1 } });
    assert!(cpu.apply(&plan, &|_| 77).is_err(), "a server that starts anew has nothing there");
}

#[test]
fn batches_and_plans_that_do_not_agree_are_refused() {
    let weights = random_model(1);
    let mut cpu = cpu(&weights, &[16]);
    let view = || View { first: 0, runs: vec![Run { start: 0, len: 2 }] };
    let good = || {
        let span = Span { rows: 0..2, samples: 1, views: vec![view()], ..Span::default() };
        Batch { tokens: vec![1, 2], spans: vec![span], ..Batch::default() }
    };
    let mut refused = |what: &str, edit: &dyn Fn(&mut Batch)| {
        let mut batch = good();
        edit(&mut batch);
        let error = cpu.step(&batch, &mut Output::default()).expect_err(what);
        assert!(matches!(error, EngineError::Batch(_)), "{what}: {error}");
    };
    refused("a token beyond the vocabulary", &|batch| batch.tokens[1] = 1000);
    refused("rows beyond the tokens", &|batch| batch.spans[0].rows.end = 3);
    refused("rows that nobody has", &|batch| batch.tokens.push(1));
    refused("rows twice", &|batch| batch.spans.push(batch.spans[0].clone()));
    refused("more samples than rows", &|batch| batch.spans[0].samples = 3);
    refused("no views", &|batch| batch.spans[0].views.clear());
    refused("a short view", &|batch| batch.spans[0].views[0].runs[0].len = 1);
    refused("a view that begins too late", &|batch| batch.spans[0].views[0].first = 1);
    refused("cells beyond the cache", &|batch| batch.spans[0].views[0].runs[0].start = 15);
    refused("cells beyond all numbers", &|batch| batch.spans[0].views[0].runs[0].start = u32::MAX);
    refused("an index beyond all numbers", &|batch| batch.spans[0].first = u32::MAX);
    refused("a position beyond all numbers", &|batch| batch.spans[0].offset = u32::MAX);
    refused("a range beyond the cache", &|batch| batch.walks = vec![Some(Run { start: 0, len: 17 })]);
    refused("a range without our cells", &|batch| batch.walks = vec![Some(Run { start: 1, len: 4 })]);
    refused("ranges of other classes", &|batch| batch.walks = vec![None, None]);
    cpu.step(&good(), &mut Output::default()).unwrap();
    for effect in [
        Effect::Copy { class: ClassId(0), from: 0, to: 15, len: 2, why: Why::Grow },
        Effect::Copy { class: ClassId(1), from: 0, to: 1, len: 1, why: Why::Grow },
        Effect::Rotate { class: ClassId(0), run: Run { start: 16, len: 1 }, delta: 1 },
        Effect::SwapOut { class: ClassId(0), seq: SeqId(0), first: 0, run: Run { start: u32::MAX, len: 2 } },
    ] {
        let mut plan = Plan::new();
        plan.push(effect);
        assert!(matches!(cpu.apply(&plan, &|_| 0), Err(EngineError::Batch(_))), "{effect:?}");
    }
}

#[test]
fn heads_that_do_not_fill_blocks_cannot_be_quantised() {
    let mut config = random_model(1).config.clone();
    config.head_dim = 24;
    let weights = Arc::new(synthetic::weights(&config, 1, true).unwrap());
    let shape = CacheShape::new(&config, &geometry(&config, &[8]), KvType::Q8_0).unwrap();
    assert!(matches!(Cpu::new(weights, shape), Err(EngineError::Shape { .. })));
}

/// What a block of 32 or 256 weights stands for, decoded by candle.
fn decoded(kind: GgmlDType, bytes: &[u8], rows: usize, cols: usize) -> Vec<f32> {
    let storage = QStorage::from_data(bytes.into(), &Device::Cpu, kind).unwrap();
    let tensor = QTensor::new(storage, (rows, cols)).unwrap().dequantize(&Device::Cpu).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn products_with_packed_weights_have_the_bits_of_those_with_decoded_ones() {
    // Two and a half pieces of decoded rows.
    let (rows, cols) = (37, 1280);
    let mut random = Random(1);
    let mut number = || random.below(2001) as f32 / 1000.0 - 1.0;
    let numbers: Vec<f32> = (0..rows * cols).map(|_| number()).collect();
    let x: Vec<f32> = (0..100 * cols).map(|_| number()).collect();
    let full = Tensor::from_slice(&numbers, (rows, cols), &Device::Cpu).unwrap();
    let packed = |kind| QTensor::quantize(&full, kind).unwrap().data().unwrap().to_vec();
    let kinds = [GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q6K].map(|kind| (kind, packed(kind)));
    let mut pairs: Vec<(Data, Vec<f32>)> = kinds
        .into_iter()
        .map(|(kind, bytes)| {
            let plain = decoded(kind, &bytes, rows, cols);
            let data = match kind {
                GgmlDType::Q8_0 => Data::Q8_0(bytes.into()),
                GgmlDType::Q4_0 => Data::Q4_0(bytes.into()),
                _ => Data::Q6K(bytes.into()),
            };
            (data, plain)
        })
        .collect();
    let half: Vec<bf16> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
    pairs.push((Data::Bf16(half.clone().into()), half.iter().map(|x| x.to_f32()).collect()));
    let half: Vec<f16> = numbers.iter().map(|&x| f16::from_f32(x * 1e-4)).collect();
    pairs.push((Data::F16(half.clone().into()), half.iter().map(|x| x.to_f32()).collect()));
    for (data, plain) in pairs {
        let name = format!("{data:?}").chars().take(5).collect::<String>();
        let packed = Matrix { rows, cols, data };
        let plain = Matrix { rows, cols, data: Data::F32(plain.into()) };
        for n in [1, 2, 3, 4, 5, 7, 8, 15, 33, 100] {
            let (mut a, mut b) = (vec![0.0; n * rows], vec![0.0; n * rows]);
            multiply(Isa::Portable, &plain, &x[..n * cols], &mut b);
            for unit in Isa::all() {
                multiply(unit, &packed, &x[..n * cols], &mut a);
                assert_same_bits(&a, &b, &format!("{name}, {n} inputs, {}", unit.name()));
            }
        }
    }
}
