//! Products of tiles of weights with inputs that are rounded to 8 bits, in whole numbers.
//!
//! Blocks of 32 numbers of an input become whole numbers of up to 127 and a scale. The dot product of two blocks is
//! exact; it is scaled, and added to those before it, block by block: the order depends on the length alone.

#![allow(clippy::needless_range_loop, reason = "a tile's inputs are indexed")]

use std::ops::Range;

use rayon::prelude::*;

use super::ahead::ask_for;
use super::lanes::{Isa, Kernel, Lanes};
use super::whole::{Portable, Whole};
use crate::tiles::{Bits, NUMBERS, ROWS, Tiles};

/// Tiles, one below the other, that a thread takes at once, with as many rows of the output.
const TASK: usize = 4;

/// Inputs that meet all rows of a task before the next do: their numbers stay in the second-level cache.
const GROUP: usize = 96;

/// How many tiles further on one input's memory is asked for.
const AHEAD: usize = 8;

/// Multiplies tiles by `n` inputs `[n, cols]`, rounded; `out` is `[rows, n]`.
pub(crate) fn rounded_product(isa: Isa, tiles: &Tiles, cols: usize, x: &[f32], n: usize, out: &mut [f32]) {
    match tiles.bits {
        Bits::Eight => on::<{ Bits::Eight.tile() }>(isa, tiles, cols, x, n, out),
        Bits::Four => on::<{ Bits::Four.tile() }>(isa, tiles, cols, x, n, out),
    }
}

/// Chooses among a unit's ways to multiply bytes.
fn on<const B: usize>(isa: Isa, tiles: &Tiles, cols: usize, x: &[f32], n: usize, out: &mut [f32])
where
    [u8; B]: Tile,
{
    match isa {
        Isa::Portable => spread::<_, B>(isa, Portable, tiles, cols, x, n, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(avx2) => spread::<_, B>(isa, avx2, tiles, cols, x, n, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(avx512) => match super::whole::Vnni::try_new() {
            Some(vnni) => spread::<_, B>(isa, vnni, tiles, cols, x, n, out),
            None => spread::<_, B>(isa, *avx512, tiles, cols, x, n, out),
        },
    }
}

/// Rounds the inputs, and spreads rows over threads.
fn spread<W: Whole, const B: usize>(
    isa: Isa,
    whole: W,
    tiles: &Tiles,
    cols: usize,
    x: &[f32],
    n: usize,
    out: &mut [f32],
) where
    [u8; B]: Tile,
{
    let len = cols / NUMBERS;
    let mut inputs = vec![Rounded::default(); n * len];
    let too_large = <[u8; B]>::too_large::<W>();
    let blocks = inputs.par_chunks_mut(len).zip(x.par_chunks(cols));
    blocks.for_each(|(out, x)| isa.run(Round { x: x.as_chunks().0, too_large, out }));
    let tiles = tiles.bytes.as_chunks::<B>().0;
    // One input is done so soon that threads end together only if they take little at once.
    let task = if n == 1 { 1 } else { TASK };
    out.par_chunks_mut(task * ROWS * n).zip(tiles.par_chunks(task * len)).for_each(|(out, tiles)| {
        whole.vectorize(On(whole, Task { tiles, inputs: &inputs, len, n, out }));
    });
}

/// Adding it rounds to a whole number, to the even one of two equally near, which then stands in the lowest byte.
/// Of what is no number that byte is 0.
const ROUND: f32 = 12_582_912.0;

/// A block of an input.
#[derive(Clone, Copy, Default)]
struct Rounded {
    /// What one is worth.
    scale: f32,
    /// What dot products with it begin with.
    first: i32,
    /// Whole numbers of 8 bits, four at a time.
    fours: [i32; NUMBERS / 4],
}

/// Rounds an input.
struct Round<'a> {
    x: &'a [[f32; NUMBERS]],
    too_large: i32,
    out: &'a mut [Rounded],
}

impl Kernel for Round<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for (out, x) in self.out.iter_mut().zip(self.x) {
            *out = Rounded::of(x, self.too_large);
        }
    }
}

impl Rounded {
    /// Rounds to the nearest: the largest magnitude becomes 127. A block with a number that is none, or infinite,
    /// makes its products none.
    #[inline(always)]
    fn of(x: &[f32; NUMBERS], too_large: i32) -> Rounded {
        let most = x.iter().fold(0.0_f32, |most, x| if x.abs() > most { x.abs() } else { most });
        let odd = x.iter().fold(0.0, |odd, x| odd + x * 0.0);
        let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
        let mut numbers = [0; NUMBERS];
        for i in 0..NUMBERS {
            numbers[i] = i32::from((x[i] * inverse + ROUND).to_bits() as i8);
        }
        let sum: i32 = numbers.iter().sum();
        let mut fours = [0; NUMBERS / 4];
        for (four, numbers) in fours.iter_mut().zip(numbers.as_chunks().0) {
            let [a, b, c, d]: [i32; 4] = *numbers;
            *four = i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]);
        }
        Rounded { scale: most / 127.0 + odd, first: -too_large * sum, fours }
    }
}

/// The bytes of a tile.
trait Tile: Copy + Send + Sync {
    /// By how much its numbers are too large for a unit.
    fn too_large<W: Whole>() -> i32;
    /// The numbers of each row.
    fn fours<W: Whole>(&self, whole: W) -> [W::Fours; NUMBERS / 4];
}

impl Tile for [u8; Bits::Eight.tile()] {
    fn too_large<W: Whole>() -> i32 {
        W::TOO_LARGE
    }

    #[inline(always)]
    fn fours<W: Whole>(&self, whole: W) -> [W::Fours; NUMBERS / 4] {
        let bytes = self[2 * ROWS..].as_chunks().0;
        let mut fours = [whole.bytes(&bytes[0]); NUMBERS / 4];
        for i in 1..NUMBERS / 4 {
            fours[i] = whole.bytes(&bytes[i]);
        }
        fours
    }
}

impl Tile for [u8; Bits::Four.tile()] {
    fn too_large<W: Whole>() -> i32 {
        8
    }

    #[inline(always)]
    fn fours<W: Whole>(&self, whole: W) -> [W::Fours; NUMBERS / 4] {
        let bytes = self[2 * ROWS..].as_chunks().0;
        let mut fours = [whole.nibbles(&bytes[0])[0]; NUMBERS / 4];
        for i in 0..NUMBERS / 8 {
            [fours[i], fours[i + NUMBERS / 8]] = whole.nibbles(&bytes[i]);
        }
        fours
    }
}

/// Some rows of tiles by all inputs.
struct Task<'a, const B: usize> {
    /// `[row of tiles, len]`.
    tiles: &'a [[u8; B]],
    /// `[n, len]`.
    inputs: &'a [Rounded],
    /// Blocks of a row.
    len: usize,
    n: usize,
    /// `[rows, n]`.
    out: &'a mut [f32],
}

/// A task, to be run on a unit.
struct On<'a, W, const B: usize>(W, Task<'a, B>);

impl<W: Whole, const B: usize> pulp::NullaryFnOnce for On<'_, W, B>
where
    [u8; B]: Tile,
{
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.1.run(self.0);
    }
}

impl<const B: usize> Task<'_, B>
where
    [u8; B]: Tile,
{
    #[inline(always)]
    fn run<W: Whole>(mut self, whole: W) {
        for first in (0..self.n).step_by(GROUP) {
            for row in 0..self.out.len() / self.n / ROWS {
                self.inputs(whole, row, first..self.n.min(first + GROUP));
            }
        }
    }

    /// A row of tiles by some inputs.
    #[inline(always)]
    fn inputs<W: Whole>(&mut self, whole: W, row: usize, inputs: Range<usize>) {
        let mut t = inputs.start;
        while t < inputs.end {
            t += match inputs.end - t {
                1 => self.few::<W, 1>(whole, row, t),
                2 | 3 => self.few::<W, 2>(whole, row, t),
                4..8 => self.few::<W, 4>(whole, row, t),
                _ => self.few::<W, 8>(whole, row, t),
            };
        }
    }

    /// A row of tiles by `T` inputs. Returns `T`.
    #[inline(always)]
    fn few<W: Whole, const T: usize>(&mut self, whole: W, row: usize, first: usize) -> usize {
        let len = self.len;
        let tiles = &self.tiles[row * len..][..len];
        let mut inputs: [&[Rounded]; T] = [&[]; T];
        for t in 0..T {
            inputs[t] = &self.inputs[(first + t) * len..][..len];
        }
        let mut sums = [whole.splat(0.0); T];
        for b in 0..len {
            if T == 1
                && let Some(ahead) = self.tiles.get(row * len + b + AHEAD)
            {
                ask_for(ahead);
            }
            let scales = tiles[b].first_chunk().expect("a tile begins with its scales");
            let (fours, scales) = (tiles[b].fours(whole), whole.scales(scales));
            for t in 0..T {
                let Rounded { scale, first, fours: x } = &inputs[t][b];
                let mut dots = whole.begin(*first);
                for i in 0..NUMBERS / 4 {
                    dots = whole.dot(dots, fours[i], x[i]);
                }
                sums[t] = whole.add(sums[t], dots, scales, *scale);
            }
        }
        for t in 0..T {
            for (i, sum) in whole.store(sums[t]).into_iter().enumerate() {
                self.out[(row * ROWS + i) * self.n + first + t] = sum;
            }
        }
        T
    }
}
