//! Sequences over a backend, for the self-test: where their cells lie, and what a step is told.

use policies::Run;

use crate::backend::{Backend, Batch, Output, Span, View, Wanted};
use crate::cache::{CacheShape, KvType};
use crate::config::{Config, LayerKind};
use crate::error::EngineError;

/// Where the tokens of sequences lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// One run each.
    Runs,
    /// Blocks of so many cells, in mixed order.
    Blocks(u32),
    /// Single cells, in mixed order.
    Cells,
    /// Single cells, and attention walks all cells.
    Walked,
}

/// Cells of each sequence of a test: `room` tokens for each of `sequences`.
pub(crate) struct Rig {
    pub(crate) placement: Placement,
    pub(crate) room: u32,
    pub(crate) sequences: u32,
    pub(crate) classes: usize,
}

impl Rig {
    /// Cells of a class.
    pub(crate) fn cells(&self) -> u32 {
        self.room * self.sequences
    }

    /// A cache for the rig: one class, or one for each kind of layer.
    pub(crate) fn shape(&self, config: &Config, kv: KvType) -> CacheShape {
        let class =
            |kind: &LayerKind| if self.classes == 1 { 0 } else { usize::from(*kind == LayerKind::Global) };
        CacheShape {
            class_of: config.layers.iter().map(class).collect(),
            cells: vec![self.cells(); self.classes],
            k: kv,
            v: kv,
            rotated: true,
        }
    }

    /// The cell of a sequence's token.
    pub(crate) fn cell(&self, sequence: u32, token: u32) -> u32 {
        let logical = sequence * self.room + token;
        let mixed = |at: u32, of: u32| {
            // An odd factor that shares no divisor with the sizes used here mixes without meeting.
            let factor = [7, 11, 13, 17].into_iter().find(|factor| !of.is_multiple_of(*factor)).unwrap_or(1);
            (at * factor + 5) % of
        };
        match self.placement {
            Placement::Runs => logical,
            Placement::Blocks(size) => mixed(logical / size, self.cells() / size) * size + logical % size,
            Placement::Cells | Placement::Walked => mixed(logical, self.cells()),
        }
    }

    /// Where a sequence's first `tokens` tokens lie, from `first` on.
    pub(crate) fn view(&self, sequence: u32, first: u32, tokens: u32) -> View {
        let mut runs = Vec::new();
        for token in first..tokens {
            policies::push_run(&mut runs, self.cell(sequence, token), 1);
        }
        View { first, runs }
    }

    /// A batch of parts of sequences: which, its first new token, the new tokens, how many sample.
    pub(crate) fn batch(
        &self,
        config: &Config,
        parts: &[(u32, u32, &[u32], usize)],
        wanted: Wanted,
    ) -> Batch {
        let mut batch = Batch { wanted, ..Batch::default() };
        for &(sequence, first, tokens, samples) in parts {
            let start = batch.tokens.len();
            batch.tokens.extend_from_slice(tokens);
            let end = first + tokens.len() as u32;
            // Local layers have let go of what no token sees any more, where they have a class.
            let kept = (first + 1).saturating_sub(config.window as u32);
            let local = if self.classes == 1 { 0 } else { kept };
            let views = [local, 0].into_iter().take(self.classes).map(|from| self.view(sequence, from, end));
            batch.spans.push(Span {
                rows: start..batch.tokens.len(),
                first,
                samples,
                views: views.collect(),
                ..Span::default()
            });
        }
        if self.placement == Placement::Walked {
            batch.walks = vec![Some(Run { start: 0, len: self.cells() }); self.classes];
        }
        batch
    }

    /// Logits of all tokens of several sequences: each but its last `single` tokens in chunks of at
    /// most `chunk`, then those one by one, all sequences together.
    pub(crate) fn logits(
        &self,
        backend: &mut dyn Backend,
        texts: &[Vec<u32>],
        chunk: usize,
        single: usize,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        let config = backend.config().clone();
        let mut logits = vec![Vec::new(); texts.len()];
        let mut output = Output::default();
        for (sequence, text) in texts.iter().enumerate() {
            let prompt = text.len() - single;
            for first in (0..prompt).step_by(chunk) {
                let tokens = &text[first..prompt.min(first + chunk)];
                let part = (sequence as u32, first as u32, tokens, tokens.len());
                backend.step(&self.batch(&config, &[part], Wanted::Logits), &mut output)?;
                most_likely(&output, config.vocab)?;
                logits[sequence].append(&mut output.logits);
            }
        }
        for back in (1..=single).rev() {
            let part = |(sequence, text): (usize, &Vec<u32>)| (sequence as u32, text.len() - back);
            let at: Vec<(u32, usize)> = texts.iter().enumerate().map(part).collect();
            let parts: Vec<_> = at
                .iter()
                .map(|&(sequence, first)| {
                    (sequence, first as u32, &texts[sequence as usize][first..=first], 1)
                })
                .collect();
            backend.step(&self.batch(&config, &parts, Wanted::Logits), &mut output)?;
            most_likely(&output, config.vocab)?;
            for (row, logits) in output.logits.chunks_exact(config.vocab).zip(&mut logits) {
                logits.extend_from_slice(row);
            }
        }
        Ok(logits)
    }
}

/// Whether the tokens of a step are the most likely ones of its logits.
fn most_likely(output: &Output, vocab: usize) -> Result<(), EngineError> {
    let first_largest =
        |row: &[f32]| (0..vocab).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as u32;
    let expected: Vec<u32> = output.logits.chunks_exact(vocab).map(first_largest).collect();
    if output.argmax != expected {
        let tokens = &output.argmax;
        return Err(EngineError::Device(format!(
            "tokens {tokens:?} of logits whose largest are {expected:?}"
        )));
    }
    Ok(())
}

/// Texts of made-up tokens.
pub(crate) fn texts(config: &Config, lengths: &[usize]) -> Vec<Vec<u32>> {
    let token = |seed: usize, i: usize| {
        (crate::synthetic::hash(seed as u64 + 1, i as u64) % config.vocab as u64) as u32
    };
    lengths.iter().enumerate().map(|(seed, &len)| (0..len).map(|i| token(seed, i)).collect()).collect()
}

/// Largest and root-mean-square difference; NaN where anything is.
pub(crate) fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> (f64, f64) {
    let pairs =
        || a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    let count = a.iter().flatten().count();
    if count != b.iter().flatten().count() {
        return (f64::NAN, f64::NAN);
    }
    let most =
        pairs().fold(0.0, |most: f64, d| if d.is_nan() || most.is_nan() { f64::NAN } else { most.max(d) });
    (most, (pairs().map(|d| d * d).sum::<f64>() / count.max(1) as f64).sqrt())
}
