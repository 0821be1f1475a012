//! Reads, writes, keeps: brings a [`Book`] together with files, an API server and time.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{Book, Next, Outcome, Queue, State, StateFile, Stats, Write, source::Source};
use crate::audit::journal::Tally;

/// Between two looks at a journal that grows, so that records come in batches.
const GATHER: Duration = Duration::from_millis(200);
/// Between two times that the state is kept, when nothing else asks for it.
const KEEP: Duration = Duration::from_secs(5);
/// After the shutdown has begun, what is being read or kept has so long: a disk that hangs must not hold the process up.
const END: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5000 });
/// The first pause after a failure; it grows up to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Writes Events. Each call is one request, bounded in time, and never repeated by itself.
pub trait EventWriter: Send + Sync + 'static {
    /// Makes an Event or changes its count. The time in what comes back is what the server asked to wait, or zero: the driver
    /// waits longer each time.
    fn write(&self, write: &Write) -> impl Future<Output = Outcome> + Send;
}

/// A write under way.
type Writing = Pin<Box<dyn Future<Output = (u128, Outcome)> + Send>>;

/// Where records come from.
#[derive(Debug)]
pub enum Feed {
    /// A journal, and where the state is kept.
    Journal {
        /// The last number of a record, on each change.
        written: watch::Receiver<u64>,
        /// In the directory of the journal.
        state: StateFile,
        /// Spares reading what says the same as what was read. Of no use where each record has an Event.
        tally: Arc<Tally>,
    },
    /// Memory: what is lost when the process ends is lost.
    Memory(Arc<Queue>),
}

/// How Events fare, for scraping.
#[derive(Clone, Debug, Default)]
pub struct EventMetrics {
    unread: Gauge,
    pending: Gauge,
    series: Gauge,
    written: Counter,
    failed: Counter,
    refused: Gauge,
    lost: Gauge,
}

impl EventMetrics {
    /// Makes them and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let this = Self::default();
        let registry = registry.sub_registry_with_prefix("audit_events");
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("unread_records", "Records of the journal that are yet to be counted for Events", &this.unread);
        gauge("pending_records", "Records that are counted, and in no Event yet", &this.pending);
        gauge("series", "Series of Events that are held", &this.series);
        gauge("refused_records", "Records in no Event, because the API server refuses it for good", &this.refused);
        gauge("lost_records", "Records in no Event, because they were gone before they were counted", &this.lost);
        registry.register("writes", "Writes of Events that were done", this.written.clone());
        registry.register(
            "write_failures",
            "Writes of Events that were not done, or of which that is not known",
            this.failed.clone(),
        );
        this
    }

    /// Records that are in no Event and never will be.
    pub fn lost(&self) -> u64 {
        u64::try_from(self.lost.get() + self.refused.get()).unwrap_or_default()
    }

    fn show(&self, stats: &Stats, unread: u64, lost: u64) {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.unread.set(number(unread));
        self.pending.set(number(stats.pending));
        self.series.set(number(stats.series));
        self.refused.set(number(stats.refused));
        self.lost.set(number(stats.lost + lost));
    }
}

/// Makes Events until `shutdown`; then keeps the state, and what is not written yet waits for the next start. `start` makes the
/// book from what was kept.
pub async fn run<W: EventWriter>(
    feed: Feed,
    start: impl FnOnce(Option<State>) -> Book + Send,
    writer: W,
    metrics: EventMetrics,
    shutdown: CancellationToken,
) {
    let origin = Instant::now();
    let Some((mut source, kept)) = in_time(Source::open(feed), &shutdown).await else { return };
    let mut book = start(kept);
    source.begin(&mut book);
    let writer = Arc::new(writer);
    let mut writing: FuturesUnordered<Writing> = FuturesUnordered::new();
    let (mut failures, mut said) = (0_u32, Duration::ZERO);
    let (mut read_at, mut keep_at) = (origin, origin + KEEP);
    let mut more = true;
    loop {
        if more && Instant::now() >= read_at {
            let Some(read) = in_time(source.read(book), &shutdown).await else { return };
            (book, more) = read;
            read_at = Instant::now() + if more { Duration::ZERO } else { GATHER };
        }
        let wake = match book.next(origin.elapsed()) {
            Next::Save => {
                let Some(is_kept) = in_time(source.keep(&mut book), &shutdown).await else { return };
                if !is_kept {
                    // Nothing may be written before that.
                    tokio::select! {
                        () = tokio::time::sleep(KEEP) => {}
                        () = shutdown.cancelled() => return,
                    }
                }
                continue;
            }
            Next::Write(write) => {
                let writer = Arc::clone(&writer);
                writing.push(Box::pin(async move { (write.id, writer.write(&write).await) }));
                continue;
            }
            Next::Wait(until) => until.map(|until| origin + until),
        };
        if book.is_changed() && Instant::now() >= keep_at {
            if in_time(source.keep(&mut book), &shutdown).await.is_none() {
                return;
            }
            keep_at = Instant::now() + KEEP;
        }
        metrics.show(&book.stats(), source.unread(&book), source.lost());
        let keep = book.is_changed().then_some(keep_at);
        let wake = [wake, more.then_some(read_at), keep].into_iter().flatten().min();
        let sleep = async {
            match wake {
                Some(wake) => sleep_until(wake).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some((id, outcome)) = writing.next() => {
                let outcome = pause(outcome, &mut failures);
                match outcome {
                    Outcome::Failed(wait) | Outcome::Unknown(wait) => {
                        metrics.failed.inc();
                        let now = origin.elapsed();
                        if failures == 1 && now >= said {
                            said = now + Duration::from_mins(1);
                            tracing::warn!(again_in = ?wait, "audit Events are not written at the moment; their records wait");
                        }
                    }
                    Outcome::Refused => {
                        metrics.failed.inc();
                    }
                    _ => {
                        metrics.written.inc();
                    }
                }
                book.done(id, outcome, origin.elapsed());
                // There may be room again.
                more = true;
            }
            () = source.more(), if !more => more = true,
            () = sleep => {}
        }
    }
    in_time(source.keep(&mut book), &shutdown).await;
}

/// What the disk takes longer for than there is time after the shutdown is given up: what was kept last is right as well.
async fn in_time<T>(work: impl Future<Output = T>, shutdown: &CancellationToken) -> Option<T> {
    let end = async {
        shutdown.cancelled().await;
        tokio::time::sleep(END).await;
    };
    tokio::select! {
        biased;
        done = work => Some(done),
        () = end => {
            tracing::warn!("the disk of the audit journal does not answer: audit Events go on from what was kept last");
            None
        }
    }
}

/// How long to wait in the end: what the server asked for, and longer after each failure.
fn pause(outcome: Outcome, failures: &mut u32) -> Outcome {
    let mut wait = |asked: Duration| {
        let grown = FIRST.saturating_mul(2_u32.saturating_pow((*failures).min(10))).min(LONGEST);
        *failures += 1;
        // The upper half is random: many nodes must not come back together.
        grown.mul_f64(0.5 + 0.5 * rand::random::<f64>()).max(asked)
    };
    match outcome {
        Outcome::Failed(asked) => Outcome::Failed(wait(asked)),
        Outcome::Unknown(asked) => Outcome::Unknown(wait(asked)),
        outcome => {
            *failures = 0;
            outcome
        }
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
