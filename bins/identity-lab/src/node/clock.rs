//! The lab's own clock: a file with its distance from the machine's, which libfaketime reads for the two binaries and which the
//! emulators and the lab itself read for what they stamp.
//!
//! Only the wall clock moves. `CLOCK_MONOTONIC` stays the machine's, as it does on a machine whose clock is set: a timer that is
//! to ring in ten minutes rings in ten minutes. Statically linked programs (Go's, so kube-apiserver) keep the machine's time.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use super::{
    Error,
    place::{CLOCK, Place},
};
use crate::{emulator, files};

/// libfaketime for programs with threads.
const LIBRARY: &str = "libfaketimeMT.so.1";

/// The time that a lab shows.
#[derive(Clone, Debug, Default)]
pub struct LabClock(Option<PathBuf>);

impl LabClock {
    /// A clock of its own, which begins at `start` (`now` or an RFC 3339 time).
    ///
    /// # Errors
    /// `start` is no time, or the file cannot be written.
    pub fn start(place: &Place, start: &str) -> Result<Self, Error> {
        let distance = match start {
            "now" => SignedDuration::ZERO,
            time => machine_distance(time).map_err(|message| Error::Clock { message })?,
        };
        set(place, distance)?;
        Ok(Self(Some(place.file(CLOCK))))
    }

    /// The clock whose distance a file holds.
    pub fn of(file: &Path) -> Self {
        Self(Some(file.to_owned()))
    }

    /// How far it is from the machine's.
    pub fn distance(&self) -> SignedDuration {
        self.0.as_deref().map(emulator::distance).unwrap_or_default()
    }

    /// Its file, unless it is the machine's clock.
    pub fn file(&self) -> Option<&Path> {
        self.0.as_deref()
    }

    /// What it shows.
    pub fn now(&self) -> Timestamp {
        let now = machine();
        now.checked_add(self.distance()).unwrap_or(now)
    }

    /// What makes a dynamically linked program follow it.
    ///
    /// # Errors
    /// libfaketime is not installed.
    pub fn environment(&self) -> Result<Vec<(String, String)>, Error> {
        let Some(file) = &self.0 else { return Ok(Vec::new()) };
        let library = library().ok_or(Error::NoFaketime)?;
        let pairs = [
            ("LD_PRELOAD", library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
            // Read at each look at the clock: a change is seen at once.
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DISABLE_SHM", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ];
        Ok(pairs.map(|(name, value)| (name.to_owned(), value)).to_vec())
    }
}

/// The machine's time.
#[expect(clippy::disallowed_methods, reason = "the one place of the lab's own process that reads the clock")]
pub fn machine() -> Timestamp {
    Timestamp::now()
}

/// How far an RFC 3339 time is from the machine's.
///
/// # Errors
/// It is no such time.
pub fn machine_distance(time: &str) -> Result<SignedDuration, String> {
    let time: Timestamp =
        time.parse().map_err(|error| format!("{time:?} is no time such as 2026-11-27T23:59:00-08:00: {error}"))?;
    Ok(time.duration_since(machine()))
}

/// Sets a lab's clock to this distance from the machine's.
///
/// # Errors
/// The file cannot be written.
pub fn set(place: &Place, distance: SignedDuration) -> Result<(), Error> {
    // Up to the next millisecond: who sets a clock to a time never sees it before that time.
    let (down, rest) = (distance.as_nanos().div_euclid(1_000_000), distance.as_nanos().rem_euclid(1_000_000));
    let millis = down + i128::from(rest > 0);
    let sign = if millis < 0 { '-' } else { '+' };
    // Renamed into its place: nobody reads half a number.
    let text = format!("{sign}{}.{:03}\n", millis.abs() / 1000, millis.abs() % 1000);
    Ok(files::write(&place.file(CLOCK), text.as_bytes(), 0o644, place.root())?)
}

/// Where Debian, Fedora and a local installation have libfaketime.
fn library() -> Option<PathBuf> {
    let multiarch = std::fs::read_dir("/usr/lib").into_iter().flatten();
    let multiarch = multiarch.filter_map(|entry| Some(entry.ok()?.path()));
    let fixed = ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from);
    multiarch.chain(fixed).map(|directory| directory.join("faketime").join(LIBRARY)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_set_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path());
        let clock = LabClock::start(&place, "now").unwrap();
        let far = |clock: &LabClock| clock.now().duration_since(machine()).as_secs_f64();
        assert!(far(&clock).abs() < 1.0);
        set(&place, SignedDuration::from_millis(-90_500)).unwrap();
        assert!((far(&clock) + 90.5).abs() < 1.0);
        for (nanos, written) in
            [(1, "+0.001\n"), (-1, "+0.000\n"), (-1_999_999, "-0.001\n"), (61_000_400_000, "+61.001\n")]
        {
            set(&place, SignedDuration::from_nanos(nanos)).unwrap();
            assert_eq!(std::fs::read_to_string(clock.file().unwrap()).unwrap(), written);
        }
        let clock = LabClock::start(&place, "2026-11-27T23:59:00-08:00").unwrap();
        let shown = clock.now().duration_since("2026-11-28T07:59:00Z".parse().unwrap());
        assert!(shown.as_secs_f64().abs() < 1.0, "{shown}");
        let error = LabClock::start(&place, "Friday").unwrap_err().to_string();
        assert!(error.contains("2026-11-27T23:59:00-08:00"), "{error}");
        assert_eq!(LabClock::default().environment().unwrap(), []);
    }
}
