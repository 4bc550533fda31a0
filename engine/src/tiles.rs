//! Sixteen rows of quantised weights side by side: what processors multiply by whole numbers fastest.
//!
//! A tile holds a block of 32 weights of each of its rows, in the bytes that they have in GGUF: sixteen scales in f16,
//! then four numbers of every row, the next four of every row, and so on. Numbers of 8 bits are 128 larger than they
//! stand for, numbers of 4 bits 8 larger; of the latter a byte holds one of the first 16 numbers and, in its high
//! bits, the one 16 further on.

use half::f16;

use crate::numbers::Numbers;

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// Numbers of a row in a tile.
pub(crate) const NUMBERS: usize = 32;

/// How the numbers of a tile are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    /// As in q8_0.
    Eight,
    /// As in q4_0.
    Four,
}

impl Bits {
    /// Bytes of a row's block, scale and numbers.
    pub(crate) const fn block(self) -> usize {
        2 + self.numbers()
    }

    /// Bytes of a tile.
    pub(crate) const fn tile(self) -> usize {
        ROWS * self.block()
    }

    /// Bytes of a row's numbers.
    const fn numbers(self) -> usize {
        match self {
            Bits::Eight => NUMBERS,
            Bits::Four => NUMBERS / 2,
        }
    }

    /// What a byte is mixed with (exclusive or) on its way into a tile.
    const fn flip(self) -> u8 {
        match self {
            Bits::Eight => 0x80,
            Bits::Four => 0,
        }
    }
}

/// Weights in tiles: those of the first sixteen rows, from the first column to the last, then those of the next.
#[derive(Clone, Debug)]
pub struct Tiles {
    pub(crate) bits: Bits,
    pub(crate) bytes: Numbers<u8>,
}

impl Tiles {
    /// Lays rows of GGUF blocks out in tiles, in the memory that they have. Rows are whole blocks, and a multiple of
    /// sixteen.
    pub(crate) fn of(mut rows: Vec<u8>, cols: usize, bits: Bits) -> Tiles {
        let row_len = cols / NUMBERS * bits.block();
        let mut copy = Vec::with_capacity(ROWS * row_len);
        for sixteen in rows.chunks_exact_mut(ROWS * row_len) {
            copy.clear();
            copy.extend_from_slice(sixteen);
            for (b, tile) in sixteen.chunks_exact_mut(bits.tile()).enumerate() {
                for row in 0..ROWS {
                    let block = &copy[row * row_len + b * bits.block()..][..bits.block()];
                    let (scale, numbers) = block.split_at(2);
                    tile[2 * row..2 * row + 2].copy_from_slice(scale);
                    for (i, &number) in numbers.iter().enumerate() {
                        tile[place(row, i)] = number ^ bits.flip();
                    }
                }
            }
        }
        Tiles { bits, bytes: rows.into() }
    }

    /// Whether the numbers have 8 bits, as in q8_0, and not 4.
    pub fn is_q8(&self) -> bool {
        self.bits == Bits::Eight
    }

    /// How many numbers there are.
    pub(crate) fn numbers(&self) -> usize {
        self.bytes.len() / self.bits.tile() * (ROWS * NUMBERS)
    }

    /// What the weights of a row stand for, into `out`, as long as the row.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        let tiles = out.len() / NUMBERS;
        let (first, row) = (row / ROWS * tiles, row % ROWS);
        let tiles = self.bytes[first * self.bits.tile()..].chunks_exact(self.bits.tile());
        for (tile, out) in tiles.zip(out.chunks_exact_mut(NUMBERS)) {
            let scale = f16::from_le_bytes([tile[2 * row], tile[2 * row + 1]]).to_f32();
            for (i, out) in out.iter_mut().enumerate() {
                let number = match self.bits {
                    Bits::Eight => i16::from(tile[place(row, i)]) - 128,
                    Bits::Four => i16::from(tile[place(row, i % 16)] >> (i / 16 * 4) & 15) - 8,
                };
                *out = f32::from(number) * scale;
            }
        }
    }
}

/// Where byte `i` of a row's numbers lies in a tile.
const fn place(row: usize, i: usize) -> usize {
    2 * ROWS + i / 4 * 4 * ROWS + 4 * row + i % 4
}
