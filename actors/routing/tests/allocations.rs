//! A pick allocates nothing in the steady state.

mod fleet;

use quorate_routing::config::{EndpointPickerConfig, presets};
use quorate_routing::{Scheduler, SchedulingRequest, Tried};

#[test]
fn a_pick_over_100_endpoints_allocates_nothing() {
    let view = fleet::view(100);
    let route = view.route("m").unwrap();
    let text = "All happy families are alike. ".repeat(100);
    let text = text.as_str();
    let tried = Tried::default();
    let builtin = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n";
    let texts = [
        builtin,
        presets::get("optimized-baseline-v1").unwrap(),
        presets::get("optimized-baseline").unwrap(),
        presets::get("predicted-latency").unwrap(),
    ];
    for config in texts {
        let parsed = EndpointPickerConfig::parse(config).unwrap();
        let scheduler = parsed.config.compile().unwrap().scheduler;
        for prompt in [None, Some(&text)] {
            let request = SchedulingRequest {
                model: "m",
                prompt: prompt.map(|p| p as &dyn quorate_routing::Prompt),
                prompt_bytes: text.len(),
                ..Default::default()
            };
            let pick = |i: u64| {
                let picked = scheduler.schedule(&request, route, &tried, 2, i, None);
                assert!(picked.is_ok());
            };
            // Until every endpoint has had its turn, memory is still being laid out.
            (0..5000).for_each(pick);
            let counted = allocation_counter::measure(|| (5000..5100).for_each(pick));
            assert_eq!(counted.count_total, 0, "{config}");
        }
    }
}
