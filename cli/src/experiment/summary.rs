//! A case in numbers, and what a reader of an experiment has to know.

use policies::make_policy;
use report::Summary;
use sim::Totals;
use traces::Quantiles;

use super::{Experiment, Prices, Setting};

impl Experiment {
    /// Sentences that a reader has to know.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for workload in &self.workloads {
            if !workload.seeded {
                notes.push(format!(
                    "{} is replayed as recorded: seeds do not vary it, so there is one sample and no interval.",
                    workload.name
                ));
            }
        }
        let (mut seen, mut by_range): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        for setting in &self.settings {
            if seen.contains(&&*setting.policy) {
                continue;
            }
            seen.push(&setting.policy);
            let policy = make_policy(&setting.policy, &setting.geometry());
            if policy.is_ok_and(|policy| policy.reading().walks()) {
                by_range.push(&setting.policy);
            }
        }
        if !by_range.is_empty() {
            notes.push(format!(
                "{}: attention walks the used range of cells for the whole batch with an owner test, as Ollama and \
                 llama.cpp do, so every token pays for all cells below the high-water mark, holes and other \
                 sequences included; with the other policies a sequence reads its own cells only.",
                by_range.join(", ")
            ));
        }
        let ignored = self.settings.iter().filter(|setting| setting.seat.is_kv_type_ignored());
        let mut labels: Vec<&str> = Vec::new();
        for label in ignored.map(Setting::label) {
            if !labels.contains(&label) {
                labels.push(label);
            }
        }
        let ignored = labels;
        if !ignored.is_empty() {
            notes.push(format!(
                "{}: a quantised cache was asked for without flash attention, so Ollama keeps f16.",
                ignored.join(", ")
            ));
        }
        if self.settings.iter().any(|setting| setting.seat.is_placed()) {
            notes.push(
                "Layers are placed as Ollama 0.6.6 places them. Memory is what the runner really allocates, by \
                 formula: its compute graphs and what a Windows driver does with an excess were never measured."
                    .into(),
            );
        }
        if self.settings.iter().any(|setting| setting.seat.is_dealt()) {
            notes.push(
                "Layers are dealt to the GPUs as llama-server deals them (--split-mode layer), and the GPUs work one \
                 after the other. Compute graphs are by Ollama's formula."
                    .into(),
            );
        }
        if self.settings.iter().any(|setting| matches!(setting.common.prices, Prices::Spec)) {
            notes.push(
                "Step times come from the catalogue's data sheets and efficiencies (cost model spec): they are not \
                 calibrated on a device, so compare policies with each other, not with a stopwatch."
                    .into(),
            );
        }
        notes
    }

    pub(super) fn summary(&self, setting: &Setting, seed: u64, cost_model: &str, totals: &Totals) -> Summary {
        let seconds = totals.duration_ns() as f64 / 1e9;
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let ms = |quantiles: &Quantiles, q: f64| quantiles.quantile(q).map(|ns| ns as f64 / 1e6);
        let mean_ms = |quantiles: &Quantiles| quantiles.mean().map(|ns| ns / 1e6);
        let seat = &setting.seat;
        let names = seat.deployment.model.classes.iter().map(|class| &class.name);
        let cells = names.zip(&seat.memory.cells).map(|(name, cells)| format!("{name}={cells}"));
        Summary {
            row: setting.row.clone(),
            policy: setting.policy.clone(),
            trace: self.workloads[setting.workload].name.clone(),
            seed,
            requests: totals.requests,
            completed: totals.completed,
            failed: totals.failed,
            rejected: totals.rejected,
            unfinished: totals.unfinished,
            truncated: totals.truncated,
            shifted: totals.shifted,
            preempted: totals.preempted,
            prompt_tokens: totals.prompt_tokens,
            output_tokens: totals.output_tokens,
            duration_s: seconds,
            throughput_tokens_per_s: per_second(totals.completed_tokens),
            goodput_requests_per_s: per_second(totals.good),
            ttft_p50_ms: ms(&totals.ttft, 0.5),
            ttft_p99_ms: ms(&totals.ttft, 0.99),
            tpot_p50_ms: ms(&totals.tpot, 0.5),
            tpot_p99_ms: ms(&totals.tpot, 0.99),
            defrag_passes: totals.defrag_passes,
            cells_copied: totals.cells_copied,
            cells_swapped: totals.cells_swapped,
            cells_requantised: totals.cells_requantised,
            utilisation_mean: totals.utilisation(),
            fragmentation_internal_mean: totals.fragmentation_internal(),
            fragmentation_external_mean: totals.fragmentation_external(),
            ttft_mean_ms: mean_ms(&totals.ttft),
            tpot_mean_ms: mean_ms(&totals.tpot),
            latency_mean_ms: mean_ms(&totals.latency),
            latency_p99_ms: ms(&totals.latency, 0.99),
            preemptions: totals.preemptions,
            stopped_at_limit: totals.stopped_at_limit,
            truncated_tokens: totals.truncated_tokens,
            shifted_tokens: totals.shifted_tokens,
            recomputed_tokens: totals.recomputed_tokens,
            cached_tokens: totals.cached_tokens,
            crashes: totals.crashes,
            shifts: totals.shifts,
            corrupted_steps: totals.corrupted_steps,
            freezes: totals.freezes,
            frozen_s: totals.frozen_ns as f64 / 1e9,
            steps: totals.steps,
            stall_s: totals.stall_ns as f64 / 1e9,
            held_peak: totals.held_peak(),
            held_peak_gib: Some(totals.held_peak_bytes() as f64 / f64::from(1 << 30)),
            high_water_mean: None,
            sequence_runs_mean: None,
            model: seat.deployment.model_name.clone(),
            gpu: seat.device.clone(),
            kv_cache_type: seat.kv.name().to_owned(),
            scheduler: setting.scheduler.name().to_owned(),
            num_ctx: seat.limits.num_ctx,
            num_parallel: seat.limits.num_parallel,
            num_batch: seat.limits.num_batch,
            cells: cells.collect::<Vec<_>>().join(";"),
            variant: String::new(),
            memory_gib: seat.memory_text(),
            memory_estimated_gib: seat.estimate_text(),
            spilled_gib: seat.spilled_gib(),
            leaked_gib: totals.leaked_bytes as f64 / f64::from(1 << 30),
            load_error: seat.load_error().unwrap_or_default(),
            cost_model: cost_model.to_owned(),
            kvlab_version: env!("CARGO_PKG_VERSION").to_owned(),
            spec_key: setting.key(&self.workloads[setting.workload], seed),
            event_hash: format!("{:016x}", totals.event_hash),
        }
    }
}
