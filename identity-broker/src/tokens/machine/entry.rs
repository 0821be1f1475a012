//! One key: its token, its request upstream, its waiters, its trouble.

use std::{sync::Arc, time::Duration};

use super::{
    Effect, Notice, Now, View, Waiter,
    schedule::{self, Chance, seconds},
    unavailable,
};
use crate::tokens::{
    Freshness, ManagerConfig, Token, TokenError, Urgency,
    key::{Key, Mark},
};

/// Longer than anything takes.
const FAR: Duration = Duration::from_hours(24);
/// How soon a token that nobody used is looked at again.
const LOOK_AGAIN: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) used: Arc<Mark>,
    /// The pod that was the first to ask.
    pub(super) pod: Option<u64>,
    pub(super) wake: Option<Duration>,
    token: Option<Held>,
    flight: Option<Flight>,
    waiting: Vec<Waiting>,
    trouble: Option<Trouble>,
    refresh_at: Option<Duration>,
    /// Uses before this second do not count.
    counts_from: i64,
    shown: Option<Shown>,
}

#[derive(Debug)]
struct Held {
    token: Arc<Token>,
    /// Seconds of life when it was got.
    life: i64,
    /// The second in which it was got.
    got: i64,
    /// From this second on it is not answered without asking.
    until: i64,
    /// The same because its credential is not the one of today.
    superseded: Option<i64>,
}

#[derive(Debug)]
struct Flight {
    freshness: Freshness,
    urgency: Urgency,
    /// What it brings is not wanted any more.
    void: bool,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) waiter: Waiter,
    pub(super) deadline: Duration,
    pub(super) freshness: Freshness,
}

#[derive(Debug)]
struct Trouble {
    error: TokenError,
    failures: u32,
    /// How many of them were for good.
    refusals: u32,
    until: Duration,
    said: bool,
}

/// What readers were shown last.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    token: Option<(usize, i64)>,
    failed: Option<Duration>,
}

// === impl Held ===

impl Held {
    fn ends(&self) -> i64 {
        self.token.expires_on().as_second()
    }

    /// `until` while upstream is well.
    fn well_until(&self, config: &ManagerConfig) -> i64 {
        let above_floor = self.ends() - schedule::floor(config, self.life);
        self.superseded.map_or(above_floor, |superseded| superseded.min(above_floor))
    }
}

// === impl Entry ===

impl Entry {
    pub(super) fn new(key: Key, pod: Option<u64>, now: Now) -> Self {
        let used = Arc::new(Mark::default());
        used.touch(now.second());
        Self {
            key,
            used,
            pod,
            wake: None,
            token: None,
            flight: None,
            waiting: Vec::new(),
            trouble: None,
            refresh_at: None,
            counts_from: i64::MIN,
            shown: None,
        }
    }

    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Nobody waits for it, nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.flight.is_none()
    }

    /// The token, if it can be answered without asking.
    fn fresh(&self, now: Now) -> Option<&Arc<Token>> {
        self.token.as_ref().filter(|held| now.second() < held.until).map(|held| &held.token)
    }

    /// The token, if it has any life left: better than none.
    fn usable(&self, now: Now) -> Option<&Arc<Token>> {
        self.token.as_ref().filter(|held| now.second() < held.ends()).map(|held| &held.token)
    }

    /// What went wrong, while it is not tried again, with what is left of that time.
    fn failed(&self, now: Now) -> Option<TokenError> {
        let trouble = self.trouble.as_ref()?;
        let left = trouble.until.checked_sub(now.mono).filter(|left| !left.is_zero())?;
        Some(with_wait(&trouble.error, left))
    }

    pub(super) fn request(&mut self, config: &ManagerConfig, now: Now, mut wait: Waiting, out: &mut Vec<Effect>) {
        self.used.touch(now.second());
        let waiter = wait.waiter;
        let any = wait.freshness == Freshness::Any;
        if any && let Some(token) = self.fresh(now) {
            out.push(Effect::Answer { waiter, result: Ok(Arc::clone(token)) });
            return;
        }
        if self.flight.is_none()
            && let Some(error) = self.failed(now)
        {
            let stale = self.usable(now).filter(|_| any);
            out.push(Effect::Answer { waiter, result: stale.cloned().ok_or(error) });
            return;
        }
        if any && self.usable(now).is_some() {
            wait.deadline = wait.deadline.min(now.mono + config.patience);
        }
        let freshness = wait.freshness;
        self.waiting.push(wait);
        match &mut self.flight {
            None => self.launch(freshness, Urgency::Urgent, out),
            Some(_) => self.matters(Urgency::Urgent, out),
        }
    }

    /// It may be asked for soon: what is not there is got, after everything that matters more.
    pub(super) fn wanted_soon(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.used.touch(now.second());
        if self.flight.is_none() && self.usable(now).is_none() && self.failed(now).is_none() {
            self.launch(Freshness::Any, Urgency::Early, out);
        }
    }

    /// A waiter has left.
    pub(super) fn left(&mut self, now: Now, waiter: Waiter, out: &mut Vec<Effect>) {
        self.waiting.retain(|waiting| waiting.waiter != waiter);
        self.reconsider(now, out);
    }

    /// How much the request upstream matters when somebody has left.
    fn reconsider(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.waiting.is_empty() {
            if self.fresh(now).is_some() {
                self.matters(Urgency::Early, out);
            } else if self.usable(now).is_none() {
                self.matters(Urgency::Nobody, out);
            }
        }
    }

    fn launch(&mut self, freshness: Freshness, urgency: Urgency, out: &mut Vec<Effect>) {
        self.flight = Some(Flight { freshness, urgency, void: false });
        out.push(Effect::Fetch { key: self.key.clone(), freshness, urgency });
    }

    fn matters(&mut self, urgency: Urgency, out: &mut Vec<Effect>) {
        if let Some(flight) = &mut self.flight
            && flight.urgency != urgency
        {
            flight.urgency = urgency;
            out.push(Effect::Urgency { key: self.key.clone(), urgency });
        }
    }

    /// A request upstream came to an end. `version` is the credential's of today, if known.
    pub(super) fn landed(
        &mut self,
        config: &ManagerConfig,
        chance: &mut Chance,
        now: Now,
        result: Option<Result<Arc<Token>, TokenError>>,
        version: Option<u64>,
        out: &mut Vec<Effect>,
    ) {
        let Some(flight) = self.flight.take() else { return };
        // Who asked while it was under way may have a token that was got past every cache, or wait for the next.
        let (mut served, mut others) = (Vec::new(), Vec::new());
        for waiting in self.waiting.drain(..) {
            let takes = waiting.freshness == Freshness::Any || flight.freshness == Freshness::Upstream;
            if takes { served.push(waiting) } else { others.push(waiting) }
        }
        let outcome = match result.filter(|_| !flight.void) {
            None => {
                others.append(&mut served);
                None
            }
            Some(Ok(token)) => Some(self.got(config, chance, now, token, flight.freshness, out)),
            Some(Err(error)) => Some(Err(self.fail(config, chance, now, error, out))),
        };
        if let Some(outcome) = outcome {
            if outcome.is_err() {
                served.append(&mut others);
            }
            for waiting in served {
                let stale = self.usable(now).filter(|_| waiting.freshness == Freshness::Any);
                let result = outcome.clone().or_else(|error| stale.cloned().ok_or(error));
                out.push(Effect::Answer { waiter: waiting.waiter, result });
                self.used.touch(now.second());
            }
        } else if self.token.is_some() && self.refresh_at.is_none() {
            self.refresh_at = Some(now.mono + config.backoff);
        }
        if let Some(version) = version {
            self.supersede(config, chance, now, version);
        }
        self.waiting = others;
        if !self.waiting.is_empty() {
            let all_any = self.waiting.iter().all(|waiting| waiting.freshness == Freshness::Any);
            let freshness = if all_any { Freshness::Any } else { Freshness::Upstream };
            self.launch(freshness, Urgency::Urgent, out);
        }
    }

    fn got(
        &mut self,
        config: &ManagerConfig,
        chance: &mut Chance,
        now: Now,
        token: Arc<Token>,
        freshness: Freshness,
        out: &mut Vec<Effect>,
    ) -> Result<Arc<Token>, TokenError> {
        let life = token.remaining(now.wall);
        if life <= 0 {
            let error = unavailable("the token that upstream gave has ended already; is this node's clock right?");
            return Err(self.fail(config, chance, now, error, out));
        }
        if self.trouble.take().is_some_and(|trouble| trouble.said) {
            let identity = self.key.identity().object.clone();
            out.push(Effect::Notice(Notice::Restored { identity, resource: self.key.resource().into() }));
        }
        // Upstream's own cache may give one that ends before ours. Then ours is the best there is: as if it had given that.
        let best = self.token.take().filter(|held| {
            freshness == Freshness::Any
                && held.token.credential() == token.credential()
                && held.token.expires_on() > token.expires_on()
        });
        let (kept, life) = best.map_or((Arc::clone(&token), life), |held| {
            let left = held.token.remaining(now.wall);
            (held.token, left)
        });
        self.token = Some(Held { token: kept, life, got: now.second(), until: 0, superseded: None });
        self.plan(config, chance, now);
        Ok(self.usable(now).cloned().unwrap_or(token))
    }

    /// Plans the next refresh by the token's life, unless there is trouble.
    pub(super) fn plan(&mut self, config: &ManagerConfig, chance: &mut Chance, now: Now) {
        if self.trouble.is_none()
            && let Some(held) = &mut self.token
        {
            held.until = held.well_until(config);
            let left = held.token.remaining(now.wall);
            let asked = held.token.refresh_in().map(|after| after - (held.life - left));
            self.refresh_at = Some(now.mono + schedule::refresh_after(config, left, asked, chance.next()));
        }
    }

    /// Takes in a failure, and answers it as waiters are told it.
    fn fail(
        &mut self,
        config: &ManagerConfig,
        chance: &mut Chance,
        now: Now,
        error: TokenError,
        out: &mut Vec<Effect>,
    ) -> TokenError {
        let asked = match &error {
            TokenError::Unavailable { retry_after, .. } => Some(*retry_after),
            TokenError::Refused(_) | TokenError::Misconfigured { .. } => None,
        };
        let before = self.trouble.take();
        let (failures, refusals, mut said) =
            before.map_or((0, 0, false), |trouble| (trouble.failures, trouble.refusals, trouble.said));
        let failures = failures.saturating_add(1);
        let refusals = refusals.saturating_add(u32::from(asked.is_none()));
        let pause = schedule::backoff(config, failures, asked.unwrap_or_default(), chance.next());
        let until = now.mono + pause;
        if refusals >= 2 && asked.is_none() {
            // Once may be a mistake of upstream's, or a credential that has yet to spread.
            self.token = None;
            if !said {
                let identity = self.key.identity().object.clone();
                let resource = self.key.resource().into();
                out.push(Effect::Notice(Notice::Refused { identity, resource, error: error.clone() }));
                said = true;
            }
        }
        if let Some(held) = &mut self.token {
            held.until = held.ends();
        }
        self.refresh_at = self.token.is_some().then_some(until);
        let told = with_wait(&error, pause);
        self.trouble = Some(Trouble { error, failures, refusals, until, said });
        told
    }

    /// Some time that was waited for has come.
    pub(super) fn due(&mut self, config: &ManagerConfig, now: Now, out: &mut Vec<Effect>) {
        let over = |waiting: &Waiting| waiting.deadline <= now.mono;
        if self.waiting.iter().any(over) {
            let usable = self.usable(now).cloned();
            for waiting in self.waiting.extract_if(.., |waiting| over(waiting)) {
                let stale = usable.clone().filter(|_| waiting.freshness == Freshness::Any);
                let result = stale.ok_or_else(|| unavailable("The token was not obtained in time; try again"));
                out.push(Effect::Answer { waiter: waiting.waiter, result });
            }
            self.reconsider(now, out);
        }
        if self.usable(now).is_none() {
            self.token = None;
            self.refresh_at = None;
        }
        let in_use = self.is_in_use(config, now);
        let fresh = self.fresh(now).is_some();
        if self.flight.is_some() {
            // Early no longer: without it the next request has to wait.
            if !fresh && in_use && self.token.is_some() {
                self.matters(Urgency::Urgent, out);
            }
        } else if self.refresh_at.is_some_and(|at| at <= now.mono) {
            self.refresh_at = None;
            if in_use {
                self.launch(Freshness::Any, if fresh { Urgency::Early } else { Urgency::Urgent }, out);
            } else if let Some(held) = &mut self.token {
                // Whoever asks for it then has to wait for a better one.
                held.until = held.well_until(config);
                let left = Duration::from_secs(held.token.remaining(now.wall).max(0).unsigned_abs());
                if now.second() < held.until {
                    self.refresh_at = Some(now.mono + LOOK_AGAIN.max(left / 16));
                }
            }
        }
    }

    fn is_in_use(&self, config: &ManagerConfig, now: Now) -> bool {
        let used = self.used.second();
        let got = self.token.as_ref().map_or(i64::MAX, |held| held.got);
        used >= self.counts_from && (used >= got || now.second() - used <= seconds(config.idle))
    }

    pub(super) fn credential_changed(&mut self, config: &ManagerConfig, chance: &mut Chance, now: Now, version: u64) {
        // The old one was refused, the new one may not be.
        if self.trouble.as_ref().is_some_and(|trouble| trouble.refusals > 0) {
            self.trouble = None;
            self.plan(config, chance, now);
        }
        self.supersede(config, chance, now, version);
    }

    fn supersede(&mut self, config: &ManagerConfig, chance: &mut Chance, now: Now, version: u64) {
        if let Some(held) = &mut self.token
            && held.superseded.is_none()
            && held.token.credential() != version
        {
            held.superseded = Some(now.second() + seconds(config.superseded));
            if self.trouble.is_none() {
                held.until = held.well_until(config);
                let soon = now.mono + config.backoff + (config.superseded / 4).mul_f64(chance.next());
                self.refresh_at = Some(self.refresh_at.map_or(soon, |at| at.min(soon)));
            }
        }
    }

    /// The identity is gone: nothing of it is answered any more.
    pub(super) fn void(&mut self, out: &mut Vec<Effect>) {
        for waiting in self.waiting.drain(..) {
            let result = Err(unavailable("the identity has gone; try again"));
            out.push(Effect::Answer { waiter: waiting.waiter, result });
        }
        self.matters(Urgency::Nobody, out);
        if let Some(flight) = &mut self.flight {
            flight.void = true;
        }
        (self.token, self.trouble, self.refresh_at) = (None, None, None);
    }

    /// What that pod asked for counts no longer; others may still ask for it.
    pub(super) fn pod_gone(&mut self, now: Now) {
        self.pod = None;
        self.counts_from = now.second() + 1;
    }

    /// When there is something to do; `None` if there is nothing to keep.
    pub(super) fn next_wake(&self, config: &ManagerConfig, now: Now) -> Option<Duration> {
        let held = self.token.as_ref();
        let forget = || self.trouble.as_ref().map(|trouble| trouble.until + config.idle);
        let deadlines = self.waiting.iter().map(|waiting| waiting.deadline).min();
        let refresh = self.refresh_at.filter(|_| self.flight.is_none());
        let ends = held.map(|held| now.when(held.ends()));
        let floor =
            held.filter(|held| self.flight.is_some() && now.second() < held.until).map(|held| now.when(held.until));
        let first = [deadlines, refresh, ends, floor].into_iter().flatten().min();
        match first {
            Some(first) => Some(first),
            // What is under way will be heard of.
            None if self.flight.is_some() => Some(now.mono + FAR),
            None => forget().filter(|at| *at > now.mono),
        }
    }

    /// Shows readers what has changed.
    pub(super) fn publish(&mut self, out: &mut Vec<Effect>) {
        let trouble = self.trouble.as_ref().filter(|_| self.flight.is_none());
        let shown = Shown {
            token: self.token.as_ref().map(|held| (Arc::as_ptr(&held.token).addr(), held.until)),
            failed: trouble.map(|trouble| trouble.until),
        };
        if self.shown.as_ref() == Some(&shown) {
            return;
        }
        let view = View {
            token: self.token.as_ref().map(|held| (Arc::clone(&held.token), held.until)),
            failed: trouble.map(|trouble| (trouble.error.clone(), trouble.until)),
        };
        self.shown = Some(shown);
        out.push(Effect::Publish { key: self.key.clone(), view, used: Arc::clone(&self.used) });
    }
}

/// What went wrong, with how long it is not tried again.
pub(in crate::tokens) fn with_wait(error: &TokenError, left: Duration) -> TokenError {
    let mut error = error.clone();
    if let TokenError::Unavailable { retry_after, .. } = &mut error {
        *retry_after = left;
    }
    error
}
