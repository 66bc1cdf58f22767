//! Reads the fields of an object strictly: each key is asked for once, of the right type and within its range; what nobody asked for
//! is an error with the nearest known key.

use super::problem::{Findings, suggestion};
use super::quantity::{parse_duration, parse_quantity};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;
use std::time::Duration;

/// An object being read.
pub struct Fields<'a> {
    path: String,
    map: Option<&'a Map<String, Value>>,
    asked: Vec<&'static str>,
    findings: &'a mut Findings,
}

/// What a value is, for messages.
pub(crate) fn is_a(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl<'a> Fields<'a> {
    /// Reads `value`, which must be an object or absent.
    pub fn new(path: &str, value: Option<&'a Value>, findings: &'a mut Findings) -> Self {
        let map = match value {
            Some(Value::Object(map)) => Some(map),
            None | Some(Value::Null) => None,
            Some(other) => {
                findings.error(path, format!("must be an object, not {}", is_a(other)));
                None
            }
        };
        Self {
            path: path.to_owned(),
            map,
            asked: Vec::new(),
            findings,
        }
    }

    /// Path of a field.
    pub fn at(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Path of the object.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where errors and warnings go.
    pub fn findings(&mut self) -> &mut Findings {
        self.findings
    }

    /// Notes an error about a field.
    pub fn error(&mut self, key: &str, message: impl Into<String>) {
        let path = self.at(key);
        self.findings.error(path, message);
    }

    /// Notes a warning about a field.
    pub fn warn(&mut self, key: &str, message: impl Into<String>) {
        let path = self.at(key);
        self.findings.warn(path, message);
    }

    /// A field as it is; null counts as absent.
    pub fn raw(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.push(key);
        self.map?.get(key).filter(|value| !value.is_null())
    }

    /// Whether a field is there.
    pub fn has(&self, key: &str) -> bool {
        self.map
            .is_some_and(|map| map.get(key).is_some_and(|v| !v.is_null()))
    }

    fn wrong(&mut self, key: &str, must_be: &str, value: &Value) {
        let shown = match value {
            Value::String(text) => format!("the string `{text}`"),
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            other => is_a(other).to_owned(),
        };
        self.error(key, format!("must be {must_be}, not {shown}"));
    }

    /// A string.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        match self.raw(key)? {
            Value::String(text) => Some(text.clone()),
            other => {
                self.wrong(key, "a string", other);
                None
            }
        }
    }

    /// A string that must be there and not be empty.
    pub fn required_text(&mut self, key: &'static str) -> String {
        let there = self.has(key);
        match self.text(key) {
            Some(text) if !text.is_empty() => text,
            Some(_) => {
                self.error(key, "must not be empty");
                String::new()
            }
            None => {
                if !there {
                    self.error(key, "is required");
                }
                String::new()
            }
        }
    }

    /// One of some names.
    pub fn one_of<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&'static str, T)],
        default: T,
    ) -> T {
        let Some(text) = self.text(key) else {
            return default;
        };
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return *value;
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let hint = suggestion(&text, names.iter().copied());
        let known = names.join(", ");
        self.error(key, format!("`{text}` is none of {known}{hint}"));
        default
    }

    /// true or false, if there.
    pub fn flag_if(&mut self, key: &'static str) -> Option<bool> {
        match self.raw(key)? {
            Value::Bool(flag) => Some(*flag),
            other => {
                self.wrong(key, "true or false", other);
                None
            }
        }
    }

    /// true or false.
    pub fn flag(&mut self, key: &'static str, default: bool) -> bool {
        self.flag_if(key).unwrap_or(default)
    }

    /// A number within a range, if there.
    pub fn number_if(&mut self, key: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let value = self.raw(key)?;
        match value.as_f64() {
            Some(number) if range.contains(&number) => Some(number),
            Some(number) => {
                let must_be = in_range(&range);
                self.error(key, format!("must be {must_be}, not {number}"));
                None
            }
            None => {
                self.wrong(key, "a number", value);
                None
            }
        }
    }

    /// A number within a range.
    pub fn number(&mut self, key: &'static str, default: f64, range: RangeInclusive<f64>) -> f64 {
        self.number_if(key, range).unwrap_or(default)
    }

    /// A whole number within a range, if there.
    pub fn whole_if(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.raw(key)?;
        // Some tools write 5.0 for 5.
        let whole = value.as_u64().or_else(|| {
            value
                .as_f64()
                .filter(|n| n.fract() == 0.0 && (0.0..9e15).contains(n))
                .map(|n| n as u64)
        });
        match whole {
            Some(number) if range.contains(&number) => Some(number),
            Some(number) => {
                let (min, max) = (range.start(), range.end());
                let must_be = if *max == u64::MAX {
                    format!("at least {min}")
                } else {
                    format!("{min} to {max}")
                };
                self.error(key, format!("must be {must_be}, not {number}"));
                None
            }
            None => {
                self.wrong(key, "a whole number, 0 or more", value);
                None
            }
        }
    }

    /// A whole number within a range.
    pub fn whole(&mut self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.whole_if(key, range).unwrap_or(default)
    }

    /// A 32-bit whole number with a sign.
    pub fn integer(&mut self, key: &'static str) -> Option<i32> {
        let value = self.raw(key)?;
        match value.as_i64().and_then(|n| i32::try_from(n).ok()) {
            Some(number) => Some(number),
            None => {
                self.wrong(key, "a whole number of 32 bits", value);
                None
            }
        }
    }

    /// A Go duration (`1m30s`, `200ms`).
    pub fn duration(&mut self, key: &'static str) -> Option<Duration> {
        let value = self.raw(key)?;
        match value.as_str().map(parse_duration) {
            Some(Ok(duration)) => Some(duration),
            Some(Err(why)) => {
                self.error(key, why);
                None
            }
            None => {
                self.wrong(key, "a duration such as 1m30s", value);
                None
            }
        }
    }

    /// A Kubernetes quantity (`10Gi`, `1k`, 500), rounded up to a whole number.
    pub fn quantity(&mut self, key: &'static str) -> Option<u64> {
        let value = self.raw(key)?;
        let parsed = match value {
            Value::String(text) => parse_quantity(text),
            Value::Number(number) => parse_quantity(&number.to_string()),
            other => {
                self.wrong(key, "a quantity such as 10Gi or 500", other);
                return None;
            }
        };
        match parsed {
            Ok(quantity) => Some(quantity),
            Err(why) => {
                self.error(key, why);
                None
            }
        }
    }

    /// The items of a list, each with its path.
    pub fn items(&mut self, key: &'static str) -> Vec<(String, &'a Value)> {
        match self.raw(key) {
            None => Vec::new(),
            Some(Value::Array(items)) => items
                .iter()
                .enumerate()
                .map(|(i, item)| (format!("{}[{i}]", self.at(key)), item))
                .collect(),
            Some(other) => {
                self.wrong(key, "a list", other);
                Vec::new()
            }
        }
    }

    /// A list of strings.
    pub fn texts(&mut self, key: &'static str) -> Vec<String> {
        let mut texts = Vec::new();
        for (path, item) in self.items(key) {
            match item {
                Value::String(text) => texts.push(text.clone()),
                other => {
                    let what = is_a(other);
                    self.findings
                        .error(path, format!("must be a string, not {what}"));
                }
            }
        }
        texts
    }

    /// An object inside this one.
    pub fn object<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Fields<'_>) -> T) -> T {
        let value = self.raw(key);
        let path = self.at(key);
        let mut inner = Fields::new(&path, value, self.findings);
        let result = read(&mut inner);
        inner.finish();
        result
    }

    /// The same, if there.
    pub fn object_if<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Fields<'_>) -> T,
    ) -> Option<T> {
        self.raw(key)?;
        Some(self.object(key, read))
    }

    /// Reports every key that nobody asked for.
    pub fn finish(self) {
        let Some(map) = self.map else { return };
        for key in map.keys() {
            if !self.asked.contains(&key.as_str()) {
                let hint = suggestion(key, self.asked.iter().copied());
                let path = self.at(key);
                self.findings.error(path, format!("is not known{hint}"));
            }
        }
    }
}

fn in_range(range: &RangeInclusive<f64>) -> String {
    let (min, max) = (range.start(), range.end());
    match (min.is_finite(), max.is_finite()) {
        (true, true) => format!("{min} to {max}"),
        (true, false) if *max == f64::INFINITY => format!("at least {min}"),
        _ => "a finite number".to_owned(),
    }
}
