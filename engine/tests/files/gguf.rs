//! GGUF files.

use std::fs;

use engine::load::{Model, Options, Stored, describe, load};
use engine::{Config, Data, EngineError, LayerKind, Rope};
use tempfile::TempDir;

use crate::prefill::{distance, logits};
use crate::writer::{
    Gguf, Kind, array_value, f32_value, small, tensors, text, text_value, u32_value, weights,
};

fn outcome(file: &[u8], dequantize: bool) -> Result<Model, EngineError> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("small.gguf");
    fs::write(&path, file).unwrap();
    load(&path, Options { dequantize, ..Options::default() })
}

fn message(file: &[u8]) -> String {
    outcome(file, false).expect_err("the file is wrong").to_string()
}

fn says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
}

fn whole(kind: Kind) -> Gguf {
    Gguf::new(&weights(&small()), kind)
}

#[test]
fn a_header_tells_shape_and_type_without_the_numbers() {
    let types = [
        (Kind::F32, Stored::F32),
        (Kind::F16, Stored::Half),
        (Kind::Bf16, Stored::Half),
        (Kind::Q8_0, Stored::Q8),
        (Kind::Q4_0, Stored::Q4),
    ];
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("small.gguf");
    for (kind, linear) in types {
        fs::write(&path, whole(kind).bytes()).unwrap();
        let found = describe(&path).unwrap();
        assert_eq!((found.config, found.linear), (small(), linear), "{kind:?}");
    }
    fs::write(&path, b"GGUF").unwrap();
    says(&describe(&path).expect_err("there is no header").to_string(), &["small.gguf"]);
}

#[test]
fn every_type_of_numbers_is_read() {
    let types =
        [(Kind::F32, 0.0), (Kind::F16, 1e-3), (Kind::Bf16, 1e-2), (Kind::Q8_0, 2e-2), (Kind::Q4_0, 0.2)];
    for (kind, tolerance) in types {
        let file = whole(kind).bytes();
        let model = outcome(&file, true).unwrap();
        assert_eq!(model.weights.config, small());
        assert_eq!(model.weights.embedding_scale, 32_f32.sqrt());
        assert_eq!((model.bos, &*model.stops), (Some(2), &[1][..]));
        for (found, expected) in tensors(&model.weights).iter().zip(tensors(&weights(&small()))) {
            assert_eq!((&found.gguf, &found.shape), (&expected.gguf, &expected.shape));
            let most = distance(&found.numbers, &expected.numbers);
            assert!(most <= tolerance, "{kind:?} {}: {most}", found.gguf);
            assert_eq!(found.is_norm() || kind == Kind::F32, most == 0.0, "{kind:?} {}", found.gguf);
        }
        let model = outcome(&file, false).unwrap();
        match (kind, &model.weights.layers[1].down.data) {
            (Kind::F32, Data::F32(_)) | (Kind::F16, Data::F16(_)) | (Kind::Bf16, Data::Bf16(_)) => {}
            (Kind::Q8_0, Data::Q8_0(bytes)) => assert_eq!(bytes.len(), 32 * 2 * 34),
            (Kind::Q4_0, Data::Q4_0(bytes)) => assert_eq!(bytes.len(), 32 * 2 * 18),
            (_, data) => panic!("{kind:?}: {data:?}"),
        }
    }
}

#[test]
fn quantised_matrices_are_tiled_where_that_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("small.gguf");
    let tokens: Vec<u32> = (0..20).map(|i| i * 7 % 48).collect();
    for kind in [Kind::Q8_0, Kind::Q4_0, Kind::Bf16] {
        fs::write(&path, whole(kind).bytes()).unwrap();
        let tiled = load(&path, Options { tiled: true, ..Options::default() }).unwrap().weights;
        let plain = load(&path, Options::default()).unwrap().weights;
        assert_eq!(tiled.is_tiled(), kind != Kind::Bf16, "{kind:?}");
        assert!(!plain.is_tiled());
        let (tiled, plain) = (logits(tiled, &tokens), logits(plain, &tokens));
        let (error, size) =
            (distance(&tiled, &plain), plain.iter().fold(0.0_f32, |most, x| most.max(x.abs())));
        assert!(error <= 0.03 * size, "{kind:?}: {error} of {size}");
        assert_eq!(error > 0.0, kind != Kind::Bf16, "{kind:?}: {error}");
    }
}

#[test]
fn both_formats_compute_the_same() {
    let folder = TempDir::new().unwrap();
    let all = crate::writer::stored(&weights(&small()), Kind::F32);
    let config = crate::writer::new_config(&small());
    crate::writer::write_folder(folder.path(), &config, &crate::writer::safetensors(&all));
    let hub = load(folder.path(), Options::default()).unwrap();
    let gguf = outcome(&whole(Kind::F32).bytes(), false).unwrap();
    let tokens: Vec<u32> = (0..20).map(|i| i * 7 % 48).collect();
    let error = distance(&logits(hub.weights, &tokens), &logits(gguf.weights, &tokens));
    assert!(error <= 1e-5, "{error}");
}

#[test]
fn keys_that_files_leave_out_have_the_values_that_were_meant() {
    let with = |change: &dyn Fn(&mut Gguf)| {
        let mut file = whole(Kind::F16);
        change(&mut file);
        outcome(&file.bytes(), false).unwrap().weights.config
    };
    let without = |file: &mut Gguf, keys: &[&str]| {
        keys.iter().for_each(|key| {
            file.set(key, None);
        });
    };
    let scaling = ["gemma3.rope.scaling.type", "gemma3.rope.scaling.factor"];
    let bare = with(&|file| {
        without(file, &scaling);
        let more = ["rope.freq_base", "rope.freq_base_swa", "attention.sliding_window_pattern"];
        without(file, &more.map(|key| format!("gemma3.{key}")).each_ref().map(|key| &**key));
    });
    let expected = Config {
        layers: vec![LayerKind::Local; 2],
        global_rope: Rope { theta: 1e6, factor: 1.0 },
        ..small()
    };
    assert_eq!(bare, expected);
    let long = with(&|file| {
        without(file, &scaling);
        file.set("gemma3.context_length", Some(u32_value(131_072)));
    });
    assert_eq!(long.global_rope.factor, 8.0);
    let ollama = with(&|file| {
        without(file, &["gemma3.rope.freq_base", "gemma3.rope.freq_base_swa"]);
        file.set("gemma3.rope.local.freq_base", Some(f32_value(5000.0)));
        file.set("gemma3.rope.global.freq_base", Some(f32_value(2e6)));
    });
    assert_eq!((ollama.local_rope.theta, ollama.global_rope.theta), (5000.0, 2e6));
    let flags = with(&|file| {
        let flags = array_value(7, &[vec![0], vec![1]]);
        file.set("gemma3.attention.sliding_window_pattern", Some(flags));
    });
    assert_eq!(flags.layers, [LayerKind::Global, LayerKind::Local]);
}

#[test]
fn the_largest_size_is_known_by_its_layers_and_has_another_query_scalar() {
    let config = Config { layers: Config::pattern(62, 6), query_heads: 4, kv_heads: 2, ..small() };
    let mut file = Gguf::new(&weights(&config), Kind::F16);
    file.set("gemma3.attention.sliding_window_pattern", None);
    let found = outcome(&file.bytes(), false).unwrap().weights.config;
    assert_eq!(found, Config { query_scalar: 8.0, ..config });
}

#[test]
fn keys_are_named_where_they_are_wrong() {
    let of = |key: &str, value: Option<Vec<u8>>| {
        let mut file = whole(Kind::F16);
        file.set(key, value);
        message(&file.bytes())
    };
    for key in ["context_length", "embedding_length", "block_count", "feed_forward_length"] {
        let key = format!("gemma3.{key}");
        says(&of(&key, None), &["small.gguf", &key, "missing"]);
        says(&of(&key, Some(text_value("many"))), &[&key, "whole number"]);
    }
    for key in ["head_count", "head_count_kv", "key_length", "sliding_window"] {
        let key = format!("gemma3.attention.{key}");
        says(&of(&key, None), &[&key, "missing"]);
    }
    says(&of("general.architecture", Some(text_value("llama"))), &["general.architecture", "llama"]);
    says(&of("gemma3.block_count", Some(u32_value(1 << 30))), &["gemma3.block_count", "4096"]);
    says(&of("gemma3.attention.value_length", Some(u32_value(8))), &["value_length", "16"]);
    says(&of("gemma3.vocab_size", Some(u32_value(47))), &["vocab_size", "48"]);
    says(&of("gemma3.attention.sliding_window_pattern", Some(u32_value(0))), &["sliding_window_pattern"]);
    let flags = array_value(7, &[vec![0]]);
    says(&of("gemma3.attention.sliding_window_pattern", Some(flags)), &["sliding_window_pattern", "2"]);
    says(&of("gemma3.rope.scaling.type", Some(text_value("yarn"))), &["rope.scaling.type", "yarn"]);
    says(&of("gemma3.rope.scaling.factor", None), &["rope.scaling.factor", "missing"]);
    says(&of("gemma3.rope.freq_base", Some(text_value("x"))), &["rope.freq_base", "number"]);
    says(&of("gemma3.final_logit_softcapping", Some(f32_value(30.0))), &["final_logit_softcapping"]);
    let error = {
        let mut file = whole(Kind::F16);
        file.set("gemma3.attention.head_count_kv", Some(u32_value(0)));
        outcome(&file.bytes(), false).unwrap_err()
    };
    assert!(matches!(error, EngineError::Shape { .. }), "{error}");
}

#[test]
fn tensors_that_are_missing_broken_or_too_many_are_named() {
    let file = whole(Kind::Q8_0);
    for at in 0..file.tensors.len() {
        let name = &file.tensors[at].0;
        let mut less = file.clone();
        less.tensors.remove(at);
        says(&message(&less.bytes()), &[name, "missing"]);

        let mut other = file.clone();
        other.tensors[at].1.push(1);
        says(&message(&other.bytes()), &[name, "expected sizes"]);

        let mut other = file.clone();
        other.tensors[at].2 = 12;
        says(&message(&other.bytes()), &[name, "type 12"]);

        // The first bytes are the scale of a block, or a number of a norm.
        let mut other = file.clone();
        let is_norm = other.tensors[at].2 == 0;
        let nan = if is_norm { f32::NAN.to_le_bytes().to_vec() } else { vec![0, 0x7C] };
        other.tensors[at].3[..nan.len()].copy_from_slice(&nan);
        says(&message(&other.bytes()), &[name, "number 0 is not finite"]);
        if !is_norm {
            says(&outcome(&other.bytes(), true).unwrap_err().to_string(), &[name, "number 0 is not finite"]);
        }

        let mut twice = file.clone();
        twice.tensors.push(file.tensors[at].clone());
        says(&message(&twice.bytes()), &[name, "twice"]);
    }
    let mut more = file.clone();
    more.tensors.push(("blk.2.attn_q.weight".to_owned(), vec![32, 32], 0, vec![0; 4096]));
    says(&message(&more.bytes()), &["blk.2.attn_q.weight", "2 layers"]);
    let mut more = file.clone();
    more.tensors.push(("output.weight".to_owned(), vec![32, 32], 0, vec![0; 4096]));
    says(&message(&more.bytes()), &["output.weight"]);
    let mut twice = file.clone();
    twice.keys.push(twice.keys[3].clone());
    says(&message(&twice.bytes()), &[&twice.keys[3].0, "twice"]);
    let mut image = file.clone();
    image.tensors.push(("v.patch_embd.weight".to_owned(), vec![32], 24, vec![0; 32]));
    assert!(outcome(&image.bytes(), false).is_ok(), "what belongs to images is passed over");
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let file = whole(Kind::Q4_0).bytes();
    let mut cuts: Vec<usize> = (0..4000).step_by(13).chain(4000..file.len()).step_by(5).collect();
    cuts.extend([0, 1, 3, 4, 7, 8, 15, 16, 23, 24, file.len() - 129]);
    for cut in cuts.into_iter().filter(|&cut| cut < file.len() - 128) {
        says(&message(&file[..cut]), &["small.gguf"]);
    }
}

/// A file that begins as it should, with counts and whatever follows.
fn raw(tensors: u64, keys: u64, rest: &[u8]) -> Vec<u8> {
    [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes(), rest].concat()
}

#[test]
fn counts_lengths_and_sizes_that_no_file_has_are_refused() {
    says(&message(b"GGML"), &["GGUF"]);
    let mut old = whole(Kind::F16);
    old.version = 1;
    says(&message(&old.bytes()), &["version 1"]);
    says(&message(&raw(u64::MAX, 0, &[])), &["18446744073709551615 tensors", "room for 0"]);
    says(&message(&raw(1 << 40, 0, &[0; 4096])), &["1099511627776 tensors"]);
    says(&message(&raw(0, u64::MAX, &[0; 64])), &["18446744073709551615 keys"]);
    let long = [u64::MAX.to_le_bytes().as_slice(), &[0; 64]].concat();
    says(&message(&raw(0, 1, &long)), &["byte 32", "key", "18446744073709551615 bytes"]);
    let key = |value: Vec<u8>| raw(0, 1, &[text("tokenizer.ggml.tokens"), value, vec![0; 64]].concat());
    let array = |kind: u32, len: u64| {
        [9_u32.to_le_bytes().as_slice(), &kind.to_le_bytes(), &len.to_le_bytes()].concat()
    };
    for kind in [0, 4, 5, 6, 7, 8, 10, 12] {
        says(&message(&key(array(kind, 1 << 60))), &["tokenizer.ggml.tokens", "1152921504606846976"]);
        says(&message(&key(array(kind, u64::MAX))), &["tokenizer.ggml.tokens"]);
    }
    says(&message(&key(array(9, 1))), &["arrays of arrays"]);
    says(&message(&key(array(77, 1))), &["type 77"]);
    says(&message(&key(77_u32.to_le_bytes().to_vec())), &["type 77"]);
    says(&message(&key([8_u32.to_le_bytes().as_slice(), &(1_u64 << 50).to_le_bytes()].concat())), &["bytes"]);
    let invalid = raw(0, 1, &[text("a"), vec![8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0]].concat());
    says(&message(&invalid), &["a: invalid utf-8"]);

    let tensor = |change: &dyn Fn(&mut Vec<u64>)| {
        let mut file = whole(Kind::F16);
        change(&mut file.tensors[0].1);
        message(&file.bytes())
    };
    says(&tensor(&|dims| *dims = vec![u64::MAX, u64::MAX]), &["token_embd.weight", "sizes"]);
    says(&tensor(&|dims| *dims = vec![1 << 40, 48]), &["token_embd.weight", "bytes"]);
    says(&tensor(&|dims| *dims = vec![1; 5]), &["token_embd.weight", "5 dimensions"]);
    says(&tensor(&|dims| dims.clear()), &["token_embd.weight", "0 dimensions"]);
    says(&tensor(&|dims| dims[0] = 0), &["token_embd.weight", "none to be 0"]);
}

#[test]
fn alignment_is_what_the_file_says_if_it_can_be() {
    let mut file = whole(Kind::F16);
    file.alignment = 64;
    file.set("general.alignment", Some(u32_value(64)));
    assert_eq!(outcome(&file.bytes(), false).unwrap().weights.config, small());
    for wrong in [0, 3, 48, 1 << 31] {
        file.set("general.alignment", Some(u32_value(wrong)));
        says(&message(&file.bytes()), &["general.alignment", "power of two"]);
    }
    file.set("general.alignment", Some(text_value("wide")));
    says(&message(&file.bytes()), &["general.alignment"]);
    file.set("general.alignment", Some(u32_value(128)));
    says(&message(&file.bytes()), &["offset", "128"]);
}

#[test]
fn tensors_must_not_share_bytes() {
    // The offset is the last number of a tensor's entry.
    let mut bytes = whole(Kind::F16).bytes();
    let name = text("blk.0.attn_q.weight");
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    let offset = at + name.len() + 4 + 16 + 4;
    bytes[offset..offset + 8].copy_from_slice(&32_u64.to_le_bytes());
    says(&message(&bytes), &["token_embd.weight", "blk.0.attn_q.weight", "share bytes"]);
    bytes[offset..offset + 8].copy_from_slice(&33_u64.to_le_bytes());
    says(&message(&bytes), &["blk.0.attn_q.weight", "33"]);
    bytes[offset..offset + 8].copy_from_slice(&(u64::MAX - 31).to_le_bytes());
    says(&message(&bytes), &["blk.0.attn_q.weight", "offset"]);
}

#[test]
fn a_vocabulary_that_does_not_fit_is_refused() {
    let tokens =
        |count: usize| array_value(8, &(0..count).map(|id| text(&format!("t{id}"))).collect::<Vec<_>>());
    let scores = |count: usize| array_value(6, &vec![vec![0; 4]; count]);
    let of = |count: usize, scored: usize| {
        let mut file = whole(Kind::F16);
        file.set("tokenizer.ggml.model", Some(text_value("llama")));
        file.set("tokenizer.ggml.tokens", Some(tokens(count)));
        file.set("tokenizer.ggml.scores", Some(scores(scored)));
        file
    };
    assert_eq!(outcome(&of(48, 48).bytes(), false).unwrap().tokenizer.unwrap().vocab(), 48);
    says(&message(&of(49, 49).bytes()), &["tokenizer.ggml.tokens", "49", "48 rows"]);
    says(&message(&of(48, 47).bytes()), &["tokenizer.ggml.scores", "48", "47"]);
    let mut file = of(48, 48);
    file.set("tokenizer.ggml.model", Some(text_value("gpt2")));
    says(&message(&file.bytes()), &["tokenizer.ggml.model", "gpt2"]);
    let mut file = of(48, 48);
    file.set("tokenizer.ggml.scores", Some(array_value(6, &vec![f32::NAN.to_le_bytes().to_vec(); 48])));
    says(&message(&file.bytes()), &["tokenizer.ggml.scores", "number 0"]);
    let mut file = of(48, 48);
    file.set("tokenizer.ggml.tokens", Some(u32_value(1)));
    says(&message(&file.bytes()), &["tokenizer.ggml.tokens", "list of texts"]);
}
