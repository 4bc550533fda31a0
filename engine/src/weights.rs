//! The weights of a model, as the backends take them.

use half::{bf16, f16};

use crate::config::Config;
use crate::error::EngineError;
pub use crate::numbers::Numbers;
use crate::numbers::Piece;
use crate::tiles::{self, Bits, Tiles};

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
    /// The same in tiles, where it is in q8_0 or q4_0, and rows are a multiple of 16 and columns of 32: its products
    /// are those with inputs that are rounded to 8 bits.
    #[must_use]
    pub fn tiled(self) -> Matrix {
        let Matrix { rows, cols, data } = self;
        let fits = rows.is_multiple_of(tiles::ROWS) && cols > 0 && cols.is_multiple_of(tiles::NUMBERS);
        let data = match data {
            Data::Q8_0(bytes) if fits => Data::Tiles(Tiles::of(bytes.into_vec(), cols, Bits::Eight)),
            Data::Q4_0(bytes) if fits => Data::Tiles(Tiles::of(bytes.into_vec(), cols, Bits::Four)),
            data => data,
        };
        Matrix { rows, cols, data }
    }

    fn is_tiled(&self) -> bool {
        matches!(self.data, Data::Tiles(_))
    }

    /// Bytes of its numbers.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(data) => size_of_val(&**data),
            Data::Bf16(data) => size_of_val(&**data),
            Data::F16(data) => size_of_val(&**data),
            Data::Q8_0(data) | Data::Q4_0(data) | Data::Q6K(data) => data.len(),
            Data::Tiles(tiles) => tiles.bytes.len(),
        }
    }
}

/// The numbers of a matrix.
#[derive(Clone, Debug)]
pub enum Data {
    /// 32-bit floats.
    F32(Numbers<f32>),
    /// 16-bit brain floats.
    Bf16(Numbers<bf16>),
    /// 16-bit floats.
    F16(Numbers<f16>),
    /// GGUF blocks of 34 bytes for 32 weights.
    Q8_0(Numbers<u8>),
    /// GGUF blocks of 18 bytes for 32 weights.
    Q4_0(Numbers<u8>),
    /// GGUF blocks of 210 bytes for 256 weights.
    Q6K(Numbers<u8>),
    /// Tiles of q8_0 or q4_0.
    Tiles(Tiles),
}

impl Data {
    /// Moves the numbers into a piece of memory.
    fn move_into(&mut self, piece: &mut Piece) {
        match self {
            Data::F32(numbers) => numbers.move_into(piece),
            Data::Bf16(numbers) => numbers.move_into(piece),
            Data::F16(numbers) => numbers.move_into(piece),
            Data::Q8_0(bytes) | Data::Q4_0(bytes) | Data::Q6K(bytes) => bytes.move_into(piece),
            Data::Tiles(tiles) => tiles.bytes.move_into(piece),
        }
    }
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

/// Matrices of more bytes stay where they are: few of their pages, at the edges, are small.
const MANY_PAGES: usize = 64 << 20;

impl Weights {
    /// All matrices.
    fn matrices(&mut self) -> impl Iterator<Item = &mut Matrix> {
        let of_layers = self.layers.iter_mut().flat_map(|layer| {
            [&mut layer.q, &mut layer.k, &mut layer.v, &mut layer.o].into_iter().chain([
                &mut layer.gate,
                &mut layer.up,
                &mut layer.down,
            ])
        });
        of_layers.chain([&mut self.embedding])
    }

    /// Whether a matrix is [tiled](Matrix::tiled).
    pub fn is_tiled(&self) -> bool {
        let of_layer = |layer: &Layer| {
            [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down]
                .iter()
                .any(|matrix| matrix.is_tiled())
        };
        self.embedding.is_tiled() || self.layers.iter().any(of_layer)
    }

    /// The same with all matrices [tiled](Matrix::tiled) that can be.
    #[must_use]
    pub fn tiled(mut self) -> Weights {
        for matrix in self.matrices() {
            let empty = Matrix { rows: 0, cols: 0, data: Data::F32(Vec::new().into()) };
            *matrix = std::mem::replace(matrix, empty).tiled();
        }
        self
    }

    /// Lays the matrices side by side in one piece of memory, where they share large pages.
    ///
    /// # Errors
    /// [`EngineError::Memory`] if there is no room.
    pub(crate) fn lay_side_by_side(&mut self) -> Result<(), EngineError> {
        let mut matrices: Vec<&mut Matrix> =
            self.matrices().filter(|matrix| matrix.bytes() <= MANY_PAGES).collect();
        let mut piece = Piece::with_room(matrices.iter().map(|matrix| matrix.bytes()))?;
        matrices.iter_mut().for_each(|matrix| matrix.data.move_into(&mut piece));
        piece.finish();
        Ok(())
    }
}
