//! A cluster and its model servers.

use crate::builder::FleetBuilder;
use crate::control::{Control, endpoint, setting};
use crate::load::LoadSpec;
use crate::router::{Launch, Router};
use crate::sim::Sim;
use crate::subnet::Subnet;
use crate::{cli, http, until};
use anyhow::{Context, bail, ensure};
use quorate_proto::v1;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// The pool that a fleet's endpoints belong to.
pub const POOL: &str = "pool";
/// The model that a fleet's servers serve.
pub const MODEL: &str = "echo-model";
/// First host number of the model servers.
const FIRST_SIM: usize = 101;

/// Routers and model servers that run, and are ended when this is dropped.
#[derive(Debug)]
pub struct Fleet {
    /// The nodes, in the order in which they joined.
    pub routers: Vec<Router>,
    /// The model servers.
    pub sims: Vec<Sim>,
    pub(crate) builder: FleetBuilder,
    subnet: Subnet,
    dir: TempDir,
    finished: bool,
}

impl Fleet {
    pub(crate) fn empty(builder: FleetBuilder) -> anyhow::Result<Self> {
        Ok(Self {
            routers: Vec::new(),
            sims: Vec::new(),
            builder,
            subnet: Subnet::claim()?,
            dir: tempfile::Builder::new().prefix("quorate-e2e-").tempdir()?,
            finished: false,
        })
    }

    /// Where configurations, data directories and logs are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The loopback network of this fleet.
    pub fn subnet(&self) -> &Subnet {
        &self.subnet
    }

    /// A node that is not started yet: the first one bootstraps, the others join through the first.
    ///
    /// # Errors
    /// Its files cannot be written.
    pub fn prepare_router(&mut self) -> anyhow::Result<usize> {
        let number = self.routers.len() + 1;
        let launch = self
            .routers
            .first()
            .map_or(Launch::Bootstrap, |first| Launch::Join(first.peer()));
        let host = self.subnet.host(u8::try_from(number)?);
        let router = Router::new(
            self.dir.path(),
            &format!("router-{number}"),
            host,
            launch,
            &self.builder.gateway,
            &self
                .builder
                .extra
                .replace("{name}", &format!("router-{number}"))
                .replace("{host}", &host.to_string()),
        )?;
        self.routers.push(router);
        Ok(number - 1)
    }

    /// Starts one more node and waits until it is ready.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn add_router(&mut self) -> anyhow::Result<usize> {
        let index = self.prepare_router()?;
        let router = &mut self.routers[index];
        router.start()?;
        router.ready().await?;
        Ok(index)
    }

    /// Starts one more model server, without declaring it.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn add_sim(&mut self) -> anyhow::Result<usize> {
        let number = self.sims.len();
        let address = SocketAddr::from((self.subnet.host(u8::try_from(FIRST_SIM + number)?), 8000));
        let mut args: Vec<String> = vec!["--model".into(), MODEL.into()];
        if !self.builder.sim_args.iter().any(|arg| arg == "--mode") {
            args.extend(["--mode".into(), "echo".into()]);
        }
        let host = address.ip().to_string();
        let own = self.builder.sim_args.iter();
        args.extend(own.map(|arg| arg.replace("{host}", &host)));
        let mut sim = Sim::new(
            self.dir.path(),
            &format!("sim-{}", number + 1),
            address,
            &args,
        );
        sim.start().await?;
        self.sims.push(sim);
        Ok(number)
    }

    /// Declares a model server as an endpoint of the pool.
    ///
    /// # Errors
    /// The cluster refuses.
    pub async fn declare(&self, sim: usize) -> anyhow::Result<()> {
        let sim = &self.sims[sim];
        let resource = endpoint(&sim.name, POOL, sim.address);
        self.any_control()?
            .apply(resource, "", None)
            .await
            .context("declaring an endpoint")?;
        Ok(())
    }

    /// Waits until every running router would use the model server.
    ///
    /// # Errors
    /// One does not; says why.
    pub async fn used(&mut self, sim: usize) -> anyhow::Result<()> {
        self.endpoint_is(
            sim,
            v1::endpoint_status::State::Ready,
            Duration::from_secs(30),
        )
        .await?;
        // What the gateways route by follows a moment later.
        for index in self.running() {
            let gateway = self.routers[index].gateway();
            let path = format!("/v1/models/{MODEL}");
            until(
                &format!("{} to route by model", self.routers[index].name),
                Duration::from_secs(30),
                async || {
                    let answer = http::get(gateway, &path).await?;
                    // Where clients must say who they are, the test's own requests will show it.
                    if answer.status.as_u16() == 401 {
                        return Ok(());
                    }
                    answer.ok().map(|_| ())
                },
            )
            .await?;
        }
        Ok(())
    }

    /// Waits until every running router sees the model server in this state.
    ///
    /// # Errors
    /// One does not; says what it sees.
    pub async fn endpoint_is(
        &mut self,
        sim: usize,
        state: v1::endpoint_status::State,
        within: Duration,
    ) -> anyhow::Result<()> {
        let name = self.sims[sim].name.clone();
        for index in self.running() {
            let (router, control) = (self.routers[index].name.clone(), self.control(index)?);
            until(
                &format!("{router} to see {name} {state:?}"),
                within,
                async || {
                    let status = control.describe(&name).await?;
                    ensure!(
                        status.state() == state,
                        "{:?}, because {:?}",
                        status.state(),
                        status.reasons
                    );
                    ensure!(
                        state != v1::endpoint_status::State::Ready || !status.models.is_empty(),
                        "ready, but its models are not known yet"
                    );
                    anyhow::Ok(())
                },
            )
            .await?;
        }
        Ok(())
    }

    /// Numbers of the routers that run.
    pub fn running(&mut self) -> Vec<usize> {
        self.routers
            .iter_mut()
            .enumerate()
            .filter_map(|(i, r)| r.is_running().then_some(i))
            .collect()
    }

    /// A control client of a router.
    ///
    /// # Errors
    /// Never.
    pub fn control(&self, router: usize) -> anyhow::Result<Control> {
        self.routers[router].client()
    }

    /// A control client of the first router.
    fn any_control(&self) -> anyhow::Result<Control> {
        self.control(0)
    }

    /// Control addresses of these routers.
    pub fn controls(&self, routers: &[usize]) -> Vec<SocketAddr> {
        routers.iter().map(|i| self.routers[*i].control()).collect()
    }

    /// Gateways of these routers.
    pub fn gateways(&self, routers: &[usize]) -> Vec<SocketAddr> {
        routers.iter().map(|i| self.routers[*i].gateway()).collect()
    }

    /// Waits until all running routers agree on a leader that runs, and gives its number.
    ///
    /// # Errors
    /// There is none.
    pub async fn leader(&mut self) -> anyhow::Result<usize> {
        let running = self.running();
        let mut controls = Vec::new();
        for index in &running {
            controls.push((*index, self.control(*index)?));
        }
        until("a leader", Duration::from_secs(15), async || {
            let mut leader = None;
            for (_, control) in &controls {
                let status = control.status().await?;
                let member = status
                    .members
                    .iter()
                    .find(|m| m.node_id == status.leader_id);
                let name = member.context("no leader known")?.name.clone();
                match &leader {
                    None => leader = Some(name),
                    Some(known) => ensure!(*known == name, "one says {known}, another {name}"),
                }
            }
            let name = leader.context("no router runs")?;
            let index = running
                .iter()
                .copied()
                .find(|i| self.routers[*i].name == name);
            index.with_context(|| format!("the leader {name} does not run"))
        })
        .await
    }

    /// The leader's number, and all other running routers.
    ///
    /// # Errors
    /// There is no leader.
    pub async fn leader_and_followers(&mut self) -> anyhow::Result<(usize, Vec<usize>)> {
        let leader = self.leader().await?;
        let followers = self
            .running()
            .into_iter()
            .filter(|i| *i != leader)
            .collect();
        Ok((leader, followers))
    }

    /// Hands the leadership to a router.
    ///
    /// # Errors
    /// It does not get it.
    pub async fn make_leader(&mut self, router: usize) -> anyhow::Result<()> {
        if self.leader().await? == router {
            return Ok(());
        }
        let control = self.control(router)?;
        let id = control.node_id(&self.routers[router].name).await?;
        control
            .transfer(id)
            .await
            .context("transferring the leadership")?;
        until(
            "the leadership to be handed over",
            Duration::from_secs(10),
            async || {
                let leader = self.leader().await?;
                ensure!(leader == router, "router number {leader} leads");
                anyhow::Ok(())
            },
        )
        .await
    }

    /// Waits until these routers have applied all that the leader has, and says the index.
    ///
    /// # Errors
    /// One stays behind.
    pub async fn caught_up(&self, routers: &[usize]) -> anyhow::Result<u64> {
        let mut controls = Vec::new();
        for index in routers {
            controls.push(self.control(*index)?);
        }
        until(
            "all to have applied the same",
            Duration::from_secs(20),
            async || {
                let mut seen = Vec::new();
                for control in &controls {
                    seen.push(control.status().await?.applied_index);
                }
                ensure!(
                    seen.windows(2).all(|pair| pair[0] == pair[1]),
                    "applied: {seen:?}"
                );
                seen.first().copied().context("no router")
            },
        )
        .await
    }

    /// Load on these routers: `connections` each, half of them streams.
    pub fn load(&self, routers: &[usize], connections: usize) -> LoadSpec {
        LoadSpec {
            targets: self.gateways(routers),
            connections,
            streams: true,
            model: MODEL.into(),
            max_tokens: 16,
        }
    }

    /// Runs the command line against these routers.
    ///
    /// # Errors
    /// It cannot be run.
    pub async fn cli(&self, routers: &[usize], args: &[&str]) -> anyhow::Result<cli::Output> {
        self.cli_with(routers, args, "").await
    }

    /// The same with a standard input.
    ///
    /// # Errors
    /// It cannot be run.
    pub async fn cli_with(
        &self,
        routers: &[usize],
        args: &[&str],
        input: &str,
    ) -> anyhow::Result<cli::Output> {
        let servers: Vec<String> = self
            .controls(routers)
            .iter()
            .map(ToString::to_string)
            .collect();
        cli::run_with(args, &[("QUORATE_SERVER", &servers.join(","))], input).await
    }

    /// Every router answers a request and takes a write.
    ///
    /// # Errors
    /// One does not.
    pub async fn still_serves(&mut self) -> anyhow::Result<()> {
        for index in 0..self.routers.len() {
            let router = &mut self.routers[index];
            ensure!(router.is_running(), "{} has ended", router.name);
            let question = http::chat(MODEL, "still here", 8, false);
            http::post(router.gateway(), "/v1/chat/completions", &question)
                .await?
                .ok()?;
            self.control(index)?
                .apply(setting("still-here", "1"), "", None)
                .await?;
        }
        Ok(())
    }

    /// The end of a test that went well: every router that runs ends in order, and none has panicked.
    ///
    /// # Errors
    /// One does not end in order, or has panicked.
    pub async fn finish(mut self) -> anyhow::Result<()> {
        for index in self.running() {
            self.routers[index].stop().await?;
        }
        for router in &self.routers {
            let log = router.whole_log();
            if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
                bail!("{}: {line}", router.name);
            }
        }
        self.finished = true;
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // The test failed: its output is all that is left of it.
        let routers = self.routers.iter().map(|r| (&r.name, r.whole_log()));
        let sims = self.sims.iter().map(|s| (&s.name, s.whole_log()));
        for (name, log) in routers.chain(sims) {
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("---- {name}: last lines of its log ----");
            for line in &lines[lines.len().saturating_sub(60)..] {
                eprintln!("{line}");
            }
        }
    }
}
