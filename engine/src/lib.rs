//! Gemma 3 over the very policies that the simulator prices.
//!
//! A [`Backend`] holds the weights and a cell-indexed cache. Whoever drives it (a
//! scheduler with a policy, or a test) says per step which tokens are computed, where each
//! sequence's cells lie, and what is copied or rotated before. Every reduction runs in logical
//! order, so that where tokens lie changes no bit of what comes out.

pub mod backend;
pub mod ballot;
pub mod cache;
pub mod clock;
pub mod config;
pub mod context;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod load;
pub mod machine;
pub mod measure;
pub mod memory;
mod numbers;
pub mod quality;
pub mod sample;
pub mod serve;
pub mod synthetic;
mod tiles;
pub mod tokenizer;
pub mod weights;

pub use backend::{Backend, Batch, Output, Span, View, Wanted};
pub use ballot::Ballot;
pub use cache::{CacheShape, KvType};
pub use config::{Config, LayerKind, Rope};
pub use error::EngineError;
pub use tiles::Tiles;
pub use weights::{Data, Layer, Matrix, Numbers, Weights};
