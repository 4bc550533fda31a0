//! A set of cells that knows its lowest and its highest one.
//!
//! A bitmap, and above it bitmaps of the words that are not empty, 64 to one, up to a single word:
//! three levels for 262,144 cells. Every operation costs O(levels). Memory is taken when the first
//! cell comes.

use crate::policy::Cell;

#[derive(Clone, Debug, Default)]
pub(super) struct CellSet {
    /// From the cells themselves up to one word.
    levels: Vec<Vec<u64>>,
}

impl CellSet {
    /// Adds a cell, which is below `cells`.
    pub fn insert(&mut self, cell: Cell, cells: u32) {
        if self.levels.is_empty() {
            let mut len = cells as usize;
            while self.levels.last().is_none_or(|level| level.len() > 1) {
                len = len.div_ceil(64);
                self.levels.push(vec![0; len]);
            }
        }
        let mut index = cell as usize;
        for level in &mut self.levels {
            level[index / 64] |= 1 << (index % 64);
            index /= 64;
        }
    }

    pub fn remove(&mut self, cell: Cell) {
        let mut index = cell as usize;
        for level in &mut self.levels {
            level[index / 64] &= !(1 << (index % 64));
            if level[index / 64] != 0 {
                return;
            }
            index /= 64;
        }
    }

    /// The lowest cell and the highest one.
    pub fn ends(&self) -> Option<(Cell, Cell)> {
        if self.levels.last().is_none_or(|top| top[0] == 0) {
            return None;
        }
        let (mut first, mut last) = (0, 0);
        for level in self.levels.iter().rev() {
            first = first * 64 + level[first].trailing_zeros() as usize;
            last = last * 64 + 63 - level[last].leading_zeros() as usize;
        }
        Some((first as Cell, last as Cell))
    }

    /// The cells, in order; looks at every word.
    pub fn iter(&self) -> impl Iterator<Item = Cell> {
        let words = self.levels.first().into_iter().flatten().zip((0..).step_by(64));
        words.flat_map(|(&word, base)| {
            let rests = std::iter::successors(Some(word), |rest| Some(rest & rest.wrapping_sub(1)));
            rests.take_while(|&rest| rest != 0).map(move |rest| base + rest.trailing_zeros())
        })
    }

    /// Cells in the set, by counting.
    pub fn count(&self) -> usize {
        self.levels.first().map_or(0, |words| words.iter().map(|word| word.count_ones() as usize).sum())
    }

    /// Whether a cell is in the set.
    pub fn contains(&self, cell: Cell) -> bool {
        let word = self.levels.first().and_then(|words| words.get(cell as usize / 64));
        word.is_some_and(|word| word >> (cell % 64) & 1 == 1)
    }
}
