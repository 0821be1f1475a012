//! The controller: one task owns the index, takes in what has come since it last looked, plans once for all of it, and hands
//! the actions out. No locks, one plan for each burst.
//!
//! ```text
//! source ─ Update ─► index ─ plan ─► queue ─► executor (bounded number at once) ─ Report ─► index
//!                      ▲ only while the lease is held
//! ```
//!
//! Nothing is planned before every kind was listed once: a controller that restarts and finds everything as it should be
//! writes nothing. When the lease is lost, what waits is dropped and what is under way is broken off; the index then
//! forgets that it asked, and whatever the server did do comes back through the watch.

mod audit;
mod checks;
mod dispatch;
mod proof;
mod telling;

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

pub use self::audit::GrantAudit;
pub use self::checks::{Check, Checked, Credentials};
use self::{audit::Careful, checks::Checks, dispatch::Dispatch, proof::Proofs, telling::Teller};
pub use super::follow::Error;
use super::{
    clock::Clock,
    executor::Executor,
    follow::{BURST, event},
    identities::{Feed, Identities},
    lease::{self, Fence, Leadership},
    observe::{Nobody, Observer},
    source::{Interest, Source, Update},
};
use crate::{
    assign::{Index, Options},
    grant::Proof,
};

/// Why a grant in a manifest waits.
const UNPROVEN: &str = "a manifest may say any name; --unproven-grants takes them all for true";

/// How long it may sleep at most while something waits for the wall clock: as late may it be when that is set.
const WALL_CLOCK: Duration = Duration::from_secs(1);

/// How a controller runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// How assignments are made. With manifests nobody collects garbage: there `orphan_grace` is zero, whatever it says.
    pub options: Options,
    /// The lease. With manifests only its holder's name is used: there the state directory's lock file is the lease.
    pub lease: lease::Config,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Who counts.
    pub observer: Arc<dyn Observer>,
    /// Where the state is told, for probes.
    pub health: watch::Sender<Health>,
    /// How many writes may be under way at once; and as many of grants' status, which are recorded first.
    pub in_flight: usize,
    /// How long one request may take.
    pub request_timeout: Duration,
    /// How long writes that are under way may take to end when the controller stops.
    pub grace: Duration,
    /// How credentials are tried; none: they are not.
    pub credentials: Option<Credentials>,
    /// Where the identities go that other objects name.
    pub identities: Option<Identities>,
    /// Where it is recorded what becomes of grants, before it does; none: it is not.
    pub audit: Option<Arc<dyn GrantAudit>>,
}

impl Config {
    /// Everything else at its default: credentials are not tried, 24 writes at once, 10 s for each, 5 s to stop.
    pub fn new(lease: lease::Config, clock: Arc<dyn Clock>) -> Self {
        Self {
            options: Options::default(),
            lease,
            clock,
            observer: Arc::new(Nobody),
            health: watch::channel(Health::default()).0,
            in_flight: 24,
            request_timeout: Duration::from_secs(10),
            grace: Duration::from_secs(5),
            credentials: None,
            identities: None,
            audit: None,
        }
    }
}

/// What a probe may ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Every kind was listed once.
    pub synced: bool,
    /// Who leads.
    pub leadership: Leadership,
}

impl Health {
    /// Ready: it sees everything and knows who leads. A standby is ready, since it can take over at once.
    pub fn is_ready(&self) -> bool {
        self.synced && self.leadership != Leadership::Unknown
    }
}

/// Runs until `shutdown`. Then nothing new is begun, what is under way may end within [`Config::grace`], and the lease is
/// released.
pub async fn run(mut config: Config, source: Source, shutdown: CancellationToken) -> Result<(), Error> {
    if matches!(source, Source::Manifests(_)) {
        config.options.orphan_grace = SignedDuration::ZERO;
        let unproven = || Proof::Missing(UNPROVEN.to_owned());
        config.options.proof.get_or_insert_with(unproven);
    }
    // Beyond `shutdown` itself: the lease is given back last.
    let release = CancellationToken::new();
    let _release_always = release.clone().drop_guard();
    let fence = Arc::new(Fence::new(config.clock.clone()));
    let (leadership, watch) = watch::channel(Leadership::Unknown);

    let interests = [
        Interest::Pods { node: None },
        Interest::Identities,
        Interest::Bindings,
        Interest::Assigned { node: None },
        Interest::Grants,
    ];
    let updates = source.watch(&interests, Some(config.observer.clone()), &release)?;
    let lease = tokio::spawn(keep_lease(source.clone(), config.clone(), fence.clone(), leadership, release.clone()));
    let telling = Teller::new(&source, fence.clone(), &config);
    let executor = Executor::new(
        &source,
        &config.lease.holder,
        config.clock.clone(),
        fence.clone(),
        config.observer.clone(),
        config.request_timeout,
    );
    let mut controller = Controller {
        index: Index::new(config.options.clone()),
        dispatch: Dispatch::new(Arc::new(Careful::new(executor, fence, &source, &config)), &config),
        checks: Checks::new(&config),
        proofs: Proofs::new(&source, &config),
        telling,
        identities: config.identities.clone().map(|to| Feed::new(to, config.options.cluster_wide)),
        updates,
        leadership: watch,
        leading: false,
        config,
        status_due: None,
    };
    let result = controller.run(&shutdown).await;
    controller.dispatch.finish(controller.config.grace).await;
    release.cancel();
    // Bounded: the release is one request with a limit of its own.
    let _ = lease.await;
    result
}

async fn keep_lease(
    source: Source,
    config: Config,
    fence: Arc<Fence>,
    leadership: watch::Sender<Leadership>,
    stop: CancellationToken,
) {
    match source {
        Source::Kubernetes(client) => {
            lease::run_kubernetes(client, config.lease, config.clock, fence, leadership, stop).await;
        }
        Source::Manifests(manifests) => lease::run_file(manifests.state().clone(), fence, leadership, stop).await,
    }
}

struct Controller {
    config: Config,
    index: Index,
    dispatch: Dispatch,
    checks: Checks,
    proofs: Proofs,
    telling: Teller,
    identities: Option<Feed>,
    updates: mpsc::Receiver<Update>,
    leadership: watch::Receiver<Leadership>,
    leading: bool,
    status_due: Option<Timestamp>,
}

impl Controller {
    async fn run(&mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        let mut batch = Vec::new();
        loop {
            let due = self.due();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                changed = self.leadership.changed() => {
                    if changed.is_err() {
                        // Its task is gone. Without it nothing may be written; the fence sees to that.
                        self.lose();
                        return Err(Error::WatchesEnded);
                    }
                }
                () = self.dispatch.settled(&mut self.index) => {}
                found = self.checks.next() => {
                    if let Some(event) = found {
                        self.index.apply(event);
                    }
                }
                found = self.proofs.next() => {
                    if let Some(event) = found {
                        self.index.apply(event);
                    }
                }
                written = self.telling.next() => {
                    if let Some((telling, outcome)) = written {
                        self.index.tellings().done(&telling, outcome, self.config.clock.uptime());
                    }
                }
                taken = self.updates.recv_many(&mut batch, BURST) => {
                    if taken == 0 {
                        return Err(Error::WatchesEnded);
                    }
                }
                () = sleep(due) => {}
            }
            // What has come in the meantime belongs to the same plan.
            while batch.len() < BURST
                && let Ok(update) = self.updates.try_recv()
            {
                batch.push(update);
            }
            for update in batch.drain(..) {
                self.checks.take(&update);
                if let Some(identities) = &mut self.identities {
                    identities.take(&update);
                }
                if let Some(event) = event(update) {
                    self.index.apply(event);
                }
            }
            if let Some(identities) = &mut self.identities {
                identities.publish();
            }
            self.dispatch.settle(&mut self.index);
            self.follow_leadership();
            self.checks.lead(self.leading && self.index.is_synced());
            self.checks.start();
            self.plan();
        }
    }

    /// When there is something to do though nothing happens.
    fn due(&self) -> Option<Duration> {
        if !self.leading {
            return None;
        }
        let now = self.config.clock.now();
        let planned = [self.index.next_due(), self.status_due].into_iter().flatten().min();
        let planned = planned.map(|due| Duration::try_from(due.duration_since(now)).unwrap_or_default());
        // Boxes go by the wall clock, which may be set while this sleeps.
        let transition = self.index.next_transition().map(|due| {
            let wait = Duration::try_from(due.duration_since(now)).unwrap_or_default();
            wait.min(WALL_CLOCK)
        });
        [planned, transition, self.dispatch.due(), self.checks.due(), self.telling.due()].into_iter().flatten().min()
    }

    fn follow_leadership(&mut self) {
        let leadership = self.leadership.borrow_and_update().clone();
        let synced = self.index.is_synced();
        let leading = leadership == Leadership::Leading;
        self.config.health.send_if_modified(|health| {
            let now = Health { synced, leadership };
            let changed = *health != now;
            *health = now;
            changed
        });
        if leading != self.leading {
            self.config.observer.leading(leading);
            self.index.tellings().lead(leading);
            if leading {
                info!("leading: writing assignments");
                // What was seen as a standby was told by whoever led.
                self.index.forget_in_flight();
                self.leading = true;
            } else {
                self.lose();
            }
        }
    }

    fn lose(&mut self) {
        info!("not leading: writing nothing");
        self.leading = false;
        self.dispatch.abandon();
        self.proofs.abandon();
        self.telling.abandon();
        self.index.tellings().lead(false);
        self.index.forget_in_flight();
    }

    fn plan(&mut self) {
        if !self.leading || !self.index.is_synced() {
            return;
        }
        let now = self.config.clock.now();
        let began = self.config.clock.uptime();
        let actions = self.index.plan(now);
        self.dispatch.record(self.index.take_records());
        self.config.observer.planned(self.config.clock.uptime().saturating_sub(began), actions.len());
        if !actions.is_empty() {
            debug!(actions = actions.len(), "planned");
        }
        // What a grant gives or takes comes before what is merely to be there.
        let (first, rest) = actions.into_iter().partition(|action| self.index.concerns_grant(action));
        self.dispatch.queue_first(first);
        self.dispatch.queue(rest);
        self.proofs.start(&mut self.index);
        // Status tells people what has come of it, so it can wait until it has; what the clock does to it does not wait.
        let idle = self.dispatch.is_idle();
        let status = if idle { self.index.plan_status(now) } else { self.index.plan_transitions(now) };
        self.status_due = status.next_due;
        if !status.actions.is_empty() {
            debug!(
                actions = status.actions.len(),
                boxes_looked_at = self.index.boxes_looked_at(),
                "planned what is said"
            );
        }
        self.dispatch.queue_first(status.actions);
        self.dispatch.start();
        self.telling.start(self.index.tellings(), self.dispatch.is_idle());
    }
}

async fn sleep(due: Option<Duration>) {
    match due {
        Some(due) => tokio::time::sleep(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "controller/tests.rs"]
mod tests;
