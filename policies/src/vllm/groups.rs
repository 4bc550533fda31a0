//! How layers become groups of equally many, so that one pool of equal blocks serves all of them.
//!
//! A block has room for `block_size` tokens in the layers of one group. Where the layers of a class are no
//! multiple of the group's, its last group has layers that nobody fills: padding. Source: the planner of vLLM
//! 0.33 (`kv_cache_utils`), by its behaviour.

use crate::policy::{LayerClass, Reach};

/// The groups of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Layers in a group.
    pub layers: u32,
    /// Groups of each layer class.
    pub of_class: Vec<u32>,
}

impl Groups {
    /// The group is as large as the smallest class, or as the largest where that is less than half as
    /// large again.
    pub fn new(classes: &[LayerClass]) -> Self {
        let counts = || classes.iter().map(|class| class.layers.max(1));
        let (least, most) = (counts().min().unwrap_or(1), counts().max().unwrap_or(1));
        let layers = if u64::from(most) * 2 < u64::from(least) * 3 { most } else { least };
        Groups { layers, of_class: counts().map(|count| count.div_ceil(layers)).collect() }
    }

    /// Layers that are in a group and do not exist.
    pub fn padding(&self, classes: &[LayerClass]) -> u32 {
        let groups: u32 = self.of_class.iter().sum();
        groups * self.layers - classes.iter().map(|class| class.layers).sum::<u32>()
    }

    /// Reach of every group, in the order of the classes.
    pub fn reaches(&self, classes: &[LayerClass]) -> Vec<Reach> {
        let of = |(class, &groups): (&LayerClass, &u32)| vec![class.reach; groups as usize];
        classes.iter().zip(&self.of_class).flat_map(of).collect()
    }
}

/// What one sequence of `tokens` tokens takes: layer-cells (cells times layers) held, and those of tokens
/// that are still read. A window is counted with the block it may straddle.
///
/// ```
/// use policies::{LayerClass, Reach, vllm};
/// let class = |layers, reach| LayerClass { name: String::new(), layers, reach, cells: 0 };
/// let gemma3_12b = [class(40, Reach::Window(1024)), class(8, Reach::Full)];
/// let (held, needed) = vllm::footprint(&gemma3_12b, 16, 8192);
/// assert_eq!((held, needed), (107_136, 106_496));
/// ```
pub fn footprint(classes: &[LayerClass], block_size: u32, tokens: u32) -> (u64, u64) {
    let groups = Groups::new(classes);
    let (mut held, mut needed) = (0, 0);
    for (class, &count) in classes.iter().zip(&groups.of_class) {
        let blocks = tokens.div_ceil(block_size);
        let blocks = match class.reach {
            Reach::Full => blocks,
            Reach::Window(window) => blocks.min(window.saturating_sub(1).div_ceil(block_size) + 1),
        };
        held += u64::from(blocks * block_size) * u64::from(count * groups.layers);
        needed += u64::from(class.reach.clip(tokens)) * u64::from(class.layers);
    }
    (held, needed)
}

/// The same without groups of their own for windows: every layer keeps every token.
pub fn footprint_unified(classes: &[LayerClass], block_size: u32, tokens: u32) -> u64 {
    let layers: u32 = classes.iter().map(|class| class.layers).sum();
    u64::from(tokens.next_multiple_of(block_size)) * u64::from(layers)
}
