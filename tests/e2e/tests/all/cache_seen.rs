//! What `quorate cache` shows of the map, asked of routers that do not own the engine.

use crate::cache::{MODEL, SOON, agreed, ask, config, fill, in_effect, prompt, tokenizes};
use anyhow::{Context, ensure};
use quorate_tests::http::chat;
use quorate_tests::{Fleet, cli, until};
use serde_json::Value;

async fn shown(fleet: &Fleet, router: usize, words: &[&str], input: &str) -> anyhow::Result<Value> {
    let words = [&["cache"], words, &["-o", "json"]].concat();
    fleet.cli_with(&[router], &words, input).await?.json()
}

/// The row of a server's endpoint.
fn row<'v>(status: &'v Value, endpoint: &str) -> anyhow::Result<&'v Value> {
    let rows = status["holders"].as_array().context("no holders")?;
    let found = rows.iter().find(|row| row["endpoint"] == endpoint);
    found.with_context(|| format!("no row of {endpoint}: {status:#}"))
}

/// The number of the router that owns a server's endpoint, once that is followed and the group has what its owner told.
async fn owner(fleet: &Fleet, asked: usize, sim: usize) -> anyhow::Result<usize> {
    let name = &fleet.sims[sim].name;
    let mut found = 0;
    until("the owner to be followed", SOON, async || {
        let status = shown(fleet, asked, &["status", "pool"], "").await?;
        let row = row(&status, name)?;
        let owner = fleet.routers.iter().position(|r| row["owner"] == *r.name);
        found = owner.with_context(|| format!("no owner: {row:#}"))?;
        let link = &row["link"];
        ensure!(
            link["state"] == "live" && link["digest"] == "agrees" && link["waitingBytes"] == 0,
            "{row:#}"
        );
        ensure!(row["map"]["gpu"] == link["blocks"]["gpu"], "{row:#}");
        anyhow::Ok(())
    })
    .await?;
    Ok(found)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(-1.0)
}

#[tokio::test]
async fn any_router_shows_what_only_the_owner_knows() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let tokenizer = dir.path().join("tokenizer").display().to_string();
    cli::run(&["sim", "--write-tokenizer", &tokenizer])
        .await?
        .ok()?;
    let mut fleet = Fleet::of(3, 2)
        .sim_args(&[
            "--tokenizer",
            &tokenizer,
            "--kv-events-format",
            "vllm-0.33",
            "--prefix-caching-hash-algo",
            "sha256_cbor",
            "--kv-events-config",
            "{\"endpoint\": \"tcp://{host}:5557\", \"replay_endpoint\": \"tcp://{host}:6557\", \"bind\": true}",
        ])
        .start()
        .await?;
    // Nothing is to be seen of a pool that does not look.
    let plain = fleet.cli(&[0], &["cache", "status", "pool"]).await?;
    plain.fails(4, &["precise-prefix-cache-producer"])?;
    let unknown = fleet.cli(&[0], &["cache", "top", "nobody"]).await?;
    unknown.fails(3, &["nobody"])?;
    let text = config(&fleet).await?;
    fleet
        .cli_with(&[0], &["apply", "-f", "-"], &text)
        .await?
        .ok()?;
    for router in 0..3 {
        in_effect(&fleet, router).await?;
        tokenizes(&fleet, router).await?;
    }
    for topic in 0..4 {
        fill(&fleet, topic % 2, topic).await?;
    }
    agreed(&fleet, &[0, 1, 2], 0.0).await?;

    // Two routers that do not own the engine, and its owner, say the same of it.
    let owner_of_first = owner(&fleet, 0, 0).await?;
    let (near, other) = ((owner_of_first + 1) % 3, (owner_of_first + 2) % 3);
    for asked in [near, other, owner_of_first] {
        let status = shown(&fleet, asked, &["status"], "").await?;
        ensure!(status["node"] == *fleet.routers[asked].name, "{status:#}");
        let first = row(&status, &fleet.sims[0].name)?;
        let link = &first["link"];
        ensure!(
            first["owner"] == *fleet.routers[owner_of_first].name
                && link["keys"] == "exact"
                && link["scheme"] == "sha256_cbor"
                && link["blockTokens"] == 16
                && link["conditions"].is_null(),
            "{first:#}"
        );
        ensure!(
            number(&first["map"]["gpu"]) > 0.0
                && number(&link["batches"]) > 0.0
                && number(&link["proposed"]) > 0.0
                && (0.0..60.0).contains(&number(&link["heardSeconds"])),
            "{first:#}"
        );
        let replicas = status["replicas"].as_array().context("no replicas")?;
        let leaders = replicas.iter().filter(|of| of["role"] == "leader").count();
        ensure!(replicas.len() == 3 && leaders == 1, "{status:#}");
        ensure!(
            replicas
                .iter()
                .all(|of| of["digest"] == replicas[0]["digest"]
                    && of["blocks"] == replicas[0]["blocks"]
                    && of["mismatches"] == 0
                    && of["shards"] == 64),
            "{status:#}"
        );
        ensure!(status["silent"].is_null(), "{status:#}");
    }

    // The prompt's own server has it, but for its last words.
    let body = chat(MODEL, &prompt(0, 1), 2, false).to_string();
    let found = shown(&fleet, near, &["lookup", "pool", "--file", "-"], &body).await?;
    let cached = found["cached"].as_array().context("no rows")?;
    let of = |sim: usize| {
        cached
            .iter()
            .find(|of| of["endpoint"] == *fleet.sims[sim].name)
    };
    let (first, second) = (of(0).context("no row")?, of(1).context("no row")?);
    let tokens = number(&found["tokens"]);
    let missed = tokens - number(&first["cachedTokens"]);
    ensure!(
        first["first"] == true && second["first"] == false && tokens > 500.0 && missed < 64.0,
        "{found:#}"
    );
    ensure!(number(&second["cachedTokens"]) < tokens / 2.0, "{found:#}");
    // The server counts the same tokens, and the router was right about them.
    let (there, really_missed) = ask(&fleet, near, &prompt(0, 1)).await?;
    ensure!(
        there == 0 && really_missed == missed,
        "server {there}, {really_missed} tokens missed, {missed} predicted"
    );
    let by_text = shown(
        &fleet,
        other,
        &["lookup", "pool", "--prompt", &prompt(0, 1)],
        "",
    )
    .await?;
    ensure!(by_text["tokenIds"] == found["tokenIds"], "{by_text:#}");

    // Every router's picks count, whoever is asked.
    for question in 2..8 {
        ask(&fleet, question % 3, &prompt(0, question)).await?;
    }
    ask(&fleet, other, &prompt(1, 1)).await?;
    let mut top = Value::Null;
    until("the answers to be counted", SOON, async || {
        top = shown(&fleet, near, &["top", "pool"], "").await?;
        let usage = &top["pools"][0]["usage"];
        ensure!(usage["picks"] == 8 && usage["answers"] == 8, "{top:#}");
        anyhow::Ok(())
    })
    .await?;
    ensure!(
        top["answered"].as_array().map(Vec::len) == Some(3),
        "{top:#}"
    );
    let pool = &top["pools"][0];
    let (predicted, found_there) = (
        number(&pool["usage"]["predictedRatio"]),
        number(&pool["usage"]["foundRatio"]),
    );
    ensure!(
        predicted > 0.8 && (predicted - found_there).abs() < 0.02,
        "{top:#}"
    );
    // The topic that seven prompts had in common, in the map under the same name.
    let hottest = &pool["prefixes"][0];
    ensure!(
        hottest["requests"] == 7 && hottest["hits"] == 7 && hottest["engines"] == 1,
        "{top:#}"
    );
    let keys = found["prefixes"].as_array().context("no prefixes")?;
    ensure!(
        keys.iter().any(|of| of["key"] == hottest["key"]),
        "{top:#} {found:#}"
    );

    // A router of another region knows what this one last said, and asks the owners itself.
    let far = fleet.prepare_router()?;
    let file = std::fs::read_to_string(&fleet.routers[far].config)?;
    let file = file.replace("region = \"here\"", "region = \"there\"");
    std::fs::write(&fleet.routers[far].config, file)?;
    fleet.routers[far].start()?;
    fleet.routers[far].ready().await?;
    in_effect(&fleet, far).await?;
    tokenizes(&fleet, far).await?;
    until("the other region to be told", SOON, async || {
        let status = shown(&fleet, far, &["status"], "").await?;
        let said = &status["otherRegions"][0];
        ensure!(
            said["region"] == "here"
                && said["pools"][0]["engines"] == 2
                && number(&said["pools"][0]["blocks"]["gpu"]) > 0.0
                && number(&said["pools"][0]["usage"]["foundRatio"]) > 0.8
                && number(&said["ageSeconds"]) < 15.0,
            "{status:#}"
        );
        let first = row(&status, &fleet.sims[0].name)?;
        ensure!(
            first["link"]["state"] == "live" && number(&first["map"]["gpu"]) > 0.0,
            "{first:#}"
        );
        anyhow::Ok(())
    })
    .await?;

    // Its owner is dead: that is said, and soon another one follows the engine.
    fleet.routers[owner_of_first].kill().await?;
    let said = fleet.cli(&[near], &["cache", "status"]).await?;
    let name = &fleet.routers[owner_of_first].name;
    ensure!(
        said.stderr.contains(name.as_str()) && said.stderr.contains("could not be asked"),
        "{said:?}"
    );
    said.ok()?;
    until("another router to follow the engine", SOON, async || {
        let next = owner(&fleet, near, 0).await?;
        ensure!(next == near || next == other, "router {next} owns it");
        anyhow::Ok(())
    })
    .await?;
    fleet.routers[owner_of_first].start()?;
    fleet.routers[owner_of_first].ready().await?;
    fleet.finish().await
}
