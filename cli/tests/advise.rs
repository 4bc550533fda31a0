//! Advice: what fits, what keeps the objective, how it is said, and that it is the same everywhere.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{kvlab, run};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

/// Two long prompts that come together over and over, and a short one between them.
fn folder() -> TempDir {
    let dir = tempdir().unwrap();
    let mut text = "arrival_s,prompt_tokens,output_tokens\n".to_owned();
    for turn in 0..40 {
        let at = turn * 30;
        text += &format!("{at},2800,60\n{at},2700,60\n{},200,30\n", at + 20);
    }
    fs::write(dir.path().join("pairs.csv"), text).unwrap();
    dir
}

fn logs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../logs/tests/logs")
}

/// Exit code, standard output and standard error.
fn outcome(dir: &Path, line: &str) -> (i32, String, String) {
    let assert = kvlab(dir).args(line.split_whitespace()).assert();
    let output = assert.get_output();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn json(dir: &Path, line: &str) -> Value {
    serde_json::from_str(&run(dir, &format!("{line} --json"))).unwrap()
}

/// A small grid for Ollama on one GPU.
const SMALL: &str = "--model gemma3-4b-q4_0 --gpu rtx3090 --slo ttft_p99=20s,tpot_p99=1s -q \
                     --try num_parallel=1,2,4 --try num_ctx=2048,4096 --try num_batch=256,512 --try kv_cache_type=f16,q8_0";

fn small(server: &str) -> String {
    let words: Vec<&str> = SMALL.split_whitespace().collect();
    format!("advise pairs.csv --for {server} {}", words.join(" "))
}

#[test]
fn advice_for_the_failing_versions_is_one_slot_and_says_why() {
    let dir = folder();
    let line = small("ollama-0.6.6") + " --now num_parallel=2,num_ctx=4096";
    let advice = json(dir.path(), &line);
    let now = &advice["now"]["simulated"];
    assert!(now["numbers"]["crashes"].as_u64().unwrap() > 0, "two long prompts at once: {now}");
    let best = &advice["ranked"][0];
    assert_eq!(best["lines"]["environment"][0], "OLLAMA_NUM_PARALLEL=1");
    assert_eq!(best["numbers"]["failed"], 0);
    assert_eq!(best["qualifies"], true);
    let because = advice["because"].as_array().unwrap();
    let crashes = because
        .iter()
        .any(|sentence| sentence.as_str().unwrap().contains("with 2, 40 crashes and 80 lost requests"));
    assert!(crashes, "no sentence about the slots: {because:?}");
    assert!(advice["safe_load"].as_f64().unwrap() >= 1.0);
}

#[test]
fn the_same_bytes_on_any_number_of_threads_and_a_small_regret() {
    let dir = folder();
    let line = small("ollama-0.12.4") + " --now num_parallel=2,num_ctx=4096 --exhaustive";
    let one = run(dir.path(), &format!("{line} --threads 1"));
    let two = run(dir.path(), &format!("{line} --threads 2"));
    assert_eq!(one, two.replace("--threads 2", "--threads 1"));
    let advice = json(dir.path(), &line);
    let regret = advice["regret"]["share"].as_f64().unwrap();
    assert!(regret < 0.02, "regret {regret}: {}", advice["regret"]);
    assert!(one.contains("Regret"), "{one}");
}

#[test]
fn every_server_gets_lines_that_it_knows() {
    let dir = folder();
    let grid = "--model gemma3-4b-q4_0 --gpu rtx3090 --slo ttft_p99=60s,tpot_p99=2s --try num_ctx=4096 -q";
    let knows: [(&str, &[&str], &[&str]); 5] = [
        ("ollama-0.6.6", &["PARAMETER num_ctx 4096", "FROM gemma3:4b"], &["llama-server -m", "vllm serve"]),
        ("ollama-0.12.4", &["PARAMETER num_batch"], &["llama-server -m"]),
        ("ollama-0.30", &["OLLAMA_NUM_PARALLEL="], &["SCHED_SPREAD"]),
        ("llama-server", &["llama-server -m gemma3-4b-q4_0.gguf -c ", " -np "], &["OLLAMA_", "PARAMETER"]),
        ("vllm", &["vllm serve google/gemma-3-4b-it --max-model-len 4096"], &["OLLAMA_", "-ctk"]),
    ];
    for (server, has, lacks) in knows {
        let slots = if server == "vllm" { "8,16" } else { "1,4" };
        let line = format!(
            "advise pairs.csv --for {server} {grid} --try num_parallel={slots} --try num_batch=512 --now num_ctx=4096,num_parallel=8"
        );
        let (code, text, errors) = outcome(dir.path(), &line);
        // What 0.6.6 makes of two sequences is tested elsewhere; here one slot has to do.
        assert_eq!(code, 0, "{server}: {errors}{text}");
        for word in has {
            assert!(text.contains(word), "{server}: no {word:?} in {text}");
        }
        for word in lacks {
            assert!(!text.contains(word), "{server}: {word:?} in {text}");
        }
    }
}

#[test]
fn the_memory_filter_names_device_and_part() {
    let dir = folder();
    let line = "advise pairs.csv --for ollama-0.12.4 --model gemma3-4b-q4_0 --gpu gtx1660super --slo ttft_p99=60s,tpot_p99=2s \
                --try num_ctx=4096,32768 --try num_parallel=1,8 --try num_batch=512 --try kv_cache_type=f16 -q";
    let advice = json(dir.path(), &line.split_whitespace().collect::<Vec<_>>().join(" "));
    let fallen = advice["search"]["fallen"].as_array().unwrap();
    assert!(!fallen.is_empty(), "8 contexts of 32768 tokens do not fit into 6 GB");
    assert_eq!(fallen[0]["nearest"]["device"], "gtx1660super");
    let part = fallen[0]["nearest"]["part"].as_str().unwrap();
    assert!(["KV cache", "compute graph"].contains(&part), "{fallen:?}");
    let needed = fallen[0]["nearest"]["needed_gib"].as_f64().unwrap();
    assert!(needed > fallen[0]["nearest"]["there_gib"].as_f64().unwrap());
}

#[test]
fn where_nothing_fits_memory_binds() {
    let dir = folder();
    let line = "advise pairs.csv --for ollama-0.12.4 --model gemma3-27b --gpu gtx1660super -q";
    let (code, text, errors) = outcome(dir.path(), line);
    assert_eq!(code, 3, "{text}{errors}");
    assert!(text.contains("memory binds"), "{text}");
    assert!(text.contains("the weights no longer fit"), "{text}");
}

#[test]
fn where_nothing_qualifies_the_nearest_misses_and_what_binds_are_said() {
    let dir = folder();
    let line = small("ollama-0.12.4").replace("ttft_p99=20s", "ttft_p99=1ms");
    let (code, text, errors) = outcome(dir.path(), &line);
    assert_eq!(code, 3, "{text}{errors}");
    assert!(errors.contains("advise: no setting keeps the objective"), "{errors}");
    assert!(text.contains("ttft_p99=1ms binds"), "{text}");
    assert!(text.contains("miss 1"), "{text}");
}

#[test]
fn a_log_is_trace_server_and_what_runs_now() {
    let dir = tempdir().unwrap();
    let log = logs().join("ollama-0.6.6-crash.log");
    let line = format!(
        "advise --server-log {} --gpu rtx8000+gtx1660super --slo ttft_p99=600s,tpot_p99=2s --try num_parallel=1,2 --try num_batch=512 --try num_ctx=4096,8192 --try kv_cache_type=f16 -q --json",
        log.display()
    );
    let (code, text, errors) = outcome(dir.path(), &line);
    assert!([0, 3].contains(&code), "{errors}");
    let advice: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(advice["server"], "ollama-0.6.6");
    assert_eq!(advice["model"], "gemma3-27b-q4_0");
    let now = advice["now"]["settings"].as_array().unwrap();
    let has = |name: &str, value: &str| now.iter().any(|pair| pair[0] == name && pair[1] == value);
    assert!(has("num_parallel", "2") && has("num_ctx", "4096"), "{now:?}");
    assert!(advice["notes"][0].as_str().unwrap().contains("recovered from the log"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "advice writes no files");
}

#[test]
fn a_config_of_a_checkpoint_is_a_model() {
    let dir = folder();
    let config = r#"{"model_type": "gemma3_text", "hidden_size": 1152, "num_hidden_layers": 26, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 6912, "vocab_size": 262144, "sliding_window": 512,
        "max_position_embeddings": 32768, "torch_dtype": "bfloat16"}"#;
    fs::write(dir.path().join("config.json"), config).unwrap();
    let grid = "--gpu rtx3090 --slo ttft_p99=60s,tpot_p99=2s --try num_ctx=4096 --try num_parallel=1 --try num_batch=512 -q";
    let number = |model: &str| {
        let advice =
            json(dir.path(), &format!("advise pairs.csv --for ollama-0.12.4 --model {model} {grid}"));
        let best = &advice["ranked"][0];
        let from = best["lines"]["modelfile"][0].as_str().unwrap().to_owned();
        (best["numbers"]["latency_mean_ms"].as_f64().unwrap(), from)
    };
    let ((file, from), (catalogue, library)) = (number("config.json"), number("gemma3-1b"));
    assert_eq!((from.as_str(), library.as_str()), ("FROM .", "FROM gemma3:1b-it-fp16"));
    assert!((file / catalogue - 1.0).abs() < 0.01, "{file} ms and {catalogue} ms");
}

#[test]
fn wrong_input_is_refused_with_its_place() {
    let dir = folder();
    fs::write(dir.path().join("empty.log"), "nothing\n").unwrap();
    let cases = [
        ("advise pairs.csv", "expected --for"),
        ("advise pairs.csv --for ollama-0.5", "ollama-0.6.6"),
        ("advise pairs.csv --for vllm --slo ttft_p99=2", "expected {ttft|tpot|latency}"),
        ("advise pairs.csv --for vllm --slo ttft_p99=2s,ttft_p99=3s", "two limits"),
        ("advise pairs.csv --for vllm --gpu h100 --try kv_cache_type=q8_0", "vllm has no knob"),
        ("advise pairs.csv --for ollama-0.6.6 --gpu rtx3090 --try pool=split", "ollama-0.6.6 has no knob"),
        ("advise pairs.csv --for llama-server --gpu rtx3090 --try pool=big", "expected split, unified"),
        ("advise pairs.csv --for vllm --gpu rtx3090+rtx3090", "expected one GPU"),
        ("advise pairs.csv --for ollama-0.6.6 --now slots=2", "expected num_ctx"),
        ("advise pairs.csv --for ollama-0.6.6 --num-ctx 2048,4096", "--try"),
        ("advise pairs.csv --for ollama-0.6.6 --try num_ctx=many", "\"many\" is not a whole number"),
        ("advise --server-log empty.log --for vllm", "has no request"),
        ("advise pairs.csv --server-log empty.log", "expected no trace"),
        ("advise none.csv --for vllm", "none.csv"),
        ("advise pairs.csv --for vllm --model none.gguf", "none.gguf"),
    ];
    for (line, word) in cases {
        let (code, text, errors) = outcome(dir.path(), line);
        assert_eq!(code, 2, "{line}: {errors}{text}");
        assert!(errors.contains(word), "{line}: no {word:?} in {errors}");
        assert!(text.is_empty() && !errors.contains("panicked"), "{line}: {text}{errors}");
    }
}

#[test]
fn llama_server_shares_its_layers_over_several_gpus() {
    let dir = folder();
    // 16 GiB of weights and a context have no room on one card, and on two of them.
    let line = "advise pairs.csv --for llama-server --model gemma3-27b-q4_0 --gpu two.toml -q \
                --slo ttft_p99=60s,tpot_p99=1s --try num_ctx=4096 --try num_parallel=1 --try num_batch=512 \
                --try kv_cache_type=f16 --try pool=split --now num_ctx=4096,num_parallel=1,pool=split";
    let card = "name = \"mine\"\nsystem = \"linux\"\nram_gib = 64\ngpu = [{ name = \"rtx3090\", free_gib = 12.0 }, \
                { name = \"rtx3090\", free_gib = 12.0 }]\n";
    fs::write(dir.path().join("two.toml"), card).unwrap();
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    let advice = json(dir.path(), &line);
    let best = &advice["ranked"][0];
    assert_eq!(
        best["settings"].as_array().unwrap().iter().find(|pair| pair[0] == "gpus").unwrap()[1],
        "auto"
    );
    let command = best["lines"]["command"].as_str().unwrap();
    assert!(!command.contains("-ts"), "the shares are the server's own: {command}");
    assert_eq!(best["lines"]["environment"], serde_json::json!([]));
    // Free memory is equal, so dealing it evenly is the same; either card alone is too small.
    assert_eq!(advice["search"]["candidates"], 4);
    assert_eq!(advice["search"]["equal"], 1);
    let fallen = advice["search"]["fallen"].as_array().unwrap();
    assert_eq!(fallen.iter().map(|fallen| fallen["candidates"].as_u64().unwrap()).sum::<u64>(), 2);
    assert!(advice["notes"].to_string().contains("-sm layer"), "{}", advice["notes"]);
    // Shares of one's own, and a card alone, are told to the server.
    let uneven = json(dir.path(), &format!("{line} --try gpus=4:3"));
    let mut lines =
        uneven["ranked"].as_array().unwrap().iter().map(|one| one["lines"]["command"].to_string());
    assert!(lines.any(|command| command.contains("-sm layer -ts 4,3")), "{uneven}");
    let small = line.replace("gemma3-27b-q4_0", "gemma3-4b-q4_0") + " --now visible_devices=1 --try gpus=1";
    let alone = json(dir.path(), &small);
    assert_eq!(alone["ranked"][0]["lines"]["environment"], serde_json::json!(["CUDA_VISIBLE_DEVICES=1"]));
    assert!(!alone["ranked"][0]["numbers"]["memory_gib"].to_string().contains(';'), "one card: {alone}");
    for (more, words) in [
        ("--try gpus=1:1:1", "3 shares of the layers for 2 visible devices"),
        ("--try gpus=0:0", "not all zero"),
        ("--try gpus=spread", "no value of gpus"),
        ("--try gpus=a:b", "shares as 3:1"),
    ] {
        let (code, _, said) = outcome(dir.path(), &format!("{line} {more}"));
        assert_eq!(code, 2, "{more}: {said}");
        assert!(said.contains(words), "{more}: {said}");
    }
    for server in ["vllm", "ollama-0.30"] {
        let (code, _, said) = outcome(dir.path(), &format!("advise pairs.csv --for {server} --gpu two.toml"));
        assert!(code == 2 && said.contains("several GPUs is not modelled"), "{said}");
    }
    let (code, _, said) =
        outcome(dir.path(), "advise pairs.csv --for ollama-0.6.6 --gpu two.toml --now layer_split=free");
    assert!(code == 2 && said.contains("no knob"), "{said}");
}
