//! A measured profile of one model on one device: three CSV files of kernel times.
//!
//! The format is that of the LLMServingSim profiler (casys-kaist/LLMServingSim), so profiles made
//! with it can be used as they are:
//!
//! - `profile_dense.csv`: `layer,tokens,time_us`, kernels that depend on the tokens of a step;
//! - `profile_per_sequence.csv`: `layer,sequences,time_us`, output layer and sampler;
//! - `profile_attention.csv`: `prefill_chunk,kv_prefill,n_decode,kv_decode,time_us`, attention of
//!   one layer for a piece of a prompt and `n_decode` sequences of `kv_decode` cells each.
//!
//! Names that run once per step: `embedding`, `final_layernorm`, and all of the second file.
//! `layernorm` runs twice per layer (before attention and before the MLP), all others once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// A file cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The first line is not the expected one.
    #[error("{path}, line 1: the header must be {expected:?}", path = path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The header of this format.
        expected: &'static str,
    },
    /// A line has too few or too many fields.
    #[error("{path}, line {line}: {found} fields instead of {expected}", path = path.display())]
    Fields {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Fields of this format.
        expected: usize,
        /// Fields found.
        found: usize,
    },
    /// A field is not a number of the kind it must be.
    #[error("{path}, line {line}, field {field}: not a positive number: {text:?}", path = path.display())]
    Number {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Name of the column.
        field: &'static str,
        /// What stands there.
        text: String,
    },
    /// The same point twice.
    #[error("{path}, line {line}: this point was given before", path = path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// There is no row at all, or none of a kind that is needed.
    #[error("{path}: no row for {what}", path = path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// Which kind.
        what: &'static str,
    },
    /// The attention grid has a hole.
    #[error("{path}: no row for {point:?} (prefill_chunk, kv_prefill, n_decode, kv_decode)", path = path.display())]
    Hole {
        /// The file.
        path: PathBuf,
        /// The missing point.
        point: [u32; 4],
    },
    /// The model's layers do not all have the same reach.
    #[error("a profile prices one class of layers without a window; {model} has others")]
    Classes {
        /// The model.
        model: String,
    },
}

/// Times over one axis, in ns.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    points: Vec<(f64, f64)>,
}

impl Curve {
    /// Nanoseconds at `x`: linear between points, flat before the first, proportional to `x`
    /// after the last.
    pub fn at(&self, x: f64) -> f64 {
        let after = self.points.partition_point(|(point, _)| *point < x);
        match (self.points.get(after.wrapping_sub(1)), self.points.get(after)) {
            (Some((x0, y0)), Some((x1, y1))) => y0 + (y1 - y0) * (x - x0) / (x1 - x0),
            (Some((x0, y0)), None) => y0 * x / x0,
            (None, Some((_, y1))) => *y1,
            (None, None) => 0.0,
        }
    }
}

/// Times over a full grid of `N` axes, in ns.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid<const N: usize> {
    axes: [Vec<f64>; N],
    /// Row-major, the last axis fastest.
    values: Vec<f64>,
}

impl<const N: usize> Grid<N> {
    /// Nanoseconds at a point: multilinear between grid points. A coordinate outside its axis is
    /// moved to the nearer end; the caller decides what lies beyond.
    pub fn at(&self, point: [f64; N]) -> f64 {
        let mut low = [0_usize; N];
        let mut part = [0.0; N];
        for dim in 0..N {
            let axis = &self.axes[dim];
            let last = axis.len() - 1;
            let x = point[dim].clamp(axis[0], axis[last]);
            let after = axis.partition_point(|place| *place <= x).clamp(1, last.max(1));
            low[dim] = after - 1;
            if last > 0 {
                part[dim] = (x - axis[after - 1]) / (axis[after] - axis[after - 1]);
            }
        }
        let mut sum = 0.0;
        for corner in 0..1_usize << N {
            let mut index = 0;
            let mut weight = 1.0;
            for dim in 0..N {
                let up = corner >> dim & 1 == 1;
                weight *= if up { part[dim] } else { 1.0 - part[dim] };
                let place = (low[dim] + usize::from(up)).min(self.axes[dim].len() - 1);
                index = index * self.axes[dim].len() + place;
            }
            if weight > 0.0 {
                sum += weight * self.values[index];
            }
        }
        sum
    }

    /// The measured places along one axis.
    pub fn axis(&self, dim: usize) -> &[f64] {
        &self.axes[dim]
    }

    /// Builds a full grid, or says which point is missing.
    fn new(axes: [Vec<u32>; N], value: impl Fn([u32; N]) -> Option<f64>) -> Result<Self, [u32; N]> {
        let size: usize = axes.iter().map(Vec::len).product();
        let mut values = Vec::with_capacity(size);
        for index in 0..size {
            let mut rest = index;
            let mut point = [0; N];
            for dim in (0..N).rev() {
                point[dim] = axes[dim][rest % axes[dim].len()];
                rest /= axes[dim].len();
            }
            values.push(value(point).ok_or(point)?);
        }
        Ok(Self { axes: axes.map(|axis| axis.into_iter().map(f64::from).collect()), values })
    }
}

/// The measured kernel times, in ns.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Kernels by tokens of the step.
    pub dense: BTreeMap<String, Curve>,
    /// Kernels by sequences that need logits.
    pub per_sequence: BTreeMap<String, Curve>,
    /// Attention of one layer, nothing but decoding: (sequences, cells each).
    pub decode: Grid<2>,
    /// Attention of one layer, nothing but a prompt: (new tokens, tokens before).
    pub prefill: Grid<2>,
    /// Both: (new tokens, tokens before, sequences, cells each).
    pub mixed: Grid<4>,
}

impl Profile {
    /// Reads the three files of a folder.
    ///
    /// # Errors
    ///
    /// Names file, line and field of whatever is wrong; a missing point of the attention grid is
    /// `Hole`.
    pub fn read(folder: &Path) -> Result<Self, ProfileError> {
        let path = folder.join("profile_dense.csv");
        let dense = curves(&path, "layer,tokens,time_us", "tokens")?;
        let path = folder.join("profile_per_sequence.csv");
        let per_sequence = curves(&path, "layer,sequences,time_us", "sequences")?;
        let path = folder.join("profile_attention.csv");
        let times = attention(&path)?;
        let empty = |what| ProfileError::Empty { path: path.clone(), what };
        let hole = |point| ProfileError::Hole { path: path.clone(), point };

        let decodes = |p: &[u32; 4]| p[0] == 0 && p[2] > 0;
        let [_, _, sequences, cells] = axes(&times, decodes).ok_or(empty("decoding alone"))?;
        let decode = Grid::new([sequences, cells], |[n, kv]| times.get(&[0, 0, n, kv]).copied())
            .map_err(|[n, kv]| hole([0, 0, n, kv]))?;

        let prompts = |p: &[u32; 4]| p[0] > 0 && p[2] == 0;
        let [tokens, before, _, _] = axes(&times, prompts).ok_or(empty("a prompt alone"))?;
        let prefill = Grid::new([tokens, before], |[c, k]| times.get(&[c, k, 0, 0]).copied())
            .map_err(|[c, k]| hole([c, k, 0, 0]))?;

        let both = |p: &[u32; 4]| p[0] > 0 && p[2] > 0;
        let mixed_axes = axes(&times, both).ok_or(empty("a prompt beside decoding"))?;
        let mixed = Grid::new(mixed_axes, |point| times.get(&point).copied()).map_err(hole)?;

        Ok(Self { dense, per_sequence, decode, prefill, mixed })
    }

    /// How often a kernel of `dense` runs in a step of a model with `layers` layers.
    pub fn runs_per_step(layer: &str, layers: u32) -> u32 {
        match layer {
            "embedding" | "final_layernorm" => 1,
            "layernorm" => 2 * layers,
            _ => layers,
        }
    }
}

/// Per axis the places that occur in the chosen points; none if no point is chosen.
fn axes(times: &BTreeMap<[u32; 4], f64>, choose: impl Fn(&[u32; 4]) -> bool) -> Option<[Vec<u32>; 4]> {
    let mut axes: [Vec<u32>; 4] = Default::default();
    for point in times.keys().filter(|point| choose(point)) {
        for (axis, place) in axes.iter_mut().zip(point) {
            axis.push(*place);
        }
    }
    for axis in &mut axes {
        axis.sort_unstable();
        axis.dedup();
    }
    (!axes[0].is_empty()).then_some(axes)
}

fn curves(
    path: &Path,
    header: &'static str,
    column: &'static str,
) -> Result<BTreeMap<String, Curve>, ProfileError> {
    let mut places: BTreeMap<String, BTreeMap<u32, f64>> = BTreeMap::new();
    for_rows(path, header, |row| {
        let place = row.whole(1, column)?;
        if place == 0 {
            return Err(row.number(1, column));
        }
        let ns = row.ns(2)?;
        let curve = places.entry(row.fields[0].to_owned()).or_default();
        match curve.insert(place, ns) {
            Some(_) => Err(row.twice()),
            None => Ok(()),
        }
    })?;
    if places.is_empty() {
        return Err(ProfileError::Empty { path: path.to_owned(), what: "any layer" });
    }
    let curve = |points: BTreeMap<u32, f64>| Curve {
        points: points.into_iter().map(|(x, ns)| (f64::from(x), ns)).collect(),
    };
    Ok(places.into_iter().map(|(layer, points)| (layer, curve(points))).collect())
}

fn attention(path: &Path) -> Result<BTreeMap<[u32; 4], f64>, ProfileError> {
    const COLUMNS: [&str; 4] = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode"];
    let mut times = BTreeMap::new();
    let header = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us";
    for_rows(path, header, |row| {
        let mut point = [0; 4];
        for (index, column) in COLUMNS.into_iter().enumerate() {
            point[index] = row.whole(index, column)?;
        }
        match times.insert(point, row.ns(4)?) {
            Some(_) => Err(row.twice()),
            None => Ok(()),
        }
    })?;
    Ok(times)
}

struct Row<'a> {
    path: &'a Path,
    line: usize,
    fields: Vec<&'a str>,
}

impl Row<'_> {
    fn number(&self, index: usize, field: &'static str) -> ProfileError {
        ProfileError::Number {
            path: self.path.to_owned(),
            line: self.line,
            field,
            text: self.fields[index].to_owned(),
        }
    }

    fn twice(&self) -> ProfileError {
        ProfileError::Twice { path: self.path.to_owned(), line: self.line }
    }

    fn whole(&self, index: usize, field: &'static str) -> Result<u32, ProfileError> {
        self.fields[index].parse().map_err(|_| self.number(index, field))
    }

    /// A time in microseconds, as nanoseconds.
    fn ns(&self, index: usize) -> Result<f64, ProfileError> {
        match self.fields[index].parse::<f64>() {
            Ok(us) if us.is_finite() && us > 0.0 => Ok(us * 1000.0),
            _ => Err(self.number(index, "time_us")),
        }
    }
}

fn for_rows(
    path: &Path,
    header: &'static str,
    mut each: impl FnMut(&Row) -> Result<(), ProfileError>,
) -> Result<(), ProfileError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ProfileError::Read { path: path.to_owned(), source })?;
    let mut lines = text.lines();
    if lines.next().map(str::trim) != Some(header) {
        return Err(ProfileError::Header { path: path.to_owned(), expected: header });
    }
    let expected = header.split(',').count();
    for (index, line) in lines.enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let line = index + 2;
        if fields.len() != expected {
            return Err(ProfileError::Fields { path: path.to_owned(), line, expected, found: fields.len() });
        }
        each(&Row { path, line, fields })?;
    }
    Ok(())
}
