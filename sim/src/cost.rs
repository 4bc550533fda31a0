//! What a step costs: one trait, four back-ends.
//!
//! | back-end | type | coefficients from | holds for |
//! | --- | --- | --- | --- |
//! | `spec` | [`roofline::Roofline`] | the catalogue | any model and device, to 10 to 40 % |
//! | `fitted` | [`roofline::Roofline`] | [`fit::fit`] on measured steps | the measured model and device |
//! | `table` | [`table::Table`] | a measured [`profile::Profile`] | the same, inside its grid |
//! | `linear` | [`linear::Linear`] | steps of the engine ([`linear::fit`]) | the same, inside the measured sizes |
//!
//! [`split::Split`] adds `spec` prices up over several devices that share a model.

pub mod fit;
pub mod linear;
pub mod moves;
mod nnls;
pub mod profile;
pub mod roofline;
pub mod split;
pub mod sweep;
pub mod table;

use serde::{Deserialize, Serialize};

/// The work of one step of the model, as the scheduler planned it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Work {
    /// Tokens computed in this step, over all sequences.
    pub tokens: u32,
    /// Sequences in the batch.
    pub sequences: u32,
    /// Sequences that need logits (the output layer and sampling run for these only).
    pub samples: u32,
    /// Sequences that decode: one token each.
    pub decodes: u32,
    /// Pieces of prompts in the batch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefills: Vec<Prefill>,
    /// Per layer class: cells read by the attention of all decoding sequences together, i.e. the
    /// sum over sequences of min(context with the new token, window).
    pub decode_reads: Vec<u64>,
    /// Per layer class: what these reads spare as cells are stored coarser, in 32nds of a cell
    /// ([`policies::Policy::spared`]). Empty where all cells are stored alike.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub decode_spared: Vec<u64>,
    /// The same of reading the cells before the pieces of prompts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub context_spared: Vec<u64>,
    /// Per layer class: cells of the range that attention walks for all tokens of the step at once,
    /// with an owner test, instead of reading each sequence's own cells (Ollama, llama.cpp: one
    /// matrix product with a mask). Empty for attention through tables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub walked: Vec<u64>,
    /// Per layer class: pairs of a new token and one that it looks at whose attention the policy wants to be
    /// told ([`policies::Policy::attended`]). Empty where it wants none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scored: Vec<u64>,
    /// Per layer class: keys that attention rotates as it reads them, where K is stored before its rotation
    /// ([`policies::Policy::rotates_on_read`]): those of the cells that are read, but for the step's own tokens
    /// in pieces of prompts. Empty where K is stored rotated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub turned: Vec<u64>,
    /// Copies, rotations, roundings and transfers that the plan asks for.
    #[serde(skip_serializing_if = "Moves::is_empty")]
    pub moves: Moves,
}

/// A piece of a prompt: `tokens` new ones after `context` that are in the cache already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefill {
    /// New tokens.
    pub tokens: u32,
    /// Tokens before them.
    pub context: u32,
}

/// Physical work that the plan of a step asks for beside the model's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Moves {
    /// Per layer class: cells copied inside the device (K and V).
    pub copied_cells: Vec<u64>,
    /// Copy commands (each is one launch per layer of its class), but for those beside the step.
    pub copies: u64,
    /// Per layer class: cells whose K is rotated again.
    pub rotated_cells: Vec<u64>,
    /// Rotate commands.
    pub rotations: u64,
    /// Per layer class: cells whose K and V are rounded in place.
    pub requantised_cells: Vec<u64>,
    /// Commands to round.
    pub requantisations: u64,
    /// Per layer class: cells that cross PCIe, either way.
    pub swapped_cells: Vec<u64>,
    /// Per layer class: granules of physical memory that appear at virtual addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mapped: Vec<u64>,
    /// Per layer class: granules that disappear.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unmapped: Vec<u64>,
}

impl Moves {
    /// Whether nothing moves.
    pub fn is_empty(&self) -> bool {
        let cells = [
            &self.copied_cells,
            &self.rotated_cells,
            &self.requantised_cells,
            &self.swapped_cells,
            &self.mapped,
            &self.unmapped,
        ];
        let commands = self.copies + self.rotations + self.requantisations;
        commands == 0 && cells.into_iter().flatten().all(|&cells| cells == 0)
    }
}

/// Prices a step. Implementations are pure: equal work, equal time.
pub trait CostModel: Send + Sync {
    /// Name of the back-end; every result carries it: `spec`, `fitted`, `table`, `linear`.
    fn name(&self) -> &str;

    /// Nanoseconds that one step takes, from launch to sampled tokens.
    fn step_ns(&self, work: &Work) -> u64;

    /// The part of the step for which a device that drives the display waits for memory that the
    /// driver has put into main memory. 0 where nothing lies there.
    fn stall_ns(&self, work: &Work) -> u64 {
        let _ = work;
        0
    }
}
