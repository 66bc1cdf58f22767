//! A cluster whose node-to-node traffic and control API use mutual TLS, with the certificates that `quorate certs` makes.

use anyhow::{Context, ensure};
use quorate_tests::{Fleet, Launch, Process, Router, cli, until};
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// The `[peer.tls]` and `[control.tls]` sections for files in `dir`.
fn sections(dir: &Path, node: &str) -> String {
    let dir = dir.display();
    ["peer", "control"]
        .map(|section| {
            format!("[{section}.tls]\nca = \"{dir}/ca.crt\"\ncert = \"{dir}/{node}.crt\"\nkey = \"{dir}/{node}.key\"\n")
        })
        .concat()
}

/// An authority, a client certificate `admin`, and a certificate for each node.
async fn authority(dir: &Path, nodes: &[(&str, &str)]) -> anyhow::Result<()> {
    let dir = dir.to_string_lossy();
    cli::run(&["certs", "init", "--out", &dir]).await?.ok()?;
    cli::run(&["certs", "client", "admin", "--ca", &dir])
        .await?
        .ok()?;
    for (name, host) in nodes {
        cli::run(&["certs", "node", name, "--ca", &dir, "--hosts", host])
            .await?
            .ok()?;
    }
    Ok(())
}

#[tokio::test]
async fn three_nodes_and_two_strangers() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let certs = dir.path().join("certs");
    let mut fleet = Fleet::of(3, 0)
        .config(&sections(&certs, "{name}"))
        .prepare()?;
    let hosts: Vec<(String, String)> = fleet
        .routers
        .iter()
        .map(|r| (r.name.clone(), r.host.to_string()))
        .collect();
    let mut nodes: Vec<(&str, &str)> = hosts
        .iter()
        .map(|(name, host)| (name.as_str(), host.as_str()))
        .collect();
    let stranger_host = fleet.subnet().host(50);
    let thief = stranger_host.to_string();
    nodes.push(("router-9", &thief));
    authority(&certs, &nodes).await?;
    for file in ["ca.key", "router-1.key", "admin.key"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(certs.join(file))?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{file} has mode {mode:o}");
    }
    let again = cli::run(&["certs", "init", "--out", &certs.to_string_lossy()]).await?;
    ensure!(again.code != 0, "an authority was overwritten");

    for router in &mut fleet.routers {
        router.start()?;
        router.ready().await?;
    }
    let file = |name: &str| certs.join(name).to_string_lossy().into_owned();
    let (ca, cert, key) = (file("ca.crt"), file("admin.crt"), file("admin.key"));
    let credentials = [
        "--ca",
        ca.as_str(),
        "--cert",
        cert.as_str(),
        "--key",
        key.as_str(),
    ];
    let controls: Vec<String> = fleet
        .controls(&[0, 1, 2])
        .iter()
        .map(ToString::to_string)
        .collect();
    let run = async |router: usize, words: &[&str], input: &str| {
        let server = controls[router].clone();
        let words = [words, &credentials, &["--server", &server]].concat();
        cli::run_with(&words, &[], input).await
    };
    until("three voters", SOON, async || {
        let status = run(1, &["cluster", "status", "-o", "json"], "")
            .await?
            .ok()?;
        let voters = status.to_lowercase().matches("voter").count();
        ensure!(voters >= 3, "{status}");
        anyhow::Ok(())
    })
    .await?;
    let manifest = "apiVersion: quorate/v1\nkind: Setting\nmetadata: {name: secret}\nspec: {json: '{\"a\": 1}'}\n";
    run(2, &["apply", "-f", "-"], manifest).await?.ok()?;
    let read = run(0, &["get", "settings", "secret", "-o", "yaml"], "")
        .await?
        .ok()?;
    ensure!(read.contains("secret"), "{read}");

    // No certificate, the wrong authority, plain text: nobody gets in.
    let server = fleet.routers[0].control().to_string();
    let without = cli::run(&["get", "settings", "--server", &server, "--timeout", "2s"]).await?;
    ensure!(without.code != 0, "plain text was accepted: {without:?}");
    let without = cli::run(&[
        "get",
        "settings",
        "--server",
        &server,
        "--timeout",
        "2s",
        "--ca",
        &ca,
    ])
    .await?;
    ensure!(
        without.code != 0,
        "a client without a certificate was accepted: {without:?}"
    );
    let strange = dir.path().join("strange");
    authority(&strange, &[("router-8", &thief)]).await?;
    let (other_cert, other_key) = (strange.join("admin.crt"), strange.join("admin.key"));
    let refused = cli::run(&[
        "get",
        "settings",
        "--server",
        &server,
        "--timeout",
        "2s",
        "--ca",
        &ca,
        "--cert",
        &other_cert.to_string_lossy(),
        "--key",
        &other_key.to_string_lossy(),
    ])
    .await?;
    ensure!(
        refused.code != 0,
        "a stranger's certificate was accepted: {refused:?}"
    );

    // A node of another authority, and one that uses a name its certificate does not have.
    let first = fleet.routers[0].peer();
    let mut stranger = Router::new(
        fleet.dir(),
        "router-8",
        stranger_host,
        Launch::Join(first),
        "",
        &sections(&strange, "router-8"),
    )?;
    let mut impostor = Router::new(
        fleet.dir(),
        "router-7",
        stranger_host,
        Launch::Join(first),
        "",
        &sections(&certs, "router-9"),
    )?;
    for node in [&mut stranger, &mut impostor] {
        node.start()?;
        let (name, process) = (node.name.clone(), node.process()?);
        stays_out(&name, process).await?;
        if process.is_running() {
            process.kill().await?;
        }
    }
    let status = run(0, &["cluster", "status", "-o", "json"], "")
        .await?
        .ok()?;
    ensure!(
        !status.contains("router-8") && !status.contains("router-7"),
        "{status}"
    );

    // Consensus itself runs over TLS: it survives the loss of a node like any other.
    fleet.routers[0].kill().await?;
    until("a write without the first node", SOON, async || {
        run(
            1,
            &["apply", "-f", "-"],
            &manifest.replace("secret", "secret-2"),
        )
        .await?
        .ok()
    })
    .await?;
    fleet.finish().await
}

/// It says within a short time that it is not let in.
async fn stays_out(name: &str, process: &mut Process) -> anyhow::Result<()> {
    until(&format!("{name} to be refused"), SOON, async || {
        let said = process.output().to_lowercase();
        let refused = ["certificate", "refused by", "unknown issuer", "names node"]
            .iter()
            .any(|word| said.contains(word));
        ensure!(refused, "{said}");
        anyhow::Ok(())
    })
    .await
    .with_context(|| format!("{name} is a stranger"))
}

/// Off loopback there is no plain text, and bad files are named.
#[tokio::test]
async fn plain_text_and_bad_files_are_refused() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let certs = dir.path().join("certs");
    authority(&certs, &[("router-1", "127.0.0.1")]).await?;
    std::fs::write(certs.join("empty.crt"), "")?;
    let base = |peer: &str, rest: &str| {
        format!(
            "[node]\nname = \"router-1\"\ndata_dir = \"{}\"\n[peer]\nlisten = \"{peer}\"\n[control]\nlisten = \"127.0.0.1:0\"\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n[gateway]\nlisten = \"127.0.0.1:0\"\n{rest}",
            dir.path().join("data").display()
        )
    };
    let good = sections(&certs, "router-1");
    for (text, words) in [
        (base("10.1.2.3:7071", ""), vec!["loopback", "peer"]),
        (
            base("127.0.0.1:0", &good.replace("ca.crt", "nobody.crt")),
            vec!["nobody.crt"],
        ),
        (
            base("127.0.0.1:0", &good.replace("router-1.crt", "empty.crt")),
            vec!["empty.crt"],
        ),
        (
            base("127.0.0.1:0", &good.replace("router-1.key", "ca.key")),
            vec!["ca.key"],
        ),
    ] {
        let config = dir.path().join("router.toml");
        std::fs::write(&config, &text)?;
        let run = cli::run(&[
            "router",
            "--bootstrap",
            "--config",
            &config.to_string_lossy(),
        ])
        .await?;
        ensure!(run.code != 0, "started with\n{text}\n{run:?}");
        let said = format!("{}{}", run.stdout, run.stderr);
        ensure!(
            words.iter().any(|word| said.contains(word)),
            "{said}\nsays none of {words:?}"
        );
    }
    Ok(())
}
