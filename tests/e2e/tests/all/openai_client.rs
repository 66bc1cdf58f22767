//! The official OpenAI client for Python through the gateway.

use anyhow::{Context, ensure};
use quorate_tests::Fleet;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[tokio::test]
async fn the_openai_client_for_python() -> anyhow::Result<()> {
    let python = std::env::var_os("QUORATE_PYTHON").map(PathBuf::from).context(
        "QUORATE_PYTHON is not set: it must name a Python with tests/python/requirements.txt installed (tests/run makes one in .venv)",
    )?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python/openai_client.py");
    let fleet = Fleet::of(2, 2).start().await?;
    for router in &fleet.routers {
        let run = tokio::process::Command::new(&python)
            .arg(&script)
            .arg(format!("http://{}/v1", router.gateway()))
            .arg("echo-model")
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(120), run)
            .await
            .context("the client hangs")?
            .with_context(|| format!("cannot run {}", python.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        println!("{said}");
        ensure!(
            output.status.success(),
            "{said}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    fleet.finish().await
}
