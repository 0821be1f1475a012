//! What whoever keeps things for pods and identities should know: which pods are gone, which identities nobody has any more,
//! and which somebody has now. Told once for each burst, after the snapshot without them is in force, and net: what went and
//! came back within a burst is no news.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::debug;

use crate::{
    lookup::{Identity, ObjectRef},
    object::ObjectKey,
};

/// Something that no snapshot says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The pod with this UID is gone from this node, or has finished.
    PodGone(Arc<str>),
    /// No pod of this node is assigned this identity any more.
    IdentityGone(ObjectRef),
    /// A pod of this node is assigned this identity, and none was before; or it is another now (its spec has changed).
    IdentityAssigned(Arc<Identity>),
}

/// Namespace, name and UID.
type Name = (ObjectKey, Arc<str>);

fn name(identity: &Identity) -> Name {
    (identity.object.key(), identity.object.uid.clone())
}

/// What an assignment gives.
#[derive(Debug)]
struct Given {
    identity: Arc<Identity>,
    /// When it first said so, in the order of what came.
    since: u64,
}

impl Given {
    /// Which of several that say it differently is the newest. A directory of manifests numbers no generations: there it is
    /// what came last, for assignments are written from what stands.
    fn age(&self) -> (i64, u64) {
        (self.identity.object.generation, self.since)
    }
}

/// Who is here, and what was told of it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    to: Option<mpsc::Sender<News>>,
    pods: HashMap<ObjectKey, Arc<str>>,
    gone: BTreeSet<Arc<str>>,
    assigned: HashMap<ObjectKey, Given>,
    /// How many different things were given so far.
    given: u64,
    holders: HashMap<Name, BTreeSet<ObjectKey>>,
    touched: HashSet<Name>,
    told: HashMap<Name, Arc<Identity>>,
}

impl Ledger {
    pub(super) fn new(to: Option<mpsc::Sender<News>>) -> Self {
        Self { to, ..Self::default() }
    }

    /// Which pod has this name now, if one has that has not finished.
    pub(super) fn pod(&mut self, key: &ObjectKey, uid: Option<Arc<str>>) {
        let former = match uid {
            Some(uid) => self.pods.insert(key.clone(), uid),
            None => self.pods.remove(key),
        };
        if let Some(former) = former
            && self.pods.get(key) != Some(&former)
        {
            self.gone.insert(former);
        }
    }

    /// Which identity an assignment gives now, if it gives one.
    pub(super) fn assignment(&mut self, key: &ObjectKey, identity: Option<Arc<Identity>>) {
        if let (Some(held), Some(identity)) = (self.assigned.get(key), &identity)
            && held.identity == *identity
        {
            return;
        }
        if let Some(former) = self.assigned.remove(key) {
            let name = name(&former.identity);
            if let Some(holders) = self.holders.get_mut(&name) {
                holders.remove(key);
                if holders.is_empty() {
                    self.holders.remove(&name);
                }
            }
            self.touched.insert(name);
        }
        if let Some(identity) = identity {
            let name = name(&identity);
            self.holders.entry(name.clone()).or_default().insert(key.clone());
            self.touched.insert(name);
            self.given += 1;
            self.assigned.insert(key.clone(), Given { identity, since: self.given });
        }
    }

    /// All that are known, for what a list leaves out.
    pub(super) fn pods(&self) -> impl Iterator<Item = &ObjectKey> {
        self.pods.keys()
    }

    /// The same of assignments.
    pub(super) fn assignments(&self) -> impl Iterator<Item = &ObjectKey> {
        self.assigned.keys()
    }

    /// Tells what is new. Never waits: what there is no room for is left out, which costs memory for a while and nothing else.
    pub(super) fn tell(&mut self) {
        for uid in std::mem::take(&mut self.gone) {
            if !self.pods.values().any(|there| *there == uid) {
                self.send(News::PodGone(uid));
            }
        }
        for name in std::mem::take(&mut self.touched) {
            let holders = self.holders.get(&name).into_iter().flatten();
            // While assignments are rewritten one after the other, some say what it was.
            let newest = holders.filter_map(|key| self.assigned.get(key)).max_by_key(|given| given.age());
            let (newest, told) = (newest.map(|given| given.identity.clone()), self.told.get(&name));
            match newest {
                Some(identity) if told.is_some_and(|told| *told == identity) => {}
                Some(identity) => {
                    self.told.insert(name, identity.clone());
                    self.send(News::IdentityAssigned(identity));
                }
                None => {
                    if let Some(former) = self.told.remove(&name) {
                        self.send(News::IdentityGone(former.object.clone()));
                    }
                }
            }
        }
    }

    fn send(&self, news: News) {
        if let Some(to) = &self.to
            && let Err(TrySendError::Full(news)) = to.try_send(news)
        {
            debug!(?news, "nobody takes the news; left out");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::identity;

    fn rig() -> (Ledger, mpsc::Receiver<News>) {
        let (to, news) = mpsc::channel(64);
        (Ledger::new(Some(to)), news)
    }

    fn told(news: &mut mpsc::Receiver<News>) -> Vec<String> {
        let mut all: Vec<_> = std::iter::from_fn(|| news.try_recv().ok())
            .map(|news| match news {
                News::PodGone(uid) => format!("pod {uid} gone"),
                News::IdentityGone(object) => format!("{} gone", object.name),
                News::IdentityAssigned(identity) => {
                    format!("{} of generation {}", identity.object.name, identity.object.generation)
                }
            })
            .collect();
        all.sort();
        all
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the ledger takes it")]
    fn at(name: &str, generation: i64) -> Option<Arc<Identity>> {
        let mut object = identity(name);
        object["metadata"]["generation"] = generation.into();
        Some(Arc::new(Identity::read(&serde_json::from_value(object).unwrap(), false).unwrap()))
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("team", name)
    }

    #[test]
    fn an_identity_is_gone_with_its_last_assignment() {
        let (mut ledger, mut news) = rig();
        ledger.assignment(&key("1"), at("a", 1));
        ledger.assignment(&key("2"), at("a", 1));
        ledger.tell();
        assert_eq!(told(&mut news), ["a of generation 1"]);
        ledger.assignment(&key("1"), None);
        ledger.tell();
        assert!(told(&mut news).is_empty());
        ledger.assignment(&key("2"), None);
        ledger.tell();
        assert_eq!(told(&mut news), ["a gone"]);
        ledger.assignment(&key("2"), None);
        ledger.tell();
        assert!(told(&mut news).is_empty());
    }

    #[test]
    fn what_comes_back_within_a_burst_is_no_news() {
        let (mut ledger, mut news) = rig();
        ledger.pod(&key("p"), Some("u".into()));
        ledger.assignment(&key("1"), at("a", 1));
        ledger.tell();
        told(&mut news);
        ledger.assignment(&key("1"), None);
        ledger.assignment(&key("1"), at("a", 1));
        ledger.pod(&key("p"), None);
        ledger.pod(&key("p"), Some("u".into()));
        ledger.tell();
        assert!(told(&mut news).is_empty());
        // Another pod of the same name is another pod.
        ledger.pod(&key("p"), Some("v".into()));
        ledger.tell();
        assert_eq!(told(&mut news), ["pod u gone"]);
    }

    #[test]
    fn a_swap_is_told_once_and_of_both() {
        let (mut ledger, mut news) = rig();
        for assignment in ["1", "2"] {
            ledger.assignment(&key(assignment), at("a", 1));
        }
        ledger.tell();
        told(&mut news);
        // Another backing, one assignment after the other: the newest counts.
        ledger.assignment(&key("1"), at("a", 2));
        ledger.tell();
        assert_eq!(told(&mut news), ["a of generation 2"]);
        ledger.assignment(&key("2"), at("a", 2));
        ledger.tell();
        assert!(told(&mut news).is_empty());
        // Another identity.
        ledger.assignment(&key("1"), at("b", 1));
        ledger.assignment(&key("2"), at("b", 1));
        ledger.tell();
        assert_eq!(told(&mut news), ["a gone", "b of generation 1"]);
    }

    #[test]
    fn without_generations_what_came_last_is_the_newest() {
        let with_client = |client: &str| {
            let mut object = identity("a");
            object["spec"]["clientID"] = client.into();
            Some(Arc::new(Identity::read(&serde_json::from_value(object).unwrap(), false).unwrap()))
        };
        let client = |news: &mut mpsc::Receiver<News>| match news.try_recv() {
            Ok(News::IdentityAssigned(identity)) => identity.client_id.clone().unwrap_or_default().into_string(),
            other => format!("{other:?}"),
        };
        let nothing = "Err(Empty)";
        // Whichever assignment is the first to be rewritten.
        for order in [["1", "2", "3"], ["3", "2", "1"], ["2", "3", "1"]] {
            let (mut ledger, mut news) = rig();
            for assignment in ["1", "2", "3"] {
                ledger.assignment(&key(assignment), with_client("old"));
            }
            ledger.tell();
            assert_eq!(client(&mut news), "old");
            let mut expected = "new";
            for assignment in order {
                ledger.assignment(&key(assignment), with_client("new"));
                ledger.tell();
                assert_eq!(client(&mut news), expected, "{order:?}");
                expected = nothing;
                // A list says it all again, in any order.
                for again in order {
                    let held = ledger.assigned.get(&key(again)).map(|given| given.identity.clone());
                    ledger.assignment(&key(again), held.map(|identity| Arc::new(Identity::clone(&identity))));
                }
                ledger.tell();
                assert_eq!(client(&mut news), nothing, "{order:?}");
            }
            // The newest is gone, what was before it is not: that is what there is.
            ledger.assignment(&key("2"), with_client("old"));
            ledger.tell();
            assert_eq!(client(&mut news), "old");
        }
    }

    #[test]
    fn without_room_nothing_waits() {
        let (to, mut news) = mpsc::channel(1);
        let mut ledger = Ledger::new(Some(to));
        ledger.assignment(&key("1"), at("a", 1));
        ledger.assignment(&key("2"), at("b", 1));
        ledger.tell();
        assert_eq!(told(&mut news).len(), 1);
    }
}
