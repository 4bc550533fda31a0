//! The shape of a Gemma 3 text model.
//!
//! Source: transformers 5.17 `configuration_gemma3.py` (defaults and both dialects), the
//! published checkpoints.

use crate::error::EngineError;

/// How far a layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// The last `window` tokens, the newest included.
    Local,
    /// Every token.
    Global,
}

/// Rotary position embedding of one kind of layer: angle `i` of position `p` is
/// `p / factor * theta^(-2i / head_dim)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Linear scaling: positions are divided by it.
    pub factor: f64,
}

/// The shape of a model, as far as computing needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name for messages.
    pub name: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Kind of every layer, in order.
    pub layers: Vec<LayerKind>,
    /// Heads of Q.
    pub query_heads: usize,
    /// Heads of K and V.
    pub kv_heads: usize,
    /// Numbers per head; even.
    pub head_dim: usize,
    /// Width of the gated MLP.
    pub ffn: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Tokens that a local layer reads, the newest included.
    pub window: usize,
    /// `query_pre_attn_scalar`: scores are divided by its root.
    pub query_scalar: f64,
    /// Epsilon of RMS norms.
    pub rms_eps: f64,
    /// Rotation in local layers.
    pub local_rope: Rope,
    /// Rotation in global layers.
    pub global_rope: Rope,
    /// Longest context the model was made for.
    pub max_positions: usize,
}

impl Config {
    /// A published size: `gemma3-270m`, `gemma3-1b`, `gemma3-4b`, `gemma3-12b`, `gemma3-27b`, or
    /// `gemma3-tiny`, which is no published model but small enough for tests.
    ///
    /// # Errors
    /// [`EngineError::Shape`] for any other name.
    pub fn preset(name: &str) -> Result<Config, EngineError> {
        let size = |hidden, layers: usize, query_heads, kv_heads, ffn, vocab| {
            (hidden, layers, query_heads, kv_heads, ffn, vocab)
        };
        let (hidden, layers, query_heads, kv_heads, ffn, vocab) = match name {
            "gemma3-tiny" => size(64, 7, 4, 2, 160, 512),
            "gemma3-270m" => size(640, 18, 4, 1, 2048, 262_144),
            "gemma3-1b" => size(1152, 26, 4, 1, 6912, 262_144),
            "gemma3-4b" => size(2560, 34, 8, 4, 10_240, 262_208),
            "gemma3-12b" => size(3840, 48, 16, 8, 15_360, 262_208),
            "gemma3-27b" => size(5376, 62, 32, 16, 21_504, 262_208),
            _ => {
                return Err(EngineError::Shape {
                    name: name.to_owned(),
                    what: "no such size; expected gemma3-tiny, gemma3-270m, gemma3-1b, gemma3-4b, gemma3-12b or gemma3-27b"
                        .to_owned(),
                });
            }
        };
        let head_dim = match name {
            "gemma3-tiny" => 32,
            "gemma3-27b" => 128,
            _ => 256,
        };
        let is_small = matches!(name, "gemma3-270m" | "gemma3-1b");
        Ok(Config {
            name: name.to_owned(),
            hidden,
            layers: Config::pattern(layers, 6),
            query_heads,
            kv_heads,
            head_dim,
            ffn,
            vocab,
            window: match name {
                "gemma3-tiny" => 16,
                _ if is_small => 512,
                _ => 1024,
            },
            query_scalar: match name {
                "gemma3-tiny" => 24.0,
                "gemma3-27b" => 168.0,
                _ => 256.0,
            },
            rms_eps: 1e-6,
            local_rope: Rope { theta: 10_000.0, factor: 1.0 },
            global_rope: Rope { theta: 1e6, factor: if is_small { 1.0 } else { 8.0 } },
            max_positions: match name {
                "gemma3-tiny" => 4096,
                _ if is_small => 32_768,
                _ => 131_072,
            },
        })
    }

    /// The kinds of `layers` layers of which every `pattern`-th is global.
    pub fn pattern(layers: usize, pattern: usize) -> Vec<LayerKind> {
        let kind = |layer| if (layer + 1) % pattern == 0 { LayerKind::Global } else { LayerKind::Local };
        (0..layers).map(kind).collect()
    }

    /// Refuses a shape that the engine cannot run.
    ///
    /// # Errors
    /// [`EngineError::Shape`] that names what is wrong.
    pub fn check(&self) -> Result<(), EngineError> {
        let counts = [
            ("hidden", self.hidden),
            ("layers", self.layers.len()),
            ("query heads", self.query_heads),
            ("KV heads", self.kv_heads),
            ("head dimension", self.head_dim),
            ("width of the MLP", self.ffn),
            ("vocabulary", self.vocab),
            ("window", self.window),
            ("longest context", self.max_positions),
        ];
        let numbers = [
            ("query scalar", self.query_scalar),
            ("local theta", self.local_rope.theta),
            ("local factor", self.local_rope.factor),
            ("global theta", self.global_rope.theta),
            ("global factor", self.global_rope.factor),
        ];
        let zero = counts.iter().find(|(_, count)| *count == 0);
        let bad = numbers.iter().find(|(_, number)| !(number.is_finite() && *number > 0.0));
        let what = if let Some((what, _)) = zero {
            format!("{what}: 0; expected at least 1")
        } else if let Some((what, number)) = bad {
            format!("{what}: {number}; expected a number above 0")
        } else if !(0.0..1.0).contains(&self.rms_eps) {
            format!("epsilon of norms: {}; expected at least 0 and less than 1", self.rms_eps)
        } else if !self.head_dim.is_multiple_of(2) {
            format!("head dimension: {}; expected an even number, since rotation takes pairs", self.head_dim)
        } else if !self.query_heads.is_multiple_of(self.kv_heads) {
            format!("{} query heads do not share {} KV heads evenly", self.query_heads, self.kv_heads)
        } else {
            return Ok(());
        };
        Err(EngineError::Shape { name: self.name.clone(), what })
    }

    /// Weights of the whole model, the embedding once.
    pub fn weights(&self) -> u64 {
        let product = |a: usize, b: usize| (a as u64).saturating_mul(b as u64);
        let attention = product(self.hidden, 2 * (self.query_width() + self.kv_width()));
        let mlp = product(self.hidden, self.ffn).saturating_mul(3);
        let norms = (4 * self.hidden + 2 * self.head_dim) as u64;
        let layer = attention.saturating_add(mlp).saturating_add(norms);
        let layers = layer.saturating_mul(self.layers.len() as u64);
        layers.saturating_add(product(self.vocab, self.hidden)).saturating_add(self.hidden as u64)
    }

    /// Numbers of one token's K (or V) in one layer.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Width of Q in one layer.
    pub fn query_width(&self) -> usize {
        self.query_heads * self.head_dim
    }

    /// Rotation in layers of a kind.
    pub fn rope(&self, kind: LayerKind) -> Rope {
        match kind {
            LayerKind::Local => self.local_rope,
            LayerKind::Global => self.global_rope,
        }
    }
}
