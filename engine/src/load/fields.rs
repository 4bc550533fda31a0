//! Fields of a JSON object, with messages that name the key.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::EngineError;
use crate::load::wrong;

/// An object in a file; `null` counts as absent, as it does for transformers.
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// Keys that lead to it, each with a dot after it.
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub fn new(path: &'a Path, value: &'a Value) -> Result<Fields<'a>, EngineError> {
        let map = value.as_object().ok_or_else(|| wrong(path, "expected a JSON object"))?;
        Ok(Fields { path, prefix: String::new(), map })
    }

    /// An error about a key.
    pub fn wrong(&self, key: &str, what: impl AsRef<str>) -> EngineError {
        wrong(self.path, format!("{}{key}: {}", self.prefix, what.as_ref()))
    }

    pub fn keys(&self) -> impl Iterator<Item = &'a String> {
        self.map.keys()
    }

    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn expected<T>(
        &self,
        key: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, EngineError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let mut found = value.to_string();
        if let Some((at, _)) = found.char_indices().nth(40) {
            found.truncate(at);
            found.push_str("...");
        }
        let read = read(value).ok_or_else(|| self.wrong(key, format!("expected {what}, found {found}")))?;
        Ok(Some(read))
    }

    pub fn count(&self, key: &str) -> Result<Option<usize>, EngineError> {
        // Larger sizes are no model's; below it no product of two of them overflows.
        let count =
            |value: &Value| value.as_u64().filter(|&count| count < 1 << 31).map(|count| count as usize);
        self.expected(key, "a whole number below 2^31", count)
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>, EngineError> {
        self.expected(key, "a number", Value::as_f64)
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, EngineError> {
        self.expected(key, "true or false", Value::as_bool)
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, EngineError> {
        self.expected(key, "a text", Value::as_str)
    }

    pub fn list(&self, key: &str) -> Result<Option<&'a [Value]>, EngineError> {
        self.expected(key, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>, EngineError> {
        let map = self.expected(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Fields { path: self.path, prefix: format!("{}{key}.", self.prefix), map }))
    }

    /// One token or a list of them.
    pub fn tokens(&self, key: &str) -> Result<Vec<u32>, EngineError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = |value: &'a Value| match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        Ok(self.expected(key, "a token or a list of tokens", ids)?.unwrap_or_default())
    }
}
