//! How numbers lie in memory: decoding for weights, K and V, encoding for K and V.
//!
//! A decoded number is the same whoever decodes it, so a product with packed weights has the bits
//! of the product with the same weights in f32. Block formats are GGUF's (ggml-quants.c, b4000).

use half::{bf16, f16};

use super::lanes::{LANES, Lanes, all, f16_to_f32, less, nibbles};

/// Numbers that kernels take at once: four vectors, and a block of the small GGUF formats.
pub(crate) const BLOCK: usize = 4 * LANES;

/// A way to store numbers.
pub(crate) trait Format: Send + Sync + 'static {
    /// What memory is made of.
    type Unit: Copy + Send + Sync;
    /// What is decoded by its own scale, or [`BLOCK`] single numbers.
    type Block;
    /// Numbers in a unit.
    const NUMBERS: usize;
    /// Numbers in a block.
    const BLOCK: usize = if Self::NUMBERS > BLOCK { Self::NUMBERS } else { BLOCK };

    /// The whole blocks of a row.
    fn blocks(row: &[Self::Unit]) -> &[Self::Block];

    /// What all numbers of a block are multiplied by; anything where there is no such number.
    #[inline(always)]
    fn scale<L: Lanes>(lanes: L, block: &Self::Block) -> L::V {
        let _ = block;
        lanes.splat(1.0)
    }

    /// Vector `s` of a block, whose scale is at hand.
    fn vector<L: Lanes>(lanes: L, block: &Self::Block, scale: L::V, s: usize) -> L::V;

    /// Vector `s` of two rows' blocks, whose scales are at hand, and stand side by side in `both`.
    #[inline(always)]
    fn pair<L: Lanes>(
        lanes: L,
        blocks: [&Self::Block; 2],
        scales: [L::V; 2],
        both: L::Pair,
        s: usize,
    ) -> L::Pair {
        let _ = both;
        let [a, b] = [0, 1].map(|row: usize| Self::vector(lanes, blocks[row], scales[row], s));
        lanes.beside(a, b)
    }

    /// Decodes what follows the last whole block of a row into the front of `out`. Only formats of
    /// single numbers have such a rest.
    fn rest(row: &[Self::Unit], out: &mut [f32; BLOCK]);
}

/// Vector `s` of 32 units.
#[inline(always)]
pub(crate) fn eight<T>(block: &[T; BLOCK], s: usize) -> &[T; LANES] {
    &block.as_chunks::<LANES>().0[s]
}

/// 32-bit floats.
pub(crate) struct F32;

impl Format for F32 {
    type Unit = f32;
    type Block = [f32; BLOCK];
    const NUMBERS: usize = 1;

    #[inline(always)]
    fn blocks(row: &[f32]) -> &[[f32; BLOCK]] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn vector<L: Lanes>(lanes: L, block: &[f32; BLOCK], _: L::V, s: usize) -> L::V {
        lanes.load(eight(block, s))
    }

    fn rest(row: &[f32], out: &mut [f32; BLOCK]) {
        let rest = row.as_chunks::<BLOCK>().1;
        out[..rest.len()].copy_from_slice(rest);
    }
}

/// 16-bit brain floats, as bits.
pub(crate) struct Bf16;

impl Format for Bf16 {
    type Unit = u16;
    type Block = [u16; BLOCK];
    const NUMBERS: usize = 1;

    #[inline(always)]
    fn blocks(row: &[u16]) -> &[[u16; BLOCK]] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn vector<L: Lanes>(lanes: L, block: &[u16; BLOCK], _: L::V, s: usize) -> L::V {
        lanes.bf16(eight(block, s))
    }

    #[inline(always)]
    fn pair<L: Lanes>(lanes: L, [a, b]: [&[u16; BLOCK]; 2], _: [L::V; 2], _: L::Pair, s: usize) -> L::Pair {
        lanes.bf16_pair(eight(a, s), eight(b, s))
    }

    fn rest(row: &[u16], out: &mut [f32; BLOCK]) {
        for (out, &x) in out.iter_mut().zip(row.as_chunks::<BLOCK>().1) {
            *out = f32::from_bits(u32::from(x) << 16);
        }
    }
}

/// 16-bit floats, as bits.
pub(crate) struct F16;

impl Format for F16 {
    type Unit = u16;
    type Block = [u16; BLOCK];
    const NUMBERS: usize = 1;

    #[inline(always)]
    fn blocks(row: &[u16]) -> &[[u16; BLOCK]] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn vector<L: Lanes>(lanes: L, block: &[u16; BLOCK], _: L::V, s: usize) -> L::V {
        lanes.f16(eight(block, s))
    }

    fn rest(row: &[u16], out: &mut [f32; BLOCK]) {
        for (out, &x) in out.iter_mut().zip(row.as_chunks::<BLOCK>().1) {
            *out = f16_to_f32(x);
        }
    }
}

/// A scale in f16.
#[inline(always)]
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Eight bytes, the first lowest.
#[inline(always)]
fn eight_at(bytes: &[u8], at: usize) -> u64 {
    let [a, b, c, d, e, f, g, h] = *bytes[at..].first_chunk().expect("a block has its bytes");
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// 32 numbers in 34 bytes: a scale in f16, then whole numbers of 8 bits.
pub(crate) struct Q8_0;

/// A block of [`Q8_0`].
pub(crate) type BlockQ8 = [u8; 34];

impl Format for Q8_0 {
    type Unit = BlockQ8;
    type Block = BlockQ8;
    const NUMBERS: usize = BLOCK;

    #[inline(always)]
    fn blocks(row: &[BlockQ8]) -> &[BlockQ8] {
        row
    }

    #[inline(always)]
    fn scale<L: Lanes>(lanes: L, block: &BlockQ8) -> L::V {
        lanes.splat(half_at(block, 0))
    }

    #[inline(always)]
    fn vector<L: Lanes>(lanes: L, block: &BlockQ8, scale: L::V, s: usize) -> L::V {
        lanes.mul(lanes.i8(eight_at(block, 2 + s * LANES)), scale)
    }

    #[inline(always)]
    fn pair<L: Lanes>(lanes: L, [a, b]: [&BlockQ8; 2], _: [L::V; 2], both: L::Pair, s: usize) -> L::Pair {
        let at = 2 + s * LANES;
        lanes.mul_pair(lanes.i8_pair(eight_at(a, at), eight_at(b, at)), both)
    }

    fn rest(_: &[BlockQ8], _: &mut [f32; BLOCK]) {}
}

/// 32 numbers in 18 bytes: a scale in f16, then whole numbers of 4 bits less 8, those of the first
/// half in the low bits.
pub(crate) struct Q4_0;

/// A block of [`Q4_0`].
pub(crate) type BlockQ4 = [u8; 18];

/// The bytes of a block's numbers.
#[inline(always)]
fn numbers_of_q4(block: &BlockQ4) -> &[u8; 16] {
    block.last_chunk().expect("a block has its bytes")
}

impl Format for Q4_0 {
    type Unit = BlockQ4;
    type Block = BlockQ4;
    const NUMBERS: usize = BLOCK;

    #[inline(always)]
    fn blocks(row: &[BlockQ4]) -> &[BlockQ4] {
        row
    }

    #[inline(always)]
    fn scale<L: Lanes>(lanes: L, block: &BlockQ4) -> L::V {
        lanes.splat(half_at(block, 0))
    }

    #[inline(always)]
    fn vector<L: Lanes>(lanes: L, block: &BlockQ4, scale: L::V, s: usize) -> L::V {
        lanes.mul(lanes.i8(nibbles(numbers_of_q4(block), s)), scale)
    }

    #[inline(always)]
    fn pair<L: Lanes>(lanes: L, blocks: [&BlockQ4; 2], scales: [L::V; 2], _: L::Pair, s: usize) -> L::Pair {
        lanes.nibbles_pair(blocks.map(numbers_of_q4), scales, s)
    }

    fn rest(_: &[BlockQ4], _: &mut [f32; BLOCK]) {}
}

/// 256 numbers in 210 bytes: low 4 bits (128 bytes), high 2 bits (64), a scale of 8 bits for every
/// 16 numbers (16), a scale in f16 for all. GGUF's q6_K.
pub(crate) struct Q6K;

/// A block of [`Q6K`].
pub(crate) type BlockQ6 = [u8; 210];

/// Vector `s` of a block, unscaled, and its fine scale.
#[inline(always)]
fn numbers_of_q6(block: &BlockQ6, s: usize) -> (u64, f32) {
    // Eight parts of four vectors; part 4h + q has bits q of half h.
    let (half, quarter, at) = (s / 16, s / 4 % 4, s % 4 * LANES);
    let low = eight_at(block, half * 64 + quarter % 2 * 32 + at) >> (quarter / 2 * 4) & all(15);
    let high = eight_at(block, 128 + half * 32 + at) >> (quarter * 2) & all(3);
    let fine = f32::from(block[192 + half * 8 + quarter * 2 + at / 16] as i8);
    (less(low | high << 4, 32), fine)
}

impl Format for Q6K {
    type Unit = BlockQ6;
    type Block = BlockQ6;
    const NUMBERS: usize = 256;

    #[inline(always)]
    fn blocks(row: &[BlockQ6]) -> &[BlockQ6] {
        row
    }

    #[inline(always)]
    fn scale<L: Lanes>(lanes: L, block: &BlockQ6) -> L::V {
        lanes.splat(half_at(block, 208))
    }

    #[inline(always)]
    fn vector<L: Lanes>(lanes: L, block: &BlockQ6, scale: L::V, s: usize) -> L::V {
        let (numbers, fine) = numbers_of_q6(block, s);
        lanes.mul(lanes.i8(numbers), lanes.mul(scale, lanes.splat(fine)))
    }

    #[inline(always)]
    fn pair<L: Lanes>(lanes: L, [a, b]: [&BlockQ6; 2], _: [L::V; 2], both: L::Pair, s: usize) -> L::Pair {
        let ((a, fine_a), (b, fine_b)) = (numbers_of_q6(a, s), numbers_of_q6(b, s));
        let fine = lanes.beside(lanes.splat(fine_a), lanes.splat(fine_b));
        lanes.mul_pair(lanes.i8_pair(a, b), lanes.mul_pair(both, fine))
    }

    fn rest(_: &[BlockQ6], _: &mut [f32; BLOCK]) {}
}

/// Decodes a row, as long as `out`.
#[inline(always)]
pub(crate) fn decode<L: Lanes, F: Format>(lanes: L, row: &[F::Unit], out: &mut [f32]) {
    let whole = out.len() / F::BLOCK * F::BLOCK;
    let (whole, rest) = out.split_at_mut(whole);
    for (block, out) in F::blocks(row).iter().zip(whole.chunks_exact_mut(F::BLOCK)) {
        let scale = F::scale(lanes, block);
        for (s, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            *out = lanes.store(F::vector(lanes, block, scale, s));
        }
    }
    if !rest.is_empty() {
        let mut last = [0.0; BLOCK];
        F::rest(row, &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// Packs 32 numbers: the largest magnitude becomes 127.
pub(crate) fn pack_q8(numbers: &[f32; BLOCK]) -> BlockQ8 {
    let most = numbers.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let scale = most / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut block = [0; 34];
    block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (byte, x) in block[2..].iter_mut().zip(numbers) {
        *byte = (x * inverse).round() as i8 as u8;
    }
    block
}

/// Packs 32 numbers: the one of largest magnitude becomes -8.
pub(crate) fn pack_q4(numbers: &[f32; BLOCK]) -> BlockQ4 {
    let most = numbers.iter().fold(0.0_f32, |most, &x| if x.abs() > most.abs() { x } else { most });
    let scale = most / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut block = [0; 18];
    block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    let whole = |x: f32| ((x * inverse + 8.5) as u8).min(15);
    for i in 0..BLOCK / 2 {
        block[2 + i] = whole(numbers[i]) | whole(numbers[i + BLOCK / 2]) << 4;
    }
    block
}

/// Rounds to bf16 bits.
pub(crate) fn pack_bf16(x: f32) -> u16 {
    bf16::from_f32(x).to_bits()
}

/// Rounds to f16 bits.
pub(crate) fn pack_f16(x: f32) -> u16 {
    f16::from_f32(x).to_bits()
}
