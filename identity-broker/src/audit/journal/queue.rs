//! What waits to be written. Requests put bodies in, one thread takes them all at once: so many connections share one write,
//! and are woken together.

use std::{
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::audit::AuditError;

/// The most bytes that wait to be written. What is above it is refused at once: then the disk does not keep up.
const MOST_WAITING: usize = 8 << 20;

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

#[derive(Debug, Default)]
struct State {
    bodies: Vec<u8>,
    /// Where each body ends.
    ends: Vec<usize>,
    batch: Arc<Batch>,
    /// The writer waits to be told.
    idle: bool,
    closing: bool,
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    ready: Condvar,
}

/// What the writer has taken.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) bodies: Vec<u8>,
    pub(super) ends: Vec<usize>,
    pub(super) batch: Arc<Batch>,
    /// Nothing comes after it.
    pub(super) closing: bool,
}

impl Queue {
    /// Puts a record in; `patience` is how long its writing may take.
    pub(super) fn push(&self, body: &[u8], patience: Duration) -> Result<Waiting, AuditError> {
        let mut state = lock(&self.state);
        if state.closing {
            return Err(AuditError("the journal is closed".to_owned()));
        }
        if state.bodies.len() + body.len() > MOST_WAITING {
            let why = format!(
                "{} MiB of records wait to be written: the journal's disk does not keep up",
                MOST_WAITING >> 20
            );
            return Err(AuditError(why));
        }
        let index = state.ends.len();
        state.bodies.extend_from_slice(body);
        let end = state.bodies.len();
        state.ends.push(end);
        let batch = Arc::clone(&state.batch);
        let wake = std::mem::take(&mut state.idle);
        drop(state);
        if wake {
            self.ready.notify_one();
        }
        Ok(Waiting { batch, index, patience, registered: None, guard: None })
    }

    /// How many records wait.
    pub(super) fn len(&self) -> usize {
        lock(&self.state).ends.len()
    }

    /// No more records come.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closing = true;
        state.idle = false;
        drop(state);
        self.ready.notify_one();
    }

    /// Takes what waits, or waits for it, at most `longest`. The buffers in `taken` are used again.
    pub(super) fn take(&self, taken: &mut Taken, longest: Duration) {
        taken.bodies.clear();
        taken.ends.clear();
        let mut state = lock(&self.state);
        if state.ends.is_empty() && !state.closing {
            state.idle = true;
            let waited = self.ready.wait_timeout_while(state, longest, |state| state.ends.is_empty() && !state.closing);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.idle = false;
        }
        std::mem::swap(&mut taken.bodies, &mut state.bodies);
        std::mem::swap(&mut taken.ends, &mut state.ends);
        taken.batch = std::mem::take(&mut state.batch);
        taken.closing = state.closing;
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

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn taken(queue: &Queue) -> Taken {
        let mut taken = Taken::default();
        queue.take(&mut taken, Duration::ZERO);
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_share_a_write_are_told_together() {
        let queue = Queue::default();
        let waiting: Vec<_> = [&b"one"[..], b"two", b"three"].map(|body| queue.push(body, PATIENCE).unwrap()).into();
        let batch = taken(&queue);
        assert_eq!((&*batch.bodies, &*batch.ends), (&b"onetwothree"[..], &[3, 6, 11][..]));
        let all = tokio::spawn(futures::future::join_all(waiting));
        tokio::task::yield_now().await;
        batch.batch.finish(Outcome { written: 2, error: Some("full".into()) });
        let results: Vec<_> = all.await.unwrap().into_iter().map(|result| result.map_err(|error| error.0)).collect();
        assert_eq!(results, [Ok(()), Ok(()), Err("full".to_owned())]);
        assert_eq!(taken(&queue).ends, Vec::<usize>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_waited_for_so_long_even_when_the_first_goes_away() {
        let queue = Queue::default();
        let first = queue.push(b"one", PATIENCE).unwrap();
        let second = queue.push(b"two", PATIENCE).unwrap();
        let (first, second) = (tokio::spawn(first), tokio::spawn(second));
        // Both wait before the clock goes on.
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_secs(2)).await;
        first.abort();
        let began = Instant::now();
        let error = second.await.unwrap().unwrap_err();
        assert!(error.0.contains("within 5 s"), "{error}");
        assert_eq!(began.elapsed().as_secs(), 3, "the time is that of the first");
        assert!(!taken(&queue).batch.finish(Outcome { written: 2, error: None }), "the writer comes too late");
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_closes() {
        let queue = Queue::default();
        let large = vec![b'x'; MOST_WAITING];
        let waits = queue.push(&large, PATIENCE).unwrap();
        assert!(queue.push(b"x", PATIENCE).unwrap_err().0.contains("does not keep up"));
        drop(waits);
        queue.close();
        assert!(taken(&queue).closing);
        assert!(queue.push(b"x", PATIENCE).unwrap_err().0.contains("closed"));
    }
}
