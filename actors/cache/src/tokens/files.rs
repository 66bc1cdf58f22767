//! The files of a model's tokenizer, from a local directory or fetched, read once for each content.

use super::chat::member;
use super::media::Placeholders;
use super::probe::Probed;
use super::store::Store;
use super::{ChatTemplate, FileServer, TemplateLimits, TextTokenizer, TokenError};
use minijinja::Value;
use parking_lot::Mutex;
use quorate_routing::Target;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use tokio::sync::watch;

/// The largest file that is read.
const MAX_FILE: u64 = 256 << 20;

/// A model's tokenizer, chat templates and special tokens.
#[derive(Debug)]
pub struct ModelFiles {
    /// Text to ids.
    pub tokenizer: TextTokenizer,
    /// How items that are no text are written.
    pub placeholders: Placeholders,
    /// Special tokens by the names under which templates know them (`bos_token`).
    pub special: BTreeMap<String, String>,
    /// Engines write its conversations in a form of their own (gpt-oss), not by its template.
    pub(super) is_harmony: bool,
    pub(super) probed: Probed,
    default: Option<ChatTemplate>,
    tool_use: Option<ChatTemplate>,
}

impl ModelFiles {
    /// The template for a conversation, `tools` or not.
    pub fn template(&self, tools: bool) -> Option<&ChatTemplate> {
        let for_tools = self.tool_use.as_ref().filter(|_| tools);
        for_tools.or(self.default.as_ref())
    }

    fn read(raw: &Raw, cache_bytes: usize, limits: TemplateLimits) -> Result<Self, TokenError> {
        let config: Value = match raw.text("tokenizer_config.json")? {
            Some(text) => {
                serde_json::from_str(text).map_err(|e| raw.bad("tokenizer_config.json", e))?
            }
            None => Value::default(),
        };
        let tokenizer = raw
            .files
            .get("tokenizer.json")
            .ok_or_else(|| raw.bad("tokenizer.json", "is not there"))?;
        let tokenizer =
            TextTokenizer::new(tokenizer, cache_bytes).map_err(|e| raw.bad("tokenizer.json", e))?;
        let (mut default, mut tool_use) = (None, None);
        let mut take = |name: &str, source: &str, file: &str| -> Result<(), TokenError> {
            let slot = match name {
                "default" => &mut default,
                "tool_use" => &mut tool_use,
                _ => return Ok(()),
            };
            *slot = Some(ChatTemplate::new(source, limits).map_err(|e| raw.bad(file, e))?);
            Ok(())
        };
        // A file of its own counts more than the config.
        let template = config.get_attr("chat_template").unwrap_or_default();
        if let Some(source) = raw.text("chat_template.jinja")? {
            take("default", source, "chat_template.jinja")?;
        } else if let Some(text) = raw.text("chat_template.json")? {
            let file: Value =
                serde_json::from_str(text).map_err(|e| raw.bad("chat_template.json", e))?;
            let source = file.get_attr("chat_template").unwrap_or_default();
            let source = source
                .as_str()
                .ok_or_else(|| raw.bad("chat_template.json", "has no `chat_template`"))?;
            take("default", source, "chat_template.json")?;
        } else if let Some(source) = template.as_str() {
            take("default", source, "tokenizer_config.json")?;
        } else if !template.is_undefined() && !template.is_none() {
            let list = template
                .try_iter()
                .map_err(|e| raw.bad("tokenizer_config.json", e))?;
            for entry in list {
                let (name, source) = (entry.get_attr("name"), entry.get_attr("template"));
                if let (Ok(name), Ok(source)) = (name, source)
                    && let (Some(name), Some(source)) = (name.as_str(), source.as_str())
                {
                    take(name, source, "tokenizer_config.json")?;
                }
            }
        }
        let names = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];
        let special = names.into_iter().filter_map(|name| {
            let name = format!("{name}_token");
            let value = config.get_attr(&name).ok()?;
            let content = value.get_attr("content").ok();
            let content = content.as_ref().and_then(Value::as_str);
            let text = value.as_str().or(content)?.to_owned();
            Some((name, text))
        });
        Ok(Self {
            special: special.collect(),
            placeholders: Placeholders::read(
                raw.text("config.json")?,
                raw.text("preprocessor_config.json")?,
            ),
            is_harmony: raw.text("config.json")?.is_some_and(is_harmony),
            probed: Probed::default(),
            tokenizer,
            default,
            tool_use,
        })
    }
}

fn is_harmony(config: &str) -> bool {
    let config: Result<Value, _> = serde_json::from_str(config);
    config.is_ok_and(|config| member(&config, "model_type").as_str() == Some("gpt_oss"))
}

/// The files of a model that say how it is written to.
pub(super) const NAMES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "preprocessor_config.json",
];

/// Files as they lie there.
#[derive(Debug)]
pub struct Raw {
    directory: String,
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Raw {
    /// With what lies at a place, by the names of the files; others than those that are read have no meaning.
    pub fn new(place: String, files: BTreeMap<&'static str, Vec<u8>>) -> Self {
        Self {
            directory: place,
            files,
        }
    }

    /// Each with its name.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.files.iter().map(|(name, bytes)| (*name, &bytes[..]))
    }

    pub(super) fn read(directory: &Path) -> Result<Self, TokenError> {
        let mut raw = Self {
            directory: directory.display().to_string(),
            files: BTreeMap::new(),
        };
        for name in NAMES {
            let file = match std::fs::File::open(directory.join(name)) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(raw.bad(name, e)),
            };
            let mut bytes = Vec::new();
            file.take(MAX_FILE + 1)
                .read_to_end(&mut bytes)
                .map_err(|e| raw.bad(name, e))?;
            if bytes.len() as u64 > MAX_FILE {
                return Err(raw.bad(name, "is too large"));
            }
            raw.files.insert(name, bytes);
        }
        Ok(raw)
    }

    fn text(&self, name: &'static str) -> Result<Option<&str>, TokenError> {
        let bytes = self.files.get(name);
        let text = bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|e| self.bad(name, e)));
        text.transpose()
    }

    fn bad(&self, name: &str, problem: impl std::fmt::Display) -> TokenError {
        TokenError::File {
            path: format!("{}/{name}", self.directory),
            problem: problem.to_string(),
        }
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        for (name, bytes) in &self.files {
            context.update(name.as_bytes());
            context.update(&(bytes.len() as u64).to_le_bytes());
            context.update(bytes);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }
}

/// All models that are in use. Directories with the same files share one tokenizer and what it remembers; one that nobody uses
/// any more is dropped.
#[derive(Debug)]
pub struct Models {
    loaded: Mutex<HashMap<[u8; 32], Weak<ModelFiles>>>,
    cache_bytes: usize,
    limits: TemplateLimits,
    /// Held while it is written to.
    store: Mutex<Option<Store>>,
    /// How many models are read from this machine's files at present.
    reading: Arc<watch::Sender<usize>>,
}

/// A model's files are read as long as this is held.
pub struct Reading(Arc<watch::Sender<usize>>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Models {
    /// None yet. Each tokenizer will remember at most about `cache_bytes` of pieces of text with their ids.
    pub fn new(cache_bytes: usize, limits: TemplateLimits) -> Self {
        Self {
            loaded: Mutex::default(),
            cache_bytes,
            limits,
            store: Mutex::default(),
            reading: Arc::new(watch::Sender::new(0)),
        }
    }

    /// To be held while a model that others wait for is read from this machine's files.
    pub fn reading(&self) -> Reading {
        self.reading.send_modify(|count| *count += 1);
        Reading(Arc::clone(&self.reading))
    }

    /// Returns once no model is read from this machine's files.
    pub async fn read(&self) {
        // An error only where the sender is gone, which this holds.
        let _ = self.reading.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Fetched files are kept in `directory` from now on, so that they are there after a restart.
    pub fn keep_in(&self, directory: PathBuf) {
        *self.store.lock() = Some(Store::new(directory));
    }

    /// The files at `host` (`engine`: the endpoint there). Takes up to a minute.
    ///
    /// # Errors
    /// [`TokenError::File`] says which file could not be had.
    pub async fn fetch(
        &self,
        server: &FileServer,
        host: Option<&str>,
        engine: Option<&Target>,
    ) -> Result<Raw, TokenError> {
        server.fetch(host, engine).await
    }

    /// The model of fetched files, which are kept if they are one. As slow as [`Models::load`].
    ///
    /// # Errors
    /// [`TokenError::File`] says which file is wrong; what was kept before stays. That the disk does not take them is logged.
    pub fn take(&self, server: &FileServer, raw: &Raw) -> Result<Arc<ModelFiles>, TokenError> {
        let model = self.of(raw)?;
        if let Some(store) = &*self.store.lock()
            && let Err(error) = store.keep(server, raw)
        {
            tracing::warn!(%error, "fetched files of a tokenizer cannot be kept");
        }
        Ok(model)
    }

    /// The model of the files that were fetched from there last, if they were kept. As slow as [`Models::load`].
    pub fn kept(&self, server: &FileServer) -> Option<Arc<ModelFiles>> {
        let store = self.store.lock().clone()?;
        let raw = store.find(server)?;
        let model = self.of(&raw);
        model
            .inspect_err(|error| tracing::warn!(%error, "kept files of a tokenizer cannot be used"))
            .ok()
    }

    /// The model whose files lie in `directory`. Reads and builds for up to seconds: not for a worker of the gateway.
    ///
    /// # Errors
    /// [`TokenError::File`] says which file is missing or wrong.
    pub fn load(&self, directory: &Path) -> Result<Arc<ModelFiles>, TokenError> {
        self.of(&Raw::read(directory)?)
    }

    /// The model of these files. As slow as [`Models::load`].
    ///
    /// # Errors
    /// [`TokenError::File`] says which file is missing or wrong.
    pub fn of(&self, raw: &Raw) -> Result<Arc<ModelFiles>, TokenError> {
        let digest = raw.digest();
        let known = |loaded: &HashMap<_, Weak<_>>| loaded.get(&digest).and_then(Weak::upgrade);
        if let Some(files) = known(&self.loaded.lock()) {
            return Ok(files);
        }
        let files = Arc::new(ModelFiles::read(raw, self.cache_bytes, self.limits)?);
        let mut loaded = self.loaded.lock();
        loaded.retain(|_, files| files.strong_count() > 0);
        // Somebody else may have been faster.
        if let Some(other) = known(&loaded) {
            return Ok(other);
        }
        loaded.insert(digest, Arc::downgrade(&files));
        Ok(files)
    }
}
