//! Who may ask for what, and how much, over all routers.

use anyhow::{Context, ensure};
use http::{Method, StatusCode};
use quorate_tests::http::{Client, Reply, chat};
use quorate_tests::{Fleet, until};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const ALL: [usize; 3] = [0, 1, 2];
const REQUIRED: &str = "[auth]\nmode = \"required\"\n";

async fn ask(fleet: &Fleet, router: usize, key: &str, model: &str) -> anyhow::Result<Reply> {
    let mut client = Client::connect(fleet.routers[router].gateway()).await?;
    let body = chat(model, "hello", 4, false).to_string();
    let path = "/v1/chat/completions";
    if key.is_empty() {
        return client.call(Method::POST, path, body.into()).await;
    }
    let value = format!("Bearer {key}");
    let headers = [("authorization", value.as_str())];
    client
        .call_with(Method::POST, path, &headers, body.into())
        .await
}

async fn make_key(fleet: &Fleet, args: &[&str]) -> anyhow::Result<String> {
    let mut words = vec!["key", "create"];
    words.extend_from_slice(args);
    let key = fleet.cli(&ALL, &words).await?.ok()?;
    Ok(key.trim().to_owned())
}

#[tokio::test]
async fn keys_are_asked_for_and_revoked_everywhere() -> anyhow::Result<()> {
    let fleet = Fleet::of(3, 1).config(REQUIRED).start().await?;
    for router in &fleet.routers {
        ensure!(
            router
                .whole_log()
                .contains("clients must show an API key or a token"),
            "{}",
            router.whole_log()
        );
    }
    for (key, code) in [("", "missing_api_key"), ("qk-wrong", "invalid_api_key")] {
        let refused = ask(&fleet, 0, key, "echo-model").await?;
        ensure!(refused.status == StatusCode::UNAUTHORIZED, "{refused:?}");
        ensure!(
            refused.json()?["error"]["code"] == code,
            "{}",
            refused.text()
        );
    }
    fleet
        .cli(&ALL, &["tenant", "create", "search", "--model", "echo*"])
        .await?
        .ok()?;
    let key = make_key(&fleet, &["prod", "--tenant", "search"]).await?;
    for router in ALL {
        until("the key to be good", SOON, async || {
            ask(&fleet, router, &key, "echo-model")
                .await?
                .ok()
                .map(|_| ())
        })
        .await?;
        let refused = ask(&fleet, router, &key, "other").await?;
        ensure!(
            refused.status == StatusCode::FORBIDDEN || refused.status == StatusCode::NOT_FOUND,
            "{refused:?}"
        );
    }
    // Not in the state, not in the list, not in the log.
    let listed = fleet.cli(&ALL, &["get", "all", "-o", "yaml"]).await?.ok()?;
    ensure!(
        listed.contains("prod") && !listed.contains(&key),
        "{listed}"
    );
    for router in &fleet.routers {
        ensure!(!router.whole_log().contains(&key), "the key is in the log");
    }
    fleet.cli(&ALL, &["key", "revoke", "prod"]).await?.ok()?;
    for router in ALL {
        until("the key to be bad", SOON, async || {
            let refused = ask(&fleet, router, &key, "echo-model").await?;
            ensure!(refused.status == StatusCode::UNAUTHORIZED, "{refused:?}");
            anyhow::Ok(())
        })
        .await?;
    }
    let keys = fleet.cli(&ALL, &["key", "list"]).await?.ok()?;
    ensure!(keys.contains("revoked"), "{keys}");
    fleet.finish().await
}

#[tokio::test]
async fn a_limit_holds_for_all_routers_together() -> anyhow::Result<()> {
    let fleet = Fleet::of(3, 1).config(REQUIRED).start().await?;
    // So slow that nothing comes back within the test.
    fleet
        .cli(
            &ALL,
            &["tenant", "create", "slow", "--requests-per-second", "0.01"],
        )
        .await?
        .ok()?;
    let key = make_key(&fleet, &["slow", "--tenant", "slow"]).await?;
    until("the key to be known everywhere", SOON, async || {
        for router in ALL {
            let page = quorate_tests::http::get(fleet.routers[router].admin(), "/metrics").await?;
            let keys = quorate_tests::http::metric(&page.text(), "quorate_api_keys", "");
            ensure!(keys == Some(1.0), "{keys:?}");
        }
        anyhow::Ok(())
    })
    .await?;
    // Every router has heard of the others' use before the first request.
    tokio::time::sleep(Duration::from_secs(1)).await;
    ask(&fleet, 0, &key, "echo-model").await?.ok()?;
    for router in ALL {
        until("the limit to be reached", SOON, async || {
            let limited = ask(&fleet, router, &key, "echo-model").await?;
            ensure!(
                limited.status == StatusCode::TOO_MANY_REQUESTS,
                "{limited:?}"
            );
            let retry: u64 = limited
                .headers
                .get("retry-after")
                .context("no Retry-After")?
                .to_str()?
                .parse()?;
            ensure!((1..=1000).contains(&retry), "{retry}");
            ensure!(
                limited.json()?["error"]["code"] == "rate_limit_exceeded",
                "{}",
                limited.text()
            );
            anyhow::Ok(())
        })
        .await?;
    }
    fleet.finish().await
}
