//! Certificates: made, shown, and used for a connection.

use std::path::Path;

use quorate_cli::Exit;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::{fake::Fake, region, run, run_with_input};

#[tokio::test]
async fn certificates_make_a_mutual_tls_connection() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().display().to_string();
    let certs = |words: String| async move {
        let words: Vec<&str> = words.split(' ').collect();
        run_with_input(&words, b"").await
    };
    certs(format!("certs node n1 --hosts localhost --ca {dir}"))
        .await
        .failed(Exit::NotFound);
    certs(format!("certs init --out {dir}")).await.ok();
    certs(format!(
        "certs node node-1 --hosts localhost,127.0.0.1,[::1] --ca {dir}"
    ))
    .await
    .ok();
    certs(format!("certs client alice --ca {dir} --days 30"))
        .await
        .ok();
    for file in ["ca.key", "ca.crt", "node-1.key", "alice.key"] {
        let mode = std::fs::metadata(Path::new(&dir).join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let shown = certs(format!("certs show {dir}/node-1.crt")).await.ok();
    for part in [
        "Subject      CN=node-1\n",
        "Issuer       CN=quorate cluster CA\n",
        "Names        quorate://node/node-1, localhost, 127.0.0.1, ::1\n",
        "Usage        server, client\n",
        " (825 days left)\n",
    ] {
        assert!(
            shown.replace("(824", "(825").contains(part),
            "{part:?}: {shown}"
        );
    }
    assert!(
        certs(format!("certs show {dir}/ca.crt"))
            .await
            .ok()
            .contains("Usage        CA\n")
    );

    // What there is is not overwritten, and what makes no sense is refused.
    for (words, exit) in [
        (format!("certs init --out {dir}"), Exit::Conflict),
        (format!("certs client alice --ca {dir}"), Exit::Conflict),
        (
            format!("certs node ca --hosts a --ca {dir} --force"),
            Exit::Invalid,
        ),
        (
            format!("certs node Node --hosts a --ca {dir}"),
            Exit::Invalid,
        ),
        (
            format!("certs node b --hosts a:1 --ca {dir}"),
            Exit::Invalid,
        ),
        (
            format!("certs node b --hosts a --ca {dir} --days 36000"),
            Exit::Invalid,
        ),
        (format!("certs show {dir}/alice.key"), Exit::Invalid),
        (format!("certs show {dir}/none.crt"), Exit::NotFound),
    ] {
        certs(words).await.failed(exit);
    }
    certs(format!("certs client alice --ca {dir} --force"))
        .await
        .ok();

    let read = |file: &str| std::fs::read(Path::new(&dir).join(file)).unwrap();
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(read("node-1.crt"), read("node-1.key")))
        .client_ca_root(Certificate::from_pem(read("ca.crt")));
    let server = Fake::default().start_with(Some(tls)).await;
    server.state().put(region("a"));
    let tls = format!("--ca {dir}/ca.crt --cert {dir}/alice.crt --key {dir}/alice.key");
    assert_eq!(
        run(&server, &format!("get regions -o name {tls}"))
            .await
            .ok(),
        "region/a\n"
    );
    // Without a client certificate, without TLS, and with another CA.
    run(
        &server,
        &format!("get regions --timeout 2s --ca {dir}/ca.crt"),
    )
    .await
    .failed(Exit::Unavailable);
    run(&server, "get regions --timeout 2s")
        .await
        .failed(Exit::Unavailable);
    certs(format!("certs init --out {dir}/other")).await.ok();
    let err = run(
        &server,
        &format!("get regions --timeout 2s --ca {dir}/other/ca.crt"),
    )
    .await
    .failed(Exit::Unavailable);
    assert!(err.contains("certificate"), "{err}");
}
