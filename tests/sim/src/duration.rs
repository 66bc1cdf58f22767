//! Durations on the command line and in JSON: Go's notation (`250us`, `1.5s`, `1m30s`), a bare number in milliseconds.

use std::time::Duration;

/// Parses a duration. The error says what is wrong with the text.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if let Ok(millis) = text.parse::<f64>() {
        return from_secs(millis / 1000.0, text);
    }
    let mut secs = 0.0;
    let mut rest = text;
    if rest.is_empty() {
        return Err("an empty text is not a duration".into());
    }
    while !rest.is_empty() {
        let number_end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let number: f64 = number
            .parse()
            .map_err(|_| format!("`{text}` is not a duration such as 250ms or 1m30s"))?;
        secs += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => {
                    return Err(format!(
                        "`{text}`: the unit `{unit}` is none of ns, us, ms, s, m, h"
                    ));
                }
            };
        rest = tail;
    }
    from_secs(secs, text)
}

fn from_secs(secs: f64, text: &str) -> Result<Duration, String> {
    Duration::try_from_secs_f64(secs)
        .map_err(|_| format!("`{text}` is out of range for a duration"))
}

/// The shortest notation that [`parse`] reads back.
pub fn format(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let (unit, size) = match nanos {
        0 => return "0s".into(),
        n if n.is_multiple_of(1_000_000_000) => ("s", 1_000_000_000),
        n if n.is_multiple_of(1_000_000) => ("ms", 1_000_000),
        n if n.is_multiple_of(1_000) => ("us", 1_000),
        _ => ("ns", 1),
    };
    format!("{}{unit}", nanos / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_go_notation_and_bare_milliseconds() {
        for (text, nanos) in [
            ("0", 0),
            ("100", 100_000_000),
            ("250us", 250_000),
            ("1.5s", 1_500_000_000),
            ("1m30s", 90_000_000_000),
            ("2h", 7_200_000_000_000),
            ("3µs", 3_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "ms", "1x", "-1s", "1e400", "s5"] {
            assert!(parse(text).is_err(), "{text}");
        }
        for nanos in [0, 1, 1_000, 25_000_000, 90_000_000_000] {
            let duration = Duration::from_nanos(nanos);
            assert_eq!(parse(&format(duration)), Ok(duration));
        }
    }
}
