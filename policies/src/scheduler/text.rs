//! Which tokens lie in a slot, so that a next prompt can be compared with them.

use std::ops::Range;

use crate::content::Content;
use crate::scheduler::Job;

/// The tokens of a request as they stand in its slot: its prompt and its answer, less what was cut
/// out of them. How many have been computed is told beside it.
#[derive(Clone, Debug)]
pub(super) struct Text {
    /// Request whose tokens these are.
    pub request: u64,
    content: Content,
    session: Option<u64>,
    /// Tokens of the whole prompt.
    prompt_tokens: u32,
    /// Tokens of the whole prompt and of the answer that was asked for.
    total_tokens: u64,
    /// Pieces of the uncut text that stand one after another; the last is open to the end.
    pieces: Vec<Range<u32>>,
}

impl Text {
    /// The text of a request that nothing is cut out of.
    pub fn new(job: &Job) -> Self {
        Text {
            request: job.id,
            content: job.content.clone(),
            session: job.session,
            prompt_tokens: job.prompt_tokens,
            total_tokens: u64::from(job.prompt_tokens) + u64::from(job.output_tokens),
            pieces: vec![Range { start: 0, end: u32::MAX }],
        }
    }

    /// Cuts out the tokens that stand at `tokens` now.
    pub fn cut(&mut self, tokens: Range<u32>) {
        if tokens.is_empty() {
            return;
        }
        let mut pieces = Vec::with_capacity(self.pieces.len() + 1);
        let mut at = 0;
        for piece in &self.pieces {
            let len = piece.end - piece.start;
            let head = tokens.start.saturating_sub(at).min(len);
            let tail = tokens.end.saturating_sub(at).min(len);
            pieces.extend([piece.start..piece.start + head, piece.start + tail..piece.end]);
            at = at.saturating_add(len);
        }
        pieces.retain(|piece| !piece.is_empty());
        self.pieces = pieces;
    }

    /// Leading tokens that the first `len` tokens of this text and the first `next_len` of a later
    /// request's surely have in common. All prompts begin with the same `head` tokens.
    ///
    /// Where something is cut out, tokens agree only if the same was cut out of both.
    pub fn common_tokens(&self, len: u32, next: &Text, next_len: u32, head: u32) -> u32 {
        let agreed = self.agreement(next).max(head);
        let mut common: u32 = 0;
        for (own, other) in self.pieces.iter().zip(&next.pieces) {
            if own.start != other.start {
                break;
            }
            let end = own.end.min(other.end).min(agreed).max(own.start);
            common = common.saturating_add(end - own.start);
            if end < own.end.max(other.end) {
                break;
            }
        }
        common.min(len).min(next_len)
    }

    /// Leading tokens that the two texts have in common while nothing is cut out of them.
    fn agreement(&self, next: &Text) -> u32 {
        let chained = self.content.common_tokens(&next.content);
        let goes_on = self.session.is_some()
            && self.session == next.session
            && continues(&self.content, self.total_tokens, &next.content, next.prompt_tokens);
        if goes_on { chained.max(self.total_tokens as u32) } else { chained }
    }
}

/// Whether a later prompt of the same session begins with a whole earlier text, of `total_tokens` with
/// its answer.
pub(super) fn continues(earlier: &Content, total_tokens: u64, next: &Content, next_prompt: u32) -> bool {
    !earlier.chain.is_empty()
        && earlier.common_tokens(next) >= earlier.chained()
        && total_tokens <= u64::from(next_prompt)
        && total_tokens < u64::from(next.chained()) + u64::from(next.chain_tokens)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A text as a list of tokens: the offset where both texts agree, something else where not.
    fn tokens(shared: u32, own: u32, len: u32, cuts: &[(u32, u32)]) -> Vec<u32> {
        let mut tokens: Vec<u32> = (0..1000).map(|i| if i < shared { i } else { own + i }).collect();
        for &(at, count) in cuts {
            tokens.drain(at as usize..(at + count) as usize);
        }
        tokens.truncate(len as usize);
        tokens
    }

    fn text(shared: u32, own: u64, cuts: &[(u32, u32)]) -> Text {
        let ids = (0..shared).map(u64::from).chain([own << 32]).collect();
        let content = Content { chain: ids, chain_tokens: 1, chain_end: shared + 1, own };
        let mut text = Text::new(&Job { content, ..Job::new(own, 50, 10) });
        cuts.iter().for_each(|&(at, count)| text.cut(at..at + count));
        text
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn texts_agree_like_lists_of_tokens(
            shared in 0..40u32,
            lens in [0..50u32, 0..50u32],
            mut cuts in prop::collection::vec((0..12u32, 0..9u32), 0..4),
            more in prop::collection::vec((0..12u32, 0..9u32), 0..3),
            as_one in any::<bool>(),
        ) {
            let one = text(shared, 1, &cuts);
            let list = tokens(shared, 2000, lens[0], &cuts);
            cuts.truncate(if as_one { cuts.len() } else { 1 });
            cuts.extend(if as_one { &[] } else { &more[..] });
            let other = text(shared, 2, &cuts);
            let other_list = tokens(shared, 4000, lens[1], &cuts);
            let common = list.iter().zip(&other_list).take_while(|(a, b)| a == b).count() as u32;
            let found = one.common_tokens(lens[0], &other, lens[1], 0);
            prop_assert!(found <= common, "{} are not in common, only {}", found, common);
            // Pieces that were cut apart and still stand together count as one only if both were.
            if as_one {
                prop_assert_eq!(found, common);
            }
        }
    }
}
