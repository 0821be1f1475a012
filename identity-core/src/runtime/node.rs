//! The node's side: pods, assignments and bindings of one node in, snapshots out.
//!
//! One task owns the [`NodeIndex`] and publishes once for each burst. Nothing is published before all three kinds were
//! listed: a node that has yet to hear of an assignment must not refuse its pod for good. When the API server is away, what
//! was published last stays.

use std::{net::IpAddr, sync::Arc};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{
    observe::{Nobody, Observer},
    source::{Change, Error as SourceError, Gone, Interest, Source, Update},
};
use crate::{
    lookup::{Binding, NodeIndex, Options, Published},
    object::ObjectKey,
};

/// At most this many updates go into one snapshot.
const BURST: usize = 4096;

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

/// Why the node stopped following its objects.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Objects cannot be watched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// All watches ended: only a bug or a panic does that.
    #[error("the watches have ended")]
    WatchesEnded,
}

/// Runs until `shutdown`. `synced` becomes true with the first snapshot, and stays so.
pub async fn run(
    config: Config,
    source: Source,
    published: Arc<Published>,
    synced: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let interests = [
        Interest::Pods { node: Some(config.node.clone()) },
        Interest::Assigned { node: Some(config.node.clone()) },
        Interest::Bindings,
    ];
    let updates = source.watch(&interests, Some(config.observer.clone()), &shutdown)?;
    let mut index = NodeIndex::new(config.options);
    index.set_node_addresses(config.addresses);
    follow(index, updates, &published, &synced, &shutdown).await
}

async fn follow(
    mut index: NodeIndex,
    mut updates: mpsc::Receiver<Update>,
    published: &Published,
    synced: &watch::Sender<bool>,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let mut batch = Vec::new();
    // Pods, assignments, bindings.
    let mut listed = [false; 3];
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
        while batch.len() < BURST
            && let Ok(update) = updates.try_recv()
        {
            batch.push(update);
        }
        for update in batch.drain(..) {
            match &update {
                Update::Pods(Change::Relist(_)) => listed[0] = true,
                Update::Assigned(Change::Relist(_)) => listed[1] = true,
                Update::Bindings(Change::Relist(_)) => listed[2] = true,
                _ => {}
            }
            take(&mut index, update);
        }
        if listed != [true; 3] {
            continue;
        }
        let changed = index.publish(published);
        debug!(changed, "took in a burst");
        if !synced.send_replace(true) {
            info!("all objects of this node are known");
        }
    }
}

fn take(index: &mut NodeIndex, update: Update) {
    let key = |gone: &Gone| ObjectKey::new(gone.namespace.as_str(), gone.name.as_str());
    match update {
        Update::Pods(Change::Apply(pod)) => index.apply_pod(*pod),
        Update::Pods(Change::Delete(gone)) => index.delete_pod(&key(&gone)),
        Update::Pods(Change::Relist(all)) => index.reset_pods(all),
        Update::Assigned(Change::Apply(object)) => {
            let _ = index.apply_assignment(&object);
        }
        Update::Assigned(Change::Delete(gone)) => index.delete_assignment(&key(&gone)),
        Update::Assigned(Change::Relist(all)) => {
            let _ = index.reset_assignments(&all);
        }
        Update::Bindings(Change::Apply(binding)) => index.apply_binding(Binding::from(&*binding)),
        Update::Bindings(Change::Delete(gone)) => index.delete_binding(&key(&gone)),
        Update::Bindings(Change::Relist(all)) => index.reset_bindings(all.iter().map(Binding::from).collect()),
        // Not asked for.
        Update::Identities(_) => {}
    }
}
