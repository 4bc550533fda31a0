//! Files broken at random: they load or are refused, without a panic and without much memory.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

#[path = "files/writer.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod writer;

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use engine::EngineError;
use engine::load::{Options, load};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use tempfile::TempDir;

use writer::{Gguf, Kind, array_value, new_config, safetensors, small, stored, text, text_value, weights};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// One test at a time, as all share the counter.
static ALONE: Mutex<()> = Mutex::new(());

/// Memory that may be needed for a file: its numbers, a copy of what the header says in our words,
/// and what is the same for all files.
fn allowed(file: usize) -> usize {
    8 * file + (64 << 10)
}

/// What is done to a file.
#[derive(Clone, Debug)]
enum Damage {
    /// Sets a byte.
    Byte(usize, u8),
    /// Flips a bit.
    Bit(usize, u8),
    /// Sets eight bytes: lengths, counts and offsets are such.
    Word(usize, u64),
    /// Cuts off the rest.
    Cut(usize),
    /// Copies some bytes to elsewhere.
    Copy(usize, usize, usize),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let at = || prop_oneof![3 => 0..3000_usize, 1 => any::<usize>()];
    let word = prop_oneof![
        any::<u64>(),
        (0..64_u32).prop_map(|bit| 1 << bit),
        (0..64_u32).prop_map(|bit| u64::MAX >> bit),
        0..200_000_u64,
    ];
    let one = prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        4 => (at(), 0..8_u8).prop_map(|(at, bit)| Damage::Bit(at, bit)),
        4 => (at(), word).prop_map(|(at, word)| Damage::Word(at, word)),
        1 => at().prop_map(Damage::Cut),
        1 => (at(), at(), 0..64_usize).prop_map(|(from, to, len)| Damage::Copy(from, to, len)),
    ];
    prop::collection::vec(one, 1..5)
}

fn apply(file: &mut Vec<u8>, damage: &[Damage]) {
    for damage in damage {
        if file.is_empty() {
            return;
        }
        let len = file.len();
        match *damage {
            Damage::Byte(at, byte) => file[at % len] = byte,
            Damage::Bit(at, bit) => file[at % len] ^= 1 << bit,
            Damage::Word(at, word) => {
                let at = at % len;
                let end = (at + 8).min(len);
                file[at..end].copy_from_slice(&word.to_le_bytes()[..end - at]);
            }
            Damage::Cut(at) => file.truncate(at % len),
            Damage::Copy(from, to, bytes) => {
                let (from, to) = (from % len, to % len);
                let bytes = bytes.min(len - from.max(to));
                file.copy_within(from..from + bytes, to);
            }
        }
    }
}

/// Loads and says how much memory that took at most. A model is none the better for it: whatever
/// loads must be sound.
fn check(path: &Path, file: usize) -> Result<(), TestCaseError> {
    ALLOCATED.reset_peak_usage();
    let before = ALLOCATED.current_usage();
    let loaded = load(path, Options::default());
    let most = ALLOCATED.peak_usage() - before;
    prop_assert!(most <= allowed(file), "{most} bytes for a file of {file}");
    match loaded {
        Ok(model) => model.weights.config.check().unwrap(),
        Err(EngineError::File { .. } | EngineError::Shape { .. }) => {}
        Err(error) => prop_assert!(false, "{error}"),
    }
    Ok(())
}

/// A file with everything that a file may have.
fn gguf() -> Vec<u8> {
    let mut file = Gguf::new(&weights(&small()), Kind::Q8_0);
    let texts: Vec<_> = (0..48).map(|id| text(&format!("token {id}"))).collect();
    file.set("tokenizer.ggml.model", Some(text_value("llama")));
    file.set("tokenizer.ggml.tokens", Some(array_value(8, &texts)));
    file.set("tokenizer.ggml.scores", Some(array_value(6, &vec![vec![0; 4]; 48])));
    file.set("tokenizer.ggml.token_type", Some(array_value(5, &vec![vec![4, 0, 0, 0]; 48])));
    file.set("tokenizer.ggml.merges", Some(array_value(8, &texts)));
    file.bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_broken_gguf_file_never_panics_nor_takes_much_memory(damage in damage()) {
        let _alone = ALONE.lock();
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("small.gguf");
        let mut file = gguf();
        apply(&mut file, &damage);
        fs::write(&path, &file).unwrap();
        check(&path, file.len())?;
    }

    #[test]
    fn a_broken_safetensors_file_never_panics_nor_takes_much_memory(damage in damage()) {
        let _alone = ALONE.lock();
        let folder = TempDir::new().unwrap();
        let mut file = safetensors(&stored(&weights(&small()), Kind::Bf16));
        apply(&mut file, &damage);
        let config = new_config(&small()).to_string();
        writer::write_folder(folder.path(), &new_config(&small()), &file);
        check(folder.path(), file.len() + config.len())?;
    }

    #[test]
    fn a_broken_configuration_never_panics_nor_takes_much_memory(damage in damage()) {
        let _alone = ALONE.lock();
        let folder = TempDir::new().unwrap();
        let file = safetensors(&stored(&weights(&small()), Kind::Bf16));
        let mut config = new_config(&small()).to_string().into_bytes();
        apply(&mut config, &damage);
        fs::write(folder.path().join("config.json"), &config).unwrap();
        fs::write(folder.path().join("model.safetensors"), &file).unwrap();
        check(folder.path(), file.len() + config.len())?;
    }
}

#[test]
fn many_small_entries_take_no_more_memory_than_their_file_is_long() {
    let _alone = ALONE.lock();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("many.gguf");
    let mut file = Gguf { version: 3, keys: Vec::new(), tensors: Vec::new(), alignment: 32 };
    file.set("tokenizer.ggml.tokens", Some(array_value(8, &vec![text(""); 100_000])));
    let bytes = file.bytes();
    fs::write(&path, &bytes).unwrap();
    check(&path, bytes.len()).unwrap();

    let mut file = Gguf { version: 3, keys: Vec::new(), tensors: Vec::new(), alignment: 32 };
    file.keys.extend((0..20_000).map(|id| (format!("{id:x}"), vec![7, 0, 0, 0, 1])));
    file.tensors.extend((0..20_000).map(|id| (format!("{id:x}"), vec![1], 0, Vec::new())));
    let bytes = file.bytes();
    fs::write(&path, &bytes).unwrap();
    check(&path, bytes.len()).unwrap();

    let entry = |id: usize| format!(r#""{id:x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
    let header = format!("{{{}}}", (0..20_000).map(entry).collect::<Vec<_>>().join(","));
    let ones = format!(
        r#"{{"a":{{"dtype":"F32","shape":[{}],"data_offsets":[0,4]}}}}"#,
        vec!["1"; 500_000].join(",")
    );
    for header in [header, ones] {
        let bytes = writer::with_header(&header, &[0; 4]);
        writer::write_folder(folder.path(), &new_config(&small()), &bytes);
        check(folder.path(), bytes.len()).unwrap();
    }
}
