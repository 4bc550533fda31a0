//! One number against another, as throughput against failures: what one costs in the other.

use std::collections::BTreeMap;

use super::Frame;
use super::axis::{Axis, AxisSpec};
use super::lines::{is_finite, no_data};
use super::scene::{Anchor, Grid, Panel, Point, SMALL, Sample, Scene, shorten, text_width};
use super::style::{DOMINATED, Dash, INK, Marker, QUIET, Rgb, Style, style};
use crate::stats::Better;

/// One policy under one setting.
#[derive(Clone, Debug, PartialEq)]
pub struct ParetoPoint {
    /// Name beside the point.
    pub label: String,
    /// Policy, for the legend.
    pub policy: String,
    /// Mean of what lies across, in the unit of the x axis.
    pub x: f64,
    /// Half the 95 % interval of `x`; none without one.
    pub x_half_width: Option<f64>,
    /// Mean of what lies upwards, in the unit of the y axis.
    pub y: f64,
    /// Half the 95 % interval of `y`; none without one.
    pub y_half_width: Option<f64>,
    /// Whether it is an upper bound: drawn, but it dominates nobody.
    pub is_bound: bool,
}

/// What is wished for across and upwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Across.
    pub x: Better,
    /// Upwards.
    pub y: Better,
}

impl Wish {
    /// Little across and much upwards, as latency and throughput are wished.
    pub const LEFT_AND_UP: Wish = Wish { x: Better::Lower, y: Better::Higher };

    /// A point as it would lie if little were wished across and much upwards.
    fn turned(self, point: &ParetoPoint) -> (f64, f64) {
        let x = if self.x == Better::Lower { point.x } else { -point.x };
        let y = if self.y == Better::Higher { point.y } else { -point.y };
        // Zeros have signs, and points must not differ by them.
        (x + 0.0, y + 0.0)
    }

    /// Where the best points lie: `up and to the left`.
    pub fn corner(self) -> &'static str {
        match (self.y, self.x) {
            (Better::Higher, Better::Lower) => "up and to the left",
            (Better::Higher, Better::Higher) => "up and to the right",
            (Better::Lower, Better::Lower) => "down and to the left",
            (Better::Lower, Better::Higher) => "down and to the right",
        }
    }
}

/// More points than this are a cloud, of which only the frontier has names and intervals.
const NAMED_MAX: usize = 36;
/// Within so many pixels of a name of a cloud the same is not said again.
const NAMED_NEAR: f64 = 60.0;
/// Names of a cloud whose points keep their colours, paler.
const PALE_MAX: usize = 12;

/// Points, their frontier, and the dominated ones in grey.
pub fn pareto(frame: &Frame, x: &AxisSpec, y: &AxisSpec, wish: Wish, points: &[ParetoPoint]) -> String {
    let (width, height) = frame.size();
    let mut scene = Scene::new(width, height, &frame.title);
    let mut policies: Vec<&str> = Vec::new();
    for point in points {
        if !policies.contains(&point.policy.as_str()) {
            policies.push(&point.policy);
        }
    }
    let front = frontier(points, wish);
    let is_many = points.len() > NAMED_MAX;
    // A cloud of few names keeps their colours.
    let is_pale = is_many && policies.len() <= PALE_MAX;
    let places: BTreeMap<&str, usize> = policies.iter().enumerate().map(|(i, policy)| (*policy, i)).collect();
    let mut is_front = vec![false; points.len()];
    front.iter().for_each(|i| is_front[*i] = true);
    let style_of = |i: usize| {
        let index = places.get(points[i].policy.as_str()).copied().unwrap_or(0);
        let style = style(index);
        let grey = !is_front[i] && !points[i].is_bound;
        match grey {
            true if is_pale => Style { colour: style.colour.paler(0.5), ..style },
            true => Style { colour: DOMINATED, ..style },
            false => style,
        }
    };
    let mut has_colour = vec![is_pale; policies.len()];
    for (point, is_front) in points.iter().zip(&is_front) {
        if let (true, Some(place)) = (*is_front || point.is_bound, places.get(point.policy.as_str())) {
            has_colour[*place] = true;
        }
    }
    let mut entries: Vec<(String, Style)> = Vec::new();
    for (i, policy) in policies.iter().enumerate() {
        let colour = if has_colour[i] { style(i).colour } else { DOMINATED };
        if is_many && !has_colour[i] {
            continue;
        }
        entries.push(((*policy).to_owned(), Style { colour, ..style(i) }));
    }
    let top = scene.legend(34.0, &entries, Sample::Mark);
    // An interval may reach below zero; what is drawn cannot be. Only those that are drawn need room.
    let ends = |i: usize, mean: f64, half: Option<f64>| {
        let half = half.filter(|_| !is_many || is_front[i]).unwrap_or(0.0);
        [mean, mean - half, mean + half].map(|value| value.max(0.0))
    };
    let all = || points.iter().enumerate();
    let xs = all().flat_map(|(i, p)| ends(i, p.x, p.x_half_width));
    let ys = all().flat_map(|(i, p)| ends(i, p.y, p.y_half_width));
    let (x_axis, y_axis) = (Axis::fit(x, xs, 6), Axis::fit(y, ys, 5));
    let panel = Panel {
        left: 44.0 + text_width(&"0".repeat(y_axis.label_width()), SMALL),
        top: top + 8.0,
        right: f64::from(width) - 26.0,
        bottom: f64::from(height) - 50.0,
        x_title: x_axis.title(&x.label),
        y_title: y_axis.title(&y.label),
        x: x_axis,
        y: y_axis,
        x_labels: true,
        y_labels: true,
        grid: Grid::Both,
    };
    let line = draw_frontier(&mut scene, &panel, wish, points, &front);
    let finite = |i: &usize| is_finite(&(points[*i].x, points[*i].y));
    let mut drawn: Vec<usize> = (0..points.len()).filter(finite).collect();
    // What matters most is drawn last.
    drawn.sort_by_key(|i| (is_front[*i], !points[*i].is_bound));
    let around = |a: &Point, b: &Point| {
        [a.0.min(b.0) - 1.0, a.1.min(b.1) - 1.0, a.0.max(b.0) + 1.0, a.1.max(b.1) + 1.0]
    };
    let mut taken: Vec<[f64; 4]> = line.windows(2).map(|w| around(&w[0], &w[1])).collect();
    for &i in &drawn {
        let (p, style) = (&points[i], style_of(i));
        let at = panel.pixel(p.x, p.y);
        // A cloud is a background: neither intervals nor names.
        if is_many && !is_front[i] {
            scene.mark(at, style, if p.is_bound { 4.0 } else { 3.0 });
            continue;
        }
        whiskers(&mut scene, &panel, p, style.colour);
        scene.mark(at, style, 6.0);
        taken.push([at.0 - 8.0, at.1 - 8.0, at.0 + 8.0, at.1 + 8.0]);
        taken.extend(arms(&panel, p).iter().map(|[a, b]| [a.0 - 2.0, a.1 - 2.0, b.0 + 2.0, b.1 + 2.0]));
    }
    let mut named: Vec<(&str, Point)> = Vec::new();
    for &i in drawn.iter().filter(|i| !is_many || is_front[**i]) {
        let (label, at) = (points[i].label.as_str(), panel.pixel(points[i].x, points[i].y));
        // Along a front of many points one name says who its neighbours are, and who lies about the same place.
        let is_named = |(named, place): &(&str, Point)| {
            *named == label && (place.0 - at.0).abs() < NAMED_NEAR && (place.1 - at.1).abs() < NAMED_NEAR
        };
        if is_many && (named.last().is_some_and(|(named, _)| *named == label) || named.iter().any(is_named)) {
            continue;
        }
        named.push((label, at));
        let colour = if is_front[i] { INK } else { QUIET };
        name(&mut scene, &panel, at, &shorten(&points[i].label, 32), colour, &mut taken);
    }
    if drawn.is_empty() {
        no_data(&mut scene, &panel);
    }
    scene.panels.push(panel);
    scene.draw()
}

/// The points that no other beats in one axis without losing in the other, the best across first.
pub(crate) fn frontier(points: &[ParetoPoint], wish: Wish) -> Vec<usize> {
    let may = |i: &usize| is_finite(&(points[*i].x, points[*i].y)) && !points[*i].is_bound;
    let mut front: Vec<usize> = (0..points.len()).filter(may).collect();
    let at = |i: usize| wish.turned(&points[i]);
    front.sort_by(|a, b| {
        let (a, b) = (at(*a), at(*b));
        a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1))
    });
    let mut highest: Option<(f64, f64)> = None;
    front.retain(|i| {
        let at = at(*i);
        // In this order, who is not better upwards than all before is beaten by one of them, unless it is the same.
        let is_free = highest.is_none_or(|h| at.1 > h.1 || at == h);
        if is_free {
            highest = Some(at);
        }
        is_free
    });
    front
}

/// A staircase, returned in pixels: everything on its far side from the best corner is dominated.
fn draw_frontier(
    scene: &mut Scene,
    panel: &Panel,
    wish: Wish,
    points: &[ParetoPoint],
    front: &[usize],
) -> Vec<Point> {
    let worst_x = if wish.x == Better::Lower { panel.right - 1.0 } else { panel.left };
    let worst_y = if wish.y == Better::Higher { panel.bottom - 1.0 } else { panel.top };
    let mut line: Vec<Point> = Vec::new();
    for &i in front {
        let at = panel.pixel(points[i].x, points[i].y);
        line.push((at.0, line.last().map_or(worst_y, |last| last.1)));
        line.push(at);
    }
    if let Some(last) = line.last().copied() {
        line.push((worst_x, last.1));
    }
    let style = Style { colour: Rgb(0x70, 0x70, 0x70), dash: Dash::Long, marker: Marker::None };
    let words = format!("frontier: no point lies further {}", wish.corner());
    scene.line(line.clone(), style, 1.2, &words);
    line
}

/// The bars of the intervals, each from its left or upper end.
fn arms(panel: &Panel, point: &ParetoPoint) -> Vec<[Point; 2]> {
    let whole = |half: Option<f64>| half.filter(|w| w.is_finite() && *w > 0.0);
    let across = whole(point.x_half_width)
        .map(|half| [panel.pixel((point.x - half).max(0.0), point.y), panel.pixel(point.x + half, point.y)]);
    let down = whole(point.y_half_width)
        .map(|half| [panel.pixel(point.x, point.y + half), panel.pixel(point.x, (point.y - half).max(0.0))]);
    across.into_iter().chain(down).collect()
}

fn whiskers(scene: &mut Scene, panel: &Panel, point: &ParetoPoint, colour: Rgb) {
    let style = Style { colour, dash: Dash::Solid, marker: Marker::None };
    for [a, b] in arms(panel, point) {
        let (dx, dy) = if a.1 == b.1 { (0.0, 4.0) } else { (4.0, 0.0) };
        scene.line(vec![a, b], style, 1.4, "");
        for end in [a, b] {
            let cap = vec![(end.0 - dx, end.1 - dy), (end.0 + dx, end.1 + dy)];
            scene.line(cap, style, 1.4, "");
        }
    }
}

/// Writes a name where it covers nothing; where no place is free the legend must do.
fn name(scene: &mut Scene, panel: &Panel, at: Point, text: &str, colour: Rgb, taken: &mut Vec<[f64; 4]>) {
    let width = text_width(text, SMALL);
    let around = [11.0, 22.0, 34.0, 48.0].into_iter().flat_map(|d| {
        [
            (d, -10.0),
            (d, 12.0),
            (-d - width, -10.0),
            (-d - width, 12.0),
            (-width / 2.0, -d - 6.0),
            (-width / 2.0, d + 8.0),
            (d, 0.0),
            (-d - width, 0.0),
        ]
    });
    for (dx, dy) in around {
        let (x, y) = (at.0 + dx, at.1 + dy);
        let frame = [x, y - 7.0, x + width, y + 7.0];
        let inside = frame[0] > panel.left + 2.0
            && frame[2] < panel.right
            && frame[1] > panel.top - 6.0
            && frame[3] < panel.bottom - 2.0;
        let apart = |b: &[f64; 4]| frame[2] < b[0] || b[2] < frame[0] || frame[3] < b[1] || b[3] < frame[1];
        if inside && taken.iter().all(apart) {
            scene.text((x, y), text, SMALL, colour, Anchor::Start, false);
            taken.push(frame);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::number::Unit;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_frontier_is_what_nobody_beats(
            at in prop::collection::vec((-2_i8..6, -2_i8..6, prop::bool::weighted(0.2)), 0..40),
            (left, up) in any::<(bool, bool)>(),
        ) {
            let wish = Wish {
                x: if left { Better::Lower } else { Better::Higher }, y: if up { Better::Higher } else { Better::Lower },
            };
            let points: Vec<ParetoPoint> = at.into_iter().map(|(x, y, is_bound)| ParetoPoint {
                label: String::new(), policy: String::new(), x: f64::from(x) * -0.5, x_half_width: None,
                y: f64::from(y) * 0.5, y_half_width: None, is_bound,
            }).collect();
            let beats = |a: &ParetoPoint, b: &ParetoPoint| {
                let is_left = if left { a.x <= b.x } else { a.x >= b.x };
                let is_up = if up { a.y >= b.y } else { a.y <= b.y };
                !a.is_bound && is_left && is_up && (a.x, a.y) != (b.x, b.y)
            };
            let free = |i: &usize| !points[*i].is_bound && !points.iter().any(|a| beats(a, &points[*i]));
            let expected: Vec<usize> = (0..points.len()).filter(free).collect();
            let mut found = frontier(&points, wish);
            let is_ordered = found.windows(2).all(|pair| {
                let (a, b) = (points[pair[0]].x, points[pair[1]].x);
                if left { a <= b } else { a >= b }
            });
            prop_assert!(is_ordered, "{:?}", found);
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }

    /// Forty points that nobody beats: two policies in turns at one place, and one of them far away.
    #[test]
    fn a_name_is_said_once_about_one_place() {
        let point = |i: u32| {
            let (policy, far) =
                (["one", "other"][i as usize % 2].to_owned(), if i == 38 { 1000.0 } else { 0.0 });
            let (x, y) = (500.0 + far, 500.0 + far);
            ParetoPoint {
                label: policy.clone(),
                policy,
                x,
                x_half_width: None,
                y,
                y_half_width: None,
                is_bound: false,
            }
        };
        let points: Vec<ParetoPoint> = (0..40).map(point).collect();
        let axis = |label: &str| AxisSpec::linear(label, Unit::Plain);
        let wish = Wish { x: Better::Lower, y: Better::Higher };
        let svg = pareto(&Frame::wide("names"), &axis("x"), &axis("y"), wish, &points);
        // Once in the legend, once at the place, and "one" once more far away.
        let said = |name: &str| svg.split(['<', '>']).filter(|part| part.trim() == name).count();
        assert_eq!((said("one"), said("other")), (3, 2));
    }
}
