//! Devices: a catalogue of our own typing, and others by TOML.
//!
//! Numbers of spec sheets are certain; efficiencies are priors. `Basis` says which were fitted to
//! measured kernels and which nobody measured; both deserve a band of 20 %.

use crate::model::squash;
use serde::{Deserialize, Serialize};

const CATALOGUE: &str = include_str!("catalogue/gpus.toml");
const GIB: f64 = 1_073_741_824.0;

/// Where the efficiencies of a device come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// Fitted to measured kernels of that device.
    Fit,
    /// Nobody measured them.
    Guess,
}

/// Parts of the spec sheet that real kernels reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Efficiency {
    /// Matrix products, of the FLOP/s. Above 1 where the clock exceeds the spec's.
    pub gemm: f64,
    /// Reading weights, of the bandwidth.
    pub weights: f64,
    /// Attention of one token, of the bandwidth.
    pub decode: f64,
    /// Attention of a prompt, of the FLOP/s.
    pub prefill: f64,
    /// Copies inside the device, of the bandwidth (each byte is read and written).
    #[serde(default = "copy_default")]
    pub copy: f64,
    /// Pinned transfers, of the PCIe link; paging by the driver reaches far less.
    #[serde(default = "pcie_default")]
    pub pcie: f64,
}

fn copy_default() -> f64 {
    0.8
}

fn pcie_default() -> f64 {
    0.8
}

/// A device that computes and holds the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Name for the command line.
    pub name: String,
    /// Name for reports.
    #[serde(default)]
    pub label: String,
    /// Other names that find it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Memory that programs can ask for, in GiB.
    pub memory_gib: f64,
    /// Bandwidth of that memory, in GB/s (1e9).
    pub bandwidth: f64,
    /// Dense 16-bit FLOP/s with 32-bit accumulation, in 1e12.
    pub tflops: f64,
    /// Last-level cache in MiB. For information: a step reads all weights between two reads of
    /// the same K and V, so no price depends on it.
    #[serde(default)]
    pub l2_mib: f64,
    /// PCIe, one direction, in GB/s (1e9).
    pub pcie: f64,
    /// What kernels reach.
    pub efficiency: Efficiency,
    /// Fixed time of one attention launch in microseconds.
    pub kernel_us: f64,
    /// Where the efficiencies come from.
    pub basis: Basis,
    /// Source of the row, in words.
    pub source: String,
}

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// No such name; the message lists the nearest ones.
    #[error("no GPU is called {name:?}; did you mean {suggestions}?")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The nearest names, joined by commas.
        suggestions: String,
    },
    /// The text is not TOML, or its fields are not those of a GPU; the message has the line.
    #[error("GPU description: {0}")]
    Toml(#[from] toml::de::Error),
    /// A number makes no sense.
    #[error("GPU {name:?}: {field} must be a positive number")]
    NotPositive {
        /// The device.
        name: String,
        /// Which field.
        field: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    gpu: Vec<Gpu>,
}

/// All devices of the catalogue, in its order.
///
/// # Panics
///
/// If the catalogue inside this binary is broken; a test reads it.
pub fn gpus() -> Vec<Gpu> {
    toml::from_str::<Catalogue>(CATALOGUE).expect("the built-in catalogue of GPUs is valid TOML").gpu
}

/// Finds a device by name, label or alias; case, dashes and blanks do not matter.
///
/// # Errors
///
/// `Unknown` with the nearest names.
///
/// ```
/// assert_eq!(sim::hardware::find("RTX-4090").unwrap().name, "rtx4090");
/// ```
pub fn find(name: &str) -> Result<Gpu, GpuError> {
    let wanted = squash(name);
    let known = gpus();
    let is_it = |gpu: &&Gpu| {
        squash(&gpu.name) == wanted
            || squash(&gpu.label) == wanted
            || gpu.aliases.iter().any(|alias| squash(alias) == wanted)
    };
    if let Some(gpu) = known.iter().find(is_it) {
        return Ok(gpu.clone());
    }
    Err(GpuError::Unknown {
        name: name.to_owned(),
        suggestions: nearest(&wanted, known.iter().map(|gpu| gpu.name.as_str())),
    })
}

impl Gpu {
    /// Reads a device from TOML: the fields of this struct, in its units.
    ///
    /// # Errors
    ///
    /// `Toml` with line and column; `NotPositive` if a number is zero, negative or not finite.
    pub fn from_toml(text: &str) -> Result<Self, GpuError> {
        let gpu: Self = toml::from_str(text)?;
        let numbers = [
            ("memory_gib", gpu.memory_gib),
            ("bandwidth", gpu.bandwidth),
            ("tflops", gpu.tflops),
            ("pcie", gpu.pcie),
            ("efficiency.gemm", gpu.efficiency.gemm),
            ("efficiency.weights", gpu.efficiency.weights),
            ("efficiency.decode", gpu.efficiency.decode),
            ("efficiency.prefill", gpu.efficiency.prefill),
            ("efficiency.copy", gpu.efficiency.copy),
            ("efficiency.pcie", gpu.efficiency.pcie),
            ("kernel_us", gpu.kernel_us),
        ];
        for (field, number) in numbers {
            if !(number.is_finite() && number > 0.0) {
                return Err(GpuError::NotPositive { name: gpu.name, field });
            }
        }
        Ok(gpu)
    }

    /// The same as TOML.
    ///
    /// # Errors
    ///
    /// Those of the TOML writer; no device of ours causes one.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Bytes that programs can ask for.
    pub fn memory_bytes(&self) -> u64 {
        (self.memory_gib * GIB) as u64
    }

    /// Memory bandwidth in bytes per nanosecond (the same number as GB/s).
    pub fn bytes_per_ns(&self) -> f64 {
        self.bandwidth
    }

    /// FLOPs per nanosecond at the spec's clock.
    pub fn flops_per_ns(&self) -> f64 {
        self.tflops * 1000.0
    }
}

/// The up to three names nearest to `wanted` by edit distance, joined by commas.
pub(crate) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> String {
    // Names that have what was written in them come first.
    let rank = |name: &str| {
        let known = squash(name);
        let is_other = !known.contains(wanted) || wanted.is_empty();
        (is_other, edit_distance(wanted, &known))
    };
    let mut ranked: Vec<((bool, usize), &str)> = names.map(|name| (rank(name), name)).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let near: Vec<&str> = ranked.iter().take(3).map(|(_, name)| *name).collect();
    near.join(", ")
}

fn edit_distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for column in 1..row.len() {
            let changed = diagonal + usize::from(other[column - 1] != letter);
            diagonal = row[column];
            row[column] = changed.min(row[column] + 1).min(row[column - 1] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_of_the_catalogue_passes_the_check_for_files() {
        for gpu in gpus() {
            assert_eq!(Gpu::from_toml(&gpu.to_toml().unwrap()).unwrap(), gpu);
            assert_eq!(find(&gpu.label).unwrap(), gpu);
        }
    }

    #[test]
    fn the_promised_names_are_there() {
        for name in [
            "gtx1660super",
            "rtx8000",
            "rtx3090",
            "rtx4090",
            "l40s",
            "a100",
            "h100",
            "h200",
            "rtxpro6000",
            "cpu",
            "GTX 1660-Super",
            "4090",
        ] {
            assert!(find(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_wrong_name_gets_the_nearest() {
        let error = find("rtx 4900").unwrap_err().to_string();
        assert!(error.contains("mean rtx"), "{error}");
        assert!(error.contains("rtx4090"), "{error}");
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }

    #[test]
    fn errors_in_a_file_say_where() {
        let gpu = find("h100").unwrap();
        let text = gpu.to_toml().unwrap().replace("pcie = 63", "pci = 63");
        assert!(Gpu::from_toml(&text).unwrap_err().to_string().contains("line"));
        let text = gpu.to_toml().unwrap().replace("tflops = 989", "tflops = -1");
        assert!(Gpu::from_toml(&text).unwrap_err().to_string().contains("tflops"));
    }
}
