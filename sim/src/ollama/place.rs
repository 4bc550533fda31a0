//! Ollama's scheduler: which devices a model gets, and how many sequences at once.
//!
//! One device if the model fits on it (the one with most memory free is asked first), else all of
//! them together, else as many layers as fit, the rest in main memory. Automatic parallel means
//! that 4 is tried before 1 at each of these stages, and 1 is what a partial fit gets.

use super::estimate::{Demand, Estimate, estimate};
use super::file::ModelFile;
use super::{OllamaError, Options};

/// Sequences that automatic parallel tries, in this order.
const PARALLEL_TRIES: [u32; 2] = [4, 1];

/// Largest context over all sequences and largest batch, tokens, and largest overhead, bytes:
/// sums stay far from 64 bits.
const CONTEXT_MAX: u32 = 1 << 28;
const BATCH_MAX: u32 = 1 << 18;
const OVERHEAD_MAX: u64 = 1 << 60;

/// How a model fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// On one device.
    One,
    /// On all visible devices together.
    All,
    /// Some layers are in main memory.
    Partial,
    /// No device takes a layer.
    Cpu,
    /// Dealt to all visible devices by shares, as llama-server does; nobody has asked whether it fits.
    Dealt,
}

/// The scheduler's decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Places in the list of devices, in the order in which the runner sees them.
    pub devices: Vec<usize>,
    /// Sequences at once.
    pub parallel: u32,
    /// How it fits.
    pub fit: Fit,
    /// What was asked for.
    pub demand: Demand,
    /// The estimate behind it, in the order of `devices`.
    pub estimate: Estimate,
}

impl Placement {
    /// `--ctx-size` of the runner.
    pub fn context(&self, options: &Options) -> u64 {
        u64::from(options.num_ctx) * u64::from(self.parallel)
    }

    /// `--tensor-split` of the runner: layers per device; empty for one device.
    pub fn tensor_split(&self) -> String {
        if self.devices.len() < 2 {
            return String::new();
        }
        let counts: Vec<String> = self.estimate.layers.iter().map(u32::to_string).collect();
        counts.join(",")
    }
}

/// Refuses numbers that nobody can mean.
pub(super) fn check(options: &Options) -> Result<(), OllamaError> {
    let context = options.num_ctx.saturating_mul(options.num_parallel.max(PARALLEL_TRIES[0]));
    for (field, value, most) in [
        ("num_ctx", options.num_ctx, CONTEXT_MAX),
        ("num_batch", options.num_batch, BATCH_MAX),
        ("num_ctx * num_parallel", context, CONTEXT_MAX),
    ] {
        if value == 0 {
            return Err(OllamaError::Zero { field });
        }
        if value > most {
            return Err(OllamaError::TooLarge { field, most });
        }
    }
    Ok(())
}

/// Decides for devices with `free` bytes each, in order of discovery. `visible_devices` is not
/// looked at: the list has only what can be seen.
///
/// # Errors
///
/// `Zero` for a context or batch of 0, `TooLarge` for values that nobody can mean.
pub fn place(file: &ModelFile, free: &[u64], options: &Options) -> Result<Placement, OllamaError> {
    check(options)?;
    let overhead_bytes = options.gpu_overhead_bytes.min(OVERHEAD_MAX);
    let tries = match &options.num_parallel {
        0 => &PARALLEL_TRIES[..],
        explicit => std::slice::from_ref(explicit),
    };
    let on = |parallel: u32, devices: &[usize]| {
        let demand = Demand::new(file, options.num_ctx, options.num_batch, parallel, options.kv_in_effect());
        let free: Vec<u64> = devices.iter().map(|&index| free[index]).collect();
        let estimate = estimate(file, &free, overhead_bytes, &demand);
        Placement { devices: devices.to_vec(), parallel, fit: Fit::Partial, demand, estimate }
    };
    let mut sorted: Vec<usize> = (0..free.len()).collect();
    sorted.sort_by_key(|&index| std::cmp::Reverse(free[index]));
    let single = || tries.iter().flat_map(|&parallel| sorted.chunks(1).map(move |one| (parallel, one)));
    let all = || tries.iter().map(|&parallel| (parallel, &sorted[..]));
    let found = |(parallel, devices), fit| {
        let placement = on(parallel, devices);
        placement.estimate.is_full.then_some(Placement { fit, ..placement })
    };
    if !options.spread
        && let Some(placement) = single().find_map(|at| found(at, Fit::One))
    {
        return Ok(placement);
    }
    if let Some(placement) = all().find_map(|at| found(at, Fit::All)) {
        return Ok(placement);
    }
    let discovered: Vec<usize> = (0..free.len()).collect();
    let mut placement = on(options.num_parallel.max(1), &discovered);
    if placement.estimate.is_full {
        // Dealt out in another order, everything has found a place.
        placement.fit = Fit::All;
    }
    if placement.estimate.layers_total() == 0 {
        placement.fit = Fit::Cpu;
        placement.devices.clear();
        placement.estimate.layers.clear();
    }
    Ok(placement)
}
