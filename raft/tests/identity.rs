//! Who may take part: wrong clusters, copied and wiped directories, certificates, damaged files. Each is refused with a
//! message that says what to do.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use quorate_proto::peer::v1::usage_exchange_client::UsageExchangeClient;
use quorate_proto::peer::v1::usage_exchange_server::{UsageExchange, UsageExchangeServer};
use quorate_proto::peer::v1::{UsageAck, UsageReport};
use quorate_raft::{Error, Options, PeerTls, Start, StopReason, StorageError, Timing};
use support::*;

/// What a refused start says.
fn refusal(options: Options) -> String {
    match Node::try_start(options) {
        Ok(node) => panic!("node {} was let in", node.id()),
        Err(error) => error.to_string(),
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy(&item.path(), &target);
        } else {
            std::fs::copy(item.path(), target).unwrap();
        }
    }
}

fn join(fleet: &Fleet) -> Start {
    Start::Join(vec![fleet.nodes[0].address.clone()])
}

#[test]
fn a_directory_of_another_cluster_is_refused() {
    let (ours, theirs) = (Fleet::new(1), Fleet::new(2));
    let mut theirs = theirs;
    let (dir, address, name) = theirs.nodes.remove(1).stop();
    let why = refusal(options(&name, &dir, bind(&address), join(&ours)));
    assert!(why.contains("belongs to cluster"), "{why}");
    assert_eq!(ours.nodes[0].cluster.status().members.len(), 1);
}

#[test]
fn a_name_that_is_taken_is_refused() {
    let fleet = Fleet::new(2);
    let dir = fleet.root.path().join("impostor");
    let why = refusal(options("node-2", &dir, free_listener(), join(&fleet)));
    assert!(
        why.contains("belongs to node") && why.contains("another data directory"),
        "{why}"
    );
}

#[test]
fn a_copied_directory_cannot_run_beside_the_original() {
    let mut fleet = Fleet::new(3);
    // Copy at rest, then start both.
    let stopped = fleet.nodes.remove(2).stop();
    let copied = fleet.root.path().join("copy");
    copy(&stopped.0, &copied);
    fleet.restart(stopped).ready();
    let why = refusal(options("node-3", &copied, free_listener(), Start::Resume));
    assert!(why.contains("running already"), "{why}");
    let original = &fleet.nodes[2];
    original.put("x", "1").unwrap();
}

#[test]
fn a_wiped_log_is_refused_not_served() {
    let mut fleet = Fleet::new(3);
    fleet.nodes[0].put("x", "1").unwrap();
    let (dir, address, name) = fleet.nodes.remove(2).stop();
    std::fs::remove_dir_all(dir.join("raft")).unwrap();
    let why = refusal(options(&name, &dir, bind(&address), Start::Resume));
    assert!(why.contains("its tail was lost"), "{why}");
    std::fs::remove_dir_all(dir.join("raft")).unwrap();
    std::fs::remove_file(dir.join("watermark")).unwrap();
    let why = refusal(options(&name, &dir, bind(&address), Start::Resume));
    assert!(why.contains("its log was lost"), "{why}");
    // A wiped directory is a new node, and its old name is taken until the old node is removed.
    std::fs::remove_dir_all(&dir).unwrap();
    let why = refusal(options(&name, &dir, bind(&address), join(&fleet)));
    assert!(why.contains("remove node"), "{why}");
    let node = &fleet.nodes[0];
    let old = node
        .cluster
        .status()
        .members
        .iter()
        .find(|member| member.name == name)
        .unwrap()
        .node_id;
    node.block_on(node.cluster.remove(old)).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let node = Node::try_start(options(&name, &dir, bind(&address), join(&fleet))).unwrap();
    node.ready();
    assert_ne!(node.id(), old, "an id is never used again");
    assert_eq!(node.setting("x"), Some("1".to_owned()));
}

#[test]
fn timers_must_agree() {
    let mut fleet = Fleet::new(1);
    let mut other = options(
        "node-9",
        &fleet.root.path().join("other"),
        free_listener(),
        join(&fleet),
    );
    other.timing = Timing::Wan;
    let why = refusal(other);
    assert!(why.contains("timing"), "{why}");
    let (dir, address, name) = fleet.nodes.remove(0).stop();
    let mut changed = options(&name, &dir, bind(&address), Start::Resume);
    changed.timing = Timing::Wan;
    let why = refusal(changed);
    assert!(why.contains("timing"), "{why}");
}

#[test]
fn nothing_to_resume_and_a_directory_in_use_are_told_apart() {
    let fleet = Fleet::new(1);
    let empty = fleet.root.path().join("empty");
    assert!(matches!(
        Node::try_start(options("n", &empty, free_listener(), Start::Resume)),
        Err(Error::NoIdentity(_))
    ));
    let used = fleet.nodes[0].dir.clone();
    assert!(matches!(
        Node::try_start(options("node-1", &used, free_listener(), Start::Resume)),
        Err(Error::Locked(_))
    ));
}

#[test]
fn plain_text_stays_on_this_machine() {
    let address: std::net::SocketAddr = "0.0.0.0:0".parse().unwrap();
    let why = refusal(Options::new("n", address));
    assert!(why.contains("needs TLS"), "{why}");
    let mut joining = Options::new("n", free_listener());
    joining.start = Start::Join(vec!["192.0.2.1:7000".to_owned()]);
    let why = refusal(joining);
    assert!(why.contains("needs TLS"), "{why}");
}

type Harm = Box<dyn Fn(&Path)>;

/// Every file that a stopped node leaves, with an offset in it that matters.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in std::fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn damaged_files_are_refused_never_served() {
    let tweak: Tweak = Arc::new(|options| {
        options.snapshot_every = 50;
        options.keep_logs = 10;
    });
    let mut fleet = Fleet::with(1, Arc::clone(&tweak));
    for number in 0..180 {
        fleet.nodes[0]
            .put(&format!("k{number}"), &format!("\"{}\"", "v".repeat(200)))
            .unwrap();
    }
    let want: Vec<_> = (0..180).map(|number| format!("k{number}")).collect();
    let (dir, address, name) = fleet.nodes.remove(0).stop();
    let intact = fleet.root.path().join("intact");
    copy(&dir, &intact);
    let (mut refused, mut unharmed) = (0, 0);
    for path in files(&intact) {
        let relative = path.strip_prefix(&intact).unwrap();
        if relative == Path::new("lock") {
            continue;
        }
        let len = std::fs::metadata(&path).unwrap().len();
        // A flipped bit at several places, the tail cut off, the whole file gone.
        let mut harms: Vec<(String, Harm)> = Vec::new();
        for part in [0, 1, 3, 5, 7] {
            let offset = len.saturating_sub(1) * part / 7;
            harms.push((
                format!("bit at {offset} of {len}"),
                Box::new(move |file| {
                    let mut bytes = std::fs::read(file).unwrap();
                    bytes[offset as usize] ^= 0x10;
                    std::fs::write(file, bytes).unwrap();
                }),
            ));
        }
        for keep in [0, len / 2, len.saturating_sub(100)] {
            harms.push((
                format!("cut at {keep} of {len}"),
                Box::new(move |file| {
                    std::fs::File::options()
                        .write(true)
                        .open(file)
                        .unwrap()
                        .set_len(keep)
                        .unwrap()
                }),
            ));
        }
        harms.push((
            "deleted".to_owned(),
            Box::new(|file| std::fs::remove_file(file).unwrap()),
        ));
        for (what, harm) in harms {
            std::fs::remove_dir_all(&dir).unwrap();
            copy(&intact, &dir);
            harm(&dir.join(relative));
            let mut options = options(&name, &dir, bind(&address), Start::Resume);
            tweak(&mut options);
            match Node::try_start(options) {
                Err(error) => {
                    refused += 1;
                    let text = error.to_string();
                    assert!(
                        text.contains(&*dir.to_string_lossy()),
                        "{}: {what}: {text}",
                        relative.display()
                    );
                }
                Ok(node) => {
                    // Not every byte of a file carries something. What is served must be all of it.
                    unharmed += 1;
                    node.ready();
                    for key in &want {
                        assert!(
                            node.setting(key).is_some(),
                            "{}: {what}: {key} is gone",
                            relative.display()
                        );
                    }
                    node.stop();
                }
            }
        }
    }
    println!("{refused} refused, {unharmed} unharmed");
    assert!(refused > 15, "only {refused} damages were noticed");
}

fn with_tls(authority: &Arc<Authority>) -> Tweak {
    let authority = Arc::clone(authority);
    Arc::new(move |options| options.tls = Some(authority.issue(&options.node_name)))
}

#[test]
fn nodes_with_certificates_form_a_cluster() {
    let certs = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::new(certs.path()));
    let fleet = Fleet::with(3, with_tls(&authority));
    for node in &fleet.nodes {
        node.put("x", "1").unwrap();
    }
    fleet.check_equal();
}

/// A service beside consensus that answers by the check that consensus makes.
#[derive(Clone, Default)]
struct Beside(Arc<std::sync::OnceLock<quorate_raft::Cluster>>);

#[tonic::async_trait]
impl UsageExchange for Beside {
    async fn share(
        &self,
        request: tonic::Request<UsageReport>,
    ) -> Result<tonic::Response<UsageAck>, tonic::Status> {
        let cluster = self.0.get().expect("the cluster is set before calls");
        let (_, call, report) = request.into_parts();
        cluster.check_caller(report.node_id, &call)?;
        Ok(tonic::Response::new(UsageAck { node_id: 1 }))
    }
}

#[test]
fn further_services_know_who_calls() {
    let certs = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::new(certs.path()));
    let beside = Beside::default();
    let tweak = {
        let (tls, beside) = (with_tls(&authority), beside.clone());
        Arc::new(move |options: &mut Options| {
            tls(options);
            let server = UsageExchangeServer::new(beside.clone());
            options.extra_services = Some(tonic::service::Routes::new(server));
        })
    };
    let fleet = Fleet::with(3, tweak);
    let [first, second, third] = &fleet.nodes[..] else {
        panic!("three nodes were asked for")
    };
    let _ = beside.0.set(first.cluster.clone());
    // All that the first node must know before it can tell.
    until("the nodes are registered", || {
        let view = first.cluster.view();
        let mut nodes = fleet.nodes.iter();
        nodes
            .all(|node| view.node_by_id(node.id()).is_some())
            .then_some(())
    });
    let ask = |from: &support::Node, as_node: u64| {
        let report = UsageReport {
            node_id: as_node,
            ..UsageReport::default()
        };
        let answer = from.block_on(async {
            let channel = from.cluster.peer_channel(first.id()).unwrap();
            UsageExchangeClient::new(channel).share(report).await
        });
        answer
            .map(|_| ())
            .map_err(|status| status.message().to_owned())
    };
    ask(second, second.id()).unwrap();
    ask(third, third.id()).unwrap();
    let why = ask(third, second.id()).unwrap_err();
    assert!(why.contains("node-3") && why.contains("node-2"), "{why}");
    let removed = second.id();
    first.block_on(first.cluster.remove(removed)).unwrap();
    let why = ask(third, removed).unwrap_err();
    assert!(why.contains("removed"), "{why}");
}

#[test]
fn strangers_are_kept_out() {
    let certs = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::new(&certs.path().join("ours")));
    let fleet = Fleet::with(1, with_tls(&authority));
    let root = fleet.root.path();
    let impatient = |name: &str, tls: Option<PeerTls>| {
        let mut options = options(name, &root.join(name), free_listener(), join(&fleet));
        options.tls = tls;
        options
    };
    let join_briefly = |options: Options| {
        let runtime = runtime();
        let started = runtime.block_on(async {
            tokio::time::timeout(
                Duration::from_secs(3),
                quorate_raft::Cluster::start(options),
            )
            .await
        });
        runtime.shutdown_background();
        matches!(started, Ok(Ok(_)))
    };
    // Another authority.
    let others = Authority::new(&certs.path().join("theirs"));
    assert!(!join_briefly(impatient(
        "stranger",
        Some(others.issue("stranger"))
    )));
    // No certificate at all.
    assert!(!join_briefly(impatient("plain", None)));
    // Our authority, but a certificate for another node: not even started.
    let why = refusal(impatient("node-7", Some(authority.issue("node-8"))));
    assert!(why.contains("node-8"), "{why}");
    // The right certificate.
    assert!(join_briefly(impatient(
        "node-9",
        Some(authority.issue("node-9"))
    )));
    let settings = fleet.nodes[0].cluster.status();
    assert!(
        settings
            .members
            .iter()
            .all(|member| member.name != "stranger" && member.name != "plain")
    );
}

#[test]
fn a_removed_leader_steps_aside_and_says_so() {
    let fleet = Fleet::new(3);
    let leader = &fleet.nodes[fleet.leader()];
    let id = leader.id();
    let members = leader.block_on(leader.cluster.remove(id)).unwrap();
    assert!(!members.voters.contains(&id));
    assert_eq!(
        leader.block_on(leader.cluster.stopped()),
        StopReason::Removed
    );
}

#[test]
fn a_missing_watermark_is_refused() {
    let mut fleet = Fleet::new(1);
    let (dir, address, name) = fleet.nodes.remove(0).stop();
    std::fs::remove_file(dir.join("watermark")).unwrap();
    let result = Node::try_start(options(&name, &dir, bind(&address), Start::Resume));
    assert!(matches!(
        result,
        Err(Error::Storage(StorageError::Corrupt { .. }))
    ));
}
