//! The node's side: pods, assignments and bindings of one node in, snapshots out.
//!
//! One task owns the [`NodeIndex`] and publishes once for each burst. Nothing is published before all kinds were
//! listed (and the exceptions of each namespace in which they count): a node that has yet to hear of an assignment must not refuse its pod for good. When the API server is away, what
//! was published last stays.

mod news;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::news::Ledger;
pub use self::news::News;
pub use super::follow::Error;
use super::{
    follow::{BURST, event},
    identities::{Feed, Identities},
    observe::{Nobody, Observer},
    source::{Change, Interest, Source, Update},
};
use crate::{
    assign::{Event, Relist},
    lookup::{AssignmentError, Binding, Exception, NodeIndex, ObjectRef, Options, Published},
    object::ObjectKey,
    pod::Pod,
};

/// How a node follows its objects.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the node, as in `spec.nodeName`.
    pub node: String,
    /// The node's own addresses: refused as callers.
    pub addresses: Vec<IpAddr>,
    /// How it decides.
    pub options: Options,
    /// Who counts.
    pub observer: Arc<dyn Observer>,
    /// Where the identities go that other objects name; without it none is followed.
    pub identities: Option<Identities>,
    /// Who is told of what is gone, and of what is new. What there is no room for is left out.
    pub news: Option<mpsc::Sender<News>>,
}

impl Config {
    /// A node without known addresses, everything else at its default.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            addresses: Vec::new(),
            options: Options::default(),
            observer: Arc::new(Nobody),
            identities: None,
            news: None,
        }
    }
}

/// Runs until `shutdown`. `synced` becomes true with the first snapshot, and stays so.
pub async fn run(
    config: Config,
    source: Source,
    published: Arc<Published>,
    synced: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let mut interests = vec![
        Interest::Pods { node: Some(config.node.clone()) },
        Interest::Assigned { node: Some(config.node.clone()) },
        Interest::Bindings,
    ];
    let exceptions = config.options.exception_namespaces.iter().cloned();
    interests.extend(exceptions.map(|namespace| Interest::Exceptions { namespace }));
    interests.extend(config.identities.as_ref().map(|_| Interest::Identities));
    let updates = source.watch(&interests, Some(config.observer.clone()), &shutdown)?;
    let cluster_wide = config.options.cluster_wide;
    let mut index = NodeIndex::new(config.options);
    index.set_node_addresses(config.addresses);
    let node = Node::new(index, config.identities.map(|to| Feed::new(to, cluster_wide)), config.news);
    follow(node, updates, &published, &synced, &shutdown).await
}

async fn follow(
    mut node: Node,
    mut updates: mpsc::Receiver<Update>,
    published: &Published,
    synced: &watch::Sender<bool>,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            taken = updates.recv_many(&mut batch, BURST) => {
                if taken == 0 {
                    return if shutdown.is_cancelled() { Ok(()) } else { Err(Error::WatchesEnded) };
                }
            }
        }
        for update in batch.drain(..) {
            node.update(update);
        }
        // Whoever is assigned one that names another is to find it.
        node.publish_identities();
        if !node.is_listed() {
            continue;
        }
        let changed = node.index.publish(published);
        // After that: nobody is let to what is forgotten now.
        node.ledger.tell();
        debug!(changed, "took in a burst");
        if !synced.send_replace(true) {
            info!("all objects of this node are known");
        }
    }
}

struct Node {
    index: NodeIndex,
    /// Whether these were listed.
    pods: bool,
    assigned: bool,
    bindings: bool,
    /// Namespaces whose exceptions were not listed yet.
    exceptions: BTreeSet<String>,
    /// Identities, and whether they were listed; without it they are not followed.
    identities: Option<(Feed, bool)>,
    ledger: Ledger,
    /// What was said about assignments that cannot be served, so that it is said once.
    complained: HashMap<ObjectKey, AssignmentError>,
}

impl Node {
    fn new(index: NodeIndex, identities: Option<Feed>, news: Option<mpsc::Sender<News>>) -> Self {
        Self {
            exceptions: index.exception_namespaces().clone(),
            index,
            pods: false,
            assigned: false,
            bindings: false,
            identities: identities.map(|feed| (feed, false)),
            ledger: Ledger::new(news),
            complained: HashMap::new(),
        }
    }

    fn is_listed(&self) -> bool {
        let identities = self.identities.as_ref().is_none_or(|(_, listed)| *listed);
        self.pods && self.assigned && self.bindings && self.exceptions.is_empty() && identities
    }

    fn publish_identities(&mut self) {
        if let Some((feed, _)) = &mut self.identities {
            feed.publish();
        }
    }

    fn update(&mut self, update: Update) {
        match update {
            Update::Identities(change) => {
                if let Some((feed, listed)) = &mut self.identities {
                    *listed |= matches!(change, Change::Relist(_));
                    feed.take(&Update::Identities(change));
                }
            }
            Update::Exceptions { change: Change::Apply(exception), .. } => {
                self.index.apply_exception(Exception::from(&*exception));
            }
            Update::Exceptions { change: Change::Delete(gone), .. } => self.index.delete_exception(&gone.key()),
            Update::Exceptions { namespace, change: Change::Relist(all) } => {
                self.exceptions.remove(&namespace);
                self.index.reset_exceptions(&namespace, all.iter().map(Exception::from).collect());
            }
            update => {
                if let Some(event) = event(update) {
                    self.take(event);
                }
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Pod(pod) => {
                self.note_pod(&pod);
                self.index.apply_pod(pod);
            }
            Event::PodDeleted(key) => {
                self.index.delete_pod(&key);
                self.ledger.pod(&key, None);
            }
            Event::Relist(Relist::Pods(all)) => {
                self.pods = true;
                let listed: HashSet<ObjectKey> = all.iter().map(Pod::key).collect();
                for key in gone(self.ledger.pods(), &listed) {
                    self.ledger.pod(&key, None);
                }
                for pod in &all {
                    self.note_pod(pod);
                }
                self.index.reset_pods(all);
            }
            Event::Assigned(object) => {
                let key = ObjectRef::from(&object.metadata).key();
                let applied = self.index.apply_assignment(&object);
                self.note_assignment(&key);
                match applied {
                    Ok(()) => drop(self.complained.remove(&key)),
                    Err(error) => self.complain(key, error),
                }
            }
            Event::AssignedDeleted { key, .. } => {
                self.complained.remove(&key);
                self.index.delete_assignment(&key);
                self.ledger.assignment(&key, None);
            }
            Event::Relist(Relist::Assigned(all)) => {
                self.assigned = true;
                let unusable = self.index.reset_assignments(&all);
                let now: HashSet<ObjectKey> =
                    all.iter().map(|object| ObjectRef::from(&object.metadata).key()).collect();
                for key in gone(self.ledger.assignments(), &now) {
                    self.ledger.assignment(&key, None);
                }
                for key in &now {
                    self.note_assignment(key);
                }
                let listed: HashSet<&ObjectKey> = unusable.iter().map(|(key, _)| key).collect();
                self.complained.retain(|key, _| listed.contains(key));
                for (key, error) in unusable {
                    self.complain(key, error);
                }
            }
            Event::Binding(binding) => self.index.apply_binding(Binding::from(&*binding)),
            Event::BindingDeleted(key) => self.index.delete_binding(&key),
            Event::Relist(Relist::Bindings(all)) => {
                self.bindings = true;
                self.index.reset_bindings(all.iter().map(Binding::from).collect());
            }
            // Not asked for: what a node needs of identities to decide is in the assignments.
            Event::Identity(_)
            | Event::IdentityDeleted(_)
            | Event::Relist(Relist::Identities(_) | Relist::Grants(_))
            | Event::Grant(_)
            | Event::GrantDeleted { .. }
            | Event::Proof(_)
            | Event::Credential(_) => {}
        }
    }

    fn note_pod(&mut self, pod: &Pod) {
        let uid = (!pod.phase.is_finished()).then(|| pod.reference.uid.clone());
        self.ledger.pod(&pod.key(), uid);
    }

    fn note_assignment(&mut self, key: &ObjectKey) {
        let identity = self.index.assignment(key).map(|assignment| assignment.identity.clone());
        self.ledger.assignment(key, identity);
    }

    fn complain(&mut self, key: ObjectKey, error: AssignmentError) {
        if self.complained.get(&key) != Some(&error) {
            warn!(assignment = %key, %error, "this assignment cannot be served");
            self.complained.insert(key, error);
        }
    }
}

fn gone<'a>(known: impl Iterator<Item = &'a ObjectKey>, listed: &HashSet<ObjectKey>) -> Vec<ObjectKey> {
    known.filter(|key| !listed.contains(*key)).cloned().collect()
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
