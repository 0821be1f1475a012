//! What the two daemons share around their libraries: clocks, logs, probes, signals, where objects come from and where
//! credentials go.
//!
//! This is the edge: what the libraries may not do (read clocks and the environment, install a logger) is done here, once.
//!
//! ```
//! use clap::Parser as _;
//! use identity_process::{LogArgs, SourceArgs};
//!
//! #[derive(clap::Parser)]
//! struct Args {
//!     #[command(flatten)]
//!     source: SourceArgs,
//!     #[command(flatten)]
//!     log: LogArgs,
//! }
//!
//! let args = Args::try_parse_from(["daemon", "--manifests", "examples/demo", "--state-dir", "state"]).unwrap();
//! assert!(args.source.is_manifests());
//! ```

mod clock;
mod cores;
mod duration;
mod journal;
mod logs;
pub mod metrics;
mod probe;
mod pulse;
mod seams;
mod signals;
mod source;
mod start;
mod stderr;
mod tls;
mod traces;
mod upstream;

pub use clock::{SystemClock, now};
pub use duration::duration_within;
pub use journal::{AuditFailure, JournalArgs, log_checkpoint, tell_checkpoints};
pub use logs::{Format, LogArgs};
pub use metrics::RuntimeMetrics;
pub use probe::{Missing, ProbeArgs, Probes};
pub use pulse::Pulse;
pub use seams::{FollowedIdentities, FollowedSecrets, RequestedTokens};
pub use signals::{Supervisor, shutdown_on_signal};
pub use source::SourceArgs;
pub use start::{VERSION, run};
pub use stderr::{LogLines, lost_log_lines};
pub use traces::{TraceArgs, Traces, remote_parent};
pub use upstream::UpstreamArgs;
