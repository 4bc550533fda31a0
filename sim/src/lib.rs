//! Virtual time: hardware and models, what a step costs, and the loop that replays a trace.

pub mod cost;

