//! Secrets of an API server, followed.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use kube::{
    Api, Client,
    api::GetParams,
    runtime::watcher::{self, Event, watcher},
};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, warn};

use super::{Config, Error, store::SecretData, wire::Wire};
use crate::{
    object::ObjectKey,
    runtime::{
        request::{Failure, describe, send},
        source::{BACKOFF, WATCH_SECONDS, impatient, start_was_gone},
    },
};

/// How long one read of a Secret may take.
const LIMIT: Duration = Duration::from_secs(5);
/// What was read so recently is not read again.
const RECENT: Duration = Duration::from_secs(1);
/// An account that may only `get` may be allowed more: how often that is tried.
const AGAIN: Duration = Duration::from_mins(10);

/// All that are followed.
pub(super) struct Followed {
    client: Client,
    config: Config,
    entries: Mutex<HashMap<ObjectKey, Slot>>,
    /// Whether it was said that this account may not watch.
    said: Arc<AtomicBool>,
}

struct Slot {
    entry: Arc<Entry>,
    task: AbortHandle,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One that is followed.
struct Entry {
    key: ObjectKey,
    changes: watch::Sender<u64>,
    how: watch::Sender<How>,
    known: Mutex<Option<Known>>,
    used: Mutex<Instant>,
    /// Held while it is read outside the watch. When that was, and why it failed if it did.
    read: tokio::sync::Mutex<Option<(Instant, Option<String>)>>,
}

/// How what is known of it is kept up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// It was not listed yet.
    Starting,
    /// By a watch (which may be away at the moment; then what was known last stands).
    Watching,
    /// By reading it.
    Reading,
}

/// What is known of a Secret.
#[derive(Clone)]
enum Known {
    Data(Arc<SecretData>),
    Gone,
    Forbidden(String),
    Malformed(String),
}

impl Known {
    fn says_the_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Data(one), Self::Data(other)) => one == other,
            (Self::Gone, Self::Gone) | (Self::Forbidden(_), Self::Forbidden(_)) => true,
            (Self::Malformed(one), Self::Malformed(other)) => one == other,
            _ => false,
        }
    }
}

impl From<Wire> for Known {
    fn from(wire: Wire) -> Self {
        wire.decode().map_or_else(Self::Malformed, |data| Self::Data(Arc::new(data)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Followed {
    pub(super) fn new(client: Client, config: Config) -> Arc<Self> {
        Arc::new(Self { client, config, entries: Mutex::default(), said: Arc::default() })
    }

    pub(super) fn follow(self: &Arc<Self>, key: &ObjectKey) -> watch::Receiver<u64> {
        let mut entries = lock(&self.entries);
        match self.entry(&mut entries, key) {
            Some(entry) => entry.changes.subscribe(),
            None => watch::channel(0).1,
        }
    }

    pub(super) async fn get(self: &Arc<Self>, key: &ObjectKey) -> Result<Arc<SecretData>, Error> {
        let entry = self.entry(&mut lock(&self.entries), key);
        match entry {
            Some(entry) => entry.get(&self.client).await,
            None => {
                fetch(&self.client, key).await.map_or_else(|reason| Err(unavailable(key, reason)), |k| answer(key, &k))
            }
        }
    }

    /// The one that is there, or a new one; none if there are too many.
    fn entry(self: &Arc<Self>, entries: &mut HashMap<ObjectKey, Slot>, key: &ObjectKey) -> Option<Arc<Entry>> {
        let now = Instant::now();
        if let Some(slot) = entries.get(key) {
            *lock(&slot.entry.used) = now;
            return Some(slot.entry.clone());
        }
        if entries.len() >= self.config.most {
            // Whoever follows one would come back at once: that does not give way.
            let unfollowed = entries.iter().filter(|(_, slot)| slot.entry.changes.receiver_count() == 0);
            let least =
                unfollowed.map(|(key, slot)| (*lock(&slot.entry.used), key.clone())).min_by_key(|(used, _)| *used);
            let Some((_, least)) = least else {
                debug!(secret = %key, most = self.config.most, "too many Secrets are followed: this one is read now and then");
                return None;
            };
            entries.remove(&least);
        }
        let entry = Arc::new(Entry {
            key: key.clone(),
            changes: watch::Sender::default(),
            how: watch::Sender::new(How::Starting),
            known: Mutex::default(),
            used: Mutex::new(now),
            read: tokio::sync::Mutex::default(),
        });
        let follower = Follower {
            client: impatient(self.client.clone()),
            config: self.config.clone(),
            entry: entry.clone(),
            all: Arc::downgrade(self),
            said: self.said.clone(),
        };
        let task = tokio::spawn(follower.run()).abort_handle();
        entries.insert(key.clone(), Slot { entry: entry.clone(), task });
        Some(entry)
    }

    /// Drops it if nobody wants it any more.
    fn drop_if_idle(&self, entry: &Arc<Entry>) -> bool {
        let mut entries = lock(&self.entries);
        let idle = entry.changes.receiver_count() == 0 && lock(&entry.used).elapsed() >= self.config.idle;
        if idle && entries.get(&entry.key).is_some_and(|slot| Arc::ptr_eq(&slot.entry, entry)) {
            entries.remove(&entry.key);
        }
        idle
    }
}

fn unavailable(key: &ObjectKey, reason: String) -> Error {
    Error::Unavailable { namespace: key.namespace.to_string(), name: key.name.to_string(), reason }
}

fn answer(key: &ObjectKey, known: &Known) -> Result<Arc<SecretData>, Error> {
    let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
    Err(match known {
        Known::Data(data) => return Ok(data.clone()),
        Known::Gone => Error::NotFound { namespace, name },
        Known::Forbidden(message) => Error::Forbidden { namespace, name, message: message.clone() },
        Known::Malformed(reason) => Error::Malformed { namespace, name, reason: reason.clone() },
    })
}

impl Entry {
    async fn get(&self, client: &Client) -> Result<Arc<SecretData>, Error> {
        let mut how = self.how.subscribe();
        // A copy: what is borrowed must not be kept over an await.
        let settled =
            timeout(LIMIT, how.wait_for(|how| *how != How::Starting)).await.ok().and_then(Result::ok).map(|h| *h);
        match settled {
            None => Err(unavailable(&self.key, format!("the API server has not answered within {LIMIT:?}"))),
            Some(How::Reading) => self.read(client).await,
            Some(How::Watching | How::Starting) => self.answer(),
        }
    }

    fn answer(&self) -> Result<Arc<SecretData>, Error> {
        match &*lock(&self.known) {
            Some(known) => answer(&self.key, known),
            None => Err(unavailable(&self.key, "it was not read yet".to_owned())),
        }
    }

    /// Reads it now, unless that was done a moment ago. When the server is away, what was known last stands.
    async fn read(&self, client: &Client) -> Result<Arc<SecretData>, Error> {
        let mut last = self.read.lock().await;
        if last.as_ref().is_none_or(|(at, _)| at.elapsed() >= RECENT) {
            let result = fetch(client, &self.key).await;
            let failed = result.as_ref().err().cloned();
            // The watch, if there is one by now, knows better.
            if let Ok(known) = result
                && *self.how.borrow() != How::Watching
            {
                self.learn(known);
            }
            *last = Some((Instant::now(), failed));
        }
        match (&*last, lock(&self.known).as_ref()) {
            (_, Some(known)) => answer(&self.key, known),
            (Some((_, Some(reason))), None) => Err(unavailable(&self.key, reason.clone())),
            _ => Err(unavailable(&self.key, "it was not read yet".to_owned())),
        }
    }

    fn learn(&self, news: Known) {
        let changed = {
            let mut known = lock(&self.known);
            let changed = known.as_ref().is_none_or(|known| !known.says_the_same_as(&news));
            *known = Some(news);
            changed
        };
        if changed {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    fn is_forbidden(&self) -> bool {
        matches!(&*lock(&self.known), Some(Known::Forbidden(_)))
    }

    fn keep_by(&self, how: How) {
        self.how.send_if_modified(|now| std::mem::replace(now, how) != how);
    }
}

/// Reads a Secret. An error says why that cannot be told now.
async fn fetch(client: &Client, key: &ObjectKey) -> Result<Known, String> {
    let request = kube::core::Request::new(format!("/api/v1/namespaces/{}/secrets", key.namespace))
        .get(&key.name, &GetParams::default());
    let request = match request {
        Ok(request) => request,
        Err(error) => return Ok(Known::Malformed(error.to_string())),
    };
    match send::<Wire>(client, request, LIMIT).await {
        Ok(wire) => Ok(Known::from(wire)),
        Err(Failure::NotFound(_)) => Ok(Known::Gone),
        Err(Failure::Forbidden(message)) => Ok(Known::Forbidden(message)),
        // The parser's words may quote a value.
        Err(Failure::Unreadable(_)) => Ok(Known::Malformed("the API server's answer cannot be read".to_owned())),
        Err(other) => Err(other.to_string()),
    }
}

/// The task that follows one.
struct Follower {
    client: Client,
    config: Config,
    entry: Arc<Entry>,
    all: Weak<Followed>,
    said: Arc<AtomicBool>,
}

/// Why a watch is not gone on with.
enum End {
    /// It is not allowed: the server's words.
    Refused,
    /// Where it was is forgotten.
    StartOver,
    /// Nobody wants it.
    Idle,
}

impl Follower {
    async fn run(self) {
        let mut failures = 0;
        loop {
            match self.watch(&mut failures).await {
                End::StartOver => {}
                End::Idle => return,
                End::Refused => {
                    if self.poll().await {
                        return;
                    }
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.all.upgrade().is_none_or(|all| all.drop_if_idle(&self.entry))
    }

    async fn watch(&self, failures: &mut u32) -> End {
        let key = &self.entry.key;
        let api = Api::<Wire>::namespaced(self.client.clone(), &key.namespace);
        let config = watcher::Config::default().timeout(WATCH_SECONDS).fields(&format!("metadata.name={}", key.name));
        let mut events = pin!(watcher(api, config));
        let mut listed = Known::Gone;
        let is_it = |wire: &Wire| kube::Resource::meta(wire).name.as_deref() == Some(&*key.name);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = sleep(self.config.idle) => {
                    if self.is_idle() {
                        return End::Idle;
                    }
                    continue;
                }
            };
            match event {
                None => return End::StartOver,
                Some(Ok(Event::Init)) => listed = Known::Gone,
                Some(Ok(Event::InitApply(wire))) if is_it(&wire) => listed = Known::from(wire),
                Some(Ok(Event::InitDone)) => {
                    *failures = 0;
                    self.entry.learn(std::mem::replace(&mut listed, Known::Gone));
                    self.entry.keep_by(How::Watching);
                    self.config.observer.relisted("Secret");
                }
                Some(Ok(Event::Apply(wire))) if is_it(&wire) => {
                    *failures = 0;
                    self.entry.learn(Known::from(wire));
                }
                Some(Ok(Event::Delete(wire))) if is_it(&wire) => self.entry.learn(Known::Gone),
                Some(Ok(_)) => {}
                Some(Err(error)) if is_refused(&error) => return End::Refused,
                Some(Err(error)) => {
                    debug!(secret = %key, error = %words(&error), failures, "following this Secret failed; what was known last stands");
                    self.config.observer.watch_failed("Secret");
                    if *self.entry.how.borrow() == How::Starting {
                        self.entry.keep_by(How::Reading);
                    }
                    sleep(BACKOFF.random_delay(*failures, None)).await;
                    *failures = failures.saturating_add(1);
                    if start_was_gone(&error) {
                        return End::StartOver;
                    }
                    if self.is_idle() {
                        return End::Idle;
                    }
                }
            }
        }
    }

    /// Reads it now and then, until watching is worth another attempt (false), or nobody wants it (true).
    async fn poll(&self) -> bool {
        self.entry.keep_by(How::Reading);
        let began = Instant::now();
        loop {
            let _ = self.entry.read(&self.client).await;
            if !self.entry.is_forbidden() && !self.said.swap(true, Ordering::AcqRel) {
                warn!(
                    secret = %self.entry.key, every = ?self.config.poll,
                    "this account may read Secrets and not follow them, so they are read again and again: grant verbs `list` and \
                     `watch` beside `get`, with the same names (examples/secret-access/role.yaml)"
                );
            }
            sleep(self.config.poll.mul_f64(0.75 + 0.5 * rand::random::<f64>())).await;
            if self.is_idle() {
                return true;
            }
            if self.entry.is_forbidden() || began.elapsed() >= AGAIN {
                return false;
            }
        }
    }
}

fn status(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

fn is_refused(error: &watcher::Error) -> bool {
    status(error) == Some(403)
}

/// The parser's words may quote a value.
fn words(error: &watcher::Error) -> String {
    match (status(error), error) {
        (Some(code), _) => format!("the API server answered {code}"),
        (
            None,
            watcher::Error::InitialListFailed(kube::Error::Service(_) | kube::Error::HyperError(_))
            | watcher::Error::WatchStartFailed(kube::Error::Service(_) | kube::Error::HyperError(_)),
        ) => describe(error),
        _ => "the API server's answer cannot be read, or the connection broke".to_owned(),
    }
}

#[cfg(test)]
#[path = "followed_tests.rs"]
mod tests;
