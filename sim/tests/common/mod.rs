//! What simulations on a device of the catalogue share.

use std::convert::Infallible;

use policies::scheduler::{Continuous, ContinuousKnobs, Limits};
use policies::{Geometry, LayerClass, Reach, make_policy};
use sim::cost::roofline::Roofline;
use sim::hardware::Gpu;
use sim::model::KvType;
use sim::{Executor, Nobody, Priced, Replay, Totals, drive, model};
use traces::{Prefix, Request, Slo, When};

/// The limits of a server with fast-forward and nothing else in particular.
pub fn limits(num_ctx: u32, num_parallel: u32, num_batch: u32) -> Limits {
    Limits { num_ctx, num_parallel, num_batch, queue_max: None, maintain_cells: 0, fast_forward: true }
}

/// A request at time zero whose tokens are nobody else's.
pub fn request(id: u64, prompt_tokens: u32, output_tokens: u32) -> Request {
    Request {
        id,
        session: None,
        when: When::At { ns: 0 },
        prompt_tokens,
        output_tokens,
        prefix: Prefix::unknown(),
        images: Vec::new(),
    }
}

/// Llama 3.1 8B with K and V in f16, priced by the catalogue.
pub fn llama(gpu: &Gpu) -> Roofline {
    let (model, weights) = model::find("llama-3.1-8b").expect("a model of the catalogue");
    Roofline::spec(&model, weights, KvType::F16, gpu)
}

/// Serves requests by Llama 3.1 8B, with K and V in f16 and so many cells.
pub fn serve(
    spec: &str,
    gpu: &Gpu,
    cells: u32,
    limits: Limits,
    knobs: ContinuousKnobs,
    audit: bool,
    requests: impl Iterator<Item = Request>,
) -> Totals {
    let cost = llama(gpu);
    serve_on(&mut Priced(&cost), spec, cells, limits, knobs, audit, requests)
}

/// The same on any executor.
pub fn serve_on(
    executor: &mut dyn Executor,
    spec: &str,
    cells: u32,
    limits: Limits,
    knobs: ContinuousKnobs,
    audit: bool,
    requests: impl Iterator<Item = Request>,
) -> Totals {
    let (model, _) = model::find("llama-3.1-8b").expect("a model of the catalogue");
    let class = LayerClass { name: "all".into(), layers: 32, reach: Reach::Full, cells };
    let geometry = Geometry {
        classes: vec![class],
        context_max: limits.num_ctx,
        batch_max: limits.num_batch,
        sequences_max: limits.num_parallel,
    };
    let policy = make_policy(spec, &geometry).expect("the spec is good");
    let setup = Replay {
        scheduler: Box::new(Continuous::new(policy, limits, knobs, false)),
        reload_ns: 0,
        cell_bytes: model.kv_bytes_per_cell(KvType::F16),
        until_ns: None,
        slo: Slo { ttft_ns: 1, tpot_ns: 1 },
        audit,
        freeze_ns: None,
        leak: None,
    };
    drive(setup, executor, requests.map(Ok::<_, Infallible>), &mut Nobody).expect("the books agree")
}
