//! Durations as people write them: "2s", "250ms", "1m30s" (the notation of Go and Kubernetes).

use std::{fmt::Write as _, time::Duration};

const UNITS: [(&str, u128); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Longest duration that is read: 10,000 years, what a protobuf duration can carry.
const MAX_SECONDS: u64 = 315_576_000_000;

/// Reads a duration: one or more numbers, each with its unit (h, m, s, ms, us, ns), or "0".
///
/// # Errors
/// What is wrong with the text.
pub fn parse(text: &str) -> Result<prost_types::Duration, String> {
    let duration = parse_std(text)?;
    let seconds = i64::try_from(duration.as_secs()).map_err(|_| "is too long".to_owned())?;
    Ok(prost_types::Duration {
        seconds,
        nanos: duration.subsec_nanos().cast_signed(),
    })
}

/// Like [`parse`], for the command line.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_std(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 250ms, 2s or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.starts_with('-') {
        return Err(format!("{text:?} is negative"));
    }
    let (mut rest, mut nanos) = (text, 0_u128);
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        if unit.is_empty() && !number.is_empty() && tail.is_empty() {
            return Err(format!(
                "{text:?} has no unit: write for example {number}s or {number}ms"
            ));
        }
        let (_, scale) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(wrong)?;
        nanos = nanos
            .checked_add(scaled(number, *scale).ok_or_else(wrong)?)
            .ok_or_else(wrong)?;
        rest = tail;
    }
    if text.is_empty() {
        return Err(wrong());
    }
    let seconds = u64::try_from(nanos / 1_000_000_000)
        .ok()
        .filter(|s| *s <= MAX_SECONDS)
        .ok_or("is too long")?;
    Ok(Duration::new(
        seconds,
        u32::try_from(nanos % 1_000_000_000).unwrap_or(0),
    ))
}

/// A decimal number times a number of nanoseconds, exactly; digits below a nanosecond are refused.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || number.len() > 24 || number.ends_with('.') {
        return None;
    }
    let whole = whole.parse::<u128>().ok()?.checked_mul(scale)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let divisor = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = fraction.parse::<u128>().ok()?.checked_mul(scale)?;
    (part % divisor == 0).then_some(whole.checked_add(part / divisor)?)
}

/// Writes a duration as [`parse`] reads it.
pub fn text(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut out = String::new();
    for (unit, scale) in UNITS {
        let count = rest / scale;
        if count > 0 {
            // Writing to a string cannot fail.
            let _ = write!(out, "{count}{unit}");
        }
        rest %= scale;
    }
    out
}

/// Writes a protobuf duration; one that is negative or out of range counts as zero.
pub fn text_of(duration: &prost_types::Duration) -> String {
    text(Duration::try_from(*duration).unwrap_or_default())
}

/// Writes a duration for people: in milliseconds, from one second on in tenths of a second; rounded up, because an age is a
/// bound.
pub fn short(duration: &prost_types::Duration) -> String {
    let exact = Duration::try_from(*duration).unwrap_or_default();
    let millis = exact.as_nanos().div_ceil(1_000_000);
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let tenths = millis.div_ceil(100);
    format!("{}.{}s", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("2s", 2_000_000_000),
            ("250ms", 250_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5s", 1_500_000_000),
            ("1h", 3_600_000_000_000),
            ("7us", 7_000),
            ("3ns", 3),
        ] {
            assert_eq!(parse_std(text).map(|d| d.as_nanos()), Ok(nanos), "{text}");
        }
    }

    #[test]
    fn short_forms_round_up() {
        for (millis, micros, text) in [
            (0, 0, "0ms"),
            (0, 1, "1ms"),
            (999, 0, "999ms"),
            (999, 1, "1.0s"),
            (3_065, 0, "3.1s"),
            (61_000, 0, "61.0s"),
        ] {
            let duration = Duration::from_millis(millis) + Duration::from_micros(micros);
            assert_eq!(
                short(&prost_types::Duration::try_from(duration).unwrap()),
                text
            );
        }
    }

    #[test]
    fn refuses_the_rest() {
        for (text, part) in [
            ("", "is not a duration"),
            ("2", "has no unit: write for example 2s or 2ms"),
            ("s", "is not a duration"),
            ("-1s", "is negative"),
            ("1d", "is not a duration"),
            ("1 s", "is not a duration"),
            ("1.s", "is not a duration"),
            (".5s", "is not a duration"),
            ("0.5ns", "is not a duration"),
            ("1.2.3s", "is not a duration"),
            ("99999999999999999999999999s", "is not a duration"),
            ("9999999999999h", "is too long"),
            ("1s2", "has no unit"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(seconds in 0..=MAX_SECONDS, nanos in 0_u32..1_000_000_000) {
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(parse_std(&text(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in ".{0,30}") {
            let _ = parse(&text);
        }
    }
}
