//! The weights of a model, as the backends take them.

use half::{bf16, f16};

use crate::config::Config;

/// A matrix of weights, row-major: `rows` outputs of `cols` inputs each.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The numbers.
    pub data: Data,
}

impl Matrix {
    /// Bytes of its numbers.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(data) => size_of_val(&**data),
            Data::Bf16(data) => size_of_val(&**data),
            Data::F16(data) => size_of_val(&**data),
            Data::Q8_0(data) | Data::Q4_0(data) | Data::Q6K(data) => data.len(),
        }
    }
}

/// The numbers of a matrix.
#[derive(Clone, Debug)]
pub enum Data {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit brain floats.
    Bf16(Vec<bf16>),
    /// 16-bit floats.
    F16(Vec<f16>),
    /// GGUF blocks of 34 bytes for 32 weights.
    Q8_0(Vec<u8>),
    /// GGUF blocks of 18 bytes for 32 weights.
    Q4_0(Vec<u8>),
    /// GGUF blocks of 210 bytes for 256 weights.
    Q6K(Vec<u8>),
}

/// One decoder layer. Norm weights have the 1 added that Gemma's files leave out.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Before attention, `[hidden]`.
    pub input_norm: Vec<f32>,
    /// After attention, `[hidden]`.
    pub post_attention_norm: Vec<f32>,
    /// Before the MLP, `[hidden]`.
    pub pre_ffn_norm: Vec<f32>,
    /// After the MLP, `[hidden]`.
    pub post_ffn_norm: Vec<f32>,
    /// Of each head of Q, `[head_dim]`.
    pub q_norm: Vec<f32>,
    /// Of each head of K, `[head_dim]`.
    pub k_norm: Vec<f32>,
    /// `[query_width, hidden]`.
    pub q: Matrix,
    /// `[kv_width, hidden]`.
    pub k: Matrix,
    /// `[kv_width, hidden]`.
    pub v: Matrix,
    /// `[hidden, query_width]`.
    pub o: Matrix,
    /// `[ffn, hidden]`.
    pub gate: Matrix,
    /// `[ffn, hidden]`.
    pub up: Matrix,
    /// `[hidden, ffn]`.
    pub down: Matrix,
}

/// All weights of a model.
#[derive(Clone, Debug)]
pub struct Weights {
    /// The shape that they have.
    pub config: Config,
    /// `[vocab, hidden]`; the output layer too.
    pub embedding: Matrix,
    /// What embeddings are multiplied by: the root of `hidden`, rounded to the type of the file
    /// (transformers) or not (GGUF).
    pub embedding_scale: f32,
    /// The layers.
    pub layers: Vec<Layer>,
    /// Before the output layer, `[hidden]`.
    pub norm: Vec<f32>,
}
