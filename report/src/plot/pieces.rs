//! In how many pieces free cells lie: what a cell map says in words.

use std::fmt::Write;

use super::cells::Cells;
use super::scene::{Anchor, Panel, SMALL, Scene, escape};
use super::style::{INK, QUIET};
use crate::number::{Unit, human};
use crate::row::{CellMap, Held};

/// Free cells of one column: their share, pieces, and the share of the largest piece.
fn free_pieces(column: &[Held]) -> (f64, usize, f64) {
    let rows = column.len().max(1) as f64;
    let pieces = column.chunk_by(|a, b| (*a == Held::Free) == (*b == Held::Free));
    let pieces: Vec<usize> = pieces.filter(|p| p[0] == Held::Free).map(<[Held]>::len).collect();
    let free: usize = pieces.iter().sum();
    let largest = pieces.iter().copied().max().unwrap_or(0);
    (free as f64 / rows, pieces.len(), largest as f64 / rows)
}

/// The column in which free cells outside the largest piece were most.
pub(super) fn most_broken(cells: &Cells) -> Option<usize> {
    let broken = |c: &usize| {
        let (free, _, largest) = free_pieces(&cells.columns[*c]);
        free - largest
    };
    (0..cells.columns.len()).max_by(|a, b| broken(a).total_cmp(&broken(b)).then(b.cmp(a)))
}

/// The moment at which most free cells lay outside the largest piece.
pub(crate) struct Broken {
    /// Seconds.
    pub(crate) time_s: f64,
    /// Share of all cells that was free.
    pub(crate) free: f64,
    /// Pieces that they lay in.
    pub(crate) pieces: usize,
    /// Share of all cells that the largest had.
    pub(crate) largest: f64,
}

/// When the free cells of a map were most broken up; none of a map without moments.
pub(crate) fn most_pieces(map: &CellMap) -> Option<Broken> {
    let cells = Cells::new(map);
    let worst = most_broken(&cells)?;
    let (free, pieces, largest) = free_pieces(&cells.columns[worst]);
    Some(Broken { time_s: cells.edges[worst], free, pieces, largest })
}

/// Says when free cells outside the largest piece were most, and points at it; in fewer words where there is less
/// room.
pub(super) fn caption(scene: &mut Scene, panel: &Panel, cells: &Cells) {
    let Some(worst) = most_broken(cells) else { return };
    let (free, pieces, largest) = free_pieces(&cells.columns[worst]);
    let at = (panel.left, panel.top - 15.0);
    let is_narrow = panel.right - panel.left < 420.0;
    if pieces < 2 {
        let text = if is_narrow {
            "free cells always in one piece"
        } else {
            "The free cells were always in one piece."
        };
        scene.text(at, text, SMALL, QUIET, Anchor::Start, false);
        return;
    }
    let (time, free) = (human(cells.edges[worst], Unit::Seconds), human(free, Unit::Share));
    let largest = human(largest, Unit::Share);
    let text = match is_narrow {
        true => format!("at {time}: {free} free in {pieces} pieces, largest {largest}"),
        false => format!("Most broken up at {time}: {free} free in {pieces} pieces, the largest {largest}"),
    };
    scene.text(at, &text, SMALL, INK, Anchor::Start, false);
    let x = panel.pixel((cells.edges[worst] + cells.edges[worst + 1]) / 2.0, 0.0).0;
    let y = panel.top - 1.0;
    let _ = writeln!(
        scene.areas,
        "<path d=\"M{x:.1} {y:.1}l-5-7h10z\" fill=\"#222\"><title>{}</title></path>",
        escape(&text)
    );
}
