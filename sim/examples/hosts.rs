//! What Ollama believes and what it allocates on the host of the incident: the tables of
//! `docs/hardware.md`, as Markdown.

use sim::cost::split::Split;
use sim::cost::{CostModel, Work};
use sim::host::{self, Host};
use sim::model::{KvType, Model, WeightType};
use sim::ollama::{Loaded, ModelFile, OllamaError, Options, load};

/// The settings of the incident and each change to them that concerns memory.
fn cases() -> Vec<(&'static str, Options)> {
    let at = Options { num_ctx: 4096, num_parallel: 2, ..Options::default() };
    let spread = Options { spread: true, ..at.clone() };
    vec![
        ("large card idle", at.clone()),
        ("spread", spread.clone()),
        ("spread, 12288", Options { num_ctx: 12_288, ..spread.clone() }),
        ("spread, batch 256", Options { num_batch: 256, ..spread.clone() }),
        ("spread, parallel 1", Options { num_parallel: 1, ..spread.clone() }),
        ("spread, Q8_0 cells", Options { flash_attention: true, kv: KvType::Q8_0, ..spread.clone() }),
        ("spread, device 0 only", Options { visible_devices: Some(vec![0]), ..spread.clone() }),
        ("spread, no fallback", Options { sysmem_fallback: false, ..spread }),
    ]
}

/// Decoding two sequences, each with its context half full.
fn decode(loaded: &Loaded) -> Work {
    let walked = loaded.cells.iter().map(|cells| u64::from(*cells) / 2).collect();
    Work { tokens: 2, sequences: 2, samples: 2, decodes: 2, walked, ..Work::default() }
}

fn main() -> Result<(), OllamaError> {
    let host = host::find("rtx8000+gtx1660super").expect("the catalogue has the host");
    let (model, weights) = sim::model::find("gemma3-27b-q4_0-qat").expect("the catalogue has the model");
    println!(
        "| settings | split | estimated GiB | allocated GiB | in main memory GiB | decode ms | display waits ms |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (name, options) in cases() {
        println!("{}", row(name, &host, (&model, weights), &options)?);
    }
    let file = ModelFile::new(&model, weights.into())?;
    let spread =
        load(&host, &file, &Options { num_ctx: 4096, num_parallel: 2, spread: true, ..Options::default() })?;
    println!("\n| device | weights | cells | output | vision | graph | context | in all | free |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for device in &spread.devices {
        let bytes = &device.bytes;
        let kinds = [bytes.weights, bytes.kv, bytes.output, bytes.vision, bytes.graph, bytes.context];
        let kinds: Vec<String> =
            kinds.into_iter().chain([bytes.total(), device.free_bytes]).map(gib).collect();
        println!("| {} | {} |", device.name, kinds.join(" | "));
    }
    Ok(())
}

fn row(
    name: &str,
    host: &Host,
    (model, weights): (&Model, WeightType),
    options: &Options,
) -> Result<String, OllamaError> {
    let file = ModelFile::new(model, weights.into())?;
    let loaded = load(host, &file, options)?;
    let list = |of: fn(&sim::ollama::Device) -> u64| {
        let values: Vec<String> = loaded.devices.iter().map(|device| gib(of(device))).collect();
        values.join(" + ")
    };
    let (decode_ms, stall_ms) = match &loaded.error {
        Some(error) => (error.to_string(), String::new()),
        None => {
            let cost = Split::of(&loaded, host, model, weights, options.num_batch);
            let work = decode(&loaded);
            let ms = |ns: u64| format!("{:.0}", ns as f64 / 1e6);
            (ms(cost.step_ns(&work)), ms(cost.stall_ns(&work)))
        }
    };
    Ok(format!(
        "| {name} | {} | {} | {} | {} | {decode_ms} | {stall_ms} |",
        loaded.placement.tensor_split(),
        list(|device| device.estimated_bytes),
        list(|device| device.bytes.total()),
        list(|device| device.spilled_bytes),
    ))
}

fn gib(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / f64::from(1 << 30))
}
