//! Checks the JSON schema of a tool's parameters before arguments are drawn from it.

use serde_json::{Map, Value};

const TYPES: [&str; 7] = [
    "string", "integer", "number", "boolean", "array", "object", "null",
];

/// Checks the schema of a tool's parameters: an object schema, its parts sound. The error says where and what is wrong.
pub fn validate(parameters: &Value) -> Result<(), String> {
    let Some(root) = parameters.as_object() else {
        return Err("it must be an object".into());
    };
    match root.get("type") {
        None => {}
        Some(kind) if kind == "object" => {}
        Some(kind) => return Err(format!("its type must be \"object\", not {kind}")),
    }
    check(parameters, parameters, "parameters")
}

fn check(schema: &Value, root: &Value, path: &str) -> Result<(), String> {
    let schema = match schema {
        Value::Bool(true) => return Ok(()),
        Value::Object(schema) => schema,
        _ => return Err(format!("{path} is not a schema")),
    };
    if let Some(reference) = schema.get("$ref")
        && resolve(reference, root).is_none()
    {
        return Err(format!("{path} refers to {reference}, which is not in it"));
    }
    match schema.get("type") {
        None => {}
        Some(Value::String(kind)) => known(kind, path)?,
        Some(Value::Array(kinds)) if !kinds.is_empty() => {
            for kind in kinds {
                known(kind.as_str().unwrap_or_default(), path)?;
            }
        }
        Some(other) => return Err(format!("{path} has the type {other}")),
    }
    if let Some(values) = schema.get("enum")
        && values.as_array().is_none_or(Vec::is_empty)
    {
        return Err(format!("the enum of {path} must be an array with a value"));
    }
    for (low, high) in [
        ("minimum", "maximum"),
        ("minItems", "maxItems"),
        ("minLength", "maxLength"),
    ] {
        bounds(schema, low, high, path)?;
    }
    children(schema, root, path)
}

/// The schemas inside a schema.
fn children(schema: &Map<String, Value>, root: &Value, path: &str) -> Result<(), String> {
    for name in ["properties", "$defs", "definitions"] {
        match schema.get(name) {
            None => {}
            Some(Value::Object(parts)) => {
                for (key, part) in parts {
                    check(part, root, &format!("{path}.{key}"))?;
                }
            }
            Some(_) => return Err(format!("{name} of {path} must be an object")),
        }
    }
    if let Some(items) = schema.get("items") {
        check(items, root, &format!("{path}[]"))?;
    }
    for name in ["anyOf", "oneOf", "allOf"] {
        match schema.get(name) {
            None => {}
            Some(Value::Array(parts)) if !parts.is_empty() => {
                for part in parts {
                    check(part, root, path)?;
                }
            }
            Some(_) => return Err(format!("{name} of {path} must be an array with a schema")),
        }
    }
    match schema.get("required") {
        None => Ok(()),
        Some(Value::Array(names)) if names.iter().all(Value::is_string) => Ok(()),
        Some(_) => Err(format!("required of {path} must be an array of names")),
    }
}

fn known(kind: &str, path: &str) -> Result<(), String> {
    if TYPES.contains(&kind) {
        Ok(())
    } else {
        Err(format!(
            "{path} has the type `{kind}`, which is none of {}",
            TYPES.join(", ")
        ))
    }
}

fn bounds(schema: &Map<String, Value>, low: &str, high: &str, path: &str) -> Result<(), String> {
    let number = |name: &str| match schema.get(name) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) if name.ends_with("imum") || number >= 0.0 => Ok(Some(number)),
            _ => Err(format!("{name} of {path} is {value}")),
        },
    };
    match (number(low)?, number(high)?) {
        (Some(least), Some(most)) if least > most => {
            Err(format!("{low} of {path} is above its {high}"))
        }
        _ => Ok(()),
    }
}

/// What a local reference such as `#/$defs/Place` points to.
pub fn resolve<'a>(reference: &Value, root: &'a Value) -> Option<&'a Value> {
    root.pointer(reference.as_str()?.strip_prefix('#')?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sound_schemas_pass_and_broken_ones_say_where() {
        for good in [
            json!({}),
            json!({"type": "object", "properties": {"a": {"type": ["string", "null"]}, "b": true}}),
            json!({"properties": {"p": {"$ref": "#/$defs/P"}}, "$defs": {"P": {"enum": [1]}}}),
            json!({"properties": {"a": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}}}),
            json!({"properties": {"a": {"anyOf": [{"type": "integer", "minimum": -3, "maximum": -1}, {"type": "null"}]}}}),
        ] {
            assert_eq!(validate(&good), Ok(()), "{good}");
        }
        let inside = |part: Value| json!({"type": "object", "properties": {"a": part}});
        for bad in [
            json!([]),
            json!({"type": "string"}),
            json!({"properties": []}),
            json!({"required": "a"}),
            json!({"required": [1]}),
            inside(json!({"type": "text"})),
            inside(json!({"type": []})),
            inside(json!({"enum": []})),
            inside(json!({"$ref": "#/$defs/None"})),
            inside(json!({"type": "integer", "minimum": 3, "maximum": 2})),
            inside(json!({"type": "array", "minItems": -1})),
            inside(json!({"type": "array", "items": {"type": "x"}})),
            inside(json!({"anyOf": []})),
            inside(json!(5)),
        ] {
            assert!(validate(&bad).is_err(), "{bad}");
        }
        let deep = inside(json!({"type": "array", "items": {"type": "x"}}));
        assert!(validate(&deep).unwrap_err().contains("parameters.a[]"));
    }
}
