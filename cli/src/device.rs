//! The device that the engine computes on, as the command line asks for it.

use std::io::{Write, stderr};
use std::sync::Arc;

use clap::{Arg, ArgMatches, Command};
use engine::cpu::Cpu;
use engine::cuda::{self, Cuda, Gpu, Precision};
use engine::{Backend, CacheShape, EngineError, Weights};

use crate::trouble::{Trouble, usage};

/// What `--device` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Cpu,
    /// A GPU where there is one.
    Auto,
    Cuda(usize),
}

/// Where models compute.
#[derive(Clone)]
pub enum Device {
    /// The processor.
    Cpu,
    /// A GPU.
    Cuda(Gpu),
}

/// A model on its device.
#[derive(Clone)]
pub enum Resident {
    /// In main memory.
    Cpu(Arc<Weights>),
    /// On a GPU.
    Cuda(Arc<cuda::Model>),
}

/// Adds `--device` and `--activations`.
pub fn flags(command: Command) -> Command {
    command
        .arg(
            Arg::new("device")
                .long("device")
                .value_name("DEVICE")
                .default_value("cpu")
                .value_parser(choice)
                .help("cpu, cuda, cuda:N (GPUs counted from 0), or auto: a GPU where there is one")
                .help_heading("Engine"),
        )
        .arg(
            Arg::new("activations")
                .long("activations")
                .value_name("TYPE")
                .default_value("f32")
                .value_parser(["f32", "q8_0"])
                .help(
                    "what q8_0 and q4_0 weights are multiplied by on a CPU: f32, or rounded to q8_0, faster",
                )
                .help_heading("Engine"),
        )
}

fn choice(text: &str) -> Result<Choice, String> {
    match text {
        "cpu" => Ok(Choice::Cpu),
        "auto" => Ok(Choice::Auto),
        "cuda" => Ok(Choice::Cuda(0)),
        _ => {
            let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
            number
                .map(Choice::Cuda)
                .ok_or_else(|| "expected cpu, auto, cuda or cuda:N, where N counts GPUs from 0".to_owned())
        }
    }
}

/// The GPU that `--device cuda:N` names.
///
/// # Errors
/// In a sentence: no driver, no such GPU, or one that the kernels cannot be loaded on.
pub fn open(ordinal: usize) -> Result<Gpu, Trouble> {
    cuda::open(ordinal).map_err(|error| usage(format!("--device cuda:{ordinal}: {error}")))
}

impl Device {
    /// Finds the device asked for and says which GPU it is; `auto` without one says in a sentence why.
    ///
    /// # Errors
    /// A GPU that was asked for and is not there.
    pub fn find(matches: &ArgMatches) -> Result<Device, Trouble> {
        match matches.get_one::<Choice>("device").expect("the device has a default") {
            Choice::Cpu => Ok(Device::Cpu),
            Choice::Cuda(ordinal) => Device::on(open(*ordinal)?),
            Choice::Auto => match cuda::open(0) {
                Ok(gpu) => Device::on(gpu),
                Err(error) => {
                    writeln!(stderr(), "note: no GPU ({error}), so the processor computes")?;
                    Ok(Device::Cpu)
                }
            },
        }
    }

    /// A GPU, which is told.
    fn on(gpu: Gpu) -> Result<Device, Trouble> {
        let info = gpu.info();
        writeln!(stderr(), "note: {} (sm_{}, {} GiB) computes", info.name, info.arch, info.memory >> 30)?;
        Ok(Device::Cuda(gpu))
    }

    /// Whether quantised weights are to be tiled, so that activations are rounded.
    ///
    /// # Errors
    /// If that is asked of a GPU, which has its own way.
    pub fn wants_tiles(&self, matches: &ArgMatches) -> Result<bool, Trouble> {
        let is_asked_for = matches.get_one::<String>("activations").is_some_and(|kind| kind == "q8_0");
        if is_asked_for && self.gpu().is_some() {
            return Err(usage("--activations q8_0 is for the processor: expected --device cpu"));
        }
        Ok(is_asked_for)
    }

    /// The GPU, if it is one.
    pub fn gpu(&self) -> Option<&Gpu> {
        match self {
            Device::Cpu => None,
            Device::Cuda(gpu) => Some(gpu),
        }
    }

    /// Puts a model on the device. A GPU holds floating-point matrices in this precision, a processor as they are.
    ///
    /// # Errors
    /// No room for it.
    pub fn hold(&self, weights: &Arc<Weights>, precision: Precision) -> Result<Resident, EngineError> {
        Ok(match self {
            Device::Cpu => Resident::Cpu(Arc::clone(weights)),
            Device::Cuda(gpu) => Resident::Cuda(Arc::new(cuda::Model::upload(gpu, weights, precision)?)),
        })
    }
}

impl Resident {
    /// A cache of this shape over the model.
    ///
    /// # Errors
    /// A cache that the device cannot make.
    pub fn backend(&self, shape: CacheShape) -> Result<Box<dyn Backend>, EngineError> {
        Ok(match self {
            Resident::Cpu(weights) => Box::new(Cpu::new(Arc::clone(weights), shape)?),
            Resident::Cuda(model) => Box::new(Cuda::new(Arc::clone(model), shape, cuda::Options::default())?),
        })
    }

    /// Whether threads of this process compute.
    pub fn is_cpu(&self) -> bool {
        matches!(self, Resident::Cpu(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_and_counted() {
        assert_eq!(choice("cpu"), Ok(Choice::Cpu));
        assert_eq!(choice("auto"), Ok(Choice::Auto));
        assert_eq!(choice("cuda"), Ok(Choice::Cuda(0)));
        assert_eq!(choice("cuda:3"), Ok(Choice::Cuda(3)));
        for wrong in ["gpu", "cuda:", "cuda:-1", "cuda3", ""] {
            assert!(choice(wrong).is_err(), "{wrong}");
        }
    }
}
