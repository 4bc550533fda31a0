//! Traces for smaller models and faster machines: the same requests with fewer tokens and shorter waits.

use std::num::NonZeroU32;
use std::sync::Arc;

use traces::{Image, Prefix, Request, When};

/// What token counts and times are divided by.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Of prompts, answers, images and the blocks of prefixes; rounded up.
    pub tokens: NonZeroU32,
    /// Of arrivals and waits, above 0.
    pub time: f64,
}

impl Scale {
    /// The request on this scale.
    ///
    /// # Errors
    /// Blocks of a prefix whose size is no multiple of the divisor: what they cover would no longer be known.
    pub fn apply(self, request: Request) -> Result<Request, String> {
        let by = self.tokens.get();
        let tokens = |count: u32| count.div_ceil(by);
        let time = |ns: u64| (ns as f64 / self.time).round() as u64;
        let when = match request.when {
            When::At { ns } => When::At { ns: time(ns) },
            When::After { wait_ns } => When::After { wait_ns: time(wait_ns) },
        };
        let Prefix { block_tokens, ids } = request.prefix;
        if !block_tokens.is_multiple_of(by) && !ids.is_empty() {
            return Err(format!("blocks of {block_tokens} tokens cannot be divided by {by}"));
        }
        let prompt_tokens = tokens(request.prompt_tokens);
        let mut images: Vec<Image> = Vec::new();
        for image in &request.images {
            let after = images.last().map_or(0, |last| last.at + last.tokens);
            let at = (image.at / by).max(after);
            let room = prompt_tokens.saturating_sub(at);
            if room > 0 {
                images.push(Image { at, tokens: tokens(image.tokens).min(room) });
            }
        }
        let prefix = Prefix { block_tokens: block_tokens / by, ids: Arc::clone(&ids) };
        let output_tokens = tokens(request.output_tokens);
        Ok(Request { when, prompt_tokens, output_tokens, prefix, images, ..request })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            id: 3,
            session: Some(1),
            when: When::After { wait_ns: 1000 },
            prompt_tokens: 308,
            output_tokens: 1,
            prefix: Prefix::chained(16, vec![7, 8]),
            images: vec![Image { at: 28, tokens: 260 }],
        }
    }

    #[test]
    fn everything_shrinks_alike() {
        let scale = Scale { tokens: NonZeroU32::new(16).expect("it is not 0"), time: 40.0 };
        let small = scale.apply(request()).expect("16 is a multiple of 16");
        assert_eq!((small.prompt_tokens, small.output_tokens), (20, 1));
        assert_eq!(small.when, When::After { wait_ns: 25 });
        assert_eq!(small.prefix, Prefix::chained(1, vec![7, 8]));
        assert_eq!(small.images, [Image { at: 1, tokens: 17 }]);
    }

    #[test]
    fn blocks_that_cannot_be_divided_are_refused() {
        let scale = Scale { tokens: NonZeroU32::new(3).expect("it is not 0"), time: 1.0 };
        assert_eq!(scale.apply(request()), Err("blocks of 16 tokens cannot be divided by 3".to_owned()));
    }
}
