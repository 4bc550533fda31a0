//! `paged+prefix` with LRU by linear scan: contents are looked for block by block, and so is the one idle longest.
//!
//! Which block goes, and what is found, is the same as there. One layer class that reads everything.
//!
//! Cost: O(blocks) per block looked for, taken or named.

use std::ops::Range;

use policies::{
    Append, ClassId, Content, Full, Geometry, Intent, Plan, Policy, Run, SeqId, Shape, Usage, push_run,
};

const CLASS: ClassId = ClassId(0);

#[derive(Clone, Default)]
struct Block {
    holders: u32,
    /// Key of the content; 0 for none.
    key: u64,
    /// When the last holder gave it back.
    idle_since: u64,
}

#[derive(Clone, Default)]
struct Table {
    len: u32,
    blocks: Vec<u32>,
    named: u32,
    content: Option<Content>,
}

/// Paging with prefix reuse that scans for everything.
pub struct Prefix {
    geometry: Geometry,
    block_size: u32,
    blocks: Vec<Block>,
    tables: Vec<Table>,
    clock: u64,
}

impl Prefix {
    /// All blocks free.
    pub fn new(geometry: &Geometry, block_size: u32) -> Self {
        let blocks = geometry.classes[0].cells / block_size;
        Prefix {
            geometry: geometry.clone(),
            block_size,
            blocks: vec![Block::default(); blocks as usize],
            tables: Vec::new(),
            clock: 0,
        }
    }

    fn find(&self, key: u64) -> Option<usize> {
        self.blocks.iter().position(|block| block.key == key)
    }

    fn free(&self) -> u32 {
        self.blocks.iter().filter(|block| block.holders == 0).count() as u32
    }

    /// The idle block that goes next: one without a content, else the one idle longest.
    fn take(&mut self) -> Option<u32> {
        let idle = self.blocks.iter().enumerate().filter(|(_, block)| block.holders == 0);
        let (next, _) = idle.min_by_key(|(_, block)| (block.key != 0, block.idle_since))?;
        self.blocks[next] = Block { holders: 1, ..Block::default() };
        Some(next as u32)
    }

    fn name_full_blocks(&mut self, seq: SeqId) {
        let table = &self.tables[seq.index()];
        let Some(content) = table.content.clone() else { return };
        let full = table.len / self.block_size;
        for i in table.named..full {
            let (key, block) = (content.key((i + 1) * self.block_size), table.blocks[i as usize]);
            if self.find(key).is_none() {
                self.blocks[block as usize].key = key;
            }
        }
        self.tables[seq.index()].named = full;
    }
}

impl Policy for Prefix {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn open(&mut self, seq: SeqId, intent: &Intent) -> u32 {
        let blocks = intent.prompt_tokens.saturating_sub(1) / self.block_size;
        let keys = (1..=blocks).map(|i| intent.content.key(i * self.block_size));
        let found: Vec<u32> = keys.map_while(|key| self.find(key).map(|block| block as u32)).collect();
        found.iter().for_each(|&block| self.blocks[block as usize].holders += 1);
        if self.tables.len() <= seq.index() {
            self.tables.resize(seq.index() + 1, Table::default());
        }
        let named = found.len() as u32;
        let len = named * self.block_size;
        let content = Some(intent.content.clone());
        self.tables[seq.index()] = Table { len, blocks: found, named, content };
        len
    }

    fn place(&mut self, batch: &[Append], _: &mut Plan) -> Result<(), Full> {
        let take = |append: &Append| take_of(&self.tables[append.seq.index()], append, self.block_size);
        let needed: u32 = batch.iter().map(take).sum();
        if needed > 0 {
            let free = self.free();
            if needed > free {
                let (needed, free) = (needed * self.block_size, free * self.block_size);
                return Err(Full { class: CLASS, needed, free, largest_free_run: free });
            }
        }
        for append in batch {
            for _ in 0..take_of(&self.tables[append.seq.index()], append, self.block_size) {
                let block = self.take().expect("the free blocks were counted");
                self.tables[append.seq.index()].blocks.push(block);
            }
            self.tables[append.seq.index()].len += append.tokens;
            self.name_full_blocks(append.seq);
        }
        Ok(())
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let keep = len.min(self.len(seq)) / self.block_size;
        let table = &mut self.tables[seq.index()];
        for block in table.blocks.drain(keep as usize..).rev() {
            self.clock += 1;
            let block = &mut self.blocks[block as usize];
            block.holders -= 1;
            block.idle_since = self.clock;
        }
        (table.len, table.named) = (keep * self.block_size, table.named.min(keep));
        table.len
    }

    fn release(&mut self, seq: SeqId) {
        self.truncate(seq, 0);
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.tables.get(seq.index()).map_or(0, |table| table.len)
    }

    fn layout(&self, _: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        runs.clear();
        let table = &self.tables[seq.index()];
        let mut left = table.len;
        for &block in &table.blocks {
            let len = left.min(self.block_size);
            push_run(runs, block * self.block_size, len);
            left -= len;
        }
        0..table.len
    }

    fn usage(&self, _: ClassId) -> Usage {
        let cells = self.geometry.classes[0].cells;
        let idle = self.blocks.iter().filter(|block| block.holders == 0);
        let cached = idle.filter(|block| block.key != 0).count() as u32 * self.block_size;
        let placeable = self.free() * self.block_size;
        let free = placeable - cached + cells % self.block_size;
        Usage { cells, held: cells - cached - free, cached, free, placeable }
    }

    fn shape(&self, _: ClassId) -> Shape {
        let mut shape = Shape::default();
        let mut row = 0;
        for (i, block) in (1..).zip(&self.blocks) {
            if block.holders > 0 {
                (row, shape.high_water) = (0, i * self.block_size);
            } else {
                shape.free_runs += u32::from(row == 0);
                row += 1;
                shape.largest_free_run = shape.largest_free_run.max(row * self.block_size);
            }
        }
        shape
    }

    fn audit(&self) -> Result<(), String> {
        let mut holders = vec![0; self.blocks.len()];
        self.tables.iter().flat_map(|table| &table.blocks).for_each(|&block| holders[block as usize] += 1);
        if self.blocks.iter().map(|block| block.holders).eq(holders) {
            Ok(())
        } else {
            Err("blocks are not held by those who should".to_owned())
        }
    }
}

fn take_of(table: &Table, append: &Append, block_size: u32) -> u32 {
    (table.len + append.tokens).div_ceil(block_size) - table.blocks.len() as u32
}
