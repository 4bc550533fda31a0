//! Pictures are well-formed whatever they are given, small, and equal for equal data.

mod common;

use common::HOSTILE;
use proptest::prelude::*;
use report::number::Unit;
use report::plot::{
    self, Across, AxisSpec, Frame, HeatMap, HeatSide, MultiplePoint, Multiples, Outcomes, ParetoPoint,
    PlaceRow, Ranks, RowBars, Series, Span, Tile, Tone, Wish,
};
use report::stats::Better;
use report::{CellMap, Held, MapColumn, TimelineRow};

fn check(svg: &str) {
    let document = roxmltree::Document::parse(svg).unwrap_or_else(|e| panic!("{e}\n{svg}"));
    let root = document.root_element();
    assert!(root.has_tag_name(("http://www.w3.org/2000/svg", "svg")));
    assert!(root.attribute("aria-label").is_some());
    assert!(root.children().any(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "title"))));
    // Names may have any letters; where numbers stand there is none of these.
    let attributes = root.descendants().flat_map(|node| node.attributes());
    for attribute in attributes.filter(|attribute| attribute.name() != "aria-label") {
        let value = attribute.value();
        assert!(!value.contains("NaN") && !value.contains("inf"), "{}={value} in {svg}", attribute.name());
    }
    assert!(!svg.contains("could not be drawn"), "{svg}");
}

fn units() -> impl Strategy<Value = Unit> {
    prop::sample::select(vec![
        Unit::Count,
        Unit::Cells,
        Unit::Plain,
        Unit::Share,
        Unit::Milliseconds,
        Unit::Seconds,
    ])
}

fn floats() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>(),
        Just(f64::NAN),
        Just(0.0),
        Just(5.0),
        -10.0..1000.0,
        Just(f64::MAX),
        Just(1e-320)
    ]
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(HOSTILE.to_vec()).prop_map(str::to_owned),
        any::<String>(),
        "[a-z]{1,80}"
    ]
}

fn axes() -> impl Strategy<Value = AxisSpec> {
    (names(), units(), 0..3).prop_map(|(label, unit, kind)| match kind {
        0 => AxisSpec::linear(&label, unit),
        1 => AxisSpec::linear(&label, unit).close_up(),
        _ => AxisSpec::log(&label, unit),
    })
}

fn frames() -> impl Strategy<Value = Frame> {
    (names(), 0_u32..2000, 0_u32..1000).prop_map(|(title, width, height)| Frame { title, width, height })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn charts_take_any_data(
        frame in frames(), x in axes(), y in axes(),
        data in prop::collection::vec((names(), prop::collection::vec((floats(), floats()), 0..30), any::<bool>()), 0..12),
    ) {
        let series: Vec<Series> = data.into_iter()
            .map(|(name, points, is_guide)| Series { name, points, is_guide }).collect();
        check(&plot::line_chart(&frame, &x, &y, &series));
        check(&plot::step_chart(&frame, &x, &y, &series));
        let samples: Vec<(String, Vec<f64>)> = series.iter()
            .map(|s| (s.name.clone(), s.points.iter().map(|p| p.0).collect())).collect();
        check(&plot::cdf(&frame, &x, &samples));
        check(&plot::histogram(&frame, &x, &samples));
    }

    #[test]
    fn points_and_bars_take_any_data(
        frame in frames(), x in axes(), y in axes(),
        data in prop::collection::vec((names(), floats(), floats(), prop::option::of(floats()), any::<bool>()), 0..30),
    ) {
        let points: Vec<ParetoPoint> = data.iter().map(|(name, x, y, half, is_bound)| ParetoPoint {
            label: name.clone(), policy: name.clone(), x: *x, x_half_width: *half, y: *y, y_half_width: *half, is_bound: *is_bound,
        }).collect();
        for wish in [(Better::Lower, Better::Higher), (Better::Higher, Better::Lower)] {
            check(&plot::pareto(&frame, &x, &y, Wish { x: wish.0, y: wish.1 }, &points));
        }
        let bars: Vec<Outcomes> = data.iter().map(|(name, a, b, c, _)| Outcomes {
            label: name.clone(), completed: *a, cut: 0.0, failed: *b, rejected: c.unwrap_or(0.0), unfinished: 1.0,
        }).collect();
        check(&plot::outcomes(&frame, &bars));
        let tones = [Tone::Reference, Tone::Good, Tone::Fair, Tone::Neutral, Tone::Mixed, Tone::Bad];
        let rows: Vec<RowBars> = data.iter().enumerate().map(|(i, (name, a, b, half, is_measured))| RowBars {
            label: name.clone(), note: name.clone(), tone: tones[(i + data.len()) % 6],
            values: vec![Some((*a, *half)), is_measured.then_some((*b, None))],
        }).collect();
        check(&plot::row_bars(&frame, &[x.clone(), y.clone(), x.clone()], &rows));
        check(&plot::row_bars(&frame, &[], &rows));
    }

    #[test]
    fn pictures_of_sweeps_take_any_data(
        frame in frames(), x in axes(), name in names(), lines in 0_usize..4, across in 0_usize..5, is_words in any::<bool>(),
        data in prop::collection::vec((names(), floats(), prop::option::of(floats()), prop::option::of(floats()), 0_usize..9), 0..20),
    ) {
        let tones = [Tone::Reference, Tone::Good, Tone::Bad];
        let rows: Vec<PlaceRow> = data.iter().map(|(label, a, b, c, n)| PlaceRow {
            label: label.clone(), tone: tones[n % 3], value: (*a, *b), change: c.map(|c| (c, b.map(|b| (b, c)))),
        }).collect();
        check(&plot::places(&frame, &x, &name, &rows));
        let spans: Vec<Span> = data.iter().map(|(label, a, b, ..)| Span {
            label: label.clone(), note: name.clone(), median: *a, range: (b.unwrap_or(0.0), *a),
        }).collect();
        check(&plot::spans(&frame, &name, &spans));
        let traces: Vec<String> = data.iter().take(across).map(|(name, ..)| name.clone()).collect();
        let ranks: Vec<Ranks> = data.iter().map(|(label, _, b, _, n)| Ranks {
            label: label.clone(), style: *n, places: (0..across).map(|t| b.map(|_| (t + n) % 20)).collect(),
        }).collect();
        check(&plot::ranks(&frame, &traces, &ranks));
        let side = |n| HeatSide { label: name.clone(), values: (0..n).map(|v| format!("{name}{v}")).collect() };
        let tile = |share: &Option<f64>| Tile { share: *share, is_failed: share.is_none(), about: name.clone() };
        let map = |(label, ..): &(String, f64, Option<f64>, Option<f64>, usize)| HeatMap {
            title: label.clone(), tiles: vec![data.iter().map(|(_, _, share, ..)| tile(share)).collect(); lines],
        };
        check(&plot::heat_maps(&frame, &side(across), &side(lines), &data.iter().map(map).collect::<Vec<_>>()));
        let words: Vec<String> = data.iter().map(|(name, ..)| name.clone()).collect();
        let points = data.iter().map(|(_, a, b, c, n)| MultiplePoint {
            panel: (n % 3, n % 2), curve: n % 4, x: if is_words { *n as f64 } else { *a }, y: b.unwrap_or(1.0), half_width: *c,
        });
        let plot = Multiples {
            across: if is_words { Across::Words(name.clone(), words.clone()) } else { Across::Numbers(x.clone()) },
            up: x,
            rows: words.iter().take(lines).cloned().collect(),
            columns: words.iter().take(across).cloned().collect(),
            is_joined: across > 2,
            curves: words.iter().take(4).cloned().zip(0..).collect(),
            points: points.collect(),
        };
        check(&plot::multiples(&frame, &plot));
    }

    #[test]
    fn timelines_take_any_rows(
        frame in frames(),
        data in prop::collection::vec((floats(), any::<[u32; 4]>(), 0_u64..2), 0..40),
    ) {
        let rows: Vec<TimelineRow> = data.iter().map(|(time_s, [a, b, c, d], seed)| TimelineRow { row: String::new(),
            policy: "p".to_owned(), seed: *seed, time_s: *time_s, class: "global".to_owned(), cells: *a, live_cells: *b,
            held_cells: *c, cached_cells: 0, free_cells: *d, placeable_cells: *b, high_water_cells: 0, sequence_runs: 0, sequences: 1, waiting: *c,
        }).collect();
        check(&plot::timeline(&frame, &rows, "global", &["p", "absent"]));
    }

    #[test]
    fn maps_take_any_cells(
        frame in frames(), cells in any::<u32>(), rows in 0_u32..40,
        columns in prop::collection::vec((any::<u64>(), prop::collection::vec(0_u64..40, 0..50)), 0..20),
    ) {
        let held = |n: u64| match n % 5 { 0 => Held::Free, 1 => Held::Cached, 2 => Held::Live(n), 3 => Held::Foreign(n), _ => Held::Wasted(n) };
        let columns = columns.into_iter()
            .map(|(time_ns, ranges)| MapColumn { time_ns, ranges: ranges.into_iter().map(held).collect() }).collect();
        let map = CellMap { row: String::new(), policy: HOSTILE[0].to_owned(), class: "c".to_owned(), cells, rows, columns };
        check(&plot::cell_map(&frame, &map));
        check(&plot::cell_maps(&frame, &[map.clone(), map.clone(), map.clone(), map], 9_000));
        check(&plot::cell_maps(&frame, &[], 9_000));
    }
}

fn map_of(held: impl Fn(u64, u64) -> Held) -> CellMap {
    let column =
        |c: u64| MapColumn { time_ns: c * 1_000_000_000, ranges: (0..200).map(|r| held(c, r)).collect() };
    let columns = (0..240).map(column).collect();
    CellMap {
        row: String::new(),
        policy: "p".to_owned(),
        class: "global".to_owned(),
        cells: 16384,
        rows: 200,
        columns,
    }
}

#[test]
fn a_map_is_small_even_if_no_two_neighbours_are_equal() {
    let frame = Frame::half("worst");
    let worst = plot::cell_map(&frame, &map_of(|c, r| Held::Live((c * 7919 + r * 104_729) % 1009)));
    check(&worst);
    assert!(worst.len() < 300_000, "{}", worst.len());
    let full = plot::cell_map(&frame, &map_of(|_, _| Held::Live(1)));
    assert!(full.len() < 8_000, "one rectangle is enough: {}", full.len());
}

#[test]
fn another_requests_cells_are_black_and_survive_a_coarser_map() {
    let few = |c: u64, r: u64| match (c, r) {
        (101, 51) => Held::Foreign(7),
        _ => Held::Live((c * 7919 + r * 104_729) % 1009),
    };
    let svg = plot::cell_map(&Frame::half("foreign"), &map_of(few));
    check(&svg);
    assert!(svg.contains("<path fill=\"#111111\" d=\"m"), "one cell of 48,000 is drawn");
    assert!(
        svg.contains("K/V of another request") && svg.contains("-foreign)\""),
        "with stripes and a legend"
    );
    let none = plot::cell_map(&Frame::half("none"), &map_of(|_, _| Held::Live(1)));
    assert!(!none.contains("another request") && !none.contains("#111111") && !none.contains("-foreign"));
}

#[test]
fn a_row_without_a_value_has_no_bar_and_the_reference_has_a_line() {
    let row = |tone, value| RowBars { label: "a".to_owned(), note: String::new(), tone, values: vec![value] };
    let axis = [AxisSpec::linear("crashes", Unit::Plain)];
    let draw = |rows: &[RowBars]| plot::row_bars(&Frame::wide("rows"), &axis, rows);
    let svg = draw(&[row(Tone::Reference, Some((2.0, Some(0.5)))), row(Tone::Bad, None)]);
    assert_eq!(svg.matches("height=\"16\"").count(), 1, "{svg}");
    assert!(svg.contains("<title>value of the reference</title>"));
    let svg = draw(&[row(Tone::Good, Some((0.0, None))), row(Tone::Bad, Some((3.0, None)))]);
    assert!(svg.contains("width=\"1.5\" height=\"16\" fill=\"#009E73\""), "zero is a line: {svg}");
    assert!(!svg.contains("value of the reference"));
    let many: Vec<RowBars> = (0..40).map(|_| row(Tone::Neutral, Some((1.0, None)))).collect();
    assert!(draw(&many).contains("height=\"1616\""), "rows are not squeezed");
}

#[test]
fn a_map_says_when_free_cells_lay_in_most_pieces() {
    let held = |c, r| {
        if c == 100 && r % 20 < 10 || r < 100 { Held::Live(r / 20) } else { Held::Free }
    };
    let svg = plot::cell_map(&Frame::half("broken"), &map_of(held));
    assert!(svg.contains("Most broken up at 100 s: 25 % free in 5 pieces, the largest 5 %"), "{svg}");
    let svg = plot::cell_map(
        &Frame::half("whole"),
        &map_of(|_, r| if r < 100 { Held::Cached } else { Held::Free }),
    );
    assert!(svg.contains("The free cells were always in one piece."));
}

#[test]
fn equal_data_gives_equal_bytes() {
    let map = map_of(|c, r| if (c / 9 + r / 7) % 3 == 0 { Held::Free } else { Held::Wasted(c / 9 + r / 7) });
    let draw = || plot::cell_map(&Frame::wide("same"), &map);
    assert_eq!(draw(), draw());
}
