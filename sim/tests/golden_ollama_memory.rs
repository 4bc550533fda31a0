//! Layer placement and memory estimates of Ollama 0.6.6, record by record.
//!
//! The records are files `mem_*.jsonl` or `mem_*.jsonl.gz` in the folder `ollama` under the one
//! that `KVLAB_GOLDEN` names (default: `../shared/golden` beside the workspace).

#![allow(clippy::unwrap_used, reason = "a broken record stops the test")]

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use flate2::read::GzDecoder;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use sim::model::{KvType, WeightType};
use sim::ollama::{Fit, ModelFile, Options, Quantisation, place};

#[derive(Deserialize)]
struct Record {
    model: String,
    num_ctx: u32,
    num_batch: u32,
    num_parallel_requested: u32,
    gpus_free_gib: Gpus,
    env: BTreeMap<String, String>,
    out: Answer,
    kv_local_layer: u64,
    kv_global_layer: u64,
    graph_partial: u64,
    graph_full: u64,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Answer {
    ctx_size: u64,
    fit: String,
    gpus: Vec<String>,
    graph: u64,
    layers: u32,
    parallel: u32,
    sizes: Vec<u64>,
    split: String,
    total: u64,
    vram: u64,
}

/// Names and free GiB; the order of the file is the order of discovery.
struct Gpus(Vec<(String, f64)>);

impl<'de> Deserialize<'de> for Gpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Gpus;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("free GiB by name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Gpus, A::Error> {
                let mut gpus = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    gpus.push(entry);
                }
                Ok(Gpus(gpus))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

fn files() -> Vec<PathBuf> {
    let folder = std::env::var_os("KVLAB_GOLDEN").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden")),
        PathBuf::from,
    );
    let Ok(entries) = std::fs::read_dir(folder.join("ollama")) else { return Vec::new() };
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("mem_") && (name.ends_with(".jsonl") || name.ends_with(".jsonl.gz"))
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(is_ours).collect();
    files.sort();
    files
}

fn model_file(name: &str) -> ModelFile {
    let (size, weights) = name.split_once('-').unwrap();
    let quantisation = match weights {
        "q4km" => Quantisation::Q4KM,
        "qat" => WeightType::Q4_0Qat.into(),
        _ => panic!("weights of {name} are unknown"),
    };
    let (model, _) = sim::model::find(&format!("gemma3-{size}")).unwrap();
    ModelFile::new(&model, quantisation).unwrap()
}

fn options(record: &Record) -> Options {
    let mut options = Options {
        num_ctx: record.num_ctx,
        num_batch: record.num_batch,
        num_parallel: record.num_parallel_requested,
        ..Options::default()
    };
    for (name, value) in &record.env {
        match name.as_str() {
            "OLLAMA_FLASH_ATTENTION" => options.flash_attention = value == "1",
            "OLLAMA_KV_CACHE_TYPE" => options.kv = value.parse::<KvType>().unwrap(),
            "OLLAMA_SCHED_SPREAD" => options.spread = value == "1",
            "OLLAMA_GPU_OVERHEAD" => options.gpu_overhead_bytes = value.parse().unwrap(),
            "OLLAMA_NUM_PARALLEL" => options.num_parallel = value.parse().unwrap(),
            _ => panic!("variable {name} is unknown"),
        }
    }
    options
}

fn check(record: &Record, at: &str) {
    let options = options(record);
    let gpus = &record.gpus_free_gib.0;
    let free: Vec<u64> = gpus.iter().map(|(_, gib)| (gib * f64::from(1 << 30)) as u64).collect();
    let placement = place(&model_file(&record.model), &free, &options).unwrap();
    let estimate = &placement.estimate;
    let ours = Answer {
        ctx_size: placement.context(&options),
        fit: match placement.fit {
            Fit::One | Fit::All => "full".to_owned(),
            Fit::Partial | Fit::Cpu => "partial".to_owned(),
            Fit::Dealt => unreachable!("Ollama deals no layers by shares"),
        },
        gpus: placement.devices.iter().map(|&index| gpus[index].0.clone()).collect(),
        graph: estimate.graph_bytes,
        layers: estimate.layers_total(),
        parallel: placement.parallel,
        sizes: estimate.bytes.clone(),
        split: placement.tensor_split(),
        total: estimate.total_bytes,
        vram: estimate.vram_bytes,
    };
    assert_eq!(ours, record.out, "{at}");
    let demand = &placement.demand;
    assert_eq!(demand.kv_bytes, [record.kv_local_layer, record.kv_global_layer], "{at}");
    assert_eq!(demand.graph_partial_bytes, record.graph_partial, "{at}");
    assert_eq!(demand.graph_full_bytes, record.graph_full, "{at}");
}

#[test]
fn golden_every_estimate_is_the_recorded_one() {
    let files = files();
    if files.is_empty() {
        eprintln!("skipped: no ollama/mem_*.jsonl[.gz] under KVLAB_GOLDEN (default ../shared/golden)");
        return;
    }
    let mut records = 0;
    for path in files {
        let file = File::open(&path).unwrap();
        let is_packed = path.extension().is_some_and(|extension| extension == "gz");
        let text: Box<dyn Read> = if is_packed { Box::new(GzDecoder::new(file)) } else { Box::new(file) };
        for (line, number) in BufReader::new(text).lines().zip(1..) {
            let at = format!("{} line {number}", path.display());
            let record: Record =
                serde_json::from_str(&line.unwrap()).unwrap_or_else(|error| panic!("{at}: {error}"));
            check(&record, &at);
            records += 1;
        }
    }
    eprintln!("{records} records");
    assert!(records > 0);
}
