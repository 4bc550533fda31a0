//! The steps that a calibration measures: fifteen, chosen before any result was seen.
//!
//! Six of decoding alone, five of prompts alone, four of both. Each group crosses few and many
//! sequences (or tokens) with short and long contexts, so that every coefficient of the roofline
//! moves some of them, and none asks for more than 35,000 cells, so that they fit beside the
//! weights of an 8B model in 24 GB.
//!
//! Sizes are not powers of two, on purpose. Matrix products run in tiles of tokens, 256 of them
//! at a time on the larger GPUs: 257 tokens cost as much as 384. A power of two is the end of a
//! tile, the cheapest place there is, and with decoding sequences beside it the start of the
//! next, the dearest; a smooth curve through such points is wrong everywhere else. The totals of
//! the steps with prompts lie 32, 96, 160 and 224 beyond a multiple of 256, each about as often.

use super::{Prefill, Work};
use crate::model::Model;

/// Decoding: sequences, context of each with the new token.
const DECODES: [(u32, u32); 6] = [(1, 1024), (6, 2048), (20, 1024), (40, 768), (72, 384), (144, 224)];

/// Prompts: new tokens, tokens before them.
const PREFILLS: [(u32, u32); 5] = [(224, 0), (672, 1024), (1120, 0), (1824, 0), (1952, 1024)];

/// Both in one step: the prompt's new tokens and those before, then as for decoding.
const MIXED: [(u32, u32, u32, u32); 4] =
    [(320, 0, 32, 1024), (528, 1024, 16, 1024), (1184, 0, 64, 256), (912, 1024, 16, 2048)];

/// A step in which `decodes` sequences decode with `cells` tokens of context each (the new one
/// included), and `prefill` is computed beside them and yields one token.
///
/// ```
/// let (model, _) = sim::model::find("gemma3-1b").unwrap();
/// let work = sim::cost::sweep::step(&model, 8, 2000, None);
/// assert_eq!(work.decode_reads, [8 * 512, 8 * 2000]);
/// ```
pub fn step(model: &Model, decodes: u32, cells: u32, prefill: Option<Prefill>) -> Work {
    let new_tokens = prefill.map_or(0, |piece| piece.tokens);
    let sequences = decodes + u32::from(prefill.is_some());
    let reads = model.classes.iter().map(|class| {
        let seen = class.window.map_or(cells, |window| window.min(cells));
        u64::from(decodes) * u64::from(seen)
    });
    Work {
        tokens: decodes + new_tokens,
        sequences,
        samples: sequences,
        decodes,
        prefills: prefill.into_iter().collect(),
        decode_reads: reads.collect(),
        ..Work::default()
    }
}

/// The fifteen steps for one model.
pub fn designed(model: &Model) -> Vec<Work> {
    let piece = |tokens, context| Some(Prefill { tokens, context });
    let decodes = DECODES.into_iter().map(|(decodes, cells)| step(model, decodes, cells, None));
    let prefills = PREFILLS.into_iter().map(|(tokens, before)| step(model, 0, 0, piece(tokens, before)));
    let mixed = MIXED
        .into_iter()
        .map(|(tokens, before, decodes, cells)| step(model, decodes, cells, piece(tokens, before)));
    decodes.chain(prefills).chain(mixed).collect()
}
