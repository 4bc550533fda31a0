//! What the server being reproduced writes to its log, line by line.
//!
//! The texts are those of Ollama 0.6.6, without the time and the source position that stand before
//! the message in a real log.

use std::fmt;

use crate::policy::NotShifted;

/// One line of a server's log. `Display` gives its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLine {
    /// A prompt is longer than the context; its head and its tail stay.
    TruncatingPrompt {
        /// Longest context, tokens.
        limit: u32,
        /// Tokens of the prompt as it came.
        prompt: u32,
        /// Leading tokens that stay.
        keep: u32,
        /// Tokens of the prompt that is left.
        new: u32,
    },
    /// A request gets its slot.
    LoadingSlot {
        /// Slot.
        slot: u32,
        /// Tokens that lay in it.
        cache: u32,
        /// Tokens of the prompt.
        prompt: u32,
        /// Tokens of the slot that the prompt goes on from.
        used: u32,
        /// Tokens of the prompt that are to be computed.
        remaining: u32,
    },
    /// What an idle slot holds is given up.
    EvictingSlot {
        /// Slot.
        slot: u32,
        /// Tokens that lay in it.
        inputs: u32,
    },
    /// A slot starts with the first tokens of another.
    ForkingSlot {
        /// Slot that has the tokens.
        src: u32,
        /// Slot that gets them.
        dst: u32,
        /// Tokens that both then have.
        inputs: u32,
        /// Tokens of the first slot.
        total: u32,
    },
    /// A sequence has reached the context limit and loses tokens after its head.
    ShiftingContext {
        /// Slot.
        slot: u32,
        /// Longest context, tokens.
        limit: u32,
        /// Tokens of the slot.
        input: u32,
        /// Leading tokens that stay.
        keep: u32,
        /// Tokens that go.
        discard: u32,
    },
    /// The cache cannot slide the tail down, so that everything is computed again.
    Reprocessing {
        /// Slot.
        slot: u32,
        /// What the cache said.
        error: NotShifted,
    },
    /// The cache is compacted, because a batch found no run of free cells.
    Defragmenting,
    /// The batch found no room even so, and the process dies.
    Panic {
        /// Cells of the cache that had no room; none where the message does not say.
        cells: Option<u32>,
    },
}

impl LogLine {
    /// The level, as the server spells it; none for what a dying process writes.
    pub fn level(&self) -> Option<&'static str> {
        match self {
            LogLine::TruncatingPrompt { .. } => Some("WARN"),
            LogLine::Panic { .. } => None,
            _ => Some("DEBUG"),
        }
    }
}

impl fmt::Display for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(level) = self.level() {
            write!(f, "level={level} ")?;
        }
        match *self {
            LogLine::TruncatingPrompt { limit, prompt, keep, new } => write!(
                f,
                "msg=\"truncating input prompt\" limit={limit} prompt={prompt} keep={keep} new={new}"
            ),
            LogLine::LoadingSlot { slot, cache, prompt, used, remaining } => write!(
                f,
                "msg=\"loading cache slot\" id={slot} cache={cache} prompt={prompt} used={used} \
                 remaining={remaining}"
            ),
            LogLine::EvictingSlot { slot, inputs } => {
                write!(f, "msg=\"evicting cache slot\" id={slot} inputs={inputs}")
            }
            LogLine::ForkingSlot { src, dst, inputs, total } => {
                write!(f, "msg=\"forking cache slot\" src={src} dst={dst} inputs={inputs} total={total}")
            }
            LogLine::ShiftingContext { slot, limit, input, keep, discard } => write!(
                f,
                "msg=\"context limit hit - shifting\" id={slot} limit={limit} input={input} keep={keep} \
                 discard={discard}"
            ),
            LogLine::Reprocessing { slot, error } => write!(
                f,
                "msg=\"kv cache removal unsupported, clearing cache and returning inputs for reprocessing\" \
                 id={slot} error=\"{error}\""
            ),
            LogLine::Defragmenting => f.write_str("msg=\"defragmenting kv cache\""),
            LogLine::Panic { cells } => {
                f.write_str("panic: failed to decode batch: could not find a kv cache slot")?;
                cells.map_or(Ok(()), |cells| write!(f, " (length: {cells})"))
            }
        }
    }
}
