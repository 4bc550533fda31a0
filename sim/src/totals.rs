//! What a run adds up to.

use policies::scheduler::Scheduler;
use traces::quantiles::Quantiles;
use traces::{Outcome, Served, Slo};

/// Sums over a run. Memory is bounded: latencies are kept as [`Quantiles`].
#[derive(Debug)]
pub struct Totals {
    slo: Slo,
    cell_bytes: Vec<u64>,
    /// Requests of the trace.
    pub requests: u64,
    /// Requests answered.
    pub completed: u64,
    /// Requests lost after they were accepted.
    pub failed: u64,
    /// Requests refused.
    pub rejected: u64,
    /// Requests still under way at the end.
    pub unfinished: u64,
    /// Requests whose prompt was cut.
    pub truncated: u64,
    /// Requests whose context was shifted.
    pub shifted: u64,
    /// Requests preempted at least once.
    pub preempted: u64,
    /// Requests whose answer ended early at the context limit.
    pub stopped_at_limit: u64,
    /// Requests that kept the whole SLO.
    pub good: u64,
    /// Output tokens produced, lost ones included.
    pub output_tokens: u64,
    /// Output tokens of completed requests.
    pub completed_tokens: u64,
    /// Prompt tokens of all requests, as sent.
    pub prompt_tokens: u64,
    /// Prompt tokens cut off.
    pub truncated_tokens: u64,
    /// Context tokens dropped by shifts.
    pub shifted_tokens: u64,
    /// Tokens computed a second time.
    pub recomputed_tokens: u64,
    /// Prompt tokens found in the cache.
    pub cached_tokens: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Crashes.
    pub crashes: u64,
    /// Context shifts.
    pub shifts: u64,
    /// Steps in which a sequence read K and V of another.
    pub corrupted_steps: u64,
    /// Steps in which the display stood still for the freeze threshold or longer.
    pub freezes: u64,
    /// Time for which it stood still in those steps.
    pub frozen_ns: u64,
    /// Most bytes that images had leaked at one time.
    pub leaked_bytes: u64,
    /// Crashes because leaks had filled main memory; `crashes` has them, too.
    pub killed: u64,
    /// Steps.
    pub steps: u64,
    /// Steps that could not overlap with the ones before them, where steps are to overlap.
    pub drained_steps: u64,
    /// Compaction passes.
    pub defrag_passes: u64,
    /// Cells copied, over all classes.
    pub cells_copied: u64,
    /// Cells whose K was rotated, over all classes.
    pub cells_rotated: u64,
    /// Cells whose K and V were rounded, over all classes.
    pub cells_requantised: u64,
    /// Cells that crossed PCIe, over all classes.
    pub cells_swapped: u64,
    /// Time in steps.
    pub busy_ns: u64,
    /// Part of it that copies, rotations and transfers took.
    pub stall_ns: u64,
    /// First arrival.
    pub first_arrival_ns: Option<u64>,
    /// When the last request ended.
    pub last_end_ns: u64,
    /// Time to first token of every request that got one.
    pub ttft: Quantiles,
    /// Time per output token of every completed request with two or more.
    pub tpot: Quantiles,
    /// Arrival to last token of every completed request.
    pub latency: Quantiles,
    /// Hash of every allocation event.
    pub event_hash: u64,
    /// Requests in the system, integrated over the time of each: arrival to end.
    pub request_ns: u128,
    /// Byte-nanoseconds of cells, of live, of kept and of held ones, while steps ran.
    cells_byte_ns: u128,
    live_byte_ns: u128,
    wasted_byte_ns: u128,
    held_byte_ns: u128,
    external_ns: f64,
    held_peak: f64,
    held_peak_bytes: u64,
}

impl Totals {
    /// Nothing yet.
    pub fn new(slo: Slo, cell_bytes: &[u64]) -> Self {
        Totals {
            slo,
            cell_bytes: cell_bytes.to_vec(),
            requests: 0,
            completed: 0,
            failed: 0,
            rejected: 0,
            unfinished: 0,
            truncated: 0,
            shifted: 0,
            preempted: 0,
            stopped_at_limit: 0,
            good: 0,
            output_tokens: 0,
            completed_tokens: 0,
            prompt_tokens: 0,
            truncated_tokens: 0,
            shifted_tokens: 0,
            recomputed_tokens: 0,
            cached_tokens: 0,
            preemptions: 0,
            crashes: 0,
            shifts: 0,
            corrupted_steps: 0,
            freezes: 0,
            frozen_ns: 0,
            leaked_bytes: 0,
            killed: 0,
            steps: 0,
            drained_steps: 0,
            defrag_passes: 0,
            cells_copied: 0,
            cells_rotated: 0,
            cells_requantised: 0,
            cells_swapped: 0,
            busy_ns: 0,
            stall_ns: 0,
            first_arrival_ns: None,
            last_end_ns: 0,
            ttft: Quantiles::new(),
            tpot: Quantiles::new(),
            latency: Quantiles::new(),
            event_hash: 0,
            request_ns: 0,
            cells_byte_ns: 0,
            live_byte_ns: 0,
            wasted_byte_ns: 0,
            held_byte_ns: 0,
            external_ns: 0.0,
            held_peak: 0.0,
            held_peak_bytes: 0,
        }
    }

    /// Adds a request that has ended, or that the end of the run has cut off at `now_ns`.
    pub fn add(&mut self, served: &Served, now_ns: u64) {
        match served.outcome {
            Outcome::Completed => self.completed += 1,
            Outcome::Failed => self.failed += 1,
            Outcome::Rejected => self.rejected += 1,
            Outcome::Unfinished => self.unfinished += 1,
        }
        self.truncated += u64::from(served.truncated_tokens > 0);
        self.shifted += u64::from(served.shifts > 0);
        self.shifts += u64::from(served.shifts);
        self.preempted += u64::from(served.preemptions > 0);
        self.stopped_at_limit += u64::from(served.stopped_at_limit);
        self.good += u64::from(self.slo.kept_by(served));
        self.output_tokens += u64::from(served.output_tokens);
        self.prompt_tokens += u64::from(served.prompt_tokens);
        self.truncated_tokens += u64::from(served.truncated_tokens);
        self.shifted_tokens += served.shifted_tokens;
        self.recomputed_tokens += served.recomputed_tokens;
        self.cached_tokens += u64::from(served.cached_tokens);
        self.preemptions += u64::from(served.preemptions);
        self.last_end_ns = self.last_end_ns.max(served.finished_ns.unwrap_or(now_ns));
        self.request_ns += u128::from(served.finished_ns.unwrap_or(now_ns).saturating_sub(served.arrival_ns));
        if let Some(ns) = served.ttft_ns() {
            self.ttft.record(ns);
        }
        if served.outcome == Outcome::Completed {
            self.completed_tokens += u64::from(served.output_tokens);
            if let Some(ns) = served.tpot_ns() {
                self.tpot.record(ns);
            }
            if let Some(ns) = served.latency_ns() {
                self.latency.record(ns);
            }
        }
    }

    /// Adds the state of the cache during a step. `live` are the tokens that may still be read,
    /// `kept` those that idle slots keep.
    pub(crate) fn add_usage(&mut self, scheduler: &dyn Scheduler, live: &[u64], kept: &[u64], step_ns: u64) {
        let (mut cells, mut used, mut held, mut wasted) = (0, 0, 0, 0);
        let mut external: f64 = 0.0;
        for (class, &bytes) in scheduler.policy().geometry().class_ids().zip(&self.cell_bytes) {
            let usage = scheduler.usage(class);
            let (live, kept) = (live[class.index()], kept[class.index()]);
            cells += u64::from(scheduler.policy().memory_cells(class)) * bytes;
            used += live * bytes;
            held += u64::from(usage.held) * bytes;
            wasted += u64::from(usage.held).saturating_sub(live + kept) * bytes;
            external = external.max(usage.fragmentation_external());
        }
        let ns = u128::from(step_ns);
        self.cells_byte_ns += u128::from(cells) * ns;
        self.live_byte_ns += u128::from(used) * ns;
        self.held_byte_ns += u128::from(held) * ns;
        self.wasted_byte_ns += u128::from(wasted) * ns;
        self.external_ns += external * step_ns as f64;
        self.held_peak = self.held_peak.max(held as f64 / cells.max(1) as f64);
        self.held_peak_bytes = self.held_peak_bytes.max(held);
        self.busy_ns += step_ns;
    }

    /// Virtual time from the first arrival to the last end, ns.
    pub fn duration_ns(&self) -> u64 {
        self.last_end_ns.saturating_sub(self.first_arrival_ns.unwrap_or(0))
    }

    /// Bytes of live cells / bytes of cells, over the time in steps.
    pub fn utilisation(&self) -> f64 {
        ratio(self.live_byte_ns, self.cells_byte_ns)
    }

    /// Bytes held for nothing / bytes held, over the time in steps.
    pub fn fragmentation_internal(&self) -> f64 {
        ratio(self.wasted_byte_ns, self.held_byte_ns)
    }

    /// 1 - placeable / free in the worst class, mean over the time in steps.
    pub fn fragmentation_external(&self) -> f64 {
        if self.busy_ns == 0 { 0.0 } else { self.external_ns / self.busy_ns as f64 }
    }

    /// Largest share of the cache's bytes held at one time.
    pub fn held_peak(&self) -> f64 {
        self.held_peak
    }

    /// Most bytes of the cache held at one time.
    pub fn held_peak_bytes(&self) -> u64 {
        self.held_peak_bytes
    }
}

fn ratio(part: u128, whole: u128) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
