//! The shape of a model from GGUF metadata.
//!
//! Sources: llama.cpp's `gemma3` model and converter, Ollama's `convert_gemma3.go`, and a dump of
//! Google's own quantised files, which say nothing of local theta, pattern or query scalar. Ollama's
//! older converter wrote no factor of rotation, though models made for 131072 tokens have 8.

use std::path::Path;

use crate::config::{Config, LayerKind, Rope};
use crate::error::EngineError;
use crate::load::gguf::header::{Header, Value};
use crate::load::wrong;

/// More layers than any model has.
const LAYERS_MAX: u64 = 4096;

/// The only size whose query scalar is not its head dimension is known by its layers.
const LAYERS_27B: usize = 62;

/// Metadata with messages that name the key.
pub(super) struct Keys<'a> {
    pub path: &'a Path,
    pub header: &'a Header,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.header.metadata.get(key)
    }

    pub fn wrong(&self, key: &str, what: impl AsRef<str>) -> EngineError {
        wrong(self.path, format!("{key}: {}", what.as_ref()))
    }

    pub fn count(&self, key: &str) -> Result<Option<usize>, EngineError> {
        match self.get(key) {
            None => Ok(None),
            // Below 2^31 no product of two sizes overflows.
            Some(&Value::Count(count)) if count < 1 << 31 => Ok(Some(count as usize)),
            Some(_) => Err(self.wrong(key, "expected a whole number below 2^31")),
        }
    }

    fn needed(&self, key: &str) -> Result<usize, EngineError> {
        self.count(key)?.ok_or_else(|| self.wrong(key, "missing"))
    }

    fn number(&self, keys: &[&str]) -> Result<Option<f64>, EngineError> {
        for key in keys {
            match self.get(key) {
                None => {}
                Some(&Value::Number(number)) => return Ok(Some(number)),
                Some(&Value::Count(count)) => return Ok(Some(count as f64)),
                Some(_) => return Err(self.wrong(key, "expected a number")),
            }
        }
        Ok(None)
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, EngineError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "expected a text")),
        }
    }

    pub fn numbers(&self, key: &str) -> Result<Option<&'a [f32]>, EngineError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Numbers(numbers)) => Ok(Some(numbers)),
            Some(_) => Err(self.wrong(key, "expected a list of 32-bit floats")),
        }
    }

    pub fn integers(&self, key: &str) -> Result<Option<&'a [i32]>, EngineError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Integers(integers)) => Ok(Some(integers)),
            Some(_) => Err(self.wrong(key, "expected a list of 32-bit integers")),
        }
    }

    /// The shape of the model; `vocab` is how many rows the embedding has.
    ///
    /// # Errors
    /// [`EngineError::File`] that names the key; [`EngineError::Shape`].
    pub fn config(&self, name: String, vocab: usize) -> Result<Config, EngineError> {
        let architecture = self.text("general.architecture")?;
        if architecture != Some("gemma3") {
            let what = format!("expected \"gemma3\", found {architecture:?}");
            return Err(self.wrong("general.architecture", what));
        }
        for key in ["gemma3.final_logit_softcapping", "gemma3.attn_logit_softcapping"] {
            if self.number(&[key])?.is_some_and(|cap| cap != 0.0) {
                return Err(self.wrong(key, "Gemma 3 has no such cap; expected none"));
            }
        }
        let layers = self.layers()?;
        let hidden = self.needed("gemma3.embedding_length")?;
        let query_heads = self.needed("gemma3.attention.head_count")?;
        let head_dim = self.needed("gemma3.attention.key_length")?;
        if self.count("gemma3.attention.value_length")?.is_some_and(|value| value != head_dim) {
            return Err(
                self.wrong("gemma3.attention.value_length", format!("expected {head_dim}, as keys have"))
            );
        }
        if self.count("gemma3.vocab_size")?.is_some_and(|stated| stated != vocab) {
            return Err(
                self.wrong("gemma3.vocab_size", format!("expected {vocab}, the rows of token_embd.weight"))
            );
        }
        let max_positions = self.needed("gemma3.context_length")?;
        let is_27b = layers.len() == LAYERS_27B;
        let local_theta = self.number(&["gemma3.rope.freq_base_swa", "gemma3.rope.local.freq_base"])?;
        let global_theta = self.number(&["gemma3.rope.freq_base", "gemma3.rope.global.freq_base"])?;
        let config = Config {
            name,
            hidden,
            query_heads,
            kv_heads: self.needed("gemma3.attention.head_count_kv")?,
            head_dim,
            ffn: self.needed("gemma3.feed_forward_length")?,
            vocab,
            window: self.needed("gemma3.attention.sliding_window")?,
            query_scalar: match is_27b {
                true => hidden as f64 / query_heads as f64,
                false => head_dim as f64,
            },
            rms_eps: self.number(&["gemma3.attention.layer_norm_rms_epsilon"])?.unwrap_or(1e-6),
            local_rope: Rope { theta: local_theta.unwrap_or(10_000.0), factor: 1.0 },
            global_rope: Rope { theta: global_theta.unwrap_or(1e6), factor: self.factor(max_positions)? },
            max_positions,
            layers,
        };
        config.check()?;
        Ok(config)
    }

    fn layers(&self) -> Result<Vec<LayerKind>, EngineError> {
        let key = "gemma3.block_count";
        let layers = self.needed(key)?;
        if layers as u64 > LAYERS_MAX {
            return Err(self.wrong(key, format!("expected at most {LAYERS_MAX}, found {layers}")));
        }
        let key = "gemma3.attention.sliding_window_pattern";
        match self.get(key) {
            Some(Value::Flags(local)) if local.len() == layers => Ok(local
                .iter()
                .map(|&local| if local { LayerKind::Local } else { LayerKind::Global })
                .collect()),
            Some(Value::Flags(local)) => {
                Err(self.wrong(key, format!("expected {layers}, one per layer, found {}", local.len())))
            }
            Some(&Value::Count(pattern)) if (1..=LAYERS_MAX).contains(&pattern) => {
                Ok(Config::pattern(layers, pattern as usize))
            }
            Some(_) => Err(self.wrong(key, "expected a whole number above 0 or one flag per layer")),
            None => Ok(Config::pattern(layers, 6)),
        }
    }

    fn factor(&self, max_positions: usize) -> Result<f64, EngineError> {
        let key = "gemma3.rope.scaling.type";
        let scaling = self.text(key)?;
        if !matches!(scaling, None | Some("linear" | "none")) {
            return Err(self.wrong(key, format!("expected \"linear\" or \"none\", found {scaling:?}")));
        }
        let stated = self.number(&["gemma3.rope.scaling.factor"])?;
        Ok(match (scaling, stated) {
            (Some("none"), _) => 1.0,
            (_, Some(factor)) => factor,
            (_, None) if max_positions == 131_072 => 8.0,
            (Some(_), None) => return Err(self.wrong("gemma3.rope.scaling.factor", "missing")),
            (None, None) => 1.0,
        })
    }
}
