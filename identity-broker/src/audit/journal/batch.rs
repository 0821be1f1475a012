//! Records that are written together, and those who wait for them.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use super::queue::lock;
use crate::audit::AuditError;

/// What became of the records of one write.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// So many of them, from the first on, are with the kernel.
    pub(super) written: usize,
    /// What became of the rest.
    pub(super) error: Option<Arc<str>>,
}

/// Records that are written together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    outcome: OnceLock<Outcome>,
    wakers: Mutex<Vec<Waker>>,
    /// One of those who wait looks at the clock for all of them.
    guarded: AtomicBool,
    deadline: OnceLock<Instant>,
}

impl Batch {
    /// Tells all who wait. What was told first counts, and whether this was it is the answer.
    pub(super) fn finish(&self, outcome: Outcome) -> bool {
        let first = self.outcome.set(outcome).is_ok();
        self.wake();
        first
    }

    fn wake(&self) {
        let wakers = std::mem::take(&mut *lock(&self.wakers));
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// A record's wait for its write. Bounded: a disk that hangs fails the batch.
#[derive(Debug)]
pub(super) struct Waiting {
    batch: Arc<Batch>,
    index: usize,
    patience: Duration,
    registered: Option<Waker>,
    guard: Option<Pin<Box<Sleep>>>,
}

impl Waiting {
    pub(super) const fn new(batch: Arc<Batch>, index: usize, patience: Duration) -> Self {
        Self { batch, index, patience, registered: None, guard: None }
    }

    fn outcome(&self) -> Option<Result<(), AuditError>> {
        let outcome = self.batch.outcome.get()?;
        if self.index < outcome.written {
            return Some(Ok(()));
        }
        Some(Err(AuditError(outcome.error.as_deref().unwrap_or("the journal's writer has stopped").to_owned())))
    }
}

impl Future for Waiting {
    type Output = Result<(), AuditError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Some(outcome) = this.outcome() {
            return Poll::Ready(outcome);
        }
        if this.registered.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            let mut wakers = lock(&this.batch.wakers);
            // Between looking and locking it may have been told.
            if let Some(outcome) = this.outcome() {
                return Poll::Ready(outcome);
            }
            wakers.push(cx.waker().clone());
            drop(wakers);
            this.registered = Some(cx.waker().clone());
        }
        if this.guard.is_none() && !this.batch.guarded.swap(true, Ordering::AcqRel) {
            let deadline = *this.batch.deadline.get_or_init(|| Instant::now() + this.patience);
            this.guard = Some(Box::pin(tokio::time::sleep_until(deadline)));
        }
        if let Some(guard) = &mut this.guard {
            std::task::ready!(guard.as_mut().poll(cx));
            let why = format!("the journal's disk has not taken it within {} s", this.patience.as_secs_f32());
            this.batch.finish(Outcome { written: 0, error: Some(why.into()) });
        }
        this.outcome().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.guard.take().is_some() && self.batch.outcome.get().is_none() {
            // Whoever comes first looks at the clock from now on.
            self.batch.guarded.store(false, Ordering::Release);
            for waker in &*lock(&self.batch.wakers) {
                waker.wake_by_ref();
            }
        }
    }
}
