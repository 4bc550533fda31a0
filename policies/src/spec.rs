//! The table of policies, and the short texts that choose one: `paged:32+prefix`.
//!
//! A spec is a name, then arguments after colons, by position or as `knob=value`, then
//! extensions after plus signs: `contiguous:pow2:best`, `defrag:when=step:share=20+shift`.

use std::ops::{Range, RangeInclusive};

use crate::free::Fit;
use crate::policy::{Geometry, Policy};
use crate::{
    buddy, clairvoyant, contiguous, defrag, limit, llama_unified, ollama, paged, shared, shift, slab,
    swa_full, tiered, unlimited, vllm, vmem,
};

/// Every policy. Tests walk it, and `kvlab policies` prints it.
pub const POLICIES: &[Spec] = &[
    contiguous::SPEC,
    buddy::SPEC,
    slab::SPEC,
    paged::SPEC,
    tiered::SPEC,
    vmem::SPEC,
    shared::SPEC,
    vllm::SPEC,
    shift::SPEC,
    defrag::SPEC,
    swa_full::SPEC,
    limit::TRUNCATE,
    limit::RING,
    limit::SINKS,
    ollama::SPEC_0_6_6,
    ollama::SPEC_0_12_4,
    llama_unified::SPEC,
    unlimited::SPEC,
    clairvoyant::SPEC,
];

/// One line of the table.
pub struct Spec {
    /// Name in specs.
    pub name: &'static str,
    /// What it is, in one line.
    pub about: &'static str,
    /// Where the idea comes from.
    pub source: &'static str,
    /// What its operations cost.
    pub cost: &'static str,
    /// The faults of a real server that it reproduces on purpose; empty for most.
    pub faults: &'static str,
    /// Its arguments by position, then its extensions (`+name`).
    pub knobs: &'static [Knob],
    pub(crate) make: Make,
}

/// Makes a policy from the arguments of its spec.
type Make = fn(&Args, &Geometry) -> Result<Box<dyn Policy>, SpecError>;

/// One thing that can be set.
pub struct Knob {
    /// Name, with a leading `+` for an extension.
    pub name: &'static str,
    /// What it means, with its values.
    pub about: &'static str,
    /// Value where nothing is said.
    pub default: &'static str,
}

/// The knob that policies with a free map share.
pub(crate) const FIT: Knob = Knob { name: "fit", about: "first | next | best", default: "first" };

/// What is wrong with a spec, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SpecError {
    /// Bytes of the spec that are wrong.
    pub at: Range<usize>,
    /// What is wrong, and what is allowed.
    pub message: String,
}

/// One argument of a spec.
#[derive(Clone, Debug)]
struct Arg<'a> {
    key: Option<&'a str>,
    value: &'a str,
    at: Range<usize>,
}

impl Arg<'_> {
    fn number(&self, range: &RangeInclusive<u32>) -> Option<u32> {
        self.value.parse().ok().filter(|number| range.contains(number))
    }
}

/// The arguments of a spec, as a policy asks for them.
pub(crate) struct Args<'a> {
    positional: Vec<Arg<'a>>,
    named: Vec<Arg<'a>>,
    extensions: Vec<Arg<'a>>,
}

impl Args<'_> {
    fn find(&self, name: &str, position: usize) -> Option<&Arg<'_>> {
        self.named.iter().find(|arg| arg.key == Some(name)).or_else(|| self.positional.get(position))
    }

    /// A whole number in a range.
    pub fn number(
        &self,
        name: &str,
        position: usize,
        range: RangeInclusive<u32>,
        default: u32,
    ) -> Result<u32, SpecError> {
        let Some(arg) = self.find(name, position) else { return Ok(default) };
        arg.number(&range).ok_or_else(|| SpecError {
            at: arg.at.clone(),
            message: format!(
                "{name} is {:?}, expected a whole number from {} to {}",
                arg.value,
                range.start(),
                range.end()
            ),
        })
    }

    /// A word, or a whole number in a range: none where nothing is said, none in it for the word.
    pub fn number_or(
        &self,
        name: &str,
        position: usize,
        word: &str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<Option<u32>>, SpecError> {
        let Some(arg) = self.find(name, position) else { return Ok(None) };
        if arg.value == word {
            return Ok(Some(None));
        }
        let number = arg.number(&range).ok_or_else(|| SpecError {
            at: arg.at.clone(),
            message: format!(
                "{name} is {:?}, expected {word} or a whole number from {} to {}",
                arg.value,
                range.start(),
                range.end()
            ),
        })?;
        Ok(Some(Some(number)))
    }

    /// One of some words; the first is the default.
    pub fn choice(
        &self,
        name: &str,
        position: usize,
        words: &[&'static str],
    ) -> Result<&'static str, SpecError> {
        let Some(arg) = self.find(name, position) else { return Ok(words[0]) };
        words.iter().find(|&&word| word == arg.value).copied().ok_or_else(|| SpecError {
            at: arg.at.clone(),
            message: format!("{name} is {:?}, expected one of {}", arg.value, words.join(", ")),
        })
    }

    /// The fit rule.
    pub fn fit(&self, position: usize) -> Result<Fit, SpecError> {
        Ok(match self.choice("fit", position, &["first", "next", "best"])? {
            "next" => Fit::Next,
            "best" => Fit::Best,
            _ => Fit::First,
        })
    }

    /// Whether the spec ends in `+name`.
    pub fn has_extension(&self, name: &str) -> bool {
        self.extensions.iter().any(|arg| arg.value == name)
    }
}

/// Splits off the next piece of a spec up to one of the separators.
fn piece(text: &str, from: usize) -> Range<usize> {
    let len = text[from..].find([':', '+']).unwrap_or(text.len() - from);
    from..from + len
}

fn split(text: &str) -> Result<(&'static Spec, Args<'_>), SpecError> {
    let name_at = piece(text, 0);
    let name = &text[name_at.clone()];
    let spec = POLICIES.iter().find(|spec| spec.name == name).ok_or_else(|| {
        let names: Vec<&str> = POLICIES.iter().map(|spec| spec.name).collect();
        SpecError {
            at: name_at.clone(),
            message: format!("unknown policy {name:?}, expected one of {}", names.join(", ")),
        }
    })?;
    let (settings, extensions): (Vec<&Knob>, Vec<&Knob>) =
        spec.knobs.iter().partition(|knob| !knob.name.starts_with('+'));
    let mut args = Args { positional: Vec::new(), named: Vec::new(), extensions: Vec::new() };
    let mut end = name_at.end;
    while end < text.len() {
        let separator = text.as_bytes()[end];
        let at = piece(text, end + 1);
        end = at.end;
        let word = &text[at.clone()];
        let fault = |message: String| Err(SpecError { at: at.clone(), message });
        let list = |knobs: &[&Knob]| {
            let names: Vec<&str> = knobs.iter().map(|knob| knob.name).collect();
            if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
        };
        if separator == b'+' {
            if !extensions.iter().any(|knob| &knob.name[1..] == word) {
                return fault(format!("{name} has no extension {word:?}, expected {}", list(&extensions)));
            }
            args.extensions.push(Arg { key: None, value: word, at });
        } else if let Some((key, value)) = word.split_once('=') {
            if !settings.iter().any(|knob| knob.name == key) {
                return fault(format!("{name} has no knob {key:?}, expected {}", list(&settings)));
            }
            if args.named.iter().any(|arg| arg.key == Some(key)) {
                return fault(format!("{key} is set twice"));
            }
            args.named.push(Arg { key: Some(key), value, at });
        } else {
            if args.positional.len() == settings.len() || !args.extensions.is_empty() {
                return fault(format!("unexpected {word:?}; the knobs of {name} are {}", list(&settings)));
            }
            args.positional.push(Arg { key: None, value: word, at });
        }
    }
    for (knob, arg) in settings.iter().zip(&args.positional) {
        if args.named.iter().any(|named| named.key == Some(knob.name)) {
            return Err(SpecError { at: arg.at.clone(), message: format!("{} is set twice", knob.name) });
        }
    }
    Ok((spec, args))
}

/// Makes the policy that a spec describes.
///
/// # Errors
/// [`SpecError`] points at the part of the spec that is wrong.
///
/// ```
/// use policies::{Geometry, LayerClass, Reach, make_policy};
/// let classes = vec![LayerClass { name: "global".into(), layers: 1, reach: Reach::Full, cells: 1024 }];
/// let geometry = Geometry { classes, context_max: 512, batch_max: 64, sequences_max: 4 };
/// assert!(make_policy("paged:32", &geometry).is_ok());
/// let error = make_policy("paged:0", &geometry).err().unwrap();
/// assert_eq!(error.at, 6..7);
/// ```
pub fn make_policy(text: &str, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let (spec, args) = split(text)?;
    (spec.make)(&args, geometry)
}

/// Cells that the policy of a spec hands out as one: its blocks, or single cells.
///
/// # Errors
/// As [`make_policy`].
///
/// ```
/// assert_eq!(policies::block_size("paged:32+prefix").unwrap(), 32);
/// assert_eq!(policies::block_size("ollama-0.6.6").unwrap(), 1);
/// ```
pub fn block_size(text: &str) -> Result<u32, SpecError> {
    check_spec(text)?;
    let (spec, args) = split(text)?;
    let is_block = |knob: &Knob| ["block", "granule"].contains(&knob.name);
    let Some(knob) = spec.knobs.iter().position(is_block) else { return Ok(1) };
    args.number(spec.knobs[knob].name, knob, 1..=u32::MAX, spec.knobs[knob].default.parse().unwrap_or(1))
}

/// Checks a spec without memory for it.
///
/// # Errors
/// As [`make_policy`].
pub fn check_spec(text: &str) -> Result<(), SpecError> {
    let geometry = Geometry { classes: Vec::new(), context_max: 1, batch_max: 1, sequences_max: 1 };
    make_policy(text, &geometry).map(|_| ())
}
