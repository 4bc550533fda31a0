//! Files of models: what is loaded from them, and what is refused.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod gguf;
mod golden;
mod hub;
mod prefill;
mod writer;
