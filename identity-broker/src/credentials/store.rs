//! All credentials in use: a task for each reads, follows, tries and decides nothing; [`rotation`](super::rotation) does that.

mod task;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use futures::future::BoxFuture;
use identity_core::lookup::{CredentialSource, Identity, ObjectRef};
use secrecy::SecretString;
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{Instant, timeout},
};

use self::task::Task;
use super::{
    material::Credential,
    notice::Notice,
    rotation::{Outcome, RotationConfig, Version},
    source::{Loaded, Reader},
    verdict::explain,
};
use crate::{
    clock::Clock,
    metrics::Metrics,
    tokens::TokenError,
    upstream::{Sources, Upstream},
};

/// The most credentials kept.
const CAPACITY: usize = 1024;
/// The longest that a credential is waited for.
const WAIT: Duration = Duration::from_secs(10);
/// What may be on its way to a task.
const QUEUE: usize = 256;
/// Notices that a slow listener may be behind.
const NOTICES: usize = 256;

/// What came of trying a credential.
#[derive(Debug)]
pub(crate) enum Tried {
    /// Entra gave a token.
    Proven,
    /// It refused the credential; `spreads`: it may only not know it yet.
    Refused { error: TokenError, spreads: bool },
    /// It refused for another reason.
    Otherwise(TokenError),
    /// It did not answer, or not to the point.
    Unclear(String),
}

/// Tries credentials at Entra.
pub(crate) trait Try: Send + Sync + 'static {
    /// Asks for a token of `identity` with `credential`, for `resource` or one that every application may ask for. Bounded in
    /// time by the implementation.
    fn try_it<'a>(
        &'a self,
        identity: &'a Arc<Identity>,
        credential: &'a Credential,
        resource: Option<&'a str>,
    ) -> BoxFuture<'a, Tried>;
}

/// Gets tokens for what credentials are read with.
pub(crate) trait Bearers: Send + Sync + 'static {
    /// A token of `identity` for `resource`, and the second in which it ends.
    fn bearer<'a>(
        &'a self,
        identity: &'a Arc<Identity>,
        resource: &'a str,
    ) -> BoxFuture<'a, Result<(SecretString, i64), TokenError>>;
}

/// What all tasks share.
struct Context {
    reader: Reader,
    tries: Arc<dyn Try>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    rotation: RotationConfig,
    /// How old a Secret may be that nobody follows.
    age: Duration,
    notices: broadcast::Sender<Notice>,
    base: Instant,
}

/// All credentials in use.
pub(crate) struct Credentials {
    context: Arc<Context>,
    slots: Mutex<HashMap<Place, Arc<Slot>>>,
}

/// Everything that a credential is of.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    object: (Arc<str>, Arc<str>, Arc<str>),
    kind: i32,
    client_id: Option<Box<str>>,
    tenant_id: Option<Box<str>>,
    authority: Option<Box<str>>,
    resource_id: Option<Box<str>>,
    credential: CredentialSource,
}

impl Place {
    pub(super) fn of(identity: &Identity) -> Self {
        let ObjectRef { namespace, name, uid, .. } = identity.object.clone();
        Self {
            object: (namespace, name, uid),
            kind: identity.kind.as_i32(),
            client_id: identity.client_id.clone(),
            tenant_id: identity.tenant_id.clone(),
            authority: identity.authority.clone(),
            resource_id: identity.resource_id.clone(),
            credential: identity.credential.clone(),
        }
    }
}

/// What a task shares with those who want its credential.
struct Shared {
    current: ArcSwapOption<Loaded>,
    /// Until when `current` need not be asked for, milliseconds.
    fresh: AtomicU64,
    /// When it was wanted last, milliseconds.
    wanted: AtomicU64,
}

struct Slot {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

type Answer = Result<Arc<Loaded>, TokenError>;

enum Command {
    Want { identity: Arc<Identity>, refused: Option<Version>, reply: oneshot::Sender<Answer> },
    Worked { version: Version, resource: Box<str> },
}

impl Credentials {
    /// `bearers` gets tokens for what is read with them; it may hold these credentials.
    pub(crate) fn new(upstream: Arc<Upstream>, sources: Sources, bearers: Weak<impl Bearers>) -> Self {
        let (clock, metrics) = (Arc::clone(&upstream.clock), Arc::clone(&upstream.metrics));
        let (rotation, age) = (upstream.config.rotation.clone(), upstream.config.credential_age);
        let reader = Reader::new(sources, upstream.vaults(), bearers, Arc::clone(&clock), Arc::clone(&metrics));
        Self::with(reader, upstream, clock, metrics, rotation, age)
    }

    fn with(
        reader: Reader,
        tries: Arc<dyn Try>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        rotation: RotationConfig,
        age: Duration,
    ) -> Self {
        let (notices, base) = (broadcast::Sender::new(NOTICES), Instant::now());
        let context = Arc::new(Context { reader, tries, clock, metrics, rotation, age, notices, base });
        Self { context, slots: Mutex::default() }
    }

    /// What reads them.
    pub(super) fn reader(&self) -> &Reader {
        &self.context.reader
    }

    /// What is to be told from now on.
    pub(crate) fn notices(&self) -> broadcast::Receiver<Notice> {
        self.context.notices.subscribe()
    }

    /// The version in use of the credential of `identity`, 0 when none.
    pub(crate) fn version(&self, identity: &Identity) -> Version {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let current = slots.get(&Place::of(identity)).and_then(|slot| slot.shared.current.load_full());
        current.map_or(0, |loaded| loaded.version)
    }

    /// The credential of `identity`. For whom Entra has `refused` a version, the source is read anew and another one is waited
    /// for; when there is none, it is the same again. Bounded in time.
    pub(crate) async fn get(&self, identity: &Arc<Identity>, refused: Option<Version>) -> Answer {
        let object = &identity.object;
        let failed = |what: &str, retry_after| {
            let message = format!("the credential of AzureIdentity {}/{} {what}", object.namespace, object.name);
            Err(TokenError::Unavailable { message, retry_after })
        };
        let asked = async {
            // A task may end, because nobody wanted it for long, while this is on its way to it: then there is another one.
            for _ in 0..2 {
                let slot = self.slot(identity);
                if let Some(current) = slot.ready(refused, self.context.base.elapsed()) {
                    return Ok(current);
                }
                let (reply, answer) = oneshot::channel();
                let command = Command::Want { identity: Arc::clone(identity), refused, reply };
                if slot.commands.send(command).await.is_ok()
                    && let Ok(answer) = answer.await
                {
                    return answer;
                }
            }
            failed("was to be read, and that failed inside the broker; its log says more", Duration::from_secs(2))
        };
        let late = |_| failed(&format!("is still being read after {} s", WAIT.as_secs()), WAIT);
        timeout(WAIT, asked).await.unwrap_or_else(late)
    }

    /// Somebody got a token for `resource` with this version.
    pub(crate) fn worked(&self, identity: &Arc<Identity>, version: Version, resource: &str) {
        // When it is told too much, it is told again.
        let _ = self.slot(identity).commands.try_send(Command::Worked { version, resource: resource.into() });
    }

    /// The task of a credential: begun by the first who wants it.
    fn slot(&self, identity: &Arc<Identity>) -> Arc<Slot> {
        let place = Place::of(identity);
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(&place).filter(|slot| !slot.commands.is_closed()) {
            return Arc::clone(slot);
        }
        slots.retain(|_, slot| !slot.commands.is_closed());
        while slots.len() >= CAPACITY {
            // Far beyond any node's number of identities.
            let Some(least) = slots.iter().min_by_key(|(_, slot)| slot.shared.wanted.load(Ordering::Relaxed)) else {
                break;
            };
            let least = least.0.clone();
            slots.remove(&least);
        }
        let shared = Arc::new(Shared {
            current: ArcSwapOption::empty(),
            fresh: AtomicU64::new(0),
            wanted: AtomicU64::new(milliseconds(self.context.base.elapsed())),
        });
        let (commands, queue) = mpsc::channel(QUEUE);
        let task = Task::new(Arc::clone(&self.context), Arc::clone(identity), Arc::clone(&shared));
        tokio::spawn(task.run(queue));
        let slot = Arc::new(Slot { shared, commands });
        slots.insert(place, Arc::clone(&slot));
        slot
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Slot {
    /// What is in use, when nobody has to be asked.
    fn ready(&self, refused: Option<Version>, now: Duration) -> Option<Arc<Loaded>> {
        let now = milliseconds(now);
        let fresh = now < self.shared.fresh.load(Ordering::Acquire);
        let current = self.shared.current.load_full().filter(|loaded| fresh && refused != Some(loaded.version))?;
        self.shared.wanted.fetch_max(now, Ordering::Relaxed);
        Some(current)
    }
}

impl Tried {
    fn outcome(self) -> Outcome {
        match self {
            Self::Proven => Outcome::Proven,
            Self::Refused { error, spreads } => Outcome::Refused { message: explain(&error).into(), spreads },
            // Not about the credential: the former one would be told the same.
            Self::Otherwise(error) => Outcome::Refused { message: explain(&error).into(), spreads: true },
            Self::Unclear(_) => Outcome::Unclear,
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
