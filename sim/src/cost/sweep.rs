//! The steps that a calibration measures: fifteen, chosen before any result was seen.
//!
//! Six of decoding alone, five of prompts alone, four of both. Each group crosses few and many
//! sequences (or tokens) with short and long contexts, so that every coefficient of the roofline
//! moves some of them, and none asks for more than 32,768 cells, so that they fit beside the
//! weights of an 8B model in 24 GB.

use super::{Moves, Prefill, Work};
use crate::model::Model;

/// Decoding: sequences, context of each with the new token.
const DECODES: [(u32, u32); 6] = [
    (1, 1024),
    (8, 2048),
    (16, 1024),
    (32, 1024),
    (64, 256),
    (128, 256),
];

/// Prompts: new tokens, tokens before them.
const PREFILLS: [(u32, u32); 5] = [(256, 0), (512, 1024), (1024, 0), (2048, 0), (2048, 1024)];

/// Both in one step: the prompt's new tokens and those before, then as for decoding.
const MIXED: [(u32, u32, u32, u32); 4] = [
    (256, 0, 32, 1024),
    (512, 1024, 16, 1024),
    (1024, 0, 64, 256),
    (1024, 1024, 16, 2048),
];

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
        moves: Moves::default(),
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
