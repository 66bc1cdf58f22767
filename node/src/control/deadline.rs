//! How long a call may try: less than its caller waits, so that the caller gets a reason instead of silence.

use std::time::Duration;
use tonic::metadata::MetadataMap;

/// For calls whose caller does not say how long it waits, and the most for others.
const LONGEST: Duration = Duration::from_secs(5);

/// The time for a call with this metadata: nine tenths of its `grpc-timeout`.
pub fn patience(metadata: &MetadataMap) -> Duration {
    let asked = metadata
        .get("grpc-timeout")
        .and_then(|value| parse(value.to_str().ok()?));
    asked.map_or(LONGEST, |asked| LONGEST.min(asked - asked / 10))
}

/// Reads the header: at most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse::<u64>().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_end_before_their_callers_give_up() {
        for (header, millis) in [
            (None, 5_000),
            (Some("1S"), 900),
            (Some("100m"), 90),
            (Some("1000000u"), 900),
            (Some("99999999H"), 5_000),
            (Some("20S"), 5_000),
            (Some(""), 5_000),
            (Some("S"), 5_000),
            (Some("-1S"), 5_000),
            (Some("1s"), 5_000),
            (Some("123456789m"), 5_000),
        ] {
            let mut metadata = MetadataMap::new();
            if let Some(header) = header {
                metadata.insert("grpc-timeout", header.parse().unwrap());
            }
            assert_eq!(patience(&metadata).as_millis(), millis, "{header:?}");
        }
    }
}
