//! A naive model of what the machine should do, and a world around it: upstream, readers, waiters, two clocks.
//!
//! The model keeps for each key the token that should be held and what went wrong since the last success, by the rules in
//! words; every effect and every reading is held against it.

use std::collections::{BTreeMap, BTreeSet};

use identity_core::lookup::{CredentialSource, Identity, ObjectRef};
use identity_crd::IdentityType;

use super::*;
use crate::tokens::{Issued, Refusal, RefusalKind, key::Hashes};

pub(super) const RESOURCES: usize = 3;
const IDENTITIES: usize = 3;
pub(super) const KEYS: usize = IDENTITIES * RESOURCES;

/// Numbers that the model goes by, written out once more.
pub(super) fn config() -> ManagerConfig {
    ManagerConfig { capacity: 5, per_identity: 2, per_pod: 2, ..ManagerConfig::default() }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    Token(i64),
    Down(u64),
    Refused,
}

struct Asking {
    key: usize,
    at: Duration,
    deadline: Duration,
    freshness: Freshness,
}

struct Flying {
    freshness: Freshness,
    urgency: Urgency,
    credential: u64,
}

#[derive(Default)]
struct Model {
    /// The token, its life, when it came (by both clocks).
    token: Option<(Arc<Token>, i64, Now)>,
    /// Failures and refusals since the last success; when the last was, and how long it asked to be left alone.
    failures: u32,
    refusals: u32,
    last: Option<(Duration, u64)>,
    /// The token was got past every cache.
    fresh: bool,
    /// The token has ended once, as far as the wall clock said; it may be gone, should that be set back.
    ended: bool,
}

pub(super) struct World {
    pub(super) machine: Machine,
    pub(super) now: Now,
    pub(super) fetches: Vec<(Duration, usize)>,
    pub(super) answers: Vec<(usize, Duration, bool)>,
    pub(super) notices: Vec<Notice>,
    pub(super) jumped: bool,
    keys: Vec<Key>,
    timer: Option<Duration>,
    asking: BTreeMap<Waiter, Asking>,
    flying: BTreeMap<usize, Flying>,
    void: BTreeSet<usize>,
    shelf: BTreeMap<usize, (View, Arc<Mark>)>,
    model: Vec<Model>,
    /// Version of an identity's credential, and since when it is known.
    versions: BTreeMap<usize, (u64, i64)>,
    /// Which pod was the first to ask.
    owners: BTreeMap<usize, u64>,
    config: ManagerConfig,
    next: Waiter,
}

fn key(n: usize) -> Key {
    let name = format!("i{}", n / RESOURCES);
    let identity = Identity {
        object: ObjectRef {
            namespace: "ns".into(),
            name: name.as_str().into(),
            uid: name.as_str().into(),
            generation: 1,
        },
        kind: IdentityType::ServicePrincipal,
        client_id: Some(name.as_str().into()),
        object_id: None,
        resource_id: None,
        tenant_id: None,
        authority: None,
        credential: CredentialSource::None,
        audiences: Box::default(),
    };
    let resource = format!("r{}", n % RESOURCES);
    let hashes = Hashes::of(&foldhash::fast::FixedState::with_seed(0), &identity, &resource);
    Key::new(hashes, &Arc::new(identity), &resource)
}

impl World {
    pub(super) fn new(config: ManagerConfig, seed: u64) -> Self {
        Self {
            machine: Machine::new(config.clone(), seed),
            now: Now { wall: Timestamp::from_second(1_800_000_000).unwrap(), mono: Duration::ZERO },
            fetches: Vec::new(),
            answers: Vec::new(),
            notices: Vec::new(),
            jumped: false,
            keys: (0..KEYS).map(key).collect(),
            timer: None,
            asking: BTreeMap::new(),
            flying: BTreeMap::new(),
            void: BTreeSet::new(),
            shelf: BTreeMap::new(),
            model: (0..KEYS).map(|_| Model::default()).collect(),
            versions: BTreeMap::new(),
            owners: BTreeMap::new(),
            config,
            next: 0,
        }
    }

    fn index(&self, key: &Key) -> usize {
        self.keys.iter().position(|known| known == key).unwrap()
    }

    fn second(&self) -> i64 {
        self.now.wall.as_second()
    }

    // === what happens ===

    /// As a pod does it: what is published, else a request. Answers whether it was at hand.
    pub(super) fn ask(&mut self, key: usize, pod: u64, wait: u64, freshness: Freshness) -> bool {
        if freshness == Freshness::Any && self.read(key) {
            return true;
        }
        let waiter = self.next;
        self.next += 1;
        let deadline = self.now.mono + Duration::from_millis(wait);
        self.asking.insert(waiter, Asking { key, at: self.now.mono, deadline, freshness });
        let input = Input::Request { key: self.keys[key].clone(), waiter, pod: Some(pod), deadline, freshness };
        let known = self.shelf.contains_key(&key);
        self.handle(input);
        if !known && self.shelf.contains_key(&key) {
            self.owners.insert(key, pod);
            let owned = self.owners.values().filter(|owner| **owner == pod).count();
            assert!(owned <= self.config.per_pod, "{owned} of one pod");
        }
        !self.asking.contains_key(&waiter)
    }

    /// As `Manager::ready` does.
    fn read(&mut self, key: usize) -> bool {
        let Some((view, used)) = self.shelf.get(&key) else { return false };
        used.touch(self.now.wall.as_second());
        match &view.token {
            Some((token, until)) if self.now.wall.as_second() < *until => {
                let token = Arc::clone(token);
                self.check_answer(key, &token, None);
                self.answers.push((key, Duration::ZERO, true));
                true
            }
            _ => view.failed.as_ref().is_some_and(|(_, until)| self.now.mono < *until),
        }
    }

    pub(super) fn cancel(&mut self, nth: usize) {
        if let Some(waiter) = self.asking.keys().nth(nth % self.asking.len().max(1)).copied() {
            self.asking.remove(&waiter);
            self.handle(Input::Cancelled { waiter });
        }
    }

    pub(super) fn in_flight(&self) -> Vec<usize> {
        self.flying.keys().copied().collect()
    }

    pub(super) fn waiting(&self) -> usize {
        self.asking.len()
    }

    pub(super) fn urgency(&self, key: usize) -> Option<Urgency> {
        self.flying.get(&key).map(|flying| flying.urgency)
    }

    /// A request upstream ends; a version of the credential that comes with it is told first, as the driver does.
    pub(super) fn land(&mut self, key: usize, outcome: Outcome) {
        let Some(flying) = self.flying.remove(&key) else { return };
        let void = self.void.remove(&key);
        let result = match outcome {
            Outcome::Token(life) => Ok(Arc::new(Token::issued(&Issued {
                access_token: "t",
                resource: "r",
                client_id: None,
                expires_on: Timestamp::from_second(self.second() + life).unwrap(),
                now: self.now.wall,
                credential: flying.credential,
                request_id: None,
            }))),
            Outcome::Down(after) => {
                let retry_after = Duration::from_secs(after);
                Err(TokenError::Unavailable { message: "down".into(), retry_after })
            }
            Outcome::Refused => Err(TokenError::Refused(Refusal {
                error: RefusalKind::InvalidClient,
                description: "no".into(),
                trace_id: None,
            })),
        };
        if !void {
            self.model_landing(key, flying.freshness, outcome, &result);
        }
        let key = self.keys[key].clone();
        self.handle(Input::Fetched { key, result: Some(result) });
    }

    fn model_landing(
        &mut self,
        key: usize,
        freshness: Freshness,
        outcome: Outcome,
        result: &Result<Arc<Token>, TokenError>,
    ) {
        let now = self.now;
        let model = &mut self.model[key];
        match (outcome, result) {
            (Outcome::Token(life), Ok(token)) if life > 0 => {
                let better = model.token.as_ref().is_none_or(|(held, _, _)| {
                    freshness == Freshness::Upstream
                        || held.credential() != token.credential()
                        || held.expires_on() <= token.expires_on()
                });
                // Where ours is better, it is as if upstream had given ours.
                let held = model.token.take().filter(|_| !better);
                let token = held.map_or_else(
                    || Some((Arc::clone(token), life, now)),
                    |(held, ..)| {
                        let left = held.expires_on().as_second() - now.wall.as_second();
                        Some((held, left, now))
                    },
                );
                *model = Model { token, fresh: freshness == Freshness::Upstream, ..Model::default() };
            }
            (Outcome::Refused, _) => {
                model.failures += 1;
                model.refusals += 1;
                model.last = Some((now.mono, 0));
                if model.refusals >= 2 {
                    model.token = None;
                }
            }
            (Outcome::Down(after), _) => {
                model.failures += 1;
                model.last = Some((now.mono, after));
            }
            // A token that has ended already.
            _ => {
                model.failures += 1;
                model.last = Some((now.mono, 1));
            }
        }
    }

    /// A request upstream is given up before it begins, as only those may be that nobody wants.
    pub(super) fn give_up(&mut self, key: usize) {
        if self.urgency(key) == Some(Urgency::Nobody) {
            self.flying.remove(&key);
            self.void.remove(&key);
            let key = self.keys[key].clone();
            self.handle(Input::Fetched { key, result: None });
        }
    }

    pub(super) fn advance(&mut self, millis: u64) {
        let target = self.now.mono + Duration::from_millis(millis);
        let mut rounds = 0;
        while let Some(at) = self.timer.filter(|at| *at <= target) {
            self.step_to(at.max(self.now.mono));
            self.handle(Input::Timer);
            rounds += 1;
            assert!(rounds < 10_000, "the timer does not come to rest");
        }
        self.step_to(target);
    }

    /// Until the key's token has so many seconds left, if it has more.
    pub(super) fn advance_to_end(&mut self, key: usize, left: i64) {
        if let Some((token, ..)) = &self.model[key].token {
            let wait = token.remaining(self.now.wall) - left;
            self.advance(u64::try_from(wait).unwrap_or(0) * 1000);
        }
    }

    fn step_to(&mut self, mono: Duration) {
        self.now.wall += jiff::SignedDuration::try_from(mono.saturating_sub(self.now.mono)).unwrap();
        self.now.mono = mono;
    }

    /// Somebody sets the wall clock.
    pub(super) fn jump(&mut self, seconds: i64) {
        self.jumped = true;
        self.now.wall += jiff::SignedDuration::from_secs(seconds);
        self.handle(Input::Timer);
    }

    pub(super) fn change_credential(&mut self, identity: usize) {
        let version = self.versions.get(&identity).map_or(1, |(version, _)| version + 1);
        self.versions.insert(identity, (version, self.second()));
        for key in identity * RESOURCES..(identity + 1) * RESOURCES {
            let model = &mut self.model[key];
            if model.refusals > 0 {
                (model.failures, model.refusals, model.last) = (0, 0, None);
            }
        }
        self.handle(Input::CredentialChanged { group: key(identity * RESOURCES).group(), source: None, version });
    }

    pub(super) fn identity_gone(&mut self, identity: usize) {
        self.versions.remove(&identity);
        for key in identity * RESOURCES..(identity + 1) * RESOURCES {
            self.model[key] = Model::default();
            if self.flying.contains_key(&key) {
                self.void.insert(key);
            }
        }
        self.handle(Input::IdentityGone { group: key(identity * RESOURCES).group() });
        for key in identity * RESOURCES..(identity + 1) * RESOURCES {
            assert!(self.shelf.get(&key).is_none_or(|(view, _)| view.token.is_none()), "a token of what is gone");
        }
    }

    pub(super) fn pod_gone(&mut self, pod: u64) {
        self.owners.retain(|_, owner| *owner != pod);
        self.handle(Input::PodGone { pod });
    }

    // === what follows ===

    pub(super) fn handle(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.machine.handle(self.now, input, &mut effects);
        for effect in effects {
            self.effect(effect);
        }
        self.check_state();
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Fetch { key, freshness, urgency } => {
                let index = self.index(&key);
                self.check_backoff(index);
                self.fetches.push((self.now.mono, index));
                let credential = self.versions.get(&(index / RESOURCES)).map_or(0, |(version, _)| *version);
                let before = self.flying.insert(index, Flying { freshness, urgency, credential });
                assert!(before.is_none(), "two requests upstream for {key:?}");
            }
            Effect::Urgency { key, urgency } => {
                let index = self.index(&key);
                self.flying.get_mut(&index).expect("under way").urgency = urgency;
            }
            Effect::Answer { waiter, result } => {
                let asking = self.asking.remove(&waiter).expect("answered once, and not after leaving");
                let late = asking.deadline.max(asking.at) + Duration::from_millis(1);
                assert!(self.now.mono <= late, "{:?} is after {:?}", self.now.mono, asking.deadline);
                self.answers.push((asking.key, self.now.mono.saturating_sub(asking.at), result.is_ok()));
                if let Ok(token) = result {
                    self.check_answer(asking.key, &token, Some(&asking));
                }
            }
            Effect::Publish { key, view, used } => {
                let index = self.index(&key);
                self.shelf.insert(index, (view, used));
            }
            Effect::Evict { key, for_room } => {
                let index = self.index(&key);
                let second = self.second();
                let held =
                    self.model[index].token.as_ref().is_some_and(|(token, ..)| token.expires_on().as_second() > second);
                assert!(for_room || !held || self.model[index].ended, "a good token is thrown away");
                assert!(!self.flying.contains_key(&index), "thrown away with a request upstream under way");
                assert!(self.asking.values().all(|asking| asking.key != index), "somebody waits for it");
                self.model[index] = Model::default();
                self.shelf.remove(&index);
                self.owners.remove(&index);
            }
            Effect::SetTimer { at } => self.timer = at,
            Effect::Notice(notice) => self.notices.push(notice),
        }
    }

    /// Nothing is asked before the pause is over.
    fn check_backoff(&self, key: usize) {
        let model = &self.model[key];
        let Some((last, asked)) = model.last else { return };
        let doubled = (1_u64 << (model.failures - 1).min(16)).min(30);
        let pause = Duration::from_millis((doubled * 750).max(asked * 1000));
        assert!(
            self.now.mono >= last + pause,
            "asked {:?} after failure {}",
            self.now.mono.saturating_sub(last),
            model.failures
        );
    }

    /// `waited`: by whom it was waited for; none when it was at hand.
    fn check_answer(&self, key: usize, token: &Token, waited: Option<&Asking>) {
        let left = token.expires_on().as_second() - self.second();
        assert!(left > 0, "a token that has ended");
        let model = &self.model[key];
        let (held, life, got) = model.token.as_ref().expect("there should be none");
        assert!(std::ptr::eq(&raw const **held, token), "another token than the one that should be held");
        // Whoever has waited for a second, or as long as he could, gets what there is.
        let patience =
            waited.is_some_and(|asking| self.now.mono >= asking.deadline.min(asking.at + Duration::from_secs(1)));
        let well = model.failures == 0 && !patience;
        if well && !self.jumped {
            let floor = (life / 4).min(300);
            assert!(left > floor, "{left} s left of {life}, upstream is well");
            if let Some((version, since)) = self.versions.get(&(key / RESOURCES))
                && *version != token.credential()
            {
                let since = (*since).max(got.wall.as_second());
                assert!(self.second() - since <= 60, "a former credential's token for {} s", self.second() - since);
            }
        }
        if let Some(asking) = waited
            && asking.freshness == Freshness::Upstream
        {
            assert!(model.fresh && got.mono >= asking.at, "asked past every cache, answered from one");
        }
    }

    fn check_state(&mut self) {
        let held = self.machine.len();
        assert!(held == self.shelf.len() && held <= self.config.capacity, "{held} keys");
        for identity in 0..IDENTITIES {
            let of_it = self.shelf.keys().filter(|key| **key / RESOURCES == identity).count();
            assert!(of_it <= self.config.per_identity, "{of_it} of one identity");
        }
        for asking in self.asking.values() {
            let urgency = self.urgency(asking.key);
            assert_eq!(urgency, Some(Urgency::Urgent), "somebody waits");
            assert!(!self.void.contains(&asking.key) || self.flying.contains_key(&asking.key));
        }
        let second = self.second();
        let lives = |token: &Token| token.expires_on().as_second() > second;
        for (key, model) in self.model.iter_mut().enumerate() {
            let shown = self.shelf.get(&key).and_then(|(view, _)| view.token.as_ref()).map(|(token, _)| token);
            model.ended |= model.token.as_ref().is_some_and(|(token, ..)| !lives(token));
            if model.ended && shown.is_none() {
                model.token = None;
            }
            let should = model.token.as_ref().map(|(token, ..)| token).filter(|token| lives(token));
            let shown = shown.filter(|token| lives(token));
            assert_eq!(should.map(Arc::as_ptr), shown.map(Arc::as_ptr), "key {key}");
        }
    }
}
