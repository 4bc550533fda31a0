//! Rotary position embedding, with angles in f64.

use crate::config::{Config, LayerKind, Rope};
use crate::error::EngineError;

/// Sines and cosines of one position, `[head_dim / 2]` each, sines first.
pub(crate) type Turn<'a> = (&'a [f32], &'a [f32]);

/// Appends the sines and cosines of a position.
///
/// Angles are computed in f64: at position 131072 an f32 angle is off by up to 0.004.
pub(crate) fn push_turn(table: &mut Vec<f32>, position: f64, rope: Rope, head_dim: usize) {
    let half = head_dim / 2;
    let angle = |i: usize| position / rope.factor * rope.theta.powf(-(i as f64) / half as f64);
    table.extend((0..half).map(|i| angle(i).sin() as f32));
    table.extend((0..half).map(|i| angle(i).cos() as f32));
}

/// Rotates the pairs `(i, i + head_dim / 2)` of a head.
#[inline(always)]
pub(crate) fn rotate(head: &mut [f32], (sin, cos): Turn<'_>) {
    let (low, high) = head.split_at_mut(sin.len());
    for (((a, b), sin), cos) in low.iter_mut().zip(high).zip(sin).zip(cos) {
        let (x, y) = (*a, *b);
        *a = x * cos - y * sin;
        *b = y * cos + x * sin;
    }
}

/// The turns of many positions, for one kind of layer.
#[derive(Default)]
pub(crate) struct Turns {
    table: Vec<f32>,
}

impl Turns {
    /// The turn at index `i`.
    pub fn get(&self, i: usize, head_dim: usize) -> Turn<'_> {
        self.table[i * head_dim..(i + 1) * head_dim].split_at(head_dim / 2)
    }

    /// Replaces all turns.
    pub fn set(
        &mut self,
        positions: impl ExactSizeIterator<Item = u32>,
        rope: Rope,
        head_dim: usize,
    ) -> Result<(), EngineError> {
        self.table.clear();
        self.reserve(positions.len() * head_dim)?;
        positions.for_each(|position| push_turn(&mut self.table, f64::from(position), rope, head_dim));
        Ok(())
    }

    /// Goes on until there are turns of the positions 0 to `len`.
    pub fn grow(&mut self, len: usize, rope: Rope, head_dim: usize) -> Result<(), EngineError> {
        let have = self.table.len() / head_dim;
        self.reserve(len.saturating_sub(have) * head_dim)?;
        (have..len).for_each(|position| push_turn(&mut self.table, position as f64, rope, head_dim));
        Ok(())
    }

    fn reserve(&mut self, numbers: usize) -> Result<(), EngineError> {
        let bytes = 4 * numbers as u64;
        self.table.try_reserve(numbers).map_err(|_| EngineError::Memory { what: "a table of angles", bytes })
    }
}

/// One of something for each kind of layer.
#[derive(Default)]
pub(crate) struct PerKind<T> {
    local: T,
    global: T,
}

impl<T> PerKind<T> {
    /// The one of a kind.
    pub fn of(&self, kind: LayerKind) -> &T {
        match kind {
            LayerKind::Local => &self.local,
            LayerKind::Global => &self.global,
        }
    }

    /// Both, with the rotation of their kind.
    pub fn both<'a>(&'a mut self, config: &Config) -> [(&'a mut T, Rope); 2] {
        [(&mut self.local, config.local_rope), (&mut self.global, config.global_rope)]
    }
}
