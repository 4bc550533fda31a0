//! The memory that a step computes in.

use std::sync::Arc;

use super::driver::{Buffer, Device};
use super::kernels::ActOut;
use super::model::{Kind, Linear, Model};
use crate::error::EngineError;

/// Rows whose logits are computed at once.
pub(crate) const LOGIT_ROWS: usize = 32;
/// Parts that a row of logits is cut into to find the largest.
pub(crate) const ARGMAX_PARTS: usize = 64;
/// Most columns that the kernels for few columns compute at once; beyond, a library is faster.
pub(crate) const FEW: usize = 32;
/// Most parts that attention of one row is cut into.
const MOST_SPLITS: usize = 128;

/// A form in which a linear layer takes its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Full,
    Half,
    Quants,
}

/// Inputs of a linear layer, `[rows][cols]`, in the forms that may be needed.
pub(crate) struct Act {
    pub(crate) cols: usize,
    padded: usize,
    full: Option<Buffer>,
    half: Option<Buffer>,
    quants: Option<Buffer>,
    scales: Option<Buffer>,
}

impl Act {
    fn new(device: &Arc<Device>, kind: Kind, rows: usize, cols: usize) -> Result<Act, EngineError> {
        let padded = cols.next_multiple_of(128);
        let buffer = |wanted: bool, bytes: usize| {
            let zeroed = || {
                let buffer = Buffer::new(device, "the workspace", rows * bytes)?;
                buffer.fill(0)?;
                Ok::<Buffer, EngineError>(buffer)
            };
            wanted.then(zeroed).transpose()
        };
        Ok(Act {
            cols,
            padded,
            full: buffer(kind != Kind::Bf16, cols * 4)?,
            half: buffer(kind != Kind::F32, cols * 2)?,
            quants: buffer(kind.is_quantised(), padded)?,
            scales: buffer(kind.is_quantised(), padded / 8)?,
        })
    }

    /// Where a kernel writes one form.
    pub(crate) fn out(&self, form: Form) -> ActOut {
        let at = |buffer: &Option<Buffer>, wanted: Form| {
            buffer.as_ref().filter(|_| form == wanted).map_or(0, Buffer::at)
        };
        ActOut {
            full: at(&self.full, Form::Full),
            half: at(&self.half, Form::Half),
            quants: at(&self.quants, Form::Quants),
            scales: at(&self.scales, Form::Quants),
            padded: self.padded,
        }
    }
}

/// The memory for so many rows.
pub(crate) struct Work {
    /// Rows that fit.
    pub(crate) rows: usize,
    /// The residual stream, f32.
    pub(crate) x: Buffer,
    /// Outputs of linear layers, f32.
    pub(crate) y: Buffer,
    /// Q, f32.
    pub(crate) q: Buffer,
    /// Unmerged attention and what scales it.
    pub(crate) parts: Buffer,
    pub(crate) scales: Buffer,
    /// Inputs of qkv, gate-up and the output layer; of o; of down.
    pub(crate) hidden: Act,
    pub(crate) attended: Act,
    pub(crate) inner: Act,
    /// Logits of some rows and their largest.
    pub(crate) logits: Buffer,
    pub(crate) argmax_parts: Buffer,
    pub(crate) argmax: Buffer,
    /// A quantised matrix, widened.
    pub(crate) widened: Option<Buffer>,
}

impl Work {
    /// Memory for so many rows of a model.
    pub(crate) fn new(model: &Model, rows: usize) -> Result<Work, EngineError> {
        let device = &model.gpu.device;
        let (config, processors) = (&model.config, model.gpu.info().processors as usize);
        let buffer = |bytes: usize| {
            let buffer = Buffer::new(device, "the workspace", bytes)?;
            buffer.fill(0)?;
            Ok::<Buffer, EngineError>(buffer)
        };
        let linears =
            || model.layers.iter().flat_map(|layer| [&layer.qkv, &layer.o, &layer.gate_up, &layer.down]);
        let widest = linears().map(|linear| linear.rows).max().unwrap_or(0);
        let few = linears().map(|linear| splits(linear, processors) * linear.rows).max().unwrap_or(0);
        let parts = (rows + 2 * processors / config.kv_heads + MOST_SPLITS) * config.query_heads;
        let first = |of: fn(&super::model::DeviceLayer) -> &Linear| {
            model
                .layers
                .first()
                .map_or(Kind::Bf16, |layer| widest_kind(model.layers.iter().map(of), of(layer).kind))
        };
        let hidden = widest_kind(
            model.layers.iter().flat_map(|layer| [&layer.qkv, &layer.gate_up]).chain([&model.embedding]),
            model.embedding.kind,
        );
        let any_quantised = linears().any(|linear| linear.kind.is_quantised());
        let largest = linears().map(|linear| linear.rows * linear.cols).max().unwrap_or(0);
        Ok(Work {
            rows,
            x: buffer(rows * config.hidden * 4)?,
            y: buffer((rows * widest).max(few * rows.max(FEW)) * 4)?,
            q: buffer(rows * config.query_width() * 4)?,
            parts: buffer(parts * config.head_dim * 4)?,
            scales: buffer(parts * 8)?,
            hidden: Act::new(device, hidden, rows.max(LOGIT_ROWS), config.hidden)?,
            attended: Act::new(device, first(|layer| &layer.o), rows, config.query_width())?,
            inner: Act::new(device, first(|layer| &layer.down), rows, config.ffn)?,
            logits: buffer(LOGIT_ROWS * config.vocab * 4)?,
            argmax_parts: buffer(LOGIT_ROWS * ARGMAX_PARTS * 8)?,
            argmax: buffer(rows.max(LOGIT_ROWS) * 4)?,
            widened: (any_quantised && rows > FEW).then(|| buffer(largest * 2)).transpose()?,
        })
    }
}

/// The kind that needs the most forms of its inputs.
fn widest_kind<'a>(linears: impl Iterator<Item = &'a Linear>, first: Kind) -> Kind {
    linears
        .map(|linear| linear.kind)
        .fold(first, |widest, kind| if kind.is_quantised() { kind } else { widest })
}

/// Stripes that the inputs of a linear layer are cut into, so that few rows still fill the device.
/// It depends on the matrix alone: a row's result must not depend on its batch.
pub(crate) fn splits(linear: &Linear, processors: usize) -> usize {
    if linear.kind == Kind::F32 {
        return 1;
    }
    let blocks = linear.rows.div_ceil(32);
    let chunks = chunks(linear);
    (2 * processors / blocks).clamp(1, 8).min(chunks / 4).max(1)
}

/// Pieces in which the kernels for few columns read a row of weights.
pub(crate) fn chunks(linear: &Linear) -> usize {
    linear.cols.div_ceil(if linear.kind.is_quantised() { 128 } else { 64 })
}

/// Warps that share a stripe of `chunks` pieces with the fewest idle at its end.
pub(crate) fn warps(chunks: usize) -> usize {
    let idle = |warps: usize| chunks.next_multiple_of(warps) - chunks;
    (4..=8).rev().min_by_key(|&warps| idle(warps)).unwrap_or(8)
}

/// Parts that attention of one row is cut into, for sequences of up to `context` tokens.
pub(crate) fn attention_splits(
    processors: usize,
    kv_heads: usize,
    sequences: usize,
    context: usize,
) -> usize {
    let fill = (2 * processors / (kv_heads * sequences.max(1))).max(1);
    fill.min(context.div_ceil(64)).clamp(1, MOST_SPLITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warps_leave_as_few_idle_as_can_be() {
        assert_eq!(warps(18), 6);
        assert_eq!(warps(16), 8);
        assert_eq!(warps(4), 4);
        assert_eq!(warps(1), 4);
    }

    #[test]
    fn attention_is_cut_to_fill_the_device_but_not_finer_than_it_pays() {
        assert_eq!(attention_splits(132, 1, 1, 4096), 64);
        assert_eq!(attention_splits(132, 1, 1, 32_768), 128);
        assert_eq!(attention_splits(132, 4, 32, 4096), 2);
        assert_eq!(attention_splits(132, 16, 32, 4096), 1);
        assert_eq!(attention_splits(132, 1, 1, 10), 1);
    }
}
