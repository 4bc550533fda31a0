//! Every variant on every document, against a cache that loses nothing.

use std::ops::Range;

use rayon::prelude::*;

use crate::backend::Backend;
use crate::cache::CacheShape;
use crate::config::Config;
use crate::error::EngineError;
use crate::memory;
use crate::quality::QualityError;
use crate::quality::corpus::Document;
use crate::quality::reading::{Incidents, Predicted, Reading};
use crate::quality::score::Score;
use crate::quality::variant::Variant;
use crate::serve::shape_for;

/// Documents that are in memory at once, with the logits of the full cache; also the company in which a
/// policy reads whose faults need it.
const GROUP: usize = 8;

/// What is needed beside documents and variants.
pub struct Evaluation<'a> {
    /// The model's shape.
    pub config: &'a Config,
    /// Makes a backend with an empty cache.
    pub backend: &'a (dyn Fn(CacheShape) -> Result<Box<dyn Backend>, EngineError> + Sync),
    /// Context limit of the variants that have one.
    pub num_ctx: u32,
    /// Tokens of a batch; more than sequences are read side by side.
    pub num_batch: u32,
    /// Called after each variant of each group of documents, with the tokens read.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Whether to stop early.
    pub is_interrupted: &'a (dyn Fn() -> bool + Sync),
}

/// What was measured of one variant.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The variant.
    pub variant: Variant,
    /// Per document, the tokens of its exam.
    pub scores: Vec<Vec<Score>>,
    /// What happened on the way.
    pub incidents: Incidents,
}

/// The reference and the variants.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// A cache in f32 that loses nothing.
    pub reference: Measured,
    /// The variants, as they were given.
    pub variants: Vec<Measured>,
}

/// Logits of the exams of some documents: `[document][token of the exam][vocab]`.
struct Full {
    vocab: usize,
    logits: Vec<Vec<f32>>,
}

impl Full {
    fn row(&self, document: usize, row: usize) -> &[f32] {
        &self.logits[document][row * self.vocab..(row + 1) * self.vocab]
    }
}

/// Tokens of an exam that are predicted: all but the very first of a text.
fn predicted(document: &Document) -> Range<usize> {
    document.exam.max(1)..document.tokens.len()
}

impl Evaluation<'_> {
    /// Tokens that [`run`](Evaluation::run) reports to `progress` in all.
    pub fn tokens(&self, documents: &[Document], variants: usize) -> u64 {
        let tokens: usize = documents.iter().map(|document| document.tokens.len()).sum();
        tokens as u64 * (variants as u64 + 1)
    }

    /// Reads every document in every variant. The outcome does not depend on the number of threads.
    ///
    /// # Errors
    /// A spec that is wrong, a policy that cannot go on, a device that fails, an interruption.
    pub fn run(&self, documents: &[Document], variants: &[Variant]) -> Result<Outcome, QualityError> {
        let new = |variant: &Variant| Measured {
            variant: variant.clone(),
            scores: Vec::new(),
            incidents: Incidents::default(),
        };
        let mut reference = new(&Variant::reference());
        let mut measured: Vec<Measured> = variants.iter().map(new).collect();
        for group in documents.chunks(GROUP) {
            let full = self.full(group)?;
            reference.scores.extend(group.iter().enumerate().map(|(index, document)| {
                let score = |(row, at)| Score::new(document, at, full.row(index, row), full.row(index, row));
                predicted(document).enumerate().map(score).collect::<Vec<Score>>()
            }));
            // Who reads alone may read on many threads.
            let tasks: Vec<(usize, Range<usize>)> = variants
                .iter()
                .enumerate()
                .flat_map(|(index, variant)| {
                    let step = if variant.sequences == 1 { 1 } else { GROUP };
                    let starts = (0..group.len()).step_by(step);
                    starts.map(move |start| (index, start..(start + step).min(group.len())))
                })
                .collect();
            let done: Vec<(usize, Vec<Vec<Score>>, Incidents)> = tasks
                .into_par_iter()
                .map(|(index, part)| {
                    let (scores, incidents) = self.scores(&variants[index], group, part, &full)?;
                    Ok((index, scores, incidents))
                })
                .collect::<Result<_, QualityError>>()?;
            for (index, scores, incidents) in done {
                measured[index].scores.extend(scores);
                measured[index].incidents.reductions += incidents.reductions;
                measured[index].incidents.defrags += incidents.defrags;
                measured[index].incidents.crashes += incidents.crashes;
            }
        }
        Ok(Outcome { reference, variants: measured })
    }

    /// Reads documents in one variant.
    fn read(
        &self,
        variant: &Variant,
        documents: &[&Document],
        take: &mut dyn FnMut(Predicted<'_>),
    ) -> Result<Incidents, QualityError> {
        let longest = documents.iter().map(|document| document.tokens.len()).max().unwrap_or(1) as u32;
        let context = if variant.is_unlimited { longest } else { self.num_ctx };
        let geometry = variant.geometry(self.config, context, self.num_batch);
        let mut shape = shape_for(&variant.spec, self.config, &geometry, variant.kv)?;
        shape.rotated &= variant.rotated;
        let backend = (self.backend)(shape)?;
        let incidents =
            Reading::new(variant, documents, backend, &geometry)?.run_until(self.is_interrupted, take)?;
        (self.progress)(documents.iter().map(|document| document.tokens.len() as u64).sum());
        Ok(incidents)
    }

    fn full(&self, group: &[Document]) -> Result<Full, QualityError> {
        let reference = Variant::reference();
        let vocab = self.config.vocab;
        let rows: usize = group.iter().map(|document| predicted(document).len()).sum();
        memory::check("the logits of the full cache", rows as u64 * vocab as u64 * 4)?;
        let logits = group.par_iter().map(|document| {
            let exam = predicted(document);
            let mut logits = vec![0.0; exam.len() * vocab];
            self.read(&reference, &[document], &mut |token| {
                let row = token.at - exam.start;
                logits[row * vocab..(row + 1) * vocab].copy_from_slice(token.logits);
            })?;
            Ok(logits)
        });
        Ok(Full { vocab, logits: logits.collect::<Result<_, QualityError>>()? })
    }

    fn scores(
        &self,
        variant: &Variant,
        group: &[Document],
        part: Range<usize>,
        full: &Full,
    ) -> Result<(Vec<Vec<Score>>, Incidents), QualityError> {
        let documents: Vec<&Document> = group[part.clone()].iter().collect();
        let mut scores: Vec<Vec<Option<Score>>> =
            documents.iter().map(|document| vec![None; predicted(document).len()]).collect();
        let incidents = self.read(variant, &documents, &mut |token| {
            let document = documents[token.document];
            let row = token.at - predicted(document).start;
            let full = full.row(part.start + token.document, row);
            let score = Score::new(document, token.at, token.logits, full);
            scores[token.document][row] = Some(Score { is_foreign: token.is_foreign, ..score });
        })?;
        let all = |scores: Vec<Option<Score>>| {
            scores
                .into_iter()
                .map(|score| score.expect("a reading predicts every token of its exams"))
                .collect()
        };
        Ok((scores.into_iter().map(all).collect(), incidents))
    }
}
