//! Writing: apply and delete.

use quorate_cli::Exit;

use crate::{MANIFEST, fake::Fake, run, run_input, with_manifest};

#[tokio::test]
async fn apply_orders_documents_and_tells_what_it_did() {
    let server = Fake::default().start().await;
    let out = run_input(&server, "apply -f - --dry-run", MANIFEST)
        .await
        .ok();
    assert_eq!(
        out.lines()
            .filter(|line| line.ends_with("created (dry run)"))
            .count(),
        5
    );
    assert!(server.state().applies.is_empty());

    let out = run_input(&server, "apply -f -", MANIFEST).await.ok();
    assert_eq!(
        out,
        "region/eu created\npool/chat created\nendpoint/gpu-2 created\nendpoint/gpu-1 created\nsetting/limits created\n"
    );
    let changed = MANIFEST.replace("2s", "3s");
    let out = run_input(&server, "apply -f - --wait", &changed).await.ok();
    assert!(
        out.contains("pool/chat updated\nendpoint/gpu-2 unchanged\n"),
        "{out}"
    );
    let out = run_input(&server, "apply -f - -o name", MANIFEST)
        .await
        .ok();
    assert!(out.starts_with("region/eu\npool/chat\n"), "{out}");
}

#[tokio::test]
async fn what_get_writes_can_be_applied_again() {
    let server = with_manifest().await;
    for format in ["yaml", "json"] {
        let text = run(&server, &format!("get all -o {format}")).await.ok();
        let out = run_input(&server, "apply -f - --expected-version file", &text)
            .await
            .ok();
        assert_eq!(
            out.lines()
                .filter(|line| line.ends_with(" unchanged"))
                .count(),
            5,
            "{out}"
        );
    }
    let text = run(&server, "get pool chat -o yaml").await.ok();
    let expected = "apiVersion: quorate/v1\nkind: Pool\nmetadata:\n  name: chat\n  resourceVersion: 2\n  incarnation: 2\n  \
                    generation: 1\n  createdAt: 2023-11-14T22:13:20Z\nspec:\n  models:\n  - llama\n  health:\n    interval: 2s\n  \
                    fallback: true\n";
    assert_eq!(text.replace('"', ""), expected);
    // Somebody else was faster.
    let changed = text.replace("2s", "5s");
    run_input(&server, "apply -f - --expected-version file", &changed)
        .await
        .ok();
    let err = run_input(&server, "apply -f - --expected-version file", &changed)
        .await
        .failed(Exit::Conflict);
    assert!(
        err.contains("stdin:1: pool/chat: has version 6, not 2"),
        "{err}"
    );
}

#[tokio::test]
async fn nothing_is_written_if_anything_is_wrong() {
    let server = Fake::default().start().await;
    // Wrong for this program.
    let text = MANIFEST.replace("fallback", "falback");
    let err = run_input(&server, "apply -f -", &text)
        .await
        .failed(Exit::Invalid);
    let expected = "error: stdin:19: spec.falback: unknown field, did you mean \"fallback\"?\n";
    assert_eq!(err, expected);
    // Wrong for the server.
    let text = MANIFEST.replace("http://gpu-1", "ftp://gpu-1");
    let err = run_input(&server, "apply -f -", &text)
        .await
        .failed(Exit::Invalid);
    assert_eq!(
        err,
        "error: stdin:9: endpoint/gpu-1: spec.url: must begin with http:// or https://\n"
    );
    assert!(server.state().applies.is_empty());
    // Refers to nothing: only an endpoint whose pool is in the same file is forgiven.
    let text = "apiVersion: quorate/v1\nkind: Endpoint\nmetadata: {name: a}\nspec: {pool: none, url: \"http://a:1\"}\n";
    let err = run_input(&server, "apply -f -", text)
        .await
        .failed(Exit::Conflict);
    assert_eq!(
        err,
        "error: stdin:1: endpoint/a: there is no pool \"none\"\n"
    );
}

#[tokio::test]
async fn directories_are_read_and_warnings_can_be_errors() {
    let server = Fake::default().start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("b.yaml"), MANIFEST).unwrap();
    let pool = "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {name: llmd, namespace: x}\n\
                spec: {selector: {matchLabels: {app: a}}, targetPorts: [{number: 8000}], endpointPickerRef: {name: e}}\n";
    std::fs::write(path("a.yml"), pool).unwrap();
    std::fs::write(path("notes.txt"), "not a manifest").unwrap();
    let dir_name = dir.path().display();
    let err = run(&server, &format!("apply --strict -f {dir_name}"))
        .await
        .failed(Exit::Invalid);
    assert!(
        err.contains("a.yml:4: spec.endpointPickerRef: is ignored"),
        "{err}"
    );
    assert!(server.state().applies.is_empty());
    let said = run(&server, &format!("apply -f {dir_name}")).await;
    assert!(
        said.err.contains("warning: ") && said.err.contains("metadata.namespace"),
        "{said:?}"
    );
    assert!(said.ok().contains("pool/llmd created\npool/chat created\n"));

    std::fs::write(
        path("c.json"),
        r#"{"apiVersion":"quorate/v1","kind":"Region","metadata":{"name":"eu"}}"#,
    )
    .unwrap();
    let err = run(&server, &format!("apply -f {dir_name}"))
        .await
        .failed(Exit::Invalid);
    assert!(
        err.contains("region/eu is declared in ") && err.contains("b.yaml as well"),
        "{err}"
    );
    let missing = path("none.yaml");
    run(&server, &format!("apply -f {}", missing.display()))
        .await
        .failed(Exit::NotFound);
}

#[tokio::test]
async fn a_lost_answer_does_not_apply_twice() {
    let server = Fake::default().start().await;
    server.state().lose_answers = 1;
    let text = "apiVersion: quorate/v1\nkind: Region\nmetadata: {name: eu}\n";
    let out = run_input(&server, "apply -f -", text).await.ok();
    assert_eq!(out, "region/eu created\n");
    let state = server.state();
    assert_eq!((state.revision, state.applies.len()), (1, 1));
}

#[tokio::test]
async fn delete_by_name_and_by_file() {
    let server = with_manifest().await;
    let out = run(&server, "delete endpoint/gpu-1 setting/limits")
        .await
        .ok();
    assert_eq!(out, "endpoint/gpu-1 deleted\nsetting/limits deleted\n");
    run_input(&server, "delete -f -", MANIFEST)
        .await
        .failed(Exit::NotFound);
    let out = run_input(&server, "delete -f - --ignore-not-found", MANIFEST)
        .await
        .ok();
    assert_eq!(out, "");
    assert!(server.state().resources.is_empty());
    let err = run(&server, "delete node n1").await.failed(Exit::Usage);
    assert!(err.contains("quorate cluster remove"), "{err}");
}

#[tokio::test]
async fn the_fallback_pool_can_change_hands_in_one_run() {
    let server = with_manifest().await;
    let pool = |name: &str, fallback| {
        format!(
            "apiVersion: quorate/v1\nkind: Pool\nmetadata: {{name: {name}}}\nspec: {{fallback: {fallback}}}\n"
        )
    };
    let err = run_input(&server, "apply -f -", &pool("new", true))
        .await
        .failed(Exit::Conflict);
    assert!(
        err.contains("stdin:1: pool/new: another pool is the fallback pool already"),
        "{err}"
    );
    let both = format!("{}---\n{}", pool("new", true), pool("chat", false));
    let out = run_input(&server, "apply -f -", &both).await.ok();
    assert_eq!(out, "pool/chat updated\npool/new created\n");
}
