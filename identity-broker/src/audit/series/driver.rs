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

use super::{Book, Next, Outcome, Queue, State, StateError, StateFile, Stats, Write};
use crate::audit::journal::{Item, Reader};

/// Records that are read before anything else gets its turn.
const BATCH: usize = 2048;
/// Between two looks at a journal that grows, so that records come in batches.
const GATHER: Duration = Duration::from_millis(200);
/// Between two times that the state is kept, when nothing else asks for it.
const KEEP: Duration = Duration::from_secs(5);
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
    let (mut source, kept) = Source::open(feed).await;
    let mut book = start(kept);
    source.begin(&mut book);
    let writer = Arc::new(writer);
    let mut writing: FuturesUnordered<Writing> = FuturesUnordered::new();
    let (mut failures, mut said) = (0_u32, Duration::ZERO);
    let (mut read_at, mut keep_at) = (origin, origin + KEEP);
    let mut more = true;
    loop {
        if more && Instant::now() >= read_at {
            (book, more) = source.read(book).await;
            read_at = Instant::now() + if more { Duration::ZERO } else { GATHER };
        }
        let wake = match book.next(origin.elapsed()) {
            Next::Save => {
                if !source.keep(&mut book).await {
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
            source.keep(&mut book).await;
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
    source.keep(&mut book).await;
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

enum Source {
    Journal { reader: Option<Reader>, written: watch::Receiver<u64>, state: StateFile, failing: bool },
    Memory(Arc<Queue>),
}

impl Source {
    async fn open(feed: Feed) -> (Self, Option<State>) {
        match feed {
            Feed::Memory(queue) => (Self::Memory(queue), None),
            Feed::Journal { written, state } => {
                let loading = state.clone();
                let (kept, why_not) = blocking(move || loading.load()).await;
                if let Some(why) = why_not {
                    tracing::warn!(
                        file = %state.path().display(), why, "audit Events are counted anew from the files of the journal"
                    );
                }
                let reader = Some(Reader::new(state.directory(), kept.as_ref().and_then(State::cursor).cloned()));
                (Self::Journal { reader, written, state, failing: false }, kept)
            }
        }
    }

    fn begin(&self, book: &mut Book) {
        if let Self::Memory(_) = self {
            // Counts end with the process: the next one must not find these Events.
            book.journal(&uuid::Uuid::new_v4().to_string());
        }
    }

    /// Completes when there is more.
    async fn more(&mut self) {
        match self {
            Self::Memory(queue) => queue.more().await,
            Self::Journal { written, .. } => {
                if written.changed().await.is_err() {
                    // The journal is closed.
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Reads a batch; whether there is more.
    async fn read(&mut self, mut book: Book) -> (Book, bool) {
        match self {
            Self::Memory(queue) => {
                let more = queue.drain(&mut book, BATCH);
                (book, more)
            }
            Self::Journal { reader, written, state, .. } => {
                written.borrow_and_update();
                let mut reads = reader.take().unwrap_or_else(|| Reader::new(state.directory(), book.cursor().cloned()));
                let (back, book, result) = blocking(move || {
                    let result = fold(&mut reads, &mut book);
                    (reads, book, result)
                })
                .await;
                match result {
                    Ok(more) => {
                        *reader = Some(back);
                        (book, more)
                    }
                    Err(error) => {
                        // Opened anew the next time something is written.
                        tracing::warn!(%error, "the audit journal cannot be read for Events");
                        (book, false)
                    }
                }
            }
        }
    }

    /// Keeps the state; whether it is kept.
    async fn keep(&mut self, book: &mut Book) -> bool {
        let Self::Journal { state: file, failing, .. } = self else {
            book.saved();
            return true;
        };
        let (state, saving) = (book.state(), file.clone());
        let result: Result<(), StateError> = blocking(move || saving.save(&state)).await;
        if let Err(error) = &result {
            if !*failing {
                tracing::warn!(%error, "what was counted for audit Events cannot be kept: after a restart it is counted again");
            }
        } else {
            book.saved();
        }
        *failing = result.is_err();
        result.is_ok()
    }

    fn unread(&self, book: &Book) -> u64 {
        match self {
            Self::Memory(queue) => queue.len() as u64,
            Self::Journal { written, .. } => {
                let read = book.cursor().map_or(0, |cursor| cursor.seq);
                written.borrow().saturating_sub(read)
            }
        }
    }

    fn lost(&self) -> u64 {
        match self {
            Self::Memory(queue) => queue.lost(),
            Self::Journal { .. } => 0,
        }
    }
}

/// What comes next in the journal into the book, as far as there is room; whether there is more.
fn fold(reader: &mut Reader, book: &mut Book) -> std::io::Result<bool> {
    let mut hash = None;
    let mut more = true;
    let mut any = false;
    for _ in 0..BATCH {
        if !book.has_room() {
            more = false;
            break;
        }
        if let Some(cursor) = reader.cursor() {
            book.journal(&cursor.journal);
        }
        match reader.read()? {
            None => {
                more = false;
                break;
            }
            Some(Item::Gap { from, to }) => {
                let records = to - from + 1;
                book.gap(records);
                tracing::warn!(from, to, "records of the audit journal were gone before they were counted for Events");
                hash = None;
            }
            Some(Item::Another) => {
                tracing::warn!("another audit journal begins; audit Events are counted anew");
                hash = None;
            }
            Some(Item::Record(line, text)) => {
                hash = Some(line.hash);
                let seen = (line.kind == "token").then(|| super::Seen::of_line(line.seq, text)).flatten();
                if let Some(seen) = seen {
                    book.take(&seen);
                }
            }
        }
        any = true;
    }
    if let Some(cursor) = reader.cursor()
        && any
    {
        book.read(cursor, hash);
    }
    Ok(more)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends: nobody waits for this any more.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
