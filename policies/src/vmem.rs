//! Virtual memory: a sequence's cells are contiguous for the kernels and lie anywhere in physical memory.
//!
//! Every sequence owns a stretch of virtual addresses as long as the longest context, in every class.
//! Physical granules are mapped there as it grows. A granule that is given back stays mapped where it is
//! until somebody else needs it (deferred reclamation), so that the next request in the place finds it there
//! and asks nothing of the driver; unmapped granules are taken first, then those that lie idle longest. Cells
//! are addresses of *physical* memory: that is what copies, transfers and other sequences can meet. A kernel
//! sees one run per sequence whatever [`layout`](crate::Policy::layout) says; the tables are the hardware's.
//! Granules below a window go back as blocks do.
//!
//! A policy knows no bytes, so the granule is given in cells: bytes of the driver's granule over bytes of one
//! cell in one layer's K (docs/policies.md has a table). Each map and unmap is one driver call for K and one
//! for V of every layer of the class ([`Effect::Map`], [`Effect::Unmap`]).
//! Source: Prabhu et al., vAttention, ASPLOS 2025 (arXiv 2405.04437).
//!
//! Cost: O(1) per granule; a batch that finds too few looks at every sequence.

use crate::blocks::{Blocks, Store};
use crate::plan::{Effect, Plan};
use crate::policy::{ClassId, Geometry, Policy, Run, SeqId, Shape, Usage};
use crate::pool::{Block, Pool, rows};
use crate::spec::{Args, Knob, Spec, SpecError};

pub(crate) const SPEC: Spec = Spec {
    name: "vmem",
    about: "virtual addresses for the longest context; physical granules mapped on demand, unmapped lazily",
    source: "Prabhu et al., vAttention, ASPLOS 2025 (arXiv 2405.04437)",
    cost: "O(1) per granule; O(sequences) for a batch that finds too few",
    faults: "",
    knobs: &[Knob { name: "granule", about: "cells in a physical granule", default: "16" }],
    make,
};

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let granule = args.number("granule", 0, 1..=65_536, 16)?;
    let cells = geometry.classes.iter().map(|class| class.cells).collect();
    Ok(Box::new(Blocks::new(geometry.clone(), granule, Granules::new(granule, cells))))
}

/// Where a granule is mapped: in which sequence's addresses, as which of its granules.
type Place = Option<(SeqId, u32)>;

/// The physical granules of all classes.
struct Granules {
    granule: u32,
    cells: Vec<u32>,
    /// An idle granule that is still mapped has a key, so it is found by its place and taken last.
    pools: Vec<Pool>,
    places: Vec<Vec<Place>>,
}

fn key(seq: SeqId, index: u32) -> u64 {
    (u64::from(seq.0) + 1) << 32 | u64::from(index)
}

impl Granules {
    fn new(granule: u32, cells: Vec<u32>) -> Self {
        let counts = || cells.iter().map(|cells| cells / granule);
        let pools = counts().map(Pool::lru).collect();
        let places = counts().map(|granules| vec![None; granules as usize]).collect();
        Granules { granule, pools, places, cells }
    }
}

impl Store for Granules {
    fn fits(&self, takes: &[u32], gives: &[(usize, Block)]) -> Result<(), (usize, u32)> {
        for (class, (pool, &take)) in self.pools.iter().zip(takes).enumerate() {
            let given = gives.iter().filter(|(of, _)| *of == class).count() as u32;
            if take > pool.available() + given {
                return Err((class, pool.available() + given));
            }
        }
        Ok(())
    }

    fn take(&mut self, class: usize, seq: SeqId, index: u32, plan: &mut Plan) -> Option<Block> {
        let pool = &mut self.pools[class];
        if let Some(mapped) = pool.find(key(seq, index)) {
            pool.adopt(mapped);
            return Some(mapped);
        }
        let granule = pool.take()?;
        pool.name_whole(granule, key(seq, index));
        let run = Run { start: granule * self.granule, len: self.granule };
        let id = ClassId(class as u8);
        if let Some((seq, index)) = self.places[class][granule as usize].replace((seq, index)) {
            plan.push(Effect::Unmap { class: id, seq, first: index * self.granule, run });
        }
        plan.push(Effect::Map { class: id, seq, first: index * self.granule, run });
        Some(granule)
    }

    fn give(&mut self, class: usize, block: Block) {
        self.pools[class].give(block);
    }

    fn usage(&self, class: usize) -> Usage {
        let (cells, pool) = (self.cells[class], &self.pools[class]);
        let held = (pool.blocks() - pool.available()) * self.granule;
        let placeable = pool.available() * self.granule;
        Usage { cells, held, cached: 0, free: cells - held, placeable }
    }

    fn shape(&self, class: usize) -> Shape {
        let (longest, free_runs, high) = rows(&self.pools[class]);
        Shape { largest_free_run: longest * self.granule, free_runs, high_water: high * self.granule }
    }

    fn restart(&mut self) {
        *self = Granules::new(self.granule, std::mem::take(&mut self.cells));
    }

    fn audit(&self, class: usize, held: &[Block]) -> Result<(), String> {
        let pool = &self.pools[class];
        let mut holders = vec![0; pool.blocks() as usize];
        held.iter().for_each(|&granule| holders[granule as usize] += 1);
        if let Some(granule) = holders.iter().position(|&count| count > 1) {
            return Err(format!("granule {granule} is held twice"));
        }
        for (granule, place) in (0..).zip(&self.places[class]) {
            let found = place.and_then(|(seq, index)| pool.find(key(seq, index)));
            if found != place.map(|_| granule) {
                return Err(format!("granule {granule} is mapped at {place:?}, where {found:?} is found"));
            }
        }
        pool.audit(&holders)
    }
}
