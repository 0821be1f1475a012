//! Many gates, and which of them change next.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::Arc,
};

use jiff::Timestamp;

use super::{Gate, HighWater, Passage};

/// What has become of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<K> {
    /// Whose.
    pub key: K,
    /// What was known of it; `None` when it is new.
    pub before: Option<Passage>,
    /// What is.
    pub now: Passage,
}

impl<K> Change<K> {
    /// Whether it has opened or closed, or is new and open.
    pub fn is_transition(&self) -> bool {
        self.before.map_or(self.now.is_open(), |before| before.is_open() != self.now.is_open())
    }
}

#[derive(Debug)]
struct Entry {
    gate: Arc<Gate>,
    granted: Option<Timestamp>,
    passage: Passage,
    due: Option<Timestamp>,
}

/// Gates by what they belong to, in the order in which they change. A transition costs work for the gates that it is of,
/// however many there are.
///
/// Never goes back in time: an instant before one that it was given is taken for that one.
#[derive(Debug)]
pub struct Agenda<K> {
    entries: HashMap<K, Entry>,
    due: BTreeSet<(Timestamp, K)>,
    latest: HighWater,
    looked: u64,
}

impl<K> Default for Agenda<K> {
    fn default() -> Self {
        Self { entries: HashMap::new(), due: BTreeSet::new(), latest: HighWater::default(), looked: 0 }
    }
}

impl<K: Clone + Eq + Hash + Ord> Agenda<K> {
    /// Takes in a gate, with the end of its active grant if it has one. Answers what that changes, if anything.
    pub fn put(&mut self, key: K, gate: Arc<Gate>, granted: Option<Timestamp>, now: Timestamp) -> Option<Change<K>> {
        let now = self.latest.pass(now);
        let former = self.take(&key);
        self.looked += 1;
        let passage = gate.now(now, granted);
        self.enter(key.clone(), gate, granted, passage, now);
        let change = Change { key, before: former.map(|entry| entry.passage), now: passage };
        (change.before != Some(passage)).then_some(change)
    }

    /// Forgets a gate.
    pub fn remove(&mut self, key: &K) {
        self.take(key);
    }

    /// What is known of a gate.
    pub fn passage(&self, key: &K) -> Option<Passage> {
        self.entries.get(key).map(|entry| entry.passage)
    }

    /// When the next of them is due, to be told by [`advance`](Self::advance).
    pub fn next(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Those that have changed since, up to `now`.
    pub fn advance(&mut self, now: Timestamp) -> Vec<Change<K>> {
        let now = self.latest.pass(now);
        let mut changes = Vec::new();
        while let Some((_, key)) = self.due.first().filter(|(at, _)| *at <= now).cloned() {
            let Some(Entry { gate, granted, passage: before, .. }) = self.take(&key) else { continue };
            self.looked += 1;
            let passage = gate.now(now, granted);
            self.enter(key.clone(), gate, granted, passage, now);
            if passage != before {
                changes.push(Change { key, before: Some(before), now: passage });
            }
        }
        changes
    }

    /// How many times a gate was looked at since the beginning.
    pub const fn looked(&self) -> u64 {
        self.looked
    }

    fn take(&mut self, key: &K) -> Option<Entry> {
        let (key, entry) = self.entries.remove_entry(key)?;
        if let Some(at) = entry.due {
            self.due.remove(&(at, key));
        }
        Some(entry)
    }

    fn enter(&mut self, key: K, gate: Arc<Gate>, granted: Option<Timestamp>, passage: Passage, now: Timestamp) {
        let mut due = match passage {
            Passage::Open { until: Some(at), .. } | Passage::Closed { opens: Some(at), .. } => Some(at),
            // For ever, or never.
            Passage::Open { until: None, .. } | Passage::Closed { opens: None, .. } => None,
        };
        // A grant that counts for nothing now may count once a window opens, and no longer when it ends.
        if let Some(end) = granted.filter(|end| now < *end) {
            due = Some(due.map_or(end, |due| due.min(end)));
        }
        if let Some(at) = due {
            self.due.insert((at, key.clone()));
        }
        self.entries.insert(key, Entry { gate, granted, passage, due });
    }
}
