//! Rows with names: how they are told apart, what is said of each change, and by what mechanism.

mod common;

use common::ablation::{REFERENCE, ablation, changed, crashes, measured, reference};
use common::{HOSTILE, golden, row};
use report::compare::{Change, Comparison, Effect};
use report::page::{Page, page};
use report::table::Format;
use report::{CellMap, Held, MapColumn, Summary, TimelineRow};

/// The reference and one other row, compared.
fn change(name: &str, settings: impl Fn(&mut Summary), lost: impl Fn(usize) -> u64) -> Change {
    against(measured(&reference(), crashes), name, settings, lost)
}

fn against(
    mut rows: Vec<Summary>,
    name: &str,
    settings: impl Fn(&mut Summary),
    lost: impl Fn(usize) -> u64,
) -> Change {
    rows.extend(measured(&changed(name, settings), lost));
    let mut ablation = Comparison::new(&rows).ablation().expect("something crashes");
    assert_eq!(ablation.changes.len(), 1);
    ablation.changes.remove(0)
}

/// Why a change does what it does; what it does is another matter.
fn why(settings: impl Fn(&mut Summary)) -> String {
    change("changed", settings, crashes).why.join(" ")
}

#[test]
fn an_ablation_is_printed_as_the_golden_files_say() {
    let rows = ablation();
    for format in [Format::Table, Format::Md] {
        let text = Comparison::new(&rows).render(format, Some(110)).unwrap();
        golden(&format!("ablation.{}", format.name()), &text);
    }
}

#[test]
fn a_name_is_the_identity_and_the_policy_a_setting() {
    let rows = ablation();
    let comparison = Comparison::new(&rows);
    assert!(comparison.is_named());
    assert_eq!((comparison.kind(), comparison.names().len()), ("row", 12));
    assert_eq!(comparison.names()[0], REFERENCE);
    let labels: Vec<&str> = comparison.groups().iter().map(|g| g.label.as_str()).collect();
    assert_eq!(labels, comparison.names(), "the name says all settings");
    assert!(comparison.setting_names().starts_with(&["policy", "gpu"]));
    let text = comparison.render(Format::Md, None).unwrap();
    assert!(
        text.starts_with("| row | completed | failed | crashes | rejected | truncated | shifted |"),
        "{text}"
    );
    let order =
        ["defrag passes", "cells copied", "corrupted steps", "freezes", "throughput", "goodput", "TTFT p50"];
    let found: Vec<_> = order.iter().map(|title| text.find(title).unwrap()).collect();
    assert!(found.is_sorted(), "{found:?}");
    let one_policy: Vec<Summary> = rows.iter().filter(|r| r.policy == "ollama-0.6.6").cloned().collect();
    assert!(!Comparison::new(&one_policy).setting_names().contains(&"policy"));
}

#[test]
fn rows_with_the_same_settings_stay_apart_and_names_with_several_settings_tell_them() {
    let twin = changed("twin", |_| {});
    let small = changed("twin", |row| row.num_ctx = 2048);
    let rows = [reference(), small, twin].map(|row| measured(&row, crashes)).concat();
    let comparison = Comparison::new(&rows).reference("twin");
    let labels: Vec<&str> = comparison.groups().iter().map(|g| g.label.as_str()).collect();
    assert_eq!(labels, [REFERENCE, "twin, num_ctx 2048", "twin, num_ctx 4096"]);
    // Of several settings of the reference, the one that is most alike.
    assert!(
        comparison.verdicts()[0].starts_with("failing settings over twin, num_ctx 4096 (15 paired seeds)")
    );
    let on = |trace: &str| {
        let rows = [reference(), changed("b", |_| {})].map(|row| Summary { trace: trace.to_owned(), ..row });
        rows.map(|row| measured(&row, crashes)).concat()
    };
    let rows = [on("x"), on("y")].concat();
    let said = Comparison::new(&rows).verdicts();
    assert!(said[0].starts_with("b over failing settings, trace x ("), "{said:?}");
    assert!(said[1].starts_with("b over failing settings, trace y ("), "{said:?}");
    assert_eq!(Comparison::new(&rows).ablation().unwrap().overall.len(), 2, "one sentence per trace");
    let alone: Vec<Summary> =
        rows.into_iter().filter(|r| (r.name(), &*r.trace) != (REFERENCE, "y")).collect();
    assert_eq!(Comparison::new(&alone).verdicts().len(), 1, "no reference on y");
}

#[test]
fn the_reference_is_a_name_or_a_policy() {
    let rows = ablation();
    let against = |name: &str| {
        let ablation = Comparison::new(&rows).reference(name).ablation().unwrap();
        ablation.overall[0].clone()
    };
    assert!(against("num_batch 256").starts_with("Of 11 changes to num_batch 256 (2.27 crashes"));
    assert!(against("paged:16").starts_with("Of 11 changes to \"paged, blocks of 16\" (0 crashes"));
    assert!(against("nobody").starts_with("Of 11 changes to failing settings"));
    // A row may be called as another row's policy: the name counts.
    let rows = [
        measured(&changed("a", |_| {}), crashes),
        measured(&changed("b", |row| row.policy = "c".to_owned()), crashes),
        measured(&changed("c", |_| {}), crashes),
    ]
    .concat();
    let said = Comparison::new(&rows).reference("c").verdicts();
    assert!(said.len() == 2 && said.iter().all(|line| line.contains(" over c ")), "{said:?}");
}

#[test]
fn rows_without_names_know_nothing_of_all_this() {
    let mut rows = common::rows();
    let text = |rows: &[Summary]| Comparison::new(rows).render(Format::Md, None).unwrap();
    let before = text(&rows);
    assert!(Comparison::new(&rows).ablation().is_none() && Comparison::new(&rows).memory().is_none());
    for word in ["crashes", "shifts", "corrupted", "freezes", "spilled", "leaked", "Memory"] {
        assert!(!before.contains(word), "{word}");
    }
    for row in &mut rows {
        row.memory_gib = "rtx-3090=20.0/24.0".to_owned();
    }
    assert_eq!(text(&rows), before, "what fits is not worth a table");
    rows[1].crashes = 2;
    assert!(text(&rows).contains("| failed | crashes |"));
    rows[0].memory_gib = "rtx-3090=25.0/24.0".to_owned();
    assert!(text(&rows).contains("| contiguous | 25.0/24.0 ! |"), "{}", text(&rows));
}

#[test]
fn the_verdict_follows_the_numbers() {
    let none = |_: &mut Summary| {};
    let cured = change("a", none, |_| 0);
    assert_eq!((cured.effect, cured.is_shown), (Effect::Cures, true));
    assert!(
        cured.found.starts_with("crashes 0 per run against 0.8 (in 0 of 15 runs against 8 of 15): -0.8 [")
    );
    let fewer = change("a", none, |seed| crashes(seed).min(1) * u64::from(seed != 0));
    assert_eq!(fewer.effect, Effect::NothingShown, "{}", fewer.found);
    let fewer = change("a", none, |seed| u64::from(seed == 13));
    assert_eq!(fewer.effect, Effect::Helps, "{}", fewer.found);
    let equal = change("a", none, crashes);
    assert_eq!((equal.effect, equal.is_shown), (Effect::NothingShown, false));
    assert!(equal.found.contains("equal in all 15 seeds"), "{}", equal.found);
    let unclear = change("a", none, |seed| if seed == 3 { 1 } else { crashes(seed) });
    assert_eq!(unclear.effect, Effect::NothingShown);
    assert!(unclear.found.contains("no difference shown") && !unclear.found.contains("equal"));
    let more = change("a", none, |seed| crashes(seed) + 1 + seed as u64 % 2);
    assert_eq!((more.effect, more.effect.word()), (Effect::Worsens, "makes it worse"));
}

#[test]
fn the_other_way_round_the_words_are_others() {
    let two = |first: &'static str| {
        let few = measured(&changed("few", |_| {}), |seed| u64::from(seed == 13));
        let many = measured(&changed("many", |_| {}), crashes);
        let rows = [few, many].concat();
        let ablation = Comparison::new(&rows).reference(first).ablation().unwrap();
        (ablation.changes[0].effect, ablation.overall[0].clone())
    };
    let (effect, overall) = two("many");
    assert_eq!(effect, Effect::Helps);
    assert!(overall.ends_with("nothing cures it; few helps but does not cure it."), "{overall}");
    let (effect, overall) = two("few");
    assert_eq!(effect, Effect::Worsens);
    assert!(overall.ends_with("nothing cures it; many makes it worse."), "{overall}");
}

#[test]
fn crashes_and_lost_requests_may_disagree() {
    let base = || measured(&reference(), crashes);
    let with = |crash: fn(usize) -> u64, failed: fn(usize) -> u64| {
        let mut rows = base();
        let own = measured(&changed("a", |_| {}), crash).into_iter();
        rows.extend(own.enumerate().map(|(i, row)| Summary { failed: failed(i), ..row }));
        Comparison::new(&rows).ablation().unwrap().changes.remove(0)
    };
    let mixed = with(|_| 0, |seed| 20 + seed as u64 % 3);
    assert_eq!(mixed.effect, Effect::Mixed, "{}", mixed.found);
    let cured = with(|_| 0, |seed| u64::from(seed == 1));
    assert_eq!(cured.effect, Effect::Cures);
    assert!(cured.found.ends_with("what it still loses, it does not lose to a crash"), "{}", cured.found);
    // A reference that never crashes is measured by what it loses.
    let quiet = |failed: fn(usize) -> u64| -> Vec<Summary> {
        let rows = measured(&reference(), |_| 0).into_iter().enumerate();
        rows.map(|(i, row)| Summary { failed: failed(i), ..row }).collect()
    };
    assert_eq!(against(quiet(|i| 3 + i as u64), "a", |_| {}, |_| 0).effect, Effect::Cures);
    assert_eq!(against(quiet(|_| 0), "a", |_| {}, crashes).effect, Effect::Worsens);
}

#[test]
fn a_cure_that_may_be_luck_says_so() {
    let rare = || measured(&reference(), |seed| u64::from(seed == 4));
    let cured = against(rare(), "a", |_| {}, |_| 0);
    assert_eq!((cured.effect, cured.is_shown), (Effect::Cures, false));
    assert!(cured.found.contains("no difference shown"), "{}", cured.found);
    assert!(cured.found.ends_with("the reference fails too seldom to be sure"));
    let mut rows = rare();
    rows.extend(measured(&changed("a", |_| {}), |_| 0));
    let overall = Comparison::new(&rows).ablation().unwrap().overall;
    assert!(overall[0].ends_with("a (not shown beyond chance) cures it."), "{overall:?}");
    let one: Vec<Summary> = rows.into_iter().filter(|row| row.seed == 4).collect();
    let one = Comparison::new(&one).ablation().unwrap().changes.remove(0);
    assert_eq!(one.effect, Effect::Cures);
    assert!(one.found.contains("one run each, so no interval"), "{}", one.found);
}

#[test]
fn a_row_that_does_not_start_neither_cures_nor_wins() {
    let rows = ablation();
    let comparison = Comparison::new(&rows);
    let ablation = comparison.ablation().unwrap();
    let stopped = ablation.changes.iter().find(|c| c.label == "no system-memory fallback").unwrap();
    assert_eq!(stopped.effect, Effect::DoesNotStart);
    assert_eq!(stopped.found, "the model cannot be loaded: gtx1660super: 7.5 GiB needed, 5.1 GiB there");
    assert!(stopped.why[0].starts_with("The reference keeps 2.4 GiB in system memory;"), "{:?}", stopped.why);
    let crashes = comparison.shown_metrics().into_iter().find(|m| m.key == "crashes").unwrap();
    assert!(!comparison.best(crashes).contains(&stopped.group), "no crash because no server");
    assert!(ablation.overall[0].ends_with("\"no system-memory fallback\" does not start."));
}

#[test]
fn the_overall_sentence_sorts_the_advice() {
    let rows = ablation();
    let overall = Comparison::new(&rows).ablation().unwrap().overall;
    assert_eq!(
        overall,
        ["Of 11 changes to failing settings (0.8 crashes and 1.27 lost requests per run, 15 seeds): \
          num_parallel 1, \"every sequence trimmed, as in Ollama 0.12.4\", \"cache sized as before Ollama 0.6.3\" \
          and \"paged, blocks of 16\" cure it; \"num_parallel 4 instead of 2\" helps but does not cure it; \
          num_ctx 12288, \"K/V as q8_0 with flash attention\" and \"display GPU hidden\" show no effect; \
          num_batch 256 and \"all the advice at once\" make it worse; \"no system-memory fallback\" does not start."]
    );
}

#[test]
fn side_effects_are_told_where_they_are_shown() {
    let rows = ablation();
    let changes = Comparison::new(&rows).ablation().unwrap().changes;
    let aside = |label: &str| changes.iter().find(|c| c.label == label).unwrap().aside.join("; ");
    let hidden = aside("display GPU hidden");
    assert!(hidden.starts_with("freezes gone (38.8 per run before); throughput +"), "{hidden}");
    for part in [
        "more memory on rtx8000, 24.6 GiB instead of 20.4",
        "gtx1660super no longer used, 7.5 GiB before",
        "nothing in system memory, 2.4 GiB before",
    ] {
        assert!(hidden.contains(part), "{hidden}");
    }
    let large = aside("num_ctx 12288");
    assert!(large.starts_with("truncated -21.4 ["), "{large}");
    assert!(large.contains("shifted gone (7 per run before)"), "{large}");
    assert!(large.contains("2.7 GiB in system memory instead of 2.4"), "{large}");
    assert!(
        aside("K/V as q8_0 with flash attention")
            .contains("less memory on gtx1660super, 7.2 GiB instead of 7.5")
    );
    // The other way round, what was gone is new.
    let back = Comparison::new(&rows).reference("display GPU hidden").ablation().unwrap().changes;
    assert!(
        back[0].label == REFERENCE && back[0].aside[0] == "freezes new: 38.8 per run",
        "{:?}",
        back[0].aside
    );
    let equal = change("a", |_| {}, crashes);
    assert!(equal.aside.iter().all(|said| !said.contains("no difference shown")), "{:?}", equal.aside);
}

#[test]
fn a_larger_context_is_not_in_the_size_of_the_cache() {
    let said = why(|row| (row.num_ctx, row.cells) = (12_288, "local=2560;global=24576".to_owned()));
    assert_eq!(
        said,
        "The cache that overflows is the sliding-window one: num_parallel * window + num_batch = 2 * 1,024 + 512 = \
         2,560 cells. num_ctx is not in it. It changes the global class only: 8,192 to 24,576 cells. What it does \
         change: fewer prompts are cut, and a cut one is computed from its start again, which makes two long \
         prompts at once more likely."
    );
    let crashing = Summary { crashes: 1, truncated: 5, ..reference() };
    let mut larger = Summary { row: "larger".to_owned(), ..crashing.clone() };
    (larger.num_ctx, larger.cells) = (12_288, "local=2560;global=24576".to_owned());
    let cut_alike = Comparison::new(&[crashing, larger]).ablation().unwrap().changes[0].why.join(" ");
    assert!(cut_alike.ends_with("8,192 to 24,576 cells."), "{cut_alike}");
    // Cells that do not follow the formula explain nothing.
    assert_eq!(why(|row| (row.num_ctx, row.cells) = (12_288, "local=2600;global=24576".to_owned())), "");
    assert_eq!(why(|row| (row.num_ctx, row.cells) = (12_288, "all=2560".to_owned())), "");
    assert_eq!(why(|_| {}), "Nothing is allocated otherwise: every cell and byte is where it was.");
}

#[test]
fn a_context_below_the_window_gives_every_sequence_its_own_cells() {
    let said = why(|row| (row.num_ctx, row.cells) = (1000, "local=2016;global=2016".to_owned()));
    assert_eq!(
        said,
        "A context of 1,000 tokens is shorter than the window of 1,024: the cache has num_parallel * num_ctx = \
         2,000 cells, a whole context for every sequence."
    );
    assert_eq!(why(|row| row.num_ctx = 1000), "", "the cells are not those of the rule");
    // 2 * 512 cells may be two short contexts or 2 * 256 + 512: nothing is said of the second.
    let short = || {
        let row =
            changed("short", |row| (row.num_ctx, row.cells) = (512, "local=1024;global=1024".to_owned()));
        measured(&row, crashes)
    };
    let longer = |row: &mut Summary| (row.num_ctx, row.cells) = (2048, "local=1024;global=4096".to_owned());
    assert!(against(short(), "longer", longer, crashes).why.is_empty());
}

#[test]
fn a_smaller_batch_takes_its_cells_along_and_breaks_images() {
    let small = |row: &mut Summary| (row.num_batch, row.cells) = (256, "local=2304;global=8192".to_owned());
    let shrinks = "The cache shrinks by as much as the batch, from 2,560 to 2,304 cells. Two prompts at once \
                   overflow it from (ceil(1,024 / 256) + 1) * 256 = 1,280 tokens each on; with batches of 512 it \
                   takes 1,536.";
    let image = "An image is 260 tokens that must be in one batch: it no longer fits num_batch = 256, so its batch \
                 is larger than the one that the cache was sized for.";
    assert_eq!(why(small), format!("{shrinks} {image}"));
    let of_words = |row: &mut Summary| {
        small(row);
        row.model = "other".to_owned();
    };
    assert_eq!(why(of_words), shrinks, "images of other models are other images");
    let fits = why(|row| (row.num_batch, row.cells) = (260, "local=2336;global=8192".to_owned()));
    assert!(!fits.contains("image"), "{fits}");
    assert!(
        fits.starts_with("Two prompts at once overflow it from (ceil(1,024 / 260) + 1) * 260 = 1,300"),
        "{fits}"
    );
    let large = why(|row| (row.num_batch, row.cells) = (2048, "local=4096;global=8192".to_owned()));
    assert!(
        large.starts_with("The cache grows by as much as the batch, from 2,560 to 4,096 cells."),
        "{large}"
    );
    assert!(large.contains("= 4,096 tokens each on; with"), "{large}");
    let beyond = why(|row| (row.num_batch, row.cells) = (4096, "local=6144;global=8192".to_owned()));
    assert!(beyond.contains("= 8,192 tokens each on, which no prompt can have; with"), "{beyond}");
}

#[test]
fn fewer_slots_share_the_same_slack_and_one_slot_needs_none() {
    let four = || measured(&changed("four", |row| slots(row, 4)), crashes);
    let said = against(four(), "two", |row| slots(row, 2), crashes).why.join(" ");
    assert_eq!(
        said,
        "Every slot brings its own window of 1,024 cells and no more: all share the num_batch = 512 cells beside \
         the windows. With 2 slots instead of 4, fewer long prompts at once use these up."
    );
    let said = why(|row| slots(row, 4));
    assert!(
        said.ends_with("With 4 slots instead of 2, it takes more long prompts at once to use these up, and enough clients can send them."),
        "{said}"
    );
    let said = why(|row| slots(row, 1));
    assert_eq!(
        said,
        "With one slot no idle sequence holds cells: the only one is trimmed to its window before every batch, and \
         window + num_batch = 1,024 + 512 always fit into 1,536 cells."
    );
    let both = why(|row| {
        slots(row, 1);
        (row.num_batch, row.cells) = (256, "local=1280;global=4096".to_owned());
    });
    assert!(both.ends_with("the cache was sized for, even with one sequence."), "{both}");
    assert!(!both.contains("overflow it from"), "one prompt collides with nobody: {both}");
}

fn slots(row: &mut Summary, slots: u32) {
    row.num_parallel = slots;
    row.cells = format!("local={};global={}", slots * 1024 + 512, slots * 4096);
}

#[test]
fn padding_is_seen_through() {
    let odd = || {
        measured(
            &changed("odd", |row| (row.num_batch, row.cells) = (511, "local=2560;global=8192".to_owned())),
            crashes,
        )
    };
    let large = |row: &mut Summary| {
        (row.num_ctx, row.num_batch, row.cells) = (8192, 511, "local=2560;global=16384".to_owned());
    };
    let said = against(odd(), "a", large, crashes).why.join(" ");
    assert!(said.contains("= 2 * 1,024 + 511 = 2,559, rounded up to 2,560 cells. num_ctx"), "{said}");
}

#[test]
fn other_policies_hold_cells_by_other_rules() {
    let policy = |name: &'static str| why(move |row: &mut Summary| row.policy = name.to_owned());
    assert!(
        policy("ollama-0.12.4").starts_with("It trims every sequence to its window before a batch is placed")
    );
    assert!(policy("paged:16").contains("needs no run of neighbouring cells"));
    assert!(policy("paged").contains("no more cells than it reads"));
    assert_eq!(policy("pagedish"), "");
    assert_eq!(policy("contiguous"), "");
    let sized = why(|row| row.cells = "local=3072;global=8192".to_owned());
    assert_eq!(
        sized,
        "The sliding-window cache has num_parallel * (window + num_batch) = 2 * (1,024 + 512) = 3,072 cells: every \
         sequence has room for a whole batch beside its window."
    );
    // The rules of the failing cache are not those of another policy.
    let said = why(|row| {
        row.policy = "contiguous".to_owned();
        (row.num_ctx, row.cells) = (12_288, "local=2560;global=24576".to_owned());
    });
    assert_eq!(said, "");
    let paged = || measured(&changed("p", |row| row.policy = "paged:16".to_owned()), crashes);
    assert!(against(paged(), "a", |row| row.policy = "paged:32".to_owned(), crashes).why.is_empty());
}

#[test]
fn smaller_cells_are_not_more_cells() {
    let said = why(|row| row.kv_cache_type = "q8_0".to_owned());
    assert_eq!(
        said,
        "q8_0 takes fewer bytes per cell than f16, but the number of cells is the same: local=2560, global=8192."
    );
    assert!(
        why(|row| row.kv_cache_type = "f32".to_owned()).starts_with("f32 takes more bytes per cell than f16")
    );
    assert_eq!(why(|row| row.kv_cache_type = "odd".to_owned()), "");
    let other_cells = why(|row| {
        row.kv_cache_type = "q8_0".to_owned();
        row.cells = "local=2560;global=9999".to_owned();
    });
    assert_eq!(other_cells, "");
}

#[test]
fn other_devices_do_not_touch_what_overflows() {
    let hidden = |row: &mut Summary| {
        (row.gpu, row.spilled_gib) = ("rtx8000".to_owned(), 0.0);
        row.memory_gib = "rtx8000=20.4/46.5".to_owned();
    };
    assert_eq!(
        why(hidden),
        "Nothing lies in system memory any more, 2.4 GiB before, so no step waits for PCIe. The number of cells is \
         the same, so what overflows is not touched."
    );
    let still = why(|row| {
        (row.gpu, row.memory_gib) = ("rtx8000".to_owned(), "rtx8000=30.4/46.5".to_owned());
    });
    assert_eq!(still, "The number of cells is the same, so what overflows is not touched.");
    let alike = why(|row| row.gpu = "rtx8000".to_owned());
    assert_eq!(alike, "The model is on rtx8000 and gtx1660super either way.");
    assert_eq!(why(|_| {}), "Nothing is allocated otherwise: every cell and byte is where it was.");
    let crashing = Summary { crashes: 1, ..reference() };
    let rows = [crashing, changed("hidden", hidden)];
    let spread = Comparison::new(&rows).reference("hidden").ablation().unwrap().changes[0].why.join(" ");
    assert!(spread.contains(" GiB, 5.1 are free. The rest lies in system memory,"), "{spread}");
    let both = why(|row| {
        hidden(row);
        slots(row, 1);
    });
    assert!(both.ends_with("2.4 GiB before, so no step waits for PCIe."), "{both}");
    let fails = |row: &mut Summary| (row.spilled_gib, row.load_error) = (0.0, "no".to_owned());
    assert!(why(fails).starts_with("The reference keeps 2.4 GiB in system memory;"));
    let fit = || {
        let rows = measured(&changed("fit", |row| row.spilled_gib = 0.0), crashes);
        rows.into_iter().collect::<Vec<_>>()
    };
    let short = against(fit(), "a", fails, crashes).why.join(" ");
    assert_eq!(short, "gtx1660super needs 7.5 GiB, 5.1 are free.", "nothing was spilled, so that is not why");
}

#[test]
fn memory_is_read_device_by_device() {
    let mut rows = [reference(), changed("odd", |_| {}), changed("two", |_| {})].to_vec();
    rows[1].memory_gib = "no number=x/5;;=;cpu=3.25;rtx8000=50.04/46.5".to_owned();
    rows[1].memory_estimated_gib = String::new();
    rows[2].memory_gib = "rtx8000=1/46.5;rtx8000=2.25/46.5;rtx8000=3/46.5".to_owned();
    rows[2].spilled_gib = 0.0;
    let memory = Comparison::new(&rows).memory().unwrap();
    let line = |i: usize| -> Vec<&str> { memory.lines[i].iter().map(|c| c.text.as_str()).collect() };
    assert_eq!(
        memory.headers,
        [
            "row",
            "rtx8000\nneeded/there",
            "rtx8000\nestimated",
            "gtx1660super\nneeded/there",
            "gtx1660super\nestimated",
            "cpu\nneeded/there",
            "rtx8000 #2\nneeded/there",
            "rtx8000 #3\nneeded/there",
            "spilled"
        ]
    );
    assert_eq!(line(0), [REFERENCE, "20.4/46.5", "19.0/46.5", "7.5/5.1 !", "5.0/5.1", "", "", "", "2.4"]);
    assert_eq!(line(1), ["odd", "50.0/46.5 !", "", "", "", "3.2", "", "", "2.4"]);
    assert_eq!(line(2), ["two", "1.0/46.5", "19.0/46.5", "", "5.0/5.1", "", "2.2/46.5", "3.0/46.5", "0"]);
    let short: Vec<bool> = memory.lines[0].iter().map(|cell| cell.is_short).collect();
    assert_eq!(short, [false, false, false, true, false, false, false, false, true]);
    rows.truncate(1);
    rows[0].memory_gib = String::new();
    (rows[0].memory_estimated_gib, rows[0].spilled_gib) = (String::new(), 0.0);
    assert!(Comparison::new(&rows).memory().is_none());
    rows[0].load_error = "too small".to_owned();
    assert_eq!(Comparison::new(&rows).memory().unwrap().headers, ["row", "load error"]);
    let text = Comparison::new(&rows).render(Format::Md, None).unwrap();
    assert!(text.contains("\n- failing settings: cannot be loaded: too small\n"), "{text}");
}

fn map(name: &str, held: Held) -> CellMap {
    let columns = vec![MapColumn { time_ns: 1, ranges: vec![held, Held::Free] }];
    CellMap {
        row: name.to_owned(),
        policy: "p".to_owned(),
        class: "local".to_owned(),
        cells: 8,
        rows: 2,
        columns,
    }
}

#[test]
fn a_page_of_an_ablation_says_what_each_change_does() {
    let input = Page {
        title: "ablation".to_owned(),
        reference: Some(REFERENCE.to_owned()),
        summaries: ablation(),
        maps: vec![map(REFERENCE, Held::Foreign(3)), map("num_parallel 1", Held::Live(3))],
        ttft_ms: vec![(REFERENCE.to_owned(), vec![1.0, 2.0])],
        ..Page::default()
    };
    let html = page(&input).unwrap();
    let (before, section) = html.split_once("<h2>What each change does</h2>").unwrap();
    for words in
        ["<p>Of 11 changes to", "<th scope=\"col\">row</th>", "Memory per device, GiB", "7.5&#x2f;5.1 !"]
    {
        assert!(before.contains(words), "{words}");
    }
    for words in [
        "<dt>num_batch 256 <span class=\"effect worse\">makes it worse</span></dt>",
        "<dt>num_parallel 1 <span class=\"effect cures\">cures it</span></dt>",
        "Crashes 0 per run against 0.8",
        "aria-label=\"Each change alone\"",
        "lost requests per run",
        "num_ctx is not in it.",
    ] {
        assert!(section.contains(words), "{words}");
    }
    let caption =
        "In 410 of 5,400 steps of this run (7.59 %) a sequence read K and V that belong to another one.";
    assert_eq!(html.matches(caption).count(), 1);
    assert_eq!(html.matches("K/V of another request").count(), 1, "in the legend of the map that has some");
    assert_eq!(page(&input).unwrap(), html, "same input, same bytes");
    let plain = Page { summaries: common::rows(), ..Page::default() };
    let html = page(&plain).unwrap();
    for words in ["What each change does", "Memory per device", ".effect", "<th scope=\"col\">row</th>"] {
        assert!(!html.contains(words), "{words}");
    }
}

#[test]
fn hostile_names_of_rows_are_only_text() {
    let mut rows = Vec::new();
    for name in HOSTILE {
        let own = measured(&changed(name, |row| row.load_error = name.to_owned()), crashes);
        rows.extend(own.into_iter().map(|row| Summary { memory_gib: format!("{name}=1/0"), ..row }));
    }
    rows.extend((0..3).map(|seed| row("without a name", seed, 1, 1.0)));
    let html = page(&Page { summaries: rows.clone(), ..Page::default() }).unwrap();
    assert!(
        !html.contains("<script>alert")
            && !html.contains(" onload=\"alert")
            && html.contains("&lt;script&gt;alert")
    );
    for format in Format::ALL {
        assert!(!Comparison::new(&rows).render(format, Some(0)).unwrap().is_empty());
    }
}

#[test]
fn lines_over_time_follow_the_name_of_the_row() {
    let rows = ["a", "b"].map(|name| TimelineRow {
        row: name.to_owned(),
        policy: "p".to_owned(),
        seed: 0,
        time_s: 1.0,
        class: "local".to_owned(),
        cells: 10,
        live_cells: 5,
        held_cells: 5,
        cached_cells: 0,
        free_cells: 5,
        placeable_cells: 5,
        high_water_cells: 5,
        sequence_runs: 1,
        sequences: 1,
        waiting: 0,
    });
    assert_eq!(rows[0].name(), "a");
    let rows = rows.map(|row| vec![row.clone(), TimelineRow { time_s: 2.0, ..row }]).concat();
    let svg = report::plot::timeline(&report::plot::Frame::half("t"), &rows, "local", &["a", "b", "p"]);
    assert!(svg.contains("<title>a</title>") && svg.contains("<title>b</title>"));
    assert!(!svg.contains("<title>p</title>"), "no row has this name");
}
