//! Plain columns, and ages.

use std::{io, io::Write, time::SystemTime};

use prost_types::Timestamp;

/// Rows of left-aligned columns under a heading.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(heading: &[&str]) -> Self {
        Self {
            rows: vec![heading.iter().map(ToString::to_string).collect()],
        }
    }

    /// Adds a row; an empty cell is shown as "-".
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(
            cells
                .into_iter()
                .map(|cell| {
                    if cell.is_empty() {
                        "-".to_owned()
                    } else {
                        plain(&cell)
                    }
                })
                .collect(),
        );
    }

    /// Writes it, each line after `indent`.
    ///
    /// # Errors
    /// The stream's.
    pub fn write(&self, indent: &str, out: &mut (dyn Write + Send)) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |i: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(i))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::from(indent);
            for (cell, width) in row.iter().zip(&widths) {
                let pad = width.saturating_sub(cell.chars().count()) + 3;
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', pad));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// The text without control characters: what a server or a manifest says must not move the terminal's cursor.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Time since `then`, in its largest unit; "-" if there is none.
pub fn age(then: Option<&Timestamp>, now: SystemTime) -> String {
    let Some(then) = then.and_then(|then| SystemTime::try_from(*then).ok()) else {
        return "-".to_owned();
    };
    // Another node's clock may be ahead of ours.
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn columns_align() {
        let mut table = Table::new(&["NAME", "URL", "X"]);
        table.row(["a".to_owned(), String::new(), "1".to_owned()]);
        table.row([
            "größe-2".to_owned(),
            "http://h:1".to_owned(),
            "a\u{1b}[2J".to_owned(),
        ]);
        let mut out = Vec::new();
        table.write("  ", &mut out).unwrap();
        let expected = "  NAME      URL          X\n  a         -            1\n  größe-2   http://h:1   a [2J\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn ages() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (seconds, text) in [
            (999_999, "1s"),
            (999_000, "16m"),
            (900_000, "27h"),
            (0, "11d"),
            (1_000_005, "0s"),
        ] {
            assert_eq!(age(Some(&Timestamp { seconds, nanos: 0 }), now), text);
        }
        assert_eq!(age(None, now), "-");
    }
}
