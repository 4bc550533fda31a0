//! K is stored as it was before its rotation, and rotated as it is read, to the index of its token.
//!
//! A shift then moves no cell's K: tokens that slide down are read at their new positions. Every read pays for
//! it, also where nothing is ever shifted. Positions are counted within the cache, whatever the policy below
//! does: a ring, and what attention picks, have no gaps.
//! Source: the program of StreamingLLM (Xiao et al., arXiv 2309.17453), which keeps keys before their rotation;
//! KVQuant (Hooper et al., NeurIPS 2024, arXiv 2401.18079), whose kernel rotates them as it reads.
//!
//! Cost: that of the policy below.

use std::ops::Range;

use crate::delegate::leave_to;
use crate::plan::Plan;
use crate::policy::{Policy, Reduction, SeqId, Unsupported};
use crate::spec::Knob;

/// The extension of policies that can be had with it.
pub(crate) const KNOB: Knob = Knob {
    name: "+unrotated",
    about: "K is stored before its rotation and rotated as it is read",
    default: "off",
};

/// Any policy, over keys before their rotation.
pub(crate) struct Unrotated {
    under: Box<dyn Policy>,
}

impl Unrotated {
    pub fn over(under: Box<dyn Policy>) -> Box<dyn Policy> {
        Box::new(Unrotated { under })
    }
}

impl Policy for Unrotated {
    leave_to!(under: geometry, cached, has_room_for, never_refuses, remembers_intent, wants_future, foresee);
    leave_to!(under: open, place, room, reduces, limit, picked, needs_scores, wants_attention, attended);
    leave_to!(under: head_kept, fork, park, truncate, release, restart, defer, retire, waiting, granule, maintain);
    leave_to!(under: len, layout, holding, caching, usage, memory_cells, shape, reading, walk, unfetched, audit);
    leave_to!(under: stores_coarser, spared);

    fn remove(&mut self, seq: SeqId, tokens: Range<u32>, plan: &mut Plan) -> Result<(), Unsupported> {
        let before = plan.effects().len();
        let removed = self.under.remove(seq, tokens, plan);
        plan.forget_rotations(before);
        removed
    }

    fn reduce(&mut self, seq: SeqId, keep: u32, plan: &mut Plan) -> Reduction {
        let before = plan.effects().len();
        let reduction = self.under.reduce(seq, keep, plan);
        plan.forget_rotations(before);
        reduction
    }

    fn rotates_on_read(&self) -> bool {
        true
    }

    fn position(&self, _: SeqId, token: u32) -> u32 {
        token
    }
}
