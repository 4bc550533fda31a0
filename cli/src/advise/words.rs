//! Advice in words: the table, the lines to apply it, the reasons.

use report::number::{Unit, human};
use report::stats::{Difference, paired_difference};
use report::table::{Format, Table, Value};

use super::objective::{Numbers, Objective, Score};
use super::server::Server;
use super::{Advice, Setting};
use crate::experiment::Shortage;
use crate::paragraphs::{Paragraphs, width};
use crate::trouble::Trouble;

fn ms(value: f64) -> String {
    human(value, Unit::Milliseconds)
}

fn count(number: u64, one: &str, many: &str) -> String {
    let number_text = human(number as f64, Unit::Count);
    format!("{number_text} {}", if number == 1 { one } else { many })
}

/// What goes wrong with a setting, in counts; empty where nothing does.
fn harm(numbers: &Numbers) -> Vec<String> {
    let parts = [
        (numbers.crashes, "crash", "crashes"),
        (numbers.lost(), "lost request", "lost requests"),
        (numbers.truncated, "cut prompt", "cut prompts"),
        (numbers.shifted, "shifted context", "shifted contexts"),
        (numbers.stopped_at_limit, "answer ended by the context limit", "answers ended by the context limit"),
        (numbers.corrupted_steps, "step with foreign K/V", "steps with foreign K/V"),
        (numbers.freezes, "freeze of the display", "freezes of the display"),
    ];
    parts
        .into_iter()
        .filter(|(number, ..)| *number > 0)
        .map(|(number, one, many)| count(number, one, many))
        .collect()
}

fn list(parts: &[String]) -> String {
    match parts {
        [] => "nothing lost, cut or corrupted".to_owned(),
        [one] => one.clone(),
        [rest @ .., last] => format!("{} and {last}", rest.join(", ")),
    }
}

/// Limits that are exceeded, with what was simulated.
fn excess(score: &Score, objective: &Objective) -> Vec<String> {
    let limits = objective.limits.iter().zip(&score.worst_ms);
    let limits = limits.filter(|(limit, worst)| **worst > limit.most_ms);
    limits.map(|(limit, worst)| format!("{} {} over {}", limit.name, ms(*worst), ms(limit.most_ms))).collect()
}

/// Mean latency of one beside another, with the interval where there are seeds to have one.
fn latency(mine: &Score, other: &Score) -> String {
    let answered = if other.lost() > 0 { " of what was answered" } else { "" };
    let text = format!("mean latency{answered} {} against {}", ms(other.latency_ms()), ms(mine.latency_ms()));
    match paired_difference(&other.latencies_ms, &mine.latencies_ms) {
        Some(Difference::Spread(interval)) if interval.covers_zero() => {
            format!("{text} (no difference shown)")
        }
        Some(Difference::Spread(interval)) => {
            format!(
                "{text} (95 % interval of the difference {} to {})",
                ms(interval.low()),
                ms(interval.high())
            )
        }
        _ => text,
    }
}

/// The advice as a whole beside what runs now.
pub fn overall(
    advised: &Score,
    now: Option<&Score>,
    short: Option<&Shortage>,
    objective: &Objective,
) -> String {
    let requests = count(advised.numbers.requests, "request", "requests");
    let Some(now) = now else {
        let why = short.map_or("nothing is known of it".to_owned(), Shortage::words);
        return format!("What runs now does not start: {why}. The advice answers {requests} and loses none.");
    };
    let mut bad = harm(&now.numbers);
    bad.extend(excess(now, objective));
    let spills = short.map_or(String::new(), |short| format!(" It spills: {}.", short.words()));
    let mild = format!(
        "preemptions {} and {}, compactions {} and {}",
        now.numbers.preemptions,
        advised.numbers.preemptions,
        now.numbers.defrag_passes,
        advised.numbers.defrag_passes
    );
    if advised.compare(now).is_eq() && advised.latency_ms() >= now.latency_ms() && bad.is_empty() {
        return format!(
            "Over {requests}: what runs now keeps the objective, and nothing is shown to do better."
        );
    }
    format!(
        "Over {requests}: now {}; advised {}; {}; {mild}.{spills}",
        list(&bad),
        list(&harm(&advised.numbers)),
        latency(advised, now)
    )
}

/// What a knob does: the advice with this one knob as it is now.
pub fn knob(
    name: &str,
    to: &str,
    from: &str,
    advised: &Score,
    reverted: &Score,
    objective: &Objective,
) -> String {
    let mut bad = harm(&reverted.numbers);
    bad.extend(excess(reverted, objective));
    let head = format!("{name} {to} instead of {from}");
    if !bad.is_empty() {
        return format!("{head}: with {from}, {}; with {to}, none.", list(&bad));
    }
    if advised.compare(reverted).is_eq() {
        return format!("{head}: alone it makes no difference on this trace.");
    }
    format!("{head}: with {from}, {}.", latency(advised, reverted))
}

/// Sentences that a reader of advice for a server has to know.
pub fn notes(server: Server, is_host: bool, advised: Option<&Setting>) -> Vec<String> {
    let mut notes = vec![
        "Step times come from the cost model of the settings; without a calibration compare settings with each \
         other, not with a stopwatch."
            .to_owned(),
    ];
    if advised
        .is_some_and(|advised| advised.lines.environment.iter().any(|line| line.contains("KV_CACHE_TYPE")))
        || advised.is_some_and(|advised| advised.lines.command.contains("-ctk q"))
    {
        notes.push("A quantised cache loses quality that is not simulated; it is advised because no f16 setting qualifies.".into());
    }
    if matches!(server, Server::Ollama030 | Server::LlamaCpp) {
        notes.push(
            "llama-server's split pool is simulated as a reserved context for each slot, a unified one as Ollama \
             0.6.6's copy of that cache with full windows (--swa-full)."
                .into(),
        );
    }
    if is_host && server == Server::LlamaCpp {
        notes.push(
            "Layers are dealt to the GPUs as llama-server deals them (-sm layer), and the GPUs work one after the \
             other, as they do while -b is -ub. Splits by rows or tensors (-sm row, -sm tensor) are not modelled."
                .into(),
        );
    }
    notes
}

/// A row per setting.
fn table(advice: &Advice) -> Table {
    let names: Vec<&str> = advice.now.settings.iter().map(|(name, _)| *name).collect();
    let fixed = ["lost", "cut", "foreign", "ttft_p99", "tpot_p99", "latency", "memory_gib"];
    let mut table = Table::new(std::iter::once("rank").chain(names).chain(fixed));
    let mut row = |rank: String, settings: &[(&'static str, String)], numbers: Option<&Numbers>| {
        let time = |of: fn(&Numbers) -> Option<f64>| match numbers.and_then(of) {
            Some(value) => Value::Number(value, Unit::Milliseconds),
            None => Value::Empty,
        };
        let number =
            |of: fn(&Numbers) -> u64| numbers.map_or(Value::Empty, |numbers| Value::Count(of(numbers)));
        let mut values = vec![Value::from(rank)];
        values.extend(settings.iter().map(|(_, text)| Value::Figures(text.clone())));
        values.extend([
            number(Numbers::lost),
            number(Numbers::cut),
            number(|numbers| numbers.corrupted_steps),
            time(|numbers| numbers.ttft_p99_ms),
            time(|numbers| numbers.tpot_p99_ms),
            time(|numbers| numbers.latency_mean_ms),
            numbers.map_or(Value::Empty, |numbers| Value::Text(numbers.memory_gib.clone())),
        ]);
        table.row(values);
    };
    let simulated = advice.now.simulated.as_ref().map(|option| &option.numbers);
    row("now".into(), &advice.now.settings, simulated);
    for (at, option) in advice.ranked.iter().enumerate() {
        row((at + 1).to_string(), &option.settings, Some(&option.numbers));
    }
    for (at, option) in advice.misses.iter().enumerate() {
        row(format!("miss {}", at + 1), &option.settings, Some(&option.numbers));
    }
    table
}

fn search(advice: &Advice, out: &mut Paragraphs) {
    let search = &advice.search;
    let fell: usize = search.fallen.iter().map(|fallen| fallen.candidates).sum();
    out.paragraph(
        "search  ",
        &format!(
            "{} candidates; {fell} do not fit, {} do the same as another; {} simulations{}",
            search.candidates,
            search.equal,
            search.simulations,
            if search.simulations_total > search.simulations {
                format!(", {} with reasons and robustness", search.simulations_total)
            } else {
                String::new()
            }
        ),
    );
    let rungs = search.rungs.iter().map(|rung| {
        let seeds = count(rung.seeds as u64, "seed", "seeds");
        format!("{} on {} requests, {seeds}", rung.candidates, rung.requests)
    });
    let rungs: Vec<String> = rungs.collect();
    if !rungs.is_empty() {
        out.paragraph("halving ", &rungs.join("; "));
    }
    for fallen in &search.fallen {
        let candidates = count(fallen.candidates as u64, "candidate falls", "candidates fall");
        out.paragraph("memory  ", &format!("{candidates}; the nearest: {}", fallen.nearest.words()));
    }
}

fn lines(out: &mut Paragraphs, option: &Setting, server: &str) {
    out.heading(&format!("For {server}"));
    let mut block = |title: &str, lines: &[String]| {
        if !lines.is_empty() {
            out.lines(&format!("  {title}\n"));
            lines.iter().for_each(|line| {
                out.lines(&format!("    {line}\n"));
            });
        }
    };
    block("environment", &option.lines.environment);
    block("Modelfile", &option.lines.modelfile);
    block("command", std::slice::from_ref(&option.lines.command));
}

/// The whole advice for people.
///
/// # Errors
/// Those of tables.
pub fn text(advice: &Advice) -> Result<String, Trouble> {
    let mut out = Paragraphs::new();
    // Where nothing fits the trace is not looked at.
    let size = match advice.requests {
        0 => String::new(),
        requests => {
            let seeds = count(advice.seeds as u64, "seed", "seeds");
            format!(": {}, {seeds}", count(requests, "request", "requests"))
        }
    };
    let Advice { server, model, gpu, trace, .. } = advice;
    out.paragraph("advice  ", &format!("{server} with {model} on {gpu}; trace {trace}{size}"));
    out.paragraph("goal    ", &format!("{}; then the lowest mean latency", advice.objective));
    search(advice, &mut out);
    let mut table = table(advice);
    table.fold(width(), 1);
    out.lines("\n").lines(&table.render(Format::Table)?);
    if let Some(short) = &advice.now.shortage {
        out.paragraph("now     ", &short.words());
    }
    if let Some(option) = advice.ranked.first() {
        lines(&mut out, option, advice.server);
        out.heading("Because");
        for sentence in &advice.because {
            out.paragraph("  - ", sentence);
        }
        if let Some(load) = advice.safe_load {
            let more = if advice.safe_load_is_limit { "; more was not tried" } else { "" };
            out.heading("Robustness").paragraph(
                "  ",
                &format!("keeps the objective up to x {load:.2} of this load (arrivals and waits divided by it){more}"),
            );
        }
    } else {
        out.heading("Nothing qualifies");
        if let Some(binding) = &advice.binding {
            let text = match binding.constraint.as_str() {
                "memory" => "memory binds: no candidate fits".to_owned(),
                constraint => format!(
                    "{constraint} binds: {} of the {} candidates of the last rung miss it, {} of them nothing else",
                    binding.missed, binding.of, binding.alone
                ),
            };
            out.paragraph("  ", &text);
        }
        for (at, miss) in advice.misses.iter().enumerate() {
            out.paragraph(&format!("  miss {}: ", at + 1), &format!("misses {}", list(&miss.violations)));
        }
    }
    if let Some(regret) = &advice.regret {
        let best: Vec<String> = regret.best.iter().map(|(name, text)| format!("{name} {text}")).collect();
        let share = regret.share.map_or("without bound".to_owned(), |share| human(share, Unit::Share));
        out.heading("Regret").paragraph(
            "  ",
            &format!(
                "{share} in {} against all candidates ({} simulations); the best is {}",
                regret.of,
                regret.simulations,
                best.join(", ")
            ),
        );
    }
    out.heading("Notes");
    for note in &advice.notes {
        out.paragraph("  - ", note);
    }
    Ok(out.finish())
}
