//! Checkpoints in Hugging Face's layout: `config.json`, and one safetensors file or several.
//!
//! A file is a length of 8 bytes, a header of JSON, and the tensors' bytes one after another without
//! gaps (<https://github.com/huggingface/safetensors>, "Format"). Names, types and shapes are taken
//! with the types of the `safetensors` crate. The rules are checked here, so that the message names
//! the tensor, a name that stands twice is seen, and the tensors need not be in memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::error::EngineError;
use crate::load::config::{self, HubConfig};
use crate::load::fields::Fields;
use crate::load::gather::{self, EMBEDDING, NORM, Part, Source};
use crate::load::numbers::{Storage, Tensor};
use crate::load::{Model, Options, read_small, wrong};
use crate::tokenizer::Tokenizer;
use crate::weights::Matrix;

/// The largest header, as in the `safetensors` crate.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// The largest index of a checkpoint in several files.
const INDEX_BYTES_MAX: u64 = 16 << 20;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What may stand before the names of the text model, by the age and kind of the checkpoint.
const PREFIXES: [&str; 4] = ["model.", "language_model.model.", "model.language_model.", "language_model."];

/// Loads a folder.
///
/// # Errors
/// As [`crate::load::load`].
pub(super) fn load(folder: &Path, options: Options) -> Result<Model, EngineError> {
    let name =
        folder.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
    let HubConfig { config, bos, stops } = config::read(&folder.join("config.json"), &name)?;
    let mut checkpoint = Checkpoint::open(folder, options)?;
    checkpoint.refuse_unknown(config.layers.len())?;
    let embedding = checkpoint.name(None, EMBEDDING);
    let (file, tensor) = checkpoint.tensor(&embedding)?;
    let (path, storage) = (&checkpoint.files[file].path, storage(tensor.dtype));
    let storage = storage.ok_or_else(|| wrong_type(path, &embedding, tensor.dtype))?;
    let scale = storage.round((config.hidden as f32).sqrt());
    let source = format!("{} ({} in safetensors)", folder.display(), tensor.dtype);
    let weights = gather::gather(config, scale, &mut checkpoint)?;
    let path = folder.join("tokenizer.json");
    let tokenizer = path.is_file().then(|| Tokenizer::from_json(&path)).transpose()?;
    Ok(Model::new(weights, tokenizer, bos, stops, source))
}

fn storage(dtype: Dtype) -> Option<Storage> {
    match dtype {
        Dtype::F32 => Some(Storage::F32),
        Dtype::F16 => Some(Storage::F16),
        Dtype::BF16 => Some(Storage::Bf16),
        _ => None,
    }
}

fn wrong_type(path: &Path, name: &str, dtype: Dtype) -> EngineError {
    wrong(path, format!("tensor {name}: expected F32, BF16 or F16, found {dtype}"))
}

/// One safetensors file.
struct Shard {
    path: PathBuf,
    file: File,
    /// Where the tensors' bytes begin.
    data_start: u64,
}

/// The tensors of a folder, by name: number of the file and what its header says.
struct Checkpoint {
    files: Vec<Shard>,
    tensors: BTreeMap<String, (usize, TensorInfo)>,
    prefix: &'static str,
    folder: PathBuf,
    options: Options,
}

impl Checkpoint {
    fn open(folder: &Path, options: Options) -> Result<Checkpoint, EngineError> {
        let index = folder.join(INDEX);
        let mut checkpoint = Checkpoint {
            files: Vec::new(),
            tensors: BTreeMap::new(),
            prefix: "",
            folder: folder.to_owned(),
            options,
        };
        if index.is_file() {
            for (shard, names) in read_index(&index)? {
                checkpoint.add(folder.join(&shard))?;
                let missing = names.iter().find(|name| !checkpoint.tensors.contains_key(*name));
                if let Some(name) = missing {
                    return Err(wrong(
                        &folder.join(&shard),
                        format!("tensor {name} is missing, though {INDEX} says that it is here"),
                    ));
                }
            }
        } else {
            checkpoint.add(folder.join(SINGLE))?;
        }
        let is_there =
            |prefix: &&str| checkpoint.tensors.contains_key(&format!("{prefix}{}.weight", EMBEDDING.hub));
        checkpoint.prefix = PREFIXES
            .into_iter()
            .find(is_there)
            .ok_or_else(|| wrong(folder, format!("tensor model.{}.weight is missing", EMBEDDING.hub)))?;
        Ok(checkpoint)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), EngineError> {
        let (file, data_start, header) = open(&path)?;
        let number = self.files.len();
        for (name, info) in header.0 {
            if self.tensors.contains_key(&name) {
                return Err(wrong(&path, format!("tensor {name} is in another file too")));
            }
            self.tensors.insert(name, (number, info));
        }
        self.files.push(Shard { path, file, data_start });
        Ok(())
    }

    fn name(&self, layer: Option<usize>, part: Part) -> String {
        match layer {
            Some(layer) => format!("{}layers.{layer}.{}.weight", self.prefix, part.hub),
            None => format!("{}{}.weight", self.prefix, part.hub),
        }
    }

    fn tensor(&self, name: &str) -> Result<(usize, &TensorInfo), EngineError> {
        let (file, info) =
            self.tensors.get(name).ok_or_else(|| wrong(&self.folder, format!("tensor {name} is missing")))?;
        Ok((*file, info))
    }

    /// Refuses a text model that has more than the configuration speaks of. An output layer of its
    /// own may be there: it is the embedding once more, since these are tied.
    fn refuse_unknown(&self, layers: usize) -> Result<(), EngineError> {
        let is_known = |name: &str| {
            let Some(rest) = name.strip_prefix(self.prefix) else { return true };
            let Some(part) = rest.strip_suffix(".weight") else { return false };
            if [EMBEDDING, NORM].iter().any(|known| known.hub == part) {
                return true;
            }
            let layer = part.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
            let Some((layer, part)) = layer else { return false };
            layer.parse().is_ok_and(|layer: usize| layer < layers)
                && gather::LAYER.iter().any(|known| known.hub == part)
        };
        // What belongs to images; where the prefix is `model.`, so do these begin.
        let is_image = |name: &str| {
            let name = name.strip_prefix("model.").unwrap_or(name);
            name.starts_with("vision_tower.") || name.starts_with("multi_modal_projector.")
        };
        match self.tensors.iter().find(|(name, _)| !is_image(name) && !is_known(name)) {
            None => Ok(()),
            Some((name, (file, _))) => {
                let what = format!("tensor {name} is not part of a Gemma 3 model of {layers} layers");
                Err(wrong(&self.files[*file].path, what))
            }
        }
    }

    /// Finds a tensor of a shape and moves its file there.
    fn seek(&mut self, name: &str, shape: &[usize]) -> Result<(usize, Storage), EngineError> {
        let (file, info) = self.tensor(name)?;
        let path = &self.files[file].path;
        if info.shape != shape {
            return Err(wrong(
                path,
                format!("tensor {name}: expected shape {shape:?}, found {:?}", info.shape),
            ));
        }
        let storage = storage(info.dtype).ok_or_else(|| wrong_type(path, name, info.dtype))?;
        let start = info.data_offsets.0 as u64;
        let Shard { path, file: handle, data_start } = &mut self.files[file];
        handle
            .seek(SeekFrom::Start(*data_start + start))
            .map_err(|error| wrong(path, format!("tensor {name}: {error}")))?;
        Ok((file, storage))
    }
}

impl Source for Checkpoint {
    fn bytes(&self) -> u64 {
        let bytes = |(_, info): &(usize, TensorInfo)| match self.options.dequantize {
            // The header has been checked: a shape that is too large does not get here.
            true => 4 * info.shape.iter().product::<usize>() as u64,
            false => (info.data_offsets.1 - info.data_offsets.0) as u64,
        };
        self.tensors.values().map(bytes).sum()
    }

    fn matrix(
        &mut self,
        layer: Option<usize>,
        part: Part,
        rows: usize,
        cols: usize,
    ) -> Result<Matrix, EngineError> {
        let name = self.name(layer, part);
        let (file, storage) = self.seek(&name, &[rows, cols])?;
        let Shard { path, file, .. } = &mut self.files[file];
        let tensor = Tensor { path, name: &name, storage, numbers: rows * cols };
        Ok(Matrix { rows, cols, data: tensor.read(file, self.options.dequantize)? })
    }

    fn norm(&mut self, layer: Option<usize>, part: Part, len: usize) -> Result<Vec<f32>, EngineError> {
        let name = self.name(layer, part);
        let (file, storage) = self.seek(&name, &[len])?;
        let Shard { path, file, .. } = &mut self.files[file];
        let mut norm = Tensor { path, name: &name, storage, numbers: len }.floats(file)?;
        norm.iter_mut().for_each(|weight| *weight += 1.0);
        Ok(norm)
    }
}

/// The files of a checkpoint in several, with the names of the tensors that each must have.
fn read_index(path: &Path) -> Result<BTreeMap<String, Vec<String>>, EngineError> {
    let bytes = read_small(path, INDEX_BYTES_MAX)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| wrong(path, error.to_string()))?;
    let map = Fields::new(path, &value)?.object("weight_map")?;
    let map = map.ok_or_else(|| wrong(path, "weight_map: missing"))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in map.keys() {
        let shard = map.text(name)?.ok_or_else(|| map.wrong(name, "expected the name of a file"))?;
        if shard.is_empty() || shard.contains(['/', '\\', ':']) || shard == ".." || shard == "." {
            return Err(map.wrong(name, format!("expected a file of the same folder, found {shard:?}")));
        }
        shards.entry(shard.to_owned()).or_default().push(name.to_owned());
    }
    Ok(shards)
}

/// Opens a file and reads its header: the file, where the tensors' bytes begin, and the tensors.
fn open(path: &Path) -> Result<(File, u64, Header), EngineError> {
    let failed = |error: std::io::Error| wrong(path, error.to_string());
    let mut file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut length = [0; 8];
    if size < 8 {
        return Err(wrong(path, format!("has {size} bytes; expected 8 for the length of the header")));
    }
    file.read_exact(&mut length).map_err(failed)?;
    let length = u64::from_le_bytes(length);
    let most = HEADER_BYTES_MAX.min(size - 8);
    if length > most {
        return Err(wrong(
            path,
            format!("header of {length} bytes; expected at most {most}, as the file has {size}"),
        ));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact(&mut bytes).map_err(failed)?;
    let header: Header =
        serde_json::from_slice(&bytes).map_err(|error| wrong(path, format!("header: {error}")))?;
    header.check(size - 8 - length).map_err(|what| wrong(path, what))?;
    Ok((file, 8 + length, header))
}

/// The tensors that a header speaks of.
#[derive(Debug)]
struct Header(BTreeMap<String, TensorInfo>);

impl Header {
    /// Checks that the tensors lie one after another and fill `room` bytes.
    fn check(&self, room: u64) -> Result<(), String> {
        let mut tensors: Vec<_> = self.0.iter().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let mut end = 0;
        for (name, info) in tensors {
            let (from, to) = info.data_offsets;
            let found = format!("tensor {name}: bytes {from}..{to}");
            if to as u64 > room || from > to {
                return Err(format!("{found} are not in the file, which has {room} bytes of tensors"));
            }
            if from != end {
                let how = if from < end { "overlap another tensor, which ends" } else { "leave a gap after" };
                return Err(format!("{found} {how} {end}"));
            }
            let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &n| bits.checked_mul(n));
            if bits != (to - from).checked_mul(8) {
                return Err(format!("{found} do not fit shape {:?} of {}", info.shape, info.dtype));
            }
            end = to;
        }
        if end as u64 != room {
            return Err(format!("the tensors end at byte {end} of {room}"));
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Tensors;

        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    match tensors.entry(name) {
                        Entry::Vacant(entry) => entry.insert(map.next_value()?),
                        Entry::Occupied(entry) => {
                            return Err(M::Error::custom(format!(
                                "tensor {} stands there twice",
                                entry.key()
                            )));
                        }
                    };
                }
                Ok(Header(tensors))
            }
        }

        deserializer.deserialize_map(Tensors)
    }
}
