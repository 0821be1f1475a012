//! The thread that syncs what was written, so that nobody waits for it.

use std::{
    fs::File,
    io,
    sync::{Arc, Condvar, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use super::{
    queue::lock,
    shared::{Held, Shared},
};

/// What is written, and not known to be on the disk yet.
#[derive(Debug, Default)]
pub(super) struct Syncing {
    state: Mutex<Unsynced>,
    changed: Condvar,
    /// A sync that failed: file, and why. The kernel forgets what it could not write, so that trying again proves nothing.
    failed: Mutex<Option<(u64, String)>>,
}

#[derive(Debug, Default)]
struct Unsynced {
    files: Vec<(u64, Arc<File>)>,
    names: bool,
    seq: u64,
    stop: bool,
}

impl Syncing {
    /// A file has something new in it, up to record `seq`; with `names` the directory, too.
    pub(super) fn dirty(&self, number: u64, file: &Arc<File>, seq: u64, names: bool) {
        let mut state = lock(&self.state);
        let first = state.files.is_empty();
        if state.files.last().is_none_or(|(last, _)| *last != number) {
            state.files.push((number, Arc::clone(file)));
        }
        state.seq = seq;
        state.names |= names;
        drop(state);
        if first {
            self.changed.notify_one();
        }
    }

    /// A sync of file `number` failed.
    pub(super) fn fail(&self, number: u64, error: &io::Error) {
        *lock(&self.failed) = Some((number, error.to_string()));
    }

    /// The file whose sync failed, and why; once.
    pub(super) fn take_failure(&self) -> Option<(u64, String)> {
        lock(&self.failed).take()
    }

    /// The thread ends when everything is synced.
    pub(super) fn stop(&self) {
        lock(&self.state).stop = true;
        self.changed.notify_one();
    }

    /// The thread: syncs what is dirty, once in each `interval`.
    pub(super) fn run(shared: &Shared, held: &Held, interval: Duration) {
        let this = &shared.syncing;
        loop {
            let state = lock(&this.state);
            let state = this.changed.wait_while(state, |state| state.files.is_empty() && !state.stop);
            let state = state.unwrap_or_else(PoisonError::into_inner);
            let waited = this.changed.wait_timeout_while(state, interval, |state| !state.stop);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
            let (files, names, seq) = (std::mem::take(&mut state.files), std::mem::take(&mut state.names), state.seq);
            let stop = state.stop;
            drop(state);
            if stop && files.is_empty() {
                return;
            }
            let mut all = true;
            for (number, file) in files {
                if let Err(error) = file.sync_data() {
                    all = false;
                    this.fail(number, &error);
                }
            }
            if names && let Err(error) = held.directory.sync() {
                tracing::warn!(%error, "the directory of the audit journal cannot be synced");
            }
            if all {
                shared.counts.synced.fetch_max(seq, Ordering::Relaxed);
            }
            shared.counts.syncs.fetch_add(1, Ordering::Relaxed);
        }
    }
}
