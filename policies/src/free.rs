//! Which cells are free, with first-fit, next-fit and best-fit in O(log n).
//!
//! One bit per cell, 64 to a leaf, and above the leaves a binary tree whose nodes know the free
//! run at their left end, at their right end, and the longest one inside. A change walks up only
//! as far as something changes. Best-fit keeps the runs by length as well.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::policy::{Cell, Run, Shape};

/// What to flip words with so that the ones are the free cells, or the used ones.
const FREE: u64 = 0;
const USED: u64 = u64::MAX;

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

/// Longest row of ones in a word: by rows of 1, 2, 4, ... 64, then put together from long to short.
fn longest_ones(word: u64) -> u32 {
    if word == 0 || word == u64::MAX {
        return word.count_ones();
    }
    let mut rows = [word; 7];
    for k in 1..7 {
        rows[k] = rows[k - 1] & rows[k - 1] >> (1 << (k - 1));
    }
    let (mut starts, mut len) = (u64::MAX, 0);
    for k in (0..7).rev() {
        let longer = if len < 64 { starts & rows[k] >> len } else { 0 };
        if longer != 0 {
            starts = longer;
            len += 1 << k;
        }
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

    /// Cells, free or used.
    pub fn cells(&self) -> u32 {
        self.cells
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
    pub fn first_fit_from(&self, from: Cell, len: u32) -> Option<Cell> {
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
        self.count(&cells, false);
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
        let (left, right) = self.count(&cells, true);
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

    /// Counts cells that are about to become free, or used, and the free runs they join or split;
    /// returns whether free cells lie to their left and right.
    fn count(&mut self, cells: &Range<Cell>, become_free: bool) -> (bool, bool) {
        let left = cells.start > 0 && self.is_free(cells.start - 1);
        let right = self.is_free(cells.end);
        let sides = u32::from(left) + u32::from(right);
        let len = cells.end - cells.start;
        if become_free {
            self.free_runs = self.free_runs + 1 - sides;
            self.free += len;
        } else {
            self.free_runs = self.free_runs + sides - 1;
            self.free -= len;
        }
        (left, right)
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

    /// Changes words, then the nodes above them.
    fn update(&mut self, cells: &Range<Cell>, change: impl Fn(u64, u64) -> u64) {
        let leaves = cells.start as usize / 64..=(cells.end - 1) as usize / 64;
        for index in leaves.clone() {
            self.words[index] = change(self.words[index], mask(index, cells));
        }
        self.refresh(*leaves.start(), *leaves.end());
    }

    /// Recomputes the leaves from `low` to `high` and what is above them, as far as it changes.
    fn refresh(&mut self, mut low: usize, mut high: usize) {
        for index in low..=high {
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
                changed |= self.refresh_node(node, half);
            }
            if !changed {
                return;
            }
            half *= 2;
        }
    }

    /// Recomputes a node whose children cover `half` cells each; whether it changed.
    fn refresh_node(&mut self, node: usize, half: u32) -> bool {
        let new = Node::of_children(self.nodes[2 * node], self.nodes[2 * node + 1], half);
        std::mem::replace(&mut self.nodes[node], new) != new
    }

    /// Gives back many runs, each above the tree's leaves only once.
    pub fn vacate_all(&mut self, runs: &[Run]) {
        if runs.len() < 8 || self.fit == Fit::Best {
            runs.iter().for_each(|run| self.vacate(run.cells()));
            return;
        }
        let mut touched: Vec<usize> = Vec::with_capacity(runs.len());
        for run in runs {
            let cells = run.cells();
            self.count(&cells, true);
            for index in cells.start as usize / 64..=(cells.end - 1) as usize / 64 {
                self.words[index] |= mask(index, &cells);
                touched.push(self.leaves + index);
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for &leaf in &touched {
            self.nodes[leaf] = Node::of_word(self.words[leaf - self.leaves]);
        }
        let mut half = 64;
        while touched[0] > 1 {
            touched.iter_mut().for_each(|node| *node /= 2);
            touched.dedup();
            for &node in &touched {
                self.refresh_node(node, half);
            }
            half *= 2;
        }
    }

    /// Fills the lowest hole with the tail of the highest used run, run by run, until no hole lies
    /// below a used cell or `budget` cells have moved. `each` is told (from, to, cells) of every
    /// move; the cells moved are returned. The tree is brought up to date once, at the end.
    pub fn compact(&mut self, budget: u32, mut each: impl FnMut(Cell, Cell, u32)) -> u32 {
        let (Some(first), Some(top)) = (self.first_fit(1), self.prev_used(self.cells)) else { return 0 };
        let (mut to, mut last, mut moved) = (first, top, 0);
        while moved < budget && to < last {
            let hole = self.scan_up(to, USED) - to;
            let run = last + 1 - self.scan_down(last, FREE).map_or(0, |cell| cell + 1);
            let len = hole.min(run).min(budget - moved);
            let from = last + 1 - len;
            if self.fit == Fit::Best {
                self.occupy(to..to + len);
                self.vacate(from..from + len);
            } else {
                self.flip(to..to + len);
                self.flip(from..from + len);
            }
            each(from, to, len);
            moved += len;
            to = self.scan_up(to + len, FREE);
            match from.checked_sub(1).and_then(|below| self.scan_down(below, USED)) {
                Some(cell) => last = cell,
                None => break,
            }
        }
        if moved > 0 && self.fit != Fit::Best {
            let low = (first as usize / 64, to.min(self.cells - 1) as usize / 64);
            let high = (last as usize / 64, top as usize / 64);
            if low.1 >= high.0 {
                self.refresh(low.0, high.1.max(low.1));
            } else {
                self.refresh(low.0, low.1);
                self.refresh(high.0, high.1);
            }
        }
        moved
    }

    /// Inverts the bits of cells that are all free or all used, and counts; the tree is left behind.
    fn flip(&mut self, cells: Range<Cell>) {
        let become_free = !self.is_free(cells.start);
        self.count(&cells, become_free);
        for index in cells.start as usize / 64..=(cells.end - 1) as usize / 64 {
            self.words[index] ^= mask(index, &cells);
        }
    }

    /// First cell at or above `from` that is free, or used where `flip` is all ones, word by word; the
    /// end if there is none.
    fn scan_up(&self, from: Cell, flip: u64) -> Cell {
        if from >= self.cells {
            return self.cells;
        }
        let all = 0..self.cells;
        let mut index = from as usize / 64;
        let mut found = (self.words[index] ^ flip) & mask(index, &(from..self.cells));
        while found == 0 {
            index += 1;
            if index == self.words.len() {
                return self.cells;
            }
            found = (self.words[index] ^ flip) & mask(index, &all);
        }
        index as u32 * 64 + found.trailing_zeros()
    }

    /// Last such cell at or below `from`, if any.
    fn scan_down(&self, from: Cell, flip: u64) -> Option<Cell> {
        let mut index = from as usize / 64;
        let mut found = (self.words[index] ^ flip) & mask(index, &(0..from + 1));
        while found == 0 {
            index = index.checked_sub(1)?;
            found = self.words[index] ^ flip;
        }
        Some(index as u32 * 64 + 63 - found.leading_zeros())
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
