//! How policies use space: allocators beside naive ones, and the known results that tell policies apart.

use std::collections::BTreeMap;

use policies::{
    Append, Budget, Cell, ClassId, Content, Effect, Geometry, Intent, LayerClass, Plan, Policy, Reach, Run,
    SeqId, make_policy,
};
use proptest::prelude::*;

const FIRST: ClassId = ClassId(0);

fn class(name: &str, layers: u32, reach: Reach, cells: u32) -> LayerClass {
    LayerClass { name: name.into(), layers, reach, cells }
}

fn geometry(classes: Vec<LayerClass>, context_max: u32, batch_max: u32) -> Geometry {
    Geometry { classes, context_max, batch_max, sequences_max: 256 }
}

fn make(spec: &str, geometry: &Geometry) -> Box<dyn Policy> {
    make_policy(spec, geometry).expect("the spec is good")
}

fn open(policy: &mut dyn Policy, seq: u32) {
    let intent = Intent { content: Content::own(u64::from(seq) + 1), prompt_tokens: 1, total_tokens: 1 };
    policy.open(SeqId(seq), &intent);
}

fn append(seq: u32, tokens: u32) -> Append {
    Append { seq: SeqId(seq), tokens, restored: false }
}

fn place(policy: &mut dyn Policy, seq: u32, tokens: u32, plan: &mut Plan) -> bool {
    policy.place(&[append(seq, tokens)], plan).is_ok()
}

fn runs(policy: &dyn Policy, class: ClassId, seq: u32) -> Vec<Run> {
    let mut runs = Vec::new();
    policy.layout(class, SeqId(seq), &mut runs);
    runs
}

/// An allocator that looks at every cell: which extent it would take next.
trait Naive {
    fn rounded(&self, cells: u32) -> u32;
    fn take(&mut self, cells: u32) -> Option<Cell>;
    /// Whether an extent may become so long where it lies; if so it does.
    fn grow(&mut self, extent: Run, cells: u32) -> bool;
    fn give(&mut self, extent: Run);
}

struct NaiveBuddies {
    used: Vec<bool>,
}

impl NaiveBuddies {
    fn set(&mut self, start: Cell, len: u32, used: bool) {
        self.used[start as usize..(start + len) as usize].fill(used);
    }

    /// Adds the largest free extents within an aligned one.
    fn free_within(&self, start: Cell, len: u32, found: &mut Vec<Run>) {
        let cells = &self.used[start as usize..(start + len) as usize];
        if cells.iter().all(|used| !used) {
            found.push(Run { start, len });
        } else if cells.iter().any(|used| !used) {
            self.free_within(start, len / 2, found);
            self.free_within(start + len / 2, len / 2, found);
        }
    }
}

impl Naive for NaiveBuddies {
    fn rounded(&self, cells: u32) -> u32 {
        cells.next_power_of_two()
    }

    fn take(&mut self, cells: u32) -> Option<Cell> {
        let (mut found, mut start, all) = (Vec::new(), 0, self.used.len() as u32);
        for bit in (0..32).rev().filter(|bit| all >> bit & 1 == 1) {
            self.free_within(start, 1 << bit, &mut found);
            start += 1 << bit;
        }
        let best = found.into_iter().filter(|run| run.len >= cells).min_by_key(|run| (run.len, run.start))?;
        self.set(best.start, cells, true);
        Some(best.start)
    }

    fn grow(&mut self, extent: Run, cells: u32) -> bool {
        let end = (extent.start + cells) as usize;
        let fits = extent.start.is_multiple_of(cells)
            && end <= self.used.len()
            && self.used[extent.cells().end as usize..end].iter().all(|used| !used);
        if fits {
            self.set(extent.start, cells, true);
        }
        fits
    }

    fn give(&mut self, extent: Run) {
        self.set(extent.start, extent.len, false);
    }
}

struct NaiveSlabs {
    slab: u32,
    sizes: Vec<u32>,
    /// Of each slab, the size of its extents and who is taken; 0 for a slab of nobody.
    slabs: Vec<(u32, Vec<bool>)>,
}

impl NaiveSlabs {
    fn lowest_row(&self, count: usize) -> Option<usize> {
        (0..self.slabs.len())
            .find(|&i| i + count <= self.slabs.len() && self.slabs[i..i + count].iter().all(|s| s.0 == 0))
    }
}

impl Naive for NaiveSlabs {
    fn rounded(&self, cells: u32) -> u32 {
        let size = self.sizes.iter().copied().find(|&size| size >= cells);
        size.unwrap_or(cells.div_ceil(self.slab) * self.slab)
    }

    fn take(&mut self, cells: u32) -> Option<Cell> {
        if cells >= self.slab {
            let count = (cells / self.slab) as usize;
            let first = self.lowest_row(count)?;
            self.slabs[first..first + count].fill((cells, vec![true]));
            return Some(first as u32 * self.slab);
        }
        let has_room = |slab: &(u32, Vec<bool>)| slab.0 == cells && slab.1.contains(&false);
        let index = self.slabs.iter().position(has_room).or_else(|| self.lowest_row(1))?;
        let slab = &mut self.slabs[index];
        if slab.0 == 0 {
            *slab = (cells, vec![false; (self.slab / cells) as usize]);
        }
        let place = slab.1.iter().position(|taken| !taken)?;
        slab.1[place] = true;
        Some(index as u32 * self.slab + place as u32 * cells)
    }

    fn grow(&mut self, extent: Run, cells: u32) -> bool {
        let slabs = |cells: u32| (cells / self.slab) as usize;
        let (from, to) = (slabs(extent.cells().end), slabs(extent.start) + slabs(cells));
        if extent.len < self.slab || to > self.slabs.len() {
            return false;
        }
        let is_free = self.slabs[from..to].iter().all(|slab| slab.0 == 0);
        if is_free {
            self.slabs[slabs(extent.start)..to].fill((cells, vec![true]));
        }
        is_free
    }

    fn give(&mut self, extent: Run) {
        let first = (extent.start / self.slab) as usize;
        if extent.len >= self.slab {
            self.slabs[first..first + (extent.len / self.slab) as usize].fill((0, Vec::new()));
            return;
        }
        let slab = &mut self.slabs[first];
        slab.1[((extent.start % self.slab) / extent.len) as usize] = false;
        if !slab.1.contains(&true) {
            *slab = (0, Vec::new());
        }
    }
}

/// Random sequences on a policy that gives each one extent, beside the naive allocator.
fn beside_naive(
    spec: &str,
    cells: u32,
    least: u32,
    naive: &mut dyn Naive,
    calls: &[(u32, u32)],
) -> Result<(), TestCaseError> {
    let context = 120;
    let mut policy = make(spec, &geometry(vec![class("global", 1, Reach::Full, cells)], context, context));
    // Tokens and extent of each sequence that is there.
    let mut present: BTreeMap<u32, (u32, Run)> = BTreeMap::new();
    for &(seq, tokens) in calls {
        if tokens == 0 {
            if let Some((_, extent)) = present.remove(&seq) {
                policy.release(SeqId(seq));
                naive.give(extent);
            }
            continue;
        }
        let known = present.get(&seq).copied();
        let len = known.map_or(0, |known| known.0);
        let tokens = tokens.min(context - len);
        if tokens == 0 {
            continue;
        }
        if known.is_none() {
            open(&mut *policy, seq);
        }
        let size = naive.rounded((len + tokens).max(least).min(context));
        let expected = match known.map(|known| known.1) {
            Some(extent) if len + tokens <= extent.len => Some(extent),
            Some(extent) if naive.grow(extent, size) => Some(Run { start: extent.start, len: size }),
            old => naive.take(size).map(|start| {
                old.into_iter().for_each(|old| naive.give(old));
                Run { start, len: size }
            }),
        };
        let placed = place(&mut *policy, seq, tokens, &mut Plan::new());
        prop_assert_eq!(placed, expected.is_some(), "{} tokens more for {}", tokens, seq);
        match expected {
            Some(extent) => {
                let mut held = Vec::new();
                policy.holding(FIRST, SeqId(seq), &mut held);
                prop_assert_eq!(held, vec![extent], "{} tokens more for {}", tokens, seq);
                present.insert(seq, (len + tokens, extent));
            }
            None if known.is_none() => policy.release(SeqId(seq)),
            None => {}
        }
        prop_assert_eq!(policy.audit(), Ok(()));
        // What is said to be placeable can be placed, and no more.
        let most = policy.usage(FIRST).placeable;
        if most > 0 {
            let start = naive.take(most);
            prop_assert!(start.is_some(), "{} cells are said to be placeable", most);
            start.into_iter().for_each(|start| naive.give(Run { start, len: most }));
        }
        prop_assert!(naive.take(naive.rounded(most + 1)).is_none());
    }
    Ok(())
}

/// Layer-cells that the cells of all sequences occupy in one memory: none twice, none outside.
fn check_memory(policy: &dyn Policy, open: &[u32], memory: u64) -> Result<u64, TestCaseError> {
    let mut taken: Vec<(u64, u64)> = Vec::new();
    let mut held = Vec::new();
    for id in policy.geometry().class_ids() {
        let layers = u64::from(policy.geometry().classes[id.index()].layers);
        for &seq in open {
            policy.holding(id, SeqId(seq), &mut held);
            let range = |run: &Run| (u64::from(run.start) * layers, u64::from(run.cells().end) * layers);
            taken.extend(held.iter().map(range));
        }
    }
    taken.sort_unstable();
    prop_assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0), "two cells lie in one memory");
    prop_assert!(taken.last().is_none_or(|last| last.1 <= memory));
    Ok(taken.iter().map(|(start, end)| end - start).sum())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn buddies_lie_where_a_scan_would_put_them(
        calls in prop::collection::vec((0..8u32, 0..40u32), 1..80),
        cells in 1..300u32,
        least in 1..20u32,
    ) {
        let mut naive = NaiveBuddies { used: vec![false; cells as usize] };
        beside_naive(&format!("buddy:{least}"), cells, least, &mut naive, &calls)?;
    }

    #[test]
    fn slabs_lie_where_a_scan_would_put_them(
        calls in prop::collection::vec((0..8u32, 0..40u32), 1..80),
        slabs in 8..20u32,
        rest in 0..30u32,
    ) {
        // Sizes of 4 cells and more in slabs of 30, by hand: half as much again, then made to fill the slab.
        let sizes = vec![4, 6, 10, 15, 30];
        let mut naive = NaiveSlabs { slab: 30, sizes, slabs: vec![(0, Vec::new()); slabs as usize] };
        beside_naive("slab:30:150:4", slabs * 30 + rest, 4, &mut naive, &calls)?;
    }

    #[test]
    fn what_a_kernel_reads_by_virtual_addresses_is_mapped_there(
        calls in prop::collection::vec((0..6u32, 0..30u32), 1..120),
        granule in 1..7u32,
        cells in 20..150u32,
    ) {
        let window = class("local", 2, Reach::Window(9), cells);
        let mut policy =
            make(&format!("vmem:{granule}"), &geometry(vec![window, class("global", 1, Reach::Full, cells)], 60, 60));
        let mut present: BTreeMap<u32, u32> = BTreeMap::new();
        // The tables of the hardware: class, sequence, number of the granule; and back.
        let mut mapped: BTreeMap<(u8, u32, u32), u32> = BTreeMap::new();
        for (seq, tokens) in calls {
            let len = present.get(&seq).copied();
            if tokens == 0 {
                if present.remove(&seq).is_some() {
                    policy.release(SeqId(seq));
                }
                continue;
            }
            let tokens = tokens.min(60 - len.unwrap_or(0));
            if tokens == 0 {
                continue;
            }
            if len.is_none() {
                open(&mut *policy, seq);
                present.insert(seq, 0);
            }
            let mut plan = Plan::new();
            if place(&mut *policy, seq, tokens, &mut plan) {
                *present.entry(seq).or_default() += tokens;
            }
            for effect in plan.effects() {
                match *effect {
                    Effect::Map { class, seq, first, run } => {
                        prop_assert_eq!((first % granule, run.start % granule, run.len), (0, 0, granule));
                        let physical = run.start / granule;
                        let others = mapped.iter().filter(|(place, _)| place.0 == class.0);
                        prop_assert!(others.clone().all(|(_, &other)| other != physical), "it is mapped elsewhere");
                        let was = mapped.insert((class.0, seq.0, first / granule), physical);
                        prop_assert_eq!(was, None, "the addresses are taken");
                    }
                    Effect::Unmap { class, seq, first, run } => {
                        let was = mapped.remove(&(class.0, seq.0, first / granule));
                        prop_assert_eq!(was, Some(run.start / granule));
                    }
                    _ => {}
                }
            }
            for &seq in present.keys() {
                for id in policy.geometry().class_ids() {
                    let mut runs = Vec::new();
                    let tokens = policy.layout(id, SeqId(seq), &mut runs);
                    for (token, cell) in tokens.zip(runs.iter().flat_map(|run| run.cells())) {
                        let physical = mapped.get(&(id.0, seq, token / granule));
                        prop_assert_eq!(physical.map(|at| at * granule + token % granule), Some(cell));
                    }
                }
            }
        }
    }

    #[test]
    fn classes_that_share_a_memory_never_hold_the_same_part_of_it(
        calls in prop::collection::vec((0..6u32, 0..30u32), 1..120),
        layers in (1..7u32, 1..7u32),
        block in 1..6u32,
        cells in (0..120u32, 0..120u32),
    ) {
        let window = class("local", layers.0, Reach::Window(9), cells.0);
        let full = class("global", layers.1, Reach::Full, cells.1);
        let mut policy = make(&format!("shared:{block}"), &geometry(vec![window, full], 60, 60));
        let memory = u64::from(layers.0 * cells.0) + u64::from(layers.1 * cells.1);
        let mut present: BTreeMap<u32, u32> = BTreeMap::new();
        for (seq, tokens) in calls {
            if tokens == 0 {
                if present.remove(&seq).is_some() {
                    policy.release(SeqId(seq));
                }
            } else {
                present.entry(seq).or_insert_with(|| {
                    open(&mut *policy, seq);
                    0
                });
                let tokens = tokens.min(60 - present[&seq]);
                if tokens > 0 && place(&mut *policy, seq, tokens, &mut Plan::new()) {
                    *present.entry(seq).or_default() += tokens;
                }
            }
            let open: Vec<u32> = present.keys().copied().collect();
            let held = check_memory(&*policy, &open, memory)?;
            prop_assert_eq!(policy.audit(), Ok(()));
            for id in policy.geometry().class_ids() {
                let usage = policy.usage(id);
                let layers = u64::from(policy.geometry().classes[id.index()].layers);
                prop_assert!(u64::from(usage.free) * layers <= memory - held, "more is free than there is");
            }
        }
    }

    #[test]
    fn a_shared_memory_refuses_only_what_its_pages_cannot_hold(
        prompts in prop::collection::vec((0..8u32, 0..60u32), 1..60),
        layers in (1..6u32, 1..6u32),
        pages in 1..14u32,
    ) {
        // Two classes that keep everything, so that what is given back is known.
        let multiple = (1..).find(|n| n % layers.0 == 0 && n % layers.1 == 0).expect("a multiple");
        let per_page = [multiple / layers.0, multiple / layers.1];
        let classes = vec![class("a", layers.0, Reach::Full, per_page[0] * pages * 4), class("b", layers.1, Reach::Full, 0)];
        let mut policy = make("shared:4", &geometry(classes, 60, 60));
        // Pages of each class: how many of their blocks are taken.
        let mut used: Vec<[u32; 2]> = vec![[0; 2]; pages as usize];
        let mut present: BTreeMap<u32, u32> = BTreeMap::new();
        for (seq, tokens) in prompts {
            if present.remove(&seq).is_some() {
                policy.release(SeqId(seq));
            } else if tokens > 0 {
                open(&mut *policy, seq);
                let fits = {
                    let mut free = used.iter().filter(|page| **page == [0, 0]).count() as u32;
                    (0..2).all(|class| {
                        let own: u32 =
                            used.iter().filter(|page| page[class] > 0).map(|page| per_page[class] - page[class]).sum();
                        let more = tokens.div_ceil(4).saturating_sub(own).div_ceil(per_page[class]);
                        let enough = more <= free;
                        free = free.saturating_sub(more);
                        enough
                    })
                };
                prop_assert_eq!(place(&mut *policy, seq, tokens, &mut Plan::new()), fits);
                if fits {
                    present.insert(seq, tokens);
                } else {
                    policy.release(SeqId(seq));
                }
            }
            used.fill([0; 2]);
            let mut held = Vec::new();
            for (&seq, class) in present.keys().flat_map(|seq| [(seq, 0), (seq, 1)]) {
                policy.holding(ClassId(class), SeqId(seq), &mut held);
                for cell in held.iter().flat_map(|run| run.cells()).filter(|cell| cell % 4 == 0) {
                    used[(cell / 4 / per_page[usize::from(class)]) as usize][usize::from(class)] += 1;
                }
            }
        }
    }
}

/// 64 sequences that have decoded side by side, 1,500 tokens each, every other one released.
fn interleaved(spec: &str) -> Box<dyn Policy> {
    let mut policy = make(spec, &geometry(vec![class("global", 1, Reach::Full, 131_072)], 2000, 64));
    (0..64).for_each(|seq| open(&mut *policy, seq));
    let batch: Vec<Append> = (0..64).map(|seq| append(seq, 1)).collect();
    for _ in 0..1500 {
        policy.place(&batch, &mut Plan::without_writes()).expect("there are cells");
    }
    (0..64).step_by(2).for_each(|seq| policy.release(SeqId(seq)));
    policy
}

fn live_runs(policy: &dyn Policy) -> usize {
    (1..64).step_by(2).map(|seq| runs(policy, FIRST, seq).len()).sum()
}

/// Compacts once with a budget; checks that every copy reads what was there, and returns the cells copied.
fn maintain(policy: &mut dyn Policy, cells: u32) -> u32 {
    let mut memory: Vec<(u32, u32)> = vec![(0, 0); 131_072];
    let tokens = |policy: &dyn Policy, seq: u32| -> Vec<Cell> {
        runs(policy, FIRST, seq).iter().flat_map(|run| run.cells()).collect()
    };
    for seq in (1..64).step_by(2) {
        for (token, cell) in (0..).zip(tokens(policy, seq)) {
            memory[cell as usize] = (seq, token);
        }
    }
    let mut plan = Plan::new();
    let copied = policy.maintain(Budget { cells }, &mut plan);
    for effect in plan.effects() {
        let Effect::Copy { from, to, len, .. } = *effect else { panic!("only copies: {effect:?}") };
        for i in 0..len {
            memory[(to + i) as usize] = memory[(from + i) as usize];
        }
    }
    for seq in (1..64).step_by(2) {
        for (token, cell) in (0..).zip(tokens(policy, seq)) {
            assert_eq!(memory[cell as usize], (seq, token));
        }
    }
    assert_eq!(policy.audit(), Ok(()));
    copied
}

#[test]
fn filling_holes_halves_the_high_water_mark_and_restores_no_locality() {
    let mut policy = interleaved("defrag:threshold:0");
    let shape = policy.shape(FIRST);
    assert_eq!((shape.high_water, shape.free_runs, live_runs(&*policy)), (96_000, 48_001, 48_000));
    assert_eq!(maintain(&mut *policy, 0), 24_000);
    let shape = policy.shape(FIRST);
    assert_eq!((shape.high_water, shape.free_runs, live_runs(&*policy)), (48_000, 1, 47_999));
}

#[test]
fn moving_whole_sequences_restores_both() {
    let mut policy = interleaved("defrag:threshold:0:objective=runs");
    let copied = maintain(&mut *policy, 0);
    let shape = policy.shape(FIRST);
    assert_eq!((shape.high_water, shape.free_runs, live_runs(&*policy)), (48_000, 1, 32));
    // Holes are filled, every sequence goes to what is free above, and all come down into what they left.
    assert_eq!(copied, 24_000 + 48_000 + 48_000);
    assert_eq!(maintain(&mut *policy, 0), 0, "there is nothing left to do");
}

#[test]
fn a_budget_bounds_every_rung_that_has_one() {
    for (spec, budget, most) in [
        ("defrag:step:0", 100, 100),
        ("defrag:step:0:objective=runs", 4000, 4000),
        ("defrag:step:0:objective=runs", 1499, 0),
        ("defrag:background:0:cells=70", 0, 70),
        ("defrag:background:0:objective=runs:cells=3100", 0, 3100),
        ("defrag:failure", 5000, 0),
        ("contiguous:run", 5000, 0),
    ] {
        let mut policy = interleaved(spec);
        let before = live_runs(&*policy);
        for _ in 0..3 {
            let copied = maintain(&mut *policy, budget);
            assert!(copied <= most && (copied > 0) == (most > 0), "{spec}: {copied} cells");
        }
        if spec.contains("runs") && most > 0 {
            assert!(live_runs(&*policy) < before - 4000, "{spec}");
        }
    }
}

#[test]
fn a_window_that_needs_one_run_fails_without_compaction() {
    // llama.cpp issue 13194: a window of 1,024 and batches of 2,048 in 3,072 cells.
    let window = vec![class("local", 1, Reach::Window(1024), 3072)];
    let geometry = geometry(window, 16_384, 2048);
    for (spec, is_served) in [
        ("contiguous:run", false),
        ("shift:defrag=never", false),
        ("defrag", true),
        ("paged", true),
        ("buddy", false),
    ] {
        let mut policy = make(spec, &geometry);
        open(&mut *policy, 0);
        let served = (0..4).all(|_| place(&mut *policy, 0, 2048, &mut Plan::new()));
        assert_eq!(served, is_served, "{spec}");
    }
    // There were cells enough: that is what the refusal says.
    let mut policy = make("contiguous:run", &geometry);
    open(&mut *policy, 0);
    assert!(place(&mut *policy, 0, 2048, &mut Plan::new()));
    let full = policy.place(&[append(0, 2048)], &mut Plan::new()).expect_err("no run is long enough");
    assert!(full.is_fragmented() && full.largest_free_run < 2048, "{full}");
}

/// Sequences of so many tokens that a policy takes side by side.
fn served(spec: &str, geometry: &Geometry, tokens: u32) -> u32 {
    let mut policy = make(spec, geometry);
    for seq in 0..geometry.sequences_max {
        open(&mut *policy, seq);
        let mut left = tokens;
        while left > 0 {
            let batch = left.min(64);
            if !place(&mut *policy, seq, batch, &mut Plan::without_writes()) {
                return seq;
            }
            left -= batch;
        }
    }
    geometry.sequences_max
}

#[test]
fn one_memory_serves_short_and_long_where_a_fixed_split_serves_one() {
    // 29 local and 5 global layers, as Gemma 3 4b; a window of 64, blocks of 16, one memory in both splits.
    let of = |local: u32, global: u32| {
        let classes = vec![
            class("local", 29, Reach::Window(64), local * 16),
            class("global", 5, Reach::Full, global * 16),
        ];
        geometry(classes, 8192, 64)
    };
    let (short, long) = (48, 4096);
    // For short sequences both classes hold the same; for long ones a window of blocks beside 256.
    let (for_short, for_long) = (of(300, 300), of(145, 1199));
    let memory = |geometry: &Geometry| geometry.classes.iter().map(|c| c.cells * c.layers).sum::<u32>();
    assert_eq!(memory(&for_short), memory(&for_long));
    let paged = |geometry: &Geometry| (served("paged", geometry, short), served("paged", geometry, long));
    let ((short_a, long_a), (short_b, long_b)) = (paged(&for_short), paged(&for_long));
    assert!(short_a > 2 * short_b, "a split for long serves {short_b} short sequences of {short_a}");
    assert!(long_b > 3 * long_a, "a split for short serves {long_a} long sequences of {long_b}");
    for geometry in [&for_short, &for_long] {
        let shared = (served("shared", geometry, short), served("shared", geometry, long));
        println!("for short {short_a} and {long_a}, for long {short_b} and {long_b}, shared {shared:?}");
        assert!(shared.0 * 10 >= short_a * 9, "{} short sequences of {short_a}", shared.0);
        assert!(shared.1 >= long_b, "{} long sequences of {long_b}", shared.1);
    }
}

#[test]
fn a_shared_memory_takes_its_lowest_room_first() {
    // A page is two blocks of the first class or three of the second.
    let classes = vec![class("a", 3, Reach::Full, 80), class("b", 2, Reach::Full, 120)];
    let geometry = geometry(classes, 16, 16);
    for gone in [[1, 3], [3, 1], [0, 4], [4, 0]] {
        let mut policy = make("shared:4", &geometry);
        for seq in 0..5 {
            open(&mut *policy, seq);
            assert!(place(&mut *policy, seq, 16, &mut Plan::new()));
        }
        let starts =
            |policy: &dyn Policy, seq| [0, 1].map(|class| runs(policy, ClassId(class), seq)[0].start);
        let lowest =
            gone.map(|seq| starts(&*policy, seq)).into_iter().reduce(|a, b| [a[0].min(b[0]), a[1].min(b[1])]);
        gone.iter().for_each(|&seq| policy.release(SeqId(seq)));
        open(&mut *policy, 9);
        assert!(place(&mut *policy, 9, 4, &mut Plan::new()));
        assert_eq!(starts(&*policy, 9)[0], lowest.expect("two are gone")[0], "{gone:?}");
    }
}

#[test]
fn keeping_everything_costs_room_and_saves_rollbacks() {
    let classes = vec![class("local", 29, Reach::Window(64), 4000), class("global", 5, Reach::Full, 30_000)];
    let geometry = geometry(classes, 2048, 64);
    let cells = (29 * 4000 + 5 * 30_000) / 34;
    assert_eq!(make("swa-full", &geometry).usage(FIRST).cells, cells);
    assert_eq!(served("swa-full", &geometry, 1000), cells / 1000);
    assert!(served("defrag", &geometry, 1000) > 2 * (cells / 1000));
    for (spec, kept) in [("swa-full", 500), ("defrag", 0)] {
        let mut policy = make(spec, &geometry);
        open(&mut *policy, 0);
        (0..10).for_each(|_| assert!(place(&mut *policy, 0, 64, &mut Plan::new())));
        assert_eq!(policy.truncate(SeqId(0), 500), kept, "{spec}");
    }
}

#[test]
fn a_next_request_in_the_same_place_maps_nothing() {
    let mut policy = make("vmem:16", &geometry(vec![class("global", 1, Reach::Full, 160)], 160, 160));
    let calls = |plan: &Plan| {
        let maps = plan.effects().iter().filter(|effect| matches!(effect, Effect::Map { .. })).count();
        let unmaps = plan.effects().iter().filter(|effect| matches!(effect, Effect::Unmap { .. })).count();
        (maps, unmaps)
    };
    let request = |policy: &mut dyn Policy, seq: u32, tokens: u32| {
        let mut plan = Plan::without_writes();
        open(policy, seq);
        assert!(place(policy, seq, tokens, &mut plan));
        calls(&plan)
    };
    assert_eq!(request(&mut *policy, 0, 100), (7, 0), "nothing is mapped yet");
    policy.release(SeqId(0));
    assert_eq!(request(&mut *policy, 0, 90), (0, 0), "all of it is still mapped");
    assert_eq!(request(&mut *policy, 1, 48), (3, 0), "three granules have never been mapped");
    assert_eq!(request(&mut *policy, 2, 16), (1, 1), "the last is mapped where nobody reads it");
    policy.release(SeqId(0));
    assert_eq!(request(&mut *policy, 0, 96), (0, 0), "six granules are still there");
}
