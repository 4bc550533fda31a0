//! Virtual time: hardware and models, what a step costs, and the loop that replays a trace.

pub mod attention;
pub mod cost;
pub mod foresee;
pub mod hardware;
pub mod host;
pub mod memory;
pub mod model;
pub mod ollama;
pub mod replay;
pub mod reuse;
pub mod sample;
pub mod totals;

pub use attention::StandIn;
pub use foresee::{ForeseeError, foresee};
pub use replay::{
    Executor, FREEZE_NS, Leak, Nobody, Observer, Priced, Replay, ReplayError, StepSummary, content_of, drive,
    replay,
};
pub use totals::Totals;
