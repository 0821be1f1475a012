//! Keeps the rules in force: installs them, looks every few seconds, repairs what has changed.
//!
//! Looking is a handful of short-lived processes (about 5 ms with nft, 15 ms with iptables), so it is done at an interval
//! instead of following the kernel's events: legacy iptables has none, and a missed event would be a hole.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;

use crate::error::Error;
use crate::netfilter::{Counters, Netfilter};
use crate::rule::Backend;

/// How [`keep`] goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Keep {
    /// Time between looks; 2 s by default.
    pub interval: Duration,
    /// The longest time between attempts while they fail; 15 s by default. It doubles from `interval`.
    pub max_backoff: Duration,
}

impl Default for Keep {
    fn default() -> Self {
        Self { interval: Duration::from_secs(2), max_backoff: Duration::from_secs(15) }
    }
}

impl Keep {
    /// The defaults, but with another interval.
    #[must_use]
    pub fn every(interval: Duration) -> Self {
        let defaults = Self::default();
        Self { interval, max_backoff: defaults.max_backoff.max(interval) }
    }

    /// The pause after so many failures in a row.
    fn pause(&self, failures: u32) -> Duration {
        let doubled =
            1_u32.checked_shl(failures).map_or(self.max_backoff, |factor| self.interval.saturating_mul(factor));
        doubled.min(self.max_backoff.max(self.interval))
    }
}

/// How things stand, for readiness and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct State {
    /// The back end in use.
    pub backend: Backend,
    /// The rules were in force when they were last seen.
    pub installed: bool,
    /// How often rules that had been in force were changed by somebody else and repaired.
    pub repaired: u64,
    /// Why the last attempt failed; none if it did not.
    pub last_error: Option<String>,
    /// Connections redirected since `keep` began; includes what the rules had counted before.
    pub redirected_connections: u64,
    /// Packets dropped because they were not redirected; includes what the rules had counted before.
    pub dropped_packets: u64,
}

impl State {
    /// Before the first attempt.
    pub fn new(backend: Backend) -> Self {
        Self { backend, installed: false, repaired: 0, last_error: None, redirected_connections: 0, dropped_packets: 0 }
    }
}

/// Adds up a counter that starts from zero again when its rule is written anew.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    before: u64,
    now: u64,
}

impl Tally {
    fn see(&mut self, count: u64) {
        if count < self.now {
            self.restart();
        }
        self.now = count;
    }

    fn restart(&mut self) {
        self.before = self.before.saturating_add(std::mem::take(&mut self.now));
    }

    fn total(self) -> u64 {
        self.before.saturating_add(self.now)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Tallies {
    redirected: Tally,
    dropped: Tally,
}

impl Tallies {
    fn see(&mut self, counters: Counters) {
        self.redirected.see(counters.redirected_connections);
        self.dropped.see(counters.dropped_packets);
    }

    fn restart(&mut self) {
        self.redirected.restart();
        self.dropped.restart();
    }
}

/// Installs the rules, then looks at every interval and repairs what differs, until `shutdown` resolves. Failures are
/// reported through `state` and tried again, at growing intervals; nothing ends it but `shutdown`.
///
/// The rules stay when it returns or is dropped: taking them away is [`remove`](crate::remove), an explicit act.
pub async fn keep(
    netfilter: Netfilter,
    options: Keep,
    state: watch::Sender<State>,
    shutdown: impl Future<Output = ()>,
) {
    let work = async {
        let mut keeper = Keeper { netfilter, tallies: Tallies::default(), installed_once: false, pending: true };
        let mut failures: u32 = 0;
        loop {
            match keeper.step().await {
                Ok(repaired) => {
                    failures = 0;
                    state.send_modify(|state| {
                        state.installed = true;
                        state.repaired += u64::from(repaired);
                        state.last_error = None;
                        state.redirected_connections = keeper.tallies.redirected.total();
                        state.dropped_packets = keeper.tallies.dropped.total();
                    });
                }
                Err(Failure { error, installed }) => {
                    failures = failures.saturating_add(1);
                    tracing::error!(backend = %keeper.netfilter.backend(), %error, failures, "the redirect could not be checked or repaired; will try again");
                    state.send_modify(|state| {
                        state.installed = installed.unwrap_or(state.installed);
                        state.last_error = Some(error.to_string());
                    });
                }
            }
            tokio::time::sleep(options.pause(failures)).await;
        }
    };
    tokio::select! {
        biased;
        () = shutdown => {}
        () = work => {}
    }
}

struct Failure {
    error: Error,
    /// What is known about the rules now; none: no more than before.
    installed: Option<bool>,
}

struct Keeper {
    netfilter: Netfilter,
    tallies: Tallies,
    /// Differences from now on are somebody else's doing.
    installed_once: bool,
    /// The last installation has not been completed, whatever the rules look like: connections may be left to cut.
    pending: bool,
}

impl Keeper {
    /// One look, and a repair if needed; true if somebody else's change was repaired.
    async fn step(&mut self) -> Result<bool, Failure> {
        let backend = self.netfilter.backend();
        let (differences, counters) =
            self.netfilter.look().await.map_err(|error| Failure { error, installed: None })?;
        self.tallies.see(counters);
        if differences.is_empty() && !self.pending {
            return Ok(false);
        }
        for difference in differences.iter().filter(|_| self.installed_once) {
            tracing::warn!(%backend, %difference, "the redirect was changed by somebody else; repairing");
        }
        self.pending = true;
        let in_force = differences.is_empty();
        let done = self.netfilter.install().await.map_err(|error| Failure { error, installed: Some(in_force) })?;
        self.pending = false;
        if !done.repaired.is_empty() {
            self.tallies.restart();
        }
        tracing::info!(
            %backend, to = %self.netfilter.redirect().to(), written = done.repaired.len(),
            moved_from = ?done.moved_from, connections_cut = done.flushed, "the redirect is in force"
        );
        Ok(std::mem::replace(&mut self.installed_once, true) && !done.repaired.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_bound() {
        let keep = Keep::default();
        let pauses: Vec<_> = [0, 1, 2, 3, 4, 40].map(|failures| keep.pause(failures).as_secs()).into();
        assert_eq!(pauses, [2, 4, 8, 15, 15, 15]);
        assert_eq!(Keep::every(Duration::from_mins(1)).pause(3), Duration::from_mins(1));
    }

    #[test]
    fn counts_survive_rules_written_anew() {
        let mut tally = Tally::default();
        for (count, total) in [(3, 3), (5, 5), (2, 7), (2, 7), (9, 14)] {
            tally.see(count);
            assert_eq!(tally.total(), total);
        }
        tally.restart();
        tally.see(20);
        assert_eq!(tally.total(), 34);
    }
}
