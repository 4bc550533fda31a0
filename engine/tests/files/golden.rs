//! The golden models of `KVLAB_GOLDEN`: what is loaded computes the logits that transformers does.

use std::fs;
use std::path::{Path, PathBuf};

use engine::load::{Options, load};
use safetensors::SafeTensors;

use crate::prefill::{distance, logits};

const TOLERANCE: f32 = 5e-5;

/// Folders of the golden models; none where they are absent.
fn folders() -> Vec<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden");
    // A relative folder is meant from the root of the workspace, where tests are started from.
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let root =
        std::env::var_os("KVLAB_GOLDEN").map_or(default, |folder| workspace.join(folder)).join("gemma3");
    let Ok(entries) = fs::read_dir(&root) else {
        println!("skipped: no golden models in {}", root.display());
        return Vec::new();
    };
    let mut folders: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(!folders.is_empty());
    folders
}

fn expected(path: &Path) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor("A.logits").unwrap();
    tensor.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn tokens(folder: &Path) -> Vec<u32> {
    let cases: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("expect.json")).unwrap()).unwrap();
    let ids = cases["A"]["ids"].as_array().unwrap();
    ids.iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn golden_folders_compute_the_logits_of_transformers() {
    for folder in folders() {
        let model = load(&folder, Options::default()).unwrap();
        let found = logits(model.weights, &tokens(&folder));
        let distance = distance(&found, &expected(&folder.join("expect.safetensors")));
        assert!(distance <= TOLERANCE, "{}: {distance}", folder.display());
    }
}

#[test]
fn golden_gguf_files_compute_the_logits_of_their_dequantised_weights() {
    for folder in folders() {
        let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "gguf")) {
            let model = load(&path, Options { dequantize: true, ..Options::default() }).unwrap();
            let found = logits(model.weights, &tokens(&folder));
            let distance = distance(&found, &expected(&path.with_extension("expect.safetensors")));
            assert!(distance <= TOLERANCE, "{}: {distance}", path.display());
        }
    }
}
