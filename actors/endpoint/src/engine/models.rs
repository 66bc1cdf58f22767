//! Reads `/v1/models` (base models and LoRA adapters) and vLLM's `/is_sleeping`. Pure.

use quorate_routing::ServedModel;
use serde::Deserialize;

#[derive(Deserialize)]
struct List {
    data: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    id: String,
    #[serde(default)]
    parent: Option<String>,
    #[serde(default)]
    root: Option<String>,
    #[serde(default)]
    owned_by: Option<String>,
    #[serde(default)]
    created: Option<i64>,
    #[serde(default)]
    max_model_len: Option<u64>,
}

#[derive(Deserialize)]
struct Sleep {
    is_sleeping: bool,
}

/// Parses the answer to `GET /v1/models`.
///
/// # Errors
/// What is not as OpenAI's list of models.
pub fn parse(body: &[u8]) -> Result<Vec<ServedModel>, String> {
    let list: List =
        serde_json::from_slice(body).map_err(|e| format!("not a list of models: {e}"))?;
    let set = |text: Option<String>| text.filter(|t| !t.is_empty());
    let mut models: Vec<ServedModel> = list
        .data
        .into_iter()
        .filter(|row| !row.id.is_empty())
        .map(|row| ServedModel {
            id: row.id,
            parent: set(row.parent),
            root: set(row.root),
            owned_by: set(row.owned_by),
            created: row.created.unwrap_or(0),
            max_model_len: row.max_model_len,
        })
        .collect();
    // Engines list in any order, and `created` of some is the time of the call: neither is a change.
    models.sort_by(|a, b| a.id.cmp(&b.id));
    models.dedup_by(|a, b| a.id == b.id);
    Ok(models)
}

/// Parses the answer to `GET /is_sleeping`; anything unexpected means awake.
pub fn is_sleeping(body: &[u8]) -> bool {
    serde_json::from_slice::<Sleep>(body).is_ok_and(|s| s.is_sleeping)
}

/// The same models, whatever time stamp the engine puts on them.
pub fn same(a: &[ServedModel], b: &[ServedModel]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            (&a.id, &a.parent, &a.root, &a.owned_by, a.max_model_len)
                == (&b.id, &b.parent, &b.root, &b.owned_by, b.max_model_len)
        })
}

/// Adds adapters that the metrics page shows at work and the list does not have. Their base is known if there is just one.
pub fn with_adapters(mut models: Vec<ServedModel>, adapters: &[String]) -> Vec<ServedModel> {
    let mut bases = models.iter().filter(|m| m.parent.is_none());
    let base = match (bases.next(), bases.next()) {
        (Some(only), None) => Some(only.id.clone()),
        _ => None,
    };
    for adapter in adapters {
        if !models.iter().any(|m| m.id == *adapter) {
            models.push(ServedModel {
                id: adapter.clone(),
                parent: base.clone(),
                ..Default::default()
            });
        }
    }
    models.sort_by(|a, b| a.id.cmp(&b.id));
    models
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_models_and_adapters() {
        let body = br#"{"object":"list","data":[
            {"id":"sql-lora","object":"model","created":1,"owned_by":"vllm","root":"/l","parent":"qwen","permission":[]},
            {"id":"qwen","object":"model","created":1,"owned_by":"vllm","root":"Qwen/Q","parent":null,"max_model_len":4096}]}"#;
        let models = parse(body).unwrap();
        assert_eq!(models[0].id, "qwen");
        assert_eq!(models[0].max_model_len, Some(4096));
        assert_eq!(models[0].parent, None);
        assert_eq!(models[1].parent.as_deref(), Some("qwen"));
        assert!(same(
            &models,
            &parse(
                &String::from_utf8_lossy(body)
                    .replace(":1,", ":2,")
                    .into_bytes()
            )
            .unwrap()
        ));
    }

    #[test]
    fn bad_answers_are_errors_and_an_empty_list_is_not() {
        assert_eq!(parse(br#"{"data":[]}"#), Ok(vec![]));
        for bad in [
            &b""[..],
            b"<html>",
            b"{}",
            br#"{"data":[{"name":"x"}]}"#,
            br#"{"data":5}"#,
        ] {
            assert!(parse(bad).is_err());
        }
    }

    #[test]
    fn adapters_at_work_are_served() {
        let base = parse(br#"{"data":[{"id":"qwen"}]}"#).unwrap();
        let models = with_adapters(base, &["a".into(), "qwen".into()]);
        assert_eq!(
            models.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(),
            ["a", "qwen"]
        );
        assert_eq!(models[0].parent.as_deref(), Some("qwen"));
    }

    #[test]
    fn sleep_state() {
        assert!(is_sleeping(br#"{"is_sleeping": true}"#));
        assert!(!is_sleeping(br#"{"is_sleeping": false}"#));
        assert!(!is_sleeping(b"Not Found"));
    }
}
