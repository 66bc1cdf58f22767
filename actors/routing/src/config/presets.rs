//! Configurations that come with the program.

/// Name and YAML text.
pub const ALL: [(&str, &str); 5] = [
    (
        "optimized-baseline",
        include_str!("presets/optimized-baseline.yaml"),
    ),
    (
        "optimized-baseline-v1",
        include_str!("presets/optimized-baseline-v1.yaml"),
    ),
    (
        "precise-prefix",
        include_str!("presets/precise-prefix.yaml"),
    ),
    (
        "predicted-latency",
        include_str!("presets/predicted-latency.yaml"),
    ),
    ("pd", include_str!("presets/pd.yaml")),
];

/// A preset's text.
pub fn get(name: &str) -> Option<&'static str> {
    ALL.iter()
        .find(|(of, _)| *of == name)
        .map(|(_, text)| *text)
}
