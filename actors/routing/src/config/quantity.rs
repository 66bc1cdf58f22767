//! Go durations and Kubernetes quantities.

use std::time::Duration;

/// Reads `1h2m3.5s`, `200ms`, `0`. Units: ns, us, ms, s, m, h (the format of Go's `time.ParseDuration`).
///
/// # Errors
/// What is wrong, for people.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration such as 1m30s or 200ms");
    let trimmed = text.trim();
    if trimmed == "0" {
        return Ok(Duration::ZERO);
    }
    if trimmed.starts_with('-') {
        return Err(format!("`{text}` is negative"));
    }
    let mut rest = trimmed;
    let mut seconds = 0.0;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
        rest = tail;
    }
    // The sum of whole milliseconds must not end up a nanosecond off.
    Duration::try_from_secs_f64((seconds * 1e9).round() / 1e9)
        .map_err(|_| format!("`{text}` is too long"))
}

/// Writes a duration so that [`parse_duration`] reads the same again.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    for (unit, size) in [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)] {
        if nanos.is_multiple_of(size) {
            return format!("{}{unit}", nanos / size);
        }
    }
    format!("{nanos}ns")
}

/// Reads `500`, `1k`, `10Gi`, `1.5M`; the result is rounded up to a whole number.
///
/// # Errors
/// What is wrong, for people.
pub fn parse_quantity(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no quantity such as 10Gi, 1k or 500");
    let trimmed = text.trim();
    let digits = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '+' && c != '-')
        .unwrap_or(trimmed.len());
    let (number, suffix) = trimmed.split_at(digits);
    let (number, scale) = match suffix {
        "" => (number, 1.0),
        "m" => (number, 1e-3),
        "k" => (number, 1e3),
        "M" => (number, 1e6),
        "G" => (number, 1e9),
        "T" => (number, 1e12),
        "P" => (number, 1e15),
        "Ki" => (number, f64::from(1u32 << 10)),
        "Mi" => (number, f64::from(1u32 << 20)),
        "Gi" => (number, f64::from(1u32 << 30)),
        "Ti" => (number, 2f64.powi(40)),
        "Pi" => (number, 2f64.powi(50)),
        // 1e9, as Kubernetes writes some numbers.
        exponent if exponent.starts_with(['e', 'E']) => (trimmed, 1.0),
        _ => return Err(wrong()),
    };
    if scale == 1.0
        && let Ok(whole) = number.parse::<u64>()
    {
        return Ok(whole);
    }
    let value = number.parse::<f64>().map_err(|_| wrong())? * scale;
    if value < 0.0 {
        return Err(format!("`{text}` is negative"));
    }
    if !value.is_finite() || value >= 1.8e19 {
        return Err(format!("`{text}` is too large"));
    }
    Ok(value.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (text, ms) in [
            ("0", 0.0),
            ("0s", 0.0),
            ("60s", 60_000.0),
            ("1m30s", 90_000.0),
            ("1h", 3_600_000.0),
            ("1.5s", 1500.0),
            ("200ms", 200.0),
            ("250us", 0.25),
        ] {
            assert_eq!(
                parse_duration(text).unwrap().as_secs_f64() * 1e3,
                ms,
                "{text}"
            );
        }
        for text in [
            "",
            "5",
            "s",
            "5 s",
            "-1s",
            "1x",
            "1..5s",
            "9999999999999999h",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quantities_as_kubernetes_writes_them() {
        for (text, value) in [
            ("0", 0),
            ("500", 500),
            ("1k", 1000),
            ("10Gi", 10 << 30),
            ("1.5Ki", 1536),
            ("1e9", 1_000_000_000),
            ("1500m", 2),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_quantity(text), Ok(value), "{text}");
        }
        for text in ["", "Gi", "-5", "5GB", "1.2.3", "99999999999P", "x"] {
            assert!(parse_quantity(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn durations_come_back(nanos in 0u64..1_000_000_000_000) {
            // f64 seconds carry about 15 digits.
            let duration = Duration::from_micros(nanos / 1000);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_makes_them_panic(text in ".{0,12}") {
            let _ = (parse_duration(&text), parse_quantity(&text));
        }
    }
}
