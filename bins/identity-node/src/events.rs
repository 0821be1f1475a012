//! The audit as Kubernetes Events: from the journal, or, without one, from what waits in memory.

use std::{future::Future, sync::Arc, time::Duration};

use clap::ValueEnum;
use identity_broker::{
    FanOut, Policy,
    audit::{
        journal::Journal,
        series::{Book, Config, EventMetrics, EventWriter, Feed, Outcome, Queue, StateFile, Write, run},
    },
};
use identity_core::runtime::{
    audit_events::{AuditEvents, EventWrite, is_about_namespace},
    request::Failure,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::audit::Sinks;

/// Which Events there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AuditEventsMode {
    /// One for each binding, pod, audience and decision, with a count; at most one write a second
    Series,
    /// One for each record, as fast as the API server takes them
    Each,
    /// None
    Off,
}

/// The flag.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Audit")]
pub(crate) struct EventArgs {
    /// Kubernetes Events of tokens on the bindings that allow or refuse them. Counted from the journal, if there is one: then
    /// nothing is left out; else from memory, while there is room
    #[arg(long, value_name = "WHICH", default_value = "series", env = "ENTRA_POD_IDENTITY_AUDIT_EVENTS")]
    pub(crate) audit_events: AuditEventsMode,
}

/// Where records go, Events included.
pub(crate) type WithEvents = FanOut<Sinks, Option<Arc<Queue>>>;

impl EventArgs {
    /// The sinks with that of Events, and what makes these until `shutdown`.
    pub(crate) fn open(
        self,
        sinks: Sinks,
        journal: Option<&Journal>,
        node: &str,
        writer: AuditEvents,
        metrics: EventMetrics,
        shutdown: CancellationToken,
    ) -> (WithEvents, Option<impl Future<Output = ()> + Send + use<>>) {
        let config = match self.audit_events {
            AuditEventsMode::Series => Some(Config::series(node)),
            AuditEventsMode::Each => Some(Config::each(node)),
            AuditEventsMode::Off => None,
        };
        let queue = (config.is_some() && journal.is_none()).then(Arc::<Queue>::default);
        let feed = match (journal, &queue) {
            (Some(journal), _) => Some(Feed::Journal {
                written: journal.written(),
                state: StateFile::beside(journal.directory()),
                tally: journal.tally(),
            }),
            (None, queue) => queue.clone().map(Feed::Memory),
        };
        let telling = config
            .zip(feed)
            .map(|(config, feed)| run(feed, |kept| Book::new(config, kept), Writer(writer), metrics, shutdown));
        // Its losses are counted by itself; nobody waits for Events.
        (FanOut::new((sinks, Policy::Required), (queue, Policy::BestEffort)), telling)
    }
}

struct Writer(AuditEvents);

impl EventWriter for Writer {
    async fn write(&self, write: &Write) -> Outcome {
        let patch = (!write.create).then_some(&write.body);
        let event = EventWrite { namespace: &write.namespace, name: &write.name, whole: &write.whole, patch };
        match self.0.write(event).await {
            Ok(()) => Outcome::Done,
            Err(failure) => {
                let outcome = outcome(&failure, write.create);
                let (namespace, name) = (&write.namespace, &write.name);
                if outcome == Outcome::Refused {
                    warn!(%namespace, event = %name, error = %failure, "an audit Event is refused");
                } else {
                    debug!(%namespace, event = %name, error = %failure, ?outcome, "an audit Event");
                }
                outcome
            }
        }
    }
}

fn outcome(failure: &Failure, create: bool) -> Outcome {
    let asked = failure.retry_after().unwrap_or(Duration::ZERO);
    match failure {
        Failure::Conflict(_) if create => Outcome::Exists,
        Failure::NotFound(_) => Outcome::Missing,
        Failure::Refused { .. } => Outcome::Refused,
        failure if is_about_namespace(failure) => Outcome::Refused,
        // Refused before anything was done.
        Failure::Conflict(_)
        | Failure::Forbidden(_)
        | Failure::Busy { code: 429, .. }
        | Failure::Disk(_)
        | Failure::Fenced
        | Failure::Unrecorded(_) => Outcome::Failed(asked),
        Failure::Busy { .. } | Failure::Timeout(_) | Failure::Unreachable(_) | Failure::Unreadable(_) => {
            Outcome::Unknown(asked)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failure_means() {
        let text = String::new;
        let busy = |code| Failure::Busy { code, message: text(), retry_after: Some(Duration::from_secs(7)) };
        let terminating = "unable to create new content in namespace demo because it is being terminated".to_owned();
        for (failure, create, expected) in [
            (Failure::Conflict(text()), true, Outcome::Exists),
            (Failure::Conflict(text()), false, Outcome::Failed(Duration::ZERO)),
            (Failure::NotFound(text()), false, Outcome::Missing),
            (Failure::Refused { code: 422, message: text() }, true, Outcome::Refused),
            (Failure::Forbidden(terminating), true, Outcome::Refused),
            (Failure::Forbidden("no right".to_owned()), true, Outcome::Failed(Duration::ZERO)),
            (busy(429), false, Outcome::Failed(Duration::from_secs(7))),
            (busy(503), false, Outcome::Unknown(Duration::from_secs(7))),
            (Failure::Timeout(Duration::from_secs(5)), false, Outcome::Unknown(Duration::ZERO)),
        ] {
            assert_eq!(outcome(&failure, create), expected, "{failure:?}");
        }
    }
}
