//! Whether a part of the daemon is stuck for good: what a restart would help against, and nothing else.
//!
//! A part that ends or panics ends the process. A part that is stuck (a deadlock, a loop without end) does neither: its task
//! is being polled and never comes back, or does not answer. Waiting for the API server, for Entra or for a disk is none of
//! that: whoever waits has been polled, and the poll has come back.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

/// How long one step of a part may take. The longest that is known takes milliseconds.
const STUCK: Duration = Duration::from_secs(30);
/// Between two questions to a part.
const ASK: Duration = Duration::from_secs(10);

/// The parts of a daemon, and since when each is at what it does now.
#[derive(Clone)]
pub struct Pulse(Arc<Inner>);

struct Inner {
    base: Instant,
    parts: Mutex<Vec<(&'static str, Arc<AtomicU64>)>>,
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pulse")
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self(Arc::new(Inner { base: Instant::now(), parts: Mutex::default() }))
    }
}

impl Pulse {
    /// Which parts are stuck, and for how long.
    pub fn stuck(&self) -> Vec<(&'static str, Duration)> {
        let now = self.0.base.elapsed();
        let parts = self.0.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let since = parts.iter().filter_map(|(name, since)| {
            let since = since.load(Ordering::Relaxed).checked_sub(1)?;
            Some((*name, now.saturating_sub(Duration::from_millis(since))))
        });
        since.filter(|(_, busy)| *busy >= STUCK).collect()
    }

    /// `part`, of which each step is watched.
    pub fn watched<F: Future + Send + 'static>(
        &self,
        name: &'static str,
        part: F,
    ) -> impl Future<Output = F::Output> + Send + 'static {
        Watched { part: Box::pin(part), busy: self.busy(name) }
    }

    /// Asks a part that has a task of its own, now and then, for as long as this is polled.
    pub async fn ask<F: Future<Output = ()>>(&self, name: &'static str, question: impl Fn() -> F) {
        let busy = self.busy(name);
        loop {
            busy.begin();
            question().await;
            busy.end();
            tokio::time::sleep(ASK).await;
        }
    }

    fn busy(&self, name: &'static str) -> Busy {
        let since = Arc::new(AtomicU64::new(0));
        self.0.parts.lock().unwrap_or_else(PoisonError::into_inner).push((name, Arc::clone(&since)));
        Busy { base: self.0.base, since }
    }
}

struct Busy {
    base: Instant,
    /// Milliseconds after `base`, and one; 0: not busy.
    since: Arc<AtomicU64>,
}

impl Busy {
    fn begin(&self) {
        let now = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(now.saturating_add(1), Ordering::Relaxed);
    }

    fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.end();
    }
}

struct Watched<F> {
    part: Pin<Box<F>>,
    busy: Busy,
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.busy.begin();
        let polled = self.part.as_mut().poll(cx);
        self.busy.end();
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_is_not_being_stuck_and_not_answering_is() {
        let pulse = Pulse::default();
        let waits = pulse.watched("waits", std::future::pending::<()>());
        let asked = {
            let pulse = pulse.clone();
            async move { pulse.ask("never answers", std::future::pending).await }
        };
        let answers = {
            let pulse = pulse.clone();
            async move { pulse.ask("answers", || tokio::time::sleep(Duration::from_secs(1))).await }
        };
        let tasks = [tokio::spawn(waits), tokio::spawn(asked), tokio::spawn(answers)];
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert_eq!(pulse.stuck(), []);
        tokio::time::sleep(Duration::from_mins(1)).await;
        let stuck: Vec<_> = pulse.stuck().into_iter().map(|(name, _)| name).collect();
        assert_eq!(stuck, ["never answers"]);
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_does_not_come_back_is_seen_while_it_lasts() {
        let pulse = Pulse::default();
        let inner = pulse.clone();
        let mut seen = Vec::new();
        let part = pulse.watched("turns in circles", async move {
            // As if this step had taken so long; nobody else runs meanwhile.
            let advanced = std::pin::pin!(tokio::time::advance(STUCK));
            let mut advanced = advanced;
            while advanced.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_pending() {}
            seen.extend(inner.stuck());
            seen
        });
        let seen = tokio::time::timeout(Duration::from_secs(5), part).await.unwrap();
        assert_eq!(seen, [("turns in circles", STUCK)]);
        assert_eq!(pulse.stuck(), [], "it came back");
    }
}
