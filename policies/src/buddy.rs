//! Buddies: extents of a power of two at multiples of their length, split in halves and merged again.
//!
//! A free extent may only be joined to its buddy, the other half of what both were split from, so an
//! extent is found, split and merged in as many steps as there are sizes. A sequence takes the next power
//! of two of its length and moves to twice as much when its own upper buddy is not free. Up to half of an
//! extent is empty (internal), and free neighbours that are no buddies do not make one extent (external).
//! Of equal extents the lowest is taken, so what is free depends only on what is taken. Rings of window
//! classes are powers of two as well.
//! Source: Knowlton, CACM 8 (10), 1965; Knuth, TAOCP 1, section 2.5, algorithms R and S.
//!
//! Cost: O(log n) per extent.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::contiguous::{Contiguous, LEAST, Reserve, least};
use crate::extents::Extents;
use crate::free::{Fit, FreeMap};
use crate::policy::{Cell, Geometry, Policy};
use crate::spec::{Args, Knob, Spec, SpecError};

pub(crate) const SPEC: Spec = Spec {
    name: "buddy",
    about: "one extent per sequence, a power of two, split and merged with its buddy; moves as it doubles",
    source: "Knowlton, CACM 8 (10), 1965; Knuth, TAOCP 1, section 2.5",
    cost: "O(log n) per extent",
    faults: "",
    knobs: &[Knob { default: "16", ..LEAST }],
    make,
};

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let least = least(args, 0, 16)?;
    Ok(Box::new(Contiguous::new(geometry, Reserve::Rounded { least }, Buddies::new)))
}

/// The extents of one class.
struct Buddies {
    map: FreeMap,
    /// Starts of the free extents of `1 << order` cells, by order.
    free: Vec<BTreeSet<Cell>>,
    /// Bit `order` is set where there are any.
    orders: u32,
}

impl Buddies {
    /// All cells free, as the fewest extents: one for each bit of their number.
    fn new(cells: u32) -> Self {
        let map = FreeMap::new(cells, Fit::First);
        let mut buddies = Buddies { map, free: vec![BTreeSet::new(); 32], orders: 0 };
        let mut start = 0;
        for order in (0..32).rev().filter(|order| cells >> order & 1 == 1) {
            buddies.insert(start, order);
            start += 1 << order;
        }
        buddies
    }

    fn insert(&mut self, start: Cell, order: u32) {
        self.free[order as usize].insert(start);
        self.orders |= 1 << order;
    }

    fn remove(&mut self, start: Cell, order: u32) -> bool {
        let starts = &mut self.free[order as usize];
        let was_free = starts.remove(&start);
        if starts.is_empty() {
            self.orders &= !(1 << order);
        }
        was_free
    }

    /// Joins a free extent to its buddy as often as that is free, and keeps the result.
    fn merge(&mut self, mut start: Cell, mut order: u32) {
        while order < 31 && self.remove(start ^ 1 << order, order) {
            start &= !(1 << order);
            order += 1;
        }
        self.insert(start, order);
    }
}

impl Extents for Buddies {
    fn rounded(&self, cells: u32) -> u32 {
        cells.checked_next_power_of_two().unwrap_or(u32::MAX)
    }

    fn take(&mut self, cells: u32) -> Option<Cell> {
        let order = cells.ilog2();
        let enough = self.orders >> order << order;
        if !cells.is_power_of_two() || enough == 0 {
            return None;
        }
        let mut larger = enough.trailing_zeros();
        let start = *self.free[larger as usize].first()?;
        self.remove(start, larger);
        while larger > order {
            larger -= 1;
            self.insert(start + (1 << larger), larger);
        }
        self.map.occupy(start..start + cells);
        Some(start)
    }

    fn grow(&mut self, extent: Range<Cell>, cells: u32) -> bool {
        let Range { start, end } = extent;
        let orders = (end - start).ilog2()..cells.ilog2();
        let is_lower = cells.is_power_of_two() && start.is_multiple_of(cells);
        let is_free = |order: u32| self.free[order as usize].contains(&(start + (1 << order)));
        if !is_lower || !orders.clone().all(is_free) {
            return false;
        }
        for order in orders {
            self.remove(start + (1 << order), order);
        }
        self.map.occupy(end..start + cells);
        true
    }

    fn ungrow(&mut self, extent: Range<Cell>, cells: u32) {
        for order in cells.ilog2()..(extent.end - extent.start).ilog2() {
            self.insert(extent.start + (1 << order), order);
        }
        self.map.vacate(extent.start + cells..extent.end);
    }

    fn give(&mut self, extent: Range<Cell>) {
        self.map.vacate(extent.clone());
        self.merge(extent.start, (extent.end - extent.start).ilog2());
    }

    fn map(&self) -> &FreeMap {
        &self.map
    }

    fn placeable(&self) -> u32 {
        self.orders.checked_ilog2().map_or(0, |order| 1 << order)
    }

    fn audit(&self) -> Result<(), String> {
        let mut free = 0;
        for (order, starts) in self.free.iter().enumerate() {
            if starts.is_empty() == (self.orders >> order & 1 == 1) {
                return Err(format!("order {order}: its bit does not say whether it has extents"));
            }
            for &start in starts {
                let cells = start..start + (1 << order);
                if start & (cells.end - start - 1) != 0 || cells.clone().any(|cell| !self.map.is_free(cell)) {
                    return Err(format!("{cells:?} is no free extent"));
                }
                if starts.contains(&(start ^ 1 << order)) {
                    return Err(format!("{cells:?} is not joined to its buddy"));
                }
                free += cells.end - start;
            }
        }
        if free == self.map.free() { Ok(()) } else { Err(format!("{free} cells in free extents")) }
    }
}
