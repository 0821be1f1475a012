//! The life of one credential as a state machine without I/O: `(state, now, input) → effects`. No clock, no chance but the
//! seed's; [`store`](super::store) drives it. It knows credentials by version only.
//!
//! | the source holds | in use | what happens |
//! |---|---|---|
//! | a first version | nothing | it is used at once: a pod waits |
//! | another version | one that works, or may | the other is tried at Entra after a short while that chance chooses; proven it takes over, refused it does not |
//! | another version | one that Entra refuses, and never took | the other is used at once |
//! | another version | one that Entra refuses now, and took before | the other is tried at once |
//! | nothing usable | any | the one in use stays |
//! | nothing any more, or nothing that may be read | any | none is used |
//! | – cannot be told – | any | the one in use stays |
//!
//! A refusal that may be a matter of time (a new secret reaches all of Entra within minutes) is tried again for
//! [`RotationConfig::propagation`] before it is called one; after that seldom, as long as the source holds it.

mod config;
mod io;
#[cfg(test)]
mod model;
mod notices;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;

pub use self::config::RotationConfig;
pub(super) use self::io::{Effect, Freshness, Input, Now, Outcome, Outlook, Reading, Saying, Version};
use self::notices::Expiry;
use crate::tokens::{Chance, TokenError};

/// After so many readings in a row that brought nothing, people are told.
const UNCLEAR: u32 = 3;

/// A version that is used.
#[derive(Debug)]
struct Current {
    version: Version,
    /// Entra has taken it once.
    proven: bool,
    /// Entra has refused it since.
    refused: bool,
    expiry: Expiry,
}

/// A version that has yet to show that it works.
#[derive(Debug)]
struct Candidate {
    version: Version,
    expires: Option<Timestamp>,
    since: Duration,
    /// When it is tried next.
    at: Duration,
    tries: u32,
    last: Option<Duration>,
    /// People know that it is refused.
    said: bool,
}

/// One credential.
#[derive(Debug)]
pub(super) struct Rotation {
    config: RotationConfig,
    freshness: Freshness,
    chance: Chance,
    current: Option<Current>,
    candidate: Option<Candidate>,
    /// A version that cannot be used, and that people know of.
    wrong: Option<Version>,
    /// People know that the source cannot be read.
    unreadable: bool,
    reading: bool,
    /// The source has changed while it was being read.
    again: bool,
    trying: Option<Version>,
    /// What the last reading brought, if no credential.
    trouble: Option<TokenError>,
    /// When the last reading ended.
    read: Option<Duration>,
    /// Until when what is in use is taken for what the source holds.
    fresh: Duration,
    /// When to read without being asked.
    due: Option<Duration>,
    failures: u32,
    /// Readings on demand that brought nothing new.
    vain: u32,
    wanted: Duration,
    timer: Option<Duration>,
}

impl Rotation {
    /// The same seed and the same inputs give the same effects.
    pub(super) fn new(config: RotationConfig, freshness: Freshness, seed: u64) -> Self {
        Self {
            config,
            freshness,
            chance: Chance::new(seed),
            current: None,
            candidate: None,
            wrong: None,
            unreadable: false,
            reading: false,
            again: false,
            trying: None,
            trouble: None,
            read: None,
            fresh: Duration::ZERO,
            due: None,
            failures: 0,
            vain: 0,
            wanted: Duration::ZERO,
            timer: None,
        }
    }

    /// Takes in what happened and says what is to be done.
    pub(super) fn handle(&mut self, now: Now, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Wanted { refused } => self.wanted(now, refused, out),
            Input::Changed => self.read_now(out),
            Input::Freshness(freshness) => {
                self.freshness = freshness;
                self.fresh = now.mono;
                self.read_now(out);
            }
            Input::Read(reading) => self.was_read(now, reading, out),
            Input::Tried { version, outcome } => self.tried(now, version, outcome, out),
            Input::Worked { version } => {
                if let Some(current) = self.current.as_mut().filter(|current| current.version == version) {
                    (current.proven, current.refused) = (true, false);
                    self.vain = 0;
                }
            }
            Input::Timer => {}
        }
        self.go_on(now, out);
    }

    /// What whoever wants a credential is told, after [`Input::Wanted`] was handled. `refused` as there.
    pub(super) fn outlook(&self, now: Now, refused: Option<Version>) -> Outlook {
        let none = || {
            self.trouble.clone().unwrap_or_else(|| TokenError::Unavailable {
                message: "the credential has yet to be read".to_owned(),
                retry_after: self.config.reread,
            })
        };
        let Some(current) = &self.current else {
            return if self.reading { Outlook::Wait } else { Outlook::None(none()) };
        };
        if refused != Some(current.version) {
            let stale = matches!(self.freshness, Freshness::OnDemand(_)) && now.mono >= self.fresh;
            return if stale && self.reading { Outlook::Wait } else { Outlook::Serve(current.version) };
        }
        let candidate = self.candidate.as_ref();
        let tried = candidate.is_some_and(|candidate| self.trying == Some(candidate.version));
        if self.reading || tried {
            Outlook::Wait
        } else if let Some(trouble) = &self.trouble {
            Outlook::None(trouble.clone())
        } else {
            // The refusal stands.
            Outlook::Serve(current.version)
        }
    }

    /// The version in use.
    pub(super) fn current(&self) -> Option<Version> {
        self.current.as_ref().map(|current| current.version)
    }

    /// The version that has yet to show that it works.
    pub(super) fn candidate(&self) -> Option<Version> {
        self.candidate.as_ref().map(|candidate| candidate.version)
    }

    /// Until when [`Input::Wanted`] need not be told where nothing was refused: by then the source is to be read again.
    pub(super) fn fresh_until(&self) -> Duration {
        let read_by_itself = self.reading || self.due.is_some();
        match self.freshness {
            // The last reading failed, and nobody wanted it for so long that it was not repeated.
            Freshness::Followed if self.trouble.is_some() && !read_by_itself => Duration::ZERO,
            Freshness::Followed => Duration::MAX,
            Freshness::OnDemand(_) => self.fresh,
            Freshness::Polled(_) if read_by_itself => Duration::MAX,
            // Nobody wanted it for a while, so that it was not read.
            Freshness::Polled(every) => self.read.map_or(Duration::ZERO, |read| read + every),
        }
    }

    /// A credential was wanted then, and was at hand.
    pub(super) fn wanted_at(&mut self, at: Duration) {
        self.wanted = self.wanted.max(at);
    }

    fn wanted(&mut self, now: Now, refused: Option<Version>, out: &mut Vec<Effect>) {
        self.wanted = now.mono;
        let Some(current) = &mut self.current else {
            if self.may_reread(now) {
                self.read_now(out);
            }
            return;
        };
        if refused != Some(current.version) {
            if now.mono >= self.fresh_until() && !self.reading {
                self.read_now(out);
            }
            return;
        }
        current.refused = true;
        if self.may_reread(now) {
            self.read_now(out);
        }
        if let Some(candidate) = &mut self.candidate {
            let soonest = candidate.last.map_or(now.mono, |last| last + self.config.retry);
            candidate.at = candidate.at.min(soonest.max(now.mono));
        }
    }

    /// Whether it is time to read because somebody needs it: the first few times at once, then less and less often.
    fn may_reread(&mut self, now: Now) -> bool {
        if self.reading {
            return false;
        }
        let pause = match self.vain {
            0..3 => Duration::ZERO,
            more => doubled(self.config.reread, more - 3, self.config.reread_max),
        };
        let may = self.read.is_none_or(|read| now.mono >= read + pause);
        self.vain = self.vain.saturating_add(u32::from(may));
        may
    }

    fn read_now(&mut self, out: &mut Vec<Effect>) {
        if self.reading {
            self.again = true;
        } else {
            self.reading = true;
            self.due = None;
            out.push(Effect::Read);
        }
    }

    fn was_read(&mut self, now: Now, reading: Reading, out: &mut Vec<Effect>) {
        self.reading = false;
        self.read = Some(now.mono);
        self.failures = if matches!(reading, Reading::Unclear(_)) { self.failures.saturating_add(1) } else { 0 };
        self.trouble = None;
        let age = match self.freshness {
            Freshness::Followed => None,
            Freshness::OnDemand(age) => {
                self.fresh = now.mono + age;
                None
            }
            Freshness::Polled(every) => Some(every),
        };
        self.due = age.map(|every| now.mono + spread(every, &mut self.chance));
        // What passes by itself is given the time.
        let lasts = match &reading {
            Reading::Found { .. } => None,
            Reading::Wrong { error, .. } => Some(error).filter(|_| self.current.is_none()),
            Reading::Gone(error) => Some(error),
            Reading::Unclear(error) => Some(error).filter(|_| self.failures >= UNCLEAR),
        };
        match lasts {
            Some(error) if !self.unreadable => {
                self.unreadable = true;
                out.push(Effect::Say(Saying::Unreadable { message: error.to_string().into() }));
            }
            None if matches!(reading, Reading::Found { .. }) && std::mem::take(&mut self.unreadable) => {
                out.push(Effect::Say(Saying::Readable));
            }
            _ => {}
        }
        match reading {
            Reading::Found { version, expires } => self.found(now, version, expires),
            Reading::Wrong { version, error, until } => {
                self.candidate = None;
                if let Some(until) = until {
                    let then = now.when(until) + Duration::from_secs(1);
                    self.due = Some(self.due.map_or(then, |due| due.min(then)));
                }
                let current = self.current();
                if current.is_none() {
                    self.trouble = Some(error);
                } else if self.wrong != Some(version) && current != Some(version) {
                    self.vain = 0;
                    let message = error.to_string().into();
                    out.push(Effect::Say(Saying::CandidateRefused { version, message }));
                }
                self.wrong = Some(version);
            }
            Reading::Gone(error) => {
                (self.current, self.candidate, self.wrong) = (None, None, None);
                self.trouble = Some(error);
            }
            Reading::Unclear(error) => {
                self.trouble = Some(error);
                self.fresh = now.mono + self.config.pause;
                let asked = match self.trouble {
                    Some(TokenError::Unavailable { retry_after, .. }) => retry_after,
                    _ => Duration::ZERO,
                };
                let most = age.unwrap_or(self.config.reread_max).max(self.config.pause);
                let wait = doubled(self.config.pause, self.failures - 1, most).max(asked);
                if !matches!(self.freshness, Freshness::OnDemand(_)) {
                    self.due = Some(now.mono + spread(wait, &mut self.chance).max(asked));
                }
            }
        }
        if std::mem::take(&mut self.again) {
            self.read_now(out);
        }
    }

    fn found(&mut self, now: Now, version: Version, expires: Option<Timestamp>) {
        self.wrong = None;
        let begin = |version, proven| Current { version, proven, refused: false, expiry: Expiry::new(expires) };
        match &mut self.current {
            Some(current) if current.version == version => {
                current.expiry.set(expires);
                self.candidate = None;
            }
            Some(current) if current.proven || !current.refused => {
                if let Some(candidate) = self.candidate.as_mut().filter(|candidate| candidate.version == version) {
                    candidate.expires = expires;
                    return;
                }
                self.vain = 0;
                let jitter = self.config.jitter.mul_f64(self.chance.next());
                let wait = if current.refused { Duration::ZERO } else { jitter };
                let (since, at) = (now.mono, now.mono + wait);
                self.candidate = Some(Candidate { version, expires, since, at, tries: 0, last: None, said: false });
            }
            _ => {
                (self.current, self.candidate) = (Some(begin(version, false)), None);
                self.vain = 0;
            }
        }
    }

    fn tried(&mut self, now: Now, version: Version, outcome: Outcome, out: &mut Vec<Effect>) {
        self.trying = None;
        // The source may have changed again meanwhile.
        let Some(candidate) = self.candidate.as_mut().filter(|candidate| candidate.version == version) else { return };
        candidate.last = Some(now.mono);
        candidate.tries = candidate.tries.saturating_add(1);
        let config = &self.config;
        let soon = doubled(config.retry, candidate.tries - 1, config.retry_max);
        let wait = match outcome {
            Outcome::Proven => {
                let expiry = Expiry::new(candidate.expires);
                self.current = Some(Current { version, proven: true, refused: false, expiry });
                self.candidate = None;
                self.vain = 0;
                out.push(Effect::Say(Saying::Rotated { version }));
                return;
            }
            Outcome::Unclear => soon,
            Outcome::Refused { spreads: true, .. } if now.mono < candidate.since + config.propagation => soon,
            Outcome::Refused { message, .. } => {
                if !std::mem::replace(&mut candidate.said, true) {
                    out.push(Effect::Say(Saying::CandidateRefused { version, message }));
                }
                config.refused_retry
            }
        };
        candidate.at = now.mono + spread(wait, &mut self.chance);
    }

    /// Does what is due, and says when to look again.
    fn go_on(&mut self, now: Now, out: &mut Vec<Effect>) {
        if let Some(candidate) = &self.candidate
            && self.trying.is_none()
            && candidate.at <= now.mono
        {
            self.trying = Some(candidate.version);
            out.push(Effect::Try { version: candidate.version });
        }
        if !self.reading && self.due.is_some_and(|due| due <= now.mono) {
            self.due = None;
            // What nobody wants is read when somebody does.
            if now.mono < self.wanted + self.config.idle {
                self.read_now(out);
            }
        }
        let mut expiry = None;
        if let Some(current) = &mut self.current {
            if let Some((expires, ended)) = current.expiry.due(now.wall) {
                out.push(Effect::Say(Saying::Expiring { version: current.version, expires, ended }));
            }
            expiry = current.expiry.next(now.wall).map(|at| now.when(at));
        }
        let candidate = self.candidate.as_ref().filter(|_| self.trying.is_none()).map(|candidate| candidate.at);
        let due = self.due.filter(|_| !self.reading);
        let first = [candidate, due, expiry].into_iter().flatten().min();
        // A timer that is due again at once would never end.
        let at = first.map(|at| at.max(now.mono + Duration::from_millis(1)));
        if at != self.timer {
            self.timer = at;
            out.push(Effect::SetTimer { at });
        }
    }
}

fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

/// Up to a quarter less, by chance.
fn spread(wait: Duration, chance: &mut Chance) -> Duration {
    wait.mul_f64(1.0 - chance.next() / 4.0)
}
