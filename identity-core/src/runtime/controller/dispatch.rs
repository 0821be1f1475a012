//! Actions that wait and actions under way: how many at once, and how long to hold back after failures.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::task::{Id, JoinError, JoinSet};
use tracing::{debug, error, info, warn};

use super::{Config, audit::Careful};
use crate::{
    assign::{Action, Event, Index, Outcome, Precondition},
    grant::Record,
    object::ObjectKey,
    runtime::{
        Backoff,
        clock::Clock,
        executor::{Report, Seen, Success},
        observe::{Change, Observer, WriteOutcome},
        request::Failure,
    },
};

/// Between attempts at one object.
const EACH: Backoff = Backoff { first: Duration::from_millis(200), longest: Duration::from_mins(1) };
/// The same when the audit takes no record: it says how its disk is by itself, and costs the API server nothing.
const UNRECORDED: Backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(5) };
/// What will be refused again is tried again all the same, seldom: permissions and schemas change.
const REFUSED: Duration = Duration::from_secs(30);
/// Between attempts at anything, after the server said that it has too much to do, or nothing. This is the budget: while it
/// lasts, nothing is sent at all.
const ALL: Backoff = Backoff { first: Duration::from_millis(250), longest: Duration::from_secs(15) };
/// Objects whose failures are counted; beyond that, counting begins anew.
const MOST_COUNTED: usize = 10_000;
/// The loss of the lease is told within this time after the fence has closed.
const FENCED: Duration = Duration::from_millis(200);
/// Events are for people: they never hold up a write, and surplus ones are dropped and counted.
const MOST_EVENTS: usize = 256;
const EVENTS_AT_ONCE: usize = 4;
/// Records of what has happened by itself, each tried until it is written.
const MOST_RECORDS: usize = 256;

pub(super) struct Dispatch {
    executor: Arc<Careful>,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    limit: usize,
    /// Since an uptime.
    waiting: VecDeque<(Duration, Action)>,
    /// The same of grants' status, which has an allowance of its own: a record may take as long as its disk, and what takes
    /// access back must not wait for that.
    grants: VecDeque<(Duration, Action)>,
    running: JoinSet<Report>,
    under_way: HashMap<Id, (Duration, Action)>,
    events: VecDeque<Action>,
    publishing: JoinSet<Report>,
    recording: JoinSet<()>,
    /// Failures in a row of one object's writes.
    failures: HashMap<String, u32>,
    /// Failures in a row of any write that tell about the server.
    unwell: u32,
    /// Uptime before which nothing is sent.
    paused: Option<Duration>,
}

impl Dispatch {
    pub(super) fn new(executor: Arc<Careful>, config: &Config) -> Self {
        Self {
            executor,
            clock: config.clock.clone(),
            observer: config.observer.clone(),
            limit: config.in_flight.max(1),
            waiting: VecDeque::new(),
            grants: VecDeque::new(),
            running: JoinSet::new(),
            under_way: HashMap::new(),
            events: VecDeque::new(),
            publishing: JoinSet::new(),
            recording: JoinSet::new(),
            failures: HashMap::new(),
            unwell: 0,
            paused: None,
        }
    }

    /// Nothing waits and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.waits() == 0 && self.under_way.is_empty()
    }

    fn waits(&self) -> usize {
        self.waiting.len() + self.grants.len()
    }

    /// The same before what waits already.
    pub(super) fn queue_first(&mut self, actions: Vec<Action>) {
        let (later, later_grants) = (std::mem::take(&mut self.waiting), std::mem::take(&mut self.grants));
        self.queue(actions);
        self.waiting.extend(later);
        self.grants.extend(later_grants);
    }

    pub(super) fn queue(&mut self, actions: Vec<Action>) {
        let now = self.clock.uptime();
        for action in actions {
            match action {
                Action::Event(_) if self.events.len() < MOST_EVENTS => self.events.push_back(action),
                Action::Event(_) => self.observer.wrote("Event", WriteOutcome::Dropped),
                Action::Grant(_) => self.grants.push_back((now, action)),
                _ => self.waiting.push_back((now, action)),
            }
        }
    }

    /// Records what has happened already. That goes on when the lease is lost: it is true whoever leads.
    pub(super) fn record(&mut self, records: Vec<Record>) {
        while self.recording.try_join_next().is_some() {}
        for record in records {
            if self.recording.len() == MOST_RECORDS {
                error!(grant = %record.grant, "not recorded, since too much waits for that: {}", record.message);
                continue;
            }
            let executor = self.executor.clone();
            self.recording.spawn(async move { executor.record(&record).await });
        }
    }

    /// When a pause ends.
    pub(super) fn due(&self) -> Option<Duration> {
        let paused = self.paused.filter(|_| self.waits() > 0)?;
        Some(paused.saturating_sub(self.clock.uptime()))
    }

    /// Begins as many as may be under way at once.
    pub(super) fn start(&mut self) {
        if self.paused.is_some_and(|until| self.clock.uptime() < until) {
            return;
        }
        self.paused = None;
        // After failures one attempt tells whether the server is well again.
        let limit = if self.unwell > 0 { 1 } else { self.limit };
        let (mut grants, mut others) = (0, 0);
        for (_, action) in self.under_way.values() {
            *if matches!(action, Action::Grant(_)) { &mut grants } else { &mut others } += 1;
        }
        let grants = self.grants.drain(..self.grants.len().min(limit.saturating_sub(grants)));
        let others = self.waiting.drain(..self.waiting.len().min(limit.saturating_sub(others)));
        for (since, action) in grants.chain(others) {
            let executor = self.executor.clone();
            let task = action.clone();
            let handle = self.running.spawn(async move { executor.execute(&task).await });
            self.under_way.insert(handle.id(), (since, action));
        }
        while self.publishing.len() < EVENTS_AT_ONCE
            && let Some(action) = self.events.pop_front()
        {
            let executor = self.executor.clone();
            self.publishing.spawn(async move { executor.execute(&action).await });
        }
        self.observer.queue(self.waits(), self.under_way.len());
    }

    /// Waits until at least one has ended.
    pub(super) async fn settled(&mut self, index: &mut Index) {
        tokio::select! {
            Some(ended) = self.running.join_next_with_id() => self.report(ended, index),
            Some(ended) = self.publishing.join_next() => published(ended),
            else => std::future::pending().await,
        }
    }

    /// Takes in what else has ended.
    pub(super) fn settle(&mut self, index: &mut Index) {
        while let Some(ended) = self.running.try_join_next_with_id() {
            self.report(ended, index);
        }
        while let Some(ended) = self.publishing.try_join_next() {
            published(ended);
        }
    }

    /// Breaks everything off. The results of what the server did do come through the watch.
    pub(super) fn abandon(&mut self) {
        self.waiting.clear();
        self.grants.clear();
        self.events.clear();
        self.running.abort_all();
        self.publishing.abort_all();
        // Their ends are of no interest any more.
        self.running = JoinSet::new();
        self.publishing = JoinSet::new();
        self.under_way.clear();
        self.paused = None;
        self.unwell = 0;
        self.observer.queue(0, 0);
    }

    /// Begins nothing more and lets what is under way end, for at most `grace`.
    pub(super) async fn finish(&mut self, grace: Duration) {
        self.waiting.clear();
        self.grants.clear();
        self.events.clear();
        let all = async {
            while self.running.join_next().await.is_some() {}
            while self.publishing.join_next().await.is_some() {}
            while self.recording.join_next().await.is_some() {}
        };
        if tokio::time::timeout(grace, all).await.is_err() {
            warn!(under_way = self.running.len(), "stopping before every write has ended");
        }
        self.abandon();
    }

    fn report(&mut self, ended: Result<(Id, Report), JoinError>, index: &mut Index) {
        let (id, report) = match ended {
            Ok((id, report)) => (id, Some(report)),
            Err(error) => (error.id(), None),
        };
        // None: it was broken off, and the index has been told.
        let Some((since, action)) = self.under_way.remove(&id) else { return };
        if let (Some(Report { result: Ok(_), .. }), Some(change)) = (&report, change(&action)) {
            self.observer.assigned(change, self.clock.uptime().saturating_sub(since));
        }
        let outcome = match report {
            Some(report) => self.outcome(&action, report, index),
            None => Outcome::Failed { retry_at: self.at(REFUSED) },
        };
        if let (Action::Grant(update), Outcome::Granted(_) | Outcome::Done) = (&action, &outcome)
            && let Some(change) = &update.transition
        {
            let (from, to) = (change.from.map_or("", |phase| phase.as_str()), change.to.as_str());
            info!(
                grant = %update.key, binding = %update.binding, from, to, reason = change.reason,
                "grant: {}", change.message
            );
        }
        index.done(&action, outcome);
    }

    fn outcome(&mut self, action: &Action, report: Report, index: &mut Index) -> Outcome {
        let name = name(action);
        let failure = match report.result {
            Ok(success) => {
                self.failures.remove(&name);
                self.unwell = 0;
                return match success {
                    Success::Applied(object) => Outcome::Applied(object),
                    Success::Granted(object) => Outcome::Granted(object),
                    Success::Done => Outcome::Done,
                };
            }
            Err(failure) => failure,
        };
        if !failure.is_transient() && !matches!(failure, Failure::Fenced | Failure::Unrecorded(_)) {
            // An answer at all: the server is well.
            self.unwell = 0;
        }
        if self.failures.len() > MOST_COUNTED {
            self.failures.clear();
        }
        let failures = self.failures.entry(name.clone()).or_default();
        let count = *failures;
        *failures = count.saturating_add(1);
        match failure {
            Failure::Fenced => {
                debug!(action = name, "not sent: the lease is not held");
                Outcome::Failed { retry_at: self.at(FENCED) }
            }
            Failure::Conflict(message) | Failure::NotFound(message) => {
                debug!(action = name, message, "out of date; looking again");
                match report.seen {
                    Some(Seen::Object(object)) => {
                        index.apply(Event::Assigned(object));
                        Outcome::Conflict
                    }
                    seen => {
                        // Known to be gone, or not known: worked out anew a little later.
                        if let (true, Some((key, uid))) = (seen.is_some(), expected(action)) {
                            index.apply(Event::AssignedDeleted { key, uid: Some(uid) });
                        }
                        Outcome::Failed { retry_at: self.at(EACH.random_delay(count, None)) }
                    }
                }
            }
            failure @ (Failure::Busy { .. } | Failure::Timeout(_) | Failure::Unreachable(_) | Failure::Disk(_)) => {
                if self.unwell == 0 {
                    warn!(action = name, error = %failure, "write failed; holding back");
                }
                let asked = failure.retry_after();
                let pause = ALL.random_delay(self.unwell, asked);
                self.unwell = self.unwell.saturating_add(1);
                let until = self.clock.uptime() + pause;
                self.paused = Some(self.paused.map_or(until, |paused| paused.max(until)));
                Outcome::Failed { retry_at: self.at(EACH.random_delay(count, asked)) }
            }
            failure @ Failure::Unrecorded(_) => {
                if count == 0 {
                    error!(action = name, error = %failure, "nothing becomes of this grant until it can be recorded");
                }
                Outcome::Failed { retry_at: self.at(UNRECORDED.random_delay(count, None)) }
            }
            failure => {
                if count == 0 {
                    warn!(action = name, error = %failure, "write refused; trying again now and then");
                }
                Outcome::Failed { retry_at: self.at(EACH.random_delay(count, Some(REFUSED))) }
            }
        }
    }

    fn at(&self, delay: Duration) -> Timestamp {
        let now = self.clock.now();
        now.checked_add(delay).unwrap_or(now)
    }
}

fn published(ended: Result<Report, JoinError>) {
    if let Ok(Report { result: Err(error), .. }) = ended {
        debug!(%error, "an Event was not written");
    }
}

fn change(action: &Action) -> Option<Change> {
    match action {
        Action::Apply(apply) if apply.precondition.is_none() => Some(Change::Created),
        Action::Apply(_) => Some(Change::Updated),
        Action::Delete(_) => Some(Change::Deleted),
        Action::Status(_) | Action::Grant(_) | Action::Event(_) => None,
    }
}

fn expected(action: &Action) -> Option<(ObjectKey, String)> {
    match action {
        Action::Apply(apply) => {
            let Precondition { uid, .. } = apply.precondition.as_ref()?;
            let meta = &apply.object.metadata;
            Some((ObjectKey::new(meta.namespace.as_deref()?, meta.name.as_deref()?), uid.clone()))
        }
        Action::Delete(delete) => Some((delete.key.clone(), delete.precondition.uid.clone())),
        Action::Status(_) | Action::Grant(_) | Action::Event(_) => None,
    }
}

/// For logs and for counting failures.
fn name(action: &Action) -> String {
    match action {
        Action::Apply(apply) => format!(
            "AzureAssignedIdentity {}/{}",
            apply.object.metadata.namespace.as_deref().unwrap_or_default(),
            apply.object.metadata.name.as_deref().unwrap_or_default()
        ),
        Action::Delete(delete) => format!("AzureAssignedIdentity {}", delete.key),
        Action::Status(update) => format!("status of {} {}", update.target.kind(), update.target.key()),
        Action::Grant(update) => format!("status of AzureIdentityGrant {}", update.key),
        Action::Event(notice) => format!("Event for {} {}", notice.target.kind(), notice.target.key()),
    }
}
