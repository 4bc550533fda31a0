//! The price of a model that several devices share, and of memory that lies elsewhere.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use sim::cost::roofline::Roofline;
use sim::cost::split::{PAGING, Part, Split, parts_of};
use sim::cost::{CostModel, Moves, Prefill, Work};
use sim::hardware::Gpu;
use sim::host::{self, Host};
use sim::model::{KvType, Model, WeightType};
use sim::ollama::{Loaded, ModelFile, Options, Shares, load};
use sim::replay::FREEZE_NS;

const QAT: WeightType = WeightType::Q4_0Qat;

fn model() -> Model {
    sim::model::find("gemma3-27b").unwrap().0
}

fn gpu(name: &str) -> Gpu {
    sim::hardware::find(name).unwrap()
}

fn part(gpu: &Gpu, layers: [u32; 2], has_output: bool) -> Part {
    Part {
        gpu: gpu.clone(),
        is_cpu: false,
        display: false,
        layers: layers.to_vec(),
        has_output,
        graph_bytes: 0,
        spilled_share: 0.0,
    }
}

fn split(parts: &[Part]) -> Split {
    Split::new(&model(), QAT, KvType::F16, parts, 512)
}

fn loaded(options: &Options) -> (Host, Loaded) {
    let host = host::find("rtx8000+gtx1660super").unwrap();
    let file = ModelFile::new(&model(), QAT.into()).unwrap();
    let loaded = load(&host, &file, options).unwrap();
    (host, loaded)
}

fn at_4096(spread: bool) -> Options {
    Options { num_ctx: 4096, num_parallel: 2, spread, ..Options::default() }
}

fn decode(sequences: u32, walked: &[u64]) -> Work {
    Work {
        tokens: sequences,
        sequences,
        samples: sequences,
        decodes: sequences,
        decode_reads: vec![900, 3000],
        walked: walked.to_vec(),
        ..Work::default()
    }
}

fn prompt(tokens: u32, samples: u32) -> Work {
    Work {
        tokens,
        sequences: 1,
        samples,
        prefills: vec![Prefill { tokens, context: 700 }],
        decode_reads: vec![0, 0],
        ..Work::default()
    }
}

/// Steps of every kind.
fn steps() -> Vec<Work> {
    let moves = Moves {
        copied_cells: vec![300, 20],
        copies: 40,
        rotated_cells: vec![0, 77],
        rotations: 1,
        requantised_cells: vec![5, 30],
        requantisations: 3,
        swapped_cells: vec![64, 64],
        mapped: vec![2, 1],
        unmapped: vec![0, 1],
    };
    let mut all =
        vec![Work::default(), decode(1, &[]), decode(2, &[2560, 4096]), prompt(512, 0), prompt(9000, 1)];
    all.push(Work { moves: moves.clone(), ..decode(2, &[2560, 4096]) });
    all.push(Work { moves, ..Work::default() });
    all.push(Work { decodes: 3, samples: 3, tokens: 503, ..prompt(500, 3) });
    all
}

#[test]
fn one_device_costs_what_the_roofline_says_to_the_nanosecond() {
    for name in ["rtx8000", "gtx1660super", "rtx4090"] {
        let roofline = Roofline::spec(&model(), QAT, KvType::F16, &gpu(name));
        let one = split(&[part(&gpu(name), [52, 10], true)]);
        for work in steps() {
            assert_eq!(one.step_ns(&work), roofline.step_ns(&work), "{name} {work:?}");
            assert_eq!(one.stall_ns(&work), 0);
        }
    }
    // The same through Ollama's placement on one device, idle devices or none beside it.
    let (host, alone) = loaded(&at_4096(false));
    let one = Split::of(&alone, &host, &model(), QAT, 512);
    let roofline = Roofline::spec(&model(), QAT, KvType::F16, &gpu("rtx8000"));
    assert!(steps().iter().all(|work| one.step_ns(work) == roofline.step_ns(work)));
    assert_eq!(one.name(), "spec");
}

#[test]
fn equal_devices_share_the_work_and_pay_for_the_border() {
    let card = gpu("rtx3090");
    let whole = Roofline::spec(&model(), QAT, KvType::F16, &card);
    for first in [[26, 5], [51, 0], [1, 10], [0, 1]] {
        let second = [52 - first[0], 10 - first[1]];
        let shared = split(&[part(&card, first, false), part(&card, second, true)]);
        for work in steps() {
            // Down one link and up the other; transfers start on each device that has cells.
            let row = 4.0 * 5376.0 * f64::from(work.tokens);
            let border = if work.tokens > 0 { 10_000.0 + 2.0 * row / (31.5 * 0.8) } else { 0.0 };
            let starts = if work.moves.swapped_cells.iter().sum::<u64>() > 0 { 10_000.0 } else { 0.0 };
            let expected = whole.step_ns(&work) as f64 + border + starts;
            let ours = shared.step_ns(&work) as f64;
            assert!((ours - expected).abs() <= 3.0, "{first:?} {ours} {expected} {work:?}");
        }
    }
}

#[test]
fn a_slower_device_makes_every_step_longer_by_its_layers() {
    let (fast, slow) = (gpu("rtx8000"), gpu("gtx1660super"));
    let mut before = 0;
    for moved in 0..=10 {
        let parts = [part(&fast, [52, 10 - moved], true), part(&slow, [0, moved], false)];
        let ns = split(&parts).step_ns(&decode(2, &[2560, 4096]));
        assert!(ns > before, "{moved} layers: {ns} after {before}");
        before = ns;
    }
}

#[test]
fn the_output_layer_is_paid_where_it_is_and_only_if_something_is_sampled() {
    let (large, small) = (gpu("rtx8000"), gpu("gtx1660super"));
    let on = |first: bool| split(&[part(&large, [44, 8], first), part(&small, [8, 2], !first)]);
    let table = 262_208.0 * 5376.0 * 2.0;
    let weights = |gpu: &Gpu| table / (gpu.bandwidth * gpu.efficiency.weights);
    let slower = weights(&small) - weights(&large);
    let later = on(false).step_ns(&decode(1, &[])) as f64 - on(true).step_ns(&decode(1, &[])) as f64;
    // Sampling is slower there, too; a border goes back to the first device.
    assert!((later / slower - 1.0).abs() < 0.05, "{later} {slower}");
    let unsampled = |first: bool| on(first).step_ns(&prompt(512, 0));
    assert_eq!(unsampled(true), unsampled(false));
    let back = split(&[part(&large, [44, 8], true), part(&small, [8, 2], false)]);
    let one_more = back.step_ns(&prompt(512, 1)) - back.step_ns(&prompt(512, 0));
    let alone = Roofline::spec(&model(), QAT, KvType::F16, &large);
    let output = alone.step_ns(&prompt(512, 1)) - alone.step_ns(&prompt(512, 0));
    let border = 10_000.0 + 2.0 * 4.0 * 5376.0 / (15.75 * 0.8);
    assert!((one_more as f64 - output as f64 - border).abs() <= 3.0, "{one_more} {output} {border}");
}

#[test]
fn memory_that_lies_elsewhere_crosses_the_link_in_every_step() {
    let card = gpu("gtx1660super");
    let with = |share: f64, display: bool| {
        let spilled =
            Part { spilled_share: share, graph_bytes: 1 << 30, display, ..part(&card, [8, 2], true) };
        split(&[part(&gpu("rtx8000"), [44, 8], false), spilled])
    };
    let linear = 10.0 * 412_876_800.0 * 18.0 / 32.0;
    let output = 262_208.0 * 5376.0 * 2.0;
    let graph = f64::from(1 << 30);
    let rate = 15.75 * PAGING;
    let cases = [
        (
            decode(2, &[2560, 4096]),
            linear + output + (8.0 * 2560.0 + 2.0 * 4096.0) * 8192.0 + graph * 2.0 / 512.0,
        ),
        (decode(1, &[]), linear + output + (8.0 * 900.0 + 2.0 * 3000.0) * 8192.0 + graph / 512.0),
        (prompt(512, 0), linear + graph),
        (prompt(9000, 1), linear + output + graph),
        (Work::default(), 0.0),
    ];
    for (work, touched) in cases {
        for share in [0.1, 0.3, 1.0] {
            let more = (with(share, true).step_ns(&work) - with(0.0, true).step_ns(&work)) as f64;
            let expected = share * touched / rate;
            assert!((more - expected).abs() <= 2.0, "{share} {more} {expected} {work:?}");
            assert!((with(share, true).stall_ns(&work) as f64 - expected).abs() <= 2.0);
            // A device without a monitor may wait as long as it likes.
            assert_eq!(with(share, false).stall_ns(&work), 0);
        }
    }
}

/// The incident's host with both cards in use: every step is a freeze, and ten times as long.
#[test]
fn the_desktop_of_the_incident_freezes_when_the_small_card_overflows() {
    let work = decode(2, &[2560, 4096]);
    let (host, spread) = loaded(&at_4096(true));
    let cost = Split::of(&spread, &host, &model(), QAT, 512);
    let (_, alone) = loaded(&at_4096(false));
    let large = Split::of(&alone, &host, &model(), QAT, 512);
    let [spread_ns, alone_ns, stall_ns] =
        [cost.step_ns(&work), large.step_ns(&work), cost.stall_ns(&work)].map(|ns| ns as f64 / 1e6);
    assert!((35.0..70.0).contains(&alone_ns), "{alone_ns} ms");
    assert!((5.0..20.0).contains(&(spread_ns / alone_ns)), "{spread_ns} ms, {alone_ns} ms");
    assert!(stall_ns > 2.0 * FREEZE_NS as f64 / 1e6, "{stall_ns} ms");
    assert_eq!(large.stall_ns(&work), 0);
    eprintln!(
        "alone {alone_ns:.0} ms, spread {spread_ns:.0} ms, of which the display waits {stall_ns:.0} ms"
    );
}

#[test]
fn what_coarse_cells_spare_is_read_from_neither_device_nor_main_memory() {
    let whole = decode(2, &[]);
    // Half of a cell, of all that is read.
    let work = Work { decode_spared: vec![16 * 900, 16 * 3000], ..whole.clone() };
    let large = gpu("rtx8000");
    let spilled = Part { display: true, spilled_share: 0.25, ..part(&large, [52, 10], true) };
    let cost = split(&[spilled]);
    // 27B: 16 KV heads of 128 numbers, K and V of two bytes each.
    let bytes = (52.0 * 450.0 + 10.0 * 1500.0) * 16.0 * 128.0 * 2.0 * 2.0;
    let paged = (cost.stall_ns(&whole) - cost.stall_ns(&work)) as f64;
    assert!((paged - 0.25 * bytes / (large.pcie * PAGING)).abs() <= 1.0, "{paged}");
    let read = (cost.step_ns(&whole) - cost.step_ns(&work)) as f64 - paged;
    let expected = bytes / (large.bytes_per_ns() * large.efficiency.decode);
    assert!((read - expected).abs() <= 2.0, "{read} {expected}");
}

#[test]
fn layers_in_main_memory_run_on_the_processor() {
    let mut host = host::find("rtx8000+gtx1660super").unwrap();
    host.gpus[0].free_bytes = 16 << 30;
    let file = ModelFile::new(&model(), QAT.into()).unwrap();
    let visible_devices = Some(vec![0]);
    let loaded = load(&host, &file, &Options { visible_devices, ..at_4096(false) }).unwrap();
    let parts = parts_of(&loaded, &host);
    assert!(parts[0].is_cpu && parts[0].has_output && parts[0].gpu.name == "cpu");
    assert_eq!(parts[0].layers[0] + parts[1].layers[0], 52);
    let cost = Split::of(&loaded, &host, &model(), QAT, 512);
    let cpu = Roofline::spec(&model(), QAT, KvType::F16, &gpu("cpu"));
    let large = Roofline::spec(&model(), QAT, KvType::F16, &gpu("rtx8000"));
    let work = decode(1, &[2560, 4096]);
    let [ns, slow, fast] = [cost.step_ns(&work), cpu.step_ns(&work), large.step_ns(&work)];
    assert!(fast < ns && ns < slow, "{fast} {ns} {slow}");
}

#[test]
fn equal_gpus_that_share_a_model_take_as_long_as_one_and_the_way_between() {
    let host = host::find("rtx3090+rtx3090").unwrap();
    let mut file = ModelFile::new(&model(), QAT.into()).unwrap();
    file.vision = None;
    let price = |shares| {
        let options = Options { shares: Some(Shares::Given(shares)), ..at_4096(false) };
        Split::of(&load(&host, &file, &options).unwrap(), &host, &model(), QAT, 512)
    };
    let work = decode(2, &[2000, 8000]);
    let (one, even, uneven) = (price(vec![1, 0]), price(vec![1, 1]), price(vec![5, 1]));
    let alone = one.step_ns(&work);
    // The layers are the same and none waits for nothing: only the activations cross, once each way of sharing.
    for shared in [&even, &uneven] {
        let more = shared.step_ns(&work).checked_sub(alone).unwrap();
        assert!((1..alone / 20).contains(&more), "{more} of {alone}");
    }
}
