//! GGUF files of the architecture `gemma3`.

mod header;
mod keys;

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::EngineError;
use crate::load::gather::{self, EMBEDDING, Part, Source};
use crate::load::numbers::{Storage, Tensor};
use crate::load::{Description, Model, Options, Stored, wrong};
use crate::tokenizer::{Piece, PieceKind, Tokenizer};
use crate::weights::Matrix;

use header::{Header, TOKENS, TensorInfo, Value};
use keys::Keys;

/// Loads a file.
///
/// # Errors
/// As [`crate::load::load`].
pub(super) fn load(path: &Path, options: Options) -> Result<Model, EngineError> {
    let file = File::open(path).map_err(|error| wrong(path, error.to_string()))?;
    let header = Header::read(path, &file)?;
    let mut gguf = Gguf { path: path.to_owned(), file, header, options };
    let name =
        path.file_stem().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
    let embedding = gguf.tensor(&tensor_name(None, EMBEDDING))?;
    let vocab = embedding.dims.get(1).and_then(|&rows| usize::try_from(rows).ok()).unwrap_or(0);
    let tokens = gguf.header.metadata.remove(TOKENS);
    let keys = Keys { path, header: &gguf.header };
    let config = keys.config(name, vocab)?;
    let tokenizer = tokens.map(|tokens| tokenizer(&keys, tokens, vocab)).transpose()?;
    let id = |key: &str| Ok::<_, EngineError>(keys.count(key)?.map(|id| id as u32));
    let bos = id("tokenizer.ggml.bos_token_id")?.unwrap_or(2);
    let mut stops = vec![id("tokenizer.ggml.eos_token_id")?.unwrap_or(1)];
    stops.extend(id("tokenizer.ggml.eot_token_id")?);
    let more = keys.integers("tokenizer.ggml.eos_token_ids")?.unwrap_or_default();
    stops.extend(more.iter().filter_map(|&id| u32::try_from(id).ok()));
    gguf.refuse_unknown(config.layers.len())?;
    let source = format!("{} (GGUF)", path.display());
    let scale = (config.hidden as f32).sqrt();
    let weights = gather::gather(config, scale, &mut gguf)?;
    Ok(Model::new(weights, tokenizer, Some(bos), stops, source))
}

/// Reads what the header says of a model.
///
/// # Errors
/// As [`crate::load::describe`].
pub(super) fn describe(path: &Path) -> Result<Description, EngineError> {
    let file = File::open(path).map_err(|error| wrong(path, error.to_string()))?;
    let header = Header::read(path, &file)?;
    let tensor =
        |name: &str| header.tensors.get(name).ok_or_else(|| wrong(path, format!("tensor {name} is missing")));
    let stored = |name: &str| match tensor(name)?.kind {
        0 => Ok(Stored::F32),
        1 | 30 => Ok(Stored::Half),
        8 => Ok(Stored::Q8),
        14 => Ok(Stored::Q6),
        2 | 12 => Ok(Stored::Q4),
        kind => {
            let expected = "expected f32, f16, bf16, q8_0, q6_K, q4_0 or q4_K";
            Err(wrong(path, format!("tensor {name}: type {kind}; {expected}")))
        }
    };
    let name =
        path.file_stem().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
    let embedding = tensor_name(None, EMBEDDING);
    let vocab = tensor(&embedding)?.dims.get(1).and_then(|&rows| usize::try_from(rows).ok()).unwrap_or(0);
    let config = Keys { path, header: &header }.config(name, vocab)?;
    let linear = stored("blk.0.ffn_gate.weight")?;
    Ok(Description { config, linear, embedding: stored(&embedding)? })
}

fn tensor_name(layer: Option<usize>, part: Part) -> String {
    match layer {
        Some(layer) => format!("blk.{layer}.{}.weight", part.gguf),
        None => format!("{}.weight", part.gguf),
    }
}

/// The tokenizer of a file that has tokens.
fn tokenizer(keys: &Keys, tokens: Value, vocab: usize) -> Result<Tokenizer, EngineError> {
    let Value::Texts(texts) = tokens else { return Err(keys.wrong(TOKENS, "expected a list of texts")) };
    let len = texts.len();
    let model = keys.text("tokenizer.ggml.model")?;
    if model != Some("llama") {
        return Err(keys.wrong("tokenizer.ggml.model", format!("expected \"llama\", found {model:?}")));
    }
    if len > vocab {
        return Err(keys.wrong(TOKENS, format!("{len} tokens, but token_embd.weight has {vocab} rows")));
    }
    let same = |key: &str, found: usize| match found == len {
        true => Ok(()),
        false => Err(keys.wrong(key, format!("expected {len}, one per token, found {found}"))),
    };
    let key = "tokenizer.ggml.scores";
    let scores = keys.numbers(key)?.ok_or_else(|| keys.wrong(key, "missing"))?;
    same(key, scores.len())?;
    if let Some(at) = scores.iter().position(|score| score.is_nan()) {
        return Err(keys.wrong(key, format!("number {at} is not a number")));
    }
    let key = "tokenizer.ggml.token_type";
    let kinds = keys.integers(key)?;
    if let Some(kinds) = kinds {
        same(key, kinds.len())?;
    }
    let kind = |id: usize| match kinds.map_or(1, |kinds| kinds[id]) {
        2 | 3 => PieceKind::Control,
        4 => PieceKind::UserDefined,
        5 => PieceKind::Unused,
        6 => PieceKind::Byte,
        _ => PieceKind::Normal,
    };
    let piece = |(id, text)| Piece { text, score: scores[id], kind: kind(id) };
    Ok(Tokenizer::from_pieces(texts.into_iter().enumerate().map(piece).collect()))
}

/// A file whose header has been read.
struct Gguf {
    path: PathBuf,
    file: File,
    header: Header,
    options: Options,
}

impl Gguf {
    fn tensor(&self, name: &str) -> Result<&TensorInfo, EngineError> {
        self.header.tensors.get(name).ok_or_else(|| wrong(&self.path, format!("tensor {name} is missing")))
    }

    /// Refuses layers and parts of layers that the metadata does not speak of.
    fn refuse_unknown(&self, layers: usize) -> Result<(), EngineError> {
        let is_known = |name: &str| {
            let Some(rest) = name.strip_prefix("blk.") else { return name != "output.weight" };
            let Some((layer, part)) = rest.split_once('.') else { return false };
            let part = part.strip_suffix(".weight");
            layer.parse().is_ok_and(|layer: usize| layer < layers)
                && gather::LAYER.iter().any(|known| Some(known.gguf) == part)
        };
        match self.header.tensors.keys().find(|name| !is_known(name)) {
            None => Ok(()),
            Some(name) => Err(wrong(
                &self.path,
                format!("tensor {name} is not part of a Gemma 3 model of {layers} layers"),
            )),
        }
    }

    /// Finds a tensor of some sizes, the fastest first, and moves the file there.
    fn seek(&mut self, name: &str, dims: &[u64]) -> Result<Storage, EngineError> {
        let info = self.tensor(name)?;
        let bad = |what: String| wrong(&self.path, format!("tensor {name}: {what}"));
        if info.dims != dims {
            return Err(bad(format!("expected sizes {dims:?}, found {:?}", info.dims)));
        }
        let storage = info.storage().ok_or_else(|| {
            bad(format!(
                "type {} of ggml is not read; expected F32, F16, BF16, Q8_0, Q4_0 or Q6_K",
                info.kind
            ))
        })?;
        if !dims[0].is_multiple_of(storage.unit().0 as u64) {
            return Err(bad(format!(
                "rows of {} are no whole number of blocks of {}",
                dims[0],
                storage.unit().0
            )));
        }
        let start = info.start;
        self.file.seek(SeekFrom::Start(start)).map_err(|error| bad(error.to_string()))?;
        Ok(storage)
    }
}

impl Source for Gguf {
    fn bytes(&self) -> u64 {
        let bytes = |info: &TensorInfo| {
            let numbers = info.dims.iter().fold(1_u64, |all, &size| all.saturating_mul(size));
            let storage = if self.options.dequantize { Some(Storage::F32) } else { info.storage() };
            storage.and_then(|storage| storage.bytes(numbers)).unwrap_or(0)
        };
        self.header.tensors.values().map(bytes).fold(0, u64::saturating_add)
    }

    fn matrix(
        &mut self,
        layer: Option<usize>,
        part: Part,
        rows: usize,
        cols: usize,
    ) -> Result<Matrix, EngineError> {
        let name = tensor_name(layer, part);
        let storage = self.seek(&name, &[cols as u64, rows as u64])?;
        let tensor = Tensor { path: &self.path, name: &name, storage, numbers: rows * cols };
        Ok(Matrix { rows, cols, data: tensor.read(&mut self.file, self.options.dequantize)? })
    }

    fn norm(&mut self, layer: Option<usize>, part: Part, len: usize) -> Result<Vec<f32>, EngineError> {
        let name = tensor_name(layer, part);
        let storage = self.seek(&name, &[len as u64])?;
        Tensor { path: &self.path, name: &name, storage, numbers: len }.floats(&mut self.file)
    }
}
