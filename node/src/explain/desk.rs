//! What this node answers about its own records.

use super::recording::{FileOptions, Recording, StartError};
use parking_lot::Mutex;
use quorate_proto::v1::{
    DecisionRecord, ExplainRequest, ListDecisionsRequest, NodeRecording, StartRecordingRequest,
};
use quorate_routing::explain::{Recorder, RequestRecord};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Records in one answer unless the caller says how many.
const DEFAULT_LIMIT: usize = 20;
/// Records in one answer at most.
const MAX_LIMIT: usize = 1000;

/// See the module's documentation.
pub struct Desk {
    node: String,
    recorder: Arc<Recorder>,
    files: FileOptions,
    recording: Mutex<Option<Recording>>,
}

/// What is looked for.
#[derive(Clone, Debug)]
pub enum Query {
    /// One request.
    Explain(ExplainRequest),
    /// The latest ones.
    List(ListDecisionsRequest),
}

impl Query {
    /// How many records an answer has at most.
    pub fn limit(&self) -> usize {
        match self {
            Self::Explain(_) => DEFAULT_LIMIT,
            Self::List(list) => match usize::try_from(list.limit).unwrap_or(MAX_LIMIT) {
                0 => DEFAULT_LIMIT,
                limit => limit.min(MAX_LIMIT),
            },
        }
    }

    fn matches(&self, record: &RequestRecord) -> bool {
        match self {
            Self::Explain(explain) => record.request_id == explain.request_id,
            Self::List(list) => {
                let is = |wanted: &str, value: &str| wanted.is_empty() || wanted == value;
                is(&list.pool, &record.pool)
                    && (is(&list.model, &record.model) || list.model == record.target_model)
                    && is(&list.outcome, &record.ending.end)
            }
        }
    }
}

impl Desk {
    /// Answers for the node of this name.
    pub fn new(node: impl Into<String>, recorder: Arc<Recorder>, files: FileOptions) -> Self {
        Self {
            node: node.into(),
            recorder,
            files,
            recording: Mutex::new(None),
        }
    }

    /// This node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// This node's records, newest first. Takes a moment for many: not for a thread that others wait for.
    pub fn find(&self, query: &Query) -> Vec<DecisionRecord> {
        self.recorder
            .records()
            .filter(|record| query.matches(record))
            .take(query.limit())
            .filter_map(|record| wire(&record))
            .collect()
    }

    /// Begins to write records to a file. Opens it: may block.
    pub fn start(&self, request: &StartRecordingRequest) -> NodeRecording {
        let mut running = self.recording.lock();
        if let Some(before) = running.as_ref().filter(|r| r.is_running()) {
            let problem = "it records already: stop that first".to_owned();
            return self.report(before, Some(problem));
        }
        *running = None;
        let duration = request
            .duration
            .and_then(|duration| Duration::try_from(duration).ok());
        let share = if request.share == 0.0 {
            1.0
        } else {
            request.share
        };
        match Recording::start(&self.files, &self.recorder, &request.file, share, duration) {
            Ok(recording) => {
                tracing::info!(path = %recording.path().display(), share, "decisions are recorded to a file");
                let report = self.report(&recording, None);
                *running = Some(recording);
                report
            }
            Err(error) => self.problem(&error),
        }
    }

    /// Ends it and waits until all is written: may block.
    pub fn stop(&self) -> NodeRecording {
        let Some(recording) = self.recording.lock().take() else {
            return NodeRecording {
                node: self.node.clone(),
                ..NodeRecording::default()
            };
        };
        recording.finish(&self.recorder);
        tracing::info!(path = %recording.path().display(), "decisions are recorded no more");
        self.report(&recording, None)
    }

    fn report(&self, recording: &Recording, problem: Option<String>) -> NodeRecording {
        NodeRecording {
            node: self.node.clone(),
            path: recording.path().display().to_string(),
            written: recording.written(),
            lost: recording.lost(),
            problem: problem.or_else(|| recording.problem()).unwrap_or_default(),
        }
    }

    fn problem(&self, error: &StartError) -> NodeRecording {
        NodeRecording {
            node: self.node.clone(),
            problem: error.to_string(),
            ..NodeRecording::default()
        }
    }
}

fn wire(record: &RequestRecord) -> Option<DecisionRecord> {
    let json = serde_json::to_string(record)
        .inspect_err(|error| tracing::error!(%error, "a record cannot be written as JSON"))
        .ok()?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(record.time_ms);
    Some(DecisionRecord {
        request_id: record.request_id.clone(),
        node: record.node.clone(),
        time: Some(time.into()),
        json,
    })
}
