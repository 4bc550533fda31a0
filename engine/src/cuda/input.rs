//! What a batch looks like to the kernels: one run of 32-bit words, uploaded as one piece.

use policies::{Cell, Run};

use super::kernels::MOST_BLOCKS;
use crate::backend::{Batch, Span, View};
use crate::cache::CacheShape;
use crate::config::Config;
use crate::error::EngineError;

/// Words of a sequence's descriptor.
pub(crate) const DESCRIPTOR: usize = 8;

/// The token index of a cell that is not the sequence's.
const NOBODY: u32 = u32::MAX;

/// Where things lie among the words, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Token ids, one a row.
    pub(crate) tokens: usize,
    /// Positions, one a row.
    pub(crate) positions: usize,
    /// Per class, the cell that each row writes.
    pub(crate) cells: Vec<usize>,
    /// Per class, descriptors of the sequences: those of one row first.
    pub(crate) sequences: Vec<usize>,
    /// Per class, first and end of the cells that are walked.
    pub(crate) walks: Vec<usize>,
    /// The rows that sample.
    pub(crate) samples: usize,
    /// Tables of all classes.
    pub(crate) tables: usize,
}

impl Layout {
    /// The layout for so many rows, sequences and classes; tables come last.
    pub(crate) fn new(rows: usize, sequences: usize, classes: usize) -> Layout {
        let mut end = 0;
        // Every part begins at 16 bytes.
        let mut take = |words: usize| {
            let start = end;
            end += words.next_multiple_of(4);
            start
        };
        Layout {
            tokens: take(rows),
            positions: take(rows),
            cells: (0..classes).map(|_| take(rows)).collect(),
            sequences: (0..classes).map(|_| take(sequences * DESCRIPTOR)).collect(),
            walks: (0..classes).map(|_| take(2)).collect(),
            samples: take(rows),
            tables: end,
        }
    }
}

/// What a batch asks of the kernels, apart from addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Rows, padding included.
    pub(crate) rows: usize,
    /// Sequences of one row, padding included.
    pub(crate) decoding: usize,
    /// Sequences of several rows.
    pub(crate) prefilling: usize,
    /// Rows of the longest sequence.
    pub(crate) longest: usize,
    /// Rows that sample, padding included.
    pub(crate) samples: usize,
    /// Rows that sample, without padding.
    pub(crate) wanted: usize,
    /// Per class, the most tokens (cells, where they are walked) that a sequence of one row reads.
    pub(crate) contexts: Vec<usize>,
    /// Per class, whether cells are walked.
    pub(crate) walked: Vec<bool>,
    /// Where the words are.
    pub(crate) layout: Layout,
    /// Whether only single rows are computed, each of which samples.
    pub(crate) is_decode: bool,
}

/// Most rows of a decode batch that is padded to a size of its own.
pub(crate) const MOST_BUCKETED: usize = 256;

/// The size that a decode batch is padded to.
pub(crate) fn bucket(rows: usize) -> usize {
    match rows {
        0..=32 => rows.next_power_of_two(),
        33..=MOST_BUCKETED => rows.next_multiple_of(32),
        _ => rows,
    }
}

/// Writes a batch as words.
///
/// # Errors
/// [`EngineError::Batch`] for a batch that does not agree with itself or the cache.
pub(crate) fn describe(
    batch: &Batch,
    config: &Config,
    shape: &CacheShape,
    words: &mut Vec<u32>,
) -> Result<Frame, EngineError> {
    let classes = shape.cells.len();
    check(batch, config, shape)?;
    if batch.spans.iter().any(|span| span.ballot.is_some()) {
        return Err(EngineError::Batch(
            "the kernels of this device do not tell what tokens look at".to_owned(),
        ));
    }
    let rows = batch.tokens.len();
    let is_decode = batch.spans.iter().all(|span| span.rows.len() == 1 && span.samples == 1);
    let padded = if is_decode { bucket(rows) } else { rows };
    let padding = padded - rows;
    // Sequences of one row come first: they are computed by a kernel of their own.
    let (single, many): (Vec<&Span>, Vec<&Span>) =
        batch.spans.iter().filter(|span| !span.rows.is_empty()).partition(|span| span.rows.len() == 1);
    let layout = Layout::new(padded, single.len() + many.len() + padding, classes);
    words.clear();
    words.resize(layout.tables, 0);
    words[layout.tokens..layout.tokens + rows].copy_from_slice(&batch.tokens);
    let mut contexts = vec![0; classes];
    let walk = |class: usize| batch.walks.get(class).copied().flatten();
    for class in 0..classes {
        words[layout.cells[class]..][..padded].fill(shape.cells[class]);
        if let Some(walk) = walk(class) {
            words[layout.walks[class]..][..2].copy_from_slice(&[walk.start, walk.start + walk.len]);
        }
    }
    for (index, span) in single.iter().chain(&many).enumerate() {
        // Padding lies between the two kinds.
        let index = if index < single.len() { index } else { index + padding };
        for (new, row) in span.rows.clone().enumerate() {
            words[layout.positions + row] = span.first + new as u32 + span.offset;
        }
        for (class, context) in contexts.iter_mut().enumerate() {
            let view = &span.views[class];
            let new = view.cells().skip((span.first - view.first) as usize);
            for (row, cell) in span.rows.clone().zip(new) {
                words[layout.cells[class] + row] = cell;
            }
            let table = words.len() - layout.tables;
            let len = span.first - view.first + span.rows.len() as u32;
            let shift = match walk(class) {
                Some(walk) => {
                    push_owners(words, view, walk, len)?;
                    0
                }
                None => push_blocks(words, view, len),
            };
            let descriptor = [
                table as u32,
                shift,
                view.first,
                len,
                span.rows.start as u32,
                span.rows.len() as u32,
                span.first,
                0,
            ];
            words[layout.sequences[class] + index * DESCRIPTOR..][..DESCRIPTOR].copy_from_slice(&descriptor);
            if span.rows.len() == 1 {
                *context = (*context).max(walk(class).map_or(len, |walk| walk.len) as usize);
            }
        }
    }
    let samples = batch.spans.iter().flat_map(|span| span.rows.end - span.samples..span.rows.end);
    let wanted = samples.clone().count();
    for (at, row) in samples.enumerate() {
        words[layout.samples + at] = row as u32;
    }
    Ok(Frame {
        rows: padded,
        decoding: single.len() + padding,
        prefilling: many.len(),
        longest: batch.spans.iter().map(|span| span.rows.len()).max().unwrap_or(0),
        samples: if is_decode { padded } else { wanted },
        wanted,
        contexts,
        walked: (0..classes).map(|class| walk(class).is_some()).collect(),
        layout,
        is_decode,
    })
}

/// Appends the table of `len` tokens in blocks as large as the runs allow; gives the blocks' size as
/// a power of two.
fn push_blocks(words: &mut Vec<u32>, view: &View, len: u32) -> u32 {
    if let [run] = *view.runs {
        words.push(run.start);
        return 31;
    }
    let all_but_last = &view.runs[..view.runs.len().saturating_sub(1)];
    let shift = all_but_last.iter().map(|run| run.len.trailing_zeros()).min().unwrap_or(0).min(31);
    let mut left = len;
    for run in &view.runs {
        let used = run.len.min(left);
        words.extend((0..used.div_ceil(1 << shift)).map(|block| run.start + (block << shift)));
        left -= used;
    }
    shift
}

/// Appends the token index of every cell that is walked.
fn push_owners(words: &mut Vec<u32>, view: &View, walk: Run, len: u32) -> Result<(), EngineError> {
    let start = words.len();
    words.resize(start + walk.len as usize, NOBODY);
    for (token, cell) in (view.first..).zip(view.cells()).take(len as usize) {
        if !walk.cells().contains(&cell) {
            return Err(EngineError::Batch(format!(
                "token {token} lies in cell {cell}, outside of {walk:?}"
            )));
        }
        words[start + (cell - walk.start) as usize] = token;
    }
    Ok(())
}

fn check(batch: &Batch, config: &Config, shape: &CacheShape) -> Result<(), EngineError> {
    let wrong = |what: String| Err(EngineError::Batch(what));
    if batch.tokens.len() > MOST_BLOCKS {
        let rows = batch.tokens.len();
        return wrong(format!("{rows} tokens in one step: a CUDA device computes at most {MOST_BLOCKS}"));
    }
    if let Some(token) = batch.tokens.iter().find(|&&token| token as usize >= config.vocab) {
        return wrong(format!("token {token} of a vocabulary of {}", config.vocab));
    }
    for (class, walk) in batch.walks.iter().enumerate() {
        if let Some(walk) = walk {
            check_run(shape, class, *walk)?;
        }
    }
    let mut next = 0;
    for span in &batch.spans {
        if span.rows.start != next || span.rows.end < next || span.samples > span.rows.len() {
            return wrong(format!(
                "rows {:?}, {} of which sample, after row {next}",
                span.rows, span.samples
            ));
        }
        next = span.rows.end;
        if span.views.len() != shape.cells.len() {
            return wrong(format!("{} views for {} classes", span.views.len(), shape.cells.len()));
        }
        let end = u64::from(span.first) + span.rows.len() as u64;
        if end + u64::from(span.offset) > config.max_positions as u64 {
            return wrong(format!("position {end} of {}", config.max_positions));
        }
        for (class, view) in span.views.iter().enumerate() {
            let cells: u64 = view.runs.iter().map(|run| u64::from(run.len)).sum();
            if view.first > span.first || u64::from(view.first) + cells < end {
                let first = view.first;
                return wrong(format!("class {class}: {cells} cells from token {first}, up to token {end}"));
            }
            view.runs.iter().try_for_each(|&run| check_run(shape, class, run))?;
        }
    }
    if next != batch.tokens.len() {
        return wrong(format!("spans of {next} rows for {} tokens", batch.tokens.len()));
    }
    Ok(())
}

/// Whether the cells exist.
pub(crate) fn check_run(shape: &CacheShape, class: usize, run: Run) -> Result<(), EngineError> {
    let cells: Cell = shape.cells.get(class).copied().unwrap_or(0);
    if u64::from(run.start) + u64::from(run.len) > u64::from(cells) {
        return Err(EngineError::Batch(format!("class {class}: {run:?} of {cells} cells")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cells that the kernels read from a table, as the contract says.
    fn read(words: &[u32], shift: u32, len: u32) -> Vec<Cell> {
        (0..len).map(|token| words[(token >> shift) as usize] + (token & ((1 << shift) - 1))).collect()
    }

    #[test]
    fn a_table_names_the_cells_of_its_runs_whatever_their_lengths() {
        let cases: [&[(u32, u32)]; 6] = [
            &[(5, 9)],
            &[(32, 16), (0, 16), (64, 3)],
            &[(8, 8), (0, 16), (40, 8)],
            &[(3, 1), (9, 2), (20, 5)],
            &[(7, 6), (1, 4)],
            &[],
        ];
        for runs in cases {
            let runs: Vec<Run> = runs.iter().map(|&(start, len)| Run { start, len }).collect();
            let view = View { first: 0, runs };
            let expected: Vec<Cell> = view.cells().collect();
            for len in 0..=expected.len() {
                let mut words = Vec::new();
                let shift = push_blocks(&mut words, &view, len as u32);
                assert_eq!(read(&words, shift, len as u32), expected[..len], "{view:?}");
            }
        }
    }

    #[test]
    fn blocks_are_as_large_as_the_runs_allow() {
        let shift = |lens: &[u32]| {
            let runs = lens.iter().enumerate().map(|(i, &len)| Run { start: 100 * i as u32, len }).collect();
            push_blocks(&mut Vec::new(), &View { first: 0, runs }, lens.iter().sum())
        };
        assert_eq!(shift(&[16, 32, 7]), 4);
        assert_eq!(shift(&[3, 32]), 0);
        assert_eq!(shift(&[90]), 31);
    }

    #[test]
    fn owners_are_known_by_token_and_strangers_by_none() {
        let view = View { first: 2, runs: vec![Run { start: 6, len: 2 }, Run { start: 4, len: 1 }] };
        let mut words = Vec::new();
        push_owners(&mut words, &view, Run { start: 4, len: 5 }, 3).expect("all cells are walked");
        assert_eq!(words, [4, NOBODY, 2, 3, NOBODY]);
        let outside = push_owners(&mut words, &view, Run { start: 5, len: 3 }, 3);
        assert!(outside.is_err());
    }

    #[test]
    fn more_rows_than_a_grid_has_are_refused() {
        let config = Config::preset("gemma3-27b").expect("the preset exists");
        let shape = CacheShape {
            class_of: vec![0; config.layers.len()],
            cells: vec![70_000],
            k: crate::cache::KvType::Bf16,
            v: crate::cache::KvType::Bf16,
            rotated: true,
        };
        let describe = |rows: usize| {
            let view = View { first: 0, runs: vec![Run { start: 0, len: rows as u32 }] };
            let span = Span { rows: 0..rows, samples: 1, views: vec![view], ..Span::default() };
            let batch = Batch { tokens: vec![2; rows], spans: vec![span], ..Batch::default() };
            describe(&batch, &config, &shape, &mut Vec::new())
        };
        assert_eq!(describe(65_535).map(|frame| frame.longest).expect("they fit"), 65_535);
        let error = describe(65_536).expect_err("one too many").to_string();
        assert_eq!(error, "65536 tokens in one step: a CUDA device computes at most 65535");
    }

    #[test]
    fn decode_batches_are_padded_to_few_sizes() {
        assert_eq!([1, 3, 8, 9, 32, 33, 250].map(bucket), [1, 4, 8, 16, 32, 64, 256]);
    }
}
