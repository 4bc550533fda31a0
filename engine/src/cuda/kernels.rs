//! The kernels of a device, by name, and the argument groups that many of them share.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::compile::{self, SOURCE};
use super::driver::{Args, Device, DeviceInfo, Kernel, Module, Shape, Stream};
use super::images;
use crate::error::EngineError;

/// A device and its kernels.
#[derive(Clone)]
pub struct Gpu {
    pub(crate) device: Arc<Device>,
    pub(crate) kernels: Arc<Kernels>,
}

/// Opens a CUDA device and loads the kernels: those that come with the program, or else what NVRTC makes.
///
/// # Errors
/// [`EngineError::Device`] with a sentence that says what is missing: the driver, the device, NVRTC.
pub fn open(ordinal: usize) -> Result<Gpu, EngineError> {
    let device = Device::open(ordinal)?;
    let kernels = Arc::new(Kernels::load(&device)?);
    Ok(Gpu { device, kernels })
}

impl Gpu {
    /// What is known of the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.device.info
    }

    /// Where the kernels' machine code comes from, in words.
    pub fn code(&self) -> &str {
        &self.kernels.code
    }

    /// Bytes of device memory that are free.
    ///
    /// # Errors
    /// If the driver does not answer.
    pub fn free_memory(&self) -> Result<u64, EngineError> {
        self.device.free_memory()
    }
}

/// All kernels of the module.
pub(crate) struct Kernels {
    /// Where they come from.
    code: String,
    kernels: BTreeMap<String, Kernel>,
    // Freed after what was taken from it.
    _module: Module,
}

/// Widths of heads that the fast attention kernels are made for.
const HEAD_DIMS: [usize; 4] = [32, 64, 128, 256];

/// Names of all kernels that the backend launches.
pub fn names() -> Vec<String> {
    let single = [
        "repack_q4_0",
        "repack_q8_0",
        "dequant_q4_0",
        "dequant_q8_0",
        "synth_bf16",
        "synth_norm",
        "lin_plain_f32",
        "lin_plain_bf16",
        "glu_plain",
        "act_quant",
        "embed_f32",
        "embed_bf16",
        "embed_q8_0",
        "embed_q4_0",
        "add_norm",
        "norm_rows",
        "qk_rope_store",
        "attn_merge",
        "attn_plain",
        "cells_copy",
        "cells_gather",
        "cells_scatter",
        "rotate_k",
        "kv_convert",
        "argmax_part",
        "argmax_final",
    ];
    let mut names: Vec<String> = single.iter().map(|&name| name.to_owned()).collect();
    for kind in ["bf16", "q8_0", "q4_0"] {
        for columns in [8, 16, 32] {
            names.extend([format!("lin_{kind}_{columns}"), format!("glu_{kind}_{columns}")]);
        }
        for head in HEAD_DIMS {
            for what in ["decode", "scan", "prefill", "prefill_scan"] {
                names.push(format!("attn_{what}_{kind}_{head}"));
            }
        }
    }
    names
}

impl Kernels {
    fn load(device: &Arc<Device>) -> Result<Kernels, EngineError> {
        let arch = device.info.arch;
        // A driver that is too old for an image may still take what an NVRTC of its own age makes.
        let mut refused = String::new();
        for image in images::images_for(arch, SOURCE) {
            match Kernels::of(device, &image.unpack()?, format!("for {}", image.name)) {
                Ok(kernels) => return Ok(kernels),
                Err(error) => {
                    refused = format!("the kernels for {} are refused ({error}), and ", image.name);
                }
            }
        }
        let made = compile::kernels(arch).map_err(|error| EngineError::Device(format!("{refused}{error}")));
        let (image, (major, minor)) = made?;
        Kernels::of(device, &image, format!("by NVRTC {major}.{minor} for sm_{arch}"))
    }

    fn of(device: &Arc<Device>, image: &[u8], code: String) -> Result<Kernels, EngineError> {
        let module = Module::load(device, image)?;
        let kernel = |name: String| Ok((name.clone(), module.kernel(&name)?));
        let kernels = names().into_iter().map(kernel).collect::<Result<_, EngineError>>()?;
        Ok(Kernels { code, kernels, _module: module })
    }

    /// Queues a kernel.
    pub(crate) fn launch(
        &self,
        stream: &Stream,
        name: &str,
        shape: Shape,
        mut args: Args,
    ) -> Result<(), EngineError> {
        let kernel = self.kernels.get(name);
        let kernel = kernel.ok_or_else(|| EngineError::Device(format!("there is no kernel {name}")))?;
        if shape.grid[1..].iter().any(|&blocks| blocks as usize > MOST_BLOCKS) {
            return Err(EngineError::Device(format!(
                "launching {name}: {:?} blocks, where the second and third number are at most {MOST_BLOCKS}",
                shape.grid
            )));
        }
        stream.launch(kernel, shape, &mut args)
    }
}

/// Most blocks of a grid in its second and third dimension, on every device.
pub(crate) const MOST_BLOCKS: usize = 65_535;

/// A launch of `blocks` blocks in one, two or three dimensions that waits for the kernel before.
pub(crate) fn grid(blocks: [usize; 3], block: usize) -> Shape {
    Shape { grid: blocks.map(|n| n as u32), block: block as u32, early: false }
}

/// Where the inputs of a linear layer go: up to three forms of the same numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ActOut {
    /// f32, `[n][k]`, or 0.
    pub(crate) full: u64,
    /// bf16, `[n][k]`, or 0.
    pub(crate) half: u64,
    /// int8, `[n][kpad]`, or 0.
    pub(crate) quants: u64,
    /// f32, `[n][kpad / 32]`, or 0.
    pub(crate) scales: u64,
    /// `k`, rounded up.
    pub(crate) padded: usize,
}

impl ActOut {
    /// Appends the five arguments.
    pub(crate) fn push(self, args: Args) -> Args {
        args.at(self.full).at(self.half).at(self.quants).at(self.scales).int(self.padded as u32)
    }
}
