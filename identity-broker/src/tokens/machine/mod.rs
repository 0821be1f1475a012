//! The token manager as a state machine without I/O: `(state, now, input) → effects`. No clock, no chance but the seed's,
//! no locks; [`manager`](super::manager) drives it.
//!
//! For each key there is a token or none, a request upstream under way or none, those who wait for it, and the trouble that
//! upstream gave lately or none:
//!
//! | state | a request is answered | a timer |
//! |---|---|---|
//! | fresh: above the floor | with the token, from what is published | refreshes ahead, if the token is in use |
//! | below the floor, upstream well | by a request upstream; with the token if that takes long or fails | – |
//! | failing, token valid | with the token | asks again after the back-off, if the token is in use |
//! | failing, no token | with the failure, until the back-off is over | forgets the failure after a while |
//! | none, or expired | by a request upstream | – |

mod entry;
mod history;
mod room;
pub(super) mod schedule;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use identity_core::lookup::Identity;
use jiff::Timestamp;

pub(super) use self::entry::with_wait;
use self::{entry::Entry, history::History, schedule::Chance};
use super::{
    Freshness, ManagerConfig, Notice, Token, TokenError, Urgency,
    key::{Key, Mark},
};

/// The present, by both clocks: what upstream says about tokens is by the wall clock, which may be set; waiting is by one
/// that only goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) wall: Timestamp,
    /// Since the machine began.
    pub(super) mono: Duration,
}

impl Now {
    pub(super) fn second(&self) -> i64 {
        self.wall.as_second()
    }

    /// When, by the clock that only goes on, the wall clock will show this second.
    fn when(&self, second: i64) -> Duration {
        let left = second.saturating_mul(1000).saturating_sub(self.wall.as_millisecond());
        self.mono + Duration::from_millis(u64::try_from(left).unwrap_or(0))
    }
}

/// Somebody who waits for an answer.
pub(super) type Waiter = u64;

/// What happens.
#[derive(Debug)]
pub(super) enum Input {
    /// Somebody wants a token, and leaves at `deadline`.
    Request { key: Key, waiter: Waiter, pod: Option<u64>, deadline: Duration, freshness: Freshness },
    /// Somebody has left.
    Cancelled { waiter: Waiter },
    /// A request upstream came to an end; `None` says that it was given up before it began, because nobody wanted it.
    Fetched { key: Key, result: Option<Result<Arc<Token>, TokenError>> },
    /// The time of the last [`Effect::SetTimer`] has come; or any other time.
    Timer,
    /// The credential of an identity (by its group) has another version now; with a source, only as the identity is or was
    /// with that.
    CredentialChanged { group: u64, source: Option<u64>, version: u64 },
    /// A pod of this node has got an identity (of this group).
    Assigned { group: u64, identity: Arc<Identity> },
    /// An identity is gone.
    IdentityGone { group: u64 },
    /// A pod is gone.
    PodGone { pod: u64 },
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Effect {
    /// Ask upstream.
    Fetch { key: Key, freshness: Freshness, urgency: Urgency },
    /// A request upstream matters more or less than it did.
    Urgency { key: Key, urgency: Urgency },
    /// Answer.
    Answer { waiter: Waiter, result: Result<Arc<Token>, TokenError> },
    /// Let readers see this.
    Publish { key: Key, view: View, used: Arc<Mark> },
    /// Let readers see nothing of it any more.
    Evict { key: Key, for_room: bool },
    /// Send [`Input::Timer`] then, and not before.
    SetTimer { at: Option<Duration> },
    /// Tell people.
    Notice(Notice),
}

/// What readers see of a key.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// The token, and the second (of the wall clock) from which on it is not answered without asking upstream.
    pub(super) token: Option<(Arc<Token>, i64)>,
    /// What went wrong, and until when it is not tried again.
    pub(super) failed: Option<(TokenError, Duration)>,
}

/// All keys.
#[derive(Debug)]
pub(super) struct Machine {
    config: ManagerConfig,
    chance: Chance,
    entries: HashMap<u64, Entry>,
    ids: HashMap<Key, u64>,
    waiters: HashMap<Waiter, u64>,
    wakes: BTreeSet<(Duration, u64)>,
    /// Versions of credentials by source, where known.
    versions: HashMap<u64, u64>,
    history: History,
    next: u64,
    timer: Option<Duration>,
    /// How far the wall clock is ahead of the other one, in milliseconds.
    ahead: Option<i64>,
}

impl Machine {
    /// The same seed and the same inputs give the same effects.
    pub(super) fn new(config: ManagerConfig, seed: u64) -> Self {
        Self {
            config,
            chance: Chance::new(seed),
            entries: HashMap::new(),
            ids: HashMap::new(),
            waiters: HashMap::new(),
            wakes: BTreeSet::new(),
            versions: HashMap::new(),
            history: History::default(),
            next: 0,
            timer: None,
            ahead: None,
        }
    }

    /// Takes in what happened and says what is to be done.
    pub(super) fn handle(&mut self, now: Now, input: Input, out: &mut Vec<Effect>) {
        self.watch_wall_clock(now, out);
        match input {
            Input::Request { key, waiter, pod, deadline, freshness } => {
                self.request(now, key, pod, entry::Waiting { waiter, deadline, freshness }, out);
            }
            Input::Cancelled { waiter } => {
                if let Some(id) = self.waiters.remove(&waiter) {
                    self.change(id, now, out, |entry, _, _, out| entry.left(now, waiter, out));
                }
            }
            Input::Fetched { key, result } => {
                if matches!(result, Some(Ok(_))) {
                    self.history.note(&self.config, &key);
                }
                if let Some(id) = self.ids.get(&key).copied() {
                    let version = self.versions.get(&key.source()).copied();
                    self.change(id, now, out, |entry, config, chance, out| {
                        entry.landed(config, chance, now, result, version, out);
                    });
                }
            }
            Input::Timer => {
                let due: Vec<u64> =
                    self.wakes.iter().take_while(|(at, _)| *at <= now.mono).map(|(_, id)| *id).collect();
                for id in due {
                    self.change(id, now, out, |entry, config, _, out| entry.due(config, now, out));
                }
            }
            Input::CredentialChanged { group, source, version } => {
                for source in source.map_or_else(|| self.sources(group), |source| BTreeSet::from([source])) {
                    if self.versions.insert(source, version) == Some(version) {
                        continue;
                    }
                    self.each(
                        |entry| entry.key.source() == source,
                        now,
                        out,
                        |entry, config, chance, _| {
                            entry.credential_changed(config, chance, now, version);
                        },
                    );
                }
                self.forget_versions();
            }
            Input::Assigned { group, identity } => self.assigned(now, group, &identity, out),
            Input::IdentityGone { group } => {
                for source in self.sources(group) {
                    self.versions.remove(&source);
                }
                self.each(|entry| entry.key.group() == group, now, out, |entry, _, _, out| entry.void(out));
            }
            Input::PodGone { pod } => {
                self.each(|entry| entry.pod == Some(pod), now, out, |entry, _, _, _| entry.pod_gone(now));
            }
        }
        let first = self.wakes.first().map(|(at, _)| *at);
        if first != self.timer {
            self.timer = first;
            out.push(Effect::SetTimer { at: first });
        }
    }

    /// Number of keys.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn request(&mut self, now: Now, key: Key, pod: Option<u64>, wait: entry::Waiting, out: &mut Vec<Effect>) {
        let waiter = wait.waiter;
        let id = self.ids.get(&key).copied().or_else(|| self.admit(now, key, pod, out));
        let Some(id) = id else {
            let error = unavailable("too many different tokens are being got at once; try again");
            out.push(Effect::Answer { waiter, result: Err(error) });
            return;
        };
        self.waiters.insert(waiter, id);
        self.change(id, now, out, |entry, config, _, out| entry.request(config, now, wait, out));
    }

    /// Changes an entry, and does what follows: readers see it, the timer is set, nothing is kept without a reason.
    fn change(
        &mut self,
        id: u64,
        now: Now,
        out: &mut Vec<Effect>,
        change: impl FnOnce(&mut Entry, &ManagerConfig, &mut Chance, &mut Vec<Effect>),
    ) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let before = out.len();
        change(entry, &self.config, &mut self.chance, out);
        for effect in &out[before..] {
            if let Effect::Answer { waiter, .. } = effect {
                self.waiters.remove(waiter);
            }
        }
        if let Some(at) = entry.wake.take() {
            self.wakes.remove(&(at, id));
        }
        let Some(at) = entry.next_wake(&self.config, now) else {
            self.remove(id, false, out);
            return;
        };
        // A timer that is due again at once would never end.
        let at = at.max(now.mono + Duration::from_millis(1));
        entry.wake = Some(at);
        entry.publish(out);
        self.wakes.insert((at, id));
    }

    fn each(
        &mut self,
        which: impl Fn(&Entry) -> bool,
        now: Now,
        out: &mut Vec<Effect>,
        change: impl Fn(&mut Entry, &ManagerConfig, &mut Chance, &mut Vec<Effect>),
    ) {
        let mut ids: Vec<u64> = self.entries.iter().filter(|(_, entry)| which(entry)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        for id in ids {
            self.change(id, now, out, &change);
        }
    }

    /// Times of refreshing are by the other clock: when the wall clock was set, they are made anew.
    fn watch_wall_clock(&mut self, now: Now, out: &mut Vec<Effect>) {
        let mono = i64::try_from(now.mono.as_millis()).unwrap_or(i64::MAX);
        let ahead = now.wall.as_millisecond().saturating_sub(mono);
        let jumped = self.ahead.is_some_and(|before| (ahead - before).abs() > 2000);
        if jumped || self.ahead.is_none() {
            self.ahead = Some(ahead);
        }
        if jumped {
            self.each(|_| true, now, out, |entry, config, chance, _| entry.plan(config, chance, now));
        }
    }
}

fn unavailable(message: &str) -> TokenError {
    TokenError::Unavailable { message: message.to_owned(), retry_after: Duration::from_secs(1) }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
