//! The latest so many keys that went, for rules that treat who comes back soon in another way.
//!
//! Cost: O(1) expected, amortised.

use crate::names::Names;

/// A queue of keys in a ring, and the place of each.
pub(super) struct Ghosts {
    /// Keys in the order of their going from `oldest` on; 0 for one that came back.
    ring: Vec<u64>,
    oldest: usize,
    /// Places from the oldest to the latest.
    used: usize,
    /// Keys that are remembered at most.
    most: usize,
    names: Names,
}

impl Ghosts {
    pub fn new(most: usize) -> Self {
        // As many again for those that came back and still stand in the queue.
        Ghosts { ring: vec![0; 2 * most + 2], oldest: 0, used: 0, most, names: Names::default() }
    }

    /// A key that is not remembered goes, and the oldest is forgotten if they are too many.
    pub fn remember(&mut self, key: u64) {
        if self.used == self.ring.len() {
            self.close_up();
        }
        let place = self.around(self.oldest + self.used);
        self.ring[place] = key;
        self.used += 1;
        self.names.insert(key, place as u32, |place| self.ring[place as usize] == key);
        while self.names.len() > self.most {
            let key = std::mem::take(&mut self.ring[self.oldest]);
            if key != 0 {
                self.names.remove(key, self.oldest as u32);
            }
            self.oldest = self.around(self.oldest + 1);
            self.used -= 1;
        }
    }

    /// The place of a number that is less than twice the places.
    fn around(&self, place: usize) -> usize {
        if place < self.ring.len() { place } else { place - self.ring.len() }
    }

    /// A key comes back: it is forgotten. Whether it was remembered.
    pub fn forget(&mut self, key: u64) -> bool {
        let place = self.names.find(key, |place| self.ring[place as usize] == key);
        let Some(place) = place else { return false };
        self.names.remove(key, place);
        self.ring[place as usize] = 0;
        true
    }

    /// Moves the keys together; they are less than half of the ring.
    fn close_up(&mut self) {
        self.ring.rotate_left(self.oldest);
        let keys: Vec<u64> = self.ring.iter().copied().filter(|&key| key != 0).collect();
        self.ring.fill(0);
        (self.oldest, self.used, self.names) = (0, 0, Names::default());
        keys.into_iter().for_each(|key| self.remember(key));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn ghosts_are_the_latest_keys_in_a_list(
            most in 0..6usize,
            calls in prop::collection::vec((any::<bool>(), 1..20u64), 1..300),
        ) {
            let (mut ghosts, mut list): (_, Vec<u64>) = (Ghosts::new(most), Vec::new());
            for (goes, key) in calls {
                if goes && !list.contains(&key) {
                    ghosts.remember(key);
                    list.push(key);
                    if list.len() > most {
                        list.remove(0);
                    }
                } else {
                    prop_assert_eq!(ghosts.forget(key), list.contains(&key));
                    list.retain(|&ghost| ghost != key);
                }
            }
        }
    }
}
