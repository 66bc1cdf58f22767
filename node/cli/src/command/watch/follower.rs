//! What a watcher knows: turns watch messages into changes, also across a fresh start.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::v1::{Kind, Resource, WatchResponse, watch_response::Type};

use crate::kind;

/// Something to show.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    /// Was there when the watch began.
    Present(Resource),
    /// Was created or changed.
    Put(Resource),
    /// Was deleted; this is what is known of it last.
    Deleted(Resource),
}

type Key = (i32, String);

/// Follows a watch. Every resource that exists is held, so that after a fresh start (the server no longer kept the changes
/// in between) what vanished meanwhile can be told.
#[derive(Debug, Default)]
pub(super) struct Follower {
    known: BTreeMap<Key, Resource>,
    resume_token: String,
    /// Whether a picture of what is there was complete once.
    synced_once: bool,
    /// While a picture is being sent: what was known before and was not seen again yet.
    unseen: Option<BTreeSet<Key>>,
    changes_only: bool,
}

impl Follower {
    pub fn new(changes_only: bool) -> Self {
        Self {
            changes_only,
            ..Self::default()
        }
    }

    /// Where the next connection has to go on; empty: with a picture of what is there.
    pub fn resume_token(&self) -> &str {
        &self.resume_token
    }

    /// The token is too old: the next connection begins with a picture.
    pub fn start_over(&mut self) {
        self.resume_token.clear();
    }

    /// A connection was made with [`Self::resume_token`].
    pub fn connected(&mut self) {
        self.unseen = self
            .resume_token
            .is_empty()
            .then(|| self.known.keys().cloned().collect());
    }

    /// Takes a message.
    pub fn take(&mut self, message: WatchResponse) -> Vec<Change> {
        let kind = message.r#type();
        let mut changes = Vec::new();
        match (kind, message.resource) {
            (Type::Put, Some(resource)) => changes.extend(self.put(resource)),
            (Type::Delete, Some(resource)) => {
                self.known.remove(&key(&resource));
                changes.push(Change::Deleted(resource));
            }
            (Type::Synced, _) => {
                self.synced_once = true;
                let gone = self.unseen.take().unwrap_or_default();
                changes.extend(
                    gone.iter()
                        .filter_map(|key| self.known.remove(key))
                        .map(Change::Deleted),
                );
            }
            _ => {}
        }
        // A picture that breaks off is begun anew, so nothing before its end is a place to go on from.
        if self.unseen.is_none() && !message.resume_token.is_empty() {
            self.resume_token = message.resume_token;
        }
        changes
    }

    fn put(&mut self, resource: Resource) -> Option<Change> {
        let key = key(&resource);
        if let Some(unseen) = &mut self.unseen {
            unseen.remove(&key);
        }
        let version = |r: &Resource| r.metadata.as_ref().map_or(0, |m| m.resource_version);
        let known = self.known.insert(key, resource.clone());
        if known.is_some_and(|known| version(&known) == version(&resource)) {
            return None;
        }
        match self.synced_once {
            true => Some(Change::Put(resource)),
            false => (!self.changes_only).then_some(Change::Present(resource)),
        }
    }
}

fn key(resource: &Resource) -> Key {
    let kind: Kind = kind::of(resource);
    (kind.into(), kind::name_of(resource).to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use quorate_proto::v1::{Metadata, RegionSpec, resource::Spec};

    use super::*;

    fn region(name: &str, version: u64) -> Resource {
        Resource {
            metadata: Some(Metadata {
                name: name.to_owned(),
                resource_version: version,
                ..Metadata::default()
            }),
            spec: Some(Spec::Region(RegionSpec::default())),
        }
    }

    fn message(kind: Type, resource: Option<Resource>, token: &str) -> WatchResponse {
        WatchResponse {
            r#type: kind.into(),
            resource,
            resume_token: token.to_owned(),
        }
    }

    #[test]
    fn a_fresh_start_tells_what_changed_meanwhile() {
        let mut follower = Follower::new(false);
        follower.connected();
        let (a, b, c) = (region("a", 1), region("b", 2), region("c", 3));
        for (input, output) in [
            (
                message(Type::Put, Some(a.clone()), ""),
                vec![Change::Present(a.clone())],
            ),
            (
                message(Type::Put, Some(b.clone()), ""),
                vec![Change::Present(b.clone())],
            ),
            (message(Type::Synced, None, "t2"), vec![]),
            (
                message(Type::Put, Some(c.clone()), "t3"),
                vec![Change::Put(c.clone())],
            ),
            (message(Type::Bookmark, None, "t4"), vec![]),
        ] {
            assert_eq!(follower.take(input), output);
        }
        assert_eq!(follower.resume_token(), "t4");
        follower.start_over();
        follower.connected();
        let c_now = region("c", 9);
        for (input, output) in [
            (message(Type::Put, Some(b), ""), vec![]),
            (
                message(Type::Put, Some(c_now.clone()), ""),
                vec![Change::Put(c_now)],
            ),
            (message(Type::Synced, None, "t9"), vec![Change::Deleted(a)]),
        ] {
            assert_eq!(follower.take(input), output);
        }
        assert_eq!(follower.resume_token(), "t9");
    }

    #[test]
    fn a_picture_that_breaks_off_is_begun_anew_without_repeats() {
        let mut follower = Follower::new(false);
        let (a, b) = (region("a", 1), region("b", 2));
        follower.connected();
        assert_eq!(
            follower.take(message(Type::Put, Some(a.clone()), "")),
            vec![Change::Present(a.clone())]
        );
        assert_eq!(
            follower
                .take(message(Type::Put, Some(region("x", 1)), ""))
                .len(),
            1
        );
        follower.connected();
        assert_eq!(follower.resume_token(), "");
        assert_eq!(follower.take(message(Type::Put, Some(a), "")), vec![]);
        assert_eq!(
            follower.take(message(Type::Put, Some(b.clone()), "")),
            vec![Change::Present(b)]
        );
        assert_eq!(
            follower.take(message(Type::Synced, None, "t")),
            vec![Change::Deleted(region("x", 1))]
        );
    }

    proptest! {
        /// However often the watch has to start over, following the shown changes gives what is there.
        #[test]
        fn the_shown_changes_add_up(
            steps in prop::collection::vec((0_usize..5, any::<bool>(), any::<bool>()), 0..60),
        ) {
            let mut truth: BTreeMap<String, Resource> = BTreeMap::new();
            let mut shown: BTreeMap<String, Resource> = BTreeMap::new();
            let mut follower = Follower::new(false);
            let mut show = |changes: Vec<Change>| {
                for change in changes {
                    match change {
                        Change::Present(r) | Change::Put(r) => { shown.insert(kind::name_of(&r).to_owned(), r); }
                        Change::Deleted(r) => { shown.remove(kind::name_of(&r)); }
                    }
                }
            };
            follower.connected();
            show(follower.take(message(Type::Synced, None, "0")));
            let mut connected = true;
            for (revision, (which, delete, toggle)) in steps.into_iter().enumerate() {
                let name = format!("r{which}");
                let token = format!("{revision}");
                if delete {
                    if let Some(gone) = truth.remove(&name) && connected {
                        show(follower.take(message(Type::Delete, Some(gone), &token)));
                    }
                } else {
                    let resource = region(&name, revision as u64 + 1);
                    truth.insert(name, resource.clone());
                    if connected {
                        show(follower.take(message(Type::Put, Some(resource), &token)));
                    }
                }
                if toggle {
                    connected = !connected;
                    if connected {
                        follower.start_over();
                        follower.connected();
                        for resource in truth.values() {
                            show(follower.take(message(Type::Put, Some(resource.clone()), "")));
                        }
                        show(follower.take(message(Type::Synced, None, &token)));
                    }
                }
            }
            if !connected {
                follower.start_over();
                follower.connected();
                for resource in truth.values() {
                    show(follower.take(message(Type::Put, Some(resource.clone()), "")));
                }
                show(follower.take(message(Type::Synced, None, "end")));
            }
            prop_assert_eq!(shown, truth);
        }
    }
}
