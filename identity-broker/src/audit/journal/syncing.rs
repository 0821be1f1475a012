//! The thread that syncs what was written, so that nobody waits for it.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    disk::JournalFile,
    queue::lock,
    shared::{Held, Shared},
};

/// What is written, and not known to be on the disk yet.
#[derive(Debug, Default)]
pub(super) struct Syncing {
    state: Mutex<Unsynced>,
    changed: Condvar,
    /// A file that is not to be gone on with, and why.
    wrong: Mutex<Option<(u64, String)>>,
    /// A sync is under way: a write at the same time may wait for it.
    busy: AtomicBool,
}

#[derive(Debug, Default)]
struct Unsynced {
    files: Vec<(u64, Arc<JournalFile>)>,
    names: bool,
    seq: u64,
    stop: bool,
}

impl Syncing {
    /// A file has something new in it, up to record `seq`; with `names` the directory, too.
    pub(super) fn dirty(&self, number: u64, file: &Arc<JournalFile>, seq: u64, names: bool) {
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

    /// File `number` is not to be gone on with: its sync failed (the kernel forgets what it could not write, so that trying
    /// again proves nothing), or it is not where it was.
    pub(super) fn wrong(&self, number: u64, text: String) {
        *lock(&self.wrong) = Some((number, text));
    }

    /// The file that is not to be gone on with, and why; once.
    pub(super) fn take_wrong(&self) -> Option<(u64, String)> {
        lock(&self.wrong).take()
    }

    /// How many files wait to be synced.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        lock(&self.state).files.len()
    }

    /// Whether a write may have to wait, or there is something to be said first.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) || lock(&self.wrong).is_some()
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
            this.busy.store(true, Ordering::Relaxed);
            let last = files.last().map(|(number, _)| *number);
            for (number, file) in files {
                if let Err(error) = file.sync_data() {
                    all = false;
                    this.wrong(number, sync_failed(&error));
                } else if last == Some(number) && !held.directory.has(number, &file) {
                    this.wrong(number, MOVED.to_owned());
                }
            }
            this.busy.store(false, Ordering::Relaxed);
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

/// What is said of a file that is not where it was.
pub(super) const MOVED: &str = "the file was moved away or replaced while it was written";

/// What is said of a sync that failed.
pub(super) fn sync_failed(error: &std::io::Error) -> String {
    format!("sync: {error}; what was written lately may be missing after a power failure")
}
