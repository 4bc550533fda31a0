//! Matrix products: weights in any format by the inputs of a batch.
//!
//! A few inputs are multiplied straight from the packed weights. For more, pieces of many rows
//! are decoded once into the second-level cache, and a few inputs at a time, which fit into the
//! first, meet all of them. Rows are spread over threads.

#![allow(clippy::needless_range_loop, reason = "tiles are indexed by row and input alike")]

use std::cell::RefCell;
use std::ops::Range;

use half::slice::HalfFloatSliceExt as _;
use rayon::prelude::*;

use super::ahead::ask_for;
use super::dot::{tile, tile_decoded, tile_pairs, zero_pairs, zeros};
use super::format::{Bf16, F16, F32, Format, Q4_0, Q6K, Q8_0, decode};
use super::lanes::{Isa, Kernel, LANES, Lanes, sum, sum_of};
use super::rounded::rounded_product;
use crate::weights::{Data, Matrix};

/// Pairs of rows of a tile.
const PAIRS: usize = 2;
/// Inputs of a tile of units with sixteen registers, which hold the sums of four rows. With thirty-two, a tile has
/// eight inputs.
const INPUTS: usize = 3;
/// Rows that a thread takes at once.
const TASK: usize = 64;
/// Numbers of a row that are decoded at once.
const PIECE: usize = 512;
/// Inputs whose pieces stay in the first-level cache.
const GROUP: usize = 16;
/// Inputs that are served by one decoding.
const MANY: usize = 96;

/// Most bytes of a tile's rows that are asked for ahead: what the second-level cache has room for.
const AHEAD: usize = 128 << 10;

/// How many rows further on one input's memory is asked for.
const AHEAD_OF_ONE: usize = 4;

/// Calls a generic function with a matrix's format and units; tiles have none.
macro_rules! with_units {
    ($data:expr, $call:ident ( $($argument:expr),* ), $tiles:ident => $of_tiles:expr) => {
        match $data {
            Data::F32(numbers) => $call::<F32>(numbers, $($argument),*),
            Data::Bf16(numbers) => $call::<Bf16>(numbers.reinterpret_cast(), $($argument),*),
            Data::F16(numbers) => $call::<F16>(numbers.reinterpret_cast(), $($argument),*),
            Data::Q8_0(bytes) => $call::<Q8_0>(bytes.as_chunks().0, $($argument),*),
            Data::Q4_0(bytes) => $call::<Q4_0>(bytes.as_chunks().0, $($argument),*),
            Data::Q6K(bytes) => $call::<Q6K>(bytes.as_chunks().0, $($argument),*),
            Data::Tiles($tiles) => $of_tiles,
        }
    };
}

/// Multiplies a matrix by `n` inputs `[n, cols]`; `out` is `[rows, n]`.
pub(crate) fn product(isa: Isa, matrix: &Matrix, x: &[f32], n: usize, out: &mut [f32]) {
    fn run<F: Format>(units: &[F::Unit], isa: Isa, cols: usize, x: &[f32], n: usize, out: &mut [f32]) {
        out.par_chunks_mut(TASK * n).enumerate().for_each(|(task, out)| {
            let first = task * TASK;
            if n > few::<F>() && cols.is_multiple_of(F::BLOCK) {
                let mut buffers = BUFFERS.take();
                let Buffers { pieces, sums } = &mut buffers;
                isa.run(Decoded::<F> { units, first, cols, x, n, out, pieces, sums });
                BUFFERS.set(buffers);
            } else {
                isa.run(Packed::<F> { units, first, cols, x, n, out });
            }
        });
    }
    if n > 0 {
        with_units!(
            &matrix.data,
            run(isa, matrix.cols, x, n, out),
            tiles => rounded_product(isa, tiles, matrix.cols, x, n, out)
        );
    }
}

/// Decodes a row of a matrix.
pub(crate) fn decode_row(isa: Isa, matrix: &Matrix, row: usize, out: &mut [f32]) {
    fn run<F: Format>(units: &[F::Unit], isa: Isa, row: usize, out: &mut [f32]) {
        let len = out.len() / F::NUMBERS;
        isa.run(Decode::<F> { row: &units[row * len..(row + 1) * len], out });
    }
    with_units!(&matrix.data, run(isa, row, out), tiles => tiles.decode_row(row, out));
}

/// Decoding as a kernel.
pub(crate) struct Decode<'a, F: Format> {
    pub row: &'a [F::Unit],
    pub out: &'a mut [f32],
}

impl<F: Format> Kernel for Decode<'_, F> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        decode::<L, F>(lanes, self.row, self.out);
    }
}

/// Most inputs that are multiplied straight from the packed weights, which every tile decodes again.
const fn few<F: Format>() -> usize {
    if F::NUMBERS == 1 { 16 } else { 3 }
}

/// Some rows of a matrix by a few inputs, as the rows lie.
struct Packed<'a, F: Format> {
    /// The whole matrix.
    units: &'a [F::Unit],
    /// First row.
    first: usize,
    cols: usize,
    /// `[n, cols]`.
    x: &'a [f32],
    n: usize,
    /// `[rows, n]`.
    out: &'a mut [f32],
}

impl<F: Format> Kernel for Packed<'_, F> {
    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        // One input is multiplied as fast as memory gives weights, and it gives them fastest from few places at once.
        let one = self.n == 1 && F::NUMBERS == 1;
        let side_by_side = if one { 2 } else { 2 * PAIRS };
        let rows = self.out.len() / self.n;
        let whole = if self.cols.is_multiple_of(F::BLOCK) { rows / side_by_side * side_by_side } else { 0 };
        for row in (0..whole).step_by(side_by_side) {
            if one {
                let ahead = self.ahead(row + AHEAD_OF_ONE, 2);
                self.tile::<L, 1, 1>(lanes, row, 0, ahead);
            } else {
                self.pairs::<L>(lanes, row);
            }
        }
        for row in whole..rows {
            self.row::<L>(lanes, row);
        }
    }
}

impl<'a, F: Format> Packed<'a, F> {
    #[inline(always)]
    fn units_of(&self, row: usize) -> &[F::Unit] {
        let len = self.cols / F::NUMBERS;
        &self.units[(self.first + row) * len..][..len]
    }

    #[inline(always)]
    fn input(&self, t: usize) -> &[f32] {
        &self.x[t * self.cols..(t + 1) * self.cols]
    }

    /// What is asked of memory meanwhile: some rows further on, if there is room for them.
    #[inline(always)]
    fn ahead(&self, row: usize, rows: usize) -> &'a [F::Block] {
        let len = self.cols / F::NUMBERS;
        let next = (self.first + row) * len;
        let fits = rows * len * size_of::<F::Unit>() <= AHEAD;
        F::blocks(self.units.get(next..next + rows * len).filter(|_| fits).unwrap_or_default())
    }

    /// One row by all inputs.
    #[inline(always)]
    fn row<L: Lanes>(&mut self, lanes: L, row: usize) {
        for t in 0..self.n {
            let mut sums = zeros::<L, 1, 1>(lanes);
            tile::<L, F, 1, 1>(lanes, [self.units_of(row)], [self.input(t)], &mut sums);
            self.out[row * self.n + t] = sum(lanes, sums[0][0]);
        }
    }

    /// Two pairs of rows by all inputs.
    #[inline(always)]
    fn pairs<L: Lanes>(&mut self, lanes: L, row: usize) {
        let mut ahead = self.ahead(row + 2 * PAIRS, 2 * PAIRS);
        let mut t = 0;
        while t < self.n {
            t += match self.n - t {
                1 => self.tile::<L, PAIRS, 1>(lanes, row, t, ahead),
                2 => self.tile::<L, PAIRS, 2>(lanes, row, t, ahead),
                8.. if L::PAIR_INPUTS >= 8 => self.tile::<L, PAIRS, 8>(lanes, row, t, ahead),
                4.. if L::PAIR_INPUTS >= 4 => self.tile::<L, PAIRS, 4>(lanes, row, t, ahead),
                _ => self.tile::<L, PAIRS, INPUTS>(lanes, row, t, ahead),
            };
            ahead = &[];
        }
    }

    /// `P` pairs of rows by `T` inputs. Returns `T`.
    #[inline(always)]
    fn tile<L: Lanes, const P: usize, const T: usize>(
        &mut self,
        lanes: L,
        row: usize,
        first: usize,
        ahead: &[F::Block],
    ) -> usize {
        let mut rows: [[&[F::Unit]; 2]; P] = [[&[]; 2]; P];
        for p in 0..P {
            rows[p] = [self.units_of(row + 2 * p), self.units_of(row + 2 * p + 1)];
        }
        let mut inputs: [&[f32]; T] = [&[]; T];
        for t in 0..T {
            inputs[t] = self.input(first + t);
        }
        let sums = tile_pairs::<L, F, P, T>(lanes, rows, inputs, ahead);
        for p in 0..P {
            for t in 0..T {
                let lanes_of = lanes.apart(sums[p][t]);
                for r in 0..2 {
                    self.out[(row + 2 * p + r) * self.n + first + t] = sum_of(lanes_of[r]);
                }
            }
        }
        T
    }
}

/// What a thread needs to multiply decoded rows; reused.
#[derive(Default)]
struct Buffers {
    /// Decoded pieces of rows, `[pair of rows]`.
    pieces: Vec<Piece>,
    /// The lanes of unfinished sums, `[pair of rows][input]`.
    sums: Vec<Unfinished>,
}

/// Decoded pieces of a pair of rows, `[vector][row]`; no vector of them lies on two cache lines.
#[derive(Clone)]
#[repr(align(64))]
struct Piece([[[f32; LANES]; 2]; PIECE / LANES]);

/// The lanes of unfinished sums of a pair of rows, `[input][row]`.
#[derive(Clone)]
#[repr(align(64))]
struct Unfinished([[[f32; LANES]; 2]; MANY]);

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// Some rows of a matrix, of whole blocks, by many inputs: pieces of the rows are decoded once for all of them.
struct Decoded<'a, F: Format> {
    /// The whole matrix.
    units: &'a [F::Unit],
    /// First row.
    first: usize,
    cols: usize,
    /// `[n, cols]`.
    x: &'a [f32],
    n: usize,
    /// `[rows, n]`.
    out: &'a mut [f32],
    pieces: &'a mut Vec<Piece>,
    sums: &'a mut Vec<Unfinished>,
}

impl<F: Format> Kernel for Decoded<'_, F> {
    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        self.pieces.resize(TASK / 2, Piece([[[0.0; LANES]; 2]; PIECE / LANES]));
        self.sums.resize(TASK / 2, Unfinished([[[0.0; LANES]; 2]; MANY]));
        for first in (0..self.n).step_by(MANY) {
            self.inputs(lanes, first, MANY.min(self.n - first));
        }
    }
}

impl<F: Format> Decoded<'_, F> {
    /// Asks memory for some rows' pieces from a column on.
    #[inline(always)]
    fn ask_for_pieces(&self, rows: Range<usize>, from: usize) {
        if from < self.cols {
            let units = from / F::NUMBERS..(from + PIECE).min(self.cols) / F::NUMBERS;
            let row_len = self.cols / F::NUMBERS;
            for row in rows {
                ask_for(&self.units[(self.first + row) * row_len..][units.clone()]);
            }
        }
    }

    /// Decodes the pieces of all rows from a column on.
    #[inline(always)]
    fn decode<L: Lanes>(&mut self, lanes: L, rows: usize, from: usize, len: usize) {
        let row_len = self.cols / F::NUMBERS;
        for row in 0..rows {
            let units = &self.units[(self.first + row) * row_len + from / F::NUMBERS..][..len / F::NUMBERS];
            let piece = &mut self.pieces[row / 2].0[..len / LANES];
            let blocks = F::blocks(units).iter().zip(piece.chunks_exact_mut(F::BLOCK / LANES));
            for (block, out) in blocks {
                let scale = F::scale(lanes, block);
                for (s, out) in out.iter_mut().enumerate() {
                    out[row % 2] = lanes.store(F::vector(lanes, block, scale, s));
                }
            }
        }
    }

    /// All rows by `count` inputs from `first` on.
    #[inline(always)]
    fn inputs<L: Lanes>(&mut self, lanes: L, first: usize, count: usize) {
        let rows = self.out.len() / self.n;
        let pairs = rows.div_ceil(2);
        for from in (0..self.cols).step_by(PIECE) {
            let len = PIECE.min(self.cols - from);
            self.decode(lanes, rows, from, len);
            for group in (0..count).step_by(GROUP) {
                let end = count.min(group + GROUP);
                for pair in (0..pairs).step_by(PAIRS) {
                    if group == 0 {
                        self.ask_for_pieces(2 * pair..(2 * (pair + PAIRS)).min(rows), from + PIECE);
                    }
                    let mut t = group;
                    while t < end {
                        let inputs = Inputs { x: self.x, cols: self.cols, first: first + t, from, len };
                        t += match end - t {
                            1 => inputs.add::<L, 1>(lanes, self.pieces, self.sums, pair, t),
                            2 => inputs.add::<L, 2>(lanes, self.pieces, self.sums, pair, t),
                            8.. if L::PAIR_INPUTS >= 8 => {
                                inputs.add::<L, 8>(lanes, self.pieces, self.sums, pair, t)
                            }
                            4.. if L::PAIR_INPUTS >= 4 => {
                                inputs.add::<L, 4>(lanes, self.pieces, self.sums, pair, t)
                            }
                            _ => inputs.add::<L, INPUTS>(lanes, self.pieces, self.sums, pair, t),
                        };
                    }
                }
            }
        }
        for row in 0..rows {
            for t in 0..count {
                self.out[row * self.n + first + t] = sum_of(self.sums[row / 2].0[t][row % 2]);
            }
        }
    }
}

/// Pieces of neighbouring inputs.
struct Inputs<'a> {
    x: &'a [f32],
    cols: usize,
    first: usize,
    from: usize,
    len: usize,
}

impl Inputs<'_> {
    /// Adds what decoded pieces of two pairs of rows give with `T` inputs to their sums, which the first pieces
    /// begin. Returns `T`.
    #[inline(always)]
    fn add<L: Lanes, const T: usize>(
        &self,
        lanes: L,
        pieces: &[Piece],
        sums: &mut [Unfinished],
        pair: usize,
        at: usize,
    ) -> usize {
        let mut rows: [&[[[f32; LANES]; 2]]; PAIRS] = [&[]; PAIRS];
        for p in 0..PAIRS {
            rows[p] = &pieces[pair + p].0[..self.len / LANES];
        }
        let mut inputs: [&[f32]; T] = [&[]; T];
        for t in 0..T {
            inputs[t] = &self.x[(self.first + t) * self.cols + self.from..][..self.len];
        }
        let mut held = zero_pairs::<L, PAIRS, T>(lanes);
        if self.from > 0 {
            for p in 0..PAIRS {
                for t in 0..T {
                    held[p][t] = lanes.load_pair(&sums[pair + p].0[at + t]);
                }
            }
        }
        tile_decoded::<L, PAIRS, T>(lanes, rows, inputs, &mut held);
        for p in 0..PAIRS {
            for t in 0..T {
                sums[pair + p].0[at + t] = lanes.apart(held[p][t]);
            }
        }
        T
    }
}
