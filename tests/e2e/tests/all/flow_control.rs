//! Flow control of a pool whose requests come in through three routers.

use anyhow::{Context, ensure};
use http::Method;
use quorate_tests::http::{Client, chat, get, metric};
use quorate_tests::{Fleet, until};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(60);
const MODEL: &str = "echo-model";
/// Requests at once in the pool. Its one model server shows them all on one page, so that no two moments are added up.
const LIMIT: usize = 8;
/// The most that may be seen there: 5 % more.
const MOST: usize = LIMIT + LIMIT / 20;

/// A pool that takes [`LIMIT`] requests at once, by three routers.
async fn fleet() -> anyhow::Result<Fleet> {
    fleet_with("").await
}

/// The same with more rules of flow control.
async fn fleet_with(rules: &str) -> anyhow::Result<Fleet> {
    let fleet = Fleet::of(3, 1)
        .sim_args(&["--itl", "20ms", "--ttft", "20ms"])
        .start()
        .await?;
    let text = format!(
        "apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
- type: active-request-scorer
- type: concurrency-detector
  parameters: {{maxConcurrency: {LIMIT}}}
- type: round-robin-fairness-policy
schedulingProfiles:
- name: default
  plugins: [{{pluginRef: active-request-scorer}}]
flowControl:
  defaultRequestTTL: 60s
  saturationDetector: {{pluginRef: concurrency-detector}}
  defaultPriorityBand: {{fairnessPolicyRef: round-robin-fairness-policy}}
{rules}---
apiVersion: quorate/v1
kind: Objective
metadata: {{name: sheddable}}
spec: {{priority: -10}}
---
apiVersion: quorate/v1
kind: Objective
metadata: {{name: urgent}}
spec: {{priority: 100}}
"
    );
    fleet
        .cli_with(&[0], &["apply", "-f", "-"], &text)
        .await?
        .ok()?;
    for router in 0..3 {
        until("the config on all routers", SOON, async || {
            let about = fleet
                .cli(&[router], &["describe", "pool", "pool", "-o", "json"])
                .await?
                .json()?;
            let said = &about["status"]["scheduling"];
            ensure!(said["version"] == 1 && said["objectives"] == 2, "{said}");
            anyhow::Ok(())
        })
        .await?;
        // Before that each part of the network goes by what it sees.
        until("all routers to see each other", SOON, async || {
            let page = get(fleet.routers[router].admin(), "/metrics").await?.text();
            let live = metric(&page, "quorate_nodes_live", "");
            ensure!(live == Some(3.0), "{live:?} nodes live");
            anyhow::Ok(())
        })
        .await?;
    }
    Ok(fleet)
}

/// One request from its start to the end of its answer.
async fn ask(gateway: SocketAddr, headers: &[(&str, &str)]) -> anyhow::Result<()> {
    let body = chat(
        MODEL,
        "one two three four five six seven eight nine ten",
        8,
        false,
    );
    Client::connect(gateway)
        .await?
        .call_with(
            Method::POST,
            "/v1/chat/completions",
            headers,
            body.to_string().into(),
        )
        .await?
        .ok()?;
    Ok(())
}

/// Requests in the model server's batch. Those that came since its last step are not in it yet, and those that ended with that
/// step no more: adding its queue would count the places of both.
async fn at_the_engine(server: SocketAddr) -> anyhow::Result<usize> {
    let page = get(server, "/metrics").await?.text();
    let running = metric(&page, "vllm:num_requests_running", "");
    Ok(running.context("no count of running requests")? as usize)
}

/// Closed loops of clients on each router, until told to stop.
struct Clients {
    stop: Arc<AtomicBool>,
    done: Arc<[AtomicUsize; 3]>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Clients {
    fn start(gateways: &[SocketAddr], of_each: [usize; 3]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new([const { AtomicUsize::new(0) }; 3]);
        let mut tasks = JoinSet::new();
        for (router, (gateway, clients)) in gateways.iter().zip(of_each).enumerate() {
            for _ in 0..clients {
                let (stop, done, gateway) = (Arc::clone(&stop), Arc::clone(&done), *gateway);
                tasks.spawn(async move {
                    let tenant = format!("tenant-{router}");
                    while !stop.load(SeqCst) {
                        ask(gateway, &[("x-llm-d-inference-fairness-id", &tenant)]).await?;
                        done[router].fetch_add(1, SeqCst);
                    }
                    anyhow::Ok(())
                });
            }
        }
        Self { stop, done, tasks }
    }

    fn done(&self) -> [usize; 3] {
        [0, 1, 2].map(|router| self.done[router].load(SeqCst))
    }

    /// Every request was answered well.
    async fn end(mut self) -> anyhow::Result<()> {
        self.stop.store(true, SeqCst);
        while let Some(client) = self.tasks.join_next().await {
            client??;
        }
        Ok(())
    }
}

#[tokio::test]
async fn one_limit_is_for_three_routers_and_tenants_share_it() -> anyhow::Result<()> {
    let fleet = fleet().await?;
    let server = fleet.sims[0].address;
    // Skewed arrivals, all at once; each tenant alone could fill the pool.
    let clients = Clients::start(&fleet.gateways(&[0, 1, 2]), [24, 12, 9]);
    let mut most = 0;
    until("a full pool and everybody served", SOON, async || {
        let running = at_the_engine(server).await?;
        most = most.max(running);
        ensure!(running >= LIMIT, "{running} at the engine");
        let done = clients.done();
        ensure!(done.iter().all(|done| *done > 0), "{done:?}");
        anyhow::Ok(())
    })
    .await?;
    let before = clients.done();
    while clients.done().iter().sum::<usize>() < before.iter().sum::<usize>() + 240 {
        most = most.max(at_the_engine(server).await?);
    }
    let after = clients.done();
    ensure!(most <= MOST, "{most} at the engine, {LIMIT} allowed");
    let shares = [0, 1, 2].map(|tenant| (after[tenant] - before[tenant]) as f64);
    let sum: f64 = shares.iter().sum();
    let jain = sum * sum / (3.0 * shares.iter().map(|share| share * share).sum::<f64>());
    ensure!(jain > 0.95, "Jain's index {jain:.3} of {shares:?}");
    let page = get(fleet.routers[0].admin(), "/metrics").await?.text();
    let waited = metric(
        &page,
        "llm_d_epp_flow_control_request_queue_duration_seconds_count",
        "",
    );
    ensure!(waited.is_some_and(|n| n > 0.0), "nobody waited: {waited:?}");
    clients.end().await?;
    fleet.finish().await
}

#[tokio::test]
async fn a_high_band_passes_a_low_one_that_waits_on_another_router() -> anyhow::Result<()> {
    let fleet = fleet().await?;
    let gateways = fleet.gateways(&[0, 1, 2]);
    let clients = Clients::start(&gateways, [60, 0, 0]);
    let server = fleet.sims[0].address;
    until("a queue on the first router", SOON, async || {
        let page = get(fleet.routers[0].admin(), "/metrics").await?.text();
        let queued = metric(&page, "llm_d_epp_flow_control_queue_size", "");
        ensure!(queued.is_some_and(|n| n >= 20.0), "{queued:?} queued");
        ensure!(at_the_engine(server).await? == LIMIT, "not full");
        anyhow::Ok(())
    })
    .await?;
    let before = clients.done()[0];
    let mut passed = Vec::new();
    for _ in 0..5 {
        ask(gateways[1], &[("x-llm-d-inference-objective", "urgent")]).await?;
        passed.push(clients.done()[0] - before - passed.iter().sum::<usize>());
    }
    // It takes the first place that gets free; while its own answer is made, the other places serve two or three others each.
    // Had it to wait its turn, all 52 that were queued before it would have been first.
    ensure!(
        passed.iter().all(|others| *others <= 4 * LIMIT),
        "answered before each urgent one: {passed:?}"
    );
    clients.end().await?;
    fleet.finish().await
}

#[tokio::test]
async fn the_places_of_a_dead_router_are_used_by_the_others() -> anyhow::Result<()> {
    let mut fleet = fleet().await?;
    let server = fleet.sims[0].address;
    for victim in [0, 1] {
        // Clients of the one that dies are not among those that must see no error.
        let (gateways, mut of_each) = (fleet.gateways(&[0, 1, 2]), [12; 3]);
        of_each[victim] = 0;
        let clients = Clients::start(&gateways, of_each);
        let doomed: JoinSet<()> = (0..12)
            .map(|_| {
                let gateway = gateways[victim];
                async move { while ask(gateway, &[]).await.is_ok() {} }
            })
            .collect();
        until("a full pool", SOON, async || {
            ensure!(at_the_engine(server).await? == LIMIT, "not full");
            anyhow::Ok(())
        })
        .await?;
        fleet.routers[victim].kill().await?;
        doomed.join_all().await;
        until("the others to fill the pool", SOON, async || {
            let running = at_the_engine(server).await?;
            ensure!(running == LIMIT, "{running} at the engine");
            anyhow::Ok(())
        })
        .await?;
        let begun = clients.done();
        until("both to go on", SOON, async || {
            let now = clients.done();
            for router in (0..3).filter(|router| *router != victim) {
                ensure!(now[router] > begun[router] + 20, "{begun:?} -> {now:?}");
            }
            anyhow::Ok(())
        })
        .await?;
        clients.end().await?;
        let router = &mut fleet.routers[victim];
        router.start()?;
        router.ready().await?;
    }
    fleet.finish().await
}

#[tokio::test]
async fn a_high_band_takes_the_place_of_a_sheddable_request_on_another_router() -> anyhow::Result<()>
{
    let fleet = fleet_with("  enableEviction: true\n").await?;
    let server = fleet.sims[0].address;
    let gateways = fleet.gateways(&[0, 1, 2]);
    // Answers that take many seconds, through the second router alone.
    let long = "word ".repeat(400);
    let mut sheddable = JoinSet::new();
    for _ in 0..LIMIT {
        let (gateway, body) = (gateways[1], chat(MODEL, &long, 400, false));
        sheddable.spawn(async move {
            let headers = [("x-llm-d-inference-objective", "sheddable")];
            Client::connect(gateway)
                .await?
                .call_with(
                    Method::POST,
                    "/v1/chat/completions",
                    &headers,
                    body.to_string().into(),
                )
                .await
        });
    }
    until("a full pool", SOON, async || {
        let running = at_the_engine(server).await?;
        ensure!(running == LIMIT, "{running} at the engine");
        anyhow::Ok(())
    })
    .await?;
    ask(gateways[0], &[("x-llm-d-inference-objective", "urgent")]).await?;
    let victim = sheddable.join_next().await.context("no request")???;
    let reason = victim.headers.get("x-llm-d-request-dropped-reason");
    ensure!(
        victim.status == 429 && reason.is_some_and(|reason| reason == "evicted"),
        "{} {reason:?} {}",
        victim.status,
        victim.text()
    );
    // One had to go, and nobody else did.
    ensure!(sheddable.try_join_next().is_none(), "more than one ended");
    let pages: [_; 2] = [0, 1].map(|router| fleet.routers[router].admin());
    let mut issued = Vec::new();
    for page in pages {
        let page = get(page, "/metrics").await?.text();
        let name = "llm_d_epp_flow_control_revocations_issued_total";
        issued.push(metric(&page, name, "priority=\"-10\"").unwrap_or(0.0));
    }
    ensure!(issued == [0.0, 1.0], "revoked by each router: {issued:?}");
    sheddable.abort_all();
    fleet.finish().await
}
