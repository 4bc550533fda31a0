//! Golden models: one that is made here, and a reader for those of the folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{Config, Data, Layer, LayerKind, Matrix, Rope, Weights, synthetic};
use safetensors::SafeTensors;
use serde_json::Value;

use super::Random;
use super::reference::Reference;

/// One golden model.
pub struct Golden {
    /// Name of its folder.
    pub name: String,
    /// Its weights, in f32.
    pub weights: Arc<Weights>,
    /// Token ids per case.
    pub tokens: BTreeMap<String, Vec<u32>>,
    /// Logits per case.
    pub logits: BTreeMap<String, Vec<f32>>,
}

/// A model by hash, whose logits the plain f64 reference tells (`bundled.rs` holds this very model to
/// another implementation), and all models of the folder; where it is absent a message says so.
pub fn models() -> Vec<Golden> {
    let mut models = vec![by_hash()];
    models.extend(of_folder());
    models
}

/// Cases as the folder's models have them: C begins as A does, S is A with something cut out.
fn by_hash() -> Golden {
    let config = Config { name: "by hash".to_owned(), ..Config::preset("gemma3-tiny").unwrap() };
    let weights = synthetic::weights(&config, 7, true).unwrap();
    let random = |seed, len| Random(seed).tokens(len, config.vocab);
    let a = random(1, 90);
    let c = [&a[..48], &random(3, 20)].concat();
    let s = [&a[..4], &a[36..]].concat();
    let cases = [("A", a), ("B", random(2, 60)), ("C", c), ("S", s)];
    let tokens: BTreeMap<String, Vec<u32>> =
        cases.into_iter().map(|(case, tokens)| (case.to_owned(), tokens)).collect();
    let logits = tokens.iter().map(|(case, tokens)| (case.clone(), Reference::new(&weights).text(tokens)));
    Golden { name: config.name.clone(), logits: logits.collect(), weights: Arc::new(weights), tokens }
}

fn of_folder() -> Vec<Golden> {
    let folder = std::env::var_os("KVLAB_GOLDEN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden"),
        |folder| Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder),
    );
    let Ok(entries) = std::fs::read_dir(folder.join("gemma3")) else {
        eprintln!("skipped: no golden models in {}", folder.join("gemma3").display());
        return Vec::new();
    };
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let models: Vec<Golden> = folders
        .iter()
        .filter(|folder| folder.join("expect.json").exists())
        .map(|folder| read(folder))
        .collect();
    assert!(!models.is_empty(), "{} has no model", folder.display());
    models
}

fn read(folder: &Path) -> Golden {
    let json = |name: &str| serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap();
    let config = config(&json("config.json"), folder.file_name().unwrap().to_str().unwrap());
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let bytes = std::fs::read(folder.join("expect.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let expect: Value = json("expect.json");
    let mut tokens = BTreeMap::new();
    let mut logits = BTreeMap::new();
    for (case, value) in expect.as_object().unwrap() {
        let name = format!("{case}.logits");
        if let Ok(tensor) = expected.tensor(&name) {
            let ids = value.as_array().unwrap_or_else(|| value["ids"].as_array().unwrap());
            tokens.insert(case.clone(), ids.iter().map(|id| id.as_u64().unwrap() as u32).collect());
            logits.insert(case.clone(), floats(tensor.data()));
        }
    }
    Golden { name: config.name.clone(), weights: Arc::new(weights(config, &tensors)), tokens, logits }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn config(json: &Value, name: &str) -> Config {
    let size = |key: &str| json[key].as_u64().unwrap_or_else(|| panic!("{key}")) as usize;
    let kind = |layer: &Value| match layer.as_str().unwrap() {
        "full_attention" => LayerKind::Global,
        _ => LayerKind::Local,
    };
    let rope = |kind: &str| {
        let rope = &json["rope_parameters"][kind];
        Rope { theta: rope["rope_theta"].as_f64().unwrap(), factor: rope["factor"].as_f64().unwrap_or(1.0) }
    };
    Config {
        name: name.to_owned(),
        hidden: size("hidden_size"),
        layers: json["layer_types"].as_array().unwrap().iter().map(kind).collect(),
        query_heads: size("num_attention_heads"),
        kv_heads: size("num_key_value_heads"),
        head_dim: size("head_dim"),
        ffn: size("intermediate_size"),
        vocab: size("vocab_size"),
        window: size("sliding_window"),
        query_scalar: json["query_pre_attn_scalar"].as_f64().unwrap(),
        rms_eps: json["rms_norm_eps"].as_f64().unwrap(),
        local_rope: rope("sliding_attention"),
        global_rope: rope("full_attention"),
        max_positions: size("max_position_embeddings"),
    }
}

fn weights(config: Config, tensors: &SafeTensors) -> Weights {
    let tensor = |name: &str| {
        let tensor = tensors.tensor(&format!("model.{name}.weight")).unwrap();
        (floats(tensor.data()), tensor.shape().to_vec())
    };
    let matrix = |name: &str| {
        let (numbers, shape) = tensor(name);
        Matrix { rows: shape[0], cols: shape[1], data: Data::F32(numbers.into()) }
    };
    let norm = |name: &str| tensor(name).0.into_iter().map(|x| x + 1.0).collect::<Vec<f32>>();
    let layer = |l: usize| Layer {
        input_norm: norm(&format!("layers.{l}.input_layernorm")),
        post_attention_norm: norm(&format!("layers.{l}.post_attention_layernorm")),
        pre_ffn_norm: norm(&format!("layers.{l}.pre_feedforward_layernorm")),
        post_ffn_norm: norm(&format!("layers.{l}.post_feedforward_layernorm")),
        q_norm: norm(&format!("layers.{l}.self_attn.q_norm")),
        k_norm: norm(&format!("layers.{l}.self_attn.k_norm")),
        q: matrix(&format!("layers.{l}.self_attn.q_proj")),
        k: matrix(&format!("layers.{l}.self_attn.k_proj")),
        v: matrix(&format!("layers.{l}.self_attn.v_proj")),
        o: matrix(&format!("layers.{l}.self_attn.o_proj")),
        gate: matrix(&format!("layers.{l}.mlp.gate_proj")),
        up: matrix(&format!("layers.{l}.mlp.up_proj")),
        down: matrix(&format!("layers.{l}.mlp.down_proj")),
    };
    Weights {
        embedding: matrix("embed_tokens"),
        embedding_scale: (config.hidden as f32).sqrt(),
        layers: (0..config.layers.len()).map(layer).collect(),
        norm: norm("norm"),
        config,
    }
}
