//! Virtual time: hardware and models, what a step costs, and the loop that replays a trace.

pub mod cost;
pub mod hardware;
pub mod host;
pub mod memory;
pub mod model;
pub mod ollama;
pub mod replay;
pub mod sample;
pub mod totals;

pub use replay::{FREEZE_NS, Leak, Nobody, Observer, Replay, ReplayError, StepSummary, replay};
pub use totals::Totals;
