//! Tables in every format, and the sentences below them.

mod common;

use common::{HOSTILE, golden, row, rows};
use report::Summary;
use report::compare::Comparison;
use report::number::Unit;
use report::table::{Format, Table, Value};

#[test]
fn a_comparison_is_printed_as_the_golden_files_say() {
    let rows = rows();
    for format in Format::ALL {
        let text = Comparison::new(&rows).render(format, Some(100)).unwrap();
        golden(&format!("compare.{}", format.name()), &text);
        assert_eq!(format.name().parse::<Format>(), Ok(format));
    }
    assert!("yaml".parse::<Format>().is_err());
}

#[test]
fn a_table_has_the_columns_that_it_is_asked_for() {
    let more = |row: &Summary| Summary {
        prompt_tokens: 1_000,
        output_tokens: 600,
        cached_tokens: 250 * row.seed.min(2),
        recomputed_tokens: 400,
        ..row.clone()
    };
    let rows: Vec<Summary> = rows().iter().map(more).collect();
    let keys = ["found", "crashes", "recomputed", "nonsense"].map(str::to_owned);
    let comparison = Comparison::new(&rows).columns(&keys);
    let titles: Vec<&str> = comparison.shown_metrics().iter().map(|metric| metric.title).collect();
    assert_eq!(titles, ["found", "crashes", "computed again"], "zeros stay, unknown keys are left out");
    assert_eq!(comparison.cell(0, comparison.shown_metrics()[2]).as_deref(), Some("25 %"));
    let text = comparison.render(Format::Table, None).unwrap();
    assert!(text.contains("found") && !text.contains("goodput"), "{text}");
    assert!(!text.contains("zero everywhere"), "{text}");
    // Unasked, nobody's table grows.
    let plain = Comparison::new(&rows).render(Format::Table, None).unwrap();
    assert!(!plain.contains("found") && !plain.contains("again") && plain.contains("goodput"), "{plain}");
}

#[test]
fn a_catalogue_is_printed_as_the_golden_files_say() {
    let mut table = Table::new(["name", "memory", "share", "about"]);
    table.row([
        "rtx-3090".into(),
        25_769_803_776_u64.into(),
        Value::Number(0.875, Unit::Share),
        "24 GiB, \"big\"".into(),
    ]);
    table.row(["cpu".into(), None::<u64>.into()]);
    table.row([Value::Empty, Value::Number(f64::NAN, Unit::Plain)]);
    for format in Format::ALL {
        golden(&format!("catalogue.{}", format.name()), &table.render(format).unwrap());
    }
}

#[test]
fn better_needs_an_interval_that_leaves_out_zero() {
    let rows = rows();
    let said = Comparison::new(&rows).verdicts();
    assert_eq!(said.len(), 1);
    assert!(said[0].contains("throughput +12.0 % [10.0, 14.0], better"), "{said:?}");
    assert!(said[0].contains("points") && said[0].contains("no difference shown"), "{said:?}");
}

#[test]
fn a_replay_that_seeds_do_not_vary_has_no_interval() {
    let of = |policy, rate| (1..=3).map(move |seed| row(policy, seed, 900, rate));
    let rows: Vec<Summary> = of("a", 100.0).chain(of("b", 110.0)).collect();
    let comparison = Comparison::new(&rows);
    let said = comparison.verdicts();
    assert!(said[0].contains("throughput +10 % (alike in all 3 seeds), better"), "{said:?}");
    assert!(comparison.notes("*").iter().any(|n| n.contains("does not vary")));
    assert!(!comparison.render(Format::Md, None).unwrap().contains('±'));
}

#[test]
fn one_run_each_gives_numbers_but_no_verdict() {
    let rows = [row("a", 1, 900, 100.0), row("b", 1, 900, 110.0)];
    let comparison = Comparison::new(&rows);
    let said = format!("{:?} {:?}", comparison.verdicts(), comparison.winner());
    assert!(said.contains("+10 %") && said.contains("no interval"), "{said}");
    assert!(!said.contains("better"), "{said}");
}

#[test]
fn equal_policies_share_the_prize() {
    let rows = [row("a", 1, 900, 100.0), row("b", 1, 900, 100.0)];
    let said = Comparison::new(&rows).winner();
    assert!(said[0].starts_with("Equal in goodput: a (0.100 requests/s), b"), "{said:?}");
    let rows: Vec<Summary> = [(1, 9.0, 10.0), (2, 11.0, 9.0), (3, 10.0, 10.5)]
        .into_iter()
        .flat_map(|(seed, a, b)| [row("a", seed, 900, a), row("b", seed, 900, b)])
        .collect();
    let said = Comparison::new(&rows).winner();
    assert!(said[0].starts_with("No difference shown in goodput"), "{said:?}");
}

#[test]
fn a_bound_can_neither_win_nor_be_best() {
    let rows: Vec<Summary> = (1..=3)
        .flat_map(|s| [row("a", s, 900, 10.0 + s as f64), row("unlimited", s, 1000, 50.0 + s as f64)])
        .collect();
    let comparison = Comparison::new(&rows).bounds(&["unlimited".to_owned()]);
    let said = comparison.winner();
    assert!(said[0].starts_with("Only a was run") && said[0].contains("The bound unlimited"), "{said:?}");
    assert!(!comparison.render(Format::Md, None).unwrap().contains("**"));
}

#[test]
fn settings_that_differ_become_columns_and_are_compared_one_by_one() {
    let mut rows = rows();
    let mut more = rows.clone();
    for row in &mut more {
        row.num_ctx = 4096;
    }
    rows.append(&mut more);
    let comparison = Comparison::new(&rows).reference("paged");
    assert_eq!(comparison.setting_names(), ["num_ctx"]);
    let said = comparison.verdicts();
    assert!(said[0].starts_with("contiguous, num_ctx 8192 over paged, num_ctx 8192"), "{said:?}");
    assert!(said[1].starts_with("contiguous, num_ctx 4096 over paged, num_ctx 4096"), "{said:?}");
    let alone: Vec<Summary> = rows.into_iter().filter(|row| row.policy == "paged").collect();
    let said = Comparison::new(&alone).verdicts();
    assert!(
        said[0].starts_with(
            "paged, num_ctx 4096 over paged, num_ctx 8192 (3 paired seeds): goodput equal in all 3"
        ),
        "{said:?}"
    );
}

#[test]
fn odd_rows_are_printed_in_every_format() {
    let mut odd = row(HOSTILE[0], 1, 0, f64::NAN);
    (odd.requests, odd.failed, odd.ttft_p50_ms) = (0, u64::MAX, None);
    (odd.utilisation_mean, odd.duration_s) = (f64::INFINITY, -0.0);
    let hostile = HOSTILE.iter().map(|name| row(name, 1, 1, 1e300));
    let odd: Vec<Summary> = hostile.chain([odd]).collect();
    for rows in [&odd[..], &[]] {
        for format in Format::ALL {
            let text = Comparison::new(rows).render(format, Some(0)).unwrap();
            let first = text.lines().next().unwrap_or_default();
            match format {
                Format::Csv => assert!(first.starts_with("row,policy,trace,seed,requests")),
                Format::Json => assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok()),
                _ => {}
            }
        }
        assert!(!Comparison::new(rows).winner().is_empty());
    }
}
