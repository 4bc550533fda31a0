//! x
pub trait Scheduler {}
