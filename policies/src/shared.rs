//! One memory for all layer classes: large pages that any class may cut into blocks of its own size.
//!
//! A block of `block` cells of a class is as long as the class has layers, so blocks of two classes fit one
//! memory if its pages are the least common multiple of both. A page belongs to the class that took it until
//! all of its blocks are back. A class fills its lowest page with room first; it wastes the free blocks of
//! its own pages (others cannot have them) and the rest of each sequence's last block. With one memory no
//! split between windows and full attention can be wrong, as it is where each class has cells of its own.
//!
//! Cells stay addresses within a class: cell `a` of a class with `L` layers is the memory from `a * L` on, so
//! each class has addresses for the whole memory, and no two classes hold overlapping ones. The memory is
//! what the classes of the geometry have together, in layer-cells; it supposes that layers of all classes
//! store rows of one length, as Gemma 3's do. An engine that gives each class an array of its own needs all
//! addresses.
//! Source: Zhang et al., Jenga, SOSP 2025 (arXiv 2503.18292): large pages of the least common multiple, a
//! slab allocator for each layer type on top.
//!
//! Cost: O(log n) per block, to the base of 64; a batch that finds too few looks at every sequence.

use crate::blocks::{Blocks, Store};
use crate::lowest::Lowest;
use crate::plan::Plan;
use crate::policy::{Geometry, Policy, SeqId, Shape, Usage};
use crate::pool::Block;
use crate::spec::{Args, Knob, Spec, SpecError};

pub(crate) const SPEC: Spec = Spec {
    name: "shared",
    about: "blocks of every class from one memory, through large pages that go from class to class",
    source: "Zhang et al., Jenga, SOSP 2025 (arXiv 2503.18292)",
    cost: "O(log n) per block; O(sequences) for a batch that finds too few",
    faults: "",
    knobs: &[Knob { name: "block", about: "cells in a block", default: "16" }],
    make,
};

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let block_size = args.number("block", 0, 1..=65_536, 16)?;
    let pages = Pages::new(geometry, block_size);
    let mut geometry = geometry.clone();
    for (class, own) in geometry.classes.iter_mut().zip(&pages.classes) {
        class.cells = own.blocks.bound().saturating_mul(block_size);
    }
    Ok(Box::new(Blocks::new(geometry, block_size, pages)))
}

/// A class's share of the pages.
struct Class {
    layers: u64,
    /// Cells that it brought into the memory.
    share: u32,
    /// Blocks in a page.
    per_page: u32,
    /// Blocks by address; free are those that can be taken without another page.
    blocks: Lowest,
    /// Blocks taken.
    held: u32,
}

/// Which blocks of a page are taken, and by whom.
#[derive(Clone, Copy, Default)]
struct Page {
    class: usize,
    /// Blocks taken; a page of 0 belongs to nobody.
    held: u32,
}

struct Pages {
    block_size: u32,
    classes: Vec<Class>,
    /// Pages of nobody.
    free: Lowest,
    pages: Vec<Page>,
}

fn least_common_multiple(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

impl Pages {
    fn new(geometry: &Geometry, block_size: u32) -> Self {
        let layers = || geometry.classes.iter().map(|class| u64::from(class.layers.max(1)));
        let page_layers = layers().fold(1, least_common_multiple);
        let cells = || geometry.classes.iter().map(|class| u64::from(class.cells));
        let layer_cells: u64 = layers().zip(cells()).map(|(layers, cells)| layers * cells).sum();
        // Addresses of every class are 32 bits long.
        let most =
            layers().map(|layers| u64::from(u32::MAX) / u64::from(block_size) / (page_layers / layers));
        let pages = (layer_cells / (page_layers * u64::from(block_size))).min(most.min().unwrap_or(0)) as u32;
        // What is no whole page is lost, to each class in proportion.
        let whole = u64::from(pages) * page_layers * u64::from(block_size);
        let class = |(layers, cells): (u64, u64)| {
            let share = (u128::from(cells) * u128::from(whole) / u128::from(layer_cells.max(1))) as u32;
            let per_page = (page_layers / layers) as u32;
            Class { layers, share, per_page, blocks: Lowest::none(pages * per_page), held: 0 }
        };
        Pages {
            block_size,
            classes: layers().zip(cells()).map(class).collect(),
            free: Lowest::all(pages),
            pages: vec![Page::default(); pages as usize],
        }
    }

    /// Layer-cells of all pages, and of the blocks that are taken.
    fn layer_cells(&self) -> (u64, u64) {
        let block = u64::from(self.block_size);
        let all = self.classes.first().map_or(0, |class| u64::from(class.blocks.bound()) * class.layers);
        let held: u64 = self.classes.iter().map(|class| u64::from(class.held) * class.layers).sum();
        (all * block, held * block)
    }

    /// Blocks of each class in pages of its own, and pages of nobody, once `gives` are back.
    fn after(&self, gives: &[(usize, Block)]) -> (Vec<u32>, u32) {
        let mut own: Vec<u32> = self.classes.iter().map(|class| class.blocks.len()).collect();
        let mut pages = self.free.len();
        let mut given: Vec<u32> = Vec::with_capacity(gives.len());
        for &(class, block) in gives {
            own[class] += 1;
            given.push(block / self.classes[class].per_page);
        }
        given.sort_unstable();
        for blocks in given.chunk_by(|a, b| a == b) {
            let page = self.pages[blocks[0] as usize];
            if page.held == blocks.len() as u32 {
                own[page.class] -= self.classes[page.class].per_page;
                pages += 1;
            }
        }
        (own, pages)
    }
}

impl Store for Pages {
    fn fits(&self, takes: &[u32], gives: &[(usize, Block)]) -> Result<(), (usize, u32)> {
        let (own, mut pages) = self.after(gives);
        for (class, (&take, own)) in takes.iter().zip(own).enumerate() {
            let per_page = self.classes[class].per_page;
            let needed = take.saturating_sub(own).div_ceil(per_page);
            if needed > pages {
                return Err((class, own + pages * per_page));
            }
            pages -= needed;
        }
        Ok(())
    }

    fn take(&mut self, class: usize, _: SeqId, _: u32, _: &mut Plan) -> Option<Block> {
        let own = &mut self.classes[class];
        let block = match own.blocks.pop() {
            Some(block) => block,
            None => {
                let page = self.free.pop()?;
                self.pages[page as usize] = Page { class, held: 0 };
                let first = page * own.per_page;
                (first + 1..first + own.per_page).for_each(|block| own.blocks.insert(block));
                first
            }
        };
        own.held += 1;
        self.pages[(block / own.per_page) as usize].held += 1;
        Some(block)
    }

    fn give(&mut self, class: usize, block: Block) {
        let own = &mut self.classes[class];
        own.held -= 1;
        let number = block / own.per_page;
        let page = &mut self.pages[number as usize];
        page.held -= 1;
        if page.held > 0 {
            own.blocks.insert(block);
            return;
        }
        let others = (number * own.per_page..(number + 1) * own.per_page).filter(|&other| other != block);
        others.for_each(|other| own.blocks.remove(other));
        self.free.insert(number);
    }

    /// Free is all memory that nobody has, in cells of the class, so what `placeable` lacks of it lies in
    /// pages of other classes.
    fn usage(&self, class: usize) -> Usage {
        let own = &self.classes[class];
        let (all, taken) = self.layer_cells();
        let (held, free) = (own.held * self.block_size, ((all - taken) / own.layers) as u32);
        let blocks = own.blocks.len() + self.free.len() * own.per_page;
        Usage { cells: held + free, held, cached: 0, free, placeable: blocks * self.block_size }
    }

    /// In the class's own addresses; what lies in pages of others is not free.
    fn shape(&self, class: usize) -> Shape {
        let own = &self.classes[class];
        let (mut longest, mut free_runs, mut high, mut row) = (0, 0, 0, 0);
        for block in 0..own.blocks.bound() {
            let number = block / own.per_page;
            let is_idle = self.free.contains(number);
            if is_idle || own.blocks.contains(block) {
                free_runs += u32::from(row == 0);
                row += 1;
                longest = longest.max(row);
                continue;
            }
            row = 0;
            if self.pages[number as usize].class == class {
                high = block + 1;
            }
        }
        let cells = |blocks: u32| blocks * self.block_size;
        Shape { largest_free_run: cells(longest), free_runs, high_water: cells(high) }
    }

    fn memory_cells(&self, class: usize) -> u32 {
        self.classes[class].share
    }

    fn restart(&mut self) {
        debug_assert!(self.classes.iter().all(|class| class.held == 0), "all blocks are back");
    }

    fn audit(&self, class: usize, held: &[Block]) -> Result<(), String> {
        let own = &self.classes[class];
        let mut taken = vec![false; own.blocks.bound() as usize];
        for &block in held {
            if std::mem::replace(&mut taken[block as usize], true) {
                return Err(format!("block {block} is held twice"));
            }
        }
        for (number, page) in (0..).zip(&self.pages) {
            let blocks = number * own.per_page..(number + 1) * own.per_page;
            let count = blocks.clone().filter(|&block| taken[block as usize]).count() as u32;
            let is_own = page.held > 0 && page.class == class;
            if count != if is_own { page.held } else { 0 } {
                return Err(format!("page {number}: {count} blocks held, {} counted", page.held));
            }
            if (page.held == 0) != self.free.contains(number) {
                return Err(format!("page {number} with {} blocks taken is marked otherwise", page.held));
            }
            if blocks.clone().any(|block| own.blocks.contains(block) != (is_own && !taken[block as usize])) {
                return Err(format!("page {number}: a block of it is marked otherwise"));
            }
        }
        if own.held as usize == held.len() { Ok(()) } else { Err(format!("{} blocks counted", own.held)) }
    }
}
