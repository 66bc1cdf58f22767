//! What a scrape and the access log show after requests.

use crate::support::*;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use quorate_routing::{PoolSpec, RoutingView, ServedModel};
use std::sync::{Arc, OnceLock};

/// The recorder of this process; in place before any gateway starts.
pub fn recorder() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let mut builder = PrometheusBuilder::new();
        for (name, bounds) in quorate_gateway::BUCKETS {
            builder = builder
                .set_buckets_for_metric(Matcher::Full((*name).into()), bounds)
                .unwrap();
        }
        let handle = builder.install_recorder().unwrap();
        quorate_gateway::describe();
        handle
    })
}

/// The value of the series with this name and all of these labels.
fn value(page: &str, name: &str, labels: &[&str]) -> Option<f64> {
    page.lines()
        .filter(|line| line.split(['{', ' ']).next() == Some(name))
        .find(|line| labels.iter().all(|label| line.contains(label)))
        .and_then(|line| line.rsplit(' ').next()?.parse().ok())
}

/// A front whose one endpoint serves `model`, so that its series are this test's own.
fn front_for(engine: &Engine, model: &str) -> Front {
    let front = Front::before(config(), &[engine]);
    front.endpoints[0].set_models(vec![ServedModel {
        id: model.into(),
        ..ServedModel::default()
    }]);
    let pool = PoolSpec {
        name: "p".into(),
        ..PoolSpec::default()
    };
    front.view.store(Arc::new(RoutingView::build([(
        pool,
        front.endpoints.clone(),
    )])));
    front
}

#[tokio::test]
async fn requests_tokens_and_times_are_recorded() {
    let engine = Engine::start(|seen| async move {
        if seen.body.ends_with(b"true}") {
            let (sender, response) = events();
            for text in [
                "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
                "data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n",
                "data: {\"choices\":[],\"usage\":{\"prompt_tok",
                "ens\":11,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\ndata: [DONE]\n\n",
            ] {
                sender.send(Ok(text.into())).await.unwrap();
            }
            response
        } else {
            json(r#"{"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":50,"total_tokens":150}}"#)
        }
    })
    .await;
    let front = front_for(&engine, "metered");
    let label = &[
        "model_name=\"metered\"",
        "fairness_id=\"default-flow\"",
        "priority=\"0\"",
        "target_model_name=\"metered\"",
    ][..];
    assert_eq!(
        front.post(CHAT_PATH, r#"{"model":"metered"}"#).await.status,
        200
    );
    assert_eq!(
        front
            .post(CHAT_PATH, r#"{"model":"metered","stream":true}"#)
            .await
            .status,
        200
    );
    eventually("both are over", || front.handle.in_flight() == 0).await;
    let page = recorder().render();
    for (name, expected) in [
        ("llm_d_epp_request_total", 2.0),
        ("llm_d_epp_request_running", 0.0),
        ("llm_d_epp_request_duration_seconds_count", 2.0),
        ("llm_d_epp_request_size_bytes_sum", 19.0 + 33.0),
        ("llm_d_epp_request_input_tokens_sum", 111.0),
        ("llm_d_epp_request_output_tokens_sum", 52.0),
        ("llm_d_epp_request_cached_tokens_sum", 4.0),
        ("llm_d_epp_request_streaming_itl_seconds_count", 1.0),
        ("llm_d_epp_request_streaming_tpot_seconds_count", 1.0),
    ] {
        assert_eq!(value(&page, name, label), Some(expected), "{name}\n{page}");
    }
    for streaming in ["streaming=\"true\"", "streaming=\"false\""] {
        assert_eq!(
            value(
                &page,
                "llm_d_epp_request_ttft_seconds_count",
                &["model_name=\"metered\"", streaming]
            ),
            Some(1.0)
        );
    }
}

#[tokio::test]
async fn errors_and_strangers_are_counted_without_new_series_for_their_names() {
    let engine = Engine::start(|_| async { answer(500, "application/json", "{}") }).await;
    let front = front_for(&engine, "failing");
    assert_eq!(
        front.post(CHAT_PATH, r#"{"model":"failing"}"#).await.status,
        500
    );
    assert_eq!(
        front
            .post(CHAT_PATH, r#"{"model":"invented-by-a-client"}"#)
            .await
            .status,
        404
    );
    eventually("both are over", || front.handle.in_flight() == 0).await;
    let page = recorder().render();
    let errors = "llm_d_epp_request_error_total";
    assert_eq!(
        value(
            &page,
            errors,
            &["model_name=\"failing\"", "error_code=\"ModelServerError\""]
        ),
        Some(1.0)
    );
    assert!(
        value(
            &page,
            errors,
            &["model_name=\"other\"", "error_code=\"NotFound\""]
        ) >= Some(1.0)
    );
    assert!(!page.contains("invented-by-a-client"));
}

/// What the log writes, shared with the test.
#[derive(Clone, Default)]
struct Lines(Arc<parking_lot::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_access_log_has_a_line_for_each_request_if_it_is_on() {
    let lines = Lines::default();
    let writer = lines.clone();
    // The workers are other threads: the subscriber is the process's, and only this test looks at it.
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(move || writer.clone())
        .init();
    let engine =
        Engine::start(|_| async { json(r#"{"usage":{"prompt_tokens":3,"completion_tokens":4}}"#) })
            .await;
    let front = Front::before(
        quorate_gateway::GatewayConfig {
            access_log: 1.0,
            ..config()
        },
        &[&engine],
    );
    let reply = front.post(CHAT_PATH, CHAT).await;
    let id = reply.header("x-request-id").unwrap().to_owned();
    eventually("the line is written", || {
        String::from_utf8_lossy(&lines.0.lock()).contains(&id)
    })
    .await;
    let text = String::from_utf8(lines.0.lock().clone()).unwrap();
    let line: serde_json::Value =
        serde_json::from_str(text.lines().find(|l| l.contains(&id)).unwrap()).unwrap();
    assert_eq!(line["target"], "quorate::access");
    for (field, value) in [
        ("path", CHAT_PATH.into()),
        ("status", 200.into()),
        ("model", "m".into()),
        ("endpoint", "e0".into()),
        ("attempts", 1.into()),
        ("end", "complete".into()),
        ("input_tokens", 3.into()),
        ("output_tokens", 4.into()),
    ] {
        let value: serde_json::Value = value;
        assert_eq!(line[field], value, "{line}");
    }
}
