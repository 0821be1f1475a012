//! Upstream budgets: how many requests at a time, how many a second, how many of them retries.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::turns::{Place, Turns};

/// At most so many at a time, given out in turn, and so many a second: a burst, then one each so often (generic cell rate
/// algorithm).
#[derive(Debug)]
pub(crate) struct Limit {
    places: Turns,
    every: Duration,
    /// What a full burst lasts.
    ahead: Duration,
    next: Mutex<Option<Instant>>,
}

impl Limit {
    /// `at_once` at a time; `burst` from idle, `a_second` in the long run. No second has more than both together.
    pub(crate) fn new(at_once: usize, burst: u32, a_second: u32) -> Self {
        let every = Duration::from_secs(1) / a_second.max(1);
        Self { places: Turns::new(at_once), every, ahead: every * burst.max(1), next: Mutex::default() }
    }

    /// Waits for the turn of `who`; it ends when the result is dropped. Callers bound the wait.
    pub(crate) async fn turn(&self, who: u64) -> impl Drop + use<'_> {
        let place: Place<'_> = self.places.take(who).await;
        let at = {
            let now = Instant::now();
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let due = next.map_or(now, |next| next.max(now)) + self.every;
            *next = Some(due);
            due.checked_sub(self.ahead).filter(|at| *at > now)
        };
        if let Some(at) = at {
            tokio::time::sleep_until(at).await;
        }
        place
    }
}

/// Lets about one request in ten be a retry, beyond a small reserve: retries never multiply an outage.
#[derive(Debug)]
pub(crate) struct RetryBudget(AtomicI32);

impl RetryBudget {
    const COST: i32 = 10;
    const MOST: i32 = 200;

    pub(crate) const fn new() -> Self {
        Self(AtomicI32::new(100))
    }

    /// A first attempt pays in.
    pub(crate) fn deposit(&self) {
        self.change(|balance| Some((balance + 1).min(Self::MOST)));
    }

    /// Whether a retry may be made; it is paid for.
    pub(crate) fn withdraw(&self) -> bool {
        self.change(|balance| (balance >= Self::COST).then(|| balance - Self::COST))
    }

    fn change(&self, to: impl Fn(i32) -> Option<i32>) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, to).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_second_has_more_than_burst_and_rate() {
        let limit = Limit::new(5, 4, 14);
        let mut turns = Vec::new();
        for pause in [0, 0, 3, 0] {
            tokio::time::advance(Duration::from_secs(pause)).await;
            for _ in 0..30 {
                drop(limit.turn(0).await);
                turns.push(Instant::now());
            }
        }
        for (n, from) in turns.iter().enumerate() {
            let within = turns[n..].iter().take_while(|turn| **turn - *from < Duration::from_secs(1)).count();
            assert!(within <= 18, "{within} within a second");
        }
        // And it is not slower than it has to be: 60 turns after a burst of 4.
        let took = turns[59] - turns[0];
        assert!(took >= Duration::from_secs(4) && took <= Duration::from_millis(4100), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_so_many_at_once() {
        let limit = Limit::new(2, 1000, 1000);
        let (_one, two) = (limit.turn(0).await, limit.turn(0).await);
        assert!(tokio::time::timeout(Duration::from_secs(1), limit.turn(0)).await.is_err());
        drop(two);
        assert!(tokio::time::timeout(Duration::from_secs(1), limit.turn(0)).await.is_ok());
    }

    #[test]
    fn retries_are_a_share_of_requests() {
        let budget = RetryBudget::new();
        let granted = (0..1000)
            .filter(|_| {
                budget.deposit();
                budget.withdraw()
            })
            .count();
        assert!((100..=115).contains(&granted), "{granted}");
    }
}
