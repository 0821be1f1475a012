//! Who writes. One controller holds the lease; the others keep their indexes warm and write nothing.
//!
//! [`Machine`] decides, [`Fence`] is what every write passes, the drivers talk to a Kubernetes Lease or a locked file.
//!
//! # What the fence can and cannot do
//! A leader believes in its lease until a deadline on its own clock that began to run *before* it sent the renewal that
//! was granted, less a margin; others take over only when they have seen the lease unchanged (or deleted: somebody else's
//! doing) for its whole duration. So two never believe at once, as long as their clocks run at the same speed to within the
//! margin; only a process that begins after somebody deleted the lease cannot know that it was held. A write is refused
//! locally unless the deadline is at least one [`RESERVE`] away, and it is given up when the deadline comes.
//!
//! A process can still be stopped between that check and the moment its bytes reach the server. What then arrives late is
//! refused by the server: an update or deletion carries UID and resourceVersion, and a creation is refused when the object
//! exists. One window is left: a creation (of an object that the new leader has not made, or has deleted) that was already
//! handed to the kernel. The new leader sees the object appear and removes it like any other that should not be.

mod file;
mod kubernetes;
mod machine;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use self::machine::{Command, Input, Machine, Record, Terms, Written};
pub(crate) use self::{file::run as run_file, kubernetes::run as run_kubernetes};
use super::clock::Clock;

/// A write is not begun with less than this left of the lease.
pub const RESERVE: Duration = Duration::from_millis(100);

/// Where the lease is and how long it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// How long it lasts without renewal; at least 1 s. It is renewed every fifth of that.
    pub duration: Duration,
    /// Name of this process as a holder. Must differ from that of every other process, also of its own predecessor.
    pub holder: String,
}

/// What is known about the lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Leadership {
    /// Nothing yet.
    #[default]
    Unknown,
    /// Another process leads.
    Standby {
        /// Which, empty when nobody does.
        leader: String,
    },
    /// This process leads.
    Leading,
}

/// The deadline after which nothing may be written, shared between the lease's driver and whoever writes.
#[derive(Debug)]
pub struct Fence {
    clock: Arc<dyn Clock>,
    /// In nanoseconds of the clock's uptime; 0: closed.
    deadline: AtomicU64,
}

impl Fence {
    /// A closed fence.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, deadline: AtomicU64::new(0) }
    }

    /// How much time is left for a write that begins now; none if it must not be sent.
    pub fn remaining(&self) -> Option<Duration> {
        let deadline = Duration::from_nanos(self.deadline.load(Ordering::Acquire));
        deadline.checked_sub(self.clock.uptime()).filter(|left| *left >= RESERVE)
    }

    /// Writing is allowed until `deadline`, or not at all.
    pub(crate) fn set(&self, deadline: Option<Duration>) {
        let nanos = deadline.map_or(0, |deadline| u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX));
        self.deadline.store(nanos, Ordering::Release);
    }
}
