//! Stopping: on a signal, or because a part that should run for ever has ended.

use std::future::Future;

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::Pulse;

/// Cancelled by SIGTERM or SIGINT.
pub fn shutdown_on_signal() -> anyhow::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
        signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
    );
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!(signal = name, "stopping");
        token.cancel();
    });
    Ok(shutdown)
}

/// Runs the parts of a daemon: all end when one does.
#[derive(Debug)]
pub struct Supervisor {
    shutdown: CancellationToken,
    pulse: Pulse,
    parts: JoinSet<anyhow::Result<()>>,
}

impl Supervisor {
    /// Without parts.
    pub fn new(shutdown: CancellationToken, pulse: Pulse) -> Self {
        Self { shutdown, pulse, parts: JoinSet::new() }
    }

    /// Adds a part, which ends by itself only after `shutdown`.
    pub fn add(&mut self, name: &'static str, part: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        let part = self.pulse.watched(name, part);
        self.parts.spawn(async move {
            let result = part.await;
            let expected = shutdown.is_cancelled();
            shutdown.cancel();
            result.with_context(|| format!("{name} failed"))?;
            if expected { Ok(()) } else { Err(anyhow::anyhow!("{name} ended by itself")) }
        });
    }

    /// Waits for all of them; the first failure is the result. A part that panics ends the others, too.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        while let Some(ended) = self.parts.join_next().await {
            let ended = ended.unwrap_or_else(|error| Err(error.into()));
            if ended.is_err() {
                self.shutdown.cancel();
            }
            result = result.and(ended);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_failure_ends_all() {
        let shutdown = CancellationToken::new();
        let mut supervisor = Supervisor::new(shutdown.clone(), Pulse::default());
        let waits = shutdown.clone();
        supervisor.add("waiter", async move {
            waits.cancelled().await;
            Ok(())
        });
        supervisor.add("breaker", async { Err(anyhow::anyhow!("broken")) });
        let error = supervisor.run().await.unwrap_err();
        assert_eq!(format!("{error:#}"), "breaker failed: broken");
    }

    #[tokio::test]
    async fn a_part_that_leaves_or_panics_is_a_failure() {
        let mut supervisor = Supervisor::new(CancellationToken::new(), Pulse::default());
        supervisor.add("leaver", async { Ok(()) });
        assert_eq!(supervisor.run().await.unwrap_err().to_string(), "leaver ended by itself");

        let shutdown = CancellationToken::new();
        let mut supervisor = Supervisor::new(shutdown.clone(), Pulse::default());
        supervisor.add("waiter", async move {
            shutdown.cancelled().await;
            Ok(())
        });
        supervisor.add("panics", async { panic!("oh") });
        assert!(supervisor.run().await.is_err());
    }
}
