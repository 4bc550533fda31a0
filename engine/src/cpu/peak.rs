//! As many multiplications and additions as the vector unit can do, for the roofline.

use super::lanes::{Isa, Kernel, LANES, Lanes};

/// Sums that do not wait for each other.
const SUMS: usize = 12;

/// Floating-point operations of one round.
pub(crate) const OPERATIONS_PER_ROUND: u32 = (2 * SUMS * LANES) as u32;

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
        let (a, b) = (lanes.splat(0.5), lanes.splat(0.25));
        let mut sums = [lanes.splat(1.0); SUMS];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = lanes.fma(*sum, a, b);
            }
        }
        *self.out = sums.iter().map(|&sum| lanes.store(sum)[0]).sum();
    }
}
