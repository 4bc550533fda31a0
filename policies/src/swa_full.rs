//! No windows: every class keeps every token, in as many cells as every other.
//!
//! What a window class lets go of, nobody can come back to: not a rollback below the window, not a context
//! shift, not the next request that begins alike. Keeping it costs a cell in every layer for every token.
//! Both classes get the same number of cells out of the memory that the geometry's classes have together, in
//! layer-cells. Otherwise batch runs with compaction on failure, as [`shift`](crate::shift) without a limit.
//! Source: llama.cpp `--swa-full`, by its behaviour.
//!
//! Cost: as [`cells`](crate::cells).

use crate::cells::Cells;
use crate::defrag::Defrag;
use crate::policy::{Geometry, LayerClass, Policy, Reach};
use crate::shift::{Amount, Shift};
use crate::spec::{Args, FIT, Knob, Spec, SpecError};
use crate::unrotated;

pub(crate) const SPEC: Spec = Spec {
    name: "swa-full",
    about: "batch runs where window classes keep everything, in as many cells as the others",
    source: "llama.cpp --swa-full",
    cost: "O(log n) per batch and class",
    faults: "",
    knobs: &[
        FIT,
        Knob {
            name: "defrag",
            about: "failure (compact when a batch finds no run) | never",
            default: "failure",
        },
        Knob { name: "+shift", about: "context shift at the limit, 4 tokens kept", default: "off" },
        unrotated::KNOB,
    ],
    make,
};

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let mut geometry = geometry.clone();
    let layers = |class: &LayerClass| u64::from(class.layers.max(1));
    let layer_cells = |class: &LayerClass| layers(class) * u64::from(class.cells);
    let memory: u64 = geometry.classes.iter().map(layer_cells).sum();
    let cells = memory / geometry.classes.iter().map(layers).sum::<u64>().max(1);
    geometry.classes.iter_mut().for_each(|class| class.cells = cells as u32);
    let mut cells = Cells::new(&geometry, args.fit(0)?);
    cells.reaches.fill(Reach::Full);
    cells.defrag =
        (args.choice("defrag", 1, &["failure", "never"])? == "failure").then_some(Defrag::ON_FAILURE);
    cells.shift = args.has_extension("shift").then_some(Shift { keep: 4, drop: Amount::HALF });
    Ok(Box::new(cells))
}
