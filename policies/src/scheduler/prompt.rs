//! Cutting a prompt that is longer than the context, and the images in what is left.

use std::ops::Range;

use crate::scheduler::{Job, Refusal, Unbreakable};

/// The tokens to cut out of a prompt that is longer than the context: those after the head of
/// `keep` tokens, so many that the tail ends where the context does, or more where that would cut
/// an image in two, which may be forbidden. `keep` is below `num_ctx`.
pub(super) fn excess(job: &Job, num_ctx: u32, keep: u32, whole_images: bool) -> Result<Range<u32>, Refusal> {
    let mut start = keep + (job.prompt_tokens - num_ctx);
    for piece in job.unbreakable.iter().filter(|piece| whole_images && piece.tokens > 1) {
        if piece.at < keep {
            return Err(Refusal::ImageInHead { at: piece.at, keep, tokens: piece.tokens });
        }
        if piece.at < start && start < piece.at + piece.tokens {
            start = piece.at + piece.tokens;
        }
    }
    if start >= job.prompt_tokens {
        return Err(Refusal::NothingLeft);
    }
    Ok(keep..start)
}

/// Moves images down to where they are once `cut` is gone; those that begin in it are gone too.
pub(super) fn move_down(pieces: &mut Vec<Unbreakable>, cut: &Range<u32>) {
    pieces.retain_mut(|piece| {
        let stays = !cut.contains(&piece.at);
        if piece.at >= cut.end {
            piece.at -= cut.end - cut.start;
        }
        stays
    });
}

/// Tokens that have to be in one batch with the token at `at`: an image's if it begins there.
pub(super) fn together(pieces: &[Unbreakable], at: u32) -> u32 {
    pieces.iter().find(|piece| piece.at == at).map_or(1, |piece| piece.tokens.max(1))
}

/// Tokens after `at`, itself included, before the next image.
pub(super) fn until_next(pieces: &[Unbreakable], at: u32) -> u32 {
    pieces.iter().map(|piece| piece.at).find(|&next| next > at).map_or(u32::MAX, |next| next - at)
}
