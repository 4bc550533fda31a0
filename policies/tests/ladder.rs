//! The ladder against a naive one that keeps all blocks in a list, and against what shadow memory holds.

use std::collections::BTreeMap;

use policies::{
    Append, ClassId, Content, Effect, Geometry, Intent, KvBits, LayerClass, Plan, Policy, Reach, Run, SeqId,
    Shadow, make_policy,
};
use proptest::prelude::*;

const CONTEXT: u32 = 60;

fn geometry(cells: u32) -> Geometry {
    let class = LayerClass { name: "all".into(), layers: 1, reach: Reach::Full, cells };
    Geometry { classes: vec![class], context_max: CONTEXT, batch_max: 20, sequences_max: 4 }
}

fn open(policy: &mut dyn Policy, seq: u32) {
    let intent = Intent { content: Content::own(seq.into()), prompt_tokens: 1, total_tokens: 1 };
    policy.open(SeqId(seq), &intent);
}

#[derive(Clone, Debug)]
enum Call {
    Place { batch: Vec<(u32, u32)> },
    Truncate { seq: u32, len: u32 },
    Renew { seq: u32 },
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        8 => prop::collection::vec((0..4u32, 1..9u32), 1..4).prop_map(|batch| Call::Place { batch }),
        1 => (0..4u32, 0..CONTEXT).prop_map(|(seq, len)| Call::Truncate { seq, len }),
        1 => (0..4u32).prop_map(|seq| Call::Renew { seq }),
    ]
}

/// A block of the naive ladder.
#[derive(Clone, Debug)]
struct Block {
    seq: u32,
    /// Its number in its sequence.
    index: u32,
    rung: usize,
}

const PARTS: [u32; 3] = [32, 17, 9];

struct Naive {
    size: u32,
    last: usize,
    memory: u32,
    /// In the order in which they were taken.
    blocks: Vec<Block>,
    lens: BTreeMap<u32, u32>,
}

impl Naive {
    /// Whether a block is full and not the last of its sequence, before a batch.
    fn may_go_down(&self, block: &Block) -> bool {
        let last = self.blocks.iter().filter(|other| other.seq == block.seq).map(|other| other.index).max();
        last != Some(block.index)
    }

    /// What reading a sequence's tokens from one on spares, token by token.
    fn spared(&self, seq: u32, from: u32) -> u32 {
        let rung = |token: u32| {
            let block = self.blocks.iter().find(|block| (block.seq, block.index) == (seq, token / self.size));
            block.expect("a block for each token").rung
        };
        (from..self.lens[&seq]).map(|token| PARTS[0] - PARTS[rung(token)]).sum()
    }

    fn taken(&self) -> u32 {
        self.blocks.iter().map(|block| PARTS[block.rung]).sum()
    }

    /// Blocks (sequence and number) that are rounded, in order, and to which rung; none if it does not fit.
    fn place(&mut self, batch: &[(u32, u32)]) -> Option<Vec<(u32, u32, usize)>> {
        let mut ready: Vec<usize> =
            (0..self.blocks.len()).filter(|&i| self.may_go_down(&self.blocks[i])).collect();
        let mut taken = self.taken();
        let mut trial = self.blocks.clone();
        let mut rounded = Vec::new();
        for &(seq, tokens) in batch {
            let len = self.lens[&seq];
            for index in len.div_ceil(self.size)..(len + tokens).div_ceil(self.size) {
                while taken + PARTS[0] > self.memory {
                    // The finest rung first, and on it the oldest.
                    ready.sort_by_key(|&i| (trial[i].rung, i));
                    let &i = ready.first().filter(|&&i| trial[i].rung < self.last)?;
                    taken -= PARTS[trial[i].rung] - PARTS[trial[i].rung + 1];
                    trial[i].rung += 1;
                    rounded.push((trial[i].seq, trial[i].index, trial[i].rung));
                }
                taken += PARTS[0];
                trial.push(Block { seq, index, rung: 0 });
            }
        }
        self.blocks = trial;
        for (seq, tokens) in batch {
            *self.lens.get_mut(seq).expect("open") += tokens;
        }
        Some(rounded)
    }

    fn truncate(&mut self, seq: u32, len: u32) -> u32 {
        let mut keep = len.min(self.lens[&seq]);
        let cut = self.blocks.iter().find(|block| block.seq == seq && block.index == keep / self.size);
        if cut.is_some_and(|block| block.rung > 0) {
            keep -= keep % self.size;
        }
        let end = keep.div_ceil(self.size);
        self.blocks.retain(|block| block.seq != seq || block.index < end);
        self.lens.insert(seq, keep);
        keep
    }
}

type Outcome = Result<(), TestCaseError>;

/// Runs calls on both; tells how many blocks were rounded.
fn drive(spec: &str, size: u32, last: usize, cells: u32, calls: &[Call]) -> Result<usize, TestCaseError> {
    let mut policy = make_policy(spec, &geometry(cells)).expect("the spec is good");
    let memory = cells / size * PARTS[0];
    let mut naive = Naive { size, last, memory, blocks: Vec::new(), lens: BTreeMap::new() };
    let mut shadow = Shadow::new();
    let mut all = 0;
    for seq in 0..4 {
        open(&mut *policy, seq);
        naive.lens.insert(seq, 0);
    }
    for call in calls {
        match call {
            Call::Place { batch } => {
                let mut appends: Vec<(u32, u32)> = Vec::new();
                for &(seq, tokens) in batch {
                    let tokens = tokens.min(CONTEXT - naive.lens[&seq]);
                    if tokens > 0 && appends.iter().all(|append| append.0 != seq) {
                        appends.push((seq, tokens));
                    }
                }
                let append =
                    |&(seq, tokens): &(u32, u32)| Append { seq: SeqId(seq), tokens, restored: false };
                let batch: Vec<Append> = appends.iter().map(append).collect();
                let mut plan = Plan::new();
                let before = layouts(&*policy);
                let placed = policy.place(&batch, &mut plan);
                let expected = naive.place(&appends);
                prop_assert_eq!(placed.is_ok(), expected.is_some(), "{:?}", placed);
                let found: Vec<(u32, u32, usize)> =
                    plan.effects().iter().filter_map(|effect| rounding(effect, size, &before)).collect();
                all += found.len();
                prop_assert_eq!(found, expected.unwrap_or_default());
                shadow.run(&plan, |seq, token| u64::from(seq.0) << 32 | u64::from(token));
            }
            Call::Truncate { seq, len } => {
                prop_assert_eq!(policy.truncate(SeqId(*seq), *len), naive.truncate(*seq, *len));
            }
            Call::Renew { seq } => {
                policy.release(SeqId(*seq));
                open(&mut *policy, *seq);
                naive.truncate(*seq, 0);
            }
        }
        prop_assert_eq!(policy.audit(), Ok(()));
        check(&*policy, &naive, &shadow)?;
    }
    Ok(all)
}

/// Cells of every sequence.
fn layouts(policy: &dyn Policy) -> BTreeMap<u32, Vec<u32>> {
    let mut runs: Vec<Run> = Vec::new();
    (0..4)
        .map(|seq| {
            policy.layout(ClassId(0), SeqId(seq), &mut runs);
            (seq, runs.iter().flat_map(|run| run.cells()).collect())
        })
        .collect()
}

/// Which block of which sequence an effect rounds, and to which rung.
fn rounding(effect: &Effect, size: u32, cells: &BTreeMap<u32, Vec<u32>>) -> Option<(u32, u32, usize)> {
    let Effect::Requantise { run, to, .. } = *effect else { return None };
    let rung = if to == KvBits::Q8_0 { 1 } else { 2 };
    cells.iter().find_map(|(&seq, cells)| {
        let token = cells.iter().position(|&cell| cell == run.start)?;
        (run.len == size && token.is_multiple_of(size as usize)).then_some((seq, token as u32 / size, rung))
    })
}

/// Every cell holds its token as coarse as the books say, and what that takes is what there is.
fn check(policy: &dyn Policy, naive: &Naive, shadow: &Shadow) -> Outcome {
    for (seq, cells) in layouts(policy) {
        for (token, cell) in (0..).zip(cells) {
            let payload = shadow.payload(ClassId(0), cell).expect("it was written");
            prop_assert_eq!(payload.token, u64::from(seq) << 32 | token);
            let index = token as u32 / naive.size;
            let block = naive.blocks.iter().find(|block| (block.seq, block.index) == (seq, index));
            let rung = block.expect("a block for each token").rung;
            let rounded = [None, Some(KvBits::Q8_0), Some(KvBits::Q4_0)][rung];
            prop_assert_eq!(payload.rounded, rounded, "sequence {} token {}", seq, token);
        }
        for from in 0..=naive.lens[&seq] {
            let spared = policy.spared(ClassId(0), SeqId(seq), from);
            prop_assert_eq!(spared, u64::from(naive.spared(seq, from)), "sequence {} from {}", seq, from);
        }
    }
    let idle: u32 = naive
        .blocks
        .iter()
        .map(|block| PARTS[if naive.may_go_down(block) { naive.last } else { block.rung }])
        .sum();
    let usage = policy.usage(ClassId(0));
    prop_assert_eq!(usage.held, naive.blocks.len() as u32 * naive.size);
    prop_assert_eq!(usage.free, (naive.memory - idle) / PARTS[0] * naive.size);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn who_is_rounded_is_what_a_list_of_blocks_says(
        calls in prop::collection::vec(call(), 1..60),
        cells in 24..120u32,
    ) {
        for (spec, size, last) in [("ladder:4", 4, 2), ("ladder:1", 1, 2), ("ladder:3:q8_0", 3, 1)] {
            drive(spec, size, last, cells, &calls)
                .map_err(|error| TestCaseError::fail(format!("{spec}: {error}")))?;
        }
    }

    #[test]
    fn what_reading_spares_is_what_shadow_memory_says(
        calls in prop::collection::vec(call(), 1..60),
        cells in 24..80u32,
    ) {
        for spec in ["ladder:4", "ladder:1", "ladder:3:q8_0"] {
            drive_windows(spec, cells, &calls)
                .map_err(|error| TestCaseError::fail(format!("{spec}: {error}")))?;
        }
    }
}

/// Runs calls on a window class and one that reads everything; tells the cells that were read coarse although older
/// blocks waited below the window.
fn drive_windows(spec: &str, cells: u32, calls: &[Call]) -> Result<usize, TestCaseError> {
    const WINDOW: u32 = 10;
    let class = |name: &str, reach| LayerClass { name: name.into(), layers: 1, reach, cells };
    let geometry = Geometry {
        classes: vec![class("local", Reach::Window(WINDOW)), class("global", Reach::Full)],
        ..geometry(cells)
    };
    let mut policy = make_policy(spec, &geometry).expect("the spec is good");
    let (mut shadow, mut runs, mut seen) = (Shadow::new(), Vec::new(), 0);
    (0..4).for_each(|seq| open(&mut *policy, seq));
    for call in calls {
        match call {
            Call::Place { batch } => {
                let tokens = |seq, tokens: u32| tokens.min(CONTEXT - policy.len(SeqId(seq)));
                let appends: BTreeMap<u32, u32> = batch
                    .iter()
                    .map(|&(seq, n)| (seq, tokens(seq, n)))
                    .filter(|append| append.1 > 0)
                    .collect();
                let append = |(&seq, &tokens)| Append { seq: SeqId(seq), tokens, restored: false };
                let batch: Vec<Append> = appends.iter().map(append).collect();
                let mut plan = Plan::new();
                if policy.place(&batch, &mut plan).is_ok() {
                    shadow.run(&plan, |seq, token| u64::from(seq.0) << 32 | u64::from(token));
                }
            }
            Call::Truncate { seq, len } => {
                policy.truncate(SeqId(*seq), *len);
            }
            Call::Renew { seq } => {
                policy.release(SeqId(*seq));
                open(&mut *policy, *seq);
            }
        }
        prop_assert_eq!(policy.audit(), Ok(()));
        for (class, seq) in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)] {
            let (class, seq) = (ClassId(class), SeqId(seq));
            let tokens = policy.layout(class, seq, &mut runs);
            let parts = |cell| match shadow.payload(class, cell).expect("it was written").rounded {
                None => 0,
                Some(KvBits::Q8_0) => 15,
                Some(_) => 23,
            };
            let cells: Vec<u64> = runs.iter().flat_map(|run| run.cells()).map(parts).collect();
            for from in tokens.start..=tokens.end {
                let skipped = (from - tokens.start) as usize;
                let expected: u64 = cells[skipped..].iter().sum();
                prop_assert_eq!(
                    policy.spared(class, seq, from),
                    expected,
                    "{:?} {:?} from {}",
                    class,
                    seq,
                    from
                );
                let reads = tokens.end - from == WINDOW && class == ClassId(0);
                seen += usize::from(reads && expected > 0 && cells[..skipped].iter().any(|&parts| parts > 0));
            }
        }
    }
    Ok(seen)
}

#[test]
fn what_is_spared_within_a_window_leaves_out_what_lies_below() {
    let mut seen = 0;
    for tokens in 1..9 {
        let round = [(0, tokens), (1, 9 - tokens), (2, 3)];
        let calls: Vec<Call> = (0..12).map(|_| Call::Place { batch: round.to_vec() }).collect();
        for spec in ["ladder:4", "ladder:3:q8_0", "ladder:1"] {
            seen += drive_windows(spec, 40, &calls).expect("the books agree");
        }
    }
    assert!(seen > 20, "{seen} reads of coarse cells above others");
}

#[test]
fn memory_for_so_many_tokens_holds_more_rung_by_rung() {
    for (spec, factor) in [("ladder:4:q8_0", 32.0 / 17.0), ("ladder:4", 32.0 / 9.0), ("paged:4", 1.0)] {
        let class = LayerClass { name: "all".into(), layers: 1, reach: Reach::Full, cells: 400 };
        let geometry = Geometry { classes: vec![class], context_max: 4000, batch_max: 4, sequences_max: 1 };
        let mut policy = make_policy(spec, &geometry).expect("the spec is good");
        open(&mut *policy, 0);
        let append = Append { seq: SeqId(0), tokens: 4, restored: false };
        while policy.place(&[append], &mut Plan::new()).is_ok() {}
        let held = f64::from(policy.len(SeqId(0))) / 400.0;
        assert!(held <= factor && held > 0.96 * factor, "{spec}: {held} times the cells");
    }
}

#[test]
fn without_pressure_nothing_is_rounded() {
    let calls = [Call::Place { batch: vec![(0, 8), (1, 8)] }, Call::Place { batch: vec![(0, 8)] }];
    assert_eq!(drive("ladder:4", 4, 2, 24, &calls).expect("the books agree"), 0);
    let more = [&calls[..], &[Call::Place { batch: vec![(0, 1)] }]].concat();
    // Six blocks; for a seventh 32 parts are needed, and q8_0 sets 15 of each free.
    assert_eq!(drive("ladder:4", 4, 2, 24, &more).expect("the books agree"), 3);
}
