//! Tokens made in this process.

use super::prompt::{self, Prompt};
use super::{ModelFiles, Origin, PromptTokens, Request, TokenError, made};
use std::sync::{Arc, LazyLock};
use tokio::sync::Semaphore;

/// The most new text that is tokenized where it is asked for: some milliseconds.
pub const INLINE_BYTES: usize = 16 << 10;
/// A body larger than this is not even parsed there.
const INLINE_BODY: usize = 512 << 10;

/// One job for each core, so that a burst of long prompts leaves the others their turn.
static JOBS: LazyLock<Semaphore> = LazyLock::new(|| {
    Semaphore::new(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
});

/// A model's template and tokenizer.
#[derive(Debug)]
pub struct Local {
    files: Arc<ModelFiles>,
}

impl Local {
    /// With the files of the model.
    pub fn new(files: Arc<ModelFiles>) -> Self {
        Self { files }
    }

    /// The tokens of a request. New text beyond [`INLINE_BYTES`] is tokenized on a blocking thread, of which as many run at a time
    /// as there are cores: the caller waits, its thread does not. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`TokenError`]: the template refused, or the request has what only an engine can tokenize.
    pub async fn tokens(&self, request: Request<'_>) -> Result<PromptTokens, TokenError> {
        if request.body.len() > INLINE_BODY {
            let (body, info) = (request.body.to_vec(), request.info.clone().into_owned());
            let lora = request.lora.map(str::to_owned);
            return self
                .aside(move |files| {
                    let request = Request {
                        info: &info,
                        body: &body,
                        lora: lora.as_deref(),
                    };
                    let prompt = prompt::prompt(&request, files)?;
                    finish(&request, prompt, files)
                })
                .await;
        }
        let prompt = prompt::prompt(&request, &self.files)?;
        if prompt.text.len() <= INLINE_BYTES
            || self.files.tokenizer.new_bytes(&prompt.text) <= INLINE_BYTES
        {
            return finish(&request, prompt, &self.files);
        }
        let Prompt {
            text,
            special,
            media,
        } = prompt;
        let ids = self.aside(move |files| files.tokenizer.encode(&text, special));
        with_media(&request, ids.await?, media, &self.files)
    }

    /// The tokens of a request, at once, however long that takes.
    ///
    /// # Errors
    /// As [`Local::tokens`].
    pub fn tokens_now(&self, request: &Request<'_>) -> Result<PromptTokens, TokenError> {
        finish(request, prompt::prompt(request, &self.files)?, &self.files)
    }

    /// The prompt as text, as the engine would render it.
    ///
    /// # Errors
    /// As [`Local::tokens`].
    pub fn render(&self, request: &Request<'_>) -> Result<String, TokenError> {
        Ok(prompt::prompt(request, &self.files)?.text)
    }

    async fn aside<T: Send + 'static>(
        &self,
        job: impl FnOnce(&ModelFiles) -> Result<T, TokenError> + Send + 'static,
    ) -> Result<T, TokenError> {
        let failed = |e: &dyn std::fmt::Display| TokenError::Tokenizer(e.to_string());
        let turn = JOBS.acquire().await.map_err(|e| failed(&e))?;
        let files = Arc::clone(&self.files);
        let done = tokio::task::spawn_blocking(move || {
            // Held until the work is done, also when nobody waits for it any more.
            let _turn = turn;
            job(&files)
        });
        done.await.map_err(|e| failed(&e))?
    }
}

fn finish(
    request: &Request<'_>,
    prompt: Prompt,
    files: &ModelFiles,
) -> Result<PromptTokens, TokenError> {
    let ids = files.tokenizer.encode(&prompt.text, prompt.special)?;
    with_media(request, ids, prompt.media, files)
}

fn with_media(
    request: &Request<'_>,
    ids: Vec<u32>,
    media: Vec<super::Media>,
    files: &ModelFiles,
) -> Result<PromptTokens, TokenError> {
    let (ids, media, exact) = files.placeholders.expand(ids, media, &files.tokenizer)?;
    Ok(PromptTokens {
        media,
        exact,
        ..made(request, ids, Origin::Local)
    })
}
