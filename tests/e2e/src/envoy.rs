//! A real Envoy in front of a fleet, with the configuration in `deploy/envoy` and the fleet's addresses in it.

use crate::fleet::Fleet;
use crate::http;
use anyhow::{Context, ensure};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Host number of Envoy in the fleet's network.
const HOST: u8 = 201;
/// Where the variant begins in the configuration.
const MODEL_SERVERS: &str = "    # The model servers: the address comes";

/// An Envoy. It ends when it is dropped.
#[derive(Debug)]
pub struct Envoy {
    host: Ipv4Addr,
    child: tokio::process::Child,
    log: PathBuf,
}

/// How it reaches the model servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelServers {
    /// At whatever address the picker names.
    ByHeader,
    /// From a fixed list, with fallbacks.
    Listed,
    /// At whatever address the picker names, over HTTP/2.
    Grpc,
}

impl Envoy {
    /// Starts one that asks these routers, and waits until it gets answers.
    ///
    /// # Errors
    /// `QUORATE_ENVOY` does not name a binary, or it does not come up.
    pub async fn start(
        fleet: &Fleet,
        routers: &[usize],
        servers: ModelServers,
    ) -> anyhow::Result<Self> {
        let binary = std::env::var_os("QUORATE_ENVOY").context(
            "QUORATE_ENVOY is not set: it must name an Envoy binary (tests/run installs one in .venv)",
        )?;
        let host = fleet.subnet().host(HOST);
        let path = fleet.dir().join("envoy.yaml");
        std::fs::write(&path, configuration(fleet, routers, servers, host)?)?;
        let log = fleet.dir().join("envoy.log");
        let file = std::fs::File::create(&log)?;
        let child = tokio::process::Command::new(&binary)
            .arg("-c")
            .arg(&path)
            .args([
                "--use-dynamic-base-id",
                "--concurrency",
                "2",
                "-l",
                "warning",
            ])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", Path::new(&binary).display()))?;
        let envoy = Self { host, child, log };
        // Its own pages come first, its routers are found healthy a moment later.
        crate::until("Envoy to serve", Duration::from_secs(30), async || {
            http::get(envoy.front(), "/v1/models").await?.ok()
        })
        .await
        .with_context(|| envoy.output())?;
        Ok(envoy)
    }

    /// Where clients connect.
    pub fn front(&self) -> SocketAddr {
        (self.host, 8081).into()
    }

    /// Its process id, unless it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// One of its counters or gauges.
    ///
    /// # Errors
    /// It does not answer, or has none of this name.
    pub async fn stat(&self, name: &str) -> anyhow::Result<u64> {
        let admin = (self.host, 9901).into();
        let page = http::get(admin, &format!("/stats?filter=^{name}$"))
            .await?
            .ok()?
            .text();
        let value = page.lines().find_map(|line| line.split_once(": "));
        let (_, value) = value.with_context(|| format!("no {name}: {page:?}"))?;
        Ok(value.trim().parse()?)
    }

    /// What it wrote.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_else(|e| format!("(no log: {e})"))
    }
}

fn configuration(
    fleet: &Fleet,
    routers: &[usize],
    servers: ModelServers,
    host: Ipv4Addr,
) -> anyhow::Result<String> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/envoy");
    let mut text = std::fs::read_to_string(deploy.join("envoy.yaml"))?;
    if servers == ModelServers::Listed {
        let at = text.find(MODEL_SERVERS).context("no model_servers")?;
        text.truncate(at);
        text.push_str(&std::fs::read_to_string(
            deploy.join("model-servers-fallback.yaml"),
        )?);
        let addresses = fleet.sims.iter().map(|sim| sim.address);
        text = list(&text, "192.0.2.1, port_value: 8000", addresses)?;
        let unused = text.lines().filter(|line| !line.contains("192.0.2.2"));
        text = unused.collect::<Vec<_>>().join("\n");
    }
    if servers == ModelServers::Grpc {
        text = text.replace("http_protocol_options: {}", "http2_protocol_options: {}");
    }
    let pickers = routers
        .iter()
        .map(|router| SocketAddr::from((fleet.routers[*router].host, 9002)));
    let (before, picker) = text
        .split_once("              - endpoint:\n")
        .context("no picker")?;
    let (picker, after) = picker
        .split_once("      # A router that stops")
        .context("no end of the picker")?;
    let one = format!("              - endpoint:\n{picker}");
    let all = list(&one, "127.0.0.1, port_value: 9002", pickers)?;
    text = format!("{before}{all}      # A router that stops{after}");
    let text = text
        .replace(
            "address: 0.0.0.0, port_value: 8081",
            &format!("address: {host}, port_value: 8081"),
        )
        .replace(
            "address: 127.0.0.1, port_value: 9901",
            &format!("address: {host}, port_value: 9901"),
        );
    ensure!(!text.contains("127.0.0.1, "), "an address is left: {text}");
    Ok(text)
}

/// The text with the line (or lines up to it) that has `example` repeated for each address.
fn list(
    text: &str,
    example: &str,
    addresses: impl Iterator<Item = SocketAddr>,
) -> anyhow::Result<String> {
    let at = text.find(example).context("the example is not there")?;
    let begin = text[..at].rfind("- endpoint:").context("no list")?;
    let begin = text[..begin].rfind('\n').map_or(0, |line| line + 1);
    let end = at + text[at..].find('\n').context("no end of line")? + 1;
    let mut all = text[..begin].to_owned();
    for address in addresses {
        let real = format!("{}, port_value: {}", address.ip(), address.port());
        all.push_str(&text[begin..end].replace(example, &real));
    }
    all.push_str(&text[end..]);
    Ok(all)
}
