//! Under pressure the oldest blocks are rounded, rung by rung: 16 bits, then `q8_0`, then `q4_0`.
//!
//! Each class has the bytes of its cells at 16 bits. A block takes 32 parts of a cell's number at 16 bits, 17
//! as `q8_0` and 9 as `q4_0` (GGUF: 34 and 18 bytes for 32 numbers). New blocks have 16 bits. When a batch finds too
//! little memory, the blocks that were taken first are rounded in place ([`Effect::Requantise`]): all that may
//! be to the next rung before any goes further down. The last block of a sequence, which is still
//! written, stays as it is. Nothing becomes finer again but by being written anew.
//!
//! A rounded block keeps its cells: there are as many addresses as blocks at the last rung, and an engine that
//! stores all cells in one type has the numbers of the ladder, not its memory. It supposes K and V of 16 bits.
//! Source: llama.cpp's types of K and V; coarser bits for older tokens as in KIVI's residual window (Liu et al.,
//! ICML 2024, arXiv 2402.02750) and MiKV (Yang et al., arXiv 2402.18096).
//!
//! Cost: O(log n) per block taken, given or rounded; a batch that finds too few looks at every sequence. What
//! reading a sequence spares is counted as its blocks are rounded and given back.

use std::collections::{BTreeMap, BTreeSet};

use crate::blocks::{Blocks, Store};
use crate::free::{Fit, FreeMap};
use crate::plan::{Effect, KvBits, Plan};
use crate::policy::{ClassId, Geometry, Policy, Run, SeqId, Shape, Usage};
use crate::pool::Block;
use crate::spec::{Args, Knob, Spec, SpecError};

pub(crate) const SPEC: Spec = Spec {
    name: "ladder",
    about: "blocks; when memory is short the oldest are rounded to q8_0, then to q4_0, and take less",
    source: "llama.cpp q8_0 and q4_0; KIVI (arXiv 2402.02750), MiKV (arXiv 2402.18096): older tokens coarser",
    cost: "O(log n) per block; O(sequences) for a batch that finds too few",
    faults: "",
    knobs: &[
        Knob { name: "block", about: "cells in a block", default: "16" },
        Knob { name: "to", about: "q4_0 | q8_0: the last rung", default: "q4_0" },
    ],
    make,
};

/// Memory of a block on each rung, in 32nds of what it takes at 16 bits.
const PARTS: [u64; 3] = [32, 17, 9];

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let block_size = args.number("block", 0, 1..=65_536, 16)?;
    let last = if args.choice("to", 1, &["q4_0", "q8_0"])? == "q8_0" { 1 } else { 2 };
    let mut geometry = geometry.clone();
    let rungs = Rungs::new(&geometry, block_size, last);
    for (class, own) in geometry.classes.iter_mut().zip(&rungs.classes) {
        class.cells = own.addresses.cells() * block_size;
    }
    Ok(Box::new(Blocks::new(geometry, block_size, rungs)))
}

/// A block that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    /// Its place in the order in which blocks were taken.
    since: u64,
    seq: SeqId,
    rung: usize,
}

struct Class {
    /// Cells that it was given.
    share: u32,
    /// Memory, in parts.
    memory: u64,
    /// Parts that are taken.
    taken: u64,
    /// Free addresses, in blocks.
    addresses: FreeMap,
    held: BTreeMap<Block, Held>,
    /// Per rung but the last, the blocks that may be rounded, by age.
    ready: Vec<BTreeMap<u64, Block>>,
    /// The last block of each sequence: it is still written.
    tails: BTreeMap<u32, Block>,
    /// Blocks that the last batch took or filled: the next one may round them, unless they are tails.
    fresh: BTreeSet<Block>,
    clock: u64,
    /// Parts that the blocks of each sequence take less than at 16 bits.
    spared: Vec<u64>,
}

impl Class {
    fn is_tail(&self, block: Block) -> bool {
        self.tails.get(&self.held[&block].seq.0) == Some(&block)
    }

    /// Whether the next batch may round a block.
    fn is_idle(&self, block: Block) -> bool {
        let held = &self.held[&block];
        let is_ready = self.ready.get(held.rung).is_some_and(|ready| ready.contains_key(&held.since));
        is_ready || self.fresh.contains(&block) && !self.is_tail(block)
    }

    /// Parts that the next batch could set free by rounding.
    fn spare(&self, last: usize) -> u64 {
        let ready = self.ready.iter().enumerate();
        let ready: u64 = ready.map(|(rung, ready)| ready.len() as u64 * (PARTS[rung] - PARTS[last])).sum();
        let fresh = self.fresh.iter().filter(|block| !self.is_tail(**block));
        ready + fresh.map(|block| PARTS[self.held[block].rung] - PARTS[last]).sum::<u64>()
    }
}

/// The store.
struct Rungs {
    block_size: u32,
    last: usize,
    classes: Vec<Class>,
}

impl Rungs {
    fn new(geometry: &Geometry, block_size: u32, last: usize) -> Self {
        let class = |cells: u32| {
            let memory = u64::from(cells / block_size) * PARTS[0];
            let most = u64::from(u32::MAX / block_size);
            let addresses = FreeMap::new((memory / PARTS[last]).min(most) as u32, Fit::First);
            Class {
                share: cells,
                memory,
                taken: 0,
                addresses,
                held: BTreeMap::new(),
                ready: vec![BTreeMap::new(); last],
                tails: BTreeMap::new(),
                fresh: BTreeSet::new(),
                clock: 0,
                spared: Vec::new(),
            }
        };
        Rungs { block_size, last, classes: geometry.classes.iter().map(|own| class(own.cells)).collect() }
    }

    /// Blocks that a class could still be given, all at 16 bits, once some are given back.
    fn available(&self, class: usize, gives: &[(usize, Block)]) -> u32 {
        let own = &self.classes[class];
        let mut parts = own.memory - own.taken + own.spare(self.last);
        let mut addresses = own.addresses.free();
        for (_, block) in gives.iter().filter(|(of, _)| *of == class) {
            parts += if own.is_idle(*block) { PARTS[self.last] } else { PARTS[own.held[block].rung] };
            addresses += 1;
        }
        ((parts / PARTS[0]).min(u64::from(addresses))) as u32
    }

    /// Rounds the oldest block of the finest rung that has any, one rung down.
    fn squeeze(&mut self, class: usize, plan: &mut Plan) {
        let own = &mut self.classes[class];
        let rung = own.ready.iter().position(|ready| !ready.is_empty()).expect("the batch was checked");
        let (since, block) = own.ready[rung].pop_first().expect("the rung has a block");
        let to = rung + 1;
        let held = own.held.get_mut(&block).expect("who is ready is held");
        held.rung = to;
        own.spared[held.seq.index()] += PARTS[rung] - PARTS[to];
        own.taken -= PARTS[rung] - PARTS[to];
        if to < self.last {
            own.ready[to].insert(since, block);
        }
        let run = Run { start: block * self.block_size, len: self.block_size };
        let to = if to == 1 { KvBits::Q8_0 } else { KvBits::Q4_0 };
        plan.push(Effect::Requantise { class: ClassId(class as u8), run, to });
    }
}

impl Store for Rungs {
    fn begin(&mut self) {
        for own in &mut self.classes {
            for block in std::mem::take(&mut own.fresh) {
                let Held { since, rung, .. } = own.held[&block];
                if !own.is_tail(block)
                    && let Some(ready) = own.ready.get_mut(rung)
                {
                    ready.insert(since, block);
                }
            }
        }
    }

    fn fits(&self, takes: &[u32], gives: &[(usize, Block)]) -> Result<(), (usize, u32)> {
        for (class, &take) in takes.iter().enumerate() {
            let available = self.available(class, gives);
            if take > available {
                return Err((class, available));
            }
        }
        Ok(())
    }

    fn take(&mut self, class: usize, seq: SeqId, _: u32, plan: &mut Plan) -> Option<Block> {
        while self.classes[class].memory - self.classes[class].taken < PARTS[0] {
            self.squeeze(class, plan);
        }
        let own = &mut self.classes[class];
        let block = own.addresses.take(1)?;
        own.clock += 1;
        own.taken += PARTS[0];
        own.held.insert(block, Held { since: own.clock, seq, rung: 0 });
        own.fresh.insert(block);
        if own.spared.len() <= seq.index() {
            own.spared.resize(seq.index() + 1, 0);
        }
        // The block before it may get its last tokens in this batch.
        own.fresh.extend(own.tails.insert(seq.0, block));
        Some(block)
    }

    fn give(&mut self, class: usize, block: Block) {
        let own = &mut self.classes[class];
        let held = own.held.remove(&block).expect("the block is held");
        if let Some(ready) = own.ready.get_mut(held.rung) {
            ready.remove(&held.since);
        }
        own.fresh.remove(&block);
        own.taken -= PARTS[held.rung];
        own.spared[held.seq.index()] -= PARTS[0] - PARTS[held.rung];
        own.addresses.vacate(block..block + 1);
        if own.tails.get(&held.seq.0) == Some(&block) {
            own.tails.remove(&held.seq.0);
        }
    }

    /// A rounded block is as coarse as a whole.
    fn may_write(&self, class: usize, block: Block) -> bool {
        self.classes[class].held[&block].rung == 0
    }

    fn reopen(&mut self, class: usize, seq: SeqId, block: Block) {
        let own = &mut self.classes[class];
        let held = own.held[&block];
        if let Some(ready) = own.ready.get_mut(held.rung) {
            ready.remove(&held.since);
        }
        own.tails.insert(seq.0, block);
    }

    fn stores_coarser(&self) -> bool {
        true
    }

    fn spared(&self, class: usize, seq: SeqId) -> u64 {
        self.classes[class].spared.get(seq.index()).copied().unwrap_or(0)
    }

    fn spared_by(&self, class: usize, block: Block) -> u64 {
        PARTS[0] - PARTS[self.classes[class].held[&block].rung]
    }

    /// Free is what the class could be given, all older blocks being rounded.
    fn usage(&self, class: usize) -> Usage {
        let held = self.classes[class].held.len() as u32 * self.block_size;
        let free = self.available(class, &[]) * self.block_size;
        Usage { cells: held + free, held, cached: 0, free, placeable: free }
    }

    /// Addresses are no room where there is no memory.
    fn shape(&self, class: usize) -> Shape {
        let shape = self.classes[class].addresses.shape();
        let free = self.available(class, &[]);
        Shape {
            largest_free_run: shape.largest_free_run.min(free) * self.block_size,
            free_runs: if free == 0 { 0 } else { shape.free_runs },
            high_water: shape.high_water * self.block_size,
        }
    }

    fn memory_cells(&self, class: usize) -> u32 {
        self.classes[class].share
    }

    fn restart(&mut self) {
        debug_assert!(self.classes.iter().all(|class| class.held.is_empty()), "all blocks are back");
        for own in &mut self.classes {
            own.clock = 0;
            own.fresh.clear();
            own.spared.clear();
        }
    }

    fn audit(&self, class: usize, held: &[Block]) -> Result<(), String> {
        let own = &self.classes[class];
        let mut blocks = held.to_vec();
        blocks.sort_unstable();
        if !blocks.iter().eq(own.held.keys()) {
            return Err(format!("{} blocks in tables, {} counted", held.len(), own.held.len()));
        }
        let taken: u64 = own.held.values().map(|held| PARTS[held.rung]).sum();
        if taken != own.taken || taken > own.memory {
            return Err(format!("{taken} parts taken of {}, {} counted", own.memory, own.taken));
        }
        let mut spared = vec![0; own.spared.len()];
        for held in own.held.values() {
            spared[held.seq.index()] += PARTS[0] - PARTS[held.rung];
        }
        if spared != own.spared {
            return Err(format!("{spared:?} parts spared by sequences, {:?} counted", own.spared));
        }
        for (rung, ready) in own.ready.iter().enumerate() {
            for (since, block) in ready {
                let is_tail = own.tails.values().any(|tail| tail == block);
                if is_tail || own.held.get(block).is_none_or(|held| (held.rung, held.since) != (rung, *since))
                {
                    return Err(format!("block {block} is ready to be rounded, and is not"));
                }
            }
        }
        Ok(())
    }
}
