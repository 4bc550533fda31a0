//! Where Ollama 0.6.6 puts a Gemma 3 model: what it believes, and what then happens.
//!
//! Two accounts that differ. The server *estimates* ([`estimate`](mod@estimate)): before loading, it adds up layers,
//! cells and buffers per device and decides which devices are used, how many sequences run at once
//! and how many layers each device gets ([`place`](mod@place)). The runner then *allocates* ([`load`](mod@load)): it
//! assigns layers by its own rule, puts the output layer and the whole vision tower on the last
//! device, and asks the driver for memory; whether an excess is an error or lands in main memory
//! is up to the driver.

pub mod dealt;
pub mod estimate;
pub mod file;
pub mod load;
pub mod place;

pub use dealt::Shares;
pub use estimate::{Estimate, estimate};
pub use file::{ModelFile, Quantisation};
pub use load::{Bytes, Device, LoadError, Loaded, load};
pub use place::{Fit, Placement, place};

use crate::model::KvType;

/// What an Ollama server is told: its environment and the options of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `num_ctx`: context of one sequence, tokens.
    pub num_ctx: u32,
    /// `num_batch`: tokens of a step.
    pub num_batch: u32,
    /// `OLLAMA_NUM_PARALLEL`: sequences at once; 0: automatic (4, or 1 where 4 do not fit).
    pub num_parallel: u32,
    /// `OLLAMA_KV_CACHE_TYPE`; without flash attention it is ignored.
    pub kv: KvType,
    /// `OLLAMA_FLASH_ATTENTION`.
    pub flash_attention: bool,
    /// `OLLAMA_SCHED_SPREAD`: use all devices even where one would do.
    pub spread: bool,
    /// `OLLAMA_GPU_OVERHEAD`: bytes kept free on each device.
    pub gpu_overhead_bytes: u64,
    /// `CUDA_VISIBLE_DEVICES`: numbers of the devices that may be seen, in this order; none: all.
    pub visible_devices: Option<Vec<usize>>,
    /// Whether the driver may put an excess into main memory ("CUDA - Sysmem Fallback Policy").
    pub sysmem_fallback: bool,
    /// Cells per layer class that the runner allocates instead of its own sizes; for caches that
    /// are sized in another way. The estimate does not know of them.
    pub cells: Option<Vec<u32>>,
    /// How llama-server deals layers to all visible devices; none: Ollama's scheduler decides.
    pub shares: Option<Shares>,
}

impl Default for Options {
    /// The defaults of 0.6.6 and of its driver.
    fn default() -> Self {
        Self {
            num_ctx: 2048,
            num_batch: 512,
            num_parallel: 0,
            kv: KvType::F16,
            flash_attention: false,
            spread: false,
            gpu_overhead_bytes: 0,
            visible_devices: None,
            sysmem_fallback: true,
            cells: None,
            shares: None,
        }
    }
}

impl Options {
    /// The type that the cache really has: quantised only with flash attention.
    pub fn kv_in_effect(&self) -> KvType {
        if self.flash_attention { self.kv } else { KvType::F16 }
    }
}

/// Why there is no answer. That a model does not fit is an answer: see [`Loaded::error`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OllamaError {
    /// Tensor sizes and graphs are known for one family.
    #[error(
        "Ollama's memory estimate is known for Gemma 3 only, with every 6th layer global; {model} is not"
    )]
    NotGemma3 {
        /// The model.
        model: String,
    },
    /// A setting makes no sense.
    #[error("{field} must be at least 1")]
    Zero {
        /// Which one.
        field: &'static str,
    },
    /// A number is beyond anything that was ever built; sums of bytes might overflow.
    #[error("{field} must be at most {most}")]
    TooLarge {
        /// Which one.
        field: &'static str,
        /// The largest value.
        most: u32,
    },
    /// A list of visible devices names one that is not there.
    #[error("visible devices: there is no device {index}; {host} has {devices}, counted from 0")]
    NoSuchDevice {
        /// What was asked for.
        index: usize,
        /// The host.
        host: String,
        /// How many it has.
        devices: usize,
    },
    /// Shares of layers are not one per device, or all zero.
    #[error("{shares} shares of the layers for {devices} visible devices; expected one each, not all zero")]
    Shares {
        /// How many there are.
        shares: usize,
        /// How many there should be.
        devices: usize,
    },
    /// A list of visible devices names one twice.
    #[error("visible devices: device {index} is named twice")]
    Twice {
        /// Which one.
        index: usize,
    },
}
