//! What waits to be written, and whose turn it is to write. Whoever takes, takes all at once: so many connections share one
//! write, and are woken together.
//!
//! There is one turn. A request that puts its record in while nobody has it may take it (it leads). Where much is going on
//! it comes again for it a moment later instead, when others have put theirs in, too. Who gives the turn back looks whether
//! more has come that nobody comes for: then it goes on, or the thread is woken. All of this is under one lock, so that no
//! record can come between looking and leaving.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use thiserror::Error;
use tokio::time::Instant;

use super::{
    batch::{Batch, Outcome, Waiting},
    tally::Tag,
};

/// The most bytes that wait to be written. What is above it is refused at once: then the disk does not keep up.
pub(super) const MOST_WAITING: usize = 8 << 20;

/// Why a record was not even put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum Refused {
    #[error("the journal is closed")]
    Closed,
    #[error("{} MiB of records wait to be written: the journal's disk does not keep up", MOST_WAITING >> 20)]
    Full,
}

/// What the thread does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Thread {
    /// It will look by itself.
    #[default]
    Works,
    /// It waits for something to write.
    Idle,
    /// It waits for its turn, whether there is something to write or not.
    Wants,
}

#[derive(Debug, Default)]
struct State {
    bodies: Vec<u8>,
    /// Where each body ends.
    ends: Vec<usize>,
    /// What each is about.
    tags: Vec<Option<Tag>>,
    /// So many were refused meanwhile.
    refused: u64,
    batch: Arc<Batch>,
    thread: Thread,
    /// Somebody writes.
    busy: bool,
    /// What a leader could not write, or not all of it: the thread goes on with it before anything else.
    returned: Option<Taken>,
    /// So many requests come for the turn in a moment.
    coming: usize,
    /// When a leader gave the turn back.
    released: Option<Instant>,
    /// Until then only the thread writes.
    no_leader_until: Option<Instant>,
    spare: Taken,
    closing: bool,
}

impl State {
    const fn is_empty(&self) -> bool {
        self.ends.is_empty() && self.returned.is_none()
    }

    /// Something waits that no request comes for.
    const fn is_forgotten(&self) -> bool {
        self.returned.is_some() || (self.coming == 0 && !self.ends.is_empty())
    }

    fn swap(&mut self, taken: &mut Taken) {
        taken.bodies.clear();
        taken.ends.clear();
        taken.tags.clear();
        std::mem::swap(&mut taken.bodies, &mut self.bodies);
        std::mem::swap(&mut taken.ends, &mut self.ends);
        std::mem::swap(&mut taken.tags, &mut self.tags);
        taken.refused = std::mem::take(&mut self.refused);
        taken.batch = std::mem::take(&mut self.batch);
        taken.closing = self.closing;
    }

    /// Gives the turn back; whether the thread is to be woken.
    fn release(&mut self) -> bool {
        self.busy = false;
        (self.thread == Thread::Wants || self.closing || self.is_forgotten()) && self.rouse()
    }

    /// Whether the thread has to be woken. It is, then.
    fn rouse(&mut self) -> bool {
        std::mem::take(&mut self.thread) != Thread::Works
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    ready: Condvar,
}

/// Whose turn it is when a record has been put in.
#[derive(Debug)]
pub(super) enum Turn {
    /// The caller's. It has to give it back, by [`Queue::next`] or [`Queue::hand_over`].
    Now(Taken),
    /// The caller has to come again, by [`Queue::come`], after everybody else who is about to put something in.
    Soon,
    /// Somebody else's.
    Others,
}

/// A turn that was over so shortly ago is a sign that others come at the same time.
const BUSY: Duration = Duration::from_micros(100);

/// What the writer has taken.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) bodies: Vec<u8>,
    pub(super) ends: Vec<usize>,
    pub(super) tags: Vec<Option<Tag>>,
    /// So many records were refused since the writer before has taken.
    pub(super) refused: u64,
    pub(super) batch: Arc<Batch>,
    /// Nothing comes after it.
    pub(super) closing: bool,
    /// The turn came with it.
    turn: bool,
}

impl Queue {
    /// Puts a record in; `patience` is how long its writing may take. Only one who `may_lead` gets the turn.
    pub(super) fn push(
        &self,
        body: &[u8],
        tag: Option<Tag>,
        patience: Duration,
        may_lead: bool,
    ) -> Result<(Waiting, Turn), Refused> {
        let mut state = lock(&self.state);
        if state.closing {
            return Err(Refused::Closed);
        }
        if state.bodies.len() + body.len() > MOST_WAITING {
            state.refused += 1;
            return Err(Refused::Full);
        }
        let index = state.ends.len();
        state.bodies.extend_from_slice(body);
        let end = state.bodies.len();
        state.ends.push(end);
        state.tags.push(tag);
        let waiting = Waiting::new(Arc::clone(&state.batch), index, patience);
        if may_lead && state.returned.is_none() && state.no_leader_until.is_none_or(|until| until <= Instant::now()) {
            if state.busy || state.coming > 0 || state.released.is_some_and(|at| at.elapsed() < BUSY) {
                state.coming += 1;
                return Ok((waiting, Turn::Soon));
            }
            state.busy = true;
            let mut taken = std::mem::take(&mut state.spare);
            state.swap(&mut taken);
            return Ok((waiting, Turn::Now(taken)));
        }
        if state.busy {
            return Ok((waiting, Turn::Others));
        }
        let wake = state.rouse();
        drop(state);
        if wake {
            self.ready.notify_one();
        }
        Ok((waiting, Turn::Others))
    }

    /// Somebody who was to come has come: it is its turn, or somebody else's.
    pub(super) fn come(&self) -> Option<Taken> {
        let mut state = lock(&self.state);
        state.coming -= 1;
        if state.busy || state.ends.is_empty() || state.returned.is_some() {
            return None;
        }
        state.busy = true;
        let mut taken = std::mem::take(&mut state.spare);
        state.swap(&mut taken);
        Some(taken)
    }

    /// Somebody who was to come does not.
    pub(super) fn stay_away(&self) {
        let mut state = lock(&self.state);
        state.coming -= 1;
        let wake = !state.busy && state.is_forgotten() && state.rouse();
        drop(state);
        if wake {
            self.ready.notify_one();
        }
    }

    /// A leader has written `taken`. What has come in the meantime, or the turn is given back. With `rest` the thread alone
    /// writes for so long; who is `tired` leaves what has come to it.
    pub(super) fn next(&self, mut taken: Taken, tired: bool, rest: Option<Duration>) -> Option<Taken> {
        let mut state = lock(&self.state);
        if let Some(rest) = rest {
            state.no_leader_until = Some(Instant::now() + rest);
        }
        if !tired && rest.is_none() && state.is_forgotten() {
            state.swap(&mut taken);
            return Some(taken);
        }
        taken.batch = Arc::default();
        state.spare = taken;
        state.released = Some(Instant::now());
        let wake = state.release();
        drop(state);
        if wake {
            self.ready.notify_one();
        }
        None
    }

    /// A leader cannot write this, or not all of it: the thread does, before anything else.
    pub(super) fn hand_over(&self, taken: Taken) {
        let mut state = lock(&self.state);
        state.returned = Some(taken);
        let wake = state.release();
        drop(state);
        if wake {
            self.ready.notify_one();
        }
    }

    /// How many records wait.
    pub(super) fn len(&self) -> usize {
        let state = lock(&self.state);
        state.ends.len() + state.returned.as_ref().map_or(0, |returned| returned.ends.len())
    }

    /// Nobody writes, and nothing waits.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        let state = lock(&self.state);
        !state.busy && state.is_empty()
    }

    /// No more records come.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closing = true;
        state.thread = Thread::Works;
        drop(state);
        self.ready.notify_one();
    }

    /// For the thread: gives its turn back, if it has it; then takes the turn and what waits, or waits for that, at most
    /// `longest` (longer only while a leader has the turn). The buffers in `taken` are used again.
    pub(super) fn take(&self, taken: &mut Taken, longest: Duration) {
        let mut state = lock(&self.state);
        if taken.turn {
            state.busy = false;
        }
        let waits = |state: &mut State| {
            let waits = state.busy || (state.is_empty() && !state.closing);
            // Each time: whoever woke it may have been followed by a leader before it looked.
            state.thread = if waits { Thread::Idle } else { Thread::Works };
            waits
        };
        state = self.ready.wait_timeout_while(state, longest, waits).unwrap_or_else(PoisonError::into_inner).0;
        let waits = |state: &mut State| {
            state.thread = if state.busy { Thread::Wants } else { Thread::Works };
            state.busy
        };
        state = self.ready.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        state.busy = true;
        if let Some(returned) = state.returned.take() {
            *taken = returned;
            taken.closing = state.closing;
        } else {
            state.swap(taken);
        }
        taken.turn = true;
    }

    /// Nobody writes any more: closes, and tells all who wait.
    pub(super) fn abandon(&self) {
        self.close();
        let mut state = lock(&self.state);
        let rest = [std::mem::take(&mut state.batch), state.returned.take().unwrap_or_default().batch];
        drop(state);
        for batch in rest {
            batch.finish(Outcome { written: 0, error: None });
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
        let waiting: Vec<_> =
            [&b"one"[..], b"two", b"three"].map(|body| queue.push(body, None, PATIENCE, false).unwrap().0).into();
        let batch = taken(&queue);
        assert_eq!((&*batch.bodies, &*batch.ends), (&b"onetwothree"[..], &[3, 6, 11][..]));
        let all = tokio::spawn(futures::future::join_all(waiting));
        tokio::task::yield_now().await;
        batch.batch.finish(Outcome { written: 2, error: Some("full".into()) });
        let results: Vec<_> = all.await.unwrap().into_iter().map(|result| result.map_err(|error| error.0)).collect();
        assert_eq!(results, [Ok(()), Ok(()), Err("full".to_owned())]);
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_waited_for_so_long_even_when_the_first_goes_away() {
        let queue = Queue::default();
        let first = queue.push(b"one", None, PATIENCE, false).unwrap().0;
        let second = queue.push(b"two", None, PATIENCE, false).unwrap().0;
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
        let waits = queue.push(&large, None, PATIENCE, false).unwrap().0;
        for _ in 0..3 {
            assert_eq!(queue.push(b"x", None, PATIENCE, false).unwrap_err(), Refused::Full);
        }
        drop(waits);
        let mut taken = taken(&queue);
        assert_eq!(taken.refused, 3);
        queue.push(b"x", None, PATIENCE, false).unwrap();
        queue.close();
        queue.take(&mut taken, Duration::ZERO);
        assert!(taken.closing && taken.refused == 0, "said once");
        assert_eq!(queue.push(b"x", None, PATIENCE, false).unwrap_err(), Refused::Closed);
    }

    /// Requests that lead, follow and hand over at random, and the thread: one writes at a time, in the order of the numbers,
    /// and nobody is left waiting.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn one_writes_at_a_time_in_order_and_nobody_is_forgotten() {
        const EACH: usize = 3000;
        let queue = Arc::new(Queue::default());
        let written = Arc::new(Mutex::new(Vec::new()));
        let write = |written: &Mutex<Vec<u8>>, taken: &Taken| {
            written.try_lock().expect("nobody else writes").extend_from_slice(&taken.bodies);
            taken.batch.finish(Outcome { written: taken.ends.len(), error: None });
        };
        let thread = {
            let (queue, written) = (Arc::clone(&queue), Arc::clone(&written));
            std::thread::spawn(move || {
                let mut taken = Taken::default();
                let mut count = 0;
                loop {
                    // So long that a call that it does not hear is seen.
                    queue.take(&mut taken, PATIENCE * 4);
                    count += usize::from(!taken.ends.is_empty());
                    write(&written, &taken);
                    if taken.closing && taken.ends.is_empty() {
                        return count;
                    }
                }
            })
        };
        let tasks = (0..8_u8).map(|task| {
            let (queue, written) = (Arc::clone(&queue), Arc::clone(&written));
            tokio::spawn(async move {
                let mut led = 0;
                for number in 0..EACH {
                    let body = [task, u8::try_from(number % 251).unwrap()];
                    let (waiting, turn) = queue.push(&body, None, PATIENCE, number % 5 != 0).unwrap();
                    let mut turn = match turn {
                        Turn::Now(taken) => Some(taken),
                        Turn::Soon if number % 11 == 0 => {
                            queue.stay_away();
                            None
                        }
                        Turn::Soon => {
                            tokio::task::yield_now().await;
                            queue.come()
                        }
                        Turn::Others => None,
                    };
                    while let Some(taken) = turn {
                        if number % 7 == 0 {
                            queue.hand_over(taken);
                            break;
                        }
                        led += 1;
                        write(&written, &taken);
                        turn = queue.next(taken, number % 3 == 0, None);
                    }
                    waiting.await.unwrap();
                }
                led
            })
        });
        let led: usize = futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).sum();
        queue.close();
        let taken = thread.join().unwrap();
        assert!(led > 100 && taken > 100, "{led} by requests, {taken} by the thread");
        let mut next = [0_usize; 8];
        for record in written.lock().unwrap().chunks_exact(2) {
            let next = &mut next[usize::from(record[0])];
            assert_eq!(usize::from(record[1]), *next % 251);
            *next += 1;
        }
        assert_eq!(next, [EACH; 8]);
    }
}
