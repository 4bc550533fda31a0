//! Where extents come from: the seam between [`contiguous`](crate::contiguous) and its allocators.
//!
//! An allocator may make an extent longer than it was asked for, and must choose by nothing but what is
//! taken now (and its cursor), so that giving back what a refused batch has taken leaves no trace.
//!
//! Cost: as each allocator says; a plain [`FreeMap`] takes, grows and gives in O(log n).

use std::ops::Range;

use crate::free::FreeMap;
use crate::policy::{Cell, Shape};

/// The cells of one class, handed out as extents.
pub(crate) trait Extents: Send {
    /// Cells that an extent for so many has; what [`take`](Extents::take) and the others are asked for is
    /// always such a length.
    fn rounded(&self, cells: u32) -> u32 {
        cells
    }

    /// Takes an extent.
    fn take(&mut self, cells: u32) -> Option<Cell>;

    /// Makes an extent longer where it lies, if what follows it is free and may be joined to it.
    fn grow(&mut self, extent: Range<Cell>, cells: u32) -> bool;

    /// Takes back what [`grow`](Extents::grow) has just done to what is now `extent`.
    fn ungrow(&mut self, extent: Range<Cell>, cells: u32);

    /// Gives an extent back.
    fn give(&mut self, extent: Range<Cell>);

    /// What is taken, cell by cell.
    fn map(&self) -> &FreeMap;

    /// Cells of the longest extent that could be taken now.
    fn placeable(&self) -> u32;

    /// Where the free cells lie.
    fn shape(&self) -> Shape {
        self.map().shape()
    }

    /// Where the allocator goes on looking, if it remembers.
    fn cursor(&self) -> Cell {
        0
    }

    /// Puts it back there.
    fn set_cursor(&mut self, cursor: Cell) {
        let _ = cursor;
    }

    /// Checks the allocator's books beside the map's.
    fn audit(&self) -> Result<(), String> {
        Ok(())
    }
}

impl Extents for FreeMap {
    fn take(&mut self, cells: u32) -> Option<Cell> {
        FreeMap::take(self, cells)
    }

    fn grow(&mut self, extent: Range<Cell>, cells: u32) -> bool {
        let grown = extent.end..extent.start.saturating_add(cells);
        let fits = grown.end <= self.cells() && self.next_used(grown.start) >= grown.end;
        if fits {
            self.occupy(grown);
        }
        fits
    }

    fn ungrow(&mut self, extent: Range<Cell>, cells: u32) {
        self.vacate(extent.start + cells..extent.end);
    }

    fn give(&mut self, extent: Range<Cell>) {
        self.vacate(extent);
    }

    fn map(&self) -> &FreeMap {
        self
    }

    fn placeable(&self) -> u32 {
        self.largest_run()
    }

    fn cursor(&self) -> Cell {
        FreeMap::cursor(self)
    }

    fn set_cursor(&mut self, cursor: Cell) {
        FreeMap::set_cursor(self, cursor);
    }
}
