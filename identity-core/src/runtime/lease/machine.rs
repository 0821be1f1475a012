//! The lease as a state machine: no clock, no requests.
//!
//! The driver carries out one [`Command`] at a time and reports the result with [`Machine::step`]. All times are durations
//! of the caller's own monotonic clock; times written by others are never compared with it (as in client-go's leader
//! election): what counts is for how long *this* process has seen the lease unchanged.

use std::time::Duration;

use jiff::Timestamp;

/// How long a lease lasts and how it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Without renewal for this long it may be taken.
    pub duration: Duration,
    /// The holder renews it this often; others look at it this often.
    pub retry: Duration,
    /// The holder stops this much earlier than others may begin: for clocks that run at different speeds.
    pub margin: Duration,
}

impl Terms {
    /// Renewal every fifth of `duration` (whole seconds, at least 1 s), a tenth of it as margin.
    pub fn new(duration: Duration) -> Self {
        let duration = Duration::from_secs(duration.as_secs().max(1));
        Self { duration, retry: duration / 5, margin: duration / 10 }
    }
}

/// The content of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty: nobody.
    pub holder: String,
    /// How long it lasts after each renewal.
    pub duration: Duration,
    /// When the holder got it, by the holder's clock.
    pub acquired: Timestamp,
    /// When it was last renewed, by the holder's clock.
    pub renewed: Timestamp,
    /// How often it changed hands.
    pub transitions: i32,
}

/// How a write of the lease ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// Done; the version of the lease now.
    Done {
        /// resourceVersion.
        version: String,
    },
    /// It is another version than the one that was to be replaced.
    Conflict,
    /// Unknown: it may have been done, or be done later.
    Failed,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The time of [`Command::Sleep`] has come, or the driver begins.
    Wake,
    /// The lease was read: content and version, or that there is none.
    Read(Option<(Record, String)>),
    /// It could not be read.
    ReadFailed,
    /// [`Command::Write`] ended.
    Written(Written),
    /// This process is about to end. Given once, when no command is under way.
    Stop,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read the lease.
    Read,
    /// Write it, if it still has this version; create it, if `None`.
    Write {
        /// New content.
        record: Record,
        /// Version it replaces.
        version: Option<String>,
    },
    /// Do nothing until this time.
    Sleep {
        /// Uptime.
        until: Duration,
    },
    /// Nothing more to do.
    Done,
}

/// One process that wants to lead: [`Command`]s out, [`Input`]s in.
#[derive(Clone, Debug)]
pub struct Machine {
    terms: Terms,
    holder: String,
    /// While this process believes that it leads: until when.
    deadline: Option<Duration>,
    /// The lease as last read or written.
    seen: Option<Seen>,
    /// Uptime just before the command that is under way was given, and what it would write.
    writing: Option<(Duration, Record)>,
    stopping: bool,
    known: bool,
}

#[derive(Clone, Debug)]
struct Seen {
    record: Record,
    version: String,
    /// When this version was first seen.
    since: Duration,
}

impl Machine {
    /// A process that holds nothing and knows nothing.
    pub const fn new(terms: Terms, holder: String) -> Self {
        Self { terms, holder, deadline: None, seen: None, writing: None, stopping: false, known: false }
    }

    /// Until when this process may act as the leader; `None` if it may not.
    pub fn deadline(&self, now: Duration) -> Option<Duration> {
        self.deadline.filter(|deadline| now < *deadline)
    }

    /// Who leads as far as this process knows; `None` before it has read the lease.
    pub fn leader(&self) -> Option<&str> {
        self.known.then(|| self.seen.as_ref().map_or("", |seen| &seen.record.holder))
    }

    /// Takes in what happened at `now` (uptime) and says what to do. `wall` is only written into the lease. `jitter`
    /// (0..1) spreads the readers.
    pub fn step(&mut self, now: Duration, wall: Timestamp, jitter: f64, input: Input) -> Command {
        match input {
            Input::Wake if self.stopping => Command::Done,
            Input::Wake => {
                // A holder whose last write succeeded renews without reading: what it wrote is what is there, or the
                // version says otherwise.
                self.deadline = self.deadline(now);
                if self.deadline.is_some() && self.seen.is_some() { self.renew(now, wall) } else { Command::Read }
            }
            Input::Read(found) => self.read(now, wall, jitter, found),
            Input::ReadFailed => self.sleep(now, jitter),
            Input::Written(written) => self.written(now, jitter, written),
            Input::Stop => self.stop(now, wall),
        }
    }

    fn read(&mut self, now: Duration, wall: Timestamp, jitter: f64, found: Option<(Record, String)>) -> Command {
        self.known = true;
        if self.stopping {
            return Command::Done;
        }
        let Some((record, version)) = found else {
            self.deadline = None;
            // Somebody deleted it: who held it may believe in it for as long as it would have lasted.
            if let Some(seen) = &self.seen
                && !["", &self.holder].contains(&seen.record.holder.as_str())
                && now < seen.since + seen.record.duration
            {
                let due = seen.since + seen.record.duration;
                return self.sleep_until_due(now, jitter, due);
            }
            self.seen = None;
            return self.write(now, Record { transitions: 0, ..self.record(wall, wall, 0) }, None);
        };
        if self.seen.as_ref().is_none_or(|seen| seen.version != version) {
            self.seen = Some(Seen { record: record.clone(), version: version.clone(), since: now });
        }
        if record.holder == self.holder {
            // Ours: holder names are unique, so only this process can have written it (an answer was lost).
            return self.renew(now, wall);
        }
        self.deadline = None;
        let since = self.seen.as_ref().map_or(now, |seen| seen.since);
        let free = record.holder.is_empty() || now >= since + record.duration;
        if free {
            let taken = self.record(wall, wall, record.transitions.saturating_add(1));
            return self.write(now, taken, Some(version));
        }
        self.sleep_until_due(now, jitter, since + record.duration)
    }

    fn renew(&mut self, now: Duration, wall: Timestamp) -> Command {
        let Some(seen) = &self.seen else { return Command::Read };
        let (acquired, transitions, version) = (seen.record.acquired, seen.record.transitions, seen.version.clone());
        let renewed = self.record(acquired, wall, transitions);
        self.write(now, renewed, Some(version))
    }

    fn record(&self, acquired: Timestamp, renewed: Timestamp, transitions: i32) -> Record {
        Record { holder: self.holder.clone(), duration: self.terms.duration, acquired, renewed, transitions }
    }

    fn write(&mut self, now: Duration, record: Record, version: Option<String>) -> Command {
        self.writing = Some((now, record.clone()));
        Command::Write { record, version }
    }

    fn written(&mut self, now: Duration, jitter: f64, written: Written) -> Command {
        let Some((sent, record)) = self.writing.take() else { return Command::Read };
        if self.stopping {
            return Command::Done;
        }
        match written {
            Written::Done { version } => {
                self.known = true;
                // From before it was sent: the server cannot have granted it earlier.
                self.deadline = Some(sent + self.terms.duration.saturating_sub(self.terms.margin));
                self.seen = Some(Seen { record, version, since: now });
                Command::Sleep { until: (sent + self.terms.retry).max(now) }
            }
            Written::Conflict => {
                // Whoever changed it is somebody else, unless an earlier write of ours came late: reading tells.
                self.deadline = None;
                Command::Read
            }
            Written::Failed => {
                // It may or may not have been done, so what is there has to be read before the next write. Until the
                // deadline nobody else can have it.
                self.seen = None;
                self.sleep(now, jitter)
            }
        }
    }

    fn stop(&mut self, now: Duration, wall: Timestamp) -> Command {
        self.stopping = true;
        let held = self.deadline(now).is_some();
        self.deadline = None;
        match &self.seen {
            Some(seen) if held => {
                let (acquired, transitions, version) =
                    (seen.record.acquired, seen.record.transitions, seen.version.clone());
                let released = Record {
                    holder: String::new(),
                    duration: Duration::from_secs(1),
                    ..self.record(acquired, wall, transitions)
                };
                self.write(now, released, Some(version))
            }
            _ => Command::Done,
        }
    }

    /// Half a retry to a whole one.
    fn sleep(&self, now: Duration, jitter: f64) -> Command {
        let retry = self.terms.retry.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0));
        Command::Sleep { until: now + retry }
    }

    fn sleep_until_due(&self, now: Duration, jitter: f64, due: Duration) -> Command {
        match self.sleep(now, jitter) {
            Command::Sleep { until } => Command::Sleep { until: until.min(due.max(now)) },
            other => other,
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
