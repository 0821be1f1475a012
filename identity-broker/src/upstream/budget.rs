//! Whose turn it is upstream, without I/O: so many requests at a time, so many a second, what is urgent before what is
//! early, in turn between namespaces and between the identities of one, nothing while upstream asked to be left alone.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

/// One request that waits for its turn, or has it.
pub(super) type Ticket = u64;

/// For whom a request is. Not for a pod: pods with the same identity share its tokens, so that they wait for the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) namespace: u64,
    pub(super) identity: u64,
}

/// What goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Somebody has no token, or one of little life.
    Urgent,
    /// There is a token still.
    Early,
}

/// Numbers of a budget. No second has more than `burst` and `a_second` together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    /// So many at a time.
    pub(super) at_once: usize,
    /// So many at once after a rest.
    pub(super) burst: u32,
    /// So many a second in the long run.
    pub(super) a_second: u32,
}

/// The budget. Times are durations since some beginning.
#[derive(Debug)]
pub(super) struct Budget {
    at_once: usize,
    running: usize,
    every: Duration,
    /// What a full burst lasts.
    ahead: Duration,
    /// Until when what was given out so far is paid off (generic cell rate algorithm).
    paid_off: Duration,
    paused: Duration,
    urgent: Line,
    early: Line,
    waiting: HashMap<Ticket, (Who, Class)>,
}

impl Budget {
    pub(super) fn new(rates: Rates) -> Self {
        let every = Duration::from_secs(1) / rates.a_second.max(1);
        Self {
            at_once: rates.at_once.max(1),
            running: 0,
            every,
            ahead: every * rates.burst.max(1),
            paid_off: Duration::ZERO,
            paused: Duration::ZERO,
            urgent: Line::default(),
            early: Line::default(),
            waiting: HashMap::new(),
        }
    }

    /// Gets in line. A ticket is used once.
    pub(super) fn ask(&mut self, ticket: Ticket, who: Who, class: Class) {
        self.waiting.insert(ticket, (who, class));
        self.line(class).push(who, ticket);
    }

    /// Goes to the other line, at its end.
    pub(super) fn change(&mut self, ticket: Ticket, class: Class) {
        if let Some((who, before)) = self.waiting.get_mut(&ticket)
            && *before != class
        {
            let (who, before) = (*who, std::mem::replace(before, class));
            self.line(before).remove(who, ticket);
            self.line(class).push(who, ticket);
        }
    }

    /// Gives up waiting, or the place.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        match self.waiting.remove(&ticket) {
            Some((who, class)) => self.line(class).remove(who, ticket),
            None => self.running = self.running.saturating_sub(1),
        }
    }

    /// Upstream asked to be left alone until then.
    pub(super) fn pause(&mut self, until: Duration) {
        self.paused = self.paused.max(until);
    }

    /// How long upstream is to be left alone yet.
    pub(super) fn paused(&self, now: Duration) -> Option<Duration> {
        self.paused.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Who may begin now; [`leave`](Self::leave) when done. To be asked until the answer is `None`.
    pub(super) fn grant(&mut self, now: Duration) -> Option<Ticket> {
        if self.running >= self.at_once || self.opens() > now {
            return None;
        }
        let ticket = self.urgent.pop().or_else(|| self.early.pop())?;
        self.waiting.remove(&ticket);
        self.running += 1;
        self.paid_off = self.paid_off.max(now) + self.every;
        Some(ticket)
    }

    /// When it is worth asking [`grant`](Self::grant) again without anything having happened.
    pub(super) fn wake(&self) -> Option<Duration> {
        (!self.waiting.is_empty() && self.running < self.at_once).then(|| self.opens())
    }

    /// Nobody waits, nothing is under way, nothing is to be remembered.
    pub(super) fn is_at_rest(&self, now: Duration) -> bool {
        self.waiting.is_empty() && self.running == 0 && self.paused <= now && self.paid_off <= now
    }

    fn opens(&self) -> Duration {
        (self.paid_off + self.every).saturating_sub(self.ahead).max(self.paused)
    }

    fn line(&mut self, class: Class) -> &mut Line {
        match class {
            Class::Urgent => &mut self.urgent,
            Class::Early => &mut self.early,
        }
    }
}

/// Namespaces in turn, in each its identities in turn, for each first come first served.
#[derive(Debug, Default)]
struct Line(Ring<Ring<VecDeque<Ticket>>>);

/// Parts by name, in the order in which their turn comes. Those with nothing in them are left out.
type Ring<P> = VecDeque<(u64, P)>;

impl Line {
    fn push(&mut self, who: Who, ticket: Ticket) {
        part(part(&mut self.0, who.namespace), who.identity).push_back(ticket);
    }

    fn pop(&mut self) -> Option<Ticket> {
        let (namespace, mut identities) = self.0.pop_front()?;
        let (identity, mut tickets) = identities.pop_front()?;
        let ticket = tickets.pop_front();
        if !tickets.is_empty() {
            identities.push_back((identity, tickets));
        }
        if !identities.is_empty() {
            self.0.push_back((namespace, identities));
        }
        ticket
    }

    fn remove(&mut self, who: Who, ticket: Ticket) {
        let identities = part(&mut self.0, who.namespace);
        part(identities, who.identity).retain(|other| *other != ticket);
        identities.retain(|(_, tickets)| !tickets.is_empty());
        self.0.retain(|(_, identities)| !identities.is_empty());
    }
}

fn part<P: Default>(ring: &mut Ring<P>, name: u64) -> &mut P {
    let at = ring.iter().position(|(other, _)| *other == name).unwrap_or_else(|| {
        ring.push_back((name, P::default()));
        ring.len() - 1
    });
    &mut ring[at].1
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
