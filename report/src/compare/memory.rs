//! What each device has to hold and what it has, beside what the server's estimator believed.

use super::Comparison;
use crate::number::fixed;
use crate::row::Summary;
use crate::table::{Table, Value};

/// Memory per device: a line per group, two columns per device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemoryTable {
    /// Names of the columns. A line break divides a device from what is said of it.
    pub headers: Vec<String>,
    /// One line per group.
    pub lines: Vec<Vec<MemoryCell>>,
}

/// A place of a [`MemoryTable`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemoryCell {
    /// What stands there; empty where there is nothing to say.
    pub text: String,
    /// Whether more is needed than there is, or something went wrong; the text says so too.
    pub is_short: bool,
}

/// What one device has to hold and can hold, GiB.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Need {
    /// The device; the second of two equal ones has ` #2` behind it.
    pub(super) device: String,
    pub(super) needed: f64,
    pub(super) there: Option<f64>,
}

impl Need {
    fn is_short(&self) -> bool {
        self.there.is_some_and(|there| self.needed > there)
    }
}

/// Reads `rtx8000=20.4/46.5;gtx1660super=7.5/5.1`; parts of another form are left out.
pub(super) fn needs(text: &str) -> Vec<Need> {
    let mut needs: Vec<Need> = Vec::new();
    for part in text.split(';') {
        let Some((name, amounts)) = part.rsplit_once('=') else { continue };
        let (needed, there) = match amounts.split_once('/') {
            Some((needed, there)) => (needed, there.trim().parse().ok()),
            None => (amounts, None),
        };
        let Ok(needed) = needed.trim().parse::<f64>() else { continue };
        let name = name.trim();
        let is_again = |n: &&Need| n.device == name || n.device.starts_with(&format!("{name} #"));
        let device = match needs.iter().filter(is_again).count() {
            0 => name.to_owned(),
            earlier => format!("{name} #{}", earlier + 1),
        };
        needs.push(Need { device, needed, there });
    }
    needs
}

impl MemoryTable {
    /// What stands above the table.
    pub const TITLE: &str = "Memory per device, GiB: needed/there (!: does not fit)";

    /// Head of the column that says why a model could not be loaded.
    const LOAD_ERROR: &str = "load error";

    /// The table as text, but for load errors, which are sentences.
    pub(super) fn table(&self) -> Table {
        let is_shown = |c: &usize| self.headers[*c] != Self::LOAD_ERROR;
        let columns: Vec<usize> = (0..self.headers.len()).filter(is_shown).collect();
        let mut table = Table::new(columns.iter().map(|c| self.headers[*c].clone()));
        for line in &self.lines {
            table.row(columns.iter().map(|c| match line[*c].text.as_str() {
                "" => Value::Empty,
                text => Value::Text(text.to_owned()),
            }));
        }
        table
    }

    /// One line per model that could not be loaded.
    pub(super) fn load_errors(&self) -> Vec<String> {
        let Some(column) = self.headers.iter().position(|header| header == Self::LOAD_ERROR) else {
            return Vec::new();
        };
        let failed = self.lines.iter().filter(|line| !line[column].text.is_empty());
        failed.map(|line| format!("{}: cannot be loaded: {}", line[0].text, line[column].text)).collect()
    }
}

impl Comparison<'_> {
    /// Memory per device; none where nothing is known, or where everything fits and rows have no names or
    /// columns were asked for.
    pub fn memory(&self) -> Option<MemoryTable> {
        let firsts: Vec<&Summary> = self.groups.iter().filter_map(|g| g.rows.first().copied()).collect();
        let real: Vec<Vec<Need>> = firsts.iter().map(|row| needs(&row.memory_gib)).collect();
        let guessed: Vec<Vec<Need>> = firsts.iter().map(|row| needs(&row.memory_estimated_gib)).collect();
        let spilled: Vec<f64> =
            self.groups.iter().map(|g| g.rows.iter().map(|r| r.spilled_gib).fold(0.0, f64::max)).collect();
        let (has_spilled, has_failed) =
            (spilled.iter().any(|s| *s > 0.0), firsts.iter().any(|row| !row.load_error.is_empty()));
        let is_known = real.iter().chain(&guessed).any(|needs| !needs.is_empty());
        let is_short = real.iter().flatten().any(Need::is_short);
        let is_of_interest = self.is_named && self.columns.is_empty() && is_known;
        if !(is_of_interest || has_spilled || has_failed || is_short) {
            return None;
        }
        let mut devices: Vec<&str> = Vec::new();
        for need in real.iter().chain(&guessed).flatten() {
            if !devices.contains(&need.device.as_str()) {
                devices.push(&need.device);
            }
        }
        let find = |needs: &[Need], device: &str| {
            let found = needs.iter().find(|need| need.device == device);
            found.map_or_else(MemoryCell::default, |need| {
                let there = need.there.map_or(String::new(), |there| format!("/{}", fixed(there, 1)));
                let mark = if need.is_short() { " !" } else { "" };
                let text = format!("{}{there}{mark}", fixed(need.needed, 1));
                MemoryCell { text, is_short: need.is_short() }
            })
        };
        let of = |device: &str, all: &[Vec<Need>]| -> Vec<MemoryCell> {
            all.iter().map(|needs| find(needs, device)).collect()
        };
        let plain = |text: String, is_short| MemoryCell { text, is_short };
        let names = self.groups.iter().map(|g| plain(g.label.clone(), false)).collect();
        let mut columns: Vec<(String, Vec<MemoryCell>)> = vec![(self.kind().to_owned(), names)];
        for device in devices {
            for (said, all) in [("needed/there", &real), ("estimated", &guessed)] {
                if all.iter().flatten().any(|need| need.device == device) {
                    columns.push((format!("{device}\n{said}"), of(device, all)));
                }
            }
        }
        if has_spilled {
            let cells = spilled.iter().map(|s| match *s {
                s if s > 0.0 => plain(fixed(s, 1), true),
                _ => plain("0".to_owned(), false),
            });
            columns.push(("spilled".to_owned(), cells.collect()));
        }
        if has_failed {
            let cells = firsts.iter().map(|row| plain(row.load_error.clone(), !row.load_error.is_empty()));
            columns.push((MemoryTable::LOAD_ERROR.to_owned(), cells.collect()));
        }
        let lines =
            (0..self.groups.len()).map(|g| columns.iter().map(|(_, cells)| cells[g].clone()).collect());
        let lines = lines.collect();
        Some(MemoryTable { headers: columns.into_iter().map(|(header, _)| header).collect(), lines })
    }
}
