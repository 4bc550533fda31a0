//! What tests of the context limit share: a short context, a window class and one that reads everything.

use policies::{Geometry, LayerClass, Reach};

pub const CONTEXT: u32 = 40;

/// Three sequences with so many cells in each class.
pub fn geometry(window: u32, cells: u32) -> Geometry {
    let class = |name: &str, reach| LayerClass { name: name.into(), layers: 1, reach, cells };
    Geometry {
        classes: vec![class("local", Reach::Window(window)), class("global", Reach::Full)],
        context_max: CONTEXT,
        batch_max: 12,
        sequences_max: 3,
    }
}
