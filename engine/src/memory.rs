//! How much memory there is, so that what cannot fit is refused before it is begun.

use std::fs;

use crate::error::EngineError;

/// Bytes that can still be had without swapping: what the kernel says, or the limit of the control
/// group if that is less. None where neither is known (other systems than Linux).
pub fn available() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kilobytes.checked_mul(1024)
    });
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse().ok());
    match (system, group) {
        (Some(system), Some(group)) => Some(system.min(group)),
        (one, other) => one.or(other),
    }
}

/// Refuses what needs more than there is.
///
/// # Errors
/// [`EngineError::Memory`].
pub fn check(what: &'static str, bytes: u64) -> Result<(), EngineError> {
    match available() {
        Some(available) if bytes > available => Err(EngineError::Memory { what, bytes }),
        _ => Ok(()),
    }
}

/// An empty list with room for so many items, on large pages where the system has them: reading many megabytes
/// through pages of 4 kB costs a good part of the bandwidth.
///
/// # Errors
/// [`EngineError::Memory`] if there is no room.
pub(crate) fn reserve<T>(what: &'static str, len: usize) -> Result<Vec<T>, EngineError> {
    let mut items = Vec::new();
    let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
    items.try_reserve_exact(len).map_err(|_| EngineError::Memory { what, bytes })?;
    #[cfg(target_os = "linux")]
    ask_for_large_pages(&mut items);
    Ok(items)
}

/// Tells the kernel that a list, not yet written, is worth large pages. That it may not have any is no trouble.
#[cfg(target_os = "linux")]
fn ask_for_large_pages<T>(items: &mut Vec<T>) {
    use rustix::mm::{Advice, madvise};
    /// Bytes of a large page: of x86-64, and of most others with pages of 4 kB.
    const LARGE: usize = 2 << 20;
    let room = items.spare_capacity_mut();
    let (start, bytes) = (room.as_mut_ptr().cast::<u8>(), size_of_val(room));
    let skipped = start.align_offset(LARGE);
    let whole = bytes.saturating_sub(skipped) / LARGE * LARGE;
    if whole > 0 {
        // SAFETY: the range lies within an allocation of this list, and this advice changes nothing in it.
        #[allow(unsafe_code, reason = "the system call takes a pointer")]
        let advised = unsafe { madvise(start.wrapping_add(skipped).cast(), whole, Advice::LinuxHugepage) };
        // A kernel without large pages says so, and the list is as good as any other.
        let _ = advised;
    }
}
