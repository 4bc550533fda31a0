//! Asking memory for what is read soon.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for every cache line of a piece of memory, without waiting for it, into the second-level cache: the first
/// has too few places for lines on their way. Nothing where the processor has no
/// such instruction.
#[inline(always)]
pub(crate) fn ask_for<T>(data: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let start = data.as_ptr().cast::<i8>();
        for at in (0..size_of_val(data)).step_by(LINE) {
            // SAFETY: a prefetch reads nothing, and never faults, whatever the address.
            #[allow(unsafe_code, reason = "the processor's prefetch takes a pointer")]
            unsafe {
                _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at));
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, LINE);
}
