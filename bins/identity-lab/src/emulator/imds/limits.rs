//! What one VM may ask for in a second and at a time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};

/// Admits requests within the limits of a category. Refused requests do not count.
#[derive(Clone, Debug)]
pub(super) struct Limiter {
    per_second: Option<u32>,
    concurrent: Option<u32>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// When the requests of the last second came.
    admitted: VecDeque<Timestamp>,
    in_flight: u32,
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Permit(Arc<Mutex<State>>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).in_flight -= 1;
    }
}

impl Limiter {
    pub(super) fn new(per_second: Option<u32>, concurrent: Option<u32>) -> Self {
        Self { per_second, concurrent, state: Arc::default() }
    }

    pub(super) fn enter(&self, now: Timestamp) -> Option<Permit> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.concurrent.is_some_and(|limit| state.in_flight >= limit) {
            return None;
        }
        if let Some(limit) = self.per_second {
            let second = SignedDuration::from_secs(1);
            // Also those of a time that a clock which was set back has before it.
            while state.admitted.front().is_some_and(|&admitted| now.duration_since(admitted).abs() >= second) {
                state.admitted.pop_front();
            }
            if state.admitted.len() >= limit as usize {
                return None;
            }
            state.admitted.push_back(now);
        }
        state.in_flight += 1;
        Some(Permit(Arc::clone(&self.state)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(1_795_000_000_000 + milliseconds).unwrap()
    }

    #[test]
    fn a_second_slides() {
        let limiter = Limiter::new(Some(2), None);
        for (time, admitted) in
            [(0, true), (600, true), (999, false), (1000, true), (1500, false), (1600, true), (-9000, true)]
        {
            assert_eq!(limiter.enter(at(time)).is_some(), admitted, "at {time} ms");
        }
    }

    #[test]
    fn places_are_given_back() {
        let limiter = Limiter::new(None, Some(2));
        let (first, second) = (limiter.enter(at(0)), limiter.enter(at(0)));
        assert!(first.is_some() && second.is_some());
        assert!(limiter.enter(at(5000)).is_none());
        drop(first);
        assert!(limiter.enter(at(5000)).is_some());
    }

    #[test]
    fn without_limits_all_come_in() {
        let limiter = Limiter::new(None, None);
        let permits: Vec<_> = (0..1000).map(|_| limiter.enter(at(0)).unwrap()).collect();
        assert_eq!(permits.len(), 1000);
    }
}
