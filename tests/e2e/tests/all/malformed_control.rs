//! Nonsense for the control API, in manifests and in the configuration: a clear error each, nothing changed.

use anyhow::{Context, ensure};
use quorate_proto::v1;
use quorate_tests::{Fleet, cli, endpoint, raw_call, setting};
use tonic::Code;

#[tokio::test]
async fn malformed_manifests() -> anyhow::Result<()> {
    let fleet = Fleet::of(1, 0).start().await?;
    let good = "apiVersion: quorate/v1\nkind: Pool\nmetadata: {name: good}\nspec: {}\n";
    let of = |spec: &str| {
        format!("apiVersion: quorate/v1\nkind: Pool\nmetadata: {{name: bad}}\nspec:\n{spec}")
    };
    let deep = "[".repeat(5000);
    for (text, words) in [
        ("a: [b\n".to_owned(), vec!["stdin:1:"]),
        ("\tkind: Pool".to_owned(), vec!["stdin:1:", "apiVersion"]),
        ("kind: Pool\n".to_owned(), vec!["apiVersion"]),
        ("apiVersion: quorate/v1\nkind: Pol\nmetadata: {name: x}\nspec: {}\n".to_owned(), vec!["Pol", "Pool"]),
        ("apiVersion: quorate/v9\nkind: Pool\nmetadata: {name: x}\nspec: {}\n".to_owned(), vec!["quorate/v9"]),
        (of("  healt: {}\n"), vec!["healt", "health"]),
        (of("  health: {interval: 2parsecs}\n"), vec!["interval"]),
        (of("  health: {interval: 2s, interval: 3s}\n"), vec!["interval"]),
        (of("  targetPorts: [70000]\n"), vec!["70000"]),
        ("apiVersion: quorate/v1\nkind: Pool\nmetadata: {name: Not A Name}\nspec: {}\n".to_owned(), vec!["name"]),
        (format!("{good}---\n{}", of("  healt: {}\n")), vec!["healt"]),
        (format!("x: {deep}"), vec![]),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b".to_owned(), vec![]),
        (
            "apiVersion: quorate/v1\nkind: Endpoint\nmetadata: {name: e}\nspec: {pool: p, url: 'ftp://x'}\n".to_owned(),
            vec!["url"],
        ),
        ("{\"apiVersion\": \"quorate/v1\",".to_owned(), vec!["stdin:"]),
    ] {
        let run = fleet.cli_with(&[0], &["apply", "-f", "-"], &text).await?;
        let start: String = text.chars().take(120).collect();
        ensure!(run.code == 5, "{start}\nexit code {}: {}{}", run.code, run.stdout, run.stderr);
        for word in &words {
            ensure!(run.stderr.contains(word), "{start}\ndoes not say {word}: {}", run.stderr);
        }
        ensure!(run.stderr.lines().count() <= 12, "too long to read:\n{}", run.stderr);
        let pools = fleet.control(0)?.list(v1::Kind::Pool, v1::Consistency::Linearizable).await?;
        ensure!(pools.is_empty(), "{start}\nleft something behind: {pools:?}");
    }
    fleet
        .cli(&[0], &["apply", "-f", "/nowhere/at/all.yaml"])
        .await?
        .fails(3, &["/nowhere/at/all.yaml"])?;
    fleet.finish().await
}

#[tokio::test]
async fn malformed_grpc() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(1, 1).start().await?;
    let address = fleet.routers[0].control();
    let frame = |payload: &[u8]| {
        let mut frame = vec![0];
        frame.extend(
            u32::try_from(payload.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        frame.extend(payload);
        frame
    };
    let mut rng = fastrand::Rng::with_seed(11);
    let noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(300).collect();
    const APPLY: &str = "/quorate.v1.Resources/Apply";
    let (invalid, unimplemented, internal) = (["3", "3"], ["12", "12"], ["13", "11"]);
    // INTERNAL (or OUT_OF_RANGE for a size) is what the protocol itself asks for when a frame is broken.
    for (what, path, body, expected) in [
        ("bytes that are no message", APPLY, frame(&noise), internal),
        (
            "a length that is a lie",
            APPLY,
            vec![0, 0, 0, 100, 0, 1, 2, 3],
            internal,
        ),
        (
            "a message of 2 GiB announced",
            APPLY,
            vec![0, 0x7f, 0xff, 0xff, 0xff, 1],
            internal,
        ),
        (
            "a compressed message",
            APPLY,
            vec![1, 0, 0, 0, 2, 8, 1],
            internal,
        ),
        ("nothing", APPLY, vec![], internal),
        ("an empty message", APPLY, frame(&[]), invalid),
        (
            "an unknown method",
            "/quorate.v1.Resources/Explode",
            frame(&[]),
            unimplemented,
        ),
        (
            "an unknown service",
            "/no.such.Service/Call",
            frame(&[]),
            unimplemented,
        ),
    ] {
        let (status, _) = raw_call(address, path, body)
            .await
            .with_context(|| what.to_owned())?;
        ensure!(
            expected.contains(&status.as_str()),
            "{what}: grpc-status {status}"
        );
    }

    let control = fleet.control(0)?;
    let good = endpoint("e", "pool", fleet.sims[0].address);
    let named = |name: &str| {
        let mut resource = setting("x", "1");
        resource.metadata = Some(v1::Metadata {
            name: name.to_owned(),
            ..Default::default()
        });
        resource
    };
    let with_url = |url: &str| {
        let mut resource = good.clone();
        if let Some(v1::resource::Spec::Endpoint(spec)) = &mut resource.spec {
            spec.url = url.to_owned();
        }
        resource
    };
    let long = "n".repeat(254);
    let cases = [
        (
            "no spec",
            v1::Resource {
                spec: None,
                ..good.clone()
            },
        ),
        (
            "no metadata",
            v1::Resource {
                metadata: None,
                ..good.clone()
            },
        ),
        ("an empty name", named("")),
        ("a name with a slash", named("a/b")),
        ("a name in capitals", named("Name")),
        ("a long name", named(&long)),
        ("a name with a NUL", named("a\0b")),
        ("no JSON", setting("x", "{not json")),
        (
            "huge JSON",
            setting("x", &format!("\"{}\"", "x".repeat(600 << 10))),
        ),
        ("no URL", with_url("")),
        ("a URL of another kind", with_url("ftp://127.0.0.1")),
        ("a URL with a path traversal", with_url("http://")),
        ("a bad port", with_url("http://127.0.0.1:99999")),
    ];
    for (what, resource) in cases {
        let status = control
            .apply(resource, "", None)
            .await
            .err()
            .with_context(|| format!("{what} was accepted"))?;
        ensure!(
            matches!(
                status.code(),
                Code::InvalidArgument | Code::OutOfRange | Code::ResourceExhausted
            ),
            "{what}: {status}"
        );
        ensure!(!status.message().is_empty(), "{what}: no message");
        ensure!(
            !status.details().is_empty() || status.code() != Code::InvalidArgument,
            "{what}: no details: {status}"
        );
    }
    let node = v1::Resource {
        spec: Some(v1::resource::Spec::Node(v1::NodeSpec::default())),
        ..good.clone()
    };
    let status = control
        .apply(node, "", None)
        .await
        .err()
        .context("a client declared a node")?;
    ensure!(
        matches!(
            status.code(),
            Code::InvalidArgument | Code::FailedPrecondition | Code::PermissionDenied
        ),
        "{status}"
    );
    let status = control
        .apply(setting("x", "1"), &"k".repeat(129), None)
        .await
        .err()
        .context("a key of 129 characters")?;
    ensure!(status.code() == Code::InvalidArgument, "{status}");
    for token in ["nonsense", "\u{1F600}", &"z".repeat(10_000)] {
        let status = control
            .watch(v1::Kind::Setting, token)
            .await
            .err()
            .context("a token of nonsense")?;
        ensure!(
            matches!(status.code(), Code::InvalidArgument | Code::OutOfRange),
            "{status}"
        );
        let request = v1::ListRequest {
            kind: v1::Kind::Setting.into(),
            page_token: token.to_owned(),
            ..Default::default()
        };
        let status = control
            .resources()
            .list(request)
            .await
            .err()
            .context("a page token of nonsense")?;
        ensure!(status.code() == Code::InvalidArgument, "{status}");
    }
    for kind in [0, 99, -1] {
        let request = v1::GetRequest {
            kind,
            name: "x".into(),
            ..Default::default()
        };
        let status = control
            .resources()
            .get(request)
            .await
            .err()
            .context("an unknown kind")?;
        ensure!(
            status.code() == Code::InvalidArgument,
            "kind {kind}: {status}"
        );
    }
    let settings = control
        .list(v1::Kind::Setting, v1::Consistency::Linearizable)
        .await?;
    ensure!(settings.is_empty(), "something was written: {settings:?}");
    fleet.still_serves().await?;
    fleet.finish().await
}

#[tokio::test]
async fn malformed_configuration() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("router.toml");
    let listen = ["peer", "control", "admin", "gateway"]
        .map(|section| format!("[{section}]\nlisten = \"127.0.0.1:0\"\n"));
    let unlucky = format!("[node]\nname = \"Not A Name\"\n{}", listen.concat());
    for (text, words) in [
        ("[node\n", vec!["line 1"]),
        (
            "[node]\nnam = \"x\"\n",
            vec!["line 2", "nam", "did you mean `name`?"],
        ),
        ("[gatway]\n", vec!["gatway", "did you mean `gateway`?"]),
        ("[peer]\nlisten = \"nowhere\"\n", vec!["line 2"]),
        ("[peer]\nlisten = \"10.0.0.1:7071\"\n", vec!["loopback"]),
        ("[cluster]\nauto_voters = 2\n", vec!["auto_voters", "odd"]),
        ("[cluster]\ntiming = \"wam\"\n", vec!["did you mean `wan`?"]),
        (
            "[gateway]\nconnect_timeout = \"0\"\n",
            vec!["connect_timeout"],
        ),
        ("[gateway]\nconnect_timeout = 3\n", vec!["line 2"]),
        ("[log]\nlevel = \"loud loud\"\n", vec!["loud"]),
        (unlucky.as_str(), vec!["node name", "lower-case"]),
        ("\u{0}\u{1}", vec!["line 1"]),
    ] {
        // A node that would start after all must not touch the real place.
        let data = dir.path().join("data");
        std::fs::write(&path, text)?;
        let (path, data_dir) = (path.to_string_lossy(), data.to_string_lossy());
        let args = [
            "router",
            "--bootstrap",
            "--config",
            &path,
            "--data-dir",
            &data_dir,
        ];
        // If it starts after all, it ends with its standard input.
        let run = cli::run_with(&args, &[("QUORATE_STOP_WITH_STDIN", "1")], "").await?;
        ensure!(run.code != 0, "started with {text:?}");
        let said = format!("{}{}", run.stdout, run.stderr);
        for word in words {
            ensure!(
                said.contains(word),
                "{text:?} does not say {word:?}: {said}"
            );
        }
        ensure!(!said.contains("panicked"), "{said}");
        ensure!(
            !data.join("raft").exists(),
            "{text:?} made a data directory"
        );
    }
    std::fs::write(&path, [0xff, 0xfe, 0x00])?;
    cli::run(&["router", "--config", &path.to_string_lossy()])
        .await?
        .fails(1, &["router.toml"])?;
    cli::run(&["router", "--config", "/nowhere/router.toml"])
        .await?
        .fails(1, &["/nowhere/router.toml"])?;
    cli::run(&["router", "--bogus"])
        .await?
        .fails(2, &["--bogus"])?;
    Ok(())
}
