//! As many multiplications and additions as the vector unit can do, for the roofline.

use super::lanes::{Isa, Kernel, LANES, Lanes};

/// Pairs of vectors that a round multiplies.
const PAIRS: usize = 12;

/// Floating-point operations of one round.
pub(crate) const OPERATIONS_PER_ROUND: u32 = (2 * PAIRS * 2 * LANES) as u32;

/// Does so many rounds and returns something that depends on all of them.
pub(crate) fn multiply_and_add(rounds: u32) -> f32 {
    let mut out = 0.0;
    Isa::detect().run(Rounds { rounds, out: &mut out });
    out
}

struct Rounds<'a> {
    rounds: u32,
    out: &'a mut f32,
}

impl Kernel for Rounds<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        // Sums that do not wait for each other, and all of them in registers.
        *self.out = if 2 * L::PAIR_INPUTS >= PAIRS {
            rounds::<L, PAIRS>(lanes, self.rounds)
        } else {
            rounds::<L, { PAIRS / 2 }>(lanes, 2 * self.rounds)
        };
    }
}

#[inline(always)]
fn rounds<L: Lanes, const SUMS: usize>(lanes: L, rounds: u32) -> f32 {
    let all = |x| lanes.beside(lanes.splat(x), lanes.splat(x));
    let (a, b) = (all(0.5), all(0.25));
    let mut sums = [all(1.0); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = lanes.fma_pair(*sum, a, b);
        }
    }
    sums.iter().map(|&sum| lanes.apart(sum)[0][0]).sum()
}
