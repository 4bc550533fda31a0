//! The tables of `kvlab engine quality`.

use engine::quality::statistics::Estimate;
use engine::quality::summary::{DISTANCES, Group, Pair, Row};
use engine::{Config, KvType};
use report::table::{Table, Value};

/// How an estimate is written for people.
#[derive(Clone, Copy)]
enum Style {
    /// A share, from 0 to 1, or a loss in nats.
    Fixed,
    /// A small loss in nats.
    Fine,
    /// A divergence, which may be tiny.
    Scientific,
}

fn figures(estimate: &Estimate, style: Style) -> Value {
    let Estimate { mean, error, count } = *estimate;
    if count == 0 {
        return Value::Empty;
    }
    let write = |number: f64| match style {
        Style::Fixed => format!("{number:.3}"),
        Style::Fine => format!("{number:.4}"),
        Style::Scientific if number == 0.0 => "0".to_owned(),
        Style::Scientific => format!("{number:.1e}"),
    };
    // A zero has no sign.
    let text = write(mean);
    let text = match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| matches!(c, '0' | '.')) => rest.to_owned(),
        _ => text,
    };
    Value::Figures(if error.is_finite() { format!("{text} ±{}", write(error)) } else { text })
}

/// Columns of a table: for people one per estimate, for machines the mean, its error and the count.
struct Columns<'a, T> {
    columns: Vec<Column<'a, T>>,
    is_for_people: bool,
}

/// Names for people and for machines, and what stands in the column.
type Column<'a, T> = (&'a str, &'a str, Box<dyn Fn(&T) -> Cell + 'a>);

enum Cell {
    Plain(Value),
    Mean(Estimate, Style),
}

impl<T> Columns<'_, T> {
    fn table(&self, rows: &[T]) -> Table {
        let mut headers = Vec::new();
        let is_mean =
            |column: &Column<'_, T>| rows.first().is_some_and(|row| matches!(column.2(row), Cell::Mean(..)));
        for column in &self.columns {
            if self.is_for_people {
                headers.push(column.0.to_owned());
            } else {
                headers.push(column.1.to_owned());
                if is_mean(column) {
                    headers.extend(["se", "n"].map(|what| format!("{}_{what}", column.1)));
                }
            }
        }
        let mut table = Table::new(headers);
        for row in rows {
            let mut values = Vec::new();
            for column in &self.columns {
                match column.2(row) {
                    Cell::Plain(value) => values.push(value),
                    Cell::Mean(estimate, style) if self.is_for_people => {
                        values.push(figures(&estimate, style))
                    }
                    Cell::Mean(Estimate { mean, error, count }, _) => {
                        let number =
                            |number: f64| Value::from(Some(number).filter(|number| number.is_finite()));
                        values.extend([number(mean), number(error), Value::from(count)]);
                    }
                }
            }
            table.row(values);
        }
        table
    }
}

fn kv_name(kv: KvType) -> &'static str {
    match kv {
        KvType::F32 => "f32",
        KvType::F16 => "f16",
        KvType::Bf16 => "bf16",
        KvType::Q8_0 => "q8_0",
        KvType::Q4_0 => "q4_0",
    }
}

/// The main table. `tokens` is the length of a document; facts and chat are left out where there are none.
pub fn main(
    rows: &[Row],
    config: &Config,
    tokens: usize,
    num_ctx: u32,
    has_facts: bool,
    is_for_people: bool,
) -> Table {
    let kib = |row: &Row| {
        let held = if row.variant.is_unlimited { tokens } else { tokens.min(num_ctx as usize) };
        let held = row.variant.cells.map_or(held, |cells| held.min(cells as usize));
        let budget = policies::budget(&row.variant.spec).ok().flatten();
        let held = budget.map_or(held, |budget| held.min(budget as usize));
        (row.variant.bytes(config, held) as f64 / 102.4).round() / 10.0
    };
    let mut columns: Vec<Column<'_, Row>> = vec![
        ("variant", "variant", Box::new(|row| Cell::Plain(row.variant.name.as_str().into()))),
        ("KV", "kv_type", Box::new(|row| Cell::Plain(kv_name(row.variant.kv).into()))),
        ("KV KiB", "kv_kib", Box::new(move |row| Cell::Plain(kib(row).into()))),
    ];
    if has_facts {
        columns.push(("recall", "recall", Box::new(|row| Cell::Mean(row.recall, Style::Fixed))));
        for (index, group) in Group::ALL.into_iter().enumerate() {
            let name = match group {
                Group::System => "recall_system",
                Group::Old => "recall_old",
                Group::Mid => "recall_mid",
                Group::Recent => "recall_recent",
            };
            let cell = move |row: &Row| Cell::Mean(row.recall_by_group[index], Style::Fixed);
            columns.push((group.name(), name, Box::new(cell)));
        }
        columns.push(("answer NLL", "answer_nll", Box::new(|row| Cell::Mean(row.answer_nll, Style::Fixed))));
    }
    let perplexity = |row: &Row| Cell::Plain(Value::from((row.perplexity() * 1e4).round() / 1e4));
    columns.push(("perplexity", "perplexity", Box::new(perplexity)));
    columns.push(("ΔNLL", "nll_delta", Box::new(|row| Cell::Mean(row.nll_delta, Style::Fine))));
    columns.push(("KL(full‖this)", "kl", Box::new(|row| Cell::Mean(row.kl, Style::Scientific))));
    columns.push(("top-1 agrees", "agreement", Box::new(|row| Cell::Mean(row.agreement, Style::Fine))));
    if has_facts {
        columns.push((
            "chat excess",
            "chat_excess",
            Box::new(|row| Cell::Mean(row.chat_excess, Style::Fine)),
        ));
        columns.push(("Δchat", "chat_delta", Box::new(|row| Cell::Mean(row.chat_delta, Style::Fine))));
    }
    let foreign = |row: &Row| (row.foreign.mean * row.foreign.count as f64).round() as u64;
    columns.push(("foreign tokens", "foreign_tokens", Box::new(move |row| Cell::Plain(foreign(row).into()))));
    columns.push(("defrags", "defrags", Box::new(|row| Cell::Plain(row.incidents.defrags.into()))));
    columns.push(("crashes", "crashes", Box::new(|row| Cell::Plain(row.incidents.crashes.into()))));
    Columns { columns, is_for_people }.table(rows)
}

/// Recall by distance.
pub fn distances(rows: &[Row], is_for_people: bool) -> Table {
    let names: Vec<String> = DISTANCES
        .windows(2)
        .map(|ends| match ends[1] {
            u32::MAX => format!("{}+", ends[0]),
            end => format!("{}-{}", ends[0], end - 1),
        })
        .collect();
    let machine: Vec<String> = DISTANCES.iter().map(|from| format!("recall_from_{from}")).collect();
    let mut columns: Vec<Column<'_, Row>> =
        vec![("variant", "variant", Box::new(|row| Cell::Plain(row.variant.name.as_str().into())))];
    for (bin, (name, machine)) in names.iter().zip(&machine).enumerate() {
        let cell = move |row: &Row| Cell::Mean(row.recall_by_distance[bin], Style::Fixed);
        columns.push((name, machine, Box::new(cell)));
    }
    Columns { columns, is_for_people }.table(rows)
}

/// Paired differences.
pub fn differences(pairs: &[Pair], has_facts: bool, is_for_people: bool) -> Table {
    let mut columns: Vec<Column<'_, Pair>> = vec![
        ("first", "first", Box::new(|pair| Cell::Plain(pair.first.as_str().into()))),
        ("minus second", "second", Box::new(|pair| Cell::Plain(pair.second.as_str().into()))),
    ];
    if has_facts {
        columns.push(("Δ recall", "recall", Box::new(|pair| Cell::Mean(pair.recall, Style::Fixed))));
        columns.push((
            "Δ answer NLL",
            "answer_nll",
            Box::new(|pair| Cell::Mean(pair.answer_nll, Style::Fine)),
        ));
        columns.push(("Δ chat NLL", "chat_nll", Box::new(|pair| Cell::Mean(pair.chat_nll, Style::Fine))));
    }
    columns.push(("Δ NLL", "nll", Box::new(|pair| Cell::Mean(pair.nll, Style::Fine))));
    columns.push(("Δ KL", "kl", Box::new(|pair| Cell::Mean(pair.kl, Style::Scientific))));
    Columns { columns, is_for_people }.table(pairs)
}
