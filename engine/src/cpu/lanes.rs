//! Eight numbers at a time: what the kernels need of a vector unit, and which one is there.
//!
//! Every implementation gives the same bits: all operations are correctly rounded, and the one
//! reduction has a fixed order. A processor without fused multiply-add computes it in software.

/// How many numbers a vector has. It is part of every result: sums run in this many lanes.
pub(crate) const LANES: usize = 8;

/// Operations on vectors of [`LANES`] numbers. A value of the type proves that the processor has them.
pub(crate) trait Lanes: Copy + Send + Sync {
    /// A vector.
    type V: Copy;

    /// All lanes the same.
    fn splat(self, x: f32) -> Self::V;
    /// From memory.
    fn load(self, x: &[f32; LANES]) -> Self::V;
    /// To memory.
    fn store(self, v: Self::V) -> [f32; LANES];
    /// From bf16 bits.
    fn bf16(self, x: &[u16; LANES]) -> Self::V;
    /// From f16 bits.
    fn f16(self, x: &[u16; LANES]) -> Self::V;
    /// From whole numbers of 8 bits, the first in the lowest byte.
    fn i8(self, x: u64) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;

    /// Two vectors side by side, which belong to two rows: units of twice the width compute both at once,
    /// lane by lane as if apart.
    type Pair: Copy;
    /// Tiles of pairs by so many inputs leave registers for what they read.
    const PAIR_INPUTS: usize;

    /// Two vectors, side by side.
    fn beside(self, a: Self::V, b: Self::V) -> Self::Pair;
    /// To memory, one after the other.
    fn apart(self, pair: Self::Pair) -> [[f32; LANES]; 2];
    /// From memory, where one lies after the other.
    fn load_pair(self, x: &[[f32; LANES]; 2]) -> Self::Pair;
    /// From bf16 bits.
    fn bf16_pair(self, a: &[u16; LANES], b: &[u16; LANES]) -> Self::Pair;
    /// From whole numbers of 8 bits, the first in the lowest byte.
    fn i8_pair(self, a: u64, b: u64) -> Self::Pair;
    /// Vector `s` of 32 numbers of two rows, each of which is a scale times a number of 4 bits less 8. The first
    /// half of the numbers have the low bits of the 16 bytes.
    fn nibbles_pair(self, bytes: [&[u8; 16]; 2], scales: [Self::V; 2], s: usize) -> Self::Pair;
    /// `a * b + c`, rounded once.
    fn fma_pair(self, a: Self::Pair, b: Self::Pair, c: Self::Pair) -> Self::Pair;
    /// `a * b`.
    fn mul_pair(self, a: Self::Pair, b: Self::Pair) -> Self::Pair;
}

/// What units do whose registers hold one vector: everything twice.
macro_rules! pairs_of_vectors {
    () => {
        type Pair = [Self::V; 2];
        const PAIR_INPUTS: usize = 3;

        #[inline(always)]
        fn beside(self, a: Self::V, b: Self::V) -> Self::Pair {
            [a, b]
        }

        #[inline(always)]
        fn apart(self, pair: Self::Pair) -> [[f32; LANES]; 2] {
            [self.store(pair[0]), self.store(pair[1])]
        }

        #[inline(always)]
        fn load_pair(self, x: &[[f32; LANES]; 2]) -> Self::Pair {
            [self.load(&x[0]), self.load(&x[1])]
        }

        #[inline(always)]
        fn bf16_pair(self, a: &[u16; LANES], b: &[u16; LANES]) -> Self::Pair {
            [self.bf16(a), self.bf16(b)]
        }

        #[inline(always)]
        fn i8_pair(self, a: u64, b: u64) -> Self::Pair {
            [self.i8(a), self.i8(b)]
        }

        #[inline(always)]
        fn nibbles_pair(self, bytes: [&[u8; 16]; 2], scales: [Self::V; 2], s: usize) -> Self::Pair {
            [0, 1].map(|row: usize| self.mul(self.i8(nibbles(bytes[row], s)), scales[row]))
        }

        #[inline(always)]
        fn fma_pair(self, a: Self::Pair, b: Self::Pair, c: Self::Pair) -> Self::Pair {
            [self.fma(a[0], b[0], c[0]), self.fma(a[1], b[1], c[1])]
        }

        #[inline(always)]
        fn mul_pair(self, a: Self::Pair, b: Self::Pair) -> Self::Pair {
            [self.mul(a[0], b[0]), self.mul(a[1], b[1])]
        }
    };
}

/// The same byte eight times.
pub(crate) const fn all(byte: u8) -> u64 {
    u64::from_le_bytes([byte; LANES])
}

/// Subtracts a number from each of eight bytes below 128, without a borrow.
#[inline(always)]
pub(crate) fn less(bytes: u64, by: u8) -> u64 {
    ((bytes | all(0x80)) - all(by)) ^ all(0x80)
}

/// Vector `s` of 32 numbers of 4 bits less 8, as whole numbers of 8 bits.
#[inline(always)]
pub(crate) fn nibbles(bytes: &[u8; 16], s: usize) -> u64 {
    let bytes = u64::from_le_bytes(bytes.as_chunks().0[s % 2]);
    less(bytes >> (s / 2 * 4) & all(15), 8)
}

/// Sum of the lanes: halves on halves.
#[inline(always)]
pub(crate) fn sum<L: Lanes>(lanes: L, v: L::V) -> f32 {
    sum_of(lanes.store(v))
}

/// Sum of stored lanes: halves on halves.
#[inline(always)]
pub(crate) fn sum_of([a, b, c, d, e, f, g, h]: [f32; LANES]) -> f32 {
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The value of f16 bits, by shifts and one exact multiplication, which any vector unit can do.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7FFF) << 13;
    let value = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if bits & 0x7C00 == 0x7C00 { 0x7F80_0000 } else { 0 };
    f32::from_bits(value | special | u32::from(bits & 0x8000) << 16)
}

/// Arrays: for processors without a vector unit that is known here, and as the others' reference.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Lanes for Portable {
    type V = [f32; LANES];
    pairs_of_vectors!();

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        *x
    }

    #[inline(always)]
    fn store(self, v: Self::V) -> [f32; LANES] {
        v
    }

    #[inline(always)]
    fn bf16(self, x: &[u16; LANES]) -> Self::V {
        std::array::from_fn(|i| f32::from_bits(u32::from(x[i]) << 16))
    }

    #[inline(always)]
    fn f16(self, x: &[u16; LANES]) -> Self::V {
        std::array::from_fn(|i| f16_to_f32(x[i]))
    }

    #[inline(always)]
    fn i8(self, x: u64) -> Self::V {
        x.to_le_bytes().map(|byte| f32::from(byte as i8))
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use pulp::bytemuck::cast;
    use pulp::x86::V3;

    use super::{LANES, Lanes, nibbles};

    /// AVX2 and FMA.
    impl Lanes for V3 {
        type V = pulp::f32x8;
        pairs_of_vectors!();

        #[inline(always)]
        fn splat(self, x: f32) -> Self::V {
            self.splat_f32x8(x)
        }

        #[inline(always)]
        fn load(self, x: &[f32; LANES]) -> Self::V {
            cast(*x)
        }

        #[inline(always)]
        fn store(self, v: Self::V) -> [f32; LANES] {
            cast(v)
        }

        #[inline(always)]
        fn bf16(self, x: &[u16; LANES]) -> Self::V {
            let wide = self.avx2._mm256_cvtepu16_epi32(cast(*x));
            cast(self.avx2._mm256_slli_epi32::<16>(wide))
        }

        #[inline(always)]
        fn f16(self, x: &[u16; LANES]) -> Self::V {
            let wide: [u32; LANES] = cast(self.avx2._mm256_cvtepu16_epi32(cast(*x)));
            let mut out = [0.0; LANES];
            for i in 0..LANES {
                out[i] = super::f16_to_f32(wide[i] as u16);
            }
            cast(out)
        }

        #[inline(always)]
        fn i8(self, x: u64) -> Self::V {
            cast(self.avx._mm256_cvtepi32_ps(self.avx2._mm256_cvtepi8_epi32(cast(u128::from(x)))))
        }

        #[inline(always)]
        fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            self.mul_add_f32x8(a, b, c)
        }

        #[inline(always)]
        fn mul(self, a: Self::V, b: Self::V) -> Self::V {
            cast(self.avx._mm256_mul_ps(cast(a), cast(b)))
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{__m128i, __m256d, __m512d, __m512i};

    use pulp::bytemuck::cast;
    use pulp::x86::{V3, V4};

    use super::{LANES, Lanes, all};

    /// AVX-512, for pairs only: a vector is as wide as on any unit.
    impl Lanes for V4 {
        type V = pulp::f32x8;

        #[inline(always)]
        fn splat(self, x: f32) -> Self::V {
            Lanes::splat(*self, x)
        }

        #[inline(always)]
        fn load(self, x: &[f32; LANES]) -> Self::V {
            cast(*x)
        }

        #[inline(always)]
        fn store(self, v: Self::V) -> [f32; LANES] {
            cast(v)
        }

        #[inline(always)]
        fn bf16(self, x: &[u16; LANES]) -> Self::V {
            Lanes::bf16(*self, x)
        }

        #[inline(always)]
        fn f16(self, x: &[u16; LANES]) -> Self::V {
            Lanes::f16(*self, x)
        }

        #[inline(always)]
        fn i8(self, x: u64) -> Self::V {
            Lanes::i8(*self, x)
        }

        #[inline(always)]
        fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            <V3 as Lanes>::fma(*self, a, b, c)
        }

        #[inline(always)]
        fn mul(self, a: Self::V, b: Self::V) -> Self::V {
            Lanes::mul(*self, a, b)
        }

        type Pair = pulp::f32x16;
        const PAIR_INPUTS: usize = 8;

        #[inline(always)]
        fn beside(self, a: Self::V, b: Self::V) -> Self::Pair {
            let low: __m512d = self.avx512f._mm512_castpd256_pd512(cast::<_, __m256d>(a));
            cast(self.avx512f._mm512_insertf64x4::<1>(low, cast::<_, __m256d>(b)))
        }

        #[inline(always)]
        fn apart(self, pair: Self::Pair) -> [[f32; LANES]; 2] {
            cast(pair)
        }

        #[inline(always)]
        fn load_pair(self, x: &[[f32; LANES]; 2]) -> Self::Pair {
            cast(*x)
        }

        #[inline(always)]
        fn bf16_pair(self, a: &[u16; LANES], b: &[u16; LANES]) -> Self::Pair {
            let wide: __m512i = self.avx512f._mm512_cvtepu16_epi32(cast([*a, *b]));
            cast(self.avx512f._mm512_slli_epi32::<16>(wide))
        }

        #[inline(always)]
        fn i8_pair(self, a: u64, b: u64) -> Self::Pair {
            cast(self.avx512f._mm512_cvtepi32_ps(self.avx512f._mm512_cvtepi8_epi32(cast([a, b]))))
        }

        /// Looks all products up: sixteen of either row's scale lie in a register.
        #[inline(always)]
        fn nibbles_pair(self, bytes: [&[u8; 16]; 2], scales: [Self::V; 2], s: usize) -> Self::Pair {
            const LESS_8: [f32; 16] =
                [-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
            let products = scales.map(|scale| cast(self.mul_pair(self.beside(scale, scale), cast(LESS_8))));
            // Eight bytes of either row side by side, those of the second row in the second table.
            let rows = self.avx2._mm256_permute4x64_epi64::<0b11_01_10_00>(cast([*bytes[0], *bytes[1]]));
            let rows = if s < 2 { rows } else { self.avx2._mm256_srli_epi16::<4>(rows) };
            let low_bits = self.avx2._mm256_and_si256(rows, cast([all(15); 4]));
            let places = self.avx2._mm256_or_si256(low_bits, cast([0, all(16), 0, all(16)]));
            let [first, second]: [__m128i; 2] = cast(places);
            let index = self.avx512f._mm512_cvtepu8_epi32(if s.is_multiple_of(2) { first } else { second });
            cast(self.avx512f._mm512_permutex2var_ps(products[0], index, products[1]))
        }

        #[inline(always)]
        fn fma_pair(self, a: Self::Pair, b: Self::Pair, c: Self::Pair) -> Self::Pair {
            cast(self.avx512f._mm512_fmadd_ps(cast(a), cast(b), cast(c)))
        }

        #[inline(always)]
        fn mul_pair(self, a: Self::Pair, b: Self::Pair) -> Self::Pair {
            cast(self.avx512f._mm512_mul_ps(cast(a), cast(b)))
        }
    }
}

/// A kernel that runs on any vector unit.
pub(crate) trait Kernel {
    /// Runs it. Implementations are `#[inline(always)]`, and so is all that they call: only so are
    /// they compiled for the unit.
    fn run<L: Lanes>(self, lanes: L);
}

/// The vector unit that kernels are run on.
#[derive(Clone, Copy, Debug)]
pub enum Isa {
    /// None in particular.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    /// AVX-512 (F, BW, CD, DQ and VL).
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
}

impl Isa {
    /// The best one that this processor has.
    pub fn detect() -> Isa {
        Isa::all()[0]
    }

    /// All that this processor has, the best first.
    pub fn all() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        all.extend(pulp::x86::V4::try_new().map(Isa::Avx512));
        #[cfg(target_arch = "x86_64")]
        all.extend(pulp::x86::V3::try_new().map(Isa::Avx2));
        all.push(Isa::Portable);
        all
    }

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "AVX-512",
        }
    }

    /// Runs a kernel.
    #[inline(always)]
    pub(crate) fn run(self, kernel: impl Kernel) {
        match self {
            Isa::Portable => kernel.run(Portable),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.vectorize(On(avx2, kernel)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => avx512.vectorize(On(avx512, kernel)),
        }
    }
}

/// A kernel, to be run on a unit.
#[cfg(target_arch = "x86_64")]
struct On<L, K>(L, K);

#[cfg(target_arch = "x86_64")]
impl<L: Lanes, K: Kernel> pulp::NullaryFnOnce for On<L, K> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.1.run(self.0);
    }
}
