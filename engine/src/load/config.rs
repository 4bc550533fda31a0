//! `config.json` of a Gemma 3 checkpoint, in both dialects.
//!
//! transformers 5 writes `rope_parameters` and `layer_types`; before, it was `rope_theta`,
//! `rope_local_base_freq`, `rope_scaling` and `sliding_window_pattern`. Checkpoints that also read
//! images have the text model's keys under `text_config` and leave out those that have the default
//! of `Gemma3TextConfig` (transformers 5.17, `configuration_gemma3.py`).

use std::path::Path;

use serde_json::Value;

use crate::config::{Config, LayerKind, Rope};
use crate::error::EngineError;
use crate::load::fields::Fields;
use crate::load::{Description, Stored, read_small, wrong};

/// The largest `config.json` that is read; real ones have some kilobytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// More layers than any model has.
const LAYERS_MAX: usize = 4096;

/// What `config.json` says.
#[derive(Debug)]
pub(super) struct HubConfig {
    pub config: Config,
    pub bos: Option<u32>,
    pub stops: Vec<u32>,
}

/// Reads a configuration. The model is called what its folder is called.
///
/// # Errors
/// [`EngineError::File`] that names the key; [`EngineError::Shape`].
pub(super) fn read(path: &Path, name: &str) -> Result<HubConfig, EngineError> {
    let bytes = read_small(path, CONFIG_BYTES_MAX)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| wrong(path, error.to_string()))?;
    let whole = Fields::new(path, &value)?;
    let inner = whole.object("text_config")?;
    let text = inner.as_ref().unwrap_or(&whole);
    refuse_others(&whole, text)?;
    let config = shape(text, name)?;
    config.check()?;
    let tokens = |key: &str| match whole.tokens(key)? {
        none if none.is_empty() => text.tokens(key),
        some => Ok(some),
    };
    let stops = match tokens("eos_token_id")? {
        none if none.is_empty() => vec![1],
        some => some,
    };
    Ok(HubConfig { config, bos: tokens("bos_token_id")?.first().copied().or(Some(2)), stops })
}

/// Reads a configuration alone; the model is called what the folder around it is called.
///
/// # Errors
/// As [`read`].
pub(super) fn describe(path: &Path) -> Result<Description, EngineError> {
    let folder = std::path::absolute(path).ok();
    let folder = folder.as_deref().and_then(Path::parent).and_then(Path::file_name);
    let name = folder.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
    let HubConfig { config, .. } = read(path, &name)?;
    let bytes = read_small(path, CONFIG_BYTES_MAX)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| wrong(path, error.to_string()))?;
    let whole = Fields::new(path, &value)?;
    let inner = whole.object("text_config")?;
    let of = |fields: &Fields| -> Result<Option<String>, EngineError> {
        let text = fields.text("dtype")?.or(fields.text("torch_dtype")?);
        Ok(text.map(str::to_owned))
    };
    let dtype = match (of(&whole)?, &inner) {
        (None, Some(text)) => of(text)?,
        (found, _) => found,
    };
    let stored = if dtype.as_deref() == Some("float32") { Stored::F32 } else { Stored::Half };
    Ok(Description { config, linear: stored, embedding: stored })
}

/// Refuses models that the forward pass would compute wrongly.
fn refuse_others(whole: &Fields, text: &Fields) -> Result<(), EngineError> {
    if let Some(kind) = whole.text("model_type")?
        && !matches!(kind, "gemma3" | "gemma3_text")
    {
        return Err(whole.wrong("model_type", format!("expected gemma3 or gemma3_text, found {kind:?}")));
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if text.value(key).is_some() {
            return Err(text.wrong(key, "Gemma 3 has no such cap; expected null"));
        }
    }
    for key in ["attention_bias", "use_bidirectional_attention"] {
        if text.flag(key)? == Some(true) {
            return Err(text.wrong(key, "expected false"));
        }
    }
    for fields in [whole, text] {
        if fields.flag("tie_word_embeddings")? == Some(false) {
            return Err(fields.wrong("tie_word_embeddings", "expected true"));
        }
        if fields.value("quantization_config").is_some() {
            return Err(fields.wrong("quantization_config", "expected none: only f32, bf16 and f16 are read"));
        }
    }
    for key in ["hidden_activation", "hidden_act"] {
        if let Some(activation) = text.text(key)?
            && activation != "gelu_pytorch_tanh"
        {
            return Err(text.wrong(key, format!("expected \"gelu_pytorch_tanh\", found {activation:?}")));
        }
    }
    Ok(())
}

fn shape(text: &Fields, name: &str) -> Result<Config, EngineError> {
    let count = |key: &str, default: usize| Ok::<_, EngineError>(text.count(key)?.unwrap_or(default));
    let (local_rope, global_rope) = ropes(text)?;
    Ok(Config {
        name: name.to_owned(),
        hidden: count("hidden_size", 2304)?,
        layers: layers(text)?,
        query_heads: count("num_attention_heads", 8)?,
        kv_heads: count("num_key_value_heads", 4)?,
        head_dim: count("head_dim", 256)?,
        ffn: count("intermediate_size", 9216)?,
        vocab: count("vocab_size", 262_208)?,
        window: count("sliding_window", 4096)?,
        query_scalar: text.number("query_pre_attn_scalar")?.unwrap_or(256.0),
        rms_eps: text.number("rms_norm_eps")?.unwrap_or(1e-6),
        local_rope,
        global_rope,
        max_positions: count("max_position_embeddings", 131_072)?,
    })
}

fn layers(text: &Fields) -> Result<Vec<LayerKind>, EngineError> {
    let key = "num_hidden_layers";
    let layers = text.count(key)?.unwrap_or(26);
    if layers > LAYERS_MAX {
        return Err(text.wrong(key, format!("expected at most {LAYERS_MAX}, found {layers}")));
    }
    let Some(types) = text.list("layer_types")? else {
        let pattern = text.count("sliding_window_pattern")?.or(text.count("_sliding_window_pattern")?);
        let pattern = pattern.unwrap_or(6);
        if pattern == 0 {
            return Err(text.wrong("sliding_window_pattern", "expected at least 1, found 0"));
        }
        return Ok(Config::pattern(layers, pattern));
    };
    if types.len() != layers {
        return Err(
            text.wrong("layer_types", format!("expected {layers}, one per layer, found {}", types.len()))
        );
    }
    let kind = |(at, value): (usize, &Value)| match value.as_str() {
        Some("sliding_attention") => Ok(LayerKind::Local),
        Some("full_attention") => Ok(LayerKind::Global),
        _ => {
            let what = "expected \"sliding_attention\" or \"full_attention\"";
            Err(text.wrong(&format!("layer_types[{at}]"), what))
        }
    };
    types.iter().enumerate().map(kind).collect()
}

/// Rotation in local and in global layers.
fn ropes(text: &Fields) -> Result<(Rope, Rope), EngineError> {
    if let Some(both) = text.object("rope_parameters")? {
        let one = |key: &str, theta: f64| match both.object(key)? {
            None => Ok(Rope { theta, factor: 1.0 }),
            Some(rope) => {
                Ok(Rope { theta: rope.number("rope_theta")?.unwrap_or(theta), factor: factor(&rope)? })
            }
        };
        return Ok((one("sliding_attention", 10_000.0)?, one("full_attention", 1e6)?));
    }
    let scaling = text.object("rope_scaling")?;
    let local = Rope { theta: text.number("rope_local_base_freq")?.unwrap_or(10_000.0), factor: 1.0 };
    let global = Rope {
        theta: text.number("rope_theta")?.unwrap_or(1e6),
        factor: scaling.map_or(Ok(1.0), |scaling| factor(&scaling))?,
    };
    Ok((local, global))
}

/// The factor of a scaling that must be linear, or none.
fn factor(scaling: &Fields) -> Result<f64, EngineError> {
    let key = if scaling.value("rope_type").is_some() { "rope_type" } else { "type" };
    match scaling.text(key)? {
        None if scaling.value("factor").is_some() => {
            Err(scaling.wrong(key, "a factor needs one: expected \"linear\" or \"default\""))
        }
        None | Some("default") => Ok(1.0),
        Some("linear") => {
            scaling.number("factor")?.ok_or_else(|| scaling.wrong("factor", "linear scaling needs one"))
        }
        Some(other) => {
            Err(scaling.wrong(key, format!("expected \"linear\" or \"default\", found {other:?}")))
        }
    }
}
