//! Scheduling configs: checked as a whole, in effect at once, described with what the node really uses.

use super::*;
use quorate_proto::v1::pools_client::PoolsClient;

const GOOD: &str = "\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
    weight: 2
  - pluginRef: max-score-picker
";

fn config(text: &str) -> v1::Resource {
    resource(
        "chat",
        Spec::SchedulingConfig(v1::SchedulingConfigSpec {
            pool: "chat".to_owned(),
            config: text.to_owned(),
        }),
    )
}

async fn described(node: &Node) -> v1::PoolStatus {
    let request = v1::DescribePoolRequest {
        name: "chat".to_owned(),
    };
    let mut api = PoolsClient::new(node.channel.clone());
    let answer = api.describe(request).await.unwrap().into_inner();
    assert_eq!(answer.resource.unwrap().metadata.unwrap().name, "chat");
    answer.status.unwrap()
}

async fn in_effect(node: &Node, generation: u64) -> v1::PoolStatus {
    for _ in 0..1000 {
        let status = described(node).await;
        if status.generation == generation {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("generation {generation} does not get into effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_is_checked_as_a_whole_and_takes_effect() {
    let node = Node::start().await;
    // Checked before its pool is looked for: both are the caller's to put right.
    let bad = GOOD
        .replace("type: queue-scorer", "type: queue-scorrer")
        .replace("max-score-picker\n", "max-scroe-picker\n");
    let refused = node.apply(config(&bad)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let details = refused.get_details_bad_request().unwrap();
    let fields: Vec<_> = details
        .field_violations
        .iter()
        .map(|v| v.field.as_str())
        .collect();
    assert!(fields.len() >= 2, "all that is wrong is said: {fields:?}");
    assert!(
        fields
            .iter()
            .all(|field| field.starts_with("spec.scheduling_config.config")),
        "{fields:?}"
    );
    let lost = node.apply(config(GOOD)).await.unwrap_err();
    assert_eq!(lost.code(), Code::FailedPrecondition);

    node.apply(pool("chat")).await.unwrap();
    node.apply(config(GOOD)).await.unwrap();
    let status = in_effect(&node, 1).await;
    assert_eq!(status.scheduling_config, "chat");
    assert_eq!(status.problem, "");
    node.apply(config(&GOOD.replace("weight: 2", "weight: 3")))
        .await
        .unwrap();
    in_effect(&node, 2).await;
    assert_eq!(
        node.apply(config(&bad)).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(described(&node).await.generation, 2);

    let revisions = node
        .resources()
        .list(v1::ListRequest {
            kind: Kind::ConfigRevision.into(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    let names: Vec<_> = revisions
        .resources
        .iter()
        .map(|r| r.metadata.as_ref().unwrap().name.as_str())
        .collect();
    assert_eq!(names, ["chat:1", "chat:2"]);
    let missing = v1::DescribePoolRequest {
        name: "nobody".to_owned(),
    };
    let error = PoolsClient::new(node.channel.clone())
        .describe(missing)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_hardly_meant_is_a_warning() {
    let node = Node::start().await;
    let target = |model: &str, weight| v1::ModelRewriteTarget {
        model: model.to_owned(),
        weight,
    };
    let spec = v1::ModelRewriteSpec {
        rules: vec![v1::ModelRewriteRule {
            matches: vec![],
            targets: vec![target("a", Some(1)), target("b", None)],
        }],
        ..Default::default()
    };
    let mut request = v1::ApplyRequest {
        resource: Some(resource("w", Spec::ModelRewrite(spec))),
        validate_only: true,
        ..Default::default()
    };
    for validate_only in [true, false] {
        request.validate_only = validate_only;
        let answer = node.resources().apply(request.clone()).await.unwrap();
        let warnings = answer.into_inner().warnings;
        assert!(
            matches!(warnings.as_slice(), [one] if one.contains("never chosen")),
            "{warnings:?}"
        );
    }
}
