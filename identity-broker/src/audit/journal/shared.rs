//! What the handle and the threads of a journal share.

use std::sync::{Arc, atomic::AtomicU64};

use tokio::sync::watch;

use super::{directory::Directory, key::Checkpoint, queue::Queue, syncing::Syncing, tally::Tally};

/// What handle and threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) counts: Counts,
    pub(super) syncing: Syncing,
    pub(super) tally: Arc<Tally>,
    pub(super) written: watch::Sender<u64>,
    pub(super) checkpoints: watch::Sender<Option<Checkpoint>>,
    pub(super) closed: watch::Sender<bool>,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) records: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) led: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) seq: AtomicU64,
    pub(super) synced: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) failing: AtomicU64,
}

/// The directory, as long as a thread needs it; then the lock is given back, and that is said.
#[derive(Debug)]
pub(super) struct Held {
    // In this order: fields are dropped from the first to the last.
    pub(super) directory: Directory,
    pub(super) _closed: Closed,
}

#[derive(Debug)]
pub(super) struct Closed(pub(super) Arc<Shared>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.closed.send_replace(true);
    }
}
