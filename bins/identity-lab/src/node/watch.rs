//! inotify on one directory, as an async stream of "something changed".

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    EventKind, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::sync::mpsc;

use super::Error;

/// What belongs together (an editor's several steps) usually arrives within this time.
const TOGETHER: Duration = Duration::from_millis(20);

/// A watched directory.
pub(super) struct Watch {
    _watcher: notify::RecommendedWatcher,
    events: mpsc::Receiver<(OsString, bool)>,
    /// Something was seen and not yet reported; the names that were unlinked.
    pending: Option<Vec<OsString>>,
}

impl Watch {
    pub(super) fn new(directory: &Path) -> Result<Self, Error> {
        let (sender, events) = mpsc::channel(4096);
        let mut watcher = notify::recommended_watcher(move |event: Result<notify::Event, notify::Error>| {
            // An error (queue overflow) means: look at everything.
            let (kind, paths) = event.map_or((EventKind::Any, Vec::new()), |event| (event.kind, event.paths));
            // Our own reading is no change.
            let reading = matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write));
            if reading {
                return;
            }
            let unlinked = kind.is_remove();
            let paths = if paths.is_empty() { vec![PathBuf::new()] } else { paths };
            for path in paths {
                // A full queue already leads to another look.
                let _ = sender.try_send((path.file_name().unwrap_or_default().to_owned(), unlinked));
            }
        })?;
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(Self { _watcher: watcher, events, pending: None })
    }

    /// Waits until something changed, and a little longer; returns the names that were unlinked meanwhile. Never returns once
    /// the watch is broken. May be cancelled: what was seen is reported by the next call.
    pub(super) async fn changed(&mut self) -> Vec<OsString> {
        if self.pending.is_none() {
            let Some(first) = self.events.recv().await else { return std::future::pending().await };
            self.note(first);
        }
        tokio::time::sleep(TOGETHER).await;
        while let Ok(next) = self.events.try_recv() {
            self.note(next);
        }
        self.pending.take().unwrap_or_default()
    }

    fn note(&mut self, (name, unlinked): (OsString, bool)) {
        let pending = self.pending.get_or_insert_default();
        if unlinked && !pending.contains(&name) {
            pending.push(name);
        }
    }
}
