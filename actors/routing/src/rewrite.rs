//! Model rewrites: which model an engine is asked for when a client asks for another name (aliases, canaries, adapters).
//!
//! Semantics are those of llm-d's `InferenceModelRewrite`: a rule whose match names the request's model goes before a rule
//! without matches; among equals the older object, then the order in the list; a rule with several targets draws one by
//! weight. Beside that, a rewrite may be sticky: requests of one session then get the same target for as long as the
//! weights stay, and a changed weight moves only as many sessions as it must.

use std::collections::HashMap;
use std::sync::Arc;

/// Largest weight of a target.
pub const MAX_WEIGHT: u32 = 1_000_000;

/// A model that requests are sent to, and its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteTarget {
    /// Name that the engine is asked for.
    pub model: Arc<str>,
    /// Share relative to the rule's other targets, 1 to [`MAX_WEIGHT`]. If no target of a rule has one, all have the same; if
    /// only some have one, the others get nothing.
    pub weight: Option<u32>,
}

/// One rule of a rewrite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RewriteRule {
    /// Model names that it holds for; empty: every request, also one without a model.
    pub models: Vec<String>,
    /// At least one.
    pub targets: Vec<RewriteTarget>,
}

/// One rewrite object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelRewrite {
    /// Name of the object; label of its metric.
    pub name: Arc<str>,
    /// Requests of one session get the same target.
    pub sticky: bool,
    /// In order of precedence.
    pub rules: Vec<RewriteRule>,
}

/// A rewrite that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// Nothing to choose from. The number is the rule's index.
    #[error("rules[{0}].targets: needs at least one target")]
    NoTargets(usize),
    /// A target without a name. Indices of rule and target.
    #[error("rules[{0}].targets[{1}].modelRewrite: must not be empty")]
    NoModel(usize, usize),
    /// Indices of rule and target, and the weight.
    #[error("rules[{0}].targets[{1}].weight: must be from 1 to {MAX_WEIGHT}, not {2}")]
    Weight(usize, usize, u32),
    /// An empty name matches no request. Indices of rule and match.
    #[error("rules[{0}].matches[{1}].model.value: must not be empty")]
    NoMatch(usize, usize),
}

impl ModelRewrite {
    /// Checks it as a whole. Returns what is allowed but hardly meant.
    ///
    /// # Errors
    /// The first thing that cannot be used.
    pub fn check(&self) -> Result<Vec<String>, RewriteError> {
        let mut warnings = Vec::new();
        for (r, rule) in self.rules.iter().enumerate() {
            if rule.targets.is_empty() {
                return Err(RewriteError::NoTargets(r));
            }
            if let Some(m) = rule.models.iter().position(String::is_empty) {
                return Err(RewriteError::NoMatch(r, m));
            }
            for (t, target) in rule.targets.iter().enumerate() {
                match target.weight {
                    _ if target.model.is_empty() => return Err(RewriteError::NoModel(r, t)),
                    Some(w) if w == 0 || w > MAX_WEIGHT => {
                        return Err(RewriteError::Weight(r, t, w));
                    }
                    _ => {}
                }
            }
            let weighted = rule.targets.iter().filter(|t| t.weight.is_some()).count();
            if weighted != 0 && weighted != rule.targets.len() {
                warnings.push(format!(
                    "rules[{r}].targets: only {weighted} of {} have a weight; the others are never chosen",
                    rule.targets.len()
                ));
            }
        }
        Ok(warnings)
    }
}

/// All rewrites of a pool, ready to be asked.
#[derive(Debug, Default)]
pub struct ModelRewrites {
    rewrites: Vec<ModelRewrite>,
    /// Request model -> (rewrite, rule).
    exact: HashMap<String, (usize, usize)>,
    generic: Option<(usize, usize)>,
}

/// What a request's model becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewritten<'a> {
    /// The rewrite object that says so.
    pub rewrite: &'a Arc<str>,
    /// The model to ask for; may be the same as before.
    pub model: &'a Arc<str>,
}

impl ModelRewrites {
    /// `rewrites` with the oldest object first. Those that [`ModelRewrite::check`] refuses should not be passed; a rule without
    /// targets never holds.
    pub fn new(rewrites: Vec<ModelRewrite>) -> Self {
        let mut exact = HashMap::new();
        let mut generic = None;
        for (i, rewrite) in rewrites.iter().enumerate() {
            for (j, rule) in rewrite.rules.iter().enumerate() {
                if rule.targets.is_empty() {
                    continue;
                }
                if rule.models.is_empty() {
                    generic.get_or_insert((i, j));
                }
                for model in &rule.models {
                    exact.entry(model.clone()).or_insert((i, j));
                }
            }
        }
        Self {
            rewrites,
            exact,
            generic,
        }
    }

    /// There is no rule.
    pub fn is_empty(&self) -> bool {
        self.generic.is_none() && self.exact.is_empty()
    }

    /// There is a rule for every request, also one without a model.
    pub fn has_generic(&self) -> bool {
        self.generic.is_some()
    }

    /// The model names that rules match.
    pub fn matched(&self) -> impl Iterator<Item = &str> {
        self.exact.keys().map(String::as_str)
    }

    /// Every model that a rule may send requests to; may repeat.
    pub fn targets(&self) -> impl Iterator<Item = &Arc<str>> {
        self.rewrites
            .iter()
            .flat_map(|rewrite| &rewrite.rules)
            .flat_map(|rule| &rule.targets)
            .map(|target| &target.model)
    }

    /// What a request for `model` (empty: none) is rewritten to; `None`: no rule holds. `session` is what a sticky rewrite sticks
    /// to; `random` draws the target otherwise.
    pub fn decide(&self, model: &str, session: Option<&str>, random: u64) -> Option<Rewritten<'_>> {
        let (i, j) = self.exact.get(model).copied().or(self.generic)?;
        let rewrite = self.rewrites.get(i)?;
        let targets = &rewrite.rules.get(j)?.targets;
        let target = match session {
            Some(session) if rewrite.sticky && targets.len() > 1 => stick(targets, session),
            _ => draw(targets, random),
        }?;
        Some(Rewritten {
            rewrite: &rewrite.name,
            model: &target.model,
        })
    }
}

/// The weights that count: all the same if there are none.
fn weight(targets: &[RewriteTarget]) -> impl Fn(&RewriteTarget) -> u64 {
    let uniform = targets.iter().all(|t| t.weight.is_none());
    move |target| u64::from(target.weight.unwrap_or(u32::from(uniform)))
}

fn draw(targets: &[RewriteTarget], random: u64) -> Option<&RewriteTarget> {
    if let [only] = targets {
        return Some(only);
    }
    let weight = weight(targets);
    let total: u64 = targets.iter().map(&weight).sum();
    let mut at = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    targets.iter().find(|target| {
        let share = weight(target);
        let here = at < share;
        at = at.saturating_sub(share);
        here
    })
}

/// Weighted rendezvous hashing: the target with the smallest -ln(u)/weight, where u is drawn by hashing session and target. A
/// target's chance is its share of the weights, and a change of weights moves no session between targets that kept theirs.
fn stick<'a>(targets: &'a [RewriteTarget], session: &str) -> Option<&'a RewriteTarget> {
    let weight = weight(targets);
    let score = |target: &RewriteTarget| {
        let hash = fnv(&[session.as_bytes(), b"\0", target.model.as_bytes()]);
        // In (0, 1]: the logarithm of 0 is not wanted.
        let u = ((hash >> 11) + 1) as f64 / (1u64 << 53) as f64;
        -u.ln() / weight(target) as f64
    };
    targets
        .iter()
        .filter(|target| weight(target) > 0)
        .min_by(|a, b| score(a).total_cmp(&score(b)))
}

/// FNV-1a with a final mix (the last bytes of FNV barely reach the high bits).
fn fnv(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in parts.iter().copied().flatten() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(models: &[&str], targets: &[(&str, Option<u32>)]) -> RewriteRule {
        RewriteRule {
            models: models.iter().map(|m| (*m).to_owned()).collect(),
            targets: targets
                .iter()
                .map(|(model, weight)| RewriteTarget {
                    model: (*model).into(),
                    weight: *weight,
                })
                .collect(),
        }
    }

    fn rewrite(name: &str, sticky: bool, rules: Vec<RewriteRule>) -> ModelRewrite {
        ModelRewrite {
            name: name.into(),
            sticky,
            rules,
        }
    }

    fn shares(
        rewrites: &ModelRewrites,
        session: impl Fn(u64) -> Option<String>,
    ) -> HashMap<String, u64> {
        let mut counts = HashMap::new();
        for i in 0..20_000u64 {
            let random = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let got = rewrites.decide("m", session(i).as_deref(), random).unwrap();
            *counts.entry(got.model.to_string()).or_default() += 1;
        }
        counts
    }

    #[test]
    fn exact_beats_generic_and_older_beats_younger() {
        let rewrites = ModelRewrites::new(vec![
            rewrite(
                "old",
                false,
                vec![
                    rule(&[], &[("any", None)]),
                    rule(&["a"], &[("a-old", None)]),
                ],
            ),
            rewrite(
                "new",
                false,
                vec![
                    rule(&["a", "b"], &[("new", None)]),
                    rule(&["b"], &[("never", None)]),
                ],
            ),
        ]);
        let decide = |model| {
            let got = rewrites.decide(model, None, 7).unwrap();
            (got.rewrite.to_string(), got.model.to_string())
        };
        assert_eq!(decide("a"), ("old".into(), "a-old".into()));
        assert_eq!(decide("b"), ("new".into(), "new".into()));
        assert_eq!(decide("c"), ("old".into(), "any".into()));
        assert_eq!(decide(""), ("old".into(), "any".into()));
        assert!(rewrites.has_generic());
        let exact = ModelRewrites::new(vec![rewrite(
            "x",
            false,
            vec![rule(&["a"], &[("b", None)])],
        )]);
        assert!(exact.decide("c", None, 0).is_none() && exact.decide("", None, 0).is_none());
        assert!(ModelRewrites::default().is_empty() && !exact.is_empty());
    }

    #[test]
    fn weights_are_shares_drawn_or_stuck() {
        for sticky in [false, true] {
            let rewrites = ModelRewrites::new(vec![rewrite(
                "r",
                sticky,
                vec![rule(
                    &["m"],
                    &[("a", Some(9)), ("b", Some(1)), ("never", None)],
                )],
            )]);
            let counts = shares(&rewrites, |i| Some(format!("session-{i}")));
            assert!((1800..2200).contains(&counts["b"]), "{counts:?}");
            assert!(!counts.contains_key("never"));
            let uniform = ModelRewrites::new(vec![rewrite(
                "r",
                sticky,
                vec![rule(&[], &[("a", None), ("b", None)])],
            )]);
            let counts = shares(&uniform, |i| Some(i.to_string()));
            assert!((9600..10400).contains(&counts["a"]), "{counts:?}");
        }
    }

    #[test]
    fn a_session_stays_where_it_is_unless_it_must_move() {
        let with = |share| {
            ModelRewrites::new(vec![rewrite(
                "r",
                true,
                vec![rule(
                    &["m"],
                    &[("a", Some(100 - share)), ("b", Some(share))],
                )],
            )])
        };
        let (before, after) = (with(10), with(30));
        let mut moved = 0;
        for i in 0..10_000 {
            let session = format!("s{i}");
            let at = |rewrites: &ModelRewrites, random| {
                rewrites
                    .decide("m", Some(&session), random)
                    .unwrap()
                    .model
                    .to_string()
            };
            assert_eq!(at(&before, 1), at(&before, u64::MAX));
            match (at(&before, 0).as_str(), at(&after, 0).as_str()) {
                ("a", "b") => moved += 1,
                ("b", "a") => panic!("moved away from a target whose share grew"),
                _ => {}
            }
        }
        assert!((1700..2300).contains(&moved), "{moved}");
        // Without a session it is drawn each time.
        let counts = shares(&before, |_| None);
        assert_eq!(counts.len(), 2);
    }

    #[test]
    fn says_what_is_wrong() {
        let check = |rule| rewrite("r", false, vec![rule]).check();
        assert_eq!(check(rule(&[], &[])), Err(RewriteError::NoTargets(0)));
        assert_eq!(
            check(rule(&[], &[("", None)])),
            Err(RewriteError::NoModel(0, 0))
        );
        assert_eq!(
            check(rule(&["a", ""], &[("b", None)])),
            Err(RewriteError::NoMatch(0, 1))
        );
        for weight in [0, MAX_WEIGHT + 1] {
            let error = check(rule(&[], &[("a", Some(1)), ("b", Some(weight))])).unwrap_err();
            assert!(error.to_string().contains("targets[1].weight"), "{error}");
        }
        assert_eq!(
            check(rule(&[], &[("a", Some(1)), ("b", None)]))
                .unwrap()
                .len(),
            1
        );
        assert_eq!(check(rule(&[], &[("a", None), ("b", None)])), Ok(vec![]));
    }

    proptest! {
        /// A target is one of the rule's, never one without a weight beside weighted ones, and the same for the same input.
        #[test]
        fn choices_are_legal(
            weights in prop::collection::vec(prop::option::of(1u32..=MAX_WEIGHT), 1..6),
            sticky in any::<bool>(),
            session in prop::option::of("[a-z]{0,8}"),
            random in any::<u64>(),
        ) {
            let names: Vec<String> = (0..weights.len()).map(|i| format!("t{i}")).collect();
            let targets: Vec<_> = names.iter().map(String::as_str).zip(weights.iter().copied()).collect();
            let rewrites = ModelRewrites::new(vec![rewrite("r", sticky, vec![rule(&["m"], &targets)])]);
            let got = rewrites.decide("m", session.as_deref(), random).unwrap();
            let i = names.iter().position(|n| **n == **got.model).unwrap();
            prop_assert!(weights[i].is_some() || weights.iter().all(Option::is_none));
            prop_assert_eq!(rewrites.decide("m", session.as_deref(), random), Some(got));
        }
    }
}
