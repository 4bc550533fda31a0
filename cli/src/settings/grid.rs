//! Settings that vary: every list is an axis of a grid, and linked keys are one axis together.

use toml::Spanned;
use toml::de::{DeString, DeValue};

use super::keys::{KEYS, index};
use super::scenario::{collect, known};
use super::{Settings, Value};
use crate::trouble::{Source, Trouble, usage};

/// Points that one grid may have.
const POINTS_MAX: usize = 10_000_000;

/// Keys that go together: their first values, their second values, and so on.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// Per key its number and its values; all have as many.
    pub values: Vec<(usize, Vec<Value>)>,
}

/// The settings of a sweep, or of one row of it, and the axes along which they vary.
pub struct Grid {
    base: Settings,
    axes: Vec<Axis>,
}

/// What is set at each place of an axis.
type Axis = Vec<Vec<(usize, Value)>>;

impl Grid {
    /// The grids of all rows that are asked for; one where there are no rows.
    pub fn of(settings: &Settings) -> Result<Vec<Grid>, Trouble> {
        settings.by_row()?.into_iter().map(Grid::new).collect()
    }

    fn new(settings: Settings) -> Result<Grid, Trouble> {
        let linked =
            |key: usize| settings.links.iter().any(|link| link.values.iter().any(|(k, _)| *k == key));
        let (generate, trace, policies) = (index("generate"), index("trace"), index("policies"));
        let mut axes: Vec<Axis> = Vec::new();
        let single = |key: usize| {
            let values = if linked(key) { Vec::new() } else { settings.all(KEYS[key].name) };
            values.into_iter().map(move |value| vec![(key, value)])
        };
        // A workload is either; the policy varies fastest, so that those to be compared stand together.
        let workloads: Axis = single(generate).chain(single(trace)).collect();
        if let (Some(place), true) = (workloads.first(), linked(generate) || linked(trace)) {
            return Err(place[0].1.wrong("the workload is linked already; give it in one place"));
        }
        axes.push(workloads);
        let plain =
            (0..KEYS.len()).filter(|key| KEYS[*key].is_swept() && ![generate, trace, policies].contains(key));
        axes.extend(plain.map(|key| single(key).collect()));
        axes.extend(settings.links.iter().map(|link| {
            let places = link.values.first().map_or(0, |(_, values)| values.len());
            let at = |place: usize| {
                link.values.iter().map(|(key, values)| (*key, values[place].clone())).collect()
            };
            (0..places).map(at).collect()
        }));
        axes.push(single(policies).collect());
        axes.retain(|axis| !axis.is_empty());
        for axis in &axes {
            let names: Vec<Vec<String>> = axis.iter().map(|place| place.iter().map(name).collect()).collect();
            if let Some(at) = (1..names.len()).find(|&at| names[..at].contains(&names[at])) {
                let (key, value) = &axis[at][0];
                let apart =
                    if KEYS[*key].names_file(value) { "; results tell files apart by name" } else { "" };
                return Err(value.wrong(format!("{} stands twice{apart}", KEYS[*key].name_of(value))));
            }
        }
        let points = axes.iter().try_fold(1_usize, |points, axis| points.checked_mul(axis.len()));
        if points.is_none_or(|points| points > POINTS_MAX) {
            let longest = axes.iter().max_by_key(|axis| axis.len()).expect("there are axes");
            let message = format!("the grid has more than {POINTS_MAX} points");
            return Err(longest[0][0].1.wrong(message));
        }
        let mut base = settings.clone();
        base.links.clear();
        // The axes set these anew, and of the rows this is one.
        for key in (0..KEYS.len()).filter(|key| KEYS[*key].is_swept() || KEYS[*key].name == "rows") {
            base.values[key] = None;
        }
        Ok(Grid { base, axes })
    }

    /// Number of points.
    pub fn points(&self) -> usize {
        self.axes.iter().map(Vec::len).product()
    }

    /// The settings at a point; the last axis varies fastest.
    pub fn at(&self, point: usize) -> Settings {
        let mut settings = self.base.clone();
        let mut rest = point;
        for axis in self.axes.iter().rev() {
            for (key, value) in &axis[rest % axis.len()] {
                settings.values[*key] = Some(vec![value.clone()]);
            }
            rest /= axis.len();
        }
        settings
    }
}

fn name((key, value): &(usize, Value)) -> String {
    format!("{key} {}", KEYS[*key].name_of(value))
}

impl Settings {
    /// These settings for one seed.
    pub fn at_seed(&self, seed: u64) -> Settings {
        let mut settings = self.clone();
        for (name, text) in [("seeds", "1".to_owned()), ("seed0", seed.to_string())] {
            settings.values[index(name)] = Some(vec![Value::whole("defaults", text)]);
        }
        settings
    }
}

/// The linked keys of a sweep.
pub(super) fn links(source: &Source, text: &str, value: &Spanned<DeValue<'_>>) -> Result<Vec<Link>, Trouble> {
    let DeValue::Array(tables) = value.get_ref() else {
        return Err(usage(source.point(value.span(), "expected tables: [[link]]")));
    };
    let mut links: Vec<Link> = Vec::new();
    for table in tables.iter() {
        let DeValue::Table(entries) = table.get_ref() else {
            return Err(usage(source.point(table.span(), "expected a table: [[link]]")));
        };
        // In the order of the file, not of the alphabet.
        let mut entries: Vec<(&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)> = entries.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let mut values: Vec<(usize, Vec<Value>)> = Vec::new();
        for (name, value) in entries {
            let wrong = |message: String| usage(source.point(name.span(), &message));
            let key = known(source, name)?;
            if !KEYS[key].is_swept() {
                return Err(wrong(format!(
                    "{} is the same for the whole sweep; set it above",
                    KEYS[key].name
                )));
            }
            if links.iter().any(|link| link.values.iter().any(|(other, _)| *other == key)) {
                return Err(wrong(format!("{} is linked twice", KEYS[key].name)));
            }
            let mut list = Vec::new();
            collect(source, text, value, &mut list)?;
            if let Some((first, known)) = values.first()
                && known.len() != list.len()
            {
                let count = |n: usize| if n == 1 { "1 value".to_owned() } else { format!("{n} values") };
                let message = format!(
                    "{} has {}, {} has {}; linked keys go together",
                    KEYS[key].name,
                    count(list.len()),
                    KEYS[*first].name,
                    count(known.len())
                );
                return Err(usage(source.point(value.span(), &message)));
            }
            values.push((key, list));
        }
        if values.len() < 2 || values[0].1.is_empty() {
            return Err(usage(source.point(table.span(), "a link has two or more keys with values")));
        }
        links.push(Link { values });
    }
    Ok(links)
}
