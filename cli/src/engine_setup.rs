//! The engine as the command line asks for it: which weights, on how many threads, over which cache.

use std::io::{Write as _, stderr};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use engine::clock::Clock;
use engine::cuda::Precision;
use engine::load::{Model as LoadedModel, Options};
use engine::serve::shape_for;
use engine::tokenizer::Tokenizer;
use engine::{Backend, CacheShape, Config, Data, EngineError, LayerKind, Weights, synthetic};
use policies::Geometry;
use sim::model::{KvType, Model, ModelClass, WeightType};

use crate::device::{self, Device, Resident};
use crate::trouble::{Trouble, usage};

/// Seed of the weights of a synthetic model.
const SEED: u64 = 0;

/// A model that is loaded, and what the simulator has to know of it.
#[derive(Clone)]
pub struct EngineSetup {
    /// The weights.
    pub weights: Arc<Weights>,
    /// The same on the device that computes.
    resident: Resident,
    /// Its tokenizer, where it has one.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Their shape, as the simulator prices it.
    pub model: Model,
    /// How most of them are stored.
    pub weight_type: WeightType,
    /// Threads that compute.
    pub threads: usize,
    /// Which time counts.
    pub clock: Clock,
}

/// Adds the flags that choose a model and threads.
pub fn flags(command: Command) -> Command {
    let engine = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help).help_heading("Engine")
    };
    device::flags(command)
        .arg(
            engine(
                "engine-model",
                "DIR|FILE.gguf",
                "a checkpoint: a folder of safetensors, or a GGUF file [default: the bundled tiny model]",
            )
            .conflicts_with("synthetic"),
        )
        .arg(engine(
            "synthetic",
            "NAME",
            "weights made by a hash, of a published size: gemma3-270m, gemma3-1b ...",
        ))
        .arg(
            engine("threads", "N", "threads that compute [default: all processors; 1 for tiny models]")
                .value_parser(value_parser!(NonZeroUsize)),
        )
        .arg(
            Arg::new("processor-time")
                .long("processor-time")
                .action(ArgAction::SetTrue)
                .help(
                    "count the time that the process computes, not what passes: for busy machines, 1 thread",
                )
                .help_heading("Engine"),
        )
}

impl EngineSetup {
    /// Loads what the flags ask for. Call it before anything else uses threads.
    ///
    /// # Errors
    /// A model that does not exist or cannot be read.
    pub fn new(matches: &ArgMatches) -> Result<EngineSetup, Trouble> {
        let threads = match matches.get_one::<NonZeroUsize>("threads") {
            Some(threads) => threads.get(),
            None if is_tiny(matches) => 1,
            None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        };
        let threads = compute_on(threads)?;
        let choice = ["engine-model", "synthetic"].map(|flag| matches.get_one::<String>(flag));
        let device = Device::find(matches)?;
        let options = Options { tiled: device.wants_tiles(matches)?, ..Options::default() };
        let model = load(choice[0].map(Path::new), choice[1].map(String::as_str), options)?;
        EngineSetup::of(model, &device, threads, clock(matches, threads)?)
    }

    /// The bundled tiny model, on the threads of the pool that this runs in.
    ///
    /// # Errors
    /// Never but for a build whose model is broken.
    pub fn bundled() -> Result<EngineSetup, Trouble> {
        let model = load(None, None, Options::default())?;
        EngineSetup::of(model, &Device::Cpu, rayon::current_num_threads(), Clock::Wall)
    }

    fn of(
        loaded: LoadedModel,
        device: &Device,
        threads: usize,
        clock: Clock,
    ) -> Result<EngineSetup, Trouble> {
        let LoadedModel { weights, tokenizer, .. } = loaded;
        let (model, weight_type) = (model_of(&weights.config), weight_type_of(&weights));
        let (weights, tokenizer) = (Arc::new(weights), tokenizer.map(Arc::new));
        let resident = device.hold(&weights, Precision::default())?;
        if clock == Clock::Processor && !resident.is_cpu() {
            return Err(usage("--processor-time is what the processor computes: expected --device cpu"));
        }
        Ok(EngineSetup { weights, resident, tokenizer, model, weight_type, threads, clock })
    }

    /// A backend with so many cells.
    ///
    /// # Errors
    /// A cache that the engine cannot make.
    pub fn backend(&self, geometry: &Geometry, kv: KvType) -> Result<Box<dyn Backend>, EngineError> {
        self.resident.backend(CacheShape::new(&self.weights.config, geometry, self.stored(kv))?)
    }

    /// A backend with the cache that a policy of this geometry needs.
    ///
    /// # Errors
    /// A cache that the engine cannot make.
    pub fn backend_for(
        &self,
        policy: &str,
        geometry: &Geometry,
        kv: KvType,
    ) -> Result<Box<dyn Backend>, EngineError> {
        self.resident.backend(shape_for(policy, &self.weights.config, geometry, self.stored(kv))?)
    }

    /// How K and V are stored: a GPU attends over 16 bits fast, and by range at all, where they are bf16.
    fn stored(&self, kv: KvType) -> engine::KvType {
        match kv {
            KvType::F16 if !self.resident.is_cpu() => engine::KvType::Bf16,
            kv => engine_kv(kv),
        }
    }

    /// What computes, in words: the GPU, or the processor and the number of threads.
    pub fn device(&self, backend: &dyn Backend) -> String {
        if !self.resident.is_cpu() {
            return backend.device();
        }
        let plural = if self.threads == 1 { "" } else { "s" };
        let clock = match self.clock {
            Clock::Wall => "",
            Clock::Processor => ", processor time",
        };
        format!("{}, {} thread{plural}{clock}", backend.device(), self.threads)
    }
}

/// Makes a pool of so many threads for everything that computes, this thread the first of them: work that
/// a thread of the pool hands out waits for nobody to wake up. Returns how many threads there are; without
/// effect if it has been called before.
///
/// # Errors
/// More threads than the system gives.
pub fn compute_on(threads: usize) -> Result<usize, Trouble> {
    static POOL: OnceLock<Result<(), String>> = OnceLock::new();
    let made = POOL.get_or_init(|| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
        pool.build_global().map_err(|error| error.to_string())
    });
    made.clone().map_err(|error| usage(format!("--threads {threads}: {error}")))?;
    Ok(rayon::current_num_threads())
}

/// The clock asked for.
fn clock(matches: &ArgMatches, threads: usize) -> Result<Clock, Trouble> {
    if !matches.get_flag("processor-time") {
        return Ok(Clock::Wall);
    }
    if threads > 1 {
        return Err(usage("--processor-time is for one thread: expected --threads 1"));
    }
    if !Clock::Processor.is_there() {
        return Err(usage("--processor-time: this system does not tell what a process computes"));
    }
    Ok(Clock::Processor)
}

/// Whether the model is so small that threads wait for each other longer than they compute.
fn is_tiny(matches: &ArgMatches) -> bool {
    match matches.get_one::<String>("synthetic") {
        Some(name) => name.ends_with("-tiny"),
        None => matches.get_one::<String>("engine-model").is_none(),
    }
}

/// A model from files, or of a published size with weights made by a hash, or else the bundled one.
///
/// # Errors
/// A model that does not exist, cannot be read, or is too large.
pub fn load(path: Option<&Path>, synthetic: Option<&str>, options: Options) -> Result<LoadedModel, Trouble> {
    let of_engine = |error: EngineError| match error {
        EngineError::Memory { .. } => Trouble::from(error),
        error => usage(error),
    };
    let model = match (path, synthetic) {
        (Some(path), _) => engine::load::load(path, options).map_err(of_engine),
        (None, Some(size)) => {
            let config = Config::preset(size).map_err(|error| usage(format!("--synthetic: {error}")))?;
            let weights = synthetic::weights(&config, SEED, options.dequantize).map_err(of_engine)?;
            let source = format!("{size}, weights made by a hash");
            Ok(LoadedModel { weights, tokenizer: None, bos: None, stops: Vec::new(), source })
        }
        (None, None) => engine::quality::tiny::model().map_err(of_engine),
    }?;
    if options.tiled && !model.weights.is_tiled() {
        writeln!(stderr(), "note: no weights in q8_0 or q4_0 can be tiled, so activations stay f32")?;
    }
    Ok(model)
}

/// The type of K and V that the engine calls so.
pub fn engine_kv(kv: KvType) -> engine::KvType {
    match kv {
        KvType::F32 => engine::KvType::F32,
        KvType::F16 => engine::KvType::F16,
        KvType::Q8_0 => engine::KvType::Q8_0,
        KvType::Q4_0 => engine::KvType::Q4_0,
    }
}

/// A model of the engine as the simulator sees it: layers by kind, local ones first.
pub fn model_of(config: &Config) -> Model {
    let number = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
    let layers = |kind| number(config.layers.iter().filter(|&&layer| layer == kind).count());
    let classes =
        [("local", LayerKind::Local, Some(number(config.window))), ("global", LayerKind::Global, None)];
    let classes = classes.into_iter().map(|(name, kind, window)| ModelClass {
        name: name.to_owned(),
        layers: layers(kind),
        window,
    });
    Model {
        name: config.name.clone(),
        hidden: number(config.hidden),
        query_heads: number(config.query_heads),
        kv_heads: number(config.kv_heads),
        head_dim: number(config.head_dim),
        ffn: number(config.ffn),
        vocab: number(config.vocab),
        max_positions: number(config.max_positions),
        tied: true,
        classes: classes.filter(|class| class.layers > 0).collect(),
    }
}

/// The type of the linear layers; Q4_0 with an embedding in 16 bits is Google's.
fn weight_type_of(weights: &Weights) -> WeightType {
    let linear = weights.layers.first().map_or(&weights.embedding.data, |layer| &layer.down.data);
    match (linear, &weights.embedding.data) {
        (Data::F32(_), _) => WeightType::F32,
        (Data::Bf16(_) | Data::F16(_), _) => WeightType::Bf16,
        (Data::Q8_0(_), _) => WeightType::Q8_0,
        (Data::Tiles(tiles), _) if tiles.is_q8() => WeightType::Q8_0,
        (_, Data::Bf16(_) | Data::F16(_)) => WeightType::Q4_0Qat,
        (Data::Q4_0(_) | Data::Q6K(_) | Data::Tiles(_), _) => WeightType::Q4_0,
    }
}
