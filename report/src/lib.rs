//! Result rows in; tables, plots and one self-contained HTML page out.

pub mod chart;
pub mod compare;
pub mod extras;
pub mod files;
mod map_text;
pub mod metric;
pub mod number;
pub mod order;
pub mod page;
pub mod plot;
pub mod row;
pub mod sheet;
pub mod stats;
pub mod sweep;
pub mod table;

pub use row::{CellMap, Held, MapColumn, RequestRow, Summary, TimelineRow};
