//! Drives the machine: clocks, tasks, channels. Decides nothing.

use std::{
    collections::HashMap,
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use identity_core::lookup::{Identity, ObjectRef};
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tracing::{Instrument as _, Span};

use super::{
    Ask, Backend, FetchError, Freshness, Interest, ManagerConfig, Notice, Token, TokenError, Tokens, Urgency,
    key::Key,
    machine::{Effect, Input, Machine, Now, Waiter, with_wait},
    shelf::Shelf,
};
use crate::{
    clock::Clock,
    metrics::{self, Metrics, Wanted},
};

/// How often the machine looks at the wall clock, which may have been set.
const LOOK: Duration = Duration::from_secs(30);
/// Notices that a slow listener may be behind.
const NOTICES: usize = 256;

/// The token manager: single flight, refresh ahead, stale while upstream fails, bounded in every direction.
///
/// Answers what is at hand without a lock. A task of its own, begun by the first request that is not, does the rest; it ends
/// with the last clone. Clones share everything.
pub struct Manager<B, C> {
    handle: Arc<Handle<B, C>>,
}

type Answer = Result<Arc<Token>, TokenError>;

struct Handle<B, C> {
    core: Arc<Core<B, C>>,
    commands: mpsc::Sender<Command>,
    /// Until the driver runs.
    idle: Mutex<Option<mpsc::Receiver<Command>>>,
    running: AtomicBool,
    waiters: AtomicU64,
}

/// What the driver and the readers share.
struct Core<B, C> {
    backend: B,
    clock: C,
    config: ManagerConfig,
    metrics: Arc<Metrics>,
    shelf: Shelf,
    base: Instant,
    notices: broadcast::Sender<Notice>,
}

enum Command {
    Request {
        key: Key,
        pod: Option<u64>,
        freshness: Freshness,
        waiter: Waiter,
        deadline: Duration,
        reply: oneshot::Sender<Answer>,
        /// Of the request.
        span: Span,
    },
    Other(Input),
    Ping(oneshot::Sender<()>),
}

// === impl Core ===

impl<B, C: Clock> Core<B, C> {
    fn now(&self) -> Now {
        Now { wall: self.clock.now(), mono: self.base.elapsed() }
    }
}

// === impl Manager ===

impl<B: Backend, C: Clock> Manager<B, C> {
    /// An empty one in front of `backend`.
    pub fn new(backend: B, clock: C, config: ManagerConfig, metrics: Arc<Metrics>) -> Self {
        let (commands, queue) = mpsc::channel(config.queue.max(1));
        let core = Core {
            backend,
            clock,
            config,
            metrics,
            shelf: Shelf::new(),
            base: Instant::now(),
            notices: broadcast::Sender::new(NOTICES),
        };
        let handle = Handle {
            core: Arc::new(core),
            commands,
            idle: Mutex::new(Some(queue)),
            running: AtomicBool::new(false),
            waiters: AtomicU64::new(0),
        };
        Self { handle: Arc::new(handle) }
    }

    /// Number of (identity, audience) pairs held.
    pub fn len(&self) -> usize {
        self.handle.core.shelf.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What people should be told from now on, the backend's notices among it. Whoever is more than 256 behind misses the
    /// oldest.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.handle.core.notices.subscribe()
    }

    /// The credential of `identity` has another version now, and works: tokens of the former one are replaced within
    /// [`ManagerConfig::superseded`], unless upstream fails meanwhile. What the backend says itself
    /// ([`Backend::notices`]) need not be told.
    pub async fn credential_changed(&self, identity: &ObjectRef, version: u64) {
        let group = self.handle.core.shelf.group(identity);
        self.tell(Input::CredentialChanged { group, source: None, version }).await;
    }

    /// A pod of this node has got `identity`: tokens for the audiences that it was asked for lately are got before the pod
    /// asks ([`ManagerConfig::prefetch`]), after everything that somebody waits for.
    pub async fn identity_assigned(&self, identity: &Arc<Identity>) {
        let group = self.handle.core.shelf.group(&identity.object);
        self.tell(Input::Assigned { group, identity: Arc::clone(identity) }).await;
    }

    /// No pod of this node has `identity` any more: its tokens are forgotten.
    pub async fn identity_gone(&self, identity: &ObjectRef) {
        let group = self.handle.core.shelf.group(identity);
        self.tell(Input::IdentityGone { group }).await;
    }

    /// The pod with this UID is gone: what it asked for is kept only if others ask for it.
    pub async fn pod_gone(&self, uid: &str) {
        self.tell(Input::PodGone { pod: crate::digest::first64(uid.as_bytes()) }).await;
    }

    /// Comes back once the task has taken in everything before: whether it is stuck can be seen by that.
    pub async fn answers(&self) {
        if self.handle.running.load(Ordering::Acquire) {
            let (reply, answer) = oneshot::channel();
            if self.handle.commands.send(Command::Ping(reply)).await.is_ok() {
                let _ = answer.await;
            }
        }
    }

    async fn tell(&self, input: Input) {
        // Before the first request there is nothing to forget.
        if self.handle.running.load(Ordering::Acquire) {
            let _ = self.handle.commands.send(Command::Other(input)).await;
        }
    }

    /// Begins the task, if it is the first time.
    fn run(&self) {
        let handle = &self.handle;
        if handle.running.load(Ordering::Acquire) {
            return;
        }
        if let Some(queue) = handle.idle.lock().unwrap_or_else(PoisonError::into_inner).take() {
            tokio::spawn(drive(Arc::clone(&handle.core), queue));
            handle.running.store(true, Ordering::Release);
        }
    }

    async fn ask(&self, pod: Option<u64>, identity: &Arc<Identity>, resource: &str, freshness: Freshness) -> Answer {
        if freshness == Freshness::Any
            && let Some(ready) = self.ready(identity, resource)
        {
            return ready;
        }
        self.run();
        let (handle, core) = (&self.handle, &self.handle.core);
        let late = || TokenError::Unavailable {
            message: "The token was not obtained in time; try again".to_owned(),
            retry_after: Duration::from_secs(1),
        };
        let deadline = Instant::now() + core.config.wait;
        let key = Key::new(core.shelf.hashes(identity, resource), identity, resource);
        let waiter = handle.waiters.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let (deadline_after, span) = (deadline.duration_since(core.base), Span::current());
        let command = Command::Request { key, pod, freshness, waiter, deadline: deadline_after, reply, span };
        if !matches!(timeout_at(deadline, handle.commands.send(command)).await, Ok(Ok(()))) {
            return Err(late());
        }
        let mut leaving = Leaving { commands: &handle.commands, waiter: Some(waiter) };
        // The machine answers by the deadline; a little later it is not to be expected.
        let answer = timeout_at(deadline + Duration::from_secs(1), answer).await;
        if answer.is_ok() {
            leaving.waiter = None;
        }
        answer.ok().and_then(Result::ok).unwrap_or_else(|| Err(late()))
    }
}

impl<B: Backend, C: Clock> Tokens for Manager<B, C> {
    fn ready(&self, identity: &Arc<Identity>, resource: &str) -> Option<Answer> {
        let core = &self.handle.core;
        core.shelf.read(identity, resource, |slot, view| {
            let second = core.clock.now().as_second();
            slot.used.touch(second);
            if let Some((token, until)) = &view.token
                && second < *until
            {
                core.metrics.cache_hits.inc();
                return Some(Ok(Arc::clone(token)));
            }
            let (error, until) = view.failed.as_ref()?;
            let left = until.checked_sub(core.base.elapsed()).filter(|left| !left.is_zero())?;
            Some(Err(with_wait(error, left)))
        })?
    }

    async fn get(&self, identity: &Arc<Identity>, resource: &str, freshness: Freshness) -> Answer {
        self.ask(None, identity, resource, freshness).await
    }

    async fn get_for(&self, pod: &str, identity: &Arc<Identity>, resource: &str, freshness: Freshness) -> Answer {
        self.ask(Some(crate::digest::first64(pod.as_bytes())), identity, resource, freshness).await
    }
}

impl<B, C> Clone for Manager<B, C> {
    fn clone(&self) -> Self {
        Self { handle: Arc::clone(&self.handle) }
    }
}

impl<B, C> fmt::Debug for Manager<B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("config", &self.handle.core.config).finish_non_exhaustive()
    }
}

/// Says that a waiter has left, unless it was answered. When the queue is full, its deadline will do.
struct Leaving<'a> {
    commands: &'a mpsc::Sender<Command>,
    waiter: Option<Waiter>,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter {
            let _ = self.commands.try_send(Command::Other(Input::Cancelled { waiter }));
        }
    }
}

// === the driver ===

type Fetched = (Key, Result<Token, FetchError>);

/// A token that is being got.
struct UnderWay {
    urgency: watch::Sender<Urgency>,
    span: Span,
}

struct Driver<B, C> {
    core: Arc<Core<B, C>>,
    machine: Machine,
    effects: Vec<Effect>,
    fetches: JoinSet<Fetched>,
    under_way: HashMap<Key, UnderWay>,
    /// The span of the request that is being taken in: what it makes be got belongs to it.
    cause: Span,
    replies: HashMap<Waiter, oneshot::Sender<Answer>>,
    timer: Option<Instant>,
}

async fn drive<B: Backend, C: Clock>(core: Arc<Core<B, C>>, mut queue: mpsc::Receiver<Command>) {
    let mut driver = Driver {
        machine: Machine::new(core.config.clone(), rand::random()),
        core,
        effects: Vec::new(),
        fetches: JoinSet::new(),
        under_way: HashMap::new(),
        cause: Span::none(),
        replies: HashMap::new(),
        timer: None,
    };
    let mut notices = driver.core.backend.notices();
    loop {
        let timer = driver.timer.map(|at| at.min(Instant::now() + LOOK));
        tokio::select! {
            command = queue.recv() => match command {
                Some(command) => driver.command(command),
                None => return,
            },
            Some(fetched) = driver.fetches.join_next() => if let Ok(fetched) = fetched {
                driver.fetched(fetched);
            },
            notice = next(&mut notices) => driver.notice(notice),
            () = tokio::time::sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {
                driver.handle(Input::Timer);
            }
        }
    }
}

impl<B: Backend, C: Clock> Driver<B, C> {
    fn command(&mut self, command: Command) {
        match command {
            Command::Request { key, pod, freshness, waiter, deadline, reply, span } => {
                // Who has left while this was on its way wants nothing.
                if !reply.is_closed() {
                    if let Some(others) = self.under_way.get(&key) {
                        span.follows_from(&others.span);
                    }
                    self.replies.insert(waiter, reply);
                    self.cause = span;
                    self.handle(Input::Request { key, waiter, pod, deadline, freshness });
                    self.cause = Span::none();
                }
            }
            Command::Ping(reply) => drop(reply.send(())),
            Command::Other(input) => {
                if let Input::Cancelled { waiter } = &input {
                    self.replies.remove(waiter);
                }
                self.handle(input);
            }
        }
    }

    fn fetched(&mut self, (key, result): Fetched) {
        let urgency = self.under_way.remove(&key).map(|under_way| *under_way.urgency.borrow());
        let wanted = if urgency == Some(Urgency::Urgent) { Wanted::Now } else { Wanted::Ahead };
        self.core.metrics.fetched(
            wanted,
            match &result {
                Ok(_) => metrics::Fetched::Ok,
                Err(FetchError::Failed(_)) => metrics::Fetched::Failed,
                Err(FetchError::Abandoned) => metrics::Fetched::Abandoned,
            },
        );
        let result = match result {
            Ok(token) => Some(Ok(Arc::new(token))),
            Err(FetchError::Failed(error)) => Some(Err(error)),
            Err(FetchError::Abandoned) => None,
        };
        // A token is only got with the newest credential known.
        let version = self.core.backend.credential_version(key.identity());
        if version != 0 {
            let (group, source) = (key.group(), Some(key.source()));
            self.handle(Input::CredentialChanged { group, source, version });
        }
        self.handle(Input::Fetched { key, result });
    }

    /// The backend has something to tell.
    fn notice(&mut self, notice: Notice) {
        if let Notice::Rotated { identity, version, .. } = &notice {
            let group = self.core.shelf.group(identity);
            self.handle(Input::CredentialChanged { group, source: None, version: *version });
        }
        let _ = self.core.notices.send(notice);
    }

    fn handle(&mut self, input: Input) {
        self.machine.handle(self.core.now(), input, &mut self.effects);
        for effect in std::mem::take(&mut self.effects) {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Fetch { key, freshness, urgency } => {
                self.core.metrics.cache_misses.inc();
                let (sender, interest) = Interest::new(urgency);
                let span = fetch_span(&self.cause, &key, urgency);
                self.under_way.insert(key.clone(), UnderWay { urgency: sender, span: span.clone() });
                let fetch = fetch(Arc::clone(&self.core), key, Ask { freshness, interest });
                self.fetches.spawn(fetch.instrument(span));
            }
            Effect::Urgency { key, urgency } => {
                if let Some(under_way) = self.under_way.get(&key) {
                    under_way.urgency.send_replace(urgency);
                }
            }
            Effect::Answer { waiter, result } => {
                if let Some(reply) = self.replies.remove(&waiter) {
                    let _ = reply.send(result);
                }
            }
            Effect::Publish { key, view, used } => self.core.shelf.publish(&key, view, &used),
            Effect::Evict { key, for_room } => {
                self.core.shelf.evict(&key);
                if for_room {
                    self.core.metrics.cache_evictions.inc();
                }
            }
            Effect::SetTimer { at } => self.timer = at.map(|at| self.core.base + at),
            Effect::Notice(notice) => {
                if let Notice::Refused { identity, resource, error } = &notice {
                    tracing::warn!(namespace = %identity.namespace, identity = %identity.name, %resource, %error,
                        "refused for good: no token until that changes");
                }
                // There may be no listener.
                let _ = self.core.notices.send(notice);
            }
        }
    }
}

/// Getting a token, for the request with this span or ahead of all requests.
fn fetch_span(cause: &Span, key: &Key, urgency: Urgency) -> Span {
    let object = &key.identity().object;
    let wanted = if urgency == Urgency::Urgent { "now" } else { "ahead" };
    let (namespace, name) = (&*object.namespace, &*object.name);
    // Nobody's when there is no cause: this task has a span of its own as little as it has a request.
    tracing::debug_span!(parent: cause.id(), "fetch", identity_namespace = namespace, identity = name, wanted)
}

/// The backend's next notice, for ever if it has none to come.
async fn next(notices: &mut Option<broadcast::Receiver<Notice>>) -> Notice {
    loop {
        match notices {
            Some(receiver) => match receiver.recv().await {
                Ok(notice) => return notice,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => *notices = None,
            },
            None => return std::future::pending().await,
        }
    }
}

/// One request upstream. However it ends, it ends, and says so.
async fn fetch<B: Backend, C: Clock>(core: Arc<Core<B, C>>, key: Key, ask: Ask) -> Fetched {
    let failed = |message: &str| {
        let (message, retry_after) = (message.to_owned(), Duration::from_secs(2));
        Err(FetchError::Failed(TokenError::Unavailable { message, retry_after }))
    };
    let fetch = AssertUnwindSafe(core.backend.fetch_for(key.identity(), key.resource(), ask)).catch_unwind();
    let result = match tokio::time::timeout(core.config.fetch, fetch).await {
        Ok(Ok(result)) => result,
        Ok(Err(_panic)) => failed("getting the token failed inside the broker; its log says more"),
        Err(_elapsed) => failed("upstream did not answer in time"),
    };
    (key, result)
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
