//! What is written to the cache and done to its cells.

use half::{bf16, f16};

use super::{Arg, Random, Runner, apart, f, m, p, u};

/// Types of K and V as the kernels number them.
pub(super) const F32: usize = 0;
pub(super) const F16: usize = 1;
pub(super) const BF16: usize = 2;
pub(super) const Q8: usize = 3;
pub(super) const Q4: usize = 4;

/// Bytes of a head's numbers.
fn head_bytes(kind: usize, hd: usize) -> usize {
    match kind {
        F32 => hd * 4,
        Q8 => hd,
        Q4 => hd / 2,
        _ => hd * 2,
    }
}

/// Bytes of a cell's record.
pub(super) fn record(kind: usize, kv: usize, hd: usize) -> usize {
    let scales = if kind >= Q8 { kv * hd / 32 * 2 } else { 0 };
    (kv * head_bytes(kind, hd) + scales).div_ceil(16) * 16
}

/// A head of a record, in f64.
pub(super) fn read(record: &[u8], kind: usize, kv: usize, hd: usize, head: usize) -> Vec<f64> {
    let bytes = head_bytes(kind, hd);
    let numbers = &record[head * bytes..(head + 1) * bytes];
    let scales = &record[if kind >= Q8 { kv * bytes + head * hd / 32 * 2 } else { 0 }..];
    let two = |b: &[u8], i: usize| u16::from_le_bytes([b[2 * i], b[2 * i + 1]]);
    let scale = |i: usize| f16::from_bits(two(scales, i / 32)).to_f64();
    let number = |i: usize| match kind {
        F32 => f64::from(f32::from_le_bytes(numbers[4 * i..4 * i + 4].try_into().expect("four bytes"))),
        F16 => f16::from_bits(two(numbers, i)).to_f64(),
        BF16 => bf16::from_bits(two(numbers, i)).to_f64(),
        Q8 => scale(i) * f64::from(numbers[i] as i8),
        _ => {
            let byte = numbers[i / 32 * 16 + i % 16];
            scale(i) * (f64::from(if i % 32 < 16 { byte & 15 } else { byte >> 4 }) - 8.0)
        }
    };
    (0..hd).map(number).collect()
}

/// How far a stored number may be from what was stored, as a share of the largest in its block of 32.
fn step(kind: usize) -> f64 {
    [1e-6, 6e-4, 5e-3, 0.51 / 127.0 + 1e-3, 1.01 / 8.0 + 1e-3][kind]
}

fn check_stored(got: &[f64], expected: &[f64], kind: usize) {
    for (got, expected) in got.chunks(32).zip(expected.chunks(32)) {
        let most = expected.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() <= step(kind) * most + 1e-6, "type {kind}: {got} for {expected}");
        }
    }
}

/// The table of rotations: pairs (cos, sin).
pub(super) fn rope_table(hd: usize, theta: f64, factor: f64, positions: usize) -> Vec<f32> {
    let half = hd / 2;
    let entry = |position: f64| {
        (0..half).flat_map(move |i| {
            let angle = position / factor * theta.powf(-(i as f64) / half as f64);
            [angle.cos() as f32, angle.sin() as f32]
        })
    };
    let low = (0..256).flat_map(|p| entry(f64::from(p)));
    let high = (0..=positions.div_ceil(256)).flat_map(|h| entry(256.0 * h as f64));
    low.chain(high).collect()
}

fn rotate(head: &mut [f64], position: f64, theta: f64, factor: f64) {
    let half = head.len() / 2;
    for i in 0..half {
        let (sin, cos) = (position / factor * theta.powf(-(i as f64) / half as f64)).sin_cos();
        let (a, b) = (head[i], head[i + half]);
        (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
    }
}

pub(super) fn q_and_k_are_normed_and_rotated_and_k_and_v_are_stored(runner: &dyn Runner) {
    let mut random = Random(20);
    for (ktype, vtype) in [(F32, F32), (F16, F16), (BF16, BF16), (Q8, Q8), (Q4, Q4), (BF16, Q8)] {
        for (heads, kv, hd, splits) in [(4, 2, 32, 1), (4, 1, 256, 3), (2, 1, 128, 2)] {
            let (theta, factor, n, cells) = (1e6, 8.0, 3, 9);
            let width = (heads + 2 * kv) * hd;
            let mut y = random.units(splits * n * width);
            // Q and K of the first row, so small that the norm's epsilon is as large as what it is added to.
            y[..(heads + kv) * hd].iter_mut().for_each(|y| *y *= 1e-3);
            let (q_norm, k_norm) = (random.units(hd), random.units(hd));
            let rope = rope_table(hd, theta, factor, 131_072);
            let positions = [0_u32, 131_071, 70_003];
            let at = [4_u32, 0, 8];
            let (krec, vrec) = (record(ktype, kv, hd), record(vtype, kv, hd));
            let mut q = vec![f32::NAN; n * heads * hd];
            let (mut k, mut v) = (vec![0xEE_u8; cells * krec], vec![0xEE_u8; cells * vrec]);
            let args = vec![
                p(&y),
                u(splits),
                u(n),
                u(heads),
                u(kv),
                u(hd),
                p(&q_norm),
                p(&k_norm),
                f(1e-6),
                p(&rope),
                p(&positions),
                p(&at),
                m(&mut q),
                m(&mut k),
                m(&mut v),
                u(ktype),
                u(vtype),
                u(krec),
                u(vrec),
            ];
            runner.launch("qk_rope_store", [(heads + 2 * kv).div_ceil(4) as u32, n as u32, 1], 128, args);
            for row in 0..n {
                for head in 0..heads + 2 * kv {
                    let sum =
                        |i| (0..splits).map(|s| f64::from(y[(s * n + row) * width + head * hd + i])).sum();
                    let mut expected: Vec<f64> = (0..hd).map(sum).collect();
                    if head < heads + kv {
                        let norm = if head < heads { &q_norm } else { &k_norm };
                        let scale =
                            1.0 / (expected.iter().map(|x| x * x).sum::<f64>() / hd as f64 + 1e-6).sqrt();
                        expected.iter_mut().zip(norm).for_each(|(x, &w)| *x *= scale * f64::from(w));
                        rotate(&mut expected, f64::from(positions[row]), theta, factor);
                    }
                    let cell = at[row] as usize;
                    if head < heads {
                        let got = &q[(row * heads + head) * hd..][..hd];
                        assert!(apart(got, &expected) < 5e-6, "{}", apart(got, &expected));
                    } else if head < heads + kv {
                        let got = read(&k[cell * krec..][..krec], ktype, kv, hd, head - heads);
                        check_stored(&got, &expected, ktype);
                    } else {
                        let got = read(&v[cell * vrec..][..vrec], vtype, kv, hd, head - heads - kv);
                        check_stored(&got, &expected, vtype);
                    }
                }
            }
            let untouched = (0..cells).filter(|&cell| !at.contains(&(cell as u32)));
            untouched.for_each(|cell| assert!(k[cell * krec..][..krec].iter().all(|&b| b == 0xEE)));
        }
    }
}

/// Cells of random K or V, written by the kernel that converts, which takes them from cells in another order.
pub(super) fn random_cells(
    runner: &dyn Runner,
    kind: usize,
    cells: usize,
    kv: usize,
    hd: usize,
    random: &mut Random,
) -> Vec<u8> {
    let numbers = random.units(cells * kv * hd);
    let backwards = numbers.chunks_exact(kv * hd).rev().flatten();
    let full: Vec<u8> = backwards.flat_map(|x| x.to_le_bytes()).collect();
    let there: Vec<u32> = (0..cells as u32).collect();
    let here: Vec<u32> = (0..cells as u32).rev().collect();
    let (from, to) = (record(F32, kv, hd), record(kind, kv, hd));
    let mut out = vec![0_u8; cells * to];
    let args =
        vec![p(&full), m(&mut out), p(&here), p(&there), u(kv), u(hd), u(F32), u(kind), u(from), u(to)];
    runner.launch("kv_convert", [cells as u32, 1, 1], 32 * kv.min(8) as u32, args);
    for cell in 0..cells {
        for head in 0..kv {
            let expected: Vec<f64> =
                numbers[(cell * kv + head) * hd..][..hd].iter().map(|&x| f64::from(x)).collect();
            check_stored(&read(&out[cell * to..][..to], kind, kv, hd, head), &expected, kind);
        }
    }
    out
}

pub(super) fn a_shift_turns_k_as_its_new_positions_would(runner: &dyn Runner) {
    let mut random = Random(21);
    let (theta, factor, layers) = (1e4, 1.0, 2);
    for kind in [F32, F16, BF16, Q8, Q4] {
        for (kv, hd) in [(2, 32), (1, 256), (16, 128)] {
            let size = record(kind, kv, hd);
            let before: Vec<Vec<u8>> =
                (0..layers).map(|_| random_cells(runner, kind, 6, kv, hd, &mut random)).collect();
            let mut after = before.clone();
            let bufs = addresses(&mut after);
            let rope = rope_table(hd, theta, factor, 4096);
            let ropes = Arg::Addresses(vec![p(&rope), p(&rope)]);
            let (cells, deltas) = ([5_u32, 0, 3], [-1000_i32, 37, 0]);
            let args = vec![bufs, ropes, p(&cells), p(&deltas), u(kv), u(hd), u(kind), u(size)];
            runner.launch("rotate_k", [3, layers as u32, 1], 32 * kv.min(8) as u32, args);
            for (before, after) in before.iter().zip(&after) {
                for cell in 0..6_usize {
                    let (old, new) = (&before[cell * size..][..size], &after[cell * size..][..size]);
                    let delta = (0..3).find(|&i| cells[i] as usize == cell).map_or(0, |i| deltas[i]);
                    if delta == 0 {
                        assert_eq!(old, new);
                        continue;
                    }
                    for head in 0..kv {
                        let mut expected = read(old, kind, kv, hd, head);
                        rotate(&mut expected, f64::from(delta), theta, factor);
                        check_stored(&read(new, kind, kv, hd, head), &expected, kind);
                    }
                }
            }
        }
    }
}

/// The addresses of buffers that are changed.
fn addresses(buffers: &mut [Vec<u8>]) -> Arg<'_> {
    Arg::Addresses(buffers.iter_mut().map(|buffer| m(buffer)).collect())
}

/// Cuts pairs into tiles as the contract asks.
fn tiles(pairs: &[[u32; 2]]) -> Vec<u32> {
    let mut tiles = vec![0_u32];
    let mut start = 0;
    for (i, pair) in pairs.iter().enumerate() {
        if i - start == 128 || pairs[start..i].iter().any(|earlier| pair.contains(&earlier[1])) {
            tiles.push(i as u32);
            start = i;
        }
    }
    tiles.push(pairs.len() as u32);
    tiles
}

pub(super) fn copies_behave_as_if_one_after_another(runner: &dyn Runner) {
    let mut random = Random(22);
    for record in [16, 80, 272, 512] {
        for case in 0..4 {
            let cells = 500;
            let mut pairs: Vec<[u32; 2]> = Vec::new();
            for _ in 0..8 {
                let len = if case == 0 { 1 } else { 1 + random.below(300) };
                let to = random.below(cells - len - 1);
                let from = to + 1 + random.below((cells - len - to - 1).min(if case == 1 { 3 } else { 500 }));
                pairs.extend((0..len).map(|i| [(from + i) as u32, (to + i) as u32]));
            }
            let mut buffers: Vec<Vec<u8>> =
                (0..3).map(|_| (0..cells * record).map(|_| random.bits() as u8).collect()).collect();
            let mut expected = buffers.clone();
            for buffer in &mut expected {
                for &[from, to] in &pairs {
                    let from = from as usize * record;
                    buffer.copy_within(from..from + record, to as usize * record);
                }
            }
            let bufs = addresses(&mut buffers);
            let tiles = tiles(&pairs);
            let args = vec![bufs, u(record), p(&pairs), p(&tiles), u(tiles.len() - 1)];
            let grid = [record.div_ceil(128) as u32, 3, 1];
            runner.run(case as u32, "cells_copy", grid, 256, args);
            assert!(buffers == expected, "record {record}, case {case}");
        }
    }
}

pub(super) fn what_is_swapped_out_comes_back(runner: &dyn Runner) {
    let mut random = Random(23);
    let (record, count) = (1360, 20);
    let mut buffers: Vec<Vec<u8>> =
        (0..2).map(|_| (0..count * record).map(|_| random.bits() as u8).collect()).collect();
    let before = buffers.clone();
    let cells = [7_u32, 19, 0];
    let bufs = addresses(&mut buffers);
    let mut out = vec![0_u8; 2 * 3 * record];
    runner.launch("cells_gather", [3, 2, 1], 64, vec![bufs, u(record), p(&cells), u(3), m(&mut out)]);
    for (buffer, out) in before.iter().zip(out.chunks(3 * record)) {
        for (&cell, out) in cells.iter().zip(out.chunks(record)) {
            assert_eq!(&buffer[cell as usize * record..][..record], out);
        }
    }
    let elsewhere = [1_u32, 2, 3];
    let bufs = addresses(&mut buffers);
    runner.launch("cells_scatter", [3, 2, 1], 64, vec![bufs, u(record), p(&elsewhere), u(3), p(&out)]);
    for (buffer, old) in buffers.iter().zip(&before) {
        for (&from, &to) in cells.iter().zip(&elsewhere) {
            let (from, to) = (from as usize * record, to as usize * record);
            assert_eq!(&old[from..from + record], &buffer[to..to + record]);
        }
        assert_eq!(&old[4 * record..], &buffer[4 * record..]);
    }
}

pub(super) fn quantised_blocks_are_those_of_gguf(runner: &dyn Runner) {
    // Worked by hand: the largest by size is -4, so d = 0.5 and 4 would be 16, which is cut to 15.
    let mut numbers = [0.0_f32; 32];
    (numbers[0], numbers[1], numbers[20], numbers[31]) = (-4.0, 3.9, 1.0, -0.3);
    let full: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let zero = [0_u32];
    let mut out = vec![0_u8; 32];
    let args = vec![p(&full), m(&mut out), p(&zero), p(&zero), u(1), u(32), u(F32), u(Q4), u(128), u(32)];
    runner.launch("kv_convert", [1, 1, 1], 32, args);
    assert_eq!(out[..2], [0x80, 0x8F]);
    assert_eq!((out[4], out[15]), (0xA8, 0x78));
    assert_eq!(out[16..18], f16::from_f32(0.5).to_bits().to_le_bytes());
    let mut out = vec![0_u8; 48];
    let args = vec![p(&full), m(&mut out), p(&zero), p(&zero), u(1), u(32), u(F32), u(Q8), u(128), u(48)];
    runner.launch("kv_convert", [1, 1, 1], 32, args);
    assert_eq!(out[..2].iter().map(|&b| b as i8).collect::<Vec<_>>(), [-127, 124]);
    assert_eq!((out[20] as i8, out[31] as i8), (32, -10));
    assert_eq!(out[32..34], f16::from_f32(4.0 / 127.0).to_bits().to_le_bytes());
}
