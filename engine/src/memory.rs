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
