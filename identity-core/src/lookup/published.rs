//! The current snapshot, shared between the task that makes them and the tasks that decide.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use event_listener::{Event, EventListener};

use super::Snapshot;

/// The current [`Snapshot`] and its change notification. Readers take no lock.
#[derive(Debug, Default)]
pub struct Published {
    current: ArcSwap<Snapshot>,
    changed: Event,
}

impl Published {
    /// Starts from `snapshot`.
    pub fn new(snapshot: Snapshot) -> Self {
        Self { current: ArcSwap::from_pointee(snapshot), changed: Event::new() }
    }

    /// The snapshot of this instant.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Makes `snapshot` the current one and wakes whoever listens.
    pub fn publish(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
        self.changed.notify(usize::MAX);
    }

    /// Completes at the next [`publish`](Self::publish). Listen first, then [`load`](Self::load) and decide, then await:
    /// no change is missed.
    pub fn changed(&self) -> EventListener {
        self.changed.listen()
    }
}
