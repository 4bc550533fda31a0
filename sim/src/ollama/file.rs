//! Bytes of a Gemma 3 model file, layer by layer, as Ollama's estimator adds them up.
//!
//! Derived from the shapes of the catalogue, nothing is measured:
//!
//! | part | tensors | type |
//! | --- | --- | --- |
//! | block | Q, K, V, O, gate, up, down | by quantisation, below |
//! | block | four norms of `hidden`, two of `head_dim` | f32 |
//! | output | the embedding, used a second time (`tied`), and one norm | below; f32 |
//! | vision | SigLIP: 27 layers of 1152, MLP 4304, 588 x 1152 patches, 4096 positions | 2-D f16, biases and norms f32 |
//! | connector | 1152 x `hidden` and one norm | f16; f32 |
//!
//! `Q4_K_M` stores V and down in Q6_K in those layers where llama.cpp's mix wants more bits (the
//! first and last eighth, and every third between), everything else in Q4_K, the embedding in
//! Q6_K. The QAT file has Q4_0 and an f16 embedding. With these rules every weight sum in the
//! records of Ollama's estimator comes out to the byte, for five files; that is what fixes the two
//! things a shape does not say: the vision group has no connector in it (the estimator overlooks
//! it), and the records' file of the 1b model has Q4_K rows of 1152 weights, which are no multiple
//! of 256. The published 1b file stores those tensors in Q5_0 and Q8_0 instead and is 0.13 GB larger.

use super::OllamaError;
use crate::model::{Model, WeightType};

/// Every so many layers, the last is global.
const GLOBAL_EVERY: usize = 6;
/// Rows of the embedding in the file; the checkpoints of the larger models have 64 more.
const VOCAB: u64 = 262_144;
/// The models of the family that see.
const WITH_VISION: [&str; 3] = ["gemma3-4b", "gemma3-12b", "gemma3-27b"];

const VISION_LAYERS: u64 = 27;
const VISION_HIDDEN: u64 = 1152;
const VISION_FFN: u64 = 4304;
const VISION_HEADS: u64 = 16;
const IMAGE_SIDE: u64 = 896;
const PATCH_SIDE: u64 = 14;
const PATCHES: u64 = (IMAGE_SIDE / PATCH_SIDE) * (IMAGE_SIDE / PATCH_SIDE);

/// How the weights of a file are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantisation {
    /// One of the types with the same bytes in every layer.
    Even(WeightType),
    /// The file that a bare model name gets: Q4_K, with Q6_K where it matters most.
    Q4KM,
}

impl From<WeightType> for Quantisation {
    fn from(weights: WeightType) -> Self {
        Self::Even(weights)
    }
}

/// Bytes and weights of a block of Q4_K and of Q6_K.
const Q4_K: (u64, u64) = (144, 256);
const Q6_K: (u64, u64) = (210, 256);

/// The vision tower of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vision {
    /// Bytes of its weights as the estimator counts them.
    pub weight_bytes: u64,
    /// Bytes of the connector to the language model, which the estimator does not count.
    pub connector_bytes: u64,
    /// Bytes of the compute graph of one image: pixels, patches, and the scores of all patches
    /// with each other for every head, 32-bit.
    pub graph_bytes: u64,
}

/// Sizes of a model file, and the shape that the estimator's formulas need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFile {
    /// The shape.
    pub model: Model,
    /// Bytes of each block (decoder layer).
    pub blocks: Vec<u64>,
    /// Bytes of the output layer with its norm.
    pub output_bytes: u64,
    /// Bytes of the embedding, which stays in main memory for looking tokens up.
    pub embedding_bytes: u64,
    /// The vision tower; none in text models.
    pub vision: Option<Vision>,
}

impl ModelFile {
    /// The file of a Gemma 3 model.
    ///
    /// # Errors
    ///
    /// `NotGemma3` unless the model has a class with a window and one without, in Gemma 3's
    /// pattern, and tied embeddings; `TooLarge` for sizes far beyond the family's.
    pub fn new(model: &Model, quantisation: Quantisation) -> Result<Self, OllamaError> {
        let head_rows = model.query_heads.max(model.kv_heads).saturating_mul(model.head_dim);
        for (field, value, most) in [
            ("layers", model.layers(), 4096),
            ("hidden", model.hidden, 1 << 17),
            ("ffn", model.ffn, 1 << 17),
            ("heads", model.query_heads.max(model.kv_heads), 1 << 10),
            ("heads * head_dim", head_rows, 1 << 17),
            ("window", model.classes.iter().filter_map(|class| class.window).max().unwrap_or(0), 1 << 20),
        ] {
            if value > most {
                return Err(OllamaError::TooLarge { field, most });
            }
        }
        let layers = model.layers() as usize;
        let global = (layers / GLOBAL_EVERY) as u32;
        let fits_pattern = match &model.classes[..] {
            [local, all] => local.window.is_some() && all.window.is_none() && all.layers == global,
            _ => false,
        };
        if !(fits_pattern && model.tied) {
            return Err(OllamaError::NotGemma3 { model: model.name.clone() });
        }
        let blocks = (0..layers).map(|layer| block_bytes(model, quantisation, layer, layers));
        let embedding = match quantisation {
            Quantisation::Even(weights) => weights.embedding_block(),
            Quantisation::Q4KM => Q6_K,
        };
        let hidden = u64::from(model.hidden);
        let embedding_bytes = bytes(hidden * vocab(model), embedding);
        Ok(Self {
            blocks: blocks.collect(),
            output_bytes: embedding_bytes + 4 * hidden,
            embedding_bytes,
            vision: WITH_VISION.contains(&model.name.as_str()).then(|| vision(hidden)),
            model: model.clone(),
        })
    }

    /// Class of a layer: 0 local, 1 global. The last of every six is global.
    pub fn class_of(&self, layer: usize) -> usize {
        usize::from((layer + 1).is_multiple_of(GLOBAL_EVERY))
    }

    /// Rows of the embedding in the file.
    pub fn vocab(&self) -> u64 {
        vocab(&self.model)
    }

    /// Bytes of everything, vision and connector included, the embedding once.
    pub fn weight_bytes(&self) -> u64 {
        let vision = self.vision.map_or(0, |vision| vision.weight_bytes + vision.connector_bytes);
        self.blocks.iter().sum::<u64>() + self.output_bytes + vision
    }
}

fn vocab(model: &Model) -> u64 {
    u64::from(model.vocab).min(VOCAB)
}

fn bytes(weights: u64, (block_bytes, block_weights): (u64, u64)) -> u64 {
    weights * block_bytes / block_weights
}

fn block_bytes(model: &Model, quantisation: Quantisation, layer: usize, layers: usize) -> u64 {
    let (usual, v_and_down) = match quantisation {
        Quantisation::Even(weights) => (weights.linear_block(), weights.linear_block()),
        Quantisation::Q4KM if wants_more_bits(layer, layers) => (Q4_K, Q6_K),
        Quantisation::Q4KM => (Q4_K, Q4_K),
    };
    let [hidden, ffn, head_dim] = [model.hidden, model.ffn, model.head_dim].map(u64::from);
    let [q, kv] = [model.query_heads, model.kv_heads].map(|heads| u64::from(heads) * head_dim);
    let (v, down) = (bytes(hidden * kv, v_and_down), bytes(hidden * ffn, v_and_down));
    let (q_and_o, k) = (2 * bytes(hidden * q, usual), bytes(hidden * kv, usual));
    let gate_and_up = 2 * bytes(hidden * ffn, usual);
    let norms = 4 * (4 * hidden + 2 * head_dim);
    q_and_o + k + v + gate_and_up + down + norms
}

/// Whether the mix `Q4_K_M` gives a layer more bits.
fn wants_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

fn vision(text_hidden: u64) -> Vision {
    let (hidden, ffn) = (VISION_HIDDEN, VISION_FFN);
    let matrices = VISION_LAYERS * (4 * hidden * hidden + 2 * hidden * ffn);
    let patch = 3 * PATCH_SIDE * PATCH_SIDE * hidden;
    let positions = PATCHES * hidden;
    // Biases of Q, K, V, O, of both MLP matrices and the patches; weight and bias of the norms.
    let vectors = VISION_LAYERS * (4 * hidden + ffn + hidden + 4 * hidden) + hidden + 2 * hidden;
    let pixels = 3 * IMAGE_SIDE * IMAGE_SIDE;
    Vision {
        weight_bytes: 2 * (matrices + patch + positions) + 4 * vectors,
        connector_bytes: 2 * hidden * text_hidden + 4 * hidden,
        graph_bytes: 4 * (pixels + hidden * PATCH_SIDE + PATCHES * PATCHES * VISION_HEADS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;

    fn file(name: &str, quantisation: Quantisation) -> ModelFile {
        ModelFile::new(&model::find(name).unwrap().0, quantisation).unwrap()
    }

    #[test]
    fn a_block_of_the_qat_file_by_hand() {
        let file = file("gemma3-27b", WeightType::Q4_0Qat.into());
        let weights = 2 * 5376 * 4096 + 2 * 5376 * 2048 + 3 * 5376 * 21_504;
        assert_eq!(file.blocks, vec![weights * 18 / 32 + 4 * (4 * 5376 + 256); 62]);
        assert_eq!(file.output_bytes, 262_144 * 5376 * 2 + 4 * 5376);
        assert_eq!(file.weight_bytes() / 10_000_000, 1806);
    }

    #[test]
    fn the_mix_gives_more_bits_at_both_ends_and_to_every_third_between() {
        let more: Vec<usize> = (0..26).filter(|layer| wants_more_bits(*layer, 26)).collect();
        assert_eq!(more, [0, 1, 2, 5, 8, 11, 14, 17, 20, 22, 23, 24, 25]);
        let blocks = file("gemma3-4b", Quantisation::Q4KM).blocks;
        let extra = (2560 * 1024 + 2560 * 10_240) * (210 - 144) / 256;
        assert_eq!(blocks[0] - blocks[4], extra);
        assert_eq!(blocks[33], blocks[0]);
    }

    #[test]
    fn the_vision_tower_has_the_size_of_siglip() {
        let vision = file("gemma3-12b", Quantisation::Q4KM).vision.unwrap();
        // 417 million weights; the published projector is 0.85 GB with its connector
        assert_eq!(vision.weight_bytes, 834_531_264);
        assert_eq!(vision.graph_bytes, 4 * (896 * 896 * 3 + 1152 * 14 + 4096 * 4096 * 16));
        assert_eq!(vision.connector_bytes, 2 * 1152 * 3840 + 4 * 1152);
        assert_eq!(file("gemma3-1b", Quantisation::Q4KM).vision, None);
    }

    #[test]
    fn layers_are_local_but_the_last_of_six() {
        for name in ["gemma3-270m", "gemma3-1b", "gemma3-4b", "gemma3-12b", "gemma3-27b"] {
            let file = file(name, WeightType::Q4_0.into());
            let mut counts = [0; 2];
            (0..file.blocks.len()).for_each(|layer| counts[file.class_of(layer)] += 1);
            assert_eq!(counts, [file.model.classes[0].layers, file.model.classes[1].layers], "{name}");
            assert_eq!((file.class_of(4), file.class_of(5), file.class_of(6)), (0, 1, 0));
        }
        let (llama, _) = model::find("llama-3.1-8b").unwrap();
        let error = ModelFile::new(&llama, Quantisation::Q4KM).unwrap_err().to_string();
        assert!(error.contains("llama-3.1-8b is not"), "{error}");
    }
}
