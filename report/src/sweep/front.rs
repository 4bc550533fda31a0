//! What one has to give for the other: throughput or goodput against the time to the first token, per trace.

use super::Grid;
use crate::metric::{LOSS, Metric, metric};
use crate::plot::{ParetoPoint, frontier};
use crate::stats::Better;

/// The points of one trace.
#[derive(Clone, Debug)]
pub struct Front {
    /// Number of the trace.
    pub trace: usize,
    /// What is wished low.
    pub x: &'static Metric,
    /// What is wished high.
    pub y: &'static Metric,
    /// All points that have both.
    pub points: Vec<ParetoPoint>,
    /// Setting of each of them, in words.
    pub settings: Vec<String>,
    /// Those that no other beats in one without losing in the other, from left to right. Bounds beat nobody.
    pub front: Vec<usize>,
}

/// A front per trace with at least two points.
pub fn fronts(grid: &Grid) -> Vec<Front> {
    let wished = |better| (grid.target.better == Some(better)).then_some(grid.target);
    let y = wished(Better::Higher).or_else(|| metric("throughput_tokens_per_s")).unwrap_or(&LOSS);
    let has_ttft = |metric: &&'static Metric| grid.points.iter().any(|p| !p.samples(metric).is_empty());
    let ttft = metric("ttft_p99_ms").filter(has_ttft);
    let x = wished(Better::Lower).or(ttft).unwrap_or(&LOSS);
    let fronts = (0..grid.traces.len()).map(|trace| {
        let (mut points, mut settings) = (Vec::new(), Vec::new());
        for point in grid.points.iter().filter(|point| point.trace == trace) {
            let (Some((at_x, x_half_width)), Some((at_y, y_half_width))) =
                (point.estimate(x), point.estimate(y))
            else {
                continue;
            };
            let name = grid.names[point.name].to_owned();
            let is_bound = grid.is_bound[point.name];
            points.push(ParetoPoint {
                label: name.clone(),
                policy: name,
                x: at_x,
                x_half_width,
                y: at_y,
                y_half_width,
                is_bound,
            });
            settings.push(grid.setting(&point.setting));
        }
        let front = frontier(&points);
        Front { trace, x, y, points, settings, front }
    });
    fronts.filter(|front| front.points.len() > 1).collect()
}
