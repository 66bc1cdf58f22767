//! Scheduling configs, tenants and keys from the command line.

use super::*;
use quorate_proto::v1::{ApiKeySpec, ConfigRevisionSpec, Kind, SchedulingConfigSpec, TenantSpec};

const EPP: &str = "\
# Ours.
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
";

fn stored(server: &Running, kind: Kind, name: &str) -> Option<Spec> {
    let state = server.fake.lock();
    let resource = state.resources.get(&(kind.into(), name.to_owned()))?;
    resource.spec.clone()
}

fn config_of(server: &Running, name: &str) -> SchedulingConfigSpec {
    match stored(server, Kind::SchedulingConfig, name) {
        Some(Spec::SchedulingConfig(spec)) => spec,
        other => panic!("{other:?}"),
    }
}

fn keep_version(server: &Running, name: &str, generation: u64, config: &str) {
    let revision = ConfigRevisionSpec {
        scheduling_config: name.to_owned(),
        generation,
        pool: "chat".to_owned(),
        config: config.to_owned(),
    };
    server.fake.lock().put(Resource {
        metadata: Some(Metadata {
            name: format!("{name}:{generation}"),
            ..Metadata::default()
        }),
        spec: Some(Spec::ConfigRevision(revision)),
    });
}

#[tokio::test]
async fn a_config_is_for_the_only_pool_or_for_the_one_that_is_named() {
    let server = Fake::default().start().await;
    let none = run_input(&server, "apply -f -", EPP).await;
    assert_eq!(none.exit, Exit::Invalid);
    assert!(
        none.err.contains("stdin:2:") && none.err.contains("no pool yet"),
        "{}",
        none.err
    );
    // With the pool in the same run.
    let pool = "apiVersion: quorate/v1\nkind: Pool\nmetadata: {name: chat}\nspec: {}\n---\n";
    let said = run_input(&server, "apply -f -", &format!("{pool}{EPP}"))
        .await
        .ok();
    assert!(said.contains("schedulingconfig/chat created"), "{said}");
    let spec = config_of(&server, "chat");
    assert_eq!((spec.pool.as_str(), spec.config.as_str()), ("chat", EPP));
    let again = run_input(&server, "apply -f -", EPP).await.ok();
    assert!(again.contains("unchanged"), "{again}");

    let other = pool.replace("chat", "code").replace("---\n", "");
    run_input(&server, "apply -f -", &other).await.ok();
    let which = run_input(&server, "apply -f -", EPP).await;
    assert_eq!(which.exit, Exit::Invalid);
    assert!(
        which.err.contains("--pool") && which.err.contains("chat, code"),
        "{}",
        which.err
    );
    run_input(&server, "apply -f - --pool code", EPP).await.ok();
    assert_eq!(config_of(&server, "code").pool, "code");
    let twice = format!("{EPP}---\n{EPP}");
    let twice = run_input(&server, "apply -f - --pool code", &twice).await;
    assert!(twice.err.contains("declared twice"), "{}", twice.err);
    run_input(&server, "delete -f - --pool code", EPP)
        .await
        .ok();
    assert!(stored(&server, Kind::SchedulingConfig, "code").is_none());
}

#[tokio::test]
async fn versions_are_listed_compared_and_taken_back() {
    let server = Fake::default().start().await;
    let pool = "apiVersion: quorate/v1\nkind: Pool\nmetadata: {name: chat}\nspec: {}\n";
    run_input(&server, "apply -f -", pool).await.ok();
    let newer = EPP.replace("queue", "random");
    for text in [EPP, newer.as_str()] {
        run_input(&server, "apply -f -", text).await.ok();
    }
    keep_version(&server, "chat", 1, EPP);
    keep_version(&server, "chat", 2, &newer);
    keep_version(&server, "other", 7, "x");
    let history = run(&server, "config history chat").await.ok();
    assert_eq!(history.lines().count(), 3, "{history}");
    assert!(
        history
            .lines()
            .nth(1)
            .is_some_and(|line| line.contains("present")),
        "{history}"
    );
    let diff = run(&server, "config diff chat").await.ok();
    assert!(
        diff.contains("-- type: queue-scorer") && diff.contains("+- type: random-scorer"),
        "{diff}"
    );
    assert_eq!(run(&server, "config show chat").await.ok(), newer);
    assert_eq!(run(&server, "config show chat --version 1").await.ok(), EPP);
    let missing = run(&server, "config diff chat 1 9").await;
    assert_eq!(missing.exit, Exit::NotFound);
    assert!(
        missing.err.contains("config history chat"),
        "{}",
        missing.err
    );

    let back = run(&server, "config rollback chat").await.ok();
    assert!(back.contains("version 3, as it was in version 1"), "{back}");
    assert_eq!(config_of(&server, "chat").config, EPP);
    let same = run(&server, "config rollback chat 1").await.ok();
    assert!(same.contains("already"), "{same}");
    let request = server.fake.lock().applies.last().cloned().unwrap();
    assert!(request.expected_version.is_some_and(|version| version > 0));
    assert_eq!(
        run(&server, "config history nobody").await.exit,
        Exit::NotFound
    );
}

#[tokio::test]
async fn a_key_is_shown_once_and_kept_as_a_digest() {
    let server = Fake::default().start().await;
    let said = run(
        &server,
        "tenant create search --model llama* --objective fast --default-objective fast --requests-per-second 0.5 --concurrent 3",
    )
    .await
    .ok();
    assert!(said.contains("tenant/search created"), "{said}");
    let Some(Spec::Tenant(TenantSpec { models, limits, .. })) =
        stored(&server, Kind::Tenant, "search")
    else {
        panic!("no tenant");
    };
    assert_eq!(models, ["llama*"]);
    assert_eq!(limits.unwrap().requests_per_second, Some(0.5));
    let made = run(&server, "key create prod --tenant search --expires 24h").await;
    assert!(made.err.contains("only time"), "{}", made.err);
    let secret = made.ok();
    let secret = secret.trim();
    let Some(Spec::ApiKey(ApiKeySpec {
        sha256,
        hint,
        expires_at,
        ..
    })) = stored(&server, Kind::ApiKey, "prod")
    else {
        panic!("no key");
    };
    let digest = ring::digest::digest(&ring::digest::SHA256, secret.as_bytes());
    assert_eq!(sha256, digest.as_ref());
    assert!(secret.starts_with(&hint) && hint.len() < 12);
    assert!(expires_at.is_some());
    // A name is not taken over.
    let taken = run(&server, "key create prod --tenant search").await;
    assert_eq!(taken.exit, Exit::Conflict);

    let listed = run(&server, "key list --tenant search").await.ok();
    assert!(
        listed.contains("valid") && !listed.contains(secret),
        "{listed}"
    );
    let none = run(&server, "key list --tenant nobody").await;
    assert!(none.err.contains("nothing found"), "{}", none.err);
    run(&server, "key revoke prod").await.ok();
    assert!(run(&server, "key list").await.ok().contains("revoked"));
    run(&server, "tenant disable search").await.ok();
    assert!(run(&server, "tenant list").await.ok().contains("yes"));
    run(&server, "tenant enable search").await.ok();
    assert_eq!(run(&server, "key revoke nobody").await.exit, Exit::NotFound);
}
