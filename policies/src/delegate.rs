//! What a policy leaves to the one that it is made over.

/// Within `impl Policy`: `leave_to!(cells: len, layout);` answers these methods as the field does.
macro_rules! leave_to {
    ($field:ident: $($method:ident),+ $(,)?) => { $($crate::delegate::left!($field $method);)+ };
}

/// One method of [`leave_to`].
macro_rules! left {
    ($to:ident geometry) => {
        fn geometry(&self) -> &$crate::policy::Geometry {
            self.$to.geometry()
        }
    };
    ($to:ident cached) => {
        fn cached(&self, content: &$crate::content::Content, tokens: u32) -> $crate::policy::Hit {
            self.$to.cached(content, tokens)
        }
    };
    ($to:ident has_room_for) => {
        fn has_room_for(&self, content: &$crate::content::Content, prompt_tokens: u32, tokens: u32) -> bool {
            self.$to.has_room_for(content, prompt_tokens, tokens)
        }
    };
    ($to:ident never_refuses) => {
        fn never_refuses(&self) -> bool {
            self.$to.never_refuses()
        }
    };
    ($to:ident remembers_intent) => {
        fn remembers_intent(&self) -> bool {
            self.$to.remembers_intent()
        }
    };
    ($to:ident wants_future) => {
        fn wants_future(&self) -> bool {
            self.$to.wants_future()
        }
    };
    ($to:ident foresee) => {
        fn foresee(&mut self, prompts: &mut dyn Iterator<Item = ($crate::content::Content, u32)>) {
            self.$to.foresee(prompts);
        }
    };
    ($to:ident open) => {
        fn open(&mut self, seq: $crate::policy::SeqId, intent: &$crate::policy::Intent) -> u32 {
            self.$to.open(seq, intent)
        }
    };
    ($to:ident place) => {
        fn place(
            &mut self,
            batch: &[$crate::policy::Append],
            plan: &mut $crate::plan::Plan,
        ) -> Result<(), $crate::policy::Full> {
            self.$to.place(batch, plan)
        }
    };
    ($to:ident room) => {
        fn room(&self, seq: $crate::policy::SeqId) -> u32 {
            self.$to.room(seq)
        }
    };
    ($to:ident reduces) => {
        fn reduces(&self) -> bool {
            self.$to.reduces()
        }
    };
    ($to:ident limit) => {
        fn limit(&self, seq: $crate::policy::SeqId) -> u32 {
            self.$to.limit(seq)
        }
    };
    ($to:ident picked) => {
        fn picked(&self, seq: $crate::policy::SeqId) -> &[std::ops::Range<u32>] {
            self.$to.picked(seq)
        }
    };
    ($to:ident needs_scores) => {
        fn needs_scores(&self) -> bool {
            self.$to.needs_scores()
        }
    };
    ($to:ident wants_attention) => {
        fn wants_attention(
            &self,
            seq: $crate::policy::SeqId,
            queries: std::ops::Range<u32>,
        ) -> std::ops::Range<u32> {
            self.$to.wants_attention(seq, queries)
        }
    };
    ($to:ident attended) => {
        fn attended(&mut self, attention: &$crate::attention::Attention) {
            self.$to.attended(attention);
        }
    };
    ($to:ident head_kept) => {
        fn head_kept(&self, keep: u32) -> u32 {
            self.$to.head_kept(keep)
        }
    };
    ($to:ident fork) => {
        fn fork(&mut self, from: $crate::policy::SeqId, to: $crate::policy::SeqId, tokens: u32) -> u32 {
            self.$to.fork(from, to, tokens)
        }
    };
    ($to:ident truncate) => {
        fn truncate(&mut self, seq: $crate::policy::SeqId, len: u32) -> u32 {
            self.$to.truncate(seq, len)
        }
    };
    ($to:ident park) => {
        fn park(&mut self, seq: $crate::policy::SeqId, plan: &mut $crate::plan::Plan) -> Option<u32> {
            self.$to.park(seq, plan)
        }
    };
    ($to:ident release) => {
        fn release(&mut self, seq: $crate::policy::SeqId) {
            self.$to.release(seq);
        }
    };
    ($to:ident restart) => {
        fn restart(&mut self) {
            self.$to.restart();
        }
    };
    ($to:ident defer) => {
        fn defer(&mut self, epoch: u64) -> bool {
            self.$to.defer(epoch)
        }
    };
    ($to:ident retire) => {
        fn retire(&mut self, epoch: u64) {
            self.$to.retire(epoch);
        }
    };
    ($to:ident waiting) => {
        fn waiting(&self, class: $crate::policy::ClassId) -> u32 {
            self.$to.waiting(class)
        }
    };
    ($to:ident granule) => {
        fn granule(&self) -> u32 {
            self.$to.granule()
        }
    };
    ($to:ident maintain) => {
        fn maintain(&mut self, budget: $crate::policy::Budget, plan: &mut $crate::plan::Plan) -> u32 {
            self.$to.maintain(budget, plan)
        }
    };
    ($to:ident len) => {
        fn len(&self, seq: $crate::policy::SeqId) -> u32 {
            self.$to.len(seq)
        }
    };
    ($to:ident layout) => {
        fn layout(
            &self,
            class: $crate::policy::ClassId,
            seq: $crate::policy::SeqId,
            runs: &mut Vec<$crate::policy::Run>,
        ) -> std::ops::Range<u32> {
            self.$to.layout(class, seq, runs)
        }
    };
    ($to:ident holding) => {
        fn holding(
            &self,
            class: $crate::policy::ClassId,
            seq: $crate::policy::SeqId,
            runs: &mut Vec<$crate::policy::Run>,
        ) {
            self.$to.holding(class, seq, runs);
        }
    };
    ($to:ident caching) => {
        fn caching(&self, class: $crate::policy::ClassId, runs: &mut Vec<$crate::policy::Run>) {
            self.$to.caching(class, runs);
        }
    };
    ($to:ident usage) => {
        fn usage(&self, class: $crate::policy::ClassId) -> $crate::policy::Usage {
            self.$to.usage(class)
        }
    };
    ($to:ident memory_cells) => {
        fn memory_cells(&self, class: $crate::policy::ClassId) -> u32 {
            self.$to.memory_cells(class)
        }
    };
    ($to:ident shape) => {
        fn shape(&self, class: $crate::policy::ClassId) -> $crate::policy::Shape {
            self.$to.shape(class)
        }
    };
    ($to:ident reading) => {
        fn reading(&self) -> $crate::policy::Reading {
            self.$to.reading()
        }
    };
    ($to:ident walk) => {
        fn walk(&self, class: $crate::policy::ClassId) -> $crate::policy::Run {
            self.$to.walk(class)
        }
    };
    ($to:ident stores_coarser) => {
        fn stores_coarser(&self) -> bool {
            self.$to.stores_coarser()
        }
    };
    ($to:ident spared) => {
        fn spared(&self, class: $crate::policy::ClassId, seq: $crate::policy::SeqId, from: u32) -> u64 {
            self.$to.spared(class, seq, from)
        }
    };
    ($to:ident unfetched) => {
        fn unfetched(
            &self,
            class: $crate::policy::ClassId,
            cells: &mut Vec<($crate::policy::Run, $crate::policy::Cell)>,
        ) {
            self.$to.unfetched(class, cells);
        }
    };
    ($to:ident audit) => {
        fn audit(&self) -> Result<(), String> {
            self.$to.audit()
        }
    };
}

pub(crate) use {leave_to, left};
