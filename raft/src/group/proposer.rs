//! Takes commands from many callers and turns them into few log entries.
//!
//! While [`IN_FLIGHT`] entries are under way, or a large one, arriving commands wait and then go together: alone, a command
//! travels at once; under load, entries grow. A node that does not lead sends its batches to the leader, each in one call.
//!
//! Every command has an idempotency key when it is handed over (one is made up if the caller gave none), so a batch whose fate
//! is unknown can be sent again without being applied twice. A caller that gives up learns whether its command was certainly
//! not applied: its ticket says whether any attempt may have reached a log.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use prost::Message;
use quorate_proto::{
    peer::v1::{ProposeRequest, Refusal},
    store::v1::{Command, CommandBatch, CommandReply, command_reply},
    v1::{ApplyOutcome, Resource},
};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::{
    Group, NotAccepted, WriteError,
    pace::{IN_FLIGHT, Newest},
};
use crate::{
    error::ProposeError,
    network::{Lane, refusal_of},
    state::{Reply, schema_of},
};

/// Commands in an entry, and their bytes, at most; a larger command goes alone.
pub(super) const BATCH_COMMANDS: usize = 256;
const BATCH_BYTES: usize = 32 * 1024;
/// Largest command.
pub(crate) const MAX_COMMAND: usize = 1 << 20;
/// Commands that may wait.
const QUEUE: usize = 16_384;
/// Pause after a refusal that a moment may cure, and longest wait for news of a leader.
const PAUSE: Duration = Duration::from_millis(5);
const LEADER_WAIT: Duration = Duration::from_millis(50);

/// A command that took effect.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// After a put or a registration: as it is now. After a delete or a removal: as it was.
    pub resource: Arc<Resource>,
    /// `Unspecified` after a delete or a removal.
    pub outcome: ApplyOutcome,
    /// Log index of the entry that took effect (the first one, if a retried key was recognised).
    pub index: u64,
}

/// What the caller and the batch agree on about a command.
#[derive(Default)]
struct Ticket {
    stage: AtomicU8,
    /// The last refusal was for want of disk space.
    no_space: AtomicBool,
}

/// Not handed to anyone, or certainly refused.
const WAITING: u8 = 0;
/// An attempt may have reached a log.
const SENT: u8 = 1;
/// The caller gave up while the command was waiting; it must not be sent any more.
const CANCELLED: u8 = 2;

impl Ticket {
    /// Before an attempt; false if the caller gave up.
    fn send(&self) -> bool {
        match self
            .stage
            .compare_exchange(WAITING, SENT, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => true,
            Err(stage) => stage == SENT,
        }
    }

    /// After an attempt that certainly came to nothing.
    fn unsend(&self) {
        let _ = self
            .stage
            .compare_exchange(SENT, WAITING, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The caller gives up; true if the command will certainly not be applied.
    fn cancel(&self) -> bool {
        self.stage
            .compare_exchange(WAITING, CANCELLED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// A command with the one who waits for it.
struct Pending {
    command: Command,
    size: usize,
    caller: Caller,
}

struct Caller {
    ticket: Arc<Ticket>,
    deadline: Instant,
    reply: oneshot::Sender<Result<Reply, ProposeError>>,
}

/// The entrance for commands; cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Pending>,
    node_id: u64,
    start_id: u64,
    made_up: Arc<AtomicU64>,
}

impl Proposer {
    /// Starts the task that forms batches; it ends with the last handle.
    pub(crate) fn spawn(group: Arc<Group>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let (node_id, start_id) = (group.local.node_id, group.local.start_id);
        tokio::spawn(run(group, waiting));
        Self {
            queue,
            node_id,
            start_id,
            made_up: Arc::default(),
        }
    }

    /// See [`Cluster::propose_within`](crate::Cluster::propose_within).
    pub(crate) async fn propose(
        &self,
        mut command: Command,
        timeout: Duration,
    ) -> Result<Applied, ProposeError> {
        if command.idempotency_key.is_empty() {
            let number = self.made_up.fetch_add(1, Ordering::Relaxed);
            command.idempotency_key = format!("~{:x}.{:x}.{number:x}", self.node_id, self.start_id);
        }
        if command.time_unix_ms == 0 {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            command.time_unix_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        }
        command.origin_node_id = self.node_id;
        let size = command.encoded_len();
        if size > MAX_COMMAND {
            return Err(ProposeError::TooLarge {
                size,
                limit: MAX_COMMAND,
            });
        }
        let ticket = Arc::new(Ticket::default());
        let (reply, answer) = oneshot::channel();
        let caller = Caller {
            ticket: Arc::clone(&ticket),
            deadline: Instant::now() + timeout,
            reply,
        };
        let pending = Pending {
            command,
            size,
            caller,
        };
        self.queue.try_send(pending).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped,
        })?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(Ok(Reply::Applied {
                resource,
                outcome,
                index,
            }))) => Ok(Applied {
                resource,
                outcome,
                index,
            }),
            Ok(Ok(Ok(Reply::Rejected(rejection)))) => Err(ProposeError::Rejected(rejection)),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(ProposeError::Stopped),
            Err(_) if ticket.cancel() => Err(if ticket.no_space.load(Ordering::Relaxed) {
                ProposeError::NoSpace
            } else {
                ProposeError::NoLeader { waited: timeout }
            }),
            Err(_) => Err(ProposeError::Timeout { waited: timeout }),
        }
    }
}

async fn run(group: Arc<Group>, mut waiting: mpsc::Receiver<Pending>) {
    let mut under_way = FuturesUnordered::new();
    let mut newest = Newest::default();
    let mut arrived = Vec::with_capacity(1);
    // A command that did not fit into the last batch, or the one that woke this task.
    let mut left_over: Option<Pending> = None;
    loop {
        let queued = waiting.len() + usize::from(left_over.is_some());
        let open = newest.lets_another_go(under_way.len(), queued);
        if open && queued > 0 {
            // Whoever else is ready to run may have a command for the same entry: an entry costs far more than a command.
            tokio::task::yield_now().await;
            let batch = take_batch(&mut waiting, &mut left_over);
            newest = Newest::sent(batch.callers.len());
            metrics::histogram!("quorate_raft_batch_commands", "group" => group.name)
                .record(batch.callers.len() as f64);
            under_way.push(run_batch(Arc::clone(&group), batch));
            continue;
        }
        let patience = newest
            .until()
            .filter(|_| !open && under_way.len() < IN_FLIGHT);
        tokio::select! {
            biased;
            Some(()) = under_way.next(), if !under_way.is_empty() => {}
            n = waiting.recv_many(&mut arrived, 1), if open => {
                if n == 0 {
                    // No handle is left; what is under way is answered first.
                    while under_way.next().await.is_some() {}
                    return;
                }
                left_over = arrived.pop();
            }
            () = sleep_until(patience), if patience.is_some() => {}
        }
    }
}

async fn sleep_until(then: Option<Instant>) {
    if let Some(then) = then {
        tokio::time::sleep_until(then.into()).await;
    }
}

/// The next commands, up to the limits of an entry.
fn take_batch(waiting: &mut mpsc::Receiver<Pending>, left_over: &mut Option<Pending>) -> Batch {
    let mut batch = Batch::default();
    let mut size = 0;
    while batch.callers.len() < BATCH_COMMANDS {
        let Some(pending) = left_over.take().or_else(|| waiting.try_recv().ok()) else {
            break;
        };
        if size > 0 && size + pending.size > BATCH_BYTES {
            *left_over = Some(pending);
            break;
        }
        size += pending.size;
        batch.commands.push(pending.command);
        batch.callers.push(pending.caller);
    }
    batch
}

/// Commands that travel as one entry; `callers[i]` waits for `commands[i]`.
#[derive(Default)]
struct Batch {
    commands: Vec<Command>,
    callers: Vec<Caller>,
}

impl Batch {
    /// Drops the commands of callers that gave up and marks the others as sent; returns how long the most patient caller
    /// still waits, `None` if nobody does.
    fn claim(&mut self) -> Option<Duration> {
        let wanted: Vec<bool> = self
            .callers
            .iter()
            .map(|caller| !caller.reply.is_closed() && caller.ticket.send())
            .collect();
        if wanted.contains(&false) {
            let mut keep = wanted.iter();
            self.commands
                .retain(|_| keep.next().copied().unwrap_or(false));
            let mut keep = wanted.iter();
            self.callers
                .retain(|_| keep.next().copied().unwrap_or(false));
        }
        let deadline = self.callers.iter().map(|caller| caller.deadline).max()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    fn answer(self, replies: impl Iterator<Item = Result<Reply, ProposeError>>) {
        for (caller, reply) in self.callers.into_iter().zip(replies) {
            let _ = caller.reply.send(reply);
        }
    }
}

/// Sends a batch until each of its commands is answered or given up.
async fn run_batch(group: Arc<Group>, mut batch: Batch) {
    let started = Instant::now();
    // An attempt may have reached a log: its commands can no longer be called "not applied".
    let mut tainted = false;
    while let Some(remaining) = batch.claim() {
        let count = batch.callers.len() as u64;
        let commands = CommandBatch {
            schema: schema_of(&batch.commands),
            commands: std::mem::take(&mut batch.commands),
        };
        let bytes = Bytes::from(commands.encode_to_vec());
        batch.commands = commands.commands;
        let attempt = tokio::time::timeout(
            remaining,
            attempt(&group, bytes, batch.callers.len(), remaining),
        )
        .await;
        match attempt {
            Ok(Ok(replies)) => {
                metrics::histogram!("quorate_raft_commit_seconds", "group" => group.name)
                    .record(started.elapsed().as_secs_f64());
                metrics::counter!("quorate_raft_proposals_total", "group" => group.name, "result" => "answered")
                    .increment(count);
                return batch.answer(replies.into_iter().map(Ok));
            }
            Ok(Err(WriteError::Stopped)) => {
                return batch.answer(std::iter::repeat_with(|| Err(ProposeError::Stopped)));
            }
            Ok(Err(WriteError::NotAccepted(why))) => {
                for caller in &batch.callers {
                    caller
                        .ticket
                        .no_space
                        .store(why == NotAccepted::Storage, Ordering::Relaxed);
                    if !tainted {
                        caller.ticket.unsend();
                    }
                }
                if why == NotAccepted::NotLeader {
                    let leader = group.leader();
                    let wait = if leader == Some(group.local.node_id) {
                        PAUSE
                    } else {
                        LEADER_WAIT
                    };
                    group.leader_change(leader, wait).await;
                } else {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Ok(Err(WriteError::Unknown(why))) => {
                tainted = true;
                tracing::debug!(why, commands = count, "a batch is sent again");
                metrics::counter!("quorate_raft_proposals_total", "group" => group.name, "result" => "retried")
                    .increment(count);
                tokio::time::sleep(PAUSE).await;
            }
            // All callers have given up.
            Err(_) => return,
        }
    }
}

/// One attempt: here if this node leads, else at the leader.
async fn attempt(
    group: &Group,
    commands: Bytes,
    count: usize,
    remaining: Duration,
) -> Result<Vec<Reply>, WriteError> {
    let Some(leader) = group.leader() else {
        return Err(WriteError::NotAccepted(NotAccepted::NotLeader));
    };
    let replies = if leader == group.local.node_id {
        group.write(commands).await?.1
    } else {
        forward(group, leader, commands, remaining).await?
    };
    if replies.len() == count {
        Ok(replies)
    } else {
        Err(WriteError::Unknown(format!(
            "{} replies to {count} commands",
            replies.len()
        )))
    }
}

async fn forward(
    group: &Group,
    leader: u64,
    commands: Bytes,
    remaining: Duration,
) -> Result<Vec<Reply>, WriteError> {
    let peer = group
        .peers
        .get(leader)
        .ok_or(WriteError::NotAccepted(NotAccepted::NotLeader))?;
    let mut client = group
        .peers
        .client(&peer, Lane::Data)
        .map_err(|_| WriteError::NotAccepted(NotAccepted::NotLeader))?;
    let request = ProposeRequest {
        header: Some(crate::network::header(&group.peers, group.name, leader)),
        commands,
        timeout_ms: u32::try_from(remaining.as_millis()).unwrap_or(u32::MAX),
    };
    match client.propose(request).await {
        Ok(reply) => {
            peer.seen();
            let reply = reply.into_inner();
            reply.replies.into_iter().map(decode_reply).collect()
        }
        Err(status) => Err(refusal_error(&status)),
    }
}

/// What the status of a forwarded proposal says about its fate.
pub(crate) fn refusal_error(status: &Status) -> WriteError {
    match refusal_of(status) {
        Some(Refusal::Storage) => WriteError::NotAccepted(NotAccepted::Storage),
        Some(_) => WriteError::NotAccepted(NotAccepted::NotLeader),
        None if never_connected(status) => WriteError::NotAccepted(NotAccepted::NotLeader),
        None => WriteError::Unknown(status.to_string()),
    }
}

/// The call failed because no connection could be opened, so the peer never saw it.
fn never_connected(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn decode_reply(bytes: Bytes) -> Result<Reply, WriteError> {
    let unknown = |why: &str| WriteError::Unknown(format!("malformed reply: {why}"));
    let reply = CommandReply::decode(bytes).map_err(|error| unknown(&error.to_string()))?;
    match reply.result {
        Some(command_reply::Result::Applied(applied)) => Ok(Reply::Applied {
            outcome: ApplyOutcome::try_from(applied.outcome).unwrap_or(ApplyOutcome::Unspecified),
            resource: Arc::new(applied.resource.ok_or_else(|| unknown("no resource"))?),
            index: applied.index,
        }),
        Some(command_reply::Result::Rejection(rejection)) => Ok(Reply::Rejected(rejection)),
        None => Err(unknown("no result")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_that_gives_up_knows_what_it_may_rely_on() {
        let ticket = Ticket::default();
        assert!(ticket.cancel(), "never sent: certainly not applied");
        assert!(!ticket.send(), "and never sent afterwards");

        let ticket = Ticket::default();
        assert!(ticket.send());
        assert!(!ticket.cancel(), "an attempt is out");

        let ticket = Ticket::default();
        assert!(ticket.send());
        ticket.unsend();
        assert!(ticket.cancel(), "the attempt was certainly refused");
        ticket.unsend();
        assert!(!ticket.send());
    }
}
