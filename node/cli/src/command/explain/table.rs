//! A record for people: what the request was, then each attempt with its candidates, who removed them, and what the scorers said.

use std::io::Write;

use quorate_routing::explain::{Attempt, RequestRecord};
use quorate_routing::pipeline::{Candidate, Column, Decision, Name, ProfileRecord, TierBlocks};

use super::{milliseconds, time};
use crate::output::{Table, plain};

type Out<'a> = &'a mut (dyn Write + Send);

/// Writes one record.
pub(super) fn write(record: &RequestRecord, out: Out<'_>) -> std::io::Result<()> {
    let mut line = |what: &str, text: String| writeln!(out, "{what:<11} {}", plain(&text));
    line("Request", record.request_id.clone())?;
    line(
        "Handled by",
        format!("{} ({}) at {}", record.node, record.door, time(record)),
    )?;
    line("Pool", record.pool.to_string())?;
    line("Model", model(record))?;
    if let Some(tenant) = &record.tenant {
        line("Tenant", tenant.clone())?;
    }
    let objective = record
        .objective
        .as_ref()
        .map(|o| format!(", objective {o}"));
    line(
        "Flow",
        format!(
            "{}, priority {}{}",
            record.fairness_id,
            record.priority,
            objective.unwrap_or_default()
        ),
    )?;
    if let Some(flow) = &record.flow {
        let waited = if flow.queued {
            format!("waited {}, ", milliseconds(flow.queue_ms))
        } else {
            "did not wait, ".to_owned()
        };
        line("Queue", format!("{waited}{}", flow.outcome))?;
    }
    if let Some(request) = &record.request {
        let counted = request
            .prompt_tokens
            .map_or_else(String::new, |tokens| format!(" ({tokens} tokens)"));
        line("Prompt", format!("{} bytes{counted}", request.prompt_bytes))?;
    }
    line("Outcome", outcome(record))?;
    for (i, attempt) in record.attempts.iter().enumerate() {
        writeln!(out)?;
        write_attempt(i + 1, attempt, out)?;
    }
    Ok(())
}

fn model(record: &RequestRecord) -> String {
    let mut text = record.model.clone();
    if record.target_model != record.model {
        text = format!("{text} -> {}", record.target_model);
    }
    match &record.rewrite {
        Some(rewrite) => format!("{text} (rewrite {rewrite})"),
        None => text,
    }
}

fn outcome(record: &RequestRecord) -> String {
    let ending = &record.ending;
    let mut parts = vec![format!("{} {}", ending.status, ending.end)];
    if let Some(reason) = &ending.dropped_reason {
        parts.push(reason.to_string());
    }
    if let Some(endpoint) = &ending.endpoint {
        parts.push(format!("served by {endpoint}"));
    }
    parts.push(milliseconds(ending.duration_ms));
    if let Some(ttft) = ending.ttft_ms {
        parts.push(format!("first token after {}", milliseconds(ttft)));
    }
    if let Some(tokens) = ending.input_tokens {
        let cached = ending.cached_tokens.filter(|cached| *cached > 0);
        let cached = cached.map_or_else(String::new, |cached| format!(" ({cached} cached)"));
        parts.push(format!("{tokens} tokens in{cached}"));
    }
    if let Some(tokens) = ending.output_tokens {
        parts.push(format!("{tokens} tokens out"));
    }
    parts.join(", ")
}

fn names(names: &[Name]) -> String {
    let names: Vec<String> = names.iter().map(|name| plain(name)).collect();
    names.join(", ")
}

fn write_attempt(number: usize, attempt: &Attempt, out: Out<'_>) -> std::io::Result<()> {
    let endpoint = attempt
        .endpoint
        .as_deref()
        .map_or("nobody".to_owned(), plain);
    let via = attempt
        .via
        .as_deref()
        .map(|via| format!(" via {}", plain(via)));
    writeln!(
        out,
        "Attempt {number} after {}: {endpoint}{}: {}",
        milliseconds(attempt.at_ms),
        via.unwrap_or_default(),
        plain(&attempt.outcome)
    )?;
    let Some(decision) = &attempt.decision else {
        return writeln!(out, "  a fallback of the decision before");
    };
    writeln!(
        out,
        "  {}: {} candidates, {} prompt tokens reserved",
        plain(&decision.scheduler),
        decision.candidates.len(),
        decision.reserved_tokens
    )?;
    if let Some(refused) = &decision.refused {
        let by = decision
            .refused_by
            .as_deref()
            .map(|by| format!(" by {}", plain(by)));
        writeln!(
            out,
            "  refused{}: {}",
            by.unwrap_or_default(),
            plain(refused)
        )?;
    }
    for (what, who) in [
        ("not usable", &decision.unusable),
        ("refused by their breakers", &decision.breaker_refused),
    ] {
        if !who.is_empty() {
            writeln!(out, "  {what}: {}", names(who))?;
        }
    }
    if decision.profiles.is_empty() {
        return candidates(decision, out);
    }
    for profile in &decision.profiles {
        write_profile(decision, profile, out)?;
    }
    Ok(())
}

fn mark(picked: &[Name], endpoint: &str) -> &'static str {
    match picked.iter().position(|name| *name == *endpoint) {
        Some(0) => "*",
        Some(_) => "+",
        None => " ",
    }
}

/// What the candidates had, where no profile ran.
fn candidates(decision: &Decision, out: Out<'_>) -> std::io::Result<()> {
    if decision.candidates.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["ENDPOINT", "QUEUE", "RUNNING", "KV", "IN FLIGHT", "AGE"]);
    for candidate in &decision.candidates {
        let name = &candidate.endpoint;
        let mut row = vec![format!("{} {name}", mark(&decision.picked, name))];
        row.extend(load(candidate));
        table.row(row);
    }
    table.write("  ", out)
}

fn load(candidate: &Candidate) -> [String; 5] {
    [
        candidate.queue.to_string(),
        candidate.running.to_string(),
        format!("{:.2}", candidate.kv_usage),
        candidate.in_flight.to_string(),
        candidate
            .age_ms
            .map_or_else(String::new, |age| format!("{age} ms")),
    ]
}

/// Where cached blocks lie, if not all of them in the accelerator.
fn by_tier(tiers: &TierBlocks) -> String {
    let named = [
        ("gpu", tiers.gpu),
        ("cpu", tiers.cpu),
        ("disk", tiers.disk),
        ("storage", tiers.storage),
        ("unknown", tiers.unknown),
        ("expected", tiers.expected),
    ];
    let there = named.iter().filter(|(_, blocks)| *blocks > 0);
    let there: Vec<String> = there.map(|(tier, n)| format!("{tier} {n}")).collect();
    match there.as_slice() {
        [] => String::new(),
        [_] if tiers.gpu > 0 => String::new(),
        there => format!(" ({})", there.join(", ")),
    }
}

fn write_profile(
    decision: &Decision,
    profile: &ProfileRecord,
    out: Out<'_>,
) -> std::io::Result<()> {
    writeln!(
        out,
        "  profile {}: {}",
        plain(&profile.profile),
        plain(&profile.picker)
    )?;
    let mut heading = vec!["ENDPOINT".to_owned()];
    for column in &profile.scores {
        heading.push(format!("{} x{}", plain(&column.plugin), column.weight));
    }
    let prefix = decision.produced.iter().find_map(|p| match &p.column {
        Column::Prefix {
            total_blocks,
            matched,
            tiers,
            ..
        } if *total_blocks > 0 => Some((*total_blocks, matched, tiers)),
        _ => None,
    });
    for what in ["TOTAL", "QUEUE", "RUNNING", "KV", "IN FLIGHT", "AGE"] {
        heading.push(what.to_owned());
    }
    if prefix.is_some() {
        heading.push("CACHED".to_owned());
    }
    heading.push("REMOVED BY".to_owned());
    let mut table = Table::new(&heading.iter().map(String::as_str).collect::<Vec<_>>());
    for (at, candidate) in ranked(decision, profile) {
        let name = &candidate.endpoint;
        let mut row = vec![format!("{} {name}", mark(&profile.picked, name))];
        let scored = profile.endpoints.iter().position(|n| n == name);
        let value = |values: &[f64]| {
            let value = scored.and_then(|place| values.get(place));
            value.map_or_else(String::new, |value| format!("{value:.3}"))
        };
        row.extend(profile.scores.iter().map(|column| value(&column.values)));
        row.push(value(&profile.totals));
        row.extend(load(candidate));
        if let Some((total, matched, tiers)) = prefix {
            let blocks = matched.get(at).copied().unwrap_or(0);
            let tiers = tiers.get(at).map(by_tier).unwrap_or_default();
            row.push(format!("{blocks}/{total}{tiers}"));
        }
        let steps = decision.screened.iter().chain(&profile.filters);
        let by = steps
            .filter(|step| step.removed.contains(name))
            .map(|s| s.plugin.to_string());
        row.push(by.collect::<Vec<_>>().join(", "));
        table.row(row);
    }
    table.write("  ", out)
}

/// The candidates with their places: the best sum first, then those that were removed.
fn ranked<'d>(decision: &'d Decision, profile: &ProfileRecord) -> Vec<(usize, &'d Candidate)> {
    let total = |candidate: &Candidate| {
        let place = profile
            .endpoints
            .iter()
            .position(|n| *n == candidate.endpoint);
        place
            .and_then(|place| profile.totals.get(place))
            .copied()
            .unwrap_or(f64::NEG_INFINITY)
    };
    let mut all: Vec<(usize, &Candidate)> = decision.candidates.iter().enumerate().collect();
    all.sort_by(|(_, a), (_, b)| total(b).total_cmp(&total(a)));
    all
}
