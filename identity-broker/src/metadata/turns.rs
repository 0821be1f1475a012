//! Who may ask the node's metadata service next.
//!
//! The service admits 5 requests a second from the whole VM (imds-and-clients §1.1), and the VM's own programs ask it too. So
//! all pods together get a little less, one pod a share of that, and whoever is over it is told when to come again. Within the
//! total, whatever is free goes to whoever asks; when nothing is, pods line up, and only those that have not just had their even
//! part: pods that hammer come round no more often than one that asks once a second.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::endpoint::Rate;

/// How much of a rate may be used at once, as time.
fn tolerance(rate: Rate) -> Duration {
    rate.every * (rate.burst.max(1) - 1)
}

/// Limits of what goes to the node's metadata service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// All pods together.
    pub total: Rate,
    /// One pod.
    pub pod: Rate,
    /// The most requests of all pods under way, those that wait for their turn included.
    pub under_way: usize,
    /// The most of one pod.
    pub under_way_per_pod: usize,
    /// The longest wait for a turn; then it is 429.
    pub hold: Duration,
}

impl Shares {
    /// Of the 5 requests a second of a VM: one is left to the node's own programs, and a pod gets half of the rest.
    pub const GENERAL: Self = Self {
        total: Rate { every: Duration::from_millis(250), burst: 4 },
        pod: Rate { every: Duration::from_millis(500), burst: 4 },
        under_way: 1024,
        under_way_per_pod: 4,
        hold: Duration::from_secs(2),
    };

    /// Of the 20 requests for tokens in a second, and 5 at a time, that a VM may make: what the assigned identities of the other
    /// pods leave.
    pub const TOKENS: Self = Self {
        total: Rate { every: Duration::from_millis(200), burst: 5 },
        pod: Rate { every: Duration::from_millis(200), burst: 5 },
        under_way: 1024,
        under_way_per_pod: 4,
        hold: Duration::from_secs(2),
    };
}

/// The request cannot be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// When there is likely to be a turn.
    pub retry_after: Duration,
}

/// The most pods that are remembered; a node has a quarter of it.
const MAX_PODS: usize = 1024;
/// A pod that has not asked for so long does not count among those that share, and is forgotten.
const ACTIVE: Duration = Duration::from_secs(2);
/// How often pods are counted.
const COUNT: Duration = Duration::from_millis(100);
/// The longest pause that the service may impose on all.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// For limits that say nothing of time.
const SOON: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Pod {
    /// When its share will be whole again (theoretical arrival time).
    whole: Instant,
    /// When it last asked.
    asked: Instant,
    /// Its last turn.
    turn: Option<Instant>,
    under_way: usize,
}

/// The state: pure, time is an argument.
#[derive(Debug)]
struct State {
    shares: Shares,
    /// When the total will be whole again.
    whole: Option<Instant>,
    under_way: usize,
    pods: HashMap<Arc<str>, Pod>,
    /// Pods that have asked lately, as counted at `counted`.
    active: u32,
    counted: Option<Instant>,
}

impl State {
    fn new(shares: Shares) -> Self {
        Self { shares, whole: None, under_way: 0, pods: HashMap::new(), active: 0, counted: None }
    }

    fn count(&mut self, now: Instant) {
        if self.counted.is_some_and(|counted| now < counted + COUNT) {
            return;
        }
        self.counted = Some(now);
        self.pods.retain(|_, pod| pod.under_way > 0 || pod.whole > now || pod.asked + ACTIVE > now);
        let active = self.pods.values().filter(|pod| pod.asked + ACTIVE > now).count();
        self.active = u32::try_from(active).unwrap_or(u32::MAX);
    }

    /// Takes a place for a request of a pod.
    fn enter(&mut self, uid: &Arc<str>, now: Instant) -> Result<(), Refused> {
        self.count(now);
        let known = self.pods.len();
        let pod = match self.pods.get_mut(uid) {
            Some(pod) => pod,
            None if known >= MAX_PODS => return Err(Refused { retry_after: SOON }),
            None => {
                self.active += 1;
                let new = Pod { whole: now, asked: now, turn: None, under_way: 0 };
                self.pods.entry(Arc::clone(uid)).or_insert(new)
            }
        };
        pod.asked = now;
        if self.under_way >= self.shares.under_way || pod.under_way >= self.shares.under_way_per_pod {
            return Err(Refused { retry_after: SOON });
        }
        self.under_way += 1;
        pod.under_way += 1;
        Ok(())
    }

    /// When a request that has a place may be made, at `last` at the latest, or when it is worth asking for a turn again. What
    /// is refused costs nothing.
    fn turn(&mut self, uid: &str, now: Instant, last: Instant) -> Result<Instant, Refused> {
        let refused = |retry_after| Err(Refused { retry_after });
        self.count(now);
        let shares = self.shares;
        let Some(pod) = self.pods.get_mut(uid) else { return refused(SOON) };
        pod.asked = now;
        let too_early = pod.whole.saturating_duration_since(now + tolerance(shares.pod));
        if too_early > Duration::ZERO {
            return refused(too_early);
        }
        let whole = self.whole.map_or(now, |whole| whole.max(now));
        let wait = whole.saturating_duration_since(now + tolerance(shares.total));
        // The line is for those who have not had their even part: whoever hammers is not first in it again and again.
        let even = shares.total.every * self.active;
        let next = pod.turn.map_or(Duration::ZERO, |turn| (turn + even).saturating_duration_since(now));
        if self.active > 1 && wait > Duration::ZERO && next > wait {
            return refused(next);
        }
        if !wait.is_zero() && now + wait > last {
            return refused(wait);
        }
        self.whole = Some(whole + shares.total.every);
        pod.whole = pod.whole.max(now) + shares.pod.every;
        pod.turn = Some(now + wait);
        Ok(now + wait)
    }

    fn leave(&mut self, uid: &str) {
        self.under_way -= 1;
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.under_way -= 1;
        }
    }

    /// The service itself has said that it is too much: nobody asks for a while.
    fn pause(&mut self, until: Instant) {
        let whole = until + tolerance(self.shares.total);
        self.whole = Some(self.whole.map_or(whole, |now| now.max(whole)));
    }
}

/// Gives turns. Cheap to clone; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Mutex<State>>);

/// A place under way, until dropped.
#[derive(Debug)]
pub(super) struct Place {
    turns: Turns,
    uid: Arc<str>,
}

impl Turns {
    pub(super) fn new(shares: Shares) -> Self {
        Self(Arc::new(Mutex::new(State::new(shares))))
    }

    /// Takes a place for a request of a pod.
    pub(super) fn enter(&self, uid: &Arc<str>) -> Result<Place, Refused> {
        let now = Instant::now();
        self.with(|state| state.enter(uid, now))?;
        Ok(Place { turns: self.clone(), uid: Arc::clone(uid) })
    }

    /// The service has answered 429.
    pub(super) fn pause(&self, wait: Duration) {
        let until = Instant::now() + wait.min(MAX_PAUSE);
        self.with(|state| state.pause(until));
    }

    #[cfg(test)]
    pub(super) async fn take(&self, uid: &Arc<str>) -> Result<Place, Refused> {
        let place = self.enter(uid)?;
        place.turn().await?;
        Ok(place)
    }

    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.with(|state| state.under_way)
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Place {
    /// Waits for the pod's turn, at most [`Shares::hold`].
    pub(super) async fn turn(&self) -> Result<(), Refused> {
        let deadline = Instant::now() + self.turns.with(|state| state.shares.hold);
        loop {
            let now = Instant::now();
            let at = match self.turns.with(|state| state.turn(&self.uid, now, deadline)) {
                Ok(at) => {
                    tokio::time::sleep_until(at).await;
                    return Ok(());
                }
                Err(Refused { retry_after }) => now + retry_after,
            };
            if at > deadline {
                return Err(Refused { retry_after: at - now });
            }
            tokio::time::sleep_until(at).await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.turns.with(|state| state.leave(&self.uid));
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn uid(name: impl ToString + Copy) -> Arc<str> {
        name.to_string().into()
    }

    /// One that asks at an instant and is done at once.
    fn ask(state: &mut State, pod: &Arc<str>, at: Instant) -> Result<Duration, Duration> {
        let outcome = state.enter(pod, at).and_then(|()| {
            let turn = state.turn(pod, at, at + state.shares.hold);
            state.leave(pod);
            turn
        });
        outcome.map(|when| when - at).map_err(|refused| refused.retry_after)
    }

    #[test]
    fn one_pod_gets_its_share() {
        let (mut state, pod, begin) = (State::new(Shares::GENERAL), uid("a"), Instant::now());
        for _ in 0..4 {
            assert_eq!(ask(&mut state, &pod, begin), Ok(MS(0)));
        }
        assert_eq!(ask(&mut state, &pod, begin), Err(MS(500)));
        assert_eq!(ask(&mut state, &pod, begin + MS(400)), Err(MS(100)));
        assert_eq!(ask(&mut state, &pod, begin + MS(500)), Ok(MS(0)));
        assert_eq!(ask(&mut state, &pod, begin + MS(500)), Err(MS(500)));
        // After a pause all of it.
        for _ in 0..4 {
            assert_eq!(ask(&mut state, &pod, begin + MS(10_000)), Ok(MS(0)));
        }
    }

    #[test]
    fn all_pods_together_wait_in_line_and_no_longer_than_the_bound() {
        let (mut state, begin) = (State::new(Shares::GENERAL), Instant::now());
        for pod in 0..12_u64 {
            let wait = MS(pod.saturating_sub(3) * 250);
            assert_eq!(ask(&mut state, &uid(pod), begin), Ok(wait), "{pod}");
        }
        assert_eq!(ask(&mut state, &uid("late"), begin), Err(MS(2250)));
        assert_eq!(ask(&mut state, &uid("late"), begin + MS(250)), Ok(MS(2000)));
    }

    #[test]
    fn one_that_hammers_starves_nobody() {
        let (mut state, begin) = (State::new(Shares::GENERAL), Instant::now());
        let hammers: Vec<Arc<str>> = (0..20).map(|n| uid(format!("hammer-{n}").as_str())).collect();
        let (polite, mut served) = (uid("polite"), 0);
        for millisecond in 0..60_000_u64 {
            let now = begin + MS(millisecond);
            for hammer in hammers.iter().cycle().skip(usize::try_from(millisecond).unwrap() % 20).take(20) {
                let _ = ask(&mut state, hammer, now);
            }
            if millisecond % 1000 == 0 {
                // Once a second, and after a refusal when it is told.
                served += usize::from(ask(&mut state, &polite, now).is_ok());
            }
        }
        // 21 pods share 240 turns: an even part is 11.
        assert!((9..=12).contains(&served), "{served}");
    }

    #[test]
    fn what_is_free_goes_to_whoever_asks() {
        let (mut state, begin) = (State::new(Shares::GENERAL), Instant::now());
        let greedy = uid("greedy");
        let (mut greedy_served, mut polite_served) = (0, 0);
        for tick in 0..600_u64 {
            let now = begin + MS(tick * 100);
            greedy_served += usize::from(ask(&mut state, &greedy, now).is_ok());
            if tick % 20 < 3 {
                polite_served += usize::from(ask(&mut state, &uid(tick % 20), now).is_ok());
            }
        }
        // Three that ask every two seconds get all they ask for; what they leave, up to a pod's share, the fourth.
        assert_eq!(polite_served, 90);
        assert!((118..=124).contains(&greedy_served), "{greedy_served}");
    }

    #[test]
    fn requests_under_way_are_bounded() {
        let shares = Shares { under_way: 3, under_way_per_pod: 2, ..Shares::GENERAL };
        let (mut state, now) = (State::new(shares), Instant::now());
        let (one, other) = (uid("a"), uid("b"));
        assert!(state.enter(&one, now).is_ok() && state.enter(&one, now).is_ok());
        assert_eq!(state.enter(&one, now), Err(Refused { retry_after: SOON }));
        assert!(state.enter(&other, now).is_ok());
        assert_eq!(state.enter(&uid("c"), now), Err(Refused { retry_after: SOON }));
        state.leave(&one);
        assert!(state.enter(&uid("c"), now).is_ok());
    }

    #[test]
    fn the_service_may_ask_for_a_pause() {
        let (mut state, begin) = (State::new(Shares::GENERAL), Instant::now());
        state.pause(begin + MS(1000));
        assert_eq!(ask(&mut state, &uid("a"), begin), Ok(MS(1000)));
        assert_eq!(ask(&mut state, &uid("b"), begin), Ok(MS(1250)));
        state.pause(begin + MS(5000));
        assert_eq!(ask(&mut state, &uid("c"), begin), Err(MS(5000)));
        assert_eq!(ask(&mut state, &uid("c"), begin + MS(5000)), Ok(MS(0)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_waited_for_and_given_back() {
        let turns = Turns::new(Shares::GENERAL);
        let begin = Instant::now();
        let mut places = Vec::new();
        for pod in 0..6 {
            places.push(turns.take(&uid(pod)).await.unwrap());
        }
        assert_eq!(begin.elapsed(), MS(500));
        assert_eq!(turns.under_way(), 6);
        drop(places);
        assert_eq!(
            turns.with(|state| (state.under_way, state.pods.values().map(|pod| pod.under_way).sum::<usize>())),
            (0, 0)
        );
        turns.pause(Duration::from_hours(1));
        assert_eq!(turns.take(&uid("x")).await.unwrap_err().retry_after, MAX_PAUSE);
        assert_eq!(turns.under_way(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_after_the_other_is_slowed_down_and_many_at_once_are_refused() {
        let turns = Turns::new(Shares::GENERAL);
        let (begin, pod) = (Instant::now(), uid("a"));
        for _ in 0..14 {
            drop(turns.take(&pod).await.unwrap());
        }
        // Four at once, then one each half second.
        assert_eq!(begin.elapsed(), MS(5000));
        let many = futures::future::join_all((0..10).map(|_| turns.take(&pod))).await;
        assert_eq!(many.iter().filter(|place| place.is_ok()).count(), 4);
        assert_eq!(begin.elapsed(), MS(7000));
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_hammer_with_all_they_have_share_with_one_that_does_not() {
        let turns = Turns::new(Shares::GENERAL);
        let stop = Instant::now() + Duration::from_mins(1);
        let hammer = async |pod: Arc<str>| {
            let mut served = 0;
            while Instant::now() < stop {
                match turns.take(&pod).await {
                    Ok(_) => served += 1,
                    Err(_) => tokio::time::sleep(MS(10)).await,
                }
            }
            served
        };
        let hammers = (0..80).map(|n| hammer(uid(n / 8)));
        let polite = async {
            let (mut served, mut asked) = (0, 0);
            while Instant::now() < stop {
                served += usize::from(turns.take(&uid("polite")).await.is_ok());
                asked += 1;
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
            (served, asked)
        };
        let (hammered, (served, asked)) = tokio::join!(futures::future::join_all(hammers), polite);
        // Eleven pods share four a second: an even part is one in 2.75 s, and this one asks for less.
        // It may find the line full when all begin at once.
        assert!(served + 1 >= asked, "{served} of {asked}");
        let total = hammered.iter().sum::<usize>() + served;
        assert!((235..=252).contains(&total), "{total}");
    }

    proptest! {
        /// Whoever asks whenever: no second has more than the total's rate and burst allow, none of a pod's more than its
        /// share, and the table stays small.
        #[test]
        fn limits_hold(asked in vec((0_u64..400, 0_u8..200, any::<bool>()), 1..400)) {
            let (mut state, mut now, begin) = (State::new(Shares::GENERAL), Instant::now(), Instant::now());
            let mut turns: Vec<(Instant, u8)> = Vec::new();
            let mut under_way: Vec<Arc<str>> = Vec::new();
            for (pause, pod, ends) in asked {
                now += MS(pause);
                if state.enter(&uid(pod), now).is_ok() {
                    under_way.push(uid(pod));
                    match state.turn(&uid(pod), now, now + Shares::GENERAL.hold) {
                        Ok(at) => {
                            prop_assert!(at >= now && at <= now + Shares::GENERAL.hold);
                            turns.push((at, pod));
                        }
                        Err(Refused { retry_after }) => prop_assert!(retry_after > Duration::ZERO),
                    }
                }
                if ends && !under_way.is_empty() {
                    state.leave(&under_way.remove(0));
                }
                prop_assert_eq!(state.under_way, under_way.len());
            }
            for uid in under_way {
                state.leave(&uid);
            }
            state.count(now + Duration::from_secs(30));
            prop_assert!(state.pods.is_empty());
            for (index, (at, _)) in turns.iter().enumerate() {
                let within = turns.iter().filter(|(other, _)| other >= at && *other < *at + Duration::from_secs(1)).count();
                prop_assert!(within <= 8, "{} within a second, turn {} at {:?}", within, index, *at - begin);
            }
        }
    }
}
