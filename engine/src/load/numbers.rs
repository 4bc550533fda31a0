//! Reading the numbers of a tensor: bounded, in order, and refusing what is not finite.

use std::io::Read;
use std::path::Path;

use half::{bf16, f16};

use crate::error::EngineError;
use crate::load::blocks::{self, Block};
use crate::load::wrong;
use crate::memory;
use crate::weights::Data;

/// How a file stores the numbers of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    F32,
    F16,
    Bf16,
    Blocks(Block),
}

impl Storage {
    /// How many numbers are stored together, in how many bytes.
    pub fn unit(self) -> (usize, usize) {
        match self {
            Storage::F32 => (1, 4),
            Storage::F16 | Storage::Bf16 => (1, 2),
            Storage::Blocks(block) => (block.numbers(), block.bytes()),
        }
    }

    /// Bytes of so many numbers; none if they are no whole number of blocks or too many.
    pub fn bytes(self, numbers: u64) -> Option<u64> {
        let (together, bytes) = self.unit();
        let is_whole = numbers.is_multiple_of(together as u64);
        is_whole.then(|| (numbers / together as u64).checked_mul(bytes as u64)).flatten()
    }

    /// The root of a model's width as transformers stores it beside embeddings of this type.
    pub fn round(self, number: f32) -> f32 {
        match self {
            Storage::F32 | Storage::Blocks(_) => number,
            Storage::F16 => f16::from_f32(number).to_f32(),
            Storage::Bf16 => bf16::from_f32(number).to_f32(),
        }
    }
}

/// Bytes that are read at once; a multiple of every unit's bytes, so that no block is cut in two.
const PIECE: usize = 4 * 9 * 17 * 105 * 4;

/// A tensor in a file: what it is called, for messages, and how it is stored.
pub(super) struct Tensor<'a> {
    pub path: &'a Path,
    pub name: &'a str,
    pub storage: Storage,
    pub numbers: usize,
}

impl Tensor<'_> {
    /// Reads the numbers as they are stored, or as f32 if `dequantize` is set. The caller has made
    /// sure that the file is long enough for all of them.
    ///
    /// # Errors
    /// A file that cannot be read, a number that is not finite, or too little memory.
    pub fn read(&self, from: &mut impl Read, dequantize: bool) -> Result<Data, EngineError> {
        match self.storage {
            Storage::F32 => Ok(Data::F32(self.floats(from)?.into())),
            _ if dequantize => Ok(Data::F32(self.floats(from)?.into())),
            Storage::F16 => {
                let number = |bytes: &[u8], numbers: &mut Vec<f16>| {
                    numbers.extend(bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes)));
                };
                Ok(Data::F16(self.pieces(from, self.numbers, f16::is_finite, number)?.into()))
            }
            Storage::Bf16 => {
                let number = |bytes: &[u8], numbers: &mut Vec<bf16>| {
                    numbers.extend(bytes.as_chunks().0.iter().map(|&bytes| bf16::from_le_bytes(bytes)));
                };
                Ok(Data::Bf16(self.pieces(from, self.numbers, bf16::is_finite, number)?.into()))
            }
            Storage::Blocks(block) => {
                let bytes = self.numbers / block.numbers() * block.bytes();
                let whole = self.pieces(from, bytes, |_| true, |piece, all| all.extend_from_slice(piece))?;
                if let Some(at) = block.first_not_finite(&whole) {
                    return Err(self.not_finite(at * block.numbers()));
                }
                Ok(block.data(whole))
            }
        }
    }

    /// Reads the numbers as f32.
    ///
    /// # Errors
    /// As [`Tensor::read`].
    pub fn floats(&self, from: &mut impl Read) -> Result<Vec<f32>, EngineError> {
        let storage = self.storage;
        let number = |bytes: &[u8], numbers: &mut Vec<f32>| match storage {
            Storage::F32 => {
                numbers.extend(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)));
            }
            Storage::F16 => {
                numbers.extend(bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()));
            }
            Storage::Bf16 => {
                numbers.extend(bytes.as_chunks().0.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32()));
            }
            Storage::Blocks(block) => blocks::dequantize(block, bytes, numbers),
        };
        self.pieces(from, self.numbers, f32::is_finite, number)
    }

    /// Reads all bytes of the tensor piece by piece; `put` turns a piece into items, of which there
    /// are `items` in the end.
    fn pieces<T: Copy>(
        &self,
        from: &mut impl Read,
        items: usize,
        is_finite: impl Fn(T) -> bool,
        put: impl Fn(&[u8], &mut Vec<T>),
    ) -> Result<Vec<T>, EngineError> {
        let bytes = self.storage.bytes(self.numbers as u64).expect("the shape was checked");
        let mut all = memory::reserve("a tensor", items)?;
        let mut left = usize::try_from(bytes).expect("the file holds that many bytes");
        let mut piece = vec![0; left.min(PIECE)];
        while left > 0 {
            let piece = &mut piece[..left.min(PIECE)];
            from.read_exact(piece)
                .map_err(|error| wrong(self.path, format!("tensor {}: {error}", self.name)))?;
            let done = all.len();
            put(piece, &mut all);
            if let Some(at) = all[done..].iter().position(|&number| !is_finite(number)) {
                return Err(self.not_finite(done + at));
            }
            left -= piece.len();
        }
        Ok(all)
    }

    fn not_finite(&self, at: usize) -> EngineError {
        wrong(self.path, format!("tensor {}: number {at} is not finite", self.name))
    }
}
