//! The node's side: pods, assignments and bindings of one node in, snapshots out.
//!
//! One task owns the [`NodeIndex`] and publishes once for each burst. Nothing is published before all kinds were
//! listed (and the exceptions of each namespace in which they count): a node that has yet to hear of an assignment must not refuse its pod for good. When the API server is away, what
//! was published last stays.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use super::follow::Error;
use super::{
    follow::{BURST, event},
    observe::{Nobody, Observer},
    source::{Change, Interest, Source, Update},
};
use crate::{
    assign::{Event, Relist},
    lookup::{AssignmentError, Binding, Exception, NodeIndex, Options, Published},
    object::ObjectKey,
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
}

impl Config {
    /// A node without known addresses, everything else at its default.
    pub fn new(node: impl Into<String>) -> Self {
        Self { node: node.into(), addresses: Vec::new(), options: Options::default(), observer: Arc::new(Nobody) }
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
    let updates = source.watch(&interests, Some(config.observer.clone()), &shutdown)?;
    let mut index = NodeIndex::new(config.options);
    index.set_node_addresses(config.addresses);
    follow(index, updates, &published, &synced, &shutdown).await
}

async fn follow(
    index: NodeIndex,
    mut updates: mpsc::Receiver<Update>,
    published: &Published,
    synced: &watch::Sender<bool>,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let exceptions = index.exception_namespaces().clone();
    let mut node =
        Node { index, pods: false, assigned: false, bindings: false, exceptions, complained: HashMap::new() };
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
        if !node.is_listed() {
            continue;
        }
        let changed = node.index.publish(published);
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
    /// What was said about assignments that cannot be served, so that it is said once.
    complained: HashMap<ObjectKey, AssignmentError>,
}

impl Node {
    fn is_listed(&self) -> bool {
        self.pods && self.assigned && self.bindings && self.exceptions.is_empty()
    }

    fn update(&mut self, update: Update) {
        match update {
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
            Event::Pod(pod) => self.index.apply_pod(pod),
            Event::PodDeleted(key) => self.index.delete_pod(&key),
            Event::Relist(Relist::Pods(all)) => {
                self.pods = true;
                self.index.reset_pods(all);
            }
            Event::Assigned(object) => {
                let meta = &object.metadata;
                let name = |name: &Option<String>| name.as_deref().unwrap_or_default().to_owned();
                let key = ObjectKey::new(name(&meta.namespace), name(&meta.name));
                match self.index.apply_assignment(&object) {
                    Ok(()) => drop(self.complained.remove(&key)),
                    Err(error) => self.complain(key, error),
                }
            }
            Event::AssignedDeleted { key, .. } => {
                self.complained.remove(&key);
                self.index.delete_assignment(&key);
            }
            Event::Relist(Relist::Assigned(all)) => {
                self.assigned = true;
                let unusable = self.index.reset_assignments(&all);
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
            // Not asked for: what a node needs of identities is in the assignments.
            Event::Identity(_) | Event::IdentityDeleted(_) | Event::Relist(Relist::Identities(_)) => {}
        }
    }

    fn complain(&mut self, key: ObjectKey, error: AssignmentError) {
        if self.complained.get(&key) != Some(&error) {
            warn!(assignment = %key, %error, "this assignment cannot be served");
            self.complained.insert(key, error);
        }
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
