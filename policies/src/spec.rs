//! The table of policies, and the short texts that choose one: `paged:32+prefix`.
//!
//! A spec is a name, then arguments after colons, by position or as `knob=value`, then
//! extensions after plus signs, whose own arguments stand in parentheses in the same way:
//! `contiguous:pow2:best`, `defrag:when=step:share=20+shift`, `paged:32+prefix(s3fifo:partial=cow)`.

use std::ops::{Deref, Range, RangeInclusive};

use crate::free::Fit;
use crate::policy::{Geometry, Policy};
use crate::unrotated::Unrotated;
use crate::{
    buddy, clairvoyant, contiguous, defrag, ladder, limit, llama_unified, ollama, paged, radix, scored,
    shared, shift, slab, swa_full, tiered, unlimited, vllm, vmem,
};

/// Every policy. Tests walk it, and `kvlab policies` prints it.
pub const POLICIES: &[Spec] = &[
    contiguous::SPEC,
    buddy::SPEC,
    slab::SPEC,
    paged::SPEC,
    radix::SPEC,
    tiered::SPEC,
    vmem::SPEC,
    shared::SPEC,
    ladder::SPEC,
    vllm::SPEC,
    shift::SPEC,
    defrag::SPEC,
    swa_full::SPEC,
    limit::TRUNCATE,
    limit::RING,
    limit::SINKS,
    scored::HEAVY,
    scored::SNAP,
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
    /// Its arguments by position, then its extensions (`+name`), each followed by its own arguments.
    pub knobs: &'static [Knob],
    pub(crate) make: Make,
}

/// Makes a policy from the arguments of its spec.
type Make = fn(&Args, &Geometry) -> Result<Box<dyn Policy>, SpecError>;

/// One thing that can be set.
pub struct Knob {
    /// Name, with a leading `+` for an extension; `+name(knob)` for a knob in its parentheses.
    pub name: &'static str,
    /// What it means, with its values.
    pub about: &'static str,
    /// Value where nothing is said.
    pub default: &'static str,
}

impl Knob {
    /// The name within the parentheses of an extension, if it belongs there.
    fn of_extension(&self, extension: &str) -> Option<&'static str> {
        self.name.strip_prefix('+')?.strip_prefix(extension)?.strip_prefix('(')?.strip_suffix(')')
    }
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

/// What [`Words::measure`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    Word,
    Percent(u32),
    Number(u32),
}

/// What is set in a spec or in the parentheses of one of its extensions, as a policy asks for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Words<'a> {
    positional: Vec<Arg<'a>>,
    named: Vec<Arg<'a>>,
}

/// The arguments of a spec: its own words, and its extensions with theirs.
pub(crate) struct Args<'a> {
    words: Words<'a>,
    extensions: Vec<(&'a str, Words<'a>)>,
}

impl<'a> Deref for Args<'a> {
    type Target = Words<'a>;

    fn deref(&self) -> &Words<'a> {
        &self.words
    }
}

impl<'a> Args<'a> {
    /// Whether the spec ends in `+name`.
    pub fn has_extension(&self, name: &str) -> bool {
        self.extension(name).is_some()
    }

    /// What stands in the parentheses of `+name(...)`; nothing in it where there are none.
    pub fn extension(&self, name: &str) -> Option<&Words<'a>> {
        self.extensions.iter().find(|(extension, _)| *extension == name).map(|(_, words)| words)
    }
}

impl<'a> Words<'a> {
    fn find(&self, name: &str, position: usize) -> Option<&Arg<'_>> {
        self.named.iter().find(|arg| arg.key == Some(name)).or_else(|| self.positional.get(position))
    }

    /// Takes a word in, if the knobs that stand for it allow it. `of` is whose knobs they are.
    fn push(&mut self, of: &str, knobs: &[&str], word: &'a str, at: Range<usize>) -> Result<(), SpecError> {
        let fault = |message: String| Err(SpecError { at: at.clone(), message });
        if let Some((key, value)) = word.split_once('=') {
            if !knobs.contains(&key) {
                return fault(format!("{of} has no knob {key:?}, expected {}", list(knobs)));
            }
            if self.named.iter().any(|arg| arg.key == Some(key)) {
                return fault(format!("{key} is set twice"));
            }
            self.named.push(Arg { key: Some(key), value, at });
        } else {
            if self.positional.len() == knobs.len() {
                return fault(format!("unexpected {word:?}; the knobs of {of} are {}", list(knobs)));
            }
            self.positional.push(Arg { key: None, value: word, at });
        }
        Ok(())
    }

    /// Refuses what is set by its position and by its name.
    fn check(&self, knobs: &[&str]) -> Result<(), SpecError> {
        for (knob, arg) in knobs.iter().zip(&self.positional) {
            if self.named.iter().any(|named| named.key == Some(knob)) {
                return Err(SpecError { at: arg.at.clone(), message: format!("{knob} is set twice") });
            }
        }
        Ok(())
    }

    /// Refuses whatever is set, and says why.
    pub fn refuse(&self, why: &str) -> Result<(), SpecError> {
        match self.positional.first().or(self.named.first()) {
            None => Ok(()),
            Some(arg) => Err(SpecError { at: arg.at.clone(), message: why.to_owned() }),
        }
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

    /// An odd number in a range.
    pub fn odd(
        &self,
        name: &str,
        position: usize,
        range: RangeInclusive<u32>,
        default: u32,
    ) -> Result<u32, SpecError> {
        let number = self.number(name, position, range, default)?;
        match self.find(name, position) {
            Some(arg) if number % 2 == 0 => Err(SpecError {
                at: arg.at.clone(),
                message: format!("{name} is {:?}, expected an odd number", arg.value),
            }),
            _ => Ok(number),
        }
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

    /// A word, a share from 1 to 99 per cent with its sign, or a whole number from 1 up.
    pub fn measure(&self, name: &str, position: usize, word: &str) -> Result<Option<Measure>, SpecError> {
        let Some(arg) = self.find(name, position) else { return Ok(None) };
        let number = |text: &str, most| text.parse().ok().filter(|number| (1..=most).contains(number));
        let measure = match arg.value.strip_suffix('%') {
            _ if arg.value == word => Some(Measure::Word),
            Some(percent) => number(percent, 99).map(Measure::Percent),
            None => number(arg.value, u32::MAX).map(Measure::Number),
        };
        let message =
            || format!("{name} is {:?}, expected {word}, 1% to 99%, or a whole number from 1 up", arg.value);
        measure.map(Some).ok_or_else(|| SpecError { at: arg.at.clone(), message: message() })
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
}

/// Names of knobs, for people.
fn list(knobs: &[&str]) -> String {
    if knobs.is_empty() { "nothing".to_owned() } else { knobs.join(", ") }
}

/// Splits off the next piece of a spec, up to a separator that no parenthesis encloses.
fn piece(text: &str, from: usize) -> Range<usize> {
    let mut depth = 0_usize;
    let len = text[from..].find(|c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && (c == ':' || c == '+')
    });
    from..len.map_or(text.len(), |len| from + len)
}

/// Reads `name` or `name(word:knob=value)`, of which `at` are the bytes.
fn extension<'a>(text: &'a str, at: Range<usize>, spec: &Spec) -> Result<(&'a str, Words<'a>), SpecError> {
    let open = text[at.clone()].find('(').map(|open| at.start + open);
    let name_at = at.start..open.unwrap_or(at.end);
    let name = &text[name_at.clone()];
    if !spec.knobs.iter().any(|knob| knob.name.strip_prefix('+') == Some(name)) {
        let known = spec.knobs.iter().map(|knob| knob.name);
        let known: Vec<&str> = known.filter(|name| name.starts_with('+') && !name.contains('(')).collect();
        let message = format!("{} has no extension {name:?}, expected {}", spec.name, list(&known));
        return Err(SpecError { at: name_at, message });
    }
    let mut words = Words::default();
    let Some(open) = open else { return Ok((name, words)) };
    if at.end == open + 1 || !text[at.clone()].ends_with(')') {
        let message = "the parenthesis is not closed at the end of the extension".to_owned();
        return Err(SpecError { at: open..at.end, message });
    }
    let inner = spec.knobs.iter().filter_map(|knob| knob.of_extension(name));
    let inner: Vec<&str> = inner.collect();
    let of = format!("+{name}");
    let (mut start, end) = (open + 1, at.end - 1);
    loop {
        let word_end = text[start..end].find(':').map_or(end, |len| start + len);
        words.push(&of, &inner, &text[start..word_end], start..word_end)?;
        if word_end == end {
            break;
        }
        start = word_end + 1;
    }
    words.check(&inner)?;
    Ok((name, words))
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
    let settings = spec.knobs.iter().map(|knob| knob.name);
    let settings: Vec<&str> = settings.filter(|name| !name.starts_with('+')).collect();
    let mut args = Args { words: Words::default(), extensions: Vec::new() };
    let mut end = name_at.end;
    while end < text.len() {
        let separator = text.as_bytes()[end];
        let at = piece(text, end + 1);
        end = at.end;
        let word = &text[at.clone()];
        if separator == b'+' {
            let (extension, words) = extension(text, at.clone(), spec)?;
            if args.has_extension(extension) {
                return Err(SpecError { at, message: format!("+{extension} is set twice") });
            }
            args.extensions.push((extension, words));
        } else if !args.extensions.is_empty() && !word.contains('=') {
            let message = format!("unexpected {word:?}; the knobs of {name} are {}", list(&settings));
            return Err(SpecError { at, message });
        } else {
            args.words.push(name, &settings, word, at)?;
        }
    }
    args.words.check(&settings)?;
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
    let policy = (spec.make)(&args, geometry)?;
    Ok(if args.has_extension("unrotated") { Unrotated::over(policy) } else { policy })
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

/// Tokens that the policy of a spec leaves of a sequence once its prompt has been computed, where it has a
/// budget for it.
///
/// # Errors
/// As [`make_policy`].
///
/// ```
/// assert_eq!(policies::budget("snap:512:window=16").unwrap(), Some(512));
/// assert_eq!(policies::budget("ring").unwrap(), None);
/// ```
pub fn budget(text: &str) -> Result<Option<u32>, SpecError> {
    check_spec(text)?;
    let (spec, args) = split(text)?;
    let Some(knob) = spec.knobs.iter().position(|knob| knob.name == "budget") else { return Ok(None) };
    let default = spec.knobs[knob].default.parse().unwrap_or(u32::MAX);
    args.number("budget", knob, 0..=u32::MAX, default).map(Some)
}

/// Whether whoever stores K for the policy of a spec stores it before its rotation
/// ([`Policy::rotates_on_read`]).
///
/// # Errors
/// As [`make_policy`].
///
/// ```
/// assert!(policies::rotates_on_read("sinks:4+unrotated").unwrap());
/// ```
pub fn rotates_on_read(text: &str) -> Result<bool, SpecError> {
    make_for_nobody(text).map(|policy| policy.rotates_on_read())
}

/// Checks a spec without memory for it.
///
/// # Errors
/// As [`make_policy`].
pub fn check_spec(text: &str) -> Result<(), SpecError> {
    make_for_nobody(text).map(|_| ())
}

fn make_for_nobody(text: &str) -> Result<Box<dyn Policy>, SpecError> {
    let geometry = Geometry { classes: Vec::new(), context_max: 1, batch_max: 1, sequences_max: 1 };
    make_policy(text, &geometry)
}
