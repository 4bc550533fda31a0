//! One request of a trace.

use std::sync::{Arc, LazyLock};

/// A request: how many tokens come in and go out, when, and what its prompt shares with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Number of the request in its trace, from 0, in the order they are read.
    pub id: u64,
    /// Conversation or agent session; requests of one session never overlap in a closed loop.
    pub session: Option<u64>,
    /// When it is sent.
    pub when: When,
    /// Tokens of the prompt, history included. At least 1.
    pub prompt_tokens: u32,
    /// Tokens to generate. At least 1.
    pub output_tokens: u32,
    /// What the prompt begins with, as ids that equal prompts share.
    pub prefix: Prefix,
    /// Blocks of the prompt that must be computed in one batch (images), by rising offset.
    pub images: Vec<Image>,
}

/// When a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Open loop: so many nanoseconds after the start of the trace.
    At {
        /// Nanoseconds since the start of the trace.
        ns: u64,
    },
    /// Closed loop: so long after the end of the previous request of the same session, which
    /// stands directly before this one in the trace. The first request of a session is `At`.
    After {
        /// Nanoseconds between the end of the previous answer and this request.
        wait_ns: u64,
    },
}

/// Ids of the leading blocks of a prompt. An id stands for its block *and everything before it*
/// (a hash chain), so two prompts agree up to the last equal id. Ids are unique in the whole
/// trace: readers make session-local ids global.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Tokens that each id covers; only meaningful where `ids` is not empty.
    pub block_tokens: u32,
    /// The chained ids. `ids.len() * block_tokens` may exceed the prompt by a partial last block,
    /// which is then equal only for prompts of equal content up to their end.
    pub ids: Arc<[u64]>,
}

impl Prefix {
    /// Chained ids of blocks of `block_tokens` tokens; [`Prefix::unknown`] where there are none.
    pub fn chained(block_tokens: u32, ids: Vec<u64>) -> Self {
        if ids.is_empty() {
            return Prefix::unknown();
        }
        Prefix { block_tokens, ids: ids.into() }
    }

    /// A prompt about which nothing is known, so that it shares nothing.
    pub fn unknown() -> Self {
        static NOTHING: LazyLock<Arc<[u64]>> = LazyLock::new(|| Arc::from([]));
        Prefix { block_tokens: 0, ids: NOTHING.clone() }
    }
}

/// An unbreakable block of prompt tokens: an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// Offset of its first token in the prompt.
    pub at: u32,
    /// Tokens it takes (Gemma 3 in Ollama: 260, with the two markers and the line breaks).
    pub tokens: u32,
}
