//! Puts a model together from the tensors of a file, whatever they are called there.

use crate::config::Config;
use crate::error::EngineError;
use crate::memory;
use crate::weights::{Layer, Matrix, Weights};

/// A tensor of the model, by its names in both formats, without layer and `.weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// In safetensors, after `model.` and `layers.N.`.
    pub hub: &'static str,
    /// In GGUF, after `blk.N.`.
    pub gguf: &'static str,
}

const fn part(hub: &'static str, gguf: &'static str) -> Part {
    Part { hub, gguf }
}

pub(super) const EMBEDDING: Part = part("embed_tokens", "token_embd");
pub(super) const NORM: Part = part("norm", "output_norm");
const INPUT_NORM: Part = part("input_layernorm", "attn_norm");
const POST_ATTENTION_NORM: Part = part("post_attention_layernorm", "post_attention_norm");
const PRE_FFN_NORM: Part = part("pre_feedforward_layernorm", "ffn_norm");
const POST_FFN_NORM: Part = part("post_feedforward_layernorm", "post_ffw_norm");
const Q_NORM: Part = part("self_attn.q_norm", "attn_q_norm");
const K_NORM: Part = part("self_attn.k_norm", "attn_k_norm");
const Q: Part = part("self_attn.q_proj", "attn_q");
const K: Part = part("self_attn.k_proj", "attn_k");
const V: Part = part("self_attn.v_proj", "attn_v");
const O: Part = part("self_attn.o_proj", "attn_output");
const GATE: Part = part("mlp.gate_proj", "ffn_gate");
const UP: Part = part("mlp.up_proj", "ffn_up");
const DOWN: Part = part("mlp.down_proj", "ffn_down");

/// Every tensor of a layer.
pub(super) const LAYER: [Part; 13] = [
    INPUT_NORM,
    POST_ATTENTION_NORM,
    PRE_FFN_NORM,
    POST_FFN_NORM,
    Q_NORM,
    K_NORM,
    Q,
    K,
    V,
    O,
    GATE,
    UP,
    DOWN,
];

/// A file, or several, that tensors come from.
pub(super) trait Source {
    /// Bytes that all tensors take once they are loaded.
    fn bytes(&self) -> u64;

    /// A matrix of `rows` outputs and `cols` inputs.
    fn matrix(
        &mut self,
        layer: Option<usize>,
        part: Part,
        rows: usize,
        cols: usize,
    ) -> Result<Matrix, EngineError>;

    /// The weights of a norm, with the 1 added.
    fn norm(&mut self, layer: Option<usize>, part: Part, len: usize) -> Result<Vec<f32>, EngineError>;
}

/// Reads every tensor of a model.
///
/// # Errors
/// [`EngineError::Memory`] if there is not so much; whatever the source has to say.
pub(super) fn gather(
    config: Config,
    embedding_scale: f32,
    from: &mut dyn Source,
) -> Result<Weights, EngineError> {
    memory::check("the model", from.bytes())?;
    let (hidden, ffn, head) = (config.hidden, config.ffn, config.head_dim);
    let (query, kv) = (config.query_width(), config.kv_width());
    let embedding = from.matrix(None, EMBEDDING, config.vocab, hidden)?;
    let mut layers = Vec::new();
    for l in (0..config.layers.len()).map(Some) {
        layers.push(Layer {
            input_norm: from.norm(l, INPUT_NORM, hidden)?,
            post_attention_norm: from.norm(l, POST_ATTENTION_NORM, hidden)?,
            pre_ffn_norm: from.norm(l, PRE_FFN_NORM, hidden)?,
            post_ffn_norm: from.norm(l, POST_FFN_NORM, hidden)?,
            q_norm: from.norm(l, Q_NORM, head)?,
            k_norm: from.norm(l, K_NORM, head)?,
            q: from.matrix(l, Q, query, hidden)?,
            k: from.matrix(l, K, kv, hidden)?,
            v: from.matrix(l, V, kv, hidden)?,
            o: from.matrix(l, O, hidden, query)?,
            gate: from.matrix(l, GATE, ffn, hidden)?,
            up: from.matrix(l, UP, ffn, hidden)?,
            down: from.matrix(l, DOWN, hidden, ffn)?,
        });
    }
    let norm = from.norm(None, NORM, hidden)?;
    Ok(Weights { config, embedding, embedding_scale, layers, norm })
}
