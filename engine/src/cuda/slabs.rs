//! The cache on the device: a K and a V buffer a layer, and the angles of rotations.

use super::driver::{Buffer, Device};
use crate::cache::{CacheShape, KvType};
use crate::config::{Config, LayerKind, Rope};
use crate::error::EngineError;
use std::sync::Arc;

/// Positions of the fine part of a rotation table.
const FINE: usize = 256;

/// The number that the kernels know a type by.
pub(crate) fn code(kv: KvType) -> u32 {
    match kv {
        KvType::F32 => 0,
        KvType::F16 => 1,
        KvType::Bf16 => 2,
        KvType::Q8_0 => 3,
        KvType::Q4_0 => 4,
    }
}

/// The part of a kernel's name, for types that the fast kernels take.
pub(crate) fn name(kv: KvType) -> Option<&'static str> {
    match kv {
        KvType::Bf16 => Some("bf16"),
        KvType::Q8_0 => Some("q8_0"),
        KvType::Q4_0 => Some("q4_0"),
        KvType::F32 | KvType::F16 => None,
    }
}

/// Bytes of one cell's K (or V) in one layer.
pub(crate) fn record(config: &Config, kv: KvType) -> usize {
    let width = config.kv_width();
    let bytes = match kv {
        KvType::F32 => width * 4,
        KvType::F16 | KvType::Bf16 => width * 2,
        KvType::Q8_0 => width / 32 * 34,
        KvType::Q4_0 => width / 32 * 18,
    };
    bytes.next_multiple_of(16)
}

/// The cache.
pub(crate) struct Slabs {
    pub(crate) k: Vec<Buffer>,
    pub(crate) v: Vec<Buffer>,
    pub(crate) k_record: usize,
    pub(crate) v_record: usize,
    /// Angles of local and of global layers.
    pub(crate) local_rope: Buffer,
    pub(crate) global_rope: Buffer,
    /// Addresses of the buffers of each class, as the kernels that move cells take them.
    pub(crate) classes: Vec<ClassBuffers>,
}

/// Device arrays of the addresses of one class's buffers.
pub(crate) struct ClassBuffers {
    /// Layers of the class.
    pub(crate) layers: usize,
    /// K buffers, then V buffers.
    pub(crate) both: Buffer,
    /// The rotation table of each K buffer.
    pub(crate) ropes: Buffer,
}

impl Slabs {
    /// Zeroed buffers: each has one cell more than the class, which padding writes to.
    pub(crate) fn new(
        device: &Arc<Device>,
        config: &Config,
        shape: &CacheShape,
    ) -> Result<Slabs, EngineError> {
        let (k_record, v_record) = (record(config, shape.k), record(config, shape.v));
        let slab = |class: usize, record: usize| {
            let buffer = Buffer::new(device, "the cache", (shape.cells[class] as usize + 1) * record)?;
            buffer.fill(0)?;
            Ok::<Buffer, EngineError>(buffer)
        };
        let slabs =
            |record| shape.class_of.iter().map(|&class| slab(class, record)).collect::<Result<Vec<_>, _>>();
        let (k, v) = (slabs(k_record)?, slabs(v_record)?);
        let local_rope = rope_table(device, config, config.local_rope)?;
        let global_rope = rope_table(device, config, config.global_rope)?;
        let class_buffers = |class: usize| {
            let layers = (0..shape.class_of.len()).filter(|&layer| shape.class_of[layer] == class);
            let of = |slabs: &[Buffer]| layers.clone().map(|layer| slabs[layer].at()).collect::<Vec<u64>>();
            let rope = |layer: usize| match config.layers[layer] {
                LayerKind::Local => local_rope.at(),
                LayerKind::Global => global_rope.at(),
            };
            let both = addresses(device, &[of(&k), of(&v)].concat())?;
            let ropes = addresses(device, &layers.clone().map(rope).collect::<Vec<u64>>())?;
            Ok(ClassBuffers { layers: layers.count(), both, ropes })
        };
        let classes = (0..shape.cells.len()).map(class_buffers).collect::<Result<_, EngineError>>()?;
        Ok(Slabs { k, v, k_record, v_record, local_rope, global_rope, classes })
    }

    /// Address of the angles of a kind of layer.
    pub(crate) fn rope(&self, kind: LayerKind) -> u64 {
        match kind {
            LayerKind::Local => self.local_rope.at(),
            LayerKind::Global => self.global_rope.at(),
        }
    }
}

fn addresses(device: &Arc<Device>, at: &[u64]) -> Result<Buffer, EngineError> {
    let buffer = Buffer::new(device, "addresses of the cache", size_of_val(at))?;
    buffer.put(0, at)?;
    Ok(buffer)
}

/// Cosine and sine of every position below 256, then of every multiple of 256.
fn rope_table(device: &Arc<Device>, config: &Config, rope: Rope) -> Result<Buffer, EngineError> {
    let coarse = config.max_positions.div_ceil(FINE) + 1;
    let half = config.head_dim / 2;
    let mut table = Vec::with_capacity((FINE + coarse) * half * 2);
    for entry in 0..FINE + coarse {
        let position = if entry < FINE { entry } else { (entry - FINE) * FINE };
        for i in 0..half {
            let angle = position as f64 / rope.factor * rope.theta.powf(-(i as f64) / half as f64);
            table.extend([angle.cos() as f32, angle.sin() as f32]);
        }
    }
    let buffer = Buffer::new(device, "angles of rotations", size_of_val(&*table))?;
    buffer.put(0, &table)?;
    Ok(buffer)
}
