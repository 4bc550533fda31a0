//! The cache as a policy: `vllm`.
//!
//! The pool has as many blocks as the bytes of all classes allow. A token lies in one block per group, but
//! the driver knows one cell per class: it is that of the class's first group, whose block may be any of the
//! pool. So every class has the addresses of the whole pool, and an engine that gives each class memory of
//! its own has to give it that much; the server's tensors are shared by the groups instead. The other groups
//! of a class take and give back blocks of their own for the same tokens, so counts are the server's.

use std::ops::Range;

use crate::block_view::BlockView;
use crate::content::Content;
use crate::plan::Plan;
use crate::policy::{
    Append, ClassId, Full, Geometry, Hit, Intent, Policy, Reach, Run, SeqId, Shape, Usage, push_run,
};
use crate::spec::{Args, Knob, Spec, SpecError};
use crate::vllm::{Cache, Eviction, Groups, Retention, Setup};

pub(crate) const SPEC: Spec = Spec {
    name: "vllm",
    about: "vLLM's block manager: one pool of equal blocks for groups of equally many layers",
    source: "vLLM 0.33 v1/core, by its behaviour",
    cost: "O(1) per block and group",
    faults: "",
    knobs: &[
        Knob { name: "block", about: "cells in a block", default: "16" },
        Knob {
            name: "retention",
            about: "0 | N | dense: windows stay findable where prompts end, every N tokens too, anywhere",
            default: "0",
        },
        Knob {
            name: "evict",
            about: "lru | whole: sequences go as a whole, first those that found little",
            default: "lru",
        },
        Knob { name: "prefix", about: "on | off: full blocks are kept for reuse", default: "on" },
        Knob {
            name: "keyless",
            about: "first | last: whether blocks that nobody can find are taken before cached ones",
            default: "first",
        },
    ],
    make,
};

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let block_size = args.number("block", 0, 1..=65_536, 16)?;
    let retention = match args.number_or("retention", 1, "dense", 0..=1 << 20)? {
        Some(None) => Retention::Dense,
        None | Some(Some(0)) => Retention::Last,
        Some(Some(tokens)) => Retention::Every(tokens),
    };
    let eviction = match args.choice("evict", 2, &["lru", "whole"])? {
        "whole" => Eviction::Whole,
        _ => Eviction::Lru,
    };
    let caching = args.choice("prefix", 3, &["on", "off"])? == "on";
    let keyless_first = args.choice("keyless", 4, &["first", "last"])? == "first";
    let groups = Groups::new(&geometry.classes);
    let layer_cells: u64 =
        geometry.classes.iter().map(|class| u64::from(class.layers.max(1)) * u64::from(class.cells)).sum();
    let block_cells = u64::from(groups.layers) * u64::from(block_size);
    let blocks = (layer_cells / block_cells).min(u64::from((u32::MAX - 1) / block_size)) as u32;
    let first_group = groups.of_class.iter().scan(0, |next, &count| {
        *next += count as usize;
        Some(*next - count as usize)
    });
    let setup = Setup {
        blocks,
        block_size,
        groups: groups.reaches(&geometry.classes),
        caching,
        retention,
        eviction,
        keyless_first,
    };
    let mut reached = geometry.clone();
    reached.classes.iter_mut().for_each(|class| class.cells = blocks * block_size);
    Ok(Box::new(Vllm {
        first_group: first_group.collect(),
        groups,
        cells: geometry.classes.iter().map(|class| class.cells).collect(),
        geometry: reached,
        cache: Cache::new(setup),
        contents: Vec::new(),
    }))
}

struct Vllm {
    geometry: Geometry,
    /// Cells that the classes would have if they did not share.
    cells: Vec<u32>,
    groups: Groups,
    /// The group of each class whose blocks are its cells.
    first_group: Vec<usize>,
    cache: Cache,
    contents: Vec<Content>,
}

/// The key of a text up to the end of a block.
fn key_of(content: &Content, block_size: u32) -> impl Fn(u32) -> u64 + '_ {
    move |block| content.key((block + 1) * block_size)
}

impl Vllm {
    fn block_size(&self) -> u32 {
        self.cache.setup().block_size
    }

    /// Blocks that each group of a class could be given, as cells.
    fn placeable(&self, class: ClassId) -> u32 {
        self.cache.free() / self.groups.of_class[class.index()] * self.block_size()
    }

    fn view(&self, seq: SeqId, class: ClassId) -> BlockView<'_> {
        let table = self.cache.block_table(seq.0, self.first_group[class.index()]);
        BlockView { first: table.first, blocks: &table.blocks, block_size: self.block_size() }
    }
}

impl Policy for Vllm {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn cached(&self, content: &Content, tokens: u32) -> Hit {
        let key = key_of(content, self.block_size());
        let found = self.cache.find(tokens, &key);
        let class = self.geometry.classes.iter().position(|class| class.reach == Reach::Full).unwrap_or(0);
        let idle = self
            .first_group
            .get(class)
            .map_or(0, |&group| self.cache.idle_of(group, 0..found.tokens / self.block_size(), &key));
        Hit { tokens: found.tokens, idle_cells: idle * self.block_size() }
    }

    fn has_room_for(&self, content: &Content, prompt_tokens: u32, tokens: u32) -> bool {
        let key = key_of(content, self.block_size());
        let found = self.cache.find(prompt_tokens, &key);
        self.cache.needed_to_open(found, tokens, self.geometry.batch_max, &key) <= self.cache.free()
    }

    fn remembers_intent(&self) -> bool {
        self.cache.setup().caching
    }

    fn open(&mut self, seq: SeqId, intent: &Intent) -> u32 {
        if self.contents.len() <= seq.index() {
            self.contents.resize_with(seq.index() + 1, || Content::own(0));
        }
        let key = key_of(&intent.content, self.cache.setup().block_size);
        let found = self.cache.open(seq.0, intent.prompt_tokens, key);
        self.contents[seq.index()] = intent.content.clone();
        found.tokens
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        let appends = batch.iter().map(|append| (append.seq.0, append.tokens, append.restored));
        if let Err(short) = self.cache.fits(appends) {
            // Blocks of any group; cells of the class with the most groups stand for them.
            let cells = |blocks: u32| blocks.saturating_mul(self.block_size());
            let most = self.geometry.class_ids().max_by_key(|class| self.groups.of_class[class.index()]);
            let (class, free) = (most.unwrap_or(ClassId(0)), cells(short.free));
            return Err(Full { class, needed: cells(short.needed), free, largest_free_run: free });
        }
        for append in batch {
            let key = key_of(&self.contents[append.seq.index()], self.cache.setup().block_size);
            let placed = self.cache.append(append.seq.0, append.tokens, append.restored, key);
            placed.expect("the batch was checked");
            if plan.wants_writes() && !append.restored {
                let to = self.cache.len(append.seq.0);
                for class in self.geometry.class_ids() {
                    let tokens = to - append.tokens..to;
                    self.view(append.seq, class).push_writes(class, append.seq, tokens, plan);
                }
            }
        }
        Ok(())
    }

    fn room(&self, seq: SeqId) -> u32 {
        self.cache.room(seq.0)
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        self.cache.truncate(seq.0, len)
    }

    fn release(&mut self, seq: SeqId) {
        self.cache.release(seq.0);
    }

    fn restart(&mut self) {
        self.cache = Cache::new(self.cache.setup().clone());
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.cache.len(seq.0)
    }

    fn layout(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        self.view(seq, class).layout(self.cache.len(seq.0), runs)
    }

    fn holding(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) {
        self.view(seq, class).holding(runs);
    }

    fn caching(&self, class: ClassId, runs: &mut Vec<Run>) {
        runs.clear();
        let (group, blocks) = (self.first_group[class.index()], &self.cache.blocks);
        for block in (1..blocks.len()).filter(|&block| blocks.is_cached(group, block)) {
            push_run(runs, block * self.block_size(), self.block_size());
        }
    }

    fn granule(&self) -> u32 {
        self.block_size()
    }

    /// What the class has, and what it could still be given: another class could be given the same.
    fn usage(&self, class: ClassId) -> Usage {
        let (group, blocks) = (self.first_group[class.index()], &self.cache.blocks);
        let held = blocks.held(group) * self.block_size();
        let cached = blocks.cached(group) * self.block_size();
        let placeable = self.placeable(class);
        let free = placeable.saturating_sub(cached);
        Usage { cells: held + cached + free, held, cached, free, placeable }
    }

    fn memory_cells(&self, class: ClassId) -> u32 {
        self.cells[class.index()]
    }

    /// Of the pool: a block that another class holds is no hole, and none of this class's.
    fn shape(&self, class: ClassId) -> Shape {
        let (group, blocks) = (self.first_group[class.index()], &self.cache.blocks);
        let (mut longest, mut rows, mut high, mut row) = (0, 0, 0, 0);
        for block in 1..blocks.len() {
            if blocks.is_held(group, block) {
                high = block + 1;
            }
            if blocks.holders(block) > 0 {
                row = 0;
            } else {
                rows += u32::from(row == 0);
                row += 1;
                longest = longest.max(row);
            }
        }
        let placeable = self.placeable(class);
        Shape {
            largest_free_run: (longest * self.block_size()).min(placeable),
            free_runs: if placeable == 0 { 0 } else { rows },
            high_water: high * self.block_size(),
        }
    }

    fn audit(&self) -> Result<(), String> {
        self.cache.audit()
    }
}
