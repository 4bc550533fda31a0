//! Where a workload operates: which steps take its time.

use std::collections::BTreeMap;

use super::fit::Kind;
use crate::cost::Work;

/// How much of a measured step's weight does not depend on the workload.
const EVEN: f64 = 0.25;
/// Parts of a factor of 2 that are told apart.
const PARTS: f64 = 2.0;

/// Kind, then the size in tokens, samples and cells read, in halves of a factor of 2.
type Place = (Kind, [i32; 3]);

/// A histogram of steps, by the time that they take.
#[derive(Clone, Debug, Default)]
pub struct Operating {
    places: BTreeMap<Place, f64>,
}

fn place(work: &Work) -> Place {
    let size = |number: f64| ((1.0 + number).log2() * PARTS).round() as i32;
    let reads = work.decode_reads.iter().sum::<u64>() as f64;
    let pieces = work
        .prefills
        .iter()
        .map(|piece| f64::from(piece.tokens) * (f64::from(piece.context) + f64::from(piece.tokens) / 2.0));
    let cells = reads + pieces.sum::<f64>();
    (Kind::of(work), [size(f64::from(work.tokens)), size(f64::from(work.samples)), size(cells)])
}

fn distance(a: &Place, b: &Place) -> i32 {
    let apart: i32 = a.1.iter().zip(&b.1).map(|(a, b)| (a - b).pow(2)).sum();
    // Another kind comes after everything of the same kind.
    if a.0 == b.0 { apart } else { apart + 1_000_000 }
}

impl Operating {
    /// A step that took `ns`.
    pub fn add(&mut self, work: &Work, ns: u64) {
        if work.tokens > 0 {
            *self.places.entry(place(work)).or_default() += ns as f64;
        }
    }

    /// The steps of another run, too.
    pub fn merge(&mut self, other: Operating) {
        for (place, ns) in other.places {
            *self.places.entry(place).or_default() += ns;
        }
    }

    /// Whether there was no step.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Per step of a design, the share of the time for which it stands: that of the places that no
    /// other step is nearer to. The shares add up to 1, or are all 0 if nothing is known.
    pub fn shares<'a>(&self, works: impl IntoIterator<Item = &'a Work>) -> Vec<f64> {
        let design: Vec<Place> = works.into_iter().map(place).collect();
        let total: f64 = self.places.values().sum();
        let mut shares = vec![0.0; design.len()];
        for (place, ns) in &self.places {
            let computing = (0..design.len()).filter(|&at| design[at].0 != Kind::Moves);
            if let Some(nearest) = computing.min_by_key(|&at| distance(&design[at], place)) {
                shares[nearest] += ns / total;
            }
        }
        shares
    }

    /// How much each step of a design should count in a fit, 1 on average: mostly by its share of
    /// the time.
    pub fn weights<'a>(&self, works: impl IntoIterator<Item = &'a Work>) -> Vec<f64> {
        let shares = self.shares(works);
        if self.is_empty() {
            return vec![1.0; shares.len()];
        }
        let count = shares.len() as f64;
        shares.iter().map(|share| EVEN + (1.0 - EVEN) * share * count).collect()
    }
}
