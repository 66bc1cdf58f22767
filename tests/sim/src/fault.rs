//! Failures on demand: what they are, how they are written, and which request gets one.
//!
//! The same words serve on the command line and in the `x-sim-fault` header (`stall-after=3,probability=0.5`) and as JSON
//! of `POST /sim/fault` (`{"stall-after": 3, "probability": 0.5}`).

use crate::duration;
use crate::http::error::ApiError;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Faults of one server, or of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// Accept the request and answer nothing at all.
    pub hang: bool,
    /// Answer with this status at once.
    pub status: Option<u16>,
    /// Wait before the response headers.
    pub slow_headers: Option<Duration>,
    /// Bytes of body per second.
    pub slow_body: Option<u32>,
    /// Break the answer off.
    pub cut: Option<Cut>,
    /// Share of requests that get the faults above, from 0 to 1.
    pub probability: f64,
    /// Requests that still get one; no limit when absent.
    pub times: Option<u32>,
    /// Whether health, models and metrics get them too, not only generation.
    pub all_paths: bool,
    /// Health says 200 while the engine produces nothing.
    pub lying_health: bool,
    /// Health says 503 while the engine works.
    pub unhealthy: bool,
    /// After a crash, listen again this much later; without it the server stays down.
    pub restart_after: Option<Duration>,
}

/// Where and how an answer breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Tokens to send first. A stream is cut there; any other answer is cut in the middle of its body, and before its
    /// headers with 0.
    pub after: u32,
    /// What happens then.
    pub action: CutAction,
}

/// How an answer breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutAction {
    /// The connection stays open and silent.
    Stall,
    /// The connection is closed in order, the body without its end.
    Close,
    /// The connection is reset.
    Reset,
    /// The whole server goes down, all connections reset.
    Crash,
}

impl CutAction {
    const ALL: [(&'static str, CutAction); 4] = [
        ("stall", CutAction::Stall),
        ("close", CutAction::Close),
        ("reset", CutAction::Reset),
        ("crash", CutAction::Crash),
    ];

    fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, action)| *action == self)
            .map_or("stall", |(name, _)| name)
    }
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            hang: false,
            status: None,
            slow_headers: None,
            slow_body: None,
            cut: None,
            probability: 1.0,
            times: None,
            all_paths: false,
            lying_health: false,
            unhealthy: false,
            restart_after: None,
        }
    }
}

/// What one request suffers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RequestFault {
    /// Answer nothing.
    pub hang: bool,
    /// Answer with this status.
    pub status: Option<u16>,
    /// Wait before the headers.
    pub slow_headers: Option<Duration>,
    /// Bytes of body per second.
    pub slow_body: Option<u32>,
    /// Break the answer off.
    pub cut: Option<Cut>,
    /// After a crash, listen again this much later.
    pub restart_after: Option<Duration>,
}

impl Faults {
    /// Parses `name` and `name=value` words separated by commas.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut faults = Faults::default();
        for word in text
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            match word.split_once('=') {
                Some((key, value)) => faults.set(key.trim(), value.trim())?,
                None => faults.set(word, "")?,
            }
        }
        Ok(faults)
    }

    /// Parses a JSON object of the same words. `null` and `false` leave a fault out.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        let object = value
            .as_object()
            .ok_or("the faults must be a JSON object")?;
        let mut faults = Faults::default();
        for (key, value) in object {
            match value {
                Value::Null | Value::Bool(false) => faults.check_key(key)?,
                Value::Bool(true) => faults.set(key, "")?,
                Value::Number(number) => faults.set(key, &number.to_string())?,
                Value::String(text) => faults.set(key, text)?,
                _ => {
                    return Err(format!(
                        "the value of `{key}` is neither a number, a text nor a truth value"
                    ));
                }
            }
        }
        Ok(faults)
    }

    /// What [`Faults::from_json`] reads back.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        let mut put = |key: &str, value: Value| out.insert(key.to_owned(), value);
        for (key, on) in [
            ("hang", self.hang),
            ("lying-health", self.lying_health),
            ("unhealthy", self.unhealthy),
            ("all-paths", self.all_paths),
        ] {
            if on {
                put(key, json!(true));
            }
        }
        if let Some(status) = self.status {
            put("status", json!(status));
        }
        if let Some(delay) = self.slow_headers {
            put("slow-headers", json!(duration::format(delay)));
        }
        if let Some(rate) = self.slow_body {
            put("slow-body", json!(rate));
        }
        if let Some(cut) = self.cut {
            put(&format!("{}-after", cut.action.name()), json!(cut.after));
        }
        if let Some(delay) = self.restart_after {
            put("restart-after", json!(duration::format(delay)));
        }
        if self.probability < 1.0 {
            put("probability", json!(self.probability));
        }
        if let Some(times) = self.times {
            put("times", json!(times));
        }
        Value::Object(out)
    }

    fn check_key(&self, key: &str) -> Result<(), String> {
        let value = match key {
            "status" => "500",
            "probability" => "1",
            "slow-headers" | "restart-after" => "1s",
            "slow-body" | "times" => "1",
            key if key.ends_with("-after") => "0",
            _ => "",
        };
        self.clone().set(key, value)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let needs = |what: &str| format!("the fault `{key}` needs {what}, not `{value}`");
        let number = || value.parse::<u32>().map_err(|_| needs("a whole number"));
        match key {
            "hang" | "lying-health" | "unhealthy" | "all-paths" => {
                let on = match value {
                    "" | "true" => true,
                    "false" => false,
                    _ => return Err(needs("no value")),
                };
                match key {
                    "hang" => self.hang = on,
                    "lying-health" => self.lying_health = on,
                    "unhealthy" => self.unhealthy = on,
                    _ => self.all_paths = on,
                }
            }
            "status" => {
                let status = value
                    .parse()
                    .ok()
                    .filter(|status| (400..=599).contains(status));
                self.status = Some(status.ok_or_else(|| needs("a status from 400 to 599"))?);
            }
            "slow-headers" => self.slow_headers = Some(duration::parse(value)?),
            "restart-after" => self.restart_after = Some(duration::parse(value)?),
            "slow-body" => {
                let rate = number()?;
                self.slow_body = Some(if rate > 0 {
                    rate
                } else {
                    return Err(needs("at least one byte a second"));
                });
            }
            "times" => self.times = Some(number()?),
            "probability" => {
                let share = value
                    .parse()
                    .ok()
                    .filter(|share| (0.0..=1.0).contains(share));
                self.probability = share.ok_or_else(|| needs("a number from 0 to 1"))?;
            }
            _ => {
                let (name, after) = match key.strip_suffix("-after") {
                    Some(name) => (name, number()?),
                    None if value.is_empty() => (key, 0),
                    None => return Err(needs("no value")),
                };
                let action = CutAction::ALL.iter().find(|(known, _)| *known == name);
                let (_, action) = action.ok_or_else(|| {
                    format!(
                        "there is no fault `{key}`; the faults are hang, status, slow-headers, slow-body, stall, close, reset, \
                         crash (each with -after=TOKENS), lying-health, unhealthy, with probability, times, all-paths, restart-after"
                    )
                })?;
                self.cut = Some(Cut {
                    after,
                    action: *action,
                });
            }
        }
        Ok(())
    }

    /// Draws whether the next request suffers, and what.
    pub fn draw(&mut self, rng: &mut fastrand::Rng) -> RequestFault {
        let any = self.hang
            || self.status.is_some()
            || self.slow_headers.is_some()
            || self.slow_body.is_some()
            || self.cut.is_some();
        if !any
            || self.times == Some(0)
            || (self.probability < 1.0 && rng.f64() >= self.probability)
        {
            return RequestFault::default();
        }
        if let Some(times) = &mut self.times {
            *times -= 1;
        }
        RequestFault {
            hang: self.hang,
            status: self.status,
            slow_headers: self.slow_headers,
            slow_body: self.slow_body,
            cut: self.cut,
            restart_after: self.restart_after,
        }
    }
}

/// Random error answers in the manner of an overloaded or misused API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailureInjection {
    /// Per cent of requests.
    pub rate: u8,
    /// Which ones; all of them when empty.
    pub types: Vec<FailureType>,
}

/// One kind of error answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum FailureType {
    /// 429.
    RateLimit,
    /// 401.
    InvalidApiKey,
    /// 400.
    ContextLength,
    /// 503.
    ServerError,
    /// 400.
    InvalidRequest,
    /// 404.
    ModelNotFound,
}

impl FailureType {
    const ALL: [FailureType; 6] = [
        FailureType::RateLimit,
        FailureType::InvalidApiKey,
        FailureType::ContextLength,
        FailureType::ServerError,
        FailureType::InvalidRequest,
        FailureType::ModelNotFound,
    ];

    /// As on the command line and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureType::RateLimit => "rate_limit",
            FailureType::InvalidApiKey => "invalid_api_key",
            FailureType::ContextLength => "context_length",
            FailureType::ServerError => "server_error",
            FailureType::InvalidRequest => "invalid_request",
            FailureType::ModelNotFound => "model_not_found",
        }
    }

    /// The type with this name.
    pub fn parse(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| {
                let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.as_str()).collect();
                format!(
                    "there is no failure type `{name}`; the types are {}",
                    names.join(", ")
                )
            })
    }

    /// The answer.
    pub fn error(self, model: &str) -> ApiError {
        match self {
            FailureType::RateLimit => ApiError::new(
                429,
                format!("Rate limit reached for requests to `{model}`."),
            ),
            FailureType::InvalidApiKey => ApiError::new(401, "The API key is not valid."),
            FailureType::ContextLength => {
                ApiError::bad("The prompt is longer than the model's context window.")
                    .param("messages")
            }
            FailureType::ServerError => {
                ApiError::new(503, "The server is overloaded or not ready yet.")
            }
            FailureType::InvalidRequest => {
                ApiError::bad("A required parameter is missing.").param("model")
            }
            FailureType::ModelNotFound => {
                ApiError::model_not_found(&format!("{model}-nonexistent"))
            }
        }
    }
}

impl FailureInjection {
    /// Draws whether the next request fails, and how.
    pub fn draw(&self, rng: &mut fastrand::Rng) -> Option<FailureType> {
        if self.rate == 0 || rng.u8(0..100) >= self.rate {
            return None;
        }
        let types = if self.types.is_empty() {
            &FailureType::ALL[..]
        } else {
            &self.types
        };
        types.get(rng.usize(0..types.len())).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        let text = "stall-after=3, probability=0.5,times=2,slow-headers=20ms,restart-after=1s,lying-health,all-paths";
        let faults = Faults::parse(text).unwrap();
        assert_eq!(
            faults.cut,
            Some(Cut {
                after: 3,
                action: CutAction::Stall
            })
        );
        assert_eq!(Faults::from_json(&faults.to_json()), Ok(faults));
        let reset = Faults::parse("reset").unwrap();
        assert_eq!(
            reset.cut,
            Some(Cut {
                after: 0,
                action: CutAction::Reset
            })
        );
        assert_eq!(Faults::parse(""), Ok(Faults::default()));
        assert_eq!(
            Faults::from_json(&json!({"hang": null, "crash": false})),
            Ok(Faults::default())
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "explode",
            "status=200",
            "status",
            "stall-after",
            "stall-after=x",
            "probability=2",
            "hang=3",
            "slow-body=0",
            "reset=1",
            "explode-after=2",
        ] {
            assert!(Faults::parse(text).is_err(), "{text}");
        }
        assert!(Faults::from_json(&json!([])).is_err());
        assert!(Faults::from_json(&json!({"explode": null})).is_err());
        assert!(Faults::from_json(&json!({"stall-after": -1})).is_err());
    }

    #[test]
    fn times_and_probability_limit_faults() {
        let mut rng = fastrand::Rng::with_seed(4);
        let mut twice = Faults::parse("status=500,times=2").unwrap();
        let hit = (0..10)
            .filter(|_| twice.draw(&mut rng).status.is_some())
            .count();
        assert_eq!(hit, 2);
        let mut half = Faults::parse("status=500,probability=0.5").unwrap();
        let hit = (0..1000)
            .filter(|_| half.draw(&mut rng).status.is_some())
            .count();
        assert!((400..600).contains(&hit), "{hit}");
    }

    #[test]
    fn failure_types_are_drawn_at_their_rate() {
        let mut rng = fastrand::Rng::with_seed(4);
        let injection = FailureInjection {
            rate: 30,
            types: vec![FailureType::RateLimit],
        };
        let hit = (0..1000)
            .filter_map(|_| injection.draw(&mut rng))
            .inspect(|t| assert_eq!(*t, FailureType::RateLimit));
        assert!((200..400).contains(&hit.count()));
        assert_eq!(FailureInjection::default().draw(&mut rng), None);
        for kind in FailureType::ALL {
            assert_eq!(FailureType::parse(kind.as_str()), Ok(kind));
        }
    }
}
