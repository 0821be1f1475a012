//! Places at a time, given out in turn: first one to each who waits, then a second one. Whoever asks for much at once
//! waits for himself, not the others for him.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// So many places.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Who waits, in the order in which their turn comes; each with those that wait for him.
    waiting: VecDeque<(u64, VecDeque<oneshot::Sender<()>>)>,
}

/// A place, until dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    turns: &'a Turns,
}

impl Turns {
    /// With `places` (at least one).
    pub(super) fn new(places: usize) -> Self {
        Self { state: Mutex::new(State { free: places.max(1), waiting: VecDeque::new() }) }
    }

    /// Waits for a place on behalf of `who`. Callers bound the wait.
    pub(super) async fn take(&self, who: u64) -> Place<'_> {
        let turn = {
            let mut state = self.lock();
            if state.free > 0 {
                // Nobody waits while a place is free.
                state.free -= 1;
                return Place { turns: self };
            }
            let (given, turn) = oneshot::channel();
            match state.waiting.iter_mut().find(|(waiting, _)| *waiting == who) {
                Some((_, line)) => line.push_back(given),
                None => state.waiting.push_back((who, [given].into())),
            }
            turn
        };
        let mut turn = Turn { turns: self, turn: Some(turn) };
        if let Some(turn) = &mut turn.turn {
            // The sender is only dropped after it has sent.
            let _ = turn.await;
        }
        turn.turn = None;
        Place { turns: self }
    }

    /// Gives a place to whose turn it is, or back.
    fn give(&self) {
        let mut state = self.lock();
        while let Some((who, mut line)) = state.waiting.pop_front() {
            let Some(given) = line.pop_front() else { continue };
            if !line.is_empty() {
                state.waiting.push_back((who, line));
            }
            if given.send(()).is_ok() {
                return;
            }
            // Gone; his next one, or the next.
        }
        state.free += 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.turns.give();
    }
}

/// Waiting for a place. One that was given just when the wait was given up is passed on.
struct Turn<'a> {
    turns: &'a Turns,
    turn: Option<oneshot::Receiver<()>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(mut turn) = self.turn.take() {
            turn.close();
            if turn.try_recv().is_ok() {
                self.turns.give();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::{FutureExt, future::poll_immediate};

    use super::*;

    #[tokio::test]
    async fn in_turn_not_in_line() {
        let turns = Turns::new(1);
        let first = turns.take(0).await;
        let order = Mutex::new(Vec::new());
        let wait = |who: u64| {
            let order = &order;
            let turns = &turns;
            async move {
                let place = turns.take(who).await;
                order.lock().unwrap().push(who);
                drop(place);
            }
        };
        let all = futures::future::join_all([7, 7, 7, 7, 8, 9, 8].map(wait));
        futures::future::join(all, async { drop(first) }).await;
        assert_eq!(*order.lock().unwrap(), [7, 8, 9, 7, 8, 7, 7]);
        assert_eq!(turns.lock().free, 1);
        assert!(turns.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_takes_no_place_with_him() {
        let turns = Turns::new(2);
        let (one, two) = (turns.take(1).await, turns.take(1).await);
        let mut before = Box::pin(turns.take(2));
        let mut given = Box::pin(turns.take(3));
        let mut after = Box::pin(turns.take(4));
        for waiting in [&mut before, &mut given, &mut after] {
            assert!(poll_immediate(waiting).await.is_none());
        }
        // Before it is given, and after it is given but before it is noticed.
        drop(before);
        drop(one);
        drop(given);
        let after = after.now_or_never().expect("passed on");
        drop((two, after));
        assert_eq!(turns.lock().free, 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_place_is_lost_or_made() {
        let turns = Arc::new(Turns::new(3));
        let at_once = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let tasks = (0..300_u64).map(|n| {
            let (turns, at_once) = (Arc::clone(&turns), Arc::clone(&at_once));
            tokio::spawn(async move {
                let taking = async {
                    let _place = turns.take(n % 7).await;
                    let now = at_once.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                    assert!(now <= 3, "{now}");
                    tokio::task::yield_now().await;
                    at_once.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                };
                // Every fifth gives up after it has been polled a few times.
                if n % 5 == 0 {
                    let mut taking = Box::pin(turns.take(n % 7));
                    for _ in 0..n % 4 {
                        if poll_immediate(&mut taking).await.is_some() {
                            return;
                        }
                        tokio::task::yield_now().await;
                    }
                } else {
                    taking.await;
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        let state = turns.lock();
        assert!(state.free == 3 && state.waiting.is_empty(), "{state:?}");
    }
}
