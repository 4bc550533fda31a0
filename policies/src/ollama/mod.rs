//! The cache of Ollama's own engine, cell by cell, with its faults.
//!
//! Gemma 3 has two caches behind a wrapper: one for the layers that read a window (SWA) and one
//! for those that read everything, in this order. A batch goes into one run of free cells, found
//! first-fit from cell 0; where there is none the cache is compacted, and where there is none
//! then the batch fails. [`Cache`] is one of them, [`Wrapper`] several; the policies
//! `ollama-0.6.6` and `ollama-0.12.4` put the wrapper behind [`Policy`](crate::Policy).
//!
//! What goes wrong is reproduced, not repaired. The window is trimmed only for the sequences of
//! the batch (0.6.6), so that idle ones keep up to a batch more than the cache has room for.
//! Compaction moves pairs of cells whose books and data change places. A cache without shift
//! keeps all cells when it should let go of them.
//!
//! Source: Ollama v0.6.6 `kvcache/` (and commit 1fc35f126 for 0.12.4), by its behaviour.
//!
//! Cost: a batch is O(log cells) and O(1) per token that comes or goes (0.12.4: and O(sequences)), a
//! removal O(tokens after its begin); compaction is O(log tokens) per cell moved. No operation looks at
//! all cells.

mod cache;
mod defrag;
mod policy;
mod sequence;
mod set;
mod wrapper;

pub use cache::{Cache, Kind, Setup, Token, Trim, Trouble};
pub use sequence::Span;
pub use wrapper::Wrapper;

pub(crate) use policy::{SPEC_0_6_6, SPEC_0_12_4};

/// The end of a removal that takes everything from its begin on and shifts nothing.
pub const END: i32 = i32::MAX;

/// Nodes of a compute graph where the model does not need more, as for all sizes of Gemma 3.
pub const GRAPH_NODES: u32 = 8192;

/// Cells are a multiple of this, and so are the ends of the range that attention walks.
pub const PAD: u32 = 32;

/// The same with flash attention.
pub const PAD_FLASH: u32 = 256;

/// How many cells a cache gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizing {
    /// From 0.6.3 on: every slot its window, and one batch for all of them.
    SharedBatch,
    /// Before 0.6.3: every slot its window and a batch.
    OwnBatch,
}

/// Cells of one cache. `capacity` is the context of one slot, tokens; a context that is shorter
/// than the window takes the window's place, one that is as long does not.
pub fn cells(kind: Kind, slots: u32, capacity: u32, num_batch: u32, pad: u32, sizing: Sizing) -> u32 {
    let (slots, capacity, num_batch) = (u64::from(slots), u64::from(capacity), u64::from(num_batch));
    let cells = match kind {
        Kind::Swa { window } if capacity >= u64::from(window) => match sizing {
            Sizing::SharedBatch => slots * u64::from(window) + num_batch,
            Sizing::OwnBatch => slots * (u64::from(window) + num_batch),
        },
        _ => slots * capacity,
    };
    cells.next_multiple_of(u64::from(pad.max(1))).try_into().unwrap_or(u32::MAX)
}
