//! Result rows in; tables, plots and one self-contained HTML page out.

pub mod row;

pub use row::{CellMap, Held, MapColumn, RequestRow, Summary, TimelineRow};
