//! Without an API server: a lock on a file of the state directory (`flock`). The kernel takes it away when the process ends,
//! and from nobody before that; so there is no deadline, and no second leader beside a stopped one.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt as _,
    sync::Arc,
    time::Duration,
};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Fence, Leadership};
use crate::runtime::state_dir::StateDir;

/// Keeps trying to lead until `stop`, then lets go and returns.
pub(crate) async fn run(
    state: StateDir,
    fence: Arc<Fence>,
    leadership: watch::Sender<Leadership>,
    stop: CancellationToken,
) {
    let locked = match open(&state) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                info!(file = %state.lease().display(), "another controller writes to this state directory; standing by");
                leadership.send_replace(Leadership::Standby { leader: String::new() });
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    file = wait_for(file) => file,
                }
            }
            Err(TryLockError::Error(error)) => Err(error),
        },
        Err(error) => Err(error),
    };
    let file = match locked {
        Ok(file) => file,
        Err(error) => {
            warn!(file = %state.lease().display(), %error, "cannot lock; nothing is written");
            stop.cancelled().await;
            return;
        }
    };
    let held = Held { fence, _file: file };
    held.fence.set(Some(Duration::from_nanos(u64::MAX)));
    leadership.send_replace(Leadership::Leading);
    stop.cancelled().await;
    drop(held);
    leadership.send_replace(Leadership::Standby { leader: String::new() });
}

/// The lock. However it goes, the fence closes before.
struct Held {
    fence: Arc<Fence>,
    _file: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.fence.set(None);
    }
}

fn open(state: &StateDir) -> io::Result<File> {
    state.create()?;
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(state.lease())
}

/// On a thread of its own, which nobody waits for: a lock cannot be waited for and given up.
async fn wait_for(file: File) -> io::Result<File> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new().name("lease".to_owned()).spawn(move || {
        let result = file.lock().map(|()| file);
        // Nobody there any more: the file is closed, and with it the lock is gone.
        let _ = sender.send(result);
    })?;
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the thread that waits for the lock ended")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock::testing::TokioClock;

    async fn until(watch: &mut watch::Receiver<Leadership>, wanted: Leadership) {
        let wait = watch.wait_for(|now| *now == wanted);
        tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn one_holds_it_and_hands_it_over() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::new(directory.path().join("state"));
        let start = || {
            let (leadership, watch) = watch::channel(Leadership::Unknown);
            let fence = Arc::new(Fence::new(Arc::new(TokioClock::new())));
            let stop = CancellationToken::new();
            let task = tokio::spawn(run(state.clone(), fence.clone(), leadership, stop.clone()));
            (watch, fence, stop, task)
        };
        let (mut watch_a, fence_a, stop_a, task_a) = start();
        until(&mut watch_a, Leadership::Leading).await;
        assert!(fence_a.remaining().is_some());
        let (mut watch_b, fence_b, stop_b, task_b) = start();
        until(&mut watch_b, Leadership::Standby { leader: String::new() }).await;
        assert!(fence_b.remaining().is_none());
        stop_a.cancel();
        task_a.await.unwrap();
        assert!(fence_a.remaining().is_none());
        until(&mut watch_b, Leadership::Leading).await;
        // One that dies without a word is followed as well: the kernel closes its file.
        let (mut watch_c, fence_c, stop_c, task_c) = start();
        until(&mut watch_c, Leadership::Standby { leader: String::new() }).await;
        task_b.abort();
        until(&mut watch_c, Leadership::Leading).await;
        assert!(fence_b.remaining().is_none() && fence_c.remaining().is_some());
        drop(stop_b);
        stop_c.cancel();
        task_c.await.unwrap();
    }

    #[tokio::test]
    async fn without_a_directory_nothing_is_led() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("state"), "a file").unwrap();
        let (leadership, watch) = watch::channel(Leadership::Unknown);
        let fence = Arc::new(Fence::new(Arc::new(TokioClock::new())));
        let stop = CancellationToken::new();
        stop.cancel();
        run(StateDir::new(directory.path().join("state")), fence.clone(), leadership, stop).await;
        assert!(fence.remaining().is_none());
        assert_eq!(*watch.borrow(), Leadership::Unknown);
    }
}
