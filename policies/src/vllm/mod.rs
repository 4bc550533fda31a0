//! The block manager of vLLM 0.33, block by block: one pool of equal blocks for all layers.
//!
//! Layers are split into groups of equally many ([`Groups`]), so that a block of any group takes the same
//! bytes and all groups share one pool. A token takes a place in one block of every group; a group whose
//! layers read a window gives back what lies below it before it takes more. Full blocks stay findable by the
//! chained key of their text when their sequence has gone, and are evicted as they became idle, least
//! recently first.
//!
//! [`Cache`] is the manager, for raw tokens ([`Chain`]) or any other keys; the policy `vllm` puts it behind
//! [`Policy`](crate::Policy).
//!
//! Source: vLLM 0.33 `v1/core` (block pool, managers by type, hybrid coordinator), by its behaviour.
//!
//! Cost: O(1) per block taken, given back or found, times the groups; a token that stays within its blocks is
//! one comparison. No operation looks at all blocks or all sequences.

mod blocks;
mod cache;
mod chain;
mod groups;
mod policy;

pub use cache::{Cache, Eviction, Found, Retention, Setup, TooFew};
pub use chain::Chain;
pub use groups::{Groups, footprint, footprint_unified};

pub(crate) use policy::SPEC;

/// Number of a block in the pool; 0 is nobody's.
pub type Block = u32;
