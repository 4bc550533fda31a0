//! Where the numbers of a matrix lie: in a list of their own, or side by side with those of others.
//!
//! Memory gives weights fastest from large pages, of 2 MB, and a list of 2 MB that begins somewhere has
//! not one of them. In one piece of memory they share the pages.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use pulp::bytemuck::{Pod, cast_slice};

use crate::error::EngineError;
use crate::memory;

/// Numbers, read like a slice.
#[derive(Clone)]
pub struct Numbers<T>(Place<T>);

#[derive(Clone)]
enum Place<T> {
    Own(Vec<T>),
    /// Some numbers from a word on.
    Shared {
        words: Arc<OnceLock<Vec<u64>>>,
        first: usize,
        len: usize,
    },
}

impl<T: Pod> Deref for Numbers<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Place::Own(numbers) => numbers,
            Place::Shared { words, first, len } => {
                let words = words.get().map_or(&[][..], |words| &words[*first..]);
                &cast_slice(words)[..*len]
            }
        }
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Numbers<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T> From<Vec<T>> for Numbers<T> {
    fn from(numbers: Vec<T>) -> Numbers<T> {
        Numbers(Place::Own(numbers))
    }
}

impl<T> FromIterator<T> for Numbers<T> {
    fn from_iter<I: IntoIterator<Item = T>>(numbers: I) -> Numbers<T> {
        Numbers::from(Vec::from_iter(numbers))
    }
}

impl<T: Pod> Numbers<T> {
    /// As a list of their own.
    pub(crate) fn into_vec(self) -> Vec<T> {
        match self.0 {
            Place::Own(numbers) => numbers,
            Place::Shared { .. } => self.to_vec(),
        }
    }

    /// Moves them to the end of a piece of memory; until that is finished, they cannot be read.
    pub(crate) fn move_into(&mut self, piece: &mut Piece) {
        let (first, len) = (piece.words.len(), self.len());
        let (whole, rest) = cast_slice::<T, u8>(self).as_chunks();
        piece.words.extend(whole.iter().map(|&word| u64::from_ne_bytes(word)));
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            piece.words.push(u64::from_ne_bytes(last));
        }
        self.0 = Place::Shared { words: piece.finished.clone(), first, len };
    }
}

/// A piece of memory that is being filled.
pub(crate) struct Piece {
    words: Vec<u64>,
    finished: Arc<OnceLock<Vec<u64>>>,
}

impl Piece {
    /// With room for lists of so many bytes.
    ///
    /// # Errors
    /// [`EngineError::Memory`] if there is no room.
    pub(crate) fn with_room(lists: impl Iterator<Item = usize>) -> Result<Piece, EngineError> {
        let words = lists.map(|bytes| bytes.div_ceil(size_of::<u64>())).sum();
        Ok(Piece { words: memory::reserve("the weights", words)?, finished: Arc::default() })
    }

    /// Nothing is moved into it any more.
    pub(crate) fn finish(self) {
        // No other piece has this cell, so it is empty.
        let _ = self.finished.set(self.words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_any_length_are_the_same_side_by_side() {
        let bytes: Vec<Vec<u8>> = (0..20).map(|len| (0..len).collect()).collect();
        let floats: Vec<Vec<f32>> = (0..5).map(|len| (0..len).map(|i| i as f32 / 3.0).collect()).collect();
        let mut shared_bytes: Vec<Numbers<u8>> = bytes.iter().cloned().map(Numbers::from).collect();
        let mut shared_floats: Vec<Numbers<f32>> = floats.iter().cloned().map(Numbers::from).collect();
        let sizes = bytes.iter().map(Vec::len).chain(floats.iter().map(|floats| 4 * floats.len()));
        let mut piece = Piece::with_room(sizes).unwrap();
        let room = piece.words.capacity();
        shared_bytes.iter_mut().for_each(|numbers| numbers.move_into(&mut piece));
        shared_floats.iter_mut().for_each(|numbers| numbers.move_into(&mut piece));
        assert_eq!(piece.words.capacity(), room, "there is room for all, and the pages stay");
        piece.finish();
        assert!(shared_bytes.iter().zip(&bytes).all(|(shared, own)| **shared == **own));
        assert!(shared_floats.iter().zip(&floats).all(|(shared, own)| **shared == **own));
        let copy = shared_floats.last().cloned();
        drop(shared_floats);
        assert_eq!(&**copy.as_ref().unwrap(), &**floats.last().unwrap(), "a copy holds the piece");
    }
}
