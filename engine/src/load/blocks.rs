//! GGUF's blocks of quantised weights.
//!
//! Source: ggml's `ggml-common.h` and the GGUF specification. A block of q8_0 is a scale in f16 and
//! 32 signed bytes; of q4_0 a scale and 32 nibbles less 8, low nibbles first; of q6_K 256 numbers of
//! 6 bits less 32 (low 4 bits, then high 2), 16 signed scales of 16 numbers each, and a scale of
//! those.

use half::f16;

use crate::weights::Data;

/// A kind of block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    Q8_0,
    Q4_0,
    Q6K,
}

impl Block {
    /// Numbers in a block.
    pub fn numbers(self) -> usize {
        match self {
            Block::Q8_0 | Block::Q4_0 => 32,
            Block::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Block::Q8_0 => 34,
            Block::Q4_0 => 18,
            Block::Q6K => 210,
        }
    }

    /// Where a block has its scale.
    fn scale_at(self) -> usize {
        match self {
            Block::Q8_0 | Block::Q4_0 => 0,
            Block::Q6K => 208,
        }
    }

    fn scale(self, block: &[u8]) -> f16 {
        let at = self.scale_at();
        f16::from_le_bytes([block[at], block[at + 1]])
    }

    /// The first block whose scale is not finite; the rest of a block cannot be.
    pub fn first_not_finite(self, blocks: &[u8]) -> Option<usize> {
        blocks.chunks_exact(self.bytes()).position(|block| !self.scale(block).is_finite())
    }

    /// Bytes of such blocks as the weights of a matrix.
    pub fn data(self, bytes: Vec<u8>) -> Data {
        match self {
            Block::Q8_0 => Data::Q8_0(bytes.into()),
            Block::Q4_0 => Data::Q4_0(bytes.into()),
            Block::Q6K => Data::Q6K(bytes.into()),
        }
    }
}

/// Appends the numbers of whole blocks.
pub(crate) fn dequantize(kind: Block, blocks: &[u8], numbers: &mut Vec<f32>) {
    for block in blocks.chunks_exact(kind.bytes()) {
        let scale = kind.scale(block).to_f32();
        match kind {
            Block::Q8_0 => numbers.extend(block[2..].iter().map(|&q| f32::from(q as i8) * scale)),
            Block::Q4_0 => {
                let number = |nibble: u8| (f32::from(nibble) - 8.0) * scale;
                numbers.extend(block[2..].iter().map(|&pair| number(pair & 15)));
                numbers.extend(block[2..].iter().map(|&pair| number(pair >> 4)));
            }
            Block::Q6K => numbers.extend((0..256).map(|i| scale * six_bits(block, i))),
        }
    }
}

/// Number `i` of a q6_K block, before the block's scale. Numbers lie in halves of 128; in each, byte
/// `j` of 64 holds the low bits of `j` and `j + 64`, byte `j` of 32 the high bits of every 32nd.
fn six_bits(block: &[u8], i: usize) -> f32 {
    let (half, at) = (i / 128, i % 128);
    let low = block[half * 64 + at % 64] >> (4 * (at / 64)) & 15;
    let high = block[128 + half * 32 + at % 32] >> (2 * (at / 32)) & 3;
    let scale = f32::from(block[192 + i / 16] as i8);
    scale * (f32::from(low | high << 4) - 32.0)
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn blocks_mean_what_they_mean_to_an_independent_reader() {
        let numbers: Vec<f32> = (0..2048).map(|i| (i as f32 * 0.37).sin() * (i % 13) as f32).collect();
        let tensor = Tensor::from_vec(numbers, 2048, &Device::Cpu).unwrap();
        let kinds =
            [(Block::Q8_0, GgmlDType::Q8_0), (Block::Q4_0, GgmlDType::Q4_0), (Block::Q6K, GgmlDType::Q6K)];
        for (kind, theirs) in kinds {
            let quantised = QTensor::quantize(&tensor, theirs).unwrap();
            let expected: Vec<f32> = quantised.dequantize(&Device::Cpu).unwrap().to_vec1().unwrap();
            let bytes = quantised.data().unwrap();
            assert_eq!(bytes.len(), 2048 / kind.numbers() * kind.bytes());
            let mut found = Vec::new();
            dequantize(kind, &bytes, &mut found);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    (found - expected).abs() <= 1e-6 * expected.abs(),
                    "{kind:?} {i}: {found} {expected}"
                );
            }
            assert_eq!(found.len(), expected.len());
        }
    }

    #[test]
    fn a_block_whose_scale_is_not_finite_is_found() {
        for kind in [Block::Q8_0, Block::Q4_0, Block::Q6K] {
            let mut blocks = vec![0x7B; 3 * kind.bytes()];
            assert_eq!(kind.first_not_finite(&blocks), None);
            let at = 2 * kind.bytes() + kind.scale_at();
            blocks[at..at + 2].copy_from_slice(&f16::NAN.to_le_bytes());
            assert_eq!(kind.first_not_finite(&blocks), Some(2));
        }
    }
}
