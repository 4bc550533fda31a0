//! What follows from a setting: its cells, its scheduler, and the key of its cases.

use policies::scheduler::{Continuous, Down, HostMemory, Limits, Runner, Scheduler};
use policies::{Geometry, LayerClass, Reach, make_policy};
use sim::Replay;
use sim::model::KvType;

use super::{Family, LOAD_BYTES_PER_S, Setting, Shortage, Telling, Workloads};
use crate::trouble::{Trouble, usage};

impl Setting {
    /// What pictures call it: the row of the scenario, or else the policy.
    pub fn label(&self) -> &str {
        if self.row.is_empty() { &self.policy } else { &self.row }
    }

    /// What its policy is told.
    pub fn geometry(&self) -> Geometry {
        let class = |(class, &cells): (&sim::model::ModelClass, &u32)| LayerClass {
            name: class.name.clone(),
            layers: class.layers,
            reach: class.window.map_or(Reach::Full, Reach::Window),
            cells,
        };
        Geometry {
            classes: self
                .seat
                .deployment
                .model
                .classes
                .iter()
                .zip(&self.seat.memory.cells)
                .map(class)
                .collect(),
            context_max: self.seat.limits.num_ctx,
            batch_max: self.seat.limits.num_batch,
            sequences_max: self.seat.limits.num_parallel,
        }
    }

    /// What does not fit into the devices of its host.
    pub fn shortage(&self) -> Option<Shortage> {
        self.seat.shortage()
    }

    /// Limits of its scheduler.
    pub fn limits(&self) -> Limits {
        self.seat.limits
    }

    /// How K and V are stored.
    pub fn kv(&self) -> KvType {
        self.seat.kv
    }

    /// How long the model takes to load again after a crash, ns.
    pub fn reload_ns(&self) -> u64 {
        let load = self.seat.memory.weight_bytes as f64 / LOAD_BYTES_PER_S * 1e9;
        self.common.reload_ns.unwrap_or(load as u64)
    }

    /// Name of its policy.
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// Name of its scheduler.
    pub fn scheduler_name(&self) -> &'static str {
        self.scheduler.name()
    }

    pub(super) fn replay(
        &self,
        workload: &Workloads,
        seed: u64,
        logs: bool,
        telling: Telling,
    ) -> Result<Replay, Trouble> {
        let mut policy = make_policy(&self.policy, &self.geometry()).map_err(usage)?;
        if policy.wants_future() {
            let told = sim::foresee(&mut *policy, workload.requests(seed).map_err(usage)?);
            told.map_err(|error| usage(format!("{}: {}: {error}", workload.name, self.policy)))?;
        }
        let mut limits = self.seat.limits;
        limits.fast_forward &= telling == Telling::AsSet;
        let writes = telling == Telling::Writes;
        let cell_bytes = self.seat.deployment.model.kv_bytes_per_cell(self.seat.kv);
        let scheduler: Box<dyn Scheduler> = match self.scheduler {
            _ if self.seat.load_error().is_some() => Box::new(Down::new(policy)),
            Family::Continuous(knobs) => {
                let scheduler = Continuous::new(policy, limits, knobs, writes);
                Box::new(match self.common.host_bytes {
                    Some(bytes) => scheduler.with_host(HostMemory { bytes, cell_bytes: cell_bytes.clone() }),
                    None => scheduler,
                })
            }
            Family::Runner(knobs) => {
                let runner = Runner::new(policy, limits, knobs, writes);
                Box::new(if logs { runner.with_log() } else { runner })
            }
        };
        Ok(Replay {
            scheduler,
            reload_ns: self.reload_ns(),
            cell_bytes,
            until_ns: self.common.until_ns,
            slo: self.common.slo,
            audit: self.common.audit,
            freeze_ns: Some(self.common.freeze_ns),
            leak: self.common.image_leak.then(|| self.seat.leak()),
        })
    }

    /// Names the case by what determines its results.
    pub(super) fn key(&self, workload: &Workloads, seed: u64) -> String {
        let text = format!(
            "{} {:?} {seed} {:?} {} {:?} {:?} {:?} {:?} {:?} {:?}",
            env!("CARGO_PKG_VERSION"),
            (&workload.digest, workload.origin.options()),
            self.seat.identity(),
            self.policy,
            self.scheduler,
            Limits { fast_forward: true, ..self.seat.limits },
            self.common.prices,
            (self.common.slo, self.common.until_ns),
            (self.common.reload_ns, self.common.host_bytes),
            (self.common.freeze_ns, self.common.image_leak),
        );
        blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
    }
}
