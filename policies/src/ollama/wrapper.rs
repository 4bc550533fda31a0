//! Several caches that are asked together, in order.

use crate::ollama::END;
use crate::ollama::cache::{Cache, Setup, Token, Trouble};
use crate::plan::Plan;

/// The caches of a model.
#[derive(Clone, Debug)]
pub struct Wrapper {
    caches: Vec<Cache>,
}

impl Wrapper {
    /// Empty caches; Gemma 3 has the one with the window first.
    pub fn new(setups: impl IntoIterator<Item = Setup>) -> Self {
        Wrapper { caches: setups.into_iter().map(Cache::new).collect() }
    }

    /// The caches, in order.
    pub fn caches(&self) -> &[Cache] {
        &self.caches
    }

    /// Makes the range of the largest graph the current one everywhere.
    pub fn reserve(&mut self) {
        self.caches.iter_mut().for_each(Cache::reserve);
    }

    /// Gives cells to a batch in every cache, and says what is written where.
    ///
    /// # Errors
    /// [`Trouble::Full`] of the first cache that refuses: those before it lose every sequence of the
    /// batch from its token on, and what was trimmed and compacted stays so. Nothing is written.
    pub fn forward(&mut self, batch: &[Token], plan: &mut Plan) -> Result<(), Trouble> {
        self.forward_each(|_| batch, plan)
    }

    /// The same with a batch for each cache.
    pub(super) fn forward_each<'a>(
        &mut self,
        batch: impl Fn(usize) -> &'a [Token],
        plan: &mut Plan,
    ) -> Result<(), Trouble> {
        for class in 0..self.caches.len() {
            if let Err(trouble) = self.caches[class].forward(batch(class), plan) {
                for (earlier, cache) in self.caches[..class].iter_mut().enumerate() {
                    for token in batch(earlier) {
                        let removed = cache.remove(token.seq, token.pos, END, plan);
                        debug_assert_eq!(removed, Ok(()), "a removal to the end shifts nothing");
                    }
                }
                return Err(trouble);
            }
        }
        for (class, cache) in self.caches.iter_mut().enumerate() {
            cache.write(batch(class), plan);
        }
        Ok(())
    }

    /// Removes positions from a sequence, see [`Cache::remove`].
    ///
    /// # Errors
    /// The first cache's that refuses; those before it stay as they are then, those after it are
    /// not asked.
    pub fn remove(&mut self, seq: u32, begin: i32, end: i32, plan: &mut Plan) -> Result<(), Trouble> {
        self.caches.iter_mut().try_for_each(|cache| cache.remove(seq, begin, end, plan))
    }

    /// Gives `to` the first `len` positions of `from`, see [`Cache::copy_prefix`].
    pub fn copy_prefix(&mut self, from: u32, to: u32, len: i32) {
        self.caches.iter_mut().for_each(|cache| cache.copy_prefix(from, to, len));
    }

    /// Whether a sequence may go on at `pos` in every cache.
    pub fn can_resume(&self, seq: u32, pos: i32) -> bool {
        self.caches.iter().all(|cache| cache.can_resume(seq, pos))
    }

    /// Marks everything that a sequence holds as left behind.
    pub(super) fn leave_behind(&mut self, seq: u32) {
        self.caches.iter_mut().for_each(|cache| cache.leave_behind(seq));
    }

    /// Checks all books.
    ///
    /// # Errors
    /// What does not agree.
    pub fn audit(&self) -> Result<(), String> {
        self.caches.iter().try_for_each(|cache| {
            cache.audit().map_err(|what| format!("class {}: {what}", cache.setup().class.0))
        })
    }
}
