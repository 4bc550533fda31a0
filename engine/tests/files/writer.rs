//! Writes small models as safetensors and GGUF, and files that are wrong in one place.

use std::fs;
use std::path::Path;

use engine::{Config, Data, Layer, Matrix, Rope, Weights, synthetic};
use half::{bf16, f16};
use serde_json::{Value, json};

/// A model small enough to break in every place. GGUF can say all of it.
pub fn small() -> Config {
    Config {
        name: "small".to_owned(),
        hidden: 32,
        layers: Config::pattern(2, 2),
        query_heads: 2,
        kv_heads: 1,
        head_dim: 16,
        ffn: 64,
        vocab: 48,
        window: 8,
        query_scalar: 16.0,
        rms_eps: 1e-6,
        local_rope: Rope { theta: 10_000.0, factor: 1.0 },
        global_rope: Rope { theta: 1e6, factor: 8.0 },
        max_positions: 4096,
    }
}

pub fn weights(config: &Config) -> Weights {
    synthetic::weights(config, 1, true).unwrap()
}

/// How numbers are written, by ggml's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q8_0 = 8,
    Bf16 = 30,
}

impl Kind {
    fn hub(self) -> &'static str {
        match self {
            Kind::F32 => "F32",
            Kind::F16 => "F16",
            Kind::Bf16 => "BF16",
            Kind::Q4_0 | Kind::Q8_0 => panic!("safetensors have no such type"),
        }
    }

    pub fn bytes(self, numbers: &[f32]) -> Vec<u8> {
        let blocks = numbers.chunks_exact(32);
        match self {
            Kind::F32 => numbers.iter().flat_map(|n| n.to_le_bytes()).collect(),
            Kind::F16 => numbers.iter().flat_map(|&n| f16::from_f32(n).to_le_bytes()).collect(),
            Kind::Bf16 => numbers.iter().flat_map(|&n| bf16::from_f32(n).to_le_bytes()).collect(),
            Kind::Q8_0 => blocks
                .flat_map(|block| {
                    let scale = f16::from_f32(block.iter().fold(0_f32, |most, n| most.max(n.abs())) / 127.0);
                    let numbers = block.iter().map(move |n| (n / scale.to_f32()).round() as i8 as u8);
                    scale.to_le_bytes().into_iter().chain(numbers)
                })
                .collect(),
            Kind::Q4_0 => blocks
                .flat_map(|block| {
                    let scale = f16::from_f32(block.iter().fold(0_f32, |most, n| most.max(n.abs())) / 7.0);
                    let nibble = |n: f32| ((n / scale.to_f32()).round() + 8.0) as u8;
                    let pairs = (0..16).map(|i| nibble(block[i]) | nibble(block[i + 16]) << 4);
                    scale.to_le_bytes().into_iter().chain(pairs).collect::<Vec<u8>>()
                })
                .collect(),
        }
    }
}

/// A tensor with its names in both formats.
pub struct Named {
    pub hub: String,
    pub gguf: String,
    /// `[rows, cols]`, or `[len]` for a norm.
    pub shape: Vec<usize>,
    pub numbers: Vec<f32>,
}

impl Named {
    pub fn is_norm(&self) -> bool {
        self.shape.len() == 1
    }
}

fn numbers(matrix: &Matrix) -> Vec<f32> {
    match &matrix.data {
        Data::F32(numbers) => numbers.to_vec(),
        Data::Bf16(numbers) => numbers.iter().map(|n| n.to_f32()).collect(),
        Data::F16(numbers) => numbers.iter().map(|n| n.to_f32()).collect(),
        _ => panic!("blocks of quantised weights are not compared here"),
    }
}

/// Every tensor of a model, under the names that facts of both formats give, norms with the 1 added.
pub fn tensors(weights: &Weights) -> Vec<Named> {
    let matrix = |hub: &str, gguf: &str, matrix: &Matrix| Named {
        hub: format!("model.{hub}.weight"),
        gguf: format!("{gguf}.weight"),
        shape: vec![matrix.rows, matrix.cols],
        numbers: numbers(matrix),
    };
    let norm = |hub: &str, gguf: &str, norm: &[f32]| Named {
        hub: format!("model.{hub}.weight"),
        gguf: format!("{gguf}.weight"),
        shape: vec![norm.len()],
        numbers: norm.to_vec(),
    };
    let of_layer = |(l, layer): (usize, &Layer)| {
        let (hub, gguf) = (|name: &str| format!("layers.{l}.{name}"), |name: &str| format!("blk.{l}.{name}"));
        let n = |a: &str, b: &str, weights: &[f32]| norm(&hub(a), &gguf(b), weights);
        let m = |a: &str, b: &str, weights: &Matrix| matrix(&hub(a), &gguf(b), weights);
        vec![
            n("input_layernorm", "attn_norm", &layer.input_norm),
            n("post_attention_layernorm", "post_attention_norm", &layer.post_attention_norm),
            n("pre_feedforward_layernorm", "ffn_norm", &layer.pre_ffn_norm),
            n("post_feedforward_layernorm", "post_ffw_norm", &layer.post_ffn_norm),
            n("self_attn.q_norm", "attn_q_norm", &layer.q_norm),
            n("self_attn.k_norm", "attn_k_norm", &layer.k_norm),
            m("self_attn.q_proj", "attn_q", &layer.q),
            m("self_attn.k_proj", "attn_k", &layer.k),
            m("self_attn.v_proj", "attn_v", &layer.v),
            m("self_attn.o_proj", "attn_output", &layer.o),
            m("mlp.gate_proj", "ffn_gate", &layer.gate),
            m("mlp.up_proj", "ffn_up", &layer.up),
            m("mlp.down_proj", "ffn_down", &layer.down),
        ]
    };
    let mut all = vec![matrix("embed_tokens", "token_embd", &weights.embedding)];
    all.extend(weights.layers.iter().enumerate().flat_map(of_layer));
    all.push(norm("norm", "output_norm", &weights.norm));
    all
}

/// A tensor as safetensors have it.
#[derive(Clone, Debug)]
pub struct Stored {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// The tensors of a checkpoint: norms lack their 1.
pub fn stored(weights: &Weights, kind: Kind) -> Vec<Stored> {
    let one = |tensor: Named| {
        let less = if tensor.is_norm() { 1.0 } else { 0.0 };
        let numbers: Vec<f32> = tensor.numbers.iter().map(|n| n - less).collect();
        Stored {
            name: tensor.hub,
            dtype: kind.hub().to_owned(),
            shape: tensor.shape,
            bytes: kind.bytes(&numbers),
        }
    };
    tensors(weights).into_iter().map(one).collect()
}

/// A safetensors file: header and data.
pub fn safetensors(tensors: &[Stored]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for tensor in tensors {
        let offsets = [at, at + tensor.bytes.len()];
        at = offsets[1];
        let info = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets });
        header.insert(tensor.name.clone(), info);
    }
    let data: Vec<u8> = tensors.iter().flat_map(|tensor| tensor.bytes.clone()).collect();
    with_header(&Value::Object(header).to_string(), &data)
}

/// A safetensors file with a header as it is given.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// `config.json` in the dialect of transformers 5.
pub fn new_config(config: &Config) -> Value {
    let mut value = sizes(config);
    value["rope_parameters"] = json!({
        "sliding_attention": { "rope_type": "default", "rope_theta": config.local_rope.theta },
        "full_attention": {
            "rope_type": "linear", "factor": config.global_rope.factor, "rope_theta": config.global_rope.theta,
        },
    });
    let kind = |kind: &engine::LayerKind| match kind {
        engine::LayerKind::Local => "sliding_attention",
        engine::LayerKind::Global => "full_attention",
    };
    value["layer_types"] = config.layers.iter().map(kind).collect();
    value
}

/// `config.json` in the dialect before.
pub fn old_config(config: &Config) -> Value {
    let mut value = sizes(config);
    value["rope_theta"] = json!(config.global_rope.theta);
    value["rope_local_base_freq"] = json!(config.local_rope.theta);
    value["rope_scaling"] = json!({ "rope_type": "linear", "factor": config.global_rope.factor });
    value["sliding_window_pattern"] = json!(2);
    value
}

fn sizes(config: &Config) -> Value {
    json!({
        "model_type": "gemma3_text",
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers.len(),
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn,
        "vocab_size": config.vocab,
        "sliding_window": config.window,
        "query_pre_attn_scalar": config.query_scalar,
        "rms_norm_eps": config.rms_eps,
        "max_position_embeddings": config.max_positions,
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": null,
        "final_logit_softcapping": null,
        "attention_bias": false,
        "bos_token_id": 2,
        "eos_token_id": [1, 7],
    })
}

/// Writes a folder with one safetensors file.
pub fn write_folder(folder: &Path, config: &Value, file: &[u8]) {
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("model.safetensors"), file).unwrap();
}

/// A GGUF file, before it is written.
#[derive(Clone, Debug)]
pub struct Gguf {
    pub version: u32,
    /// Keys with type and value as bytes.
    pub keys: Vec<(String, Vec<u8>)>,
    /// Names, sizes with the fastest first, types and bytes.
    pub tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
    pub alignment: usize,
}

pub fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn typed(kind: u32, value: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), value].concat()
}

pub fn u32_value(value: u32) -> Vec<u8> {
    typed(4, &value.to_le_bytes())
}

pub fn f32_value(value: f32) -> Vec<u8> {
    typed(6, &value.to_le_bytes())
}

pub fn text_value(value: &str) -> Vec<u8> {
    typed(8, &text(value))
}

/// An array of items that are bytes already.
pub fn array_value(kind: u32, items: &[Vec<u8>]) -> Vec<u8> {
    let head = [kind.to_le_bytes().as_slice(), &(items.len() as u64).to_le_bytes()].concat();
    typed(9, &[head, items.concat()].concat())
}

impl Gguf {
    /// A model with all keys; matrices are of one type, norms f32.
    pub fn new(weights: &Weights, kind: Kind) -> Gguf {
        let config = &weights.config;
        let count = |key: &str, count: usize| (format!("gemma3.{key}"), u32_value(count as u32));
        let number = |key: &str, number: f64| (format!("gemma3.{key}"), f32_value(number as f32));
        let keys = vec![
            ("general.architecture".to_owned(), text_value("gemma3")),
            count("context_length", config.max_positions),
            count("embedding_length", config.hidden),
            count("block_count", config.layers.len()),
            count("feed_forward_length", config.ffn),
            count("attention.head_count", config.query_heads),
            count("attention.head_count_kv", config.kv_heads),
            count("attention.key_length", config.head_dim),
            count("attention.value_length", config.head_dim),
            count("attention.sliding_window", config.window),
            count("attention.sliding_window_pattern", 2),
            number("attention.layer_norm_rms_epsilon", config.rms_eps),
            number("rope.freq_base", config.global_rope.theta),
            number("rope.freq_base_swa", config.local_rope.theta),
            ("gemma3.rope.scaling.type".to_owned(), text_value("linear")),
            number("rope.scaling.factor", config.global_rope.factor),
        ];
        let one = |tensor: Named| {
            let kind = if tensor.is_norm() { Kind::F32 } else { kind };
            let dims = tensor.shape.iter().rev().map(|&size| size as u64).collect();
            (tensor.gguf, dims, kind as u32, kind.bytes(&tensor.numbers))
        };
        Gguf { version: 3, keys, tensors: tensors(weights).into_iter().map(one).collect(), alignment: 32 }
    }

    /// Sets a key, or removes it.
    pub fn set(&mut self, key: &str, value: Option<Vec<u8>>) -> &mut Gguf {
        self.keys.retain(|(name, _)| name != key);
        self.keys.extend(value.map(|value| (key.to_owned(), value)));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            file.extend(text(key));
            file.extend(value);
        }
        let mut data = Vec::new();
        for (name, dims, kind, bytes) in &self.tensors {
            file.extend(text(name));
            file.extend((dims.len() as u32).to_le_bytes());
            file.extend(dims.iter().flat_map(|size| size.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend(data);
        file
    }
}
