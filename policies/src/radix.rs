//! A radix tree over the tokens of all sequences: what goes on from nothing cached goes first.
//!
//! RadixAttention (Zheng et al., SGLang, arXiv 2312.07104) keeps the tokens of ended requests in a tree
//! whose branches part where prompts part, counts who reads each node, and evicts leaves that nobody
//! reads, the least recently used first, so that what many prompts begin with outlives what they end with.
//! Here a node is a block (a page; 1 token unless told), found by the hash chain of all tokens down to it: the path
//! from the root in one word. SGLang's nodes are whole unparted stretches, and go as a whole; blocks go one by one,
//! and only as many as are needed. A window class has blocks without what they go on from, so
//! there any block may go.
//!
//! Cost: O(log n) per block that becomes a leaf or is evicted; O(blocks) to match a prompt.

use crate::evict::Eviction;
use crate::paged::{EVICT_ABOUT, PARTIAL_ABOUT, Paged, Sharing};
use crate::policy::{Geometry, Policy};
use crate::spec::{Args, Knob, Spec, SpecError};

pub(crate) const SPEC: Spec = Spec {
    name: "radix",
    about: "blocks in a radix tree of all tokens, evicted leaf by leaf",
    source: "Zheng et al., SGLang, RadixAttention (arXiv 2312.07104)",
    cost: "O(log n) per block evicted; O(sequences) for a batch that finds too few",
    faults: "",
    knobs: &[
        Knob { name: "block", about: "cells in a block", default: "1" },
        Knob { name: "evict", about: EVICT_ABOUT, default: "lru" },
        Knob { name: "partial", about: PARTIAL_ABOUT, default: "none" },
    ],
    make,
};

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let block_size = args.number("block", 0, 1..=65_536, 1)?;
    let eviction = Eviction::new(args.choice("evict", 1, &crate::evict::NAMES)?, true);
    let parts = args.choice("partial", 2, &["none", "cow"])? == "cow";
    Ok(Box::new(Paged::new(geometry, block_size, Some(Sharing { eviction, parts }))))
}
