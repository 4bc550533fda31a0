//! Which model the engine runs, over which cache.

use std::io::{Write, stderr};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use engine::cuda::Precision;
use engine::load::{Model, Options};
use engine::serve::shape_for;
use engine::tokenizer::Tokenizer;
use engine::{Backend, EngineError, KvType, LayerKind, Weights};
use policies::{Geometry, LayerClass, POLICIES, Policy, Reach, block_size, make_policy};

use crate::device::{self, Device, Resident};
use crate::engine_setup::{compute_on, load};
use crate::trouble::{Source, Trouble, usage};

/// Cells are a multiple of it, as servers pad them.
const PAD: u32 = 32;

/// A model that is loaded.
pub struct Loaded {
    /// The weights.
    pub weights: Arc<Weights>,
    /// The device that computes.
    pub device: Device,
    /// The weights on it.
    pub resident: Resident,
    /// How text becomes tokens, if the model says so.
    pub tokenizer: Option<Tokenizer>,
    /// Tokens that end an answer.
    pub stops: Vec<u32>,
    /// Where it comes from, in words.
    pub source: String,
}

/// A backend, and who chooses the cells of its cache.
pub type Cache = (Box<dyn Backend>, Box<dyn Policy>);

/// Adds the flags that choose a model.
pub fn model_flags(command: Command) -> Command {
    device::flags(command)
        .arg(Arg::new("model").long("model").value_name("DIR|FILE.gguf").conflicts_with("synthetic").help(
            "a folder with config.json and safetensors, or a GGUF file [default: the bundled tiny model]",
        ))
        .arg(
            Arg::new("synthetic")
                .long("synthetic")
                .value_name("SIZE")
                .help("weights made by a hash, of a published size: gemma3-270m, gemma3-1b ..."),
        )
        .arg(
            Arg::new("dequantize")
                .long("dequantize")
                .action(ArgAction::SetTrue)
                .help("compute with f32 weights, whatever the file has"),
        )
        .arg(
            Arg::new("threads")
                .long("threads")
                .value_name("N")
                .value_parser(value_parser!(NonZeroUsize))
                .help("threads that compute [default: all processors]"),
        )
}

/// Adds the flag that chooses how K and V are stored.
pub fn kv_flag(command: Command, default: &'static str) -> Command {
    command.arg(
        Arg::new("kv")
            .long("kv")
            .value_name("TYPE")
            .default_value(default)
            .value_parser(kv_type)
            .help("how K and V are stored: f32, f16, bf16, q8_0 or q4_0"),
    )
}

/// Adds the flags that choose a cache and its policy.
pub fn cache_flags(command: Command) -> Command {
    let number = |name: &'static str, default: Option<&'static str>, help: &'static str| {
        let arg =
            Arg::new(name).long(name).value_name("N").value_parser(value_parser!(u32).range(1..)).help(help);
        match default {
            Some(default) => arg.default_value(default),
            None => arg,
        }
    };
    kv_flag(command, "f32")
        .arg(
            Arg::new("policy")
                .long("policy")
                .value_name("SPEC")
                .default_value("paged")
                .help("who chooses the cells"),
        )
        .arg(
            Arg::new("rotate-on-read")
                .long("rotate-on-read")
                .action(ArgAction::SetTrue)
                .help("store K as it was before its rotation, and rotate it as it is read"),
        )
        .arg(number("num-ctx", None, "tokens of the context [default: as many as are needed]"))
        .arg(number("num-batch", Some("512"), "most tokens of a step"))
        .arg(
            Arg::new("num-keep")
                .long("num-keep")
                .value_name("N")
                .value_parser(value_parser!(u32))
                .default_value("4")
                .help("leading tokens that stay when the context is full"),
        )
}

fn kv_type(text: &str) -> Result<KvType, String> {
    Ok(match text {
        "f32" => KvType::F32,
        "f16" => KvType::F16,
        "bf16" => KvType::Bf16,
        "q8_0" => KvType::Q8_0,
        "q4_0" => KvType::Q4_0,
        _ => return Err("expected f32, f16, bf16, q8_0 or q4_0".to_owned()),
    })
}

/// What is wrong with a model is the user's to mend; a machine that is too small, or a device that fails, is not.
pub fn of_engine(error: EngineError) -> Trouble {
    match error {
        EngineError::Memory { .. } | EngineError::Device(_) => Trouble::from(error),
        error => usage(error),
    }
}

impl Loaded {
    /// Loads what the flags ask for. Call it before anything else uses threads.
    ///
    /// # Errors
    /// A model that does not exist, cannot be read, or is too large.
    pub fn new(matches: &ArgMatches) -> Result<Loaded, Trouble> {
        Loaded::on(Device::find(matches)?, matches)
    }

    /// The same on a device that was found.
    ///
    /// # Errors
    /// As [`Loaded::new`].
    pub fn on(device: Device, matches: &ArgMatches) -> Result<Loaded, Trouble> {
        compute_on(matches.get_one::<NonZeroUsize>("threads").map_or(0, |threads| threads.get()))?;
        let tiled = device.wants_tiles(matches)?;
        let dequantize = matches.get_flag("dequantize");
        let precision = if dequantize { Precision::Full } else { Precision::default() };
        let options = Options { dequantize, tiled };
        let choice = ["model", "synthetic"].map(|flag| matches.get_one::<String>(flag));
        let model = load(choice[0].map(Path::new), choice[1].map(String::as_str), options)?;
        let Model { weights, tokenizer, stops, source, .. } = model;
        let weights = Arc::new(weights);
        let resident = device.hold(&weights, precision)?;
        Ok(Loaded { weights, device, resident, tokenizer, stops, source })
    }

    /// Refuses tokens that the vocabulary does not have.
    ///
    /// # Errors
    /// The first such token and its place.
    pub fn check(&self, tokens: &[u32]) -> Result<(), Trouble> {
        let vocab = self.weights.config.vocab;
        match tokens.iter().position(|&token| token as usize >= vocab) {
            Some(at) => Err(usage(format!(
                "token {} at place {at}: the vocabulary has {vocab} tokens, 0 to {}",
                tokens[at],
                vocab - 1
            ))),
            None => Ok(()),
        }
    }

    /// The cells of one sequence of `context` tokens under a policy: a window and a batch where layers have
    /// a window, and room for the policy's blocks and for what it pads.
    pub fn geometry(&self, spec: &str, context: u32, batch: u32) -> Result<Geometry, Trouble> {
        let config = &self.weights.config;
        let source = Source::new("command line".to_owned(), format!("--policy {spec}"));
        let block = block_size(spec).map_err(|error| {
            let at = error.at.start + 9..error.at.end + 9;
            usage(source.point(at, &error.message))
        })?;
        let window = config.window as u32;
        let class = |kind, name: &str, reach, tokens: u32| LayerClass {
            name: name.to_owned(),
            layers: config.layers.iter().filter(|&&layer| layer == kind).count() as u32,
            reach,
            cells: tokens.saturating_add(batch).next_multiple_of(block.max(PAD)).saturating_add(block),
        };
        let local = class(LayerKind::Local, "local", Reach::Window(window), window);
        let global = class(LayerKind::Global, "global", Reach::Full, context);
        let classes = [local, global].into_iter().filter(|class| class.layers > 0).collect();
        Ok(Geometry { classes, context_max: context, batch_max: batch, sequences_max: 1 })
    }

    /// A backend and a policy over the cells that the flags ask for; `context` where they do not say.
    ///
    /// # Errors
    /// A policy that does not exist, or a cache that the engine cannot make.
    pub fn cache(&self, matches: &ArgMatches, context: u32) -> Result<Cache, Trouble> {
        let spec = matches.get_one::<String>("policy").expect("the policy has a default");
        let batch = *matches.get_one::<u32>("num-batch").expect("the batch has a default");
        let context = matches.get_one::<u32>("num-ctx").copied().unwrap_or(context);
        let geometry = self.geometry(spec, context, batch.min(context))?;
        let policy = make_policy(spec, &geometry).map_err(usage)?;
        if policy.wants_future() {
            return Err(usage(format!(
                "{spec} is a bound that has to know the requests to come; here it cannot"
            )));
        }
        let name = spec.split([':', '+']).next().unwrap_or_default();
        if let Some(known) = POLICIES.iter().find(|known| known.name == name && !known.faults.is_empty()) {
            let faults = known.faults;
            writeln!(stderr(), "note: {name} reproduces faults that can change what is computed: {faults}")?;
        }
        let kv = *matches.get_one::<KvType>("kv").expect("the type has a default");
        let mut shape = shape_for(spec, &self.weights.config, &geometry, kv).map_err(of_engine)?;
        shape.rotated &= !matches.get_flag("rotate-on-read");
        let backend = self.resident.backend(shape).map_err(of_engine)?;
        Ok((backend, policy))
    }

    /// The device and the model, in words.
    pub fn words(&self, backend: &dyn Backend) -> String {
        format!("{} on {}", self.source, backend.device())
    }
}
