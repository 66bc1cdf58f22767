//! Figures that replace the real ones on the metrics page, fixed or as functions of time.
//!
//! The JSON is llm-d-inference-sim's: `{"running-requests": "oscillate:0:10:5s", "kv-cache-usage": 0.4, ...}`.

use super::{Counters, Histogram, Metrics, Snapshot};
use crate::duration;
use serde_json::Value;
use std::time::Duration;

/// One figure.
#[derive(Clone, Debug, PartialEq)]
enum Series {
    Fixed(f64),
    Function {
        shape: Shape,
        start: f64,
        end: f64,
        period: Duration,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    Oscillate,
    Ramp,
    RampReset,
    SquareWave,
}

impl Series {
    fn parse(key: &str, value: &Value) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{key}` needs a number, or FUNCTION:START:END:PERIOD with a function of oscillate, ramp, rampreset, squarewave"
            )
        };
        if let Some(number) = value.as_f64() {
            return Ok(Series::Fixed(number));
        }
        let text = value.as_str().ok_or_else(wrong)?;
        let parts: Vec<&str> = text.split(':').collect();
        let [shape, start, end, period] = parts[..] else {
            return Err(wrong());
        };
        let shape = match shape {
            "oscillate" => Shape::Oscillate,
            "ramp" => Shape::Ramp,
            "rampreset" => Shape::RampReset,
            "squarewave" => Shape::SquareWave,
            _ => return Err(wrong()),
        };
        let number = |text: &str| {
            text.parse::<f64>()
                .ok()
                .filter(|n| n.is_finite())
                .ok_or_else(wrong)
        };
        let period = duration::parse(period)?;
        if period.is_zero() {
            return Err(format!("the period of `{key}` must not be zero"));
        }
        Ok(Series::Function {
            shape,
            start: number(start)?,
            end: number(end)?,
            period,
        })
    }

    fn at(&self, elapsed: Duration) -> f64 {
        let Series::Function {
            shape,
            start,
            end,
            period,
        } = *self
        else {
            let Series::Fixed(value) = *self else {
                return 0.0;
            };
            return value;
        };
        let turns = elapsed.as_secs_f64() / period.as_secs_f64();
        match shape {
            Shape::Oscillate => {
                (start + end) / 2.0 + (end - start) / 2.0 * (std::f64::consts::TAU * turns).sin()
            }
            Shape::Ramp => start + (end - start) * turns.min(1.0),
            Shape::RampReset => start + (end - start) * turns.fract(),
            Shape::SquareWave => {
                if turns.fract() < 0.5 {
                    start
                } else {
                    end
                }
            }
        }
    }
}

/// A set of fake figures. What is absent shows as zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FakeMetrics {
    running: Option<Series>,
    waiting: Option<Series>,
    kv_usage: Option<Series>,
    loras: Vec<(String, String, f64)>,
    buckets: Vec<(&'static str, Vec<u64>)>,
    samples: Vec<(&'static str, Vec<u64>)>,
    totals: Vec<(&'static str, u64)>,
    success: Vec<(String, u64)>,
    source: serde_json::Map<String, Value>,
}

const BUCKETS: [&str; 8] = [
    "ttft-buckets-values",
    "tpot-buckets-values",
    "e2erl-buckets-values",
    "queue-time-buckets-values",
    "inf-time-buckets-values",
    "prefill-time-buckets-values",
    "decode-time-buckets-values",
    "request-tpot-buckets-values",
];
const SAMPLES: [&str; 3] = [
    "request-prompt-tokens",
    "request-generation-tokens",
    "request-params-max-tokens",
];
const TOTALS: [&str; 4] = [
    "total-prompt-tokens",
    "total-generation-tokens",
    "prefix-cache-hits",
    "prefix-cache-queries",
];

impl FakeMetrics {
    /// Parses a JSON text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| format!("the fake metrics are not JSON: {error}"))?;
        FakeMetrics::default().updated(&value)
    }

    /// This set with the keys of a JSON object changed; `null` leaves a key alone.
    pub fn updated(&self, update: &Value) -> Result<Self, String> {
        let update = update
            .as_object()
            .ok_or("the fake metrics must be a JSON object")?;
        let mut source = self.source.clone();
        for (key, value) in update.iter().filter(|(_, value)| !value.is_null()) {
            source.insert(key.clone(), value.clone());
        }
        let mut fake = FakeMetrics::default();
        for (key, value) in &source {
            fake.set(key, value)?;
        }
        fake.source = source;
        Ok(fake)
    }

    /// As given.
    pub fn to_json(&self) -> Value {
        Value::Object(self.source.clone())
    }

    fn set(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let wrong = |what: &str| format!("`{key}` needs {what}");
        let counts = || -> Result<Vec<u64>, String> {
            let list = value
                .as_array()
                .ok_or_else(|| wrong("an array of whole numbers"))?;
            list.iter()
                .map(|n| n.as_u64().ok_or_else(|| wrong("an array of whole numbers")))
                .collect()
        };
        match key {
            "running-requests" => self.running = Some(Series::parse(key, value)?),
            "waiting-requests" => self.waiting = Some(Series::parse(key, value)?),
            "kv-cache-usage" => self.kv_usage = Some(Series::parse(key, value)?),
            "loras" => {
                let list = value
                    .as_array()
                    .ok_or_else(|| wrong("an array of {running, waiting, timestamp}"))?;
                for entry in list {
                    let text = |field: &str| {
                        entry
                            .get(field)
                            .and_then(Value::as_str)
                            .unwrap_or_default()
                            .to_owned()
                    };
                    let at = entry
                        .get("timestamp")
                        .and_then(Value::as_f64)
                        .unwrap_or_default();
                    self.loras.push((text("running"), text("waiting"), at));
                }
            }
            "request-success-total" => {
                let object = value
                    .as_object()
                    .ok_or_else(|| wrong("an object of counts by finish reason"))?;
                for (reason, count) in object {
                    let count = count.as_u64().ok_or_else(|| wrong("whole numbers"))?;
                    self.success.push((reason.clone(), count));
                }
            }
            _ => {
                let known =
                    |names: &[&'static str]| names.iter().find(|name| **name == key).copied();
                if let Some(name) = known(&BUCKETS) {
                    self.buckets.push((name, counts()?));
                } else if let Some(name) = known(&SAMPLES) {
                    self.samples.push((name, counts()?));
                } else if let Some(name) = known(&TOTALS) {
                    self.totals
                        .push((name, value.as_u64().ok_or_else(|| wrong("a whole number"))?));
                } else {
                    return Err(format!("there is no fake metric `{key}`"));
                }
            }
        }
        Ok(())
    }

    /// Replaces every figure of the snapshot. `elapsed` counts from the start of the server.
    pub fn apply(&self, snapshot: &mut Snapshot, blank: Metrics, elapsed: Duration) {
        let at = |series: &Option<Series>| series.as_ref().map_or(0.0, |series| series.at(elapsed));
        snapshot.running = at(&self.running).trunc();
        snapshot.waiting = at(&self.waiting).trunc();
        snapshot.kv_usage = at(&self.kv_usage);
        snapshot.counters = Counters::default();
        snapshot.loras.clone_from(&self.loras);
        snapshot.metrics = blank;
        let m = &mut snapshot.metrics;
        for (name, counts) in &self.buckets {
            let histogram = match *name {
                "ttft-buckets-values" => &mut m.ttft,
                "tpot-buckets-values" => &mut m.itl,
                "e2erl-buckets-values" => &mut m.e2e,
                "queue-time-buckets-values" => &mut m.queue,
                "inf-time-buckets-values" => &mut m.inference,
                "prefill-time-buckets-values" => &mut m.prefill,
                "decode-time-buckets-values" => &mut m.decode,
                _ => &mut m.request_tpot,
            };
            histogram.fill(counts);
        }
        for (name, values) in &self.samples {
            let total = values.iter().sum();
            let observe = |histogram: &mut Histogram| {
                values.iter().for_each(|v| histogram.observe(*v as f64))
            };
            match *name {
                "request-prompt-tokens" => {
                    observe(&mut m.prompt);
                    m.prompt_total = total;
                }
                "request-generation-tokens" => {
                    observe(&mut m.generation);
                    m.generation_total = total;
                }
                _ => observe(&mut m.max_tokens),
            }
        }
        for (name, value) in &self.totals {
            match *name {
                "total-prompt-tokens" => m.prompt_total = *value,
                "total-generation-tokens" => m.generation_total = *value,
                "prefix-cache-hits" => snapshot.counters.prefix_hits = *value,
                _ => snapshot.counters.prefix_queries = *value,
            }
        }
        for (reason, count) in &self.success {
            match m.success.iter_mut().find(|(name, _)| name == reason) {
                Some((_, slot)) => *slot = *count,
                None => m.success.push((reason.clone(), *count)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Dialect;
    use serde_json::json;

    #[test]
    fn functions_have_their_shapes() {
        let at = |text: &str, ms: u64| {
            Series::parse("x", &json!(text))
                .unwrap()
                .at(Duration::from_millis(ms))
        };
        assert_eq!(at("ramp:10:0:5s", 2500), 5.0);
        assert_eq!(at("ramp:10:0:5s", 60_000), 0.0);
        assert_eq!(at("rampreset:0:10:4s", 5000), 2.5);
        assert_eq!(at("squarewave:1:9:2s", 900), 1.0);
        assert_eq!(at("squarewave:1:9:2s", 1100), 9.0);
        assert!((at("oscillate:0:10:4s", 1000) - 10.0).abs() < 1e-9);
        assert!((at("oscillate:0:10:4s", 3000)).abs() < 1e-9);
    }

    #[test]
    fn only_fakes_show_and_updates_are_partial() {
        let fake = FakeMetrics::parse(
            r#"{"running-requests": 7.9, "kv-cache-usage": 0.4, "ttft-buckets-values": [0, 2],
                "loras": [{"running": "a", "waiting": "", "timestamp": 5}], "request-success-total": {"stop": 3}}"#,
        )
        .unwrap();
        let fake = fake
            .updated(&json!({"waiting-requests": 2, "kv-cache-usage": null}))
            .unwrap();
        let mut snapshot = super::super::tests::snapshot(Dialect::Vllm);
        let blank = Metrics::new(Dialect::Vllm, 4096, 0.0);
        fake.apply(&mut snapshot, blank, Duration::ZERO);
        assert_eq!(
            (snapshot.running, snapshot.waiting, snapshot.kv_usage),
            (7.0, 2.0, 0.4)
        );
        assert_eq!(
            (snapshot.metrics.ttft.count(), snapshot.metrics.ttft.sum),
            (2, 0.01)
        );
        assert_eq!(snapshot.metrics.itl.count(), 0);
        assert_eq!(snapshot.loras, [("a".into(), String::new(), 5.0)]);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "[]",
            "{",
            r#"{"nope": 1}"#,
            r#"{"running-requests": "jump:0:1:1s"}"#,
            r#"{"running-requests": "ramp:0:1:0s"}"#,
            r#"{"ttft-buckets-values": [1.5]}"#,
            r#"{"total-prompt-tokens": "x"}"#,
        ] {
            assert!(FakeMetrics::parse(text).is_err(), "{text}");
        }
    }
}
