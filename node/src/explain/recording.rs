//! Records in a file, one JSON object a line. A thread of its own writes; the request path only offers records to a bounded queue and
//! never waits.

use metrics::{Counter, counter, describe_counter};
use parking_lot::Mutex;
use quorate_routing::explain::{RecordSink, Recorder, RequestRecord, SinkOptions};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Records that wait to be written at most.
const QUEUE: usize = 1024;
/// How often the writer looks whether its time is over.
const LOOK: Duration = Duration::from_millis(100);
/// Directory below the data directory.
const DIRECTORY: &str = "decisions";
const WRITTEN: &str = "quorate_explain_file_records_total";
const LOST: &str = "quorate_explain_file_lost_total";

/// Help texts of the metrics.
pub fn describe() {
    describe_counter!(WRITTEN, "Records of requests written to a file.");
    describe_counter!(
        LOST,
        "Records of requests that did not get into the file, by reason: busy, full, error."
    );
}

/// Where files go.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// `None`: this node keeps nothing on disk.
    pub data_dir: Option<PathBuf>,
    /// Longest file in bytes.
    pub max_bytes: u64,
}

/// Why nothing is recorded.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It has no data directory.
    #[error("this node keeps nothing on disk")]
    NoDisk,
    /// No plain file name.
    #[error(
        "{0:?} is no file name: use letters, digits, `.`, `_` and `-`, and begin with none of the dots"
    )]
    Name(String),
    /// What the system says.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// There is no room left in it.
    #[error("{0} has its full length already: use another file")]
    Full(String),
}

#[derive(Default)]
struct Progress {
    written: AtomicU64,
    lost: AtomicU64,
    ended: AtomicBool,
    problem: Mutex<Option<String>>,
}

/// A file being written.
pub struct Recording {
    path: PathBuf,
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// The request path's end of the queue.
struct Queue {
    records: SyncSender<Arc<RequestRecord>>,
    progress: Arc<Progress>,
    lost: Counter,
}

impl RecordSink for Queue {
    fn take(&self, record: &Arc<RequestRecord>) {
        match self.records.try_send(Arc::clone(record)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.progress.lost.fetch_add(1, Relaxed);
                self.lost.increment(1);
            }
            // It has ended and is about to be taken away.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }
}

fn is_file_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=100).contains(&name.len()) && !name.starts_with(['.', '-']) && name.bytes().all(plain)
}

impl Recording {
    /// Opens the file and starts the writer.
    ///
    /// # Errors
    /// [`StartError`]; nothing is recorded then.
    pub fn start(
        options: &FileOptions,
        recorder: &Arc<Recorder>,
        name: &str,
        share: f64,
        duration: Option<Duration>,
    ) -> Result<Self, StartError> {
        let directory = options.data_dir.as_ref().ok_or(StartError::NoDisk)?;
        if !is_file_name(name) {
            return Err(StartError::Name(name.to_owned()));
        }
        let directory = directory.join(DIRECTORY);
        let path = directory.join(name);
        let (file, length) = open(&directory, &path).map_err(|source| StartError::File {
            path: path.display().to_string(),
            source,
        })?;
        if length >= options.max_bytes {
            return Err(StartError::Full(path.display().to_string()));
        }
        let (sender, records) = sync_channel(QUEUE);
        let progress = Arc::new(Progress::default());
        let stop = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            file: BufWriter::new(file),
            room: options.max_bytes - length,
            until: duration.and_then(|duration| Instant::now().checked_add(duration)),
            progress: Arc::clone(&progress),
            stop: Arc::clone(&stop),
        };
        let from = Arc::clone(recorder);
        let thread = std::thread::Builder::new()
            .name("decisions".into())
            .spawn(move || writer.run(&records, &from))
            .map_err(|source| StartError::File {
                path: path.display().to_string(),
                source,
            })?;
        let queue = Queue {
            records: sender,
            progress: Arc::clone(&progress),
            lost: counter!(LOST, "reason" => "busy"),
        };
        recorder.set_sink(Some(SinkOptions {
            sink: Arc::new(queue),
            share,
        }));
        // It may have failed before it was connected.
        if progress.ended.load(Acquire) {
            recorder.set_sink(None);
        }
        Ok(Self {
            path,
            progress,
            stop,
            writer: Mutex::new(Some(thread)),
        })
    }

    /// Ends it and waits for what is in the queue.
    pub fn finish(&self, recorder: &Recorder) {
        if self.is_running() {
            recorder.set_sink(None);
        }
        self.stop.store(true, Release);
        if let Some(writer) = self.writer.lock().take()
            && writer.join().is_err()
        {
            self.progress
                .problem
                .lock()
                .get_or_insert_with(|| "the writer failed".into());
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It has not come to an end by itself.
    pub fn is_running(&self) -> bool {
        !self.progress.ended.load(Acquire)
    }

    /// Records in the file.
    pub fn written(&self) -> u64 {
        self.progress.written.load(Relaxed)
    }

    /// Records that are not.
    pub fn lost(&self) -> u64 {
        self.progress.lost.load(Relaxed)
    }

    /// Why it ended by itself.
    pub fn problem(&self) -> Option<String> {
        self.progress.problem.lock().clone()
    }
}

fn open(directory: &Path, path: &Path) -> io::Result<(File, u64)> {
    fs::create_dir_all(directory)?;
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

struct Writer {
    file: BufWriter<File>,
    room: u64,
    until: Option<Instant>,
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self, records: &Receiver<Arc<RequestRecord>>, recorder: &Recorder) {
        let result = self.write_all(records, recorder);
        // Nobody starts another recording before this one has ended.
        recorder.set_sink(None);
        let result = result.and_then(|()| self.file.flush().map_err(|e| e.to_string()));
        if let Err(problem) = result {
            tracing::error!(problem, "recording decisions to a file has ended");
            *self.progress.problem.lock() = Some(problem);
        }
        self.progress.ended.store(true, Release);
    }

    fn write_all(
        &mut self,
        records: &Receiver<Arc<RequestRecord>>,
        recorder: &Recorder,
    ) -> Result<(), String> {
        let written = counter!(WRITTEN);
        loop {
            let over = self.until.is_some_and(|until| Instant::now() >= until);
            let stopped = self.stop.load(Acquire);
            let record = if over || stopped {
                // What is in the queue is still written.
                recorder.set_sink(None);
                records
                    .try_recv()
                    .map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                records.recv_timeout(LOOK)
            };
            match record {
                Ok(record) => {
                    self.write(&record)?;
                    self.progress.written.fetch_add(1, Relaxed);
                    written.increment(1);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.file.flush().map_err(|error| error.to_string())?;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn write(&mut self, record: &RequestRecord) -> Result<(), String> {
        let lost = |reason: &'static str| {
            self.progress.lost.fetch_add(1, Relaxed);
            counter!(LOST, "reason" => reason).increment(1);
        };
        let mut line = serde_json::to_vec(record).map_err(|error| {
            lost("error");
            error.to_string()
        })?;
        line.push(b'\n');
        let length = line.len() as u64;
        if length > self.room {
            lost("full");
            return Err("the file has its full length (explain.max_file_mib)".into());
        }
        self.room -= length;
        self.file.write_all(&line).map_err(|error| {
            lost("error");
            error.to_string()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_routing::explain::RecorderOptions;

    fn recorder() -> Arc<Recorder> {
        Arc::new(Recorder::new(RecorderOptions {
            capacity: 4,
            max_bytes: 1 << 20,
            share: 0.0,
            max_per_second: 0,
        }))
    }

    fn offer(recorder: &Recorder, id: usize) {
        let record = RequestRecord {
            request_id: id.to_string(),
            ..RequestRecord::default()
        };
        recorder.finish(record, 1);
    }

    fn ids(path: &Path) -> Vec<String> {
        fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(|line| {
                serde_json::from_str::<RequestRecord>(line)
                    .unwrap()
                    .request_id
            })
            .collect()
    }

    fn options(dir: &tempfile::TempDir, max_bytes: u64) -> FileOptions {
        FileOptions {
            data_dir: Some(dir.path().to_owned()),
            max_bytes,
        }
    }

    #[test]
    fn records_are_appended_until_it_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = recorder();
        for begin in [0, 10] {
            let recording =
                Recording::start(&options(&dir, 1 << 20), &recorder, "a.jsonl", 1.0, None).unwrap();
            (begin..begin + 3).for_each(|id| offer(&recorder, id));
            recording.finish(&recorder);
            assert_eq!(
                (recording.written(), recording.lost(), recording.problem()),
                (3, 0, None)
            );
            assert!(!recording.is_running());
            offer(&recorder, 99);
        }
        let path = dir.path().join("decisions/a.jsonl");
        assert_eq!(ids(&path), ["0", "1", "2", "10", "11", "12"]);
    }

    #[test]
    fn a_full_file_ends_it_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = recorder();
        let recording = Recording::start(&options(&dir, 1000), &recorder, "a", 1.0, None).unwrap();
        let mut id = 0;
        while recording.is_running() {
            offer(&recorder, id);
            id += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(recording.problem().unwrap().contains("full length"));
        assert!(recording.written() > 0 && recording.lost() > 0);
        assert!(fs::metadata(recording.path()).unwrap().len() <= 1000);
        assert!(
            !recorder.wants(1, 1, false),
            "nobody asks for records any more"
        );
        recording.finish(&recorder);
    }

    #[test]
    fn its_time_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = recorder();
        let short = Some(Duration::from_millis(1));
        let recording = Recording::start(&options(&dir, 1000), &recorder, "a", 1.0, short).unwrap();
        while recording.is_running() {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(recording.problem(), None);
        assert!(!recorder.wants(1, 1, false));
    }

    #[test]
    fn only_plain_names_below_the_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = recorder();
        for name in ["", "../a", "a/b", ".hidden", "-a", "a b", &"x".repeat(101)] {
            let started = Recording::start(&options(&dir, 9), &recorder, name, 1.0, None);
            assert!(matches!(started, Err(StartError::Name(_))), "{name}");
        }
        let nowhere = FileOptions {
            data_dir: None,
            max_bytes: 9,
        };
        let started = Recording::start(&nowhere, &recorder, "a", 1.0, None);
        assert!(matches!(started, Err(StartError::NoDisk)));
        fs::write(
            dir.path().join("decisions"),
            "a file where the directory should be",
        )
        .unwrap();
        let started = Recording::start(&options(&dir, 9), &recorder, "a", 1.0, None);
        assert!(matches!(started, Err(StartError::File { .. })));
    }
}
