//! Scenarios: settings, rows and linked keys as TOML, read with the place of every value, and written again.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::keys::{KEYS, Key};
use super::{Settings, Value, grid};
use crate::trouble::{Source, Trouble, usage};

/// Whether a file is a scenario, and not a trace.
pub(super) fn is_scenario(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "toml")
}

/// A row of a scenario: a name, and the keys that it sets.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub name: Value,
    /// Per key that it sets, its number and the value.
    pub values: Vec<(usize, Value)>,
}

impl Settings {
    /// Reads a scenario.
    pub fn read(&mut self, path: &Path) -> Result<(), Trouble> {
        let text =
            std::fs::read_to_string(path).map_err(|error| usage(format!("{}: {error}", path.display())))?;
        let source = Source::new(path.display().to_string(), text.clone());
        let table = DeTable::parse(&text)
            .map_err(|error| usage(source.point(error.span().unwrap_or(0..0), error.message())))?;
        for (name, value) in table.get_ref() {
            if name.get_ref() == "row" {
                self.rows = rows(&source, &text, value)?;
                continue;
            }
            if name.get_ref() == "link" {
                if !self.is_sweep {
                    return Err(usage(source.point(name.span(), "linked keys are for `kvlab sweep`")));
                }
                self.links = grid::links(&source, &text, value)?;
                continue;
            }
            let key = known(&source, name)?;
            let mut values = Vec::new();
            collect(&source, &text, value, &mut values)?;
            if values.is_empty() || (values.len() > 1 && !self.takes_many(key)) {
                let message = format!(
                    "{} takes {}",
                    KEYS[key].name,
                    match KEYS[key].name {
                        "visible_devices" if !self.is_sweep => "one text, as \"0,1\"",
                        _ if self.takes_many(key) => "at least one value",
                        _ => "one value",
                    }
                );
                return Err(usage(source.point(value.span(), &message)));
            }
            self.values[key] = Some(values);
        }
        let linked = self.links.iter().flat_map(|link| &link.values);
        for (key, values) in linked {
            if self.values[*key].is_some() {
                return Err(
                    values[0].wrong(format!("{} stands above, too; link it or list it", KEYS[*key].name))
                );
            }
        }
        self.base = path.parent().map(Path::to_path_buf);
        Ok(())
    }

    /// Everything, as a scenario that says the same.
    pub fn to_toml(&self) -> String {
        let quoted = |key: &Key, value: &Value| {
            let path = key.names_file(value).then(|| std::path::absolute(self.path(value)).ok()).flatten();
            let text = path.map_or_else(|| value.text.clone(), |path| path.display().to_string());
            toml::Value::String(text).to_string()
        };
        let mut text = String::new();
        for key in KEYS {
            let values = self.all(key.name);
            let list: Vec<String> = values.iter().map(|value| quoted(key, value)).collect();
            match list.as_slice() {
                [] => text += &format!("# {} is not set: {}\n", key.name, key.about),
                [one] => text += &format!("{} = {one}\n", key.name),
                many => text += &format!("{} = [{}]\n", key.name, many.join(", ")),
            }
        }
        for row in &self.rows {
            text += &format!("\n[[row]]\nname = {}\n", toml::Value::String(row.name.text.clone()));
            for (key, value) in &row.values {
                text += &format!("{} = {}\n", KEYS[*key].name, quoted(&KEYS[*key], value));
            }
        }
        text
    }
}

/// The number of a key of a scenario.
pub(super) fn known(source: &Source, name: &Spanned<DeString<'_>>) -> Result<usize, Trouble> {
    KEYS.iter().position(|key| key.name == name.get_ref().as_ref()).ok_or_else(|| {
        let near = KEYS.iter().map(|key| key.name).max_by_key(|known| likeness(known, name.get_ref()));
        let near = near.unwrap_or_default();
        let message = format!("unknown key {:?}; did you mean {near:?}?", name.get_ref());
        usage(source.point(name.span(), &message))
    })
}

/// The rows of a scenario.
fn rows(source: &Source, text: &str, value: &Spanned<DeValue<'_>>) -> Result<Vec<Row>, Trouble> {
    let wrong = |at: Range<usize>, message: &str| usage(source.point(at, message));
    let DeValue::Array(tables) = value.get_ref() else {
        return Err(wrong(value.span(), "expected tables: [[row]]"));
    };
    let mut rows: Vec<Row> = Vec::new();
    for table in tables.iter() {
        let DeValue::Table(entries) = table.get_ref() else {
            return Err(wrong(table.span(), "expected a table: [[row]]"));
        };
        let (mut name, mut values) = (None, Vec::new());
        for (key, value) in entries {
            let mut found = Vec::new();
            collect(source, text, value, &mut found)?;
            let [only] = found.as_slice() else {
                return Err(wrong(value.span(), "a row takes one value for each of its keys"));
            };
            if key.get_ref() == "name" {
                let text = only.text.trim().to_owned();
                if text.is_empty() || text.contains(|letter: char| letter == ',' || letter.is_control()) {
                    return Err(only.wrong("the name of a row is one line, not empty, without a comma"));
                }
                name = Some(Value { text, ..only.clone() });
                continue;
            }
            let index = known(source, key)?;
            if !KEYS[index].in_rows {
                let message = format!("{} is the same for all rows; set it above them", KEYS[index].name);
                return Err(wrong(key.span(), &message));
            }
            values.push((index, only.clone()));
        }
        let Some(name) = name else { return Err(wrong(table.span(), "a row needs a name")) };
        if rows.iter().any(|row| row.name.text == name.text) {
            return Err(name.wrong(format!("two rows are called {:?}", name.text)));
        }
        values.sort_by_key(|(key, _)| *key);
        rows.push(Row { name, values });
    }
    Ok(rows)
}

/// Scalars of a TOML value with their places.
pub(super) fn collect(
    source: &Source,
    text: &str,
    value: &Spanned<DeValue<'_>>,
    into: &mut Vec<Value>,
) -> Result<(), Trouble> {
    let span = value.span();
    let scalar = |text: String, at: Range<usize>| Value { text, source: source.clone(), at };
    match value.get_ref() {
        DeValue::String(string) => {
            // The caret points into the string where it has no escapes, else at all of it.
            let inner = span.start + 1..span.end.saturating_sub(1);
            let plain = text.get(inner.clone()) == Some(string.as_ref());
            into.push(scalar(string.to_string(), if plain { inner } else { span }));
        }
        DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) => {
            into.push(scalar(text[span.clone()].replace('_', ""), span));
        }
        DeValue::Array(items) => {
            for item in items.iter() {
                collect(source, text, item, into)?;
            }
        }
        DeValue::Table(_) | DeValue::Datetime(_) => {
            return Err(usage(
                source.point(span, "expected a text, a number, true or false, or a list of these"),
            ));
        }
    }
    Ok(())
}

/// How much two names look alike: the letters they begin with in common, and those they share.
fn likeness(a: &str, b: &str) -> (usize, usize) {
    let start = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let shared = b.chars().filter(|&letter| a.contains(letter)).count();
    (start, shared)
}
