//! The trait every policy implements, and the words it is asked and answers with.
//!
//! A policy is a deterministic state machine. It chooses cells and describes the physical
//! consequences in a [`Plan`]; it never touches memory, time or randomness. Every call is
//! atomic: a refusal leaves the policy and the plan as they were.

use std::ops::Range;

use crate::attention::Attention;
use crate::content::Content;
use crate::plan::Plan;

/// Address of a cell within its layer class, from 0.
pub type Cell = u32;

/// A sequence that may hold cells. Ids are small and dense (the scheduler reuses them), so a
/// policy may index by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeqId(pub u32);

impl SeqId {
    /// The id as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Number of a layer class in its [`Geometry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClassId(pub u8);

impl ClassId {
    /// The id as an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// How far back the layers of a class read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Every earlier token.
    Full,
    /// The last so many tokens, the newest included (Gemma 3 local layers: 512 or 1024).
    Window(u32),
}

impl Reach {
    /// First token that is still read once `token` is computed next.
    pub fn first_needed(self, token: u32) -> u32 {
        match self {
            Reach::Full => 0,
            Reach::Window(window) => (token + 1).saturating_sub(window),
        }
    }

    /// Tokens of a context of `len` that its newest token reads, itself included.
    pub fn clip(self, len: u32) -> u32 {
        match self {
            Reach::Full => len,
            Reach::Window(window) => len.min(window),
        }
    }
}

/// Layers with the same reach and row size; each class has cells of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerClass {
    /// Name for people: `local`, `global`.
    pub name: String,
    /// Layers; a copy or a rotation is one launch for each.
    pub layers: u32,
    /// How far back its layers read.
    pub reach: Reach,
    /// Cells it has.
    pub cells: u32,
}

/// What a policy is told when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The layer classes; Gemma 3 has two.
    pub classes: Vec<LayerClass>,
    /// Longest context of one sequence, tokens.
    pub context_max: u32,
    /// Most tokens of one batch.
    pub batch_max: u32,
    /// Most sequences that hold cells at once.
    pub sequences_max: u32,
}

impl Geometry {
    /// Ids of the classes, in order.
    pub fn class_ids(&self) -> impl Iterator<Item = ClassId> + use<> {
        (0..self.classes.len() as u8).map(ClassId)
    }
}

/// Neighbouring cells that hold neighbouring tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// First cell.
    pub start: Cell,
    /// Cells; at least 1.
    pub len: u32,
}

impl Run {
    /// The cells as a range.
    pub fn cells(self) -> Range<Cell> {
        self.start..self.start + self.len
    }
}

/// Appends `len` cells from `start` to a list of runs, joining them to the last run where they touch.
pub fn push_run(runs: &mut Vec<Run>, start: Cell, len: u32) {
    match runs.last_mut() {
        Some(last) if last.start + last.len == start => last.len += len,
        _ => runs.push(Run { start, len }),
    }
}

/// New tokens of one sequence, part of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Append {
    /// The sequence; it has been opened.
    pub seq: SeqId,
    /// New tokens; at least 1.
    pub tokens: u32,
    /// Whether the tokens are not computed but come back from host memory, so that window
    /// classes need cells only for those that a later token still reads, and nothing is written. Only for a sequence
    /// that went there with all of these.
    pub restored: bool,
}

/// What is known of a sequence when it starts.
#[derive(Clone, Debug)]
pub struct Intent {
    /// What its tokens are, for sharing.
    pub content: Content,
    /// Tokens that will be placed before the first new one is sampled.
    pub prompt_tokens: u32,
    /// Tokens it will hold at its end, by an oracle; bounds and exact reservations use it.
    pub total_tokens: u32,
}

/// Tokens of a prompt that are in the cache already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    /// Leading tokens that need no computing.
    pub tokens: u32,
    /// Cells, in the first class that reads everything, that the hit would take out of the free
    /// ones: cached cells that no sequence holds now.
    pub idle_cells: u32,
}

/// Why a batch could not be placed. Nothing has changed when it is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("class {}: {needed} cells needed, {free} free, largest run {largest_free_run}", class.0)]
pub struct Full {
    /// The class that refused.
    pub class: ClassId,
    /// Cells asked of it.
    pub needed: u32,
    /// Cells that it could give, cached content included, were place no matter.
    pub free: u32,
    /// Most cells that it could give in the form it needs them.
    pub largest_free_run: u32,
}

impl Full {
    /// Whether there was room, only not in one piece.
    pub fn is_fragmented(&self) -> bool {
        self.free >= self.needed
    }
}

/// The policy cannot do this; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy cannot remove tokens from the middle of a sequence")]
pub struct Unsupported;

/// What became of a sequence at its context limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The policy drops nothing: the sequence has to stop here.
    Stop,
    /// So many tokens after the head are gone; later ones slid down, in their numbers and, unless the
    /// policy has an [`offset`](Policy::offset), in their positions.
    Dropped(u32),
    /// So many tokens are gone, here and there: [`picked`](Policy::picked) says which. Later ones slid down in
    /// their numbers and kept their [positions](Policy::position).
    Picked(u32),
    /// So many tokens after the head are gone, and the others have to be computed again from the
    /// first on: the sequence is empty, though some of its cells may be lost to it.
    Again {
        /// Tokens that are gone.
        dropped: u32,
        /// Why the others did not slide down.
        why: NotShifted,
    },
}

/// Why tokens did not slide down to other positions; the faults in the words of Ollama's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotShifted {
    /// The model has no way to move a token.
    #[error("model does not support operation")]
    Model,
    /// Another sequence reads a cell that would have to move.
    #[error("shifting cells shared by multiple sequences not supported")]
    Shared,
    /// The policy computes them again by its own rule.
    #[error("the policy computes again what stays")]
    Rule,
}

/// How much of a class is taken. Cells: `held + cached + free == cells`. Where classes share memory, `free`
/// counts what the class could be given, which others could be given as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Cells of the class.
    pub cells: u32,
    /// Cells that belong to at least one sequence, whether they hold a token that is still read
    /// or are reserved, rounded up, or past the window; and those that a step in flight may still
    /// read ([`Policy::waiting`]).
    pub held: u32,
    /// Cells that no sequence holds but whose content may be adopted.
    pub cached: u32,
    /// Cells that hold nothing.
    pub free: u32,
    /// Most new cells that one sequence could be given now (cached ones included), in the form
    /// the policy needs them: one run for contiguous policies, anything for paged ones.
    pub placeable: u32,
}

impl Usage {
    /// Share of the free cells that cannot be given to one request: 1 - placeable / free, cached
    /// cells counted as free; 0 where nothing is free.
    pub fn fragmentation_external(&self) -> f64 {
        let free = self.free + self.cached;
        if free == 0 { 0.0 } else { f64::from(free - self.placeable.min(free)) / f64::from(free) }
    }
}

/// Where the free cells lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Longest row of neighbouring cells that no sequence holds.
    pub largest_free_run: u32,
    /// Maximal rows of such cells.
    pub free_runs: u32,
    /// One past the highest held cell.
    pub high_water: u32,
}

/// How attention finds a sequence's cells, and so what a decoded token costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Through a table: only the sequence's own cells are read.
    Table,
    /// By walking the used range once for the whole batch with an owner test (Ollama, llama.cpp):
    /// every token of the batch pays for all cells below the high-water mark.
    Range,
    /// The same with a range that is found anew for every batch: around its sequences' cells, padded.
    BatchRange,
}

impl Reading {
    /// Whether attention walks a range.
    pub fn walks(self) -> bool {
        self != Reading::Table
    }
}

/// How much work one [`Policy::maintain`] may do, for policies that work bit by bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Most cells to copy, over all classes.
    pub cells: u32,
}

/// An allocation policy. It chooses; the driver acts.
///
/// Calls follow this order: [`open`](Policy::open), then any number of `place`, `remove`,
/// `reduce`, `truncate`, then [`release`](Policy::release). A driver has executed all earlier
/// plans before it asks for the next one, so cells may be handed out again as soon as they are free;
/// one that has not asks the policy to [`defer`](Policy::defer).
pub trait Policy: Send {
    /// What the policy was made for.
    fn geometry(&self) -> &Geometry;

    /// Leading tokens of `content`, at most `tokens`, that [`open`](Policy::open) would adopt.
    fn cached(&self, content: &Content, tokens: u32) -> Hit {
        let _ = (content, tokens);
        Hit::default()
    }

    /// Whether a sequence of `content` could be opened and given `tokens` more of its prompt beside what it
    /// adopts, over all classes together. For policies whose classes share memory; of others the usage of
    /// each class says it.
    fn has_room_for(&self, content: &Content, prompt_tokens: u32, tokens: u32) -> bool {
        let _ = (content, prompt_tokens, tokens);
        true
    }

    /// Whether it has cells for whoever asks, so that admission need not look at how many are free.
    fn never_refuses(&self) -> bool {
        false
    }

    /// Whether a sequence has to be released when its request ends, because the policy remembers
    /// what [`open`](Policy::open) told it (content, length). Otherwise a driver may keep it for a
    /// next request that begins with the same tokens.
    fn remembers_intent(&self) -> bool {
        false
    }

    /// Whether it decides by who will ask for what, and does it badly unless it is [told](Policy::foresee).
    fn wants_future(&self) -> bool {
        false
    }

    /// Tells the prompts to come, in the order of their arrival: what each is, and its tokens. Everything
    /// that was cached is forgotten; no sequence is open. Only for bounds: no server knows this.
    fn foresee(&mut self, prompts: &mut dyn Iterator<Item = (Content, u32)>) {
        let _ = prompts;
    }

    /// Starts a sequence and returns how many leading tokens of its prompt it adopts from the
    /// cache: always fewer than the whole prompt. Those tokens count as placed.
    ///
    /// # Panics
    /// If the sequence is open already.
    fn open(&mut self, seq: SeqId, intent: &Intent) -> u32;

    /// Gives cells to every new token of the whole batch, in every class. Effects are appended
    /// to the plan, copies before the writes that need them.
    ///
    /// # Errors
    /// [`Full`] when the batch does not fit as a whole; then nothing has changed. Policies that
    /// reproduce the faults of a real server may have given back cells below the windows and moved
    /// others, as the plan says.
    ///
    /// # Panics
    /// If a sequence is not open or stands twice in the batch.
    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full>;

    /// Tokens that the sequence can still be given, one after another, without taking or giving
    /// back a cell. A driver may hand them over later in one call; the outcome is the same.
    fn room(&self, seq: SeqId) -> u32 {
        let _ = seq;
        0
    }

    /// Drops a range of tokens; later ones slide down by its length and their K is rotated.
    ///
    /// # Errors
    /// [`Unsupported`] if the policy cannot.
    fn remove(&mut self, seq: SeqId, tokens: Range<u32>, plan: &mut Plan) -> Result<(), Unsupported> {
        let _ = (seq, tokens, plan);
        Err(Unsupported)
    }

    /// Whether [`reduce`](Policy::reduce) can do anything.
    fn reduces(&self) -> bool {
        false
    }

    /// The sequence is at its context limit: drops tokens by the policy's own rule. `keep` is how
    /// many leading tokens the request wants to keep; policies with a knob for it keep to the knob.
    fn reduce(&mut self, seq: SeqId, keep: u32, plan: &mut Plan) -> Reduction {
        let _ = (seq, keep, plan);
        Reduction::Stop
    }

    /// How many tokens a sequence may have before [`reduce`](Policy::reduce) is asked to drop some: the context
    /// limit, but for policies with a budget of their own once a prompt has been computed.
    fn limit(&self, seq: SeqId) -> u32 {
        let _ = seq;
        self.geometry().context_max
    }

    /// The tokens that the last [`reduce`](Policy::reduce) of the sequence dropped, where it said
    /// [`Picked`](Reduction::Picked): by their numbers before it, in rising ranges that do not touch.
    fn picked(&self, seq: SeqId) -> &[Range<u32>] {
        let _ = seq;
        &[]
    }

    /// Whether it decides by [attention](Policy::attended), and does it badly unless it is told.
    fn needs_scores(&self) -> bool {
        false
    }

    /// Of tokens that are computed for the sequence, those whose attention it wants to be told of.
    fn wants_attention(&self, seq: SeqId, queries: Range<u32>) -> Range<u32> {
        let _ = seq;
        queries.start..queries.start
    }

    /// Tells what new tokens that it [wants to be told of](Policy::wants_attention) looked at, after they were
    /// computed and before anything else happens to their sequence.
    fn attended(&mut self, attention: &Attention) {
        let _ = attention;
    }

    /// Leading tokens that [`reduce`](Policy::reduce) leaves to a request that wants to keep `keep`:
    /// fewer than the context has.
    fn head_kept(&self, keep: u32) -> u32 {
        keep.min(self.geometry().context_max.saturating_sub(1))
    }

    /// What is added to the index of a token behind the kept head to get its position: 0 but for
    /// policies that drop tokens without moving later ones; of new tokens, where tokens were
    /// [picked](Reduction::Picked). The head's positions are its indices.
    /// A sequence with an offset cannot go to host memory: it would come back with none.
    fn offset(&self, seq: SeqId) -> u32 {
        let _ = seq;
        0
    }

    /// Whether K is stored as it was before its rotation, and rotated to the index of its token as it is read.
    /// Then no plan rotates, and nothing has an [`offset`](Policy::offset).
    fn rotates_on_read(&self) -> bool {
        false
    }

    /// Whether some cells may be stored in fewer bits than others, so that reading them takes fewer bytes
    /// ([`spared`](Policy::spared)).
    fn stores_coarser(&self) -> bool {
        false
    }

    /// What reading the sequence's tokens from `from` on spares because their cells are stored coarser, in 32nds
    /// of what a cell takes otherwise. Does not depend on how many of the tokens within its
    /// [`room`](Policy::room) it has been told of.
    fn spared(&self, class: ClassId, seq: SeqId, from: u32) -> u64 {
        let _ = (class, seq, from);
        0
    }

    /// Position that K of a token is rotated to once the policy owes nothing.
    fn position(&self, seq: SeqId, token: u32) -> u32 {
        // Whoever has an offset keeps to a head of its own, whatever a request wants to keep.
        if token < self.head_kept(0) { token } else { token + self.offset(seq) }
    }

    /// Starts `to`, which is not open, with the first tokens of `from`, at most `tokens`, in cells
    /// that both then hold. Returns how many it got; 0 if the policy cannot, and `to` stays closed.
    fn fork(&mut self, from: SeqId, to: SeqId, tokens: u32) -> u32 {
        let _ = (from, to, tokens);
        0
    }

    /// Rolls a sequence back to at most `len` tokens and returns how many stay. A window class
    /// that has let go of tokens needed to go on from `len` makes it 0.
    fn truncate(&mut self, seq: SeqId, len: u32) -> u32;

    /// The sequence, which is [released](Policy::release) next, shall come back with all its tokens. What of them is
    /// found by what it is goes to main memory, unless it is there. Returns how many leading tokens are, so that
    /// nobody else has to copy them; none where preempted sequences are the driver's business alone. When it comes
    /// back, main memory may have forgotten them: then [`cached`](Policy::cached) says fewer.
    fn park(&mut self, seq: SeqId, plan: &mut Plan) -> Option<u32> {
        let _ = (seq, plan);
        None
    }

    /// Gives back everything the sequence holds and forgets it. Content may stay cached.
    fn release(&mut self, seq: SeqId);

    /// The process has died and starts anew: what no sequence holds is forgotten too. No sequence is
    /// open when it is called, and from then on the policy does what a new one does.
    fn restart(&mut self) {}

    /// The driver forms the plan of step `epoch` while earlier ones are still executed: cells that are given
    /// back from now on may be read until that step has ended, and are handed out to others only once it
    /// has [retired](Policy::retire). Called at the beginning of every such step. False if the policy cannot,
    /// as it writes to cells that earlier steps read: then all earlier plans have to be executed first.
    fn defer(&mut self, epoch: u64) -> bool {
        let _ = epoch;
        false
    }

    /// The steps up to `epoch` have been executed: cells given back until then can be handed out.
    fn retire(&mut self, epoch: u64) {
        let _ = epoch;
    }

    /// Cells of a class that nobody holds and that wait to be retired. [`Usage`] counts them as held.
    fn waiting(&self, class: ClassId) -> u32 {
        let _ = class;
        0
    }

    /// Neighbouring cells that are handed out as one.
    fn granule(&self) -> u32 {
        1
    }

    /// Work ahead of demand (compaction); returns the cells copied. Policies that work bit by bit
    /// keep to `budget`; one that works on a threshold does all of it at once, and one that works beside the steps keeps to its own knob.
    fn maintain(&mut self, budget: Budget, plan: &mut Plan) -> u32 {
        let _ = (budget, plan);
        0
    }

    /// Tokens of the sequence, adopted and placed ones; 0 for one that is not open.
    fn len(&self, seq: SeqId) -> u32;

    /// Replaces `runs` by where the sequence's tokens are, in logical order, and returns which
    /// tokens these are: all for a class that reads everything, at least those still needed for a
    /// window class (less those that a removal has cut it off from).
    fn layout(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32>;

    /// Replaces `runs` by all cells that the sequence holds, reserved and rounded-up ones
    /// included, in any order.
    fn holding(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) {
        self.layout(class, seq, runs);
    }

    /// Replaces `runs` by the cells that no sequence holds but whose content may be adopted. May
    /// look at every block: it is for pictures.
    fn caching(&self, class: ClassId, runs: &mut Vec<Run>) {
        let _ = class;
        runs.clear();
    }

    /// How full a class is. O(1). Where all classes take their cells from one memory, what is free is what the
    /// class could have if no other took anything, and its cells are those and the held ones.
    fn usage(&self, class: ClassId) -> Usage;

    /// Cells whose memory is the class's share of all memory. Other than those of its usage only where
    /// classes share memory, so that a class may have more cells than its share.
    fn memory_cells(&self, class: ClassId) -> u32 {
        self.usage(class).cells
    }

    /// Where its free cells are. O(log n) for policies that read by range, at worst one look at
    /// every 64 blocks for others.
    fn shape(&self, class: ClassId) -> Shape;

    /// How attention finds cells.
    fn reading(&self) -> Reading {
        Reading::Table
    }

    /// The range that attention walks for the batch placed last, where it walks one; of no cells where
    /// there are none.
    fn walk(&self, class: ClassId) -> Run {
        Run { start: 0, len: self.shape(class).high_water }
    }

    /// Replaces `turns` by the cells whose K the next [`place`](Policy::place) has still to rotate,
    /// and by how many positions. Nothing for policies that rotate at once. Who copies cells away
    /// before that has them unrotated.
    fn unrotated(&self, class: ClassId, turns: &mut Vec<(Run, i32)>) {
        let _ = class;
        turns.clear();
    }

    /// Replaces `cells` by those that the next [`place`](Policy::place) has still to fill from host memory, with
    /// the first cell there of each run. Nothing for policies without cells there. Who copies cells away before
    /// that has what was in them before.
    fn unfetched(&self, class: ClassId, cells: &mut Vec<(Run, Cell)>) {
        let _ = class;
        cells.clear();
    }

    /// Cells, over all classes, that the sequence reads as its own though their K and V are
    /// another sequence's. 0 unless the policy reproduces such a fault.
    fn foreign(&self, seq: SeqId) -> u32 {
        let _ = seq;
        0
    }

    /// Replaces `runs` by all cells that hold another sequence's K and V than their books say.
    fn foreign_cells(&self, class: ClassId, runs: &mut Vec<Run>) {
        let _ = class;
        runs.clear();
    }

    /// Checks every book against every other, in O(cells).
    ///
    /// # Errors
    /// What does not agree.
    fn audit(&self) -> Result<(), String>;
}
