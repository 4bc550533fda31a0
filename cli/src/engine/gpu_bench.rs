//! `kvlab engine bench` on a GPU with made-up weights, which are made there: decode steps and moves of cells beside
//! the bandwidth of a copy, and prompts.

use std::io::{Write, stderr, stdout};
use std::path::Path;
use std::sync::Arc;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, value_parser};
use engine::cuda::{self, BenchCase, Gpu, Made, Measured, MeasuredMoves, MeasuredPrompt, Options, Spread};
use engine::{Config, EngineError, KvType};
use report::files::write_text;
use report::number::Unit;
use report::table::{Table, Value};
use serde_json::json;

use super::model::of_engine;
use crate::arguments::format_of;
use crate::trouble::{Trouble, usage};

/// Steps of every size that are timed.
const STEPS: usize = 40;
/// Prompts of every length, and defragmentations.
const PROMPTS: usize = 7;
/// Cells that a command of a defragmentation moves: a block of `paged`.
const PIECE: usize = 16;

/// Adds the flags that only a GPU has.
pub fn flags(command: Command) -> Command {
    let of_gpu = |arg: Arg| arg.help_heading("On a GPU with --synthetic");
    command
        .arg(of_gpu(
            Arg::new("weights")
                .long("weights")
                .value_name("TYPE")
                .default_value("bf16")
                .value_parser(["bf16", "q8_0", "q4_0"])
                .help("how made-up weights are stored"),
        ))
        .arg(of_gpu(
            Arg::new("without")
                .long("without")
                .value_name("WHAT,...")
                .value_delimiter(',')
                .value_parser(["graphs", "early", "library"])
                .help("leave out CUDA graphs, early starts of kernels, cuBLASLt"),
        ))
        .arg(of_gpu(
            Arg::new("moves")
                .long("moves")
                .value_name("N,...")
                .value_delimiter(',')
                .value_parser(value_parser!(u32).range(1..))
                .default_value("8192")
                .help("cells that a defragmentation moves, 16 at a time"),
        ))
        .arg(of_gpu(Arg::new("json").long("json").value_name("FILE").help("write everything measured")))
}

/// Runs it.
pub fn run(matches: &ArgMatches, gpu: &Gpu, name: &str) -> Result<(), Trouble> {
    let config = Config::preset(name).map_err(|error| usage(format!("--synthetic: {error}")))?;
    let kv = *matches.get_one::<KvType>("kv").expect("the type has a default");
    let made = match matches.get_one::<String>("weights").map(String::as_str) {
        Some("q8_0") => Made::Q8,
        Some("q4_0") => Made::Q4,
        _ => Made::Bf16,
    };
    let without: Vec<&str> =
        matches.get_many::<String>("without").into_iter().flatten().map(|s| &**s).collect();
    let options = Options {
        graphs: !without.contains(&"graphs"),
        early: !without.contains(&"early"),
        cublaslt: !without.contains(&"library"),
    };
    let (batches, contexts) =
        (sizes(matches, "batch", &[1, 8, 32]), sizes(matches, "context", &[4096, 32_768]));
    let prompts = sizes(matches, "prefill", &[512, 2048]);
    // Rounds of a step, of a prompt.
    let [steps, times] = match matches.value_source("rounds") {
        Some(ValueSource::CommandLine) => {
            [*matches.get_one::<u32>("rounds").expect("the number has a default") as usize; 2]
        }
        _ => [STEPS, PROMPTS],
    };
    let longest = contexts.iter().chain(&prompts).copied().max().unwrap_or(1);
    if longest > config.max_positions {
        let most = config.max_positions;
        return Err(usage(format!("{longest} tokens: the model was made for {most} at most")));
    }

    let copy = cuda::copy_bandwidth(gpu).map_err(of_engine)?;
    let model = Arc::new(cuda::Model::made_up(gpu, &config, 1, made).map_err(of_engine)?);
    let mut table = Table::new([
        "step",
        "sequences",
        "context",
        "tokens_per_s",
        "least",
        "most",
        "ms",
        "device_ms",
        "gb_per_s",
        "of_copy_percent",
    ]);
    let (mut decodes, mut read, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for &context in &contexts {
        for &batch in &batches {
            let case = BenchCase { batch, context, kv, steps };
            let what = format!("{batch} sequences of {context} tokens");
            if let Some(measured) = kept(cuda::bench_decode(&model, case, options, copy), what, &mut skipped)?
            {
                table.row(decode_row(&measured));
                decodes.push(measured);
            }
        }
    }
    for &tokens in &prompts {
        let what = format!("a prompt of {tokens} tokens");
        let measured = cuda::bench_prompt(&model, tokens, kv, times, options);
        if let Some(measured) = kept(measured, what, &mut skipped)? {
            table.row(prompt_row(&measured));
            read.push(measured);
        }
    }
    let mut moved = Vec::new();
    for &cells in matches.get_many::<u32>("moves").expect("the list has a default") {
        let measured = cuda::bench_moves(&model, [cells as usize, PIECE], kv, times, copy);
        if let Some(measured) = kept(measured, format!("a move of {cells} cells"), &mut skipped)? {
            table.row(move_row(&measured));
            moved.push(measured);
        }
    }
    stdout().write_all(table.render(format_of(matches))?.as_bytes())?;
    let info = gpu.info();
    let mut err = stderr();
    writeln!(
        err,
        "{name}, weights in {}, made by a hash, on {} (sm_{}, {} GiB), kernels {}; copies move {:.1} GB/s ({:.1} to {:.1})",
        model.weights_name(),
        info.name,
        info.arch,
        info.memory >> 30,
        gpu.code(),
        copy.median / 1e9,
        copy.min / 1e9,
        copy.max / 1e9
    )?;
    skipped.iter().try_for_each(|what| writeln!(err, "note: {what}"))?;
    if let Some(path) = matches.get_one::<String>("json") {
        let all = json!({
            "model": name, "device": info.name, "arch": info.arch, "memory": info.memory, "kernels": gpu.code(),
            "copy_bytes_per_second": copy, "without": without, "decode": decodes, "prefill": read, "moves": moved,
            "skipped": skipped,
        });
        write_text(Path::new(path), &format!("{all:#}\n"))?;
    }
    Ok(())
}

/// A list from the command line, or the default of a GPU.
fn sizes(matches: &ArgMatches, name: &str, default: &[usize]) -> Vec<usize> {
    match matches.value_source(name) {
        Some(ValueSource::CommandLine) => {
            matches.get_many::<u32>(name).into_iter().flatten().map(|&n| n as usize).collect()
        }
        _ => default.to_vec(),
    }
}

/// What was measured; a size that does not fit is told and left out.
fn kept<T>(
    found: Result<T, EngineError>,
    what: String,
    skipped: &mut Vec<String>,
) -> Result<Option<T>, Trouble> {
    match found {
        Ok(measured) => Ok(Some(measured)),
        Err(error @ EngineError::Memory { .. }) => {
            skipped.push(format!("{what}: {error}"));
            Ok(None)
        }
        Err(error) => Err(of_engine(error)),
    }
}

fn number(value: f64) -> Value {
    Value::Number(value, Unit::Plain)
}

/// Tokens per second: the median, the least and the most.
fn rates(tokens: usize, seconds: &Spread) -> [Value; 3] {
    [seconds.median, seconds.max, seconds.min].map(|seconds| number(tokens as f64 / seconds))
}

fn decode_row(measured: &Measured) -> [Value; 10] {
    let [median, least, most] = rates(measured.batch, &measured.step_seconds);
    [
        Value::from("decode"),
        Value::Count(measured.batch as u64),
        Value::Count(measured.context as u64),
        median,
        least,
        most,
        number(measured.step_seconds.median * 1e3),
        number(measured.device_seconds * 1e3),
        number(measured.gb_per_second),
        number(measured.share_of_roofline * 100.0),
    ]
}

fn prompt_row(measured: &MeasuredPrompt) -> [Value; 10] {
    let [median, least, most] = rates(measured.tokens, &measured.step_seconds);
    [
        Value::from("prefill"),
        Value::Count(1),
        Value::Count(measured.tokens as u64),
        median,
        least,
        most,
        number(measured.step_seconds.median * 1e3),
        Value::Empty,
        Value::Empty,
        Value::Empty,
    ]
}

fn move_row(measured: &MeasuredMoves) -> [Value; 10] {
    [
        Value::from("move"),
        Value::Empty,
        Value::Count(measured.cells as u64),
        Value::Empty,
        Value::Empty,
        Value::Empty,
        number(measured.seconds.median * 1e3),
        number(measured.device_seconds * 1e3),
        number(measured.gb_per_second),
        number(measured.share_of_copy * 100.0),
    ]
}
