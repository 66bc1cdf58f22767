//! A real model's tokenizer and chat template in place of the simulator's own, so that a router that has the same files
//! computes the block hashes that this engine publishes.
//!
//! Texts are still planned in the simulator's own tokens and then spelled in the model's, as many of them as were planned.

use super::{EOS, encode};
use crate::engine::FinishReason;
use crate::text::{Plan, Sampling, StopReason};
use crate::tools::PlannedCall;
use quorate_cache::tokens::{Local, ModelFiles, Models, Request, TemplateLimits, TokenError};
use quorate_routing::request::{Api, RequestInfo};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::Tokenizer;

/// Bytes of pieces of text whose tokens are remembered.
const REMEMBERED: usize = 64 << 20;

/// A model's tokenizer.
#[derive(Debug)]
pub struct ModelTokenizer {
    files: Arc<ModelFiles>,
    local: Local,
    decoder: Tokenizer,
    eos: Option<u32>,
    directory: PathBuf,
}

impl ModelTokenizer {
    /// Reads `tokenizer.json`, its config and its chat template from a directory.
    pub fn load(directory: &Path) -> Result<Self, TokenError> {
        let files = Models::new(REMEMBERED, TemplateLimits::default()).load(directory)?;
        let decoder = Tokenizer::from_file(directory.join("tokenizer.json"));
        let eos = files.special.get("eos_token");
        Ok(ModelTokenizer {
            local: Local::new(files.clone()),
            decoder: decoder.map_err(|error| TokenError::Tokenizer(error.to_string()))?,
            eos: eos.and_then(|text| files.tokenizer.token_id(text)),
            files,
            directory: directory.to_owned(),
        })
    }

    /// A file of the directory, if it is there.
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.directory.join(name)).ok()
    }

    /// Its settings with its chat template, as vLLM's `/tokenizer_info` has them.
    pub fn info(&self) -> Option<Value> {
        let mut info: Value = serde_json::from_slice(&self.file("tokenizer_config.json")?).ok()?;
        if let Some(template) = self.file("chat_template.jinja") {
            info["chat_template"] = String::from_utf8(template).ok()?.into();
        }
        Some(info)
    }

    /// The tokens of a text, with what the model wants around a prompt if it is one.
    pub fn encode(&self, text: &str, prompt: bool) -> Result<Vec<u32>, TokenError> {
        self.files.tokenizer.encode(text, prompt)
    }

    /// The tokens of a request's prompt as a router makes them.
    pub fn prompt(
        &self,
        api: Api,
        body: &[u8],
        lora: Option<&str>,
    ) -> Result<Vec<u32>, TokenError> {
        let info = RequestInfo::parse(api, body);
        let info = info.map_err(|error| TokenError::Request(error.to_string()))?;
        let request = Request {
            info: &info,
            body,
            lora,
        };
        Ok(self.local.tokens_now(&request)?.ids.to_vec())
    }

    /// The text of some tokens, and where the text of each ends. A character is with its last token.
    pub fn spell(&self, tokens: &[u32]) -> (String, Vec<u32>) {
        let mut stream = self.decoder.decode_stream(true);
        let mut text = String::new();
        let ends = tokens.iter().map(|token| {
            // A token that there is not has no text.
            if let Ok(Some(piece)) = stream.step(*token) {
                text.push_str(&piece);
            }
            text.len() as u32
        });
        let ends = ends.collect();
        (text, ends)
    }

    /// The simulator's own tokens of the same text.
    pub fn own_tokens(&self, tokens: &[u32]) -> Vec<u32> {
        let mut own = Vec::new();
        encode(&self.spell(tokens).0, &mut own);
        own
    }

    /// A plan in the model's tokens, at most `most` of them.
    pub fn translate(
        &self,
        plan: Plan,
        sampling: &Sampling,
        most: usize,
    ) -> Result<Plan, TokenError> {
        if !plan.calls.is_empty() {
            return self.calls(plan);
        }
        let mut said = plan.text.clone();
        if let (Some(StopReason::Text(stop)), false) = (&plan.stop_reason, sampling.include_stop) {
            // The engine generates it, too.
            said.push_str(stop);
        }
        let mut ids = self.encode(&said, false)?;
        let ended = plan.stop_reason.is_none() && plan.tokens.last() == Some(&EOS);
        let (mut finish, mut stop_reason) = (plan.finish, plan.stop_reason);
        if ended {
            ids.push(self.eos.unwrap_or(EOS));
        }
        if ids.len() > most {
            ids.truncate(most);
            // A drawn length is kept; a text that has an end of its own is cut.
            match ids.last_mut() {
                Some(last) if ended && most == plan.tokens.len() => {
                    *last = self.eos.unwrap_or(EOS);
                }
                _ if stop_reason.is_none() => finish = FinishReason::Length,
                _ => {}
            }
        }
        if ids.is_empty() {
            ids.push(self.eos.unwrap_or(EOS));
        }
        let stop = ids.iter().enumerate().position(|(at, id)| {
            at as u32 >= sampling.min_tokens && sampling.stop_token_ids.contains(id)
        });
        let mut hidden = None;
        if let Some(at) = stop {
            stop_reason = ids.get(at).map(|id| StopReason::Token(*id));
            ids.truncate(at + 1);
            finish = FinishReason::Stop;
            hidden = Some(at).filter(|_| !sampling.include_stop);
        }
        let (mut text, mut ends) = self.spell(&ids);
        match (&stop_reason, hidden) {
            (Some(StopReason::Text(_)), _) => text.truncate(plan.text.len()),
            // The stop token itself adds no text.
            (_, Some(at)) => {
                let before = at.checked_sub(1).and_then(|before| ends.get(before));
                text.truncate(before.map_or(0, |end| *end as usize));
            }
            _ => {}
        }
        ends.iter_mut()
            .for_each(|end| *end = (*end).min(text.len() as u32));
        Ok(Plan {
            tokens: ids.into(),
            text,
            ends,
            finish,
            stop_reason,
            calls: Vec::new(),
            pieces: true,
        })
    }

    fn calls(&self, plan: Plan) -> Result<Plan, TokenError> {
        let mut ids = Vec::new();
        let mut calls = Vec::with_capacity(plan.calls.len());
        for call in plan.calls {
            let first = ids.len() as u32;
            ids.extend(self.encode(&call.name, false)?);
            let arguments = ids.len() as u32;
            ids.extend(self.encode(&call.spelled, false)?);
            let end = ids.len() as u32;
            calls.push(PlannedCall {
                first,
                arguments,
                end,
                ..call
            });
        }
        if plan.finish == FinishReason::Length {
            ids.truncate(plan.tokens.len());
        } else {
            ids.push(self.eos.unwrap_or(EOS));
        }
        let (text, ends) = self.spell(&ids);
        Ok(Plan {
            tokens: ids.into(),
            text,
            ends,
            finish: plan.finish,
            stop_reason: plan.stop_reason,
            calls,
            pieces: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{detokenize, export, sentence};
    use super::*;
    use crate::config::{Mode, OutputLength};
    use crate::text::{Source, plan};

    fn model() -> ModelTokenizer {
        let directory = tempfile::tempdir().unwrap();
        export::write(directory.path()).unwrap();
        ModelTokenizer::load(directory.path()).unwrap()
    }

    #[test]
    fn known_words_are_one_token_and_all_text_comes_back() {
        let model = model();
        for (text, tokens) in [
            (" the gas", 2),
            (" The water", 2),
            ("The water.", 3),
            (" summarise", 7),
            ("h\u{e9}", 3),
        ] {
            let ids = model.encode(text, false).unwrap();
            assert_eq!((ids.len(), model.spell(&ids).0.as_str()), (tokens, text));
        }
        let mut rng = fastrand::Rng::with_seed(3);
        let mut own = Vec::new();
        for at in 0..50 {
            sentence(9, at == 0, &mut rng, &mut own);
        }
        let text = detokenize(&own);
        assert_eq!(model.encode(&text, false).unwrap().len(), own.len());
    }

    #[test]
    fn plans_keep_their_length_and_their_end() {
        let model = model();
        let length = OutputLength::Fixed(30);
        let source = Source {
            mode: Mode::Random,
            seed: 1,
            prompt_hash: 2,
            choice: 0,
            echo: &[],
            dataset: None,
            length: &length,
            room: 1000,
        };
        let translated = |sampling: &Sampling| {
            let own = plan(sampling, &source);
            let length = own.tokens.len();
            (model.translate(own, sampling, length).unwrap(), length)
        };
        let (free, length) = translated(&Sampling::default());
        assert_eq!(
            (free.tokens.len(), free.finish),
            (length, FinishReason::Stop)
        );
        assert_eq!(free.tokens.last().copied(), model.eos);
        assert_eq!(free.ends.len(), length);
        assert_eq!(model.spell(&free.tokens).0, free.text);
        let (cut, _) = translated(&Sampling {
            max_tokens: Some(7),
            ..Sampling::default()
        });
        assert_eq!((cut.tokens.len(), cut.finish), (7, FinishReason::Length));
        let third = free.tokens[3];
        let (stopped, _) = translated(&Sampling {
            stop_token_ids: vec![third],
            ..Sampling::default()
        });
        let at = free.tokens.iter().position(|id| *id == third).unwrap();
        assert_eq!(stopped.tokens.len(), at + 1);
        assert_eq!(stopped.stop_reason, Some(StopReason::Token(third)));
        assert_eq!(stopped.text, free.prefix(at as u32));
    }
}
