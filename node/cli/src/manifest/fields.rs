//! Strict reading of an object: each field is taken with its type, what is left over is an error with a suggestion.

use std::collections::{BTreeMap, HashMap};

use prost_types::Duration;

use super::{
    Problem, duration,
    node::{Node, Value},
};

/// What was found while a file was read.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    /// Line of each field of the document that is being read, by path.
    pub lines: HashMap<String, u64>,
}

impl Findings {
    pub fn problem(&mut self, line: u64, path: &str, message: impl Into<String>) {
        self.problems.push(Problem {
            line,
            path: path.to_owned(),
            message: message.into(),
        });
    }

    /// Remembers the line of every field in a value that is handed on as it is.
    pub fn keep_lines(&mut self, node: &Node, path: &str) {
        match &node.value {
            Value::Map(entries) => {
                for (key, node) in entries {
                    let path = format!("{path}.{}", key.name);
                    self.lines.insert(path.clone(), key.line);
                    self.keep_lines(node, &path);
                }
            }
            Value::Seq(items) => {
                for (i, node) in items.iter().enumerate() {
                    let path = format!("{path}[{i}]");
                    self.lines.insert(path.clone(), node.line);
                    self.keep_lines(node, &path);
                }
            }
            _ => {}
        }
    }

    pub fn warning(&mut self, line: u64, path: &str, message: impl Into<String>) {
        self.warnings.push(Problem {
            line,
            path: path.to_owned(),
            message: message.into(),
        });
    }
}

/// An object that is being read.
pub(super) struct Fields<'n, 'f> {
    path: String,
    line: u64,
    /// Fields that were not asked for yet.
    left: Vec<(&'n str, u64, &'n Node)>,
    /// Names that were asked for.
    known: Vec<&'static str>,
    pub findings: &'f mut Findings,
}

impl<'n, 'f> Fields<'n, 'f> {
    /// None, and a problem, if the value is no object.
    pub fn of(node: &'n Node, path: &str, findings: &'f mut Findings) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            findings.problem(
                node.line,
                path,
                format!("must be an object, not {}", node.value.is_a()),
            );
            return None;
        };
        let left = entries
            .iter()
            .map(|(key, node)| (key.name.as_str(), key.line, node))
            .collect();
        Some(Self {
            path: path.to_owned(),
            line: node.line,
            left,
            known: Vec::new(),
            findings,
        })
    }

    /// The path of a field of this object.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// Takes a field, if it is there.
    pub fn take_any(&mut self, name: &'static str) -> Option<&'n Node> {
        self.known.push(name);
        let at = self.left.iter().position(|(key, ..)| *key == name)?;
        let (_, line, node) = self.left.swap_remove(at);
        let path = self.path_of(name);
        self.findings.lines.insert(path, line);
        Some(node)
    }

    /// Takes a field, if it is there and not null.
    pub fn take(&mut self, name: &'static str) -> Option<&'n Node> {
        self.take_any(name)
            .filter(|node| !matches!(node.value, Value::Null))
    }

    /// A problem with a field of this object.
    pub fn problem(&mut self, line: u64, name: &str, message: impl Into<String>) {
        let path = self.path_of(name);
        self.findings.problem(line, &path, message);
    }

    /// A problem that a required field is missing.
    pub fn missing(&mut self, name: &str) {
        let line = self.line;
        self.problem(line, name, "is missing");
    }

    /// A string.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        let node = self.take(name)?;
        match &node.value {
            Value::Text(text) => Some(text.clone()),
            other => {
                let hint = if matches!(other, Value::Bool(_) | Value::Int(_) | Value::Float(_)) {
                    ": put it in quotes"
                } else {
                    ""
                };
                self.problem(
                    node.line,
                    name,
                    format!("must be a string, not {}{hint}", other.is_a()),
                );
                None
            }
        }
    }

    /// A string that must be there and not be empty.
    pub fn required_text(&mut self, name: &'static str) -> Option<String> {
        let before = self.findings.problems.len();
        let text = self.text(name).filter(|text| !text.is_empty());
        if text.is_none() && self.findings.problems.len() == before {
            self.missing(name);
        }
        text
    }

    /// A boolean.
    pub fn flag(&mut self, name: &'static str) -> Option<bool> {
        let node = self.take(name)?;
        match &node.value {
            Value::Bool(flag) => Some(*flag),
            other => {
                self.problem(
                    node.line,
                    name,
                    format!("must be true or false, not {}", other.is_a()),
                );
                None
            }
        }
    }

    /// A whole number from `min` to `max`.
    pub fn number(&mut self, name: &'static str, min: u64, max: u64) -> Option<u64> {
        let node = self.take(name)?;
        let path = self.path_of(name);
        number(node, &path, min, max, self.findings)
    }

    /// A whole number of 32 bits.
    pub fn count(&mut self, name: &'static str) -> Option<u32> {
        self.number(name, 0, u32::MAX.into())
            .and_then(|n| u32::try_from(n).ok())
    }

    /// A whole number of 32 bits that may be negative.
    pub fn signed(&mut self, name: &'static str) -> Option<i32> {
        let node = self.take(name)?;
        let range = format!("must be a whole number from {} to {}", i32::MIN, i32::MAX);
        match &node.value {
            Value::Int(number) => match i32::try_from(*number) {
                Ok(number) => return Some(number),
                Err(_) => self.problem(node.line, name, format!("{range}, not {number}")),
            },
            other => self.problem(node.line, name, format!("{range}, not {}", other.is_a())),
        }
        None
    }

    /// A number that need not be whole.
    pub fn fraction(&mut self, name: &'static str) -> Option<f64> {
        let node = self.take(name)?;
        match &node.value {
            Value::Float(number) if number.is_finite() => Some(*number),
            Value::Int(number) => Some(*number as f64),
            other => {
                self.problem(
                    node.line,
                    name,
                    format!("must be a number, not {}", other.is_a()),
                );
                None
            }
        }
    }

    /// A port.
    pub fn port(&mut self, name: &'static str) -> Option<u32> {
        self.number(name, 1, 65535)
            .and_then(|n| u32::try_from(n).ok())
    }

    /// A duration.
    pub fn duration(&mut self, name: &'static str) -> Option<Duration> {
        let node = self.take(name)?;
        let read = match &node.value {
            Value::Text(text) => duration::parse(text),
            Value::Int(0) => Ok(Duration::default()),
            Value::Int(n) => duration::parse(&n.to_string()),
            other => Err(format!(
                "must be a duration such as 2s, not {}",
                other.is_a()
            )),
        };
        read.map_err(|message| self.problem(node.line, name, message))
            .ok()
    }

    /// An object of strings.
    pub fn strings(&mut self, name: &'static str) -> BTreeMap<String, String> {
        let Some(node) = self.take(name) else {
            return BTreeMap::new();
        };
        let path = self.path_of(name);
        string_map(node, &path, self.findings)
    }

    /// A list; null entries and other types are the reader's business.
    pub fn list(&mut self, name: &'static str) -> &'n [Node] {
        let Some(node) = self.take(name) else {
            return &[];
        };
        match &node.value {
            Value::Seq(items) => items,
            other => {
                self.problem(
                    node.line,
                    name,
                    format!("must be a list, not {}", other.is_a()),
                );
                &[]
            }
        }
    }

    /// A list of strings.
    pub fn texts(&mut self, name: &'static str) -> Vec<String> {
        let mut texts = Vec::new();
        for (i, item) in self.list(name).iter().enumerate() {
            match &item.value {
                Value::Text(text) => texts.push(text.clone()),
                other => {
                    self.problem(
                        item.line,
                        &format!("{name}[{i}]"),
                        format!("must be a string, not {}", other.is_a()),
                    );
                }
            }
        }
        texts
    }

    /// An object that is read by `read`.
    pub fn section<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Fields<'n, '_>) -> T,
    ) -> Option<T> {
        let node = self.take(name)?;
        let path = self.path_of(name);
        let mut fields = Fields::of(node, &path, self.findings)?;
        let value = read(&mut fields);
        fields.close();
        Some(value)
    }

    /// A list of objects, each read by `read`.
    pub fn sections<T>(
        &mut self,
        name: &'static str,
        read: impl Fn(&mut Fields<'n, '_>) -> T,
    ) -> Vec<T> {
        let path = self.path_of(name);
        let mut values = Vec::new();
        for (i, item) in self.list(name).iter().enumerate() {
            if let Some(mut inner) = Fields::of(item, &format!("{path}[{i}]"), self.findings) {
                values.push(read(&mut inner));
                inner.close();
            }
        }
        values
    }

    /// One of the given words.
    pub fn choice<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(name)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let list = words
            .iter()
            .map(|(word, _)| *word)
            .collect::<Vec<_>>()
            .join(", ");
        let line = self.line_of(name);
        let hint = suggestion(&text, words.iter().map(|(word, _)| *word));
        self.problem(line, name, format!("{text:?} is none of {list}{hint}"));
        None
    }

    /// Line of a field that was taken, else of the object.
    pub fn line_of(&self, name: &str) -> u64 {
        self.findings
            .lines
            .get(&self.path_of(name))
            .copied()
            .unwrap_or(self.line)
    }

    /// The fields that nobody asked for, in file order.
    pub fn leftovers(&mut self) -> Vec<(&'n str, u64)> {
        let mut left: Vec<_> = self
            .left
            .drain(..)
            .map(|(name, line, _)| (name, line))
            .collect();
        left.sort_by_key(|(_, line)| *line);
        left
    }

    /// Makes a problem of each field that nobody asked for.
    pub fn close(mut self) {
        for (name, line) in self.leftovers() {
            let hint = suggestion(name, self.known.iter().copied());
            self.problem(line, name, format!("unknown field{hint}"));
        }
    }

    /// `, did you mean ...?`, if a field that was asked for has a name like this one.
    pub fn hint(&self, name: &str) -> String {
        suggestion(name, self.known.iter().copied())
    }
}

pub(super) fn number(
    node: &Node,
    path: &str,
    min: u64,
    max: u64,
    findings: &mut Findings,
) -> Option<u64> {
    let range = format!("must be a whole number from {min} to {max}");
    match &node.value {
        Value::Int(number) => match u64::try_from(*number)
            .ok()
            .filter(|n| (min..=max).contains(n))
        {
            Some(number) => return Some(number),
            None => findings.problem(node.line, path, format!("{range}, not {number}")),
        },
        Value::Text(text) if text.parse::<u64>().is_ok() => {
            findings.problem(node.line, path, format!("{range}: take the quotes off"));
        }
        other => findings.problem(node.line, path, format!("{range}, not {}", other.is_a())),
    }
    None
}

pub(super) fn string_map(
    node: &Node,
    path: &str,
    findings: &mut Findings,
) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    let Value::Map(entries) = &node.value else {
        findings.problem(
            node.line,
            path,
            format!("must be an object of strings, not {}", node.value.is_a()),
        );
        return map;
    };
    for (key, value) in entries {
        match &value.value {
            Value::Text(text) => {
                map.insert(key.name.clone(), text.clone());
            }
            other => {
                let message = format!("must be a string, not {}: put it in quotes", other.is_a());
                findings.problem(value.line, &format!("{path}.{}", key.name), message);
            }
        }
    }
    map
}

/// `, did you mean ...?`, if one of the words is like this one.
pub(crate) fn suggestion<'w>(wrong: &str, words: impl IntoIterator<Item = &'w str>) -> String {
    let plain = |s: &str| s.to_lowercase().replace(['_', '-'], "");
    let wrong = plain(wrong);
    words
        .into_iter()
        .map(|word| (strsim::jaro_winkler(&wrong, &plain(word)), word))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, word)| format!(", did you mean {word:?}?"))
}
