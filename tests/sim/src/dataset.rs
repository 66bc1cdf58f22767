//! `--dataset-path`: output lengths, and answers to known prompts, from a file of conversations.
//!
//! One JSON object a line: `{"prompt": "...", "output": "...", "output_length": 120}`. A line needs an output or a length;
//! other fields are left alone, so that a request trace with `output_length` can be used as it is. A request whose prompt (in
//! a chat: the last user message) is that of a line gets its output, or random text of its length. Any other request gets
//! random text as long as the output of some line.

use crate::tokenizer;
use serde::Deserialize;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Lines of a dataset at most.
const MAX_LINES: usize = 1_000_000;

/// Conversations.
#[derive(Debug, Default)]
pub struct Dataset {
    answers: Vec<Answer>,
    by_prompt: HashMap<Box<[u32]>, usize>,
}

/// What a line says of the output.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// Its tokens, when the line has its text.
    pub tokens: Option<Box<[u32]>>,
    /// How many tokens it has.
    pub length: u32,
}

/// Why there is no dataset.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The file cannot be read.
    #[error("cannot read the dataset {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is wrong.
    #[error("line {line} of the dataset {}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// No line at all.
    #[error("the dataset {} has no conversation", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    output: Option<String>,
    #[serde(default)]
    output_length: Option<u32>,
}

impl Dataset {
    /// Reads a file. Empty lines are skipped; of several lines with one prompt the first counts.
    pub fn load(path: &Path) -> Result<Dataset, DatasetError> {
        let read = |source| DatasetError::Read {
            path: path.to_owned(),
            source,
        };
        let file = BufReader::new(std::fs::File::open(path).map_err(read)?);
        let mut dataset = Dataset::default();
        for (at, line) in file.lines().enumerate() {
            let line = line.map_err(read)?;
            if line.trim().is_empty() {
                continue;
            }
            dataset.add(&line).map_err(|problem| DatasetError::Line {
                path: path.to_owned(),
                line: at + 1,
                problem,
            })?;
        }
        if dataset.answers.is_empty() {
            return Err(DatasetError::Empty {
                path: path.to_owned(),
            });
        }
        Ok(dataset)
    }

    fn add(&mut self, line: &str) -> Result<(), String> {
        if self.answers.len() == MAX_LINES {
            return Err(format!("more than {MAX_LINES} conversations"));
        }
        let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let encoded = |text: &str| {
            let mut tokens = Vec::with_capacity(text.len() / 3 + 1);
            tokenizer::encode(text, &mut tokens);
            tokens.into_boxed_slice()
        };
        let tokens = line.output.as_deref().map(encoded);
        let spelled = tokens.as_deref().map(<[u32]>::len);
        let spelled = spelled.map(|length| u32::try_from(length).unwrap_or(u32::MAX));
        // The length may count another model's tokens; a text is as long as it is here.
        let length = spelled.or(line.output_length);
        let length = length.ok_or("neither `output` nor `output_length`")?;
        if length == 0 {
            return Err("the output is empty".into());
        }
        if let Some(prompt) = &line.prompt {
            let at = self.answers.len();
            self.by_prompt.entry(encoded(prompt)).or_insert(at);
        }
        self.answers.push(Answer { tokens, length });
        Ok(())
    }

    /// The answer to a prompt: that of the line with this prompt.
    pub fn find(&self, prompt: &[u32]) -> Option<&Answer> {
        self.answers.get(*self.by_prompt.get(prompt)?)
    }

    /// The length of any output.
    pub fn sample(&self, rng: &mut fastrand::Rng) -> u32 {
        let at = rng.usize(0..self.answers.len().max(1));
        self.answers.get(at).map_or(1, |answer| answer.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Dataset, DatasetError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        std::fs::write(&path, text).unwrap();
        Dataset::load(&path)
    }

    fn tokens(text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        tokenizer::encode(text, &mut out);
        out
    }

    #[test]
    fn prompts_are_found_and_lengths_drawn() {
        let text = "{\"prompt\": \"Hello\", \"output\": \"Good day to you.\"}\n\n\
                    {\"prompt\": \"Hello\", \"output\": \"No.\"}\n\
                    {\"timestamp\": 5, \"input_length\": 9, \"output_length\": 77}\n";
        let dataset = load(text).unwrap();
        let answer = dataset.find(&tokens("Hello")).unwrap();
        let expected = tokens("Good day to you.");
        assert_eq!(answer.length as usize, expected.len());
        assert_eq!(answer.tokens.as_deref(), Some(expected.as_slice()));
        assert_eq!(dataset.find(&tokens("Hello!")), None);
        let mut rng = fastrand::Rng::with_seed(1);
        let drawn: Vec<u32> = (0..300).map(|_| dataset.sample(&mut rng)).collect();
        for length in [answer.length, 2, 77] {
            let share = drawn.iter().filter(|drawn| **drawn == length).count();
            assert!((60..150).contains(&share), "{length}: {share} of 300");
        }
    }

    #[test]
    fn wrong_lines_are_named() {
        for (text, expected) in [
            ("", "no conversation"),
            ("{\"output_length\": 3}\n{", "line 2"),
            ("{\"prompt\": \"x\"}", "neither"),
            ("{\"output\": \"\"}", "empty"),
            ("{\"output_length\": 0}", "empty"),
            ("{\"output_length\": -1}", "line 1"),
            ("{\"output\": 5}", "line 1"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let missing = Dataset::load(Path::new("/nowhere/d.jsonl")).unwrap_err();
        assert!(missing.to_string().contains("cannot read"));
    }
}
