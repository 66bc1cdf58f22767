//! Configurations to try everything with.

/// Configurations in llm-d's terms, beyond the presets.
pub(super) const CORPUS: [&str; 9] = [
    // Nothing but the head: the built-in defaults.
    "",
    // The chart's default.
    "plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: queue-scorer, weight: 2}
  - {pluginRef: kv-cache-utilization-scorer, weight: 2}
  - {pluginRef: prefix-cache-scorer, weight: 3}
",
    // Flow control.
    "featureGates: [flowControl]
plugins:
- type: concurrency-detector
  parameters: {maxConcurrency: 132}
- type: queue-scorer
- type: round-robin-fairness-policy
- type: fcfs-ordering-policy
schedulingProfiles:
- name: default
  plugins: [{pluginRef: queue-scorer}]
flowControl:
  maxBytes: 10Gi
  maxRequests: 1k
  defaultRequestTTL: 60s
  saturationDetector: {pluginRef: concurrency-detector}
  priorityBands:
  - {priority: 0, maxRequests: 200, fairnessPolicyRef: round-robin-fairness-policy, orderingPolicyRef: fcfs-ordering-policy}
  - {priority: 100, maxRequests: 500, fairnessPolicyRef: round-robin-fairness-policy}
  - {priority: -10, maxRequests: 50, onSaturation: Shed}
",
    // Prefill and decode.
    "plugins:
- name: prefill-only
  type: prefill-filter
- name: decode-only
  type: decode-filter
- type: prefix-cache-scorer
- type: queue-scorer
- type: prefix-based-pd-decider
  parameters: {nonCachedTokens: 16}
- type: disagg-profile-handler
  parameters: {deciders: {prefill: prefix-based-pd-decider}}
schedulingProfiles:
- name: prefill
  plugins: [{pluginRef: prefill-only}, {pluginRef: prefix-cache-scorer, weight: 2}, {pluginRef: queue-scorer}]
- name: decode
  plugins: [{pluginRef: decode-only}, {pluginRef: prefix-cache-scorer, weight: 2}, {pluginRef: queue-scorer}]
",
    // Without Kubernetes: discovery, sources, gates that mean nothing here.
    "featureGates: [haPopulateNonLeaderDatastore=false]
plugins:
- type: file-discovery
  parameters: {path: /etc/endpoints.yaml, watchFile: true}
- type: metrics-data-source
- type: core-metrics-extractor
- type: openai-parser
- type: active-request-scorer
dataLayer:
  injectDefaults: false
  sources: [{pluginRef: metrics-data-source, extractors: [{pluginRef: core-metrics-extractor}]}]
  discovery: {pluginRef: file-discovery}
requestHandler: {parsers: [{pluginRef: openai-parser}]}
",
    // SLO-aware.
    "plugins:
- type: predicted-latency-producer
  parameters: {streamingMode: true}
- {name: strict, type: prefix-cache-affinity-filter, parameters: {affinityThreshold: 0.99}}
- {name: loose, type: prefix-cache-affinity-filter, parameters: {affinityThreshold: 0.8, explorationProbability: 0.01}}
- type: slo-headroom-tier-filter
- type: latency-scorer
- type: latency-slo-admitter
- type: weighted-random-picker
schedulingProfiles:
- name: default
  plugins: [{pluginRef: strict}, {pluginRef: slo-headroom-tier-filter}, {pluginRef: loose}, {pluginRef: latency-scorer}, {pluginRef: weighted-random-picker}]
",
    // Sessions, labels, attributes.
    "metadata: {name: sessions}
plugins:
- type: session-affinity-filter
  parameters: {strategy: session_id, sessionIdConfig: {sources: [{header: x-s}, {attribute: SessionID}], evictionTtlSeconds: 60}}
- type: session-id-producer
  parameters: {cookieName: sid}
- type: label-selector-filter
  parameters: {matchLabels: {tier: gold}, matchExpressions: [{key: zone, operator: In, values: [a, b]}]}
- type: endpoint-attribute-scorer
  parameters: {attributeKey: num_requests_running, algorithm: {type: linear_lower_is_better, normalization: {fixedRange: {min: 0, max: 64}}}}
- type: header-label-affinity-scorer
  parameters: {headerName: x-zone, labelKey: zone}
- type: random-picker
  parameters: {maxNumOfEndpoints: 3}
",
    // Every scorer and filter that needs no parameters, in the profile that is made of them.
    "plugins:
- type: queue-scorer
- type: running-requests-size-scorer
- type: kv-cache-utilization-scorer
- type: load-aware-scorer
- type: active-request-scorer
- type: token-load-scorer
- type: lora-affinity-scorer
- type: no-hit-lru-scorer
- type: prefix-cache-scorer
- type: mm-embeddings-cache-scorer
- type: context-length-aware
- type: latency-scorer
- type: session-affinity-scorer
- type: topology-affinity-scorer
- type: topology-affinity-filter
- type: header-based-testing-filter
- type: probabilistic-admitter
",
    // Deprecated spellings.
    "plugins:
- {type: by-label, parameters: {label: a, validValues: ['1'], allowsNoLabel: true}}
- {name: second, type: by-label-selector, parameters: {matchLabels: {b: '2'}}}
- type: precise-prefix-cache-scorer
- type: utilization-detector
saturationDetector: {pluginRef: utilization-detector}
parser: {pluginRef: openai-parser}
",
];
