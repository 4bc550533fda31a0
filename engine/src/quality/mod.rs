//! What a policy and a type of K and V cost in quality: every token of an exam is predicted with the cache that
//! they leave, and compared with a cache that loses nothing.

pub mod corpus;
pub mod evaluate;
pub mod reading;
pub mod score;
pub mod statistics;
pub mod summary;
pub mod tiny;
pub mod variant;
pub mod vocabulary;

use crate::error::EngineError;

/// Why quality cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum QualityError {
    /// A variant is no variant, or cannot read the documents.
    #[error("{name}: {what}")]
    Variant {
        /// As it was written.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The engine cannot do it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Someone wants it to stop.
    #[error("interrupted")]
    Interrupted,
}
