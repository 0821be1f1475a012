//! Upstream budgets: who may ask when, and how many of the requests may be retries.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::budget::{Budget, Class, Rates, Ticket, Who};
use crate::tokens::{Ask, Freshness, Interest, Urgency};

/// The most tenants with a budget of their own.
const TENANTS: usize = 256;

/// The async front of a [`Budget`].
#[derive(Clone, Debug)]
pub(crate) struct Limit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    base: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    budget: Budget,
    given: HashMap<Ticket, oneshot::Sender<()>>,
    next: Ticket,
    /// A task waits for the next time at which somebody may begin.
    pumping: bool,
}

/// Why there is no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoTurn {
    /// Nobody wants it any more.
    Abandoned,
    /// Upstream is to be left alone for longer than can be waited for.
    Paused(Duration),
}

// === impl Limit ===

impl Limit {
    pub(crate) fn new(rates: Rates) -> Self {
        let state = State { budget: Budget::new(rates), given: HashMap::new(), next: 0, pumping: false };
        Self(Arc::new(Shared { base: Instant::now(), state: Mutex::new(state) }))
    }

    /// Waits for the turn of `who`, which ends when the result is dropped. Callers bound the wait by `deadline`.
    pub(crate) async fn turn(&self, who: Who, interest: &mut Interest, deadline: Instant) -> Result<Turn, NoTurn> {
        let class = class(interest.urgency()).ok_or(NoTurn::Abandoned)?;
        let (given, mut turn) = oneshot::channel();
        let ticket = {
            let mut state = self.0.lock();
            let now = self.0.now();
            if let Some(left) = state.budget.paused(now)
                && self.0.base + now + left >= deadline
            {
                return Err(NoTurn::Paused(left));
            }
            let ticket = state.next;
            state.next += 1;
            state.budget.ask(ticket, who, class);
            state.given.insert(ticket, given);
            self.0.pump(&mut state);
            ticket
        };
        // From here on dropping it gives up waiting, or the place.
        let place = Turn { shared: Arc::clone(&self.0), ticket };
        loop {
            tokio::select! {
                biased;
                // The sender is only dropped after it has sent.
                _ = &mut turn => return Ok(place),
                urgency = interest.changed() => match self::class(urgency) {
                    Some(class) => self.0.lock().budget.change(ticket, class),
                    None => return Err(NoTurn::Abandoned),
                },
            }
        }
    }

    /// Upstream asked to be left alone for so long.
    pub(crate) fn pause(&self, pause: Duration) {
        let until = self.0.now() + pause;
        self.0.lock().budget.pause(until);
    }

    fn is_at_rest(&self) -> bool {
        let now = self.0.now();
        self.0.lock().budget.is_at_rest(now)
    }
}

const fn class(urgency: Urgency) -> Option<Class> {
    match urgency {
        Urgency::Urgent => Some(Class::Urgent),
        Urgency::Early => Some(Class::Early),
        Urgency::Nobody => None,
    }
}

impl Shared {
    fn now(&self) -> Duration {
        self.base.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets begin who may; sees to it that the next one does when it is time.
    fn pump(self: &Arc<Self>, state: &mut State) {
        while let Some(ticket) = state.budget.grant(self.now()) {
            if let Some(given) = state.given.remove(&ticket) {
                // Whoever has left gives the place back himself.
                let _ = given.send(());
            }
        }
        if state.budget.wake().is_some()
            && !state.pumping
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            state.pumping = true;
            runtime.spawn(Arc::clone(self).keep_pumping());
        }
    }

    async fn keep_pumping(self: Arc<Self>) {
        loop {
            let at = {
                let mut state = self.lock();
                self.pump(&mut state);
                let Some(at) = state.budget.wake() else {
                    state.pumping = false;
                    return;
                };
                self.base + at
            };
            tokio::time::sleep_until(at).await;
        }
    }
}

/// A turn, or the waiting for one.
#[derive(Debug)]
pub(crate) struct Turn {
    shared: Arc<Shared>,
    ticket: Ticket,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.given.remove(&self.ticket);
        state.budget.leave(self.ticket);
        self.shared.pump(&mut state);
    }
}

/// What the node may ask of its own IMDS for tokens, for all who ask: the managed identities of pods and exempted pods
/// ([`Passthrough::within`](crate::metadata::Passthrough::within)).
#[derive(Clone, Debug)]
pub struct ImdsBudget(Limit);

impl ImdsBudget {
    pub(super) const fn of(limit: Limit) -> Self {
        Self(limit)
    }

    /// The turn of a pod's own request, which ends when the result is dropped; how long to stay away when there is none in
    /// time.
    pub(crate) async fn turn(&self, namespace: &str, pod: &str, wait: Duration) -> Result<Turn, Duration> {
        let who = Who {
            namespace: crate::digest::first64(namespace.as_bytes()),
            identity: crate::digest::first64(pod.as_bytes()),
        };
        let mut interest = Ask::constant(Freshness::Any, Urgency::Urgent).interest;
        let until = Instant::now() + wait;
        match tokio::time::timeout_at(until, self.0.turn(who, &mut interest, until)).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(NoTurn::Paused(left))) => Err(left),
            Ok(Err(NoTurn::Abandoned)) | Err(_) => Err(Duration::from_secs(2)),
        }
    }

    /// IMDS asked to be left alone for so long.
    pub(crate) fn pause(&self, pause: Duration) {
        self.0.pause(pause);
    }
}

/// A limit for each tenant: Entra throttles each by itself.
#[derive(Debug)]
pub(crate) struct Tenants {
    rates: Rates,
    limits: Mutex<HashMap<u64, Limit>>,
    /// For those beyond the most that are kept.
    others: Limit,
}

impl Tenants {
    pub(crate) fn new(rates: Rates) -> Self {
        Self { rates, limits: Mutex::default(), others: Limit::new(rates) }
    }

    /// The limit of a tenant, by a hash of what names it.
    pub(crate) fn of(&self, tenant: u64) -> Limit {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if !limits.contains_key(&tenant) && limits.len() >= TENANTS {
            limits.retain(|_, limit| !limit.is_at_rest());
            if limits.len() >= TENANTS {
                return self.others.clone();
            }
        }
        limits.entry(tenant).or_insert_with(|| Limit::new(self.rates)).clone()
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
#[path = "limit_tests.rs"]
mod tests;
