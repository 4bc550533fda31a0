//! One sequence that grows through a policy, without a scheduler.

use policies::{Append, ClassId, Content, Intent, Plan, Policy, Reduction, Run, SeqId};

use crate::backend::{Backend, Batch, Output, Span, View, Wanted};
use crate::ballot::Ballot;
use crate::error::EngineError;

const SEQ: SeqId = SeqId(0);

/// A sequence in the cache of a backend, its cells chosen by a policy.
pub struct Context<'a> {
    backend: &'a mut dyn Backend,
    policy: Box<dyn Policy>,
    keep: u32,
    /// Tokens that lie in the cache.
    tokens: Vec<u32>,
    reductions: u32,
    plan: Plan,
    batch: Batch,
    output: Output,
}

/// Why a sequence cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The backend failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The policy has no cells for the next tokens.
    #[error("no room after {tokens} tokens: {full}")]
    Full {
        /// Tokens in the cache.
        tokens: usize,
        /// What the policy said.
        full: policies::Full,
    },
    /// The context is full, and the policy drops nothing.
    #[error("the context ends at {0} tokens, and the policy drops none of them")]
    Limit(u32),
}

impl<'a> Context<'a> {
    /// An empty sequence. `keep` is how many leading tokens it wants to keep at the context limit. Policies that
    /// reduce a sequence once its prompt is computed take the first `prompt` tokens for the prompt.
    pub fn new(
        backend: &'a mut dyn Backend,
        mut policy: Box<dyn Policy>,
        keep: u32,
        prompt: u32,
    ) -> Context<'a> {
        let most = policy.geometry().context_max;
        policy.open(SEQ, &Intent { content: Content::own(1), prompt_tokens: prompt, total_tokens: most });
        Context {
            backend,
            policy,
            keep,
            tokens: Vec::new(),
            reductions: 0,
            plan: Plan::new(),
            batch: Batch { wanted: Wanted::Logits, ..Batch::default() },
            output: Output::default(),
        }
    }

    /// Times that the policy dropped tokens at the context limit.
    pub fn reductions(&self) -> u32 {
        self.reductions
    }

    /// Computes tokens after those that are there and hands out the logits, `[vocab]`, of the last
    /// `samples` of them, one after another.
    ///
    /// # Errors
    /// [`ContextError`] where the sequence cannot go on; the tokens before that point were computed.
    pub fn push(
        &mut self,
        tokens: &[u32],
        samples: usize,
        take: &mut dyn FnMut(&[f32]),
    ) -> Result<(), ContextError> {
        let mut done = 0;
        while done < tokens.len() {
            self.make_room()?;
            let len = (tokens.len() - done).min(self.room());
            let silent = (tokens.len() - samples).saturating_sub(done).min(len);
            self.compute(&tokens[done..done + len], len - silent)?;
            self.output.logits.chunks_exact(self.backend.config().vocab).for_each(&mut *take);
            done += len;
        }
        Ok(())
    }

    /// Tokens of the next batch: up to its limit and that of the sequence.
    fn room(&self) -> usize {
        let left = self.policy.limit(SEQ).saturating_sub(self.policy.len(SEQ));
        left.min(self.policy.geometry().batch_max) as usize
    }

    /// At its limit, lets the policy drop tokens, and computes again what it asks for.
    fn make_room(&mut self) -> Result<(), ContextError> {
        if self.room() > 0 {
            return Ok(());
        }
        let keep = self.policy.head_kept(self.keep);
        let head = keep as usize;
        self.plan.clear();
        let reduction = self.policy.reduce(SEQ, keep, &mut self.plan);
        self.backend.apply(&self.plan, &|_| 0)?;
        self.reductions += 1;
        match reduction {
            Reduction::Stop => Err(ContextError::Limit(self.policy.geometry().context_max)),
            Reduction::Dropped(dropped) => {
                self.tokens.drain(head..head + dropped as usize);
                Ok(())
            }
            Reduction::Picked(_) => {
                for piece in self.policy.picked(SEQ).iter().rev() {
                    self.tokens.drain(piece.start as usize..piece.end as usize);
                }
                Ok(())
            }
            Reduction::Again { dropped, .. } => {
                self.tokens.drain(head..head + dropped as usize);
                let again = std::mem::take(&mut self.tokens);
                again.chunks(self.room()).try_for_each(|chunk| self.compute(chunk, 0))
            }
        }
    }

    /// One step.
    fn compute(&mut self, tokens: &[u32], samples: usize) -> Result<(), ContextError> {
        let first = self.policy.len(SEQ);
        let append = Append { seq: SEQ, tokens: tokens.len() as u32, restored: false };
        self.plan.clear();
        self.policy
            .place(&[append], &mut self.plan)
            .map_err(|full| ContextError::Full { tokens: self.tokens.len(), full })?;
        self.backend.apply(&self.plan, &|_| 0)?;
        let classes: Vec<ClassId> = self.policy.geometry().class_ids().collect();
        let mut span = Span {
            rows: 0..tokens.len(),
            first,
            offset: self.policy.offset(SEQ),
            samples,
            views: Vec::new(),
            ballot: Ballot::wanted(&*self.policy, SEQ, first..first + tokens.len() as u32),
        };
        self.batch.walks.clear();
        for class in classes {
            let mut view = View::default();
            view.read(&*self.policy, class, SEQ);
            let walk = self.policy.reading().walks().then(|| walked(&*self.policy, class, &view));
            self.batch.walks.push(walk);
            span.views.push(view);
        }
        self.batch.tokens.clear();
        self.batch.tokens.extend(tokens);
        self.batch.spans = vec![span];
        self.backend.step(&self.batch, &mut self.output)?;
        if let Some(ballot) = &self.batch.spans[0].ballot {
            self.policy.attended(&ballot.attention());
        }
        self.tokens.extend(tokens);
        Ok(())
    }
}

/// The range that attention walks: what the policy says, and around every cell that is read.
fn walked(policy: &dyn Policy, class: ClassId, view: &View) -> Run {
    let walk = policy.walk(class);
    let runs = || view.runs.iter().chain(std::iter::once(&walk)).filter(|run| run.len > 0);
    let start = runs().map(|run| run.start).min().unwrap_or(0);
    let end = runs().map(|run| run.cells().end).max().unwrap_or(0);
    Run { start, len: end - start }
}
