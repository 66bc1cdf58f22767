//! Configs that come with the program, and checking configs without a server.

use super::*;

#[tokio::test]
async fn every_preset_is_valid() {
    let names = run_with_input(&["config", "presets"], b"").await.ok();
    assert!(names.contains("optimized-baseline"), "{names}");
    for name in names.lines() {
        let text = run_with_input(&["config", "presets", name], b"").await.ok();
        let said = run_with_input(&["config", "validate", "-"], text.as_bytes())
            .await
            .ok();
        assert!(said.contains("valid"), "{name}: {said}");
    }
    let typo = run_with_input(&["config", "presets", "optimised-baseline"], b"").await;
    assert_eq!(typo.exit, Exit::NotFound);
    assert!(
        typo.err.contains("did you mean \"optimized-baseline"),
        "{}",
        typo.err
    );
}

#[tokio::test]
async fn everything_wrong_is_said_at_once() {
    let text = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: queue-scorrer\n\
                schedulingProfiles:\n- name: d\n  plugins:\n  - pluginRef: nobody\n";
    let said = run_with_input(&["config", "validate", "-"], text.as_bytes()).await;
    assert_eq!(said.exit, Exit::Invalid);
    assert!(
        said.err.contains("queue-scorer") && said.err.contains("nobody"),
        "{}",
        said.err
    );
}
