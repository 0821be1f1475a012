//! The emulators' clock: the system's, or one that a test moves.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};

/// A source of the current time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The system's clock.
    #[expect(clippy::disallowed_methods, reason = "the one place where the emulators read the clock")]
    pub fn system() -> Self {
        Self(Arc::new(Timestamp::now))
    }

    /// The system's clock and a distance that a file holds: seconds after a sign, such as `+3600.5`, which is also what
    /// libfaketime reads. The file is read each time, so that whoever replaces it moves the clock. Without it (or with
    /// something else in it) the clock is the system's.
    #[expect(clippy::disallowed_methods, reason = "the one place where the emulators read the clock")]
    pub fn following(file: &Path) -> Self {
        let file = file.to_owned();
        Self(Arc::new(move || {
            let now = Timestamp::now();
            now.checked_add(distance(&file)).unwrap_or(now)
        }))
    }

    /// A clock that stands still until its [`ManualClock`] is moved.
    pub fn manual(start: Timestamp) -> (Self, ManualClock) {
        let manual = ManualClock(Arc::new(Mutex::new(start)));
        let read = manual.clone();
        (Self(Arc::new(move || read.now())), manual)
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

/// What a clock's file says.
pub(crate) fn distance(file: &Path) -> SignedDuration {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let seconds = text.trim().parse::<f64>().ok().filter(|seconds| seconds.is_finite());
    seconds.and_then(|seconds| SignedDuration::try_from_secs_f64(seconds).ok()).unwrap_or_default()
}

impl fmt::Debug for Clock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Clock({})", self.now())
    }
}

/// Moves a manual [`Clock`].
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Mutex<Timestamp>>);

impl ManualClock {
    /// What it shows.
    pub fn now(&self) -> Timestamp {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets it.
    pub fn set(&self, now: Timestamp) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Moves it forward; it stops at the end of representable time.
    pub fn advance(&self, by: SignedDuration) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now = now.checked_add(by).unwrap_or(Timestamp::MAX);
    }
}
