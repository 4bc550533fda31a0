//! A model spread over several devices, perhaps with more on one than it holds.
//!
//! ```text
//! t = sum over devices of the roofline of its layers           (one device after the other)
//!   + sum over borders of latency + tokens*hidden*4/PCIe       activations, 32-bit, each link once
//!   + sum over devices of share * touched / (PCIe * 0.2)       memory that the driver has moved out
//! ```
//!
//! A step goes through the layers in order, so the devices work one after the other and their
//! times add up. The output layer and sampling count on the device that has them. Copies,
//! rotations and transfers are priced on each device for its own layers. A single device with
//! nothing moved out costs what [`Roofline::spec`] says, to the nanosecond.
//!
//! *Moved out*: a Windows driver answers an allocation beyond the device's memory with main
//! memory, and the GPU then reads it over PCIe. Which pages these are is not known; the share is
//! taken as even over all that the device holds. A step touches the weights of the device's
//! layers, the output layer where it samples, the cells that attention reads (those of decoding
//! sequences less what is spared where they are stored coarser), and the compute graph in proportion to
//! the batch. The rate is [`PAGING`] of the link, far below pinned copies, because reads are small,
//! scattered and unplanned. That number is a guess: with it, a 6 GB card that lacks 2.2 GiB for its
//! part of the model makes decoding 15 times slower, and users report 5 to 50.

use super::moves::TRANSFER_NS;
use super::roofline::{Coefficients, Roofline, cells_spared};
use super::{CostModel, Work};
use crate::hardware::Gpu;
use crate::host::Host;
use crate::model::{KvType, Model, WeightType};
use crate::ollama::Loaded;

/// Part of the PCIe link that reading main memory in the place of device memory reaches. A guess.
pub const PAGING: f64 = 0.2;

/// Bytes of a number of the residual stream between two devices.
const ACTIVATION_BYTES: f64 = 4.0;

/// What one device has of the model, in the order in which a step meets the devices.
#[derive(Clone, Debug)]
pub struct Part {
    /// The device; for layers in main memory the `cpu` of the catalogue.
    pub gpu: Gpu,
    /// Whether it is the host's own processor, which no PCIe link separates from main memory.
    pub is_cpu: bool,
    /// Whether it drives the display.
    pub display: bool,
    /// Layers per layer class of the model.
    pub layers: Vec<u32>,
    /// Whether the output layer and sampling are here.
    pub has_output: bool,
    /// Bytes of its compute graph at a full batch.
    pub graph_bytes: u64,
    /// Part of its bytes that lies in main memory although it belongs to the device, 0 to 1.
    pub spilled_share: f64,
}

/// A step priced over several devices. Pure, and safe to share between threads.
#[derive(Clone, Debug)]
pub struct Split {
    parts: Vec<Priced>,
    /// Between two devices that follow each other, ns: fixed, and per token.
    borders_ns: (f64, f64),
    /// The same from the last layer to an output layer elsewhere, per sample.
    output_border_ns: (f64, f64),
    num_batch: f64,
}

#[derive(Clone, Debug)]
struct Priced {
    roofline: Roofline,
    has_output: bool,
    display: bool,
    /// Nanoseconds per byte that lies in main memory, times the share that does; 0: none.
    spill_ns_per_byte: f64,
    linear_bytes: f64,
    output_bytes: f64,
    graph_bytes: f64,
    /// Bytes of K and V of a cell, per class, this device's layers.
    row_bytes: Vec<f64>,
}

impl Split {
    /// Prices `parts`, which together have every layer once and the output layer once. `num_batch`
    /// is the batch that fills the compute graphs.
    pub fn new(model: &Model, weights: WeightType, kv: KvType, parts: &[Part], num_batch: u32) -> Self {
        let used: Vec<&Part> = parts
            .iter()
            .filter(|part| part.has_output || part.layers.iter().any(|&layers| layers > 0))
            .collect();
        let mut borders_ns = (0.0, 0.0);
        let mut output_border_ns = (0.0, 0.0);
        let row = f64::from(model.hidden) * ACTIVATION_BYTES;
        let cross = |sum: &mut (f64, f64), from: &Part, to: &Part| {
            sum.0 += TRANSFER_NS;
            sum.1 += row * (link_ns_per_byte(from) + link_ns_per_byte(to));
        };
        let with_layers: Vec<&Part> =
            used.iter().copied().filter(|part| part.layers.iter().any(|&layers| layers > 0)).collect();
        for pair in with_layers.windows(2) {
            cross(&mut borders_ns, pair[0], pair[1]);
        }
        let output = used.iter().copied().find(|part| part.has_output);
        if let (Some(last), Some(output)) = (with_layers.last().copied(), output)
            && !std::ptr::eq(last, output)
        {
            cross(&mut output_border_ns, last, output);
        }
        Self {
            parts: used.iter().map(|part| Priced::new(model, weights, kv, part)).collect(),
            borders_ns,
            output_border_ns,
            num_batch: f64::from(num_batch.max(1)),
        }
    }

    /// Prices a model where Ollama has put it.
    ///
    /// # Panics
    ///
    /// If `loaded` is of another host.
    pub fn of(loaded: &Loaded, host: &Host, model: &Model, weights: WeightType, num_batch: u32) -> Self {
        Self::new(model, weights, loaded.kv, &parts_of(loaded, host), num_batch)
    }

    fn paging_ns(&self, part: &Priced, work: &Work) -> f64 {
        if part.spill_ns_per_byte == 0.0 || work.tokens == 0 {
            return 0.0;
        }
        let cells = if work.walked.is_empty() { &work.decode_reads } else { &work.walked };
        let mut bytes = part.linear_bytes;
        bytes += part.row_bytes.iter().zip(cells).map(|(row, cells)| row * *cells as f64).sum::<f64>();
        if work.walked.is_empty() {
            let spared = part.row_bytes.iter().zip(&work.decode_spared);
            bytes -= spared.map(|(row, spared)| row * cells_spared(*spared)).sum::<f64>();
        }
        bytes += part.graph_bytes * (f64::from(work.tokens) / self.num_batch).min(1.0);
        if work.samples > 0 {
            bytes += part.output_bytes;
        }
        bytes * part.spill_ns_per_byte
    }
}

/// The parts of a model that Ollama has loaded: main memory first, then the devices in order.
///
/// # Panics
///
/// If `loaded` is of another host.
pub fn parts_of(loaded: &Loaded, host: &Host) -> Vec<Part> {
    let cpu = Part {
        gpu: crate::hardware::find("cpu").expect("the catalogue has a CPU"),
        is_cpu: true,
        display: false,
        layers: loaded.ram_layers.to_vec(),
        has_output: loaded.ram_has_output,
        graph_bytes: loaded.ram.graph,
        spilled_share: 0.0,
    };
    let devices = loaded.devices.iter().map(|device| Part {
        gpu: host.gpus[device.index].gpu.clone(),
        is_cpu: false,
        display: device.display,
        layers: device.class_layers.to_vec(),
        has_output: device.has_output,
        graph_bytes: device.bytes.graph,
        spilled_share: device.spilled_share(),
    });
    std::iter::once(cpu).chain(devices).collect()
}

fn link_ns_per_byte(part: &Part) -> f64 {
    if part.is_cpu { 0.0 } else { (part.gpu.pcie * part.gpu.efficiency.pcie).recip() }
}

impl Priced {
    fn new(model: &Model, weights: WeightType, kv: KvType, part: &Part) -> Self {
        let mut own = model.clone();
        for (class, layers) in own.classes.iter_mut().zip(&part.layers) {
            class.layers = *layers;
        }
        // Setting a sequence up costs something in every layer; all of it counts where it is sampled.
        let coefficients = Coefficients {
            sample_ns: Coefficients::prior(model, &part.gpu).sample_ns,
            ..Coefficients::prior(&own, &part.gpu)
        };
        Self {
            linear_bytes: own.linear_bytes(weights) as f64,
            output_bytes: if part.has_output { own.output_bytes(weights) as f64 } else { 0.0 },
            graph_bytes: part.graph_bytes as f64,
            row_bytes: own.kv_bytes_per_cell(kv).into_iter().map(|bytes| bytes as f64).collect(),
            spill_ns_per_byte: part.spilled_share / (part.gpu.pcie * PAGING),
            has_output: part.has_output,
            display: part.display,
            roofline: Roofline::fitted(&own, weights, kv, &part.gpu, coefficients),
        }
    }
}

impl CostModel for Split {
    fn name(&self) -> &str {
        "spec"
    }

    fn step_ns(&self, work: &Work) -> u64 {
        let mut own_ns = 0;
        let mut between_ns = 0.0;
        for part in &self.parts {
            own_ns +=
                part.roofline.step_with_samples_ns(work, if part.has_output { work.samples } else { 0 });
            between_ns += self.paging_ns(part, work);
        }
        for ((fixed, each), rows) in [(self.borders_ns, work.tokens), (self.output_border_ns, work.samples)] {
            if rows > 0 {
                between_ns += fixed + each * f64::from(rows);
            }
        }
        own_ns + (between_ns + 0.5) as u64
    }

    fn stall_ns(&self, work: &Work) -> u64 {
        let displays = self.parts.iter().filter(|part| part.display);
        displays.map(|part| self.paging_ns(part, work)).sum::<f64>() as u64
    }
}
