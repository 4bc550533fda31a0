//! What this machine can do at best: bytes per second from memory, multiplications per second.
//!
//! Measured with the threads that the engine computes on, in the process that computes, so that a
//! step can be set beside what was possible in the same minute.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::error::EngineError;
use crate::memory;

/// Bytes that are read: far more than caches hold.
const BYTES: usize = 256 << 20;
/// Numbers that a thread takes at once.
const TASK: usize = 1 << 16;
/// How often each is measured. The best counts: other programs only ever take away.
const ROUNDS: usize = 20;

/// The bounds of a machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Threads that took part.
    pub threads: usize,
    /// Bytes per second that are read from main memory.
    pub read_bytes_per_s: f64,
    /// Bytes per second that are read and written, both counted, when memory is copied.
    pub copy_bytes_per_s: f64,
    /// Floating-point operations per second in f32, multiplications and additions both counted.
    pub flops: f64,
}

impl Machine {
    /// Measures this machine; takes about a second.
    ///
    /// # Errors
    /// [`EngineError::Memory`] if there is no room for half a gigabyte.
    pub fn measure() -> Result<Machine, EngineError> {
        let buffer = || {
            let mut numbers: Vec<u64> = memory::reserve("measuring memory", BYTES / 8)?;
            numbers.resize(BYTES / 8, 1);
            Ok(numbers)
        };
        let (from, mut to): (Vec<u64>, Vec<u64>) = (buffer()?, buffer()?);
        let read_s = best_of(|| {
            black_box(
                from.par_chunks(TASK)
                    .map(|part| part.iter().fold(0, |all, x| all ^ x))
                    .reduce(|| 0, |a, b| a ^ b),
            );
        });
        let copy_s = best_of(|| {
            to.par_chunks_mut(TASK)
                .zip(from.par_chunks(TASK))
                .for_each(|(to, from)| to.copy_from_slice(from));
            black_box(&to);
        });
        let threads = rayon::current_num_threads();
        let rounds = 200_000;
        let flops_s = best_of(|| {
            rayon::broadcast(|_| black_box(crate::cpu::multiply_and_add(rounds)));
        });
        let operations = threads as f64 * f64::from(rounds) * f64::from(crate::cpu::OPERATIONS_PER_ROUND);
        Ok(Machine {
            threads,
            read_bytes_per_s: BYTES as f64 / read_s,
            copy_bytes_per_s: 2.0 * BYTES as f64 / copy_s,
            flops: operations / flops_s,
        })
    }
}

/// Seconds of the fastest of some rounds.
fn best_of(mut work: impl FnMut()) -> f64 {
    let rounds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    });
    rounds.fold(f64::INFINITY, f64::min)
}
