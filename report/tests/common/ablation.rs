//! Made-up rows of an ablation, each with the settings and cells that a real one would have. The
//! numbers measure nothing; they only have the shape of the real ones.

use report::Summary;

/// Seeds of every row.
pub const SEEDS: u64 = 15;

/// Name of the row that the others are measured against.
pub const REFERENCE: &str = "failing settings";

/// Crashes of the reference, seed by seed.
const CRASHES: [u64; 15] = [1, 0, 2, 0, 1, 1, 0, 0, 2, 1, 0, 1, 0, 3, 0];

/// Settings of the reference, with nothing measured.
pub fn reference() -> Summary {
    Summary {
        row: REFERENCE.to_owned(),
        policy: "ollama-0.6.6".to_owned(),
        trace: "image+chat".to_owned(),
        requests: 240,
        model: "gemma3-27b-qat".to_owned(),
        gpu: "rtx8000+gtx1660super".to_owned(),
        kv_cache_type: "f16".to_owned(),
        scheduler: "ollama".to_owned(),
        num_ctx: 4096,
        num_parallel: 2,
        num_batch: 512,
        cells: "local=2560;global=8192".to_owned(),
        memory_gib: "rtx8000=20.4/46.5;gtx1660super=7.5/5.1".to_owned(),
        memory_estimated_gib: "rtx8000=19.0/46.5;gtx1660super=5.0/5.1".to_owned(),
        spilled_gib: 2.4,
        cost_model: "spec".to_owned(),
        kvlab_version: "0.1.0".to_owned(),
        ..Summary::default()
    }
}

/// The reference with other settings under another name.
pub fn changed(name: &str, change: impl Fn(&mut Summary)) -> Summary {
    let mut row = Summary { row: name.to_owned(), ..reference() };
    change(&mut row);
    row
}

/// One row per seed, with these crashes and numbers that follow from them.
pub fn measured(row: &Summary, crashes: impl Fn(usize) -> u64) -> Vec<Summary> {
    let of = |seed: u64| {
        let i = seed as usize;
        let crashes = crashes(i % CRASHES.len());
        let noise = (seed * 7 + 3 + seed * row.row.len() as u64 % 11) % 13;
        let wave = noise as f64 / 3.0 - 2.0;
        let failed = crashes + crashes * (seed % 3) / 2;
        let is_spilled = row.spilled_gib > 0.0;
        let speed = if is_spilled { 11.0 } else { 19.0 } - crashes as f64 * 0.6 + wave * 0.4;
        let ttft = if is_spilled { 9000.0 } else { 4200.0 } + crashes as f64 * 5200.0 + wave * 300.0;
        Summary {
            seed,
            crashes,
            failed,
            completed: row.requests - failed,
            truncated: if row.num_ctx > 4096 { 1 } else { 21 + seed % 4 },
            shifted: if row.num_ctx > 4096 { 0 } else { 6 + seed % 3 },
            shifts: if row.num_ctx > 4096 { 0 } else { 9 + seed % 5 },
            defrag_passes: 30 + seed,
            cells_copied: 9000 + 310 * seed,
            corrupted_steps: if row.policy.starts_with("ollama") && row.num_parallel > 1 {
                410 + 9 * seed
            } else {
                0
            },
            freezes: if is_spilled { 36 + seed % 7 } else { 0 },
            frozen_s: if is_spilled { 40.0 } else { 0.0 },
            leaked_gib: 1.3,
            steps: 5400 + seed,
            duration_s: 3600.0,
            output_tokens: 41_000,
            throughput_tokens_per_s: speed,
            goodput_requests_per_s: speed / 400.0,
            ttft_p50_ms: Some(ttft / 4.0),
            ttft_p99_ms: Some(ttft),
            tpot_p50_ms: Some(900.0 / speed),
            tpot_p99_ms: Some(1900.0 / speed),
            utilisation_mean: 0.41,
            fragmentation_external_mean: 0.2,
            ..row.clone()
        }
    };
    (0..SEEDS).map(of).collect()
}

/// Crashes of the reference, by seed.
pub fn crashes(seed: usize) -> u64 {
    CRASHES[seed]
}

fn hide(row: &mut Summary) {
    row.gpu = "rtx8000".to_owned();
    row.memory_gib = "rtx8000=24.6/46.5".to_owned();
    row.memory_estimated_gib = "rtx8000=22.9/46.5".to_owned();
    row.spilled_gib = 0.0;
}

/// The failing settings, each piece of advice alone, all together, and what really cures it.
pub fn ablation() -> Vec<Summary> {
    let large = |row: &mut Summary| {
        (row.num_ctx, row.cells) = (12_288, "local=2560;global=24576".to_owned());
        row.memory_gib = "rtx8000=21.7/46.5;gtx1660super=7.8/5.1".to_owned();
        row.spilled_gib = 2.7;
    };
    let small = |row: &mut Summary| (row.num_batch, row.cells) = (256, "local=2304;global=8192".to_owned());
    let policy = |name: &'static str| move |row: &mut Summary| row.policy = name.to_owned();
    let rows: Vec<Vec<Summary>> = vec![
        measured(&reference(), crashes),
        measured(&changed("num_ctx 12288", large), crashes),
        measured(
            &changed("num_parallel 4 instead of 2", |row| {
                (row.num_parallel, row.cells) = (4, "local=4608;global=16384".to_owned());
            }),
            |seed| u64::from(seed == 8),
        ),
        measured(&changed("num_batch 256", small), |seed| crashes(seed) + 1 + seed as u64 % 2),
        measured(
            &changed("K/V as q8_0 with flash attention", |row| {
                row.kv_cache_type = "q8_0".to_owned();
                row.memory_gib = "rtx8000=19.7/46.5;gtx1660super=7.2/5.1".to_owned();
                row.spilled_gib = 2.1;
            }),
            |seed| if seed == 3 { 1 } else { crashes(seed) },
        ),
        measured(&changed("display GPU hidden", hide), crashes),
        measured(
            &changed("no system-memory fallback", |row| {
                row.spilled_gib = 0.0;
                row.load_error = "gtx1660super: 7.5 GiB needed, 5.1 GiB there".to_owned();
            }),
            |_| 0,
        ),
        measured(
            &changed("all the advice at once", |row| {
                large(row);
                small(row);
                hide(row);
                row.cells = "local=2304;global=24576".to_owned();
            }),
            |seed| crashes(seed) + u64::from(seed % 2 == 0),
        ),
        measured(
            &changed("num_parallel 1", |row| {
                (row.num_parallel, row.cells) = (1, "local=1536;global=4096".to_owned());
            }),
            |_| 0,
        ),
        measured(&changed("every sequence trimmed, as in Ollama 0.12.4", policy("ollama-0.12.4")), |_| 0),
        measured(
            &changed("cache sized as before Ollama 0.6.3", |row| {
                row.cells = "local=3072;global=8192".to_owned()
            }),
            |_| 0,
        ),
        measured(&changed("paged, blocks of 16", policy("paged:16")), |_| 0),
    ];
    let mut rows: Vec<Summary> = rows.into_iter().flatten().collect();
    for row in rows.iter_mut().filter(|row| !row.load_error.is_empty()) {
        *row = Summary {
            seed: row.seed,
            requests: row.requests,
            rejected: row.requests,
            completed: 0,
            truncated: 0,
            ..changed(&row.row, |r| {
                (r.spilled_gib, r.load_error) = (0.0, row.load_error.clone());
            })
        };
    }
    rows
}
