//! Which cells are free, with first-fit, next-fit and best-fit in O(log n).
//!
//! One bit per cell, 64 to a leaf, and above the leaves a binary tree whose nodes know the free
//! run at their left end, at their right end, and the longest one inside. A change walks up only
//! as far as something changes. Best-fit keeps the runs by length as well.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::policy::{Cell, Shape};

/// Where to look for a free run that is long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The lowest one.
    First,
    /// The first one after the last placement, wrapping around once.
    Next,
    /// The shortest one; the lowest of those.
    Best,
}

/// Free runs below a node: at its left end, at its right end, the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    left: u32,
    right: u32,
    longest: u32,
}

impl Node {
    const USED: Node = Node { left: 0, right: 0, longest: 0 };

    fn of_word(free: u64) -> Node {
        Node { left: free.trailing_ones(), right: free.leading_ones(), longest: longest_ones(free) }
    }

    fn of_children(left: Node, right: Node, half: u32) -> Node {
        Node {
            left: if left.left == half { half + right.left } else { left.left },
            right: if right.right == half { half + left.right } else { right.right },
            longest: left.longest.max(right.longest).max(left.right + right.left),
        }
    }
}

/// Longest row of ones in a word.
fn longest_ones(mut word: u64) -> u32 {
    if word == u64::MAX {
        return 64;
    }
    let mut len = 0;
    while word != 0 {
        word &= word << 1;
        len += 1;
    }
    len
}

/// Lowest bit at which a row of `len` ones starts, `1 <= len <= 64`.
fn first_ones(word: u64, len: u32) -> Option<u32> {
    let mut starts = word;
    let mut have = 1;
    while have < len {
        let more = have.min(len - have);
        starts &= starts >> more;
        have += more;
    }
    (starts != 0).then(|| starts.trailing_zeros())
}

/// The bits of `word_index` that lie in `cells`.
fn mask(word_index: usize, cells: &Range<Cell>) -> u64 {
    let base = word_index as u64 * 64;
    let low = u64::from(cells.start).saturating_sub(base).min(64);
    let high = u64::from(cells.end).saturating_sub(base).min(64);
    let below = |bits: u64| if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    below(high) & !below(low)
}

/// A set of free cells.
#[derive(Clone, Debug)]
pub struct FreeMap {
    cells: u32,
    free: u32,
    free_runs: u32,
    words: Vec<u64>,
    /// Heap order: node 1 is the root, the children of `i` are `2i` and `2i + 1`.
    nodes: Vec<Node>,
    leaves: usize,
    fit: Fit,
    cursor: Cell,
    /// Free runs by start and by (length, start); kept for best-fit only.
    by_start: BTreeMap<Cell, u32>,
    by_len: BTreeSet<(u32, Cell)>,
}

impl FreeMap {
    /// All cells free.
    pub fn new(cells: u32, fit: Fit) -> Self {
        let word_count = (cells as usize).div_ceil(64);
        let leaves = word_count.next_power_of_two().max(1);
        let mut map = FreeMap {
            cells,
            free: 0,
            free_runs: 0,
            words: vec![0; word_count],
            nodes: vec![Node::USED; 2 * leaves],
            leaves,
            fit,
            cursor: 0,
            by_start: BTreeMap::new(),
            by_len: BTreeSet::new(),
        };
        if cells > 0 {
            map.vacate(0..cells);
        }
        map
    }

    /// Free cells.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// Longest free run.
    pub fn largest_run(&self) -> u32 {
        self.nodes[1].longest
    }

    /// Whether a cell is free; false beyond the end.
    pub fn is_free(&self, cell: Cell) -> bool {
        cell < self.cells && self.words[cell as usize / 64] >> (cell % 64) & 1 == 1
    }

    /// Largest run, number of runs, high-water mark.
    pub fn shape(&self) -> Shape {
        Shape {
            largest_free_run: self.largest_run(),
            free_runs: self.free_runs,
            high_water: self.high_water(),
        }
    }

    /// One past the highest used cell.
    pub fn high_water(&self) -> Cell {
        self.prev_used(self.cells).map_or(0, |cell| cell + 1)
    }

    /// Where the fit rule would put `len` cells, if anywhere.
    pub fn find(&self, len: u32) -> Option<Cell> {
        if len == 0 || len > self.largest_run() {
            return None;
        }
        match self.fit {
            Fit::First => self.first_fit(len),
            Fit::Next => self.first_fit_from(self.cursor, len).or_else(|| self.first_fit(len)),
            Fit::Best => self.by_len.range((len, 0)..).next().map(|&(_, start)| start),
        }
    }

    /// Finds and takes `len` cells by the fit rule.
    pub fn take(&mut self, len: u32) -> Option<Cell> {
        let start = self.find(len)?;
        self.occupy(start..start + len);
        self.cursor = if start + len == self.cells { 0 } else { start + len };
        Some(start)
    }

    /// Where next-fit goes on; with [`set_cursor`](FreeMap::set_cursor) it undoes a [`take`](FreeMap::take).
    pub fn cursor(&self) -> Cell {
        self.cursor
    }

    /// Puts the next-fit cursor back.
    pub fn set_cursor(&mut self, cursor: Cell) {
        self.cursor = cursor;
    }

    /// Lowest start of `len` free cells.
    pub fn first_fit(&self, len: u32) -> Option<Cell> {
        if self.nodes[1].longest < len {
            return None;
        }
        let mut node = 1;
        let mut start = 0;
        let mut size = self.leaves as u32 * 64;
        while node < self.leaves {
            size /= 2;
            let (left, right) = (self.nodes[2 * node], self.nodes[2 * node + 1]);
            if left.longest >= len {
                node *= 2;
            } else if left.right + right.left >= len {
                return Some(start + size - left.right);
            } else {
                node = 2 * node + 1;
                start += size;
            }
        }
        first_ones(self.words[node - self.leaves], len).map(|bit| start + bit)
    }

    /// Lowest start, not below `from`, of `len` free cells.
    fn first_fit_from(&self, from: Cell, len: u32) -> Option<Cell> {
        if from >= self.cells {
            return None;
        }
        let mut carried = 0;
        self.search(1, 0, self.leaves as u32 * 64, from, len, &mut carried)
    }

    /// Searches below a node that covers `start..start + size`; `carried` free cells end at `start`.
    fn search(
        &self,
        node: usize,
        start: Cell,
        size: u32,
        from: Cell,
        len: u32,
        carried: &mut u32,
    ) -> Option<Cell> {
        if start + size <= from {
            return None;
        }
        let known = self.nodes[node];
        if start >= from {
            if *carried + known.left >= len {
                return Some(start - *carried);
            }
            if known.longest < len {
                *carried = if known.left == size { *carried + size } else { known.right };
                return None;
            }
        }
        if node >= self.leaves {
            let word = self.words[node - self.leaves] & mask(node - self.leaves, &(from..self.cells));
            let found = if len <= 64 { first_ones(word, len) } else { None };
            *carried = word.leading_ones();
            return found.map(|bit| start + bit);
        }
        let half = size / 2;
        self.search(2 * node, start, half, from, len, carried)
            .or_else(|| self.search(2 * node + 1, start + half, half, from, len, carried))
    }

    /// First used cell at or above `from`; the number of cells if there is none.
    pub fn next_used(&self, from: Cell) -> Cell {
        let mut index = from as usize / 64;
        if from >= self.cells {
            return self.cells;
        }
        let used = !self.words[index] & mask(index, &(from..self.cells));
        if used != 0 {
            return index as u32 * 64 + used.trailing_zeros();
        }
        // Climb to the first subtree on the right that is not all free, then descend to its left.
        let mut node = self.leaves + index;
        let mut size = 64;
        loop {
            if node & (node + 1) == 0 {
                return self.cells;
            }
            if node.is_multiple_of(2) && self.nodes[node + 1].left < size {
                node += 1;
                break;
            }
            node /= 2;
            size *= 2;
        }
        while node < self.leaves {
            size /= 2;
            node = if self.nodes[2 * node].left < size { 2 * node } else { 2 * node + 1 };
        }
        index = node - self.leaves;
        (index as u32 * 64 + self.nodes[node].left).min(self.cells)
    }

    /// Last used cell below `end`, if any.
    pub fn prev_used(&self, end: Cell) -> Option<Cell> {
        if end == 0 {
            return None;
        }
        let index = (end - 1) as usize / 64;
        let used = !self.words[index] & mask(index, &(0..end));
        if used != 0 {
            return Some(index as u32 * 64 + 63 - used.leading_zeros());
        }
        let mut node = self.leaves + index;
        let mut size = 64;
        loop {
            if node.is_power_of_two() {
                return None;
            }
            if !node.is_multiple_of(2) && self.nodes[node - 1].right < size {
                node -= 1;
                break;
            }
            node /= 2;
            size *= 2;
        }
        while node < self.leaves {
            size /= 2;
            node = if self.nodes[2 * node + 1].right < size { 2 * node + 1 } else { 2 * node };
        }
        Some((node - self.leaves) as u32 * 64 + 63 - self.nodes[node].right)
    }

    /// Start of the used run that ends with `last`.
    pub fn used_run_start(&self, last: Cell) -> Cell {
        let index = last as usize / 64;
        let free = self.words[index] & mask(index, &(0..last + 1));
        if free != 0 {
            return index as u32 * 64 + 64 - free.leading_zeros();
        }
        let mut node = self.leaves + index;
        loop {
            if node.is_power_of_two() {
                return 0;
            }
            if !node.is_multiple_of(2) && self.nodes[node - 1].longest > 0 {
                node -= 1;
                break;
            }
            node /= 2;
        }
        while node < self.leaves {
            node = if self.nodes[2 * node + 1].longest > 0 { 2 * node + 1 } else { 2 * node };
        }
        let index = node - self.leaves;
        index as u32 * 64 + 64 - self.words[index].leading_zeros()
    }

    /// Takes free cells.
    pub fn occupy(&mut self, cells: Range<Cell>) {
        debug_assert!(
            self.first_fit_from(cells.start, cells.end - cells.start) == Some(cells.start),
            "cells are free"
        );
        let left = cells.start > 0 && self.is_free(cells.start - 1);
        let right = self.is_free(cells.end);
        self.free_runs = self.free_runs + u32::from(left) + u32::from(right) - 1;
        self.free -= cells.end - cells.start;
        if self.fit == Fit::Best {
            let (&start, &len) =
                self.by_start.range(..=cells.start).next_back().expect("the cells lie in a free run");
            self.forget_run(start, len);
            self.note_run(start, cells.start - start);
            self.note_run(cells.end, start + len - cells.end);
        }
        self.update(&cells, |word, bits| word & !bits);
    }

    /// Gives cells back.
    pub fn vacate(&mut self, cells: Range<Cell>) {
        debug_assert!(cells.clone().all(|cell| cell < self.cells && !self.is_free(cell)), "cells are used");
        let left = cells.start > 0 && self.is_free(cells.start - 1);
        let right = self.is_free(cells.end);
        self.free_runs = self.free_runs + 1 - u32::from(left) - u32::from(right);
        self.free += cells.end - cells.start;
        if self.fit == Fit::Best {
            let mut run = cells.clone();
            if left {
                let (&start, &len) =
                    self.by_start.range(..cells.start).next_back().expect("a free run ends here");
                self.forget_run(start, len);
                run.start = start;
            }
            if right {
                let len = self.by_start[&cells.end];
                self.forget_run(cells.end, len);
                run.end += len;
            }
            self.note_run(run.start, run.end - run.start);
        }
        self.update(&cells, |word, bits| word | bits);
    }

    fn forget_run(&mut self, start: Cell, len: u32) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
    }

    fn note_run(&mut self, start: Cell, len: u32) {
        if len > 0 {
            self.by_start.insert(start, len);
            self.by_len.insert((len, start));
        }
    }

    /// Changes words, then the nodes above them as far as they change.
    fn update(&mut self, cells: &Range<Cell>, change: impl Fn(u64, u64) -> u64) {
        let mut low = cells.start as usize / 64;
        let mut high = (cells.end - 1) as usize / 64;
        for index in low..=high {
            self.words[index] = change(self.words[index], mask(index, cells));
            self.nodes[self.leaves + index] = Node::of_word(self.words[index]);
        }
        low += self.leaves;
        high += self.leaves;
        let mut half = 64;
        while low > 1 {
            low /= 2;
            high /= 2;
            let mut changed = false;
            for node in low..=high {
                let new = Node::of_children(self.nodes[2 * node], self.nodes[2 * node + 1], half);
                changed |= self.nodes[node] != new;
                self.nodes[node] = new;
            }
            if !changed {
                return;
            }
            half *= 2;
        }
    }
}

impl FreeMap {
    /// Checks the map against a list of what is used, cell by cell.
    pub(crate) fn audit(&self, used: impl Iterator<Item = Range<Cell>>) -> Result<(), String> {
        let mut taken = vec![false; self.cells as usize];
        for cells in used {
            for cell in cells {
                if std::mem::replace(&mut taken[cell as usize], true) {
                    return Err(format!("cell {cell} is held twice"));
                }
            }
        }
        let (mut longest, mut runs, mut free, mut run) = (0, 0, 0, 0);
        for (cell, &taken) in taken.iter().enumerate() {
            if taken == self.is_free(cell as Cell) {
                return Err(format!(
                    "cell {cell} is {} but marked otherwise",
                    if taken { "held" } else { "free" }
                ));
            }
            runs += u32::from(!taken && run == 0);
            run = if taken { 0 } else { run + 1 };
            free += u32::from(!taken);
            longest = longest.max(run);
        }
        let counted = (self.largest_run(), self.free_runs, self.free);
        if counted != (longest, runs, free) {
            return Err(format!(
                "longest run, runs, free cells: {counted:?} counted, {:?} found",
                (longest, runs, free)
            ));
        }
        if self.fit == Fit::Best && self.by_len.len() != runs as usize {
            return Err(format!("{} runs by length, {runs} found", self.by_len.len()));
        }
        Ok(())
    }
}
