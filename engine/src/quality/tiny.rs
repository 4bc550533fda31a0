//! The tiny model that comes with the engine: a Gemma 3 of 0.54 million weights, trained by `training/`.

use std::path::Path;

use half::bf16;
use safetensors::SafeTensors;

use crate::config::{Config, Rope};
use crate::error::EngineError;
use crate::load::Model;
use crate::tokenizer::Tokenizer;
use crate::weights::{Data, Layer, Matrix, Weights};

/// `model.safetensors` as it was written at the end of training.
pub const FILE: &[u8] = include_bytes!("../../models/tiny/model.safetensors");

/// `tokenizer.json`, which stands beside it.
const TOKENIZER: &[u8] = include_bytes!("../../models/tiny/tokenizer.json");

/// The shape of the tiny model; what its `config.json` says.
pub fn config() -> Config {
    Config {
        name: "kvlab-tiny".to_owned(),
        hidden: 96,
        layers: Config::pattern(6, 3),
        query_heads: 4,
        kv_heads: 1,
        head_dim: 32,
        ffn: 192,
        vocab: 256,
        window: 64,
        query_scalar: 32.0,
        rms_eps: 1e-6,
        local_rope: Rope { theta: 10_000.0, factor: 1.0 },
        global_rope: Rope { theta: 1e6, factor: 1.0 },
        max_positions: 4096,
    }
}

/// The tiny model as the files of its folder would be loaded, with its weights as f32.
///
/// # Errors
/// Never but for a build whose files are broken.
pub fn model() -> Result<Model, EngineError> {
    let tokenizer = Tokenizer::from_json_text(TOKENIZER, Path::new("tokenizer.json"))?;
    let stops = [Some(1), tokenizer.end_of_turn()].into_iter().flatten().collect();
    let source = "the bundled tiny model".to_owned();
    Ok(Model { weights: weights()?, bos: tokenizer.bos(), tokenizer: Some(tokenizer), stops, source })
}

/// The tiny model's weights, as f32: it is small enough, and exact.
///
/// # Errors
/// Never but for a build whose model file is broken.
pub fn weights() -> Result<Weights, EngineError> {
    let config = config();
    let wrong = |what: String| EngineError::Shape { name: config.name.clone(), what };
    let file = SafeTensors::deserialize(FILE).map_err(|error| wrong(error.to_string()))?;
    let numbers = |name: &str, shape: &[usize]| {
        let tensor =
            file.tensor(&format!("model.{name}.weight")).map_err(|error| wrong(error.to_string()))?;
        if tensor.shape() != shape || tensor.dtype() != safetensors::Dtype::BF16 {
            return Err(wrong(format!(
                "{name} is {:?} {:?}, not BF16 {shape:?}",
                tensor.dtype(),
                tensor.shape()
            )));
        }
        let number = |bytes: &[u8]| bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        Ok(tensor.data().chunks_exact(2).map(number).collect::<Vec<f32>>())
    };
    let matrix = |name: &str, rows: usize, cols: usize| {
        Ok::<_, EngineError>(Matrix { rows, cols, data: Data::F32(numbers(name, &[rows, cols])?.into()) })
    };
    let norm = |name: &str, len: usize| {
        Ok::<_, EngineError>(numbers(name, &[len])?.into_iter().map(|w| 1.0 + w).collect::<Vec<f32>>())
    };
    let (hidden, ffn, query, kv) = (config.hidden, config.ffn, config.query_width(), config.kv_width());
    let layer = |index: usize| {
        let at = |name: &str| format!("layers.{index}.{name}");
        Ok(Layer {
            input_norm: norm(&at("input_layernorm"), hidden)?,
            post_attention_norm: norm(&at("post_attention_layernorm"), hidden)?,
            pre_ffn_norm: norm(&at("pre_feedforward_layernorm"), hidden)?,
            post_ffn_norm: norm(&at("post_feedforward_layernorm"), hidden)?,
            q_norm: norm(&at("self_attn.q_norm"), config.head_dim)?,
            k_norm: norm(&at("self_attn.k_norm"), config.head_dim)?,
            q: matrix(&at("self_attn.q_proj"), query, hidden)?,
            k: matrix(&at("self_attn.k_proj"), kv, hidden)?,
            v: matrix(&at("self_attn.v_proj"), kv, hidden)?,
            o: matrix(&at("self_attn.o_proj"), hidden, query)?,
            gate: matrix(&at("mlp.gate_proj"), ffn, hidden)?,
            up: matrix(&at("mlp.up_proj"), ffn, hidden)?,
            down: matrix(&at("mlp.down_proj"), hidden, ffn)?,
        })
    };
    let layers = (0..config.layers.len()).map(layer).collect::<Result<Vec<Layer>, EngineError>>()?;
    Ok(Weights {
        embedding: matrix("embed_tokens", config.vocab, hidden)?,
        embedding_scale: bf16::from_f32((hidden as f32).sqrt()).to_f32(),
        layers,
        norm: norm("norm", hidden)?,
        config,
    })
}
