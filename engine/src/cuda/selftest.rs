//! Whether the device computes what it should: the whole backend against the one on the CPU, against
//! itself with cells elsewhere, and against exact counts of memory.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use policies::{ClassId, Effect, KvBits, Plan, Run, SeqId, Why};
use safetensors::SafeTensors;
use serde::Serialize;

use super::cases::{self, OnDevice};
use super::kernels::Gpu;
use super::model::{Model, Precision};
use super::rig::{Placement, Rig, difference, texts};
use super::{Cuda, Options};
use crate::backend::{Backend, Output, Wanted};
use crate::cache::KvType;
use crate::config::Config;
use crate::cpu::Cpu;
use crate::cpu::format::{pack_q4, pack_q8};
use crate::error::EngineError;
use crate::synthetic;
use crate::weights::{Data, Matrix, Weights};

/// How one case went.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What was tried.
    pub name: String,
    /// Whether it held.
    pub passed: bool,
    /// What was measured: a difference, in most cases the largest of any logit.
    pub value: f64,
    /// What it may be.
    pub limit: f64,
    /// More in words; the error where there was one.
    pub note: String,
    /// Seconds that it took.
    pub seconds: f64,
}

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Little: for a device that is imitated.
    Brief,
    /// Everything.
    Whole,
}

/// What a case measured, what it may be, and more in words.
type Found = Result<(f64, f64, String), EngineError>;

/// Runs all cases whose name has the words `only` (all have the empty ones): every kernel alone, then the backend.
pub fn selftest(gpu: &Gpu, effort: Effort, only: &str, mut each: impl FnMut(&Outcome)) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut judge = |name: String, case: &dyn Fn() -> Found| {
        if !name.contains(only) {
            return;
        }
        let start = Instant::now();
        let found = case();
        let seconds = start.elapsed().as_secs_f64();
        let outcome = match found {
            Ok((value, limit, note)) => Outcome { name, passed: value <= limit, value, limit, note, seconds },
            Err(error) => {
                Outcome { name, passed: false, value: f64::NAN, limit: 0.0, note: error.to_string(), seconds }
            }
        };
        each(&outcome);
        outcomes.push(outcome);
    };
    let device = OnDevice::new(gpu);
    for case in cases::CASES {
        judge(format!("kernels: {}", case.name.replace('_', " ")), &|| alone(&device, case));
    }
    judge("every kernel was tried alone".to_owned(), &|| untried(&device));
    for (name, case) in backend_cases(effort) {
        judge(name, &|| case(gpu, effort));
    }
    outcomes
}

/// A case of kernels alone, which panics where it does not hold.
fn alone(device: &OnDevice, case: &cases::Case) -> Found {
    catch_unwind(AssertUnwindSafe(|| (case.run)(device))).map_err(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
        EngineError::Device(words.unwrap_or("it does not hold").to_owned())
    })?;
    Ok((0.0, 0.0, String::new()))
}

/// How many kernels no case has run.
fn untried(device: &OnDevice) -> Found {
    let untried = device.untried();
    Ok((untried.len() as f64, 0.0, untried.join(" ")))
}

type Case = Box<dyn Fn(&Gpu, Effort) -> Found>;

fn backend_cases(effort: Effort) -> Vec<(String, Case)> {
    let mut cases: Vec<(String, Case)> = Vec::new();
    let mut add = |name: &str, case: Case| cases.push((name.to_owned(), case));
    add("a golden model gives the logits of another implementation", Box::new(|gpu, _| golden(gpu)));
    add(
        "f32 throughout agrees with the CPU",
        Box::new(|gpu, effort| against_cpu(gpu, effort, Precision::Full, KvType::F32)),
    );
    add(
        "bf16 weights over an f32 cache agree with the CPU",
        Box::new(|gpu, effort| against_cpu(gpu, effort, Precision::Half, KvType::F32)),
    );
    add(
        "bf16 weights over a bf16 cache agree with the CPU",
        Box::new(|gpu, effort| against_cpu(gpu, effort, Precision::Half, KvType::Bf16)),
    );
    add(
        "bf16 weights over a q8_0 cache agree with the CPU",
        Box::new(|gpu, effort| against_cpu(gpu, effort, Precision::Half, KvType::Q8_0)),
    );
    add(
        "bf16 weights over an f16 cache agree with the CPU",
        Box::new(|gpu, effort| against_cpu(gpu, effort, Precision::Half, KvType::F16)),
    );
    add("synthetic weights made on the device are those made here", Box::new(|gpu, _| same_synthetic(gpu)));
    for kv in [KvType::F32, KvType::Bf16, KvType::Q8_0, KvType::Q4_0] {
        if effort == Effort::Brief && kv == KvType::Q8_0 {
            continue;
        }
        add(
            &format!("placement changes no bit over a {kv:?} cache"),
            Box::new(move |gpu, effort| placements(gpu, effort, kv)),
        );
    }
    add("a graph computes what its launches do, early starts or not", Box::new(graphs));
    add("cuBLASLt agrees with our own kernels, eager and in graphs", Box::new(library));
    add("walking cells agrees with reading tables", Box::new(walks));
    add("moved cells are read as before", Box::new(|gpu, _| moves(gpu)));
    add("swapped cells change no bit", Box::new(|gpu, _| swaps(gpu)));
    add("rotated keys agree with the CPU", Box::new(|gpu, _| rotations(gpu)));
    for to in [KvBits::Q8_0, KvBits::Q4_0] {
        add(&format!("cells rounded to {to:?} agree with the CPU"), Box::new(move |gpu, _| rounded(gpu, to)));
    }
    for kind in ["q8_0", "q4_0"] {
        add(
            &format!("{kind} weights agree with their floats"),
            Box::new(move |gpu, effort| quantised(gpu, effort, kind)),
        );
    }
    add(
        "a cache that does not fit is refused and leaves nothing behind",
        Box::new(|gpu, _| out_of_memory(gpu)),
    );
    add("steps leave no memory behind", Box::new(leaks));
    if effort == Effort::Whole {
        for (heads, kv_heads, head_dim) in [(4, 1, 256), (8, 4, 256), (16, 8, 64), (32, 16, 128), (8, 1, 128)]
        {
            add(
                &format!("{heads} heads of {head_dim} over {kv_heads} agree with plain kernels"),
                Box::new(move |gpu, _| heads_of(gpu, heads, kv_heads, head_dim)),
            );
        }
    }
    cases
}

fn tiny() -> Config {
    Config::preset("gemma3-tiny").expect("the preset exists")
}

fn lengths(effort: Effort) -> Vec<usize> {
    if effort == Effort::Brief { vec![22, 9] } else { vec![100, 67, 33] }
}

fn rig(placement: Placement, classes: usize) -> Rig {
    Rig { placement, room: 128, sequences: 3, classes }
}

fn cpu_logits(
    weights: &Arc<Weights>,
    texts: &[Vec<u32>],
    chunk: usize,
) -> Result<Vec<Vec<f32>>, EngineError> {
    let rig = rig(Placement::Runs, 1);
    let mut cpu = Cpu::new(weights.clone(), rig.shape(&weights.config, KvType::F32))?;
    rig.logits(&mut cpu, texts, chunk, 0)
}

fn upload(gpu: &Gpu, weights: &Weights, precision: Precision) -> Result<Arc<Model>, EngineError> {
    Ok(Arc::new(Model::upload(gpu, weights, precision)?))
}

/// Prefill in chunks of several sizes and decode, all against one prefill on the CPU.
fn against_cpu(gpu: &Gpu, effort: Effort, precision: Precision, kv: KvType) -> Found {
    let config = tiny();
    let full = precision == Precision::Full;
    let weights = Arc::new(synthetic::weights(&config, 7, full)?);
    let texts = texts(&config, &lengths(effort));
    let expected = cpu_logits(&weights, &texts, 1000)?;
    let model = upload(gpu, &weights, precision)?;
    let (mut most, mut worst) = (0.0_f64, String::new());
    let ways: &[(usize, usize)] =
        if effort == Effort::Brief { &[(12, 4)] } else { &[(1000, 0), (40, 20), (16, 5), (7, 30)] };
    for &(chunk, single) in ways {
        for classes in [1, 2] {
            let rig = rig(Placement::Blocks(16), classes);
            let mut cuda = Cuda::new(model.clone(), rig.shape(&config, kv), Options::default())?;
            let (d, _) = difference(&expected, &rig.logits(&mut cuda, &texts, chunk, single)?);
            // A NaN must win.
            if d.is_nan() || d > most {
                (most, worst) = (d, format!("chunks of {chunk}, {single} single, {classes} classes"));
            }
        }
    }
    let limit = match (full, kv) {
        (true, _) => 5e-5,
        (false, KvType::F32 | KvType::F16) => 0.25,
        (false, KvType::Bf16) => 0.3,
        (false, _) => 0.5,
    };
    Ok((most, limit, worst))
}

/// A model by hash, and its logits as `tests/golden/tiny.py` computed them.
const GOLDEN: &[u8] = include_bytes!("../../tests/golden/tiny.safetensors");

fn golden(gpu: &Gpu) -> Found {
    let config = tiny();
    let broken = |error: safetensors::SafeTensorError| EngineError::Device(error.to_string());
    let file = SafeTensors::deserialize(GOLDEN).map_err(broken)?;
    let numbers = |name: &str| -> Result<Vec<u32>, EngineError> {
        let tensor = file.tensor(name).map_err(broken)?;
        Ok(tensor.data().as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect())
    };
    let (tokens, positions) = (numbers("tokens")?, numbers("positions")?);
    let expected: Vec<f32> = numbers("logits")?.into_iter().map(f32::from_bits).collect();
    let rig = Rig { placement: Placement::Blocks(16), room: 256, sequences: 1, classes: 2 };
    let model = upload(gpu, &synthetic::weights(&config, 7, true)?, Precision::Full)?;
    let mut cuda = Cuda::new(model, rig.shape(&config, KvType::F32), Options::default())?;
    let logits = rig.logits(&mut cuda, &[tokens], 40, 6)?;
    let at = |position: &u32| &logits[0][*position as usize * config.vocab..][..config.vocab];
    let found: Vec<f32> = positions.iter().flat_map(at).copied().collect();
    Ok((difference(&[expected], &[found]).0, 5e-5, String::new()))
}

fn same_synthetic(gpu: &Gpu) -> Found {
    let config = tiny();
    let texts = texts(&config, &[20]);
    let logits = |model: Model| {
        let rig = rig(Placement::Runs, 1);
        let mut cuda = Cuda::new(Arc::new(model), rig.shape(&config, KvType::Bf16), Options::default())?;
        rig.logits(&mut cuda, &texts, 16, 4)
    };
    let here = logits(Model::upload(gpu, &synthetic::weights(&config, 3, false)?, Precision::Half)?)?;
    let there = logits(Model::synthetic(gpu, &config, 3)?)?;
    Ok((difference(&here, &there).0, 0.0, String::new()))
}

/// The bf16 tiny model of most cases.
fn half(gpu: &Gpu) -> Result<Arc<Model>, EngineError> {
    Ok(Arc::new(Model::synthetic(gpu, &tiny(), 7)?))
}

fn placements(gpu: &Gpu, effort: Effort, kv: KvType) -> Found {
    let config = tiny();
    let model = half(gpu)?;
    let texts = texts(&config, &lengths(effort));
    let mut first = None;
    let mut most = 0.0_f64;
    for placement in [Placement::Runs, Placement::Blocks(16), Placement::Blocks(4), Placement::Cells] {
        let rig = rig(placement, 2);
        let mut cuda = Cuda::new(model.clone(), rig.shape(&config, kv), Options::default())?;
        let logits = rig.logits(&mut cuda, &texts, 40, 8)?;
        match &first {
            None => first = Some(logits),
            Some(first) => most = worse(most, difference(first, &logits).0),
        }
    }
    Ok((most, 0.0, String::new()))
}

/// The larger difference; a NaN wins.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn graphs(gpu: &Gpu, effort: Effort) -> Found {
    let config = tiny();
    let model = half(gpu)?;
    let texts = texts(&config, &lengths(effort));
    let rig = rig(Placement::Cells, 2);
    let logits = |options| {
        let mut cuda = Cuda::new(model.clone(), rig.shape(&config, KvType::Bf16), options)?;
        let logits = rig.logits(&mut cuda, &texts, 16, 8)?;
        Ok::<_, EngineError>((logits, cuda.graphs()))
    };
    let plain = Options { graphs: false, early: false, ..Options::default() };
    let (eager, _) = logits(plain)?;
    let (early, _) = logits(Options { early: true, ..plain })?;
    let (replayed, captured) = logits(Options { graphs: true, ..plain })?;
    let (both, _) = logits(Options::default())?;
    let most = [early, replayed, both].iter().map(|other| difference(&eager, other).0).fold(0.0, worse);
    let value = if captured == 0 { f64::NAN } else { most };
    Ok((value, 0.0, format!("{captured} graphs")))
}

/// Prompts and decode batches of more rows than the kernels for few take: by the library, if it is found, and without.
fn library(gpu: &Gpu, effort: Effort) -> Found {
    let config = tiny();
    let model = half(gpu)?;
    let sequences = 33;
    let texts = texts(&config, &[5; 33]);
    let rig = Rig { placement: Placement::Runs, room: 16, sequences, classes: 2 };
    let run = |options: Options| {
        let mut cuda = Cuda::new(model.clone(), rig.shape(&config, KvType::Bf16), options)?;
        let (mut output, mut tokens) = (Output::default(), Vec::new());
        // Two tokens of each as prompts, then one at a time: as it is, and as a graph. So many logits are wanted
        // of the last step only, which is no graph, but sees what the others wrote.
        for (first, end) in [(0, 2), (2, 3), (3, 4), (4, 5)] {
            let part = |seq: u32| (seq, first as u32, &texts[seq as usize][first..end], 1);
            let parts: Vec<_> = (0..sequences).map(part).collect();
            let wanted = if end == 5 { Wanted::Logits } else { Wanted::Argmax };
            cuda.step(&rig.batch(&config, &parts, wanted), &mut output)?;
            tokens.extend_from_slice(&output.argmax);
        }
        Ok::<_, EngineError>((vec![output.logits], tokens, cuda.has_library(), cuda.graphs()))
    };
    let (by_library, tokens, found, captured) = run(Options::default())?;
    let (ours, ..) = run(Options { cublaslt: false, ..Options::default() })?;
    let mut most = if captured > 0 { difference(&by_library, &ours).0 } else { f64::NAN };
    if effort == Effort::Whole {
        let (eager, eager_tokens, ..) = run(Options { graphs: false, ..Options::default() })?;
        if difference(&by_library, &eager).0 != 0.0 || tokens != eager_tokens {
            most = f64::NAN;
        }
    }
    let note = if found { format!("{captured} graphs") } else { "there is no cuBLASLt".to_owned() };
    // Sums of bf16 products in another order, rounded to bf16 between layers.
    Ok((most, 0.1, note))
}

fn walks(gpu: &Gpu, effort: Effort) -> Found {
    let config = tiny();
    let model = half(gpu)?;
    let texts = texts(&config, &lengths(effort));
    let logits = |placement| {
        let rig = rig(placement, 2);
        let mut cuda = Cuda::new(model.clone(), rig.shape(&config, KvType::Bf16), Options::default())?;
        rig.logits(&mut cuda, &texts, 16, 6)
    };
    let (most, rms) = difference(&logits(Placement::Cells)?, &logits(Placement::Walked)?);
    Ok((most, 0.3, format!("rms {rms:.2e}")))
}

/// A rig whose sequences all move up by some cells at once.
fn moves(gpu: &Gpu) -> Found {
    let config = tiny();
    let model = half(gpu)?;
    let texts = texts(&config, &[30]);
    let low = Rig { placement: Placement::Runs, room: 256, sequences: 1, classes: 1 };
    let new = || Cuda::new(model.clone(), low.shape(&config, KvType::Bf16), Options::default());
    let expected = low.logits(&mut new()?, &texts, 20, 1)?;
    let mut most = 0.0_f64;
    for distance in [1_u32, 7, 200] {
        let mut cuda = new()?;
        let (mut batch, mut output) =
            (low.batch(&config, &[(0, 0, &texts[0][..29], 29)], Wanted::Logits), Output::default());
        for view in &mut batch.spans[0].views {
            view.runs = vec![Run { start: distance, len: 29 }];
        }
        cuda.step(&batch, &mut output)?;
        let mut plan = Plan::new();
        // Down by less than its length, in two pieces, as compaction does.
        for (from, len) in [(distance, 12), (distance + 12, 17)] {
            plan.push(Effect::Copy { class: ClassId(0), from, to: from - distance, len, why: Why::Defrag });
        }
        cuda.apply(&plan, &|_| 0)?;
        // Another plan at once, with more words than there was room for, among cells that nobody reads.
        let mut plan = Plan::new();
        let copies = if distance == 7 { super::FIRST_WORDS / 8 } else { 0 };
        for _ in 0..copies {
            plan.push(Effect::Copy { class: ClassId(0), from: 240, to: 248, len: 8, why: Why::Defrag });
        }
        cuda.apply(&plan, &|_| 0)?;
        cuda.step(&low.batch(&config, &[(0, 29, &texts[0][29..], 1)], Wanted::Logits), &mut output)?;
        let last = expected[0][29 * config.vocab..].to_vec();
        most = worse(most, difference(&[last], &[output.logits.clone()]).0);
    }
    // The prompt was computed in one chunk here and in two there.
    Ok((most, 0.05, String::new()))
}

/// How cells go to host memory and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// They stay.
    Nowhere,
    /// By the tokens of a request.
    ByRequest,
    /// By cells of host memory.
    ByCells,
    /// By cells of host memory, back to where they were and, in the same plan, to other cells, which are read.
    ToTwoPlaces,
}

fn swaps(gpu: &Gpu) -> Found {
    let config = tiny();
    let model = half(gpu)?;
    let texts = texts(&config, &[50, 40]);
    let rig = rig(Placement::Blocks(16), 2);
    let plan = |way: Way, is_out: bool| {
        let mut plan = Plan::new();
        for class in [0, 1].map(ClassId) {
            // The way back is cut otherwise than the way out.
            let pieces: &[u32] = if is_out { &[0, 16, 32] } else { &[32, 0, 16] };
            for &first in pieces {
                let at = |sequence| Run { start: rig.cell(sequence, first), len: 16 };
                let (run, slot) = (at(0), 100 + first);
                plan.push(match (is_out, way) {
                    (true, Way::ByRequest) => Effect::SwapOut { class, seq: SeqId(4), first, run },
                    (false, Way::ByRequest) => Effect::SwapIn { class, seq: SeqId(9), first, run },
                    (true, _) => Effect::Offload { class, run, slot },
                    (false, _) => Effect::Fetch { class, slot, run },
                });
                if !is_out && way == Way::ToTwoPlaces {
                    plan.push(Effect::Fetch { class, slot, run: at(2) });
                }
            }
        }
        plan
    };
    // Logits after a swap, from the first cells or from the second.
    let run = |way: Way, from_second: bool| {
        let mut cuda = Cuda::new(model.clone(), rig.shape(&config, KvType::Bf16), Options::default())?;
        let mut output = Output::default();
        let parts = [(0, 0, &texts[0][..48], 1), (1, 0, &texts[1][..39], 1)];
        cuda.step(&rig.batch(&config, &parts, Wanted::Logits), &mut output)?;
        if way != Way::Nowhere {
            cuda.apply(&plan(way, true), &|_| 77)?;
            for buffer in cuda.slabs.k.iter().chain(&cuda.slabs.v) {
                // What comes back must come from the host.
                cuda.model.gpu.device.synchronize()?;
                wipe(buffer, &rig, cuda.slabs.k_record)?;
            }
            cuda.apply(&plan(way, false), &|_| 77)?;
        }
        let parts = [(0, 48, &texts[0][48..49], 1), (1, 39, &texts[1][39..], 1)];
        let mut batch = rig.batch(&config, &parts, Wanted::Logits);
        for view in batch.spans[0].views.iter_mut().filter(|_| from_second) {
            view.runs.clear();
            for token in view.first..49 {
                let cell = rig.cell(if token < 48 { 2 } else { 0 }, token);
                policies::push_run(&mut view.runs, cell, 1);
            }
        }
        cuda.step(&batch, &mut output)?;
        Ok::<_, EngineError>(vec![output.logits])
    };
    let stayed = run(Way::Nowhere, false)?;
    let ways =
        [(Way::ByRequest, false), (Way::ByCells, false), (Way::ToTwoPlaces, false), (Way::ToTwoPlaces, true)];
    let mut most = 0.0;
    for (way, from_second) in ways {
        most = worse(most, difference(&stayed, &run(way, from_second)?).0);
    }
    Ok((most, 0.0, String::new()))
}

/// Overwrites the cells of sequence 0.
fn wipe(buffer: &super::driver::Buffer, rig: &Rig, record: usize) -> Result<(), EngineError> {
    let junk = vec![0x3f_u8; record];
    (0..48).try_for_each(|token| buffer.put(rig.cell(0, token) as usize * record, &junk))
}

/// A context shift: tokens leave the front, later keys are rotated down.
fn rotations(gpu: &Gpu) -> Found {
    let config = tiny();
    let weights = Arc::new(synthetic::weights(&config, 7, true)?);
    let texts = texts(&config, &[40]);
    let rig = Rig { placement: Placement::Runs, room: 64, sequences: 1, classes: 1 };
    let shape = rig.shape(&config, KvType::F32);
    let run = |backend: &mut dyn Backend| {
        let mut output = Output::default();
        backend.step(&rig.batch(&config, &[(0, 0, &texts[0][..39], 1)], Wanted::Logits), &mut output)?;
        let mut plan = Plan::new();
        for (start, delta) in [(12, -8), (20, -5), (20, -3)] {
            let len = if start == 12 { 8 } else { 19 };
            plan.push(Effect::Rotate { class: ClassId(0), run: Run { start, len }, delta });
        }
        backend.apply(&plan, &|_| 0)?;
        let mut batch = rig.batch(&config, &[(0, 31, &texts[0][39..], 1)], Wanted::Logits);
        batch.spans[0].views[0].runs = vec![Run { start: 0, len: 4 }, Run { start: 12, len: 28 }];
        backend.step(&batch, &mut output)?;
        Ok::<_, EngineError>(vec![output.logits])
    };
    let expected = run(&mut Cpu::new(weights.clone(), shape.clone())?)?;
    let model = upload(gpu, &weights, Precision::Full)?;
    let mut cuda = Cuda::new(model, shape, Options::default())?;
    Ok((difference(&expected, &run(&mut cuda)?).0, 5e-5, String::new()))
}

/// Some cells are rounded, in two runs, and read again.
fn rounded(gpu: &Gpu, to: KvBits) -> Found {
    let config = tiny();
    let weights = Arc::new(synthetic::weights(&config, 7, true)?);
    let texts = texts(&config, &[40]);
    let rig = Rig { placement: Placement::Runs, room: 64, sequences: 1, classes: 2 };
    let shape = rig.shape(&config, KvType::F32);
    let run = |backend: &mut dyn Backend, rounds: bool| {
        let mut output = Output::default();
        backend.step(&rig.batch(&config, &[(0, 0, &texts[0][..39], 1)], Wanted::Logits), &mut output)?;
        let mut plan = Plan::new();
        for (class, start, len) in [(0, 25, 9), (1, 0, 20), (1, 30, 4)] {
            plan.push(Effect::Requantise { class: ClassId(class), run: Run { start, len }, to });
        }
        if rounds {
            backend.apply(&plan, &|_| 0)?;
        }
        backend.step(&rig.batch(&config, &[(0, 39, &texts[0][39..], 1)], Wanted::Logits), &mut output)?;
        Ok::<_, EngineError>(vec![output.logits])
    };
    let expected = run(&mut Cpu::new(weights.clone(), shape.clone())?, true)?;
    let model = upload(gpu, &weights, Precision::Full)?;
    let cuda = || Cuda::new(model.clone(), shape.clone(), Options::default());
    let (most, _) = difference(&expected, &run(&mut cuda()?, true)?);
    let (without, _) = difference(&expected, &run(&mut cuda()?, false)?);
    // A number at the edge of two codes may fall to either side, which is far less than rounding all.
    Ok((most, without / 10.0, format!("{without:.2e} where nothing is rounded")))
}

/// Weights in blocks of 32 with a scale each, as GGUF has them.
fn quantise(matrix: &Matrix, kind: &str) -> Data {
    let numbers = super::model::floats(matrix);
    let blocks = numbers.as_chunks().0;
    match kind {
        "q8_0" => Data::Q8_0(blocks.iter().flat_map(pack_q8).collect()),
        _ => Data::Q4_0(blocks.iter().flat_map(pack_q4).collect()),
    }
}

fn quantised(gpu: &Gpu, effort: Effort, kind: &str) -> Found {
    let config = tiny();
    let mut weights = synthetic::weights(&config, 7, true)?;
    let mut all: Vec<&mut Matrix> = vec![&mut weights.embedding];
    for layer in &mut weights.layers {
        all.extend([&mut layer.q, &mut layer.k, &mut layer.v, &mut layer.o]);
        all.extend([&mut layer.gate, &mut layer.up, &mut layer.down]);
    }
    for matrix in all {
        matrix.data = quantise(matrix, kind);
    }
    // More rows than the kernels for few take, so that a library, if there is one, computes the larger chunks.
    let texts = texts(&config, if effort == Effort::Brief { &[40, 9] } else { &[100, 67, 33] });
    let rig = rig(Placement::Blocks(16), 2);
    let logits = |precision, chunk| {
        let model = upload(gpu, &weights, precision)?;
        let mut cuda = Cuda::new(model, rig.shape(&config, KvType::F32), Options::default())?;
        rig.logits(&mut cuda, &texts, chunk, 6)
    };
    let expected = logits(Precision::Full, 16)?;
    let (most, rms) = difference(&expected, &logits(Precision::Half, 16)?);
    let (many, many_rms) = difference(&expected, &logits(Precision::Half, 64)?);
    Ok((worse(most, many), 0.6, format!("rms {:.2e}", rms.max(many_rms))))
}

fn out_of_memory(gpu: &Gpu) -> Found {
    let model = half(gpu)?;
    let huge = Rig { placement: Placement::Runs, room: 1 << 30, sequences: 1, classes: 1 };
    let refuse = || {
        let refused = Cuda::new(model.clone(), huge.shape(&model.config, KvType::F32), Options::default());
        matches!(refused, Err(EngineError::Memory { .. }))
    };
    // The first attempt loads libraries, which stay.
    refuse();
    let before = gpu.free_memory()?;
    let is_clean = refuse();
    let lost = before.saturating_sub(gpu.free_memory()?);
    Ok((if is_clean { lost as f64 } else { f64::NAN }, 0.0, "bytes lost".to_owned()))
}

fn leaks(gpu: &Gpu, effort: Effort) -> Found {
    let config = tiny();
    let model = half(gpu)?;
    let texts = texts(&config, &[100, 100, 100]);
    let rig = rig(Placement::Cells, 2);
    let steps = if effort == Effort::Brief { 4 } else { 10_000 };
    let before = gpu.free_memory()?;
    let mut cuda = Cuda::new(model, rig.shape(&config, KvType::Bf16), Options::default())?;
    let mut output = Output::default();
    let mut warm = 0;
    for step in 0..steps {
        let at = step % 90;
        let parts: Vec<_> = (0..=(step / 90 % 3) as u32)
            .map(|seq| (seq, at as u32, &texts[seq as usize][at..=at], 1))
            .collect();
        cuda.step(&rig.batch(&config, &parts, Wanted::Argmax), &mut output)?;
        if step == steps / 10 {
            warm = gpu.free_memory()?;
        }
    }
    let during = warm.saturating_sub(gpu.free_memory()?);
    drop(cuda);
    // The driver keeps small pools of its own for graphs, so this looks for what grows.
    let after = before.saturating_sub(gpu.free_memory()?);
    Ok((during as f64, (4 << 20) as f64, format!("{steps} steps; {after} bytes less after all")))
}

/// A model of two layers with real widths, fast attention and tensor cores against plain kernels.
fn heads_of(gpu: &Gpu, heads: usize, kv_heads: usize, head_dim: usize) -> Found {
    let config = Config {
        hidden: 1152,
        layers: Config::pattern(2, 2),
        query_heads: heads,
        kv_heads,
        head_dim,
        ffn: 2048,
        vocab: 4096,
        window: 512,
        ..tiny()
    };
    let texts = texts(&config, &[1500, 700, 40]);
    let rig = Rig { placement: Placement::Blocks(16), room: 1536, sequences: 3, classes: 2 };
    let model = Arc::new(Model::synthetic(gpu, &config, 11)?);
    let logits = |kv, library| {
        let options = Options { cublaslt: library, ..Options::default() };
        let mut cuda = Cuda::new(model.clone(), rig.shape(&config, kv), options)?;
        rig.logits(&mut cuda, &texts, 300, 12)
    };
    // K and V in f16 are read by the plain kernel.
    let plain = logits(KvType::F16, false)?;
    let (most, rms) = difference(&plain, &logits(KvType::Bf16, true)?);
    let (few, few_rms) = difference(&plain, &logits(KvType::Q8_0, false)?);
    Ok((worse(most, few), 0.5, format!("rms bf16 {rms:.2e}, q8_0 {few_rms:.2e}")))
}
