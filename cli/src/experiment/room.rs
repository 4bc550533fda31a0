//! Whether there is room for a model, and what is short where there is not.

use serde::Serialize;
use sim::memory::MemoryError;
use sim::ollama::{LoadError, Loaded};

use super::device::{gib, gib_text};

/// What does not fit where.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shortage {
    /// The device, or `main memory`.
    pub device: String,
    /// What no longer finds room when weights, KV cache and compute graph are put there in turn.
    pub part: &'static str,
    /// GiB needed on it in all.
    pub needed_gib: f64,
    /// GiB that it has.
    pub there_gib: f64,
}

impl Shortage {
    fn new(device: String, parts: [(&'static str, f64); 3], there_gib: f64) -> Self {
        let needed_gib = parts.iter().map(|(_, gib)| gib).sum();
        let mut sum = 0.0;
        let too_much = parts.iter().find(|(_, gib)| {
            sum += gib;
            sum > there_gib
        });
        Shortage { device, part: too_much.map_or(parts[2].0, |(part, _)| part), needed_gib, there_gib }
    }

    /// What an error of the closed form says, where it is about room.
    pub fn of(error: &MemoryError) -> Option<Self> {
        let MemoryError::TooSmall { gpu, have, weights, cells, graph, reserve, .. } = error else {
            return None;
        };
        let parts = [("weights", weights + reserve), ("KV cache", *cells), ("compute graph", *graph)];
        Some(Self::new(gpu.clone(), parts, *have))
    }

    /// What is short on a host: the device that lacks most, or main memory; none where all of it fits.
    pub(super) fn of_loaded(loaded: &Loaded) -> Option<Self> {
        if let Some(LoadError::Ram { need, have }) = loaded.error {
            return Some(Self::new(
                "main memory".into(),
                [("weights", need), ("KV cache", 0.0), ("compute graph", 0.0)],
                have,
            ));
        }
        if loaded.error.is_none() && loaded.spilled_bytes() == 0 {
            return None;
        }
        let worst = loaded.devices.iter().max_by_key(|device| device.excess_bytes())?;
        let bytes = &worst.bytes;
        let parts = [
            ("weights", gib(bytes.tensors() + bytes.context)),
            ("KV cache", gib(bytes.kv)),
            ("compute graph", gib(bytes.graph)),
        ];
        Some(Self::new(worst.name.clone(), parts, gib(worst.free_bytes)))
    }

    /// In words.
    pub fn words(&self) -> String {
        let text = |gib: f64| gib_text((gib * f64::from(1 << 30)) as u64);
        let Shortage { device, part, needed_gib, there_gib } = self;
        format!(
            "{device} has {} of {} GiB needed; the {part} no longer {}",
            text(*there_gib),
            text(*needed_gib),
            if part.ends_with('s') { "fit" } else { "fits" }
        )
    }
}
