//! Slabs: extents of a few sizes, each size in slabs of its own that are all cut alike.
//!
//! The sizes grow by `factor` per cent, each made as long as the number of its extents in a slab allows. A
//! slab that is empty belongs to no size and goes to the first that asks; a size that is longer than a slab
//! takes neighbouring slabs. Nothing is merged or split, so within a size there is no external waste; what is
//! lost is the rest of each extent (at most `factor`), and extents that lie free in slabs of sizes that
//! nobody asks for. Lowest slab first, lowest extent first, so what is free depends only on what is taken.
//! Source: Bonwick, USENIX Summer 1994; sizes in geometric steps as in memcached.
//!
//! Cost: O(log n) per extent; O(sizes) to say how much could be placed.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::contiguous::{Contiguous, LEAST, Reserve, least};
use crate::extents::Extents;
use crate::free::{Fit, FreeMap};
use crate::policy::{Cell, Geometry, Policy};
use crate::spec::{Args, Knob, Spec, SpecError};

pub(crate) const SPEC: Spec = Spec {
    name: "slab",
    about: "one extent per sequence, of a size class; slabs are cut into extents of one size",
    source: "Bonwick, The Slab Allocator, USENIX Summer 1994",
    cost: "O(log n) per extent",
    faults: "",
    knobs: &[
        Knob { name: "slab", about: "cells in a slab (at most an eighth of the class)", default: "1024" },
        Knob { name: "factor", about: "per cent from one size to the next", default: "125" },
        Knob { default: "16", ..LEAST },
    ],
    make,
};

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let slab = args.number("slab", 0, 1..=1 << 30, 1024)?;
    let factor = args.number("factor", 1, 101..=400, 125)?;
    let least = least(args, 2, 16)?;
    let make = |cells| Slabs::new(cells, slab, factor, least);
    Ok(Box::new(Contiguous::new(geometry, Reserve::Rounded { least }, make)))
}

/// The sizes of extents in cells, rising, up to a whole slab.
fn sizes(slab: u32, factor: u32, least: u32) -> Vec<u32> {
    let mut sizes = Vec::new();
    let mut size = least.min(slab);
    while size < slab {
        let cut = slab / (slab / size);
        if cut == slab {
            break;
        }
        sizes.push(cut);
        let next = u64::from(cut) * u64::from(factor) / 100;
        size = (next.min(u64::from(slab)) as u32).max(cut + 1);
    }
    sizes.push(slab);
    sizes
}

/// The extents of one class of cells.
struct Slabs {
    map: FreeMap,
    slab_size: u32,
    sizes: Vec<u32>,
    /// Slabs that belong to no size.
    empty: FreeMap,
    /// Extents taken of each slab.
    taken: Vec<u32>,
    /// By size, slabs with extents taken and extents free.
    partial: Vec<BTreeSet<u32>>,
}

impl Slabs {
    fn new(cells: u32, slab: u32, factor: u32, least: u32) -> Self {
        // With few slabs nobody could move to the next size.
        let slab_size = slab.min(cells / 8).max(1);
        let sizes = sizes(slab_size, factor, least);
        let slabs = cells / slab_size;
        Slabs {
            map: FreeMap::new(cells, Fit::First),
            slab_size,
            empty: FreeMap::new(slabs, Fit::First),
            taken: vec![0; slabs as usize],
            partial: vec![BTreeSet::new(); sizes.len()],
            sizes,
        }
    }

    /// Number of a size that is no longer than a slab.
    fn size_index(&self, cells: u32) -> usize {
        self.sizes.partition_point(|&size| size < cells)
    }
}

impl Extents for Slabs {
    fn rounded(&self, cells: u32) -> u32 {
        let longer = || cells.checked_next_multiple_of(self.slab_size).unwrap_or(u32::MAX);
        self.sizes.get(self.size_index(cells)).copied().unwrap_or_else(longer)
    }

    fn take(&mut self, cells: u32) -> Option<Cell> {
        if cells >= self.slab_size {
            let slab = self.empty.take(cells / self.slab_size)?;
            let start = slab * self.slab_size;
            self.map.occupy(start..start + cells);
            return Some(start);
        }
        let index = self.size_index(cells);
        let slab = self.partial[index].first().copied().or_else(|| self.empty.take(1))?;
        // The extents of a slab are free or taken as a whole, so its first free cell starts a free one.
        let start = self.map.first_fit_from(slab * self.slab_size, 1)?;
        self.map.occupy(start..start + cells);
        self.taken[slab as usize] += 1;
        if self.taken[slab as usize] == self.slab_size / cells {
            self.partial[index].remove(&slab);
        } else {
            self.partial[index].insert(slab);
        }
        Some(start)
    }

    fn grow(&mut self, extent: Range<Cell>, cells: u32) -> bool {
        let slabs = |cells: Cell| cells / self.slab_size;
        // Only whole slabs grow.
        if extent.end - extent.start < self.slab_size || cells / self.slab_size > self.empty.cells() {
            return false;
        }
        let grown = slabs(extent.end)..slabs(extent.start) + slabs(cells);
        if grown.end > self.empty.cells() || self.empty.next_used(grown.start) < grown.end {
            return false;
        }
        self.empty.occupy(grown);
        self.map.occupy(extent.end..extent.start + cells);
        true
    }

    fn ungrow(&mut self, extent: Range<Cell>, cells: u32) {
        let grown = extent.start + cells..extent.end;
        self.empty.vacate(grown.start / self.slab_size..grown.end / self.slab_size);
        self.map.vacate(grown);
    }

    fn give(&mut self, extent: Range<Cell>) {
        let (slab, cells) = (extent.start / self.slab_size, extent.end - extent.start);
        self.map.vacate(extent);
        if cells >= self.slab_size {
            self.empty.vacate(slab..slab + cells / self.slab_size);
            return;
        }
        let index = self.size_index(cells);
        self.taken[slab as usize] -= 1;
        if self.taken[slab as usize] == 0 {
            self.partial[index].remove(&slab);
            self.empty.vacate(slab..slab + 1);
        } else {
            self.partial[index].insert(slab);
        }
    }

    fn map(&self) -> &FreeMap {
        &self.map
    }

    fn placeable(&self) -> u32 {
        if self.empty.free() > 0 {
            return self.empty.largest_run() * self.slab_size;
        }
        let partial = self.sizes.iter().zip(&self.partial).rev().find(|(_, slabs)| !slabs.is_empty());
        partial.map_or(0, |(&size, _)| size)
    }

    fn audit(&self) -> Result<(), String> {
        let (mut partial, mut in_use) = (0, 0);
        for (&size, slabs) in self.sizes.iter().zip(&self.partial) {
            partial += slabs.len();
            for &slab in slabs {
                let (start, taken) = (slab * self.slab_size, self.taken[slab as usize]);
                let used = (start..start + self.slab_size).filter(|&cell| !self.map.is_free(cell)).count();
                if used as u32 != taken * size || taken == 0 || taken >= self.slab_size / size {
                    return Err(format!("slab {slab}: {taken} extents of {size} cells, {used} used cells"));
                }
            }
        }
        for slab in 0..self.empty.cells() {
            let cells = slab * self.slab_size..(slab + 1) * self.slab_size;
            let is_empty = cells.clone().all(|cell| self.map.is_free(cell));
            if is_empty != self.empty.is_free(slab) {
                return Err(format!("slab {slab} is counted as empty: {}", !is_empty));
            }
            in_use += usize::from(!is_empty && cells.clone().any(|cell| self.map.is_free(cell)));
        }
        // A full slab may have a rest that is too short for an extent.
        if partial <= in_use { Ok(()) } else { Err(format!("{partial} slabs are said to have room")) }
    }
}
