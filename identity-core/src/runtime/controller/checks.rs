//! Credentials, tried: which identity's, when, and how many at once. Only the leader tries; what it finds becomes a condition
//! of the identity, by the index and the ordinary writes of status.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{FuturesUnordered, Stream},
};
use identity_crd::{AzureIdentity, IdentityType, find_condition};
use jiff::Timestamp;
use tokio::{sync::watch, task::JoinSet};
use tracing::debug;

use super::Config;
use crate::{
    assign::{CREDENTIAL_READY, CredentialVerdict, Event},
    lookup::{CredentialSource, Identity, ObjectRef},
    object::ObjectKey,
    runtime::{
        Backoff,
        clock::Clock,
        observe::Observer,
        secrets::Secrets,
        source::{Change, Update},
    },
};

/// What was found of a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Whether Entra takes it; `None` when that cannot be told here, or not now.
    pub ready: Option<bool>,
    /// One word in CamelCase.
    pub reason: String,
    /// For a person: what was found, and what to do.
    pub message: String,
    /// When it ends, where that is known.
    pub expires: Option<Timestamp>,
}

/// Tries credentials.
pub trait Check: Send + Sync + 'static {
    /// Reads the credential of `identity` and tries it. Bounded in time by the implementation.
    fn check<'a>(&'a self, identity: &'a Arc<Identity>) -> BoxFuture<'a, Checked>;
}

/// How credentials are tried.
#[derive(Clone)]
pub struct Credentials {
    /// Who tries them.
    pub check: Arc<dyn Check>,
    /// Where they are: a change there is a reason to try again.
    pub secrets: Secrets,
    /// How many are tried at once.
    pub at_once: usize,
    /// How often one that is good is tried again, on average. One that is not is tried sooner.
    pub interval: Duration,
}

impl Credentials {
    /// Four at once, every hour.
    pub fn new(check: Arc<dyn Check>, secrets: Secrets) -> Self {
        Self { check, secrets, at_once: 4, interval: Duration::from_hours(1) }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("at_once", &self.at_once).finish_non_exhaustive()
    }
}

/// After something was found wrong. A secret that was just added reaches all of Entra within minutes.
const WRONG: Backoff = Backoff { first: Duration::from_secs(30), longest: Duration::from_mins(15) };
/// After nothing could be told. Where only a node can tell, that stays so.
const UNKNOWN: Backoff = Backoff { first: Duration::from_mins(1), longest: Duration::from_hours(1) };
/// So many times in a row nothing can be told before that is said in place of what was found of the same credential: an outage
/// of Entra is no news about a thousand credentials.
const DOUBTS: u32 = 3;
/// After a change: a little later, since one change seldom comes alone.
const CHANGED: Duration = Duration::from_secs(1);
/// A new leader tries again within this time what its predecessor has tried.
const INHERITED: Duration = Duration::from_mins(5);
/// A credential that ends is looked at so long after its end.
const ENDED: Duration = Duration::from_secs(5);

struct Entry {
    identity: Arc<Identity>,
    /// Distinguishes this generation from the ones before it.
    serial: u64,
    /// Its status says something of this generation.
    judged: bool,
    /// When it is tried next; none while it is.
    due: Option<Duration>,
    /// Something has changed while it was tried.
    again: bool,
    failures: u32,
    doubts: u32,
    said: Option<Checked>,
}

type Followed = (ObjectKey, u64, Option<watch::Receiver<u64>>);
type Found = (ObjectKey, u64, Checked);

pub(super) struct Checks {
    how: Option<Credentials>,
    cluster_wide: bool,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    leading: bool,
    serial: u64,
    entries: HashMap<ObjectKey, Entry>,
    /// Whose credential is in a vault that this identity reads.
    readers: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    due: BTreeSet<(Duration, ObjectKey)>,
    running: JoinSet<Found>,
    followed: FuturesUnordered<BoxFuture<'static, Followed>>,
}

impl Checks {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            how: config.credentials.clone(),
            cluster_wide: config.options.cluster_wide,
            clock: config.clock.clone(),
            observer: config.observer.clone(),
            leading: false,
            serial: 0,
            entries: HashMap::new(),
            readers: HashMap::new(),
            due: BTreeSet::new(),
            running: JoinSet::new(),
            followed: FuturesUnordered::new(),
        }
    }

    /// Takes in what became of identities.
    pub(super) fn take(&mut self, update: &Update) {
        let Update::Identities(change) = update else { return };
        if self.how.is_none() {
            return;
        }
        match change {
            Change::Apply(object) => self.apply(object),
            Change::Delete(gone) => self.remove(&gone.key()),
            Change::Relist(all) => {
                let listed: BTreeSet<ObjectKey> = all.iter().map(|o| ObjectRef::from(&o.metadata).key()).collect();
                let gone: Vec<_> = self.entries.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                for key in &gone {
                    self.remove(key);
                }
                for object in all {
                    self.apply(object);
                }
            }
        }
    }

    fn apply(&mut self, object: &AzureIdentity) {
        let key = ObjectRef::from(&object.metadata).key();
        let read = Identity::read(object, self.cluster_wide).ok();
        self.reader_changed(&key);
        let Some(identity) = read.filter(|identity| identity.kind != IdentityType::UserAssignedManagedIdentity) else {
            return self.remove(&key);
        };
        let status = object.status.as_ref();
        let ready = status.and_then(|status| find_condition(&status.conditions, CREDENTIAL_READY));
        let judged = ready.is_some_and(|ready| ready.observed_generation == object.metadata.generation);
        if let Some(entry) = self.entries.get_mut(&key)
            && *entry.identity == identity
        {
            entry.judged = judged;
            return;
        }
        self.remove(&key);
        self.serial += 1;
        if let Some(reader) = reader(&identity) {
            self.readers.entry(reader).or_default().insert(key.clone());
        }
        let entry = Entry {
            identity: Arc::new(identity),
            serial: self.serial,
            judged,
            due: None,
            again: false,
            failures: 0,
            doubts: 0,
            said: None,
        };
        self.entries.insert(key.clone(), entry);
        if self.leading {
            self.begin(&key);
        }
    }

    /// What an identity reads for others may be had now, or not any more.
    fn reader_changed(&mut self, key: &ObjectKey) {
        for concerned in self.readers.get(key).cloned().unwrap_or_default() {
            if self.entries.get(&concerned).is_some_and(|entry| entry.failures > 0) {
                self.changed(&concerned);
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        let Some(entry) = self.entries.remove(key) else { return };
        if let Some(due) = entry.due {
            self.due.remove(&(due, key.clone()));
        }
        if let Some(reader) = reader(&entry.identity)
            && let Some(concerned) = self.readers.get_mut(&reader)
        {
            concerned.remove(key);
            if concerned.is_empty() {
                self.readers.remove(&reader);
            }
        }
        self.observer.credential_gone(key);
    }

    /// Begins to follow and to try one.
    fn begin(&mut self, key: &ObjectKey) {
        let (Some(how), Some(entry)) = (&self.how, self.entries.get(key)) else { return };
        if let Some(secret) = entry.identity.credential.secret() {
            let receiver = how.secrets.follow(&secret.namespace, &secret.name);
            self.followed.push(Box::pin(change(key.clone(), entry.serial, receiver)));
        }
        let wait = if entry.judged { INHERITED } else { CHANGED };
        self.schedule(key, wait.mul_f64(rand::random()));
    }

    fn schedule(&mut self, key: &ObjectKey, wait: Duration) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let at = self.clock.uptime() + wait;
        if let Some(former) = entry.due.replace(at) {
            self.due.remove(&(former, key.clone()));
        }
        self.due.insert((at, key.clone()));
    }

    /// There is a reason to try it again.
    fn changed(&mut self, key: &ObjectKey) {
        if !self.leading {
            return;
        }
        let Some(entry) = self.entries.get_mut(key) else { return };
        (entry.failures, entry.doubts) = (0, DOUBTS);
        if entry.due.is_some() {
            self.schedule(key, CHANGED.mul_f64(rand::random()));
        } else {
            entry.again = true;
        }
    }

    /// Whether this process leads now.
    pub(super) fn lead(&mut self, leading: bool) {
        if self.how.is_none() || leading == self.leading {
            return;
        }
        self.leading = leading;
        if leading {
            let all: Vec<_> = self.entries.keys().cloned().collect();
            for key in &all {
                self.begin(key);
            }
            return;
        }
        self.running.abort_all();
        self.running = JoinSet::new();
        self.followed.clear();
        self.due.clear();
        for (key, entry) in &mut self.entries {
            (entry.due, entry.again, entry.said) = (None, false, None);
            self.observer.credential_gone(key);
        }
    }

    /// How long until there is something to try.
    pub(super) fn due(&self) -> Option<Duration> {
        let how = self.how.as_ref().filter(|_| self.leading)?;
        if self.running.len() >= how.at_once.max(1) {
            return None;
        }
        self.due.first().map(|(at, _)| at.saturating_sub(self.clock.uptime()))
    }

    /// Tries what is due.
    pub(super) fn start(&mut self) {
        let Some(how) = self.how.as_ref().filter(|_| self.leading) else { return };
        let now = self.clock.uptime();
        while self.running.len() < how.at_once.max(1)
            && self.due.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, key)) = self.due.pop_first()
        {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.due = None;
            let (check, identity, serial) = (how.check.clone(), entry.identity.clone(), entry.serial);
            self.running.spawn(async move {
                let checked = AssertUnwindSafe(check.check(&identity)).catch_unwind().await;
                (key, serial, checked.unwrap_or_else(|_panic| broken()))
            });
        }
    }

    /// Waits until something is found, or has changed. What is found is for the index.
    pub(super) async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            Some(ended) = self.running.join_next() => {
                // An error: it was broken off.
                ended.ok().and_then(|(key, serial, checked)| self.found(&key, serial, checked))
            }
            Some((key, serial, receiver)) = next(&mut self.followed) => {
                if self.entries.get(&key).is_some_and(|entry| entry.serial == serial) {
                    if let Some(receiver) = receiver {
                        self.followed.push(Box::pin(change(key.clone(), serial, receiver)));
                        self.changed(&key);
                    } else {
                        debug!(identity = %key, "its Secret is not followed; it is read again when the credential is tried");
                    }
                }
                None
            }
            else => std::future::pending().await,
        }
    }

    fn found(&mut self, key: &ObjectKey, serial: u64, checked: Checked) -> Option<Event> {
        let interval = self.how.as_ref()?.interval;
        let entry = self.entries.get_mut(key).filter(|entry| entry.serial == serial)?;
        let wait = match checked.ready {
            Some(true) => {
                entry.failures = 0;
                let usual = interval.mul_f64(0.75 + 0.5 * rand::random::<f64>());
                let left = checked.expires.map(|end| end.duration_since(self.clock.now()));
                let ends = left.and_then(|left| Duration::try_from(left).ok()).map(|left| left + ENDED);
                ends.map_or(usual, |ends| ends.min(usual))
            }
            Some(false) => WRONG.random_delay(entry.failures, None),
            None => UNKNOWN.random_delay(entry.failures, None),
        };
        entry.doubts = if checked.ready.is_none() { entry.doubts.saturating_add(1) } else { 0 };
        if checked.ready != Some(true) {
            entry.failures = entry.failures.saturating_add(1);
        }
        let wait = if std::mem::take(&mut entry.again) { CHANGED } else { wait };
        let known = entry.judged || entry.said.is_some();
        let say = checked.ready.is_some() || entry.doubts >= DOUBTS || !known;
        let event = say.then(|| {
            self.observer.credential(key, checked.ready, checked.expires);
            let object = &entry.identity.object;
            Event::Credential(Box::new(CredentialVerdict {
                identity: key.clone(),
                uid: (!object.uid.is_empty()).then(|| object.uid.to_string()),
                // Where an object has none it is read as 0.
                generation: (object.generation != 0).then_some(object.generation),
                ready: checked.ready,
                reason: checked.reason.clone(),
                message: checked.message.clone(),
                expires: checked.expires,
            }))
        });
        if say {
            entry.said = Some(checked);
        }
        self.schedule(key, wait);
        event
    }
}

/// The identity that reads the vault in which the credential of this one is.
fn reader(identity: &Identity) -> Option<ObjectKey> {
    match &identity.credential {
        CredentialSource::KeyVault(vault) => Some(ObjectKey::new(&*identity.object.namespace, &*vault.identity)),
        _ => None,
    }
}

fn broken() -> Checked {
    Checked {
        ready: None,
        reason: "CheckFailed".to_owned(),
        message: "trying the credential failed inside the controller; its log says more".to_owned(),
        expires: None,
    }
}

async fn change(key: ObjectKey, serial: u64, mut receiver: watch::Receiver<u64>) -> Followed {
    let there = receiver.changed().await.is_ok();
    (key, serial, there.then_some(receiver))
}

async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    stream.next().await
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
