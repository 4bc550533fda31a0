//! Allocation policies for KV caches, and the schedulers that drive them.
//!
//! A [`Policy`] decides which physical cells hold which tokens; it describes the consequences in
//! a [`Plan`]. A [`Scheduler`](scheduler::Scheduler) forms batches and calls the policy. Neither
//! has a clock, a file, a thread or randomness, so the same objects run in a simulator and in a
//! real engine.

mod attention;
mod block_view;
mod blocks;
mod buddy;
mod cells;
mod clairvoyant;
mod content;
mod contiguous;
mod defrag;
mod delegate;
mod evict;
mod extents;
pub mod free;
mod ladder;
mod limit;
pub mod llama_unified;
mod lowest;
mod names;
pub mod ollama;
mod paged;
mod plan;
mod policy;
mod pool;
mod quarantine;
mod radix;
pub mod scheduler;
mod scored;
mod shadow;
mod shared;
mod shift;
mod slab;
mod spec;
mod swa_full;
mod tables;
mod tiered;
mod unlimited;
mod unrotated;
pub mod vllm;
mod vmem;

pub use attention::Attention;
pub use content::Content;
pub use evict::{EVICTORS, EvictionRule};
pub use plan::{Effect, KvBits, Plan, Why};
pub use policy::{
    Append, Budget, Cell, ClassId, Full, Geometry, Hit, Intent, LayerClass, NotShifted, Policy, Reach,
    Reading, Reduction, Run, SeqId, Shape, Unsupported, Usage, push_run,
};
pub use shadow::{Payload, Shadow};
pub use spec::{
    Knob, POLICIES, Spec, SpecError, block_size, budget, check_spec, make_policy, rotates_on_read,
};
