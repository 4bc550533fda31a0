//! What a batch takes and gives back: checked as a whole before anything changes.

use super::Paged;
use crate::plan::{Effect, Plan, Why};
use crate::policy::{Append, ClassId, Full, Reach, SeqId};
use crate::pool::Block;

/// Where a batch that fits finds its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growth {
    /// Blocks that nobody holds.
    Blocks,
    /// They find them only when sequences outside the batch give back what lies below their windows.
    BlocksOfOthers,
}

impl Paged {
    /// Gives every append its blocks, and copies those that it must not write.
    pub(super) fn grow(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        let mut growing = std::mem::take(&mut self.growing);
        growing.extend(batch.iter().filter(|append| self.tables.grows(append)));
        let result = if growing.is_empty() { Ok(()) } else { self.take_blocks(&growing, plan) };
        growing.clear();
        self.growing = growing;
        result
    }

    /// The same for a batch in which every append takes cells.
    fn take_blocks(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        if self.check(batch)? == Growth::BlocksOfOthers {
            self.trim(&self.tables.others(batch));
        }
        for append in batch {
            for class in 0..self.pools.len() {
                let change = self.tables.change(append, class);
                let pool = &mut self.pools[class];
                self.tables.give_leading(append.seq, class, change.give, |block| pool.give(block));
                self.tables.get_mut(append.seq).tables[class].first = change.first;
            }
        }
        for append in batch {
            for class in 0..self.pools.len() {
                let tail = self.shared_tail(append.seq, class);
                let take = self.tables.change(append, class).take;
                let table = &mut self.tables.get_mut(append.seq).tables[class];
                for _ in 0..take {
                    table.blocks.push_back(self.pools[class].take().expect("the batch was checked"));
                }
                if let Some(tail) = tail {
                    self.copy_tail(append.seq, class, tail, plan);
                }
            }
        }
        Ok(())
    }

    /// Whether an append takes cells.
    pub fn grows(&self, append: &Append) -> bool {
        self.tables.grows(append)
    }

    /// The block of a sequence's last token, if it has room for more but must not be written, because
    /// others hold it too or may find it, or a step that has not ended reads on in it.
    fn shared_tail(&self, seq: SeqId, class: usize) -> Option<Block> {
        let sequence = self.tables.get(seq);
        let table = &sequence.tables[class];
        if sequence.len.is_multiple_of(self.block_size()) {
            return None;
        }
        // A table that has been made ready for tokens from host memory may begin after the sequence's end.
        let tail = (sequence.len / self.block_size()).checked_sub(table.first)?;
        let tail = table.blocks.get(tail as usize).copied()?;
        let pool = &self.pools[class];
        (pool.holders(tail) > 1 || pool.is_named(tail) || pool.is_read(tail)).then_some(tail)
    }

    /// Blocks that the copies of a batch take, given the blocks that would have to be copied: who holds one
    /// alone at last, and nobody may find it, writes it in place.
    fn copies(&self, class: usize, mut tails: Vec<Block>) -> u32 {
        tails.sort_unstable();
        let copies = tails.chunk_by(|a, b| a == b).map(|tails| {
            let (count, pool) = (tails.len() as u32, &self.pools[class]);
            // Where steps overlap whoever leaves a block may still read it.
            let all_copy = pool.is_named(tails[0]) || pool.defers();
            if all_copy { count } else { count.min(pool.holders(tails[0]) - 1) }
        });
        copies.sum()
    }

    /// Refuses a batch that does not fit, in which every append takes cells; says what it needs.
    fn check(&self, batch: &[Append]) -> Result<Growth, Full> {
        let mut growth = Growth::Blocks;
        for class in 0..self.pools.len() {
            let (mut give, mut take, mut tails) = (0u64, 0u64, Vec::new());
            for append in batch {
                let change = self.tables.change(append, class);
                give += u64::from(self.idle_after(append.seq, class, change.give));
                take += u64::from(change.take);
                let blocks = self.tables.get(append.seq).tables[class].blocks.len() as u32;
                let is_kept = |_: &Block| change.give < blocks;
                tails.extend(self.shared_tail(append.seq, class).filter(is_kept));
            }
            take += u64::from(self.copies(class, tails));
            let mut available = self.pools[class].available();
            let is_window = self.reach(class) != Reach::Full;
            if self.pools[class].defers() {
                // What is given back now can be taken in a later step only.
                give = 0;
            } else if take > u64::from(available) + give && is_window {
                let outdated = |&seq: &SeqId| self.idle_after(seq, class, self.tables.outdated(seq, class));
                available += self.tables.others(batch).iter().map(outdated).sum::<u32>();
                growth = Growth::BlocksOfOthers;
            }
            if take > u64::from(available) + give {
                let free = available * self.block_size();
                let needed =
                    (take - give).min(u64::from(u32::MAX / self.block_size())) as u32 * self.block_size();
                return Err(Full { class: ClassId(class as u8), needed, free, largest_free_run: free });
            }
        }
        Ok(growth)
    }

    /// Gives back the outdated blocks of sequences.
    pub(super) fn trim(&mut self, sequences: &[SeqId]) {
        for &seq in sequences {
            for (class, pool) in self.pools.iter_mut().enumerate() {
                let outdated = self.tables.outdated(seq, class);
                self.tables.give_leading(seq, class, outdated, |block| pool.give(block));
            }
        }
    }

    /// How many of the first `give` blocks of a table nobody else holds.
    fn idle_after(&self, seq: SeqId, class: usize, give: u32) -> u32 {
        if !self.shares {
            return give;
        }
        let blocks = self.tables.leading(seq, class, give);
        blocks.filter(|&block| self.pools[class].holders(block) == 1).count() as u32
    }

    /// Length up to which nothing is taken.
    pub(super) fn capacity(&self, seq: SeqId) -> u32 {
        let sequence = self.tables.get(seq);
        if self.shares && (0..self.pools.len()).any(|class| self.shared_tail(seq, class).is_some()) {
            return sequence.len;
        }
        sequence.tables.iter().map(|table| table.end() * self.block_size()).min().unwrap_or(0)
    }

    /// Gives a sequence a block of its own for the tokens it has in a block that others hold or may find.
    fn copy_tail(&mut self, seq: SeqId, class: usize, tail: Block, plan: &mut Plan) {
        let copy = self.pools[class].take().expect("the batch was checked");
        let size = self.block_size();
        let sequence = self.tables.get_mut(seq);
        let len = sequence.len;
        let table = &mut sequence.tables[class];
        table.blocks[(len / size - table.first) as usize] = copy;
        plan.push(Effect::Copy {
            class: ClassId(class as u8),
            from: tail * size,
            to: copy * size,
            len: len % size,
            why: Why::CopyOnWrite,
        });
        self.pools[class].give(tail);
    }
}
