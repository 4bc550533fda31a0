//! `kvlab policies`, `rules`, `models`, `gpus` and `hosts`.

use std::io::{Write, stdout};

use clap::ArgMatches;
use policies::scheduler::VICTIMS;
use policies::{EVICTORS, POLICIES};
use report::table::{Table, Value};
use sim::model::{KvType, WeightType};

use crate::arguments::format_of;
use crate::trouble::Trouble;

fn print(table: &Table, matches: &ArgMatches) -> Result<(), Trouble> {
    stdout().write_all(table.render(format_of(matches))?.as_bytes())?;
    Ok(())
}

/// One line per policy and one per knob.
pub fn policies(matches: &ArgMatches) -> Result<(), Trouble> {
    let mut table = Table::new(["policy", "knob", "default", "about", "cost", "source", "faults"]);
    for spec in POLICIES {
        table.row([spec.name, "", "", spec.about, spec.cost, spec.source, spec.faults].map(Value::from));
        for knob in spec.knobs {
            table.row([spec.name, knob.name, knob.default, knob.about, "", "", ""].map(Value::from));
        }
    }
    print(&table, matches)
}

/// One line per rule: which cached block `+prefix` and `radix` evict, and whom a scheduler preempts.
pub fn rules(matches: &ArgMatches) -> Result<(), Trouble> {
    let mut table = Table::new(["of", "rule", "about", "cost", "source"]);
    for rule in &EVICTORS {
        table.row(["evict", rule.name, rule.about, rule.cost, rule.source].map(Value::from));
    }
    for rule in VICTIMS {
        table.row(["victim", rule.name(), rule.about(), "O(running)", rule.source()].map(Value::from));
    }
    print(&table, matches)
}

/// One line per model, with sizes.
pub fn models(matches: &ArgMatches) -> Result<(), Trouble> {
    let headers = [
        "model",
        "parameters_billion",
        "layers",
        "classes",
        "weights_bf16_gib",
        "weights_q4_0_gib",
        "kv_f16_bytes_per_token",
    ];
    let mut table = Table::new(headers);
    let gib = |bytes: u64| Value::from((bytes as f64 / (1u64 << 30) as f64 * 100.0).round() / 100.0);
    for model in sim::model::models() {
        let class = |class: &sim::model::ModelClass| match class.window {
            Some(window) => format!("{} {} (window {window})", class.layers, class.name),
            None => format!("{} {}", class.layers, class.name),
        };
        let classes: Vec<String> = model.classes.iter().map(class).collect();
        let kv: u64 = model.kv_bytes_per_cell(KvType::F16).iter().sum();
        table.row([
            Value::from(model.name.as_str()),
            Value::from((model.params() as f64 / 1e7).round() / 100.0),
            Value::from(model.layers()),
            Value::from(classes.join(", ")),
            gib(model.weight_bytes(WeightType::Bf16)),
            gib(model.weight_bytes(WeightType::Q4_0)),
            Value::from(kv),
        ]);
    }
    print(&table, matches)
}

/// One line per GPU.
pub fn gpus(matches: &ArgMatches) -> Result<(), Trouble> {
    let headers = [
        "gpu",
        "label",
        "memory_gib",
        "bandwidth_gb_per_s",
        "tflops_16bit",
        "l2_mib",
        "pcie_gb_per_s",
        "source",
    ];
    let mut table = Table::new(headers);
    for gpu in sim::hardware::gpus() {
        table.row([
            Value::from(gpu.name.as_str()),
            Value::from(gpu.label.as_str()),
            Value::from(gpu.memory_gib),
            Value::from(gpu.bandwidth),
            Value::from(gpu.tflops),
            Value::from(gpu.l2_mib),
            Value::from(gpu.pcie),
            Value::from(gpu.source.as_str()),
        ]);
    }
    print(&table, matches)
}

/// One line per GPU of each host, in the order of discovery.
pub fn hosts(matches: &ArgMatches) -> Result<(), Trouble> {
    let headers = [
        "host",
        "label",
        "system",
        "ram_gib",
        "fallback_gib",
        "device",
        "gpu",
        "memory_gib",
        "free_gib",
        "display",
        "source",
    ];
    let mut table = Table::new(headers);
    let gib = |bytes: u64| Value::from((bytes as f64 / (1u64 << 30) as f64 * 100.0).round() / 100.0);
    for host in sim::host::hosts() {
        for (device, at) in host.gpus.iter().enumerate() {
            table.row([
                Value::from(host.name.as_str()),
                Value::from(host.label.as_str()),
                Value::from(host.system.name()),
                Value::from(host.ram_gib),
                gib(host.fallback_bytes()),
                Value::from(format!("CUDA{device}")),
                Value::from(at.gpu.name.as_str()),
                Value::from(at.gpu.memory_gib),
                gib(at.free_bytes),
                Value::from(if at.display { "yes" } else { "no" }),
                Value::from(host.source.as_str()),
            ]);
        }
    }
    print(&table, matches)
}
