//! Tells which files of a directory may have changed: by inotify, without polling and without timers.
//!
//! What is watched is the directory, its subdirectories if files are further down, and the nearest directory above that
//! exists: so a directory that is deleted and made again, or a symbolic link that is swapped for another (as a ConfigMap
//! volume does with `..data`, and deployments do with `current`), is noticed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use notify::{
    Config, Event, EventKind, INotifyWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::sync::Notify;
use tracing::warn;

use super::directory::{Dirty, is_manifest};

/// More files than this at once are not told apart any more.
const MOST_FILES: usize = 4096;

#[derive(Debug, Default)]
struct Pending {
    dirty: Option<Dirty>,
    /// A watched directory appeared, went, or is another now.
    rearm: bool,
}

/// How long until it tries again to watch, when that failed (too many watches, most likely).
const RETRY: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    /// How many levels of directories there are between it and its files.
    depth: usize,
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Debug)]
pub(super) struct Inotify {
    watcher: INotifyWatcher,
    watched: Vec<PathBuf>,
    /// Watching failed.
    blind: bool,
    shared: Arc<Shared>,
}

impl Inotify {
    /// `root` must be absolute. The first [`changed`](Self::changed) answers at once with everything.
    pub(super) fn new(root: PathBuf, depth: usize) -> notify::Result<Self> {
        let pending = Mutex::new(Pending { dirty: Some(Dirty::All), rearm: false });
        let shared = Arc::new(Shared { root, depth, pending, wake: Notify::new() });
        let handler = shared.clone();
        let watcher = INotifyWatcher::new(move |event| handler.handle(event), Config::default())?;
        let mut inotify = Self { watcher, watched: Vec::new(), blind: false, shared };
        inotify.arm()?;
        Ok(inotify)
    }

    /// Waits until something may have changed and takes all of it.
    pub(super) async fn changed(&mut self) -> Dirty {
        loop {
            let shared = self.shared.clone();
            let notified = shared.wake.notified();
            let (dirty, rearm) = {
                let mut pending = shared.lock();
                (pending.dirty.take(), std::mem::take(&mut pending.rearm))
            };
            if rearm {
                let armed = self.arm();
                if let (Err(error), false) = (&armed, self.blind) {
                    warn!(
                        directory = %shared.root.display(), %error,
                        "cannot watch; looking every {RETRY:?} (raise fs.inotify.max_user_watches)"
                    );
                }
                self.blind = armed.is_err();
            }
            if let Some(dirty) = dirty {
                return dirty;
            }
            if self.blind {
                if tokio::time::timeout(RETRY, notified).await.is_err() {
                    *shared.lock() = Pending { dirty: Some(Dirty::All), rearm: true };
                }
            } else {
                notified.await;
            }
        }
    }

    fn arm(&mut self) -> notify::Result<()> {
        for path in self.watched.drain(..) {
            // Gone already when the directory is.
            let _ = self.watcher.unwatch(&path);
        }
        let root = self.shared.root.clone();
        // From above: whatever appears while this runs is seen either here or by the watch above it.
        let mut above = root.parent();
        while let Some(directory) = above {
            match self.watcher.watch(directory, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.push(directory.to_owned());
                    break;
                }
                Err(error) if is_absent(&error) => above = directory.parent(),
                Err(error) => return Err(error),
            }
        }
        match self.watcher.watch(&root, RecursiveMode::NonRecursive) {
            Ok(()) => self.watched.push(root.clone()),
            Err(error) if is_absent(&error) => {
                // Made between the two? Then a directory above it was too, which the watch does not tell.
                if above != root.parent() && root.parent().is_some_and(Path::exists) {
                    *self.shared.lock() = Pending { dirty: Some(Dirty::All), rearm: true };
                    self.shared.wake.notify_one();
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.arm_below(&root, self.shared.depth)
    }

    fn arm_below(&mut self, directory: &Path, depth: usize) -> notify::Result<()> {
        if depth == 0 {
            return Ok(());
        }
        let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
            match self.watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => self.watched.push(path.clone()),
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(error),
            }
            self.arm_below(&path, depth - 1)?;
        }
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called on notify's thread.
    fn handle(&self, event: notify::Result<Event>) {
        let mut pending = self.lock();
        match event {
            Ok(event) if event.need_rescan() => {
                *pending = Pending { dirty: Some(Dirty::All), rearm: true };
            }
            Ok(event) => {
                for path in &event.paths {
                    self.note(event.kind, path, &mut pending);
                }
            }
            Err(error) => {
                warn!(directory = %self.root.display(), %error, "inotify failed; reading everything again");
                *pending = Pending { dirty: Some(Dirty::All), rearm: true };
            }
        }
        if pending.dirty.is_some() || pending.rearm {
            self.wake.notify_one();
        }
    }

    fn note(&self, kind: EventKind, path: &Path, pending: &mut Pending) {
        match kind {
            // Reading makes events, too; and while a file is written, its end is what counts.
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {}
            EventKind::Access(_) | EventKind::Modify(ModifyKind::Data(_)) => return,
            // Being written in place: closing it follows. One that has content may have been linked here complete.
            EventKind::Create(_) if is_empty_file(path) => return,
            _ => {}
        }
        if self.root.starts_with(path) {
            // The directory or one above it: it may be another now.
            pending.rearm = true;
            pending.dirty = Some(Dirty::All);
            return;
        }
        let Ok(inside) = path.strip_prefix(&self.root) else { return };
        let depth = inside.components().count();
        let is_file = depth == 1 + self.depth && is_manifest(path) && !path.is_dir();
        if is_file {
            match pending.dirty.get_or_insert_with(|| Dirty::Files(BTreeSet::new())) {
                Dirty::All => {}
                Dirty::Files(files) => {
                    files.insert(path.to_owned());
                    if files.len() > MOST_FILES {
                        pending.dirty = Some(Dirty::All);
                    }
                }
            }
            return;
        }
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if depth <= self.depth && !name.starts_with(b".") {
            // A directory, most likely.
            pending.rearm = true;
            pending.dirty = Some(Dirty::All);
        } else if depth == 1 && name.starts_with(b"..") {
            // The link of a ConfigMap volume.
            pending.dirty = Some(Dirty::All);
        }
    }
}

fn is_empty_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == 0)
}

fn is_absent(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => {
            matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use notify::event::Flag;

    use super::*;

    #[tokio::test]
    async fn an_overflow_of_the_queue_is_followed_by_a_full_look() {
        let directory = tempfile::tempdir().unwrap();
        let mut inotify = Inotify::new(directory.path().to_owned(), 0).unwrap();
        assert_eq!(inotify.changed().await, Dirty::All, "the first look");
        let one = directory.path().join("a.yaml");
        inotify.shared.handle(Ok(Event::new(EventKind::Remove(notify::event::RemoveKind::File)).add_path(one.clone())));
        assert_eq!(inotify.changed().await, Dirty::Files([one.clone()].into()));
        // What the kernel sends as IN_Q_OVERFLOW.
        inotify.shared.handle(Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)));
        inotify.shared.handle(Ok(Event::new(EventKind::Remove(notify::event::RemoveKind::File)).add_path(one)));
        assert_eq!(inotify.changed().await, Dirty::All);
        inotify.shared.handle(Err(notify::Error::generic("gone")));
        assert_eq!(inotify.changed().await, Dirty::All);
    }

    #[tokio::test]
    async fn very_many_files_at_once_are_a_full_look() {
        let directory = tempfile::tempdir().unwrap();
        let mut inotify = Inotify::new(directory.path().to_owned(), 0).unwrap();
        inotify.changed().await;
        for i in 0..=MOST_FILES {
            let path = directory.path().join(format!("{i}.yaml"));
            inotify.shared.handle(Ok(Event::new(EventKind::Remove(notify::event::RemoveKind::File)).add_path(path)));
        }
        assert_eq!(inotify.changed().await, Dirty::All);
    }

    #[tokio::test(start_paused = true)]
    async fn without_watches_it_looks_now_and_then() {
        let directory = tempfile::tempdir().unwrap();
        // As if there were no watches left: no directory can have such a name.
        let root = directory.path().join("x".repeat(300));
        let pending = Mutex::new(Pending { dirty: Some(Dirty::All), rearm: true });
        let shared = Arc::new(Shared { root, depth: 0, pending, wake: Notify::new() });
        let watcher = INotifyWatcher::new(|_| {}, Config::default()).unwrap();
        let mut inotify = Inotify { watcher, watched: Vec::new(), blind: false, shared };
        assert_eq!(inotify.changed().await, Dirty::All);
        for _ in 0..3 {
            let began = tokio::time::Instant::now();
            let looked = tokio::time::timeout(RETRY * 2, inotify.changed()).await;
            assert_eq!((looked.unwrap(), began.elapsed().as_secs()), (Dirty::All, RETRY.as_secs()));
        }
    }
}
