//! A value of a setting, which knows where it stands, so that a complaint can point at it.

use std::ops::Range;
use std::str::FromStr;

use crate::trouble::{Source, Trouble, usage};

/// A value, and where it stands.
#[derive(Clone, Debug)]
pub struct Value {
    /// The text.
    pub text: String,
    pub(super) source: Source,
    pub(super) at: Range<usize>,
}

impl Value {
    /// A text that is a source of its own.
    pub(super) fn whole(source: &str, text: String) -> Value {
        let at = 0..text.len();
        Value { source: Source::new(source.to_owned(), text.clone()), text, at }
    }

    /// A complaint that points at the value.
    pub fn wrong(&self, message: impl Into<String>) -> Trouble {
        usage(self.source.point(self.at.clone(), &message.into()))
    }

    /// A complaint that points at a part of the value.
    pub fn wrong_at(&self, part: Range<usize>, message: impl Into<String>) -> Trouble {
        let start = self.at.start + part.start;
        usage(self.source.point(start..(self.at.start + part.end).max(start), &message.into()))
    }

    /// The value as a `T`, or a complaint that names what was expected.
    pub fn parse<T: FromStr>(&self, expected: &str) -> Result<T, Trouble> {
        self.text.trim().parse().map_err(|_| self.wrong(format!("{:?} is not {expected}", self.text)))
    }
}
