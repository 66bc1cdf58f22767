//! Recorded traces in Mooncake's format: one JSON object a line with `timestamp` (ms), `input_length` and `output_length`
//! (tokens) and `hash_ids` (one for each 512-token block of the prompt; equal ids have equal content).

use super::text;
use anyhow::{Context, ensure};
use serde::Deserialize;
use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    time::Duration,
};

const BLOCK_TOKENS: usize = 512;

/// Distinguishes block text from other generated text.
const STREAM: u64 = 3;

/// Most tokens of one prompt: what a body can hold in memory many times over.
const MAX_INPUT: usize = 16 << 20;

/// One request of a trace.
#[derive(Debug, Deserialize)]
pub(crate) struct Row {
    /// Start, ms after the trace's own zero.
    timestamp: f64,
    input_length: usize,
    pub(crate) output_length: u32,
    hash_ids: Vec<u64>,
}

impl Row {
    /// Start, counted from the beginning of the trace.
    pub(crate) fn at(&self) -> Duration {
        Duration::from_secs_f64(self.timestamp / 1e3)
    }

    /// Appends the prompt's text.
    pub(crate) fn append_prompt(&self, out: &mut Vec<u8>) {
        out.reserve(self.input_length * text::TOKEN_BYTES);
        let mut left = self.input_length;
        for id in &self.hash_ids {
            // Only the id decides the content, so that runs with different seeds meet the same cache.
            text::append_tokens(out, &mut text::rng(0, STREAM, *id), left.min(BLOCK_TOKENS));
            left = left.saturating_sub(BLOCK_TOKENS);
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            (0.0..1e12).contains(&self.timestamp),
            "timestamp out of range"
        );
        ensure!(
            (1..=MAX_INPUT).contains(&self.input_length),
            "input_length is not from 1 to {MAX_INPUT}"
        );
        let blocks = self.input_length.div_ceil(BLOCK_TOKENS);
        let have = self.hash_ids.len();
        ensure!(
            have == blocks,
            "input_length needs {blocks} hash_ids of {BLOCK_TOKENS} tokens, not {have}"
        );
        Ok(())
    }
}

/// Reads and checks a trace; its first request becomes time zero. `spread`: requests of one timestamp are spread until the next.
pub(crate) fn load(path: &Path, spread: bool) -> anyhow::Result<Vec<Row>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut rows = Vec::new();
    for (n, line) in BufReader::new(file).lines().enumerate() {
        let at = || format!("{} line {}", path.display(), n + 1);
        let line = line.with_context(at)?;
        if line.trim().is_empty() {
            continue;
        }
        let row: Row = serde_json::from_str(&line).with_context(at)?;
        row.check().with_context(at)?;
        rows.push(row);
    }
    ensure!(!rows.is_empty(), "{} holds no request", path.display());
    rows.sort_by(|a: &Row, b: &Row| a.timestamp.total_cmp(&b.timestamp));
    let zero = rows[0].timestamp;
    for row in &mut rows {
        row.timestamp -= zero;
    }
    if spread {
        spread_ticks(&mut rows);
    }
    Ok(rows)
}

/// Spreads the requests of each timestamp evenly until the next one; those of the last over as long as the tick before.
fn spread_ticks(rows: &mut [Row]) {
    let mut tick = 0.0;
    let mut from = 0;
    while let Some(start) = rows.get(from).map(|row| row.timestamp) {
        let same = rows[from..].partition_point(|row| row.timestamp <= start);
        if let Some(next) = rows.get(from + same) {
            tick = next.timestamp - start;
        }
        for (n, row) in rows[from..from + same].iter_mut().enumerate() {
            row.timestamp = start + tick * n as f64 / same as f64;
        }
        from += same;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut f = tempfile::NamedTempFile::new().unwrap();
        f.write_all(text.as_bytes()).unwrap();
        f
    }

    #[test]
    fn equal_ids_give_equal_prefixes() {
        let f = file(concat!(
            "{\"timestamp\": 2000, \"input_length\": 1300, \"output_length\": 5, \"hash_ids\": [0, 7, 9]}\n\n",
            "{\"timestamp\": 500, \"input_length\": 1024, \"output_length\": 6, \"hash_ids\": [0, 7], \"extra\": 1}\n",
        ));
        let rows = load(f.path(), false).unwrap();
        assert_eq!(
            (rows[0].at(), rows[1].at()),
            (Duration::ZERO, Duration::from_millis(1500))
        );
        let prompt = |r: &Row| {
            let mut out = Vec::new();
            r.append_prompt(&mut out);
            out
        };
        let (a, b) = (prompt(&rows[0]), prompt(&rows[1]));
        assert_eq!((a.len(), b.len()), (1024 * 4, 1300 * 4));
        assert_eq!(a, b[..a.len()]);
        assert_ne!(a[..2048], a[2048..]);
    }

    #[test]
    fn a_coarse_clock_is_spread() {
        let line = |at: u32| {
            format!(
                "{{\"timestamp\":{at},\"input_length\":1,\"output_length\":1,\"hash_ids\":[1]}}\n"
            )
        };
        let f = file(&[0, 0, 0, 3000, 6000, 6000].map(line).concat());
        let at = |spread| {
            let rows = load(f.path(), spread).unwrap();
            rows.iter().map(|row| row.timestamp).collect::<Vec<_>>()
        };
        assert_eq!(at(true), [0.0, 1000.0, 2000.0, 3000.0, 6000.0, 7500.0]);
        assert_eq!(at(false), [0.0, 0.0, 0.0, 3000.0, 6000.0, 6000.0]);
    }

    #[test]
    fn bad_lines_are_named() {
        let good = "{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"hash_ids\":[1]}\n";
        for wrong in [
            "nonsense",
            "{\"timestamp\":0,\"input_length\":1,\"output_length\":1}",
            "{\"timestamp\":0,\"input_length\":513,\"output_length\":1,\"hash_ids\":[1]}",
            "{\"timestamp\":0,\"input_length\":0,\"output_length\":1,\"hash_ids\":[]}",
            "{\"timestamp\":-1,\"input_length\":1,\"output_length\":1,\"hash_ids\":[1]}",
        ] {
            let e = load(file(&format!("{good}{wrong}\n")).path(), false).unwrap_err();
            assert!(format!("{e:#}").contains("line 2"), "{e:#}");
        }
        assert!(load(file("\n").path(), false).is_err());
        assert!(load(Path::new("/no/such/file"), false).is_err());
    }
}
