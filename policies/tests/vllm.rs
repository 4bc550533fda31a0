//! vLLM's block manager beside a slow one, beside `paged`, and against what is known of it.

mod seats;

use std::sync::Arc;

use policies::vllm::{Cache, Chain, Eviction, Groups, Retention, Setup, footprint, footprint_unified};
use policies::{
    Append, ClassId, Content, Geometry, Intent, LayerClass, Plan, Policy, Reach, Run, SeqId, make_policy,
};
use proptest::prelude::*;

/// The same manager with a queue that is a list and keys that are the texts themselves.
struct Slow {
    setup: Setup,
    queue: Vec<u32>,
    holders: Vec<u32>,
    /// Contents in the order in which they were named: group, text, block.
    named: Vec<(usize, Vec<u32>, u32)>,
    sequences: Vec<Option<Sequence>>,
}

#[derive(Clone, Default)]
struct Sequence {
    text: Vec<u32>,
    prompt: usize,
    junction: usize,
    tables: Vec<Vec<u32>>,
    cached: usize,
}

impl Slow {
    fn new(setup: &Setup) -> Slow {
        Slow {
            setup: setup.clone(),
            queue: (1..setup.blocks).collect(),
            holders: vec![0; setup.blocks as usize],
            named: Vec::new(),
            sequences: vec![None; 4],
        }
    }

    fn size(&self) -> usize {
        self.setup.block_size as usize
    }

    fn find(&self, group: usize, text: &[u32]) -> Option<u32> {
        self.named.iter().find(|(of, known, _)| *of == group && known == text).map(|named| named.2)
    }

    fn skipped(&self, group: usize, computed: usize) -> usize {
        match self.setup.groups[group] {
            Reach::Full => 0,
            Reach::Window(window) => (computed + 1).saturating_sub(window as usize) / self.size(),
        }
    }

    fn needed_for_hit(&self, group: usize) -> Option<usize> {
        match self.setup.groups[group] {
            Reach::Full => None,
            Reach::Window(window) => Some((window as usize - 1).div_ceil(self.size())),
        }
    }

    /// The longest hit that every group agrees to, from the definition: tried from the longest down.
    fn hit(&self, text: &[u32]) -> (usize, usize) {
        if !self.setup.caching {
            return (0, 0);
        }
        let limit = (text.len() - 1) / self.size();
        let has = |group: usize, at: usize| self.find(group, &text[..(at + 1) * self.size()]).is_some();
        let alike = |group: usize| {
            let reach = self.setup.groups[group];
            (0..self.setup.groups.len()).filter(move |&other| self.setup.groups[other] == reach)
        };
        let serves = |group: usize, hit: usize| {
            let first = self.needed_for_hit(group).map_or(0, |needed| hit.saturating_sub(needed));
            (first..hit).all(|at| alike(group).all(|other| has(other, at)))
        };
        let groups = || 0..self.setup.groups.len();
        let hit = (0..=limit).rev().find(|&hit| groups().all(|group| serves(group, hit))).unwrap_or(0);
        let whole = groups().filter(|&group| self.setup.groups[group] == Reach::Full);
        let longest = whole
            .map(|group| (0..=limit).rev().find(|&hit| serves(group, hit)).unwrap_or(0))
            .max()
            .unwrap_or(hit);
        (hit, if longest > hit { longest * self.size() } else { 0 })
    }

    fn give(&mut self, blocks: Vec<u32>) {
        let mut front = Vec::new();
        for block in blocks.into_iter().filter(|&block| block != 0) {
            self.holders[block as usize] -= 1;
            if self.holders[block as usize] > 0 {
                continue;
            }
            if self.named.iter().any(|named| named.2 == block) || !self.setup.keyless_first {
                self.queue.push(block);
            } else {
                front.push(block);
            }
        }
        front.append(&mut self.queue);
        self.queue = front;
    }

    fn needed(&self, seq: &Sequence, tokens: usize) -> usize {
        let end = (seq.text.len() + tokens).div_ceil(self.size());
        seq.tables.iter().map(|table| end.saturating_sub(table.len())).sum()
    }

    fn keeps(&self, group: usize, at: usize, seq: &Sequence) -> bool {
        let Some(needed) = self.needed_for_hit(group) else { return true };
        let before = |boundary: usize| {
            let end = boundary / self.size();
            at < end && at + needed >= end
        };
        let ends = match self.setup.retention {
            Retention::Dense => return true,
            Retention::Last => false,
            // The last blocks before the next border of a segment.
            Retention::Every(tokens) => {
                let border = (at + 1).next_multiple_of(tokens as usize / self.size());
                at + needed >= border
            }
        };
        ends || before(seq.prompt.saturating_sub(1)) || before(seq.junction)
    }

    fn append(&mut self, id: usize, tokens: &[u32]) -> bool {
        let mut seq = self.sequences[id].take().expect("open");
        for group in 0..seq.tables.len() {
            let skipped = self.skipped(group, seq.text.len()).min(seq.tables[group].len());
            let gone: Vec<u32> = seq.tables[group][..skipped].iter().rev().copied().collect();
            seq.tables[group][..skipped].fill(0);
            self.give(gone);
        }
        let fits = self.needed(&seq, tokens.len()) <= self.queue.len();
        if fits {
            seq.text.extend(tokens);
            let end = seq.text.len().div_ceil(self.size());
            for table in &mut seq.tables {
                while table.len() < end {
                    let block = self.queue.remove(0);
                    self.named.retain(|named| named.2 != block);
                    self.holders[block as usize] = 1;
                    table.push(block);
                }
            }
            let full = seq.text.len() / self.size();
            for group in (0..seq.tables.len()).filter(|_| self.setup.caching) {
                for at in seq.cached..full {
                    let block = seq.tables[group][at];
                    if block != 0 && self.keeps(group, at, &seq) {
                        self.named.push((group, seq.text[..(at + 1) * self.size()].to_vec(), block));
                    }
                }
            }
            seq.cached = full;
        }
        self.sequences[id] = Some(seq);
        fits
    }

    fn admit(&mut self, id: usize, text: &[u32]) -> (usize, bool) {
        let (hit, junction) = self.hit(text);
        let mut seq = Sequence { prompt: text.len(), junction, cached: hit, ..Sequence::default() };
        let mut idle = 0;
        for group in 0..self.setup.groups.len() {
            let skipped = self.skipped(group, hit * self.size());
            let found = (0..hit).map(|at| {
                let find = || self.find(group, &text[..(at + 1) * self.size()]).expect("it was found");
                if at < skipped { 0 } else { find() }
            });
            let table: Vec<u32> = found.collect();
            idle += table.iter().filter(|&&block| block != 0 && self.holders[block as usize] == 0).count();
            seq.tables.push(table);
        }
        seq.text = text[..hit * self.size()].to_vec();
        let rest = &text[hit * self.size()..];
        if self.needed(&seq, rest.len()) + idle > self.queue.len() {
            return (hit * self.size(), false);
        }
        for &block in seq.tables.iter().flatten().filter(|&&block| block != 0) {
            self.queue.retain(|&free| free != block);
            self.holders[block as usize] += 1;
        }
        self.sequences[id] = Some(seq);
        assert!(self.append(id, rest));
        (hit * self.size(), true)
    }

    fn release(&mut self, id: usize) {
        for table in self.sequences[id].take().expect("open").tables {
            self.give(table.into_iter().rev().collect());
        }
    }
}

#[derive(Clone, Debug)]
enum Call {
    Admit(usize, u32, Vec<u32>),
    Append(usize, Vec<u32>),
    Release(usize),
}

fn call() -> impl Strategy<Value = Call> {
    let words = |most: usize| prop::collection::vec(0..2u32, 1..most);
    prop_oneof![
        3 => (0..4usize, 0..3u32, words(9)).prop_map(|(seq, head, text)| Call::Admit(seq, head, text)),
        4 => (0..4usize, words(6)).prop_map(|(seq, text)| Call::Append(seq, text)),
        2 => (0..4usize).prop_map(Call::Release),
    ]
}

/// Three ways to begin a text, so that some are met again.
fn head(of: u32) -> Vec<u32> {
    (0..of * 5).map(|at| at % 3 % 2).collect()
}

fn setup() -> impl Strategy<Value = Setup> {
    let groups = prop_oneof![
        Just(vec![Reach::Full]),
        (2..9u32).prop_map(|window| vec![Reach::Full, Reach::Window(window), Reach::Window(window)]),
        (2..9u32).prop_map(|window| vec![Reach::Window(window), Reach::Full]),
        (2..9u32).prop_map(|window| vec![Reach::Window(window)]),
    ];
    let retention =
        prop_oneof![Just(Retention::Dense), Just(Retention::Last), (1..5u32).prop_map(Retention::Every)];
    let switches = (any::<bool>(), prop::bool::weighted(0.8), prop::bool::weighted(0.9));
    (1..4u32, 6..40u32, groups, retention, switches).prop_map(
        |(block_size, blocks, groups, retention, on)| {
            let retention = match retention {
                Retention::Every(segment) => Retention::Every(segment * block_size),
                other => other,
            };
            let (eviction, caching) = (Eviction::Lru, on.2 || on.0);
            Setup { blocks, block_size, groups, caching, retention, eviction, keyless_first: on.1 }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lists_and_texts_give_the_same_blocks(setup in setup(), calls in prop::collection::vec(call(), 1..60)) {
        let mut slow = Slow::new(&setup);
        let mut cache = Cache::new(setup.clone());
        let mut chains = vec![None; 4];
        for call in &calls {
            match call {
                Call::Admit(seq, of, words) if slow.sequences[*seq].is_none() => {
                    let text = [head(*of), words.clone()].concat();
                    let mut chain = Chain::new(setup.block_size);
                    chain.extend(&text);
                    let (found, placed) = cache.admit(*seq as u32, text.len() as u32, |at| chain.key(at));
                    let (hit, fits) = slow.admit(*seq, &text);
                    prop_assert_eq!((found.tokens as usize, placed.is_ok()), (hit, fits));
                    chains[*seq] = Some(chain);
                }
                Call::Append(seq, words) if slow.sequences[*seq].is_some() => {
                    let chain = chains[*seq].as_mut().expect("open");
                    let mut longer = chain.clone();
                    longer.extend(words);
                    let (seq, count) = (*seq as u32, words.len() as u32);
                    let room = cache.room(seq);
                    let before = (cache.free(), cache.table(seq, 0).collect::<Vec<u32>>());
                    let placed = cache.append(seq, count, false, |at| longer.key(at));
                    prop_assert_eq!(placed.is_ok(), slow.append(seq as usize, words));
                    let after = (cache.free(), cache.table(seq, 0).collect::<Vec<u32>>());
                    let is_quiet = count <= room;
                    prop_assert!(!is_quiet || before == after, "room for {}, {} changed it", room, count);
                    if placed.is_ok() {
                        *chain = longer;
                    }
                }
                Call::Release(seq) if slow.sequences[*seq].is_some() => {
                    cache.release(*seq as u32);
                    slow.release(*seq);
                }
                _ => continue,
            }
            prop_assert_eq!(cache.free() as usize, slow.queue.len());
            for (id, sequence) in slow.sequences.iter().enumerate() {
                let Some(sequence) = sequence else { continue };
                for (group, table) in sequence.tables.iter().enumerate() {
                    prop_assert_eq!(&cache.table(id as u32, group).collect::<Vec<u32>>(), table);
                }
            }
            prop_assert_eq!(cache.audit(), Ok(()));
        }
    }

    /// Prompts that end within a block: of one that ends with a block the last block is computed again, and
    /// of such doubles the server keeps both, `paged` one.
    #[test]
    fn paged_finds_and_counts_the_same_where_layers_read_everything(
        calls in prop::collection::vec(
            (0..4u32, 0..3u32, prop::collection::vec(0..2u32, 0..9), 1..7u32),
            1..80,
        ),
        blocks in 8..24u32,
    ) {
        const SIZE: u32 = 3;
        let geometry = |blocks: u32| Geometry {
            classes: vec![LayerClass {
                name: "global".into(),
                layers: 2,
                reach: Reach::Full,
                cells: blocks * SIZE,
            }],
            context_max: 60,
            batch_max: 60,
            sequences_max: 4,
        };
        // One block is nobody's.
        let mut vllm = make_policy("vllm:3", &geometry(blocks + 1)).expect("a policy");
        let mut paged = make_policy("paged:3+prefix", &geometry(blocks)).expect("a policy");
        let mut open = [false; 4];
        let global = ClassId(0);
        for (serial, (id, of, words, tokens)) in (1..).zip(&calls) {
            let seq = SeqId(*id);
            let mut both = |append: Append| {
                let placed = vllm.place(&[append], &mut Plan::new()).is_ok();
                (placed, paged.place(&[append], &mut Plan::new()).is_ok())
            };
            if open[*id as usize] && *tokens > 4 {
                vllm.release(seq);
                paged.release(seq);
                open[*id as usize] = false;
            } else if open[*id as usize] {
                let (ours, theirs) = both(Append { seq, tokens: *tokens, restored: false });
                prop_assert_eq!(ours, theirs);
            } else {
                let mut text = [head(*of), words.clone()].concat();
                text.resize(text.len().next_multiple_of(SIZE as usize) + 1, 7);
                let mut chain = Chain::new(SIZE);
                chain.extend(&text);
                let prompt = text.len() as u32;
                let keys: Arc<[u64]> = (0..prompt / SIZE).map(|at| chain.key(at)).collect();
                let content = Content { chain: keys, chain_tokens: SIZE, chain_end: prompt, own: serial };
                prop_assert_eq!(vllm.cached(&content, prompt), paged.cached(&content, prompt));
                let intent = Intent { content, prompt_tokens: prompt, total_tokens: prompt };
                let hit = vllm.open(seq, &intent);
                prop_assert_eq!(paged.open(seq, &intent), hit);
                let append = Append { seq, tokens: prompt - hit, restored: false };
                let ours = vllm.place(&[append], &mut Plan::new()).is_ok();
                let theirs = paged.place(&[append], &mut Plan::new()).is_ok();
                prop_assert_eq!(ours, theirs);
                open[*id as usize] = ours;
                if !ours {
                    vllm.release(seq);
                    paged.release(seq);
                }
            }
            let count = |policy: &dyn Policy| {
                let usage = policy.usage(global);
                (usage.held, usage.cached, usage.free, usage.placeable)
            };
            prop_assert_eq!(count(&*vllm), count(&*paged));
        }
    }
}

fn two_classes(local: u32, global: u32) -> Geometry {
    let class = |name: &str, layers, reach, cells| LayerClass { name: name.into(), layers, reach, cells };
    Geometry {
        classes: vec![class("local", 5, Reach::Window(6), local), class("global", 2, Reach::Full, global)],
        context_max: 40,
        batch_max: 40,
        sequences_max: 4,
    }
}

proptest! {
    /// A request that is told to wait is not opened first to find that out: that would make what it found
    /// count as used lately.
    #[test]
    fn room_is_told_over_all_classes_before_anything_is_touched(
        calls in prop::collection::vec((0..4u32, 0..3u64, 1..30u32), 1..60),
        local in 10..60u32,
        global in 10..60u32,
    ) {
        let mut vllm = make_policy("vllm:2:dense", &two_classes(local, global)).expect("a policy");
        let mut open = [false; 4];
        for (serial, (id, family, prompt)) in (1..).zip(calls) {
            let seq = SeqId(id);
            if std::mem::take(&mut open[id as usize]) {
                vllm.release(seq);
                continue;
            }
            let chain: Arc<[u64]> = (0..prompt / 4).map(|link| family * 1000 + u64::from(link) + 1).collect();
            let content = Content { chain, chain_tokens: 4, chain_end: prompt, own: serial };
            let missing = prompt - vllm.cached(&content, prompt).tokens;
            let told = vllm.has_room_for(&content, prompt, missing);
            let intent = Intent { content, prompt_tokens: prompt, total_tokens: prompt };
            let tokens = prompt - vllm.open(seq, &intent);
            prop_assert_eq!(tokens, missing);
            let placed = vllm.place(&[Append { seq, tokens, restored: false }], &mut Plan::new());
            prop_assert_eq!(placed.is_ok(), told);
            open[id as usize] = told;
            if let Err(full) = placed {
                prop_assert!(full.needed > full.free && !full.is_fragmented());
                vllm.release(seq);
            }
        }
    }
}

#[test]
fn the_classes_of_a_policy_share_all_its_memory() {
    // 5 layers of 30 cells and 2 of 50 are 250 layer-cells: three groups of local layers and one of global
    // ones, of 2 layers each; 31 blocks of 4 cells and 2 layers, of which one is nobody's.
    let mut vllm = make_policy("vllm:4", &two_classes(30, 50)).expect("a policy");
    let (local, global) = (ClassId(0), ClassId(1));
    assert_eq!((vllm.memory_cells(local), vllm.memory_cells(global)), (30, 50));
    assert_eq!(vllm.geometry().classes.iter().map(|class| class.cells).collect::<Vec<_>>(), [124, 124]);
    assert_eq!((vllm.usage(local).placeable, vllm.usage(global).placeable), (40, 120));
    let intent = Intent { content: Content::own(1), prompt_tokens: 12, total_tokens: 12 };
    vllm.open(SeqId(0), &intent);
    let mut plan = Plan::new();
    vllm.place(&[Append { seq: SeqId(0), tokens: 12, restored: false }], &mut plan).expect("there is room");
    // 3 blocks in each of 4 groups are gone from 30.
    assert_eq!((vllm.usage(local).placeable, vllm.usage(global).placeable), (24, 72));
    assert_eq!((vllm.usage(local).held, vllm.usage(global).held), (12, 12));
    let mut runs = Vec::new();
    vllm.layout(local, SeqId(0), &mut runs);
    assert_eq!(runs, [Run { start: 4, len: 12 }]);
    vllm.layout(global, SeqId(0), &mut runs);
    assert_eq!(runs, [Run { start: 40, len: 12 }], "after three groups of three blocks");
}

fn gemma3(local: u32, global: u32, window: u32) -> [LayerClass; 2] {
    let class = |layers, reach| LayerClass { name: String::new(), layers, reach, cells: 0 };
    [class(local, Reach::Window(window)), class(global, Reach::Full)]
}

/// Known numbers of the real planner: bytes held / bytes needed at 512, 2048, 8192 and 131,072 tokens, and
/// without groups for windows at 8192.
#[test]
fn padding_and_straddled_windows_cost_what_the_server_s_planner_says() {
    type Known = ([LayerClass; 2], [u32; 2], u32, u32, [f64; 4], f64);
    let known: [Known; 5] = [
        (gemma3(15, 3, 512), [5, 1], 3, 0, [1.000, 1.017, 1.007, 1.001], 4.57),
        (gemma3(22, 4, 512), [6, 1], 4, 2, [1.077, 1.072, 1.032, 1.003], 4.84),
        (gemma3(29, 5, 1024), [6, 1], 5, 1, [1.029, 1.038, 1.021, 1.002], 3.94),
        (gemma3(40, 8, 1024), [5, 1], 8, 0, [1.000, 1.011, 1.006, 1.001], 3.69),
        (gemma3(52, 10, 1024), [6, 1], 10, 8, [1.129, 1.124, 1.068, 1.007], 3.76),
    ];
    for (classes, of_class, layers, padding, ratios, unified) in known {
        let groups = Groups::new(&classes);
        assert_eq!((&groups.of_class[..], groups.layers), (&of_class[..], layers));
        assert_eq!(groups.padding(&classes), padding);
        for (tokens, ratio) in [512, 2048, 8192, 131_072].into_iter().zip(ratios) {
            let (held, needed) = footprint(&classes, 16, tokens);
            assert_eq!(
                format!("{:.3}", held as f64 / needed as f64),
                format!("{ratio:.3}"),
                "{tokens} tokens"
            );
        }
        let (_, needed) = footprint(&classes, 16, 8192);
        let whole = footprint_unified(&classes, 16, 8192) as f64 / needed as f64;
        assert_eq!(format!("{whole:.2}"), format!("{unified:.2}"));
    }
}

#[test]
fn alike_many_layers_share_a_group_size_and_fewer_do_not() {
    let layers = |counts: [u32; 2]| Groups::new(&gemma3(counts[0], counts[1], 8)).layers;
    assert_eq!([layers([12, 13]), layers([2, 3]), layers([10, 14]), layers([10, 15])], [13, 2, 14, 10]);
}

/// What the footprint says is what a sequence holds at its worst.
#[test]
fn a_sequence_never_holds_more_than_its_footprint() {
    let classes = gemma3(40, 8, 64);
    let reaches = Groups::new(&classes).reaches(&classes);
    let setup = Setup {
        blocks: 1000,
        block_size: 16,
        groups: reaches,
        caching: false,
        retention: Retention::Dense,
        eviction: Eviction::Lru,
        keyless_first: true,
    };
    let mut cache = Cache::new(setup);
    cache.open(0, 1, |_| 1);
    let mut reached = 0;
    for tokens in 1..400 {
        cache.append(0, 1, false, |_| 1).expect("there is room");
        let held = u64::from(999 - cache.free()) * 16 * 8;
        let (most, _) = footprint(&classes, 16, tokens);
        assert!(held <= most, "{tokens} tokens");
        reached += u32::from(held == most);
    }
    assert!(reached > 100, "the footprint is reached, not only kept: {reached}");
}

const SEATS: [u32; 9] = [2, 4, 6, 8, 12, 14, 16, 20, 28];

/// vLLM issue 48435: the same seats are served almost wholly from the cache, or not at all. The rates are those of
/// docs/policies.md.
#[test]
fn seats_that_take_turns_fall_off_a_cliff_that_retention_moves() {
    let hybrid = seats::gemma3_12b;
    let (every, lru, whole) = (Retention::Every(2048), Eviction::Lru, Eviction::Whole);
    let rows = [
        (hybrid(Retention::Dense, lru), [977, 977, 0, 0, 0, 0, 0, 0, 0]),
        (hybrid(every, lru), [972, 972, 972, 0, 0, 0, 0, 0, 0]),
        (hybrid(Retention::Last, lru), [969, 969, 969, 969, 969, 0, 0, 0, 0]),
        (seats::without_groups(), [977, 723, 0, 0, 0, 0, 0, 0, 0]),
        (hybrid(Retention::Dense, whole), [977, 977, 977, 977, 977, 813, 712, 569, 395]),
        (hybrid(every, whole), [972, 972, 972, 972, 972, 809, 708, 567, 393]),
        (hybrid(Retention::Last, whole), [969, 969, 969, 969, 969, 784, 686, 549, 380]),
    ];
    for (setup, documented) in rows {
        for (count, documented) in SEATS.into_iter().zip(documented) {
            let rate = seats::warm_hit_rate(setup.clone(), count, 3);
            let what = format!("{:?}, {:?}, {count} seats: {rate}", setup.retention, setup.eviction);
            assert_eq!((rate * 1000.0).round() as u32, documented, "{what}");
            // A newcomer that goes first leaves the others where they are: next to what whole seats can give.
            let bound = seats::bound(0.969, count);
            assert!(setup.eviction == lru || rate > 0.78 * bound, "{what}, bound {bound}");
        }
    }
}

#[test]
fn the_policy_finds_what_its_cache_finds() {
    let (lru, whole) = (Eviction::Lru, Eviction::Whole);
    for (spec, retention, eviction, count) in [
        ("vllm:retention=dense", Retention::Dense, lru, 4),
        ("vllm:retention=dense", Retention::Dense, lru, 6),
        ("vllm:retention=2048", Retention::Every(2048), lru, 6),
        ("vllm", Retention::Last, lru, 12),
        ("vllm", Retention::Last, lru, 14),
        ("vllm:evict=whole", Retention::Last, whole, 16),
        ("vllm:retention=dense:evict=whole", Retention::Dense, whole, 16),
    ] {
        let cache = seats::warm_hit_rate(seats::gemma3_12b(retention, eviction), count, 3);
        assert_eq!(seats::policy_hit_rate(spec, count, 3), cache, "{spec}, {count} seats");
    }
}

/// vLLM issue 42656: short requests fill no block, so nobody can find theirs again. Where these stand in line
/// behind what is cached, they push it out.
#[test]
fn blocks_that_nobody_can_find_push_out_what_is_cached_unless_they_go_first() {
    let hit_after = |keyless_first| {
        let setup = Setup {
            blocks: 41,
            block_size: 16,
            groups: vec![Reach::Full],
            caching: true,
            retention: Retention::Last,
            eviction: Eviction::Lru,
            keyless_first,
        };
        let mut cache = Cache::new(setup);
        let prompt: Vec<u32> = (0..480).collect();
        let mut chain = Chain::new(16);
        chain.extend(&prompt);
        cache.admit(0, 480, |at| chain.key(at)).1.expect("there is room");
        cache.release(0);
        for _ in 0..60 {
            cache.admit(0, 10, |_| unreachable!("no block is full")).1.expect("there is room");
            cache.release(0);
        }
        cache.find(480, |at| chain.key(at)).tokens
    };
    println!("first {}, last {}", hit_after(true), hit_after(false));
    assert_eq!(hit_after(true), 464);
    assert_eq!(hit_after(false), 0);
}
