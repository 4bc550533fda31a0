//! Where a model runs: one GPU with its cells, or a host on which Ollama has placed it.

use std::fmt::Debug;

use engine::load::Stored;
use policies::ollama::{PAD, PAD_FLASH};
use policies::scheduler::Limits;
use sim::Leak;
use sim::cost::CostModel;
use sim::cost::linear::{Calibration, LinearError};
use sim::cost::roofline::Roofline;
use sim::cost::split::Split;
use sim::cost::table::Table;
use sim::hardware::Gpu;
use sim::host::Host;
use sim::memory::{Memory, RESERVE_BYTES, Sizing, fit_blocks};
use sim::model::{KvType, Model, WeightType};
use sim::ollama::{Fit, Loaded, ModelFile, OllamaError, Options, load};

use super::resolve::{AUTO_PARALLEL, at_least_zero, check_names, device_list, positive, shares, switch};
use super::room::Shortage;
use super::{Family, Prices, file_name};
use crate::engine_setup::{EngineSetup, model_of};
use crate::settings::{Settings, Value};
use crate::trouble::{Trouble, usage};

/// A device, or several in one computer.
#[derive(Clone, Debug)]
enum Hardware {
    Gpu(Box<Gpu>),
    Host(Box<Host>),
}

impl Hardware {
    fn gpus(&mut self) -> impl Iterator<Item = &mut Gpu> {
        let (one, many) = match self {
            Hardware::Gpu(gpu) => (Some(&mut **gpu), [].iter_mut()),
            Hardware::Host(host) => (None, host.gpus.iter_mut()),
        };
        one.into_iter().chain(many.map(|slot| &mut slot.gpu))
    }
}

/// A model that is to run on some hardware.
#[derive(Clone, Debug)]
pub(super) struct Deployment {
    pub model: Model,
    pub model_name: String,
    weights: WeightType,
    hardware: Hardware,
    kv: KvType,
    /// Whether the engine runs it: its cache has so many cells per slot, or as many as are asked for.
    on_engine: bool,
}

/// A deployment under limits: cells, bytes and price.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub deployment: Deployment,
    /// Name of the hardware, as far as the server may see it.
    pub device: String,
    pub limits: Limits,
    pub memory: Memory,
    /// Type of K and V in effect.
    pub kv: KvType,
    /// Number of its cost model.
    pub cost: usize,
    /// What Ollama has done, on a host.
    loaded: Option<Loaded>,
}

/// What a server finds: the GPUs of a host (none listed for a single GPU), and its model.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Names of the GPUs of a host.
    pub gpus: Vec<String>,
    /// Names of the model's layer classes.
    pub classes: Vec<String>,
    /// Longest context that the model was made for, tokens.
    pub context_max: u32,
}

/// What the server of some settings finds.
///
/// # Errors
/// Hardware or a model that is not known.
pub fn machine(settings: &Settings) -> Result<Machine, Trouble> {
    let all = Deployment::all(settings, None)?;
    Ok(all.first().expect("a model and a GPU have defaults").machine())
}

impl Deployment {
    /// Every model on all hardware with each type of cache; the engine's model on the engine, if there
    /// is one.
    pub fn all(settings: &Settings, engine: Option<&EngineSetup>) -> Result<Vec<Self>, Trouble> {
        if let Some(engine) = engine {
            return settings.all("kv_cache_type").iter().map(|kv| Self::on_engine(engine, kv)).collect();
        }
        check_names(settings, "model")?;
        let bus = settings.one("pcie_gb_per_s");
        let bus = bus.map(|value| positive(&value, "a number of GB/s above 0")).transpose()?;
        let mut all = Vec::new();
        for name in settings.all("model") {
            let (model, weights) = model(settings, &name)?;
            for gpu in settings.all("gpu") {
                let mut hardware = hardware(settings, &gpu)?;
                hardware.gpus().for_each(|gpu| gpu.pcie = bus.unwrap_or(gpu.pcie));
                for kv in settings.all("kv_cache_type") {
                    let kv = kv_type(&kv)?;
                    let (model, hardware) = (model.clone(), hardware.clone());
                    let model_name = file_name(&name.text);
                    all.push(Deployment { model, model_name, weights, hardware, kv, on_engine: false });
                }
            }
        }
        Ok(all)
    }

    /// What a server finds, whatever it is told.
    pub fn machine(&self) -> Machine {
        Machine {
            gpus: match &self.hardware {
                Hardware::Gpu(_) => Vec::new(),
                Hardware::Host(host) => host.gpus.iter().map(|gpu| gpu.gpu.name.clone()).collect(),
            },
            classes: self.model.classes.iter().map(|class| class.name.clone()).collect(),
            context_max: self.model.max_positions,
        }
    }

    fn on_engine(engine: &EngineSetup, kv: &Value) -> Result<Self, Trouble> {
        let gpu = sim::hardware::find("cpu").expect("the catalogue has a CPU");
        Ok(Deployment {
            model: engine.model.clone(),
            model_name: engine.model.name.clone(),
            weights: engine.weight_type,
            hardware: Hardware::Gpu(Box::new(gpu)),
            kv: kv_type(kv)?,
            on_engine: true,
        })
    }

    /// Name of the GPU; of a host that of all its GPUs, or of those that a server may see.
    fn device_name(&self, visible: Option<&[usize]>) -> String {
        match (&self.hardware, visible) {
            (Hardware::Gpu(gpu), _) => gpu.name.clone(),
            (Hardware::Host(host), None) => host.name.clone(),
            (Hardware::Host(host), Some(visible)) => {
                let names: Vec<&str> = visible.iter().map(|&at| host.gpus[at].gpu.name.as_str()).collect();
                names.join("+")
            }
        }
    }

    /// What steps cost on a GPU, whatever the limits. On a host it depends on them.
    pub fn cost(&self, settings: &Settings, prices: &Prices) -> Result<Option<Box<dyn CostModel>>, Trouble> {
        let Deployment { model, weights, kv, .. } = self;
        let Hardware::Gpu(gpu) = &self.hardware else {
            return match prices {
                Prices::Spec => Ok(None),
                _ => {
                    let value = settings.one("cost").expect("the key has a default");
                    Err(value.wrong("a host is priced from data sheets only; expected spec"))
                }
            };
        };
        let wrong = |error: LinearError| {
            settings.one("cost").expect("the key has a default").wrong(error.to_string())
        };
        Ok(Some(match prices {
            Prices::Spec => Box::new(Roofline::spec(model, *weights, *kv, gpu)),
            Prices::Fitted(fitted) => Box::new(fitted.cost(model, *weights, *kv, gpu).map_err(usage)?),
            Prices::Linear(calibration) => {
                Box::new(calibration.cost(model, *weights, *kv, gpu).map_err(wrong)?)
            }
            Prices::Profile(profile) => {
                Box::new(Table::new((**profile).clone(), model, *kv, gpu).map_err(usage)?)
            }
        }))
    }

    /// The deployment under limits. `shared` is the number of the cost model that [`cost`](Self::cost)
    /// made; on a host one is made here.
    pub fn seat(
        &self,
        settings: &Settings,
        family: Family,
        limits: Limits,
        block_size: u32,
        shared: Option<usize>,
        costs: &mut Vec<Box<dyn CostModel>>,
    ) -> Result<Seat, Trouble> {
        let seat = match (&self.hardware, shared) {
            (Hardware::Gpu(gpu), Some(cost)) => {
                let seat = self.on_gpu(settings, gpu, family, limits, block_size)?;
                Seat { cost, ..seat }
            }
            (Hardware::Gpu(_), None) => unreachable!("a GPU has a cost model whatever the limits"),
            (Hardware::Host(host), _) => {
                let seat = self.on_host(settings, host, limits, block_size)?;
                let loaded = seat.loaded.as_ref().expect("the model was placed");
                costs.push(Box::new(Split::of(loaded, host, &self.model, self.weights, limits.num_batch)));
                Seat { cost: costs.len() - 1, ..seat }
            }
        };
        if seat.limits.num_batch < seat.limits.num_parallel {
            let is_it = |value: &Value| value.text.parse() == Ok(seat.limits.num_batch);
            let value = settings.all("num_batch").into_iter().find(is_it).expect("a value gave the number");
            return Err(value.wrong(format!(
                "num_batch {} is below num_parallel {}; every sequence needs one token of a batch",
                seat.limits.num_batch, seat.limits.num_parallel
            )));
        }
        Ok(seat)
    }

    fn on_gpu(
        &self,
        settings: &Settings,
        gpu: &Gpu,
        family: Family,
        limits: Limits,
        block_size: u32,
    ) -> Result<Seat, Trouble> {
        // What counts on hosts only has to make sense all the same.
        host_options(settings, self.kv, limits)?;
        let value = settings.one("memory").expect("the key has a default");
        let utilization = settings.one("gpu_memory_utilization").expect("the key has a default");
        let fraction = positive(&utilization, "a share above 0, at most 1")?;
        if fraction > 1.0 {
            let message = format!("{:?} is not a share above 0, at most 1", utilization.text);
            return Err(utilization.wrong(message));
        }
        let Limits { num_ctx, num_parallel, num_batch, .. } = limits;
        if num_parallel == AUTO_PARALLEL {
            let value = settings.one("num_parallel").expect("the key has a default");
            return Err(value.wrong("auto is for hosts, where Ollama chooses by memory; give a number"));
        }
        let pad = if switch(settings, "flash_attention")? { PAD_FLASH } else { PAD };
        let per_slot =
            |own_batch| Sizing::PerSlot { slots: num_parallel, num_ctx, num_batch, pad, own_batch };
        let sizing = match (value.text.as_str(), family) {
            ("per-slot", _) | ("auto", Family::Runner(_)) => per_slot(false),
            ("per-slot-0.6.2", _) => per_slot(true),
            ("auto", _) if self.on_engine => per_slot(false),
            ("fill", _) if self.on_engine => {
                return Err(value.wrong("fill is for GPUs; on the engine give per-slot, or cells per class"));
            }
            ("fill", _) | ("auto", Family::Continuous(_)) => {
                Sizing::Fill { fraction, sequences: num_parallel, num_ctx, num_batch, pad: 256 }
            }
            _ => Sizing::Cells(explicit_cells(&value, &self.model)?),
        };
        let memory = fit_blocks(&self.model, self.weights, self.kv, gpu, RESERVE_BYTES, &sizing, block_size)
            .map_err(|error| match Shortage::of(&error) {
                Some(shortage) => Trouble::NoRoom(shortage, value.wrong(error.to_string()).text()),
                None => value.wrong(error.to_string()),
            })?;
        let (deployment, device) = (self.clone(), self.device_name(None));
        Ok(Seat { deployment, device, limits, memory, kv: self.kv, cost: 0, loaded: None })
    }

    fn on_host(
        &self,
        settings: &Settings,
        host: &Host,
        mut limits: Limits,
        block_size: u32,
    ) -> Result<Seat, Trouble> {
        let mut options = host_options(settings, self.kv, limits)?;
        if self.kv == KvType::F32 {
            let value = settings.all("kv_cache_type").into_iter().find(|value| value.text == "f32");
            let value = value.expect("a value gave the type");
            return Err(value.wrong("Ollama has no cache of f32; expected f16, q8_0 or q4_0"));
        }
        let file = ModelFile::new(&self.model, self.weights.into());
        let mut file = file.map_err(|error| self.misplaced(settings, &error))?;
        if options.shares.is_some() {
            // llama-server has no eyes unless it is given a file of its own for them.
            file.vision = None;
        }
        let place = |options: &Options| load(host, &file, options).map_err(|e| self.misplaced(settings, &e));
        let mut loaded = place(&options)?;
        let value = settings.one("memory").expect("the key has a default");
        let per_slot = |own_batch| {
            let Limits { num_ctx, num_batch, .. } = limits;
            let pad = if options.flash_attention { PAD_FLASH } else { PAD };
            let sizing = Sizing::PerSlot { slots: loaded.parallel(), num_ctx, num_batch, pad, own_batch };
            sizing.per_slot_cells(&self.model, block_size)
        };
        let cells = match value.text.as_str() {
            "auto" | "per-slot" => per_slot(false),
            "per-slot-0.6.2" => per_slot(true),
            "fill" => return Err(value.wrong("fill needs a single GPU; on a host Ollama sizes per slot")),
            _ => Some(explicit_cells(&value, &self.model)?),
        };
        if cells.as_ref() != Some(&loaded.cells) {
            options.cells = cells;
            loaded = place(&options)?;
        }
        limits.num_parallel = loaded.parallel();
        Ok(Seat {
            deployment: self.clone(),
            device: self.device_name(options.visible_devices.as_deref()),
            limits,
            memory: loaded.memory(),
            kv: loaded.kv,
            cost: 0,
            loaded: Some(loaded),
        })
    }

    /// Why Ollama cannot place the model, at the setting that is to blame.
    fn misplaced(&self, settings: &Settings, error: &OllamaError) -> Trouble {
        let key = match error {
            OllamaError::NoSuchDevice { .. } | OllamaError::Twice { .. } => "visible_devices",
            OllamaError::Shares { .. } => "layer_split",
            OllamaError::NotGemma3 { .. } => "model",
            OllamaError::Zero { field } | OllamaError::TooLarge { field, .. } => {
                if ["num_ctx", "num_batch", "num_parallel"].contains(field) { field } else { "model" }
            }
        };
        settings.one(key).expect("the key has a default").wrong(error.to_string())
    }
}

/// What an Ollama server is told.
fn host_options(settings: &Settings, kv: KvType, limits: Limits) -> Result<Options, Trouble> {
    Ok(Options {
        num_ctx: limits.num_ctx,
        num_batch: limits.num_batch,
        num_parallel: limits.num_parallel,
        kv,
        flash_attention: switch(settings, "flash_attention")?,
        spread: switch(settings, "sched_spread")?,
        gpu_overhead_bytes: (at_least_zero(settings, "gpu_overhead_gib")? * f64::from(1 << 30)) as u64,
        visible_devices: device_list(settings)?,
        sysmem_fallback: switch(settings, "sysmem_fallback")?,
        cells: None,
        shares: shares(settings)?,
    })
}

impl Seat {
    /// Why the model cannot be loaded, if it cannot.
    pub fn load_error(&self) -> Option<String> {
        self.loaded.as_ref()?.error.as_ref().map(ToString::to_string)
    }

    /// Whether Ollama has placed the model on a host.
    pub fn is_placed(&self) -> bool {
        self.loaded.is_some() && !self.is_dealt()
    }

    /// Whether layers were dealt to the GPUs of a host as llama-server does.
    pub fn is_dealt(&self) -> bool {
        self.loaded.as_ref().is_some_and(|loaded| loaded.fit() == Fit::Dealt)
    }

    /// Whether a quantised cache was asked for where there can be none.
    pub fn is_kv_type_ignored(&self) -> bool {
        self.loaded.as_ref().is_some_and(|loaded| loaded.kv_type_ignored)
    }

    /// Bytes needed and there, per device: `rtx8000=20.4/46.5;gtx1660super=7.5/5.1`, GiB.
    pub fn memory_text(&self) -> String {
        let Some(loaded) = &self.loaded else {
            let (needed, there) = (self.memory.needed_bytes(), self.memory.device_bytes);
            return format!("{}={}/{}", self.device, gib_text(needed), gib_text(there));
        };
        let mut parts = per_device(loaded, |device| {
            format!("{}/{}", gib_text(device.bytes.total()), gib_text(device.free_bytes))
        });
        if let (Hardware::Host(host), true) =
            (&self.deployment.hardware, loaded.ram_layers.iter().any(|&layers| layers > 0))
        {
            let there = gib_text(host.ram_free_bytes());
            parts.push(format!("cpu={}/{there}", gib_text(loaded.ram.total())));
        }
        parts.join(";")
    }

    /// What Ollama's estimator believes, per device, GiB; empty where it is not asked.
    pub fn estimate_text(&self) -> String {
        let text = |loaded| per_device(loaded, |device| gib_text(device.estimated_bytes)).join(";");
        self.loaded.as_ref().filter(|_| self.is_placed()).map(text).unwrap_or_default()
    }

    /// GiB in main memory because a device is full.
    pub fn spilled_gib(&self) -> f64 {
        self.loaded.as_ref().map_or(0.0, |loaded| gib(loaded.spilled_bytes()))
    }

    /// What does not fit on a host, even if it runs all the same with the excess in main memory.
    pub fn shortage(&self) -> Option<Shortage> {
        Shortage::of_loaded(self.loaded.as_ref()?)
    }

    /// What images leak, and how much may leak.
    pub fn leak(&self) -> Leak {
        let room_bytes = self.loaded.as_ref().map(|loaded| loaded.ram_left_bytes);
        Leak { image_bytes: Leak::OLLAMA_IMAGE_BYTES, room_bytes }
    }

    /// Everything that determines results.
    pub fn identity(&self) -> impl Debug {
        let Deployment { model, weights, hardware, .. } = &self.deployment;
        (model, weights, hardware, &self.kv, &self.memory.cells, &self.loaded)
    }
}

/// A text per device, behind its name; the number of the device too where names repeat.
fn per_device(loaded: &Loaded, text: impl Fn(&sim::ollama::Device) -> String) -> Vec<String> {
    let name = |device: &sim::ollama::Device| {
        let same = loaded.devices.iter().filter(|other| other.name == device.name).count();
        if same > 1 { format!("{}:{}", device.name, device.index) } else { device.name.clone() }
    };
    loaded.devices.iter().map(|device| format!("{}={}", name(device), text(device))).collect()
}

pub(super) fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

pub(super) fn gib_text(bytes: u64) -> String {
    format!("{:.1}", gib(bytes))
}

fn kv_type(value: &Value) -> Result<KvType, Trouble> {
    value.text.parse().map_err(|_| value.wrong(format!("{:?} is not one of {}", value.text, KvType::NAMES)))
}

fn model(settings: &Settings, name: &Value) -> Result<(Model, WeightType), Trouble> {
    if [".gguf", ".json"].iter().any(|end| name.text.ends_with(end)) {
        let described = engine::load::describe(&settings.path(name));
        let described = described.map_err(|error| name.wrong(error.to_string()))?;
        let weights = match (described.linear, described.embedding) {
            (Stored::F32, _) => WeightType::F32,
            (Stored::Half, _) => WeightType::Bf16,
            (Stored::Q8, _) => WeightType::Q8_0,
            (Stored::Q4, Stored::Half) => WeightType::Q4_0Qat,
            (Stored::Q4 | Stored::Q6, _) => WeightType::Q4_0,
        };
        return Ok((model_of(&described.config), weights));
    }
    if !name.text.ends_with(".toml") {
        return sim::model::find(&name.text).map_err(|error| name.wrong(error.to_string()));
    }
    let (path, text) = description(settings, name)?;
    if is_calibration(&text) {
        let read = Calibration::from_toml(&text).map_err(|error| usage(format!("{path}: {error}")))?;
        return Ok((read.model, read.weights));
    }
    let model = Model::from_toml(&text).map_err(|error| usage(format!("{path}: {error}")))?;
    Ok((model, WeightType::Bf16))
}

/// Whether a text is the calibration of an engine, and not of a GPU of the catalogue.
pub(super) fn is_calibration(text: &str) -> bool {
    text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("layout"))
}

/// A GPU or a host; a description with a list of GPUs is one of a host.
fn hardware(settings: &Settings, name: &Value) -> Result<Hardware, Trouble> {
    let gpu = |gpu: Gpu| Hardware::Gpu(Box::new(gpu));
    let host = |host: Host| Hardware::Host(Box::new(host));
    if !name.text.ends_with(".toml") {
        return match sim::hardware::find(&name.text) {
            Ok(found) => Ok(gpu(found)),
            Err(_) => sim::host::find(&name.text).map(host).map_err(|error| name.wrong(error.to_string())),
        };
    }
    let (path, text) = description(settings, name)?;
    let table: toml::Table = text.parse().map_err(|error| usage(format!("{path}: {error}")))?;
    if ["gpu", "system", "ram_gib", "fallback_share"].iter().any(|key| table.contains_key(*key)) {
        Host::from_toml(&text).map(host).map_err(|error| usage(format!("{path}: {error}")))
    } else {
        Gpu::from_toml(&text).map(gpu).map_err(|error| usage(format!("{path}: {error}")))
    }
}

/// Path and text of a file that a setting names.
fn description(settings: &Settings, name: &Value) -> Result<(String, String), Trouble> {
    let path = settings.path(name).display().to_string();
    let text = std::fs::read_to_string(&path).map_err(|error| name.wrong(format!("{path}: {error}")))?;
    Ok((path, text))
}

/// `local=4608;global=16384`, in any order, every class once.
fn explicit_cells(value: &Value, model: &Model) -> Result<Vec<u32>, Trouble> {
    let names: Vec<&str> = model.classes.iter().map(|class| class.name.as_str()).collect();
    let expected = format!("per-slot, per-slot-0.6.2, fill, auto, or {}=N", names.join("=N;"));
    let mut cells = vec![0; names.len()];
    let mut start = 0;
    for part in value.text.split(';') {
        let at = start..start + part.len();
        start = at.end + 1;
        let wrong = || value.wrong_at(at.clone(), format!("{part:?} is not understood; expected {expected}"));
        let (name, number) = part.split_once('=').ok_or_else(wrong)?;
        let class = names.iter().position(|known| *known == name.trim()).ok_or_else(wrong)?;
        cells[class] = number.trim().parse().map_err(|_| wrong())?;
        if !(1..=1 << 30).contains(&cells[class]) {
            return Err(value.wrong_at(at, format!("{} cells; expected 1 to {}", cells[class], 1 << 30)));
        }
    }
    match cells.iter().position(|&count| count == 0) {
        Some(class) => Err(value.wrong(format!("class {} has no cells; expected {expected}", names[class]))),
        None => Ok(cells),
    }
}
