//! How a fleet is to be, and how it is started.

use crate::control::pool;
use crate::fleet::{Fleet, POOL};
use anyhow::Context;
use quorate_proto::v1;

/// What to build.
#[derive(Clone, Debug)]
pub struct FleetBuilder {
    pub(crate) routers: usize,
    pub(crate) sims: usize,
    pub(crate) sim_args: Vec<String>,
    pub(crate) gateway: String,
    pub(crate) extra: String,
    pub(crate) pool: v1::Resource,
}

impl Fleet {
    /// A fleet of so many routers and model servers.
    pub fn of(routers: usize, sims: usize) -> FleetBuilder {
        FleetBuilder {
            routers,
            sims,
            sim_args: Vec::new(),
            gateway: String::new(),
            extra: String::new(),
            pool: pool(POOL),
        }
    }
}

impl FleetBuilder {
    /// Model servers answer at once; these arguments of `quorate sim` change that. `{host}` stands for a server's address.
    #[must_use]
    pub fn sim_args(mut self, args: &[&str]) -> Self {
        self.sim_args = args.iter().map(ToString::to_string).collect();
        self
    }

    /// Lines for the `[gateway]` section.
    #[must_use]
    pub fn gateway(mut self, lines: &str) -> Self {
        self.gateway = lines.to_owned();
        self
    }

    /// Lines for the end of the configuration; `{name}` and `{host}` stand for the router's name and address.
    #[must_use]
    pub fn config(mut self, lines: &str) -> Self {
        self.extra = lines.to_owned();
        self
    }

    /// The pool's rules.
    #[must_use]
    pub fn pool(mut self, spec: v1::PoolSpec) -> Self {
        self.pool.spec = Some(v1::resource::Spec::Pool(spec));
        self
    }

    /// Leaves the routers to the caller: see [`Fleet::prepare_router`].
    ///
    /// # Errors
    /// No loopback network or no temporary directory is to be had.
    pub fn prepare(self) -> anyhow::Result<Fleet> {
        let routers = self.routers;
        let mut fleet = Fleet::empty(self)?;
        for _ in 0..routers {
            fleet.prepare_router()?;
        }
        Ok(fleet)
    }

    /// Starts everything and waits until every router would use every model server (if there are both).
    ///
    /// # Errors
    /// Something does not come up.
    pub async fn start(self) -> anyhow::Result<Fleet> {
        let (routers, sims) = (self.routers, self.sims);
        let mut fleet = Fleet::empty(self)?;
        for _ in 0..sims {
            fleet.add_sim().await?;
        }
        for _ in 0..routers {
            fleet.add_router().await?;
        }
        if sims > 0 && routers > 0 {
            let control = fleet.control(0)?;
            control
                .apply(fleet.builder.pool.clone(), "", None)
                .await
                .context("declaring the pool")?;
            for sim in 0..sims {
                fleet.declare(sim).await?;
            }
            for sim in 0..sims {
                fleet.used(sim).await?;
            }
        }
        Ok(fleet)
    }
}
