//! A set of numbers that gives its lowest: one bit for each, and above each 64 a bit that says whether any is set.
//!
//! Cost: O(log n) to the base of 64.

/// Numbers below a bound.
#[derive(Clone, Debug)]
pub(crate) struct Lowest {
    /// The numbers, then words of which each bit stands for a word below.
    levels: Vec<Vec<u64>>,
    bound: u32,
    len: u32,
}

impl Lowest {
    /// No number below `bound`.
    pub fn none(bound: u32) -> Self {
        let mut levels = Vec::new();
        let mut count = bound as usize;
        loop {
            count = count.div_ceil(64);
            levels.push(vec![0; count]);
            if count <= 1 {
                return Lowest { levels, bound, len: 0 };
            }
        }
    }

    /// Every number below `bound`.
    pub fn all(bound: u32) -> Self {
        let mut all = Lowest::none(bound);
        (0..bound).for_each(|number| all.insert(number));
        all
    }

    /// What its numbers are below.
    pub fn bound(&self) -> u32 {
        self.bound
    }

    /// How many numbers are in it.
    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn contains(&self, number: u32) -> bool {
        self.levels[0][number as usize / 64] >> (number % 64) & 1 == 1
    }

    /// Adds a number that is not there.
    pub fn insert(&mut self, number: u32) {
        debug_assert!(!self.contains(number), "the number is not there");
        self.len += 1;
        let mut at = number as usize;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            let was_empty = *word == 0;
            *word |= 1 << (at % 64);
            if !was_empty {
                return;
            }
            at /= 64;
        }
    }

    /// Takes out a number that is there.
    pub fn remove(&mut self, number: u32) {
        debug_assert!(self.contains(number), "the number is there");
        self.len -= 1;
        let mut at = number as usize;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            *word &= !(1 << (at % 64));
            if *word != 0 {
                return;
            }
            at /= 64;
        }
    }

    /// The lowest number in it.
    pub fn first(&self) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let below = |at: usize, level: &Vec<u64>| at * 64 + level[at].trailing_zeros() as usize;
        Some(self.levels.iter().rev().fold(0, below) as u32)
    }

    /// Takes out the lowest number.
    pub fn pop(&mut self) -> Option<u32> {
        let first = self.first()?;
        self.remove(first);
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_lowest_is_that_of_a_sorted_set(
            bound in prop_oneof![0..70u32, 4_000..5_000u32],
            is_full: bool,
            numbers in prop::collection::vec(any::<u32>(), 1..200),
        ) {
            let mut lowest = if is_full { Lowest::all(bound) } else { Lowest::none(bound) };
            let mut set: BTreeSet<u32> = (0..if is_full { bound } else { 0 }).collect();
            for number in numbers {
                if number.is_multiple_of(3) {
                    prop_assert_eq!(lowest.pop(), set.pop_first());
                } else if bound > 0 {
                    let number = number % bound;
                    if set.remove(&number) {
                        lowest.remove(number);
                    } else {
                        set.insert(number);
                        lowest.insert(number);
                    }
                    prop_assert_eq!(lowest.contains(number), set.contains(&number));
                }
                prop_assert_eq!((lowest.first(), lowest.len()), (set.first().copied(), set.len() as u32));
            }
        }
    }
}
