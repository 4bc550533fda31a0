//! What one has to give for the other: two measured columns against each other, per trace.

use super::Grid;
use crate::metric::{LOSS, Metric, metric};
use crate::plot::{ParetoPoint, Wish, frontier};
use crate::stats::Better;

/// Two columns of which more is better, or less: what lies across, and what lies upwards.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Across.
    pub x: &'static Metric,
    /// Upwards.
    pub y: &'static Metric,
    wish: Wish,
}

impl Pair {
    /// Two different metrics; none where nobody wishes for more or less of one of them.
    pub fn new(x: &'static Metric, y: &'static Metric) -> Option<Pair> {
        let wish = Wish { x: x.better?, y: y.better? };
        (x.key != y.key).then_some(Pair { x, y, wish })
    }

    /// Which way is better.
    pub fn wish(&self) -> Wish {
        self.wish
    }

    fn has_same_columns(&self, other: &Pair) -> bool {
        let keys = |pair: &Pair| [pair.x.key, pair.y.key];
        let [x, y] = keys(other);
        keys(self) == [x, y] || keys(self) == [y, x]
    }
}

/// The points of one trace.
#[derive(Clone, Debug)]
pub struct Front {
    /// Number of the trace.
    pub trace: usize,
    /// What is compared.
    pub pair: Pair,
    /// All points that have both.
    pub points: Vec<ParetoPoint>,
    /// Setting of each of them, in words.
    pub settings: Vec<String>,
    /// Those that no other beats in one without losing in the other, the best across first. Bounds beat nobody.
    pub front: Vec<usize>,
}

/// What is compared where nobody asks for anything else: the target against TTFT p99, and then throughput against
/// the time to the first token and between tokens, and that time against the memory that is held.
fn usual(grid: &Grid) -> Vec<Pair> {
    let wished = |better| (grid.target.better == Some(better)).then_some(grid.target);
    let y = wished(Better::Higher).or_else(|| metric("throughput_tokens_per_s")).unwrap_or(&LOSS);
    let has_ttft = |metric: &&'static Metric| grid.points.iter().any(|p| !p.samples(metric).is_empty());
    let ttft = metric("ttft_p99_ms").filter(has_ttft);
    let x = wished(Better::Lower).or(ttft).unwrap_or(&LOSS);
    let known = [
        ("ttft_p99_ms", "throughput_tokens_per_s"),
        ("tpot_p99_ms", "throughput_tokens_per_s"),
        ("held_peak_gib", "ttft_p99_ms"),
    ];
    let known = known.into_iter().filter_map(|(x, y)| Pair::new(metric(x)?, metric(y)?));
    let mut pairs: Vec<Pair> = Vec::new();
    for pair in Pair::new(x, y).into_iter().chain(known) {
        if !pairs.iter().any(|other| other.has_same_columns(&pair)) {
            pairs.push(pair);
        }
    }
    pairs
}

/// A front per pair and trace with at least two points; the usual pairs where `asked` names none. Of these a pair
/// beside the first is there only where both of its columns vary.
pub fn fronts(grid: &Grid, asked: &[Pair]) -> Vec<Front> {
    let usual = if asked.is_empty() { usual(grid) } else { Vec::new() };
    let mut found = Vec::new();
    for (at, pair) in asked.iter().chain(&usual).enumerate() {
        let is_shown = |front: &Front| {
            let varies = |of: fn(&ParetoPoint) -> f64| {
                front.points.iter().any(|point| of(point) != of(&front.points[0]))
            };
            front.points.len() > 1
                && (at == 0 || !asked.is_empty() || (varies(|point| point.x) && varies(|point| point.y)))
        };
        found.extend((0..grid.traces.len()).map(|trace| front(grid, *pair, trace)).filter(is_shown));
    }
    found
}

fn front(grid: &Grid, pair: Pair, trace: usize) -> Front {
    let (mut points, mut settings) = (Vec::new(), Vec::new());
    for point in grid.points.iter().filter(|point| point.trace == trace) {
        let (Some((x, x_half_width)), Some((y, y_half_width))) =
            (point.estimate(pair.x), point.estimate(pair.y))
        else {
            continue;
        };
        let name = grid.names[point.name].to_owned();
        let is_bound = grid.is_bound[point.name];
        points.push(ParetoPoint {
            label: name.clone(),
            policy: name,
            x,
            x_half_width,
            y,
            y_half_width,
            is_bound,
        });
        settings.push(grid.setting(&point.setting));
    }
    let front = frontier(&points, pair.wish);
    Front { trace, pair, points, settings, front }
}
