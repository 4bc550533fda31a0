//! What happens to numbers between matrix products: norms, the exponential function, GELU, softmax.
//!
//! Loops over independent numbers are left to the compiler, which vectorises them for the unit that
//! they run on; every sum has the fixed order of [`super::dot`].

use super::dot::{tile, zeros};
use super::format::F32;
use super::lanes::{Kernel, LANES, Lanes, sum};
use super::rope::{Turn, rotate};

/// `e^x` to about one unit in the last place, by the same operations everywhere: a power of two and
/// the Taylor series to degree 7, which is within 6e-9 for the half octave around 0. Below the
/// smallest normal number it is 0.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.33;
    const HIGHEST: f32 = 88.37;
    /// Adding it rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let inside = if x > HIGHEST { HIGHEST } else { x };
    let shifted = inside.mul_add(std::f32::consts::LOG2_E, ROUND);
    let octaves = shifted - ROUND;
    // ln 2 in two parts, the first with zeros at its end, so that its product is exact.
    let rest = octaves.mul_add(-0.693_359_4, inside);
    let rest = octaves.mul_add(2.121_944_4e-4, rest);
    let mut series = 1.0 / 5040.0_f32;
    series = series.mul_add(rest, 1.0 / 720.0);
    series = series.mul_add(rest, 1.0 / 120.0);
    series = series.mul_add(rest, 1.0 / 24.0);
    series = series.mul_add(rest, 1.0 / 6.0);
    series = series.mul_add(rest, 0.5);
    series = series.mul_add(rest, 1.0);
    series = series.mul_add(rest, 1.0);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < LOWEST { 0.0 } else { series * power }
}

/// GELU by its tanh approximation: `x / (1 + e^(-2u))`, `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    const TWICE_ROOT: f32 = 1.595_769;
    let u = TWICE_ROOT * (0.044_715 * x * x).mul_add(x, x);
    x / (1.0 + exp(-u))
}

/// Replaces every gate by `gelu(gate) * up`.
pub(crate) struct Gate<'a> {
    pub gate: &'a mut [f32],
    pub up: &'a [f32],
}

impl Kernel for Gate<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for (gate, up) in self.gate.iter_mut().zip(self.up) {
            *gate = gelu(*gate) * up;
        }
    }
}

/// Dot product of two vectors in f32.
#[inline(always)]
fn dot<L: Lanes>(lanes: L, a: &[f32], b: &[f32]) -> f32 {
    let mut sums = zeros::<L, 1, 1>(lanes);
    tile::<L, F32, 1, 1>(lanes, [a], [b], &mut sums);
    sum(lanes, sums[0][0])
}

/// What RMS norm multiplies by, the weight aside.
#[inline(always)]
fn rms_scale<L: Lanes>(lanes: L, x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(lanes, x, x) / x.len() as f32 + eps).sqrt()
}

/// RMS norm of rows as long as the weight: `out = x * weight / sqrt(mean(x^2) + eps)`.
pub(crate) struct Norm<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub eps: f32,
    pub out: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let scale = rms_scale(lanes, x, self.eps);
            for ((out, x), weight) in out.iter_mut().zip(x).zip(self.weight) {
                *out = x * scale * weight;
            }
        }
    }
}

/// The same, added to the residual stream.
pub(crate) struct AddNorm<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub eps: f32,
    pub sum: &'a mut [f32],
}

impl Kernel for AddNorm<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let width = self.weight.len();
        for (x, sum) in self.x.chunks_exact(width).zip(self.sum.chunks_exact_mut(width)) {
            let scale = rms_scale(lanes, x, self.eps);
            for ((sum, x), weight) in sum.iter_mut().zip(x).zip(self.weight) {
                *sum += x * scale * weight;
            }
        }
    }
}

/// The same of every head, in place; then the head is rotated.
pub(crate) struct NormHeads<'a> {
    pub heads: &'a mut [f32],
    pub weight: &'a [f32],
    pub eps: f32,
    pub turn: Option<Turn<'a>>,
}

impl Kernel for NormHeads<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for head in self.heads.chunks_exact_mut(self.weight.len()) {
            let scale = rms_scale(lanes, head, self.eps);
            for (x, weight) in head.iter_mut().zip(self.weight) {
                *x = *x * scale * weight;
            }
            if let Some(turn) = self.turn {
                rotate(head, turn);
            }
        }
    }
}

/// Replaces scores by their exponentials, the largest being 1, and gives the sum of these.
pub(crate) struct Softmax<'a> {
    pub scores: &'a mut [f32],
    pub sum: &'a mut f32,
}

impl Kernel for Softmax<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let (eights, rest) = self.scores.as_chunks::<LANES>();
        let mut most = [f32::NEG_INFINITY; LANES];
        for eight in eights {
            for i in 0..LANES {
                most[i] = if eight[i] > most[i] { eight[i] } else { most[i] };
            }
        }
        let most = rest.iter().chain(&most).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        // One loop for the exponentials alone: only so the compiler vectorises it.
        self.scores.iter_mut().for_each(|score| *score = exp(*score - most));
        let (eights, rest) = self.scores.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for eight in eights {
            for i in 0..LANES {
                sums[i] += eight[i];
            }
        }
        for (score, sum) in rest.iter().zip(&mut sums) {
            *sum += score;
        }
        let [a, b, c, d, e, f, g, h] = sums;
        *self.sum = ((a + e) + (c + g)) + ((b + f) + (d + h));
    }
}
