//! Folders with `config.json` and safetensors.

use std::fs;
use std::path::Path;

use engine::load::{Model, Options, load};
use engine::{Config, Data, EngineError};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::writer::{
    Kind, Stored, new_config, old_config, safetensors, small, stored, tensors, weights, with_header,
    write_folder,
};

fn read(folder: &Path) -> Result<Model, EngineError> {
    load(folder, Options::default())
}

/// What loading says of a folder with this configuration and file.
fn outcome(config: &Value, file: &[u8]) -> Result<Model, EngineError> {
    let folder = TempDir::new().unwrap();
    write_folder(folder.path(), config, file);
    read(folder.path())
}

fn message(config: &Value, file: &[u8]) -> String {
    outcome(config, file).expect_err("the file is wrong").to_string()
}

/// Checks that a message speaks of some words.
fn says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
}

/// Checks a model against the one that was written, with some rounding.
fn is_the_same(model: &Model, tolerance: f32) {
    let expected = weights(&small());
    let config = Config { name: model.weights.config.name.clone(), ..small() };
    assert_eq!(model.weights.config, config);
    for (found, expected) in tensors(&model.weights).iter().zip(tensors(&expected)) {
        assert_eq!((&found.hub, &found.shape), (&expected.hub, &expected.shape));
        for (found, expected) in found.numbers.iter().zip(&expected.numbers) {
            assert!((found - expected).abs() <= tolerance * expected.abs().max(1.0), "{found} {expected}");
        }
    }
}

#[test]
fn both_dialects_say_the_same() {
    let file = safetensors(&stored(&weights(&small()), Kind::F32));
    for config in [new_config(&small()), old_config(&small())] {
        let model = outcome(&config, &file).unwrap();
        is_the_same(&model, 1e-6);
        assert_eq!((model.bos, &*model.stops), (Some(2), &[1, 7][..]));
        assert!(matches!(model.weights.embedding.data, Data::F32(_)));
    }
}

#[test]
fn halves_stay_halves_unless_asked_otherwise_and_the_scale_is_rounded_as_they_are() {
    // The root of 32 is 5.6568.
    for (kind, tolerance, scale) in [(Kind::Bf16, 1e-2, 5.65625), (Kind::F16, 1e-3, 5.65625)] {
        let file = safetensors(&stored(&weights(&small()), kind));
        let folder = TempDir::new().unwrap();
        write_folder(folder.path(), &new_config(&small()), &file);
        let model = read(folder.path()).unwrap();
        is_the_same(&model, tolerance);
        match (kind, &model.weights.layers[0].q.data) {
            (Kind::Bf16, Data::Bf16(_)) | (Kind::F16, Data::F16(_)) => {}
            (_, data) => panic!("{data:?}"),
        }
        assert_eq!(model.weights.embedding_scale, scale);
        let model = load(folder.path(), Options { dequantize: true, ..Options::default() }).unwrap();
        is_the_same(&model, tolerance);
        assert!(matches!(model.weights.layers[1].down.data, Data::F32(_)));
    }
}

#[test]
fn a_checkpoint_that_reads_images_too_gives_its_text_model() {
    for prefix in ["language_model.model.", "model.language_model."] {
        let mut all = stored(&weights(&small()), Kind::F32);
        for tensor in &mut all {
            tensor.name = tensor.name.replacen("model.", prefix, 1);
        }
        let image = |name: &str| Stored {
            name: name.to_owned(),
            dtype: "I64".to_owned(),
            shape: vec![3],
            bytes: vec![255; 24],
        };
        all.push(image("vision_tower.vision_model.embeddings.patch_embedding.bias"));
        all.push(image("model.multi_modal_projector.mm_soft_emb_norm.weight"));
        let mut inner = old_config(&small());
        inner["eos_token_id"] = Value::Null;
        let config = json!({ "model_type": "gemma3", "text_config": inner, "eos_token_id": [1, 106] });
        let model = outcome(&config, &safetensors(&all)).unwrap();
        is_the_same(&model, 1e-6);
        assert_eq!(model.stops, [1, 106]);
    }
}

#[test]
fn what_a_configuration_leaves_out_has_the_default_of_transformers() {
    // The published 4b checkpoint's text_config; all other keys have their defaults.
    let config = json!({ "model_type": "gemma3", "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024,
    }});
    let one = Stored {
        name: "model.norm.weight".to_owned(),
        dtype: "F32".to_owned(),
        shape: vec![],
        bytes: vec![0; 4],
    };
    let folder = TempDir::new().unwrap();
    let file = safetensors(&[Stored { name: "model.embed_tokens.weight".to_owned(), ..one.clone() }, one]);
    write_folder(folder.path(), &config, &file);
    // Too large to be written here: the shape that it asks for shows that 262208 and 2560 were meant.
    let message = read(folder.path()).unwrap_err().to_string();
    says(&message, &["model.embed_tokens.weight", "[262208, 2560]", "[]"]);
}

#[test]
fn keys_of_the_configuration_are_named_where_they_are_wrong() {
    let file = safetensors(&stored(&weights(&small()), Kind::F32));
    let of = |key: &str, value: Value| {
        let mut config = new_config(&small());
        config[key] = value;
        message(&config, &file)
    };
    says(&of("hidden_size", json!("many")), &["config.json", "hidden_size", "whole number", "many"]);
    says(&of("hidden_size", json!(-1)), &["hidden_size", "-1"]);
    says(&of("hidden_size", json!(1_u64 << 40)), &["hidden_size", "2^31"]);
    says(&of("num_hidden_layers", json!(1_000_000_000)), &["num_hidden_layers", "4096"]);
    says(&of("num_hidden_layers", json!(3)), &["layer_types", "3", "2"]);
    says(&of("layer_types", json!(["full_attention", "other"])), &["layer_types[1]"]);
    says(&of("attn_logit_softcapping", json!(50.0)), &["attn_logit_softcapping"]);
    says(&of("final_logit_softcapping", json!(30.0)), &["final_logit_softcapping"]);
    says(&of("hidden_activation", json!("silu")), &["hidden_activation", "silu"]);
    says(&of("attention_bias", json!(true)), &["attention_bias"]);
    says(&of("tie_word_embeddings", json!(false)), &["tie_word_embeddings"]);
    says(&of("model_type", json!("gemma2")), &["model_type", "gemma2"]);
    says(&of("quantization_config", json!({})), &["quantization_config"]);
    says(&of("eos_token_id", json!([1, "x"])), &["eos_token_id"]);
    let rope = json!({ "full_attention": { "rope_type": "yarn" } });
    says(&of("rope_parameters", rope), &["rope_parameters.full_attention.rope_type", "yarn"]);
    let rope = json!({ "full_attention": { "rope_type": "linear" } });
    says(&of("rope_parameters", rope), &["rope_parameters.full_attention.factor"]);
    let mut config = old_config(&small());
    config["sliding_window_pattern"] = json!(0);
    says(&message(&config, &file), &["sliding_window_pattern"]);
    says(&message(&json!([1]), &file), &["config.json", "object"]);
}

#[test]
fn shapes_that_cannot_run_are_refused() {
    let file = safetensors(&stored(&weights(&small()), Kind::F32));
    let of = |key: &str, value: Value| {
        let mut config = new_config(&small());
        config[key] = value;
        let error = outcome(&config, &file).unwrap_err();
        assert!(matches!(error, EngineError::Shape { .. }), "{error}");
        error.to_string()
    };
    says(&of("head_dim", json!(15)), &["head dimension", "15", "even"]);
    says(&of("num_key_value_heads", json!(0)), &["KV heads"]);
    says(&of("num_key_value_heads", json!(3)), &["2 query heads", "3 KV heads"]);
    says(&of("sliding_window", json!(0)), &["window"]);
    says(&of("query_pre_attn_scalar", json!(0)), &["query scalar"]);
    says(&of("rms_norm_eps", json!(-1.0)), &["epsilon"]);
    says(&of("vocab_size", json!(0)), &["vocabulary"]);
}

#[test]
fn tensors_that_are_missing_or_of_another_shape_or_type_are_named() {
    let config = new_config(&small());
    let all = stored(&weights(&small()), Kind::F32);
    for at in 0..all.len() {
        let mut less = all.clone();
        let gone = less.remove(at);
        says(&message(&config, &safetensors(&less)), &[&gone.name, "missing"]);

        let mut other = all.clone();
        other[at].shape = vec![other[at].bytes.len() / 4];
        if other[at].shape == all[at].shape {
            other[at].shape.push(1);
        }
        says(&message(&config, &safetensors(&other)), &[&gone.name, "expected shape"]);

        let mut other = all.clone();
        other[at].dtype = "I32".to_owned();
        says(&message(&config, &safetensors(&other)), &[&gone.name, "I32"]);

        let mut other = all.clone();
        let last = other[at].bytes.len() - 4;
        other[at].bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        let number = (last / 4).to_string();
        says(&message(&config, &safetensors(&other)), &[&gone.name, &number, "not finite"]);
    }
}

#[test]
fn a_checkpoint_with_more_than_the_configuration_says_is_refused() {
    let mut all = stored(&weights(&small()), Kind::F32);
    all.push(Stored { name: "lm_head.weight".to_owned(), ..all[0].clone() });
    assert!(outcome(&new_config(&small()), &safetensors(&all)).is_ok(), "the output layer is the embedding");
    for name in
        ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "model.extra.weight"]
    {
        let mut more = all.clone();
        more.push(Stored { name: name.to_owned(), ..all[0].clone() });
        says(&message(&new_config(&small()), &safetensors(&more)), &[name, "2 layers"]);
    }
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let config = new_config(&small());
    let all = stored(&weights(&small()), Kind::Bf16);
    let file = safetensors(&all);
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut cuts: Vec<usize> = (0..=header).step_by(7).chain(0..=9).chain([header - 1, header]).collect();
    let mut end = header;
    for tensor in &all {
        end += tensor.bytes.len();
        cuts.extend([end - 1, end, end + 1].iter().filter(|&&cut| cut < file.len()));
    }
    for cut in cuts {
        says(&message(&config, &file[..cut]), &["model.safetensors"]);
    }
    let longer = [&*file, &[0]].concat();
    says(&message(&config, &longer), &["model.safetensors", "end at byte"]);
}

#[test]
fn headers_that_lie_are_refused() {
    let config = new_config(&small());
    let of = |header: &str, data: &[u8]| message(&config, &with_header(header, data));
    let info = |name: &str, from: usize, to: usize| {
        format!(
            r#""{name}":{{"dtype":"F32","shape":[{}],"data_offsets":[{from},{to}]}}"#,
            to.saturating_sub(from) / 4
        )
    };
    let both = |a: String, b: String| format!("{{{a},{b}}}");
    says(&of(&both(info("a", 0, 8), info("b", 4, 12)), &[0; 12]), &["tensor b", "overlap"]);
    says(&of(&both(info("a", 0, 8), info("b", 0, 8)), &[0; 8]), &["tensor b", "overlap"]);
    says(&of(&both(info("a", 0, 8), info("b", 12, 16)), &[0; 16]), &["tensor b", "gap"]);
    says(&of(&both(info("a", 0, 8), info("a", 8, 16)), &[0; 16]), &["tensor a", "twice"]);
    says(&of(&both(info("a", 0, 8), info("b", 8, 1 << 60)), &[0; 16]), &["tensor b", "not in the file"]);
    says(&of(&both(info("a", 0, 8), info("b", 8, 4)), &[0; 16]), &["tensor b"]);
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}"#;
    says(&of(huge, &[0; 8]), &["tensor a", "shape"]);
    says(&of(r#"{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}"#, &[0; 8]), &["header", "F31"]);
    says(&of("[]", &[]), &["header"]);
    says(&of("{", &[]), &["header"]);
    let mut long = with_header("{}", &[]);
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    says(&message(&config, &long), &["header of 18446744073709551615 bytes", "at most 2"]);
}

/// Writes a model in two files and gives the index back.
fn write_shards(folder: &Path) -> Value {
    let all = stored(&weights(&small()), Kind::F32);
    let (first, second) = all.split_at(10);
    fs::write(folder.join("config.json"), new_config(&small()).to_string()).unwrap();
    let mut map = serde_json::Map::new();
    for (file, tensors) in
        [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)]
    {
        fs::write(folder.join(file), safetensors(tensors)).unwrap();
        map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(file))));
    }
    json!({ "metadata": { "total_size": 0 }, "weight_map": map })
}

#[test]
fn a_checkpoint_in_several_files_is_read_whole() {
    let folder = TempDir::new().unwrap();
    let index = write_shards(folder.path());
    let path = folder.path().join("model.safetensors.index.json");
    let with = |index: &Value| {
        fs::write(&path, index.to_string()).unwrap();
        read(folder.path())
    };
    is_the_same(&with(&index).unwrap(), 1e-6);

    for outside in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "c:x"] {
        let mut index = index.clone();
        index["weight_map"]["model.norm.weight"] = json!(outside);
        says(
            &with(&index).unwrap_err().to_string(),
            &["index.json", "weight_map.model.norm.weight", "same folder"],
        );
    }
    let mut wrong = index.clone();
    wrong["weight_map"]["model.norm.weight"] = json!("model-00001-of-00002.safetensors");
    says(&with(&wrong).unwrap_err().to_string(), &["model.norm.weight", "missing", "00001"]);
    let mut wrong = index.clone();
    wrong["weight_map"]["model.norm.weight"] = json!("model-00003-of-00002.safetensors");
    says(&with(&wrong).unwrap_err().to_string(), &["model-00003-of-00002.safetensors"]);
    says(&with(&json!({})).unwrap_err().to_string(), &["weight_map"]);

    let twice = stored(&weights(&small()), Kind::F32);
    fs::write(folder.path().join("model-00002-of-00002.safetensors"), safetensors(&twice)).unwrap();
    says(&with(&index).unwrap_err().to_string(), &["in another file too"]);
}

#[test]
fn what_is_no_model_is_refused_with_what_was_expected() {
    let folder = TempDir::new().unwrap();
    says(&read(folder.path()).unwrap_err().to_string(), &["config.json"]);
    says(
        &read(&folder.path().join("nothing")).unwrap_err().to_string(),
        &["nothing", "config.json", ".gguf"],
    );
    fs::write(folder.path().join("config.json"), new_config(&small()).to_string()).unwrap();
    says(&read(folder.path()).unwrap_err().to_string(), &["model.safetensors"]);
    fs::write(folder.path().join("config.json"), vec![b' '; 2 << 20]).unwrap();
    says(&read(folder.path()).unwrap_err().to_string(), &["config.json", "larger"]);
}

#[test]
fn presets_have_the_sizes_of_the_published_models() {
    // Weights of linear layers and of the embedding, in thousands of millions.
    let published = [
        ("gemma3-270m", 0.100, 0.168),
        ("gemma3-1b", 0.698, 0.302),
        ("gemma3-4b", 3.209, 0.671),
        ("gemma3-12b", 10.758, 1.007),
        ("gemma3-27b", 25.598, 1.410),
    ];
    for (name, linear, embedding) in published {
        let config = Config::preset(name).unwrap();
        config.check().unwrap();
        let found = config.vocab as f64 * config.hidden as f64 / 1e9;
        assert!((found - embedding).abs() <= 0.0006, "{name}: {found}");
        let norms = config.layers.len() * (4 * config.hidden + 2 * config.head_dim) + config.hidden;
        let found = (config.weights() - norms as u64) as f64 / 1e9 - found;
        assert!((found - linear).abs() <= 0.0006, "{name}: {found}");
    }
}

#[test]
fn a_model_larger_than_memory_is_refused_before_anything_is_read() {
    // A file of two terabytes, all of them a hole.
    const WIDTH: u64 = 1 << 20;
    let bytes = 2 * WIDTH * WIDTH;
    let info = format!(r#"{{"dtype":"BF16","shape":[{WIDTH},{WIDTH}],"data_offsets":[0,{bytes}]}}"#);
    let header = format!(r#"{{"model.embed_tokens.weight":{info}}}"#);
    let folder = TempDir::new().unwrap();
    let start = with_header(&header, &[]);
    write_folder(folder.path(), &new_config(&small()), &start);
    let file = fs::File::options().append(true).open(folder.path().join("model.safetensors")).unwrap();
    if file.set_len(start.len() as u64 + bytes).is_err() || engine::memory::available().is_none() {
        eprintln!("skipped: no files with holes here, or nobody tells how much memory there is");
        return;
    }
    let error = read(folder.path()).unwrap_err();
    assert!(
        matches!(error, EngineError::Memory { what: "the model", bytes: found } if found == bytes),
        "{error}"
    );
}
