//! A plan as launches: copies, rotations and the ways to host memory and back, in order.

use std::collections::{BTreeMap, BTreeSet};

use policies::{Cell, Effect, KvBits, Plan, SeqId};

use super::Cuda;
use super::driver::{Args, Buffer};
use super::kernels::grid;
use super::slabs::{code, record};
use super::swap::Mover;
use crate::cache::KvType;
use crate::cpu::check::{SLOTS, check_plan};
use crate::error::EngineError;

/// Pairs of cells that one tile copies.
const TILE: usize = 128;

/// Work of one kind on one class, with the words that it needs on the device.
enum Work {
    /// Pairs of source and target, cut into tiles.
    Copy { pairs: usize, tiles: usize, count: usize },
    /// Cells and the positions that each is rotated by.
    Rotate { cells: usize, deltas: usize, count: usize },
    /// Cells that are rounded, each named once, and their places in between.
    Round { cells: usize, places: usize, count: usize, to: KvType },
    /// Cells that leave, and whose tokens they hold.
    Out { cells: usize, keys: Vec<(u8, u64, u32)> },
    /// A chunk and the cells that it comes back to.
    In { cells: usize, chunk: u64 },
}

/// Executes everything of a plan but its writes.
pub(crate) fn apply(
    cuda: &mut Cuda,
    plan: &Plan,
    request_of: &dyn Fn(SeqId) -> u64,
) -> Result<(), EngineError> {
    check_plan(plan, &cuda.shape, cuda.host.places(), request_of)?;
    let effects = plan.effects();
    let most = cuda.model.config.max_positions;
    for effect in effects {
        if let Effect::Rotate { class, run, delta } = *effect
            && delta.unsigned_abs() as usize > most
        {
            return Err(EngineError::Batch(format!(
                "class {}: {run:?} is to be rotated by {delta}: the model has {most} positions",
                class.0
            )));
        }
    }
    let mut at = 0;
    while at < effects.len() {
        let alike = effects[at..].iter().take_while(|effect| are_alike(effect, &effects[at])).count();
        run(cuda, &effects[at..at + alike], request_of)?;
        at += alike;
    }
    let back = effects.iter().filter_map(|effect| match *effect {
        Effect::SwapIn { class, seq, .. } => Some((class.0, request_of(seq))),
        _ => None,
    });
    // A request that is back needs nothing of what it left, not even what it now shares.
    cuda.host.forget(&back.collect());
    Ok(())
}

/// Whether two effects can share a launch.
fn are_alike(a: &Effect, b: &Effect) -> bool {
    match (a, b) {
        (Effect::Write { .. }, Effect::Write { .. }) => true,
        (Effect::Map { .. } | Effect::Unmap { .. }, Effect::Map { .. } | Effect::Unmap { .. }) => true,
        (Effect::Copy { class: a, .. }, Effect::Copy { class: b, .. })
        | (Effect::Rotate { class: a, .. }, Effect::Rotate { class: b, .. })
        | (Effect::SwapOut { class: a, .. }, Effect::SwapOut { class: b, .. })
        | (Effect::SwapIn { class: a, .. }, Effect::SwapIn { class: b, .. })
        | (Effect::Offload { class: a, .. }, Effect::Offload { class: b, .. })
        | (Effect::Fetch { class: a, .. }, Effect::Fetch { class: b, .. }) => a == b,
        (Effect::Requantise { class: a, to: s, .. }, Effect::Requantise { class: b, to: t, .. }) => {
            (a, s) == (b, t)
        }
        _ => false,
    }
}

/// Runs effects of one kind and class.
fn run(cuda: &mut Cuda, effects: &[Effect], request_of: &dyn Fn(SeqId) -> u64) -> Result<(), EngineError> {
    let mut words = Vec::new();
    let (class, work) = match effects[0] {
        Effect::Write { .. } | Effect::Map { .. } | Effect::Unmap { .. } => return Ok(()),
        Effect::Copy { class, .. } => {
            let cells = cuda.shape.cells[class.index()];
            (class.0, vec![copy(effects, cells, &mut words)])
        }
        Effect::Rotate { class, .. } => (class.0, rotate(effects, &mut words)),
        Effect::Requantise { class, to, .. } => (class.0, vec![round(effects, to, &mut words)]),
        Effect::SwapOut { class, .. } | Effect::Offload { class, .. } => {
            (class.0, swap_out(cuda, class.0, effects, request_of, &mut words))
        }
        Effect::SwapIn { class, .. } | Effect::Fetch { class, .. } => {
            (class.0, swap_in(cuda, class.0, effects, request_of, &mut words)?)
        }
    };
    if words.is_empty() {
        return Ok(());
    }
    cuda.words = words;
    cuda.reserve(0)?;
    cuda.upload()?;
    for work in work {
        launch(cuda, class, work)?;
    }
    Ok(())
}

/// All copies as pairs, with the start of every tile: none reads what the same tile wrote before. Costs a word of
/// zeroed memory per cell, of which only what is written is touched.
fn copy(effects: &[Effect], cells: Cell, words: &mut Vec<u32>) -> Work {
    let pairs = effects.iter().flat_map(|effect| match *effect {
        Effect::Copy { from, to, len, .. } => (0..len).map(move |i| (from + i, to + i)),
        _ => unreachable!("only copies are alike a copy"),
    });
    let mut tiles = vec![0_u32];
    // The last tile that wrote a cell, counted from 1.
    let mut written_by = vec![0_u32; cells as usize];
    let (mut start, mut count) = (0, 0);
    for (from, to) in pairs {
        let tile = tiles.len() as u32;
        if count - start == TILE || [from, to].iter().any(|&cell| written_by[cell as usize] == tile) {
            tiles.push(count as u32);
            start = count;
        }
        written_by[to as usize] = tiles.len() as u32;
        words.extend([from, to]);
        count += 1;
    }
    tiles.push(count as u32);
    let at = words.len();
    words.extend(&tiles);
    Work::Copy { pairs: 0, tiles: at, count: tiles.len() - 1 }
}

/// Rotations, cut where a cell would be rotated twice in one launch.
fn rotate(effects: &[Effect], words: &mut Vec<u32>) -> Vec<Work> {
    let mut work = Vec::new();
    let (mut cells, mut deltas, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut flush = |cells: &mut Vec<Cell>, deltas: &mut Vec<u32>| {
        if !cells.is_empty() {
            let (at, count) = (words.len(), cells.len());
            words.append(cells);
            words.append(deltas);
            work.push(Work::Rotate { cells: at, deltas: at + count, count });
        }
    };
    for effect in effects {
        let Effect::Rotate { run, delta, .. } = *effect else { unreachable!("only rotations are alike one") };
        if run.cells().any(|cell| seen.contains(&cell)) {
            flush(&mut cells, &mut deltas);
            seen.clear();
        }
        seen.extend(run.cells());
        cells.extend(run.cells());
        deltas.extend(run.cells().map(|_| delta as u32));
    }
    flush(&mut cells, &mut deltas);
    work
}

/// Cells to round. Rounding twice changes no more than rounding once, so each is named once.
fn round(effects: &[Effect], to: KvBits, words: &mut Vec<u32>) -> Work {
    let mut cells = BTreeSet::new();
    for effect in effects {
        let Effect::Requantise { run, .. } = *effect else { unreachable!("only roundings are alike one") };
        cells.extend(run.cells());
    }
    let count = cells.len();
    words.extend(cells);
    words.extend(0..count as u32);
    let to = match to {
        KvBits::Q8_0 => KvType::Q8_0,
        KvBits::Q4_0 => KvType::Q4_0,
    };
    Work::Round { cells: 0, places: count, count, to }
}

fn swap_out(
    cuda: &Cuda,
    class: u8,
    effects: &[Effect],
    request_of: &dyn Fn(SeqId) -> u64,
    words: &mut Vec<u32>,
) -> Vec<Work> {
    let mut tokens = Vec::new();
    for effect in effects {
        let (request, first, run) = match *effect {
            Effect::SwapOut { seq, first, run, .. } => (request_of(seq), first, run),
            Effect::Offload { slot, run, .. } => (SLOTS, slot, run),
            _ => unreachable!("only these are alike"),
        };
        tokens.extend(run.cells().zip(first..).map(|(cell, token)| (cell, (class, request, token))));
    }
    let most = mover(cuda).chunk_tokens(usize::from(class));
    let chunk = |tokens: &[(Cell, (u8, u64, u32))]| {
        let cells = words.len();
        words.extend(tokens.iter().map(|&(cell, _)| cell));
        Work::Out { cells, keys: tokens.iter().map(|&(_, key)| key).collect() }
    };
    tokens.chunks(most).map(chunk).collect()
}

/// Cells that come back, chunk by chunk. A launch brings a cell of host memory to one place and writes a cell once,
/// so they are cut where a plan asks for either a second time.
fn swap_in(
    cuda: &Cuda,
    class: u8,
    effects: &[Effect],
    request_of: &dyn Fn(SeqId) -> u64,
    words: &mut Vec<u32>,
) -> Result<Vec<Work>, EngineError> {
    let spare = cuda.shape.cells[usize::from(class)];
    let mut work = Vec::new();
    let (mut chunks, mut written) = (BTreeMap::<u64, BTreeMap<usize, Cell>>::new(), BTreeSet::new());
    let mut flush = |chunks: &mut BTreeMap<u64, BTreeMap<usize, Cell>>| {
        while let Some((chunk, places)) = chunks.pop_first() {
            let cells = words.len();
            words.extend(cuda.host.cells(chunk, &places, spare));
            work.push(Work::In { cells, chunk });
        }
    };
    for effect in effects {
        let (request, first, run) = match *effect {
            Effect::SwapIn { seq, first, run, .. } => (request_of(seq), first, run),
            Effect::Fetch { slot, run, .. } => (SLOTS, slot, run),
            _ => unreachable!("only these are alike"),
        };
        for (cell, token) in run.cells().zip(first..) {
            let Some((chunk, place)) = cuda.host.find((class, request, token)) else {
                return Err(EngineError::Batch(format!(
                    "class {class}: token {token} of request {request} is not in host memory"
                )));
            };
            let is_fetched = chunks.get(&chunk).is_some_and(|places| places.contains_key(&place));
            if is_fetched || written.contains(&cell) {
                flush(&mut chunks);
                written.clear();
            }
            written.insert(cell);
            chunks.entry(chunk).or_default().insert(place, cell);
        }
    }
    flush(&mut chunks);
    Ok(work)
}

fn mover(cuda: &Cuda) -> Mover<'_> {
    Mover { kernels: &cuda.model.gpu.kernels, stream: &cuda.stream, slabs: &cuda.slabs }
}

/// Rounds cells of a class in place: layer after layer into blocks of the coarser type and back.
fn launch_round(
    cuda: &mut Cuda,
    class: u8,
    [cells, places]: [u64; 2],
    count: usize,
    to: KvType,
) -> Result<(), EngineError> {
    let config = &cuda.model.config;
    let coarse = record(config, to);
    if cuda.between.bytes() < count * coarse {
        cuda.stream.synchronize()?;
        cuda.between = Buffer::new(&cuda.model.gpu.device, "room for rounding", count * coarse)?;
    }
    let (slabs, between) = (&cuda.slabs, cuda.between.at());
    let shape = grid([count, 1, 1], 32 * config.kv_heads.min(8));
    for layer in (0..config.layers.len()).filter(|&layer| cuda.shape.class_of[layer] == usize::from(class)) {
        let halves = [
            (&slabs.k[layer], slabs.k_record, cuda.shape.k),
            (&slabs.v[layer], slabs.v_record, cuda.shape.v),
        ];
        for (slab, fine, kind) in halves {
            let there = Args::new().at(slab.at()).at(between).at(cells).at(places);
            let back = Args::new().at(between).at(slab.at()).at(places).at(cells);
            let ways = [
                (there, [code(kind), code(to)], [fine, coarse]),
                (back, [code(to), code(kind)], [coarse, fine]),
            ];
            for (args, [from, to], [from_record, to_record]) in ways {
                let args = args.int(config.kv_heads as u32).int(config.head_dim as u32).int(from).int(to);
                let args = args.int(from_record as u32).int(to_record as u32);
                cuda.model.gpu.kernels.launch(&cuda.stream, "kv_convert", shape, args)?;
            }
        }
    }
    Ok(())
}

fn launch(cuda: &mut Cuda, class: u8, work: Work) -> Result<(), EngineError> {
    let word = |index: usize| cuda.uploaded.at() + 4 * index as u64;
    let kernels = cuda.model.gpu.kernels.clone();
    let (slabs, config) = (&cuda.slabs, &cuda.model.config);
    let buffers = &slabs.classes[usize::from(class)];
    match work {
        Work::Copy { pairs, tiles, count } => {
            let (layers, k_record, v_record) = (buffers.layers, slabs.k_record, slabs.v_record);
            // Records of one length are copied by one launch: a model of few layers hardly fills a device.
            let halves: &[_] = if k_record == v_record {
                &[(0, k_record, 2 * layers)]
            } else {
                &[(0, k_record, layers), (layers, v_record, layers)]
            };
            for &(first, record, count_of_buffers) in halves {
                let args = Args::new()
                    .at(buffers.both.at() + 8 * first as u64)
                    .int(record as u32)
                    .at(word(pairs))
                    .at(word(tiles))
                    .int(count as u32);
                let shape = grid([record.div_ceil(128), count_of_buffers, 1], 256);
                kernels.launch(&cuda.stream, "cells_copy", shape, args)?;
            }
            Ok(())
        }
        Work::Rotate { cells, deltas, count } => {
            let args = Args::new()
                .at(buffers.both.at())
                .at(buffers.ropes.at())
                .at(word(cells))
                .at(word(deltas))
                .int(config.kv_heads as u32)
                .int(config.head_dim as u32)
                .int(code(cuda.shape.k))
                .int(slabs.k_record as u32);
            let shape = grid([count, buffers.layers, 1], 32 * config.kv_heads.min(8));
            kernels.launch(&cuda.stream, "rotate_k", shape, args)
        }
        Work::Round { cells, places, count, to } => {
            let at = [word(cells), word(places)];
            launch_round(cuda, class, at, count, to)
        }
        Work::Out { cells, keys } => {
            let at = word(cells);
            let mover = Mover { kernels: &kernels, stream: &cuda.stream, slabs };
            cuda.host.put(&mover, class, &keys, at)
        }
        Work::In { cells, chunk } => {
            let at = word(cells);
            let mover = Mover { kernels: &kernels, stream: &cuda.stream, slabs };
            cuda.host.get(&mover, class, chunk, at)
        }
    }
}

#[cfg(test)]
mod tests {
    use policies::{ClassId, Run, Why};
    use traces::random::SplitMix64;

    use super::*;

    /// Pairs, and the first of every tile with the end of the last.
    fn cut(copies: &[(Cell, Cell, u32)], cells: Cell) -> (Vec<[u32; 2]>, Vec<u32>) {
        let effect = |&(from, to, len): &(Cell, Cell, u32)| Effect::Copy {
            class: ClassId(0),
            from,
            to,
            len,
            why: Why::Defrag,
        };
        let effects: Vec<Effect> = copies.iter().map(effect).collect();
        let mut words = Vec::new();
        let Work::Copy { tiles, count, .. } = copy(&effects, cells, &mut words) else {
            unreachable!("it makes copies")
        };
        assert_eq!(words.len(), tiles + count + 1);
        (words[..tiles].as_chunks().0.to_vec(), words[tiles..].to_vec())
    }

    #[test]
    fn tiles_end_where_a_pair_meets_what_the_tile_wrote_and_nowhere_else() {
        let mut random = SplitMix64::new(5);
        let mut below = |end: u32| random.below(end);
        for _ in 0..200 {
            let cells = 40 + below(400);
            let copies: Vec<_> = (0..1 + below(6))
                .map(|_| {
                    let len = 1 + below(cells / 2);
                    (below(cells - len + 1), below(cells - len + 1), len)
                })
                .collect();
            let (pairs, tiles) = cut(&copies, cells);
            let expected =
                copies.iter().flat_map(|&(from, to, len)| (0..len).map(move |i| [from + i, to + i]));
            assert!(pairs.iter().copied().eq(expected));
            // The tiles of a scan.
            let (mut scanned, mut start) = (vec![0], 0);
            for (at, pair) in pairs.iter().enumerate() {
                if at - start == TILE || pairs[start..at].iter().any(|before| pair.contains(&before[1])) {
                    scanned.push(at as u32);
                    start = at;
                }
            }
            scanned.push(pairs.len() as u32);
            assert_eq!(tiles, scanned, "{copies:?}");
        }
    }

    #[test]
    fn rotations_are_cut_where_a_cell_comes_again() {
        let turn = |start, len, delta| Effect::Rotate { class: ClassId(0), run: Run { start, len }, delta };
        let mut words = Vec::new();
        let work = rotate(&[turn(4, 3, -2), turn(9, 1, 5), turn(6, 1, 1)], &mut words);
        assert_eq!(
            words,
            [4, 5, 6, 9, 0_u32.wrapping_sub(2), 0_u32.wrapping_sub(2), 0_u32.wrapping_sub(2), 5, 6, 1]
        );
        let counts: Vec<usize> = work
            .iter()
            .map(|work| match work {
                Work::Rotate { count, .. } => *count,
                _ => 0,
            })
            .collect();
        assert_eq!(counts, [4, 1]);
    }
}
