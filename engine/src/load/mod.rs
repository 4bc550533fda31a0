//! Models from files: a folder of Hugging Face's with `config.json` and safetensors, or a GGUF file.
//!
//! Files are believed in nothing: counts, lengths and offsets are checked against the size of the
//! file before anything is allocated, shapes against the configuration, numbers for being finite.

pub(crate) mod blocks;
mod config;
mod fields;
mod gather;
mod gguf;
mod numbers;
mod safetensors;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::config::Config;
use crate::error::EngineError;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// How a model is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// All matrices become f32, whatever the file has.
    pub dequantize: bool,
    /// Matrices in q8_0 and q4_0 are [tiled](crate::Matrix::tiled): their inputs are rounded to 8 bits.
    pub tiled: bool,
}

/// A model and what its files say of it.
#[derive(Clone, Debug)]
pub struct Model {
    /// The weights, with the shape that they have.
    pub weights: Weights,
    /// The tokenizer, where the files have one.
    pub tokenizer: Option<Tokenizer>,
    /// The token that every text begins with.
    pub bos: Option<u32>,
    /// The tokens that end an answer.
    pub stops: Vec<u32>,
    /// Where it comes from, in words.
    pub source: String,
}

impl Model {
    /// Puts a model together; the mark that ends a turn ends an answer whatever the files say.
    fn new(
        weights: Weights,
        tokenizer: Option<Tokenizer>,
        bos: Option<u32>,
        mut stops: Vec<u32>,
        source: String,
    ) -> Model {
        stops.extend(tokenizer.as_ref().and_then(Tokenizer::end_of_turn));
        stops.sort_unstable();
        stops.dedup();
        Model { weights, tokenizer, bos, stops, source }
    }
}

/// Loads a model from a folder or a `.gguf` file.
///
/// # Errors
/// [`EngineError::File`] if a file is missing, broken or not of a Gemma 3 text model;
/// [`EngineError::Shape`] if the engine cannot run its shape; [`EngineError::Memory`] if it is too
/// large for this machine.
pub fn load(path: &Path, options: Options) -> Result<Model, EngineError> {
    let gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let mut model = if path.is_dir() {
        safetensors::load(path, options)?
    } else if gguf {
        gguf::load(path, options)?
    } else {
        return Err(wrong(path, "expected a folder with config.json and safetensors, or a .gguf file"));
    };
    if options.tiled {
        model.weights = model.weights.tiled();
    }
    model.weights.lay_side_by_side()?;
    Ok(model)
}

/// How numbers of a matrix are stored, as far as their size goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// 32 bits.
    F32,
    /// 16 bits.
    Half,
    /// 8.5 bits: q8_0.
    Q8,
    /// 6.6 bits: q6_K.
    Q6,
    /// 4.5 bits: q4_0, q4_K.
    Q4,
}

/// What a file says of a model whose weights are not read.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// Its shape.
    pub config: Config,
    /// How most of its layers are stored.
    pub linear: Stored,
    /// How its embedding is stored.
    pub embedding: Stored,
}

/// Reads the header of a `.gguf` file, or a `config.json`.
///
/// # Errors
/// As [`load`]; also for tensors of a type whose size is none of [`Stored`].
pub fn describe(path: &Path) -> Result<Description, EngineError> {
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        gguf::describe(path)
    } else {
        config::describe(path)
    }
}

fn wrong(path: &Path, what: impl Into<String>) -> EngineError {
    EngineError::File { path: path.to_owned(), what: what.into() }
}

/// Reads a whole file of at most `limit` bytes.
fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>, EngineError> {
    let failed = |error: std::io::Error| wrong(path, error.to_string());
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(wrong(path, format!("is larger than {limit} bytes")));
    }
    Ok(bytes)
}
