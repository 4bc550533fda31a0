//! What a backend's cache looks like: cells per layer class, and how K and V are stored.

use policies::{Geometry, Reach};

use crate::config::{Config, LayerKind};
use crate::error::EngineError;

/// How K and V are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 16-bit brain floats.
    Bf16,
    /// GGUF blocks of 34 bytes for 32 numbers.
    Q8_0,
    /// GGUF blocks of 18 bytes for 32 numbers.
    Q4_0,
}

impl KvType {
    /// Bytes of so many numbers; whole blocks of 32 where numbers are stored so.
    pub fn bytes(self, numbers: usize) -> usize {
        match self {
            KvType::F32 => 4 * numbers,
            KvType::F16 | KvType::Bf16 => 2 * numbers,
            KvType::Q8_0 => numbers.div_ceil(32) * 34,
            KvType::Q4_0 => numbers.div_ceil(32) * 18,
        }
    }
}

/// The cells of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Class of every layer, in order.
    pub class_of: Vec<usize>,
    /// Cells per class.
    pub cells: Vec<u32>,
    /// How K is stored.
    pub k: KvType,
    /// How V is stored.
    pub v: KvType,
    /// Whether K is stored rotated to its position. Otherwise it is rotated as it is read, to the
    /// index of its token, and rotations of a plan have nothing to do.
    pub rotated: bool,
}

impl CacheShape {
    /// The cache that a policy of this geometry manages: local layers belong to the class with a
    /// window, global ones to the class without; where there is one class, all layers belong to it.
    ///
    /// # Errors
    /// [`EngineError::Shape`] if the classes are others.
    pub fn new(config: &Config, geometry: &Geometry, kv: KvType) -> Result<CacheShape, EngineError> {
        let class = |kind: LayerKind| {
            let is_of_kind = |reach: Reach| matches!(reach, Reach::Window(_)) == (kind == LayerKind::Local);
            match &*geometry.classes {
                [_] => Some(0),
                classes => classes.iter().position(|class| is_of_kind(class.reach)),
            }
        };
        let class_of = config.layers.iter().map(|&kind| class(kind)).collect::<Option<Vec<_>>>();
        let class_of = class_of.ok_or_else(|| EngineError::Shape {
            name: config.name.clone(),
            what: format!("its layers have no class among {:?}", geometry.classes),
        })?;
        let cells = geometry.classes.iter().map(|class| class.cells).collect();
        Ok(CacheShape { class_of, cells, k: kv, v: kv, rotated: true })
    }
}
