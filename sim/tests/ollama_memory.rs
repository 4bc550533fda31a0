//! Ollama's estimate, its scheduler, and the real allocation: cases worked out by hand, and rules
//! that must hold for any host.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use sim::host::{self, Host, System};
use sim::memory::RESERVE_BYTES;
use sim::model::{KvType, WeightType};
use sim::ollama::estimate::{Demand, estimate};
use sim::ollama::{
    Bytes, Fit, LoadError, Loaded, ModelFile, OllamaError, Options, Placement, Quantisation, Shares, load,
    place,
};

const MIB: u64 = 1 << 20;
const GIB: f64 = 1_073_741_824.0;

fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB
}

fn bytes(gib: f64) -> u64 {
    (gib * GIB) as u64
}

fn q4km(size: &str) -> ModelFile {
    let (model, _) = sim::model::find(&format!("gemma3-{size}")).unwrap();
    ModelFile::new(&model, Quantisation::Q4KM).unwrap()
}

fn qat() -> ModelFile {
    let (model, weights) = sim::model::find("gemma3-27b-q4_0-qat").unwrap();
    ModelFile::new(&model, weights.into()).unwrap()
}

fn options(num_ctx: u32, num_parallel: u32) -> Options {
    Options { num_ctx, num_parallel, ..Options::default() }
}

fn on_gib(file: &ModelFile, free: &[f64], options: &Options) -> Placement {
    let free: Vec<u64> = free.iter().map(|gib| bytes(*gib)).collect();
    place(file, &free, options).unwrap()
}

fn incident() -> Host {
    host::find("rtx8000+gtx1660super").unwrap()
}

fn spread() -> Options {
    Options { spread: true, ..options(4096, 2) }
}

#[test]
fn the_numbers_that_users_found_in_their_logs() {
    // Issue 10341: 12b, one sequence of 2048: "kv 608.0 MiB", "required.full 10.3 GiB".
    let file = q4km("12b");
    let placement = on_gib(&file, &[24.0], &options(2048, 1));
    assert_eq!(placement.demand.kv_total_bytes(&file), 608 * MIB);
    assert_eq!(format!("{:.1}", gib(placement.estimate.total_bytes)), "10.3");
    // Issue 11434: 4b, two of 4096: "kv 450.0 MiB", "graph.full 517.0 MiB".
    let file = q4km("4b");
    let placement = on_gib(&file, &[24.0], &options(4096, 2));
    assert_eq!(placement.demand.kv_total_bytes(&file), 450 * MIB);
    assert_eq!(placement.estimate.graph_bytes, 517 * MIB);
}

#[test]
fn an_estimate_by_hand() {
    let file = qat();
    let block = 232_330_240;
    let output = 262_144 * 5376 * 2 + 4 * 5376;
    let vision = 834_531_264 + 4 * (896 * 896 * 3 + 1152 * 14 + 4096 * 4096 * 16);
    let placement = on_gib(&file, &[46.5, 5.1], &options(4096, 2));
    let (local, global) = ((2 * 1024 + 512) * 8192, 8192 * 8192);
    let graph = 4 * 512 * (2 + 8192 + 8192 * 32 + 2 * 5376 + 2 * 128 * 32);
    let sum = RESERVE_BYTES + block + local + vision + 62 * block + 52 * local + 10 * global + output + graph;
    assert_eq!(placement.estimate.bytes, [sum]);
    assert_eq!(
        (placement.fit, placement.parallel, placement.context(&options(4096, 2))),
        (Fit::One, 2, 8192)
    );
    assert_eq!((placement.devices, placement.estimate.layers), (vec![0], vec![63]));
    assert_eq!((placement.demand.kv_bytes, placement.demand.graph_full_bytes), ([local, global], graph));
}

#[test]
fn a_batch_is_no_larger_than_the_context() {
    let file = q4km("4b");
    let demand = |num_batch| Demand::new(&file, 256, num_batch, 1, KvType::F16);
    assert_eq!(demand(512), demand(256));
    assert_eq!(demand(512).kv_bytes, [(1024 + 256) * 4096, 256 * 4096]);
}

/// The byte at which a device begins to take a layer, and the one at which a model is whole.
#[test]
fn the_last_byte_decides() {
    let file = q4km("1b");
    let demand = Demand::new(&file, 4096, 512, 2, KvType::F16);
    let layer = |index: usize| file.blocks[index] + demand.kv_bytes[file.class_of(index)];
    let graph = demand.graph_partial_bytes.max(demand.graph_full_bytes);
    let start = graph + RESERVE_BYTES + 2 * layer(0);
    let layers = |free: u64| estimate(&file, &[free], 0, &demand).layers_total();
    // To join takes room for two layers; one of them is only the buffer.
    assert_eq!([layers(start - 1), layers(start), layers(start + 1)], [0, 0, 1]);
    let all: u64 = (0..26).map(layer).sum();
    let whole = graph + RESERVE_BYTES + layer(0) + all + file.output_bytes;
    assert_eq!([layers(whole), layers(whole + 1)], [26, 27]);
    // One that does not join pays for nothing; one that does pays even if it gets no layer.
    let second = demand.graph_partial_bytes + RESERVE_BYTES + 2 * layer(0);
    let paid = |free: u64| estimate(&file, &[2 * whole, free], 0, &demand).bytes[1];
    assert_eq!([paid(second - 1), paid(second)], [0, RESERVE_BYTES + layer(0)]);
}

#[test]
fn layers_and_the_output_layer_go_by_turns() {
    let free = [22.9; 3];
    let placement = on_gib(&qat(), &free, &spread());
    // 62 blocks: 21, 21, 20; the turn after 62 is the third's.
    assert_eq!(placement.tensor_split(), "21,21,21");
    let four = on_gib(&qat(), &[22.9; 4], &spread());
    assert_eq!(four.tensor_split(), "16,16,16,15");
}

#[test]
fn the_small_card_is_used_when_spread_or_when_the_large_one_is_busy() {
    let file = qat();
    let split = |free: f64, options: &Options| on_gib(&file, &[free, 5.1], options).tensor_split();
    assert_eq!(split(46.5, &options(4096, 2)), "");
    assert_eq!(split(46.5, &spread()), "52,11");
    // It needs 20.7 GiB, but while layers are dealt out the larger graph of a partial fit is kept free.
    assert_eq!(split(21.8, &options(4096, 2)), "");
    assert_eq!(split(21.7, &options(4096, 2)), "52,11");
    let both = on_gib(&file, &[46.5, 5.1], &spread());
    let shown: Vec<String> = both.estimate.bytes.iter().map(|b| format!("{:.1}", gib(*b))).collect();
    assert_eq!((both.fit, shown), (Fit::All, vec!["19.0".to_owned(), "5.0".to_owned()]));
    // The list is in order of free memory, whatever the order of discovery.
    let swapped = on_gib(&file, &[5.1, 46.5], &spread());
    assert_eq!((swapped.devices, swapped.estimate), (vec![1, 0], both.estimate));
}

#[test]
fn a_partial_fit_keeps_the_order_of_discovery() {
    let partial = on_gib(&qat(), &[5.1, 16.0], &options(4096, 2));
    assert_eq!((partial.fit, partial.tensor_split()), (Fit::Partial, "4,56".to_owned()));
    assert_eq!(partial.devices, [0, 1]);
    // Two blocks and the output layer are left over, and counted.
    let block = 232_330_240 + 2560 * 8192;
    let output = 2_818_593_792;
    assert_eq!(partial.estimate.total_bytes - partial.estimate.vram_bytes, 2 * block + output);
    // An explicit number of sequences is kept; the automatic one falls to 1.
    assert_eq!(partial.parallel, 2);
    assert_eq!(on_gib(&qat(), &[5.1, 16.0], &options(4096, 0)).parallel, 1);
    let none = on_gib(&qat(), &[1.0], &options(4096, 0));
    assert_eq!((none.fit, none.devices.len(), none.estimate.vram_bytes), (Fit::Cpu, 0, 0));
}

#[test]
fn automatic_parallel_takes_four_where_they_fit() {
    let parallel = |num_ctx| on_gib(&qat(), &[22.9], &options(num_ctx, 0)).parallel;
    assert_eq!([2048, 4096, 8192].map(parallel), [4, 1, 1]);
    // Four on both together would fit, but one on one device comes first.
    let placement = on_gib(&qat(), &[22.9, 22.9], &options(4096, 0));
    assert_eq!((placement.fit, placement.parallel), (Fit::One, 1));
    let together = on_gib(&qat(), &[16.0, 16.0], &options(4096, 0));
    assert_eq!((together.fit, together.parallel), (Fit::All, 4));
}

#[test]
fn overhead_is_memory_that_is_not_there() {
    let file = q4km("12b");
    let mut numbers = Numbers(3);
    for _ in 0..200 {
        let overhead = numbers.below(3_000) * MIB;
        let free: Vec<u64> =
            (0..1 + numbers.below(3)).map(|_| numbers.below(20_000) * MIB + overhead).collect();
        let less: Vec<u64> = free.iter().map(|free| free - overhead).collect();
        let options = Options { gpu_overhead_bytes: overhead, ..options(4096, 2) };
        let with = place(&file, &free, &options).unwrap();
        assert_eq!(with, place(&file, &less, &self::options(4096, 2)).unwrap());
    }
    let huge = Options { gpu_overhead_bytes: u64::MAX, ..options(4096, 2) };
    assert_eq!(place(&file, &[bytes(48.0)], &huge).unwrap().fit, Fit::Cpu);
}

#[test]
fn quantised_cells_need_flash_attention() {
    let asked = Options { kv: KvType::Q8_0, ..options(4096, 2) };
    let refused = load(&incident(), &qat(), &asked).unwrap();
    assert_eq!((refused.kv, refused.kv_type_ignored), (KvType::F16, true));
    assert_eq!(refused.placement, load(&incident(), &qat(), &options(4096, 2)).unwrap().placement);
    let flash = load(&incident(), &qat(), &Options { flash_attention: true, ..asked }).unwrap();
    assert_eq!((flash.kv, flash.kv_type_ignored), (KvType::Q8_0, false));
    // Believed: one byte a number, no padding. Real: 34 bytes for 32, padded to 256 cells.
    assert_eq!(flash.placement.demand.kv_bytes, [2560 * 4096, 8192 * 4096]);
    assert_eq!(flash.devices[0].bytes.kv, (52 * 2560 + 10 * 8192) * 4096 * 34 / 32);
    // No scores: a device without output layer and vision has only the rows of a batch.
    let both = load(&incident(), &qat(), &Options { flash_attention: true, ..spread() }).unwrap();
    assert_eq!(both.devices[0].bytes.graph, 4 * 512 * (2 + 2 * 5376 + 2 * 128 * 32));
    let scores = 8192 + 8192 * 32;
    let with = load(&incident(), &qat(), &spread()).unwrap();
    assert_eq!(with.devices[0].bytes.graph, both.devices[0].bytes.graph + 4 * 512 * scores);
}

#[test]
fn cells_are_padded_and_short_contexts_need_no_window() {
    let cells = |options: &Options| load(&incident(), &q4km("4b"), options).unwrap().cells;
    assert_eq!(cells(&options(4096, 2)), [2560, 8192]);
    assert_eq!(cells(&options(1000, 3)), [3008, 3008]);
    assert_eq!(cells(&options(1024, 3)), [3584, 3072]);
    let flash = Options { flash_attention: true, ..options(1000, 3) };
    assert_eq!(cells(&flash), [3072, 3072]);
}

/// What lies on the 6 GB card of the incident when the model is spread over both.
#[test]
fn the_small_card_gets_more_than_it_holds() {
    let loaded = load(&incident(), &qat(), &spread()).unwrap();
    let [large, small] = &loaded.devices[..] else { panic!("two devices") };
    assert_eq!((large.class_layers, small.class_layers), ([44, 8], [8, 2]));
    assert!(small.has_output && small.display && !large.has_output && !large.display);
    let Bytes { weights, kv, graph, vision, output, context } = small.bytes;
    assert_eq!(weights, 10 * 232_330_240);
    assert_eq!(kv, (8 * 2560 + 2 * 8192) * 8192);
    assert_eq!(output, 2_818_593_792);
    assert_eq!(vision, 834_531_264 + 2 * 1152 * 5376 + 4 * 1152);
    assert_eq!(graph, 4 * (896 * 896 * 3 + 1152 * 14 + 4096 * 4096 * 16));
    assert_eq!(context, RESERVE_BYTES);
    let held = gib(weights + kv + output + vision);
    assert!((held - 5.86).abs() < 0.01, "{held}");
    let in_all = gib(small.bytes.total());
    assert!((7.2..7.9).contains(&in_all), "{in_all}");
    assert!(gib(small.estimated_bytes) < 5.1);
    // Windows takes it, and 2.2 GiB of it lie in main memory.
    assert_eq!(loaded.error, None);
    assert_eq!((large.spilled_bytes, small.spilled_bytes), (0, small.bytes.total() - small.free_bytes));
    assert!((gib(small.spilled_bytes) - 2.21).abs() < 0.01, "{}", gib(small.spilled_bytes));
    assert!((small.spilled_share() - 0.30).abs() < 0.01, "{}", small.spilled_share());
}

#[test]
fn without_fallback_the_server_does_not_start() {
    let strict = Options { sysmem_fallback: false, ..spread() };
    let linux = Host { system: System::Linux, ..incident() };
    for loaded in [load(&incident(), &qat(), &strict).unwrap(), load(&linux, &qat(), &spread()).unwrap()] {
        let error = loaded.error.clone().unwrap();
        let text = "unable to allocate memory from device CUDA1 for model weights";
        assert_eq!(error.to_string(), text);
        let LoadError::Weights { missing_bytes, .. } = error else { panic!("{error}") };
        let small = &loaded.devices[1];
        assert_eq!((missing_bytes, loaded.spilled_bytes()), (small.excess_bytes(), 0));
    }
    // Weights fit, cells do not; weights and cells fit, the graph does not.
    let with_free = |free: u64| {
        let mut host = incident();
        host.gpus[1].free_bytes = free;
        load(&host, &qat(), &Options { visible_devices: None, ..strict.clone() }).unwrap()
    };
    let Bytes { kv, context, graph, .. } = with_free(bytes(5.1)).devices[1].bytes;
    let tensors = with_free(bytes(5.1)).devices[1].bytes.tensors();
    // The split changes with the memory, so the boundary is searched for the split that there is.
    for free in (bytes(5.1)..bytes(9.0)).step_by(64 << 20) {
        let loaded = with_free(free);
        let at = &loaded.devices[1].bytes;
        let expected = match free {
            free if free < at.context + at.tensors() => "model weights",
            free if free < at.total() => "cudaMalloc failed: out of memory",
            _ => "",
        };
        let text = loaded.error.as_ref().map(LoadError::to_string).unwrap_or_default();
        assert!(text.ends_with(expected), "{text} {}", gib(free));
        if let Some(LoadError::Buffer { mib, .. }) = &loaded.error {
            let failing = if free < at.context + at.tensors() + at.kv { at.kv } else { at.graph };
            assert_eq!(*mib, failing as f64 / MIB as f64);
        }
    }
    assert!(kv > 0 && context > 0 && graph > 0 && tensors > 0);
}

#[test]
fn fallback_has_a_limit_over_all_devices() {
    let needed = load(&incident(), &qat(), &spread()).unwrap().spilled_bytes();
    let with_share = |bytes: u64| {
        let mut host = incident();
        host.fallback_share = bytes as f64 / GIB / host.ram_gib;
        load(&host, &qat(), &spread()).unwrap()
    };
    assert_eq!(with_share(needed + 4096).error, None);
    assert!(with_share(needed - 4096).error.is_some());
    // Main memory itself may be the limit: 4 GiB are the system's, 2.6 GiB the embedding's.
    let mut host = incident();
    (host.ram_gib, host.fallback_share) = (8.0, 1.0);
    let loaded = load(&host, &qat(), &spread()).unwrap();
    assert!(loaded.error.is_some(), "{} left", gib(loaded.ram_left_bytes));
    host.ram_gib = 9.0;
    let loaded = load(&host, &qat(), &spread()).unwrap();
    assert_eq!(loaded.error, None);
    assert_eq!(loaded.ram_left_bytes, bytes(5.0) - loaded.ram.total() - needed);
    host.ram_gib = 6.0;
    let text = load(&host, &qat(), &options(4096, 2)).unwrap().error.unwrap().to_string();
    assert_eq!(text, "model requires more system memory (2.6 GiB) than is available (2.0 GiB)");
}

#[test]
fn the_embedding_and_the_rest_of_a_partial_fit_are_in_main_memory() {
    let mut host = incident();
    host.gpus.swap(0, 1);
    host.gpus[1].free_bytes = bytes(16.0);
    let loaded = load(&host, &qat(), &options(4096, 2)).unwrap();
    assert_eq!(loaded.placement.tensor_split(), "4,56");
    // The first two blocks, the output layer and, with it, vision.
    assert_eq!((loaded.ram_layers, loaded.ram_has_output), ([2, 0], true));
    assert_eq!(loaded.devices[0].class_layers, [3, 1]);
    let file = qat();
    assert_eq!(loaded.ram.output, file.output_bytes + file.embedding_bytes);
    assert_eq!(loaded.ram.kv, 2 * 2560 * 8192);
    assert!(loaded.devices.iter().all(|device| device.bytes.vision == 0 && device.spilled_bytes == 0));
    let alone = load(&incident(), &qat(), &options(4096, 2)).unwrap();
    let ram = Bytes { output: file.embedding_bytes, ..Bytes::default() };
    assert_eq!((alone.ram, alone.ram_has_output), (ram, false));
}

#[test]
fn visible_devices_limit_discovery() {
    let at = |list: &[usize]| {
        let visible_devices = Some(list.to_vec());
        load(&incident(), &qat(), &Options { visible_devices, ..spread() })
    };
    let large = at(&[0]).unwrap();
    assert_eq!((large.devices.len(), large.devices[0].index, large.fit()), (1, 0, Fit::All));
    let swapped = at(&[1, 0]).unwrap();
    let order: Vec<usize> = swapped.devices.iter().map(|device| device.index).collect();
    assert_eq!(order, [0, 1]);
    let small = at(&[1]).unwrap();
    assert_eq!((small.fit(), small.devices[0].name.as_str()), (Fit::Partial, "gtx1660super"));
    let none = at(&[]).unwrap();
    assert_eq!((none.fit(), none.devices.len(), none.ram_layers), (Fit::Cpu, 0, [52, 10]));
    assert_eq!(at(&[0, 0]).unwrap_err(), OllamaError::Twice { index: 0 });
    let text = at(&[2]).unwrap_err().to_string();
    assert!(text.contains("no device 2; rtx8000+gtx1660super has 2"), "{text}");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let text = |options: Options| load(&incident(), &qat(), &options).unwrap_err().to_string();
    assert_eq!(text(options(0, 1)), "num_ctx must be at least 1");
    assert_eq!(text(Options { num_batch: 0, ..options(10, 1) }), "num_batch must be at least 1");
    assert!(text(options(u32::MAX, u32::MAX)).contains("num_ctx must be at most"));
    assert!(text(options(1 << 28, 2)).contains("num_ctx * num_parallel must be at most"));
    assert!(text(Options { num_batch: u32::MAX, ..options(10, 1) }).contains("num_batch"));
    let (mut model, _) = sim::model::find("gemma3-4b").unwrap();
    model.ffn = u32::MAX;
    assert!(ModelFile::new(&model, Quantisation::Q4KM).is_err());
}

/// Numbers for random cases.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (self.0 ^ (self.0 >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 32)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }
}

fn random_host(numbers: &mut Numbers) -> Host {
    let names = ["rtx8000", "gtx1660super", "rtx3090", "rtx4090", "a100", "l40s"];
    let count = 1 + numbers.below(4);
    let parts: Vec<&str> = (0..count).map(|_| numbers.pick(&names)).collect();
    let mut host = host::find(&parts.join("+")).unwrap();
    for at in &mut host.gpus {
        at.free_bytes = at.free_bytes / 1000 * (1 + numbers.below(1000));
    }
    if numbers.below(2) == 0 {
        (host.system, host.fallback_share) = (System::Windows, numbers.below(100) as f64 / 100.0);
    }
    host
}

fn random_options(numbers: &mut Numbers) -> Options {
    Options {
        num_ctx: numbers.pick(&[512, 1024, 2048, 4096, 12_288, 32_768, 131_072]),
        num_batch: numbers.pick(&[256, 512, 2048]),
        num_parallel: numbers.pick(&[0, 1, 2, 4, 6]),
        kv: numbers.pick(&[KvType::F16, KvType::Q8_0, KvType::Q4_0]),
        flash_attention: numbers.below(2) == 0,
        spread: numbers.below(2) == 0,
        gpu_overhead_bytes: numbers.below(3) * 500 * MIB,
        visible_devices: None,
        sysmem_fallback: numbers.below(2) == 0,
        cells: None,
        shares: None,
    }
}

fn random_file(numbers: &mut Numbers) -> ModelFile {
    match numbers.below(5) {
        0 => qat(),
        1 => q4km("1b"),
        2 => q4km("4b"),
        3 => {
            let (model, _) = sim::model::find("gemma3-12b").unwrap();
            ModelFile::new(&model, WeightType::Q8_0.into()).unwrap()
        }
        _ => q4km("27b"),
    }
}

#[test]
fn every_layer_is_placed_once_and_every_byte_counted() {
    let mut numbers = Numbers(1);
    let (mut spilled, mut failed, mut partial, mut several) = (0, 0, 0, 0);
    for _ in 0..1000 {
        let (host, file) = (random_host(&mut numbers), random_file(&mut numbers));
        let options = random_options(&mut numbers);
        let loaded = load(&host, &file, &options).unwrap();
        check_allocation(&host, &file, &options, &loaded);
        check_estimate(&file, &loaded.placement);
        spilled += u32::from(loaded.spilled_bytes() > 0);
        failed += u32::from(loaded.error.is_some());
        partial += u32::from(loaded.fit() == Fit::Partial);
        several += u32::from(loaded.devices.len() > 1);
    }
    // The cases are what they are meant to be.
    let all = [spilled, failed, partial, several];
    assert!(all.iter().all(|count| *count > 10), "{all:?}");
}

fn check_allocation(host: &Host, file: &ModelFile, options: &Options, loaded: &Loaded) {
    let mut layers = loaded.ram_layers;
    let mut outputs = u32::from(loaded.ram_has_output);
    for (device, believed) in loaded.devices.iter().zip(&loaded.placement.estimate.layers) {
        layers[0] += device.class_layers[0];
        layers[1] += device.class_layers[1];
        outputs += u32::from(device.has_output);
        let own = device.class_layers.iter().sum::<u32>() + u32::from(device.has_output);
        assert_eq!(own, *believed);
        assert_eq!(device.free_bytes, host.gpus[device.index].free_bytes);
        assert!(device.spilled_bytes == 0 || device.spilled_bytes == device.excess_bytes());
        assert!(loaded.error.is_some() || device.spilled_bytes == device.excess_bytes());
    }
    let expected = [file.model.classes[0].layers, file.model.classes[1].layers];
    assert_eq!((layers, outputs), (expected, 1));
    let memory = loaded.memory();
    assert_eq!(memory.weight_bytes, file.weight_bytes() + file.embedding_bytes);
    let row = file.model.kv_bytes_per_layer(loaded.kv);
    let cells =
        expected.iter().zip(&loaded.cells).map(|(layers, cells)| u64::from(*layers) * u64::from(*cells));
    assert_eq!(memory.cache_bytes, cells.sum::<u64>() * row);
    assert_eq!(memory.reserve_bytes, loaded.devices.len() as u64 * RESERVE_BYTES);
    if host.system == System::Linux || !options.sysmem_fallback {
        assert_eq!(loaded.spilled_bytes(), 0);
    }
    assert!(loaded.spilled_bytes() <= host.fallback_bytes());
}

fn check_estimate(file: &ModelFile, placement: &Placement) {
    let estimate = &placement.estimate;
    assert_eq!(estimate.vram_bytes, estimate.bytes.iter().sum::<u64>());
    assert_eq!(estimate.is_full, estimate.layers_total() as usize == file.blocks.len() + 1);
    assert_eq!(estimate.is_full, matches!(placement.fit, Fit::One | Fit::All));
    if placement.fit == Fit::Cpu {
        return;
    }
    assert!(estimate.total_bytes >= estimate.vram_bytes);
    if estimate.is_full {
        let vision = file.vision.map_or(0, |vision| vision.weight_bytes + vision.graph_bytes);
        let used = estimate.bytes.iter().filter(|bytes| **bytes > 0).count() as u64;
        let with_layers = estimate.layers.iter().filter(|layers| **layers > 0).count() as u64;
        let sum = file.blocks.iter().sum::<u64>() + placement.demand.kv_total_bytes(file) + file.output_bytes;
        let buffers = used * (RESERVE_BYTES + file.blocks[0] + placement.demand.kv_bytes[0]);
        assert_eq!(estimate.total_bytes, sum + buffers + vision + with_layers * estimate.graph_bytes);
        assert_eq!(estimate.total_bytes, estimate.vram_bytes);
    }
}

#[test]
fn more_free_memory_never_fits_less() {
    let mut numbers = Numbers(7);
    for _ in 0..300 {
        let (file, options) = (random_file(&mut numbers), random_options(&mut numbers));
        let demand = Demand::new(&file, options.num_ctx, options.num_batch, 2, options.kv);
        let mut before = 0;
        for free in (0..120).map(|step| step * 512 * MIB) {
            let layers = estimate(&file, &[free], options.gpu_overhead_bytes, &demand).layers_total();
            assert!(layers >= before, "{layers} after {before} with {}", gib(free));
            before = layers;
        }
    }
}

#[test]
fn spread_never_uses_fewer_devices() {
    let mut numbers = Numbers(11);
    let mut more = 0;
    for _ in 0..1000 {
        let (host, file) = (random_host(&mut numbers), random_file(&mut numbers));
        let options = Options { spread: false, ..random_options(&mut numbers) };
        let packed = load(&host, &file, &options).unwrap();
        let spread = load(&host, &file, &Options { spread: true, ..options }).unwrap();
        assert!(spread.devices.len() >= packed.devices.len());
        more += u32::from(spread.devices.len() > packed.devices.len());
    }
    assert!(more > 50, "{more}");
}

#[test]
fn layers_are_dealt_by_shares_as_llama_server_deals_them() {
    let (host, mut file) = (incident(), qat());
    file.vision = None;
    let dealt = |shares| load(&host, &file, &Options { shares: Some(shares), ..options(4096, 2) }).unwrap();
    let layers = |loaded: &Loaded| -> Vec<u32> {
        loaded.devices.iter().map(|device| device.class_layers.iter().sum()).collect()
    };
    // 62 layers and the output layer behind them: 46.5 and 5.1 GiB are free, and 56 / 63 is the last below 46.5 / 51.6.
    let free = dealt(Shares::Free);
    assert_eq!(layers(&free), [57, 5]);
    assert_eq!(layers(&dealt(Shares::Given(vec![1, 1]))), [32, 30]);
    let alone = dealt(Shares::Given(vec![1, 0]));
    assert_eq!(layers(&alone), [62, 0]);
    // However they are dealt, the weights and cells are the same; the output layer is on the last that has any.
    let sum = |loaded: &Loaded| {
        let all = |of: fn(&Bytes) -> u64| loaded.devices.iter().map(|device| of(&device.bytes)).sum::<u64>();
        [
            all(|bytes| bytes.weights),
            all(|bytes| bytes.kv),
            all(|bytes| bytes.output),
            all(|bytes| bytes.vision),
        ]
    };
    for loaded in [&free, &alone, &dealt(Shares::Given(vec![7, 3])), &dealt(Shares::Given(vec![0, 1]))] {
        assert_eq!(sum(loaded), sum(&alone));
        assert_eq!(loaded.ram_layers, [0, 0]);
        let with_output: Vec<usize> = (0..2).filter(|device| loaded.devices[*device].has_output).collect();
        let last = (0..2).filter(|device| layers(loaded)[*device] > 0).max();
        assert_eq!(with_output, Vec::from_iter(last));
        assert_eq!(loaded.fit(), Fit::Dealt);
    }
    // What does not fit is asked for all the same: the driver moves it, or refuses.
    let uneven = Options { shares: Some(Shares::Given(vec![5, 1])), ..options(4096, 2) };
    assert!(load(&host, &file, &uneven).unwrap().spilled_bytes() > 0);
    let refused = load(&host, &file, &Options { sysmem_fallback: false, ..uneven }).unwrap();
    assert!(refused.error.is_some());
    for shares in [vec![], vec![1], vec![1, 1, 1], vec![0, 0]] {
        let asked = Options { shares: Some(Shares::Given(shares)), ..options(4096, 2) };
        assert!(matches!(load(&host, &file, &asked), Err(OllamaError::Shares { devices: 2, .. })));
    }
}
