//! Shapes of models, and what follows from them: parameters, bytes and FLOPs.
//!
//! Formulas: a decoder layer with grouped-query attention and a gated MLP has
//! `d*Hq*hd + 2*d*Hkv*hd + Hq*hd*d + 3*d*ffn` weights; a token costs two FLOPs per weight; K and V
//! of one cell take `2*Hkv*hd` numbers per layer. Norms (under 0.03 % of any model) are left out.

use crate::hardware::nearest;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

const CATALOGUE: &str = include_str!("catalogue/models.toml");

/// Layers with the same reach and the same row size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelClass {
    /// `local` or `global` in the catalogue; any word in a file of the user's.
    pub name: String,
    /// Layers of this class.
    pub layers: u32,
    /// Cells that a token sees, itself included; none: all before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
}

/// The shape of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name for the command line and for reports.
    pub name: String,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Heads of Q.
    pub query_heads: u32,
    /// Heads of K and V.
    pub kv_heads: u32,
    /// Numbers per head.
    pub head_dim: u32,
    /// Width of the gated MLP.
    pub ffn: u32,
    /// Rows of the embedding.
    pub vocab: u32,
    /// Longest context in tokens that the model was made for.
    pub max_positions: u32,
    /// Whether the output layer shares the weights of the embedding.
    pub tied: bool,
    /// The layer classes, in the order that every per-class list follows.
    pub classes: Vec<ModelClass>,
}

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WeightType {
    /// 32 bits everywhere.
    #[serde(rename = "f32")]
    F32,
    /// 16 bits everywhere (f16 costs the same).
    #[serde(rename = "bf16")]
    Bf16,
    /// GGUF Q8_0 everywhere: 34 bytes for 32 weights.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// GGUF Q4_0 (18 bytes for 32 weights), the embedding in Q6_K (210 bytes for 256): the
    /// usual file.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// Google's QAT file: Q4_0, the embedding in f16.
    #[serde(rename = "q4_0-qat")]
    Q4_0Qat,
}

/// How K and V are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvType {
    /// Four bytes a number.
    #[serde(rename = "f32")]
    F32,
    /// Two bytes a number (f16 and bf16 cost the same).
    #[serde(rename = "f16", alias = "bf16")]
    F16,
    /// 34 bytes for 32 numbers.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 18 bytes for 32 numbers.
    #[serde(rename = "q4_0")]
    Q4_0,
}

/// Why a model cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No such name; the message lists the nearest ones.
    #[error("no model is called {name:?}; did you mean {suggestions}?")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The nearest names, joined by commas.
        suggestions: String,
    },
    /// No such weight or KV type.
    #[error("no {what} type is called {name:?}; known: {known}")]
    UnknownType {
        /// `weight` or `KV`.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// All names.
        known: &'static str,
    },
    /// The text is not TOML, or its fields are not those of a model; the message has the line.
    #[error("model description: {0}")]
    Toml(#[from] toml::de::Error),
    /// A number makes no sense.
    #[error("model {name:?}: {field} must be at least 1")]
    Zero {
        /// The model.
        name: String,
        /// Which field.
        field: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    model: Vec<Model>,
}

/// All models of the catalogue, in its order.
///
/// # Panics
///
/// If the catalogue inside this binary is broken; a test reads it.
pub fn models() -> Vec<Model> {
    toml::from_str::<Catalogue>(CATALOGUE).expect("the built-in catalogue of models is valid TOML").model
}

/// Finds a model, with its weight type: `gemma3-27b`, `gemma3-27b-q4_0`, `gemma3:27b-q4_0-qat`.
/// Case, dashes, colons, dots, blanks and underscores do not matter; no suffix means bf16.
///
/// # Errors
///
/// `Unknown` with the nearest names.
pub fn find(name: &str) -> Result<(Model, WeightType), ModelError> {
    let wanted = squash(name);
    let models = models();
    for model in &models {
        let Some(suffix) = wanted.strip_prefix(&squash(&model.name)) else {
            continue;
        };
        if suffix.is_empty() {
            return Ok((model.clone(), WeightType::Bf16));
        }
        if let Ok(weights) = WeightType::from_str(suffix) {
            return Ok((model.clone(), weights));
        }
    }
    Err(ModelError::Unknown {
        name: name.to_owned(),
        suggestions: nearest(&wanted, models.iter().map(|model| model.name.as_str())),
    })
}

/// Lower case without dashes, colons, dots, blanks and underscores.
pub(crate) fn squash(name: &str) -> String {
    name.chars()
        .filter(|letter| !matches!(letter, '-' | '_' | ':' | '.' | ' '))
        .flat_map(char::to_lowercase)
        .collect()
}

impl Model {
    /// Reads a model from TOML: the fields of this struct, `classes` as a list of tables.
    ///
    /// # Errors
    ///
    /// `Toml` with line and column; `Zero` if a size is 0 or there is no class.
    ///
    /// ```
    /// let text = r#"
    /// name = "tiny"
    /// hidden = 64
    /// query_heads = 4
    /// kv_heads = 2
    /// head_dim = 16
    /// ffn = 256
    /// vocab = 1000
    /// max_positions = 2048
    /// tied = true
    /// classes = [{ name = "local", layers = 3, window = 128 }, { name = "global", layers = 1 }]
    /// "#;
    /// assert_eq!(sim::model::Model::from_toml(text).unwrap().layers(), 4);
    /// ```
    pub fn from_toml(text: &str) -> Result<Self, ModelError> {
        let model: Self = toml::from_str(text)?;
        model.check()?;
        Ok(model)
    }

    /// The same as TOML.
    ///
    /// # Errors
    ///
    /// Those of the TOML writer; no model of ours causes one.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    fn check(&self) -> Result<(), ModelError> {
        let zero = |field| Err(ModelError::Zero { name: self.name.clone(), field });
        let sizes = [
            ("hidden", self.hidden),
            ("query_heads", self.query_heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("ffn", self.ffn),
            ("vocab", self.vocab),
            ("max_positions", self.max_positions),
        ];
        if let Some((field, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return zero(field);
        }
        if self.classes.is_empty() {
            return zero("number of classes");
        }
        if self.classes.iter().any(|class| class.layers == 0) {
            return zero("classes.layers");
        }
        if self.classes.iter().any(|class| class.window == Some(0)) {
            return zero("classes.window");
        }
        Ok(())
    }

    /// Layers of all classes.
    pub fn layers(&self) -> u32 {
        self.classes.iter().map(|class| class.layers).sum()
    }

    /// Weights of the linear layers of one decoder layer.
    pub fn layer_params(&self) -> u64 {
        let hidden = u64::from(self.hidden);
        let head_dim = u64::from(self.head_dim);
        let q_and_o = 2 * hidden * u64::from(self.query_heads) * head_dim;
        let k_and_v = 2 * hidden * u64::from(self.kv_heads) * head_dim;
        q_and_o + k_and_v + 3 * hidden * u64::from(self.ffn)
    }

    /// Weights of the linear layers of all decoder layers; the output layer is not one of them.
    pub fn linear_params(&self) -> u64 {
        u64::from(self.layers()) * self.layer_params()
    }

    /// Weights of the embedding (the output layer has as many, of its own if not tied).
    pub fn embedding_params(&self) -> u64 {
        u64::from(self.hidden) * u64::from(self.vocab)
    }

    /// All weights that are stored.
    pub fn params(&self) -> u64 {
        let tables = if self.tied { 1 } else { 2 };
        self.linear_params() + tables * self.embedding_params()
    }

    /// Bytes of all weights in device memory, or in a file but for names and norms.
    pub fn weight_bytes(&self, weights: WeightType) -> u64 {
        let tables = if self.tied { 1 } else { 2 };
        self.linear_bytes(weights) + tables * self.output_bytes(weights)
    }

    /// Bytes of the decoder layers' linear weights: what a step reads whatever its size.
    pub fn linear_bytes(&self, weights: WeightType) -> u64 {
        let (bytes, numbers) = weights.linear_block();
        self.linear_params() * bytes / numbers
    }

    /// Bytes of the output layer's weights: what sampling reads. As many as the embedding's.
    pub fn output_bytes(&self, weights: WeightType) -> u64 {
        let (bytes, numbers) = weights.embedding_block();
        self.embedding_params() * bytes / numbers
    }

    /// Bytes of K and V of one cell in one layer.
    pub fn kv_bytes_per_layer(&self, kv: KvType) -> u64 {
        let (bytes, numbers) = kv.block();
        2 * u64::from(self.kv_heads) * u64::from(self.head_dim) * bytes / numbers
    }

    /// Per layer class: bytes of K and V of one cell, all layers of the class together.
    pub fn kv_bytes_per_cell(&self, kv: KvType) -> Vec<u64> {
        let row = self.kv_bytes_per_layer(kv);
        self.classes.iter().map(|class| u64::from(class.layers) * row).collect()
    }

    /// Bytes that one sequence of `tokens` needs if local layers keep no more than their window.
    pub fn kv_bytes_per_sequence(&self, kv: KvType, tokens: u64) -> u64 {
        let cells = self.classes.iter().map(|class| match class.window {
            Some(window) => tokens.min(u64::from(window)),
            None => tokens,
        });
        let bytes = self.kv_bytes_per_cell(kv);
        cells.zip(bytes).map(|(cells, bytes)| cells * bytes).sum()
    }

    /// FLOPs of the linear layers for one token, without the output layer.
    pub fn linear_flops_per_token(&self) -> u64 {
        2 * self.linear_params()
    }

    /// FLOPs of the output layer for one sampled token.
    pub fn output_flops_per_sample(&self) -> u64 {
        2 * self.embedding_params()
    }

    /// FLOPs of attention for one token and one cell in one layer: QK and PV, two each per number.
    pub fn attention_flops_per_cell(&self) -> u64 {
        4 * u64::from(self.query_heads) * u64::from(self.head_dim)
    }

    /// Bytes that the element-wise kernels move for one token, all layers, 16-bit activations:
    /// two norms with residual (4 rows each), gate times up (3 rows), RoPE (in and out of Q and K).
    pub fn elementwise_bytes_per_token(&self) -> u64 {
        let rope = 2 * u64::from(self.query_heads + self.kv_heads) * u64::from(self.head_dim);
        let numbers = 8 * u64::from(self.hidden) + 3 * u64::from(self.ffn) + rope;
        2 * numbers * u64::from(self.layers())
    }
}

impl WeightType {
    /// All names, for messages.
    pub const NAMES: &'static str = "f32, bf16, f16, q8_0, q4_0, q4_0-qat";

    /// Bytes and weights of a block of the linear layers.
    pub fn linear_block(self) -> (u64, u64) {
        match self {
            Self::F32 => (4, 1),
            Self::Bf16 => (2, 1),
            Self::Q8_0 => (34, 32),
            Self::Q4_0 | Self::Q4_0Qat => (18, 32),
        }
    }

    /// Bytes and weights of a block of the embedding and of the output layer.
    pub fn embedding_block(self) -> (u64, u64) {
        match self {
            Self::F32 => (4, 1),
            Self::Bf16 | Self::Q4_0Qat => (2, 1),
            Self::Q8_0 => (34, 32),
            Self::Q4_0 => (210, 256),
        }
    }

    /// The name that the command line takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_0Qat => "q4_0-qat",
        }
    }
}

impl FromStr for WeightType {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        match squash(name).as_str() {
            "f32" => Ok(Self::F32),
            "bf16" | "f16" => Ok(Self::Bf16),
            "q80" => Ok(Self::Q8_0),
            "q40" => Ok(Self::Q4_0),
            "q40qat" | "qat" => Ok(Self::Q4_0Qat),
            _ => Err(ModelError::UnknownType { what: "weight", name: name.to_owned(), known: Self::NAMES }),
        }
    }
}

impl KvType {
    /// All names, for messages.
    pub const NAMES: &'static str = "f32, f16, bf16, q8_0, q4_0";

    /// Bytes and numbers of a block.
    pub fn block(self) -> (u64, u64) {
        match self {
            Self::F32 => (4, 1),
            Self::F16 => (2, 1),
            Self::Q8_0 => (34, 32),
            Self::Q4_0 => (18, 32),
        }
    }

    /// The name that the command line takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }
}

impl FromStr for KvType {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        match squash(name).as_str() {
            "f32" => Ok(Self::F32),
            "f16" | "bf16" => Ok(Self::F16),
            "q80" => Ok(Self::Q8_0),
            "q40" => Ok(Self::Q4_0),
            _ => Err(ModelError::UnknownType { what: "KV", name: name.to_owned(), known: Self::NAMES }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(name: &str) -> Model {
        find(name).unwrap().0
    }

    #[test]
    fn every_model_of_the_catalogue_passes_the_check_for_files() {
        for model in models() {
            assert_eq!(Model::from_toml(&model.to_toml().unwrap()).unwrap(), model);
        }
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        // name, linear and embedding parameters in units of a million
        for (name, linear, embedding) in [
            ("gemma3-270m", 100, 168),
            ("gemma3-1b", 698, 302),
            ("gemma3-4b", 3209, 671),
            ("gemma3-12b", 10758, 1007),
            ("gemma3-27b", 25598, 1410),
        ] {
            let model = get(name);
            let millions = |params: u64| (params + 500_000) / 1_000_000;
            assert_eq!(millions(model.linear_params()), linear, "{name}");
            assert_eq!(millions(model.embedding_params()), embedding, "{name}");
        }
        assert_eq!(get("llama-3.1-8b").params() / 10_000_000, 802);
    }

    #[test]
    fn weight_bytes_are_the_published_file_sizes() {
        // units of 10 MB
        for (name, size) in [
            ("gemma3-27b-q4_0-qat", 1722),
            ("gemma3-4b-q4_0-qat", 315),
            ("gemma3-27b-q4_0", 1556),
            ("gemma3-4b-q4_0", 236),
        ] {
            let (model, weights) = find(name).unwrap();
            let bytes = model.weight_bytes(weights);
            assert_eq!((bytes + 5_000_000) / 10_000_000, size, "{name}");
        }
    }

    #[test]
    fn kv_per_sequence_matches_the_table() {
        // MB at 4 Ki, 32 Ki, 128 Ki tokens, and at 32 Ki if every layer were global
        for (name, table) in [
            ("gemma3-270m", [20, 109, 411, 604]),
            ("gemma3-1b", [28, 146, 548, 872]),
            ("gemma3-4b", [206, 793, 2806, 4563]),
            ("gemma3-12b", [604, 2483, 8925, 12885]),
            ("gemma3-27b", [772, 3121, 11174, 16643]),
        ] {
            let model = get(name);
            let mega = |bytes: u64| (bytes + 500_000) / 1_000_000;
            let at = |tokens| mega(model.kv_bytes_per_sequence(KvType::F16, tokens));
            let flat: u64 = model.kv_bytes_per_cell(KvType::F16).iter().sum();
            let all = [at(4096), at(32768), at(131_072), mega(flat * 32768)];
            assert_eq!(all, table, "{name}");
        }
    }

    #[test]
    fn kv_rows_match_the_table_for_each_type() {
        for (name, rows) in [
            ("gemma3-1b", [1024, 544, 288]),
            ("gemma3-4b", [4096, 2176, 1152]),
            ("gemma3-12b", [8192, 4352, 2304]),
            ("gemma3-27b", [8192, 4352, 2304]),
        ] {
            let model = get(name);
            let types = [KvType::F16, KvType::Q8_0, KvType::Q4_0];
            assert_eq!(types.map(|kv| model.kv_bytes_per_layer(kv)), rows, "{name}");
        }
    }

    #[test]
    fn names_forgive_case_and_dashes_and_errors_suggest() {
        assert_eq!(get("GEMMA3:27B").name, "gemma3-27b");
        let error = find("gema3-27b").unwrap_err().to_string();
        assert!(error.contains("gemma3-27b"), "{error}");
        let error = Model::from_toml("name = \"x\"\nhiden = 3\n").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
