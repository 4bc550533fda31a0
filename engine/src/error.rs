//! What can go wrong in the engine.

use std::path::PathBuf;

/// Why the engine cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file of a model is not what it should be.
    #[error("{path}: {what}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, where in the file, and what was expected.
        what: String,
    },
    /// There is not enough memory.
    #[error("{what} needs {bytes} bytes; there is no room for them")]
    Memory {
        /// What would not fit.
        what: &'static str,
        /// Its size.
        bytes: u64,
    },
    /// A device, or what drives it, is missing or fails.
    #[error("{0}")]
    Device(String),
    /// A batch or a plan speaks of something that does not exist.
    #[error("{0}")]
    Batch(String),
    /// A model's shape is not one that the engine can run.
    #[error("model {name}: {what}")]
    Shape {
        /// The model.
        name: String,
        /// What is wrong.
        what: String,
    },
}
