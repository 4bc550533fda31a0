//! Tokens are dropped by how little attention they get: `heavy` while a sequence decodes, `snap` once after
//! its prompt.
//!
//! `heavy` (H2O) adds up the attention that every token gets from the first query on. Once the prompt is
//! computed a sequence has at most `budget` tokens: the first ones, the latest, and of the rest those with the
//! most attention so far. `snap` (SnapKV) lets only the last `window` tokens of the prompt vote, smooths the
//! votes over neighbours, and cuts the prompt to `budget` tokens when it has been computed; what is
//! generated after that stays, until the context limit, where the last `window` tokens vote again (nobody votes
//! twice). Both
//! decide once for all heads and layers, where the papers decide for each head: a cell holds all heads.
//!
//! What stays keeps the position it had, as in the authors' programs, so nothing is rotated. Prompts are computed
//! with all their tokens, which therefore have to fit. Votes go with the cells: a sequence whose cells were lost
//! or went to host memory begins without any. Of equal votes the older token goes.
//! Source: Zhang et al., H2O, NeurIPS 2023 (arXiv 2306.14048); Li et al., SnapKV, NeurIPS 2024 (arXiv
//! 2404.14469), average pooling as in its `snapkv_utils.py`.
//!
//! Cost: O(sequence) per step that votes, and per reduction.

use std::ops::Range;

use crate::attention::Attention;
use crate::delegate::leave_to;
use crate::paged::Paged;
use crate::plan::Plan;
use crate::policy::{Append, Full, Geometry, Intent, Policy, Reduction, SeqId};
use crate::spec::{Args, Knob, Spec, SpecError};
use crate::unrotated;

const BUDGET: Knob = Knob { name: "budget", about: "tokens that a sequence keeps", default: "1024" };
const KEEP: Knob = Knob { name: "keep", about: "leading tokens that stay, whatever they get", default: "4" };

pub(crate) const HEAVY: Spec = Spec {
    name: "heavy",
    about: "single cells; beyond a budget the token goes that got the least attention (needs scores)",
    source: "Zhang et al., H2O, NeurIPS 2023 (arXiv 2306.14048)",
    cost: "O(sequence) per token",
    faults: "",
    knobs: &[
        BUDGET,
        Knob {
            name: "recent",
            about: "half (of the budget) | so many latest tokens that stay",
            default: "half",
        },
        KEEP,
        Knob { name: "drop", about: "tokens that go at once", default: "1" },
        unrotated::KNOB,
    ],
    make: make_heavy,
};

pub(crate) const SNAP: Spec = Spec {
    name: "snap",
    about: "single cells; a prompt longer than a budget is cut to what its end looks at (needs scores)",
    source: "Li et al., SnapKV, NeurIPS 2024 (arXiv 2404.14469)",
    cost: "O(sequence) per prompt",
    faults: "",
    knobs: &[
        BUDGET,
        Knob { name: "window", about: "tokens at the end of the prompt that vote, and stay", default: "32" },
        Knob { name: "pool", about: "neighbours over which votes are averaged; odd", default: "5" },
        Knob { default: "0", ..KEEP },
        unrotated::KNOB,
    ],
    make: make_snap,
};

fn make_heavy(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let budget = args.number("budget", 0, 2..=u32::MAX, 1024)?.min(geometry.context_max);
    let recent = args.number_or("recent", 1, "half", 1..=u32::MAX)?.flatten();
    let keep = args.number("keep", 2, 0..=u32::MAX, 4)?.min(budget.saturating_sub(1));
    let recent = recent.unwrap_or(budget / 2).min(budget.saturating_sub(1 + keep));
    let drop = args.number("drop", 3, 1..=u32::MAX, 1)?.min(budget.saturating_sub(keep + recent)).max(1);
    Ok(Box::new(Scored::new(geometry, budget, keep, recent, Rule::Always { drop })))
}

fn make_snap(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    // At the context limit one at least must go.
    let most = geometry.context_max.saturating_sub(1).max(1);
    let budget = args.number("budget", 0, 2..=u32::MAX, 1024)?.min(most);
    let window = args.number("window", 1, 1..=u32::MAX, 32)?.min(budget.saturating_sub(1));
    let pool = args.odd("pool", 2, 1..=65_535, 5)?;
    let keep = args.number("keep", 3, 0..=u32::MAX, 0)?.min(budget.saturating_sub(window));
    Ok(Box::new(Scored::new(geometry, budget, keep, window, Rule::AtEnd { reach: pool / 2 })))
}

/// When tokens go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Whenever there are more than the budget; so many at once.
    Always { drop: u32 },
    /// When the prompt has been computed, and at the context limit. Votes are averaged over as many neighbours on
    /// each side.
    AtEnd { reach: u32 },
}

/// What is known of the tokens of one sequence.
#[derive(Clone, Debug, Default)]
struct State {
    /// Tokens of its prompt, those included that have gone.
    prompt: u32,
    /// Tokens that have gone.
    dropped: u32,
    /// Tokens that the last reduction left; 0 if there was none.
    left: u32,
    /// Position of each token; they rise.
    positions: Vec<u32>,
    /// Attention that each token got.
    mass: Vec<u64>,
    /// What the last reduction dropped, by numbers before it, rising.
    picked: Vec<Range<u32>>,
}

impl State {
    /// Number of the token after the prompt.
    fn end(&self) -> u32 {
        self.prompt.saturating_sub(self.dropped)
    }

    fn next_position(&self) -> u32 {
        self.positions.last().map_or(0, |last| last + 1)
    }
}

struct Scored {
    cells: Paged,
    budget: u32,
    /// Leading tokens that stay.
    keep: u32,
    /// Latest tokens that stay.
    recent: u32,
    rule: Rule,
    states: Vec<State>,
}

impl Scored {
    fn new(geometry: &Geometry, budget: u32, keep: u32, recent: u32, rule: Rule) -> Scored {
        let cells = Paged::new(geometry, 1, None);
        Scored { cells, budget, keep, recent, rule, states: Vec::new() }
    }

    fn state(&self, seq: SeqId) -> &State {
        &self.states[seq.index()]
    }

    fn context_max(&self) -> u32 {
        self.cells.geometry().context_max
    }

    /// Tokens that a reduction leaves of a sequence at its limit.
    fn target(&self) -> u32 {
        match self.rule {
            Rule::Always { drop } => self.budget.saturating_sub(drop),
            Rule::AtEnd { .. } => self.budget,
        }
    }

    /// Votes on the tokens that may go.
    fn votes(&self, seq: SeqId, may_go: Range<u32>) -> Vec<u64> {
        let mass = &self.state(seq).mass;
        let Rule::AtEnd { reach } = self.rule else {
            return mass[may_go.start as usize..may_go.end as usize].to_vec();
        };
        let reach = reach as usize;
        // Who votes is no candidate, and does not count as a neighbour.
        let prefix = &mass[..may_go.end as usize];
        let first = may_go.start as usize;
        let mut sum: u64 =
            prefix[first.saturating_sub(reach)..(first + reach).min(prefix.len())].iter().sum();
        let vote = |i: usize| {
            sum += prefix.get(i + reach).copied().unwrap_or(0);
            let vote = sum;
            sum -= i.checked_sub(reach).map_or(0, |gone| prefix[gone]);
            vote
        };
        may_go.map(|i| i as usize).map(vote).collect()
    }

    /// The tokens with the fewest votes, as ranges.
    fn pick(&self, seq: SeqId, count: u32) -> Vec<Range<u32>> {
        let len = self.cells.len(seq);
        let may_go = self.keep.min(len)..len.saturating_sub(self.recent).max(self.keep.min(len));
        let votes = self.votes(seq, may_go.clone());
        let mut order: Vec<u32> = may_go.clone().collect();
        let count = (count as usize).min(order.len());
        let key = |token: &u32| (votes[(token - may_go.start) as usize], *token);
        if count > 0 && count < order.len() {
            order.select_nth_unstable_by_key(count - 1, key);
        }
        order.truncate(count);
        order.sort_unstable();
        let mut picked: Vec<Range<u32>> = Vec::new();
        for token in order {
            match picked.last_mut() {
                Some(last) if last.end == token => last.end += 1,
                _ => picked.push(token..token + 1),
            }
        }
        picked
    }
}

impl Policy for Scored {
    leave_to!(cells: geometry, restart, len, layout, holding, usage, shape);

    /// Votes belong to the request.
    fn remembers_intent(&self) -> bool {
        true
    }

    fn open(&mut self, seq: SeqId, intent: &Intent) -> u32 {
        if self.states.len() <= seq.index() {
            self.states.resize(seq.index() + 1, State::default());
        }
        self.states[seq.index()] = State { prompt: intent.prompt_tokens, ..State::default() };
        self.cells.open(seq, intent)
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        self.cells.place(batch, plan)?;
        for append in batch {
            let state = &mut self.states[append.seq.index()];
            let next = state.next_position();
            state.positions.extend(next..next + append.tokens);
            state.mass.resize(state.positions.len(), 0);
        }
        Ok(())
    }

    fn reduces(&self) -> bool {
        true
    }

    fn limit(&self, seq: SeqId) -> u32 {
        let (state, len, most) = (self.state(seq), self.cells.len(seq), self.context_max());
        if len < state.end() {
            return most;
        }
        match self.rule {
            Rule::Always { .. } => self.budget,
            // Cut already, or short enough.
            Rule::AtEnd { .. } if state.left >= state.end() || state.end() <= self.budget => most,
            Rule::AtEnd { .. } => self.budget,
        }
    }

    fn reduce(&mut self, seq: SeqId, _: u32, _: &mut Plan) -> Reduction {
        let len = self.cells.len(seq);
        if len < self.limit(seq) {
            return Reduction::Stop;
        }
        let picked = self.pick(seq, len.saturating_sub(self.target()));
        let dropped = picked.iter().map(|tokens| tokens.end - tokens.start).sum();
        if dropped == 0 {
            return Reduction::Stop;
        }
        self.cells.drop_ranges(seq, &picked);
        let state = &mut self.states[seq.index()];
        remove_ranges(&mut state.positions, &picked);
        remove_ranges(&mut state.mass, &picked);
        if matches!(self.rule, Rule::AtEnd { .. }) {
            state.mass.fill(0);
        }
        state.dropped += dropped;
        state.left = len - dropped;
        state.picked = picked;
        Reduction::Picked(dropped)
    }

    fn picked(&self, seq: SeqId) -> &[Range<u32>] {
        &self.state(seq).picked
    }

    fn head_kept(&self, _: u32) -> u32 {
        self.keep
    }

    fn offset(&self, seq: SeqId) -> u32 {
        let Some(state) = self.states.get(seq.index()) else { return 0 };
        state.next_position() - state.positions.len() as u32
    }

    fn position(&self, seq: SeqId, token: u32) -> u32 {
        self.state(seq).positions[token as usize]
    }

    fn needs_scores(&self) -> bool {
        true
    }

    fn wants_attention(&self, seq: SeqId, queries: Range<u32>) -> Range<u32> {
        let Rule::AtEnd { .. } = self.rule else { return queries };
        let (state, most) = (self.state(seq), self.context_max());
        let is_due = state.left < state.end() && state.end() > self.budget;
        let end = if is_due { state.end().min(most) } else { most };
        let wanted = queries.start.max(end.saturating_sub(self.recent))..queries.end.min(end);
        if wanted.is_empty() { queries.start..queries.start } else { wanted }
    }

    fn attended(&mut self, attention: &Attention) {
        let Some(state) = self.states.get_mut(attention.seq.index()) else { return };
        for (sum, mass) in state.mass.iter_mut().zip(&attention.mass) {
            *sum = sum.saturating_add(*mass);
        }
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let kept = self.cells.truncate(seq, len);
        let state = &mut self.states[seq.index()];
        state.positions.truncate(kept as usize);
        state.mass.truncate(kept as usize);
        state.left = state.left.min(kept);
        if kept == 0 {
            *state = State { prompt: state.prompt, ..State::default() };
        }
        kept
    }

    fn release(&mut self, seq: SeqId) {
        self.states[seq.index()] = State::default();
        self.cells.release(seq);
    }

    fn audit(&self) -> Result<(), String> {
        self.cells.audit()?;
        for (id, state) in (0..).zip(&self.states) {
            let len = self.cells.len(SeqId(id)) as usize;
            if (state.positions.len(), state.mass.len()) != (len, len) {
                return Err(format!("sequence {id}: {} positions for {len} tokens", state.positions.len()));
            }
            if !state.positions.is_sorted_by(|a, b| a < b) {
                return Err(format!("sequence {id}: positions do not rise"));
            }
        }
        Ok(())
    }
}

/// Takes rising ranges out of a list.
fn remove_ranges<T>(list: &mut Vec<T>, ranges: &[Range<u32>]) {
    let (mut index, mut left) = (0, ranges.iter().peekable());
    list.retain(|_| {
        let at = index;
        index += 1;
        while left.next_if(|range| range.end <= at).is_some() {}
        !left.peek().is_some_and(|range| range.contains(&at))
    });
}
