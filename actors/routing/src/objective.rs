//! Who a request belongs to and how important it is: objectives (name to priority) and fairness ids.

use http::{HeaderMap, HeaderName};
use std::collections::HashMap;

/// Fairness id of a request that names none and of which none can be derived.
pub const DEFAULT_FLOW: &str = "default-flow";
/// Longest fairness id, session id or objective name that is taken from a header, in bytes.
pub const MAX_ID: usize = 256;

/// The objectives of a pool: what the objective header may name, and the priority it stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objectives(HashMap<Box<str>, i32>);

impl Objectives {
    /// The priority of an objective. A request that names none, or one that does not exist, has priority 0.
    pub fn priority(&self, name: Option<&str>) -> i32 {
        name.and_then(|name| self.0.get(name)).copied().unwrap_or(0)
    }

    /// Every priority that an objective has, lowest first, each once: flow control has a band for each.
    pub fn priorities(&self) -> Vec<i32> {
        let mut all: Vec<i32> = self.0.values().copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// No objective is declared.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: Into<Box<str>>> FromIterator<(N, i32)> for Objectives {
    /// The last of several objectives with the same name counts.
    fn from_iter<I: IntoIterator<Item = (N, i32)>>(objectives: I) -> Self {
        Self(
            objectives
                .into_iter()
                .map(|(name, priority)| (name.into(), priority))
                .collect(),
        )
    }
}

/// Derives a fairness id from the header in which an agent names its session (the `agent-identity` plugin).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentIdentity {
    headers: Vec<HeaderName>,
}

impl Default for AgentIdentity {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl AgentIdentity {
    /// Session headers of known agents, in the order in which they are looked for.
    const KNOWN: [&'static str; 4] = [
        "x-claude-code-session-id",
        "x-session-affinity",
        "session-id",
        "session_id",
    ];

    /// `additional` headers are looked for before the known ones.
    pub fn new(additional: Vec<HeaderName>) -> Self {
        let mut headers = additional;
        headers.extend(Self::KNOWN.map(HeaderName::from_static));
        Self { headers }
    }

    /// The first of the headers that has a usable value.
    pub fn of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        self.headers.iter().find_map(|name| id(headers, name))
    }
}

/// A header's value if it can serve as an id: not empty, visible ASCII, at most [`MAX_ID`] bytes.
pub fn id<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(usable)
}

/// See [`id`].
pub fn usable(value: &http::HeaderValue) -> Option<&str> {
    let text = value.to_str().ok()?.trim();
    (!text.is_empty() && text.len() <= MAX_ID).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn names_stand_for_priorities() {
        let objectives: Objectives = [("batch", -5), ("chat", 10), ("batch", -7), ("other", 10)]
            .into_iter()
            .collect();
        assert_eq!(objectives.priority(Some("batch")), -7);
        assert_eq!(objectives.priority(Some("chat")), 10);
        assert_eq!(objectives.priority(Some("unheard-of")), 0);
        assert_eq!(objectives.priority(None), 0);
        assert_eq!(objectives.priorities(), [-7, 10]);
    }

    #[test]
    fn the_first_usable_session_header_counts() {
        let mut headers = HeaderMap::new();
        let plain = AgentIdentity::default();
        assert_eq!(plain.of(&headers), None);
        headers.insert("session_id", HeaderValue::from_static("four"));
        headers.insert("x-session-affinity", HeaderValue::from_static(" "));
        headers.insert("session-id", HeaderValue::from_static("three"));
        headers.insert("x-agent", HeaderValue::from_static("mine"));
        assert_eq!(plain.of(&headers), Some("three"));
        let more = AgentIdentity::new(vec![HeaderName::from_static("x-agent")]);
        assert_eq!(more.of(&headers), Some("mine"));
        let long = HeaderValue::from_str(&"x".repeat(MAX_ID + 1)).unwrap();
        headers.insert("x-agent", long);
        assert_eq!(more.of(&headers), Some("three"));
    }
}
