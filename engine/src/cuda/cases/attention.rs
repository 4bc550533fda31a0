//! Attention in all its forms.

use half::{bf16, f16};

use super::cache::{BF16, F16, F32, Q4, Q8, random_cells, read, record};
use super::{Arg, NONE, Random, Runner, apart, bits, f, m, p, u};

/// Where tokens lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    Contiguous,
    Blocks,
    PerCell,
}

/// One sequence: tokens with cells from `first` on, `rows` of them new.
#[derive(Clone)]
struct Sequence {
    first: usize,
    len: usize,
    rows: usize,
    /// K and V of each token, in the records that the kernels read.
    k: Vec<u8>,
    v: Vec<u8>,
}

/// Sizes of a case.
#[derive(Clone, Copy, Debug)]
struct Shape {
    kind: usize,
    heads: usize,
    kv: usize,
    hd: usize,
    window: usize,
}

impl Shape {
    fn name(&self) -> &'static str {
        ["f32", "f16", "bf16", "q8_0", "q4_0"][self.kind]
    }

    fn record(&self) -> usize {
        record(self.kind, self.kv, self.hd)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.hd as f32).sqrt()
    }
}

/// Everything that a kernel is given.
struct Memory {
    k: Vec<u8>,
    v: Vec<u8>,
    seqs: Vec<[u32; 8]>,
    table: Vec<u32>,
    walk: [u32; 2],
    q: Vec<f32>,
    rows: usize,
}

fn sequences(runner: &dyn Runner, shape: Shape, sizes: &[[usize; 3]], random: &mut Random) -> Vec<Sequence> {
    let mut cells = |n: usize| random_cells(runner, shape.kind, n, shape.kv, shape.hd, random);
    let one = |&[first, len, rows]: &[usize; 3]| Sequence { first, len, rows, k: cells(len), v: cells(len) };
    sizes.iter().map(one).collect()
}

/// Puts sequences into a cache. Foreign cells hold other numbers, so that reading one shows.
fn memory(shape: Shape, sequences: &[Sequence], layout: Layout, scan: bool, random: &mut Random) -> Memory {
    let (size, block) = (shape.record(), 16);
    let total = sequences.iter().map(|s| s.len.div_ceil(block) * block).sum::<usize>() + 3 * block;
    // A pattern whose numbers are finite in every type.
    let mut k = vec![0x3C_u8; total * size];
    let mut v = k.clone();
    let order = random.order(total / block);
    let cells = random.order(total);
    let (mut seqs, mut table, mut used, mut row) = (Vec::new(), Vec::new(), 0, 0);
    for s in sequences {
        let start = table.len();
        let shift = match layout {
            Layout::Contiguous => 31,
            Layout::Blocks => 4,
            Layout::PerCell => 0,
        };
        let place = |j: usize| match layout {
            Layout::Contiguous => used + 5 + j,
            Layout::Blocks => order[(used + j) / block] as usize * block + j % block,
            Layout::PerCell => cells[used + j] as usize,
        };
        for j in 0..s.len {
            k[place(j) * size..][..size].copy_from_slice(&s.k[j * size..][..size]);
            v[place(j) * size..][..size].copy_from_slice(&s.v[j * size..][..size]);
        }
        if scan {
            table.extend(vec![u32::MAX; total]);
            (0..s.len).for_each(|j| table[start + place(j)] = (s.first + j) as u32);
        } else {
            table.extend((0..s.len).filter(|j| j % (1 << shift) == 0).map(|j| place(j) as u32));
        }
        let token = s.first + s.len - s.rows;
        seqs.push([start, shift, s.first, s.len, row, s.rows, token, 0].map(|x| x as u32));
        used += s.len.div_ceil(block) * block;
        row += s.rows;
    }
    let q = Random(row as u64).units(row * shape.heads * shape.hd);
    Memory { k, v, seqs, table, walk: [0, total as u32], q, rows: row }
}

/// Attention in f64; Q is rounded as the kernel rounds it.
fn reference(shape: Shape, sequences: &[Sequence], q: &[f32], is_plain: bool) -> Vec<f64> {
    let Shape { kind, heads, kv, hd, window } = shape;
    let size = shape.record();
    let factor = shape.scale() * std::f32::consts::LOG2_E;
    let mut out = Vec::new();
    let mut row = 0;
    for s in sequences {
        for new in 0..s.rows {
            let token = s.first + s.len - s.rows + new;
            let from = (token + 1).saturating_sub(window).max(s.first);
            for head in 0..heads {
                let own = head / (heads / kv);
                let q: Vec<f64> = q[(row * heads + head) * hd..][..hd]
                    .iter()
                    .map(|&q| match kind {
                        _ if is_plain => f64::from(q * shape.scale()) * std::f64::consts::LOG2_E,
                        BF16 => bf16::from_f32(q * factor).to_f64(),
                        _ => f16::from_f32(q * factor).to_f64(),
                    })
                    .collect();
                let cells = (from - s.first)..=(token - s.first);
                let scores: Vec<f64> = cells
                    .clone()
                    .map(|j| {
                        read(&s.k[j * size..][..size], kind, kv, hd, own)
                            .iter()
                            .zip(&q)
                            .map(|(k, q)| k * q)
                            .sum()
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp2()).collect();
                let sum: f64 = weights.iter().sum();
                let mut one = vec![0.0; hd];
                for (j, w) in cells.zip(&weights) {
                    let v = read(&s.v[j * size..][..size], kind, kv, hd, own);
                    one.iter_mut().zip(v).for_each(|(o, v)| *o += w / sum * v);
                }
                out.extend(one);
            }
            row += 1;
        }
    }
    out
}

/// What the kernels for one type of K and V begin with.
fn arguments(shape: Shape, memory: &Memory) -> Vec<Arg<'_>> {
    vec![
        p(&memory.q),
        p(&memory.k),
        p(&memory.v),
        u(shape.record()),
        u(shape.record()),
        p(&memory.seqs),
        p(&memory.table),
        p(&memory.walk),
        u(shape.heads),
        u(shape.kv),
        u(shape.window),
        f(shape.scale()),
    ]
}

fn decode(
    runner: &dyn Runner,
    shape: Shape,
    memory: &Memory,
    splits: usize,
    scan: bool,
    schedule: u32,
) -> Vec<f32> {
    let Shape { heads, kv, hd, .. } = shape;
    let n = memory.seqs.len();
    let mut part = vec![f32::NAN; n * splits * heads * hd];
    let mut ml = vec![f32::NAN; n * splits * heads * 2];
    let kind = if scan { "scan" } else { "decode" };
    let mut args = arguments(shape, memory);
    args.extend([m(&mut part), m(&mut ml)]);
    let name = format!("attn_{kind}_{}_{hd}", shape.name());
    runner.run(schedule, &name, [splits as u32, kv as u32, n as u32], 128, args);
    let mut out = vec![f32::NAN; memory.rows * heads * hd];
    let args = vec![
        p(&part),
        p(&ml),
        p(&memory.seqs),
        u(splits),
        u(heads),
        u(hd),
        m(&mut out),
        NONE,
        NONE,
        NONE,
        u(heads * hd),
    ];
    runner.run(schedule, "attn_merge", [heads as u32, n as u32, 1], hd as u32, args);
    out
}

fn prefill(runner: &dyn Runner, shape: Shape, memory: &Memory, scan: bool, schedule: u32) -> Vec<f32> {
    let Shape { heads, kv, hd, .. } = shape;
    let mut out = vec![f32::NAN; memory.rows * heads * hd];
    let mut out16 = vec![0_u16; out.len()];
    let kind = if scan { "prefill_scan" } else { "prefill" };
    let mut args = arguments(shape, memory);
    args.extend([m(&mut out), m(&mut out16)]);
    let most = memory.seqs.iter().map(|s| s[5]).max().unwrap_or(0);
    let grid = [(most * (heads / kv) as u32).div_ceil(64), kv as u32, memory.seqs.len() as u32];
    runner.run(schedule, &format!("attn_{kind}_{}_{hd}", shape.name()), grid, 128, args);
    assert!(out16.iter().zip(&out).all(|(&h, &o)| h == bf16::from_f32(o).to_bits()));
    out
}

/// Weights of the softmax are rounded to the type of the tensor cores; numbers of the cache are about 1.
fn tolerance(kind: usize) -> f64 {
    if kind == BF16 { 6e-3 } else { 2e-3 }
}

const LAYOUTS: [Layout; 3] = [Layout::Contiguous, Layout::Blocks, Layout::PerCell];

/// Heads, KV heads, numbers of a head, window.
type Sizes = (usize, usize, usize, usize);

/// No window.
const FULL: usize = u32::MAX as usize;

/// Every kind of K and V in every one of these sizes.
fn shapes<'a>(kinds: &'a [usize], sizes: &'a [Sizes]) -> impl Iterator<Item = Shape> + 'a {
    let of_kind = move |&kind: &'a usize| {
        sizes.iter().map(move |&(heads, kv, hd, window)| Shape { kind, heads, kv, hd, window })
    };
    kinds.iter().flat_map(of_kind)
}

/// Fails unless a kernel gives what is computed in f64, and the same bits wherever tokens lie.
fn check_everywhere(
    shape: Shape,
    sequences: &[Sequence],
    is_plain: bool,
    random: &mut Random,
    run: &dyn Fn(&Memory, Layout) -> Vec<f32>,
) {
    let limit = if is_plain { 5e-6 } else { tolerance(shape.kind) };
    let mut first: Option<Vec<u32>> = None;
    for layout in LAYOUTS {
        let memory = memory(shape, sequences, layout, false, random);
        let out = run(&memory, layout);
        let same = first.get_or_insert_with(|| {
            let error = apart(&out, &reference(shape, sequences, &memory.q, is_plain));
            assert!(error < limit, "{shape:?}: {error}");
            bits(&out)
        });
        assert!(&bits(&out) == same, "{shape:?} {layout:?}");
    }
}

pub(super) fn decode_equals_f64_and_placement_changes_no_bit(runner: &dyn Runner) {
    let mut random = Random(30);
    let sizes = [
        (4, 2, 32, 100),
        (4, 2, 32, FULL),
        (4, 1, 256, 50),
        (8, 1, 64, 7),
        (2, 2, 128, 100),
        (4, 1, 256, FULL),
    ];
    for shape in shapes(&[BF16, Q8, Q4], &sizes) {
        // The last one's token is the first that does not see the beginning, where there is a window.
        let filled = if shape.window == FULL { 20 } else { shape.window };
        let sizes = [[0, 131, 1], [40, 60, 1], [0, 1, 1], [3, 17, 1], [0, filled + 1, 1]];
        let sequences = sequences(runner, shape, &sizes, &mut random);
        check_everywhere(shape, &sequences, false, &mut random, &|memory, layout| {
            let out = decode(runner, shape, memory, 2, false, 0);
            let schedule = if layout == Layout::Blocks { 1 } else { 9 };
            assert!(bits(&decode(runner, shape, memory, 2, false, schedule)) == bits(&out));
            out
        });
    }
}

pub(super) fn splits_only_change_rounding(runner: &dyn Runner) {
    let mut random = Random(31);
    let shape = Shape { kind: BF16, heads: 4, kv: 2, hd: 64, window: 300 };
    let sequences = sequences(runner, shape, &[[0, 400, 1], [0, 70, 1]], &mut random);
    let memory = memory(shape, &sequences, Layout::PerCell, false, &mut random);
    let expected = reference(shape, &sequences, &memory.q, false);
    for splits in [1, 3, 5, 64] {
        assert!(apart(&decode(runner, shape, &memory, splits, false, 0), &expected) < tolerance(BF16));
    }
}

pub(super) fn a_scan_of_all_cells_finds_the_same(runner: &dyn Runner) {
    let mut random = Random(32);
    let sizes = [
        (4, 2, 32, 30),
        (4, 2, 64, 30),
        (4, 2, 64, FULL),
        (8, 1, 32, 50),
        (2, 2, 128, FULL),
        (4, 1, 256, 40),
    ];
    for shape in shapes(&[BF16, Q8, Q4], &sizes) {
        let check = |sequences: &[Sequence], run: &dyn Fn(&Memory, u32) -> Vec<f32>, random: &mut Random| {
            let memory = memory(shape, sequences, Layout::PerCell, true, random);
            let out = run(&memory, 0);
            let error = apart(&out, &reference(shape, sequences, &memory.q, false));
            assert!(error < tolerance(shape.kind), "{shape:?}: {error}");
            assert!(bits(&run(&memory, 5)) == bits(&out), "{shape:?}: schedules");
        };
        let one = sequences(runner, shape, &[[0, 90, 1], [20, 40, 1]], &mut random);
        check(&one, &|memory, schedule| decode(runner, shape, memory, 3, true, schedule), &mut random);
        let many = sequences(runner, shape, &[[0, 90, 21], [20, 40, 40]], &mut random);
        check(&many, &|memory, schedule| prefill(runner, shape, memory, true, schedule), &mut random);
    }
}

pub(super) fn prefill_equals_f64_and_placement_changes_no_bit(runner: &dyn Runner) {
    let mut random = Random(33);
    let sizes = [(4, 2, 32, 20), (4, 2, 32, FULL), (4, 1, 256, 20), (8, 1, 64, 7), (2, 2, 128, FULL)];
    for shape in shapes(&[BF16, Q8, Q4], &sizes) {
        let sizes = [[0, 70, 33], [9, 40, 40], [0, 1, 1], [0, 25, 25]];
        let sequences = sequences(runner, shape, &sizes, &mut random);
        check_everywhere(shape, &sequences, false, &mut random, &|memory, layout| {
            prefill(runner, shape, memory, false, u32::from(layout == Layout::Blocks))
        });
    }
}

pub(super) fn plain_attention_is_exact(runner: &dyn Runner) {
    let mut random = Random(34);
    let sizes = [(4, 2, 32, 16), (3, 1, 256, FULL), (16, 1, 128, 40)];
    for shape in shapes(&[F32, F16, BF16, Q8, Q4], &sizes) {
        let sequences = sequences(runner, shape, &[[0, 150, 3], [9, 20, 20], [0, 17, 17]], &mut random);
        check_everywhere(shape, &sequences, true, &mut random, &|memory, _| {
            let mut out = vec![f32::NAN; memory.q.len()];
            let args = vec![
                p(&memory.q),
                p(&memory.k),
                p(&memory.v),
                u(shape.kind),
                u(shape.kind),
                u(shape.record()),
                u(shape.record()),
                p(&memory.seqs),
                p(&memory.table),
                u(shape.heads),
                u(shape.kv),
                u(shape.hd),
                u(shape.window),
                f(shape.scale()),
                m(&mut out),
                NONE,
            ];
            runner.launch("attn_plain", [shape.heads as u32, 20, memory.seqs.len() as u32], 128, args);
            out
        });
    }
}

pub(super) fn a_padding_sequence_writes_nothing(runner: &dyn Runner) {
    let mut random = Random(36);
    let shape = Shape { kind: BF16, heads: 4, kv: 2, hd: 32, window: 30 };
    let one = sequences(runner, shape, &[[0, 70, 1]], &mut random);
    let mut memory = memory(shape, &one, Layout::PerCell, false, &mut random);
    let expected = decode(runner, shape, &memory, 2, false, 0);
    memory.seqs.push([0; 8]);
    assert!(bits(&decode(runner, shape, &memory, 2, false, 0)) == bits(&expected));
}
