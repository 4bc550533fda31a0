//! Values of fields: whole numbers and times, read without floats, each with its bounds.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{Bad, shortened};

/// Most tokens in one prompt or one answer: a hundred times the longest context in use.
pub const TOKENS_MAX: u32 = 100_000_000;

/// Latest time in a trace, in nanoseconds: 9 * 10^18, or 285 years.
pub const TIME_NS_MAX: u64 = 9_000_000_000_000_000_000;

/// Seconds to nanoseconds.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// A whole number written in decimal digits.
pub(crate) fn whole(field: &'static str, text: &str) -> Result<u64, Bad> {
    digits(text.as_bytes()).ok_or_else(|| Bad::new(field, text, "a whole number"))
}

/// Tokens of a prompt or an answer, from the text of a CSV field.
pub(crate) fn tokens(field: &'static str, text: &str) -> Result<u32, Bad> {
    digits(text.as_bytes()).and_then(in_token_range).ok_or_else(|| Bad::new(field, text, tokens_expected()))
}

/// Tokens of a prompt or an answer, from a number.
pub(crate) fn in_token_range(count: u64) -> Option<u32> {
    u32::try_from(count).ok().filter(|count| (1..=TOKENS_MAX).contains(count))
}

pub(crate) fn tokens_expected() -> String {
    format!("a whole number of tokens from 1 to {TOKENS_MAX}")
}

/// Decimal digits only; none for an empty text, a sign, or more than a `u64` holds.
pub(crate) fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Seconds with or without decimals as nanoseconds; digits after the ninth round half up.
pub(crate) fn time(field: &'static str, text: &str) -> Result<u64, Bad> {
    decimal_seconds(text).ok_or_else(|| Bad::new(field, text, time_expected()))
}

pub(crate) fn time_expected() -> &'static str {
    "seconds from 0 to 9000000000, like 12.5"
}

fn decimal_seconds(text: &str) -> Option<u64> {
    let (seconds, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let ns = digits(seconds.as_bytes())?.checked_mul(SECOND)?;
    ns.checked_add(fraction_ns(decimals.as_bytes())?).filter(|ns| *ns <= TIME_NS_MAX)
}

/// The digits after the point of a number of seconds, as nanoseconds.
pub(crate) fn fraction_ns(decimals: &[u8]) -> Option<u64> {
    if decimals.is_empty() || !decimals.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let kept = &decimals[..decimals.len().min(9)];
    let round_up = decimals.get(9).is_some_and(|digit| *digit >= b'5');
    let scale = 10u64.pow(9 - kept.len() as u32);
    Some(digits(kept)? * scale + u64::from(round_up))
}

/// Finite seconds from 0 on, as nanoseconds.
pub(crate) fn float_seconds(seconds: f64) -> Option<u64> {
    let ns = seconds * SECOND as f64;
    (0.0..=TIME_NS_MAX as f64).contains(&ns).then_some(ns.round() as u64)
}

/// A JSON value of any kind, kept as it was written so that an error can name the field and
/// what stands there.
#[derive(Clone, Debug)]
pub(crate) enum Scalar<'a> {
    Count(u64),
    Float(f64),
    Text(Cow<'a, str>),
    Other(String),
}

impl Scalar<'_> {
    pub(crate) fn count(field: &str, value: Option<&Self>) -> Result<u64, Bad> {
        match value {
            Some(Scalar::Count(count)) => Ok(*count),
            other => Err(Bad::new(field, found(other), "a whole number")),
        }
    }

    pub(crate) fn tokens(field: &str, value: Option<&Self>) -> Result<u32, Bad> {
        match value {
            Some(Scalar::Count(count)) => in_token_range(*count),
            _ => None,
        }
        .ok_or_else(|| Bad::new(field, found(value), tokens_expected()))
    }

    /// Nanoseconds from seconds; none where the field is missing.
    pub(crate) fn seconds(field: &str, value: Option<&Self>) -> Result<Option<u64>, Bad> {
        let ns = match value {
            None => return Ok(None),
            Some(Scalar::Count(seconds)) => seconds.checked_mul(SECOND).filter(|ns| *ns <= TIME_NS_MAX),
            Some(Scalar::Float(seconds)) => float_seconds(*seconds),
            Some(_) => None,
        };
        ns.map(Some).ok_or_else(|| Bad::new(field, found(value), time_expected()))
    }
}

/// The text of a value for an error.
pub(crate) fn found(value: Option<&Scalar<'_>>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Scalar::Count(count)) => count.to_string(),
        Some(Scalar::Float(float)) => float.to_string(),
        Some(Scalar::Text(text)) => shortened(text),
        Some(Scalar::Other(text)) => text.clone(),
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Scalar::Count(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(u64::try_from(value).map_or(Scalar::Other(value.to_string()), Scalar::Count))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Scalar::Float(value))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Scalar::Other(value.to_string()))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Scalar::Other("null".to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other("a list".to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other("an object".to_owned()))
    }
}
