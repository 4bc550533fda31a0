//! Dot products of whole numbers, of sixteen rows at once: what they need of a vector unit.
//!
//! Products and their sums within a block are exact, so every unit gives the same bits.

use pulp::NullaryFnOnce;

use super::lanes::f16_to_f32;
use crate::tiles::ROWS;

/// Operations on tiles. A value of the type proves that the processor has them.
pub(crate) trait Whole: Copy + Send + Sync {
    /// By how much numbers of 8 bits in a tile are too large for this unit.
    const TOO_LARGE: i32;
    /// A number of each row.
    type Floats: Copy;
    /// A whole number of each row.
    type Dots: Copy;
    /// Four numbers of each row.
    type Fours: Copy;

    /// Runs something that is compiled for the unit: it and all that it calls are `#[inline(always)]`.
    fn vectorize(self, work: impl NullaryFnOnce<Output = ()>);

    /// The same number for each row.
    fn splat(self, x: f32) -> Self::Floats;
    /// From bits of f16.
    fn scales(self, bits: &[u8; 2 * ROWS]) -> Self::Floats;
    /// Numbers of 8 bits.
    fn bytes(self, bytes: &[u8; 4 * ROWS]) -> Self::Fours;
    /// Numbers of 4 bits, those in the low ones and those in the high ones of each byte.
    fn nibbles(self, bytes: &[u8; 4 * ROWS]) -> [Self::Fours; 2];
    /// What the dot products of all rows begin with.
    fn begin(self, first: i32) -> Self::Dots;
    /// Adds four products to the dot product of each row; the bytes of `x` are an input's numbers.
    fn dot(self, dots: Self::Dots, weights: Self::Fours, x: i32) -> Self::Dots;
    /// `dots * (scales * scale) + sums`, the product of the scales rounded, and the rest once more.
    fn add(self, sums: Self::Floats, dots: Self::Dots, scales: Self::Floats, scale: f32) -> Self::Floats;
    /// To memory.
    fn store(self, x: Self::Floats) -> [f32; ROWS];
}

/// Arrays: for processors without a vector unit that is known here, and as the others' reference.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Whole for Portable {
    const TOO_LARGE: i32 = 128;
    type Floats = [f32; ROWS];
    type Dots = [i32; ROWS];
    type Fours = [[u8; 4]; ROWS];

    #[inline(always)]
    fn vectorize(self, work: impl NullaryFnOnce<Output = ()>) {
        work.call();
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Floats {
        [x; ROWS]
    }

    #[inline(always)]
    fn scales(self, bits: &[u8; 2 * ROWS]) -> Self::Floats {
        std::array::from_fn(|row| f16_to_f32(u16::from_le_bytes([bits[2 * row], bits[2 * row + 1]])))
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; 4 * ROWS]) -> Self::Fours {
        std::array::from_fn(|row| std::array::from_fn(|i| bytes[4 * row + i]))
    }

    #[inline(always)]
    fn nibbles(self, bytes: &[u8; 4 * ROWS]) -> [Self::Fours; 2] {
        [self.bytes(&bytes.map(|byte| byte & 15)), self.bytes(&bytes.map(|byte| byte >> 4))]
    }

    #[inline(always)]
    fn begin(self, first: i32) -> Self::Dots {
        [first; ROWS]
    }

    #[inline(always)]
    fn dot(self, mut dots: Self::Dots, weights: Self::Fours, x: i32) -> Self::Dots {
        let x = x.to_le_bytes();
        for row in 0..ROWS {
            for i in 0..4 {
                dots[row] += i32::from(weights[row][i]) * i32::from(x[i] as i8);
            }
        }
        dots
    }

    #[inline(always)]
    fn add(self, sums: Self::Floats, dots: Self::Dots, scales: Self::Floats, scale: f32) -> Self::Floats {
        std::array::from_fn(|row| (dots[row] as f32).mul_add(scales[row] * scale, sums[row]))
    }

    #[inline(always)]
    fn store(self, x: Self::Floats) -> [f32; ROWS] {
        x
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::__m256i;

    use pulp::bytemuck::cast;
    use pulp::x86::V3;

    use super::{NullaryFnOnce, ROWS, Whole, f16_to_f32};

    /// Four numbers of each of eight rows, and their magnitudes.
    #[derive(Clone, Copy)]
    pub(crate) struct Signed {
        number: __m256i,
        magnitude: __m256i,
    }

    /// Magnitudes by inputs with the weights' signs, since the unit multiplies unsigned by signed numbers. Two products
    /// of up to 128 and 127 fit into the 16 bits in which it adds them.
    impl Whole for V3 {
        const TOO_LARGE: i32 = 0;
        type Floats = [pulp::f32x8; 2];
        type Dots = [__m256i; 2];
        type Fours = [Signed; 2];

        #[inline(always)]
        fn vectorize(self, work: impl NullaryFnOnce<Output = ()>) {
            V3::vectorize(self, work);
        }

        #[inline(always)]
        fn splat(self, x: f32) -> Self::Floats {
            [self.splat_f32x8(x); 2]
        }

        #[inline(always)]
        fn scales(self, bits: &[u8; 2 * ROWS]) -> Self::Floats {
            let mut scales = [0.0; ROWS];
            for row in 0..ROWS {
                scales[row] = f16_to_f32(u16::from_le_bytes([bits[2 * row], bits[2 * row + 1]]));
            }
            cast(scales)
        }

        #[inline(always)]
        fn bytes(self, bytes: &[u8; 4 * ROWS]) -> Self::Fours {
            let signed = |eight: __m256i| {
                let number = self.avx2._mm256_xor_si256(eight, cast([0x80_u8; 32]));
                Signed { number, magnitude: self.avx2._mm256_abs_epi8(number) }
            };
            let eights: [__m256i; 2] = cast(*bytes);
            [signed(eights[0]), signed(eights[1])]
        }

        #[inline(always)]
        fn nibbles(self, bytes: &[u8; 4 * ROWS]) -> [Self::Fours; 2] {
            let unsigned = |eight: __m256i| {
                let number = self.avx2._mm256_and_si256(eight, cast([15_u8; 32]));
                Signed { number, magnitude: number }
            };
            let low: [__m256i; 2] = cast(*bytes);
            let high = [self.avx2._mm256_srli_epi16::<4>(low[0]), self.avx2._mm256_srli_epi16::<4>(low[1])];
            [[unsigned(low[0]), unsigned(low[1])], [unsigned(high[0]), unsigned(high[1])]]
        }

        #[inline(always)]
        fn begin(self, first: i32) -> Self::Dots {
            [cast([first; 8]); 2]
        }

        #[inline(always)]
        fn dot(self, dots: Self::Dots, weights: Self::Fours, x: i32) -> Self::Dots {
            let x = cast([x; 8]);
            let eight = |dots: __m256i, Signed { number, magnitude }: Signed| {
                let twos = self.avx2._mm256_maddubs_epi16(magnitude, self.avx2._mm256_sign_epi8(x, number));
                self.avx2._mm256_add_epi32(dots, self.avx2._mm256_madd_epi16(twos, cast([1_i16; 16])))
            };
            [eight(dots[0], weights[0]), eight(dots[1], weights[1])]
        }

        #[inline(always)]
        fn add(self, sums: Self::Floats, dots: Self::Dots, scales: Self::Floats, scale: f32) -> Self::Floats {
            let scale = self.splat_f32x8(scale);
            let eight = |sums, dots, scales| {
                let scales = cast(self.avx._mm256_mul_ps(cast::<pulp::f32x8, _>(scales), cast(scale)));
                self.mul_add_f32x8(cast(self.avx._mm256_cvtepi32_ps(dots)), scales, sums)
            };
            [eight(sums[0], dots[0], scales[0]), eight(sums[1], dots[1], scales[1])]
        }

        #[inline(always)]
        fn store(self, x: Self::Floats) -> [f32; ROWS] {
            cast(x)
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use vnni::Vnni;

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::x86_64::{__m512i, _mm512_dpbusd_epi32};

    use pulp::bytemuck::cast;

    use super::{NullaryFnOnce, ROWS, Whole};

    pulp::simd_type!({
        /// AVX-512 with its dot products of bytes.
        pub(crate) struct Vnni {
            avx: feature!("avx"),
            avx2: feature!("avx2"),
            fma: feature!("fma"),
            avx512f: feature!("avx512f"),
            avx512bw: feature!("avx512bw"),
            avx512dq: feature!("avx512dq"),
            avx512vl: feature!("avx512vl"),
            avx512vnni: feature!("avx512vnni"),
        }
    });

    /// Unsigned by signed numbers, as tiles and inputs are.
    impl Whole for Vnni {
        const TOO_LARGE: i32 = 128;
        type Floats = pulp::f32x16;
        type Dots = __m512i;
        type Fours = __m512i;

        #[inline(always)]
        fn vectorize(self, work: impl NullaryFnOnce<Output = ()>) {
            Vnni::vectorize(self, work);
        }

        #[inline(always)]
        fn splat(self, x: f32) -> Self::Floats {
            cast([x; ROWS])
        }

        #[inline(always)]
        fn scales(self, bits: &[u8; 2 * ROWS]) -> Self::Floats {
            cast(self.avx512f._mm512_cvtph_ps(cast(*bits)))
        }

        #[inline(always)]
        fn bytes(self, bytes: &[u8; 4 * ROWS]) -> Self::Fours {
            cast(*bytes)
        }

        #[inline(always)]
        fn nibbles(self, bytes: &[u8; 4 * ROWS]) -> [Self::Fours; 2] {
            let low: __m512i = cast(*bytes);
            let high = self.avx512bw._mm512_srli_epi16::<4>(low);
            let mask = cast([15_u8; 4 * ROWS]);
            [self.avx512f._mm512_and_si512(low, mask), self.avx512f._mm512_and_si512(high, mask)]
        }

        #[inline(always)]
        fn begin(self, first: i32) -> Self::Dots {
            cast([first; ROWS])
        }

        #[inline(always)]
        fn dot(self, dots: Self::Dots, weights: Self::Fours, x: i32) -> Self::Dots {
            // SAFETY: that self exists proves that the processor has the instruction.
            #[allow(unsafe_code, reason = "pulp has the feature, but not its instructions")]
            unsafe {
                _mm512_dpbusd_epi32(dots, weights, cast([x; ROWS]))
            }
        }

        #[inline(always)]
        fn add(self, sums: Self::Floats, dots: Self::Dots, scales: Self::Floats, scale: f32) -> Self::Floats {
            let scales = self.avx512f._mm512_mul_ps(cast(scales), cast([scale; ROWS]));
            cast(self.avx512f._mm512_fmadd_ps(self.avx512f._mm512_cvtepi32_ps(dots), scales, cast(sums)))
        }

        #[inline(always)]
        fn store(self, x: Self::Floats) -> [f32; ROWS] {
            cast(x)
        }
    }
}
