//! What was found last about a box, kept until it changes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;

use super::State;

/// The last state found. Whoever comes first after a transition finds the next one; nobody waits for anybody.
#[derive(Debug, Default)]
pub(super) struct Memo {
    known: ArcSwapOption<Known>,
    found: AtomicU64,
}

#[derive(Debug)]
struct Known {
    from: Timestamp,
    state: State,
}

impl Memo {
    /// The state at `now`, by `find` unless it is known.
    #[inline]
    pub(super) fn at(&self, now: Timestamp, find: impl FnOnce() -> State) -> State {
        if let Some(known) = &*self.known.load()
            && known.from <= now
            && now < known.state.holds_until
        {
            return known.state;
        }
        self.renew(now, find)
    }

    #[cold]
    fn renew(&self, now: Timestamp, find: impl FnOnce() -> State) -> State {
        let state = find();
        self.found.fetch_add(1, Ordering::Relaxed);
        self.known.store(Some(Arc::new(Known { from: now, state })));
        state
    }

    /// How often a state was searched for.
    pub(super) fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }
}
