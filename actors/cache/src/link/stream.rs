//! What a sequencer is told, what it answers, and how it is.

use bytes::Bytes;

/// Limits and times of one stream.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Whether the engine has a replay socket.
    pub replay: bool,
    /// How long a missing batch may still come by itself, in ms.
    pub grace: u64,
    /// After so long without a batch the engine is asked whether there are newer ones, in ms. Needs a replay socket.
    pub silence: u64,
    /// A replay without progress for so long has failed, in ms.
    pub replay_timeout: u64,
    /// Time between attempts, in ms.
    pub backoff: u64,
    /// Attempts without progress before the stream goes on without replay.
    pub attempts: u32,
    /// For how long it then does, in ms.
    pub cool_down: u64,
    /// Batches kept while earlier ones are missing.
    pub max_held: usize,
    /// Their bytes.
    pub max_held_bytes: usize,
    /// Batches whose fingerprints are remembered, to tell a duplicate from a stream begun anew.
    pub memory: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            replay: false,
            grace: 20,
            silence: 30_000,
            replay_timeout: 2_000,
            backoff: 100,
            attempts: 3,
            cool_down: 30_000,
            max_held: 10_000,
            max_held_bytes: 64 << 20,
            memory: 1024,
        }
    }
}

/// Why everything known of the stream is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The engine began anew.
    Restarted,
    /// Batches are missing and cannot be had.
    Lost,
    /// The connection broke, and without replay nothing proves that it is the same stream.
    Unproved,
}

impl Reset {
    /// As in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Reset::Restarted => "restarted",
            Reset::Lost => "lost",
            Reset::Unproved => "unproved",
        }
    }
}

/// What the caller has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Forget everything that earlier batches said.
    Reset(Reset),
    /// Apply a batch.
    Deliver {
        /// Its number.
        seq: u64,
        /// Its bytes.
        payload: Bytes,
    },
    /// Ask for all batches from `from` on. Replies carry `id`. An older request is void.
    Replay {
        /// Names the request.
        id: u64,
        /// First number wanted.
        from: u64,
    },
    /// Give the request up.
    CancelReplay,
}

/// How a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not connected.
    Down,
    /// Batches come in order.
    Live,
    /// One is missing and may still come.
    Gap,
    /// Missing ones are being replayed.
    Replaying,
    /// A replay failed, the next one is due soon.
    Waiting,
}

impl State {
    /// As in metrics and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Down => "down",
            State::Live => "live",
            State::Gap => "gap",
            State::Replaying => "replaying",
            State::Waiting => "waiting",
        }
    }
}

/// Running totals of one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Batches handed on.
    pub delivered: u64,
    /// Of these, from a replay.
    pub replayed: u64,
    /// Batches that came twice.
    pub duplicates: u64,
    /// Times that a batch was missing.
    pub gaps: u64,
    /// Replays asked for.
    pub replays: u64,
    /// Replays that failed.
    pub replay_failures: u64,
    /// Asked because nothing had come for long.
    pub probes: u64,
    /// Batches thrown away because too many were waiting.
    pub overflowed: u64,
    /// Resets because the engine began anew.
    pub restarts: u64,
    /// Resets because batches were lost.
    pub losses: u64,
    /// Resets because nothing proved that the stream is the same.
    pub unproved: u64,
}
