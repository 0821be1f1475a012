//! Records in, Events out: counts by series, and which is to be written next. Pure: time is passed in (since some fixed instant,
//! never going back), what is to be done comes out as data.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    time::Duration,
};

use aws_lc_rs::digest::{Context, SHA256};
use foldhash::fast::RandomState;
use jiff::Timestamp;
use serde_json::Value;

use super::{
    Config, Seen, State,
    event::{Fixed, LONGEST_AUDIENCE, cut, patch},
    seen::Object,
    state::Kept,
};
use crate::audit::journal::{Cursor, chain::Hash};

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Keep the state, and say [`saved`](Book::saved). Nothing is written before that: series were closed, and a restart must
    /// not open them again under another name.
    Save,
    /// Write this, and say [`done`](Book::done).
    Write(Write),
    /// Nothing, until then, or until something changes.
    Wait(Option<Duration>),
}

/// One request: an Event is made, or its count changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// For [`Book::done`].
    pub id: u128,
    /// Namespace of the Event.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it is made, from [`body`](Self::body); otherwise that is a JSON merge patch of it.
    pub create: bool,
    /// See there.
    pub body: Value,
    /// The whole Event, for whoever cannot patch.
    pub whole: Value,
    /// How often it happened, as the body says it.
    pub count: u64,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as it should be.
    Done,
    /// It was to be made, and is there already.
    Exists,
    /// It was to be changed, and is not there: it has expired. Or its namespace is gone.
    Missing,
    /// Refused for good: nothing about this one will change that soon.
    Refused,
    /// Not done. Nothing is written for so long.
    Failed(Duration),
    /// No answer: it may have been done, and may yet be. Nothing is written for so long.
    Unknown(Duration),
}

/// How a book fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Series held.
    pub series: u64,
    /// Records that were counted and are in no Event yet.
    pub pending: u64,
    /// Records that are in no Event, because the API server refused them for good.
    pub refused: u64,
    /// Records that were gone before they could be read.
    pub lost: u64,
    /// Series that were closed.
    pub closed: u64,
}

#[derive(Clone, Debug, Default)]
struct Sending {
    /// The count under way.
    under_way: Option<u64>,
    /// The Event is there.
    there: bool,
    /// A write has had no answer.
    unsure: bool,
    /// To be written once more then.
    again: Option<Duration>,
    not_before: Duration,
    /// Refused with this count.
    refused: u64,
}

#[derive(Clone, Debug)]
struct Series {
    kept: Kept,
    sending: Sending,
    /// In which order they were begun.
    begun: u64,
    pod: u128,
}

impl Series {
    const fn settled(&self) -> u64 {
        if self.kept.told > self.sending.refused { self.kept.told } else { self.sending.refused }
    }

    const fn may_close(&self) -> bool {
        let sending = &self.sending;
        sending.under_way.is_none() && !sending.unsure && sending.again.is_none() && self.settled() >= self.kept.count
    }

    /// When it is to be written, if at all.
    fn due(&self) -> Option<Duration> {
        let sending = &self.sending;
        if sending.under_way.is_some() {
            return None;
        }
        if self.kept.count > self.settled() {
            return Some(sending.not_before);
        }
        sending.again
    }
}

/// The series of one node.
#[derive(Clone, Debug)]
pub struct Book {
    config: Config,
    /// Without the series.
    state: State,
    series: HashMap<u128, Series, RandomState>,
    /// How many series with an audience of their own each pod has.
    of_pod: HashMap<u128, u32, RandomState>,
    begun: u64,
    under_way: usize,
    next_at: Duration,
    must_save: bool,
    changed: bool,
    stats: Stats,
}

/// Audience of the series of a pod that has too many.
const OTHERS: &str = "other audiences";

impl Book {
    /// From a state that was kept, or from nothing. One that was kept in the other mode is none.
    pub fn new(config: Config, state: Option<State>) -> Self {
        let mut state =
            state.filter(|state| state.each == config.each).unwrap_or_else(|| State::new(String::new(), config.each));
        let kept = std::mem::take(&mut state.series);
        let mut this = Self {
            config,
            state,
            series: HashMap::default(),
            of_pod: HashMap::default(),
            begun: 0,
            under_way: 0,
            next_at: Duration::ZERO,
            must_save: false,
            changed: false,
            stats: Stats::default(),
        };
        for kept in kept {
            if let Ok(digest) = u128::from_str_radix(&kept.digest, 16) {
                this.begun += 1;
                let pod = pod_of(&kept.fixed);
                *this.of_pod.entry(pod).or_default() += 1;
                let sending = Sending { there: kept.told > 0, ..Sending::default() };
                this.series.insert(digest, Series { kept, sending, begun: this.begun, pod });
            }
        }
        this
    }

    /// Whether each record has an Event of its own.
    pub(super) const fn is_of_each(&self) -> bool {
        self.config.each
    }

    /// How far the journal was read.
    pub const fn cursor(&self) -> Option<&Cursor> {
        self.state.cursor.as_ref()
    }

    /// What is taken from now on is from the journal of this id: counts begin anew, under other names.
    pub fn journal(&mut self, id: &str) {
        if self.state.journal != id {
            id.clone_into(&mut self.state.journal);
            self.changed = true;
        }
    }

    /// Everything up to here was taken; `hash` is that of the record there.
    pub fn read(&mut self, cursor: &Cursor, hash: Option<Hash>) {
        self.state.cursor = Some(cursor.clone());
        self.state.hash = hash;
        self.changed = true;
    }

    /// So many records were gone before they could be read.
    pub const fn gap(&mut self, records: u64) {
        self.stats.lost += records;
    }

    /// Whether another record can be taken. If not: wait until something is written.
    pub fn has_room(&mut self) -> bool {
        if self.series.len() < self.config.most_series {
            return true;
        }
        let mut closable: Vec<_> = self
            .series
            .iter()
            .filter(|(_, series)| series.may_close())
            .map(|(digest, series)| (series.kept.last, series.begun, *digest))
            .collect();
        closable.sort_unstable();
        let most = if self.config.each { closable.len() } else { (self.config.most_series / 8).max(1) };
        closable.truncate(most);
        for (_, _, digest) in &closable {
            self.close(*digest);
        }
        if !closable.is_empty() && !self.config.each {
            self.state.epoch += 1;
            self.must_save = true;
        }
        self.series.len() < self.config.most_series
    }

    fn close(&mut self, digest: u128) {
        let Some(series) = self.series.remove(&digest) else { return };
        self.stats.closed += 1;
        self.stats.refused += series.kept.count.saturating_sub(series.kept.told);
        if let Some(number) = self.of_pod.get_mut(&series.pod) {
            *number -= 1;
            if *number == 0 {
                self.of_pod.remove(&series.pod);
            }
        }
        self.changed = true;
    }

    /// Whether there is a series of this number, which [`take`](Self::take) says.
    pub(super) fn holds(&self, series: u128) -> bool {
        self.series.contains_key(&series)
    }

    /// So many more records of a series, the latest of then.
    pub(super) fn add(&mut self, series: u128, records: u64, last: Timestamp) {
        if let Some(series) = self.series.get_mut(&series) {
            series.kept.count += records;
            series.kept.last = series.kept.last.max(last);
            self.changed = true;
        }
    }

    /// How many series were closed.
    pub(super) const fn closed(&self) -> u64 {
        self.stats.closed
    }

    /// Counts a record; in which series. There must be [room](Self::has_room).
    pub fn take(&mut self, seen: &Seen<'_>) -> u128 {
        self.changed = true;
        let audience: Cow<'_, str> = if seen.audience.len() <= LONGEST_AUDIENCE {
            Cow::Borrowed(&seen.audience)
        } else {
            // The digest tells those apart that begin alike.
            format!("{}… ({:08x})", cut(&seen.audience, LONGEST_AUDIENCE), digest_of(&[&seen.audience]) >> 96).into()
        };
        let seq = if self.config.each { seen.seq.to_string() } else { String::new() };
        let digest = self.digest(seen, &audience, &seq);
        if self.count(digest, seen) {
            return digest;
        }
        let pod = digest_of(&names(seen.pod.as_ref()));
        let of_pod = self.of_pod.get(&pod).copied().unwrap_or_default();
        if self.config.each || of_pod < self.config.most_of_pod {
            self.begin(digest, seen, &audience, pod);
            return digest;
        }
        let digest = self.digest(seen, OTHERS, &seq);
        if !self.count(digest, seen) {
            self.begin(digest, seen, OTHERS, pod);
        }
        digest
    }

    fn digest(&self, seen: &Seen<'_>, audience: &str, seq: &str) -> u128 {
        let [binding_namespace, binding, binding_uid] = names(seen.binding.as_ref());
        let [pod_namespace, pod, pod_uid] = names(seen.pod.as_ref());
        digest_of(&[
            &self.state.journal,
            &self.config.node,
            binding_namespace,
            binding,
            binding_uid,
            pod_namespace,
            pod,
            pod_uid,
            audience,
            seen.event.as_str(),
            &seen.reason,
            seq,
        ])
    }

    fn count(&mut self, digest: u128, seen: &Seen<'_>) -> bool {
        let Some(series) = self.series.get_mut(&digest) else { return false };
        series.kept.count += 1;
        series.kept.last = series.kept.last.max(seen.time);
        true
    }

    fn begin(&mut self, digest: u128, seen: &Seen<'_>, audience: &str, pod: u128) {
        let kept = Kept {
            digest: format!("{digest:032x}"),
            epoch: if self.config.each { 0 } else { self.state.epoch },
            fixed: Fixed::new(seen, audience, &self.config.node, self.config.each),
            count: 1,
            last: seen.time,
            told: 0,
        };
        self.begun += 1;
        *self.of_pod.entry(pod).or_default() += 1;
        self.series.insert(digest, Series { kept, sending: Sending::default(), begun: self.begun, pod });
    }

    /// What is to be done: new series first, then those whose Events are behind the longest.
    pub fn next(&mut self, now: Duration) -> Next {
        if self.must_save {
            return Next::Save;
        }
        if self.under_way >= self.config.at_once {
            return Next::Wait(None);
        }
        let best = self
            .series
            .iter()
            .filter_map(|(digest, series)| {
                let due = series.due()?;
                Some((
                    due.max(self.next_at).max(now),
                    series.kept.told > 0,
                    series.sending.not_before,
                    series.begun,
                    *digest,
                ))
            })
            .min();
        let Some((due, .., digest)) = best else { return Next::Wait(None) };
        if due > now {
            return Next::Wait(Some(due));
        }
        let Some(series) = self.series.get_mut(&digest) else { return Next::Wait(None) };
        self.under_way += 1;
        self.next_at = now + self.config.interval;
        let Kept { fixed, epoch, count, last, .. } = &series.kept;
        series.sending.under_way = Some(*count);
        let name = fixed.name(&self.config.node, digest, *epoch);
        let whole = fixed.object(&name, &self.config.node, *count, *last);
        let create = !series.sending.there;
        let body = if create { whole.clone() } else { patch(*count, *last) };
        let namespace = fixed.namespace().to_owned();
        Next::Write(Write { id: digest, namespace, name, create, body, whole, count: *count })
    }

    /// What became of a write.
    pub fn done(&mut self, id: u128, outcome: Outcome, now: Duration) {
        let each = self.config.each;
        let Some(series) = self.series.get_mut(&id) else { return };
        let Some(sent) = series.sending.under_way.take() else { return };
        self.under_way -= 1;
        self.changed = true;
        let (kept, sending) = (&mut series.kept, &mut series.sending);
        let create = !sending.there;
        match outcome {
            Outcome::Done | Outcome::Exists if each || outcome == Outcome::Done => {
                (kept.told, sending.there, sending.refused) = (kept.told.max(sent), true, 0);
                sending.not_before = now + self.config.refresh;
                // Requests of the process before may come as late.
                let settles = (sending.unsure || now < self.config.settle) && !each;
                sending.again = settles.then_some(now + self.config.settle);
                sending.unsure = false;
                if each {
                    self.close(id);
                }
            }
            Outcome::Done | Outcome::Exists => sending.there = true,
            Outcome::Missing if !create => (sending.there, kept.told, sending.again) = (false, 0, None),
            Outcome::Missing | Outcome::Refused => {
                sending.refused = sent;
                sending.not_before = now + self.config.refused;
                (sending.again, sending.unsure) = (None, false);
                if each {
                    self.close(id);
                }
            }
            Outcome::Failed(wait) => self.next_at = self.next_at.max(now + wait),
            Outcome::Unknown(wait) => {
                sending.unsure = true;
                self.next_at = self.next_at.max(now + wait);
            }
        }
    }

    /// Whether there is something that the state kept last does not say.
    pub const fn is_changed(&self) -> bool {
        self.changed
    }

    /// What is to be kept.
    pub fn state(&self) -> State {
        let mut series: VecDeque<_> = self.series.values().collect();
        series.make_contiguous().sort_unstable_by_key(|series| series.begun);
        let kept = |series: &Series| {
            let mut kept = series.kept.clone();
            if series.sending.unsure || series.sending.again.is_some() {
                // Whoever goes on from here writes it again.
                kept.told = 0;
            }
            kept
        };
        State { series: series.into_iter().map(kept).collect(), ..self.state.clone() }
    }

    /// A state of just now was kept.
    pub const fn saved(&mut self) {
        (self.must_save, self.changed) = (false, false);
    }

    /// How it fares.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats { series: self.series.len() as u64, ..self.stats };
        for series in self.series.values() {
            stats.pending += series.kept.count - series.settled().min(series.kept.count);
            stats.refused += series.sending.refused.saturating_sub(series.kept.told);
        }
        stats
    }
}

fn names<'a>(object: Option<&'a Object<'_>>) -> [&'a str; 3] {
    object.map_or([""; 3], |object| [&object.namespace, &object.name, &object.uid])
}

fn pod_of(fixed: &Fixed) -> u128 {
    digest_of(&fixed.pod.as_ref().map_or([""; 3], |pod| [&*pod.namespace, &*pod.name, &*pod.uid]))
}

/// The first 128 bits of the SHA-256 of the texts, each ended by a zero byte.
fn digest_of(texts: &[&str]) -> u128 {
    let mut context = Context::new(&SHA256);
    for text in texts {
        context.update(text.as_bytes());
        context.update(&[0]);
    }
    let mut digest = [0; 16];
    digest.copy_from_slice(&context.finish().as_ref()[..16]);
    u128::from_be_bytes(digest)
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
