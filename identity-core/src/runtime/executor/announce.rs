//! Events of a program that writes nothing else: a node tells of credentials on the `AzureIdentity` they belong to. Best
//! effort, with a budget: what is too much is counted and left out.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{events, events::Recorder};
use crate::{
    assign::Notice,
    runtime::{
        Clock, StateDir,
        observe::{Observer, WriteOutcome},
        request::Failure,
        source::Source,
        state_dir::append,
    },
};

/// Events that wait.
const WAITING: usize = 64;
/// Events at once, and one more in each [`EVERY`].
const BURST: u32 = 20;
/// See [`BURST`].
const EVERY: Duration = Duration::from_secs(10);
/// For one.
const LIMIT: Duration = Duration::from_secs(5);

/// Takes Events. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Announcer {
    queue: mpsc::Sender<Notice>,
    observer: Arc<dyn Observer>,
}

impl Announcer {
    /// One that writes to where `source` reads from, in the name of `reporter`, until `shutdown`: run the second part.
    pub fn new(
        source: &Source,
        reporter: &str,
        clock: Arc<dyn Clock>,
        observer: Arc<dyn Observer>,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (queue, notices) = mpsc::channel(WAITING);
        let target = match source {
            Source::Kubernetes(client) => Target::Kubernetes(Box::new(Recorder::new(client.clone(), reporter))),
            Source::Manifests(manifests) => Target::Files(manifests.state().clone(), clock),
        };
        let announcer = Self { queue, observer: observer.clone() };
        (
            announcer,
            async move { shutdown.run_until_cancelled(write(target, notices, observer)).await.unwrap_or_default() },
        )
    }

    /// Writes it, soon, if there is room. Never waits.
    pub fn announce(&self, notice: Notice) {
        if self.queue.try_send(notice).is_err() {
            self.observer.wrote("Event", WriteOutcome::Dropped);
        }
    }
}

enum Target {
    Kubernetes(Box<Recorder>),
    Files(StateDir, Arc<dyn Clock>),
}

async fn write(target: Target, mut notices: mpsc::Receiver<Notice>, observer: Arc<dyn Observer>) {
    // As a moment: so far ahead of now is how much of the budget is used up.
    let mut spent = Instant::now();
    while let Some(notice) = notices.recv().await {
        let earliest = spent.checked_sub(EVERY * (BURST - 1)).unwrap_or(spent);
        sleep_until(earliest).await;
        spent = spent.max(Instant::now()) + EVERY;
        let result = match &target {
            Target::Kubernetes(recorder) => recorder.publish(&notice, LIMIT).await,
            Target::Files(state, clock) => {
                let (path, line) = (state.events(), events::line(&notice, clock.now()));
                let state = state.clone();
                let written =
                    tokio::task::spawn_blocking(move || state.create().and_then(|()| append(&path, &line))).await;
                match written {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => Err(Failure::Disk(error.to_string())),
                    Err(error) => Err(Failure::Disk(error.to_string())),
                }
            }
        };
        let outcome = if result.is_ok() { WriteOutcome::Done } else { WriteOutcome::Failed };
        observer.wrote("Event", outcome);
        if let Err(error) = result {
            debug!(%error, "an Event was not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        assign::StatusTarget,
        object::ObjectKey,
        runtime::{
            clock::testing::TokioClock,
            testing::{Server, Told},
        },
    };

    fn notice(name: &str) -> Notice {
        Notice {
            target: StatusTarget::Identity(ObjectKey::new("team", name)),
            uid: Some("u".into()),
            warning: true,
            grant: None,
            reason: "CredentialRefused".into(),
            message: "m".into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn events_have_a_budget() {
        let server = Server::new();
        let told = Arc::new(Told::default());
        let stop = CancellationToken::new();
        let source = Source::kubernetes(server.client());
        let (announcer, run) =
            Announcer::new(&source, "node-1", Arc::new(TokioClock::new()), told.clone(), stop.clone());
        let task = tokio::spawn(run);
        for n in 0..100 {
            announcer.announce(notice(&format!("i{n}")));
        }
        let events = || server.count(|call| call.method == "POST" && call.path.ends_with("/events"));
        server.until("a burst is written", |_| events() == 20).await;
        assert_eq!(told.count(WriteOutcome::Dropped), 100 - WAITING);
        let began = Instant::now();
        server.until("the rest comes by and by", |_| events() == WAITING).await;
        let expected = EVERY * u32::try_from(WAITING - 20).unwrap();
        let took = began.elapsed();
        assert!(took + EVERY * 2 > expected && took < expected + EVERY * 2, "{took:?}");
        let call = server.calls(|call| call.method == "POST").remove(0);
        assert_eq!(call.path, "/apis/events.k8s.io/v1/namespaces/team/events");
        assert_eq!(
            (&call.body["regarding"]["kind"], &call.body["reason"]),
            (&"AzureIdentity".into(), &"CredentialRefused".into())
        );
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn without_an_api_server_events_are_lines() {
        let directory = tempfile::tempdir().unwrap();
        let source = Source::manifests(directory.path(), directory.path().join("state"));
        let stop = CancellationToken::new();
        let clock = Arc::new(TokioClock::new());
        let (announcer, run) = Announcer::new(&source, "node-1", clock, Arc::new(Told::default()), stop);
        announcer.announce(notice("a"));
        // Its end is the end of the queue.
        drop(announcer);
        run.await;
        let text = std::fs::read_to_string(directory.path().join("state/events.jsonl")).unwrap();
        assert!(text.contains(r#""reason":"CredentialRefused""#) && text.contains(r#""name":"a""#), "{text}");
    }
}
