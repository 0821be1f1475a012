//! A world around the machine: a source that changes, breaks and comes back, an Entra that takes some versions (some only
//! after a while) and is down at times, pods that ask. Every effect and every answer is held against what must never happen.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

pub(super) const MINUTE: Duration = Duration::from_mins(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Version(Version),
    Wrong(Version),
    Nothing,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    /// The source gets a new version that Entra takes from so many seconds on; `None`: never.
    Put(Option<u64>),
    /// It gets the version before that again.
    PutBack,
    /// It gets something that cannot be used.
    Spoil,
    Delete,
    /// It cannot be read, or can again.
    Source(bool),
    Entra(bool),
    /// Entra takes the version in use no longer.
    Revoke,
    Ask,
    DeliverRead,
    DeliverTry,
    Advance(u64),
}

#[expect(clippy::struct_excessive_bools, reason = "what is up and what is down")]
pub(super) struct World {
    pub(super) machine: Rotation,
    pub(super) now: Now,
    pub(super) said: Vec<Saying>,
    /// Since the source changed.
    said_of_this: Vec<Saying>,
    pub(super) tries: Vec<(Duration, Version)>,
    pub(super) reads: u32,
    pub(super) holds: Holds,
    followed: bool,
    former: Vec<Holds>,
    source_down: bool,
    entra_down: bool,
    /// From when on Entra takes a version, and until when.
    takes: BTreeMap<Version, (Duration, Duration)>,
    reading: Option<(Holds, bool)>,
    trying: Option<Version>,
    timer: Option<Duration>,
    /// Versions that Entra has taken once, since the source last lost everything.
    proven: BTreeSet<Version>,
    /// Those that it has refused when they were in use.
    refused: BTreeSet<Version>,
    /// Tries of the present candidate, what came of the last, and whether somebody had to have it since.
    candidate: Option<(Version, Vec<Duration>)>,
    demanded: bool,
    called_refused: bool,
    called_unreadable: bool,
    next: Version,
}

pub(super) fn error(text: &str) -> TokenError {
    TokenError::Unavailable { message: text.to_owned(), retry_after: Duration::from_secs(1) }
}

impl World {
    pub(super) fn new(freshness: Freshness, seed: u64) -> Self {
        let now = Now { wall: Timestamp::from_second(1_800_000_000).unwrap(), mono: Duration::ZERO };
        Self {
            machine: Rotation::new(RotationConfig::default(), freshness, seed),
            now,
            said: Vec::new(),
            said_of_this: Vec::new(),
            tries: Vec::new(),
            reads: 0,
            holds: Holds::Nothing,
            followed: freshness == Freshness::Followed,
            former: Vec::new(),
            source_down: false,
            entra_down: false,
            takes: BTreeMap::new(),
            reading: None,
            trying: None,
            timer: None,
            proven: BTreeSet::new(),
            refused: BTreeSet::new(),
            candidate: None,
            demanded: false,
            called_refused: false,
            called_unreadable: false,
            next: 1,
        }
    }

    fn takes(&self, version: Version) -> bool {
        self.takes.get(&version).is_some_and(|(from, to)| (*from..*to).contains(&self.now.mono))
    }

    pub(super) fn apply(&mut self, op: Op) {
        match op {
            Op::Put(after) => {
                let version = self.next;
                self.next += 1;
                if let Some(after) = after {
                    self.takes.insert(version, (self.now.mono + Duration::from_secs(after), Duration::MAX));
                }
                self.hold(Holds::Version(version));
            }
            Op::PutBack => {
                let former = self.former.pop().unwrap_or(Holds::Nothing);
                self.hold(former);
                self.former.pop();
            }
            Op::Spoil => {
                self.next += 1;
                self.hold(Holds::Wrong(self.next - 1));
            }
            Op::Delete => self.hold(Holds::Nothing),
            Op::Source(up) => self.source_down = !up,
            Op::Entra(up) => self.entra_down = !up,
            Op::Revoke => {
                if let Some((_, to)) = self.machine.current().and_then(|version| self.takes.get_mut(&version)) {
                    *to = self.now.mono;
                }
            }
            Op::Ask => {
                self.ask();
            }
            Op::DeliverRead => self.deliver_read(),
            Op::DeliverTry => self.deliver_try(),
            Op::Advance(milliseconds) => self.advance(Duration::from_millis(milliseconds)),
        }
    }

    fn hold(&mut self, holds: Holds) {
        self.former.push(std::mem::replace(&mut self.holds, holds));
        self.said_of_this.clear();
        if self.followed {
            self.handle(Input::Changed);
        }
    }

    /// As a request does it. The version whose token it got.
    pub(super) fn ask(&mut self) -> Option<Version> {
        let mut refused = None;
        self.handle(Input::Wanted { refused });
        for _ in 0..20 {
            match self.machine.outlook(self.now, refused) {
                Outlook::Serve(version) => {
                    // Who works is not put aside for who has yet to show it.
                    if !self.proven.is_empty() {
                        assert!(self.proven.contains(&version), "{version} is served, {:?} worked", self.proven);
                    }
                    if self.entra_down {
                        return None;
                    }
                    if self.takes(version) {
                        self.proven.insert(version);
                        self.handle(Input::Worked { version });
                        return Some(version);
                    }
                    self.refused.insert(version);
                    if refused == Some(version) {
                        return None;
                    }
                    refused = Some(version);
                    self.demanded = true;
                    self.handle(Input::Wanted { refused });
                }
                Outlook::Wait => {
                    assert!(self.reading.is_some() || self.trying.is_some(), "waiting for nothing");
                    if self.reading.is_some() { self.deliver_read() } else { self.deliver_try() }
                }
                Outlook::None(_) => return None,
            }
        }
        panic!("no end");
    }

    pub(super) fn deliver_read(&mut self) {
        let Some((held, down)) = self.reading.take() else { return };
        let reading = match held {
            _ if down => Reading::Unclear(error("down")),
            Holds::Version(version) => Reading::Found { version, expires: None },
            Holds::Wrong(version) => Reading::Wrong { version, error: error("wrong"), until: None },
            Holds::Nothing => Reading::Gone(error("gone")),
        };
        let gone = matches!(reading, Reading::Gone(_));
        if gone {
            self.proven.clear();
            self.refused.clear();
        }
        self.handle(Input::Read(reading));
        assert!(!gone || self.machine.current().is_none(), "what is gone is used");
    }

    pub(super) fn deliver_try(&mut self) {
        let Some(version) = self.trying.take() else { return };
        let outcome = if self.entra_down {
            self.called_refused = false;
            Outcome::Unclear
        } else if self.takes(version) {
            if self.machine.candidate() == Some(version) {
                self.proven.insert(version);
            }
            Outcome::Proven
        } else {
            // Versions that Entra will never take are of both kinds.
            let spreads = self.takes.contains_key(&version) || version % 2 == 0;
            Outcome::Refused { message: "refused".into(), spreads }
        };
        self.handle(Input::Tried { version, outcome });
    }

    pub(super) fn advance(&mut self, by: Duration) {
        let until = self.now.mono + by;
        let mut fired = 0;
        while let Some(at) = self.timer.filter(|at| *at <= until) {
            assert!(at >= self.now.mono, "a timer in the past");
            self.pass(at);
            self.timer = None;
            self.handle(Input::Timer);
            fired += 1;
            assert!(fired < 10_000, "no end of timers");
        }
        self.pass(until);
    }

    fn pass(&mut self, to: Duration) {
        self.now.wall = self.now.wall.checked_add(to.saturating_sub(self.now.mono)).unwrap();
        self.now.mono = to;
    }

    #[expect(clippy::needless_pass_by_value, reason = "as the machine's own")]
    fn handle(&mut self, input: Input) {
        let before = self.machine.current();
        let mut effects = Vec::new();
        self.machine.handle(self.now, input.clone(), &mut effects);
        let after = self.machine.current();
        match (before, after) {
            (Some(one), Some(other)) if one != other => {
                let shown = matches!(input, Input::Tried { version, outcome: Outcome::Proven } if version == other);
                let dead = self.refused.contains(&one) && !self.proven.contains(&one);
                assert!(shown || dead, "{one} gives way to {other} because of {input:?}");
            }
            (Some(_), None) => assert!(matches!(input, Input::Read(Reading::Gone(_))), "{input:?} ends a credential"),
            _ => {}
        }
        let candidate = self.machine.candidate();
        if self.candidate.as_ref().map(|(version, _)| *version) != candidate {
            self.candidate = candidate.map(|version| (version, Vec::new()));
            (self.demanded, self.called_refused) = (false, false);
        }
        for effect in effects {
            match effect {
                Effect::Read => {
                    self.reads += 1;
                    assert!(self.reading.replace((self.holds, self.source_down)).is_none(), "two readings at once");
                }
                Effect::Try { version } => self.tries(version),
                Effect::SetTimer { at } => self.timer = at,
                Effect::Say(saying) => {
                    if let Saying::CandidateRefused { version, .. } = &saying {
                        assert_ne!(Some(*version), self.machine.current(), "what is in use is called refused");
                        self.called_refused |=
                            self.candidate.as_ref().is_some_and(|(candidate, _)| candidate == version);
                    }
                    if let Saying::Rotated { version } = &saying {
                        assert!(self.proven.contains(version) && Some(*version) == after, "{version} was not proven");
                    }
                    // A source can be lost and found again, and lost again, without a change: of that each is said in turn.
                    match &saying {
                        Saying::Unreadable { .. } => {
                            assert!(!std::mem::replace(&mut self.called_unreadable, true), "said twice: {saying:?}");
                        }
                        Saying::Readable => {
                            assert!(std::mem::take(&mut self.called_unreadable), "nobody was told it was not readable");
                        }
                        _ => {
                            assert!(!self.said_of_this.contains(&saying), "{saying:?} is said twice");
                            self.said_of_this.push(saying.clone());
                        }
                    }
                    self.said.push(saying);
                }
            }
        }
    }

    fn tries(&mut self, version: Version) {
        assert!(self.trying.replace(version).is_none(), "two tries at once");
        let config = RotationConfig::default();
        let now = self.now.mono;
        self.tries.push((now, version));
        let (candidate, tries) = self.candidate.as_mut().expect("only a candidate is tried");
        assert_eq!(*candidate, version);
        if let Some(last) = tries.last() {
            let least = if self.called_refused && !self.demanded { config.refused_retry } else { config.retry };
            assert!(
                now >= *last + least.mul_f64(0.74),
                "{version} is tried again after {:?}",
                now.saturating_sub(*last)
            );
        }
        self.demanded = false;
        tries.push(now);
    }
}
