//! The load generator: a process of its own whose requests are one thread's work, in the pods' network namespace.
//!
//! *Closed*: each connection asks again as soon as it is answered. *Open*: requests are due at fixed instants whatever
//! became of those before, and their time counts from when they were due (so that a server that stalls cannot hide it:
//! "coordinated omission"). The instants come from a thread with a timerfd: the runtime's own timer knows only milliseconds.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        time::{TimeSpec, TimeValLike as _},
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, sync::mpsc, task::LocalSet};

use super::{client, now, stage};

/// What to do.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Plan {
    /// The network namespace to do it in; its own, if none.
    pub(crate) netns: Option<PathBuf>,
    pub(crate) target: SocketAddr,
    /// Connections come from these addresses, in turn.
    pub(crate) sources: Vec<Ipv4Addr>,
    pub(crate) connections: usize,
    /// Whether each request has a connection of its own.
    pub(crate) reconnect: bool,
    /// Requests, taken in turn.
    pub(crate) requests: Vec<String>,
    pub(crate) pace: Pace,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) enum Pace {
    Closed { millis: u64 },
    Open { per_second: u32, count: u32 },
}

/// What came of it. Times in microseconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    /// The generator's own processor time.
    pub(crate) processor_seconds: f64,
    /// Answers by status; 0 for those that never came.
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Outcome {
    pub(crate) fn per_second(&self) -> f64 {
        count(self.requests) / self.seconds
    }

    /// All answers were 200.
    pub(crate) fn flawless(self, what: &str) -> anyhow::Result<Self> {
        anyhow::ensure!(self.requests > 0, "{what}: no requests were made");
        anyhow::ensure!(self.statuses.keys().eq([&200]), "{what}: not only 200: {:?}", self.statuses);
        Ok(self)
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub(crate) fn count(number: u64) -> f64 {
    number as f64
}

/// What one connection saw.
struct Seen {
    times: Histogram<u64>,
    statuses: BTreeMap<u16, u64>,
}

impl Seen {
    fn new() -> anyhow::Result<Self> {
        // 1 µs … 60 s, three digits.
        Ok(Self { times: Histogram::new_with_bounds(1, 60_000_000, 3)?, statuses: BTreeMap::new() })
    }

    fn note(&mut self, status: u16, took: Duration) {
        self.times.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        *self.statuses.entry(status).or_default() += 1;
    }
}

/// Runs the plan and prints the outcome. The process must have one thread.
pub(crate) fn run(plan: Plan) -> anyhow::Result<Outcome> {
    if let Some(netns) = &plan.netns {
        let file = File::open(netns).with_context(|| format!("{}", netns.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter the pods' network namespace")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, generate(Rc::new(plan)))
}

async fn generate(plan: Rc<Plan>) -> anyhow::Result<Outcome> {
    let mut connections = Vec::new();
    for number in 0..plan.connections {
        let mut connection = Connection::new(&plan, number);
        if !plan.reconnect {
            connection.stream = Some(connection.open().await.context("connect")?);
        }
        connections.push(connection);
    }
    let began = now();
    let mut tasks = Vec::new();
    match plan.pace {
        Pace::Closed { millis } => {
            let end = began + Duration::from_millis(millis);
            for connection in connections {
                tasks.push(tokio::task::spawn_local(connection.closed(end)));
            }
        }
        Pace::Open { per_second, count } => {
            let mut queues = Vec::new();
            for connection in connections {
                let (queue, due) = mpsc::unbounded_channel();
                queues.push(queue);
                tasks.push(tokio::task::spawn_local(connection.open_loop(due)));
            }
            tokio::task::spawn_blocking(move || pace(per_second, count, &queues)).await??;
        }
    }
    let mut all = Seen::new()?;
    for task in tasks {
        let seen = task.await??;
        all.times.add(&seen.times)?;
        for (status, count) in seen.statuses {
            *all.statuses.entry(status).or_default() += count;
        }
    }
    let seconds = now().duration_since(began).as_secs_f64();
    let at = |quantile| count(all.times.value_at_quantile(quantile));
    Ok(Outcome {
        requests: all.times.len(),
        seconds,
        processor_seconds: stage::processor(std::process::id())?.as_secs_f64(),
        statuses: all.statuses,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: count(all.times.max()),
    })
}

/// Hands out requests at their instants, round robin; blocks.
fn pace(per_second: u32, count: u32, queues: &[mpsc::UnboundedSender<Instant>]) -> anyhow::Result<()> {
    let interval = Duration::from_secs(1) / per_second;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
    let step = TimeSpec::nanoseconds(i64::try_from(interval.as_nanos())?);
    timer.set(Expiration::Interval(step), TimerSetTimeFlags::empty())?;
    let base = now();
    let mut sent = 0;
    while sent < count {
        timer.wait()?;
        let passed = now().duration_since(base).as_nanos() / interval.as_nanos();
        while sent < count && u128::from(sent) < passed {
            sent += 1;
            // A connection that has failed for good says so when it is awaited.
            let _ = queues[sent as usize % queues.len()].send(base + interval * sent);
        }
    }
    Ok(())
}

struct Connection {
    plan: Rc<Plan>,
    source: Option<Ipv4Addr>,
    stream: Option<TcpStream>,
    /// Which request is next.
    next: usize,
    buffer: Vec<u8>,
}

impl Connection {
    fn new(plan: &Rc<Plan>, number: usize) -> Self {
        let source = plan.sources.get(number % plan.sources.len().max(1)).copied();
        Self { plan: Rc::clone(plan), source, stream: None, next: number, buffer: Vec::with_capacity(8192) }
    }

    async fn open(&self) -> std::io::Result<TcpStream> {
        client::connect(self.plan.target, self.source, self.plan.reconnect).await
    }

    async fn closed(mut self, end: Instant) -> anyhow::Result<Seen> {
        let mut seen = Seen::new()?;
        loop {
            let began = now();
            if began >= end {
                return Ok(seen);
            }
            let status = self.ask().await;
            seen.note(status, now().duration_since(began));
        }
    }

    async fn open_loop(mut self, mut due: mpsc::UnboundedReceiver<Instant>) -> anyhow::Result<Seen> {
        let mut seen = Seen::new()?;
        while let Some(due) = due.recv().await {
            let status = self.ask().await;
            seen.note(status, now().duration_since(due));
        }
        Ok(seen)
    }

    /// The status of one answer; 0 when there was none.
    async fn ask(&mut self) -> u16 {
        let opened = match self.stream.take() {
            Some(stream) => Ok(stream),
            None => self.open().await,
        };
        let Ok(mut stream) = opened else {
            // Also when it failed at once, the others get their turn.
            tokio::task::yield_now().await;
            return 0;
        };
        let requests = &self.plan.requests;
        let request = requests[self.next % requests.len()].as_bytes();
        self.next += self.plan.connections;
        match client::exchange(&mut stream, request, &mut self.buffer).await {
            Ok((status, _)) => {
                self.stream = (!self.plan.reconnect).then_some(stream);
                status
            }
            Err(_) => 0,
        }
    }
}
