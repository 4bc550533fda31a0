//! Result rows in; tables, plots and one self-contained HTML page out.

pub mod compare;
pub mod files;
pub mod metric;
pub mod number;
pub mod page;
pub mod plot;
pub mod row;
pub mod stats;
pub mod table;

pub use row::{CellMap, Held, MapColumn, RequestRow, Summary, TimelineRow};
