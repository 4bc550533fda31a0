//! The ways to hold a cache that are compared: `shift:28/q8_0`.

use std::fmt;
use std::str::FromStr;

use policies::{Geometry, LayerClass, Policy, Reach, ollama};

use crate::cache::KvType;
use crate::config::{Config, LayerKind};
use crate::quality::QualityError;

/// Sequences side by side where a policy's faults need company.
const COMPANY: u32 = 4;

/// One way to hold a cache: a policy, the type of K and V, how K is kept.
///
/// In text a policy's spec, then words after slashes: a type (`f32`, `f16`, `bf16`, `q8_0`, `q4_0`; f16
/// unless said), `unrotated`, `keep=N`, `ctx=full`, `cells=N`. `full` is a cache with room for everything, and
/// `prompt` a server that cuts the text before the exam to its head and the tokens that fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// As it was written.
    pub name: String,
    /// The policy's spec.
    pub spec: String,
    /// How K and V are stored.
    pub kv: KvType,
    /// Whether K is stored rotated.
    pub rotated: bool,
    /// Leading tokens that the request wants to keep.
    pub keep: u32,
    /// Whether the cache has room for the whole text.
    pub is_unlimited: bool,
    /// Cells of the classes that read everything, where there shall be fewer than the context has.
    pub cells: Option<u32>,
    /// Whether the text before the exam is cut and computed anew, and then nothing more happens.
    pub is_cut: bool,
    /// Sequences that are read side by side.
    pub sequences: u32,
}

impl Variant {
    /// The reference: everything in f32.
    pub fn reference() -> Variant {
        "full/f32".parse().expect("a well-formed variant")
    }

    /// The table that is shown where nothing is asked for.
    pub fn standard() -> Vec<Variant> {
        let names = [
            "full/f32",
            "full",
            "full/bf16",
            "full/q8_0",
            "full/q4_0",
            "prompt",
            "prompt/keep=28",
            "shift:0",
            "shift:1",
            "shift:28",
            "shift:28/q8_0",
            "shift:28/unrotated",
            "shift:28:drop=153",
            "shift:28:drop=459",
            "swa-full+shift",
            "llama-unified/keep=28",
            "truncate:28",
            "ring",
            "sinks:1",
            "sinks:4",
            "sinks:28",
            "sinks:4/unrotated",
            "heavy:640",
            "heavy:640/unrotated",
            "sinks:4:drop=64",
            "heavy:640:drop=64",
            "snap:576:32",
            "heavy:320/ctx=full",
            "snap:320:32/ctx=full",
            "ladder/ctx=full/cells=640",
            "ladder:16:q8_0/ctx=full/cells=672",
            "ladder/ctx=full/cells=384",
            "ollama-0.6.6/ctx=full",
            "ollama-0.12.4/ctx=full",
        ];
        names.iter().map(|name| name.parse().expect("a well-formed variant")).collect()
    }

    /// What the policy is made for: contexts of at most `context` tokens, batches of `batch`.
    pub fn geometry(&self, config: &Config, context: u32, batch: u32) -> Geometry {
        let sequences = self.sequences;
        let window = config.window as u32;
        let layers = |kind| config.layers.iter().filter(|&&layer| layer == kind).count() as u32;
        let (sliding, all) = (ollama::Kind::Swa { window }, ollama::Kind::Causal);
        let cells =
            |kind| ollama::cells(kind, sequences, context, batch, ollama::PAD, ollama::Sizing::SharedBatch);
        // Others than Ollama's may round up to blocks; their size changes no result.
        let more = if self.spec.starts_with("ollama-") { 0 } else { 512 };
        let class = |name: &str, kind, reach, cells| LayerClass {
            name: name.to_owned(),
            layers: layers(kind),
            reach,
            cells: cells + more,
        };
        let mut classes = vec![
            class("local", LayerKind::Local, Reach::Window(window), cells(sliding)),
            class("global", LayerKind::Global, Reach::Full, cells(all)),
        ];
        if let Some(cells) = self.cells {
            classes[1].cells = cells;
        }
        let classes = classes.into_iter().filter(|class| class.layers > 0).collect();
        Geometry { classes, context_max: context, batch_max: batch, sequences_max: sequences }
    }

    /// Makes the policy.
    ///
    /// # Errors
    /// A spec that is wrong.
    pub fn policy(&self, geometry: &Geometry) -> Result<Box<dyn Policy>, QualityError> {
        let wrong = |what: String| QualityError::Variant { name: self.name.clone(), what };
        let policy = policies::make_policy(&self.spec, geometry).map_err(|error| wrong(error.to_string()))?;
        if policy.wants_future() {
            return Err(wrong("a bound that has to know the requests to come".to_owned()));
        }
        Ok(policy)
    }

    /// Bytes of K and V of one sequence of `tokens` tokens.
    pub fn bytes(&self, config: &Config, tokens: usize) -> u64 {
        let cells: usize = config
            .layers
            .iter()
            .map(|kind| if *kind == LayerKind::Local { tokens.min(config.window) } else { tokens })
            .sum();
        let numbers = (cells * config.kv_width() * 2) as u64;
        // Per 32 numbers.
        let bytes = match self.kv {
            KvType::F32 => 128,
            KvType::F16 | KvType::Bf16 => 64,
            KvType::Q8_0 => 34,
            KvType::Q4_0 => 18,
        };
        numbers * bytes / 32
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for Variant {
    type Err = QualityError;

    fn from_str(text: &str) -> Result<Variant, QualityError> {
        let wrong = |what: String| QualityError::Variant { name: text.to_owned(), what };
        let mut words = text.split('/');
        let policy = words.next().unwrap_or_default();
        let spec = if matches!(policy, "full" | "prompt") { "contiguous" } else { policy };
        policies::check_spec(spec).map_err(|error| {
            let name = spec.split([':', '+']).next();
            let is_known = policies::POLICIES.iter().any(|known| Some(known.name) == name);
            wrong(format!("{error}{}", if is_known { "" } else { ", full, prompt" }))
        })?;
        let mut variant = Variant {
            name: text.to_owned(),
            spec: spec.to_owned(),
            kv: KvType::F16,
            rotated: true,
            keep: 0,
            is_unlimited: policy == "full",
            cells: None,
            is_cut: policy == "prompt",
            sequences: if spec.starts_with("ollama-") { COMPANY } else { 1 },
        };
        for word in words {
            match word.split_once('=').unwrap_or((word, "")) {
                ("f32", "") => variant.kv = KvType::F32,
                ("f16", "") => variant.kv = KvType::F16,
                ("bf16", "") => variant.kv = KvType::Bf16,
                ("q8_0", "") => variant.kv = KvType::Q8_0,
                ("q4_0", "") => variant.kv = KvType::Q4_0,
                ("unrotated", "") => variant.rotated = false,
                ("ctx", "full") => variant.is_unlimited = true,
                ("cells", cells) => {
                    let cells = cells.parse().ok().filter(|&cells| cells > 0);
                    let wrong = || wrong(format!("{word:?}: expected a whole number above 0 after cells="));
                    variant.cells = Some(cells.ok_or_else(wrong)?);
                }
                ("keep", tokens) => {
                    let tokens = tokens.parse().ok();
                    variant.keep = tokens
                        .ok_or_else(|| wrong(format!("{word:?}: expected a whole number after keep=")))?;
                }
                _ => {
                    return Err(wrong(format!(
                        "unknown word {word:?}; expected f32, f16, bf16, q8_0, q4_0, unrotated, keep=N, ctx=full or cells=N"
                    )));
                }
            }
        }
        Ok(variant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_after_slashes_say_how_the_cache_is_held() {
        let variant: Variant = "shift:28/q8_0/unrotated/keep=3".parse().unwrap();
        assert_eq!((variant.spec.as_str(), variant.kv), ("shift:28", KvType::Q8_0));
        assert_eq!((variant.rotated, variant.keep, variant.sequences), (false, 3, 1));
        assert!(!variant.is_unlimited && !variant.is_cut);
        let full: Variant = "full".parse().unwrap();
        assert_eq!((full.spec.as_str(), full.kv, full.is_unlimited), ("contiguous", KvType::F16, true));
        let company: Variant = "ollama-0.6.6/ctx=full/f32".parse().unwrap();
        assert!(company.is_unlimited && company.sequences > 1);
        assert_eq!(Variant::standard().len(), 34);
    }

    #[test]
    fn what_is_wrong_with_a_variant_is_said() {
        for (text, expected) in [
            ("shift:x", "keep is \"x\", expected a whole number"),
            ("nothing", "unknown policy \"nothing\", expected one of contiguous"),
            ("nothing", ", full, prompt"),
            ("full/q3", "unknown word \"q3\"; expected f32"),
            ("full/keep=x", "expected a whole number after keep="),
            ("ladder/cells=0", "expected a whole number above 0 after cells="),
            ("", "unknown policy"),
        ] {
            let error = text.parse::<Variant>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text}: ")) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn memory_is_that_of_the_cells_of_every_layer() {
        let config = crate::quality::tiny::config();
        let kib = |name: &str, tokens| name.parse::<Variant>().unwrap().bytes(&config, tokens) / 1024;
        // 2 global layers of 1152 cells and 4 windows of 64; 32 numbers of K and of V a cell.
        assert_eq!(kib("full", 1152), (2 * 1152 + 4 * 64) * 64 * 2 / 1024);
        assert_eq!((kib("full/q8_0", 1152), kib("full/q4_0", 1152), kib("shift:28", 640)), (170, 90, 192));
        assert_eq!(kib("full/f32", 32), 6 * 32 * 64 * 4 / 1024);
    }
}
