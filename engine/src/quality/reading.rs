//! Documents read through a policy and a backend, token for token as they stand.

use std::borrow::Cow;

use policies::{Append, Content, Geometry, Intent, Plan, Policy, Reduction, SeqId};

use crate::backend::{Backend, Batch, Output, Span, View, Wanted};
use crate::ballot::Ballot;
use crate::quality::QualityError;
use crate::quality::corpus::Document;
use crate::quality::variant::Variant;

/// Attempts at one document before a policy that crashes the server again and again is given up.
const ATTEMPTS_MAX: u32 = 8;

/// A predicted token, as it is handed out.
pub struct Predicted<'a> {
    /// Index of the document.
    pub document: usize,
    /// Index of the token that is predicted.
    pub at: usize,
    /// Logits, `[vocab]`.
    pub logits: &'a [f32],
    /// Whether K and V of another sequence are among those that were read.
    pub is_foreign: bool,
}

/// What happened on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incidents {
    /// Times the context was shifted, cut or trimmed by the policy.
    pub reductions: u64,
    /// Compaction passes.
    pub defrags: u64,
    /// Crashes of the server: a batch found no room. What was in flight began again.
    pub crashes: u64,
}

/// Steps between the beginnings of documents that are read side by side, so that some are read in chunks
/// while others go token by token.
const APART: u64 = 36;

/// A document being read.
struct Reader<'a> {
    document: usize,
    seq: SeqId,
    /// What is read of it: all of it, or its head, its tail and its exam.
    text: Cow<'a, [u32]>,
    /// Index of the exam in the text.
    exam: usize,
    /// Tokens in the cache, and those to be computed again before reading goes on.
    context: Vec<u32>,
    again: Vec<u32>,
    /// Next token of the text.
    next: usize,
}

impl<'a> Reader<'a> {
    /// `room` is the longest text; none: any length.
    fn new(document: usize, whole: &'a Document, keep: usize, room: Option<usize>, seq: SeqId) -> Reader<'a> {
        let (tokens, exam) = (&whole.tokens, whole.exam);
        let cut = room.map_or(0, |room| tokens.len().saturating_sub(room).min(exam));
        let keep = keep.min(exam - cut);
        let text = match cut {
            0 => Cow::Borrowed(tokens.as_slice()),
            _ => Cow::Owned([&tokens[..keep], &tokens[keep + cut..]].concat()),
        };
        Reader { document, seq, text, exam: exam - cut, context: Vec::new(), again: Vec::new(), next: 0 }
    }

    /// Tokens to compute next. The last token of a text is predicted, never read.
    fn source(&self) -> &[u32] {
        if self.again.is_empty() { &self.text[self.next..self.text.len() - 1] } else { &self.again }
    }

    /// How many of the next `tokens` rows predict tokens of the exam: the row of token `at - 1` predicts `at`.
    fn samples(&self, tokens: usize) -> usize {
        if self.again.is_empty() {
            tokens.min((self.next + tokens + 1).saturating_sub(self.exam.max(1)))
        } else {
            0
        }
    }
}

/// Reads documents, `variant.sequences` of them side by side, and hands out the prediction of every token
/// of their exams. Bodies are read in chunks. So are exams, but where sequences have company: then one token a
/// step, as a server would, and chunks get what is left of the batch.
pub struct Reading<'a> {
    variant: &'a Variant,
    documents: &'a [&'a Document],
    backend: Box<dyn Backend>,
    policy: Box<dyn Policy>,
    chunk: usize,
    context_max: usize,
    classes: usize,
    readers: Vec<Reader<'a>>,
    /// Readers that are in the batch.
    turn: Vec<usize>,
    steps: u64,
    opens_at: u64,
    waiting: Vec<usize>,
    attempts: Vec<u32>,
    plan: Plan,
    incidents: Incidents,
}

impl<'a> Reading<'a> {
    /// Ready to read. The backend has the cells of the geometry.
    ///
    /// # Errors
    /// A spec that is wrong.
    pub fn new(
        variant: &'a Variant,
        documents: &'a [&'a Document],
        backend: Box<dyn Backend>,
        geometry: &Geometry,
    ) -> Result<Reading<'a>, QualityError> {
        Ok(Reading {
            variant,
            documents,
            backend,
            policy: variant.policy(geometry)?,
            chunk: geometry.batch_max as usize,
            context_max: geometry.context_max as usize,
            classes: geometry.classes.len(),
            readers: Vec::new(),
            turn: Vec::new(),
            steps: 0,
            opens_at: 0,
            waiting: (0..documents.len()).rev().collect(),
            attempts: vec![0; documents.len()],
            plan: Plan::new(),
            incidents: Incidents::default(),
        })
    }

    /// Reads to the end. `take` may be told of a token twice, where a crash made the server begin again.
    ///
    /// # Errors
    /// A device that fails; a policy that stops at the context limit or crashes without end.
    pub fn run(self, take: &mut dyn FnMut(Predicted<'_>)) -> Result<Incidents, QualityError> {
        self.run_until(&|| false, take)
    }

    /// The same, and stops between two steps when it is told to.
    ///
    /// # Errors
    /// Those of [`run`](Reading::run); [`QualityError::Interrupted`].
    pub fn run_until(
        mut self,
        is_interrupted: &dyn Fn() -> bool,
        take: &mut dyn FnMut(Predicted<'_>),
    ) -> Result<Incidents, QualityError> {
        let (mut batch, mut output) = (Batch::default(), Output::default());
        loop {
            if is_interrupted() {
                return Err(QualityError::Interrupted);
            }
            self.open();
            if self.readers.is_empty() {
                return Ok(self.incidents);
            }
            self.make_room()?;
            self.fill(&mut batch);
            if !self.place(&batch)? {
                continue;
            }
            for (span, &index) in batch.spans.iter_mut().zip(&self.turn) {
                let reader = &self.readers[index];
                let classes = self.policy.geometry().class_ids();
                for (view, class) in span.views.iter_mut().zip(classes) {
                    view.read(&*self.policy, class, reader.seq);
                }
                let new = span.first..span.first + span.rows.len() as u32;
                span.ballot = Ballot::wanted(&*self.policy, reader.seq, new);
            }
            self.backend.step(&batch, &mut output)?;
            let ballots = batch.spans.iter().filter_map(|span| span.ballot.as_ref());
            ballots.for_each(|ballot| self.policy.attended(&ballot.attention()));
            self.hand_out(&batch, &output, take);
            self.advance(&batch);
            self.steps += 1;
        }
    }

    /// Begins documents where sequences are free.
    fn open(&mut self) {
        for seq in (0..self.variant.sequences).map(SeqId) {
            if self.readers.iter().any(|reader| reader.seq == seq) {
                continue;
            }
            if !self.readers.is_empty() && self.steps < self.opens_at {
                return;
            }
            self.opens_at = self.steps + APART;
            let Some(document) = self.waiting.pop() else { return };
            let whole = self.documents[document];
            let room = self.variant.is_cut.then_some(self.context_max);
            let reader = Reader::new(document, whole, self.variant.keep as usize, room, seq);
            let (tokens, prompt) = (reader.text.len() as u32, reader.exam.max(1) as u32);
            let content = Content::own(document as u64 + 1);
            let adopted =
                self.policy.open(seq, &Intent { content, prompt_tokens: prompt, total_tokens: tokens });
            debug_assert_eq!(adopted, 0, "documents share nothing");
            self.readers.push(reader);
            self.readers.sort_by_key(|reader| reader.seq);
        }
    }

    /// Makes room in sequences that are at their limit.
    fn make_room(&mut self) -> Result<(), QualityError> {
        for index in 0..self.readers.len() {
            let seq = self.readers[index].seq;
            if self.policy.len(seq) >= self.policy.limit(seq) {
                self.reduce(index)?;
            }
        }
        Ok(())
    }

    fn reduce(&mut self, index: usize) -> Result<(), QualityError> {
        let seq = self.readers[index].seq;
        let keep = self.policy.head_kept(self.variant.keep);
        let head = keep as usize;
        self.plan.clear();
        let reduction = self.policy.reduce(seq, keep, &mut self.plan);
        self.backend.apply(&self.plan, &|seq| u64::from(seq.0))?;
        self.incidents.reductions += 1;
        let reader = &mut self.readers[index];
        match reduction {
            Reduction::Stop => {
                let what =
                    format!("the policy drops nothing, and the context ends at {} tokens", self.context_max);
                return Err(QualityError::Variant { name: self.variant.name.clone(), what });
            }
            Reduction::Dropped(tokens) => drop(reader.context.drain(head..head + tokens as usize)),
            Reduction::Picked(_) => {
                for piece in self.policy.picked(seq).iter().rev() {
                    reader.context.drain(piece.start as usize..piece.end as usize);
                }
            }
            Reduction::Again { dropped, .. } => {
                reader.context.drain(head..head + dropped as usize);
                reader.again.splice(0..0, reader.context.drain(..));
            }
        }
        Ok(())
    }

    /// The next tokens of every sequence.
    fn fill(&mut self, batch: &mut Batch) {
        batch.tokens.clear();
        batch.spans.clear();
        batch.wanted = Wanted::Logits;
        batch.walks = vec![None; self.classes];
        self.turn.clear();
        let is_decoding = |reader: &Reader<'_>| {
            self.variant.sequences > 1 && reader.again.is_empty() && reader.next >= reader.exam
        };
        let mut left = self.chunk - self.readers.iter().filter(|reader| is_decoding(reader)).count();
        for (index, reader) in self.readers.iter().enumerate() {
            let len = self.policy.len(reader.seq) as usize;
            let limit = self.policy.limit(reader.seq) as usize;
            let source = reader.source();
            let most = match reader.exam.saturating_sub(reader.next) {
                _ if is_decoding(reader) => 1,
                tokens if tokens > 0 && reader.again.is_empty() => left.min(tokens),
                _ => left,
            };
            let tokens = most.min(limit - len).min(source.len());
            if tokens == 0 {
                continue;
            }
            if !is_decoding(reader) {
                left -= tokens;
            }
            self.turn.push(index);
            let rows = batch.tokens.len()..batch.tokens.len() + tokens;
            batch.tokens.extend(&source[..tokens]);
            batch.spans.push(Span {
                rows,
                first: len as u32,
                offset: self.policy.offset(reader.seq),
                samples: reader.samples(tokens),
                views: vec![View::default(); self.classes],
                ballot: None,
            });
        }
    }

    /// Places the batch. Where the server crashes, everything in flight begins again, and it is false.
    fn place(&mut self, batch: &Batch) -> Result<bool, QualityError> {
        let append = |(span, &index): (&Span, &usize)| Append {
            seq: self.readers[index].seq,
            tokens: span.rows.len() as u32,
            restored: false,
        };
        let appends: Vec<Append> = batch.spans.iter().zip(&self.turn).map(append).collect();
        self.plan.clear();
        let placed = self.policy.place(&appends, &mut self.plan);
        self.incidents.defrags += u64::from(self.plan.defrag_passes());
        let Err(full) = placed else {
            self.backend.apply(&self.plan, &|seq| u64::from(seq.0))?;
            return Ok(true);
        };
        self.incidents.crashes += 1;
        for reader in std::mem::take(&mut self.readers).into_iter().rev() {
            self.policy.release(reader.seq);
            self.attempts[reader.document] += 1;
            if self.attempts[reader.document] == ATTEMPTS_MAX {
                let what = format!("the server crashes without end: {full}");
                return Err(QualityError::Variant { name: self.variant.name.clone(), what });
            }
            self.waiting.push(reader.document);
        }
        self.policy.restart();
        self.backend.restart();
        Ok(false)
    }

    fn hand_out(&self, batch: &Batch, output: &Output, take: &mut dyn FnMut(Predicted<'_>)) {
        let vocab = self.backend.config().vocab;
        let mut rows = output.logits.chunks_exact(vocab);
        for (span, &index) in batch.spans.iter().zip(&self.turn) {
            let reader = &self.readers[index];
            let cut = self.documents[reader.document].tokens.len() - reader.text.len();
            let first = cut + reader.next + span.rows.len() - span.samples + 1;
            let is_foreign = self.policy.foreign(reader.seq) > 0;
            for (at, logits) in (first..first + span.samples).zip(&mut rows) {
                take(Predicted { document: reader.document, at, logits, is_foreign });
            }
        }
    }

    /// Notes what was read; sequences whose document is over are released.
    fn advance(&mut self, batch: &Batch) {
        for (span, &index) in batch.spans.iter().zip(&self.turn) {
            let reader = &mut self.readers[index];
            reader.context.extend(&batch.tokens[span.rows.clone()]);
            match reader.again.len() {
                0 => reader.next += span.rows.len(),
                _ => drop(reader.again.drain(..span.rows.len())),
            }
        }
        let policy = &mut self.policy;
        self.readers.retain(|reader| {
            let is_over = reader.next + 1 >= reader.text.len();
            if is_over {
                policy.release(reader.seq);
            }
            !is_over
        });
    }
}
