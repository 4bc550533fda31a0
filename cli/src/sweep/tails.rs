//! `tails.csv`: latencies of all requests of all seeds of a setting together.

use report::Summary;
use report::sheet::SETTINGS;
use report::table::{Table, Value};
use traces::Bins;

use super::spec::Tails;

/// The latencies of all seeds of one setting.
pub(super) struct Group {
    first: Summary,
    runs: u64,
    /// TTFT, TPOT and latency.
    bins: [Bins; 3],
}

impl Tails {
    fn by_name(&self) -> [(&'static str, &Vec<(u64, u64)>); 3] {
        [("ttft", &self.ttft_ns), ("tpot", &self.tpot_ns), ("latency", &self.latency_ns)]
    }

    pub(super) fn table() -> Table {
        let numbers =
            ["variant", "metric", "runs", "samples", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"];
        Table::new(SETTINGS.into_iter().chain(numbers))
    }
}

impl Group {
    pub(super) fn new(first: Summary, tails: &Tails) -> Group {
        let mut group = Group { first, runs: 0, bins: Default::default() };
        group.merge(tails);
        group
    }

    pub(super) fn merge(&mut self, tails: &Tails) {
        self.runs += 1;
        for (bins, (_, pairs)) in self.bins.iter_mut().zip(tails.by_name()) {
            bins.merge(&Bins::from_pairs(pairs.iter().copied()));
        }
    }

    pub(super) fn rows_of(&self, table: &mut Table) {
        let names = Tails::default();
        for (bins, (metric, _)) in self.bins.iter().zip(names.by_name()) {
            let Summary { row, policy, trace, model, gpu, kv_cache_type, scheduler, variant, .. } =
                &self.first;
            let texts = [row, policy, trace, model, gpu, kv_cache_type, scheduler];
            let numbers = [self.first.num_ctx, self.first.num_parallel, self.first.num_batch];
            let ms = |q| Value::from(bins.quantile(q).map(|ns| ns as f64 / 1e6));
            let values = texts.map(|text| Value::from(text.as_str())).into_iter();
            let values = values.chain(numbers.map(Value::from));
            let values = values.chain([Value::from(variant.as_str()), metric.into()]);
            let values = values.chain([self.runs.into(), bins.count().into()]);
            table.row(values.chain([0.5, 0.9, 0.99, 0.999, 1.0].map(ms)));
        }
    }
}
