//! `strftime_now`: the date in a chat template, in UTC.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Now, as seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0))
}

/// `seconds` since 1970 by a `strftime` pattern. A letter that is not known stays as it is written.
pub fn strftime(pattern: &str, seconds: i64) -> String {
    let days = seconds.div_euclid(86_400);
    let of_day = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let (year, month, day) = civil(days);
    let weekday = (days + 4).rem_euclid(7) as usize;
    let day_of_year = days - from_civil(year) + 1;
    let (weekday_name, month_name) = (DAYS[weekday % 7], MONTHS[(month as usize + 11) % 12]);
    let mut out = String::new();
    let mut letters = pattern.chars();
    while let Some(c) = letters.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut letter = letters.next();
        let bare = letter == Some('-');
        if bare {
            letter = letters.next();
        }
        let mut two = |n: i64| {
            let _ = if bare {
                write!(out, "{n}")
            } else {
                write!(out, "{n:02}")
            };
        };
        match letter {
            Some('d') => two(day),
            Some('m') => two(month),
            Some('y') => two(year.rem_euclid(100)),
            Some('H') => two(hour),
            Some('I') => two((hour + 11) % 12 + 1),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('Y') => {
                let _ = write!(out, "{year}");
            }
            Some('j') => {
                let _ = write!(out, "{day_of_year:03}");
            }
            Some('F') => {
                let _ = write!(out, "{year}-{month:02}-{day:02}");
            }
            Some('T') => {
                let _ = write!(out, "{hour:02}:{minute:02}:{second:02}");
            }
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday_name),
            Some('a') => out.push_str(&weekday_name[..3]),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('%') => out.push('%'),
            Some(other) => {
                out.push('%');
                out.push(other);
            }
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a day since 1970 (proleptic Gregorian; the cycle of 400 years begins in March).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// The day since 1970 on which a year begins.
fn from_civil(year: i64) -> i64 {
    let before = year - 1;
    365 * (year - 1970) + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400)
        - (1969 / 4 - 1969 / 100 + 1969 / 400)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        // 2024-02-29 13:05:09 UTC, a Thursday.
        let leap = 1_709_211_909;
        assert_eq!(strftime("%d %b %Y", leap), "29 Feb 2024");
        assert_eq!(
            strftime("%A %a %B %-d %j %I%p %H:%M:%S %y %F %T %% %q", leap),
            "Thursday Thu February 29 060 01PM 13:05:09 24 2024-02-29 13:05:09 % %q"
        );
        assert_eq!(strftime("%F %A %j", 0), "1970-01-01 Thursday 001");
        assert_eq!(strftime("%F %j", 1_735_689_599), "2024-12-31 366");
    }
}
