//! Plots as SVG text: nothing is read while they are looked at, and equal data gives equal bytes.
//!
//! Every function takes any data: values that are not finite are left out, and a plot of nothing
//! says that it has no data. Series keep their colour, dash and marker by their position, so the
//! same list of policies looks the same in every plot.

mod axis;
mod bars;
mod canvas;
mod cells;
mod heat;
mod lines;
mod maps;
mod multiples;
mod outcomes;
mod pareto;
mod pieces;
mod places;
mod ranks;
mod scene;
mod spans;
mod style;
mod timeline;

pub use axis::{AxisSpec, Scale};
pub use bars::{RowBars, Tone, row_bars};
pub use cells::cell_map;
pub(crate) use cells::cell_map_within;
pub use heat::{HeatMap, HeatSide, Tile, heat_maps};
pub use lines::{Series, cdf, histogram, line_chart, step_chart};
pub(crate) use lines::{cdf_with_guides, cumulative};
pub use maps::cell_maps;
pub use multiples::{Across, MultiplePoint, Multiples, multiples};
pub use outcomes::{Outcomes, outcomes};
pub(crate) use pareto::frontier;
pub use pareto::{ParetoPoint, Wish, pareto};
pub(crate) use pieces::{Broken, most_pieces};
pub use places::{PlaceRow, places};
pub use ranks::{Ranks, ranks};
pub use spans::{Span, spans};
pub use timeline::{classes, timeline};

/// Title and size of a plot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Written above the plot, and read out by screen readers.
    pub title: String,
    /// Width in pixels; the plot scales with what holds it.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl Frame {
    /// A plot that fills the width of a page: 900 by 420 pixels.
    pub fn wide(title: &str) -> Frame {
        Frame { title: title.to_owned(), width: 900, height: 420 }
    }

    /// A plot for one of two columns: 600 by 380 pixels.
    pub fn half(title: &str) -> Frame {
        Frame { title: title.to_owned(), width: 600, height: 380 }
    }

    /// The same plot with another height, in pixels.
    pub fn height(mut self, pixels: u32) -> Frame {
        self.height = pixels;
        self
    }

    /// Sizes that plots can be drawn in.
    fn size(&self) -> (u32, u32) {
        (self.width.clamp(320, 8000), self.height.clamp(240, 8000))
    }
}
