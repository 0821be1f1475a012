//! Identities by name: who follows them puts them here, and whoever needs one that another object names reads them without a
//! lock.

use std::{collections::HashMap, fmt, mem, sync::Arc};

use arc_swap::ArcSwap;
use identity_crd::AzureIdentity;

use super::source::{Change, Update};
use crate::{
    lookup::{Identity, ObjectRef},
    object::ObjectKey,
};

type Map = HashMap<ObjectKey, Arc<Identity>>;

/// The identities that can be used, as they are now. Cheap to clone; clones share everything. Empty until somebody follows
/// them: [`node::run`](super::node::run) and [`controller::run`](super::controller::run) do, given one in their configuration.
#[derive(Clone, Default)]
pub struct Identities(Arc<ArcSwap<Map>>);

impl Identities {
    /// The identity of that name, if there is one that can be used as it is written.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Identity>> {
        self.0.load().get(&ObjectKey::new(namespace, name)).cloned()
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({})", self.0.load().len())
    }
}

/// Puts what is followed there, once for each burst.
pub(super) struct Feed {
    to: Identities,
    cluster_wide: bool,
    all: Map,
    changed: bool,
}

impl Feed {
    pub(super) fn new(to: Identities, cluster_wide: bool) -> Self {
        Self { to, cluster_wide, all: Map::new(), changed: false }
    }

    pub(super) fn take(&mut self, update: &Update) {
        let Update::Identities(change) = update else { return };
        match change {
            Change::Apply(object) => self.apply(object),
            Change::Delete(gone) => self.changed |= self.all.remove(&gone.key()).is_some(),
            Change::Relist(objects) => {
                let mut former = mem::take(&mut self.all);
                self.changed = true;
                for object in objects {
                    let key = ObjectRef::from(&object.metadata).key();
                    if let Some((key, identity)) = former.remove_entry(&key) {
                        self.all.insert(key, identity);
                    }
                    self.apply(object);
                }
            }
        }
    }

    fn apply(&mut self, object: &AzureIdentity) {
        let key = ObjectRef::from(&object.metadata).key();
        // One that cannot be used counts as absent; its condition says why.
        match Identity::read(object, self.cluster_wide) {
            Ok(identity) if self.all.get(&key).is_some_and(|there| **there == identity) => {}
            Ok(identity) => {
                self.all.insert(key, Arc::new(identity));
                self.changed = true;
            }
            Err(_) => self.changed |= self.all.remove(&key).is_some(),
        }
    }

    pub(super) fn publish(&mut self) {
        if mem::take(&mut self.changed) {
            self.to.0.store(Arc::new(self.all.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::runtime::{source::Gone, testing::identity};

    fn typed(value: &serde_json::Value) -> AzureIdentity {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[test]
    fn what_can_be_used_is_there_after_the_burst() {
        let identities = Identities::default();
        let mut feed = Feed::new(identities.clone(), false);
        let mut broken = identity("broken");
        broken["spec"]["resourceID"] = json!("nonsense");
        feed.take(&Update::Identities(Change::Relist(vec![typed(&identity("a")), typed(&broken)])));
        assert!(identities.get("team", "a").is_none(), "not before the end of the burst");
        feed.publish();
        let a = identities.get("team", "a").unwrap();
        assert!(identities.get("team", "broken").is_none() && identities.get("other", "a").is_none());

        // What stays the same is the same.
        feed.take(&Update::Identities(Change::Relist(vec![typed(&identity("a")), typed(&identity("b"))])));
        feed.publish();
        assert!(Arc::ptr_eq(&a, &identities.get("team", "a").unwrap()) && identities.get("team", "b").is_some());

        // Put right, made wrong, gone.
        feed.take(&Update::Identities(Change::Apply(Box::new(typed(&identity("broken"))))));
        let mut wrong = identity("b");
        wrong["spec"]["type"] = json!(9);
        feed.take(&Update::Identities(Change::Apply(Box::new(typed(&wrong)))));
        feed.take(&Update::Identities(Change::Delete(Gone { namespace: "team".into(), name: "a".into(), uid: None })));
        feed.publish();
        let there = ["a", "b", "broken"].map(|name| identities.get("team", name).is_some());
        assert_eq!(there, [false, false, true]);
    }

    #[test]
    fn a_secret_elsewhere_counts_only_cluster_wide() {
        let object = typed(&json!({
            "metadata": {"name": "sp", "namespace": "team", "uid": "u"},
            "spec": {
                "type": 1, "clientID": "33333333-3333-3333-3333-333333333333",
                "tenantID": "44444444-4444-4444-4444-444444444444",
                "clientPassword": {"name": "sp", "namespace": "elsewhere"},
            },
        }));
        for cluster_wide in [false, true] {
            let identities = Identities::default();
            let mut feed = Feed::new(identities.clone(), cluster_wide);
            feed.take(&Update::Identities(Change::Apply(Box::new(object.clone()))));
            feed.publish();
            assert_eq!(identities.get("team", "sp").is_some(), cluster_wide);
        }
    }
}
