//! The header of a GGUF file: metadata, and where the tensors lie.
//!
//! Source: the GGUF specification (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>),
//! versions 2 and 3, little-endian. What a file claims is held against the bytes it has left before
//! anything is allocated, and of arrays only those that a model needs are kept.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use crate::error::EngineError;
use crate::load::blocks::Block;
use crate::load::numbers::Storage;
use crate::load::wrong;

/// The one array of texts that is kept.
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";

/// Metadata of some key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Count(u64),
    Negative(i64),
    Number(f64),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i32>),
    Numbers(Vec<f32>),
    Flags(Vec<bool>),
    /// An array that no model needs.
    Skipped,
}

/// A tensor as the header describes it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorInfo {
    /// Sizes, the fastest first.
    pub dims: Vec<u64>,
    /// ggml's number of the type.
    pub kind: u32,
    /// Where its bytes begin, from the start of the file.
    pub start: u64,
}

impl TensorInfo {
    /// How its numbers are stored; none for a type that is not read.
    pub fn storage(&self) -> Option<Storage> {
        match self.kind {
            0 => Some(Storage::F32),
            1 => Some(Storage::F16),
            2 => Some(Storage::Blocks(Block::Q4_0)),
            8 => Some(Storage::Blocks(Block::Q8_0)),
            14 => Some(Storage::Blocks(Block::Q6K)),
            30 => Some(Storage::Bf16),
            _ => None,
        }
    }
}

/// What a header says.
#[derive(Debug)]
pub(super) struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Reads and checks the header of a file.
    ///
    /// # Errors
    /// [`EngineError::File`] with the byte where it goes wrong.
    pub fn read(path: &Path, file: &File) -> Result<Header, EngineError> {
        let failed = |error: std::io::Error| wrong(path, error.to_string());
        let size = file.metadata().map_err(failed)?.len();
        let mut reader = Reader { from: BufReader::new(file), at: 0, size, path: path.to_owned() };
        if reader.bytes::<4>("magic")? != *b"GGUF" {
            return Err(wrong(path, "does not begin with GGUF"));
        }
        let version = u32::from_le_bytes(reader.bytes("version")?);
        if !matches!(version, 2 | 3) {
            return Err(wrong(path, format!("version {version}; expected 2 or 3, little-endian")));
        }
        // A tensor takes at least a name of no bytes, a count of dimensions, a type and an offset.
        let tensors = reader.count("tensors", 24)?;
        let keys = reader.count("keys", 13)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let key = reader.text("key")?;
            let value = reader.value(&key)?;
            if let Some(key) = insert(&mut metadata, key, value) {
                return Err(reader.wrong(format!("key {key} stands there twice")));
            }
        }
        let mut infos = BTreeMap::new();
        for _ in 0..tensors {
            let name = reader.text("name of a tensor")?;
            let info = reader.tensor(&name)?;
            if let Some(name) = insert(&mut infos, name, info) {
                return Err(reader.wrong(format!("tensor {name} stands there twice")));
            }
        }
        let end = reader.at;
        let header = Header { metadata, tensors: infos };
        header.place(path, end, size)
    }

    /// Turns offsets into places in the file and checks that no tensors share bytes.
    fn place(mut self, path: &Path, end: u64, size: u64) -> Result<Header, EngineError> {
        let alignment = match self.metadata.get("general.alignment") {
            None => 32,
            Some(&Value::Count(alignment)) if alignment.is_power_of_two() && alignment <= size => alignment,
            Some(other) => {
                let what = format!("general.alignment: expected a power of two, found {other:?}");
                return Err(wrong(path, what));
            }
        };
        let data = end.next_multiple_of(alignment);
        let mut places = Vec::new();
        for (name, info) in &mut self.tensors {
            if !info.start.is_multiple_of(alignment) {
                return Err(wrong(
                    path,
                    format!("tensor {name}: offset {} is not a multiple of {alignment}", info.start),
                ));
            }
            let beyond = |what: &str| {
                let bytes = size.saturating_sub(data);
                wrong(path, format!("tensor {name}: {what}; the file has {bytes} bytes of tensors"))
            };
            info.start = info
                .start
                .checked_add(data)
                .filter(|&start| start <= size)
                .ok_or_else(|| beyond(&format!("offset {}", info.start)))?;
            let numbers = info.dims.iter().try_fold(1_u64, |all, &size| all.checked_mul(size));
            let Some(numbers) = numbers else {
                return Err(beyond(&format!("sizes {:?}", info.dims)));
            };
            let Some(storage) = info.storage() else { continue };
            let bytes = storage
                .bytes(numbers)
                .ok_or_else(|| beyond(&format!("sizes {:?} are no whole number of blocks", info.dims)))?;
            let end = info.start.checked_add(bytes).filter(|&end| end <= size);
            let end = end.ok_or_else(|| beyond(&format!("{bytes} bytes at offset {}", info.start - data)))?;
            places.push((info.start, end, name.as_str()));
        }
        places.sort_unstable();
        match places.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            Some(pair) => Err(wrong(path, format!("tensors {} and {} share bytes", pair[0].2, pair[1].2))),
            None => Ok(self),
        }
    }
}

/// Inserts under a new name; gives the name back if it is not new.
fn insert<T>(map: &mut BTreeMap<String, T>, name: String, value: T) -> Option<String> {
    if map.contains_key(&name) {
        return Some(name);
    }
    map.insert(name, value);
    None
}

/// The shortest decimal number that is nearest to this float: 1e-6 where it was written as an f32.
fn meant(number: f32) -> f64 {
    number.to_string().parse().expect("what was printed is a number")
}

/// Reads a file front to back and knows where it is.
struct Reader<R> {
    from: R,
    at: u64,
    size: u64,
    path: PathBuf,
}

impl<R: Read + Seek> Reader<R> {
    fn wrong(&self, what: impl Into<String>) -> EngineError {
        wrong(&self.path, format!("byte {}: {}", self.at, what.into()))
    }

    fn left(&self) -> u64 {
        self.size - self.at
    }

    fn need(&self, bytes: u64, what: &str) -> Result<(), EngineError> {
        if bytes > self.left() {
            return Err(self.wrong(format!("{what}: {bytes} bytes, but the file has {} left", self.left())));
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<(), EngineError> {
        self.need(buffer.len() as u64, what)?;
        self.from.read_exact(buffer).map_err(|error| self.wrong(format!("{what}: {error}")))?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], EngineError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, EngineError> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, EngineError> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    /// A count of things that take at least so many bytes each.
    fn count(&mut self, what: &str, bytes_min: u64) -> Result<u64, EngineError> {
        let count = self.u64(what)?;
        let most = self.left() / bytes_min;
        if count > most {
            return Err(self.wrong(format!("{count} {what}, but the file has room for {most}")));
        }
        Ok(count)
    }

    fn text(&mut self, what: &str) -> Result<String, EngineError> {
        let len = self.u64(what)?;
        self.need(len, what)?;
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes, what)?;
        String::from_utf8(bytes).map_err(|error| self.wrong(format!("{what}: {error}")))
    }

    fn skip(&mut self, bytes: u64, what: &str) -> Result<(), EngineError> {
        self.need(bytes, what)?;
        let by = i64::try_from(bytes).map_err(|error| self.wrong(format!("{what}: {error}")))?;
        self.from.seek_relative(by).map_err(|error| self.wrong(format!("{what}: {error}")))?;
        self.at += bytes;
        Ok(())
    }

    fn value(&mut self, key: &str) -> Result<Value, EngineError> {
        let signed = |value: i64| u64::try_from(value).map_or(Value::Negative(value), Value::Count);
        Ok(match self.u32(key)? {
            0 => Value::Count(u64::from(self.bytes::<1>(key)?[0])),
            1 => signed(i64::from(i8::from_le_bytes(self.bytes(key)?))),
            2 => Value::Count(u64::from(u16::from_le_bytes(self.bytes(key)?))),
            3 => signed(i64::from(i16::from_le_bytes(self.bytes(key)?))),
            4 => Value::Count(u64::from(self.u32(key)?)),
            5 => signed(i64::from(i32::from_le_bytes(self.bytes(key)?))),
            6 => Value::Number(meant(f32::from_le_bytes(self.bytes(key)?))),
            7 => Value::Flag(self.bytes::<1>(key)?[0] != 0),
            8 => Value::Text(self.text(key)?),
            9 => self.array(key)?,
            10 => Value::Count(self.u64(key)?),
            11 => signed(i64::from_le_bytes(self.bytes(key)?)),
            12 => Value::Number(f64::from_le_bytes(self.bytes(key)?)),
            other => return Err(self.wrong(format!("{key}: there is no value of type {other}"))),
        })
    }

    fn array(&mut self, key: &str) -> Result<Value, EngineError> {
        let kind = self.u32(key)?;
        let each = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(self.wrong(format!("{key}: arrays of arrays are not read"))),
            other => return Err(self.wrong(format!("{key}: there is no array of type {other}"))),
        };
        let len = self.count(key, each)?;
        Ok(match kind {
            8 if key == TOKENS => {
                let mut texts = Vec::with_capacity(len as usize);
                for _ in 0..len {
                    texts.push(self.text(key)?);
                }
                Value::Texts(texts)
            }
            8 => {
                for _ in 0..len {
                    let bytes = self.u64(key)?;
                    self.skip(bytes, key)?;
                }
                Value::Skipped
            }
            // Counts are small where they stand for tokens, and mean nothing to us elsewhere.
            4 | 5 => Value::Integers(self.list(key, len, i32::from_le_bytes)?),
            6 => Value::Numbers(self.list(key, len, f32::from_le_bytes)?),
            7 => Value::Flags(self.list(key, len, |[flag]: [u8; 1]| flag != 0)?),
            _ => {
                self.skip(len * each, key)?;
                Value::Skipped
            }
        })
    }

    fn list<T, const N: usize>(
        &mut self,
        key: &str,
        len: u64,
        item: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, EngineError> {
        let mut items = Vec::with_capacity(len as usize);
        for _ in 0..len {
            items.push(item(self.bytes(key)?));
        }
        Ok(items)
    }

    fn tensor(&mut self, name: &str) -> Result<TensorInfo, EngineError> {
        let count = self.u32(name)?;
        if !(1..=4).contains(&count) {
            return Err(self.wrong(format!("tensor {name}: {count} dimensions; expected 1 to 4")));
        }
        let mut dims = Vec::new();
        for _ in 0..count {
            dims.push(self.u64(name)?);
        }
        if dims.contains(&0) {
            return Err(self.wrong(format!("tensor {name}: sizes {dims:?}; expected none to be 0")));
        }
        let kind = self.u32(name)?;
        let start = self.u64(name)?;
        Ok(TensorInfo { dims, kind, start })
    }
}
