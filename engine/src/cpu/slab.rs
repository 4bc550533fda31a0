//! K or V of one layer: `[cell][kv_head][head_dim]`, in any of the types a cache has.

use super::format::{
    BLOCK, Bf16, BlockQ4, BlockQ8, F16, F32, Format, Q4_0, Q8_0, pack_bf16, pack_f16, pack_q4, pack_q8,
};
use super::lanes::Isa;
use super::product::Decode;
use crate::cache::KvType;
use crate::error::EngineError;
use crate::memory;

/// Rows of one head each.
#[derive(Clone)]
pub(crate) struct Slab {
    pub numbers: Numbers,
    pub heads: usize,
    pub head_dim: usize,
}

/// The numbers of a slab.
#[derive(Clone)]
pub(crate) enum Numbers {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
    Q8_0(Vec<BlockQ8>),
    Q4_0(Vec<BlockQ4>),
}

/// Evaluates an expression with the units of a slab and their format.
macro_rules! on_units {
    ($numbers:expr, |$units:ident: $format:ident| $body:expr) => {
        match $numbers {
            Numbers::F32($units) => {
                type $format = F32;
                $body
            }
            Numbers::F16($units) => {
                type $format = F16;
                $body
            }
            Numbers::Bf16($units) => {
                type $format = Bf16;
                $body
            }
            Numbers::Q8_0($units) => {
                type $format = Q8_0;
                $body
            }
            Numbers::Q4_0($units) => {
                type $format = Q4_0;
                $body
            }
        }
    };
}
pub(crate) use on_units;

/// `len` times the same, or an error if there is no room.
pub(crate) fn filled<T: Clone>(value: T, len: usize, what: &'static str) -> Result<Vec<T>, EngineError> {
    let mut filled = memory::reserve(what, len)?;
    filled.resize(len, value);
    Ok(filled)
}

impl Slab {
    /// Room for so many cells, all zero.
    pub fn new(kind: KvType, cells: usize, heads: usize, head_dim: usize) -> Result<Slab, EngineError> {
        const WHAT: &str = "the KV cache";
        let numbers = cells * heads * head_dim;
        let numbers = match kind {
            KvType::F32 => Numbers::F32(filled(0.0, numbers, WHAT)?),
            KvType::F16 => Numbers::F16(filled(0, numbers, WHAT)?),
            KvType::Bf16 => Numbers::Bf16(filled(0, numbers, WHAT)?),
            KvType::Q8_0 => Numbers::Q8_0(filled([0; 34], numbers / BLOCK, WHAT)?),
            KvType::Q4_0 => Numbers::Q4_0(filled([0; 18], numbers / BLOCK, WHAT)?),
        };
        Ok(Slab { numbers, heads, head_dim })
    }

    /// Whether the numbers are f32.
    pub fn is_f32(&self) -> bool {
        matches!(self.numbers, Numbers::F32(_))
    }

    /// Stores one head's numbers, rounded to the type. `row` is `cell * heads + head`.
    pub fn encode(&mut self, row: usize, head: &[f32]) {
        let at = row * self.head_dim;
        let range = at..at + self.head_dim;
        let blocks = at / BLOCK..(at + self.head_dim) / BLOCK;
        let packed = head.as_chunks::<BLOCK>().0;
        match &mut self.numbers {
            Numbers::F32(units) => units[range].copy_from_slice(head),
            Numbers::F16(units) => {
                units[range].iter_mut().zip(head).for_each(|(unit, &x)| *unit = pack_f16(x));
            }
            Numbers::Bf16(units) => {
                units[range].iter_mut().zip(head).for_each(|(unit, &x)| *unit = pack_bf16(x));
            }
            Numbers::Q8_0(units) => {
                units[blocks].iter_mut().zip(packed).for_each(|(unit, x)| *unit = pack_q8(x));
            }
            Numbers::Q4_0(units) => {
                units[blocks].iter_mut().zip(packed).for_each(|(unit, x)| *unit = pack_q4(x));
            }
        }
    }

    /// Reads one head's numbers.
    pub fn decode(&self, isa: Isa, row: usize, out: &mut [f32]) {
        on_units!(&self.numbers, |units: F| {
            let len = self.head_dim / F::NUMBERS;
            isa.run(Decode::<F> { row: &units[row * len..(row + 1) * len], out });
        });
    }

    /// Copies `len` cells as one piece, as if through a buffer.
    pub fn copy(&mut self, from: usize, to: usize, len: usize) {
        let width = self.heads * self.head_dim;
        on_units!(&mut self.numbers, |units: F| {
            let cell = width / F::NUMBERS;
            units.copy_within(from * cell..(from + len) * cell, to * cell);
        });
    }

    /// A copy of one cell.
    pub fn cut(&self, cell: usize) -> Slab {
        let width = self.heads * self.head_dim;
        let range = |numbers: usize| cell * width / numbers..(cell + 1) * width / numbers;
        let numbers = match &self.numbers {
            Numbers::F32(units) => Numbers::F32(units[range(1)].to_vec()),
            Numbers::F16(units) => Numbers::F16(units[range(1)].to_vec()),
            Numbers::Bf16(units) => Numbers::Bf16(units[range(1)].to_vec()),
            Numbers::Q8_0(units) => Numbers::Q8_0(units[range(BLOCK)].to_vec()),
            Numbers::Q4_0(units) => Numbers::Q4_0(units[range(BLOCK)].to_vec()),
        };
        Slab { numbers, ..*self }
    }

    /// Replaces a cell by what was [cut](Slab::cut) out of a slab of the same type.
    pub fn paste(&mut self, cell: usize, cut: &Slab) {
        let width = self.heads * self.head_dim;
        let range = |numbers: usize| cell * width / numbers..(cell + 1) * width / numbers;
        match (&mut self.numbers, &cut.numbers) {
            (Numbers::F32(units), Numbers::F32(cut)) => units[range(1)].copy_from_slice(cut),
            (Numbers::F16(units), Numbers::F16(cut)) | (Numbers::Bf16(units), Numbers::Bf16(cut)) => {
                units[range(1)].copy_from_slice(cut);
            }
            (Numbers::Q8_0(units), Numbers::Q8_0(cut)) => units[range(BLOCK)].copy_from_slice(cut),
            (Numbers::Q4_0(units), Numbers::Q4_0(cut)) => units[range(BLOCK)].copy_from_slice(cut),
            _ => unreachable!("all cells of a cache have the same type"),
        }
    }
}
