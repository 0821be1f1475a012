//! The audit as Kubernetes Events: what the journal itemises is counted by series, and each series is one Event of
//! `events.k8s.io/v1` whose count is that of the journal.
//!
//! ```text
//! journal ─ Reader ─┐                            ┌─ EventWriter ─ API server, or a file
//! Queue (no journal)┴─ seen ─ Book (pure) ─ next ┴─ state beside the journal
//! ```
//!
//! The journal is the queue: what the API server does not take yet waits on the disk. [`Book`] holds no more than
//! [`Config::most_series`] series; when none of them may be closed, nothing more is read. What is counted is written with
//! absolute numbers, so that nothing is counted twice or left out by a restart, an outage, or an Event that has expired.
//!
//! ```
//! use std::time::Duration;
//!
//! use identity_broker::audit::series::{Book, Config, Next, Outcome, Seen};
//!
//! let mut book = Book::new(Config::series("node-1"), None);
//! book.journal("5c1f6a0e");
//! let line = br#"{"seq":7,"kind":"token","time":"2026-11-24T12:47:34.091140Z","verdict":"issued","reason":"issued",
//!     "address":"10.42.0.7","pod_namespace":"demo","pod":"web-0","pod_uid":"p","binding":"demo/web","binding_uid":"b",
//!     "resource":"https://vault.azure.net"}"#;
//! assert!(book.has_room());
//! book.take(&Seen::of_line(7, line).unwrap());
//! let Next::Write(write) = book.next(Duration::ZERO) else { panic!() };
//! assert_eq!((&*write.namespace, write.body["reason"].as_str()), ("demo", Some("TokenIssued")));
//! book.done(write.id, Outcome::Done, Duration::from_millis(20));
//! // A request of the process before may come late: what is written in the first seconds is written once more.
//! assert_eq!(book.next(Duration::from_secs(1)), Next::Wait(Some(Duration::from_millis(10_020))));
//! ```

mod book;
mod config;
mod driver;
mod event;
#[cfg(test)]
mod model;
mod queue;
mod seen;
mod source;
mod state;

pub use book::{Book, Next, Outcome, Stats, Write};
pub use config::Config;
pub use driver::{EventMetrics, EventWriter, Feed, run};
pub use event::EventReason;
pub use queue::Queue;
pub use seen::Seen;
pub use state::{State, StateError, StateFile};
