//! Draws every plot and both pages from invented data: `cargo run -p report --example gallery DIR`.
//!
//! The data comes from a toy cache in this file, so that the pictures can be judged without a
//! simulator. It is no measurement of anything.

#[path = "../tests/common/ablation.rs"]
mod ablation;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use report::compare::Comparison;
use report::number::Unit;
use report::page::{Page, TracePage};
use report::plot::{AxisSpec, Frame, Series};
use report::table::Format;
use report::{CellMap, Held, MapColumn, Summary, TimelineRow, files, page, plot, stats};

const CELLS: usize = 4096;
const ROWS: usize = 200;
const STEPS: usize = 2400;
const POLICIES: [&str; 5] =
    ["contiguous:max", "contiguous:pow2", "contiguous:pow2+defrag", "paged:16", "unlimited"];

fn main() -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(std::env::args().nth(1).ok_or("usage: gallery DIR")?);
    std::fs::create_dir_all(&dir)?;
    let runs: Vec<Run> =
        POLICIES.iter().flat_map(|policy| (0..10).map(|seed| Toy::new(policy, seed).run())).collect();
    let summaries: Vec<Summary> = runs.iter().map(|run| run.summary.clone()).collect();
    let first_seed = || runs.iter().filter(|run| run.summary.seed == 0);
    let named = |samples: fn(&Run) -> &Vec<f64>| -> Vec<(String, Vec<f64>)> {
        first_seed().map(|run| (run.summary.policy.clone(), samples(run).clone())).collect()
    };
    let page = Page {
        title: "Contiguous against paged cells on a toy trace".to_owned(),
        question: "How many requests does a cache of 4,096 cells answer when each must lie in one \
                   piece, and how many when it may lie in blocks?"
            .to_owned(),
        reference: None,
        bounds: vec!["unlimited".to_owned()],
        columns: Vec::new(),
        timeline: first_seed().flat_map(|run| run.timeline.clone()).collect(),
        ttft_ms: named(|run| &run.ttft_ms),
        tpot_ms: named(|run| &run.tpot_ms),
        maps: first_seed().map(|run| run.map.clone()).collect(),
        settings_toml: "[trace]\nkind = \"poisson\"\nrate_per_s = 2.2\n\n[cache]\ncells = 4096\n".to_owned(),
        command: "kvlab compare toy.toml --seeds 10".to_owned(),
        notes: vec!["The toy cache of the gallery made these numbers.".to_owned()],
        summaries,
    };
    let mut pictures = BTreeMap::new();
    plots(&page, &mut pictures);
    let trace = trace_page();
    let ablation = ablation_page(&page);
    for (name, svg) in &pictures {
        files::write_text(&dir.join(format!("{name}.svg")), svg)?;
    }
    files::write_text(&dir.join("report.html"), &page::page(&page)?)?;
    files::write_text(&dir.join("trace.html"), &page::trace_page(&trace)?)?;
    files::write_text(&dir.join("ablation.html"), &page::page(&ablation)?)?;
    for page in [&page, &ablation] {
        let comparison = Comparison::new(&page.summaries).bounds(&page.bounds);
        for format in [Format::Table, Format::Md] {
            println!("{}", comparison.render(format, Some(110))?);
        }
    }
    sizes(&dir)
}

/// A page of rows with names; its pictures borrow what the toy cache did.
fn ablation_page(toy: &Page) -> Page {
    let summaries = ablation::ablation();
    let mut names: Vec<String> = summaries.iter().map(|row| row.row.clone()).collect();
    names.dedup();
    let borrowed = |samples: &[(String, Vec<f64>)]| -> Vec<(String, Vec<f64>)> {
        let all = names.iter().zip(samples.iter().cycle()).enumerate();
        let slower = |(i, (name, (_, values))): (usize, (&String, &(String, Vec<f64>)))| {
            (name.clone(), values.iter().map(|ms| ms * (1.0 + i as f64 * 0.07)).collect())
        };
        all.map(slower).collect()
    };
    let timeline = names.iter().zip(POLICIES.iter().cycle()).flat_map(|(name, policy)| {
        let own = toy.timeline.iter().filter(move |row| row.policy == *policy);
        own.map(|row| TimelineRow { row: name.clone(), ..row.clone() })
    });
    let map = |(i, (name, map)): (usize, (&String, &CellMap))| {
        let mut map = CellMap { row: name.clone(), ..map.clone() };
        for (c, column) in map.columns.iter_mut().enumerate() {
            for (r, held) in column.ranges.iter_mut().enumerate() {
                if let Held::Live(request) = *held
                    && i < 2
                    && (c / 12 + r / 9) % 11 == 3
                    && r % 4 < 2
                {
                    *held = Held::Foreign(request);
                }
            }
        }
        map
    };
    Page {
        title: "Ollama 0.6.6 and Gemma 3: the advice, one change at a time".to_owned(),
        question: "Which piece of advice keeps the server from crashing, and why?".to_owned(),
        reference: Some(ablation::REFERENCE.to_owned()),
        timeline: timeline.collect(),
        ttft_ms: borrowed(&toy.ttft_ms),
        tpot_ms: borrowed(&toy.tpot_ms),
        maps: names.iter().zip(toy.maps.iter().cycle()).enumerate().map(map).collect(),
        command: "kvlab compare ablation.toml".to_owned(),
        notes: vec!["The rows are made up; the pictures of cells are those of the toy cache.".to_owned()],
        summaries,
        ..Page::default()
    }
}

fn sizes(dir: &Path) -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        println!("{:8} {}", entry.metadata()?.len(), entry.path().display());
    }
    Ok(())
}

fn plots(page: &Page, out: &mut BTreeMap<&'static str, String>) {
    let wave = |k: f64| (0..1000).map(|i| (f64::from(i), (f64::from(i) * k).sin() + k * 20.0)).collect();
    let series: Vec<Series> =
        (1..=9).map(|i| Series::new(&format!("series {i}"), wave(f64::from(i) * 0.01))).collect();
    out.insert(
        "lines",
        plot::line_chart(
            &Frame::wide("Nine lines, to see colours, dashes and markers"),
            &AxisSpec::linear("time", Unit::Seconds),
            &AxisSpec::linear("height", Unit::Plain),
            &series,
        ),
    );
    let empty = [Series::new("nothing <&>", Vec::new())];
    let time = AxisSpec::linear("time", Unit::Seconds);
    out.insert("empty", plot::line_chart(&Frame::half("No data"), &time, &time, &empty));
    out.insert(
        "ttft",
        plot::cdf(
            &Frame::wide("Time to first token"),
            &AxisSpec::log("time to first token", Unit::Milliseconds),
            &page.ttft_ms,
        ),
    );
    for (name, map) in ["map0", "map1", "map2", "map3", "map4"].into_iter().zip(&page.maps) {
        let title = format!("{}: who holds which cells", map.policy);
        out.insert(name, plot::cell_map(&Frame::wide(&title), map));
    }
}

fn trace_page() -> TracePage {
    let mut dice = Dice(7);
    let mut now = 0.0;
    let mut arrivals = Vec::new();
    for i in 0..3000 {
        let busy = (i / 150) % 3 == 0;
        now += dice.exponential(if busy { 0.05 } else { 0.6 });
        arrivals.push(now);
    }
    let lengths = |dice: &mut Dice, typical: f64| {
        (0..3000).map(|_| (typical * (dice.exponential(1.0) * 1.4).exp()).min(32768.0).round()).collect()
    };
    TracePage {
        title: "office.jsonl".to_owned(),
        facts: vec![
            ("requests".to_owned(), "3,000".to_owned()),
            ("duration".to_owned(), "1,257 s".to_owned()),
            ("prompt tokens, median".to_owned(), "611".to_owned()),
        ],
        prompt_tokens: lengths(&mut dice, 300.0),
        output_tokens: lengths(&mut dice, 60.0),
        arrivals_s: arrivals,
        sharing: (1..=300).map(|i| (f64::from(i) * 10.0, 0.6 - 0.6 / (1.0 + f64::from(i) / 40.0))).collect(),
        command: "kvlab trace show office.jsonl --out trace.html".to_owned(),
        version: "0.1.0".to_owned(),
        notes: Vec::new(),
    }
}

/// A small generator of random numbers: good enough for pictures.
struct Dice(u64);

impl Dice {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as f64 + 0.5) / 2f64.powi(31)
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -self.uniform().ln() * mean
    }
}

struct Running {
    id: u64,
    cells: Vec<usize>,
    live: usize,
    tokens: usize,
    output: usize,
}

struct Toy {
    policy: &'static str,
    seed: u64,
    dice: Dice,
    noise: Dice,
    owner: Vec<Option<u64>>,
    running: Vec<Running>,
    queue: Vec<(u64, usize, usize, usize)>,
    copied: u64,
}

struct Run {
    summary: Summary,
    timeline: Vec<TimelineRow>,
    map: CellMap,
    ttft_ms: Vec<f64>,
    tpot_ms: Vec<f64>,
}

impl Toy {
    fn new(policy: &'static str, seed: u64) -> Toy {
        let owner = vec![None; CELLS];
        Toy {
            policy,
            seed,
            dice: Dice(seed + 1),
            noise: Dice(seed + 99),
            owner,
            running: vec![],
            queue: vec![],
            copied: 0,
        }
    }

    fn place(&mut self, id: u64, tokens: usize) -> Option<Vec<usize>> {
        let size = match self.policy {
            "contiguous:max" => 1024,
            "paged:16" => tokens.next_multiple_of(16),
            "unlimited" => tokens,
            _ => tokens.next_power_of_two(),
        };
        let free: Vec<usize> = (0..CELLS).filter(|c| self.owner[*c].is_none()).collect();
        if free.len() < size && self.policy != "unlimited" {
            return None;
        }
        let cells = if self.policy.starts_with("contiguous") {
            let start = (0..=CELLS - size).find(|s| self.owner[*s..s + size].iter().all(Option::is_none));
            match start {
                Some(start) => (start..start + size).collect(),
                None if self.policy.ends_with("defrag") => {
                    self.compact();
                    let used = CELLS - free.len();
                    (used..used + size).collect()
                }
                None => return None,
            }
        } else {
            free.into_iter().take(size).collect::<Vec<usize>>()
        };
        for c in &cells {
            self.owner[*c] = Some(id);
        }
        Some(cells)
    }

    fn compact(&mut self) {
        self.running.sort_by_key(|r| r.cells.first().copied());
        self.owner = vec![None; CELLS];
        let mut at = 0;
        for r in &mut self.running {
            let moved: Vec<usize> = (at..at + r.cells.len()).collect();
            self.copied += if moved != r.cells { r.live as u64 } else { 0 };
            at += moved.len();
            r.cells = moved;
            for c in &r.cells {
                self.owner[*c] = Some(r.id);
            }
        }
    }

    fn run(mut self) -> Run {
        let (mut requests, mut completed, mut rejected, mut tokens_out) = (0_u64, 0_u64, 0_u64, 0_u64);
        let (mut timeline, mut columns) = (Vec::new(), Vec::new());
        let (mut ttft_ms, mut tpot_ms) = (Vec::new(), Vec::new());
        for step in 0..STEPS {
            let load = 0.035 + 0.012 * (step as f64 / 500.0).sin();
            if self.dice.uniform() < load {
                let prompt = (40.0 + self.dice.exponential(220.0)).min(700.0) as usize;
                let output = (20.0 + self.dice.exponential(160.0)).min(300.0) as usize;
                requests += 1;
                if self.queue.len() >= 12 {
                    rejected += 1
                } else {
                    self.queue.push((requests, step, prompt, output))
                }
            }
            while let Some(&(id, arrival, prompt, output)) = self.queue.first() {
                let Some(cells) = self.place(id, prompt + output) else {
                    break;
                };
                self.queue.remove(0);
                ttft_ms.push(((step - arrival) as f64 + 1.0) * 100.0 + prompt as f64 * 0.4);
                tpot_ms.push(20.0 + self.running.len() as f64 * 3.0 + self.noise.exponential(4.0));
                self.running.push(Running { id, cells, live: prompt, tokens: prompt + output, output });
            }
            for r in &mut self.running {
                r.live += 1;
            }
            let (done, running): (Vec<Running>, Vec<Running>) =
                self.running.drain(..).partition(|r| r.live >= r.tokens);
            self.running = running;
            for r in done {
                completed += 1;
                tokens_out += r.output as u64;
                r.cells.iter().for_each(|c| self.owner[*c] = None);
            }
            if step % 10 == 0 {
                columns.push(self.column(step));
                timeline.push(self.row(step));
            }
        }
        let summary = self.summary(requests, completed, rejected, tokens_out, &ttft_ms, &tpot_ms);
        let map = CellMap {
            row: String::new(),
            policy: self.policy.to_owned(),
            class: "global".to_owned(),
            cells: CELLS as u32,
            rows: ROWS as u32,
            columns,
        };
        Run { summary, timeline, map, ttft_ms, tpot_ms }
    }

    fn column(&self, step: usize) -> MapColumn {
        let mut held = vec![Held::Free; CELLS];
        for r in &self.running {
            for (i, c) in r.cells.iter().enumerate() {
                held[*c] = if i < r.live { Held::Live(r.id) } else { Held::Wasted(r.id) };
            }
        }
        let ranges = (0..ROWS).map(|r| held[(r * CELLS / ROWS + (r + 1) * CELLS / ROWS) / 2]).collect();
        MapColumn { time_ns: step as u64 * 100_000_000, ranges }
    }

    fn row(&self, step: usize) -> TimelineRow {
        let live: usize = self.running.iter().map(|r| r.live.min(r.cells.len())).sum();
        let held: usize = self.running.iter().map(|r| r.cells.len()).sum();
        let free = CELLS.saturating_sub(held);
        let runs =
            self.owner.chunk_by(|a, b| a.is_none() == b.is_none()).filter(|r| r[0].is_none()).map(<[_]>::len);
        let placeable = if self.policy.starts_with("contiguous") { runs.max().unwrap_or(0) } else { free };
        TimelineRow {
            row: String::new(),
            policy: self.policy.to_owned(),
            seed: self.seed,
            time_s: step as f64 / 10.0,
            class: "global".to_owned(),
            cells: CELLS as u32,
            live_cells: live as u32,
            held_cells: held as u32,
            cached_cells: 0,
            free_cells: free as u32,
            placeable_cells: placeable as u32,
            high_water_cells: 0,
            sequence_runs: 0,
            sequences: self.running.len() as u32,
            waiting: self.queue.len() as u32,
        }
    }

    fn summary(
        &self,
        requests: u64,
        completed: u64,
        rejected: u64,
        tokens: u64,
        ttft: &[f64],
        tpot: &[f64],
    ) -> Summary {
        let quantile = |values: &[f64], q: f64| {
            let mut sorted = values.to_vec();
            sorted.sort_by(f64::total_cmp);
            sorted.get((sorted.len() as f64 * q) as usize).copied()
        };
        let duration_s = STEPS as f64 / 10.0;
        let in_time = ttft.iter().filter(|t| **t < 2000.0).count();
        Summary {
            policy: self.policy.to_owned(),
            trace: "toy".to_owned(),
            seed: self.seed,
            requests,
            completed,
            rejected,
            unfinished: requests - completed - rejected,
            output_tokens: tokens,
            duration_s,
            throughput_tokens_per_s: tokens as f64 / duration_s,
            goodput_requests_per_s: in_time as f64 / duration_s,
            ttft_p50_ms: quantile(ttft, 0.5),
            ttft_p99_ms: quantile(ttft, 0.99),
            tpot_p50_ms: quantile(tpot, 0.5),
            tpot_p99_ms: quantile(tpot, 0.99),
            defrag_passes: self.copied / 700,
            cells_copied: self.copied,
            utilisation_mean: 0.55,
            fragmentation_internal_mean: 0.2,
            fragmentation_external_mean: 0.1,
            ttft_mean_ms: stats::mean(ttft),
            tpot_mean_ms: stats::mean(tpot),
            steps: STEPS as u64,
            held_peak: 0.9,
            model: "gemma3:4b".to_owned(),
            gpu: "toy".to_owned(),
            kv_cache_type: "f16".to_owned(),
            scheduler: "toy".to_owned(),
            num_ctx: 1024,
            num_parallel: 16,
            num_batch: 512,
            cells: "global=4096".to_owned(),
            cost_model: "spec".to_owned(),
            kvlab_version: "0.1.0".to_owned(),
            spec_key: "toy".to_owned(),
            event_hash: "0".to_owned(),
            ..Summary::default()
        }
    }
}
