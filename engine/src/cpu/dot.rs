//! The dot product that everything is made of, in tiles of rows by inputs.
//!
//! One dot product adds `w[i] * x[i]` to lane `i % 8`, i ascending, each time fused; then the lanes
//! are added, halves on halves. A row that does not fill its last block of 32 is read as if zeros
//! followed. That order depends on the length alone: not on the tile, the batch or the thread.

use super::ahead::ask_for;
use super::format::{BLOCK, Format, eight};
use super::lanes::{LANES, Lanes};

/// The lanes of unfinished dot products of pairs of rows, `[pair][input]`.
pub(crate) type PairSums<L, const P: usize, const T: usize> = [[<L as Lanes>::Pair; T]; P];

/// Nothing added yet.
#[inline(always)]
pub(crate) fn zero_pairs<L: Lanes, const P: usize, const T: usize>(lanes: L) -> PairSums<L, P, T> {
    let zero = lanes.splat(0.0);
    [[lanes.beside(zero, zero); T]; P]
}

/// Dot products of `P` pairs of rows with `T` inputs, all of whole blocks and equally long. Meanwhile something
/// is read of every block of `ahead`, in the order in which they lie, one for every block of the rows: memory
/// then works on what comes next, as it does not while short rows are read side by side.
#[inline(always)]
pub(crate) fn tile_pairs<L: Lanes, F: Format, const P: usize, const T: usize>(
    lanes: L,
    rows: [[&[F::Unit]; 2]; P],
    inputs: [&[f32]; T],
    ahead: &[F::Block],
) -> PairSums<L, P, T> {
    let blocks = inputs[0].len() / F::BLOCK;
    let mut weights: [[&[F::Block]; 2]; P] = [[&[]; 2]; P];
    for p in 0..P {
        for r in 0..2 {
            weights[p][r] = &F::blocks(rows[p][r])[..blocks];
        }
    }
    let mut numbers: [&[[f32; BLOCK]]; T] = [&[]; T];
    for t in 0..T {
        numbers[t] = &inputs[t].as_chunks().0[..blocks * (F::BLOCK / BLOCK)];
    }
    let mut sums = zero_pairs::<L, P, T>(lanes);
    for b in 0..blocks {
        if let Some(ahead) = ahead.get(b * 2 * P..(b + 1) * 2 * P) {
            ask_for(ahead);
        }
        let mut scales = [[lanes.splat(1.0); 2]; P];
        let mut both = [lanes.beside(scales[0][0], scales[0][1]); P];
        for p in 0..P {
            for r in 0..2 {
                scales[p][r] = F::scale(lanes, &weights[p][r][b]);
            }
            both[p] = lanes.beside(scales[p][0], scales[p][1]);
        }
        for s in 0..F::BLOCK / LANES {
            let mut x = [both[0]; T];
            for t in 0..T {
                let eight = lanes.load(eight(&numbers[t][b * (F::BLOCK / BLOCK) + s / 4], s % 4));
                x[t] = lanes.beside(eight, eight);
            }
            for p in 0..P {
                let w = F::pair(lanes, [&weights[p][0][b], &weights[p][1][b]], scales[p], both[p], s);
                for t in 0..T {
                    sums[p][t] = lanes.fma_pair(w, x[t], sums[p][t]);
                }
            }
        }
    }
    sums
}

/// Goes on with the dot products of `P` pairs of decoded rows, `[vector][row]`, with `T` inputs, all equally long.
#[inline(always)]
pub(crate) fn tile_decoded<L: Lanes, const P: usize, const T: usize>(
    lanes: L,
    rows: [&[[[f32; LANES]; 2]]; P],
    inputs: [&[f32]; T],
    sums: &mut PairSums<L, P, T>,
) {
    let vectors = inputs[0].len() / LANES;
    let mut weights: [&[[[f32; LANES]; 2]]; P] = [&[]; P];
    for p in 0..P {
        weights[p] = &rows[p][..vectors];
    }
    let mut numbers: [&[[f32; LANES]]; T] = [&[]; T];
    for t in 0..T {
        numbers[t] = &inputs[t].as_chunks().0[..vectors];
    }
    let mut held = *sums;
    for s in 0..vectors {
        let mut w = [held[0][0]; P];
        for p in 0..P {
            w[p] = lanes.load_pair(&weights[p][s]);
        }
        for t in 0..T {
            let eight = lanes.load(&numbers[t][s]);
            let x = lanes.beside(eight, eight);
            for p in 0..P {
                held[p][t] = lanes.fma_pair(w[p], x, held[p][t]);
            }
        }
    }
    *sums = held;
}

/// The lanes of unfinished dot products, `[row][input]`.
pub(crate) type Sums<L, const R: usize, const T: usize> = [[<L as Lanes>::V; T]; R];

/// Nothing added yet.
#[inline(always)]
pub(crate) fn zeros<L: Lanes, const R: usize, const T: usize>(lanes: L) -> Sums<L, R, T> {
    [[lanes.splat(0.0); T]; R]
}

/// Goes on with the dot products of `R` rows with `T` inputs, all equally long.
#[inline(always)]
pub(crate) fn tile<L: Lanes, F: Format, const R: usize, const T: usize>(
    lanes: L,
    rows: [&[F::Unit]; R],
    inputs: [&[f32]; T],
    sums: &mut Sums<L, R, T>,
) {
    let len = inputs[0].len();
    let blocks = len / F::BLOCK;
    let mut weights: [&[F::Block]; R] = [&[]; R];
    for r in 0..R {
        weights[r] = &F::blocks(rows[r])[..blocks];
    }
    let mut numbers: [&[[f32; BLOCK]]; T] = [&[]; T];
    for t in 0..T {
        numbers[t] = &inputs[t].as_chunks().0[..blocks * (F::BLOCK / BLOCK)];
    }
    let mut lane_sums = *sums;
    for b in 0..blocks {
        let mut scales = [lanes.splat(1.0); R];
        for r in 0..R {
            scales[r] = F::scale(lanes, &weights[r][b]);
        }
        for s in 0..F::BLOCK / LANES {
            let mut x = [lanes.splat(0.0); T];
            for t in 0..T {
                x[t] = lanes.load(eight(&numbers[t][b * (F::BLOCK / BLOCK) + s / 4], s % 4));
            }
            for r in 0..R {
                let w = F::vector(lanes, &weights[r][b], scales[r], s);
                for t in 0..T {
                    lane_sums[r][t] = lanes.fma(w, x[t], lane_sums[r][t]);
                }
            }
        }
    }
    *sums = lane_sums;
    if !len.is_multiple_of(BLOCK) {
        rest::<L, F, R, T>(lanes, rows, inputs, sums);
    }
}

/// The rest of [`tile`], for lengths that are no multiple of a block.
#[inline(always)]
fn rest<L: Lanes, F: Format, const R: usize, const T: usize>(
    lanes: L,
    rows: [&[F::Unit]; R],
    inputs: [&[f32]; T],
    sums: &mut Sums<L, R, T>,
) {
    for t in 0..T {
        let mut x = [0.0; BLOCK];
        let rest = inputs[t].as_chunks::<BLOCK>().1;
        x[..rest.len()].copy_from_slice(rest);
        for r in 0..R {
            let mut w = [0.0; BLOCK];
            F::rest(rows[r], &mut w);
            for s in 0..BLOCK / LANES {
                let (w, x) = (lanes.load(eight(&w, s)), lanes.load(eight(&x, s)));
                sums[r][t] = lanes.fma(w, x, sums[r][t]);
            }
        }
    }
}
