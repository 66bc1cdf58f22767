//! Values written as Python writes them: `json.dumps` for the `tojson` filter, `str` for what a template prints.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use std::fmt::Write;

/// Lists and maps inside each other; JSON itself is refused at 128.
const MAX_DEPTH: usize = 200;

/// How `json.dumps` is to write.
struct Style {
    indent: Option<String>,
    item: String,
    key: String,
    sort: bool,
    ascii: bool,
}

/// The `tojson` filter that chat templates have: not escaped for HTML, letters beyond ASCII as they are.
pub fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        Some(value) if value.is_none() || value.is_undefined() => None,
        Some(value) => match (value.as_str(), value.as_i64()) {
            (Some(text), _) => Some(text.to_owned()),
            (_, Some(width)) => Some(" ".repeat(width.clamp(0, 64) as usize)),
            _ => return Err(invalid("indent must be a number or a string")),
        },
        None => None,
    };
    let (mut item, mut key) = (", ".to_owned(), ": ".to_owned());
    if indent.is_some() {
        item = ",".into();
    }
    if let Some(given) = options.get::<Option<Value>>("separators")?
        && !given.is_none()
    {
        let given: Vec<String> = given.try_iter()?.map(|v| v.to_string()).collect();
        let [first, second] = given.try_into().map_err(|_| invalid("separators: two"))?;
        (item, key) = (first, second);
    }
    let style = Style {
        indent,
        item,
        key,
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    json(value, &style, 0, &mut out)?;
    Ok(out)
}

fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

fn json(value: &Value, style: &Style, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid("too many levels for JSON"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Undefined => return Err(invalid("undefined is not JSON serializable")),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => number(value, out),
        ValueKind::String => quoted(value.as_str().unwrap_or_default(), style.ascii, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                next(at, style, depth, out);
                json(item, style, depth + 1, out)?;
            }
            end(items.is_empty(), style, depth, out);
            out.push(']');
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort {
                keys.sort();
            }
            out.push('{');
            for (at, key) in keys.iter().enumerate() {
                next(at, style, depth, out);
                match key.as_str() {
                    Some(text) => quoted(text, style.ascii, out),
                    None => {
                        let mut text = String::new();
                        json(key, style, depth + 1, &mut text)?;
                        quoted(&text, style.ascii, out);
                    }
                }
                out.push_str(&style.key);
                json(&value.get_item(key)?, style, depth + 1, out)?;
            }
            end(keys.is_empty(), style, depth, out);
            out.push('}');
        }
        _ => return Err(invalid("this object is not JSON serializable")),
    }
    Ok(())
}

fn next(at: usize, style: &Style, depth: usize, out: &mut String) {
    if at > 0 {
        out.push_str(&style.item);
    }
    line(style, depth + 1, out);
}

fn end(empty: bool, style: &Style, depth: usize, out: &mut String) {
    if !empty {
        line(style, depth, out);
    }
}

fn line(style: &Style, depth: usize, out: &mut String) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }
}

fn quoted(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A number as Python's `repr` writes it: the shortest digits that mean it, an exponent from 1e16 on and below 1e-4.
fn number(value: &Value, out: &mut String) {
    let float = match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float,
        _ => {
            let _ = write!(out, "{value}");
            return;
        }
    };
    if !float.is_finite() {
        let name = match float {
            f if f.is_nan() => "NaN",
            f if f > 0.0 => "Infinity",
            _ => "-Infinity",
        };
        out.push_str(name);
        return;
    }
    let size = float.abs();
    if float != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(rest) => ('-', rest),
            None => ('+', exponent),
        };
        let _ = write!(out, "{digits}e{sign}{exponent:0>2}");
    } else {
        let _ = write!(out, "{float:?}");
    }
}

/// What `{{ value }}` prints.
pub fn print(value: &Value, out: &mut String) {
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => out.push_str(value.as_str().unwrap_or_default()),
        _ => repr(value, 0, out),
    }
}

fn repr(value: &Value, depth: usize, out: &mut String) {
    if depth > MAX_DEPTH {
        out.push_str("...");
        return;
    }
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(value, out),
        ValueKind::String => repr_text(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            out.push('[');
            for (at, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                repr(&item, depth + 1, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                repr(&key, depth + 1, out);
                out.push_str(": ");
                repr(&value.get_item(&key).unwrap_or_default(), depth + 1, out);
            }
            out.push('}');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

fn repr_text(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn json_as_python_writes_it() {
        let text = r#"{"b":[1,2.0,1e20,1e-7,true,null,"é\u0001\"</b>"],"a":{},"c":[]}"#;
        let plain = tojson(
            &value(text),
            Kwargs::from_iter([("indent", Value::from(()))]),
        )
        .unwrap();
        assert_eq!(
            plain,
            r#"{"b": [1, 2.0, 1e+20, 1e-07, true, null, "é\u0001\"</b>"], "a": {}, "c": []}"#
        );
        let options = Kwargs::from_iter([("indent", Value::from(2)), ("sort_keys", true.into())]);
        assert_eq!(
            tojson(&value(r#"{"b":[1],"a":{}}"#), options).unwrap(),
            "{\n  \"a\": {},\n  \"b\": [\n    1\n  ]\n}"
        );
    }

    #[test]
    fn text_as_python_prints_it() {
        let mut out = String::new();
        print(&value(r#"{"a":[true,null,"it's",1.5,"x\n"]}"#), &mut out);
        assert_eq!(out, r#"{'a': [True, None, "it's", 1.5, 'x\n']}"#);
    }
}
