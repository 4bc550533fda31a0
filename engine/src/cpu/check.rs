//! Whether a batch and a plan make sense, before anything is computed.

use std::collections::BTreeMap;
use std::ops::Range;

use policies::{Cell, Effect, Plan, Run, SeqId};

use crate::backend::Batch;
use crate::cache::CacheShape;
use crate::error::EngineError;

/// Where a batch's tokens lie, checked.
#[derive(Default)]
pub(crate) struct Places {
    /// Cells of every sequence, one after another, per class.
    cells: Vec<Vec<Cell>>,
    /// Where each sequence's cells begin among them, per class.
    starts: Vec<Vec<usize>>,
    /// Of each row: its span, and its index in the sequence.
    pub rows: Vec<(usize, u32)>,
}

impl Places {
    /// The cells of a span's sequence in a class, from its view's first token on.
    pub fn cells(&self, class: usize, span: usize) -> &[Cell] {
        let starts = &self.starts[class];
        &self.cells[class][starts[span]..starts[span + 1]]
    }

    /// Replaces all by what a batch says.
    pub fn read(&mut self, batch: &Batch, shape: &CacheShape, vocab: usize) -> Result<(), EngineError> {
        let fault = |what: String| Err(EngineError::Batch(what));
        if let Some(row) = batch.tokens.iter().position(|&token| token as usize >= vocab) {
            return fault(format!("row {row}: token {} of a vocabulary of {vocab}", batch.tokens[row]));
        }
        let classes = shape.cells.len();
        if !batch.walks.is_empty() && batch.walks.len() != classes {
            return fault(format!("{} ranges to walk for {classes} classes", batch.walks.len()));
        }
        for (class, walk) in batch.walks.iter().enumerate() {
            walk.map_or(Ok(()), |run| check_run(shape, class, run))?;
        }
        self.rows.clear();
        self.cells.resize(classes, Vec::new());
        self.starts.resize(classes, Vec::new());
        for class in 0..classes {
            self.cells[class].clear();
            self.starts[class].clear();
            self.starts[class].push(0);
        }
        for (index, span) in batch.spans.iter().enumerate() {
            let rows = &span.rows;
            if rows.start != self.rows.len() || rows.end < rows.start || rows.end > batch.tokens.len() {
                let (expected, tokens) = (self.rows.len(), batch.tokens.len());
                return fault(format!(
                    "span {index}: rows {rows:?}, expected rows from {expected} on, at most {tokens}"
                ));
            }
            let new = rows.len() as u64;
            let end = u64::from(span.first) + new;
            if end + u64::from(span.offset) > u64::from(u32::MAX) {
                return fault(format!(
                    "span {index}: {new} tokens from {} on, which is too many",
                    span.first
                ));
            }
            if span.samples > rows.len() {
                return fault(format!("span {index}: {} of {new} rows sample", span.samples));
            }
            if span.views.len() != classes {
                return fault(format!("span {index}: {} views for {classes} classes", span.views.len()));
            }
            self.rows.extend((span.first..end as u32).map(|token| (index, token)));
            for class in 0..classes {
                self.read_view(batch, shape, class, index, end as u32)?;
            }
        }
        if self.rows.len() != batch.tokens.len() {
            return fault(format!("{} tokens, but spans of {}", batch.tokens.len(), self.rows.len()));
        }
        Ok(())
    }

    fn read_view(
        &mut self,
        batch: &Batch,
        shape: &CacheShape,
        class: usize,
        index: usize,
        end: u32,
    ) -> Result<(), EngineError> {
        let span = &batch.spans[index];
        let view = &span.views[class];
        let mut len = 0;
        for &run in &view.runs {
            check_run(shape, class, run)?;
            if let Some(Some(walk)) = batch.walks.get(class)
                && (run.start < walk.start || run.cells().end > walk.cells().end)
            {
                return Err(EngineError::Batch(format!(
                    "span {index}, class {class}: cells {run:?} lie outside of those walked, {walk:?}"
                )));
            }
            len += u64::from(run.len);
        }
        let needed = u64::from(end).saturating_sub(u64::from(view.first));
        if !span.rows.is_empty() && (view.first > span.first || len != needed) {
            return Err(EngineError::Batch(format!(
                "span {index}, class {class}: {len} cells from token {} on; tokens {} to {end} are computed",
                view.first, span.first
            )));
        }
        self.cells[class].extend(view.cells());
        let so_far = self.cells[class].len();
        self.starts[class].push(so_far);
        Ok(())
    }
}

fn check_run(shape: &CacheShape, class: usize, run: Run) -> Result<(), EngineError> {
    let cells = shape.cells.get(class).copied().unwrap_or(0);
    if u64::from(run.start) + u64::from(run.len) > u64::from(cells) {
        let Run { start, len } = run;
        return Err(EngineError::Batch(format!("class {class}: {len} cells from {start} on of {cells}")));
    }
    Ok(())
}

/// Key of a token's payload in host memory: class, request, token.
pub(crate) type HostKey = (u8, u64, u32);

/// In place of a request, for cells of host memory: the cell then stands for the token.
pub(crate) const SLOTS: u64 = u64::MAX - 1;

/// Checks a plan: that its cells exist, and that what it brings back went to host memory.
pub(crate) fn check_plan<T>(
    plan: &Plan,
    shape: &CacheShape,
    host: &BTreeMap<HostKey, T>,
    request_of: &dyn Fn(SeqId) -> u64,
) -> Result<(), EngineError> {
    let mut leaving: Vec<(u8, u64, Range<u32>)> = Vec::new();
    let missing = |leaving: &[(u8, u64, Range<u32>)], class: u8, request: u64, mut tokens: Range<u32>| {
        tokens.find(|&token| {
            let leaves = |(c, r, tokens): &(u8, u64, Range<u32>)| {
                (*c, *r) == (class, request) && tokens.contains(&token)
            };
            !host.contains_key(&(class, request, token)) && !leaving.iter().any(leaves)
        })
    };
    for effect in plan.effects() {
        match *effect {
            Effect::Write { class, run, .. }
            | Effect::Rotate { class, run, .. }
            | Effect::Requantise { class, run, .. }
            | Effect::Map { class, run, .. }
            | Effect::Unmap { class, run, .. } => {
                check_run(shape, class.index(), run)?;
            }
            Effect::Copy { class, from, to, len, .. } => {
                check_run(shape, class.index(), Run { start: from.max(to), len })?;
            }
            Effect::SwapOut { class, seq, first, run } => {
                check_run(shape, class.index(), run)?;
                leaving.push((class.0, request_of(seq), first..first.saturating_add(run.len)));
            }
            Effect::SwapIn { class, seq, first, run } => {
                check_run(shape, class.index(), run)?;
                let request = request_of(seq);
                let tokens = first..first.saturating_add(run.len);
                if let Some(token) = missing(&leaving, class.0, request, tokens) {
                    return Err(EngineError::Batch(format!(
                        "class {}: token {token} of request {request} is not in host memory",
                        class.0
                    )));
                }
            }
            Effect::Offload { class, run, slot } => {
                check_run(shape, class.index(), run)?;
                leaving.push((class.0, SLOTS, slot..slot.saturating_add(run.len)));
            }
            Effect::Fetch { class, slot, run } => {
                check_run(shape, class.index(), run)?;
                let slots = slot..slot.saturating_add(run.len);
                if let Some(slot) = missing(&leaving, class.0, SLOTS, slots) {
                    return Err(EngineError::Batch(format!(
                        "class {}: nothing lies in cell {slot} of host memory",
                        class.0
                    )));
                }
            }
        }
    }
    Ok(())
}
