//! `kvlab engine bench`: speed of prefill and decode, beside what this machine could do at most.

use std::io::{Write, stdout};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, value_parser};
use engine::clock::Clock;
use engine::cuda;
use engine::machine::Machine;
use engine::measure::{Options, PieceShape, StepShape, measure};
use engine::{CacheShape, KvType, LayerKind, Weights};
use policies::{Geometry, LayerClass, Reach};
use report::number::Unit;
use report::table::{Table, Value};

use super::gpu_bench;
use super::model::{Loaded, kv_flag, model_flags, of_engine};
use crate::arguments::{format, format_of};
use crate::device::Device;
use crate::trouble::{Trouble, usage};

const EXAMPLES: &str = "\
Examples:
  kvlab engine bench --synthetic gemma3-270m --kv bf16
  kvlab engine bench --device cuda --synthetic gemma3-12b --weights q4_0 --json 12b.json
  kvlab engine bench --model gemma-3-1b-it --batch 1,8 --context 512,4096 --format json

The roofline is what the machine needs at least: the bytes of weights and cells that a step reads at the
bandwidth, or its multiplications at the speed, measured in the same run, whichever takes longer. On a GPU
the bandwidth is that of copies, and prompts have no roofline. --synthetic on a GPU makes the weights there, and
measures 1, 8 and 32 sequences of 4096 and 32768 tokens, prompts of 512 and 2048, and a defragmentation of 8192 cells
unless told otherwise.";

/// The subcommand.
pub fn command() -> Command {
    let list = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("N,...")
            .value_delimiter(',')
            .value_parser(value_parser!(u32).range(1..))
            .default_value(default)
            .help(help)
    };
    let command = Command::new("bench")
        .about("tokens per second of prefill and decode, beside the roofline of this machine")
        .after_help(EXAMPLES)
        .arg(list("batch", "1,8", "sequences that decode at once"))
        .arg(list("context", "512,2048", "tokens of each when one more is decoded"))
        .arg(list("prefill", "32,256", "tokens of a prompt in one step"))
        .arg(
            Arg::new("rounds")
                .long("rounds")
                .value_name("N")
                .default_value("5")
                .value_parser(value_parser!(u32).range(1..))
                .help("times that each step is visited; of made-up weights on a GPU 40, and 7 of prompts"),
        )
        .arg(format());
    gpu_bench::flags(kv_flag(model_flags(command), "bf16"))
}

/// A step, and what it needs at least.
struct Case {
    kind: &'static str,
    sequences: u32,
    context: u32,
    tokens: u32,
    shape: StepShape,
    bytes: f64,
    flops: f64,
}

/// Runs it.
pub fn run(matches: &ArgMatches) -> Result<(), Trouble> {
    let device = Device::find(matches)?;
    if let (Some(gpu), Some(name)) = (device.gpu(), matches.get_one::<String>("synthetic")) {
        device.wants_tiles(matches)?;
        if matches.get_flag("dequantize") {
            return Err(usage(
                "--dequantize is for weights of a model: --weights says how made-up ones are stored",
            ));
        }
        return gpu_bench::run(matches, gpu, name);
    }
    for flag in ["weights", "without", "moves", "json"] {
        if matches.value_source(flag) == Some(ValueSource::CommandLine) {
            return Err(usage(format!("--{flag} is for --synthetic on a GPU: expected --device cuda")));
        }
    }
    let loaded = Loaded::on(device, matches)?;
    let kv = *matches.get_one::<KvType>("kv").expect("the type has a default");
    let numbers = |name: &str| matches.get_many::<u32>(name).expect("the list has a default").copied();
    let (weights, bounds) = (&*loaded.weights, Bounds::measure(&loaded.device)?);
    let mut cases = Vec::new();
    for tokens in numbers("prefill") {
        let piece = PieceShape { tokens, context: 0, samples: true };
        let shape = StepShape { prefills: vec![piece], ..StepShape::default() };
        cases.push(case("prefill", weights, kv, shape));
    }
    for context in numbers("context") {
        for sequences in numbers("batch") {
            let shape = StepShape { decodes: vec![context; sequences as usize], ..StepShape::default() };
            cases.push(case("decode", weights, kv, shape));
        }
    }
    let geometry = geometry(weights, &cases)?;
    let cache = CacheShape::new(&weights.config, &geometry, kv).map_err(of_engine)?;
    let mut backend = loaded.resident.backend(cache).map_err(of_engine)?;
    let rounds = *matches.get_one("rounds").expect("the number has a default");
    let shapes: Vec<StepShape> = cases.iter().map(|case| case.shape.clone()).collect();
    let found = measure(
        &mut *backend,
        &geometry,
        &shapes,
        Options { rounds, seed: 0, clock: Clock::Wall },
        &mut |_, _| (),
    )?;

    let headers = [
        "step",
        "sequences",
        "context",
        "tokens_per_s",
        "least",
        "most",
        "gb_per_s",
        "gflop_per_s",
        "roofline_tokens_per_s",
        "of_roofline_percent",
    ];
    let mut table = Table::new(headers);
    for (case, rounds) in cases.iter().zip(&found.rounds_ns) {
        let mut seconds: Vec<f64> = rounds.iter().map(|ns| ns / 1e9).collect();
        seconds.sort_unstable_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];
        let tokens = f64::from(case.tokens);
        let floor = bounds.floor_s(case);
        let number = |value: f64| Value::Number(value, Unit::Plain);
        table.row([
            Value::from(case.kind),
            Value::Count(case.sequences.into()),
            Value::Count(case.context.into()),
            number(tokens / median),
            number(tokens / seconds[seconds.len() - 1]),
            number(tokens / seconds[0]),
            number(case.bytes / median / 1e9),
            number(case.flops / median / 1e9),
            floor.map_or(Value::Empty, |floor| number(tokens / floor)),
            floor.map_or(Value::Empty, |floor| number(floor / median * 100.0)),
        ]);
    }
    let mut out = stdout().lock();
    out.write_all(table.render(format_of(matches))?.as_bytes())?;
    let words = loaded.words(&*backend);
    let mut err = std::io::stderr();
    let (disturbed, timed) = (found.disturbed, found.timed);
    writeln!(
        err,
        "{words}; measured just before: {}; {disturbed} of {timed} steps were disturbed",
        bounds.words
    )?;
    Ok(())
}

/// What a device can do at best, measured.
struct Bounds {
    bytes_per_s: f64,
    /// Operations per second; none where they were not measured.
    flops: Option<f64>,
    words: String,
}

impl Bounds {
    fn measure(device: &Device) -> Result<Bounds, Trouble> {
        if let Some(gpu) = device.gpu() {
            let bytes_per_s = cuda::copy_bandwidth(gpu).map_err(of_engine)?.median;
            let words = format!("{:.1} GB/s in copies", bytes_per_s / 1e9);
            return Ok(Bounds { bytes_per_s, flops: None, words });
        }
        let machine = Machine::measure().map_err(of_engine)?;
        let (read, flops) = (machine.read_bytes_per_s / 1e9, machine.flops / 1e9);
        let words = format!("{read:.1} GB/s read, {flops:.1} GFLOP/s in f32");
        Ok(Bounds { bytes_per_s: machine.read_bytes_per_s, flops: Some(machine.flops), words })
    }

    /// The least seconds that a step takes; none for prompts where operations were not measured.
    fn floor_s(&self, case: &Case) -> Option<f64> {
        let reading = case.bytes / self.bytes_per_s;
        match self.flops {
            Some(flops) => Some(reading.max(case.flops / flops)),
            None if case.kind == "decode" => Some(reading),
            None => None,
        }
    }
}

/// What a step needs at least: every weight once, the cells that its tokens read, two operations per
/// weight and token and four per number of K that a token meets.
fn case(kind: &'static str, weights: &Weights, kv: KvType, shape: StepShape) -> Case {
    let config = &weights.config;
    let (mut bytes, mut flops) = (0.0, 0.0);
    let tokens = f64::from(shape.tokens());
    let samples = (shape.decodes.len() + shape.prefills.iter().filter(|piece| piece.samples).count()) as f64;
    for layer in &weights.layers {
        for matrix in [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down] {
            bytes += matrix.bytes() as f64;
            flops += 2.0 * (matrix.rows * matrix.cols) as f64 * tokens;
        }
    }
    bytes += weights.embedding.bytes() as f64;
    flops += 2.0 * (weights.embedding.rows * weights.embedding.cols) as f64 * samples;
    for kind in &config.layers {
        let reach = if *kind == LayerKind::Local { Reach::Window(config.window as u32) } else { Reach::Full };
        let decodes = shape.decodes.iter().map(|&context| f64::from(reach.clip(context)));
        let cells: f64 = decodes.sum();
        let pieces =
            shape.prefills.iter().flat_map(|piece| (1..=piece.tokens).map(|new| piece.context + new));
        let pairs: f64 = cells + pieces.map(|context| f64::from(reach.clip(context))).sum::<f64>();
        bytes += cells * 2.0 * kv.bytes(config.kv_width()) as f64;
        flops += pairs * 4.0 * config.query_width() as f64;
    }
    let context = shape.decodes.first().copied().unwrap_or(0);
    Case {
        kind,
        sequences: shape.decodes.len().max(1) as u32,
        context,
        tokens: shape.tokens(),
        shape,
        bytes,
        flops,
    }
}

/// A cache with cells of its own for every sequence of the largest case.
fn geometry(weights: &Weights, cases: &[Case]) -> Result<Geometry, Trouble> {
    let config = &weights.config;
    let window = config.window as u32;
    let sequences = cases.iter().map(|case| case.sequences).max().unwrap_or(1);
    let context = cases.iter().map(|case| case.context.max(case.tokens)).max().unwrap_or(1);
    if context as usize > config.max_positions {
        return Err(usage(format!(
            "{context} tokens: the model was made for {} at most",
            config.max_positions
        )));
    }
    let longest = |clip: fn(u32, u32) -> u32| {
        let of_case = |case: &Case| {
            let decodes =
                case.shape.decodes.iter().map(|&context| u64::from(clip(context, window))).sum::<u64>();
            decodes + case.shape.prefills.iter().map(|piece| u64::from(piece.tokens)).sum::<u64>()
        };
        cases.iter().map(of_case).max().unwrap_or(1)
    };
    let class = |kind, name: &str, reach, cells: u64| LayerClass {
        name: name.to_owned(),
        layers: config.layers.iter().filter(|&&layer| layer == kind).count() as u32,
        reach,
        cells: u32::try_from(cells).unwrap_or(u32::MAX),
    };
    let local = class(LayerKind::Local, "local", Reach::Window(window), longest(u32::min));
    let global = class(LayerKind::Global, "global", Reach::Full, longest(|context, _| context));
    let classes = [local, global].into_iter().filter(|class| class.layers > 0).collect();
    Ok(Geometry {
        classes,
        context_max: context,
        batch_max: context.max(sequences),
        sequences_max: sequences,
    })
}
