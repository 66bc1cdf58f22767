//! Draws the arguments of a tool call from the JSON schema of its parameters.
//!
//! Enums, constants, bounds, lengths, common string formats, nested objects and arrays, alternatives and local references
//! are kept. `pattern` is not: such a string is random words. A schema that was not validated never fails on its shape;
//! what cannot be read counts as absent.

use super::ToolCallConfig;
use super::schema::resolve;
use crate::tokenizer;
use serde_json::{Map, Value, json};

/// Values in one set of arguments at most.
const MAX_VALUES: usize = 4096;
/// Objects and arrays inside each other at most.
const MAX_DEPTH: usize = 48;
/// Below this depth nothing optional is added, so that a schema that refers to itself comes to an end.
const SPARSE_DEPTH: usize = 4;
/// Characters in one string at most.
const MAX_STRING: usize = 16 * 1024;
/// Draws for a value that must differ from its neighbours.
const UNIQUE_TRIES: usize = 16;

/// Draws one set of arguments.
pub struct Generator<'a> {
    config: &'a ToolCallConfig,
    rng: &'a mut fastrand::Rng,
    root: &'a Value,
    values: usize,
}

/// Why there are no arguments.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum TooMuch {
    /// Too many values or characters.
    #[error(
        "the schema demands more than {MAX_VALUES} values or a string of more than {MAX_STRING} characters"
    )]
    Size,
    /// Too deep.
    #[error("the schema demands more than {MAX_DEPTH} levels")]
    Depth,
}

fn number(schema: &Map<String, Value>, name: &str) -> Option<f64> {
    schema.get(name).and_then(Value::as_f64)
}

fn count(schema: &Map<String, Value>, name: &str) -> Option<usize> {
    number(schema, name).map(|n| n.max(0.0) as usize)
}

/// Bounds of which a schema may give either one: the other one keeps the usual distance if it would lie on the wrong side.
fn span<T: PartialOrd + Copy>(
    given: (Option<T>, Option<T>),
    usual: (T, T),
    add: impl Fn(T, T) -> T,
    sub: impl Fn(T, T) -> T,
) -> (T, T) {
    let width = sub(usual.1, usual.0);
    match given {
        (Some(low), Some(high)) if low <= high => (low, high),
        (Some(low), Some(_)) => (low, low),
        (Some(low), None) if low > usual.1 => (low, add(low, width)),
        (Some(low), None) => (low, usual.1),
        (None, Some(high)) if high < usual.0 => (sub(high, width), high),
        (None, Some(high)) => (usual.0, high),
        (None, None) => usual,
    }
}

impl<'a> Generator<'a> {
    /// For one call of a tool with these parameters.
    pub fn new(config: &'a ToolCallConfig, rng: &'a mut fastrand::Rng, root: &'a Value) -> Self {
        Generator {
            config,
            rng,
            root,
            values: 0,
        }
    }

    /// The arguments: always an object.
    pub fn arguments(mut self) -> Result<Value, TooMuch> {
        let value = self.value(self.root, 0)?;
        Ok(if value.is_object() { value } else { json!({}) })
    }

    fn value(&mut self, schema: &Value, depth: usize) -> Result<Value, TooMuch> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(TooMuch::Size);
        }
        if depth > MAX_DEPTH {
            return Err(TooMuch::Depth);
        }
        let Some(schema) = schema.as_object() else {
            return Ok(json!(self.words()));
        };
        if let Some(target) = schema.get("$ref").and_then(|name| resolve(name, self.root)) {
            return self.value(target, depth + 1);
        }
        if let Some(value) = schema.get("const") {
            return Ok(value.clone());
        }
        if let Some(values) = schema.get("enum").and_then(Value::as_array)
            && !values.is_empty()
        {
            return Ok(self.pick(values).clone());
        }
        for name in ["anyOf", "oneOf"] {
            if let Some(parts) = schema.get(name).and_then(Value::as_array)
                && !parts.is_empty()
            {
                let null = parts
                    .iter()
                    .find(|part| part.get("type") == Some(&json!("null")));
                let part = match null {
                    Some(null) if depth > SPARSE_DEPTH => null,
                    _ => self.pick(parts),
                };
                return self.value(part, depth + 1);
            }
        }
        if let Some(parts) = schema.get("allOf").and_then(Value::as_array)
            && !parts.is_empty()
        {
            return self.all_of(parts, depth);
        }
        match self.kind(schema) {
            "integer" => Ok(json!(self.integer(schema))),
            "number" => Ok(json!(self.float(schema))),
            "boolean" => Ok(json!(self.rng.bool())),
            "null" => Ok(Value::Null),
            "array" => self.array(schema, depth),
            "object" => self.object(schema, depth),
            _ => self.string(schema).map(Value::String),
        }
    }

    fn pick<'v>(&mut self, values: &'v [Value]) -> &'v Value {
        values
            .get(self.rng.usize(0..values.len().max(1)))
            .unwrap_or(&Value::Null)
    }

    /// The type to draw; what a schema implies when it does not say.
    fn kind<'v>(&mut self, schema: &'v Map<String, Value>) -> &'v str {
        match schema.get("type") {
            Some(Value::String(kind)) => kind,
            Some(Value::Array(kinds)) => self.pick(kinds).as_str().unwrap_or_default(),
            _ if schema.contains_key("properties") => "object",
            _ if schema.contains_key("items") => "array",
            _ => "string",
        }
    }

    /// The fields of all parts together, or the first part where they are not objects.
    fn all_of(&mut self, parts: &[Value], depth: usize) -> Result<Value, TooMuch> {
        let mut fields = Map::new();
        for part in parts {
            match self.value(part, depth + 1)? {
                Value::Object(more) => fields.extend(more),
                other => return Ok(other),
            }
        }
        Ok(Value::Object(fields))
    }

    fn object(&mut self, schema: &Map<String, Value>, depth: usize) -> Result<Value, TooMuch> {
        let required: Vec<&str> = match schema.get("required").and_then(Value::as_array) {
            Some(names) => names.iter().filter_map(Value::as_str).collect(),
            None => Vec::new(),
        };
        let chance = match depth {
            0 => self.config.optional_parameter,
            _ if depth > SPARSE_DEPTH => 0,
            _ => self.config.optional_field,
        };
        let mut fields = Map::new();
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            for (name, part) in properties {
                if required.contains(&name.as_str()) || self.rng.u8(0..100) < chance {
                    fields.insert(name.clone(), self.value(part, depth + 1)?);
                }
            }
        }
        for name in required {
            if !fields.contains_key(name) {
                let value = self.value(&Value::Bool(true), depth + 1)?;
                fields.insert(name.to_owned(), value);
            }
        }
        Ok(Value::Object(fields))
    }

    fn array(&mut self, schema: &Map<String, Value>, depth: usize) -> Result<Value, TooMuch> {
        let usual = (
            self.config.min_array as usize,
            self.config.max_array as usize,
        );
        let given = (count(schema, "minItems"), count(schema, "maxItems"));
        let (least, most) = span(given, usual, usize::saturating_add, usize::saturating_sub);
        let length = if depth > SPARSE_DEPTH {
            given.0.unwrap_or(0)
        } else {
            self.rng.usize(least..=most)
        };
        if length > MAX_VALUES {
            return Err(TooMuch::Size);
        }
        let unique = schema.get("uniqueItems") == Some(&Value::Bool(true));
        let items = schema.get("items").unwrap_or(&Value::Null);
        let mut values: Vec<Value> = Vec::with_capacity(length);
        for _ in 0..length {
            let mut value = self.value(items, depth + 1)?;
            let mut tries = 0;
            while unique && values.contains(&value) && tries < UNIQUE_TRIES {
                value = self.value(items, depth + 1)?;
                tries += 1;
            }
            if !(unique && values.contains(&value)) {
                values.push(value);
            }
        }
        Ok(Value::Array(values))
    }

    fn integer(&mut self, schema: &Map<String, Value>) -> i64 {
        let above = number(schema, "exclusiveMinimum").map(|n| n.floor() + 1.0);
        let below = number(schema, "exclusiveMaximum").map(|n| n.ceil() - 1.0);
        // Converting clamps to what 64 bits hold.
        let low = number(schema, "minimum").map(f64::ceil).or(above);
        let high = number(schema, "maximum").map(f64::floor).or(below);
        let given = (low.map(|n| n as i64), high.map(|n| n as i64));
        let usual = (self.config.min_integer, self.config.max_integer);
        let (low, high) = span(given, usual, i64::saturating_add, i64::saturating_sub);
        let step = number(schema, "multipleOf").map_or(1, |n| n as i64).max(1);
        // Rounded inwards to multiples; an empty range keeps the lower bound.
        let first = low.div_euclid(step) + i64::from(low.rem_euclid(step) != 0);
        let last = high.div_euclid(step);
        if first > last {
            return low;
        }
        self.rng.i64(first..=last).saturating_mul(step)
    }

    fn float(&mut self, schema: &Map<String, Value>) -> f64 {
        let low = number(schema, "minimum").or(number(schema, "exclusiveMinimum"));
        let high = number(schema, "maximum").or(number(schema, "exclusiveMaximum"));
        let usual = (self.config.min_number, self.config.max_number);
        let (low, high) = span((low, high), usual, |a, b| a + b, |a, b| a - b);
        // Half and half, so that a range as wide as the type does not overflow. Never the very end: it may be excluded.
        let share = self.rng.f64().clamp(1e-6, 1.0 - 1e-6);
        let drawn = low * (1.0 - share) + high * share;
        let rounded = (drawn * 100.0).round() / 100.0;
        if rounded > low && rounded < high {
            rounded
        } else {
            drawn
        }
    }

    fn words(&mut self) -> String {
        let words: Vec<&str> = (0..self.rng.usize(1..=3))
            .map(|_| tokenizer::word(self.rng))
            .collect();
        words.join(" ")
    }

    fn string(&mut self, schema: &Map<String, Value>) -> Result<String, TooMuch> {
        let rng = &mut *self.rng;
        let mut date = || {
            let (year, month, day) = (rng.u32(2000..2030), rng.u32(1..=12), rng.u32(1..=28));
            format!("{year}-{month:02}-{day:02}")
        };
        let text = match schema.get("format").and_then(Value::as_str) {
            Some("date") => date(),
            Some("date-time") => {
                let day = date();
                format!("{day}T{:02}:{:02}:00Z", rng.u32(0..24), rng.u32(0..60))
            }
            Some("time") => format!("{:02}:{:02}:00Z", rng.u32(0..24), rng.u32(0..60)),
            Some("email") => format!("{}@example.com", tokenizer::word(rng)),
            Some("uri" | "url") => format!("https://example.com/{}", tokenizer::word(rng)),
            Some("ipv4") => format!("192.0.2.{}", rng.u32(1..255)),
            Some("uuid") => {
                // Version 4, variant 1.
                let id = rng.u128(..) & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
                let hex = format!("{id:032x}");
                let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
                parts
                    .map(|part| hex.get(part).unwrap_or_default())
                    .join("-")
            }
            _ => self.words(),
        };
        self.fit(text, schema)
    }

    /// Lengthens a text by words and cuts it to the lengths that the schema allows. All of it is ASCII.
    fn fit(&mut self, mut text: String, schema: &Map<String, Value>) -> Result<String, TooMuch> {
        let least = count(schema, "minLength").unwrap_or(0);
        if least > MAX_STRING {
            return Err(TooMuch::Size);
        }
        while text.len() < least {
            text.push(' ');
            text.push_str(tokenizer::word(self.rng));
        }
        if let Some(most) = count(schema, "maxLength") {
            text.truncate(most.max(least));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn draw(schema: &Value, seed: u64) -> Result<Value, TooMuch> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let config = ToolCallConfig::default();
        Generator::new(&config, &mut rng, schema).arguments()
    }

    proptest! {
        #[test]
        fn arguments_keep_to_their_schema(seed in any::<u64>(), low in -50i64..50, width in 0i64..20, least in 0usize..4, more in 0usize..4) {
            let schema = json!({
                "type": "object",
                "required": ["int", "num", "list", "kind", "text", "inner", "id", "ten"],
                "properties": {
                    "int": {"type": "integer", "minimum": low, "maximum": low + width},
                    "num": {"type": "number", "minimum": low, "maximum": low + width + 1},
                    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": least, "maxItems": least + more},
                    "kind": {"enum": ["a", 5]},
                    "text": {"type": "string", "minLength": 10, "maxLength": 12},
                    "inner": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
                    "id": {"type": "string", "format": "uuid"},
                    "ten": {"type": "integer", "minimum": 5, "maximum": 34, "multipleOf": 10},
                    "maybe": {"type": "null"},
                },
            });
            let drawn = draw(&schema, seed).unwrap();
            prop_assert_eq!(&drawn, &draw(&schema, seed).unwrap());
            prop_assert!((low..=low + width).contains(&drawn["int"].as_i64().unwrap()));
            let num = drawn["num"].as_f64().unwrap();
            prop_assert!(num >= low as f64 && num <= (low + width + 1) as f64);
            prop_assert!((least..=least + more).contains(&drawn["list"].as_array().unwrap().len()));
            prop_assert!(drawn["kind"] == "a" || drawn["kind"] == 5);
            prop_assert!((10..=12).contains(&drawn["text"].as_str().unwrap().len()));
            prop_assert!((0..=100).contains(&drawn["inner"]["x"].as_i64().unwrap()));
            prop_assert_eq!(drawn["id"].as_str().unwrap().len(), 36);
            prop_assert!([10, 20, 30].contains(&drawn["ten"].as_i64().unwrap()));
        }

        #[test]
        fn extreme_bounds_do_not_panic(low in any::<f64>(), high in any::<f64>(), step in any::<f64>(), seed in any::<u64>()) {
            let part = |kind: &str| json!({"type": kind, "minimum": low, "maximum": high, "multipleOf": step, "minItems": low, "minLength": high});
            for kind in ["integer", "number", "array", "string", "odd"] {
                // Too much is an answer as well.
                let _ = draw(&json!({"properties": {"a": part(kind)}, "required": ["a"]}), seed);
            }
        }
    }

    #[test]
    fn optional_parameters_come_about_half_of_the_time() {
        let schema = json!({"properties": {"a": {"type": "integer"}}});
        let given = (0..1000)
            .filter(|seed| draw(&schema, *seed).unwrap().get("a").is_some())
            .count();
        assert!((400..600).contains(&given), "{given}");
    }

    #[test]
    fn references_to_themselves_end() {
        let tree = json!({
            "properties": {"tree": {"$ref": "#/$defs/Node"}}, "required": ["tree"],
            "$defs": {"Node": {"type": "object", "required": ["next"], "properties": {
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            }}},
        });
        for seed in 0..200 {
            assert!(draw(&tree, seed).unwrap()["tree"].is_object());
        }
        let endless = json!({"required": ["me"], "properties": {"me": {"$ref": "#"}}});
        assert_eq!(draw(&endless, 1), Err(TooMuch::Depth));
        let inner = json!({"type": "array", "minItems": 500, "items": {"type": "integer"}});
        let outer = json!({"type": "array", "minItems": 500, "items": inner});
        let large = json!({"required": ["a"], "properties": {"a": outer}});
        assert_eq!(draw(&large, 1), Err(TooMuch::Size));
    }
}
