//! `quorate dev`: a whole cluster on this machine to try things on. It starts the same commands an operator would, as child
//! processes, and stops all of them when it stops.

mod children;
mod probe;

use crate::dev::children::{Child, Spec};
use anyhow::{Context, bail};
use clap::Args;
use quorate_proto::v1;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What `quorate dev` takes.
#[derive(Args, Clone, Debug)]
pub struct DevArgs {
    /// Router nodes to start.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    routers: u16,
    /// Simulated model servers to start.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=64))]
    endpoints: u16,
    /// Gateway of the first router; the next ones take the following ports.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    listen: SocketAddr,
    /// Where routers keep their state and logs; a second start goes on from there.
    #[arg(long, default_value = ".quorate-dev", value_name = "DIR")]
    data_dir: PathBuf,
    /// Model that the simulators serve.
    #[arg(long, default_value = "llama-8b")]
    model: String,
    /// Model and GPU that the simulators imitate (see `quorate sim --help`).
    #[arg(long, default_value = "llama-8b/h100", value_name = "NAME")]
    profile: String,
    /// Go to the background once ready; `quorate dev --stop` ends it.
    #[arg(long, conflicts_with = "stop")]
    detach: bool,
    /// Stop a cluster that was started with --detach.
    #[arg(long)]
    stop: bool,
    /// Forget the state of earlier starts.
    #[arg(long, conflicts_with = "stop")]
    fresh: bool,
}

/// Ports of the control API, peers and admin listener of the first router; the next router's are ten higher.
const CONTROL_PORT: u16 = 7070;
/// Port of the first simulator.
const SIM_PORT: u16 = 9101;
/// How long the whole cluster may take to come up.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Runs the command.
///
/// # Errors
/// A child did not start (with the end of its log), a port is taken, or the data directory is not writable.
pub fn run(args: DevArgs) -> anyhow::Result<()> {
    if args.stop {
        return children::stop_detached(&args.data_dir);
    }
    if args.fresh {
        match std::fs::remove_dir_all(&args.data_dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e)
                    .with_context(|| format!("cannot remove {}", args.data_dir.display()));
            }
            _ => {}
        }
    }
    std::fs::create_dir_all(args.data_dir.join("logs"))
        .with_context(|| format!("cannot write to {}", args.data_dir.display()))?;
    if args.detach {
        return children::detach(&args.data_dir, READY_WITHIN);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(cluster(args))
}

/// Addresses of one router.
struct Router {
    name: String,
    config: PathBuf,
    gateway: SocketAddr,
    control: SocketAddr,
    peer: SocketAddr,
    admin: SocketAddr,
}

/// Where everything but the gateways listens: the gateways' own address if it is a loopback address (a second cluster can stand
/// on 127.0.0.2), never one that others can reach.
fn inside(args: &DevArgs) -> IpAddr {
    let ip = args.listen.ip();
    if ip.is_loopback() {
        ip
    } else {
        Ipv4Addr::LOCALHOST.into()
    }
}

/// Address of the simulator with this number, from 0.
fn sim_address(args: &DevArgs, number: u16) -> SocketAddr {
    SocketAddr::new(inside(args), SIM_PORT + number)
}

impl Router {
    fn new(args: &DevArgs, number: u16) -> anyhow::Result<Self> {
        let ip = args.listen.ip();
        let at = |base: u16, offset: u16| {
            let port = base
                .checked_add(offset)
                .context("--listen leaves no room for all routers' ports")?;
            anyhow::Ok(SocketAddr::new(ip, port))
        };
        let loopback = inside(args);
        let local =
            |offset: u16| SocketAddr::new(loopback, CONTROL_PORT + 10 * (number - 1) + offset);
        Ok(Self {
            name: format!("router-{number}"),
            config: args.data_dir.join(format!("router-{number}.toml")),
            gateway: at(args.listen.port(), number - 1)?,
            control: local(0),
            peer: local(1),
            admin: local(2),
        })
    }

    fn write_config(&self, data_dir: &Path) -> anyhow::Result<()> {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let text = format!(
            "# Written by `quorate dev` at each start.\n\
             [node]\nname = {}\nregion = \"local\"\ndata_dir = {}\n\
             [peer]\nlisten = \"{}\"\n[control]\nlisten = \"{}\"\n[admin]\nlisten = \"{}\"\n\
             [gateway]\nlisten = \"{}\"\n",
            quoted(&self.name),
            quoted(&data_dir.join(&self.name).to_string_lossy()),
            self.peer,
            self.control,
            self.admin,
            self.gateway,
        );
        std::fs::write(&self.config, text)
            .with_context(|| format!("cannot write {}", self.config.display()))
    }

    fn command(&self, first: &Router) -> Vec<String> {
        let mut command = vec![
            "router".into(),
            "--config".into(),
            self.config.display().to_string(),
        ];
        if self.name == first.name {
            command.push("--bootstrap".into());
        } else {
            command.extend(["--join".into(), first.peer.to_string()]);
        }
        command
    }
}

async fn cluster(args: DevArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let routers: Vec<Router> = (1..=args.routers)
        .map(|n| Router::new(&args, n))
        .collect::<anyhow::Result<_>>()?;
    let mut taken: Vec<SocketAddr> = routers
        .iter()
        .flat_map(|r| [r.gateway, r.control, r.peer, r.admin])
        .collect();
    taken.extend((0..args.endpoints).map(|i| sim_address(&args, i)));
    if let Some(address) = taken
        .iter()
        .find(|a| std::net::TcpListener::bind(a).is_err())
    {
        bail!(
            "{address} is in use: is another `quorate dev` running? (`quorate dev --stop` ends a detached one)"
        );
    }

    let logs = args.data_dir.join("logs");
    let first = routers.first().context("no router to start")?;
    let mut specs = Vec::new();
    if args.endpoints > 0 {
        let listen = sim_address(&args, 0).to_string();
        let flags = [
            "sim",
            "--listen",
            &listen,
            "--count",
            &args.endpoints.to_string(),
            "--model",
            &args.model,
        ];
        let mut command: Vec<String> = flags.iter().map(ToString::to_string).collect();
        command.extend(["--model-profile".into(), args.profile.clone()]);
        specs.push(Spec {
            name: "sim".into(),
            command,
            log: logs.join("sim.log"),
        });
    }
    for router in &routers {
        router.write_config(&args.data_dir)?;
        specs.push(Spec {
            name: router.name.clone(),
            command: router.command(first),
            log: logs.join(format!("{}.log", router.name)),
        });
    }
    println!(
        "starting {} routers and {} simulated model servers ...",
        args.routers, args.endpoints
    );
    let mut running: Vec<Child> = Vec::new();
    for spec in specs {
        running.push(Child::start(spec)?);
    }
    let result = tokio::select! {
        result = serve(&args, &routers, &mut running, started) => result,
        result = children::stop_requested() => result,
    };
    println!("stopping ...");
    children::stop_all(running).await;
    let _ = std::fs::remove_file(args.data_dir.join(children::PID_FILE));
    result
}

/// Brings the cluster up, says so, and then watches the children until the caller drops it.
async fn serve(
    args: &DevArgs,
    routers: &[Router],
    running: &mut [Child],
    started: Instant,
) -> anyhow::Result<()> {
    let deadline = started + READY_WITHIN;
    for router in routers {
        wait_for(
            running,
            deadline,
            &format!("{} to be ready", router.name),
            || probe::status_is_200(router.admin, "/ready"),
        )
        .await?;
        println!(
            "  {} is ready ({:.1} s)",
            router.name,
            started.elapsed().as_secs_f32()
        );
    }
    if args.endpoints > 0 {
        let first = routers.first().context("no router")?;
        declare(args, first.control)
            .await
            .context("cannot declare the pool")?;
        for router in routers {
            wait_for(running, deadline, "the model servers to be in use", || {
                probe::status_is_200(router.gateway, "/ready")
            })
            .await?;
        }
    }
    std::fs::write(
        args.data_dir.join(children::PID_FILE),
        std::process::id().to_string(),
    )?;
    println!(
        "ready in {:.1} s: http://{}/v1",
        started.elapsed().as_secs_f32(),
        args.listen
    );
    print_things_to_try(args, routers);
    children::keep_running(running).await
}

async fn wait_for<F: Future<Output = bool>>(
    running: &mut [Child],
    deadline: Instant,
    what: &str,
    check: impl Fn() -> F,
) -> anyhow::Result<()> {
    loop {
        if check().await {
            return Ok(());
        }
        children::none_has_ended(running)?;
        if Instant::now() > deadline {
            bail!(
                "waited {} s for {what}; see the logs in the data directory",
                READY_WITHIN.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Declares the pool and its endpoints as an operator would. Repeating it changes nothing.
async fn declare(args: &DevArgs, control: SocketAddr) -> anyhow::Result<()> {
    let mut client =
        v1::resources_client::ResourcesClient::connect(format!("http://{control}")).await?;
    let named = |name: String, spec: v1::resource::Spec| v1::ApplyRequest {
        resource: Some(v1::Resource {
            metadata: Some(v1::Metadata {
                name,
                ..Default::default()
            }),
            spec: Some(spec),
        }),
        ..Default::default()
    };
    client
        .apply(named(
            "dev".into(),
            v1::resource::Spec::Pool(v1::PoolSpec::default()),
        ))
        .await?;
    for i in 0..args.endpoints {
        let spec = v1::EndpointSpec {
            pool: "dev".into(),
            url: format!("http://{}", sim_address(args, i)),
            ..Default::default()
        };
        client
            .apply(named(
                format!("sim-{}", i + 1),
                v1::resource::Spec::Endpoint(spec),
            ))
            .await?;
    }
    Ok(())
}

fn print_things_to_try(args: &DevArgs, routers: &[Router]) {
    let me = std::env::current_exe().map_or_else(
        |_| "quorate".into(),
        |exe| {
            let here = std::env::current_dir().ok();
            let near = here
                .as_deref()
                .and_then(|dir| exe.strip_prefix(dir).ok())
                .map(Path::to_path_buf);
            near.unwrap_or(exe).display().to_string()
        },
    );
    let last = routers.last().map_or(args.listen, |r| r.gateway);
    println!(
        r#"
try:
  curl http://{listen}/v1/models
  curl http://{listen}/v1/chat/completions -H 'content-type: application/json' \
       -d '{{"model":"{model}","messages":[{{"role":"user","content":"Hello"}}],"max_tokens":32,"stream":true}}'
  {me} cluster status{server}
  {me} get endpoints{server}
  {me} describe endpoint sim-1{server}
  {me} endpoint drain sim-1{server}            (and --undo)
  {me} bench http --url http://{listen} --model {model} --connections 16 --stream --duration 10s
  pkill -9 -f 'router --config .*{name}'   kills a router: the others go on, and it comes back
routers:  {gateways}
logs:     {logs}
Ctrl-C stops everything; the state stays in {data} for the next start.
"#,
        listen = if routers.len() > 1 { last } else { args.listen },
        model = args.model,
        name = routers.first().map_or("", |r| r.name.as_str()),
        // What the command line talks to by itself.
        server = match routers.first() {
            Some(first) if !inside(args).eq(&Ipv4Addr::LOCALHOST) =>
                format!(" --server {}", first.control),
            _ => String::new(),
        },
        gateways = routers
            .iter()
            .map(|r| format!("http://{}", r.gateway))
            .collect::<Vec<_>>()
            .join(" "),
        logs = args.data_dir.join("logs").display(),
        data = args.data_dir.display(),
    );
}
