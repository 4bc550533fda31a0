//! Small multiples of a table: what is averaged, against a naive computation over its rows.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use proptest::prelude::*;
use report::chart::{Chart, ChartError, chart, front};
use report::plot::{Across, Scale};
use report::sheet::Sheet;
use report::stats;

fn sheet(text: &str) -> Sheet {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table.csv");
    std::fs::write(&path, text).unwrap();
    Sheet::read(&path).unwrap()
}

fn choice(sheet: &Sheet, x: &str, y: &str, curve: &str) -> Chart {
    let index = |name: &str| sheet.index(name).unwrap();
    let curve_by = if curve.is_empty() { Vec::new() } else { vec![index(curve)] };
    Chart { x: index(x), y: index(y), curve_by, ..Chart::default() }
}

/// Policy, watermark, batch and seed by number, and what was measured, if anything.
type Measured = (u8, u8, u8, u8, Option<u8>);

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_point_is_the_mean_over_seeds_of_means(
        rows in prop::collection::vec((0_u8..3, 0_u8..2, 0_u8..3, 0_u8..4, prop::option::weighted(0.9, any::<u8>())), 1..60)
    ) {
        let mut text = "policy,watermark,num_batch,seed,stall_s\n".to_owned();
        for (policy, watermark, batch, seed, y) in &rows {
            let y = y.map(|y| y.to_string()).unwrap_or_default();
            text += &format!("p{policy},{watermark},{},{seed},{y}\n", 1 << batch);
        }
        let sheet = sheet(&text);
        let choice = choice(&sheet, "num_batch", "stall_s", "policy");
        let chosen: Vec<&Measured> = rows.iter().filter(|(.., y)| y.is_some()).collect();
        let drawing = match chart(&sheet, &choice, |_| true) {
            Ok(drawing) => drawing,
            Err(error) => {
                let is_empty = matches!(error, ChartError::Empty { .. });
                prop_assert!(is_empty && chosen.is_empty());
                return Ok(());
            }
        };
        let mut places: Vec<(u8, u8)> = chosen.iter().map(|(policy, _, batch, ..)| (*policy, *batch)).collect();
        places.sort_unstable();
        places.dedup();
        prop_assert_eq!(drawing.plot.points.len(), places.len());
        for point in &drawing.plot.points {
            let name = &drawing.plot.curves[point.curve].0;
            let means: Vec<f64> = (0..4).filter_map(|s| {
                let own = chosen.iter().filter(|(policy, _, batch, seed, _)| {
                    format!("p{policy}") == *name && f64::from(1 << batch) == point.x && *seed == s
                });
                let own: Vec<f64> = own.filter_map(|(.., y)| y.map(f64::from)).collect();
                (!own.is_empty()).then(|| own.iter().sum::<f64>() / own.len() as f64)
            }).collect();
            let mean = means.iter().sum::<f64>() / means.len() as f64;
            prop_assert!((point.y - mean).abs() < 1e-9, "{:?} {:?}", point, means);
            let half = stats::interval(&means).map_or(0.0, |i| i.half_width);
            prop_assert!((point.half_width.unwrap_or(0.0) - half).abs() < 1e-6);
        }
    }

    #[test]
    fn a_front_is_what_no_setting_beats_by_its_means(
        rows in prop::collection::vec((0_u8..3, 0_u8..3, 0_u8..3, 1_u8..9, 1_u8..9), 1..40)
    ) {
        let mut text = "policy,num_ctx,seed,held_peak_gib,throughput_tokens_per_s\n".to_owned();
        for (policy, num_ctx, seed, gib, rate) in &rows {
            text += &format!("p{policy},{num_ctx},{seed},{gib},{rate}\n");
        }
        let sheet = sheet(&text);
        let choice = choice(&sheet, "held_peak_gib", "throughput_tokens_per_s", "policy");
        let drawing = front(&sheet, &choice, |_| true, |_| false).unwrap();
        let mut settings: Vec<(u8, u8)> = rows.iter().map(|row| (row.0, row.1)).collect();
        settings.sort_unstable();
        settings.dedup();
        let mean = |setting: (u8, u8), of: fn(&(u8, u8, u8, u8, u8)) -> u8| {
            let by_seed = (0..3).filter_map(|seed| {
                let own = rows.iter().filter(|row| (row.0, row.1) == setting && row.2 == seed);
                stats::mean(&own.map(|row| f64::from(of(row))).collect::<Vec<_>>())
            });
            stats::mean(&by_seed.collect::<Vec<_>>()).unwrap()
        };
        let at: Vec<(f64, f64)> =
            settings.iter().map(|setting| (mean(*setting, |row| row.3), mean(*setting, |row| row.4))).collect();
        let beats = |a: &(f64, f64), b: &(f64, f64)| a.0 <= b.0 && a.1 >= b.1 && a != b;
        let free = at.iter().filter(|b| !at.iter().any(|a| beats(a, b))).count();
        prop_assert_eq!((drawing.points.len(), drawing.told.len()), (settings.len(), free));
        let mut found: Vec<(f64, f64)> = drawing.points.iter().map(|point| (point.x, point.y)).collect();
        let mut expected = at.clone();
        for list in [&mut found, &mut expected] {
            list.sort_by(|a, b| a.partial_cmp(b).unwrap());
        }
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn values_stand_by_size_and_words_as_they_come() {
    let sheet = sheet("policy,num_ctx,seed,failed\nz,1024,0,1\na,512,0,2\nz,8192,0,3\na,8192,0,4\n");
    let drawing = chart(&sheet, &choice(&sheet, "policy", "failed", "num_ctx"), |_| true).unwrap();
    assert_eq!(drawing.plot.across, Across::Words("policy".to_owned(), vec!["z".to_owned(), "a".to_owned()]));
    let names: Vec<&str> = drawing.plot.curves.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["num_ctx=512", "num_ctx=1024", "num_ctx=8192"]);
    let at =
        |x: f64, curve: usize| drawing.plot.points.iter().find(|p| (p.x, p.curve) == (x, curve)).map(|p| p.y);
    assert_eq!(
        (at(0.0, 1), at(0.0, 2), at(1.0, 0), at(1.0, 2)),
        (Some(1.0), Some(3.0), Some(2.0), Some(4.0))
    );
    assert_eq!(drawing.frame.title, "failed by policy");
}

#[test]
fn axes_are_of_powers_of_ten_where_values_are_far_apart_or_it_is_asked_for() {
    let wide = sheet("num_batch,seed,stall_s\n1,0,1\n8,0,9\n64,0,50\n512,0,0\n");
    let scale = |chart_of: &Chart| {
        let drawing = chart(&wide, chart_of, |_| true).unwrap();
        let Across::Numbers(x) = drawing.plot.across else { unreachable!("numbers lie across") };
        (x.scale, drawing.plot.up.scale, drawing.notes)
    };
    let plain = choice(&wide, "num_batch", "stall_s", "");
    // One is zero, which no power of ten is.
    assert_eq!(scale(&plain), (Scale::Log, Scale::Linear, Vec::new()));
    assert_eq!(scale(&Chart { log_x: Some(false), ..plain.clone() }).0, Scale::Linear);
    let (_, up, notes) = scale(&Chart { log_y: Some(true), ..plain });
    assert_eq!((up, notes.len()), (Scale::Log, 1));
    assert!(notes[0].contains("1 values of zero or less"), "{notes:?}");
}

#[test]
fn too_much_is_refused_and_what_is_averaged_is_named() {
    let mut text = "policy,num_ctx,seed,failed\n".to_owned();
    for i in 0..60 {
        text += &format!("p{i},{},0,1\n", i % 20);
    }
    let sheet = sheet(&text);
    let plain = choice(&sheet, "num_ctx", "failed", "");
    let averaged = chart(&sheet, &plain, |_| true).unwrap();
    assert!(averaged.notes[0].starts_with("averaged over policy; "), "{:?}", averaged.notes);
    let error = |chart_of: Chart| chart(&sheet, &chart_of, |_| true).unwrap_err().to_string();
    assert!(
        error(Chart { curve_by: vec![0], ..plain.clone() })
            .starts_with("60 curves by policy; expected at most 48")
    );
    assert!(error(Chart { row_by: vec![1], ..plain.clone() }).starts_with("20 lines of panels by num_ctx"));
    assert!(
        error(Chart { col_by: vec![1, 0], ..plain }).starts_with("60 columns of panels by num_ctx, policy")
    );
    let wrong = choice(&sheet, "num_ctx", "policy", "");
    assert_eq!(error(wrong), "line 2: policy is \"p0\", not a number");
}
