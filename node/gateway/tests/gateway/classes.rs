//! What headers say about a request, and who is believed.

use crate::support::*;
use quorate_gateway::GatewayConfig;
use quorate_routing::{AgentIdentity, PoolPolicy, ServedModel};
use std::sync::Arc;

fn policy() -> PoolPolicy {
    PoolPolicy {
        objectives: Arc::new([("batch", -2), ("chat", 5)].into_iter().collect()),
        agent_identity: Some(Arc::new(AgentIdentity::default())),
        ..PoolPolicy::default()
    }
}

/// A front whose endpoints serve `model`, so that its series are this test's own.
fn front_for(engines: &[&Engine], model: &str, trust: Option<bool>) -> Front {
    let all = endpoints(engines);
    for endpoint in &all {
        endpoint.set_models(vec![ServedModel {
            id: model.into(),
            ..ServedModel::default()
        }]);
    }
    let config = GatewayConfig {
        trust_headers: trust,
        ..config()
    };
    Front::with(config, policy(), all)
}

#[tokio::test]
async fn priority_and_flow_are_labels() {
    let engine = Engine::start(|_| async { json("{}") }).await;
    let front = front_for(&[&engine], "classed", None);
    let body = r#"{"model":"classed"}"#;
    for headers in [
        "x-llm-d-inference-objective: batch\r\nx-gateway-inference-fairness-id: tenant-1\r\n",
        "x-gateway-inference-objective: chat\r\nx-claude-code-session-id: s-9\r\n",
        "x-gateway-inference-objective: unheard-of\r\n",
    ] {
        assert_eq!(front.post_with(CHAT_PATH, headers, body).await.status, 200);
    }
    let page = crate::metrics::recorder().render();
    for labels in [
        r#"fairness_id="tenant-1",priority="-2""#,
        r#"fairness_id="s-9",priority="5""#,
        r#"fairness_id="default-flow",priority="0""#,
    ] {
        let series = format!(
            r#"llm_d_epp_request_total{{model_name="classed",target_model_name="classed",{labels}}} 1"#
        );
        assert!(page.contains(&series), "{series}\n{page}");
    }
    let picked = r#"llm_d_epp_scheduler_attempts_total{status="success",target_model_name="classed",endpoint_name="e0""#;
    assert!(page.contains(picked), "{page}");
}

#[tokio::test]
async fn strangers_are_not_believed() {
    let engine = Engine::start(|seen| async move {
        assert!(!seen.headers.contains_key("x-prefiller-host-port"));
        json("{}")
    })
    .await;
    let front = front_for(&[&engine], "stranger", Some(false));
    let headers = "x-llm-d-inference-objective: batch\r\nsession-id: x\r\n\
        x-prefiller-host-port: 10.0.0.1:1\r\nx-gateway-destination-endpoint-subset: 1.2.3.4:5\r\n";
    let reply = front
        .post_with(CHAT_PATH, headers, r#"{"model":"stranger"}"#)
        .await;
    assert_eq!(reply.status, 200);
    let page = crate::metrics::recorder().render();
    let series = r#"llm_d_epp_request_total{model_name="stranger",target_model_name="stranger",fairness_id="default-flow",priority="0"} 1"#;
    assert!(page.contains(series), "{page}");
}

#[tokio::test]
async fn a_subset_of_the_endpoints_is_respected() {
    let one = Engine::start(|_| async { json("{}") }).await;
    let two = Engine::start(|_| async { json("{}") }).await;
    let front = front_for(&[&one, &two], "subset", None);
    let body = r#"{"model":"subset"}"#;
    let subset = |list: String| format!("x-gateway-destination-endpoint-subset: {list}\r\n");
    for _ in 0..8 {
        let header = subset(format!("10.9.9.9:1, {}", two.addr));
        assert_eq!(front.post_with(CHAT_PATH, &header, body).await.status, 200);
    }
    assert_eq!((one.requests(), two.requests()), (0, 8));
    let reply = front
        .post_with(CHAT_PATH, &subset("10.9.9.9:1".into()), body)
        .await;
    assert_eq!(
        (reply.status, reply.header("x-llm-d-request-dropped-reason")),
        (503, Some("rejected-no-endpoints"))
    );
}
