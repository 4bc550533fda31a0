//! Hosts: several GPUs, perhaps unequal, in one computer with its main memory.
//!
//! A catalogue of our own typing, others by TOML, and any `a+b` of the GPU catalogue. What a host
//! adds to its GPUs is what decides where a model goes and what happens when it does not fit: the
//! order of the devices, what is free on each, which one drives the display, and whether the
//! driver may put what does not fit into main memory.

use crate::hardware::{self, Gpu, GpuError, nearest};
use crate::memory::RESERVE_BYTES;
use crate::model::squash;
use serde::{Deserialize, Serialize};

const CATALOGUE: &str = include_str!("catalogue/hosts.toml");
const GIB: f64 = 1_073_741_824.0;

/// Main memory of a host made from GPU names, GiB.
const RAM_GIB: f64 = 64.0;
/// More main memory than any computer has, GiB.
const RAM_GIB_MAX: f64 = 65_536.0;
/// Main memory that the system and its programs use before a server is started. A guess.
pub const SYSTEM_RAM_BYTES: u64 = 4 << 30;

/// The operating system, as far as its graphics driver differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// An allocation beyond the device's memory may go to main memory ("sysmem fallback").
    Windows,
    /// An allocation beyond the device's memory fails.
    Linux,
}

impl System {
    /// `windows` or `linux`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Windows => "windows",
            Self::Linux => "linux",
        }
    }
}

/// A GPU in its place in a host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostGpu {
    /// The device.
    pub gpu: Gpu,
    /// Whether it drives the display.
    pub display: bool,
    /// Bytes that the driver reports free before the model is loaded.
    pub free_bytes: u64,
}

impl HostGpu {
    /// Bytes that the driver, the desktop and other programs hold.
    pub fn reserved_bytes(&self) -> u64 {
        self.gpu.memory_bytes().saturating_sub(self.free_bytes)
    }
}

/// A computer with GPUs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Host {
    /// Name for the command line.
    pub name: String,
    /// Name for reports.
    pub label: String,
    /// Other names that find it.
    pub aliases: Vec<String>,
    /// Operating system.
    pub system: System,
    /// Main memory, GiB.
    pub ram_gib: f64,
    /// Part of main memory that the driver may use for what does not fit into a device; 0: none.
    pub fallback_share: f64,
    /// The GPUs in the order of discovery (`CUDA0`, `CUDA1`, ...).
    pub gpus: Vec<HostGpu>,
    /// Source of the row, in words.
    pub source: String,
}

/// Why a host cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No such name; the message lists the nearest ones.
    #[error(
        "no host is called {name:?}; did you mean {suggestions}? Any GPU names joined by + make a host, too"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The nearest names, joined by commas.
        suggestions: String,
    },
    /// The text is not TOML, or its fields are not those of a host; the message has the line.
    #[error("host description: {0}")]
    Toml(#[from] toml::de::Error),
    /// One of its GPUs is not in the catalogue.
    #[error("host {name:?}: {error}")]
    Gpu {
        /// The host.
        name: String,
        /// Which name, and what is near.
        error: GpuError,
    },
    /// A number makes no sense.
    #[error("host {name:?}: {field} must be {rule}")]
    Number {
        /// The host.
        name: String,
        /// Which field.
        field: String,
        /// What it must be.
        rule: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    host: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    #[serde(default)]
    label: String,
    #[serde(default)]
    aliases: Vec<String>,
    system: System,
    ram_gib: f64,
    #[serde(default)]
    fallback_share: f64,
    gpu: Vec<GpuRow>,
    #[serde(default)]
    source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GpuRow {
    name: String,
    #[serde(default)]
    display: bool,
    free_gib: Option<f64>,
}

/// All hosts of the catalogue, in its order.
///
/// # Panics
///
/// If the catalogue inside this binary is broken; a test reads it.
pub fn hosts() -> Vec<Host> {
    let rows = toml::from_str::<Catalogue>(CATALOGUE).expect("the built-in catalogue of hosts is valid TOML");
    let hosts = rows.host.into_iter().map(Host::from_row);
    hosts.map(|host| host.expect("the built-in hosts are sound")).collect()
}

/// Finds a host by name, label or alias; else makes one from GPU names joined by `+`. Case,
/// dashes and blanks do not matter.
///
/// # Errors
///
/// `Unknown` with the nearest names; `Gpu` if a part of `a+b` is not in the catalogue of GPUs.
///
/// ```
/// let host = sim::host::find("RTX 4090 + gtx1660super").unwrap();
/// assert_eq!(host.gpus.len(), 2);
/// ```
pub fn find(name: &str) -> Result<Host, HostError> {
    let wanted = squash(name);
    let known = hosts();
    let is_it = |host: &&Host| {
        squash(&host.name) == wanted
            || squash(&host.label) == wanted
            || host.aliases.iter().any(|alias| squash(alias) == wanted)
    };
    if let Some(host) = known.iter().find(is_it) {
        return Ok(host.clone());
    }
    let parts: Vec<&str> = name.split('+').map(str::trim).collect();
    let gpus: Result<Vec<Gpu>, GpuError> = parts.iter().map(|part| hardware::find(part)).collect();
    match gpus {
        Ok(gpus) => Ok(Host::of(gpus)),
        Err(error) if parts.len() > 1 => Err(HostError::Gpu { name: name.to_owned(), error }),
        Err(_) => {
            let gpus = hardware::gpus();
            let names = known.iter().map(|host| host.name.as_str());
            let names = names.chain(gpus.iter().map(|gpu| gpu.name.as_str()));
            Err(HostError::Unknown { name: name.to_owned(), suggestions: nearest(&wanted, names) })
        }
    }
}

impl Host {
    /// A Linux host without a display, with 64 GiB of main memory and these GPUs; the driver and
    /// a CUDA context of somebody else's hold [`RESERVE_BYTES`] of each.
    pub fn of(gpus: Vec<Gpu>) -> Self {
        let names: Vec<&str> = gpus.iter().map(|gpu| gpu.name.as_str()).collect();
        let labels: Vec<&str> = gpus.iter().map(|gpu| gpu.label.as_str()).collect();
        Self {
            name: names.join("+"),
            label: labels.join(" and "),
            aliases: Vec::new(),
            system: System::Linux,
            ram_gib: RAM_GIB,
            fallback_share: 0.0,
            source: "made from the catalogue of GPUs".to_owned(),
            gpus: gpus
                .into_iter()
                .map(|gpu| HostGpu {
                    free_bytes: gpu.memory_bytes().saturating_sub(RESERVE_BYTES),
                    display: false,
                    gpu,
                })
                .collect(),
        }
    }

    /// Reads a host from TOML, in the form of the catalogue: `name`, `system`, `ram_gib`, and a
    /// list `gpu` of tables with `name`; the rest may be left out.
    ///
    /// # Errors
    ///
    /// `Toml` with line and column; `Gpu` for an unknown device; `Number` if a number is out of
    /// its range or there is no GPU.
    ///
    /// ```
    /// let text = r#"
    /// name = "mine"
    /// system = "windows"
    /// ram_gib = 32
    /// fallback_share = 0.5
    /// gpu = [{ name = "rtx3090", display = true, free_gib = 22.5 }, { name = "gtx1660super" }]
    /// "#;
    /// assert_eq!(sim::host::Host::from_toml(text).unwrap().fallback_bytes(), 16 << 30);
    /// ```
    pub fn from_toml(text: &str) -> Result<Self, HostError> {
        Self::from_row(toml::from_str(text)?)
    }

    fn from_row(row: Row) -> Result<Self, HostError> {
        let wrong = |field: &str, rule: &str| HostError::Number {
            name: row.name.clone(),
            field: field.to_owned(),
            rule: rule.to_owned(),
        };
        if row.name.trim().is_empty() {
            return Err(wrong("name", "a name"));
        }
        if !(row.ram_gib > 0.0 && row.ram_gib <= RAM_GIB_MAX) {
            return Err(wrong("ram_gib", "a positive number of at most 65536"));
        }
        if !(0.0..=1.0).contains(&row.fallback_share) {
            return Err(wrong("fallback_share", "from 0 to 1"));
        }
        if row.system == System::Linux && row.fallback_share > 0.0 {
            return Err(wrong("fallback_share", "0 under Linux, whose driver does not fall back"));
        }
        if row.gpu.is_empty() {
            return Err(wrong("gpu", "a list of at least one GPU"));
        }
        let mut gpus = Vec::new();
        for GpuRow { name, display, free_gib } in &row.gpu {
            let gpu =
                hardware::find(name).map_err(|error| HostError::Gpu { name: row.name.clone(), error })?;
            let free_bytes = match *free_gib {
                None => gpu.memory_bytes().saturating_sub(RESERVE_BYTES),
                Some(gib) if gib > 0.0 && gib <= gpu.memory_gib => (gib * GIB) as u64,
                Some(_) => {
                    let rule = format!("above 0 and at most the {} GiB of a {name}", gpu.memory_gib);
                    return Err(wrong("gpu.free_gib", &rule));
                }
            };
            gpus.push(HostGpu { gpu, display: *display, free_bytes });
        }
        let Row { name, label, aliases, system, ram_gib, fallback_share, source, .. } = row;
        Ok(Self { name, label, aliases, system, ram_gib, fallback_share, gpus, source })
    }

    /// Bytes of main memory.
    pub fn ram_bytes(&self) -> u64 {
        (self.ram_gib * GIB) as u64
    }

    /// Bytes of main memory that a server can have: all but [`SYSTEM_RAM_BYTES`].
    pub fn ram_free_bytes(&self) -> u64 {
        self.ram_bytes().saturating_sub(SYSTEM_RAM_BYTES)
    }

    /// Bytes of main memory that the driver may use for what does not fit into the devices, over
    /// all of them; 0 under Linux.
    pub fn fallback_bytes(&self) -> u64 {
        match self.system {
            System::Windows => (self.ram_gib * self.fallback_share * GIB) as u64,
            System::Linux => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_the_incident_is_there() {
        let host = find("RTX8000 + GTX-1660-Super").unwrap();
        assert_eq!(host, find("incident").unwrap());
        assert_eq!(
            (host.system, host.ram_bytes(), host.fallback_bytes()),
            (System::Windows, 64 << 30, 32 << 30)
        );
        let seen: Vec<(&str, bool, u64)> =
            host.gpus.iter().map(|at| (at.gpu.name.as_str(), at.display, at.free_bytes)).collect();
        // 46.5 and 5.1 GiB
        assert_eq!(seen, [("rtx8000", false, 49_928_994_816), ("gtx1660super", true, 5_476_083_302)]);
        assert_eq!(host.gpus[0].reserved_bytes(), 3 << 29);
    }

    #[test]
    fn every_host_is_found_by_each_of_its_names() {
        for host in hosts() {
            for name in [&host.name, &host.label].into_iter().chain(&host.aliases) {
                assert_eq!(find(name).unwrap(), host, "{name}");
            }
            assert!(host.gpus.iter().all(|at| at.free_bytes <= at.gpu.memory_bytes()), "{}", host.name);
        }
    }

    #[test]
    fn gpu_names_make_hosts() {
        let one = find("rtx4090").unwrap();
        assert_eq!((one.gpus.len(), one.system, one.fallback_bytes()), (1, System::Linux, 0));
        assert_eq!(one.gpus[0].reserved_bytes(), RESERVE_BYTES);
        let three = find("h100+h100+4090").unwrap();
        assert_eq!(three.name, "h100+h100+rtx4090");
        assert!(three.gpus.iter().all(|at| !at.display));
    }

    #[test]
    fn errors_say_where_and_what() {
        let error = |text: &str| Host::from_toml(text).unwrap_err().to_string();
        let good = "name = \"m\"\nsystem = \"windows\"\nram_gib = 8\ngpu = [{ name = \"rtx3090\" }]\n";
        assert!(Host::from_toml(good).is_ok());
        assert!(error(&good.replace("ram_gib = 8", "ram_gib = -8")).contains("ram_gib must be a positive"));
        assert!(error(&good.replace("rtx3090", "rtx3091")).contains("did you mean rtx3090"));
        assert!(error(&good.replace("{ name = \"rtx3090\" }", "")).contains("at least one GPU"));
        assert!(error(&good.replace("windows", "amiga")).contains("line 2"));
        assert!(error(&good.replace("ram_gib", "ram")).contains("line"));
        assert!(error(&good.replace("\" }", "\", free_gib = 25 }")).contains("at most the 24 GiB"));
        assert!(error(&good.replace("\" }", "\", free_gib = nan }")).contains("free_gib"));
        assert!(error(&format!("fallback_share = 1.5\n{good}")).contains("from 0 to 1"));
        let linux = format!("fallback_share = 0.5\n{good}").replace("windows", "linux");
        assert!(error(&linux).contains("0 under Linux"));
        let text = find("rtx 8001+gtx1660super").unwrap_err().to_string();
        assert!(text.contains("rtx8000"), "{text}");
        let text = find("rtx3090x3").unwrap_err().to_string();
        assert!(text.contains("rtx3090x2") && text.contains("joined by +"), "{text}");
    }
}
