//! Children that end, fail and are replaced, under a real supervisor.

use super::*;
use std::time::Duration;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

/// Reports its start; ends as it is told to.
struct Probe;

#[derive(Clone, Copy, PartialEq)]
enum End {
    Normally,
    WithError,
    ByPanic,
}

type Started = (u64, ActorRef<End>);

impl Actor for Probe {
    type Msg = End;
    type State = ();
    type Arguments = (u64, UnboundedSender<Started>);

    async fn pre_start(
        &self,
        myself: ActorRef<End>,
        (version, started): Self::Arguments,
    ) -> Result<(), ActorProcessingErr> {
        started.send((version, myself))?;
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<End>,
        end: End,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        match end {
            End::Normally => myself.stop(None),
            End::WithError => return Err("told to".into()),
            End::ByPanic => panic!("told to"),
        }
        Ok(())
    }
}

fn child(version: u64, started: &UnboundedSender<Started>) -> ChildSpec {
    let started = started.clone();
    ChildSpec {
        version,
        start: Arc::new(move |parent| {
            let args = (version, started.clone());
            Box::pin(async move {
                let (child, _) = Probe::spawn_linked(None, Probe, args, parent).await?;
                Ok(child.get_cell())
            })
        }),
    }
}

async fn next(started: &mut UnboundedReceiver<Started>) -> Started {
    tokio::time::timeout(Duration::from_secs(20), started.recv())
        .await
        .expect("a child starts")
        .expect("open")
}

fn set(wanted: &Wanted, children: &[(&str, ChildSpec)]) {
    wanted.set(
        children
            .iter()
            .map(|(n, c)| (Arc::from(*n), c.clone()))
            .collect(),
    );
}

#[tokio::test]
async fn children_that_end_in_any_way_come_back_and_the_supervisor_stays() {
    let (tx, mut started) = mpsc::unbounded_channel();
    let wanted = Arc::new(Wanted::default());
    set(&wanted, &[("a", child(1, &tx))]);
    let (supervisor, ended) =
        Supervisor::spawn(None, Supervisor::new("test", Arc::clone(&wanted)), ())
            .await
            .unwrap();
    for end in [End::Normally, End::WithError, End::ByPanic] {
        let (_, actor) = next(&mut started).await;
        actor.cast(end).unwrap();
    }
    let (_, last) = next(&mut started).await;
    assert!(!ended.is_finished());
    supervisor.stop(None);
    ended.await.unwrap();
    last.wait(Some(Duration::from_secs(20))).await.unwrap();
}

#[tokio::test]
async fn another_version_replaces_and_an_unwanted_child_stays_away() {
    let (tx, mut started) = mpsc::unbounded_channel();
    let wanted = Arc::new(Wanted::default());
    let (supervisor, _) = Supervisor::spawn(None, Supervisor::new("test", Arc::clone(&wanted)), ())
        .await
        .unwrap();
    set(&wanted, &[("a", child(1, &tx))]);
    let (version, first) = next(&mut started).await;
    assert_eq!(version, 1);
    set(&wanted, &[("a", child(2, &tx)), ("b", child(3, &tx))]);
    first.wait(Some(Duration::from_secs(20))).await.unwrap();
    let (version, second) = next(&mut started).await;
    assert_eq!(version, 2);
    let (_, third) = next(&mut started).await;
    set(&wanted, &[("b", child(3, &tx))]);
    second.wait(Some(Duration::from_secs(20))).await.unwrap();
    assert_eq!(third.get_status(), ractor::ActorStatus::Running);
    assert!(started.try_recv().is_err(), "nothing else was started");
    supervisor.stop(None);
}

#[tokio::test]
async fn too_many_restarts_fail_the_supervisor_and_its_parent_starts_it_anew() {
    let (tx, mut started) = mpsc::unbounded_channel();
    let inner = Arc::new(Wanted::default());
    set(&inner, &[("a", child(1, &tx))]);
    let outer = Arc::new(Wanted::default());
    let policy = RestartPolicy {
        first: Duration::from_millis(1),
        most: 2,
        ..RestartPolicy::default()
    };
    let of_inner = Arc::clone(&inner);
    let spec = ChildSpec {
        version: 0,
        start: Arc::new(move |parent| {
            let supervisor = Supervisor {
                policy,
                ..Supervisor::new("inner", Arc::clone(&of_inner))
            };
            Box::pin(async move {
                let (child, _) = Supervisor::spawn_linked(None, supervisor, (), parent).await?;
                Ok(child.get_cell())
            })
        }),
    };
    set(&outer, &[("inner", spec)]);
    let (root, ended) = Supervisor::spawn(None, Supervisor::new("outer", outer), ())
        .await
        .unwrap();
    // Two restarts are allowed, the third end escalates, and the new inner supervisor starts the child again.
    for _ in 0..4 {
        let (_, actor) = next(&mut started).await;
        actor.cast(End::WithError).unwrap();
    }
    assert!(!ended.is_finished());
    root.stop(None);
}
