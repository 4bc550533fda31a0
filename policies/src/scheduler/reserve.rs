//! What admission sets aside for a request: nothing, its prompt, or everything up to its end.
//!
//! Setting aside everything means that nobody is ever preempted, and that few run. Source: vLLM's
//! full-sequence-must-fit (`prompt`), TensorRT-LLM's GUARANTEED_NO_EVICT (`max`); with `full` an oracle tells
//! the length, which bounds what any guess of it could do.

use crate::policy::Reach;

/// For which of its tokens a request must find free cells when it is admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reserve {
    /// For the first piece of its prompt.
    None,
    /// For its whole prompt.
    #[default]
    Prompt,
    /// For all tokens that it will ever have, everybody else's being set aside as well; the length is known.
    Full,
    /// The same with the longest that the answer may become.
    Max,
}

impl Reserve {
    /// Whether what is to come is set aside, too.
    pub(super) fn is_to_the_end(self) -> bool {
        matches!(self, Reserve::Full | Reserve::Max)
    }
}

/// Most cells that a sequence which ends with `end` tokens holds at one time, while tokens come one by one:
/// whole granules, and for a window one that begins and one that ends inside a granule.
pub(super) fn cells_to_the_end(reach: Reach, end: u32, granule: u32) -> u64 {
    let (end, granule) = (u64::from(end), u64::from(granule));
    match reach {
        Reach::Full => end.div_ceil(granule) * granule,
        Reach::Window(window) => {
            let spanned = (u64::from(window).saturating_sub(1)).div_ceil(granule) + 2;
            spanned.min(end.div_ceil(granule)) * granule
        }
    }
}
